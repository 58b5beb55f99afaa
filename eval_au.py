"""Evaluate AU-LLaVA checkpoints on prepared records.

    python eval_au.py --model . --data data/rendered --part test --out runs/eval
    accelerate launch eval_au.py --data data/rendered --formats bp4d disfa --decoding free --out runs/eval-free
    python eval_au.py --data data/rendered --groups skin_tone gender age yaw --out runs/eval     # bias audit
    python eval_au.py --model runs/mine --calibrate data/rendered --out runs/calibration
    python eval_au.py --model runs/mine --calibrate data/rendered --unlabelled data/photographs --out runs/calibration
    python eval_au.py --protocol bp4d-3fold --model P1=runs/p1 P2=runs/p2 P3=runs/p3 --data data/bp4d --out runs/bp4d
    python eval_au.py compare runs/eval runs/eval-free
    python eval_au.py matrix --model runs/bp4d runs/disfa --data data/bp4d data/disfa --out runs/matrix
    python eval_au.py report runs/eval

Writes to --out:
- results.json: {"schema_version", "provenance" (model, data, decoder, versions, commit), "formats": {"bp4d": {"n",
  "unparsed", "mean": {"f1": ...}, "mean_interval": {"f1": [low, high]}, "per_au": {"AU12": {"f1": ..., "support":
  ..., "interval": {"f1": [low, high]}}}, "baselines": {"all-zero": {"mean", "per_au", ...}, ...}, and where they apply
  "parse_audit", "abstention", "groups"}, ...},
  "contradictions": {"images", "asked_together", "per_pair"}, "calibration": thresholds and what they were chosen on};
  intervals are 95 % bootstrap intervals over subjects;
- predictions.parquet: one row per record: what was read (values, expected, probability, present, text) beside the
  labels; while the evaluation runs, `unfinished/`: repeat the command after a kill, and it goes on there.
`report` makes report.html and report.md of them, to look at.

How each number is scored is said in au_evaluation/scoring.py. A checkpoint is not tested on people it has met: its
training_manifest.json names them.

--calibrate fits temperatures, isotonic curves and thresholds on the validation part of its folders and stores them in
the config.json of --model, a folder, where `recognize` applies them from then on. It writes calibration.json (per AU:
method, threshold, ECE, log loss and Brier score before and after, cross-validated) and reliability.png to --out. With
--mirror it is fitted to, and `recognize` gives, the mean of what is read off an image and off its mirror image. With
--unlabelled it also estimates how frequent AUs are among the faces of these folders' train part, whose labels it does
not look at; `recognize` then gives probabilities as of such faces, and rendered people are still scored as rendered
people (--prior says otherwise).
--protocol takes a checkpoint for each tested part and writes its table, beside published results, as table.md, .tex and
.csv. `compare` tests the difference of two evaluations of the same images (paired bootstrap over subjects, Holm's
correction over AUs). `matrix` scores presence on the AUs that a checkpoint's formats share with each dataset's.
"""

import argparse
import importlib.metadata
import json
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import get_format
from au_llava.au_datasets.balance import label_statistics
from au_llava.au_datasets.folds import PROTOCOLS, Protocol, get_protocol
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_evaluation.audits import apply_abstention, group_audit, parse_audit
from au_llava.au_evaluation.baselines import baseline_rows, baselines_table, score_baselines, transfer_baselines
from au_llava.au_evaluation.calibration import (
    calibrate_checkpoint,
    calibration_report,
    calibration_table,
    draw_reliability,
    unlabelled_records,
)
from au_llava.au_evaluation.intervals import paired_difference
from au_llava.au_evaluation.predictions import KEYS, predict, use_prior
from au_llava.au_evaluation.priors import priors_table
from au_llava.au_evaluation.protocols import (
    as_csv,
    as_latex,
    as_markdown,
    missing_names,
    protocol_scores,
    protocol_table,
    tested_records,
)
from au_llava.au_evaluation.report import write_report
from au_llava.au_evaluation.scoring import (
    by_format,
    contradiction_counts,
    jsonable,
    score_arguments,
    score_predictions,
    scores_table,
)
from au_llava.au_evaluation.transfer import best_asked, transfer_scores
from au_llava.au_runs.checkpoints import check_base
from au_llava.au_runs.commands import print_anything, sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.manifests import (
    check_unseen,
    people_of,
    read_training_manifest,
    training_manifest,
    write_training_manifest,
)
from au_llava.au_runs.provenance import code_commit, content_hashes
from au_llava.calibration_au_llava import PRIORS, entries_for
from au_llava.decoding_au_llava import DECODERS
from au_llava.quantization_au_llava import QUANTISATIONS, loading_options

SCHEMA_VERSION = 2
COMPARED = ("f1", "roc_auc", "icc", "pcc", "mae")


def load(name: str, quantise: str | None):
    """Model, on this process's device, and processor of a checkpoint. ValueError for adapters on another base."""
    check_base(name)
    logging.disable_progress_bar()  # of loading weights
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, **loading_options(quantise))
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    return model.to(PartialState().device).eval(), processor


def choose_calibration(model, records, arguments: argparse.Namespace) -> None:
    """Make `model` calibrate its readings of `records` as --uncalibrated and --prior say."""
    if arguments.uncalibrated:
        model.config.calibration = None
    else:
        use_prior(model, records, arguments.prior)


def provenance(arguments: argparse.Namespace, model, name: str, people: str) -> dict:
    """What a reader needs to run the evaluation again."""
    packages = ("au-llava", "torch", "transformers", "datasets", "numpy", "scikit-learn")
    return {
        "model": name,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantised": arguments.quantise,
        "device": str(model.device),
        "trained_people": people,
        "data": content_hashes(arguments.data),
        "part": arguments.part,
        "decoding": arguments.decoding,
        "mirror_images": model.config.mirror_images,
        "prior": (model.config.calibration or {}).get("prior"),
        "batch_size": arguments.batch_size,
        "commit": code_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def training_statistics(model: str, data: list[str]) -> tuple[dict, str]:
    """How the labels are distributed that a checkpoint was trained on, as its manifest or else the train part of the
    evaluated folders says, and which of the two; {} and "unknown" where neither does."""
    manifest = read_training_manifest(model) or {}
    if manifest.get("labels"):  # older checkpoints do not have it
        return manifest["labels"], "training manifest"
    try:
        records = load_records(data, part="train")
    except ValueError:  # no such part
        return {}, "unknown"
    return label_statistics(records["format"][:], records["values"][:]), "train part of the evaluated folders"


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(jsonable(content), indent=1) + "\n")


def main_score(arguments: argparse.Namespace):
    arguments.part = arguments.part or "test"
    if len(arguments.model) != 1:
        raise ValueError(f"{len(arguments.model)} models were given: to score several, call `matrix` or --protocol.")
    name = arguments.model[0]
    records = load_records(arguments.data, part=arguments.part, formats=arguments.formats)
    if arguments.max_images is not None:
        groups = group_by_image(records)[: arguments.max_images]
        records = records.select(sorted(row for group in groups for row in group.values()))
    absent = sorted(set(arguments.groups) - set(records.column_names))
    if absent:
        raise ValueError(
            f"no column {', '.join(absent)} to group by; the records have {', '.join(records.column_names)}."
        )
    people = check_unseen(name, people_of(records)) if arguments.part == "test" else "not checked: not the test part"
    model, processor = load(name, arguments.quantise)
    choose_calibration(model, records, arguments)
    timing = {}
    predictions = predict(
        model,
        processor,
        records,
        arguments.decoding,
        arguments.batch_size,
        progress=True,
        keep=arguments.out / "unfinished",
        timing=timing,
    )
    if not PartialState().is_main_process:
        return
    scores = score_predictions(predictions)
    statistics, source = training_statistics(name, arguments.data)
    baselines = score_baselines(predictions, statistics)
    for fmt_name, rows in by_format(predictions).items():
        fmt = get_format(fmt_name)
        scores[fmt_name]["baselines"] = baselines[fmt_name]
        entries = entries_for(model.config.calibration, fmt)
        if arguments.decoding == "free":
            scores[fmt_name]["parse_audit"] = parse_audit(rows, fmt)
        if arguments.decoding == "slots" and entries:
            thresholds = {label: entry.get("reject_below") for label, entry in entries.items()}
            scores[fmt_name]["abstention"] = apply_abstention(rows, fmt, thresholds)
        if arguments.groups:
            columns = records.select_columns(arguments.groups)[[row["row"] for row in rows]]
            scores[fmt_name]["groups"] = group_audit(rows, fmt, columns)
    results = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance(arguments, model, name, people) | {"training_labels": source, "timing": timing},
        "formats": scores,
        "contradictions": contradiction_counts(predictions),
        "calibration": model.config.calibration if arguments.decoding == "slots" else None,
    }
    datasets.Dataset.from_list(predictions).to_parquet(arguments.out / "predictions.parquet")
    write_json(arguments.out / "results.json", results)
    shutil.rmtree(arguments.out / "unfinished")
    Console().print(scores_table(scores, escape(f"{name} on {' '.join(arguments.data)}, {arguments.part} part")))
    Console().print(baselines_table(scores))
    print(f"Written: {arguments.out / 'results.json'} and {arguments.out / 'predictions.parquet'}")
    print(f"To look at them: python eval_au.py report {arguments.out}")


def main_calibrate(arguments: argparse.Namespace):
    if len(arguments.model) != 1:
        raise ValueError(f"{len(arguments.model)} models were given: --calibrate takes one.")
    name, part = arguments.model[0], arguments.part or "validation"
    config_file = Path(name) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"--calibrate stores its result in config.json: {name} is no folder that holds one.")
    people = people_of(load_records(arguments.calibrate, part=part))
    # Of people it learned from, a model is surer than it should be.
    check_unseen(name, people, roles=("train", "unlabelled"))
    if arguments.unlabelled:
        people = sorted({*people, *people_of(unlabelled_records(arguments.unlabelled))})
    model, processor = load(name, arguments.quantise)
    if arguments.mirror is not None:
        model.config.mirror_images = arguments.mirror
    calibration, fits, references, priors = calibrate_checkpoint(
        model, processor, arguments.calibrate, part, arguments.batch_size, True, arguments.unlabelled
    )
    if not PartialState().is_main_process:
        return
    report = calibration_report(fits, references)
    written = {"fitted_on": calibration["fitted_on"], "formats": report, **({"priors": priors} if priors else {})}
    write_json(arguments.out / "calibration.json", written)
    thresholds = {fmt_name: fit["entry"]["presence_threshold"] for fmt_name, fit in fits.items()}
    draw_reliability(fits, references, thresholds).savefig(arguments.out / "reliability.png", dpi=110)
    manifest = read_training_manifest(name) or training_manifest([], [], [], [], {})
    manifest["people"]["calibration"] = people
    write_training_manifest(name, manifest)
    config = json.loads(config_file.read_text())
    stored = {"calibration": calibration, "mirror_images": model.config.mirror_images}
    unfinished = config_file.with_name("config.json.new")
    unfinished.write_text(json.dumps(config | stored, indent=2, sort_keys=True) + "\n")
    unfinished.replace(config_file)
    Console().print(calibration_table(report, escape(f"{name}, {part} part of {' '.join(arguments.calibrate)}")))
    if priors:
        Console().print(priors_table(priors, escape(f"train part of {' '.join(arguments.unlabelled)}")))
    print(f"Stored in {config_file}; report: {arguments.out / 'calibration.json'}, {arguments.out / 'reliability.png'}")


def main_protocol(arguments: argparse.Namespace):
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
        model, processor = load(models[part], arguments.quantise)
        choose_calibration(model, records, arguments)
        predictions[part] = predict(
            model,
            processor,
            records.select(rows[part]),
            arguments.decoding,
            arguments.batch_size,
            progress=True,
            keep=arguments.out / f"unfinished-{part}",
        )
        origin[part] = provenance(arguments, model, models[part], people[part])
    if not PartialState().is_main_process:
        return
    scores = protocol_scores(predictions, protocol)
    baselines = protocol_baselines(predictions, protocol, models)
    results = {"schema_version": SCHEMA_VERSION, "protocol": protocol.name, "provenance": origin, "missing": missing}
    write_json(arguments.out / "results.json", {**results, **scores, "baselines": baselines})
    tested = [{**row, "tested_part": part} for part, of_part in predictions.items() for row in of_part]
    datasets.Dataset.from_list(tested).to_parquet(arguments.out / "predictions.parquet")
    for part in protocol.tested:
        shutil.rmtree(arguments.out / f"unfinished-{part}")
    table = protocol_table(arguments.name, scores, protocol)
    metric = protocol.metrics[0]
    caption = f"{protocol.name}: {metric}{' in percent' if metric == 'f1' else ''}; parts: {protocol.source}"
    (arguments.out / "table.md").write_text(f"{caption}\n\n{as_markdown(table)}", encoding="utf-8")
    (arguments.out / "table.tex").write_text(as_latex(table, caption), encoding="utf-8")
    (arguments.out / "table.csv").write_text(as_csv(table), encoding="utf-8")
    print(as_markdown(table[:3]))
    compared = {protocol.name: {**scores["mean_of_folds"], "baselines": baselines}}
    Console().print(baselines_table(compared))
    print(f"Written: results.json, predictions.parquet, table.md, table.tex, table.csv in {arguments.out}")


def protocol_baselines(predictions: dict, protocol: Protocol, models: dict) -> dict:
    """Baseline -> its mean of folds, as `protocol_scores` has it, or {"left_out": reason}. The labels of each part's
    training are those of its checkpoint; the train part of a folder is another division."""
    answered = {}
    for part, rows in predictions.items():
        statistics = (read_training_manifest(models[part]) or {}).get("labels", {}).get(protocol.format)
        for baseline, answers in baseline_rows(rows, get_format(protocol.format), statistics).items():
            answered.setdefault(baseline, {})[part] = answers
    left_out = {baseline: [each for each in of.values() if isinstance(each, str)] for baseline, of in answered.items()}
    return {
        baseline: {"left_out": left_out[baseline][0]}
        if left_out[baseline]
        else protocol_scores(of, protocol)["mean_of_folds"]
        for baseline, of in answered.items()
    }


def read_evaluation(folder: Path) -> dict[str, dict[tuple, dict]]:
    """Format -> key of a record -> its prediction, from predictions.parquet."""
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: make it with eval_au.py --out {folder}.")
    rows = datasets.Dataset.from_parquet(str(path)).to_list()
    return {name: {tuple(row[k] for k in KEYS): row for row in of} for name, of in by_format(rows).items()}


def main_compare(arguments: argparse.Namespace):
    if arguments.out:
        check_writable(arguments.out)
    first, second = read_evaluation(arguments.first), read_evaluation(arguments.second)
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(
            f"{arguments.first} has formats {list(first)}, {arguments.second} {list(second)}: none in common."
        )
    comparison = {}
    for name in shared:
        keys = sorted(first[name].keys() & second[name].keys())
        left_out = len(first[name].keys() ^ second[name].keys())
        if not keys:
            raise ValueError(f"{arguments.first} and {arguments.second} have no image of {name} in common.")
        systems, fmt = [], get_format(name)
        for evaluation in (first, second):
            system, _ = score_arguments([evaluation[name][key] for key in keys], fmt)
            systems.append(system)
        one, other = systems
        if not np.array_equal(one["references"], other["references"], equal_nan=True):
            raise ValueError(
                f"{arguments.first} and {arguments.second} were scored against different labels in {name}."
            )
        both = one["probabilities"] is not None and other["probabilities"] is not None
        kept = ("predictions", "decisions", "medians", *(["probabilities"] if both else []))
        a, b = ({key: system[key] for key in kept if system[key] is not None} for system in systems)
        result = paired_difference(a, b, one["references"], one["subjects"], fmt, resamples=arguments.resamples)
        comparison[name] = {**result, "n": len(keys), "left_out": left_out}
    Console().print(comparison_table(comparison, str(arguments.first), str(arguments.second)))
    if arguments.out:
        write_json(arguments.out, {"first": str(arguments.first), "second": str(arguments.second), **comparison})
        print(f"Written: {arguments.out}")


def comparison_table(comparison: dict, first: str, second: str) -> Table:
    """Differences, first minus second: the mean over AUs, then the AUs where Holm's p is below 0.05."""
    caption = "95 % paired bootstrap over subjects; p of an AU corrected over the AUs (Holm); AUs with p < 0.05"
    table = Table(title=escape(f"{first} minus {second}"), title_justify="left", caption=caption)
    for column in ("format", "AU", "metric", "difference", "interval", "p"):
        table.add_column(column, justify="left" if column in ("format", "AU", "metric") else "right")

    def add(name, label, metric, each, p):
        low, high = each["interval"]
        table.add_row(name, label, metric, f"{each['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.3f}")

    for name, result in comparison.items():
        for metric in COMPARED:
            if metric in result["mean"]:
                add(name, f"mean of {result['n']}", metric, result["mean"][metric], result["mean"][metric]["p"])
        for label, metrics in result["per_au"].items():
            for metric in COMPARED:
                if metric in metrics and metrics[metric]["p_holm"] < 0.05:
                    add(name, label, metric, metrics[metric], metrics[metric]["p_holm"])
        table.add_section()
    return table


def main_matrix(arguments: argparse.Namespace):
    check_writable(arguments.out / "matrix.json")
    cells, arguments.part = {}, arguments.part or "test"
    for name in arguments.model:
        manifest = read_training_manifest(name)
        model = None
        for path in arguments.data:
            records = load_records(path, part=arguments.part)
            for known_name in sorted(set(records["format"][:])):
                kept = [row for row, each in enumerate(records["format"][:]) if each == known_name]
                tested = records.select(kept)
                known = get_format(known_name)
                trained = [get_format(each) for each in (manifest or {}).get("formats") or [known_name]]
                people = check_unseen(name, people_of(tested))
                asked = best_asked(trained, known)
                if model is None:
                    model, processor = load(name, arguments.quantise)
                use_prior(model, tested)
                predictions = predict(
                    model,
                    processor,
                    tested,
                    arguments.decoding,
                    arguments.batch_size,
                    progress=True,
                    formats=(asked.name,),
                )
                cell = {**transfer_scores(predictions, asked, known), "trained_people": people}
                statistics = training_statistics(name, [path])[0].get(asked.name)
                cell["baselines"] = transfer_baselines(predictions, asked, known, statistics)
                cells.setdefault(name, {})[f"{path}:{known_name}"] = cell
    if not PartialState().is_main_process:
        return
    write_json(
        arguments.out / "matrix.json", {"schema_version": SCHEMA_VERSION, "part": arguments.part, "cells": cells}
    )
    tests = list(dict.fromkeys(test for of_model in cells.values() for test in of_model))
    rows = [["trained", *tests, ""]]
    for name, of_model in cells.items():
        rows.append([name, *(_matrix_cell(of_model[test]) for test in tests), ""])
        for baseline in of_model[tests[0]]["baselines"]:
            beside = (_matrix_cell(of_model[test]["baselines"][baseline]) for test in tests)
            rows.append([f"beside {name}: {baseline}", *beside, ""])
    text = as_markdown([row[:-1] for row in rows])
    (arguments.out / "matrix.md").write_text(
        "F1 of presence, mean over the shared AUs, 95 % interval over people; each format by its own threshold of "
        f"presence (matrix.json names them).\n\n{text}",
        encoding="utf-8",
    )
    print(text)
    print(f"Written: {arguments.out / 'matrix.json'}, {arguments.out / 'matrix.md'}")


def _matrix_cell(cell: dict) -> str:
    if "left_out" in cell:
        return cell["left_out"]
    low, high = cell["mean_interval"]["f1"]
    return f"{cell['mean']['f1']:.3f} [{low:.3f}, {high:.3f}], {len(cell['per_au'])} AUs"


def main_report(arguments: argparse.Namespace):
    results = arguments.folder / "results.json"
    origin = json.loads(results.read_text())["provenance"] if results.is_file() else {}
    image_of = None
    if arguments.data or origin.get("data"):
        try:
            if not arguments.data and content_hashes(origin["data"]) != origin["data"]:
                raise FileNotFoundError(f"{', '.join(origin['data'])} is not here as it was evaluated: say --data")
            records = load_records(arguments.data or list(origin["data"]), part=origin["part"])
        except FileNotFoundError as error:
            print(f"Without thumbnails: {error}", file=sys.stderr)
        else:
            rows = {tuple(row[k] for k in KEYS): i for i, row in enumerate(records.select_columns(list(KEYS)))}
            image_of = lambda row: records[rows[tuple(row[k] for k in KEYS)]]["image"]
    print(f"Written: {write_report(arguments.folder, image_of)}")


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def _reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", help="value of the records' `part` column (default: test; to calibrate, validation)")
    parser.add_argument("--decoding", choices=DECODERS, default="slots", help="how answers are read (default: slots)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument(
        "--quantise", choices=QUANTISATIONS, help="load the language model in so many bits, by bitsandbytes"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = _parser(__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        default=[str(HOME)],
        help="checkpoint folder or Hub id (default: this repository); with --protocol PART=CHECKPOINT for each part",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", metavar="DIR", help="score on these folders made by prepare_data.py")
    source.add_argument("--calibrate", nargs="+", metavar="DIR", help="instead, calibrate on these folders")
    parser.add_argument(
        "--unlabelled", nargs="+", default=[], metavar="DIR", help="with --calibrate: folders to estimate priors on"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, help="score by a published protocol")
    parser.add_argument("--name", default="AU-LLaVA", help="of the method in the protocol's table")
    parser.add_argument("--formats", nargs="+", help="formats to score (default: all in the data)")
    parser.add_argument(
        "--groups", nargs="+", default=[], metavar="COLUMN", help="audit score gaps between groups of these columns"
    )
    parser.add_argument(
        "--prior",
        choices=PRIORS,
        help="faces among which AUs are as frequent as here (default: rendered for rendered faces, else photographs)",
    )
    parser.add_argument("--uncalibrated", action="store_true", help="leave the checkpoint's calibration out")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="with --calibrate: from now on read mirror images too, or no longer (default: as the checkpoint says)",
    )
    parser.add_argument("--max_images", type=int, help="score at most this many images")
    _reading_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    return parser


def make_compare_parser() -> argparse.ArgumentParser:
    parser = _parser("Compare two evaluations of the same images: paired bootstrap over subjects, Holm over AUs.")
    parser.add_argument("first", type=Path, help="folder that eval_au.py wrote")
    parser.add_argument("second", type=Path, help="another, of the same records")
    parser.add_argument("--resamples", type=int, default=5000, help="of the bootstrap (default: 5000)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def make_matrix_parser() -> argparse.ArgumentParser:
    parser = _parser("Cross-dataset matrix: every checkpoint on every dataset, on the AUs they share.")
    parser.add_argument("--model", nargs="+", required=True, help="checkpoint folders or Hub ids")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders made by prepare_data.py")
    _reading_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for matrix.json and matrix.md")
    return parser


def make_report_parser() -> argparse.ArgumentParser:
    parser = _parser("Write report.html and report.md of an evaluation, to look at.")
    parser.add_argument("folder", type=Path, help="folder that eval_au.py wrote")
    parser.add_argument("--data", nargs="+", metavar="DIR", help="its records, for thumbnails (default: as evaluated)")
    return parser


def main(words: list[str] | None = None):
    """Run the command line `words` (without the program's name)."""
    words = sys.argv[1:] if words is None else words
    commands = {
        "compare": (make_compare_parser, main_compare),
        "matrix": (make_matrix_parser, main_matrix),
        "report": (make_report_parser, main_report),
    }
    if words and words[0] in commands:
        parser, run = commands[words[0]]
        return run(parser().parse_args(words[1:]))
    arguments = make_parser().parse_args(words)
    mode = "--calibrate" if arguments.calibrate else "--protocol" if arguments.protocol else None
    without_effect = {
        "--calibrate": ("protocol", "formats", "groups", "prior", "uncalibrated", "max_images", "name", "decoding"),
        "--protocol": ("part", "formats", "groups", "max_images", "mirror", "unlabelled"),
        None: ("name", "mirror", "unlabelled"),
    }[mode]
    default = make_parser().get_default
    given = [f"--{option}" for option in without_effect if getattr(arguments, option) != default(option)]
    if given and mode:
        raise ValueError(f"{', '.join(given)} has no effect with {mode}.")
    if given:
        needed = {"--name": "--protocol", "--mirror": "--calibrate", "--unlabelled": "--calibrate"}
        raise ValueError(" ".join(f"{option} has no effect without {needed[option]}." for option in given))
    if arguments.uncalibrated and arguments.prior:
        raise ValueError("--prior has no effect with --uncalibrated.")
    check_writable(arguments.out / "results.json")
    run = {"--calibrate": main_calibrate, "--protocol": main_protocol, None: main_score}[mode]
    return run(arguments)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    print_anything()
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"eval_au.py: {sentence_of(error)}")
