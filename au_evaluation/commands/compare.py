"""`eval_au.py compare`: test the difference between two evaluations of the same images."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet
from rich.markup import escape
from rich.table import Table

from au_llava.action_units import AUFormat, get_format
from au_llava.au_evaluation.commands.common import show, write_json
from au_llava.au_evaluation.intervals import caution, paired_difference
from au_llava.au_evaluation.report_data import COLUMNS
from au_llava.au_evaluation.rows import by_format, key_of
from au_llava.au_evaluation.scoring import score_arguments
from au_llava.au_evaluation.tables import console_table, interval, number
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable
from au_llava.au_runs.formats import know_formats
from au_llava.metrics_au import OPTIONAL

DESCRIPTION = """\
Test the difference between two evaluations of the same images: paired bootstrap over subjects, Holm's correction over
AUs.

    python eval_au.py compare runs/eval runs/eval-free --out runs/comparison.json

The terminal shows the mean over AUs and the AUs with p < 0.05; the JSON file holds every metric of every AU.
"""
COMPARED = ("f1", "roc_auc", "icc", "pcc", "mae")  # in the terminal


def make_parser() -> CommandParser:
    parser = CommandParser(DESCRIPTION, prog="eval_au.py compare")
    parser.add_argument("first", type=Path, help="folder that eval_au.py wrote")
    parser.add_argument("second", type=Path, help="another one, of the same records")
    parser.add_argument("--resamples", type=int, default=5000, help="resamples of the bootstrap (default: 5000)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.out:
        check_writable(arguments.out)
    first, second = (_read_evaluation(folder) for folder in (arguments.first, arguments.second))
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(
            f"{arguments.first} has formats {list(first)}, {arguments.second} {list(second)}: none in common."
        )
    comparison = {name: _compare(first[name], second[name], get_format(name), arguments) for name in shared}
    show(comparison_table(comparison, str(arguments.first), str(arguments.second)))
    if arguments.out:
        write_json(arguments.out, {"first": str(arguments.first), "second": str(arguments.second), **comparison})
        print(f"Written: {arguments.out}")


def _read_evaluation(folder: Path) -> dict[str, dict[tuple, dict]]:
    """Format -> key of a record -> its prediction, from predictions.parquet; results.json says what the formats are."""
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: make it with eval_au.py --out {folder}.")
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if lacking := COLUMNS - set(table.column_names):
        raise ValueError(f"{path} is not of eval_au.py: it lacks {', '.join(sorted(lacking))}.")
    if (results := folder / "results.json").is_file():
        try:
            know_formats(json.loads(results.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{results} is not of eval_au.py: {error}") from None
    rows = table.to_pylist()
    return {name: {key_of(row): row for row in of_format} for name, of_format in by_format(rows).items()}


def _compare(
    first: Mapping[tuple, dict], second: Mapping[tuple, dict], fmt: AUFormat, arguments: argparse.Namespace
) -> dict:
    """`paired_difference` of one format, with "n" shared images, their "subjects", and how many are "left_out"."""
    keys = sorted(first.keys() & second.keys())
    if not keys:
        raise ValueError(f"{arguments.first} and {arguments.second} have no image of {fmt.name} in common.")
    one, other = (score_arguments([rows[key] for key in keys], fmt)[0] for rows in (first, second))
    if not np.array_equal(one["references"], other["references"], equal_nan=True):
        raise ValueError(
            f"{arguments.first} and {arguments.second} were scored against different labels in {fmt.name}."
        )
    systems = [
        {"predictions": system["predictions"]} | {key: system[key] for key in OPTIONAL if system[key] is not None}
        for system in (one, other)
    ]
    if any("probabilities" not in system for system in systems):
        for system in systems:
            system.pop("probabilities", None)
    result = paired_difference(*systems, one["references"], one["subjects"], fmt, resamples=arguments.resamples)
    subjects = len(set(one["subjects"]))
    return {**result, "n": len(keys), "subjects": subjects, "left_out": len(first.keys() ^ second.keys())}


def comparison_table(comparison: Mapping[str, Mapping], first: str, second: str) -> Table:
    """Differences, first minus second: the mean over AUs, then the AUs where Holm's p is below 0.05."""
    fewest = min(result["subjects"] for result in comparison.values())
    caption = "95 % paired bootstrap over subjects; p of an AU corrected over the AUs (Holm); AUs with p < 0.05"
    caption += caution(fewest)
    header = ("format", "AU", "metric", "difference", "interval", "p")
    table = console_table(escape(f"{first} minus {second}"), header, "lllrrr", caption)

    def add(name: str, label: str, metric: str, result: Mapping, p: float) -> None:
        difference = number(result["difference"], sign="+")
        table.add_row(name, label, metric, difference, interval(result["interval"], sign="+"), number(p))

    for name, result in comparison.items():
        for metric in COMPARED:
            if metric in result["mean"]:
                add(name, f"mean, {result['n']} images", metric, result["mean"][metric], result["mean"][metric]["p"])
        for label, metrics in result["per_au"].items():
            for metric in COMPARED:
                if metric in metrics and metrics[metric]["p_holm"] < 0.05:
                    add(name, label, metric, metrics[metric], metrics[metric]["p_holm"])
        table.add_section()
    return table
