"""What can be measured on photographs that nobody coded: ranks, shares and agreement, with intervals over people.

None of it is accuracy. A known condition (told to smile), a guess of another network (a weak teacher) or another view
of the same face take the place of labels, and the caller says which. Everything is a table of (images, columns); a
column is one AU of one format, numbers are shares of the format's scale, 0 to 1. Intervals are 95 % bootstrap intervals
that draw people; every result is {"value", "interval": [low, high]}, NaN where it is undefined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.progress import track
from scipy.stats import rankdata

from au_llava.action_units import MAIN_FORMATS, AUFormat, get_format
from au_llava.au_datasets.conversion import sources
from au_llava.au_evaluation.audits import FEWEST_SUBJECTS, group_audit, group_members
from au_llava.au_evaluation.intervals import mean_with_interval
from au_llava.au_evaluation.scoring import score_with_intervals

Column = tuple[str, str]  # the name of a format, the label of an AU


@dataclass(frozen=True)
class Readings:
    """What was read off images, (images, columns) each.

    Attributes:
        columns: the AUs of every format that was asked for, format after format.
        expected: mean of the distribution, as a share of the format's scale. probability: of presence. present: the
            decision, by the checkpoint's own threshold, 1 or 0.
    """

    columns: tuple[Column, ...]
    expected: np.ndarray
    probability: np.ndarray
    present: np.ndarray

    def stronger_side(self, format_name: str, label: str) -> dict[str, np.ndarray]:
        """expected, probability and present (images,) of an AU; where the format codes its sides, of the stronger one.

        Raises:
            ValueError: the format tells nothing of the AU.
        """
        of_format = sources(label, get_format(format_name))
        if not of_format:
            raise ValueError(f"format {format_name!r} does not code {label}.")
        kept = [self.columns.index((format_name, each)) for each in of_format]
        return {name: getattr(self, name)[:, kept].max(axis=1) for name in ("expected", "probability", "present")}


def columns_of(formats: Sequence) -> tuple[Column, ...]:
    """The columns of a table that holds these formats."""
    return tuple((fmt.name, label) for fmt in map(get_format, formats) for label in fmt.labels)


def read_crops(
    model, processor, crops: Sequence, formats: Sequence = MAIN_FORMATS, batch_size: int = 32, what: str = "Reading"
) -> Readings:
    """Read face crops by the slots decoder, in all formats at once.

    Args:
        crops: at least one; what `recognize` takes. what: is being done, for the progress bar.
    """
    formats = tuple(map(get_format, formats))
    tops = np.concatenate([np.full(len(fmt.labels), fmt.value_numbers[-1]) for fmt in formats])
    rows = []
    for start in track(range(0, len(crops), batch_size), description=what):
        batch = crops[start : start + batch_size]
        for result in model.recognize(processor, batch, formats=formats, batch_size=batch_size):
            readings = [reading for fmt in formats for reading in result[fmt.name].values()]
            rows.append([[each.expected, each.probability, each.present] for each in readings])
    expected, probability, present = np.moveaxis(np.array(rows, dtype=float), -1, 0)
    return Readings(columns_of(formats), expected / tops, probability, present)


class _Shares(NamedTuple):
    """What metrics_au.py asks of a format, of a table of shares."""

    labels: tuple
    scale: str  # "occurrence": references are 0 or 1; "continuous": 0 to 1
    name: str = "shares"
    presence_threshold: float = 0.5
    value_numbers: tuple[float, ...] = (0.0, 1.0)


def rank_auc(numbers: np.ndarray, positive: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """ROC AUC: how often an image of one class has a higher number than one of the other, ties counting half.

    Args:
        numbers: (images, columns), 0 to 1. positive: (images, columns), 1 and 0 for the two classes, NaN for neither.
        subjects: (images,) who is shown. columns: names.

    Returns:
        "mean" over the columns for which it is defined, and "per_column": column -> result, with the number of images
        of each class ("positives", "negatives").
    """
    decisions = np.where(np.isnan(numbers), np.nan, numbers >= 0.5)
    arguments = {"predictions": decisions, "references": positive, "probabilities": numbers}
    found = _scores(arguments, subjects, _Shares(tuple(columns), "occurrence"), "roc_auc")
    for column, values in zip(columns, positive.T, strict=True):
        found["per_column"][column] |= {"positives": int(np.sum(values == 1)), "negatives": int(np.sum(values == 0))}
    return found


def correlation(numbers: np.ndarray, others: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """Pearson's correlation of two tables, column by column, over the images where both are known.

    Args:
        numbers, others: (images, columns), 0 to 1, NaN where unknown. subjects, columns: as in `rank_auc`.

    Returns:
        "mean" over the columns for which it is defined, and "per_column": column -> result, with "n" images.
    """
    arguments = {"predictions": numbers, "references": others}
    found = _scores(arguments, subjects, _Shares(tuple(columns), "continuous"), "pcc")
    known = np.sum(~np.isnan(numbers) & ~np.isnan(others), axis=0)
    for column, n in zip(columns, known.tolist(), strict=True):
        found["per_column"][column] |= {"n": n}
    return found


def rank_correlation(numbers: np.ndarray, others: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """Spearman's correlation, as `correlation`: of ranks among the images where both are known.

    Resamples keep the ranks of all images instead of ranking anew.
    """
    unknown = np.isnan(numbers) | np.isnan(others)
    ranked = [
        rankdata(np.where(unknown, np.nan, each), axis=0, nan_policy="omit") / max(len(each), 1)
        for each in (numbers, others)
    ]
    return correlation(*ranked, subjects, columns)


def shares(values: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """Means of (images, columns), such as the share of images read as present; NaN is left out.

    Returns:
        "mean" over columns, and "per_column": column -> result.
    """
    means, bounds, mean, mean_bounds = mean_with_interval(values, subjects)
    return {
        "mean": {"value": mean, "interval": mean_bounds},
        "per_column": {
            column: {"value": value, "interval": interval}
            for column, value, interval in zip(columns, means, bounds, strict=True)
        },
    }


def _scores(arguments: Mapping, subjects: Sequence, fmt: _Shares, metric: str) -> dict:
    scores = score_with_intervals({**arguments, "subjects": subjects}, fmt)
    return {
        "mean": {"value": scores["mean"][metric], "interval": scores["mean_interval"][metric]},
        "per_column": {
            column: {"value": each[metric], "interval": each["interval"][metric]}
            for column, each in scores["per_au"].items()
        },
    }


def group_agreement(
    readings: Mapping[str, np.ndarray],
    weak_class: np.ndarray,
    groups: Mapping[str, Sequence],
    subjects: Sequence[str],
    label: str,
) -> dict:
    """How one AU is read in groups of people, beside a weak teacher that may be biased itself.

    Args:
        readings: "probability" and "present" (images,), as of `Readings.stronger_side`.
        weak_class: (images,) 1 and 0 where the teacher is clear, else NaN.
        groups, subjects: column of groups -> (images,) entries; (images,) who is shown. label: of the AU.

    Returns:
        "columns": column -> group -> {"n" images, "strong", "near_zero": of them by the teacher, "present": share of
        all its images read as present, "roc_auc" and "bias" (mean of probability - class) over the clear ones};
        "gaps": of the latter two, as `audits.group_audit`; "too_small": column -> group -> how many it has of the rarer
        class, if that is fewer than `FEWEST_SUBJECTS`: nothing more is said of it.
    """
    fmt = AUFormat("weak teacher", (label,), "occurrence")
    rows = [
        {
            "format": fmt.name,
            "dataset": "",
            "subject": subject,
            "references": [reference],
            "values": [present],
            "present": [present],
            "probability": [probability],
        }
        for subject, reference, present, probability in zip(
            subjects, weak_class, readings["present"], readings["probability"], strict=True
        )
    ]
    subjects = np.asarray(subjects)
    members, counts, too_small, compared = {}, {}, {}, {}
    for column, entries in groups.items():
        members[column] = group_members(entries)
        counts[column] = {
            group: [int(np.sum(weak_class[kept] == each)) for each in (1, 0)] for group, kept in members[column].items()
        }
        rarer = {group: min(each) for group, each in counts[column].items()}
        too_small[column] = {group: few for group, few in rarer.items() if few < FEWEST_SUBJECTS}
        compared[column] = [None] * len(rows)
        for group, kept in members[column].items():
            if group not in too_small[column]:
                for row in kept:
                    compared[column][row] = group
    audit = group_audit(rows, fmt, compared)
    columns = {column: {} for column in groups}
    for column, of_column in audit["columns"].items():
        for group, each in of_column.items():
            kept = members[column][group]
            strong, near_zero = counts[column][group]
            columns[column][group] = {
                "n": each["n"],
                "strong": strong,
                "near_zero": near_zero,
                "present": shares(readings["present"][kept, None], subjects[kept], ["present"])["mean"],
                **{
                    metric: {"value": each["mean"][metric], "interval": each["mean_interval"][metric]}
                    for metric in ("roc_auc", "bias")
                },
            }
    gaps = {
        column: {metric: each[metric] for metric in ("roc_auc", "bias") if metric in each}
        for column, each in audit["gaps"].items()
    }
    return {"columns": columns, "gaps": gaps, "too_small": too_small}
