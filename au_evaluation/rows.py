"""The rows that `predict` returns and predictions.parquet holds: their keys, their division by format, as arrays."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_datasets.records import KEY

KEYS = (*KEY, "format")  # of a record
READ = ("values", "expected", "median", "probability", "present")  # a number per AU, NaN where unread


def key_of(row: Mapping) -> tuple:
    """What tells the record of a row from all others."""
    return tuple(row[key] for key in KEYS)


def by_format(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The rows of each format, formats in alphabetical order."""
    of_format = defaultdict(list)
    for row in rows:
        of_format[row["format"]].append(row)
    return dict(sorted(of_format.items()))


def stacked(rows: Sequence[Mapping], key: str) -> np.ndarray:
    """What the rows of one format hold under a key: (rows, AUs) numbers."""
    return np.array([row[key] for row in rows], dtype=float).reshape(len(rows), -1)


def scored_key(fmt: AUFormat) -> str:
    """The key of the number to score: the value of an occurrence, else the mean of the distribution."""
    return "values" if fmt.scale == "occurrence" else "expected"


def unread(fmt: AUFormat) -> dict[str, list[float]]:
    """The part of a row that says that nothing could be read."""
    return dict.fromkeys(READ, [math.nan] * len(fmt.labels))


def check_rows(rows: Sequence[Mapping], fmt: AUFormat, numbers: Sequence[str], *others: str) -> None:
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
