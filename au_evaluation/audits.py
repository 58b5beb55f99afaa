"""Three audits of predictions: how answers were parsed, how groups of people fare, and when not to answer.

Pure functions of the rows that `eval_au.predict` returns and predictions.parquet holds, all of one format. What is
returned is made of plain Python types; what is undefined is NaN, as in metrics_au.py.

- `parse_audit`: what free answers lost, and what the scores are under each convention about what was lost.
- `group_audit`: how far scores and calibration differ between groups of images, such as skin tones or poses.
- `abstention`, `apply_abstention`: from which confidence on an AU's answers are worth giving.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count as count_up

import numpy as np

from au_llava.action_units import ParsedAnswer, parse_answer, write_answer
from au_llava.au_evaluation.intervals import bounds, draw_subjects, holm, resample
from au_llava.au_evaluation.scoring import score_arguments
from au_llava.metrics_au import divide_by_au, mean_of_defined, risk_coverage, score, sum_by_subject

FEWEST_SUBJECTS = 10  # in a group; of fewer, a bootstrap interval says little
_DENIALS = re.compile(
    r"\b(?:no|not|never|without|neither|nor|none|absent|inactive|invisible|undetected)\b|n['\u2019]t\b", re.IGNORECASE
)


def parse_audit(rows: Sequence[Mapping], fmt) -> dict:
    """What was lost between the answers' texts and their scores, and how much the scores depend on it.

    Two readings. *Lenient* is `parse_answer`, AU by AU, by which `eval_au.py` scores. *Strict* takes an answer only if
    `parse_answer` finds no fault with it (every AU of the format read, no other named); of any other answer no AU is
    read. Neither minds the spelling: `verbatim_rate` is the share of answers in the very words of `write_answer`.

    Two conventions for an annotated cell that is not read. *left_out*: it is not scored, which flatters a model that
    fails on hard images. *absent*: it counts as the value 0, as public evaluations of language models do without
    saying so; where AUs are rare, that turns most failures into correct answers.

    Args:
        rows: predictions, of which "format", "text" and "references" are used.
        fmt: the AUFormat of all rows.

    Returns:
        "n": answers; "annotated": annotated (image, AU) cells; "failed", "failure_rate": answers that strict reading
        refuses; "verbatim_rate"; "status": word of `ParsedAnswer.status` -> annotated cells; "conflicting": answers
        that give one AU different values; "unknown_aus": AU named but not in the format -> answers, most frequent
        first; "denied_in_words": the "answers" and "cells" that are read as absent because of words such as "not" or
        "without", which an evaluation that takes every AU named as present gets wrong;
        "unread_rate": reading -> share of annotated cells; "coverage": reading -> label -> share of its annotated
        cells that are read;
        "scores": reading -> convention -> {"mean": metric -> mean over AUs, "averaged": metric -> AUs in that mean},
        with the metrics f1 and, unless the format codes occurrence, icc and mae. Where few cells are read, "averaged"
        may differ, and means over different AUs do not compare.

    Raises:
        ValueError: no rows, rows of another format, rows without a text, or labels that are not on the scale.
    """
    _check_rows(rows, fmt, ["references"], "text")
    references = _numbers(rows, "references")
    texts = [row["text"] for row in rows]
    answers = [parse_answer(text, fmt) for text in texts]
    annotated = ~np.isnan(references)
    ok = np.array([answer.ok for answer in answers])
    lenient = np.array([list(answer.values.values()) for answer in answers], dtype=float)  # None becomes NaN
    readings = {"lenient": lenient, "strict": np.where(ok[:, None], lenient, np.nan)}
    reads = {reading: np.where(annotated, ~np.isnan(values), np.nan) for reading, values in readings.items()}
    status = np.array([list(answer.status.values()) for answer in answers])
    denied = np.array([_denied_in_words(text, answer, fmt) for text, answer in zip(texts, answers, strict=True)])
    verbatim = [a.ok and text == write_answer(a.values, fmt) for text, a in zip(texts, answers, strict=True)]

    def scores(values) -> dict:
        result = score(values, references, fmt)
        metrics = [metric for metric in ("f1", "icc", "mae") if metric in result["mean"]]
        return {kind: {metric: result[kind][metric] for metric in metrics} for kind in ("mean", "averaged")}

    return {
        "n": len(rows),
        "annotated": int(annotated.sum()),
        "failed": int(np.sum(~ok)),
        "failure_rate": float(np.mean(~ok)),
        "verbatim_rate": float(np.mean(verbatim)),
        "status": dict(Counter(status[annotated].tolist()).most_common()),
        "conflicting": int(np.sum(np.any(status == "conflict", axis=1))),
        "unknown_aus": dict(Counter(label for answer in answers for label in answer.foreign).most_common()),
        "denied_in_words": {"answers": int(denied.any(axis=1).sum()), "cells": int(denied.sum())},
        "unread_rate": {reading: 1 - float(mean_of_defined(read.ravel())) for reading, read in reads.items()},
        "coverage": {
            reading: dict(zip(fmt.labels, mean_of_defined(read).tolist(), strict=True))
            for reading, read in reads.items()
        },
        "scores": {
            reading: {"left_out": scores(values), "absent": scores(np.nan_to_num(values))}
            for reading, values in readings.items()
        },
    }


def _denied_in_words(text: str, answer: ParsedAnswer, fmt) -> list[bool]:
    """Which AUs are read as 0, but not any more once the words of denial are taken out of the text."""
    if 0 not in answer.values.values():  # also where the answer is too long to be read
        return [False] * len(fmt.labels)
    without = _DENIALS.sub("", text)
    again = answer if without == text else parse_answer(without, fmt)
    return [answer.values[label] == 0 and again.values[label] != 0 for label in fmt.labels]


def bands(values: Sequence[float | None], count: int = 3) -> list[str | None]:
    """Numbers cut at their quantiles into `count` bands of about equal size, named like "-35 to -5".

    Equal numbers stay together, so that there may be fewer bands; up to `count` distinct numbers are a band each. A
    name gives the lowest and highest number in the band, rounded as far as the names stay distinct.

    Args:
        values: (n,) finite numbers; None and NaN are unknown.

    Returns:
        (n,) names, None for what is unknown.

    Raises:
        ValueError: fewer than one band, an infinite number, or what is not a number.
    """
    if count < 1:
        raise ValueError(f"{count} bands cannot hold the values; ask for at least 1")
    try:
        numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"bands are cut from numbers, not from values such as {next(iter(values))!r}") from None
    known = ~np.isnan(numbers)
    if np.isinf(numbers).any():
        raise ValueError("bands are cut from finite numbers; write NaN for what is unknown")
    ends = np.unique(numbers[known])  # highest number of each band
    if len(ends) > count:
        quantiles = np.quantile(numbers[known], np.arange(1, count) / count, method="inverted_cdf")
        ends = np.unique([*quantiles, ends[-1]])
    of_band = np.searchsorted(ends, numbers)
    limits = [(part.min(), part.max()) for part in (numbers[of_band == band] for band in range(len(ends)))]
    for decimals in count_up():
        names = [" to ".join(dict.fromkeys(_rounded(each, decimals) for each in pair)) for pair in limits]
        ranges = sum(low < high for low, high in limits)
        if len(set(names)) == len(names) and sum(" to " in name for name in names) == ranges:
            return [names[band] if is_known else None for band, is_known in zip(of_band, known, strict=True)]


def _rounded(number: float, decimals: int) -> str:
    text = f"{number:.{decimals}f}"
    return text if float(text) else text.lstrip("-")


def group_audit(
    rows: Sequence[Mapping],
    fmt,
    groups: Mapping[str, Sequence],
    fewest: int = FEWEST_SUBJECTS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """How scores and calibration differ between groups of images, with bootstrap intervals over subjects.

    The metrics are means over the AUs for which the metric is defined in every scored group of the column, so that
    groups are compared on the same AUs:

    - f1 and f1_skew_normalised of decisions; unless the format codes occurrence, icc of values and mae of medians;
    - with probabilities roc_auc, brier, ece, and `bias`, the mean of probability - label, -1 to 1: above 0, presence is
      overstated. Overstating one AU can make up for understating another.

    **Base rates.** F1, MAE and the Brier score differ between groups for the mere reason that an AU is rarer in one
    ("rate" tells). f1_skew_normalised and roc_auc do not depend on base rates: a gap in F1 that they do not share need
    not be the model's.

    **ECE** comes without interval and gap. It takes chance for miscalibration, the more so the fewer images there are,
    and a bootstrap adds chance of its own: in simulations without any difference, its gap between groups of unequal
    size passed for significant at 5 % in 12 to 22 % of cases (those of the other metrics: 2 to 8 %). Compare it between
    groups of like size only; `bias` is free of this.

    **Gaps.** Each resample draws subjects once for all groups, since one person's images may be in several. With the
    changes of the groups' scores in a resample, their range shows how far apart equal groups come out by chance. p is
    the share of resamples whose range reaches the gap, as (count + 1) / (resamples + 1), and the interval is the gap ±
    the `level` quantile of the range: as in Tukey's test, both allow for the gap being the largest of all pairs. p_holm
    is corrected over columns, not over metrics. With few subjects, below about 20 in a group, intervals are too narrow.
    A gap need not be caused by its column: groups may differ in other ways.

    Args:
        rows: predictions, scored as scoring.py says; of free decoding too, then without metrics of probabilities.
        fmt: the AUFormat of all rows.
        groups: column -> (n,) entries, one per row. Numbers are cut into thirds by `bands`; None and NaN are in no
            group of the column.
        fewest: subjects that a group needs to be scored. resamples, level, seed: as in `intervals`.

    Returns:
        "columns": column -> group, bands in rising order -> {"n": images, "subjects", "unparsed": annotated cells
            without a prediction, "rate": share of present among annotated cells, "mean": metric -> value,
            "mean_interval": metric -> [low, high]};
        "gaps": column -> metric -> {"difference": highest - lowest, "interval": [low, high], "p", "p_holm", "groups":
            [highest, lowest], "averaged": AUs that are compared}; without metrics that are undefined, and empty for
            fewer than two scored groups;
        "too_small": column -> group -> subjects.

    Raises:
        ValueError: no rows, rows of another format, a column of another length, or as `intervals`.
    """
    numbers = ("references", "values" if fmt.scale == "occurrence" else "expected", "probability", "present")
    _check_rows(rows, fmt, numbers, "dataset", "subject")
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
        kept = [group for group in members if group not in too_small[column]]
        evaluated = [_evaluate(arguments, members[group], who, draws, fmt) for group in kept]
        means, changes, averaged = _compared(evaluated)
        columns[column] = {}
        for row, group in enumerate(kept):
            labels = arguments["references"][members[group]]
            known = ~np.isnan(labels)
            unread = np.isnan(arguments["predictions"][members[group]]) & known
            columns[column][group] = {
                "n": len(members[group]),
                "subjects": subjects[group],
                "unparsed": int(unread.sum()),
                "rate": float(np.mean(labels[known] >= fmt.presence_threshold)) if known.any() else math.nan,
                "mean": {metric: float(values[row]) for metric, values in means.items()},
                "mean_interval": {
                    metric: bounds(means[metric][row] + change[row], level) for metric, change in changes.items()
                },
            }
        gaps[column] = {
            metric: {**_gap(means[metric], change, kept, level), "averaged": averaged[metric]}
            for metric, change in changes.items()
            if averaged[metric] and len(kept) > 1
        }
    for metric in {metric for of_column in gaps.values() for metric in of_column}:
        tested = [of_column[metric] for of_column in gaps.values() if metric in of_column]
        for gap, p in zip(tested, holm([gap["p"] for gap in tested]).tolist(), strict=True):
            gap["p_holm"] = p
    return {"columns": columns, "gaps": gaps, "too_small": too_small}


def group_members(entries: Sequence) -> dict[str, np.ndarray]:
    """Group -> indices (k,) of its rows; bands of numbers in rising order, other groups by name."""
    known = [row for row, entry in enumerate(entries) if entry is not None and entry == entry]
    kept = [entries[row] for row in known]
    numeric = all(isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool) for entry in kept)
    names = bands(kept) if numeric else list(map(str, kept))
    order = sorted(range(len(kept)), key=kept.__getitem__ if numeric else names.__getitem__)
    members = {names[each]: [] for each in order}
    for row, name in zip(known, names, strict=True):
        members[name].append(row)
    return {group: np.array(rows_of) for group, rows_of in members.items()}


def _evaluate(arguments: Mapping, rows_of: np.ndarray, who: np.ndarray, draws: np.ndarray, fmt) -> dict:
    """One group: metric -> its scores (AUs,) and those of every resample (AUs, resamples)."""
    part = {name: values[rows_of] for name, values in arguments.items()}
    per_au = score(fmt=fmt, **part)["per_au"].values()
    columns, who = divide_by_au(fmt=fmt, **part), who[rows_of]
    drawn = resample(columns, who, draws, fmt)
    wanted = ("f1", "f1_skew_normalised", "icc", "mae", "roc_auc", "brier", "ece")
    found = {m: (np.array([scores[m] for scores in per_au]), drawn[m]) for m in wanted if m in drawn}
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
            found["bias"] = total[:, 0] / total[:, 1], resampled[:, 0] / resampled[:, 1]
    return found


def _compared(evaluated: list[dict]) -> tuple[dict, dict, dict]:
    """Per metric, over the AUs for which it is defined in all groups: means (groups,); their changes in every resample
    (groups, resamples), not of ece; and the number of these AUs."""
    means, changes, averaged = {}, {}, {}
    for metric in evaluated[0] if evaluated else ():
        points, drawn = (np.stack(each) for each in zip(*(group[metric] for group in evaluated), strict=True))
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
    spread = np.ptp(changes, axis=0).round(12)  # free of rounding
    spread = spread[~np.isnan(spread)]
    margin = float(np.quantile(spread, level)) if len(spread) else math.nan
    return {
        "difference": difference,
        "interval": [difference - margin, difference + margin],
        "p": float((np.sum(spread >= round(difference, 12)) + 1) / (len(spread) + 1)),
        "groups": [names[highest], names[lowest]],
    }


def abstention(rows: Sequence[Mapping], fmt, target: float | None = None) -> dict:
    """Per AU, from which confidence on an answer is worth giving: chosen on validation rows.

    The confidence of a decision is the probability that it is right: p where the AU is read as present, 1 - p where it
    is read as absent. With the decision threshold 0.5 that is max(p, 1 - p). With another it is not: a presence found
    at p = 0.3 is wrong seven times in ten, by the model's own word, and max(p, 1 - p) would call it sure by 0.7. Where
    probabilities are calibrated, no other ranking keeps more answers at the same error rate (Chow 1970, "On optimum
    recognition error and reject tradeoff"). With a threshold below 0.5, as chosen for F1, the unsure findings of
    presence are left out first: `coverage_present` shows how many present AUs still get an answer.

    Args:
        rows: predictions of slots decoding on the validation part, of which "format", "references", "probability" and
            "present" are used.
        fmt: the AUFormat of all rows.
        target: error rate to reach, 0 to 1; by default half of the AU's error rate without abstention.

    Returns:
        "target": as given, or "half of the error rate"; "per_au": label -> {"threshold": the smallest confidence from
        which on the error rate is at most the target, None if there is none; "coverage": share of images kept from
        there on; "coverage_present": of those where the AU is present; "risk": error rate among the kept; "aurc": area
        under the risk-coverage curve; "error_rate": without abstention; "n": images}. A target that only few images
        reach is reached by chance: look at the coverage.

    Raises:
        ValueError: no rows, rows of another format, rows without probabilities, or a target out of range.
    """
    if target is not None and not 0 <= target <= 1:
        raise ValueError(f"target is {target}; an error rate is from 0 to 1")
    per_au = {}
    for label, (confidence, wrong, present) in _decided(rows, fmt).items():
        curve = risk_coverage(confidence, wrong)  # from the highest confidence to the lowest
        limit = wrong.sum() / max(len(wrong), 1) / 2 if target is None else target
        reached = np.flatnonzero(curve["risk"] <= limit)
        threshold = float(np.unique(confidence)[::-1][reached[-1]]) if len(reached) else None
        per_au[label] = {"threshold": threshold, **_kept(confidence, wrong, present, threshold), "aurc": curve["aurc"]}
    return {"target": "half of the error rate" if target is None else target, "per_au": per_au}


def apply_abstention(rows: Sequence[Mapping], fmt, thresholds: Mapping[str, float | None]) -> dict:
    """What abstention does on other images: the thresholds chosen on validation, judged on test.

    Args:
        rows, fmt: as in `abstention`, of the part to judge on.
        thresholds: label -> confidence from which on an answer is kept, as `abstention` gives it. An AU that has none
            keeps all its answers and is not averaged.

    Returns:
        "per_au": label -> {"threshold", "coverage", "coverage_present", "risk", "error_rate", "n"}, as in `abstention`;
        "mean": of the same numbers over the AUs with a threshold; "averaged": how many these are.

    Raises:
        ValueError: as `abstention`, a label that is not in the format, or a threshold out of range.
    """
    for label, threshold in thresholds.items():
        if label not in fmt.labels or not (threshold is None or 0 <= threshold <= 1):
            raise ValueError(f"threshold {threshold} of {label}: give confidences, 0 to 1, of AUs of {fmt.name!r}")
    per_au = {}
    for label, each in _decided(rows, fmt).items():
        threshold = thresholds.get(label)
        per_au[label] = {"threshold": threshold, **_kept(*each, threshold or 0)}
    judged = [scores for scores in per_au.values() if scores["threshold"] is not None]
    numbers = ("coverage", "coverage_present", "risk", "error_rate")
    mean = {name: float(mean_of_defined(np.array([scores[name] for scores in judged]))) for name in numbers}
    return {"per_au": per_au, "mean": mean, "averaged": len(judged)}


def _decided(rows: Sequence[Mapping], fmt) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Label -> (n,) confidence, whether the decision is wrong, and whether the AU is present, of annotated images."""
    keys = ("references", "probability", "present")
    _check_rows(rows, fmt, keys)
    references, probability, present = (_numbers(rows, key) for key in keys)
    if np.isnan(probability).all():
        raise ValueError("abstention needs probabilities of presence, which these predictions lack: decode with slots")
    unread = np.isnan(probability) | np.isnan(present)
    probability, present = (np.where(unread, np.nan, each) for each in (probability, present))
    columns = divide_by_au(present, references, fmt, probability, present)
    return {
        label: (
            np.where(column.decision, column.probability, 1 - column.probability),
            column.decision != column.truth,
            column.truth,
        )
        for label, column in zip(fmt.labels, columns, strict=True)
    }


def _kept(confidence: np.ndarray, wrong: np.ndarray, present: np.ndarray, threshold: float | None) -> dict:
    """What is left of an AU's answers from a confidence on; without a threshold, nothing is said of it."""
    kept = confidence >= (math.nan if threshold is None else threshold)
    share = lambda of: math.nan if threshold is None or not len(of) else float(np.mean(of))
    return {
        "coverage": share(kept),
        "coverage_present": share(kept[present]),
        "risk": share(wrong[kept]),
        "error_rate": float(mean_of_defined(wrong.astype(float))),
        "n": len(wrong),
    }


def _check_rows(rows: Sequence[Mapping], fmt, numbers: Sequence[str], *others: str) -> None:
    """Raise ValueError unless there are rows, all in the format, with a number per AU under `numbers`, and `others`."""
    if not rows:
        raise ValueError("there are no predictions to audit; give at least one row")
    for key in ("format", *numbers, *others):
        lacking = sum(key not in row for row in rows)
        if lacking:
            raise ValueError(f"{lacking} rows have no {key!r}; give rows as eval_au.py predicts them")
    strange = sorted({row["format"] for row in rows} - {fmt.name})
    if strange:
        raise ValueError(f"rows of {', '.join(strange)} are among those of {fmt.name}; audit one format at a time")
    for key in numbers:
        lengths = {len(row[key]) for row in rows} - {len(fmt.labels)}
        if lengths:
            raise ValueError(f"{key!r} has {min(lengths)} numbers in a row, but {fmt.name} has {len(fmt.labels)} AUs")


def _numbers(rows: Sequence[Mapping], key: str) -> np.ndarray:
    """What the rows hold under a key: (n, AUs)."""
    return np.array([row[key] for row in rows], dtype=float)
