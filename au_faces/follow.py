"""Follows faces through a video: which face of a frame is which face of the frames before."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from au_llava.au_faces.crop import overlap

# Chosen on 24 rendered people with five poses and expressions each (frontal light): 5 % of pairs of the same person are
# less similar than 0.88, and 1 % of pairs of different people more similar than 0.91.
SAME_PLACE, SAME_LOOK, ALIKE = 0.3, 0.94, 0.8
SHORT_GAP = 1.0  # seconds; after a longer gap a face's position tells nothing


def look_of(crop: Image.Image) -> np.ndarray:
    """(512,) uint8: how a face looks, for `follow`, as square roots of the color histogram of the crop's middle."""
    side = crop.size[0]
    pixels = np.asarray(crop)[side // 10 : side - side // 10, side // 7 : side - side // 7].reshape(-1, 3)
    counts = np.bincount((pixels >> 5).astype(int) @ [64, 8, 1], minlength=512)
    return np.round(255 * np.sqrt(counts / counts.sum())).astype(np.uint8)


def follow(frames: Iterable[tuple[float, Sequence[tuple]]]) -> Iterator[list[int]]:
    """Number the faces of a video so that each face keeps its number; from 0 in the order of appearance.

    Two faces are the same if their boxes overlap (intersection over union at least 0.3) within `SHORT_GAP` and they
    look similar, or if they look the same, anywhere and after any gap. Each frame gets the best pairing (Hungarian
    method). Colors are compared, not identities: after a cut, people who look similar can be confused, and a change of
    light can split one person in two.

    Args:
        frames: for each frame its time in seconds and its faces as (box, look, known id or None).

    Yields:
        for each frame the number of every face.
    """
    last: dict[int, tuple[float, tuple, np.ndarray]] = {}  # number -> time, box, look
    for time, faces in frames:
        known = {index: face[2] for index, face in enumerate(faces) if face[2] is not None}
        tracks, open_faces = list(last), [index for index in range(len(faces)) if index not in known]
        score = np.zeros((len(open_faces), len(tracks)))
        for row, index in enumerate(open_faces):
            box, look, _ = faces[index]
            for column, track in enumerate(tracks):
                then, there, looked = last[track]
                shared = overlap(box, there) if time - then <= SHORT_GAP else 0.0
                alike = _likeness(look, looked)
                if (shared >= SAME_PLACE and alike >= ALIKE) or alike >= SAME_LOOK:
                    score[row, column] = shared + alike
        of_frame = dict(known)
        for row, column in _best_pairs(score):
            if score[row, column] > 0:
                of_frame[open_faces[row]] = tracks[column]
        for index in open_faces:
            if index not in of_frame:
                of_frame[index] = max([*last, *of_frame.values()], default=-1) + 1
        for index, number in of_frame.items():
            last[number] = (time, *faces[index][:2])
        yield [of_frame[index] for index in range(len(faces))]


def _best_pairs(score: np.ndarray) -> Iterable[tuple[int, int]]:
    """The (row, column) whose scores have the largest sum, each row and column once."""
    if min(score.shape) == 0:
        return []
    if len(score) == 1:  # usual, and importing SciPy takes longer than reading many frames
        return [(0, int(score.argmax()))]
    from scipy.optimize import linear_sum_assignment

    return zip(*linear_sum_assignment(-score), strict=True)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of two looks, 0 to 1: Bhattacharyya's coefficient of the histograms."""
    one, other = one.astype(float), other.astype(float)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
