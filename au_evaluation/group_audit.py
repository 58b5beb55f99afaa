"""The audit of groups: how far scores and calibration differ between groups of images, such as skin tones or poses."""

import math
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_evaluation.intervals import bounds, draw_subjects, holm, resample
from au_llava.au_evaluation.rows import check_rows, scored_key
from au_llava.au_evaluation.scoring import score_arguments
from au_llava.metrics_au import divide_by_au, mean_of_defined, score, sum_by_subject

BANDS = 3  # that numbers such as angles are cut into
FEWEST_SUBJECTS = 10  # in a group; with fewer, a bootstrap interval says little
AUDITED = ("f1", "f1_skew_normalised", "icc", "mae", "roc_auc", "brier", "ece")


def group_audit(
    rows: Sequence[Mapping],
    fmt: AUFormat,
    groups: Mapping[str, Sequence],
    fewest: int = FEWEST_SUBJECTS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """Scores and calibration of groups of images and the gaps between them, with bootstrap intervals over subjects.

    The metrics are means over the AUs for which the metric is defined in every scored group of the column, so that
    groups are compared on the same AUs:

    - f1 and f1_skew_normalised of decisions; unless the format codes occurrence, icc of values and mae of medians;
    - with probabilities roc_auc, brier, ece, and `bias`, the mean of probability - label, -1 to 1: above 0, presence is
      overstated. Overstating one AU can make up for understating another.

    **Base rates.** F1, MAE and the Brier score differ between groups merely because an AU is rarer in one ("rate"
    tells). f1_skew_normalised and roc_auc do not depend on base rates: where they show no gap, a gap in F1 may not be
    the model's.

    **ECE** comes without interval and gap. It takes chance for miscalibration, the more so the fewer images there are,
    and a bootstrap adds chance of its own: in simulations without any difference, its gap between groups of unequal
    size passed for significant at 5 % in 12 to 22 % of cases (those of the other metrics: 2 to 8 %). Compare it only
    between groups of similar size; `bias` does not have this problem.

    **Gaps.** Each resample draws subjects once for all groups, since one person's images may be in several. The range
    of the changes of the groups' scores over resamples shows how far apart equal groups come out by chance. p is
    the share of resamples whose range reaches the gap, as (count + 1) / (resamples + 1), and the interval is the gap ±
    the `level` quantile of the range: as in Tukey's test, both allow for the gap being the largest of all pairs. p_holm
    is corrected over columns, not over metrics. With fewer than about 20 subjects in a group, intervals are too narrow.
    A gap need not be caused by its column: groups may differ in other ways.

    Args:
        rows: predictions, scored as scoring.py says; from free decoding too, then without metrics of probabilities.
        fmt: the AUFormat of all rows.
        groups: column -> (n,) entries, one per row. Numbers are cut by `bands`; None and NaN are in no
            group of the column.
        fewest: subjects that a group needs to be scored. resamples, level, seed: as in `intervals`.

    Returns:
        "columns": column -> group, bands in rising order -> {"n": images, "subjects", "unparsed": annotated cells
            without a prediction, "rate": share of present among annotated cells, "mean": metric -> value,
            "mean_interval": metric -> [low, high]};
        "gaps": column -> metric -> {"difference": highest - lowest, "interval": [low, high], "p", "p_holm", "groups":
            [highest, lowest], "averaged": AUs that are compared}; without undefined metrics, and empty for
            fewer than two scored groups;
        "too_small": column -> group -> subjects.

    Raises:
        ValueError: no rows, rows of another format, a column of another length, or as `intervals`.
    """
    check_rows(rows, fmt, ("references", scored_key(fmt), "probability", "present"), "dataset", "subject")
    arguments, fmt = score_arguments(rows, fmt)
    people, who = np.unique(arguments.pop("subjects"), return_inverse=True)
    arguments = {name: values for name, values in arguments.items() if values is not None}
    draws = draw_subjects(len(people), resamples, level, seed)
    columns, gaps, too_small = {}, {}, {}
    for column, entries in groups.items():
        if len(entries) != len(rows):
            raise ValueError(f"column {column!r} has {len(entries)} entries for {len(rows)} rows; give one for each")
        members = group_members(entries)
        subjects = {group: len(np.unique(who[rows_of])) for group, rows_of in members.items()}
        too_small[column] = {group: few for group, few in subjects.items() if few < fewest}
        scored = [group for group in members if group not in too_small[column]]
        means, changes, averaged = _compared(
            [_evaluate(arguments, members[group], who, draws, fmt) for group in scored]
        )
        columns[column] = {
            group: {
                **_counts(arguments, members[group], fmt),
                "subjects": subjects[group],
                "mean": {metric: float(values[row]) for metric, values in means.items()},
                "mean_interval": {
                    metric: bounds(means[metric][row] + change[row], level) for metric, change in changes.items()
                },
            }
            for row, group in enumerate(scored)
        }
        gaps[column] = {
            metric: {**_gap(means[metric], change, scored, level), "averaged": averaged[metric]}
            for metric, change in changes.items()
            if averaged[metric] and len(scored) > 1
        }
    for metric in {metric for of_column in gaps.values() for metric in of_column}:
        tested = [of_column[metric] for of_column in gaps.values() if metric in of_column]
        for gap, p in zip(tested, holm([gap["p"] for gap in tested]).tolist(), strict=True):
            gap["p_holm"] = p
    return {"columns": columns, "gaps": gaps, "too_small": too_small}


def group_members(entries: Sequence) -> dict[str, np.ndarray]:
    """Group -> indices (k,) of its rows; bands of numbers in rising order, other groups by name."""
    known = [row for row, entry in enumerate(entries) if entry is not None and entry == entry]
    entries = [entries[row] for row in known]
    numeric = all(isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool) for entry in entries)
    names = bands(entries) if numeric else list(map(str, entries))
    order = sorted(range(len(entries)), key=entries.__getitem__ if numeric else names.__getitem__)
    members = {names[place]: [] for place in order}
    for row, name in zip(known, names, strict=True):
        members[name].append(row)
    return {group: np.array(rows_of) for group, rows_of in members.items()}


def bands(values: Sequence[float | None]) -> list[str | None]:
    """Numbers cut at their quantiles into `BANDS` bands of about equal size, named like "-35 to -5".

    Equal numbers stay together, so there may be fewer bands; up to `BANDS` distinct numbers are a band each. A name
    gives the lowest and highest number in the band, rounded as far as the names stay distinct.

    Args:
        values: (n,) finite numbers; None and NaN are unknown.

    Returns:
        (n,) names, None where unknown.

    Raises:
        ValueError: an infinite number, or a value that is not a number.
    """
    try:
        numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"bands are cut from numbers, not from values such as {next(iter(values))!r}") from None
    known = ~np.isnan(numbers)
    if np.isinf(numbers).any():
        raise ValueError("bands are cut from finite numbers; write NaN where a number is unknown")
    ends = np.unique(numbers[known])  # highest number of each band
    if len(ends) > BANDS:
        quantiles = np.quantile(numbers[known], np.arange(1, BANDS) / BANDS, method="inverted_cdf")
        ends = np.unique([*quantiles, ends[-1]])
    of_band = np.searchsorted(ends, numbers)
    limits = [(part.min(), part.max()) for part in (numbers[of_band == band] for band in range(len(ends)))]
    for decimals in count():
        names = [" to ".join(dict.fromkeys(_rounded(limit, decimals) for limit in pair)) for pair in limits]
        ranges = sum(low < high for low, high in limits)
        if len(set(names)) == len(names) and sum(" to " in name for name in names) == ranges:
            return [names[band] if is_known else None for band, is_known in zip(of_band, known, strict=True)]


def _rounded(number: float, decimals: int) -> str:
    text = f"{number:.{decimals}f}"
    return text if float(text) else text.lstrip("-")


def _counts(arguments: Mapping, rows_of: np.ndarray, fmt: AUFormat) -> dict:
    """How many images and unread cells a group has, and the share of its labels that are present."""
    labels = arguments["references"][rows_of]
    annotated = ~np.isnan(labels)
    unread = np.isnan(arguments["predictions"][rows_of]) & annotated
    rate = float(np.mean(labels[annotated] >= fmt.presence_threshold)) if annotated.any() else math.nan
    return {"n": len(rows_of), "unparsed": int(unread.sum()), "rate": rate}


def _evaluate(arguments: Mapping, rows_of: np.ndarray, who: np.ndarray, draws: np.ndarray, fmt: AUFormat) -> dict:
    """One group: metric -> its scores (AUs,) and those of every resample (AUs, resamples)."""
    part = {name: values[rows_of] for name, values in arguments.items()}
    per_au = score(fmt=fmt, **part)["per_au"].values()
    columns, who = divide_by_au(fmt=fmt, **part), who[rows_of]
    drawn = resample(columns, who, draws, fmt)
    scores = {m: (np.array([of_au[m] for of_au in per_au]), drawn[m]) for m in AUDITED if m in drawn}
    if "probabilities" in part:
        sums = np.stack(
            [
                sum_by_subject(
                    (column.probability - column.truth, np.ones(len(column.truth))), who[column.rated], len(draws)
                )
                for column in columns
            ]
        )  # (AUs, 2, people)
        with np.errstate(invalid="ignore"):
            total, resampled = sums.sum(axis=-1), sums @ draws
            scores["bias"] = total[:, 0] / total[:, 1], resampled[:, 0] / resampled[:, 1]
    return scores


def _compared(evaluated: list[dict]) -> tuple[dict, dict, dict]:
    """Per metric, over the AUs for which it is defined in all groups: means (groups,); their changes in every resample
    (groups, resamples), except of ece; and the number of these AUs."""
    means, changes, averaged = {}, {}, {}
    for metric in evaluated[0] if evaluated else ():
        points, drawn = (np.stack(arrays) for arrays in zip(*(group[metric] for group in evaluated), strict=True))
        shared = ~np.isnan(points).any(axis=0)
        points, drawn = points[:, shared], drawn[:, shared]  # (groups, shared AUs), (…, resamples)
        drawn = np.where(np.isnan(drawn).any(axis=0), np.nan, drawn)
        means[metric] = mean_of_defined(points.T)
        averaged[metric] = int(shared.sum())
        if metric != "ece":
            changes[metric] = mean_of_defined(np.moveaxis(drawn - points[..., None], 1, 0))
    return means, changes, averaged


def _gap(means: np.ndarray, changes: np.ndarray, names: Sequence[str], level: float) -> dict:
    """The largest gap between means (groups,), judged by their changes in resamples (groups, resamples)."""
    highest, lowest = int(np.argmax(means)), int(np.argmin(means))
    difference = float(means[highest] - means[lowest])
    spread = np.ptp(changes, axis=0).round(12)  # without rounding errors
    spread = spread[~np.isnan(spread)]
    margin = float(np.quantile(spread, level)) if len(spread) else math.nan
    return {
        "difference": difference,
        "interval": [difference - margin, difference + margin],
        "p": float((np.sum(spread >= round(difference, 12)) + 1) / (len(spread) + 1)),
        "groups": [names[highest], names[lowest]],
    }
