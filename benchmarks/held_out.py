"""How far a checkpoint carries: the same rendered people and faces, in usual looks and in looks it was never shown.

    python eval_au.py --data data/rendered-test --out runs/eval
    python eval_au.py --data data/rendered-held-out --out runs/eval-held-out
    python benchmarks/held_out.py runs/eval runs/eval-held-out --data data/rendered-held-out --out runs/held-out.json

The two folders were made by `prepare_data.py rendered` with the same seed, the second with --held-out-looks. Every face
is its own control, so the difference is that of the look alone. Prints and writes, for each family of looks and format,
both scores and the difference with its 95 % bootstrap interval over people.
"""

import argparse
import json
from pathlib import Path

import datasets
from rich.console import Console
from rich.table import Table

from au_llava.action_units import get_format
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.intervals import paired_difference
from au_llava.au_evaluation.predictions import KEYS
from au_llava.au_evaluation.scoring import jsonable, score_arguments
from au_llava.au_runs.files import check_writable
from au_llava.metrics_au import score

HEADLINE = {"bp4d": ("f1", "roc_auc"), "disfa": ("icc", "roc_auc"), "feafa": ("pcc", "roc_auc")}


def predictions_of(folder: Path) -> dict[tuple, dict]:
    """Key of a record -> its prediction. FileNotFoundError if the folder holds no evaluation."""
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: run eval_au.py with --out {folder} first")
    return {tuple(row[key] for key in KEYS): row for row in datasets.Dataset.from_parquet(str(path)).to_list()}


def compare(usual: dict, held_out: dict, family_of: dict) -> dict:
    """family -> format -> metric -> {"usual", "held_out", "difference", "interval", "p"} and "n".

    Args:
        usual, held_out: as `predictions_of` gives them. family_of: key of a record -> its family of looks.

    Raises:
        ValueError: the two evaluations are not of the same people and faces.
    """
    if usual.keys() != held_out.keys():
        raise ValueError("the two evaluations are of different records: prepare both with the same seed and numbers")
    found = {}
    for family in dict.fromkeys(family_of.values()):
        found[family] = {}
        for name, metrics in HEADLINE.items():
            keys = [key for key in sorted(usual) if key[-1] == name and family_of[key] == family]
            (first, fmt), (second, _) = (
                score_arguments([each[key] for key in keys], get_format(name)) for each in (usual, held_out)
            )
            shared = {key: first[key] for key in ("references", "subjects")}
            systems = [
                {key: each[key] for key in ("predictions", "probabilities", "decisions")} for each in (second, first)
            ]
            means = [score(references=shared["references"], fmt=fmt, **system)["mean"] for system in systems]
            differences = paired_difference(*systems, **shared, fmt=fmt)["mean"]
            found[family][name] = {"n": len(keys)} | {
                metric: {"held_out": means[0][metric], "usual": means[1][metric], **differences[metric]}
                for metric in metrics
            }
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("usual", type=Path, help="evaluation in usual looks")
    parser.add_argument("held_out", type=Path, help="evaluation in held-out looks")
    parser.add_argument("--data", required=True, help="the records of the second, which name the looks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    try:
        check_writable(arguments.out)
        columns = load_records(arguments.data, part="test").select_columns([*KEYS, "held_out"])[:]
        family_of = dict(zip(zip(*(columns[key] for key in KEYS), strict=True), columns["held_out"], strict=True))
        found = compare(predictions_of(arguments.usual), predictions_of(arguments.held_out), family_of)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"held_out.py: {error}") from None
    table = Table(title="The same faces in looks never shown in training", title_justify="left")
    for column in ("look", "format", "metric", "usual", "held out", "difference"):
        table.add_column(column, justify="left" if column in ("look", "format", "metric") else "right")
    for family, formats in found.items():
        for name, metrics in formats.items():
            for metric in HEADLINE[name]:
                each = metrics[metric]
                low, high = each["interval"]
                told = f"{each['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
                table.add_row(family, name, metric, f"{each['usual']:.3f}", f"{each['held_out']:.3f}", told)
    Console().print(table)
    arguments.out.write_text(json.dumps({"schema_version": 1, "families": jsonable(found)}, indent=1) + "\n")
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
