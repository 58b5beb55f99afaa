"""`eval_au.py matrix`: score several checkpoints on several datasets, on the AUs they share."""

import argparse
from collections.abc import Mapping

from au_llava.action_units import get_format
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.baselines import transfer_baselines
from au_llava.au_evaluation.commands.common import (
    SCHEMA_VERSION,
    add_options,
    engine_for,
    training_statistics,
    write_json,
)
from au_llava.au_evaluation.predictions import predict, report_unreadable, use_prior
from au_llava.au_evaluation.tables import markdown_table, number
from au_llava.au_evaluation.transfer import best_asked, transfer_scores
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable, write_text
from au_llava.au_runs.formats import know_formats
from au_llava.au_runs.manifests import check_unseen, read_training_manifest
from au_llava.au_runs.processes import processes

DESCRIPTION = """\
Cross-dataset matrix: score the presence of AUs for every checkpoint on every dataset, on the AUs they share.

    python eval_au.py matrix --model runs/bp4d runs/disfa --data data/bp4d data/disfa --out runs/matrix

Each checkpoint is asked in a format that it was trained on. Writes matrix.json and matrix.md to --out.
"""
NOTE = (
    "F1 of presence, mean over the shared AUs, 95 % interval over people; each format by its own threshold of presence "
    "(matrix.json names them)."
)


def make_parser() -> CommandParser:
    parser = CommandParser(DESCRIPTION, prog="eval_au.py matrix")
    add_options(
        parser,
        *("--model", "--data", "--out", "--part", "--decoding", "--batch-size", "--engine", "--quantize"),
        model={"required": True, "default": None, "help": "checkpoint folders or Hub ids"},
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out / "matrix.json")
    part = arguments.part or "test"
    cells = {name: _scores_of(name, part, arguments) for name in arguments.model}
    if not processes().is_main_process:
        return
    write_json(arguments.out / "matrix.json", {"schema_version": SCHEMA_VERSION, "part": part, "cells": cells})
    table = _table(cells)
    write_text(arguments.out / "matrix.md", f"{NOTE}\n\n{table}\n")
    print(table)
    print(f"\nWritten: {arguments.out / 'matrix.json'}, {arguments.out / 'matrix.md'}")


def _scores_of(name: str, part: str, arguments: argparse.Namespace) -> dict[str, dict]:
    """Scores of one checkpoint: "folder:format" -> `transfer_scores`, "trained_people" and "baselines"."""
    manifest = read_training_manifest(name) or {}
    know_formats(manifest)
    formats = manifest.get("formats")
    tests = []  # (folder, known format, asked format, records)
    for folder in arguments.data:
        records = load_records(folder, part=part)
        for known_name in sorted(set(records["format"][:])):
            rows = [row for row, format_name in enumerate(records["format"][:]) if format_name == known_name]
            known = get_format(known_name)
            asked = best_asked([get_format(trained) for trained in formats or [known_name]], known)
            tests.append((folder, known, asked, records.select(rows)))
    people = [check_unseen(name, people_of(tested)) for *_, tested in tests]
    engine = engine_for(arguments, name, [asked.name for _, _, asked, _ in tests], decoding=arguments.decoding)
    scores = {}
    for (folder, known, asked, tested), trained_people in zip(tests, people, strict=True):
        use_prior(engine, tested)
        predictions = predict(
            *(engine, tested, arguments.decoding, arguments.batch_size),
            progress=True,
            formats=(asked.name,),
        )
        report_unreadable(predictions)
        statistics = training_statistics(name, [folder])[0].get(asked.name)
        scores[f"{folder}:{known.name}"] = {
            **transfer_scores(predictions, asked, known),
            "trained_people": trained_people,
            "baselines": transfer_baselines(predictions, asked, known, statistics),
        }
    return scores


def _table(cells: Mapping[str, Mapping]) -> str:
    """A row per checkpoint and one per baseline of it, a column per dataset and format."""
    tests = list(dict.fromkeys(test for of_model in cells.values() for test in of_model))
    rows = []
    for name, of_model in cells.items():
        rows.append([name, *(_cell(of_model[test]) for test in tests)])
        for baseline in of_model[tests[0]]["baselines"]:
            beside = (_cell(of_model[test]["baselines"][baseline]) for test in tests)
            rows.append([f"beside {name}: {baseline}", *beside])
    return markdown_table(["trained", *tests], rows, "l" + "r" * len(tests))


def _cell(scores: Mapping) -> str:
    if "left_out" in scores:
        return scores["left_out"]
    return f"{number(scores['mean']['f1'], scores['mean_interval']['f1'])}, {len(scores['per_au'])} AUs"
