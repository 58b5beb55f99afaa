"""Draws the action units (AUs) that a rendered face shows and their strengths, and gives their labels in each format.

Strengths are sided, each 0 or in [0.20, 1.00] on a grid of 0.01. Unusual choices
- AUs that hide or undo each other are never drawn together (`EXCLUDES`), so every label has a visible sign.
- On this rig AU10, AU16 and AU26 part the lips, so AU25 is at least as strong as the strongest of them.
- Combinations seen in life are proposed often, so that AUs co-occur as in life, but not always.
- The movements of `ON_REQUEST` and looks far aside are drawn only for formats that have their labels, after everything
  else: other pictures stay as they were.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from au_llava.action_units import FORMATS
from au_llava.au_faces.gaze import GAZE, aus_of_gaze
from au_llava.au_rendering.rig import ON_REQUEST, SHAPES
from au_llava.au_rendering.view import View

WEAKEST = 0.20  # weaker movements may not be visible in a small picture
# AD30 has its own rule.
NAMES = tuple(dict.fromkeys(label.rstrip("LR") for label in SHAPES if label not in ON_REQUEST))
# Probabilities of being proposed alone: higher for AUs that many others exclude, lower for those that none excludes.
_RARE = {"AU10", "AU12", "AU14", "AU16", "AU18", "AU23", "AU24", "AU28T", "AU28B", "AU43", "AD34"}
_FREQUENT = {"AU1": 0.6, "AU2": 0.6, "AU4": 0.6, "AD29": 0.7, "AD30": 0.7}
WEIGHTS = np.array([_FREQUENT.get(name, 2.5 if name in _RARE else 1.0) for name in NAMES])
WEIGHTS /= WEIGHTS.sum()
SIDED = frozenset(name for name in NAMES if name + "L" in SHAPES and name != "AD30")
PARTS_LIPS = ("AU10", "AU16", "AU26")

# Pairs that never co-occur, and why.
_EXCLUSIONS = {
    "eyes shut hide the lids' other movements": [("AU43", "AU5 AU7")],
    "lips drawn in hide what lips do": [
        ("AU28T", "AU10 AU16 AU17 AU18 AU20 AU23 AU24 AU25 AU26"),
        ("AU28B", "AU10 AU15 AU16 AU17 AU18 AU20 AU23 AU24 AU25 AU26"),
    ],
    "pressed or tightened lips are closed and keep their width": [
        ("AU23", "AU10 AU16 AU18 AU20 AU24 AU25 AU26"),
        ("AU24", "AU10 AU16 AU18 AU25 AU26"),
    ],
    "the chin's push closes the lips that these open": [("AU17", "AU10 AU16 AU25 AU26")],
    "puffed cheeks need closed lips and undo what the corners do": [
        ("AD34", "AU10 AU12 AU14 AU16 AU20 AU25 AU26 AU28T AU28B")
    ],
    "the same corner is drawn opposite ways, or the sum looks like a third AU": [
        ("AU12", "AU14 AU15 AU18"),
        ("AU14", "AU15 AU18 AU20"),
        ("AU18", "AU15 AU20"),
    ],
}
EXCLUDES: dict[str, frozenset[str]] = {name: frozenset() for name in NAMES}
for _pairs in _EXCLUSIONS.values():
    for _one, _others in _pairs:
        for _other in _others.split():
            EXCLUDES[_one] |= {_other}
            EXCLUDES[_other] |= {_one}

# Combinations seen in life, by AU number.
COMBINATIONS = tuple(
    tuple(f"AU{number}" for number in combination)
    for combination in (
        *((1, 2), (1, 4), (1, 2, 4), (1, 2, 5), (1, 4, 15), (1, 4, 15, 17), (4, 7), (4, 7, 9), (4, 7, 24)),
        *((4, 9, 10), (4, 5, 7, 23), (6, 12), (6, 7, 12), (6, 12, 25), (6, 7, 10, 12), (9, 10), (12, 25, 26)),
        *((14, 24), (15, 17), (17, 23), (17, 24), (20, 25), (25, 26), (1, 2, 26), (1, 2, 5, 25, 26)),
        (1, 2, 4, 5, 20, 25),
    )
)


def sample_activations(rng: np.random.Generator) -> dict[str, float]:
    """Draw strengths by sided label for one picture; labels at rest are left out."""
    kind = rng.random()
    if kind < 0.08:
        target = 0
    elif kind < 0.25:
        target = 1
    elif kind < 0.50:
        target = int(rng.integers(2, 6))
    else:
        target = int(rng.integers(5, 14))
    active: set[str] = set()
    for _ in range(4 * target):
        if len(active) >= target:
            break
        if target > 1 and rng.random() < 0.3:
            proposed = COMBINATIONS[rng.integers(len(COMBINATIONS))]
        else:
            proposed = (NAMES[rng.choice(len(NAMES), p=WEIGHTS)],)
        together = active.union(proposed)
        if not any(EXCLUDES[name] & together for name in proposed):
            active = together

    strengths: dict[str, float] = {}
    for name in sorted(active):
        strength = _strength(rng)
        if name == "AD30":
            strengths[name + rng.choice(["L", "R"])] = strength
        elif name in SIDED:
            left, right = _sides(strength, name, rng)
            strengths |= {label: value for label, value in ((name + "L", left), (name + "R", right)) if value}
        else:
            strengths[name] = strength
    parted = max((strengths.get(name, 0.0) for name in (*PARTS_LIPS, "AU25")), default=0.0)
    if parted:
        strengths["AU25"] = parted
    return strengths


def _strength(rng: np.random.Generator, weakest: float = WEAKEST) -> float:
    return int(rng.integers(round(100 * weakest), 101)) / 100


def _sides(strength: float, name: str, rng: np.random.Generator) -> tuple[float, float]:
    """Left and right strengths: mostly nearly symmetric, sometimes on one side only."""
    kind = rng.random()
    one_sided = 0.08 if name in ("AU6", "AU7", "AU15") else 0.20
    if kind < one_sided:
        return (strength, 0.0) if rng.random() < 0.5 else (0.0, strength)
    other = _strength(rng) if kind > 0.88 else round(min(1.0, max(WEAKEST, strength + rng.normal(0, 0.05))), 2)
    return (strength, other) if rng.random() < 0.5 else (other, strength)


# What a movement on request leaves no room for; it replaces them.
_REPLACES = {
    "AU8": "AU10 AU16 AU17 AU18 AU23 AU24 AU25 AU28T AU28B AD34",
    "AU22": "AU12 AU14 AU15 AU17 AU18 AU20 AU23 AU24 AU28T AU28B AD34",
    "AD19": "AU17 AU18 AU23 AU24 AU28T AU28B AD34",
    "AD101": "AU18 AU28T AU28B AD30",
    "AD102": "AU10 AU16 AU18 AU23 AU24 AU25 AU26 AU28T AU28B AD34",
}
WEAKEST_TONGUE = 0.40  # below it the tongue stays behind the lips
SHARE = 0.12  # of the pictures for each movement on request
STRAIGHT = 0.4  # share of the pictures with eyes about straight ahead, of those for formats with labels of the gaze
SHUT = 0.6  # strength of AU43 on both sides from which on the gaze cannot be seen


def on_request(
    strengths: Mapping[str, float], view: View, labels: Iterable[str], rng: np.random.Generator
) -> tuple[dict[str, float], View]:
    """Strengths and view of a picture, with what `labels` ask for beside them; unchanged if they ask for nothing.

    At most one movement of `ON_REQUEST` is drawn. AU8 comes with an equal AU26, so that the lips meet; AU22 with an
    AU25 of at least its own strength, AD19 with one that shows the tongue; AD102 with an AU17 of at least its own
    strength, since the upper lip alone would open the mouth.
    """
    strengths, labels = dict(strengths), set(labels)
    asked: dict[str, list[str]] = {}
    for moved in ON_REQUEST:
        if any(moved in _moved_by(label) for label in labels):
            asked.setdefault(moved.rstrip("LR"), []).append(moved)
    number = int(rng.random() / SHARE)
    if number < len(asked):
        name, sides = list(asked.items())[number]
        strength = _strength(rng, WEAKEST_TONGUE if name == "AD19" else WEAKEST)
        replaced = _REPLACES[name].split()
        strengths = {label: value for label, value in strengths.items() if label.rstrip("LR") not in replaced}
        strengths[sides[0] if len(sides) == 1 else str(rng.choice(sides))] = strength
        if name == "AU8":
            strengths["AU26"] = strength
        elif name in ("AU22", "AD19"):
            parted = strength if name == "AU22" else int(rng.integers(30, 71)) / 100
            strengths["AU25"] = max(strengths.get("AU25", 0.0), parted)
        elif name == "AD102":
            strengths["AU17"] = max(strengths.get("AU17", 0.0), strength)
    if labels.intersection(GAZE):
        straight = rng.random() < STRAIGHT
        gaze = rng.normal(0, 0.08, 2) if straight else rng.uniform(-1, 1, 2)
        view = replace(view, gaze=tuple(gaze.round(2).tolist()))
    return strengths, view


def with_gaze(strengths: Mapping[str, float], gaze: tuple[float, float]) -> dict[str, float]:
    """Strengths, and those of AU61 to AU64 for a `gaze` as in `View`; without them where the lids hide it."""
    if min(strengths.get("AU43L", 0.0), strengths.get("AU43R", 0.0)) >= SHUT:
        return dict(strengths)
    return {**strengths, **aus_of_gaze(*gaze)}


@cache
def _moved_by(label: str) -> tuple[str, ...]:
    """The rig's labels that a format's label speaks of: itself, the sides of a whole AU, or the whole of a side."""
    of_label = (label, *(label + side for side in "LRTB"), label[:-1] if label[-1] in "LRTB" else label)
    return tuple(each for each in dict.fromkeys(of_label) if each in SHAPES)


def strength_of(label: str, strengths: Mapping[str, float]) -> float:
    """Strength of a format's label: that of its side, or of the stronger side if the label has none.

    NaN for a label that the rig cannot show, such as the head's turns, and for the gaze unless the strengths have it.
    """
    if label in GAZE:
        return strengths.get(label, math.nan)
    return max((strengths.get(each, 0.0) for each in _moved_by(label)), default=math.nan)


def label_values(strengths: Mapping[str, float], format_name: str) -> list[float]:
    """The values in a format, in its label order, of a face with these strengths.

    Continuous: the strength. Intensity: five times the strength, half rounded up (0.20 is 1). Occurrence: above 0. NaN
    for a label that the rig cannot show.
    """
    fmt = FORMATS[format_name]
    on_scale = {
        "occurrence": lambda strength: float(strength > 0),
        "intensity": lambda strength: float((5 * round(100 * strength) + 50) // 100),
        "continuous": lambda strength: strength,
    }[fmt.scale]
    values = [strength_of(label, strengths) for label in fmt.labels]
    return [value if math.isnan(value) else on_scale(value) for value in values]
