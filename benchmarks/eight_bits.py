"""What 8 bits change of the decisions: rendered faces, read with both files of weights of the page for browsers.

python tools/release_app.py runs/static --static --onnxruntime-web onnxruntime-web-1.30.0.tgz
python benchmarks/eight_bits.py runs/static --data data/rendered-test --write
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from page import make_table, runner, show

from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME

PAGE = HOME / "docs" / "browser.md"
BATCH = 50


def answers(path: Path, pixels: np.ndarray, name: str) -> list[np.ndarray]:
    """One (images, AUs, values) array per format."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {name: pixels[start : start + BATCH]}) for start in range(0, len(pixels), BATCH)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def compared(exact: np.ndarray, other: np.ndarray, fmt: dict) -> tuple[float, float, float, float]:
    """Share of equal decisions over all AUs and of the worst AU; mean and largest difference of the mean strength."""
    values = np.array(fmt["values"])
    present = values >= fmt["presence_threshold"]
    exact_decision, decision = (each[..., present].sum(-1) >= fmt["thresholds"] for each in (exact, other))
    equal, apart = exact_decision == decision, np.abs((exact - other) @ values)
    return equal.mean(), equal.mean(axis=0).min(), apart.mean(), apart.max()


def main(arguments: argparse.Namespace) -> None:
    from au_llava.au_datasets.records import group_by_image, load_records

    told = json.loads((arguments.folder / "settings.json").read_text())
    records = load_records([arguments.data], part="test")
    faces = [next(iter(rows.values())) for rows in group_by_image(records)]
    mean, std = (np.float32(told["input"][key])[:, None, None] for key in ("mean", "std"))
    pixels = np.stack([np.asarray(records[face]["image"].convert("RGB"), np.float32) for face in faces])
    pixels = (pixels.transpose(0, 3, 1, 2) / 255 - mean) / std
    exact, *others = (
        answers(arguments.folder / each["file"], pixels, told["input"]["name"]) for each in told["weights"].values()
    )
    columns = ("weights", "format", "equal decisions, %", "of the worst AU, %", "mean difference", "largest difference")
    table = make_table(*columns, text=columns[:2])
    for kind, read in zip(list(told["weights"])[1:], others, strict=True):
        for fmt, one, other in zip(told["formats"], exact, read, strict=True):
            equal, worst, average, largest = compared(one, other, fmt)
            table.add_row(
                kind, fmt["name"], f"{100 * equal:.2f}", f"{100 * worst:.2f}", f"{average:.4f}", f"{largest:.3f}"
            )
    notes = f"{len(faces)} rendered faces; differences of the mean strength, or of the probability (bp4d)."
    show([table], "browser-weights" if arguments.write else None, notes, PAGE)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("folder", type=Path, help="the page, as tools/release_app.py --static builds it")
    parser.add_argument("--data", type=Path, required=True, help="folder of records; its test part is read")
    parser.add_argument("--write", action="store_true", help="also write the table into docs/browser.md")
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
