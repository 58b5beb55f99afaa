"""Evaluate an AU-LLaVA checkpoint on prepared records.

    python eval_au.py --model . --data data/rendered --part test --out runs/eval
    accelerate launch eval_au.py --data data/rendered --formats bp4d disfa --decoding free --out runs/eval-free

Writes to --out:
- results.json: {"schema_version", "provenance" (model, data, decoder, versions, commit), "formats": {"bp4d": {"n",
  "unparsed", "mean": {"f1": ...}, "mean_interval": {"f1": [low, high]}, "per_au": {"AU12": {"f1": ..., "support":
  ..., "interval": {"f1": [low, high]}}}}, ...}}; intervals are 95 % bootstrap intervals over subjects;
- predictions.parquet: one row per record: what was read (values, expected, probability, text) beside the labels.

How a number is scored: occurrence by the most probable value; intensity and continuous by the mean of the predicted
distribution (free decoding has no distribution, there it is the value that was written). A label that is NaN is not
scored; an answer that cannot be parsed is counted as unparsed.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
from collections import defaultdict
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
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import get_format
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.decoding_au_llava import DECODERS
from au_llava.metrics_au import intervals, score

SCHEMA_VERSION = 1
KEYS = ("dataset", "subject", "clip", "frame", "format")


def predict(
    model, processor, records: datasets.Dataset, decoding: str = "slots", batch_size: int = 16, progress: bool = False
) -> list[dict]:
    """Read every record's image in the record's format; formats of one image share one pass.

    With several accelerate processes each takes a share and all get the whole result.

    Returns:
        one dict per record, in no particular order: the record's key (`dataset`, `subject`, `clip`, `frame`, `format`),
        `row` (its index in `records`), `references`, `values`, `expected`, `probability` (lists in the format's label
        order, NaN where unread), `text` and `problems`.
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
                rows.extend(_prediction(keys[row], row, answer[name]) for name, row in group.items())
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
        "text": answer.text,
        "problems": list(answer.problems),
    }


def score_predictions(predictions: list[dict]) -> dict[str, dict]:
    """Scores per format of what `predict` returned, with 95 % bootstrap intervals over subjects.

    Returns:
        format name -> what `metrics_au.score` returns, plus "mean_interval" and in each AU "interval": metric ->
        [low, high].
    """
    by_format = defaultdict(list)
    for row in predictions:
        by_format[row["format"]].append(row)
    scores = {}
    for name, rows in sorted(by_format.items()):
        fmt = get_format(name)
        read = "values" if fmt.scale == "occurrence" else "expected"
        read, known = (np.array([row[column] for row in rows]) for column in (read, "references"))
        scores[name] = score(read, known, fmt)
        bounds = intervals(read, known, [f"{row['dataset']}/{row['subject']}" for row in rows], fmt)
        scores[name]["mean_interval"] = bounds["mean"]
        for label, values in scores[name]["per_au"].items():
            values["interval"] = bounds["per_au"][label]
    return scores


def provenance(arguments: argparse.Namespace, model) -> dict:
    """What a reader needs to run the evaluation again."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    manifests = {}
    for path in arguments.data:
        manifest = Path(path) / "manifest.json"
        manifests[path] = json.loads(manifest.read_text())["content_sha256"] if manifest.is_file() else None
    packages = ("au-llava", "torch", "transformers", "datasets", "numpy", "scikit-learn")
    return {
        "model": arguments.model,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "data": manifests,
        "part": arguments.part,
        "decoding": arguments.decoding,
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
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
    records = load_records(arguments.data, part=arguments.part, formats=arguments.formats)
    if arguments.max_images is not None:
        groups = group_by_image(records)[: arguments.max_images]
        records = records.select(sorted(row for group in groups for row in group.values()))
    state = PartialState()
    logging.disable_progress_bar()  # of loading weights
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    model = model.to(state.device).eval()
    predictions = predict(model, processor, records, arguments.decoding, arguments.batch_size, progress=True)
    if not state.is_main_process:
        return
    predictions.sort(key=lambda row: row["row"])
    scores = score_predictions(predictions)
    arguments.out.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(predictions).to_parquet(arguments.out / "predictions.parquet")
    results = {"schema_version": SCHEMA_VERSION, "provenance": provenance(arguments, model), "formats": scores}
    (arguments.out / "results.json").write_text(json.dumps(_jsonable(results), indent=1) + "\n")
    Console().print(scores_table(scores, f"{arguments.model} on {' '.join(arguments.data)}, {arguments.part} part"))
    print(f"Written: {arguments.out / 'results.json'} and {arguments.out / 'predictions.parquet'}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=".", help="checkpoint folder or Hub id (default: this repository)")
    parser.add_argument("--data", nargs="+", required=True, help="folders made by prepare_data.py")
    parser.add_argument("--part", default="test", help="value of the records' `part` column (default: test)")
    parser.add_argument("--formats", nargs="+", help="formats to score (default: all in the data)")
    parser.add_argument("--decoding", choices=DECODERS, default="slots", help="how answers are read (default: slots)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument("--max_images", type=int, help="score at most this many images")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and predictions.parquet")
    return parser


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    try:
        main(make_parser().parse_args())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"eval_au.py: {error}")
