"""The geometry of a face crop: square, the eyes level, a fixed distance apart at a fixed height.

Rendered faces have the same geometry, and the shipped checkpoint is trained on it: training data and recognition share
`crop_face`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

EYE_DISTANCE = 0.34  # of the crop's side; the crop shows brows to chin, as is usual for AUs
EYE_HEIGHT = 0.35  # of the crop's side, from the top; horizontally the eyes' midpoint is centered

Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """Where one face is, in pixels from the upper left corner of the picture."""

    eyes: tuple[Point, Point] | None  # as `crop_face` takes them; None: the picture is a face crop already
    box: tuple[float, float, float, float]  # left, top, width, height
    confidence: float | None  # of the detector, 0 to 1; None if unknown
    face_id: int | None = None  # if the user gave one
    points: tuple[Point, ...] | None = None  # right eye, left eye, nose, right and left corner of the mouth, if known
    pose: tuple[float, float, float] | None = None  # `pose_Rx`, `pose_Ry`, `pose_Rz` as `head_pose` gives them


def crop_face(image: Image.Image, eyes: Sequence[Point], size: int, margin: float = 0.0) -> Image.Image:
    """Crop one face to a square, aligned by the eyes.

    Beyond the picture its border is repeated. A face that shrinks is averaged, not sampled.

    Args:
        image: RGB.
        eyes: (x, y) of the middle of the person's right eye (on the left of the picture), then of the left one, in
            pixels from the upper left corner of the picture.
        size: side of the crop in pixels.
        margin: share of `size` to keep on every side, for training that turns and shifts the crop.

    Returns:
        RGB, a square of side round(size * (1 + 2 * margin)), whose middle is the crop without a margin.

    Raises:
        ValueError: the eyes are less than a pixel apart or outside the picture.
    """
    check_eyes(eyes, image.size)
    right, left = np.asarray(eyes, dtype=float)
    distance = float(np.hypot(*(left - right)))
    along = (left - right) / distance  # one step to the right in the crop, as a direction in the picture
    down = np.array([-along[1], along[0]])
    scale = distance / (EYE_DISTANCE * size)  # pixels of the picture per pixel of the crop
    side = round(size * (1 + 2 * margin))
    beyond = (side - size) / 2
    corner = (left + right) / 2 - scale * ((0.5 * size + beyond) * along + (EYE_HEIGHT * size + beyond) * down)
    return cut_square(image, corner, along, scale, side)


def check_eyes(eyes: Sequence[Point], size: tuple[int, int]) -> None:
    """Raise ValueError if the eyes are less than a pixel apart or outside a picture of this (width, height)."""
    right, left = np.asarray(eyes, dtype=float)
    distance = float(np.hypot(*(left - right)))
    if not (distance >= 1 and (np.array([right, left]) >= 0).all() and (np.array([right, left]) <= size).all()):
        raise ValueError(
            f"The eyes {right.tolist()} and {left.tolist()} cannot be those of a face in a picture of "
            f"{size[0]} x {size[1]} pixels."
        )


def cut_square(image: Image.Image, corner: Point, along: Point, scale: float, side: int) -> Image.Image:
    """Cut a turned square out of a picture.

    Beyond the picture its border is repeated. What shrinks is averaged, not sampled.

    Args:
        image: RGB.
        corner: (x, y) of the square's upper left corner in the picture, in pixels.
        along: direction of the square's upper edge in the picture, of length 1.
        scale: pixels of the picture per pixel of the result.
        side: of the result, in pixels.
    """
    along, down = np.array(along), np.array([-along[1], along[0]])
    steps = scale * side * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    corners = corner + steps[:, :1] * along + steps[:, 1:] * down
    lowest = np.floor(corners.min(axis=0)).astype(int) - 2  # two more for the interpolation
    highest = np.ceil(corners.max(axis=0)).astype(int) + 2
    region = _with_border(image, lowest, highest)
    shrink = max(scale, 1.0)
    if shrink > 1:
        small = [max(1, round(side / shrink)) for side in region.size]
        shrunk = np.array(small) / region.size
        region = region.resize(small, Image.Resampling.BICUBIC)
    else:
        shrunk = np.ones(2)
    x, y = (corner - lowest) * shrunk
    (a, d), (b, e) = scale * along * shrunk, scale * down * shrunk
    return region.transform((side, side), Image.Transform.AFFINE, (a, b, x, d, e, y), Image.Resampling.BICUBIC)


def _with_border(image: Image.Image, lowest: np.ndarray, highest: np.ndarray) -> Image.Image:
    """The rectangle from `lowest` to `highest` (x, y); beyond the picture its border is repeated."""
    width, height = image.size
    inside = np.clip([*lowest, *highest], 0, [width, height, width, height])
    region = image.crop(tuple(inside))
    (before_x, before_y), (after_x, after_y) = inside[:2] - lowest, highest - inside[2:]
    if not (before_x or before_y or after_x or after_y):
        return region
    pixels = np.asarray(region)
    return Image.fromarray(np.pad(pixels, ((before_y, after_y), (before_x, after_x), (0, 0)), mode="edge"))


def overlap(box: Sequence[float], others: Sequence) -> np.ndarray:
    """Intersection over union of a box (left, top, width, height) with one or several (..., 4)."""
    box, others = np.asarray(box, dtype=float), np.asarray(others, dtype=float)
    corner, size, corners, sizes = box[:2], box[2:], others[..., :2], others[..., 2:]
    sides = np.minimum(corner + size, corners + sizes) - np.maximum(corner, corners)
    shared = sides.clip(0).prod(axis=-1)
    return shared / (size.prod() + sizes.prod(axis=-1) - shared)
