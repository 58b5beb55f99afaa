"""Where on an aligned face the action units that are present move it, as the face rig has it."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

from au_llava.action_units import AUFormat
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT
from au_llava.au_recognition.tables import strengths
from au_llava.au_rendering.rig import SHAPES, expand_sides, load_rig

LEAST_MOVEMENT = 0.3  # share of an AU's largest movement; what moves less is outside its region


def movement(face: dict, formats: Sequence[AUFormat], size: int) -> np.ndarray:
    """How much the AUs that are present move each place of the face: (size, size) in [0, 1].

    The strongest AU of each place counts (`strengths`).

    Args:
        face: as `Readings` gives it.
    """
    regions = au_regions(size)
    moved = np.zeros((size, size))
    for label, share in strengths(face["answers"], formats).items():
        if label in regions:
            moved = np.maximum(moved, min(1.0, 0.25 + share) * regions[label])
    return moved


@cache
def au_regions(size: int) -> dict[str, np.ndarray]:
    """How much each AU at full strength moves each place of an aligned frontal face: label -> (size, size) in [0, 1].

    From the face rig: the movement of its mean head's skin, seen from the front, each AU scaled to its largest. AD19
    moves no skin and has no region.
    """
    rig = load_rig()
    skin = rig.vertices_of("skin")
    points = rig.mean[skin] * [EYE_DISTANCE, -EYE_DISTANCE, 0] * size + [0.5 * size, EYE_HEIGHT * size, 0]
    x, y = np.round(points[:, :2]).astype(int).T
    front = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (rig.mean[skin, 2] > -0.6)

    def spread(weights):
        picture = np.zeros((size, size))
        np.add.at(picture, (y[front], x[front]), weights[front])
        return gaussian_filter(picture, size / 40)

    coverage = spread(np.ones(len(skin)))
    regions = {}
    for label in {*SHAPES, *(name.rstrip("LRTB") for name in SHAPES)}:
        moved = np.linalg.norm(rig.offsets(expand_sides({label: 1.0}))[skin], axis=1)
        if not moved.any():
            continue
        picture = spread(moved) / np.maximum(coverage, 1e-3 * coverage.max())
        regions[label] = ((picture / picture.max() - LEAST_MOVEMENT) / (1 - LEAST_MOVEMENT)).clip(0)
    return regions
