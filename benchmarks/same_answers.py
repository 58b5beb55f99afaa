"""Whether two evaluations of the same images read the same: two engines, two versions, two machines.

    python eval_au.py --data data/rendered-test --engine torch --out runs/eval-torch
    python eval_au.py --data data/rendered-test --engine onnx --out runs/eval-onnx
    python benchmarks/same_answers.py runs/eval-torch runs/eval-onnx

Prints per format how many decisions and values are equal, and how far probabilities and means are apart at most. The
exit status is 1 if a decision differs. `eval_au.py compare` tests instead which of two different systems is better.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset
from page import add_write_option, make_table, runner, show

from au_llava.action_units import get_format
from au_llava.au_evaluation.rows import by_format, key_of, stacked
from au_llava.au_runs.commands import CommandParser

EQUAL = {"decisions": "present", "values": "values", "medians": "median"}  # what is counted -> its key in a row


def rows_of(folder: Path) -> list[dict]:
    """The rows that eval_au.py wrote into a folder, in the order of their keys.

    Raises:
        FileNotFoundError: there are none.
    """
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: make it with eval_au.py --out {folder}.")
    return sorted(Dataset.from_parquet(str(path)).to_list(), key=key_of)


def compare(before: list[dict], after: list[dict]) -> dict[str, dict]:
    """Format -> "images", "cells" (images times AUs); how many "decisions", "values" and "medians" are equal; the
    largest difference of a "probability" and of a mean as "expected", on the format's scale.

    Raises:
        ValueError: the rows are not of the same images and formats.
    """
    if list(map(key_of, before)) != list(map(key_of, after)):
        raise ValueError("the evaluations are not of the same images and formats.")
    found = {}
    others = by_format(after)
    for name, rows in by_format(before).items():
        both = (rows, others[name])
        pairs = {key: [stacked(each, key) for each in both] for key in (*EQUAL.values(), "probability", "expected")}
        equal = {what: _equal(*pairs[key]) for what, key in EQUAL.items()}
        apart = {key: float(np.nanmax(np.abs(np.subtract(*pairs[key])))) for key in ("probability", "expected")}
        found[name] = {"images": len(rows), "cells": len(rows) * len(get_format(name).labels), **equal, **apart}
    return found


def _equal(one: np.ndarray, other: np.ndarray) -> int:
    """In how many cells both are equal, or both unread."""
    return int(np.isclose(one, other, rtol=0, atol=0, equal_nan=True).sum())


def row_of(name: str, counts: Mapping) -> tuple[str, ...]:
    """A row of the table."""
    shares = (f"{100 * counts[what] / counts['cells']:.2f} %" for what in EQUAL)
    apart = (f"{counts[key]:.0e}" for key in ("probability", "expected"))
    return name, f"{counts['images']:,}", f"{counts['cells']:,}", *shares, *apart


def main(arguments: argparse.Namespace) -> int:
    comparison = compare(*map(rows_of, (arguments.before, arguments.after)))
    header = ("format", "images", "decisions", "equal", "values equal", "medians equal", "largest difference of P")
    table = make_table(*header, "of the mean", text=["format"])
    for name, counts in comparison.items():
        table.add_row(*row_of(name, counts))
    show([table], arguments.write)
    return int(any(counts["decisions"] < counts["cells"] for counts in comparison.values()))


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("before", type=Path, help="folder that eval_au.py wrote")
    parser.add_argument("after", type=Path, help="another one")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
