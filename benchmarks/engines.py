"""What a user waits for with either engine, ONNX Runtime or PyTorch: whole commands, and the reading alone.

    OMP_NUM_THREADS=1 python benchmarks/engines.py --write engines

Whole commands are `recognize_au.py PICTURES --engine ENGINE --out aus.csv` with three formats, as processes of their
own on one core, on portraits of 512 x 512 (see end_to_end.py). The reading alone is `engine.recognize` of face crops,
with their mirror images as the checkpoint says. Times are processor seconds; the engines take turns, the least counts.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from end_to_end import Run, make_pictures, measure
from page import add_write_option, make_table, runner, show
from PIL import Image

from au_llava.action_units import MAIN_FORMATS
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.engines import ENGINES, Wish, open_engine
from au_llava.au_runs.files import HOME
from au_llava.readings_au_llava import chosen_formats

SIDE = 512  # pixels of a portrait
SAMPLE = HOME / "assets" / "faces" / "smile.png"
KINDS = {  # name -> faces at once, formats, calls that are measured together
    "one face, three formats": (1, MAIN_FORMATS, 20),
    "one face, bp4d": (1, MAIN_FORMATS[:1], 20),
    "batch of 16, three formats": (16, MAIN_FORMATS, 2),
    "batch of 16, bp4d": (16, MAIN_FORMATS[:1], 2),
}


def whole_commands(arguments: argparse.Namespace) -> dict[str, tuple[list[Run], list[Run]]]:
    """Engine -> its runs with one picture, and with all."""
    runs = {engine: ([], []) for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(Path(folder), SIDE, SIDE, 1 + arguments.pictures)
        for turn in range(arguments.repeats):
            for engine, measured in runs.items():
                for files, some in zip((pictures[:1], pictures), measured, strict=True):
                    out = Path(folder) / f"{engine}-{turn}-{len(files)}.csv"
                    words = [HOME / "recognize_au.py", *files, "--formats", *MAIN_FORMATS, "--engine", engine]
                    some.append(measure([*words, "--out", out], arguments.core))
    return runs


def reading_alone(repeats: int) -> dict[str, Mapping[str, float]]:
    """Engine -> kind -> milliseconds a face."""
    engines = {name: open_engine(Wish(str(HOME), chosen_formats(MAIN_FORMATS), engine=name)) for name in ENGINES}
    crop = Image.open(SAMPLE).convert("RGB")
    best = {name: {} for name in ENGINES}
    for kind, (faces, names, calls) in KINDS.items():
        formats = chosen_formats(names)
        for _ in range(1 + repeats):  # the first turn warms up
            for name, engine in engines.items():
                start = time.process_time()
                for _ in range(calls):
                    engine.recognize([crop] * faces, formats)
                best[name].setdefault(kind, []).append(1000 * (time.process_time() - start) / calls / faces)
    return {name: {kind: min(times[1:]) for kind, times in kinds.items()} for name, kinds in best.items()}


def main(arguments: argparse.Namespace) -> None:
    if min(arguments.pictures, arguments.repeats) < 1:
        raise ValueError("--pictures and --repeats must be positive.")
    commands = make_table(
        *(
            "engine",
            "first answer, s",
            "each further picture, ms",
            "MB, 1 picture",
            f"MB, {1 + arguments.pictures} pictures",
        ),
        text=["engine"],
        caption="Processor time on one core; memory is the largest resident set of the process.",
    )
    for engine, (few, many) in whole_commands(arguments).items():
        first, all_of_them = (min(run.seconds for run in runs) for runs in (few, many))
        memory = (f"{max(run.megabytes for run in runs):.0f}" for runs in (few, many))
        commands.add_row(engine, f"{first:.2f}", f"{1000 * (all_of_them - first) / arguments.pictures:.1f}", *memory)
    reading = make_table("engine", *KINDS, text=["engine"], caption="The reading alone: milliseconds a face.")
    for engine, times in reading_alone(arguments.repeats).items():
        reading.add_row(engine, *(f"{times[kind]:.1f}" for kind in KINDS))
    show([commands, reading], arguments.write)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--pictures", type=int, default=20, help="further pictures (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the best one counts (default: 3)")
    parser.add_argument("--core", type=int, default=0, help="the core of whole commands (default: 0)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
