"""Evaluating and preparing with this version of the package beside an older one, on the same files in one run.

    git worktree add runs/before 4957c54
    python benchmarks/versions.py --before runs/before --data data/rendered-test --write versions

Both run as processes of their own on one core, in turns, each with the checkpoint that lies in its folder: `eval_au.py`
on the test part of --data, and `prepare_data.py table --crop 96` on portraits (see end_to_end.py) of two sizes. Times
are processor seconds of whole commands, user and system, start included; the least of the turns counts. Packages are
those of this environment for both.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from end_to_end import Run, make_pictures, measure
from page import add_write_option, make_table, runner, show

from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME

SIZES = ((1024, 768), (1350, 1350))  # pixels; frames of DISFA, and nearly those of BP4D


def make_table_of_faces(folder: Path, width: int, height: int, count: int) -> Path:
    """A table for `prepare_data.py table` with pictures of this size, half of them with a made-up AU12."""
    path = folder / f"{width}x{height}.csv"
    with path.open("w", newline="") as file:
        write = csv.writer(file).writerow
        write(["image", "subject", "AU12"])
        for number, picture in enumerate(make_pictures(folder, width, height, count)):
            write([picture, number // 10, 3 * (number % 2)])
    return path


def jobs(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list]]:
    """What is measured -> words of the command, without the folder of its code and without --out."""
    yield "eval_au.py", ["eval_au.py", "--model", ".", "--data", arguments.data.resolve()]
    for width, height in SIZES:
        table = make_table_of_faces(folder, width, height, arguments.pictures)
        words = ["prepare_data.py", "table", "--root", table, "--format", "disfa", "--crop", 96, "--workers", 1]
        yield f"prepare_data.py --crop, {arguments.pictures} pictures of {width} x {height}", words


def in_turns(words: list, versions: Mapping[str, Path], folder: Path, arguments: argparse.Namespace) -> dict[str, Run]:
    """Version -> the least processor time of its turns, and the most memory."""
    runs = {name: [] for name in versions}
    for turn in range(arguments.repeats):
        for name, code in versions.items():
            place = folder / name
            place.mkdir(exist_ok=True)
            if not (place / "au_llava").exists():  # the package is the folder that lies in `place` under its name
                (place / "au_llava").symlink_to(code, target_is_directory=True)
            with tempfile.TemporaryDirectory(dir=folder) as out:
                script, *options = words
                options = [code if word == "." else word for word in options]
                command = [code / script, *options, "--out", Path(out) / str(turn)]
                runs[name].append(measure(command, arguments.core, {"PYTHONPATH": str(place)}))
    return {
        name: Run(min(run.seconds for run in several), max(run.megabytes for run in several))
        for name, several in runs.items()
    }


def main(arguments: argparse.Namespace) -> None:
    if min(arguments.pictures, arguments.repeats) < 1:
        raise ValueError("--pictures and --repeats must be positive.")
    if not (arguments.before / "eval_au.py").is_file():
        raise ValueError(
            f"{arguments.before} is not a clone of this project: git worktree add {arguments.before} COMMIT"
        )
    versions = {"before": arguments.before.resolve(), "now": HOME}
    table = make_table(
        *("command", "before, s", "now, s", "times faster", "before, MB", "now, MB"),
        text=["command"],
        caption="Processor time on one core, start included.",
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, words in jobs(arguments, folder):
            costs = in_turns(words, versions, folder, arguments)
            seconds = [costs[version].seconds for version in versions]
            memory = [f"{costs[version].megabytes:.0f}" for version in versions]
            table.add_row(name, *(f"{each:.1f}" for each in seconds), f"{seconds[0] / seconds[1]:.1f}", *memory)
    show([table], arguments.write)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="clone of this project at the older version")
    parser.add_argument("--data", type=Path, required=True, help="records that both can read")
    parser.add_argument("--pictures", type=int, default=100, help="to prepare, of each size (default: 100)")
    parser.add_argument("--repeats", type=int, default=2, help="turns; the best one counts (default: 2)")
    parser.add_argument("--core", type=int, default=0, help="the core that both run on (default: 0)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
