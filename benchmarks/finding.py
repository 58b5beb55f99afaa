"""What finding and cropping faces costs, beside OpenCV's detector on whole pictures of 1024 and 320 pixels.

    OMP_NUM_THREADS=1 python benchmarks/finding.py --write finding
    OMP_NUM_THREADS=1 python benchmarks/finding.py --minutes 60   # does memory stay as it is?

Pictures and videos are those of end_to_end.py. *OpenCV* decodes them whole and searches each one and each frame twice
with `cv2.FaceDetectorYN`, as this package did before. Times are processor seconds of one thread; the two take turns.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from end_to_end import FPS, make_pictures, make_video
from page import add_write_option, make_table, runner, show
from PIL import Image

from au_llava.au_faces.crop import crop_face
from au_llava.au_faces.detect import MIN_CONFIDENCE, YuNet
from au_llava.au_faces.media import video_frames
from au_llava.au_faces.track import Track
from au_llava.au_recognition.runner import Plan, with_faces
from au_llava.au_runs.commands import CommandParser
from au_llava.pictures_au_llava import load_face_image

SIZE = 96  # of a crop


def plan_of(files: Sequence[Path], detector: YuNet) -> Plan:
    """Pictures one by one, or a video."""
    parts = tuple(file if file.suffix == ".mp4" else (file,) for file in files)
    return Plan(parts, partial(Track, detector), SIZE, formats=(), decoding="slots", batch_size=16)


def ours(detector: YuNet, files: Sequence[Path]) -> int:
    """Find and crop the faces; returns their number."""
    plan = plan_of(files, detector)
    chunks = with_faces(plan, range(len(files)), lambda part, chunk: True)
    return sum(len(frame["faces"]) for _, frames in chunks for frame in frames)


def with_opencv(detector: YuNet, files: Sequence[Path]) -> int:
    """As `ours`, the way it was done before."""
    import cv2

    network = cv2.FaceDetectorYN.create(str(detector.path), "", (320, 320), MIN_CONFIDENCE)
    count = 0
    for image in pictures_in(files):
        for longest in (1024, 320):
            scale = min(1, longest / max(image.size))
            size = tuple(round(scale * side) for side in image.size)
            small = image if scale == 1 else image.resize(size, Image.Resampling.BOX)
            network.setInputSize(size)
            rows = network.detect(np.ascontiguousarray(np.asarray(small)[..., ::-1]))[1]
        for row in () if rows is None else rows:
            crop_face(image, row[4:8].reshape(2, 2) / scale, SIZE)
            count += 1
    return count


def pictures_in(files: Sequence[Path]) -> Iterator[Image.Image]:
    """The pictures, or a video's frames, as they are."""
    for file in files:
        if file.suffix == ".mp4":
            yield from (frame.image for frame in video_frames(file))
        else:
            yield load_face_image(file)


def measure(systems: Sequence[Callable], files: Sequence[Path], count: int, repeats: int) -> list[float]:
    """Milliseconds for each of `count` pictures or frames with one face, for each system, the best of some turns.

    Raises:
        ValueError: a system finds another number of faces.
    """
    best = [np.inf] * len(systems)
    for _ in range(repeats):
        for number, system in enumerate(systems):
            start = time.process_time()
            found = system(files)
            best[number] = min(best[number], 1000 * (time.process_time() - start) / count)
            if found != count:
                raise ValueError(f"{found} faces were found in {count} pictures with one face each.")
    return best


def hold(minutes: float, detector: YuNet, folder: Path) -> None:
    """Find the faces of a long video, and print after each tenth how large the process has become."""
    frames = round(60 * FPS * minutes)
    video = make_video(folder, 256, 256, frames)
    done, told = 0, 0
    for _, found in with_faces(plan_of([video], detector), [0], lambda part, chunk: True):
        done += len(found)
        if 10 * done // frames > told:
            told = 10 * done // frames
            megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{done / FPS / 60:.1f} minutes, {done} frames: {megabytes:.0f} MB at most")


def main(arguments: argparse.Namespace) -> None:
    import cv2

    cv2.setNumThreads(1)
    detector = YuNet()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if arguments.minutes:
            hold(arguments.minutes, detector, folder)
            return
        works = []
        for name, size in {"1350 x 1350": (1350, 1350), "12 megapixels": (4000, 3000)}.items():
            files = make_pictures(folder, *size, arguments.pictures)
            works.append((f"picture of {name}", files, arguments.pictures))
        for width, height in ((512, 512), (1280, 720)):
            files = [make_video(folder, width, height, arguments.frames)]
            works.append((f"video of {width} x {height}, a frame", files, arguments.frames))
        table = make_table("what", "OpenCV, ms", "ours, ms", "times", text=["what"], caption="One face each.")
        for what, files, count in works:
            before, now = measure(
                [partial(with_opencv, detector), partial(ours, detector)], files, count, arguments.repeats
            )
            table.add_row(what, f"{before:.1f}", f"{now:.1f}", f"{before / now:.1f}")
    show([table], arguments.write)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--pictures", type=int, default=20, help="of each size (default: 20)")
    parser.add_argument("--frames", type=int, default=150, help="of each video (default: 150)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the best one counts (default: 3)")
    parser.add_argument("--minutes", type=float, default=0, help="measure memory over a video of this length instead")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
