"""When not to answer: from which confidence on an AU's answers are worth giving, and what withholding the rest does."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_evaluation.rows import check_rows, stacked
from au_llava.metrics_au import divide_by_au, mean_of_defined, risk_coverage


class Decisions(NamedTuple):
    """The decisions on one AU in the images where it is annotated and read; arrays are (n,)."""

    confidence: np.ndarray
    wrong: np.ndarray
    present: np.ndarray  # whether the label says present


def abstention_thresholds(rows: Sequence[Mapping], fmt: AUFormat) -> dict[str, float | None]:
    """Choose per AU, on validation rows, the confidence from which on an answer is worth giving.

    The confidence of a decision is the probability that it is right: p where the AU is read as present, 1 - p where it
    is read as absent. With the decision threshold 0.5 that is max(p, 1 - p). With another it is not: a presence found
    at p = 0.3 is wrong seven times in ten, by the model's own word, and max(p, 1 - p) would rate it 0.7. Where
    probabilities are calibrated, no other ranking keeps more answers at the same error rate (Chow 1970, "On optimum
    recognition error and reject tradeoff"). With a threshold below 0.5, as chosen for F1, unsure findings of
    presence are withheld first: `coverage_present` of `apply_abstention` shows how many present AUs still get an
    answer.

    Args:
        rows: predictions of slots decoding on the validation part, with "format", "references", "probability" and
            "present".
        fmt: the AUFormat of all rows.

    Returns:
        label -> the smallest confidence from which on the error rate is at most half of what it is without abstention,
        None if there is none. Few images may reach that by chance: look at the coverage.

    Raises:
        ValueError: no rows, rows of another format, or rows without probabilities.
    """
    thresholds = {}
    for label, decisions in _decisions(rows, fmt).items():
        curve = risk_coverage(decisions.confidence, decisions.wrong)  # from the highest confidence to the lowest
        reached = np.flatnonzero(curve["risk"] <= decisions.wrong.sum() / max(len(decisions.wrong), 1) / 2)
        confidences = np.unique(decisions.confidence)[::-1]
        thresholds[label] = float(confidences[reached[-1]]) if len(reached) else None
    return thresholds


def apply_abstention(rows: Sequence[Mapping], fmt: AUFormat, thresholds: Mapping[str, float | None]) -> dict:
    """What abstention does on other images: thresholds chosen on validation, judged on test.

    Args:
        rows, fmt: as in `abstention_thresholds`, of the part to judge on.
        thresholds: label -> confidence from which on an answer is kept, of `abstention_thresholds`. An AU without one
            keeps all its answers and is left out of the mean.

    Returns:
        "per_au": label -> {"threshold": as given; "coverage": share of images kept from there on; "coverage_present":
        of those where the AU is present; "risk": error rate among the kept; "error_rate": without abstention; "n":
        images}; "mean": of these numbers, but n, over the AUs with a threshold; "averaged": how many these are.

    Raises:
        ValueError: as `abstention_thresholds`, a label that is not in the format, or a threshold out of range.
    """
    for label, threshold in thresholds.items():
        if label not in fmt.labels or not (threshold is None or 0 <= threshold <= 1):
            raise ValueError(f"threshold {threshold} of {label}: give confidences, 0 to 1, of AUs of {fmt.name!r}")
    per_au = {
        label: {"threshold": thresholds.get(label), **_above(decisions, thresholds.get(label) or 0)}
        for label, decisions in _decisions(rows, fmt).items()
    }
    judged = [scores for scores in per_au.values() if scores["threshold"] is not None]
    numbers = ("coverage", "coverage_present", "risk", "error_rate")
    mean = {name: float(mean_of_defined(np.array([scores[name] for scores in judged]))) for name in numbers}
    return {"per_au": per_au, "mean": mean, "averaged": len(judged)}


def _decisions(rows: Sequence[Mapping], fmt: AUFormat) -> dict[str, Decisions]:
    """Label -> the decisions on it."""
    keys = ("references", "probability", "present")
    check_rows(rows, fmt, keys)
    references, probability, present = (stacked(rows, key) for key in keys)
    if np.isnan(probability).all():
        raise ValueError("abstention needs probabilities of presence, which these predictions lack: decode with slots")
    unread = np.isnan(probability) | np.isnan(present)
    probability, present = (np.where(unread, np.nan, numbers) for numbers in (probability, present))
    columns = divide_by_au(present, references, fmt, probability, present)
    return {
        label: Decisions(
            np.where(column.decision, column.probability, 1 - column.probability),
            column.decision != column.truth,
            column.truth,
        )
        for label, column in zip(fmt.labels, columns, strict=True)
    }


def _above(decisions: Decisions, threshold: float) -> dict:
    """What is left of an AU's answers from a confidence on."""
    kept = decisions.confidence >= threshold
    return {
        "coverage": _share(kept),
        "coverage_present": _share(kept[decisions.present]),
        "risk": _share(decisions.wrong[kept]),
        "error_rate": _share(decisions.wrong),
        "n": len(decisions.wrong),
    }


def _share(of: np.ndarray) -> float:
    return float(np.mean(of)) if len(of) else math.nan
