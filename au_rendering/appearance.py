"""How a made-up person looks: skin, hair, brows, lines at rest, make-up, glasses, clothes."""

from dataclasses import dataclass

import numpy as np

BEARDS = ("full", "goatee", "mustache", "jaw")


@dataclass(frozen=True)
class Brow:
    """The brows of a person at rest. Lengths and heights in eye distances.

    People at rest differ in all of these, so that none of them gives away whether a brow is raised or lowered.
    """

    color: np.ndarray  # (3,) linear RGB
    amount: float  # how much of the skin the hairs cover, 0 to 1
    thickness: float  # factor
    height: float  # relative to the mean
    arch: float  # factor on the mean's arch
    slope: float  # how much higher the outer end is than the inner end
    uneven: float  # how much higher the left brow is than the right one
    inner: float  # from the middle of the face
    outer: float


@dataclass(frozen=True)
class RestLines:
    """Lines that a face has at rest, each amount in [0, 1]; they do not depend on movement."""

    forehead: float
    frown: float
    eyes: float  # crow's feet
    bags: float  # under the eyes
    nose: float  # from the wings of the nose to the mouth
    mouth: float  # below its corners
    spacing: float  # lines of the forehead per eye distance
    phase: float  # of these lines


@dataclass(frozen=True)
class Appearance:
    """How a subject looks. Colors are (3,) linear RGB in [0, 1]; amounts are in [0, 1] unless noted."""

    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    hair: np.ndarray
    clothes: np.ndarray
    mottle: np.ndarray  # (V,) smooth variation of the skin, about standard normal
    brow: Brow
    sclera: float  # brightness of the white of the eye, factor
    socket: float  # how dark the eye sockets are
    crease: tuple[float, float]  # fold of the upper lid: how dark, and how far above the lid, eye distances
    hair_amount: float  # 0 is bald
    hair_volume: float  # eye distances
    hair_line: float  # eye distances upward
    fringe: float  # how far hair falls over the forehead, eye distances; 0 is none
    long_hair: bool
    beard: float
    blush: float
    lines: RestLines
    furrows: float  # factor on the furrows that AUs make
    oiliness: float
    glasses: np.ndarray | None  # color of the frame
    frame: tuple[float, float, float]  # of glasses: size (factor), thickness (of the rim's radius), roundness
    beard_style: str  # one of BEARDS
    freckles: float
    eye_shadow: np.ndarray | None  # color on the upper lids
    liner: float  # how dark the rims of the lids are
    cap: np.ndarray | None  # color of a cap or scarf in place of hair
    clay: np.ndarray  # color of the whole head under clay shading
