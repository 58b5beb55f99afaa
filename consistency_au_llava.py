"""Contradictions between the answers about one image in several formats.

In a format, an AU is present (its probability reaches the threshold or, without probabilities, its value reaches the
format's presence_threshold), absent altogether (the most probable value is 0, and it is not present), or weak (neither,
such as intensity 1 in DISFA). Two formats contradict each other on an AU if it is present in one and absent altogether
in the other: occurrence 1 with intensity 0, or occurrence 0 with intensity 2, but not occurrence 1 with intensity 1.

A sided AU is part of the unsided one: AU12 present contradicts AU12L and AU12R both absent, and AU12 absent contradicts
AU12L present. AU12 present does not contradict AU12L absent, as the right side may have moved. Unread AUs (free
decoding) contradict nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from .action_units import ACTION_UNITS


@dataclass(frozen=True)
class Contradiction:
    """One format finds an AU present, another finds it absent altogether."""

    present: str  # label in the format that finds it present
    present_in: str  # name of that format
    absent: tuple[str, ...]  # labels in the other format, all of them 0
    absent_in: str  # name of the other format

    def __str__(self) -> str:
        return f"{self.present} is present in {self.present_in}, but {', '.join(self.absent)} 0 in {self.absent_in}"


@lru_cache(maxsize=256)
def _covers(label: str, others: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The groups of `others` that contradict the presence of `label` if all of a group are absent."""
    unit = ACTION_UNITS[label]
    if unit.side is not None:  # the same side, or the whole AU
        return tuple((other,) for other in (label, label[:-1]) if other in others)
    sides = [("L", "R"), ("T", "B")]
    pairs = [tuple(label + side for side in pair) for pair in sides]
    whole = [(label,)] if label in others else []
    return (*whole, *(pair for pair in pairs if all(other in others for other in pair)))


def contradictions(answers: Mapping[str, Mapping]) -> tuple[Contradiction, ...]:
    """The contradictions between the answers about one image (format name -> `AUAnswer`), in the formats' order."""
    labels = {name: tuple(answer) for name, answer in answers.items()}
    present = {
        name: [label for label, reading in answer.items() if reading.present] for name, answer in answers.items()
    }
    return tuple(
        Contradiction(label, name, group, other_name)
        for name, other_name in permutations(answers, 2)
        for label in present[name]
        for group in _covers(label, labels[other_name])
        if all(_absent(answers[other_name][member]) for member in group)
    )


def _absent(reading) -> bool:
    return reading.value == 0 and reading.present is False


__all__ = ["Contradiction", "contradictions"]
