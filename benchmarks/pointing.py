"""Does the evidence lie where the face moves? The pointing game on rendered faces, of which that is known.

    python benchmarks/pointing.py --out runs/pointing.json

The faces are drawn as `prepare_data.py rendered --seed 1` draws them: people that no shipped checkpoint has seen. For
every AU that is there and is found, the map of au_recognition/evidence.py is a hit if its highest place lies in the
AU's region: the visible part of this face, in this pose, that moves more than `LEAST_MOVEMENT` of the AU's largest
movement there. (Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018; without their tolerance of
15 pixels.) Beside it stand two levels to compare with: chance, the region's share of the picture; and how many highest
places of the other AUs' maps of the same face lie in the region, which would be as many if maps did not tell AUs apart.

Writes OUT and prints a table, with 95 % bootstrap intervals over people. About 2 seconds a face on one core.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import FORMATS, AUFormat
from au_llava.au_evaluation.intervals import bounds, draw_subjects
from au_llava.au_evaluation.scoring import jsonable
from au_llava.au_recognition.evidence import BLUR, COPIES, NOISE, evidence_maps, peak
from au_llava.au_recognition.pictures import LEAST_MOVEMENT
from au_llava.au_recognition.sidecar import checkpoint_identity
from au_llava.au_rendering.activations import label_values, sample_activations
from au_llava.au_rendering.people import FORMAT_NAMES, Subject, jpeg_bytes, picture, sample_subject, sample_view
from au_llava.au_rendering.render import View, draw_values
from au_llava.au_rendering.rig import SHAPES
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.provenance import code_commit
from au_llava.calibration_au_llava import with_prior
from au_llava.metrics_au import mean_of_defined, sum_by_subject

SEED, FIRST = 1, 100  # people of the test part and beyond; the method was chosen on those before
SIZE = 96  # pixels of a picture's side
MEASURES = ("hits", "chance", "others")


def draw(number: int, index: int) -> tuple[Subject, dict[str, float], View, Image.Image]:
    """Face `index` of person `number`, as `sample_records` draws it."""
    rng = np.random.default_rng([SEED, number, 1 + index])
    subject, strengths, view = sample_subject(SEED, number), sample_activations(rng), sample_view(rng)
    pixels, _ = picture(subject, strengths, view, SIZE, rng)
    return subject, strengths, view, Image.open(io.BytesIO(jpeg_bytes(pixels)))


def region(subject: Subject, strengths: Mapping[str, float], view: View, label: str) -> np.ndarray:
    """(SIZE, SIZE) booleans: what an AU, as strong as it is on both sides, visibly moves in a picture."""
    own = {name: strengths.get(name, 0.0) for name in (label, *(label + side for side in "LR")) if name in SHAPES}
    moved = np.linalg.norm(subject.movement(own), axis=1)
    drawn = draw_values(moved, subject.identity, subject.movement(strengths), view, SIZE)
    return drawn > LEAST_MOVEMENT * drawn.max()


def pointed(points: Mapping[str, tuple[float, float]], regions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """One row per AU of a face and format: "label", "hits" (0 or 1), "chance", "others" (NaN if there is no other AU).

    Args:
        points: label -> right and down, in shares of the picture. regions: label -> booleans (size, size).
    """
    for label, truth in regions.items():
        inside = {
            other: truth[int(down * len(truth)), int(right * len(truth))] for other, (right, down) in points.items()
        }
        hit = inside.pop(label)
        others = [each for other, each in inside.items() if unsided(other) != unsided(label)]
        yield {
            "label": label,
            "hits": float(hit),
            "chance": float(truth.mean()),
            "others": float(np.mean(others)) if others else float("nan"),
        }


def unsided(label: str) -> str:
    """AU12L -> AU12: the two sides are no test of whether maps tell AUs apart."""
    return label.rstrip("LRTB")


def rows_of(model, processor, people: int, images: int) -> Iterator[dict]:
    """The rows of `pointed` of every face, with "subject" and "format"."""
    formats = [FORMATS[name] for name in FORMAT_NAMES]
    for number in track(range(FIRST, FIRST + people), description="Pointing", console=Console(stderr=True)):
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
                points = {label: peak(each) for label, each in zip(labels, maps.get(fmt.name, ()), strict=True)}
                regions = {label: region(subject, strengths, view, label) for label in labels}
                for row in pointed(points, regions):
                    yield {"subject": subject.name, "format": fmt.name, **row}


def summarise(rows: Sequence[dict], formats: Sequence[AUFormat], resamples: int = 1000, level: float = 0.95) -> dict:
    """format -> "mean" over AUs and "per_au" -> "n", each of MEASURES, and "interval" of the hits over people."""
    people, who = np.unique([row["subject"] for row in rows], return_inverse=True)
    draws = draw_subjects(len(people), resamples, level, seed=0)
    found = {}
    for fmt in formats:
        per_au, drawn = {}, []
        for label in fmt.labels:
            own = np.array([(row["format"], row["label"]) == (fmt.name, label) for row in rows])
            values = {key: np.array([row[key] for row in rows])[own] for key in MEASURES}
            hits, counts = sum_by_subject((values["hits"], np.ones(own.sum())), who[own], len(people)) @ draws
            drawn.append(np.divide(hits, counts, out=np.full(resamples, np.nan), where=counts > 0))
            per_au[label] = {"n": int(own.sum()), **{key: float(mean_of_defined(each)) for key, each in values.items()}}
            per_au[label]["interval"] = bounds(drawn[-1], level)
        mean = {key: float(mean_of_defined(np.array([each[key] for each in per_au.values()]))) for key in MEASURES}
        mean |= {"n": sum(each["n"] for each in per_au.values())}
        found[fmt.name] = {
            "mean": {**mean, "interval": bounds(mean_of_defined(np.array(drawn)), level)},
            "per_au": per_au,
        }
    return found


def table_of(found: Mapping) -> Table:
    table = Table(title="Highest place of the map within the AU's region", title_justify="left")
    for column in ("format", "AU", "hits", "95 %", "chance", "other AUs' maps", "n"):
        table.add_column(column, justify="left" if column in ("format", "AU") else "right")
    for name, scores in found.items():
        for label, each in [*scores["per_au"].items(), ("mean", scores["mean"])]:
            low, high = each["interval"]
            numbers = [
                f"{each['hits']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{each['chance']:.2f}",
                f"{each['others']:.2f}",
            ]
            table.add_row(name, label, *numbers, str(each["n"]), style="bold" if label == "mean" else None)
        table.add_section()
    return table


def main(words: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model", default=str(HOME), help="checkpoint: a folder or a Hub id (default: the shipped one)"
    )
    parser.add_argument("--people", type=int, default=200, help="people drawn (default: 200)")
    parser.add_argument("--images", type=int, default=1, help="faces of each (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(words)
    check_writable(arguments.out)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, dtype="float32").eval()
    model.config.calibration = with_prior(model.config.calibration, "rendered")
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    identity = checkpoint_identity(arguments.model, model)  # before anybody replaces the files
    rows = list(rows_of(model, processor, arguments.people, arguments.images))
    if not rows:
        raise ValueError("no AU of these faces was found: there is nothing to point at; draw more --people")
    found = summarise(rows, [FORMATS[name] for name in FORMAT_NAMES])
    content = {
        "schema_version": 1,
        "provenance": {
            "checkpoint": {key: identity[key] for key in ("name", "commit", "weights_sha256")},
            "code_commit": code_commit(),
            "versions": {name: version(name) for name in ("au-llava", "numpy", "pillow", "torch", "transformers")},
            "faces": {
                "seed": SEED,
                "first": FIRST,
                "people": arguments.people,
                "images": arguments.images,
                "size": SIZE,
            },
            "method": {"name": "SmoothGrad", "copies": COPIES, "noise": NOISE, "blur": BLUR},
            "least_movement": LEAST_MOVEMENT,
        },
        "formats": jsonable(found),
    }
    Console().print(table_of(found))
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"pointing.py: {sentence_of(error)}")
