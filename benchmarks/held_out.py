"""How well a checkpoint generalizes: the same rendered people and faces, in usual looks and in looks not trained on.

    python eval_au.py --data data/rendered-test --out runs/eval
    python eval_au.py --data data/rendered-held-out --out runs/eval-held-out
    python benchmarks/held_out.py runs/eval runs/eval-held-out --data data/rendered-held-out --out runs/held-out.json

`prepare_data.py rendered` makes both folders with the same seed, the second with --held-out-looks. Every face is its
own control, so only the look differs. Prints and writes, for each family of looks and format, both scores and their
difference with its 95 % bootstrap interval over people.
"""

import argparse
import sys
from pathlib import Path

import datasets
from page import make_table, runner, told, write_results
from rich.console import Console
from rich.table import Table

from au_llava.action_units import get_format
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.intervals import paired_difference
from au_llava.au_evaluation.rows import KEYS
from au_llava.au_evaluation.scoring import score_arguments
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable
from au_llava.metrics_au import score

HEADLINE = {"bp4d": ("f1", "roc_auc"), "disfa": ("icc", "roc_auc"), "feafa": ("pcc", "roc_auc")}


def predictions_of(folder: Path) -> dict[tuple, dict]:
    """Key of a record -> its prediction.

    Raises:
        FileNotFoundError: the folder holds no evaluation.
    """
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: run eval_au.py with --out {folder} first")
    return {tuple(row[key] for key in KEYS): row for row in datasets.Dataset.from_parquet(str(path)).to_list()}


def compare(usual: dict, held_out: dict, family_of: dict) -> dict:
    """family -> format -> metric -> {"usual", "held_out", "difference", "interval", "p"} and "n".

    Args:
        usual, held_out: results of `predictions_of`.
        family_of: key of a record -> its family of looks.

    Raises:
        ValueError: the two evaluations are of different people or faces.
    """
    if usual.keys() != held_out.keys():
        raise ValueError("the two evaluations are of different records: prepare both with the same seed and numbers")
    results = {}
    for family in dict.fromkeys(family_of.values()):
        results[family] = {}
        for name, metrics in HEADLINE.items():
            keys = [key for key in sorted(usual) if key[-1] == name and family_of[key] == family]
            results[family][name] = {"n": len(keys)} | _compare_rows(
                [usual[key] for key in keys], [held_out[key] for key in keys], name, metrics
            )
    return results


def _compare_rows(usual: list[dict], held_out: list[dict], name: str, metrics: tuple[str, ...]) -> dict:
    """metric -> {"usual", "held_out", "difference", "interval", "p"}, from rows of one format in the same order."""
    (first, fmt), (second, _) = (score_arguments(rows, get_format(name)) for rows in (usual, held_out))
    shared = {key: first[key] for key in ("references", "subjects")}
    systems = [
        {key: arguments[key] for key in ("predictions", "probabilities", "decisions")} for arguments in (second, first)
    ]
    means = [score(references=shared["references"], fmt=fmt, **system)["mean"] for system in systems]
    differences = paired_difference(*systems, **shared, fmt=fmt)["mean"]
    return {
        metric: {"held_out": means[0][metric], "usual": means[1][metric], **differences[metric]} for metric in metrics
    }


def table_of(results: dict) -> Table:
    table = make_table(
        *("look", "format", "metric", "usual", "held out", "difference"),
        text=["look", "format", "metric"],
        title="The same faces in looks never shown in training",
    )
    for family, formats in results.items():
        for name, metrics in formats.items():
            for metric in HEADLINE[name]:
                scores = metrics[metric]
                difference = told(scores, "difference", sign="+")
                usual, held_out = f"{scores['usual']:.3f}", f"{scores['held_out']:.3f}"
                table.add_row(family, name, metric, usual, held_out, difference)
    return table


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("usual", type=Path, help="evaluation in usual looks")
    parser.add_argument("held_out", type=Path, help="evaluation in held-out looks")
    parser.add_argument("--data", required=True, help="the records of the second, which name the looks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    columns = load_records(arguments.data, part="test").select_columns([*KEYS, "held_out"])[:]
    family_of = dict(zip(zip(*(columns[key] for key in KEYS), strict=True), columns["held_out"], strict=True))
    results = compare(predictions_of(arguments.usual), predictions_of(arguments.held_out), family_of)
    write_results(arguments.out, {"families": results})
    Console().print(table_of(results))


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
