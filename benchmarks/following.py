"""How near a face's box is to where the face is, in videos whose motion is known: searched in every frame, or followed.

    OMP_NUM_THREADS=1 python benchmarks/following.py --photographs data/london_set --write following

*Searched* is the detector's box in every frame; *followed* is what recognize_au.py takes, a search now and then and the
points of the face between. Photographs sway, come closer and tilt; where the face lies in a photograph is the median of
the detector's boxes in all frames, their motion taken off. Rendered heads turn by 30 degrees to either side, nod and
smile; the course of their boxes is the detector's, smoothed over 13 frames. *Off* is the largest distance of a side
from there, *jumps* the share of frames in which a side moves by more than 2 pixels against it since the last frame.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from end_to_end import FPS
from page import add_write_option, make_table, runner, show
from PIL import Image
from scipy.signal import savgol_filter

from au_llava.au_faces.detect import YuNet
from au_llava.au_faces.media import Frame
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.track import Track
from au_llava.au_rendering.pictures import render_face
from au_llava.au_rendering.view import View
from au_llava.au_runs.commands import CommandParser
from au_llava.pictures_au_llava import load_face_image

SIZE = (640, 480)  # of a frame with a photograph
SIDE = 320  # of a frame with a rendered head
JUMP = 2  # pixels
SMOOTH, DEGREE = 13, 3  # frames and degree of the polynomial that smooths the course of a box


@dataclass(frozen=True)
class Motion:
    """Where the middle of a photograph is in one frame."""

    x: float
    y: float
    zoom: float  # pixels of the frame per pixel of the photograph
    roll: float  # radians, clockwise

    def show(self, photo: Image.Image) -> Image.Image:
        along, down = np.cos(self.roll) / self.zoom, np.sin(self.roll) / self.zoom
        left = photo.width / 2 - along * self.x - down * self.y
        top = photo.height / 2 + down * self.x - along * self.y
        matrix = (along, down, left, -down, along, top)
        return photo.transform(
            SIZE, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)
        )

    def there(self, box: np.ndarray) -> np.ndarray:
        """A box of the frame, as (right of the photograph's middle, below it, width, height) in the photograph."""
        turned = (complex(*(box[:2] + box[2:] / 2)) - complex(self.x, self.y)) * np.exp(-1j * self.roll)
        return np.array([turned.real, turned.imag, *box[2:]]) / self.zoom

    def back(self, there: np.ndarray) -> np.ndarray:
        """The box in the frame: the way back."""
        middle = complex(*there[:2]) * np.exp(1j * self.roll) * self.zoom + complex(self.x, self.y)
        sides = there[2:] * self.zoom
        return np.array([middle.real - sides[0] / 2, middle.imag - sides[1] / 2, *sides])


def motions(rng: np.random.Generator, count: int, speed: float, side: int) -> list[Motion]:
    """How a square photograph with this side moves through a clip; at speed 1 it sways about once in three seconds."""
    seconds = np.arange(count) / FPS
    pace, start = rng.uniform(0.3, 1, 4) * speed, rng.uniform(0, 2 * np.pi, 4)
    x, y, zoom, roll = np.sin(3 * pace[:, None] * seconds + start[:, None])
    zoom = (0.75 + 0.2 * zoom) * SIZE[1] / side
    return list(map(Motion, SIZE[0] * (0.5 + 0.15 * x), SIZE[1] * (0.5 + 0.06 * y), zoom, 0.3 * roll))


def turning(subject: int, count: int) -> Iterator[Image.Image]:
    """A rendered head that turns, nods, tilts and smiles."""
    for step in range(count):
        smile = 0.5 - 0.5 * np.cos(step / 6)
        yaw, pitch, roll = 30 * np.sin(step / 7 + subject), 12 * np.sin(step / 5), 8 * np.sin(step / 9)
        view = View(yaw=yaw, pitch=pitch, roll=roll, scale=0.6 + 0.08 * np.sin(step / 8))
        yield Image.fromarray(
            render_face(dict.fromkeys(("AU6", "AU12", "AU25"), smile), subject=subject, seed=3, size=SIDE, view=view)
        )


def boxes_of(detector: YuNet, frames: Sequence[Image.Image]) -> np.ndarray:
    """(2, frames, 4) the box of the one face, searched in every frame and followed; NaN where it was not found."""
    track, boxes = Track(detector), np.full((2, len(frames), 4), np.nan)
    for number, image in enumerate(frames):
        photo = Photo(image)
        searched = [found.face for found in detector.survey(photo)]
        followed = track(photo, Frame(Path("clip"), number + 1, number / FPS, image))
        for row, faces in zip(boxes, (searched, followed), strict=True):
            row[number] = faces[0].box if faces else np.nan
    return boxes


def of_photograph(detector: YuNet, photo: Image.Image, clip: Sequence[Motion]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of a photograph that moves so, as `boxes_of` gives them, and where they should be (frames, 4)."""
    boxes = boxes_of(detector, [motion.show(photo) for motion in clip])
    place = np.nanmedian([motion.there(box) for motion, box in zip(clip, boxes[0], strict=True)], axis=0)
    return boxes, np.array([motion.back(place) for motion in clip])


def of_head(detector: YuNet, subject: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As `of_photograph`, of a rendered head."""
    boxes = boxes_of(detector, list(turning(subject, count)))
    return boxes, savgol_filter(boxes[0], SMOOTH, DEGREE, axis=0)


def row_of(what: str, clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """The cells of one kind of video.

    Raises:
        ValueError: a face was not found in more than one frame of twenty, so that boxes say little.
    """
    apart = [boxes - expected for boxes, expected in clips]  # (2, frames, 4) each
    off = np.concatenate([np.abs(each).max(axis=-1) for each in apart], axis=1)
    jumps = np.concatenate([np.abs(np.diff(each, axis=1)).max(axis=-1) for each in apart], axis=1)
    if np.isnan(off).mean() > 0.05:
        raise ValueError(f"{what}: the face is missing in {100 * np.isnan(off).mean():.0f} % of the frames.")
    width = np.nanmedian(np.concatenate([expected[:, 2] for _, expected in clips]))
    cells = [what, str(off.shape[1]), f"{width:.0f}"]
    for distances, steps in zip(off, jumps, strict=True):
        cells += [f"{value:.1f}" for value in np.nanpercentile(distances, [50, 95, 100])]
        cells.append(f"{100 * (steps[~np.isnan(steps)] > JUMP).mean():.0f} %")
    return cells


def photographs(folder: Path | None, count: int) -> list[Image.Image]:
    """The first square photographs of a folder, or scikit-image's portrait.

    Raises:
        ValueError: the folder holds none.
    """
    if folder is None:
        from skimage import data

        return [Image.fromarray(data.astronaut())]
    paths = sorted(folder.glob("*.jpg"))[:count]
    if not paths:
        raise ValueError(f"{folder} holds no .jpg files.")
    return [load_face_image(path).resize((SIZE[0], SIZE[0]), Image.Resampling.BICUBIC) for path in paths]


def main(arguments: argparse.Namespace) -> None:
    if min(arguments.people, arguments.heads) < 1 or arguments.frames < SMOOTH:
        raise ValueError(f"--people and --heads must be positive, --frames {SMOOTH} or more.")
    measures = ("off, median", "95 %", "worst", "jumps")
    table = make_table(
        *("video", "frames", "width"),
        *(f"{how}: {measure}" for how in ("searched", "followed") for measure in measures),
        text=["video"],
        caption="Pixels; width is the box's, in the median.",
    )
    detector, rng = YuNet(), np.random.default_rng(0)
    photos = photographs(arguments.photographs, arguments.people)
    for what, speed in (("photographs that sway, come closer and tilt", 1), ("three times as fast", 3)):
        clips = [of_photograph(detector, photo, motions(rng, arguments.frames, speed, photo.width)) for photo in photos]
        table.add_row(*row_of(what, clips))
    heads = range(1, 1 + arguments.heads)
    table.add_row(
        *row_of("rendered heads that turn and smile", [of_head(detector, n, arguments.frames) for n in heads])
    )
    show([table], arguments.write)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--photographs", type=Path, help="folder of square portraits (default: scikit-image's one)")
    parser.add_argument("--people", type=int, default=16, help="photographs of it (default: 16)")
    parser.add_argument("--heads", type=int, default=5, help="rendered heads (default: 5)")
    parser.add_argument("--frames", type=int, default=60, help="of each clip (default: 60)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
