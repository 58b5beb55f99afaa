"""What a report is made of: an evaluation read back from its folder, and the names of its metrics."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet

from au_llava.action_units import AUFormat, get_format

COLUMNS = {
    "dataset",
    "subject",
    "clip",
    "frame",
    "format",
    "references",
    "values",
    "expected",
    "probability",
    "present",
}
METRICS = {  # metric -> its name in tables, what it is
    "f1": ("F1", "harmonic mean of precision and recall of the decision"),
    "precision": ("precision", "share of the AUs read as present that are"),
    "recall": ("recall", "share of the present AUs that are read as present"),
    "accuracy": ("accuracy", "share of right decisions"),
    "balanced_accuracy": ("bal. acc.", "balanced accuracy: mean of recall and specificity"),
    "mcc": ("MCC", "Matthews' correlation of decisions and labels, -1 to 1"),
    "f1_skew_normalised": ("F1 even", "F1 with the negatives weighted to weigh as much as the positives"),
    "icc": ("ICC(3,1)", "consistency of values and labels, at most 1"),
    "icc_1_1": ("ICC(1,1)", "absolute agreement of values and labels, at most 1"),
    "icc_within": ("ICC within", "ICC(3,1) of each subject's images alone, mean over subjects"),
    "pcc": ("PCC", "Pearson's correlation of values and labels"),
    "mae": ("MAE", "mean absolute error, in units of the scale"),
    "mse": ("MSE", "mean squared error, in squared units of the scale"),
    "mae_nonzero": ("MAE > 0", "mean absolute error over the labels above 0"),
    "roc_auc": ("ROC AUC", "chance that a present AU has a higher probability than an absent one"),
    "average_precision": ("AP", "average precision: area under the precision-recall curve"),
    "ece": ("ECE", "expected calibration error of the probability of presence, 15 bins"),
    "brier": ("Brier", "mean squared error of the probability of presence"),
    "bias": ("bias", "mean of probability - label: above 0, presence is overstated"),
}
UNDEFINED = "\u2013"


def shown(value: float | None) -> str:
    """A number of results.json as text."""
    return UNDEFINED if value is None else f"{value:.3f}"


class Readings(NamedTuple):
    """What was read in one format; arrays are (n, AUs), numbers NaN where not annotated or not read.

    `confidence` is that of audits.py: max(p, 1 - p) where the decision threshold is 0.5, and honest where it is not.
    """

    fmt: AUFormat
    scores: dict  # its entry in results.json
    rows: list[dict]  # (n) of predictions.parquet
    references: np.ndarray
    values: np.ndarray  # what is scored: the value of an occurrence, else the mean of the distribution
    probability: np.ndarray
    rated: np.ndarray  # where there are a label, a probability and a decision
    truth: np.ndarray  # label says present
    present: np.ndarray  # decision says present
    confidence: np.ndarray  # probability p of what was decided: p if present, else 1 - p


def load_evaluation(folder: Path) -> tuple[dict, list[Readings]]:
    """What eval_au.py wrote to a folder: results.json, and `Readings` per format in its order.

    Raises:
        FileNotFoundError: no such folder, or one of its two files is missing.
        ValueError: a file that is not what eval_au.py writes, or two that do not belong together.
    """
    paths = Path(folder, "results.json"), Path(folder, "predictions.parquet")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path.name} in {folder}; eval_au.py --out writes it.")
    try:
        results = json.loads(paths[0].read_text(encoding="utf-8"))
        table = pyarrow.parquet.read_table(paths[1])
        if COLUMNS - set(table.column_names):
            raise ValueError(f"predictions.parquet lacks {', '.join(sorted(COLUMNS - set(table.column_names)))}")
        if not isinstance(results, dict) or not isinstance(results.get("formats"), dict) or not results["formats"]:
            raise ValueError("results.json scores no format")
        rows = table.to_pylist()
        formats = results["formats"].items()
        return results, [_readings(n, scores, [row for row in rows if row["format"] == n]) for n, scores in formats]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{folder} does not hold what eval_au.py writes: {reason}.") from error


def _readings(name: str, scores: dict, rows: list[dict]) -> Readings:
    fmt = get_format(name)
    if len(rows) != scores["n"] or list(scores["per_au"]) != list(fmt.labels):
        raise ValueError(f"its two files do not hold the same images and AUs of {name}")
    sources = ("references", "values" if fmt.scale == "occurrence" else "expected", "probability", "present")
    arrays = [np.array([row[source] for row in rows], dtype=float) for source in sources]
    if any(array.shape != (len(rows), len(fmt.labels)) for array in arrays):
        raise ValueError(f"predictions of {name} do not have {len(fmt.labels)} AUs")
    references, values, probability, present = arrays
    rated = ~np.isnan(references + probability + present)
    confidence = np.where(present == 1, probability, 1 - probability)
    truth = references >= fmt.presence_threshold
    return Readings(fmt, scores, rows, references, values, probability, rated, truth, present == 1, confidence)


def worst_errors(readings: Readings, count: int = 12) -> list[tuple[int, int]]:
    """(image, AU) of the at most `count` wrong decisions that were given the highest probability, highest first."""
    wrong = readings.rated & (readings.present != readings.truth)
    order = np.argsort(np.where(wrong, -readings.confidence, 1), axis=None, kind="stable")[: min(count, wrong.sum())]
    return np.stack(np.unravel_index(order, wrong.shape), axis=1).tolist()
