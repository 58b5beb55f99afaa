"""Synchrony of two people in one recording: windowed cross-correlation, and a baseline for it.

Takes the tables of recognize_au.py as study.py does; docs/study.ipynb shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from au_llava.au_recognition.study import named, require_columns


def side_by_side(table: pd.DataFrame, column: str, people: Sequence, person: str = "participant") -> pd.DataFrame:
    """A column of several people of one recording beside each other: a row per time, a column per person.

    Args:
        table: of one recording, with the rows of frames without a face.
        people: as the column `person` names them.

    Returns:
        index `timestamp`, NaN where somebody is not seen.

    Raises:
        ValueError: an unknown person, several recordings, or a person twice in one frame.
    """
    require_columns(table, ["file", "timestamp", column, person])
    if table["file"].nunique() != 1:
        raise ValueError(f"One recording is needed, the table has {table['file'].nunique()}: select one by its file.")
    known = table[person].dropna().unique().tolist()
    if unknown := [name for name in people if name not in known]:
        raise ValueError(f"{named(unknown)}: not in the table, whose column {person} has {named(known)}.")
    rows = table[table[person].isin(people)]
    if (twice := rows.duplicated(["timestamp", person])).any():
        raise ValueError(f"{named(rows.loc[twice, person])}: twice in one frame.")
    wide = rows.pivot(index="timestamp", columns=person, values=column)
    return wide.reindex(index=np.unique(table["timestamp"]), columns=list(people)).rename_axis(index="timestamp")


def windowed_correlation(pair: pd.DataFrame, width: float, step: float, max_lag: float) -> pd.DataFrame:
    """Pearson's correlation of two people in windows, the second one's shifted in time (Boker et al. 2002).

    Args:
        pair: two columns over an evenly spaced index in seconds, as `side_by_side` gives it.
        width, step: seconds of a window, and from one to the next.
        max_lag: seconds by which the second person's window is moved, both ways. Above 0 the second follows the first.

    Returns:
        a row per window (index `start`, seconds), a column per lag (seconds). NaN where fewer than half of the window's
        frames show both, or where one of them does not move.

    Raises:
        ValueError: not two columns, times that are uneven or too few for a window with its lags.
    """
    first, second, cut = _cut(pair, width, step, max_lag)
    return pd.DataFrame(_correlations(first, second, cut), index=cut.starts, columns=cut.lags).rename_axis(
        index="start", columns="lag"
    )


@dataclass(frozen=True)
class Synchrony:
    """The mean correlation over windows at the lag where it is highest, and the same without simultaneity."""

    observed: float
    lag: float  # seconds; above 0 the second person follows the first
    surrogates: np.ndarray  # (shifts,)
    p_value: float  # share of surrogates, and of the recording itself, that are at least as high


def synchrony(pair: pd.DataFrame, width: float, step: float, max_lag: float) -> Synchrony:
    """Whether two people move together more than each of them would with somebody at another time.

    The measure asks for one lag that holds for the whole recording. The highest of many correlations is above 0 in any
    two people who move, so it says nothing alone. The baseline: the second person's recording is turned round (what
    falls off the end comes first) by every shift that takes it at least `width + max_lag` away from its own time, which
    keeps how each of them moves and undoes what they share.

    Args:
        pair, width, step, max_lag: as in `windowed_correlation`.

    Raises:
        ValueError: as there; or the recording is too short to be shifted, or nobody moves.
    """
    first, second, cut = _cut(pair, width, step, max_lag)
    away, length = cut.width + cut.lag, len(first)
    if length < 2 * away + 1:
        raise ValueError(
            f"The recording has {length} frames; shifts by a window and its lag need at least {2 * away + 1}. "
            "Take shorter windows or lags."
        )
    means = _mean_over_windows(_correlations(first, second, cut))
    if np.isnan(means).all():
        raise ValueError("In no window do both people move, so there is nothing to correlate.")
    turned = (np.roll(second, shift) for shift in range(away, length - away + 1))
    highest = [np.fmax.reduce(_mean_over_windows(_correlations(first, each, cut))) for each in turned]
    observed, surrogates = float(np.nanmax(means)), np.array(highest)[~np.isnan(highest)]
    p_value = (1 + int((surrogates >= observed).sum())) / (1 + len(surrogates))
    return Synchrony(observed, float(cut.lags[np.nanargmax(means)]), surrogates, p_value)


@dataclass(frozen=True)
class _Cut:
    """How a recording is cut: `width`, `step` and `lag` in frames, `starts` and `lags` in seconds."""

    width: int
    step: int
    lag: int
    starts: np.ndarray
    lags: np.ndarray


def _cut(pair: pd.DataFrame, width: float, step: float, max_lag: float) -> tuple[np.ndarray, np.ndarray, _Cut]:
    if pair.shape[1] != 2:
        raise ValueError(f"Two people are needed, got {pair.shape[1]} columns.")
    times = pair.index.to_numpy(float)
    between = np.diff(times)
    if len(times) < 2 or not (between > 0).all() or np.ptp(between) > 0.5 * np.median(between):
        raise ValueError("The times must increase evenly: read the video with --fps, or interpolate to even times.")
    frame = (times[-1] - times[0]) / (len(times) - 1)
    wide, stride, lag = (round(seconds / frame) for seconds in (width, step, max_lag))
    if wide < 3 or stride < 1 or lag < 0:
        raise ValueError(f"A window needs 3 frames, a step 1 and a lag none below 0; a frame lasts {frame:g} s.")
    if len(times) < wide + 2 * lag:
        raise ValueError(f"{len(times)} frames are fewer than a window of {wide} with lags of {lag} on both sides.")
    starts = times[lag : len(times) - wide - lag + 1 : stride]
    lags = np.round(np.arange(-lag, lag + 1) * frame, 6)
    return *pair.to_numpy(float).T, _Cut(wide, stride, lag, starts, lags)


def _correlations(first: np.ndarray, second: np.ndarray, cut: _Cut) -> np.ndarray:
    """(windows, lags) of two recordings (frames,)."""
    slices = np.lib.stride_tricks.sliding_window_view
    inner = first[cut.lag : len(first) - cut.lag]
    a = slices(inner, cut.width)[:: cut.step, None]  # (windows, 1, width)
    b = slices(slices(second, cut.width), 2 * cut.lag + 1, axis=0)[:: cut.step].swapaxes(1, 2)  # (windows, lags, width)
    both = ~(np.isnan(a) | np.isnan(b))
    count = both.sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (np.where(both, each - (np.where(both, each, 0).sum(axis=2) / count)[..., None], 0) for each in (a, b))
        spread = np.sqrt((a**2).sum(axis=2) * (b**2).sum(axis=2))
        result = (a * b).sum(axis=2) / spread
    return np.where((2 * count >= cut.width) & (spread > 1e-12), result, np.nan)


def _mean_over_windows(correlations: np.ndarray) -> np.ndarray:
    """(lags,) of (windows, lags); NaN where none is known."""
    known = (~np.isnan(correlations)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.nansum(correlations, axis=0) / known
