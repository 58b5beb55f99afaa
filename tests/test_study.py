"""From a table to the numbers of a study: against brute force, other libraries, and tables that cannot be right."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import ttest_rel

from au_llava.au_recognition.study import (
    around_events,
    join_design,
    paired_effect,
    quality_filter,
    read_table,
    summaries,
    windows,
)
from au_llava.au_recognition.synchrony import side_by_side, synchrony, windowed_correlation
from au_llava.au_recognition.tables import FACE_COLUMNS


def recording(file="a.mp4", seconds=4.0, fps=10, faces=1, seed=0):
    """Rows as recognize_au.py writes them, with noise for AU12."""
    rng = np.random.default_rng(seed)
    rows = []
    for frame in range(round(seconds * fps)):
        for face in range(faces):
            row = dict.fromkeys(FACE_COLUMNS, 1.0) | {"file": file, "frame": frame + 1, "face_id": face, "success": 1}
            readings = {
                "AU12_r": rng.uniform(0, 5),
                "AU12_c": float(rng.random() < 0.5),
                "disfa.AU01_r": 1.0,
                "AD30L": 0.5,
            }
            rows.append(row | {"timestamp": frame / fps, "confidence": 0.9} | readings)
    return pd.DataFrame(rows).astype({"face_id": "Int64"})


def without_face(table, *frames):
    """The table with frames that show no face."""
    gone = table["frame"].isin(frames)
    cells = {"face_id": pd.NA, "success": 0, "confidence": 0.0, "AU12_r": np.nan, "AU12_c": np.nan}
    for column, value in cells.items():
        table.loc[gone, column] = value
    return table


def write(table, path):
    table.to_csv(path, index=False)
    path.with_name(f"{path.name}.provenance.json").write_text(json.dumps({"formats": ["disfa"]}))
    return path


# Reading


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_comes_with_its_provenance(tmp_path, suffix):
    written = without_face(recording(), 3)
    path = write(written, tmp_path / f"aus{suffix}")
    if suffix == ".parquet":
        written.to_parquet(path)
    table, provenance = read_table(path)
    pd.testing.assert_frame_equal(table, written, check_dtype=False)
    assert table["face_id"].dtype == "Int64"
    assert provenance == {"formats": ["disfa"]}


def test_tables_that_cannot_be_right_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"aus\.jsonl is no table .* \.csv or \.parquet"):
        read_table(tmp_path / "aus.jsonl")
    path = write(recording().drop(columns="timestamp"), tmp_path / "aus.csv")
    with pytest.raises(ValueError, match=r"aus\.csv has no column timestamp"):
        read_table(path)
    with pytest.raises(ValueError, match=r"a\.mp4, face 0: the time does not increase at 0\.1 s"):
        read_table(write(recording().iloc[[0, 2, 1, 3]], path))
    with pytest.raises(ValueError, match=r"the time does not increase at 0 s.* twice"):
        read_table(write(pd.concat([recording(), recording()]), path))
    commas = recording().astype({"timestamp": str})
    commas["timestamp"] = commas["timestamp"].str.replace(".", ",")  # as some spreadsheets save it
    with pytest.raises(ValueError, match="timestamp must hold a number in each row, with a decimal point"):
        read_table(write(commas, path))
    path = write(recording(), tmp_path / "alone.csv")
    path.with_name("alone.csv.provenance.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"says what wrote alone\.csv"):
        read_table(path)


# Design


def test_design_by_file_reaches_frames_without_a_face():
    table = pd.concat([without_face(recording("a.mp4"), 2), recording("b.mp4")])
    design = pd.DataFrame({"file": ["b.mp4", "a.mp4"], "participant": ["P2", "P1"]})
    joined = join_design(table, design)
    assert len(joined) == len(table)
    assert dict(zip(joined["file"], joined["participant"], strict=True)) == {"a.mp4": "P1", "b.mp4": "P2"}


def test_design_by_face_leaves_out_strangers():
    table = without_face(recording(faces=3), 5)
    design = pd.DataFrame({"file": "a.mp4", "face_id": [2, 0], "participant": ["right", "left"]})
    joined = join_design(table, design)
    assert len(joined) == len(table) - 39  # the third face of 39 frames; the 40th shows nobody
    assert joined.groupby("face_id")["participant"].unique().map(list).to_dict() == {0: ["left"], 2: ["right"]}
    assert joined.loc[joined["frame"] == 5, "participant"].isna().all()


@pytest.mark.parametrize(
    ("design", "sentence"),
    [
        ({"participant": ["P1"]}, "the design has no column file"),
        ({"file": ["a.mp4"], "confidence": [1]}, "columns that the table has too: confidence"),
        ({"file": ["a.mp4", "a.mp4"]}, "several rows for a.mp4"),
        ({"file": ["b.mp4"]}, "The design has no row for a.mp4"),
        ({"file": ["a.mp4", "b.mp4"]}, "The table has no rows for b.mp4"),
        ({"file": ["a.mp4"], "face_id": [7]}, "The table has no rows for a.mp4 face 7"),
        ({"file": ["a.mp4"]}, "a.mp4: several faces in one frame. Give the design a column face_id"),
    ],
)
def test_designs_that_do_not_fit_are_refused(design, sentence):
    with pytest.raises(ValueError, match=sentence):
        join_design(recording(faces=2), pd.DataFrame(design))


# Quality


def test_frames_outside_the_limits_lose_their_readings_only():
    table = without_face(recording(), 1)
    table["pose_Ry"] = np.linspace(-1, 1, len(table))
    table.loc[10, "pose_Ry"] = np.nan
    table.loc[20, "confidence"] = 0.5
    filtered = quality_filter(table, {"confidence": (0.8, None), "pose_Ry": (None, 0.5)})
    expected = [
        row["success"] == 1 and row["confidence"] >= 0.8 and (not math.isnan(row["pose_Ry"])) and row["pose_Ry"] <= 0.5
        for _, row in table.iterrows()
    ]
    assert filtered["usable"].tolist() == expected
    for column in ("AU12_r", "AU12_c", "disfa.AU01_r", "AD30L"):
        assert filtered[column].notna().tolist() == expected
    pd.testing.assert_frame_equal(filtered[list(FACE_COLUMNS)], table[list(FACE_COLUMNS)])
    assert table["disfa.AU01_r"].notna().all()  # the table itself stays as it was
    assert quality_filter(table, {})["usable"].tolist() == [False] + [True] * 39


def test_shapes_of_arkit_and_formats_with_points_in_their_names_are_blanked_too():
    table = recording(seconds=0.3).assign(**{"mouthSmileLeft": 0.5, "tongueOut": 0.1, "my.v1.0.AU12_r": 2.0})
    table["confidence"] = [0.9, 0.5, 0.9]
    filtered = quality_filter(table, {"confidence": (0.8, None)})
    for column in ("mouthSmileLeft", "tongueOut", "my.v1.0.AU12_r"):
        assert filtered[column].isna().tolist() == [False, True, False]


def test_limits_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match=r"no column confidance. Did you mean confidence"):
        quality_filter(recording(), {"confidance": (0.9, None)})
    with pytest.raises(ValueError, match="file holds no numbers"):
        quality_filter(recording(), {"file": (0, 1)})
    with pytest.raises(ValueError, match=r"confidence: the lowest value 0\.9 is above the highest 0\.8"):
        quality_filter(recording(), {"confidence": (0.9, 0.8)})


# Events


def test_rows_around_events_are_those_that_a_loop_finds():
    table = pd.concat([without_face(recording("a.mp4"), 14), recording("b.mp4", faces=2, seed=1)])
    events = pd.DataFrame(
        {"file": ["b.mp4", "a.mp4", "a.mp4"], "onset": [2.0, 1.02, 1.3], "stimulus": ["x", "y", "z"]}, index=[7, 8, 9]
    )
    rows = around_events(table, events, before=0.5, after=1.0, step=0.1)
    expected = []
    for number, event in events.iterrows():
        for _, row in table.iterrows():
            since = row["timestamp"] - event["onset"]
            if row["file"] == event["file"] and -0.5 - 1e-9 <= since <= 1 + 1e-9:
                expected.append((number, event["stimulus"], row["file"], row["frame"], round(since, 1) + 0.0))
    found = rows[["event", "stimulus", "file", "frame", "time"]].itertuples(index=False, name=None)
    assert [(*row[:4], round(row[4], 6)) for row in found] == expected
    assert len(rows.query("event == 7")) == 2 * 16
    assert rows.query("event == 8")["time"].tolist()[4] == 0  # 1.0 s is the frame nearest to 1.02 s
    assert rows.query("event == 8")["AU12_r"].isna().sum() == 1


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"file": "b.mp4", "onset": 1.0}, "Event 0 is in b.mp4, but the table has no rows of that file"),
        ({"file": "a.mp4", "onset": 9.0}, r"Event 0 at 9 s of a\.mp4.* lasts from 0 to 3\.9 s"),
        ({"file": "a.mp4", "onset": 0.4}, "0.5 s before to 1 s after it is not all within the recording"),
        ({"file": "a.mp4", "onset": 3.0}, "not all within the recording"),
        ({"file": "a.mp4", "onset": np.nan}, "not all within the recording"),
        ({"file": "a.mp4", "time": 1.0}, "the table of events has no column onset"),
        ({"file": "a.mp4", "onset": 1.0, "frame": 3}, "columns that the table has too: frame"),
    ],
)
def test_events_that_do_not_fit_are_refused(event, sentence):
    with pytest.raises(ValueError, match=sentence):
        around_events(recording(), pd.DataFrame([event]), before=0.5, after=1.0, step=0.1)


def test_other_events_that_are_refused():
    events = pd.DataFrame({"file": "a.mp4", "onset": [1.0, 2.0]})
    with pytest.raises(ValueError, match="must not be negative, and step 0 must be positive"):
        around_events(recording(), events, before=0.5, after=1.0, step=0)
    with pytest.raises(ValueError, match="empty"):
        around_events(recording(), events.head(0), before=0.5, after=1.0, step=0.1)
    with pytest.raises(ValueError, match="two events have one index label"):
        around_events(recording(), pd.concat([events, events]), before=0.5, after=1.0, step=0.1)
    with pytest.raises(ValueError, match="labels have several levels; reset_index"):
        around_events(recording(), events.set_index(pd.Index(["x", "y"]), append=True), 0.5, 1.0, 0.1)
    with pytest.raises(ValueError, match="the time does not increase"):
        around_events(recording().iloc[::-1], events, before=0.5, after=1.0, step=0.1)


# Windows and summaries


@pytest.mark.parametrize(("width", "step"), [(1.0, None), (1.5, 0.5), (4.0, 0.1)])
def test_windows_are_those_that_a_loop_finds(width, step):
    table = pd.concat([recording("a.mp4", faces=2), recording("b.mp4", seconds=5.3)])
    rows = windows(table, width, step)
    expected = []
    for file, seconds in (("a.mp4", 4.0), ("b.mp4", 5.3)):
        for number in range(1000):
            start = number * (step or width)
            if start + width > seconds + 1e-9:
                break
            for _, row in table.iterrows():
                if row["file"] == file and start - 1e-9 <= row["timestamp"] < start + width - 1e-9:
                    expected.append((file, number, round(start, 6), row["frame"], row["face_id"]))
    found = rows[["file", "window", "start", "frame", "face_id"]].itertuples(index=False, name=None)
    assert [(file, window, round(start, 6), *rest) for file, window, start, *rest in found] == expected


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a\.mp4 lasts 4 s, less than a window of 5 s"):
        windows(recording(), 5)
    with pytest.raises(ValueError, match="width 1 and step 0 must be positive"):
        windows(recording(), 1, 0)


def test_summaries_are_the_plain_numbers():
    table = pd.concat(
        [without_face(recording("a.mp4"), *range(1, 16)), without_face(recording("b.mp4"), *range(1, 31))]
    )
    table["condition"] = table["file"]
    result = summaries(table, ["AU12_r", "AU12_c"], ["condition"], least=0.5).set_index("condition")
    values = table.loc[table["file"] == "a.mp4", "AU12_r"].dropna()
    assert result.loc["a.mp4", ["frames", "usable"]].tolist() == [40, 25]
    assert result.loc["b.mp4", ["frames", "usable"]].tolist() == [40, 10]
    assert result.loc["a.mp4", "AU12_r_mean"] == pytest.approx(sum(values) / 25)
    deviation = math.sqrt(sum((value - sum(values) / 25) ** 2 for value in values) / 24)
    assert result.loc["a.mp4", "AU12_r_sd"] == pytest.approx(deviation)
    assert result.loc["a.mp4", "AU12_r_max"] == max(values)
    share = (table.loc[table["file"] == "a.mp4", "AU12_c"] == 1).sum() / 25
    assert result.loc["a.mp4", "AU12_c_mean"] == pytest.approx(share)
    assert result.loc["b.mp4"].filter(like="AU").isna().all()  # a quarter of the frames is too few
    assert summaries(table, ["AU12_r"], ["condition"], least=0.25)["AU12_r_mean"].notna().all()


def test_summaries_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match=r"no column AU12_x\. Did you mean AU12_"):
        summaries(recording(), ["AU12_x"], ["file"])
    with pytest.raises(ValueError, match="no column participant"):
        summaries(recording(), ["AU12_r"], ["participant"])
    with pytest.raises(ValueError, match="from 0 to 1; got 50"):
        summaries(recording(), ["AU12_r"], ["file"], least=50)


# Effects


def two_conditions(people=12, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.normal(2, 1, people)
    names = [f"P{number}" for number in range(people)]
    return (pd.Series(level + shift + rng.normal(0, 0.4, people), names) for shift in (0.5, 0.0))


def test_paired_effect_is_the_t_test():
    first, second = two_conditions()
    effect = paired_effect(first, second.sample(frac=1, random_state=1))  # matched by name, not by order
    other = ttest_rel(first, second)
    assert effect.people == 12
    assert effect.difference == pytest.approx((first - second).mean())
    assert effect.interval == pytest.approx(tuple(other.confidence_interval(0.95)))
    assert effect.p_value == pytest.approx(other.pvalue)
    assert effect.d == pytest.approx(other.statistic / math.sqrt(12))
    assert paired_effect(second, first).d_interval == pytest.approx([-bound for bound in effect.d_interval[::-1]])


@pytest.mark.parametrize(
    ("people", "t", "low", "high"),
    [(9, 9.12, 4.285765, 13.87906), (9, 0.3, -1.674443, 2.256131), (31, -4, -6.177405, -1.769653)],
)
def test_interval_of_d_is_that_of_r(people, t, low, high):
    """R 4.2: uniroot(function(n) pt(t, people - 1, n) - 0.975, c(-37, 37), tol = 1e-9)$root, and with 0.025."""
    spread = pd.Series(np.random.default_rng(3).normal(size=people))
    spread = (spread - spread.mean()) / spread.std()
    effect = paired_effect(spread + t / math.sqrt(people), 0 * spread)
    assert effect.d_interval == pytest.approx((low / math.sqrt(people), high / math.sqrt(people)), abs=1e-5)


def test_people_who_lack_a_condition_are_left_out_and_bad_pairs_refused():
    first, second = two_conditions()
    effect = paired_effect(first.where(first.index != "P3"), second.drop("P5"))
    assert effect.people == 10
    assert effect.difference == pytest.approx((first - second).drop(["P3", "P5"]).mean())
    with pytest.raises(ValueError, match="P0: give one number per participant"):
        paired_effect(pd.concat([first, first.head(1)]), second)
    with pytest.raises(ValueError, match="0 participants have both numbers"):
        paired_effect(first.head(3), second.tail(3))
    with pytest.raises(ValueError, match="two or more who differ"):
        paired_effect(first, first)
    with pytest.raises(ValueError, match="two or more who differ"):  # 0.3 - 0.2 is not 0.4 - 0.3 in floats
        paired_effect(pd.Series([0.3, 0.4, 0.5]), pd.Series([0.2, 0.3, 0.4]))


def test_mixed_model_of_a_balanced_design_is_the_paired_t_test():
    """With a number per person and condition and an intercept per person, REML gives the paired comparison exactly."""
    first, second = two_conditions()
    people = pd.concat(
        [
            first.rename("value").to_frame().assign(condition="b"),
            second.rename("value").to_frame().assign(condition="a"),
        ]
    )
    fit = smf.mixedlm("value ~ condition", people, groups=people.index).fit()
    effect = paired_effect(first, second)
    assert fit.fe_params["condition[T.b]"] == pytest.approx(effect.difference)
    assert fit.tvalues["condition[T.b]"] / math.sqrt(effect.people) == pytest.approx(effect.d, rel=1e-4)
    between = pd.concat([first, second], axis=1).cov().iloc[0, 1]  # what the two numbers of a person share
    assert fit.cov_re.iloc[0, 0] == pytest.approx(between, rel=1e-3)


# Synchrony


def waves(seconds=30, fps=5, lag=0, seed=0, noise=0.1):
    """Two people; the second does what the first did `lag` frames ago."""
    rng = np.random.default_rng(seed)
    wave = np.convolve(rng.normal(size=seconds * fps + 60), np.hanning(9), "same")
    first, second = wave[40 : 40 + seconds * fps], wave[40 - lag : 40 - lag + seconds * fps]
    values = {"A": first, "B": second + rng.normal(0, noise, len(second))}
    return pd.DataFrame(values, index=np.arange(seconds * fps) / fps)


def test_windowed_correlation_is_that_of_a_loop():
    pair = waves(seconds=8)
    pair.iloc[3, 0] = pair.iloc[11:16, 1] = np.nan
    pair.iloc[24:, 1] = 1.0
    table = windowed_correlation(pair, width=2.0, step=0.6, max_lag=0.4)
    assert table.columns.tolist() == [-0.4, -0.2, 0.0, 0.2, 0.4]
    assert table.index.to_numpy() == pytest.approx(np.arange(2, 40 - 10 - 2 + 1, 3) / 5)
    for start, row in table.iterrows():
        begin = round(start * 5)
        for lag, found in row.items():
            a = pair["A"].to_numpy()[begin : begin + 10]
            b = pair["B"].to_numpy()[begin + round(lag * 5) :][:10]
            both = ~np.isnan(a) & ~np.isnan(b)
            if both.sum() < 5 or np.ptp(b[both]) == 0:
                assert math.isnan(found)
            else:
                assert found == pytest.approx(np.corrcoef(a[both], b[both])[0, 1])
    assert table.isna().any(axis=None)
    assert table.notna().any(axis=None)


def test_lag_says_who_follows():
    assert windowed_correlation(waves(lag=3), 4, 1, 1).mean().idxmax() == pytest.approx(0.6)
    assert windowed_correlation(waves(lag=-3), 4, 1, 1).mean().idxmax() == pytest.approx(-0.6)


def test_synchrony_against_its_surrogates():
    pair = waves(lag=3)
    result = synchrony(pair, width=3, step=1, max_lag=1)
    table = windowed_correlation(pair, width=3, step=1, max_lag=1)
    assert result.observed == pytest.approx(table.mean().max())
    assert result.lag == table.mean().idxmax() == pytest.approx(0.6)
    assert len(result.surrogates) == 150 - 2 * (15 + 5) + 1
    shifted = pair.assign(B=np.roll(pair["B"], 15 + 5))
    assert result.surrogates[0] == pytest.approx(windowed_correlation(shifted, 3, 1, 1).mean().max())
    assert result.p_value == pytest.approx(1 / (1 + len(result.surrogates)))
    assert result.observed > 0.9 > result.surrogates.max()


def test_people_who_do_not_know_each_other_are_rarely_in_synchrony():
    """40 pairs of independent people: p is at most 0.1 in about a tenth of them, though correlations are high."""
    results = []
    for seed in range(40):
        pair = waves(seed=seed).assign(B=waves(seed=1000 + seed)["B"])
        results.append(synchrony(pair, width=3, step=1, max_lag=1))
    assert np.mean([result.observed for result in results]) > 0.2  # which alone would look like synchrony
    assert sum(result.p_value <= 0.1 for result in results) <= 10  # binomial(40, 0.1): more in 0.1 % of cases
    assert 0.3 < np.mean([result.p_value for result in results]) < 0.7


def test_side_by_side_keeps_every_time():
    table = without_face(recording(faces=2), 4)
    table = table[~((table["frame"] == 9) & (table["face_id"] == 1))]
    table["participant"] = table["face_id"].map({0: "A", 1: "B"})
    wide = side_by_side(table, "AU12_r", ["B", "A"])
    assert wide.columns.tolist() == ["B", "A"]
    assert wide.index.to_numpy() == pytest.approx(np.arange(40) / 10)
    assert wide.isna().sum().to_dict() == {"A": 1, "B": 2}
    for _, row in table.dropna(subset="participant").iterrows():
        assert wide.loc[row["timestamp"], row["participant"]] == row["AU12_r"]


def test_pairs_that_cannot_be_compared_are_refused():
    table = recording(faces=2)
    table["participant"] = table["face_id"].map({0: "A", 1: "B"})
    with pytest.raises(ValueError, match="P99: not in the table, whose column participant has A, B"):
        side_by_side(table, "AU12_r", ["A", "P99"])
    with pytest.raises(ValueError, match="One recording is needed, the table has 2"):
        side_by_side(pd.concat([table, table.assign(file="b.mp4")]), "AU12_r", ["A", "B"])
    with pytest.raises(ValueError, match="A: twice in one frame"):
        side_by_side(table.assign(participant="A"), "AU12_r", ["A"])
    pair = waves()
    with pytest.raises(ValueError, match="Two people are needed, got 1"):
        synchrony(pair[["A"]], 3, 1, 1)
    with pytest.raises(ValueError, match="must increase evenly"):
        windowed_correlation(pair.drop(pair.index[5:8]), 3, 1, 1)
    with pytest.raises(ValueError, match="must increase evenly"):
        windowed_correlation(pair.iloc[::-1], 3, 1, 1)
    with pytest.raises(ValueError, match="A window needs 3 frames"):
        windowed_correlation(pair, 0.2, 1, 1)
    with pytest.raises(ValueError, match="150 frames are fewer than a window of 200"):
        windowed_correlation(pair, 40, 1, 0)
    with pytest.raises(ValueError, match="need at least 161"):
        synchrony(pair, 15, 1, 1)
    with pytest.raises(ValueError, match="In no window do both people move"):
        synchrony(pair.assign(B=0.0), 3, 1, 1)
