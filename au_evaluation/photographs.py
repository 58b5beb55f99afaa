"""Scores on photographs that nobody has coded: ranks, shares and agreement, with intervals over people.

None of it is accuracy. A known condition (told to smile), the estimate of another network (a weak teacher) or another
view of the same face takes the place of labels; the caller says which. Everything is a table of (images, columns); a
column is one AU of one format, numbers are shares of the format's scale, 0 to 1. Intervals are 95 % bootstrap intervals
that draw people; every result is {"value", "interval": [low, high]}, NaN where undefined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from au_llava.action_units import MAIN_FORMATS, AUFormat, get_format
from au_llava.au_datasets.conversion import sources
from au_llava.au_evaluation.group_audit import FEWEST_SUBJECTS, group_audit, group_members
from au_llava.au_evaluation.intervals import mean_with_interval
from au_llava.au_evaluation.scoring import score_with_intervals
from au_llava.au_runs.progress import track

Column = tuple[str, str]  # the name of a format, the label of an AU


@dataclass(frozen=True)
class Readings:
    """The readings of images, (images, columns) each.

    Attributes:
        columns: the AUs of every format asked for, format after format.
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
            ValueError: the format does not code the AU.
        """
        labels = sources(label, get_format(format_name))
        if not labels:
            raise ValueError(f"format {format_name!r} does not code {label}.")
        columns = [self.columns.index((format_name, source)) for source in labels]
        return {name: getattr(self, name)[:, columns].max(axis=1) for name in ("expected", "probability", "present")}


def columns_of(formats: Sequence) -> tuple[Column, ...]:
    """The columns of a table that holds these formats."""
    return tuple((fmt.name, label) for fmt in map(get_format, formats) for label in fmt.labels)


def read_crops(
    model, processor, crops: Sequence, formats: Sequence = MAIN_FORMATS, batch_size: int = 32, what: str = "Reading"
) -> Readings:
    """Read face crops by the slots decoder, in all formats at once.

    Args:
        crops: what `recognize` takes; at least one. what: the description of the progress bar.
    """
    formats = tuple(map(get_format, formats))
    tops = np.concatenate([np.full(len(fmt.labels), fmt.value_numbers[-1]) for fmt in formats])
    rows = []
    for start in track(range(0, len(crops), batch_size), what):
        batch = crops[start : start + batch_size]
        for result in model.recognize(processor, batch, formats=formats, batch_size=batch_size):
            readings = [reading for fmt in formats for reading in result[fmt.name].values()]
            rows.append([[reading.expected, reading.probability, reading.present] for reading in readings])
    expected, probability, present = np.moveaxis(np.array(rows, dtype=float), -1, 0)
    return Readings(columns_of(formats), expected / tops, probability, present)


class _Shares(NamedTuple):
    """A format for metrics_au.py whose columns are shares."""

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
    scores = _scores(arguments, subjects, _Shares(tuple(columns), "occurrence"), "roc_auc")
    for column, values in zip(columns, positive.T, strict=True):
        scores["per_column"][column] |= {"positives": int(np.sum(values == 1)), "negatives": int(np.sum(values == 0))}
    return scores


def decisions(present: np.ndarray, positive: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """F1 of decisions against two classes of images.

    Args:
        present: (images, columns), 1 or 0. positive, subjects, columns: as in `rank_auc`.

    Returns:
        "mean" over the columns for which it is defined, and "per_column": column -> result.
    """
    arguments = {"predictions": present, "references": positive}
    return _scores(arguments, subjects, _Shares(tuple(columns), "occurrence"), "f1")


def correlation(numbers: np.ndarray, others: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """Pearson correlation of two tables, column by column, over the images where both are known.

    Args:
        numbers, others: (images, columns), 0 to 1, NaN where unknown. subjects, columns: as in `rank_auc`.

    Returns:
        "mean" over the columns for which it is defined, and "per_column": column -> result, with "n" images.
    """
    arguments = {"predictions": numbers, "references": others}
    scores = _scores(arguments, subjects, _Shares(tuple(columns), "continuous"), "pcc")
    known = np.sum(~np.isnan(numbers) & ~np.isnan(others), axis=0)
    for column, n in zip(columns, known.tolist(), strict=True):
        scores["per_column"][column] |= {"n": n}
    return scores


def rank_correlation(numbers: np.ndarray, others: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """Spearman correlation: `correlation` of ranks among the images where both are known.

    Resamples keep the ranks among all images instead of ranking again.
    """
    unknown = np.isnan(numbers) | np.isnan(others)
    ranked = [
        rankdata(np.where(unknown, np.nan, table), axis=0, nan_policy="omit") / max(len(table), 1)
        for table in (numbers, others)
    ]
    return correlation(*ranked, subjects, columns)


def shares(values: np.ndarray, subjects: Sequence, columns: Sequence) -> dict:
    """Means of the columns of (images, columns), such as the share of images read as present, without NaN.

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
            column: {"value": of_column[metric], "interval": of_column["interval"][metric]}
            for column, of_column in scores["per_au"].items()
        },
    }


def group_agreement(
    readings: Mapping[str, np.ndarray],
    weak_class: np.ndarray,
    groups: Mapping[str, Sequence],
    subjects: Sequence[str],
    label: str,
) -> dict:
    """How one AU is read in groups of people, compared with a weak teacher, which may be biased itself.

    Args:
        readings: "probability" and "present" (images,), from `Readings.stronger_side`.
        weak_class: (images,) 1 (strong) and 0 (near zero) where the teacher is clear, else NaN.
        groups: column -> (images,) entries. subjects: (images,) who is shown. label: the AU.

    Returns:
        "columns": column -> group -> {"n": images, "strong", "near_zero": how many of them are so by the teacher,
        "present": share of all its images read as present, "roc_auc" and "bias" (mean of probability - class) over the
        clear ones};
        "gaps": of the latter two, as in `group_audit`; "too_small": column -> group -> the size of its rarer class, if
        smaller than `FEWEST_SUBJECTS`; such a group has no other entry.
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
            group: [int(np.sum(weak_class[images] == value)) for value in (1, 0)]
            for group, images in members[column].items()
        }
        rarer = {group: min(sizes) for group, sizes in counts[column].items()}
        too_small[column] = {group: few for group, few in rarer.items() if few < FEWEST_SUBJECTS}
        compared[column] = [None] * len(rows)
        for group in members[column].keys() - too_small[column].keys():
            for image in members[column][group]:
                compared[column][image] = group
    audit = group_audit(rows, fmt, compared)
    columns = {column: {} for column in groups}
    for column, of_column in audit["columns"].items():
        for group, scores in of_column.items():
            images = members[column][group]
            strong, near_zero = counts[column][group]
            columns[column][group] = {
                "n": scores["n"],
                "strong": strong,
                "near_zero": near_zero,
                "present": shares(readings["present"][images, None], subjects[images], ["present"])["mean"],
                **{
                    metric: {"value": scores["mean"][metric], "interval": scores["mean_interval"][metric]}
                    for metric in ("roc_auc", "bias")
                },
            }
    gaps = {
        column: {metric: of_column[metric] for metric in ("roc_auc", "bias") if metric in of_column}
        for column, of_column in audit["gaps"].items()
    }
    return {"columns": columns, "gaps": gaps, "too_small": too_small}
