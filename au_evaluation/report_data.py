"""The data of a report: an evaluation read back from its folder."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet

from au_llava.action_units import AUFormat, get_format
from au_llava.au_evaluation.rows import KEYS, READ, by_format, scored_key
from au_llava.au_runs.formats import know_formats
from au_llava.metrics_au import decide

COLUMNS = {*KEYS, "references", *READ} - {"median"}  # of predictions.parquet; older ones lack the median
UNDEFINED = "\u2013"
WORST = 12  # errors whose faces are shown


class FormatEvaluation(NamedTuple):
    """Scores and predictions of one format; arrays are (n, AUs), numbers NaN where not annotated or not read.

    `confidence` is that of abstention.py: max(p, 1 - p) only where the decision threshold is 0.5.
    """

    fmt: AUFormat
    scores: dict  # its entry in results.json
    rows: list[dict]  # (n) of predictions.parquet
    references: np.ndarray
    values: np.ndarray  # the number that is scored: the value of an occurrence, else the mean of the distribution
    probability: np.ndarray
    rated: np.ndarray  # where there is a label, a probability and a decision
    truth: np.ndarray  # label says present
    present: np.ndarray  # decision says present
    confidence: np.ndarray  # probability p of what was decided: p if present, else 1 - p


def load_evaluation(folder: Path) -> tuple[dict, list[FormatEvaluation]]:
    """Read back what eval_au.py wrote to a folder: results.json, and its formats in the same order.

    Raises:
        FileNotFoundError: no such folder, or one of its two files is missing.
        ValueError: a file that eval_au.py did not write, or two that do not belong together.
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
            raise ValueError("results.json scores no format (a protocol's table is in table.md)")
        know_formats(results)
        rows = by_format(table.to_pylist())
        return results, [_evaluation(name, of, rows.get(name, [])) for name, of in results["formats"].items()]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{folder} does not hold what eval_au.py writes: {reason}.") from error


def _evaluation(name: str, scores: dict, rows: list[dict]) -> FormatEvaluation:
    fmt = get_format(name)
    if len(rows) != scores["n"] or list(scores["per_au"]) != list(fmt.labels):
        raise ValueError(f"its two files do not hold the same images and AUs of {name}")
    keys = ("references", scored_key(fmt), "probability", "present")
    arrays = [np.array([row[key] for row in rows], dtype=float) for key in keys]
    if any(array.shape != (len(rows), len(fmt.labels)) for array in arrays):
        raise ValueError(f"predictions of {name} do not have {len(fmt.labels)} AUs")
    references, values, probability, present = arrays
    rated = ~np.isnan(references + probability + present)
    confidence = np.where(present == 1, probability, 1 - probability)
    truth = decide(references, fmt) == 1
    return FormatEvaluation(fmt, scores, rows, references, values, probability, rated, truth, present == 1, confidence)


def worst_errors(evaluation: FormatEvaluation) -> list[tuple[int, int]]:
    """(image, AU) of the `WORST` wrong decisions with the highest probability, or fewer, highest first."""
    wrong = evaluation.rated & (evaluation.present != evaluation.truth)
    order = np.argsort(np.where(wrong, -evaluation.confidence, 1), axis=None, kind="stable")[: min(WORST, wrong.sum())]
    return np.stack(np.unravel_index(order, wrong.shape), axis=1).tolist()
