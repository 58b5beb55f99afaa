"""Faces without labels: your own pictures and videos, in any folders below ROOT. Owns what such records hold.

From each picture, and each K-th frame of each video, the largest face is cut out. Nobody says what the faces do: every
value is NaN. Pictures without a face, and files that cannot be read, are left out and counted. Where the crop reaches
beyond the picture, the picture's border is repeated.

Who is one person: by default each file shows somebody else. With --subjects folders, all files below a folder of ROOT
show one person, so that nobody gets into two parts. The data set is named by --name, else after the folder and its
place: face.png of one folder is not that of another.

A record holds, beside the fixed columns, `margin`, the share of the crop's side that was kept beyond it on every side,
and `weak`, what a weak teacher believes: shares of the scale from 0 to 1 in the order of the format's labels, NaN where
it believes nothing. With --teacher mediapipe they come from MediaPipe's blendshapes (weak_teacher.py). They are for
training alone: never score against them.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from datasets import List, Value
from PIL import Image

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import NO_CLIP, Defects
from au_llava.au_datasets.weak_teacher import WeakTeacher
from au_llava.au_faces.crop import Point, crop_face
from au_llava.au_faces.landmarks import Landmarker, Measured
from au_llava.au_faces.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_video
from au_llava.au_faces.table import NoRow
from au_llava.au_readers.files import Clip, Picture, Source, check_root, local_name, missing, video_frames
from au_llava.au_readers.prepare import Crop
from au_llava.au_runs.folders import files_below, told

SUBJECTS = ("files", "folders")
TEACHERS = ("none", "mediapipe")
UNLABELLED_METADATA = {"margin": Value("float32"), "weak": List(Value("float32"))}
NOTE = "these faces carry no labels: train on them as --unlabelled, and never score against their weak values"
MEASURED_SIZE, MEASURED_MARGIN = 256, 0.25  # of the crop that the landmarker sees: its mesh network takes 256 x 256


def open_unlabelled(
    root: Path, crop: Crop, teacher: str = "none", every: int = 1, subjects: str = "files", name: str | None = None
) -> Source:
    """The pictures and videos below `root`.

    Args:
        crop: finds and cuts the faces.
        teacher: one of `TEACHERS`.
        every: take each k-th frame of a video, from the first.
        subjects: one of `SUBJECTS`: what shows one person, a file or a folder in `root` with all that is below it.
        name: the records' `dataset`; by default the folder's `local_name`.

    Raises:
        FileNotFoundError: `root` is no folder, or holds neither pictures nor videos.
        ValueError, OSError: the faces cannot be found, or the teacher cannot be used.
    """
    check_root(root)
    crop.check()
    check_teacher(teacher)
    pictures, clips, defects, left_out = defaultdict(list), [], Defects(), Counter()
    for path in files_below(root, IMAGE_SUFFIXES | VIDEO_SUFFIXES, left_out):
        place = path.relative_to(root)
        if subjects == "folders" and len(place.parts) == 1:
            defects.add("files that lie in no person's folder, left out", place.name)
            continue
        subject = place.parts[0] if subjects == "folders" else place.as_posix()
        if is_video(path):
            clips.append(Clip(subject, place.as_posix(), labels=(path,), images=path))
        else:
            pictures[subject].append(path)
    videos = bool(clips)
    clips += [Clip(subject, NO_CLIP, labels=tuple(paths)) for subject, paths in pictures.items()]
    if not clips and not defects.found:
        besides = f": it holds {told(left_out)}" if left_out else ""
        raise missing(f"no picture and no video below {root}{besides}", root)
    dataset = name or local_name(f"unlabelled-{root.resolve().name}", root)
    return Source(
        dataset=dataset,
        root=root,
        layout=" and ".join(["pictures"] * bool(pictures) + ["videos"] * videos),
        clips=clips,
        read=partial(read_clip, dataset, root, crop, teacher, every),
        clips_per_shard=20 if videos else 500,
        metadata=UNLABELLED_METADATA,
        defects=defects,
        notes=(NOTE, *([f"left out below {root}: {told(left_out)}"] if left_out else [])),
        crops=True,
    )


def read_clip(
    dataset: str, root: Path, crop: Crop, teacher: str, every: int, clip: Clip, defects: Defects
) -> Iterator[dict]:
    """The records of a video, or of the pictures of one person, which are counted from 1."""
    if clip.images is None:
        pictures = ((number, Picture(str(path))) for number, path in enumerate(clip.labels, start=1))
    else:
        taken = range(1, sys.maxsize, every)
        frames = video_frames(clip.images, taken, clip.name, defects)
        pictures = ((number, picture) for number, picture in frames if number in taken)
    for number, picture in pictures:
        where = Path(picture.path).relative_to(root).as_posix() + (f" frame {number}" if clip.images else "")
        face = find_face(picture, crop, where, defects)
        if face is not None:
            measured = None if teacher == "none" else face.measure()
            yield from face_records(dataset, clip, number, face, weak_values(measured and measured.blendshapes))


# ---- For every reader of faces without labels -----------------------------------------------------------------
@dataclass(frozen=True)
class FoundFace:
    """A face that was cut out, and where it was."""

    crop: Picture
    margin: float  # that the crop has, as a share of its side without it
    image: Image.Image
    eyes: tuple[Point, Point]

    def measure(self) -> Measured | None:
        """What the landmarker says of it; None where it finds no face."""
        return landmarker()(crop_face(self.image, self.eyes, MEASURED_SIZE, MEASURED_MARGIN))


def find_face(picture: Picture, crop: Crop, where: str, defects: Defects) -> FoundFace | None:
    """The largest face of a picture; None, counted, where there is none or the picture cannot be read."""
    try:
        image = picture.open()
    except (OSError, ValueError) as error:
        defects.add("pictures that cannot be read, left out", f"{where}: {error}")
        return None
    try:
        eyes = crop.eyes(picture, image)
        if eyes is None:
            defects.add("pictures without a face, left out", where)
            return None
        cut = crop.cut(image, eyes)
    except NoRow as error:
        defects.add("pictures without a row in the table of faces, left out", f"{where}: {error}")
    except ValueError as error:
        defects.add("pictures with eyes that cannot be, left out", f"{where}: {error}")
    else:
        margin = (cut.width - crop.size) / 2 / crop.size
        return FoundFace(Picture(picture.path, picture.number, cut), margin, image, eyes)
    return None


def face_records(
    dataset: str, clip: Clip, frame: int, face: FoundFace, weak: Mapping[str, list[float]], metadata: Mapping = {}
) -> Iterator[dict]:
    """The records of one face, without their `part`: one per main format, nothing annotated."""
    for name in MAIN_FORMATS:
        yield {
            "image": face.crop,
            "dataset": dataset,
            "subject": clip.subject,
            "clip": clip.name,
            "frame": frame,
            "format": name,
            "values": [math.nan] * len(FORMATS[name].labels),
            "margin": face.margin,
            "weak": weak[name],
            **metadata,
        }


def weak_values(blendshapes: np.ndarray | None) -> dict[str, list[float]]:
    """Format -> what the teacher believes of a face with these blendshapes (52,); all NaN where there are none."""
    if blendshapes is None:
        return {name: [math.nan] * len(FORMATS[name].labels) for name in MAIN_FORMATS}
    return {name: _weak_teacher().values(blendshapes[None], name)[0].tolist() for name in MAIN_FORMATS}


def check_teacher(teacher: str, measures: bool = True) -> None:
    """Raise ValueError where the teacher, or the landmarker if it `measures` pictures, cannot be used."""
    if teacher != "none":
        _weak_teacher()
        if measures:
            landmarker()


@lru_cache(maxsize=1)  # once per process
def _weak_teacher() -> WeakTeacher:
    return WeakTeacher.load()


@lru_cache(maxsize=1)  # once per process
def landmarker() -> Landmarker:
    """MediaPipe's face landmarker. Raises ValueError where it is not installed."""
    return Landmarker()
