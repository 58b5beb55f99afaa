"""A weak teacher for photographs without labels: the action units that MediaPipe's blendshapes are evidence for.

Blendshapes are not action units (AUs). For each AU the asset `assets/weak_teacher.json` (made by
`maintenance/fit_weak_teacher.py`) names the blendshapes of the same muscles, a bound below which the AU is absent, and
one above which it is present, with its strength. Between the bounds, and where other movements mislead, values are
unknown. Weak values are only for training: never score against them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from au_llava.action_units import ACTION_UNITS, FORMATS, get_format
from au_llava.au_faces.landmarks import BLENDSHAPES, side_of
from au_llava.au_runs.files import HOME

ASSET = HOME / "assets" / "weak_teacher.json"
# The share of the scale from which an AU is certainly present: at the presence threshold it is as likely absent.
CERTAIN = 2 * FORMATS["feafa"].presence_threshold


@dataclass(frozen=True)
class Rule:
    """How one AU follows from blendshapes.

    Attributes:
        evidence: blendshape -> factor; the largest product is the evidence for the AU.
        absent_below: evidence up to which the AU is absent.
        absent_where: blendshape -> (least, greatest); faces outside these bounds stay unknown instead.
        curve: (evidence, expected share of the scale) pairs, both rising; the AU is present from the first pair on.
        present_where: as `absent_where`, for presence.
    """

    evidence: Mapping[str, float]
    absent_below: float
    absent_where: Mapping[str, tuple[float, float]]
    curve: tuple[tuple[float, float], ...]
    present_where: Mapping[str, tuple[float, float]]

    def evidence_of(self, blendshapes: np.ndarray, side: str | None = None) -> np.ndarray:
        """(N,) evidence in blendshapes (N, 52), of one side for a sided AU."""
        return np.max([factor * side_of(blendshapes, name, side) for name, factor in self.evidence.items()], axis=0)

    def shares(self, blendshapes: np.ndarray, side: str | None = None) -> np.ndarray:
        """(N,) shares of the scale, 0 to 1, NaN where unknown."""
        evidence = self.evidence_of(blendshapes, side)
        shares = np.full(len(blendshapes), np.nan, np.float32)
        knots, heights = zip(*self.curve, strict=True)
        present = (evidence >= knots[0]) & _within(blendshapes, self.present_where)
        shares[present] = np.interp(evidence[present], knots, heights)
        shares[(evidence <= self.absent_below) & _within(blendshapes, self.absent_where)] = 0
        return shares


def _within(blendshapes: np.ndarray, bounds: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """(N,) bool, whether all named blendshapes (means of both sides) lie within their bounds."""
    within = np.ones(len(blendshapes), bool)
    for name, (least, greatest) in bounds.items():
        value = side_of(blendshapes, name)
        within &= (value >= least) & (value <= greatest)
    return within


class WeakTeacher:
    """Estimates AUs from blendshapes. `rules` is unsided AU label -> `Rule`."""

    def __init__(self, rules: Mapping[str, Rule]):
        unknown = [label for label in rules if label not in ACTION_UNITS]
        if unknown:
            raise ValueError(f"unknown action units {unknown}: use keys of ACTION_UNITS, such as AU12")
        for label, rule in rules.items():
            knots = [(rule.absent_below, 0.0), *rule.curve]
            rises = all(a < c and b <= d for (a, b), (c, d) in pairwise(knots))
            if not (rule.curve and rises and knots[-1][1] <= 1):
                raise ValueError(
                    f"the curve of {label} must rise from 0 at {rule.absent_below} to at most 1: {rule.curve}"
                )
            rule.shares(np.zeros((1, len(BLENDSHAPES)), np.float32))  # raises for an unknown blendshape
        self.rules = dict(rules)

    @classmethod
    def load(cls, path: str | Path = ASSET) -> "WeakTeacher":
        """Load a weak teacher from a file, by default from this package.

        Raises:
            ValueError: the file does not hold a weak teacher, or names an unknown AU or blendshape.
            OSError: it cannot be read.
        """
        try:
            entries = json.loads(Path(path).read_text())["action_units"]
            rules = {
                label: Rule(
                    entry["evidence"],
                    entry["absent_below"],
                    entry["absent_where"],
                    tuple(map(tuple, entry["curve"])),
                    entry["present_where"],
                )
                for label, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a weak teacher ({error!r}): make one with maintenance/fit_weak_teacher.py"
            ) from error
        return cls(rules)

    def values(self, blendshapes: np.ndarray, format_name: str) -> np.ndarray:
        """(N, AUs) float32: the AUs of a format as shares of its scale (`on_scale`), NaN where unknown.

        Args:
            blendshapes: (N, 52) in [0, 1], in the order of `BLENDSHAPES`.
        """
        blendshapes = np.asarray(blendshapes, np.float32)
        if blendshapes.ndim != 2 or blendshapes.shape[1] != len(BLENDSHAPES):
            raise ValueError(f"blendshapes must be (N, {len(BLENDSHAPES)}), not {blendshapes.shape}")
        fmt = get_format(format_name)
        shares = np.full((len(blendshapes), len(fmt.labels)), np.nan, np.float32)
        for column, label in enumerate(fmt.labels):
            side = ACTION_UNITS[label].side
            sided = side in ("left", "right")
            rule = self.rules.get(label[:-1] if sided else label)
            if rule is not None:
                shares[:, column] = rule.shares(blendshapes, side if sided else None)
        return on_scale(shares, fmt.name)


def on_scale(shares: np.ndarray, format_name: str) -> np.ndarray:
    """Strengths of AUs, from 0 to 1, as weak values of a format, NaN where unknown.

    On an occurrence scale that is the probability that the AU is present, 1 from `CERTAIN` on.
    """
    shares = np.asarray(shares, np.float32)
    return presence(shares) if get_format(format_name).scale == "occurrence" else shares


def presence(shares: np.ndarray) -> np.ndarray:
    """The probabilities that AUs of such strengths, from 0 to 1, are present."""
    return np.minimum(1, shares / CERTAIN)
