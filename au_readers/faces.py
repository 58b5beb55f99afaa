"""What readers of faces without labels share: the cropped face, its records, and what the weak teacher believes.

A record holds, beside the fixed columns, `margin`, `weak` and `coded` (see `UNLABELLED_METADATA`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from datasets import List, Value

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import Defects
from au_llava.au_datasets.weak_teacher import WeakTeacher
from au_llava.au_faces.crop import Point
from au_llava.au_faces.landmarks import Landmarker, Measured
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.table import NoRow
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.source import Clip, Picture

TEACHERS = ("none", "mediapipe")
UNLABELLED_METADATA = {"margin": Value("float32"), "weak": List(Value("float32")), "coded": Value("bool")}
NOTE = "these faces carry no labels: train on them as --unlabelled, and never score against their weak values"
MEASURED_SIZE, MEASURED_MARGIN = 256, 0.25  # of the crop that the landmarker sees: its mesh network takes 256 x 256


@dataclass(frozen=True)
class FoundFace:
    """A cropped face, and where it was."""

    crop: Picture
    margin: float  # of the crop, as a share of its side without the margin
    photo: Photo
    eyes: tuple[Point, Point]

    def measure(self) -> Measured | None:
        """Measure it with the landmarker; None if that finds no face."""
        return landmarker()(self.photo.crop(self.eyes, MEASURED_SIZE, MEASURED_MARGIN))


def find_face(picture: Picture, crop: Crop, where: str, defects: Defects) -> FoundFace | None:
    """The largest face of a picture; None, which is counted, if there is none or the picture cannot be read."""
    try:
        photo = picture.photo()
        photo.at_least()
    except (OSError, ValueError) as error:
        defects.add("pictures that cannot be read, left out", f"{where}: {error}")
        return None
    try:
        eyes = crop.eyes(picture, photo)
        if eyes is None:
            defects.add("pictures without a face, left out", where)
            return None
        cut = crop.cut(photo, eyes)
    except NoRow as error:
        defects.add("pictures without a row in the table of faces, left out", f"{where}: {error}")
    except ValueError as error:
        defects.add("pictures with impossible positions of the eyes, left out", f"{where}: {error}")
    else:
        margin = (cut.width - crop.size) / 2 / crop.size
        return FoundFace(Picture(picture.path, picture.number, cut), margin, photo, eyes)
    return None


def face_records(
    dataset: str,
    clip: Clip,
    frame: int,
    crop: Picture,
    margin: float,
    weak: Mapping[str, list[float]],
    coded: bool = False,
    metadata: Mapping = {},
) -> Iterator[dict]:
    """The records of one face, without their `part`: one per format of `weak`, with no value known.

    Args:
        crop, margin: as in `FoundFace`.
        weak: format name -> weak values, shares of the scale from 0 to 1 in the order of its labels, NaN if unknown.
        coded: whether the weak values are codes by eye.
        metadata: further columns.
    """
    for name, believed in weak.items():
        yield {
            "image": crop,
            "dataset": dataset,
            "subject": clip.subject,
            "clip": clip.name,
            "frame": frame,
            "format": name,
            "values": [math.nan] * len(FORMATS[name].labels),
            "margin": margin,
            "weak": believed,
            "coded": coded,
            **metadata,
        }


def weak_values(blendshapes: np.ndarray | None, formats: Sequence[str]) -> dict[str, list[float]]:
    """Format -> the teacher's estimates for a face with these blendshapes (52,); all NaN if there are none."""
    if blendshapes is None:
        return {name: [math.nan] * len(FORMATS[name].labels) for name in formats}
    return {name: weak_teacher().values(blendshapes[None], name)[0].tolist() for name in formats}


def check_teacher(teacher: str, measures: bool = True) -> None:
    """Raise ValueError if the teacher, or the landmarker if it `measures` pictures, cannot be used."""
    if teacher != "none":
        weak_teacher()
        if measures:
            landmarker()


@lru_cache(maxsize=1)  # once per process
def weak_teacher() -> WeakTeacher:
    return WeakTeacher.load()


@lru_cache(maxsize=1)  # once per process
def landmarker() -> Landmarker:
    """MediaPipe's face landmarker. Raises ValueError if it is not installed."""
    return Landmarker()
