"""Draws made-up people at random: head, look, and how far each of them moves.

A person is a function of (seed, subject number), so any picture can be drawn again alone and the work can be split in
any way. Skin tone is drawn independently of face shape, age and gender.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from au_llava.au_rendering.appearance import BEARDS, Appearance, Brow, RestLines
from au_llava.au_rendering.masks import smoothstep
from au_llava.au_rendering.rig import ON_REQUEST, SHAPES, expand_sides, load_rig

# The ten-step Monk Skin Tone scale (https://skintone.google, sRGB of its swatches), lightest first.
MONK_SCALE = ["f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420"]


IRIS_COLORS = ["3b2314", "54331b", "6b4a26", "7b6b3a", "5f7a55", "5d7f99", "7f9bb0", "3f5f80"]


HAIR_COLORS = ["0b0908", "16100c", "2b1b12", "452a18", "6b4526", "9a7040", "b8935a", "7a3a1c", "8a8580", "c9c5be"]


@dataclass(frozen=True)
class Subject:
    """A made-up person. `identity` (V, 3) is the neutral head."""

    name: str
    age: float  # 0 is 25 years, 1 is 90
    gender: float  # 0 is male, 1 female, by the shape of the face alone
    skin_tone: int  # 1 to 10, the Monk scale
    identity: np.ndarray
    look: Appearance
    gains: Mapping[str, float]  # how far each movement goes, by sided label, relative to the rig
    manner: np.ndarray  # (V, 1) the same for each place of the face, smooth

    def movement(self, strengths: Mapping[str, float]) -> np.ndarray:
        """(V, 3) movement of this face. A strength is a share of the person's own full movement, as in FACS."""
        own = {label: strength * self.gains[label] for label, strength in strengths.items()}
        return load_rig().offsets(own) * self.manner


def subject_name(seed: int, number: int) -> str:
    """The name of a subject in records, such as "R0-000123"."""
    return f"R{seed}-{number:06d}"


def sample_subject(seed: int, number: int, held_out: str = "", skin_tone: int | None = None) -> Subject:
    """Subject `number` of the data set drawn with `seed`, or the same person with another head or skin.

    Args:
        held_out: "unusual shape" gives a head that differs more from the mean than any other.
        skin_tone: 1 to 10 on the Monk scale, instead of the one drawn; hair, eyes and lips are drawn to match.
    """
    person = _draw_subject(seed, number, held_out, None)
    if skin_tone is None:
        return person
    other = _draw_subject(seed, number, held_out, skin_tone).look
    colors = {name: getattr(other, name) for name in ("skin", "lips", "iris", "hair", "blush")}
    colors["brow"] = replace(person.look.brow, color=other.brow.color)
    return replace(person, skin_tone=skin_tone, look=replace(person.look, **colors))


def _draw_subject(seed: int, number: int, held_out: str, skin_tone: int | None) -> Subject:
    rng = np.random.default_rng([seed, number])
    rest_rng = np.random.default_rng([seed, number, 1])  # separate, so that nothing else depends on it
    rig = load_rig()
    age, gender, drawn_tone = rng.random(), rng.random(), int(rng.integers(1, 11))
    skin_tone = drawn_tone if skin_tone is None else skin_tone
    extent = rng.uniform(0.5, 1.0)  # of the deviation from the mean head
    modes = (1.35 if held_out == "unusual shape" else extent) * rig.sample_modes(age, gender, rng)
    rest = _draw_rest(rest_rng)
    identity = rig.identity(modes, warp=smooth_field(rng, 0.025, 3) + rig.offsets(rest))

    darkness = skin_tone / 10
    # The swatches are flat colors; translucent skin looks warmer, deep tones most.
    warmth = np.array([1.06, 0.89, 0.79]) + darkness**3 * np.array([0.45, 0.10, 0.0])
    skin = linear(MONK_SCALE[skin_tone - 1]) * warmth * rng.normal(1, 0.05) * rng.normal(1, 0.02, 3)
    dark_pool = HAIR_COLORS if skin_tone <= 5 else HAIR_COLORS[:4]
    hair = linear(dark_pool[rng.integers(len(dark_pool))]) * rng.normal(1, 0.1)
    if rng.random() < 0.7 * age**2:
        hair = linear(HAIR_COLORS[-1 - int(rng.integers(2))])
    iris_pool = IRIS_COLORS if skin_tone <= 6 else IRIS_COLORS[:4]
    natural_lips = skin * np.array([0.86, 0.50, 0.50]) + np.array([0.035, 0.0, 0.004])
    make_up = linear(f"{rng.integers(110, 200):02x}{rng.integers(15, 80):02x}{rng.integers(30, 90):02x}")
    painted = rng.uniform(0.5, 0.95) if rng.random() < 0.45 * gender else 0.0
    mottle = rng.standard_normal(len(identity)).astype(np.float32)
    for _ in range(6):
        mottle = _smooth(mottle)
    male = gender < 0.5
    beard_kind = rng.random()
    beard = 0.0 if not male or beard_kind < 0.45 else rng.uniform(0.15, 0.4) if beard_kind < 0.75 else 0.78
    bald = male and rng.random() < 0.12 + 0.25 * age
    cap = rng.random(3) ** 2 * 0.8 if rng.random() < 0.12 else None
    look = Appearance(
        skin=skin.clip(0.005, 0.95),
        lips=(natural_lips + painted * (make_up - natural_lips)).clip(0.01, 0.9),
        iris=linear(iris_pool[rng.integers(len(iris_pool))]) * rng.uniform(0.8, 1.3),
        brow=_draw_brow((hair * rng.uniform(0.5, 1.0) + 0.12 * skin).clip(0, skin * 0.55), male, rest_rng),
        hair=hair,
        mottle=mottle / mottle.std(),
        sclera=rest_rng.uniform(0.55, 1.0),
        socket=rest_rng.uniform(0.0, 0.5),
        crease=(rest_rng.uniform(0, 0.8) * (rest_rng.random() < 0.8), rest_rng.normal(0.03, 0.03)),
        hair_amount=0.0 if bald else rng.uniform(0.85, 1.0),
        hair_volume=rng.uniform(0.02, 0.35),
        hair_line=rng.normal(0.05, 0.10) + (0.15 * age if male else 0) - (0.1 if cap is not None else 0),
        fringe=rest_rng.uniform(0.2, 0.75) if rest_rng.random() < 0.25 else 0.0,
        long_hair=bool(rng.random() < (0.08 if male else 0.65)),
        beard=beard,
        blush=rng.uniform(0.1, 0.9) * (1.1 - darkness),
        lines=_draw_lines(age, rest_rng),
        oiliness=rng.uniform(0.0, 0.9),
        glasses=linear(HAIR_COLORS[rng.integers(len(HAIR_COLORS))]) if rng.random() < 0.15 else None,
        clothes=rng.random(3) ** 2 * 0.7,
        furrows=0.0 if rng.random() < 0.15 else rng.uniform(0.2, 1.2),
        frame=(rng.uniform(0.88, 1.12), rng.uniform(0.05, 0.12), rng.uniform(0.5, 1.0)),
        beard_style=BEARDS[0] if rng.random() < 0.5 else BEARDS[rng.integers(1, len(BEARDS))],
        freckles=rng.uniform(0.2, 0.6) if skin_tone <= 6 and rng.random() < 0.15 else 0.0,
        eye_shadow=rng.random(3) ** 2 * 0.6 * skin.max() if rng.random() < 0.35 * gender else None,
        liner=rng.uniform(0.3, 0.95),
        cap=cap,
        clay=np.full(3, rng.uniform(0.25, 0.75)) * rng.uniform(0.85, 1.15, 3),
    )
    gains = {label: _draw_gain(rng) for label in SHAPES if label not in ON_REQUEST}
    to_eyes = np.linalg.norm(np.abs(rig.mean) * [1, 1, 0] - [0.5, 0, 0], axis=1)
    away = smoothstep(0.3, 0.6, to_eyes)[:, None]  # not near the lids, which must meet when they shut
    manner = (1 + away * smooth_field(rng, 0.12, 1).clip(-0.3, 0.3)).astype(np.float32)
    gains |= {label: 1 - rest[label] for label in ("AU43L", "AU43R")}
    later_rng = np.random.default_rng([seed, number, 0, 1])  # separate, as `rest_rng`
    gains |= {label: _draw_gain(later_rng) for label in ON_REQUEST}
    gains["AU8"] = gains["AU26"]  # the lips still meet
    return Subject(subject_name(seed, number), age, gender, skin_tone, identity, look, gains, manner)


def _draw_gain(rng: np.random.Generator) -> float:
    return float(np.clip(rng.normal(1, 0.1), 0.8, 1.25))


# How much faces at rest differ along each movement: standard deviation, as a share of the full movement. Chosen by eye
# so that faces differ as in photographs, and well below the weakest labelled strength (0.20).
_REST_SPREAD = {
    **{"AU1": 0.10, "AU2": 0.10, "AU4": 0.10, "AU6": 0.04, "AU7": 0.06, "AU9": 0.03, "AU12": 0.05, "AU14": 0.04},
    **{"AU15": 0.05, "AU17": 0.05, "AU18": 0.05, "AU20": 0.06, "AU24": 0.05, "AU43": 0.06},
}


def _draw_rest(rng: np.random.Generator) -> dict[str, float]:
    """Offsets of a face at rest along each movement, by sided label: of either sign, and similar on both sides."""
    rest = {}
    for name, spread in _REST_SPREAD.items():
        common = float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))
        for label in expand_sides({name: 0.0}):
            rest[label] = common + 0.25 * float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))
    return rest


def _draw_brow(color: np.ndarray, male: bool, rng: np.random.Generator) -> Brow:
    faint = rng.random() < 0.12
    return Brow(
        color=color * rng.uniform(0.6, 1.4),
        amount=rng.uniform(0.15, 0.5) if faint else rng.uniform(0.55, 0.98),
        thickness=rng.uniform(0.8, 2.0) if male else rng.uniform(0.55, 1.5),
        height=float(np.clip(rng.normal(-0.02, 0.045), -0.12, 0.10)),
        arch=float(np.clip(rng.normal(0.9, 0.45), -0.2, 2.0)),
        slope=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
        uneven=float(np.clip(rng.normal(0, 0.012), -0.03, 0.03)),
        inner=rng.uniform(0.05, 0.20),
        outer=rng.uniform(0.80, 1.02),
    )


def _draw_lines(age: float, rng: np.random.Generator) -> RestLines:
    """Lines that come with age, different in each zone; some people have some of them at any age."""
    of_age = (age * rng.uniform(0.5, 1.0, 6)) ** 1.3
    at_any_age = rng.uniform(0, 0.6, 6) * (rng.random(6) < 0.25)
    return RestLines(*np.maximum(of_age, at_any_age).tolist(), spacing=rng.uniform(5.5, 10), phase=rng.random())


def linear(color: str) -> np.ndarray:
    """(3,) linear RGB in [0, 1] of a hexadecimal sRGB color."""
    value = np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def smooth_field(rng: np.random.Generator, amplitude: float, channels: int) -> np.ndarray:
    """(V, channels) smooth random values over the head with a standard deviation of about `amplitude`."""
    mean = load_rig().mean
    centers = rng.uniform([-1.2, -2.0, -0.5], [1.2, 1.2, 0.8], (8, 3))
    widths = rng.uniform(0.35, 0.9, 8)
    distance = ((mean[:, None] - centers) ** 2).sum(axis=2)
    return (np.exp(-distance / (2 * widths**2)) @ rng.normal(0, amplitude, (8, channels))).astype(np.float32)


def _smooth(values: np.ndarray) -> np.ndarray:
    """One step of averaging per-vertex values (V,) over the mesh."""
    faces = load_rig().faces
    mean = values[faces].mean(axis=1)
    index = faces.ravel()
    total = np.bincount(index, np.repeat(mean, 3), minlength=len(values))
    return (total / np.bincount(index, minlength=len(values)).clip(1)).astype(np.float32)
