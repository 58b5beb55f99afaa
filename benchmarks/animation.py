"""ARKit's shapes as a checkpoint reads them: scores on rendered people, and agreement with MediaPipe on photographs.

    python eval_au.py run --model checkpoints/arkit --data data/arkit --out runs/eval-arkit
    python benchmarks/animation.py --model checkpoints/arkit --scores runs/eval-arkit/results.json \\
        --data data/fairface-arkit --fairface FAIRFACE --out runs/animation.json

Rendered people have exact values. On photographs the only reference is MediaPipe's blendshape of the same name, another
network's estimate: the correlation says how alike the two are, not which of them is right, and less where the held-out
photographs hardly show the shape. FAIRFACE needs the column of blendshapes (prepare_data.py fairface --help). Intervals
are 95 % bootstrap intervals over people.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from agreement import Photographs
from page import add_model_option, make_table, origin, runner, say_skipped, show, told, write_results

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.photographs import Readings, correlation, read_crops
from au_llava.au_faces.landmarks import BLENDSHAPES
from au_llava.au_readers.fairface import blendshape_order, rows_of
from au_llava.au_readers.files import find_files
from au_llava.au_recognition.derived import ARKIT
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable
from au_llava.au_runs.manifests import check_unseen
from au_llava.au_runs.provenance import content_hashes

METRICS = ("pcc", "icc")


def measured_blendshapes(root: Path, files: Sequence[str]) -> np.ndarray:
    """(files, 52) MediaPipe's blendshapes of FairFace's files, NaN where it found no face.

    Raises:
        ValueError: no Parquet file in `root` has blendshapes, or none has these photographs.
    """
    found: dict[str, np.ndarray] = {}
    for _, path in find_files(root, r"(train|val|validation)-\d+-of-\d+\.parquet"):
        order = blendshape_order(path)
        if order is None:
            continue
        rows = rows_of(path)
        for name in rows.keys() & set(files):
            if rows[name]["blendshapes"]:
                found[name] = np.array(rows[name]["blendshapes"], float)[order]
    if not found:
        raise ValueError(f"no Parquet file in {root} has blendshapes of these photographs.")
    unknown = np.full(len(BLENDSHAPES), np.nan)
    return np.array([found.get(name, unknown) for name in files])


def sources_of(fmt: AUFormat) -> dict[str, str]:
    """Shape -> the AU of the format that gives it, for the shapes that it has."""
    chosen = {shape: next((label for label in labels if label in fmt.labels), None) for shape, labels in ARKIT.items()}
    return {shape: label for shape, label in chosen.items() if label is not None}


def agreement(read: Readings, fmt: AUFormat, blendshapes: np.ndarray, subjects: Sequence[str]) -> dict:
    """Shape -> correlation of the reading with MediaPipe's blendshape, with "spread": the latter's 95th percentile."""
    shapes = {shape: label for shape, label in sources_of(fmt).items() if shape in BLENDSHAPES}
    ours = read.expected[:, [read.columns.index((fmt.name, label)) for label in shapes.values()]]
    theirs = blendshapes[:, [BLENDSHAPES.index(shape) for shape in shapes]]
    results = correlation(ours, theirs, subjects, list(shapes))["per_column"]
    spread = dict(zip(shapes, np.nanpercentile(theirs, 95, axis=0).round(3).tolist(), strict=True))
    return {shape: result | {"spread": spread[shape]} for shape, result in results.items()}


def tables(fmt: AUFormat, scores: Mapping, agreed: Mapping) -> list:
    """One table: every shape that the format gives, in the order of its AUs."""
    table = make_table(
        *("AU", "shapes", *("PCC", "ICC(3,1)"), "MediaPipe", "95th percentile"),
        text=["AU", "shapes"],
        title="Rendered people: PCC and ICC; photographs: correlation with MediaPipe's shape, and how strong that gets",
    )
    shapes: dict[str, list[str]] = {}
    for shape, label in sources_of(fmt).items():
        shapes.setdefault(label, []).append(shape)
    for label in fmt.labels:
        exact = scores["per_au"][label]
        cells = [told({"value": exact[metric], "interval": exact["interval"][metric]}) for metric in METRICS]
        beside = [agreed[shape] for shape in shapes[label] if shape in agreed]
        cells += ["; ".join(told(result) for result in beside), "; ".join(f"{each['spread']:.2f}" for each in beside)]
        table.add_row(label, ", ".join(shapes[label]), *cells)
    return [table]


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--format", default="arkit", help="of the scores and the records (default: %(default)s)")
    parser.add_argument("--scores", type=Path, required=True, help="results.json of eval_au.py on rendered people")
    parser.add_argument("--data", required=True, help="records of FairFace; their validation part is read")
    parser.add_argument("--fairface", type=Path, required=True, help="the copy of FairFace with blendshapes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    records = load_records(arguments.data, part="validation", labelled=False)
    evaluated = json.loads(arguments.scores.read_text(encoding="utf-8"))
    fmt = get_format(arguments.format)
    people = check_unseen(arguments.model, people_of(records), roles=("train", "unlabelled"))
    model, processor = load_checkpoint(arguments.model, dtype="float32")
    photographs = Photographs(records, processor.image_processor.crop_size["height"])
    files = [records[row]["subject"] for row in photographs.rows]
    read = read_crops(model, processor, photographs.crops(), [fmt])
    agreed = agreement(read, fmt, measured_blendshapes(arguments.fairface, files), photographs.subjects)
    scores = evaluated["formats"][fmt.name]
    rendered = {label: {key: exact[key] for key in (*METRICS, "interval")} for label, exact in scores["per_au"].items()}
    results = {
        "provenance": origin(arguments.model, model)
        | {"data": content_hashes([arguments.data]), "trained_people": people, "scores": evaluated["provenance"]},
        "faces": {"images": len(files), "skipped": photographs.skipped},
        "sources": sources_of(fmt),
        "rendered": {key: scores[key] for key in ("n", "mean", "mean_interval")} | {"per_au": rendered},
        "photographs": agreed,
    }
    write_results(arguments.out, results)
    show(tables(fmt, scores, agreed))
    say_skipped(photographs.skipped, len(files) + len(photographs.skipped))


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
