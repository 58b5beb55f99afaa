"""Intervals and comparisons against plain loops over resampled images; p values against how they are defined."""

import warnings

import numpy as np
import pytest
import scipy.special
from conftest import load_tool
from test_metrics_au import INTENSITY, NAN, OCCURRENCE, SCALES, simulate

from au_llava.action_units import AUFormat
from au_llava.au_evaluation.intervals import holm, intervals, mean_with_interval, paired_difference
from au_llava.metrics_au import presence, score

ONES = [[1, 1]]


def drawn_images(subjects, resamples, seed):
    """For each resample of subjects, the same that `intervals` draws: its images, and whose they are, copies apart."""
    people = np.unique(subjects)
    counts = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), size=resamples)
    for row in counts:
        copies = [(who, copy) for who, times in zip(people, row, strict=True) for copy in range(times)]
        images = [np.flatnonzero(subjects == who) for who, _ in copies]
        names = [f"{who} {copy}" for (who, copy), each in zip(copies, images, strict=True) for _ in each]
        yield np.concatenate(images), names


@pytest.mark.parametrize("scale", SCALES)
def test_intervals_equal_a_bootstrap_by_loop(scale):
    """The same resamples of subjects, each scored by `score` on the images put together one by one."""
    fmt = AUFormat("f", ("AU1", "AU2", "AU4"), scale)
    references, subjects, system = simulate(fmt, 60, seed=5)
    references[:, 2] *= subjects == "s1"  # constant but for one subject: undefined in a third of the resamples
    ours = intervals(references=references, subjects=subjects, fmt=fmt, resamples=40, level=0.9, seed=3, **system)

    scores = []
    for images, names in drawn_images(subjects, 40, seed=3):
        drawn = {key: values[images] for key, values in system.items()}
        scores.append(score(references=references[images], fmt=fmt, subjects=names, **drawn))
    assert set(ours["mean"]) == set(ours["per_au"]["AU1"]) == set(scores[0]["mean"]) - {"ece"}
    for metric, bounds in ours["mean"].items():
        values = [each["mean"][metric] for each in scores]
        np.testing.assert_allclose(bounds, np.nanpercentile(values, [5, 95]), rtol=1e-9, err_msg=metric)
        for label in fmt.labels:
            values = [each["per_au"][label][metric] for each in scores]
            bounds = ours["per_au"][label][metric]
            np.testing.assert_allclose(bounds, np.nanpercentile(values, [5, 95]), rtol=1e-9, atol=1e-12, err_msg=metric)
    assert any(np.isnan(each["per_au"]["AU4"]["f1_skew_normalised"]) for each in scores)


@pytest.mark.parametrize("rate", [0.005, 0.3])
def test_binned_ranks_are_close_to_a_full_bootstrap(rate):
    """More distinct probabilities than bins, for a common AU and for one with some thirty positives."""
    rng = np.random.default_rng(1)
    references = (rng.random((6000, 1)) < rate).astype(float)
    probabilities = scipy.special.expit(rng.normal(size=(6000, 1)) + 3 * references - 2)
    subjects = np.array([f"s{number}" for number in rng.integers(0, 20, 6000)])
    fmt = AUFormat("o", ("AU1",), "occurrence")
    ours = intervals(np.round(probabilities), references, subjects, fmt, probabilities, resamples=30)["mean"]
    scores = [
        presence(probabilities[images, 0], references[images, 0] == 1)
        for images, _ in drawn_images(subjects, 30, seed=0)
    ]
    for metric, tolerance in {"roc_auc": 1e-3, "average_precision": 1e-3, "brier": 1e-12}.items():
        loop = np.percentile([each[metric] for each in scores], [2.5, 97.5])
        np.testing.assert_allclose(ours[metric], loop, rtol=0, atol=tolerance, err_msg=metric)
        assert np.abs(ours[metric] - loop).max() < 0.1 * np.ptp(loop)


@pytest.mark.parametrize("scale", SCALES)
def test_paired_differences_equal_a_bootstrap_by_loop(scale):
    fmt = AUFormat("f", ("AU1", "AU2", "AU4"), scale)
    references, subjects, a = simulate(fmt, 80, seed=2)
    b = {key: values[::-1].copy() for key, values in a.items()}  # reads the wrong images
    if scale == "intensity":
        del b["probabilities"]
    ours = paired_difference(a, b, references, subjects, fmt, resamples=50, level=0.9, seed=4)

    points = [score(references=references, fmt=fmt, subjects=subjects, **system)["per_au"] for system in (a, b)]
    loops = []
    for images, names in drawn_images(subjects, 50, seed=4):
        drawn = [{key: values[images] for key, values in system.items()} for system in (a, b)]
        loops.append(
            [score(references=references[images], fmt=fmt, subjects=names, **each)["per_au"] for each in drawn]
        )
    assert set(ours["mean"]) == set(points[1]["AU1"]) - {
        *("support", "n", "unparsed", "n_probability", "undefined"),  # no metrics
        "ece",
    }
    for metric, mean in ours["mean"].items():
        differences = np.array([[x[label][metric] - y[label][metric] for label in fmt.labels] for x, y in loops])
        for column, label in enumerate(fmt.labels):
            values = ours["per_au"][label][metric]
            assert values["difference"] == pytest.approx(points[0][label][metric] - points[1][label][metric])
            each = differences[:, column]
            np.testing.assert_allclose(values["interval"], np.nanpercentile(each, [5, 95]), rtol=1e-7, atol=1e-11)
            tail = min(np.sum(each <= 1e-12), np.sum(each >= -1e-12))
            assert values["p"] == min(1, 2 * (tail + 1) / (np.sum(~np.isnan(each)) + 1))
        assert mean["difference"] == pytest.approx(
            np.mean([ours["per_au"][au][metric]["difference"] for au in fmt.labels])
        )
        np.testing.assert_allclose(
            mean["interval"], np.percentile(np.nanmean(differences, axis=1), [5, 95]), rtol=1e-7, atol=1e-11
        )
        uncorrected, corrected = ([ours["per_au"][au][metric][key] for au in fmt.labels] for key in ("p", "p_holm"))
        np.testing.assert_array_equal(corrected, holm(uncorrected))


def test_paired_differences_are_sane():
    references, subjects, good = simulate(INTENSITY, 300, seed=0, missing=0, subjects=30)
    bad = {key: np.roll(values, 7, axis=0) for key, values in good.items()}

    def compare(a, b, whose=subjects):
        return paired_difference(a, b, references, whose, INTENSITY, resamples=200)

    same = compare(good, good)["mean"]
    assert {(each["difference"], *each["interval"], each["p"]) for each in same.values()} == {(0, 0, 0, 1)}
    forth, back = compare(good, bad)["mean"], compare(bad, good)["mean"]
    for metric, each in forth.items():
        worse = metric in ("mae", "mse", "mae_nonzero", "brier")
        assert (each["difference"] < 0) == worse, metric
        assert each["p"] == pytest.approx(2 / 201), metric
        assert each["interval"][0] < each["difference"] < each["interval"][1]
        assert back[metric]["difference"] == -each["difference"]
        np.testing.assert_allclose(back[metric]["interval"], [-each["interval"][1], -each["interval"][0]])
    one = compare(good, bad, ["a"] * 300)
    assert np.isnan([each["p"] for each in one["mean"].values()]).all()


def test_p_values_of_equal_systems_are_seldom_small():
    """Two systems of the same quality, 60 times: a p value below 0.1 should come up about 6 times."""
    small = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        references = rng.integers(0, 6, (100, 1)).astype(float)
        a, b = ({"predictions": references + rng.normal(0, 1, (100, 1))} for _ in range(2))
        fmt = AUFormat("i", ("AU1",), "intensity")
        result = paired_difference(a, b, references, np.arange(100) // 4, fmt, resamples=100)
        small += result["mean"]["mae"]["p"] < 0.1
    assert 2 <= small <= 13


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last would be 0.04, below the one before.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.02, NAN, 0.6, 0.6]), [0.06, NAN, 1, 1])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("fmt", [OCCURRENCE, INTENSITY])
@pytest.mark.parametrize("empty", [[], np.zeros((0, 2)), [[NAN, NAN]]])
def test_nothing_to_score_is_nan(empty, fmt):
    system, subjects = {"predictions": empty, "probabilities": empty}, ["a"] * len(empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score(references=empty, fmt=fmt, subjects=subjects, **system)
        bounds = intervals(references=empty, subjects=subjects, fmt=fmt, resamples=3, **system)
        difference = paired_difference(system, system, empty, subjects, fmt, resamples=3)
    assert set(bounds["mean"]) == set(result["mean"]) - {"ece"}
    assert np.isnan(list(bounds["mean"].values())).all()
    for values in (*difference["mean"].values(), *difference["per_au"]["AU1"].values()):
        assert np.isnan([value for value in values.values() if value != values["interval"]]).all()
        assert np.isnan(values["interval"]).all()


@pytest.mark.parametrize("fmt", [OCCURRENCE, INTENSITY])
def test_one_subject_has_no_interval(fmt):
    """AU1 is annotated for one of two subjects, AU2 for both; without the second nothing has an interval."""
    rng = np.random.default_rng(0)
    subjects = np.repeat(["a", "b"], 20)
    fmt = AUFormat(fmt.name, ("AU1", "AU2"), fmt.scale)
    highest = fmt.value_numbers[-1]
    references, system = rng.choice([0, highest], (40, 2)), {"predictions": rng.choice([0, highest], (40, 2))}
    other = {"predictions": highest - system["predictions"]}
    references[subjects == "b", 0] = NAN
    bounds = intervals(references=references, subjects=subjects, fmt=fmt, resamples=50, **system)
    assert np.isnan(bounds["per_au"]["AU1"]["accuracy"]).all()
    for low, high in (bounds["per_au"]["AU2"]["accuracy"], bounds["mean"]["accuracy"]):
        assert low < high
    difference = paired_difference(system, other, references, subjects, fmt, resamples=50)
    assert np.isnan(difference["per_au"]["AU1"]["accuracy"]["interval"]).all()
    assert not np.isnan(difference["mean"]["accuracy"]["interval"]).any()
    _, limits, _, mean_limits = mean_with_interval(references, subjects, resamples=50)
    assert np.isnan(limits[0]).all()
    assert not np.isnan([limits[1], mean_limits]).any()

    alone = {"predictions": system["predictions"][:20]}
    bounds = intervals(references=references[:20], subjects=subjects[:20], fmt=fmt, resamples=50, **alone)
    assert np.isnan([bounds["per_au"]["AU2"]["accuracy"], bounds["mean"]["accuracy"]]).all()


def compare(a, b):
    return paired_difference(a, b, ONES, ["a"], INTENSITY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals(ONES, ONES, ["a", "b"], INTENSITY), "1 predictions but 2 subjects"),
        (lambda: intervals(ONES, ONES, ["a"], INTENSITY, level=95), "level between 0 and 1, not 1000 and 95"),
        (lambda: intervals(ONES, ONES, ["a"], INTENSITY, resamples=0), "resamples must be at least 1"),
        (lambda: compare({"predictions": ONES}, {"predictions": ONES * 2}), "2 predictions but 1 references"),
        (lambda: compare({}, {"predictions": ONES}), r"system a must be a dict with predictions .* one with \[\]"),
        (
            lambda: compare({"predictions": ONES}, {"predictions": ONES, "probability": ONES}),
            r"system b must .* one with \['predictions', 'probability'\]",
        ),
        (lambda: compare(np.array(ONES), {"predictions": ONES}), "system a must .* it is of type ndarray"),
    ],
)
def test_wrong_calls_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_benchmark_runs(capsys):
    assert load_tool("metrics").run(["--images", "200", "--subjects", "5", "--resamples", "10"]) == 0
    assert "paired_difference" in capsys.readouterr().out
