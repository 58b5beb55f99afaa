"""How the answers about one image in several formats relate: which of them contradict each other.

The rule. A format says of an AU that it is present (its probability reaches the threshold, or without probabilities
its value reaches the format's presence_threshold), that it is absent altogether (the most probable value is 0, and it
is not present), or something weaker in between (intensity 1 of DISFA: neither). Two formats contradict each other on an
AU where one says present and the other absent altogether. Occurrence 1 beside intensity 1 is therefore no
contradiction, occurrence 1 beside intensity 0 and occurrence 0 beside intensity 2 are.

Sides. A sided AU is part of the unsided one: AU12 present contradicts AU12L and AU12R both absent, and AU12 absent
contradicts AU12L present; AU12 present beside AU12L absent says nothing, as the right side may have moved. What was not
read (free decoding) contradicts nothing.
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
    """The sets of `others` whose joint absence contradicts `label` being present."""
    unit = ACTION_UNITS[label]
    if unit.side is not None:  # itself, or the whole AU
        return tuple((other,) for other in (label, label[:-1]) if other in others)
    sides = [("L", "R"), ("T", "B")]
    pairs = [tuple(label + side for side in pair) for pair in sides]
    whole = [(label,)] if label in others else []
    return (*whole, *(pair for pair in pairs if all(other in others for other in pair)))


def contradictions(answers: Mapping[str, Mapping]) -> tuple[Contradiction, ...]:
    """The contradictions between the answers (format name -> `AUAnswer`) about one image, in the formats' order."""
    labels = {name: tuple(answer) for name, answer in answers.items()}
    present = {
        name: [label for label, reading in answer.items() if reading.present] for name, answer in answers.items()
    }
    found = []
    for name, other_name in permutations(answers, 2):
        other = answers[other_name]
        for label in present[name]:
            for absent in _covers(label, labels[other_name]):
                if all(other[each].value == 0 and other[each].present is False for each in absent):
                    found.append(Contradiction(label, name, absent, other_name))
    return tuple(found)


__all__ = ["Contradiction", "contradictions"]
