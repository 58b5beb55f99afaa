"""Crops the largest face of each picture, for records that hold faces alone."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from au_llava.au_faces.crop import Point
from au_llava.au_faces.detect import YuNet
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_faces.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.table import FacesTable
from au_llava.au_readers.source import Picture
from au_llava.au_runs.folders import files_below


@dataclass(frozen=True)
class Crop:
    """Crops the largest face of a picture, as `crop_face` does.

    Args:
        size: side of the crop in pixels.
        base: the folder of the pictures.
        faces: a table for `FacesTable`, matched with `pictures`.
        detector: one of `DETECTORS`, used if there is no table.
        margin: as in `crop_face`.
        pictures: all images and videos; None: those below `base`.
    """

    size: int
    base: Path
    faces: Path | None = None
    detector: str = "packaged"
    margin: float = 0.0
    pictures: tuple[str, ...] | None = None

    def __call__(self, picture: Picture) -> dict | None:
        """The image of a record, a JPEG; None if there is no face.

        Raises:
            NoRow: the table of faces has no row for it.
            ValueError: the image is damaged, or the eyes lie outside of it.
            OSError: there is no such file.
        """
        photo = picture.photo()
        eyes = self.eyes(picture, photo)
        return None if eyes is None else {"bytes": jpeg_bytes(self.cut(photo, eyes)), "path": None}

    def cut(self, photo: Photo, eyes: tuple[Point, Point]) -> Image.Image:
        """The crop of the face with these eyes."""
        return photo.crop(eyes, self.size, self.margin)

    def eyes(self, picture: Picture, photo: Photo) -> tuple[Point, Point] | None:
        """The eyes that the data set gives, else those of the largest face in the picture; None without one.

        Raises NoRow if the table of faces has no row for it.
        """
        if self.faces is None and picture.eyes is not None:
            return picture.eyes
        finder = face_finder(self.faces, self.detector, self.base, self.pictures)
        if self.faces is None:
            found = finder(photo)
        else:
            found = finder(Path(picture.path), None if picture.frame is None else picture.number)
        if not found:
            return None
        return max(found, key=lambda face: face.box[2] * face.box[3]).eyes

    def check(self) -> None:
        """Raise ValueError or OSError if the table or the detector cannot be used."""
        face_finder(self.faces, self.detector, self.base, self.pictures)


@lru_cache(maxsize=1)  # once per process
def face_finder(faces: Path | None, detector: str, base: Path, pictures: tuple[str, ...] | None) -> YuNet | FacesTable:
    if faces is None:
        return YuNet(detector)
    table = FacesTable(faces)
    table.match(files_below(base, IMAGE_SUFFIXES | VIDEO_SUFFIXES) if pictures is None else map(Path, pictures))
    return table
