"""Drawing a face from the sliders of the page."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from au_llava.au_rendering.activations import NAMES, PARTS_LIPS, SIDED
from au_llava.au_rendering.people import Subject, sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.view import View

SEED = 9  # the recipes train on people of other seeds
PEOPLE = 100
DRAWN_SIDE = 192  # pixels of a drawn face: twice what the shipped checkpoint sees
FARTHEST_TURN = 40  # degrees, as in training
SIDES = {"both sides": "LR", "the person's left": "L", "the person's right": "R"}


@lru_cache(maxsize=PEOPLE)
def person(number: int) -> Subject:
    return sample_subject(SEED, number)


def strengths_of(values: Sequence[float], side: str) -> dict[str, float]:
    """Strengths by sided label, labeled as a rendered training face would be.

    Args:
        values: of the sliders, 0 to 1, in the order of `NAMES`.
        side: a key of `SIDES`.
    """
    strengths = {}
    for name, value in zip(NAMES, values, strict=True):
        letters = SIDES[side] if name in SIDED else SIDES[side][0] if name == "AD30" else ("",)
        if value:
            strengths |= {name + letter: float(value) for letter in letters}
    parted = max(strengths.get(name, 0.0) for name in (*PARTS_LIPS, "AU25"))
    return strengths | ({"AU25": parted} if parted else {})


def draw(number: int, strengths: dict[str, float], turn: float) -> Image.Image:
    """The face of person `number` that shows `strengths`, turned `turn` degrees to the person's left."""
    pixels, _ = picture(person(number), strengths, View(yaw=turn), DRAWN_SIDE, np.random.default_rng([SEED, number]))
    return Image.fromarray(pixels)
