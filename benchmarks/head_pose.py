"""How far off is the head's pose? Against rendered heads, whose pose is known, and against MediaPipe on photographs.

    python benchmarks/head_pose.py --photographs data/london_set --write head-pose

Faces are detected and measured as `recognize_au.py` does it. Angles are OpenFace's (`pose_Rx`, `pose_Ry`, `pose_Rz`),
here in degrees. MediaPipe is another measurement, not the truth; it needs the extra `teacher`. No head and no picture
of this benchmark was trained on, unless you name FairFace's.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from page import add_write_option, make_table, runner, show
from PIL import Image
from scipy.stats import bootstrap

from au_llava.au_faces.detect import YuNet
from au_llava.au_faces.media import IMAGE_SUFFIXES
from au_llava.au_faces.points import head_pose
from au_llava.au_rendering.activations import sample_activations
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import place_points
from au_llava.au_rendering.view import View
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.progress import track

SIZE = 320  # pixels of a rendered picture
SEED = 123  # no other part of the project draws people with it
RANGES = ((0, 20), (20, 40), (40, 60))  # degrees that rendered heads are turned to one side

Pair = tuple[np.ndarray, np.ndarray | None]  # angles (3,) in degrees: the reference's, ours; None if no face was found


def rendered(count: int) -> Iterator[Pair]:
    """Pairs for heads that are turned evenly up to 60 degrees to each side."""
    detector = YuNet()
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        subject, strengths = sample_subject(SEED, number), sample_activations(rng)
        angles = {"yaw": rng.uniform(-60, 60), "pitch": rng.uniform(-25, 25), "roll": rng.uniform(-15, 15)}
        view = View(**angles, scale=0.6, shift=(0.0, 0.08))
        pixels, _ = picture(subject, strengths, view, SIZE, rng)
        _, rotation = place_points(subject.identity, subject.movement(strengths), view, SIZE)
        yield np.degrees(head_pose(rotation)), _pose_of_largest(detector, Image.fromarray(pixels))


def measured(folder: Path) -> Iterator[Pair]:
    """Pairs for the photographs of a folder in which MediaPipe finds a face."""
    from au_llava.au_faces.landmarks import Landmarker
    from au_llava.image_processing_au_llava import load_face_image

    detector, landmarker = YuNet(), Landmarker()
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES):
        image = load_face_image(path)
        found = landmarker(image)
        if found is not None:
            yield np.degrees(head_pose(found.rotation)), _pose_of_largest(detector, image)


def _pose_of_largest(detector: YuNet, image: Image.Image) -> np.ndarray | None:
    faces = detector(image)
    return np.degrees(faces[0].pose) if faces and faces[0].pose else None


def row(name: str, pairs: list[Pair]) -> list[str]:
    """Name, faces, faces without a pose, and the mean absolute error of pitch, yaw and roll with its interval."""
    errors = np.array([np.abs(ours - truth) for truth, ours in pairs if ours is not None])
    cells = []
    for column in errors.T:
        interval = bootstrap((column,), np.mean, n_resamples=1000, method="percentile", rng=0).confidence_interval
        cells.append(f"{column.mean():.1f} ({interval.low:.1f} to {interval.high:.1f})")
    return [name, str(len(pairs)), str(len(pairs) - len(errors)), *cells]


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--heads", type=int, default=600, help="heads to render (default: 600)")
    parser.add_argument("--photographs", type=Path, help="folder of photographs (default: none)")
    add_write_option(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    table = make_table(
        *("faces", "number", "without a pose", "pitch", "yaw", "roll"),
        text=("faces",),
        title="Mean absolute error of the head's pose in degrees (95 % interval over faces)",
    )
    pairs = list(track(rendered(arguments.heads), "Rendering heads", total=arguments.heads))
    for low, high in RANGES:
        turned = [pair for pair in pairs if low <= abs(pair[0][1]) < high]
        if len(turned) > 1:
            table.add_row(*row(f"rendered, turned {low} to {high} degrees", turned))
    if arguments.photographs:
        table.add_row(*row("photographs, against MediaPipe", list(track(measured(arguments.photographs), "Measuring"))))
    show([table], arguments.write)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
