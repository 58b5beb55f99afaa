"""Places the eyes, the nose and the corners of the mouth of a face, and measures where the head is turned.

A small convolutional network (0.47 million parameters, about a millisecond a face) looks at a crop that is aligned by a
rough guess, such as YuNet's points, and corrects the guess. `maintenance/fit_face_points.py` trains it on photographs
that MediaPipe's landmarker has measured and on rendered heads, whose points are known.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from au_llava.au_faces.box import carried
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT, Face, Point, check_eyes, cut_square
from au_llava.au_faces.network import open_network
from au_llava.au_faces.photo import Photo
from au_llava.au_runs.files import HOME

MODEL = HOME / "assets" / "face_points.onnx"
SIDE = 64  # pixels of the crop that the network looks at
# Where the points of a mean frontal face lie in this crop, in sides: the person's right eye, left eye, tip of the nose,
# right and left corner of the mouth.
TEMPLATE = np.array([[0.33, 0.38], [0.67, 0.38], [0.5, 0.575], [0.375, 0.745], [0.625, 0.745]])
MIDDLE = complex(*TEMPLATE.mean(axis=0))
FIT = np.conj(TEMPLATE @ [1, 1j] - MIDDLE) / ((TEMPLATE - TEMPLATE.mean(axis=0)) ** 2).sum()  # see `fit_frame`
TRUSTED = 0.5  # confidence from which the network's answer is taken
PASSES = 2  # the second looks at a crop that is aligned by the first
# How far the crop that fits a face may move, grow or turn between two frames of a video, as a share of its side: less
# than the network corrects. Up to the second, the last frame's points are so good a guess that one pass does.
FOLLOWED, STEADY = 0.15, 0.03
# Digits of a pixel that count. Points are rounded, so that engines whose arithmetic differs in the last bits give the
# same crops, and the eyes in a table the crop that was read.
DIGITS = 2
# The network places the middle of an eye's corners. The eyeballs' middles, by which rendered faces are cropped, lie
# higher. From this distance above and this much further apart (in distances of the eyes), AUs of photographs are read
# best: of 14 pairs, by the mean AUC on 249 photographs of FairFace coded by eye (docs/log.md).
ABOVE, APART = 0.05, 1.04


@dataclass(frozen=True)
class PlacedFace:
    """What the network says about one face."""

    points: np.ndarray  # (5, 2) float64, as in `TEMPLATE`, in pixels from the upper left corner of the picture
    confidence: float  # probability that the crop shows a face in the right place
    rotation: np.ndarray  # (3, 3) of the head; its columns point to the left of the head, up and ahead (`head_pose`)


class FacePoints:
    """Places the points of faces. Threads may share it.

    Raises:
        ValueError: ONNX Runtime is not installed.
        FileNotFoundError: the model is missing.
    """

    def __init__(self, model: Path = MODEL):
        if not model.is_file():
            raise FileNotFoundError(f"There is no model of face points at {model}: restore it from the repository.")
        self._network = open_network(model.read_bytes())

    def __call__(self, image: Image.Image, guesses: Sequence[np.ndarray], passes: int = PASSES) -> list[PlacedFace]:
        """Place the points of some faces of one picture.

        Args:
            image: RGB.
            guesses: a rough (5, 2) for each face, in the order of `TEMPLATE`. Up to a fifth of the face's size off, and
                turned by up to 20 degrees, is near enough.
            passes: how often the network looks.

        Returns:
            one for each guess.
        """
        placed = [PlacedFace(np.asarray(guess, dtype=float), 1.0, np.eye(3)) for guess in guesses]
        for _ in range(passes if placed else 0):
            frames = [fit_frame(face.points.round(DIGITS)) for face in placed]
            placed = [_placed(row, *frame) for row, frame in zip(self._look(image, frames), frames, strict=True)]
        return placed

    def _look(self, image: Image.Image, frames: Sequence[tuple[complex, complex]]) -> np.ndarray:
        """(N, 15) what the network says of the crops in these frames."""
        crops = [
            cut_square(image, _xy(corner), _xy(edge / abs(edge)), abs(edge) / SIDE, SIDE) for edge, corner in frames
        ]
        batch = np.stack([np.asarray(crop, np.float32) for crop in crops]).transpose(0, 3, 1, 2)
        return self._network.run(None, {"crops": np.ascontiguousarray(batch)})[0].astype(float)


def _xy(point: complex) -> tuple[float, float]:
    return point.real, point.imag


def fit_frame(points: np.ndarray) -> tuple[complex, complex]:
    """The crop that fits points (5, 2) best: its upper edge and its upper left corner, in the picture.

    Points are complex numbers, so that a product turns and scales: a point p of the crop, in sides, lies at
    edge * p + corner. The fit is the least squares of `TEMPLATE` (Umeyama, 1991).
    """
    found = points @ [1, 1j]
    edge = complex(FIT @ found)
    return edge, complex(found.mean()) - edge * MIDDLE


def _placed(row: np.ndarray, edge: complex, corner: complex) -> PlacedFace:
    """What the network says of a crop, in the picture."""
    points = edge * ((row[:10].reshape(5, 2) + TEMPLATE) @ [1, 1j]) + corner
    turn = np.conj(edge) / abs(edge)  # the picture's y points down, the directions' up
    ahead, up = turn * (row[10] + 1j * row[11]), turn * (row[12] + 1j * row[13])
    return PlacedFace(
        np.stack([points.real, points.imag], axis=1),
        float(1 / (1 + np.exp(-row[14]))),
        _rotation(np.array([ahead.real, ahead.imag]), np.array([up.real, up.imag])),
    )


def _rotation(ahead: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The rotation whose directions ahead and up have these x (to the right) and y (up) in the picture."""
    depth = math.sqrt(max(1 - ahead @ ahead, 0.01))  # z points to the viewer; the back of a head is not read
    ahead = np.array([*ahead, depth])
    ahead /= np.linalg.norm(ahead)
    up = np.array([*up, -(ahead[:2] @ up) / ahead[2]])
    up -= (up @ ahead) * ahead
    up /= np.linalg.norm(up)
    return np.stack([np.cross(up, ahead), up, ahead], axis=1)


def head_pose(rotation: np.ndarray) -> tuple[float, float, float]:
    """The angles of a head as OpenFace writes them, `pose_Rx`, `pose_Ry`, `pose_Rz`, in radians.

    OpenFace's x points right in the picture, y down and z away from the camera, and its rotation is Rx Ry Rz
    (`RotationHelpers.h`): pitch is positive when the head looks down, yaw when it turns to its own right, roll when it
    tilts to its own left (clockwise in the picture).

    Args:
        rotation: (3, 3); x right, y up, z to the viewer.
    """
    axes = np.diag([1.0, -1.0, -1.0])
    turned = axes @ rotation @ axes  # written out, because importing SciPy's `Rotation` takes longer than a picture
    pitch = math.atan2(-turned[1, 2], turned[2, 2])
    yaw = math.asin(min(max(turned[0, 2], -1.0), 1.0))
    roll = math.atan2(-turned[0, 1], turned[0, 0])
    return pitch, yaw, roll


@cache
def face_points() -> FacePoints:
    """The one `FacePoints` of this process."""
    return FacePoints()


def placed(photo: Photo, faces: Sequence[Face]) -> list[Face]:
    """Faces with better points and eyes, and with their pose.

    A face keeps its own, and gets no pose, if the network does not trust its answer or puts an eye outside the picture.

    Args:
        photo: the picture of the faces.
        faces: with `points`.
    """
    if not faces:
        return []
    smallest = min(faces, key=lambda face: np.hypot(*np.subtract(*face.eyes)))
    image, factor = photo.showing(smallest.eyes, SIDE)
    answers = face_points()(image, [np.array(face.points) / factor for face in faces])
    return [_better(face, answer, image.size, factor) for face, answer in zip(faces, answers, strict=True)]


def followed(image: Image.Image, faces: Sequence[Face]) -> list[Face] | None:
    """The faces of a video's last frame in the next one; boxes go with the heads (box.py).

    None if one of them is in doubt: the network does not trust its answer, or the face jumped or left the picture.

    Args:
        image: the next frame.
        faces: as `placed` or this function gave them.
    """
    if any(face.pose is None for face in faces):  # the network did not trust its answer for the last frame
        return None
    guesses = [np.concatenate([_eye_corners(*np.array(face.points[:2])), face.points[2:]]) for face in faces]
    answers = face_points()(image, guesses, passes=1)
    if not _nearest(guesses, answers, STEADY):
        answers = face_points()(image, [answer.points for answer in answers], passes=PASSES - 1)
    if not _nearest(guesses, answers, FOLLOWED):
        return None
    there = [
        _better(replace(face, pose=None), answer, image.size, factor=1)
        for face, answer in zip(faces, answers, strict=True)
    ]
    if any(face.pose is None for face in there):
        return None
    return [replace(after, box=carried(face, after)) for face, after in zip(faces, there, strict=True)]


def _nearest(guesses: Sequence[np.ndarray], answers: Sequence[PlacedFace], most: float) -> bool:
    """Whether the crops that fit the answers are near those that fit the guesses."""
    pairs = [(fit_frame(guess), fit_frame(answer.points)) for guess, answer in zip(guesses, answers, strict=True)]
    middle = (1 + 1j) / 2
    return all(
        max(abs(edge * middle + corner - (before * middle + there)), abs(edge - before)) <= most * abs(before)
        for (before, there), (edge, corner) in pairs
    )


def with_pose(photo: Photo, face: Face) -> Face:
    """A face that somebody gave, or a picture that is a face crop, with its pose; its eyes stay.

    There is no pose if the network does not trust its answer, or if ONNX Runtime is not installed.

    Raises:
        ValueError: the eyes are less than a pixel apart or outside the picture, or it cannot be read.
        FileNotFoundError: no such picture.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return face
    eyes = eyes_of(face)
    image, factor = photo.at_least()
    check_eyes(eyes, (factor * image.width, factor * image.height))
    right, left = np.array(eyes) @ [1, 1j]
    template = TEMPLATE @ [1, 1j]
    guess = right + (template - template[0]) * (left - right) / (template[1] - template[0])
    image, factor = photo.showing(eyes, SIDE)
    [answer] = face_points()(image, [np.stack([guess.real, guess.imag], axis=1) / factor])
    return face if answer.confidence < TRUSTED else replace(face, pose=head_pose(answer.rotation))


def eyes_of(face: Face) -> tuple[Point, Point]:
    """The eyes to crop by; those that a crop has by its geometry, if the picture is a face crop."""
    if face.eyes is not None:
        return face.eyes
    left, top, width, height = face.box
    x, y = EYE_DISTANCE / 2 * width, top + EYE_HEIGHT * height
    return (left + width / 2 - x, y), (left + width / 2 + x, y)


def _better(face: Face, answer: PlacedFace, size: tuple[int, int], factor: int) -> Face:
    placed = np.concatenate([eyeballs(*answer.points[:2]), answer.points[2:]])
    trusted = answer.confidence >= TRUSTED and (placed[:2] >= 0).all() and (placed[:2] <= size).all()
    better = np.round(factor * placed if trusted else face.points, DIGITS)
    points = tuple(map(tuple, better.tolist()))
    return replace(face, eyes=points[:2], points=points, pose=head_pose(answer.rotation) if trusted else face.pose)


def eyeballs(right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The eyes to crop by (2, 2), from the middles of the corners of the right and the left eye (2,), in pixels."""
    across = left - right
    middle = (right + left) / 2 - ABOVE * np.array([-across[1], across[0]])
    return np.stack([middle - APART / 2 * across, middle + APART / 2 * across])


def _eye_corners(right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(2, 2) the middles of the corners of the eyes that `eyeballs` made these of."""
    across = (left - right) / APART
    middle = (right + left) / 2 + ABOVE * np.array([-across[1], across[0]])
    return np.stack([middle - across / 2, middle + across / 2])
