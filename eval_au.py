"""Evaluate an AU-LLaVA checkpoint on prepared records.

    python eval_au.py --model . --data data/rendered --part test --out runs/eval
    accelerate launch eval_au.py --data data/rendered --formats bp4d disfa --decoding free --out runs/eval-free
    python eval_au.py --model runs/mine --calibrate data/rendered --out runs/calibration

Writes to --out:
- results.json: {"schema_version", "provenance" (model, data, decoder, versions, commit), "formats": {"bp4d": {"n",
  "unparsed", "mean": {"f1": ...}, "mean_interval": {"f1": [low, high]}, "per_au": {"AU12": {"f1": ..., "support":
  ..., "interval": {"f1": [low, high]}}}}, ...}, "contradictions": {"images", "asked_together", "per_pair"}}; intervals
  are 95 % bootstrap intervals over subjects;
- predictions.parquet: one row per record: what was read (values, expected, probability, present, text) beside the
  labels.

How a number is scored: presence (F1, accuracy, ...) by the decision, which is where the probability reaches the AU's
threshold; intensity and continuous values by the mean of the predicted distribution. Free decoding has neither, there
both are the value that was written. A label that is NaN is not scored; an answer that cannot be parsed is counted as
unparsed.

--calibrate fits temperatures, isotonic curves and thresholds on the validation part of its folders and stores them in
the config.json of --model, a folder, where `recognize` applies them from then on. It writes calibration.json (per AU:
method, threshold, ECE, log loss and Brier score before and after, cross-validated) and reliability.png to --out.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.metrics import log_loss
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import get_format
from au_llava.au_datasets.folds import person_key
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_evaluation.calibration import draw_reliability, fit_format
from au_llava.au_evaluation.intervals import intervals
from au_llava.decoding_au_llava import DECODERS
from au_llava.metrics_au import presence, score

SCHEMA_VERSION = 1
KEYS = ("dataset", "subject", "clip", "frame", "format")


def predict(
    model,
    processor,
    records: datasets.Dataset,
    decoding: str = "slots",
    batch_size: int = 16,
    progress: bool = False,
    distributions: bool = False,
) -> list[dict]:
    """Read every record's image in the record's format; formats of one image share one pass.

    With several accelerate processes each takes a share and all get the whole result.

    Returns:
        one dict per record, in no particular order: the record's key (`dataset`, `subject`, `clip`, `frame`, `format`),
        `row` (its index in `records`), `references`, `values`, `expected`, `probability`, `present` (lists in the
        format's label order, NaN where unread), `text`, `problems`, `contradictions` (those where this record's format
        finds an AU present) and, if asked for, `distribution` (AUs, values).
    """
    names = records["format"][:]
    by_formats = defaultdict(list)  # formats asked of one image -> images, as {format name: row}
    for group in group_by_image(records):
        by_formats[tuple(group)].append(group)
    batches = [
        (formats, groups[start : start + batch_size])
        for formats, groups in by_formats.items()
        for start in range(0, len(groups), batch_size)
    ]
    keys = records.select_columns([*KEYS, "values"])
    images = records.select_columns(["image"])
    state = PartialState()
    rows = []
    with state.split_between_processes(batches) as share, _progress(progress and state.is_main_process) as bar:
        task = bar.add_task("reading faces", total=sum(len(groups) for _, groups in share))
        for formats, groups in share:
            faces = images[[next(iter(group.values())) for group in groups]]["image"]
            answers = model.recognize(processor, faces, formats=formats, decoding=decoding, batch_size=batch_size)
            for group, answer in zip(groups, answers, strict=True):
                for name, row in group.items():
                    rows.append(_prediction(keys[row], row, answer[name]))
                    rows[-1]["contradictions"] = [str(c) for c in answer.contradictions if c.present_in == name]
                    if distributions:
                        readings = answer[name].values()
                        rows[-1]["distribution"] = np.array([r.distribution for r in readings], np.float32)
            bar.advance(task, len(groups))
    assert all(names[row["row"]] == row["format"] for row in rows)
    return gather_object(rows)


def _prediction(record: dict, row: int, answer) -> dict:
    readings = [answer[label] for label in answer.format.labels]
    number = lambda value: math.nan if value is None else value  # noqa: E731
    return {
        **{key: record[key] for key in KEYS},
        "row": row,
        "references": record["values"],
        "values": [number(reading.value) for reading in readings],
        "expected": [number(reading.expected) for reading in readings],
        "probability": [number(reading.probability) for reading in readings],
        "present": [number(reading.present) for reading in readings],
        "text": answer.text,
        "problems": list(answer.problems),
    }


def score_predictions(predictions: list[dict]) -> dict[str, dict]:
    """Scores per format of what `predict` returned, with 95 % bootstrap intervals over subjects.

    Returns:
        format name -> what `metrics_au.score` returns, plus "mean_interval" and in each AU "interval": metric ->
        [low, high].
    """
    scores = {}
    for name, rows in sorted(_by_format(predictions).items()):
        fmt = get_format(name)
        column = lambda key: np.array([row[key] for row in rows], dtype=float)  # noqa: B023, E731
        probabilities = column("probability")
        arguments = {
            "predictions": column("values" if fmt.scale == "occurrence" else "expected"),
            "references": column("references"),
            "subjects": [f"{row['dataset']}/{row['subject']}" for row in rows],
            "probabilities": None if np.isnan(probabilities).all() else probabilities,
            "decisions": column("present"),
        }
        scores[name] = score(fmt=fmt, **arguments)
        bounds = intervals(fmt=fmt, **arguments)
        scores[name]["mean_interval"] = bounds["mean"]
        for label, values in scores[name]["per_au"].items():
            values["interval"] = bounds["per_au"][label]
    return scores


def _by_format(predictions: list[dict]) -> dict[str, list[dict]]:
    by_format = defaultdict(list)
    for row in predictions:
        by_format[row["format"]].append(row)
    return by_format


def contradiction_counts(predictions: list[dict]) -> dict:
    """How often formats of the same image contradict each other: "asked_together" images with several formats,
    "images" of them with a contradiction, "per_pair": "AU12 is present in bp4d, but AU12 0 in disfa" -> images."""
    formats, found = defaultdict(int), defaultdict(list)
    for row in predictions:
        image = tuple(row[key] for key in KEYS if key != "format")
        formats[image] += 1
        found[image] += row["contradictions"]
    together = [image for image, count in formats.items() if count > 1]
    return {
        "asked_together": len(together),
        "images": sum(bool(found[image]) for image in together),
        "per_pair": dict(Counter(each for image in together for each in found[image]).most_common()),
    }


def calibrate(model, processor, tables: list[str], part: str, batch_size: int, progress: bool = False):
    """Fit the calibration of `model` on the validation subjects of `tables`.

    Returns:
        what belongs into `AuLlavaConfig.calibration`; per format what `fit_format` returned; its labels (images, AUs).
    """
    records = load_records(tables, part=part)
    raw, model.config.calibration = model.config.calibration, None
    try:
        predictions = predict(model, processor, records, "slots", batch_size, progress, distributions=True)
    finally:
        model.config.calibration = raw
    fits, references = {}, {}
    for name, rows in sorted(_by_format(predictions).items()):
        rows.sort(key=lambda row: row["row"])
        read, references[name] = (np.array([row[key] for row in rows], float) for key in ("distribution", "references"))
        people = [person_key(row["dataset"], row["subject"]) for row in rows]
        fits[name] = fit_format(read, references[name], people, get_format(name))
    fitted_on = {
        "data": content_hashes(tables),
        "part": part,
        "images": len(group_by_image(records)),
        "subjects": len(set(map(person_key, records["dataset"][:], records["subject"][:]))),
    }
    return {"formats": {n: fit["entry"] for n, fit in fits.items()}, "fitted_on": fitted_on}, fits, references


def calibration_report(fits: dict[str, dict], references: dict[str, np.ndarray]) -> dict:
    """Per format, and per AU in it, how far probabilities can be believed before and after (cross-validated)."""
    report = {}
    for name, fit in fits.items():
        fmt = get_format(name)
        known = ~np.isnan(references[name])
        truth = references[name] >= fmt.presence_threshold

        def judge(rows, fit=fit, truth=truth) -> dict:
            scores = {}
            for when in ("before", "after"):
                probability = fit[when][rows]
                errors = presence(probability, truth[rows])
                scores |= {f"{metric}_{when}": errors[metric] for metric in ("ece", "brier")}
                clipped = probability.clip(1e-6, 1 - 1e-6)
                scores[f"log_loss_{when}"] = log_loss(truth[rows], clipped, labels=[False, True])
            return scores

        per_au = {}
        for column, label in enumerate(fmt.labels):
            rows = np.nonzero(known[:, column])[0]
            entry = fit["entry"]["aus"][label]
            per_au[label] = {"method": entry["method"], "threshold": entry["threshold"]}
            per_au[label] |= judge((rows, column)) if len(rows) else {}
        report[name] = {"all": judge(known), "per_au": per_au}
    return report


def provenance(arguments: argparse.Namespace, model) -> dict:
    """What a reader needs to run the evaluation again."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    packages = ("au-llava", "torch", "transformers", "datasets", "numpy", "scikit-learn")
    return {
        "model": arguments.model,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "calibrated": model.config.calibration is not None,
        "data": content_hashes(arguments.data),
        "part": arguments.part or "test",
        "decoding": arguments.decoding,
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def content_hashes(tables: list[str]) -> dict[str, str | None]:
    """Path -> the content hash in its manifest, None where there is no manifest."""
    manifests = {path: Path(path) / "manifest.json" for path in tables}
    return {
        path: json.loads(manifest.read_text())["content_sha256"] if manifest.is_file() else None
        for path, manifest in manifests.items()
    }


def scores_table(scores: dict[str, dict], title: str) -> Table:
    """The scores as a table: one row per AU and a mean per format."""
    table = Table(title=title, title_justify="left", caption="± half of the 95 % bootstrap interval over subjects")
    for column in ("format", "AU", "F1", "acc", "ICC", "PCC", "MAE", "present", "n"):
        table.add_column(column, justify="left" if column in ("format", "AU") else "right", no_wrap=True)
    keys = ("f1", "accuracy", "icc", "pcc", "mae")
    show = lambda values, key: "" if values.get(key) is None else f"{values[key]:.3f}"  # noqa: E731
    for name, result in scores.items():
        for label, values in result["per_au"].items():
            table.add_row(name, label, *(show(values, k) for k in keys), f"{values['support']}", f"{values['n']}")
        bounds = {key: (high - low) / 2 for key, (low, high) in result["mean_interval"].items()}
        table.add_row(name, "mean", *(show(result["mean"], key) for key in keys), "", f"{result['n']}", style="bold")
        table.add_row("", "±", *(show(bounds, key) for key in keys), "", "", style="dim")
        table.add_section()
    return table


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)


def _jsonable(value):
    """NaN is not JSON: undefined numbers are written as null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def main(arguments: argparse.Namespace):
    state = PartialState()
    logging.disable_progress_bar()  # of loading weights
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    model = model.to(state.device).eval()
    if arguments.calibrate:
        return main_calibrate(arguments, model, processor, state)
    if arguments.uncalibrated:
        model.config.calibration = None
    records = load_records(arguments.data, part=arguments.part or "test", formats=arguments.formats)
    if arguments.max_images is not None:
        groups = group_by_image(records)[: arguments.max_images]
        records = records.select(sorted(row for group in groups for row in group.values()))
    predictions = predict(model, processor, records, arguments.decoding, arguments.batch_size, progress=True)
    if not state.is_main_process:
        return
    predictions.sort(key=lambda row: row["row"])
    scores = score_predictions(predictions)
    arguments.out.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(predictions).to_parquet(arguments.out / "predictions.parquet")
    results = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance(arguments, model),
        "formats": scores,
        "contradictions": contradiction_counts(predictions),
    }
    (arguments.out / "results.json").write_text(json.dumps(_jsonable(results), indent=1) + "\n")
    title = f"{arguments.model} on {' '.join(arguments.data)}, {arguments.part or 'test'} part"
    Console().print(scores_table(scores, title))
    print(f"Written: {arguments.out / 'results.json'} and {arguments.out / 'predictions.parquet'}")


def main_calibrate(arguments: argparse.Namespace, model, processor, state: PartialState):
    config_file = Path(arguments.model) / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"--calibrate stores its result in config.json: {arguments.model} is no folder that holds one."
        )
    part = arguments.part or "validation"
    calibration, fits, references = calibrate(
        model, processor, arguments.calibrate, part, arguments.batch_size, progress=True
    )
    if not state.is_main_process:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = calibration_report(fits, references)
    (arguments.out / "calibration.json").write_text(
        json.dumps(_jsonable({"fitted_on": calibration["fitted_on"], "formats": report}), indent=1) + "\n"
    )
    thresholds = {name: fit["entry"]["presence_threshold"] for name, fit in fits.items()}
    draw_reliability(fits, references, thresholds).savefig(arguments.out / "reliability.png", dpi=110)
    config = json.loads(config_file.read_text())
    unfinished = config_file.with_name("config.json.new")
    unfinished.write_text(json.dumps(config | {"calibration": calibration}, indent=2, sort_keys=True) + "\n")
    unfinished.replace(config_file)
    Console().print(calibration_table(report, f"{arguments.model}, {part} part of {' '.join(arguments.calibrate)}"))
    print(f"Stored in {config_file}; report: {arguments.out / 'calibration.json'}, {arguments.out / 'reliability.png'}")


def calibration_table(report: dict, title: str) -> Table:
    """Before and after, per format."""
    caption = "over all AUs; each subject by a calibration fitted without that subject's fold"
    table = Table(title=title, title_justify="left", caption=caption)
    for column in ("format", "ECE\nbefore", "ECE\nafter", "log loss\nbefore", "log loss\nafter", "AUs changed"):
        table.add_column(column, justify="left" if column in ("format", "AUs changed") else "right")
    for name, result in report.items():
        cells = [
            f"{result['all'][f'{m}_{when}']:.4f}" for m in ("ece", "log_loss", "brier") for when in ("before", "after")
        ]
        methods = Counter(values["method"] for values in result["per_au"].values())
        table.add_row(name, *cells, ", ".join(f"{method} {count}" for method, count in methods.items()))
    return table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=".", help="checkpoint folder or Hub id (default: this repository)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", metavar="DIR", help="score on these folders made by prepare_data.py")
    source.add_argument("--calibrate", nargs="+", metavar="DIR", help="instead, calibrate on these folders")
    parser.add_argument("--part", help="value of the records' `part` column (default: test; to calibrate, validation)")
    parser.add_argument("--formats", nargs="+", help="formats to score (default: all in the data)")
    parser.add_argument("--decoding", choices=DECODERS, default="slots", help="how answers are read (default: slots)")
    parser.add_argument("--uncalibrated", action="store_true", help="leave the checkpoint's calibration out")
    parser.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument("--max_images", type=int, help="score at most this many images")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    return parser


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    try:
        main(make_parser().parse_args())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"eval_au.py: {error}")
