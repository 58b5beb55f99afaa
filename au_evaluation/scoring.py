"""From predictions to scores: which of the read numbers each metric takes, and the table of scores.

Presence (F1, accuracy, ...) is scored by the decision, which is where the probability reaches the AU's threshold; ROC
AUC, average precision and calibration by the probability; intensity and continuous values by the mean of the predicted
distribution, absolute errors by its median. Free decoding writes values only: decision and number follow from the
written value, and there are no probabilities. A NaN label is not scored; what could not be read is left out and counted
as unparsed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.folds import person_key
from au_llava.au_datasets.records import KEY
from au_llava.au_evaluation.intervals import caution, intervals
from au_llava.au_evaluation.rows import by_format, scored_key, stacked
from au_llava.au_evaluation.tables import console_table, metric_names, number
from au_llava.metrics_au import score

SHOWN = ("f1", "roc_auc", "icc", "pcc", "mae")


def score_arguments(
    rows: Sequence[Mapping], fmt: AUFormat, labels: Sequence[str] | None = None
) -> tuple[dict, AUFormat]:
    """The arguments of `metrics_au.score` for the predictions of one format.

    Args:
        labels: score only these AUs of the format.

    Returns:
        predictions, references, probabilities, decisions, medians (images, AUs) and subjects; and the format of these
        AUs.
    """
    columns = [fmt.labels.index(label) for label in labels or fmt.labels]
    column = lambda key: stacked(rows, key)[:, columns]
    probabilities = column("probability")
    arguments = {
        "predictions": column(scored_key(fmt)),
        "references": column("references"),
        "probabilities": None if np.isnan(probabilities).all() else probabilities,
        "decisions": column("present"),
        "medians": column("median") if fmt.scale != "occurrence" and all("median" in row for row in rows) else None,
        "subjects": [person_key(row["dataset"], row["subject"]) for row in rows],
    }
    return arguments, AUFormat(fmt.name, tuple(labels or fmt.labels), fmt.scale, fmt.presence_threshold)


def score_with_intervals(arguments: Mapping, fmt: AUFormat) -> dict:
    """`metrics_au.score`, plus "mean_interval" and in each AU "interval": metric -> [low, high], 95 % over subjects."""
    scores = score(fmt=fmt, **arguments)
    bounds = intervals(fmt=fmt, **arguments)
    scores["mean_interval"] = bounds["mean"]
    for label, of_au in scores["per_au"].items():
        of_au["interval"] = bounds["per_au"][label]
    return scores


def score_predictions(predictions: Sequence[dict]) -> dict[str, dict]:
    """Format name -> `score_with_intervals` of what `predict` returned."""
    scores = {}
    for name, rows in by_format(predictions).items():
        arguments, fmt = score_arguments(rows, get_format(name))
        scores[name] = score_with_intervals(arguments, fmt)
    return scores


def contradiction_counts(predictions: Sequence[dict]) -> dict:
    """How often the formats of one image contradict each other.

    Returns:
        "asked_together": images with several formats; "images": those of them with a contradiction; "per_pair":
        contradiction, such as "AU12 is present in bp4d, but AU12 0 in disfa" -> images.
    """
    formats, contradictions = defaultdict(int), defaultdict(list)
    for row in predictions:
        image = tuple(row[key] for key in KEY)
        formats[image] += 1
        contradictions[image] += row["contradictions"]
    together = [image for image, count in formats.items() if count > 1]
    return {
        "asked_together": len(together),
        "images": sum(bool(contradictions[image]) for image in together),
        "per_pair": dict(Counter(pair for image in together for pair in contradictions[image]).most_common()),
    }


def scores_table(scores: Mapping[str, Mapping], title: str) -> Table:
    """The scores for the terminal: one row per AU and a mean per format."""
    header = ("format", "AU", *metric_names(SHOWN), "present", "n")
    fewest = min(len(result["per_subject"]) for result in scores.values())
    caption = "± half of the 95 % bootstrap interval over subjects" + caution(fewest)
    table = console_table(title, header, "ll" + "r" * (len(header) - 2), caption)
    for name, result in scores.items():
        for label, of_au in result["per_au"].items():
            table.add_row(name, label, *_cells(of_au), str(of_au["support"]), str(of_au["n"]))
        halves = {key: (high - low) / 2 for key, (low, high) in result["mean_interval"].items()}
        table.add_row(name, "mean", *_cells(result["mean"]), "", str(result["n"]), style="bold")
        table.add_row("", "±", *_cells(halves), "", "", style="dim")
        table.add_section()
    return table


def _cells(scores: Mapping[str, float]) -> list[str]:
    return [number(scores[metric]) if metric in scores else "" for metric in SHOWN]


def jsonable(value):
    """NaN is not JSON: undefined numbers are written as null."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
