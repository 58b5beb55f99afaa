"""The names of the metrics, and how numbers and tables are written: in documents, reports, releases and terminals."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table


class Metric(NamedTuple):
    name: str  # in tables
    meaning: str
    higher_is_better: bool = True


METRICS = {
    "f1": Metric("F1", "harmonic mean of precision and recall of the decision"),
    "precision": Metric("precision", "share of the AUs read as present that are"),
    "recall": Metric("recall", "share of the present AUs that are read as present"),
    "accuracy": Metric("accuracy", "share of right decisions"),
    "balanced_accuracy": Metric("bal. acc.", "balanced accuracy: mean of recall and specificity"),
    "mcc": Metric("MCC", "Matthews correlation of decisions and labels, -1 to 1"),
    "f1_skew_normalised": Metric("F1 even", "F1 with the negatives weighted to weigh as much as the positives"),
    "icc": Metric("ICC(3,1)", "consistency of values and labels, at most 1"),
    "icc_1_1": Metric("ICC(1,1)", "absolute agreement of values and labels, at most 1"),
    "icc_within": Metric("ICC within", "ICC(3,1) of each subject's images alone, mean over subjects"),
    "pcc": Metric("PCC", "Pearson correlation of values and labels"),
    "mae": Metric("MAE", "mean absolute error, in units of the scale", False),
    "mse": Metric("MSE", "mean squared error, in squared units of the scale", False),
    "mae_nonzero": Metric("MAE > 0", "mean absolute error over the labels above 0", False),
    "roc_auc": Metric("ROC AUC", "chance that a present AU has a higher probability than an absent one"),
    "average_precision": Metric("AP", "average precision: area under the precision-recall curve"),
    "ece": Metric("ECE", "expected calibration error of the probability of presence, 15 bins", False),
    "brier": Metric("Brier", "mean squared error of the probability of presence", False),
    "bias": Metric("bias", "mean of probability - label: above 0, presence is overstated", False),
}
HEADLINE = ("f1", "roc_auc", "ece", "icc", "pcc", "mae")  # what documents and releases quote
UNDEFINED = "n.d."
PIPE = r"\|"


def metric_names(metrics: Iterable[str] = HEADLINE) -> list[str]:
    """How tables name these metrics."""
    return [METRICS[metric].name for metric in metrics]


def number(
    value: float | None,
    bounds: Sequence[float | None] | None = None,
    digits: int = 3,
    sign: str = "",
    undefined: str = UNDEFINED,
) -> str:
    """A number, with its interval where there is one: "0.512 (0.498 to 0.530)".

    Args:
        value, bounds: None and NaN are undefined. digits: after the point. sign: "+" marks positive numbers too.
        undefined: what stands for an undefined number.
    """
    if value is None or math.isnan(value):
        return undefined
    limits = interval(bounds, digits, sign)
    return f"{value:{sign}.{digits}f}" + (f" ({limits})" if limits else "")


def interval(bounds: Sequence[float | None] | None, digits: int = 3, sign: str = "") -> str:
    """An interval: "0.498 to 0.530"; "" where there is none or where it is undefined."""
    if not bounds or any(bound is None or math.isnan(bound) for bound in bounds):
        return ""
    return " to ".join(f"{bound:{sign}.{digits}f}" for bound in bounds)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table in Markdown, without a final line break.

    Args:
        header, rows: cells of text; pipes are escaped. align: a letter a column, "l" or "r", such as "llrr".
    """

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', PIPE) for cell in cells).lstrip()} |"

    rule = "|" + "".join("---:|" if letter == "r" else "---|" for letter in align)
    return "\n".join([line(header), rule, *map(line, rows)])


def console_table(title: str, columns: Sequence[str], align: str, caption: str | None = None) -> Table:
    """An empty table for the terminal; `align` as in `markdown_table`."""
    table = Table(title=title, title_justify="left", caption=caption)
    for column, letter in zip(columns, align, strict=True):
        table.add_column(column, justify="right" if letter == "r" else "left", no_wrap=True)
    return table
