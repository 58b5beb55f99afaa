"""Converts labels between formats. A label is present (with a strength), absent, or unknown (NaN), and whatever does
not follow from the source stays unknown.

- Same AU: its value.
- An unsided AU from its sides (left and right, or upper and lower lip): the stronger side, because FACS scores a
  movement of either side. If a side is unknown, the result is known only if the other is at the top of the scale.
- A sided AU from the unsided one: absent if that is absent, else unknown, because either side may have moved.
- Occurrence from intensity or continuous values: present from the source's `presence_threshold` on. Never the reverse,
  and never between intensity and continuous values, which measure different things.
- An AU that the source does not code: unknown.
"""

import numpy as np

from au_llava.action_units import ACTION_UNITS, AUFormat
from au_llava.metrics_au import decide


def sides_of(label: str) -> tuple[str, ...]:
    """The labels of an unsided AU's sides: AU12 -> AU12L, AU12R; AU28 -> AU28T, AU28B; AU17 and AU12L -> none."""
    return tuple(label + side for side in "LRTB" if label + side in ACTION_UNITS)


def sources(label: str, asked: AUFormat) -> tuple[str, ...]:
    """The AUs of the format `asked` that together determine `label`; empty if they cannot."""
    if label in asked.labels:
        return (label,)
    sides = sides_of(label)
    return sides if sides and all(side in asked.labels for side in sides) else ()


def convertible(source: AUFormat, target: AUFormat) -> bool:
    """Whether values on the scale of `source` can be converted to that of `target`."""
    return target.scale in (source.scale, "occurrence")


def convert_values(values, source: AUFormat, target: AUFormat) -> np.ndarray:
    """Labels in the `source` format as labels in the `target` format, by the rules above.

    Args:
        values: (…, AUs of source), NaN where unknown.

    Returns:
        (…, AUs of target) float64, NaN where unknown.

    Raises:
        ValueError: the target's scale does not follow from the source's.
    """
    if not convertible(source, target):
        raise ValueError(
            f"{target.scale} values ({target.name}) do not follow from {source.scale} ones ({source.name})."
        )
    values = np.asarray(values, float)
    if target.scale != source.scale:
        values = decide(values, source)
    unknown = np.full(values.shape[:-1], np.nan)

    def column(label: str) -> np.ndarray:
        return values[..., source.labels.index(label)] if label in source.labels else unknown

    def derived(label: str) -> np.ndarray:
        if label in source.labels:
            return column(label)
        if ACTION_UNITS[label].side is not None:
            return np.where(column(label[:-1]) == 0, 0.0, np.nan)
        sides = [column(side) for side in sides_of(label)]
        if not sides:
            return unknown
        strongest, all_known = np.fmax.reduce(sides), ~np.isnan(sides).any(axis=0)
        return np.where(all_known | (strongest == target.value_numbers[-1]), strongest, np.nan)

    return np.stack([derived(label) for label in target.labels], axis=-1)
