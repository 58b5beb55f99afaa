"""Reads where the eyes look, relative to the head.

A small network (0.13 million parameters) sees both eyes, cut out of the picture itself, since a face crop of 96 pixels
has six for an iris, and where the head is turned. `maintenance/fit_gaze.py` trains it on rendered heads, whose gaze is
known.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from au_llava.au_faces.box import rotation_of
from au_llava.au_faces.crop import EYE_DISTANCE, Face, Point, cut_square
from au_llava.au_faces.network import open_network
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import eyes_of
from au_llava.au_runs.files import HOME

MODEL = HOME / "assets" / "gaze.onnx"
GAZE = ("AU61", "AU62", "AU63", "AU64")  # to the person's left, to the right, up, down
UNIT = 48  # pixels of the strip that the network looks at, per distance between the eyes
HEIGHT, WIDTH = 32, 96  # of the strip; each eye is in the middle of its half
SEEN = 0.5  # probability from which the eyes count as open and visible
LEAST = 16  # pixels of the picture between the eyes; below, they show nothing


def aus_of_gaze(left: float, up: float) -> dict[str, float]:
    """AU61 to AU64, from 0 to 1, of eyes that are turned to the person's left and up, each from -1 to 1."""
    return {label: min(max(0.0, way), 1.0) for label, way in zip(GAZE, (left, -left, up, -up), strict=True)}


def read_gaze(photo: Photo, face: Face) -> dict[str, float] | None:
    """Where the eyes of a face look: AU61 to AU64, as shares of the eyes' full movement in the head.

    Both eyes are read together. None if the eyes are closed, covered or less than `LEAST` pixels apart, or if it is not
    known where the head is turned.

    Args:
        photo: the picture of the face.
        face: as the detector places it or `with_pose` gives it.

    Raises:
        FileNotFoundError: the network is missing.
    """
    eyes = eyes_of(face)
    if face.pose is None or np.hypot(*np.subtract(*eyes)) < LEAST:
        return None
    image, factor = photo.showing(eyes, round(UNIT / EYE_DISTANCE))
    inputs = {
        "strips": cut_strip(image, np.asarray(eyes) / factor, UNIT, WIDTH, HEIGHT).transpose(2, 0, 1)[None],
        "ahead": ahead_in_strip(np.array(rotation_of(face.pose)), eyes)[None],
    }
    [[left, up, seen]] = gaze_network().run(None, {name: np.float32(each) for name, each in inputs.items()})[0].tolist()
    return aus_of_gaze(left, up) if 1 / (1 + np.exp(-seen)) >= SEEN else None


@cache
def gaze_network():
    """The one network of this process. Raises FileNotFoundError if its file is missing."""
    if not MODEL.is_file():
        raise FileNotFoundError(f"There is no network of the gaze at {MODEL}: restore it from the repository.")
    return open_network(MODEL.read_bytes())


def cut_strip(image: Image.Image, eyes: Sequence[Point], unit: int, width: int, height: int) -> np.ndarray:
    """Both eyes of a face, level: (height, width, 3) uint8, the middle between the eyes in its middle.

    Args:
        image: RGB.
        eyes: in pixels of the image, as `crop_face` takes them.
        unit: pixels of the strip per distance between the eyes.
    """
    right, left = np.asarray(eyes, dtype=float)
    distance = np.hypot(*(left - right))
    along = (left - right) / distance
    down = np.array([-along[1], along[0]])
    scale = distance / unit
    square = cut_square(image, (right + left) / 2 - scale * width / 2 * (along + down), along, scale, width)
    above = (width - height) // 2
    return np.asarray(square)[above : above + height]


def ahead_in_strip(rotation: np.ndarray, eyes: Sequence[Point]) -> np.ndarray:
    """(2,) where the face points in the strip of its eyes: how far to the right and up, of a length of 1 in space.

    Args:
        rotation: (3, 3) of the head in the picture, as `PlacedFace` has it.
        eyes: in pixels, as `crop_face` takes them.
    """
    right, left = np.asarray(eyes) @ [1, 1j]
    along = (left - right) / abs(left - right)
    ahead = (rotation[0, 2] + 1j * rotation[1, 2]) * along  # the picture's y points down, the direction's up
    return np.array([ahead.real, ahead.imag])
