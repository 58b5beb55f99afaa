"""From the table that recognize_au.py writes to the numbers of a study, on pandas frames.

`read_table` reads it, `join_design` says who is who, `quality_filter` blanks what should not count; `around_events` and
`windows` cut it, `summaries` condenses the pieces to a row per person and condition, and `paired_effect` compares two
conditions. synchrony.py is for two people. Unusual choices
- A frame that should not count keeps its row and loses its readings (NaN), so that the time axis stays whole and a
  summary can say how much of a window it rests on.
- Nothing is filled in, smoothed or dropped without being asked for, and what does not fit raises ValueError.

docs/study.ipynb uses all of it.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from au_llava.au_recognition.derived import ARKIT

NEEDED = ("file", "frame", "face_id", "timestamp", "confidence", "success")
TABLES = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
AU_COLUMN = r"^(?:.+\.)?A[UD]\d"  # AU01_r, AU43L_change, disfa.AU01_r
NAMED = 3  # entries that an error names at most
ROUNDING = 1e-6  # seconds


# ---- Reading and joining ----------------------------------------------------------------------------------------
def read_table(path: str | Path) -> tuple[pd.DataFrame, dict]:
    """A table of recognize_au.py and where it comes from.

    Args:
        path: a .csv or .parquet file with its sidecar PATH.provenance.json beside it.

    Returns:
        the table as written, with whole numbers in `face_id` (missing where a frame shows no face), and the sidecar.

    Raises:
        FileNotFoundError: the table or its sidecar is missing.
        ValueError: another suffix, missing columns, times that are no numbers or do not increase within a face.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{path} is no table that can be read here: give the .csv or .parquet that --out wrote.")
    table = TABLES[path.suffix.lower()](path)
    require_columns(table, NEEDED, path)
    _check_times(table)
    sidecar = path.with_name(f"{path.name}.provenance.json")
    if not sidecar.is_file():
        raise FileNotFoundError(f"{sidecar} is missing: it says what wrote {path.name}; keep the two together.")
    return table.astype({"face_id": "Int64"}), json.loads(sidecar.read_text(encoding="utf-8"))


def join_design(table: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns of a design, such as `participant` and `condition`.

    Args:
        table: of recognize_au.py.
        design: a row per `file`, for recordings of one person; or per `file` and `face_id`. Faces without a row are
            then left out, frames without a face stay.

    Raises:
        ValueError: a recording without a row, a row without a recording or face, a row given twice, a column that the
            table has already, or a design without `face_id` for a recording that shows several faces at once.
    """
    keys = [key for key in ("file", "face_id") if key in design]
    require_columns(design, ["file"], "the design")
    require_columns(table, ["file", "frame", "face_id"])
    if clash := [column for column in design if column in table and column not in keys]:
        raise ValueError(f"The design has columns that the table has too: {named(clash)}. Rename them in the design.")
    if (repeated := design.duplicated(keys)).any():
        raise ValueError(f"The design has several rows for {named(design.loc[repeated, 'file'])}; one each is needed.")
    if (unnamed := ~table["file"].isin(design["file"])).any():
        raise ValueError(f"The design has no row for {named(table.loc[unnamed, 'file'])}, which the table has.")
    seen = set(table[keys].dropna().itertuples(index=False, name=None))
    if unseen := [key for key in design[keys].itertuples(index=False, name=None) if key not in seen]:
        raise ValueError(f"The table has no rows for {named(' face '.join(map(str, key)) for key in unseen)}.")
    if keys == ["file"]:
        several = table["face_id"].notna() & table.duplicated(["file", "frame"])
        if several.any():
            raise ValueError(
                f"{named(table.loc[several, 'file'])}: several faces in one frame. "
                "Give the design a column face_id that says which face is whose."
            )
        return table.merge(design, on=keys, how="left", validate="many_to_one")
    known = pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(design[keys]))
    design = design.astype({"face_id": "Int64"})
    return table[known | table["face_id"].isna()].merge(design, on=keys, how="left", validate="many_to_one")


def quality_filter(table: pd.DataFrame, limits: Mapping[str, tuple[float | None, float | None]]) -> pd.DataFrame:
    """The table with a column `usable`, and all columns of AUs and of ARKit's shapes NaN where that is False.

    Args:
        table: of recognize_au.py.
        limits: numeric column -> (lowest, highest) that counts, either of them None for no limit:
            `{"confidence": (0.8, None), "pose_Ry": (-0.5, 0.5)}`. A row without a face, or without a number in one of
            these columns, is not usable.

    Raises:
        ValueError: a column that is missing or not numeric, or limits that nothing can meet.
    """
    require_columns(table, ["success", *limits])
    usable = table["success"] == 1
    for column, (lowest, highest) in limits.items():
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"{column} holds no numbers, so it cannot be limited; choose a numeric column.")
        low, high = -np.inf if lowest is None else lowest, np.inf if highest is None else highest
        if not low <= high:
            raise ValueError(f"{column}: the lowest value {lowest} is above the highest {highest}; give (low, high).")
        usable &= table[column].between(low, high).fillna(False).astype(bool)
    result = table.assign(usable=usable)
    read = result.columns[result.columns.str.contains(AU_COLUMN) | result.columns.isin(list(ARKIT))]
    result[read] = result[read].where(usable)
    return result


# ---- Cutting and condensing -------------------------------------------------------------------------------------
def around_events(table: pd.DataFrame, events: pd.DataFrame, before: float, after: float, step: float) -> pd.DataFrame:
    """The rows around each event, on a time axis that starts at the event.

    Args:
        table: of recognize_au.py, before anything was dropped, so that its times say how long a recording is.
        events: a row per event with `file`, `onset` (seconds from the recording's first frame) and any other columns.
        before, after: seconds around the onset, both included.
        step: seconds between the times of the new axis; that between two frames, or more.

    Returns:
        the rows, event after event, with the columns of `events` and `event` (its index label) and `time`: seconds from
        the onset, rounded to a multiple of `step`. A row near two events appears twice.

    Raises:
        ValueError: no events, index labels that are there twice or have several levels, an event whose surroundings
            are not all within its recording, or one whose recording is not in the table.
    """
    require_columns(table, ["file", "timestamp", "face_id"])
    require_columns(events, ["file", "onset"], "the table of events")
    if clash := [column for column in events if column in table and column != "file"]:
        raise ValueError(f"The events have columns that the table has too: {named(clash)}. Leave them out.")
    if min(before, after) < 0 or step <= 0:
        raise ValueError(f"before {before} and after {after} must not be negative, and step {step} must be positive.")
    if events.empty or events.index.has_duplicates or events.index.nlevels > 1:
        raise ValueError(
            "The table of events is empty, two events have one index label, or labels have several levels; "
            "reset_index numbers them."
        )
    _check_times(table)
    recordings = dict(list(table.groupby("file", sort=False)))
    pieces = []
    for number, event in events.iterrows():
        if event["file"] not in recordings:
            raise ValueError(f"Event {number} is in {event['file']}, but the table has no rows of that file.")
        rows = recordings[event["file"]]
        since, first, last = rows["timestamp"] - event["onset"], rows["timestamp"].min(), rows["timestamp"].max()
        if not (first - ROUNDING <= event["onset"] - before and event["onset"] + after <= last + ROUNDING):
            raise ValueError(
                f"Event {number} at {event['onset']:g} s of {event['file']}: {before:g} s before to {after:g} s after "
                f"it is not all within the recording, which lasts from {first:g} to {last:g} s."
            )
        near = since.between(-before - ROUNDING, after + ROUNDING)
        time = ((since[near] / step).round() * step).round(6) + 0.0  # no -0.0
        others = event.drop("file").to_dict()
        pieces.append(rows[near].assign(event=number, time=time, **others))
    return pd.concat(pieces, ignore_index=True)


def windows(table: pd.DataFrame, width: float, step: float | None = None) -> pd.DataFrame:
    """The rows of each whole window of time, recording by recording.

    Args:
        table: of recognize_au.py.
        width: seconds of a window, its end excluded.
        step: seconds from the start of a window to that of the next; by default `width`. If it is less, windows overlap
            and a row appears in each that it belongs to.

    Returns:
        the rows with `window` (from 0 in each recording) and `start` (seconds on the recording's clock).

    Raises:
        ValueError: widths that are not positive, or a recording shorter than a window.
    """
    require_columns(table, ["file", "timestamp", "face_id"])
    step = width if step is None else step
    if min(width, step) <= 0:
        raise ValueError(f"width {width} and step {step} must be positive.")
    _check_times(table)
    pieces = []
    for file, rows in table.groupby("file", sort=False):
        times = np.unique(rows["timestamp"])
        end = times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 0)  # the last frame is shown for a while
        if end - times[0] < width - ROUNDING:
            raise ValueError(f"{file} lasts {end - times[0]:g} s, less than a window of {width:g} s.")
        for number in range(int((end - times[0] - width + ROUNDING) / step) + 1):
            start = times[0] + number * step
            inside = (rows["timestamp"] >= start - ROUNDING) & (rows["timestamp"] < start + width - ROUNDING)
            pieces.append(rows[inside].assign(window=number, start=start))
    return pd.concat(pieces, ignore_index=True)


def summaries(rows: pd.DataFrame, columns: Sequence[str], by: Sequence[str], least: float = 0.5) -> pd.DataFrame:
    """One row per group: how many frames it rests on, and mean, standard deviation and maximum of columns.

    Args:
        rows: such as `around_events` or `windows` give them.
        columns: numeric ones. The mean of `AU12_c` is the share of frames in which AU12 is present.
        by: columns that make the groups, such as participant and condition. A row that lacks one of them, such as a
            frame without a face in a recording of several people, belongs to no group.
        least: share of a group's frames that must be usable, 0 to 1; if fewer are, its numbers are NaN. A frame is
            usable if all of `columns` are known.

    Returns:
        the columns `by`, `frames`, `usable` (how many of them), and for each column `NAME_mean`, `NAME_sd` (over
        frames) and `NAME_max`.

    Raises:
        ValueError: missing columns, or `least` outside [0, 1].
    """
    columns, by = list(columns), list(by)
    require_columns(rows, [*columns, *by])
    if not 0 <= least <= 1:
        raise ValueError(f"least is a share of the frames, from 0 to 1; got {least}.")
    groups = rows.assign(_known=rows[columns].notna().all(axis=1)).groupby(by)
    counts = pd.DataFrame({"frames": groups.size(), "usable": groups["_known"].sum()})
    enough = counts["usable"] >= np.maximum(1, least * counts["frames"])
    numbers = groups[columns].agg(["mean", "std", "max"]).rename(columns={"std": "sd"}, level=1)
    numbers.columns = [f"{column}_{name}" for column, name in numbers.columns]
    return counts.join(numbers.where(enough)).reset_index()


@dataclass(frozen=True)
class PairedEffect:
    """How much more the same people show in one condition than in another; brackets are (low, high)."""

    people: int
    difference: float  # mean, in the measure's own unit
    interval: tuple[float, float]
    p_value: float  # two-sided, of the paired t test
    d: float  # Cohen's d_z: the difference over the standard deviation of the people's differences
    d_interval: tuple[float, float]


def paired_effect(first: pd.Series, second: pd.Series, level: float = 0.95) -> PairedEffect:
    """The paired comparison `first - second` of people, one number each.

    The interval of d comes from the noncentral t distribution (Steiger and Fouladi 1997).

    Args:
        first, second: by participant; whoever lacks one of the two is left out.
        level: of the intervals.

    Raises:
        ValueError: a participant appears twice, fewer than two have both, or all differ by the same.
    """
    from scipy.special import nctdtrinc
    from scipy.stats import ttest_1samp

    for series in (first, second):
        if series.index.has_duplicates:
            raise ValueError(f"{named(series.index[series.index.duplicated()])}: give one number per participant.")
    differences = (first - second).dropna().astype(float)
    people = len(differences)
    if people < 2 or np.ptp(differences) <= 1e-9 * max(first.abs().max(), second.abs().max()):  # rounded alike
        raise ValueError(f"{people} participants have both numbers; two or more who differ are needed.")
    test, tail = ttest_1samp(differences, 0), (1 - level) / 2
    d_interval = nctdtrinc(people - 1, np.array([1 - tail, tail]), test.statistic) / np.sqrt(people)
    return PairedEffect(
        people=people,
        difference=float(differences.mean()),
        interval=tuple(map(float, test.confidence_interval(level))),
        p_value=float(test.pvalue),
        d=float(test.statistic / np.sqrt(people)),
        d_interval=tuple(d_interval.tolist()),
    )


# ---- Checks -------------------------------------------------------------------------------------------------------
def require_columns(table: pd.DataFrame, columns: Iterable[str], name: str | Path = "the table") -> None:
    """Raise ValueError, which names similar columns, if the table lacks some of these."""
    if missing := [column for column in columns if column not in table]:
        close = difflib.get_close_matches(missing[0], list(map(str, table.columns)), NAMED, 0.5)
        hint = f" Did you mean {named(close)}?" if close else ""
        raise ValueError(f"{name} has no column {named(missing)}.{hint}")


def _check_times(table: pd.DataFrame) -> None:
    """Within a face of a recording, time must increase from row to row."""
    if not pd.api.types.is_numeric_dtype(table["timestamp"]) or table["timestamp"].isna().any():
        raise ValueError(
            "timestamp must hold a number in each row, with a decimal point: was the table saved elsewhere?"
        )
    faces = table.dropna(subset="face_id")
    backward = faces.groupby(["file", "face_id"])["timestamp"].diff() <= 0
    if backward.any():
        row = faces[backward].iloc[0]
        raise ValueError(
            f"{row['file']}, face {row['face_id']:g}: the time does not increase at {row['timestamp']:g} s. "
            "Is a recording in the table twice, or was the table sorted?"
        )


def named(entries: Iterable) -> str:
    """The distinct entries for a message, the first `NAMED` and how many more."""
    names = list(dict.fromkeys(map(str, entries)))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
