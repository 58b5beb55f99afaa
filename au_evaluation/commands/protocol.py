"""`eval_au.py protocol`: score one checkpoint per tested part by a published protocol."""

import argparse
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext

from au_llava.action_units import get_format
from au_llava.au_datasets.folds import PROTOCOLS, Protocol, get_protocol, people_of
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.baselines import baseline_rows, baselines_table
from au_llava.au_evaluation.commands.common import (
    SCHEMA_VERSION,
    add_options,
    choose_calibration,
    engine_for,
    provenance,
    refuse_prior_without_calibration,
    refuse_without_effect,
    show,
    write_json,
)
from au_llava.au_evaluation.predictions import predict, report_unreadable, write_predictions
from au_llava.au_evaluation.protocols import (
    as_csv,
    as_latex,
    as_markdown,
    missing_names,
    protocol_scores,
    protocol_table,
    tested_records,
)
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable, only_run, write_text
from au_llava.au_runs.manifests import check_unseen, read_training_manifest
from au_llava.au_runs.processes import processes

DESCRIPTION = """\
Score by a published protocol: a checkpoint for each tested part, scored together, beside published results.

    python eval_au.py protocol bp4d-3fold --model P1=runs/p1 P2=runs/p2 P3=runs/p3 --data data/bp4d --out runs/bp4d

A run is named after the part that it tests: publications number the same parts differently.
Writes to --out: results.json (each fold, the mean of folds, pooled scores with intervals, baselines),
predictions.parquet, and the table beside published results as table.md, table.tex and table.csv.

It refuses to test on anyone the part's checkpoint was trained on.
`--protocol NAME` is an older spelling of `protocol NAME`.
"""
WITHOUT_EFFECT = ("--part", "--formats", "--groups", "--max-images", "--mirror", "--unlabelled", "--coded")


def make_parser() -> CommandParser:
    parser = CommandParser(DESCRIPTION, prog="eval_au.py protocol")
    parser.add_argument("protocol", choices=PROTOCOLS, metavar="PROTOCOL", help=f"one of {', '.join(PROTOCOLS)}")
    add_options(
        parser,
        *("--model", "--data", "--out", "--name", "--decoding", "--prior", "--uncalibrated", "--batch-size"),
        *("--engine", "--quantize"),
        model={"metavar": "PART=CHECKPOINT", "help": "a checkpoint folder or Hub id for each tested part"},
        without_effect=WITHOUT_EFFECT,
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    refuse_without_effect(arguments, WITHOUT_EFFECT, "eval_au.py protocol")
    refuse_prior_without_calibration(arguments)
    check_writable(arguments.out / "results.json")
    with only_run(arguments.out, "--out") if processes().is_main_process else nullcontext():
        evaluate(arguments)


def evaluate(arguments: argparse.Namespace) -> None:
    """Score and write the results."""
    protocol = get_protocol(arguments.protocol)
    models = dict(entry.partition("=")[::2] for entry in arguments.model)
    if set(models) != set(protocol.tested) or not all(models.values()):
        wanted = " ".join(f"{part}=CHECKPOINT" for part in protocol.tested)
        raise ValueError(f"{protocol.name} needs a checkpoint for each tested part: --model {wanted}")
    records = load_records(arguments.data, formats=[protocol.format])
    rows = tested_records(records, protocol)
    missing = missing_names(records, protocol)
    for part, names in missing.items():
        print(f"{part}: no record of {', '.join(names)}; the result is not the whole protocol's.", file=sys.stderr)
    people = {part: check_unseen(models[part], people_of(records.select(rows[part]))) for part in protocol.tested}
    predictions, origin = {}, {}
    for part in protocol.tested:
        engine = engine_for(arguments, models[part], [protocol.format], decoding=arguments.decoding)
        choose_calibration(engine, records, arguments)
        predictions[part] = predict(
            *(engine, records.select(rows[part]), arguments.decoding, arguments.batch_size),
            progress=True,
            keep=arguments.out / f"unfinished-{part}",
        )
        report_unreadable(predictions[part])
        origin[part] = provenance(arguments, engine, models[part], people[part])
    if not processes().is_main_process:
        return
    scores = protocol_scores(predictions, protocol)
    baselines = _baselines(predictions, protocol, models)
    tested = [{**row, "tested_part": part} for part, of_part in predictions.items() for row in of_part]
    write_predictions(arguments.out, tested)
    table = protocol_table(arguments.name, scores, protocol)
    metric = protocol.metrics[0]
    caption = f"{protocol.name}: {metric}{' in percent' if metric == 'f1' else ''}; parts: {protocol.source}"
    write_text(arguments.out / "table.md", f"{caption}\n\n{as_markdown(table)}")
    write_text(arguments.out / "table.tex", as_latex(table, caption))
    write_text(arguments.out / "table.csv", as_csv(table))
    results = {"schema_version": SCHEMA_VERSION, "protocol": protocol.name, "provenance": origin, "missing": missing}
    write_json(arguments.out / "results.json", {**results, **scores, "baselines": baselines})
    for part in protocol.tested:
        shutil.rmtree(arguments.out / f"unfinished-{part}")
    print(as_markdown(table[:3]))
    show(baselines_table({protocol.name: {**scores["mean_of_folds"], "baselines": baselines}}))
    print(f"Written: results.json, predictions.parquet, table.md, table.tex, table.csv in {arguments.out}")


def _baselines(predictions: Mapping[str, list[dict]], protocol: Protocol, models: Mapping[str, str]) -> dict[str, dict]:
    """Baseline -> its mean of folds, as `protocol_scores` has it, or {"left_out": reason}.

    The training labels of each part are those of its checkpoint; the train part of a folder is another split.
    """
    answers = {}
    for part, rows in predictions.items():
        statistics = (read_training_manifest(models[part]) or {}).get("labels", {}).get(protocol.format)
        for baseline, of_part in baseline_rows(rows, get_format(protocol.format), statistics).items():
            answers.setdefault(baseline, {})[part] = of_part
    scores = {}
    for baseline, of_parts in answers.items():
        reasons = [reason for reason in of_parts.values() if isinstance(reason, str)]
        scores[baseline] = {"left_out": reasons[0]} if reasons else protocol_scores(of_parts, protocol)["mean_of_folds"]
    return scores
