"""How well is the gaze read? Against rendered people, whose gaze is known, and beside MediaPipe on photographs.

    python benchmarks/gaze.py --fairface FAIRFACE --write gaze

Faces are detected and read as `recognize_au.py --derive arkit` does it. A correlation is Pearson's, of the gaze to the
person's left (AU61 less AU62) and up (AU63 less AU64), with a 95 % bootstrap interval over people. MediaPipe's
blendshapes are another network's estimate, not the truth: on rendered faces they lean against the head's turn.
Photographs are one in `SHARE` by a hash of their name. The network of the gaze has seen none of these heads and no
photograph.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from page import add_write_option, make_table, runner, show
from PIL import Image
from scipy.stats import bootstrap

from au_llava.au_faces.crop import EYE_DISTANCE
from au_llava.au_faces.detect import YuNet
from au_llava.au_faces.gaze import GAZE, read_gaze
from au_llava.au_faces.landmarks import BLENDSHAPES
from au_llava.au_faces.photo import Photo
from au_llava.au_readers.fairface import blendshape_order
from au_llava.au_readers.files import find_files
from au_llava.au_readers.source import Picture
from au_llava.au_rendering.activations import SHUT, sample_activations
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.view import View, sample_view
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.progress import track

SEED = 124  # no other part of the project draws people with it
SIZES = (96, 160, 320)  # pixels of rendered pictures
SCALE = 0.6  # of the heads in them
TURNS = ((0, 15), (15, 30), (30, 45))  # degrees that rendered heads are turned to one side
SHARE = 25  # one photograph of so many is read


@dataclass(frozen=True)
class Case:
    """One face: the gaze of the reference and ours, (left, up) from -1 to 1, ours None if nothing was read."""

    truth: np.ndarray
    read: np.ndarray | None
    closed: bool
    yaw: float = 0.0
    size: int = 0
    glasses: bool = False


def rendered(count: int) -> Iterator[Case]:
    """Cases of heads that look anywhere, turned evenly up to 45 degrees to each side."""
    detector = YuNet()
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        subject, strengths, usual = sample_subject(SEED, number), sample_activations(rng), sample_view(rng)
        size, gaze, yaw = SIZES[number % len(SIZES)], rng.uniform(-1, 1, 2), float(rng.uniform(-45, 45))
        view = View(
            yaw=yaw,
            pitch=usual.pitch,
            roll=usual.roll,
            distance=usual.distance,
            scale=SCALE,
            shift=(0.0, 0.08),
            gaze=tuple(gaze.tolist()),
            key_azimuth=usual.key_azimuth,
            environment=usual.environment,
            jpeg_quality=usual.jpeg_quality,
        )
        pixels, _ = picture(subject, strengths, view, size, rng)
        closed = min(strengths.get("AU43L", 0.0), strengths.get("AU43R", 0.0)) >= SHUT
        yield Case(gaze, read(detector, Image.fromarray(pixels)), closed, yaw, size, subject.look.glasses is not None)


def photographs(root: Path) -> Iterator[Case]:
    """Cases of FairFace's photographs with MediaPipe's blendshapes."""
    detector = YuNet()
    for _, path in find_files(root, r"(train|val|validation)-\d+-of-\d+\.parquet"):
        order = blendshape_order(path)
        for batch in pq.ParquetFile(path).iter_batches(200, columns=["image", "file", "blendshapes"]):
            for each in batch.to_pylist():
                if not each["blendshapes"] or int(hashlib.sha256(each["file"].encode()).hexdigest(), 16) % SHARE:
                    continue
                shapes = dict(zip(BLENDSHAPES, np.array(each["blendshapes"])[order], strict=True))
                image = Picture(each["file"], content=each["image"]["bytes"]).open()
                closed = min(shapes["eyeBlinkLeft"], shapes["eyeBlinkRight"]) >= SHUT
                yield Case(gaze_of_shapes(shapes), read(detector, image), closed)


def gaze_of_shapes(shapes: dict[str, float]) -> np.ndarray:
    """(left, up) of ARKit's shapes, the mean of both eyes."""
    look = {way: [shapes[f"eyeLook{way}{side}"] for side in ("Left", "Right")] for way in ("Up", "Down", "In", "Out")}
    left = look["Out"][0] + look["In"][1] - look["In"][0] - look["Out"][1]
    return np.array([left, sum(look["Up"]) - sum(look["Down"])]) / 2


def read(detector: YuNet, image: Image.Image) -> np.ndarray | None:
    """(left, up) of the largest face."""
    photo = Photo(image)
    faces = detector(photo)
    gaze = read_gaze(photo, faces[0]) if faces else None
    if gaze is None:
        return None
    left, right, up, down = (gaze[label] for label in GAZE)
    return np.array([left - right, up - down])


def row(name: str, cases: Sequence[Case]) -> list[str]:
    """Name, faces with open eyes, how many of them are not read, and both correlations with intervals."""
    seen = [case for case in cases if not case.closed]
    pairs = [(case.truth, case.read) for case in seen if case.read is not None]
    cells = []
    for truth, ours in np.array(pairs).transpose(2, 1, 0):
        value = np.corrcoef(truth, ours)[0, 1]
        low, high = bootstrap(
            (truth, ours), _pcc, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=0
        ).confidence_interval
        cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
    return [name, str(len(seen)), str(len(seen) - len(pairs)), *cells]


def _pcc(one: np.ndarray, other: np.ndarray) -> float:
    return np.corrcoef(one, other)[0, 1]


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--heads", type=int, default=900, help="heads to render (default: 900)")
    parser.add_argument("--fairface", type=Path, help="copy of FairFace with blendshapes (default: none)")
    add_write_option(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    table = make_table(
        *("faces", "number", "not read", "to the left", "up"),
        text=("faces",),
        title="Correlation of the gaze (95 % interval over people)",
    )
    cases = list(track(rendered(arguments.heads), "Rendering heads", total=arguments.heads))
    kinds: dict[str, Callable[[Case], bool]] = {"rendered": lambda case: True}
    for side in SIZES:
        name = f"rendered, eyes {EYE_DISTANCE * SCALE * side:.0f} pixels apart"
        kinds[name] = lambda case, side=side: case.size == side
    for low, high in TURNS:
        name = f"rendered, turned {low} to {high} degrees"
        kinds[name] = lambda case, low=low, high=high: low <= abs(case.yaw) < high
    kinds["rendered, with spectacles"] = lambda case: case.glasses
    for name, belongs in kinds.items():
        chosen = [case for case in cases if belongs(case)]
        if sum(case.read is not None and not case.closed for case in chosen) > 2:
            table.add_row(*row(name, chosen))
    shut = [case.read is None for case in cases if case.closed]
    table.caption = f"Of {len(shut)} rendered heads with closed eyes {sum(shut)} are not read."
    if arguments.fairface:
        total = sum(pq.read_metadata(path).num_rows for path in arguments.fairface.glob("*.parquet")) // SHARE
        found = list(track(photographs(arguments.fairface), "Reading photographs", total=total))
        table.add_row(*row("photographs, beside MediaPipe", found))
    show([table], arguments.write)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
