"""Time and memory to read BP4D, on a made-up copy of its size: 41 people, 328 recordings.

    python benchmarks/reading.py

Writes label files in BP4D's format (147,000 rows of 100 columns, and five times as many rows of intensities) and empty
image files into a temporary folder. Measures reading the labels, then the whole command, whose memory should be the
same for an eighth of the people, since it writes its table row by row. Fails if reading the labels takes more than 10
seconds of processor time (which, unlike the clock, other programs do not change).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from page import add_write_option, make_table, runner, show

from au_llava.au_datasets.records import Defects
from au_llava.au_readers.bp4d import open_bp4d
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME

PEOPLE = [*(f"F{number:03d}" for number in range(1, 24)), *(f"M{number:03d}" for number in range(1, 19))]
TASKS = 8
ROWS = 448  # per recording: 146,944 in 328 recordings, where BP4D has 146,847
LIMIT = 10.0  # seconds of processor time, for labels


def write_copy(root: Path, people: list[str]) -> int:
    """Write a copy with random labels; returns the number of rows."""
    rng = np.random.default_rng(0)
    header = ",".join(map(str, range(100)))
    for person in people:
        for task in range(1, TASKS + 1):
            name, first = f"{person}_T{task}", int(rng.integers(1, 2500))
            table = rng.integers(0, 2, (ROWS, 100))
            table[:, 25:] = 9
            table[:, 0] = range(first, first + ROWS)
            _write(root / "AUCoding" / "AU_OCC" / f"{name}.csv", header, table)
            for au in (6, 10, 12, 14, 17):
                levels = np.stack([table[:, 0], rng.integers(0, 6, ROWS)], axis=1)
                _write(root / "AUCoding" / "AU_INT" / f"AU{au:02d}" / f"{name}_AU{au:02d}.csv", None, levels)
            images = root / "2D+3D" / person / f"T{task}"
            images.mkdir(parents=True)
            for frame in range(first, first + ROWS):
                (images / f"{frame:04d}.jpg").touch()
    return len(people) * TASKS * ROWS


def _write(path: Path, header: str | None, table: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header] if header else []
    path.write_text("\n".join([*lines, *(",".join(map(str, row)) for row in table.tolist())]) + "\n")


def label_seconds(root: Path, rows: int) -> tuple[float, float]:
    """Seconds by the clock and of processor time to read all labels of a copy and join them with the images."""
    start = time.perf_counter(), time.process_time()
    source, defects = open_bp4d(root), Defects()
    read = sum(record["format"] == "bp4d" for clip in source.clips for record in source.read(clip, defects))
    assert read == rows, f"{read} of {rows} rows read: {defects.lines()}"
    return time.perf_counter() - start[0], time.process_time() - start[1]


def command_cost(root: Path, out: Path) -> tuple[float, float, float]:
    """Seconds by the clock and of processor time, and peak memory (MB), of the whole command in one process."""
    words = [sys.executable, HOME / "prepare_data.py", "bp4d", "--root", root, "--out", out, "--workers", "1"]
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError("prepare_data.py failed, see above")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main(arguments: argparse.Namespace) -> int:
    people = PEOPLE[:: arguments.every]
    with tempfile.TemporaryDirectory() as folder:
        small, whole = Path(folder, "small"), Path(folder, "whole")
        rows_of_small, rows = write_copy(small, people[::8]), write_copy(whole, people)
        clock, seconds = label_seconds(whole, rows)
        table = make_table("what", "processor s", "s by the clock", "peak MB", text=["what"])
        labels = f"labels of {len(people) * TASKS} recordings, {rows:,} rows"
        table.add_row(labels, f"{seconds:.1f}", f"{clock:.1f}", "")
        for root, count in ((small, rows_of_small), (whole, rows)):
            clock, spent, memory = command_cost(root, root / "out")
            what = f"prepare_data.py, {count:,} images in two formats"
            table.add_row(what, f"{spent:.1f}", f"{clock:.1f}", f"{memory:.0f}")
    show([table], arguments.write)
    if seconds > LIMIT:
        print(f"reading.py: labels took longer than {LIMIT:.0f} s", file=sys.stderr)
    return int(seconds > LIMIT)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every k-th person, for a quick try (default: 1)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
