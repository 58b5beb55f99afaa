"""Reasons of a reading in words: the AU's definition, the numbers that were read, and where the evidence lies.

Every word comes from the catalog of AUs or from a measurement; nothing is interpreted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from au_llava.action_units import ACTION_UNITS, AUFormat
from au_llava.au_recognition.annotation import OUTLINE
from au_llava.au_recognition.evidence import evidence_maps, falls_when_hidden, peak
from au_llava.calibration_au_llava import DEFAULT_THRESHOLD, entries_for

LEAST_FALL = 0.01  # of a probability; a smaller fall is not given as a number


class Explanation(NamedTuple):
    """Why one AU is read as present."""

    format: AUFormat
    label: str
    probability: float  # of presence
    evidence: np.ndarray  # (size, size), see `evidence_maps`
    reason: str


def explain(model, processor, crop: Image.Image, answers: Mapping, formats: Sequence[AUFormat]) -> list[Explanation]:
    """An explanation of every AU that was read as present, in the order of the formats and their labels.

    Args:
        crop: the face crop that was read.
        answers: format name -> its numbers, as `reading_of` gives them.
    """
    present = {
        fmt: [label for label, there in zip(fmt.labels, answers[fmt.name]["present"], strict=True) if there]
        for fmt in formats
    }
    if not any(present.values()):
        return []
    maps = evidence_maps(model, processor, crop, present)
    falls = falls_when_hidden(model, processor, crop, present, maps)
    explanations = []
    for fmt, labels in present.items():
        for label, evidence, fall in zip(labels, maps.get(fmt.name, ()), falls.get(fmt.name, ()), strict=True):
            probability, expected = (
                answers[fmt.name][key][fmt.labels.index(label)] for key in ("probability", "expected")
            )
            text = reason(fmt, label, probability, expected, evidence, fall, model.config.calibration)
            explanations.append(Explanation(fmt, label, probability, evidence, text))
    return explanations


def reason(
    fmt: AUFormat,
    label: str,
    probability: float,
    expected: float,
    evidence: np.ndarray,
    fall: float,
    calibration: Mapping | None = None,
) -> str:
    """What was read of an AU that is present, where on the face the reading rests, and how much depends on it.

    Args:
        probability, expected: of the AU's `AUReading` by the slots decoder.
        evidence: the AU's map (size, size), see `evidence_maps`.
        fall: see `falls_when_hidden`.
        calibration: `model.config.calibration`, which holds the decision threshold.

    Returns:
        sentences such as "AU12 (lip corner puller): the lip corners are pulled up and outward. Read as present:
        probability 0.93, threshold 0.41; mean 2.8 of 5. The evidence peaks in the lower left of the crop; hiding
        the outlined 6 % of the crop lowers the probability by 0.31." Left and right are those of the picture.
    """
    unit = ACTION_UNITS[label]
    threshold = entries_for(calibration, fmt).get(label, {"threshold": DEFAULT_THRESHOLD})["threshold"]
    text = f"{label} ({unit.name}): {unit.definition}. Read as present: probability {probability:.2f}, "
    text += f"threshold {threshold:.2f}"
    if fmt.scale != "occurrence":
        digits = 1 if fmt.scale == "intensity" else 2
        text += f"; mean {expected:.{digits}f} of {fmt.value_numbers[-1]:g}"
    if not evidence.any():
        return f"{text}. It does not depend on the crop."
    effect = f"lowers the probability by {fall:.2f}"
    if fall < LEAST_FALL:
        effect = f"does not lower the probability by {LEAST_FALL} or more"
    text += f". The evidence peaks in the {_place(*peak(evidence))} of the crop; "
    return f"{text}hiding the outlined {100 * (evidence > OUTLINE).mean():.0f} % of the crop {effect}."


def _place(right: float, down: float) -> str:
    """A ninth of the crop in words: "upper left", "middle", "lower middle"."""
    row, column = ("upper", "middle", "lower")[int(3 * down)], ("left", "middle", "right")[int(3 * right)]
    return " ".join(dict.fromkeys((row, column)))
