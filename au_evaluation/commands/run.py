"""`eval_au.py run`: score a checkpoint on the test part of prepared records."""

import argparse
import shutil
from contextlib import nullcontext

import datasets
from rich.markup import escape

from au_llava.action_units import get_format, own_formats
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_evaluation.abstention import apply_abstention
from au_llava.au_evaluation.baselines import baselines_table, score_baselines
from au_llava.au_evaluation.commands.common import (
    SCHEMA_VERSION,
    add_options,
    choose_calibration,
    engine_for,
    one_model,
    provenance,
    refuse_prior_without_calibration,
    refuse_without_effect,
    show,
    training_statistics,
    write_json,
)
from au_llava.au_evaluation.group_audit import group_audit
from au_llava.au_evaluation.parse_audit import parse_audit
from au_llava.au_evaluation.predictions import predict, report_unreadable, write_predictions
from au_llava.au_evaluation.rows import by_format
from au_llava.au_evaluation.scoring import contradiction_counts, score_predictions, scores_table
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable, only_run
from au_llava.au_runs.manifests import LEARNED_FROM, ROLES, check_unseen
from au_llava.au_runs.processes import processes
from au_llava.calibration_au_llava import entries_for

DESCRIPTION = """\
Read every face of prepared records and score what was read.

    python eval_au.py run --model . --data data/rendered --part test --out runs/eval
    accelerate launch eval_au.py run --data data/rendered --formats bp4d disfa --decoding free --out runs/eval-free
    python eval_au.py run --data data/rendered --groups skin_tone gender age yaw --out runs/eval

Writes to --out:
- results.json: {"schema_version", "provenance" (model, data, decoder, versions, commit), "own_formats", "formats":
  {"bp4d": {"n", "unparsed", "mean": {"f1": ...}, "mean_interval": {"f1": [low, high]}, "per_au": {"AU12": {"f1": ...,
  "support": ..., "interval": {"f1": [low, high]}}}, "baselines": {"all-zero": {"mean", "per_au", ...}, ...}, and where
  they apply "parse_audit", "abstention", "groups"}, ...},
  "contradictions": {"images", "asked_together", "per_pair"}, "calibration": thresholds and what they were chosen on};
  intervals are 95 % bootstrap intervals over subjects;
- predictions.parquet: one row per record with what was read (values, expected, probability, present, text) beside the
  labels.
While it runs it keeps finished batches in `unfinished/`: repeat the command after a kill, and it goes on from there.

It refuses to test on anyone the checkpoint was trained on, as its training_manifest.json says, and with --part
validation on anyone it learned from.
`python eval_au.py report` makes a page of the results.
"""
NOT_SEEN = {"test": ROLES, "validation": LEARNED_FROM}  # part -> the roles in which nobody of it may have been seen
WITHOUT_EFFECT = {
    "--name": "eval_au.py protocol",
    "--mirror": "eval_au.py calibrate",
    "--unlabelled": "eval_au.py calibrate",
    "--coded": "eval_au.py calibrate",
}


def make_parser() -> CommandParser:
    parser = CommandParser(DESCRIPTION, prog="eval_au.py run")
    add_options(
        parser,
        *("--model", "--data", "--out", "--part", "--formats", "--groups", "--max-images", "--decoding"),
        *("--prior", "--uncalibrated", "--batch-size", "--engine", "--quantize"),
        without_effect=tuple(WITHOUT_EFFECT),
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    refuse_without_effect(arguments, tuple(WITHOUT_EFFECT), needed=WITHOUT_EFFECT)
    refuse_prior_without_calibration(arguments)
    check_writable(arguments.out / "results.json")
    with only_run(arguments.out, "--out") if processes().is_main_process else nullcontext():
        evaluate(arguments)


def evaluate(arguments: argparse.Namespace) -> None:
    """Score and write the results."""
    part = arguments.part or "test"
    name = one_model(arguments, "to score several, call `matrix` or `protocol`.")
    records = _records(arguments, part)
    people = check_unseen(name, people_of(records), NOT_SEEN[part]) if part in NOT_SEEN else f"not checked: {part} part"
    engine = engine_for(arguments, name, records["format"][:], decoding=arguments.decoding)
    choose_calibration(engine, records, arguments)
    unfinished, timing = arguments.out / "unfinished", {}
    predictions = predict(
        *(engine, records, arguments.decoding, arguments.batch_size),
        progress=True,
        keep=unfinished,
        timing=timing,
    )
    report_unreadable(predictions)
    if not processes().is_main_process:
        return
    scores = score_predictions(predictions)
    statistics, source = training_statistics(name, arguments.data)
    baselines = score_baselines(predictions, statistics)
    for format_name, rows in by_format(predictions).items():
        scores[format_name]["baselines"] = baselines[format_name]
        scores[format_name] |= _audits(rows, records, engine.calibration, arguments)
    origin = provenance(arguments, engine, name, people, part)
    results = {
        "schema_version": SCHEMA_VERSION,
        "provenance": origin | {"training_labels": source, "timing": timing},
        "own_formats": [fmt.to_dict() for fmt in own_formats() if fmt.name in scores],
        "formats": scores,
        "contradictions": contradiction_counts(predictions),
        "calibration": engine.calibration if arguments.decoding == "slots" else None,
    }
    write_predictions(arguments.out, predictions)
    write_json(arguments.out / "results.json", results)
    shutil.rmtree(unfinished)
    title = escape(f"{name} on {' '.join(arguments.data)}, {part} part")
    show(scores_table(scores, title), baselines_table(scores))
    print(f"Written: {arguments.out / 'results.json'} and {arguments.out / 'predictions.parquet'}")
    print(f"To look at them: python eval_au.py report {arguments.out}")


def _records(arguments: argparse.Namespace, part: str) -> datasets.Dataset:
    records = load_records(arguments.data, part=part, formats=arguments.formats)
    if arguments.max_images is not None:
        images = group_by_image(records)[: arguments.max_images]
        records = records.select(sorted(row for image in images for row in image.values()))
    absent = sorted(set(arguments.groups) - set(records.column_names))
    if absent:
        raise ValueError(
            f"no column {', '.join(absent)} to group by; the records have {', '.join(records.column_names)}."
        )
    return records


def _audits(rows: list[dict], records: datasets.Dataset, calibration: dict | None, arguments) -> dict:
    """The audits of one format that apply: "parse_audit", "abstention", "groups"."""
    fmt, audits = get_format(rows[0]["format"]), {}
    entries = entries_for(calibration, fmt)
    if arguments.decoding == "free":
        audits["parse_audit"] = parse_audit(rows, fmt)
    if arguments.decoding == "slots" and entries:
        thresholds = {label: entry.get("reject_below") for label, entry in entries.items()}
        audits["abstention"] = apply_abstention(rows, fmt, thresholds)
    if arguments.groups:
        columns = records.select_columns(arguments.groups)[[row["row"] for row in rows]]
        audits["groups"] = group_audit(rows, fmt, columns)
    return audits
