"""From predictions to scores: which of the read numbers each metric takes, and the tables that show the scores.

How a number is scored: presence (F1, accuracy, ...) by the decision, which is where the probability reaches the AU's
threshold; ROC AUC, average precision and calibration by the probability; intensity and continuous values by the mean of
the predicted distribution. Free decoding writes values only: there decision and number follow from the value that was
written, and nothing is said of probabilities. A label that is NaN is not scored; what could not be read is left out and
counted as unparsed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.folds import person_key
from au_llava.au_evaluation.intervals import intervals
from au_llava.au_evaluation.predictions import KEYS
from au_llava.metrics_au import score


def by_format(predictions: Sequence[dict]) -> dict[str, list[dict]]:
    """The rows of each format, formats in alphabetical order."""
    rows = defaultdict(list)
    for row in predictions:
        rows[row["format"]].append(row)
    return dict(sorted(rows.items()))


def score_arguments(rows: Sequence[dict], fmt: AUFormat, labels: Sequence[str] | None = None) -> tuple[dict, AUFormat]:
    """The arguments of `metrics_au.score` for the predictions of one format.

    Args:
        labels: score these AUs of the format only.

    Returns:
        predictions, references, probabilities, decisions, medians (images, AUs) and subjects; and the format of these
        AUs.
    """
    kept = [fmt.labels.index(label) for label in labels or fmt.labels]
    column = lambda key: np.array([row[key] for row in rows], dtype=float).reshape(len(rows), -1)[:, kept]
    probabilities = column("probability")
    arguments = {
        "predictions": column("values" if fmt.scale == "occurrence" else "expected"),
        "references": column("references"),
        "probabilities": None if np.isnan(probabilities).all() else probabilities,
        "decisions": column("present"),
        "medians": column("median") if fmt.scale != "occurrence" and all("median" in row for row in rows) else None,
        "subjects": [person_key(row["dataset"], row["subject"]) for row in rows],
    }
    return arguments, AUFormat(fmt.name, tuple(labels or fmt.labels), fmt.scale, fmt.presence_threshold)


def score_with_intervals(arguments: dict, fmt: AUFormat) -> dict:
    """`metrics_au.score`, plus "mean_interval" and in each AU "interval": metric -> [low, high], 95 % over subjects."""
    scores = score(fmt=fmt, **arguments)
    bounds = intervals(fmt=fmt, **arguments)
    scores["mean_interval"] = bounds["mean"]
    for label, values in scores["per_au"].items():
        values["interval"] = bounds["per_au"][label]
    return scores


def score_predictions(predictions: Sequence[dict]) -> dict[str, dict]:
    """Format name -> `score_with_intervals` of what `predict` returned."""
    scores = {}
    for name, rows in by_format(predictions).items():
        arguments, fmt = score_arguments(rows, get_format(name))
        scores[name] = score_with_intervals(arguments, fmt)
    return scores


def contradiction_counts(predictions: Sequence[dict]) -> dict:
    """How often formats of the same image contradict each other: "asked_together" images with several formats,
    "images" of them with a contradiction, "per_pair": "AU12 is present in bp4d, but AU12 0 in disfa" -> images."""
    formats, found = defaultdict(int), defaultdict(list)
    for row in predictions:
        image = tuple(row[key] for key in KEYS if key != "format")
        formats[image] += 1
        found[image] += row["contradictions"]
    together = [image for image, count in formats.items() if count > 1]
    return {
        "asked_together": len(together),
        "images": sum(bool(found[image]) for image in together),
        "per_pair": dict(Counter(each for image in together for each in found[image]).most_common()),
    }


def scores_table(scores: dict[str, dict], title: str) -> Table:
    """The scores as a table: one row per AU and a mean per format."""
    table = Table(title=title, title_justify="left", caption="± half of the 95 % bootstrap interval over subjects")
    for column in ("format", "AU", "F1", "AUC", "ICC", "PCC", "MAE", "present", "n"):
        table.add_column(column, justify="left" if column in ("format", "AU") else "right", no_wrap=True)
    keys = ("f1", "roc_auc", "icc", "pcc", "mae")

    def show(values, key):
        value = values.get(key)
        return "" if value is None else "n.d." if math.isnan(value) else f"{value:.3f}"

    for name, result in scores.items():
        for label, values in result["per_au"].items():
            table.add_row(name, label, *(show(values, k) for k in keys), f"{values['support']}", f"{values['n']}")
        bounds = {key: (high - low) / 2 for key, (low, high) in result["mean_interval"].items()}
        table.add_row(name, "mean", *(show(result["mean"], key) for key in keys), "", f"{result['n']}", style="bold")
        table.add_row("", "±", *(show(bounds, key) for key in keys), "", "", style="dim")
        table.add_section()
    return table


def jsonable(value):
    """NaN is not JSON: undefined numbers are written as null."""
    if isinstance(value, dict):
        return {key: jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
