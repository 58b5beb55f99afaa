"""Answers as text: the closed list of values of each scale, and how an answer is written.

An answer looks like `AU1: 0, AU2: 0, AU4: 3`. Everything here takes the format as any object with `.labels` and
`.scale`, and imports nothing of the package: `action_units.py` builds on this file and re-exports its functions.
"""

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal

# The values an AU can take, as they are written. The set of valid answers is therefore finite and known.
SCALES: dict[str, tuple[str, ...]] = {
    "occurrence": ("0", "1"),  # absent, present
    "intensity": ("0", "1", "2", "3", "4", "5"),  # 0 absent; 1-5 are FACS A-E
    "continuous": tuple(f"{step / 100:.2f}" for step in range(101)),  # "0.00" absent … "1.00" maximum
}


def quantise(value: float, fmt) -> float:
    """The value of `fmt`'s scale nearest to `value`; ties go up (2.5 -> 3, 0.125 -> 0.13).

    Ties are judged on the shortest decimal that denotes the number, so 0.285 goes to 0.29 although its binary form
    lies a hair below. Raises ValueError for a value that is not a finite number inside the scale's range.
    """
    number, strings = float(value), SCALES[fmt.scale]
    if not float(strings[0]) <= number <= float(strings[-1]):
        raise ValueError(
            f"{number} is outside the {fmt.scale} scale, {strings[0]} to {strings[-1]}: clip or rescale it"
        )
    return float(Decimal(repr(number)).quantize(Decimal(strings[1]), rounding=ROUND_HALF_UP))


def write_answer(values: Mapping[str, float | None], fmt) -> str:
    """Write AU values as the answer text that `fmt` asks for, in the order of `fmt.labels`.

    Args:
        values: label -> value on the format's scale. A label that is missing, None or NaN is unknown and is left
            out: unknown is not absent. With nothing known the answer is the empty string.
        fmt: the format. Continuous values are rounded half up to the 0.01 grid; the other scales must already be
            whole numbers of the scale.

    Raises:
        ValueError: a label outside the format, or a value that is off the scale.
    """
    foreign = [label for label in values if label not in fmt.labels]
    if foreign:
        raise ValueError(f"{foreign} are not in the format, which has {list(fmt.labels)}: leave them out")
    items = []
    for label in fmt.labels:
        value = values.get(label)
        if value is None or math.isnan(value):
            continue
        number = quantise(value, fmt)
        if fmt.scale != "continuous" and number != value:
            raise ValueError(
                f"{label} is {value}, but {fmt.scale} values are {', '.join(SCALES[fmt.scale])}: round first"
            )
        items.append(f"{label}: {number:.2f}" if fmt.scale == "continuous" else f"{label}: {number:.0f}")
    return ", ".join(items)
