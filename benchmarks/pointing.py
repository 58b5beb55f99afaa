"""Whether evidence maps point to where the face moves: the pointing game on rendered faces, where that is known.

    python benchmarks/pointing.py --out runs/pointing.json

The faces are those of `prepare_data.py rendered --seed 1`, people that no shipped checkpoint has seen. For every AU
that is present and found, the map of au_recognition/evidence.py is a hit if its maximum lies in the AU's region: the
visible part of this face, in this pose, that moves more than `LEAST_MOVEMENT` of the AU's largest movement (Zhang et
al., Top-down Neural Attention by Excitation Backprop, IJCV 2018; without their tolerance of 15 pixels). There are two
baselines: chance, the region's share of the picture; and the share of other AUs' maps of the same face whose maximum
lies in the region, which would equal the hits if maps did not tell AUs apart.

Writes OUT and prints a table, with 95 % bootstrap intervals over people. About 2 seconds per face on one core.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from page import add_model_option, make_table, origin, runner, write_results
from PIL import Image
from rich.console import Console
from rich.table import Table

from au_llava.action_units import FORMATS, MAIN_FORMATS, AUFormat
from au_llava.au_evaluation.intervals import bounds, draw_subjects
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_recognition.evidence import BLUR, COPIES, NOISE, evidence_maps, peak
from au_llava.au_recognition.movement import LEAST_MOVEMENT
from au_llava.au_rendering.activations import label_values, sample_activations
from au_llava.au_rendering.people import Subject, sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import draw_values
from au_llava.au_rendering.rig import SHAPES
from au_llava.au_rendering.view import View, sample_view
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable
from au_llava.au_runs.progress import track
from au_llava.calibration_au_llava import with_prior
from au_llava.metrics_au import mean_of_defined, sum_by_subject

SEED, FIRST = 1, 100  # people of the test part and beyond; the method was chosen on the people before
SIZE = 96  # side of the pictures, in pixels
MEASURES = ("hits", "chance", "others")


def draw(number: int, index: int) -> tuple[Subject, dict[str, float], View, Image.Image]:
    """Face `index` of person `number`, as `sample_records` draws it."""
    rng = np.random.default_rng([SEED, number, 1 + index])
    subject, strengths, view = sample_subject(SEED, number), sample_activations(rng), sample_view(rng)
    pixels, _ = picture(subject, strengths, view, SIZE, rng)
    return subject, strengths, view, Image.open(io.BytesIO(jpeg_bytes(pixels)))


def region(subject: Subject, strengths: Mapping[str, float], view: View, label: str) -> np.ndarray:
    """(SIZE, SIZE) booleans: what an AU, with the strength of both sides, visibly moves in a picture."""
    own = {name: strengths.get(name, 0.0) for name in (label, *(label + side for side in "LR")) if name in SHAPES}
    moved = np.linalg.norm(subject.movement(own), axis=1)
    drawn = draw_values(moved, subject.identity, subject.movement(strengths), view, SIZE)
    return drawn > LEAST_MOVEMENT * drawn.max()


def pointed(points: Mapping[str, tuple[float, float]], regions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """One row per AU of a face and format: "label", "hits" (0 or 1), "chance", "others" (NaN if there is no other AU).

    Args:
        points: label -> maximum of the map, right and down, in shares of the picture.
        regions: label -> booleans (size, size).
    """
    for label, truth in regions.items():
        inside = {
            other: truth[int(down * len(truth)), int(right * len(truth))] for other, (right, down) in points.items()
        }
        hit = inside.pop(label)
        others = [is_inside for other, is_inside in inside.items() if unsided(other) != unsided(label)]
        yield {
            "label": label,
            "hits": float(hit),
            "chance": float(truth.mean()),
            "others": float(np.mean(others)) if others else float("nan"),
        }


def unsided(label: str) -> str:
    """AU12L -> AU12: whether maps tell AUs apart is not tested on the two sides of one AU."""
    return label.rstrip("LRTB")


def rows_of(model, processor, people: int, images: int) -> Iterator[dict]:
    """The rows of `pointed` of every face, with "subject" and "format"."""
    formats = [FORMATS[name] for name in MAIN_FORMATS]
    for number in track(range(FIRST, FIRST + people), description="Pointing"):
        for index in range(images):
            subject, strengths, view, image = draw(number, index)
            result = model.recognize(processor, image, formats)[0]
            wanted = {
                fmt: [
                    label
                    for label, value in zip(fmt.labels, label_values(strengths, fmt.name), strict=True)
                    if value >= fmt.presence_threshold and result[fmt.name][label].present
                ]
                for fmt in formats
            }
            if not any(wanted.values()):
                continue
            maps = evidence_maps(model, processor, image, wanted)
            for fmt, labels in wanted.items():
                points = {label: peak(map_) for label, map_ in zip(labels, maps.get(fmt.name, ()), strict=True)}
                regions = {label: region(subject, strengths, view, label) for label in labels}
                for row in pointed(points, regions):
                    yield {"subject": subject.name, "format": fmt.name, **row}


def summarize(rows: Sequence[dict], formats: Sequence[AUFormat], resamples: int = 1000, level: float = 0.95) -> dict:
    """format -> "mean" over AUs and "per_au" -> "n", each of MEASURES, and "interval" of the hits over people."""
    people, who = np.unique([row["subject"] for row in rows], return_inverse=True)
    draws = draw_subjects(len(people), resamples, level, seed=0)
    summary = {}
    for fmt in formats:
        per_au, drawn = {}, []
        for label in fmt.labels:
            own = np.array([(row["format"], row["label"]) == (fmt.name, label) for row in rows])
            values = {key: np.array([row[key] for row in rows])[own] for key in MEASURES}
            hits, counts = sum_by_subject((values["hits"], np.ones(own.sum())), who[own], len(people)) @ draws
            drawn.append(np.divide(hits, counts, out=np.full(resamples, np.nan), where=counts > 0))
            per_au[label] = {"n": int(own.sum()), **{key: float(mean_of_defined(values[key])) for key in MEASURES}}
            per_au[label]["interval"] = bounds(drawn[-1], level)
        mean = {key: float(mean_of_defined(np.array([row[key] for row in per_au.values()]))) for key in MEASURES}
        mean |= {"n": sum(row["n"] for row in per_au.values())}
        summary[fmt.name] = {
            "mean": {**mean, "interval": bounds(mean_of_defined(np.array(drawn)), level)},
            "per_au": per_au,
        }
    return summary


def table_of(summary: Mapping) -> Table:
    table = make_table(
        *("format", "AU", "hits", "95 %", "chance", "other AUs' maps", "n"),
        text=["format", "AU"],
        title="Maximum of the map within the AU's region",
    )
    for name, scores in summary.items():
        for label, row in [*scores["per_au"].items(), ("mean", scores["mean"])]:
            low, high = row["interval"]
            hits, chance, others = (f"{row[key]:.2f}" for key in MEASURES)
            cells = (hits, f"{low:.2f} to {high:.2f}", chance, others, str(row["n"]))
            table.add_row(name, label, *cells, style="bold" if label == "mean" else None)
        table.add_section()
    return table


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--people", type=int, default=200, help="number of people (default: 200)")
    parser.add_argument("--images", type=int, default=1, help="faces per person (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    model, processor = load_checkpoint(arguments.model, dtype="float32")
    model.config.calibration = with_prior(model.config.calibration, "rendered")
    provenance = origin(arguments.model, model)  # now, before the files might be replaced
    rows = list(rows_of(model, processor, arguments.people, arguments.images))
    if not rows:
        raise ValueError("the checkpoint found none of the AUs of these faces: draw more --people")
    summary = summarize(rows, [FORMATS[name] for name in MAIN_FORMATS])
    setting = {"seed": SEED, "first": FIRST, "people": arguments.people, "images": arguments.images, "size": SIZE}
    provenance |= {
        "versions": {name: version(name) for name in ("au-llava", "numpy", "pillow", "torch", "transformers")},
        "faces": setting,
        "method": {"name": "SmoothGrad", "copies": COPIES, "noise": NOISE, "blur": BLUR},
        "least_movement": LEAST_MOVEMENT,
    }
    write_results(arguments.out, {"provenance": provenance, "formats": summary})
    Console().print(table_of(summary))


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
