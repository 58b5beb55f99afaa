"""Readings: what is said about one face, from the distributions that the network gives.

Owns what an answer holds, and how values, presence and text follow from distributions. Needs NumPy only, so that every
engine makes its answers here: decoding_au_llava.py with PyTorch, onnx_au_llava.py with ONNX Runtime.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real

import numpy as np

from .action_units import ACTION_UNITS, AUFormat, get_format, shown, write_answer
from .calibration_au_llava import DEFAULT_THRESHOLD, calibrate, probability_of_presence
from .consistency_au_llava import Contradiction, contradictions

DECODERS = ("slots", "constrained", "free")  # see decoding_au_llava.py


@dataclass(frozen=True)
class AUReading:
    """The reading of one AU. None stands for what the decoder does not give (free decoding) and for an unread AU."""

    value: float | None  # the most probable value on the format's scale; on the occurrence scale, 1 if present
    expected: float | None  # mean of the distribution, on the format's scale
    median: float | None  # of the distribution, on the format's scale: the least value with P(up to it) >= 0.5
    probability: float | None  # of presence: P(value >= the format's presence_threshold), 0 to 1
    present: bool | None  # whether the probability reaches the AU's threshold (0.5 unless calibrated)
    distribution: tuple[float, ...] | None  # probability of each of the format's value_numbers, sums to 1

    def to_dict(self) -> dict[str, float | bool | list[float] | None]:
        """The fields in JSON's types, for `json.dumps`."""
        return asdict(self) | {"distribution": None if self.distribution is None else list(self.distribution)}


class AUAnswer(dict):
    """The answer in one format: a dict of label -> `AUReading`, in the format's order.

    Attributes:
        format: the `AUFormat` that was asked for.
        text: the answer as text. Slots and constrained decoding write one that `parse_answer` reads in full; free
            decoding keeps the model's own words.
        problems: what `parse_answer` could not read in `text` (empty except in free decoding).
    """

    def __init__(self, fmt: AUFormat, readings: dict[str, AUReading], text: str, problems: Sequence[str] = ()):
        super().__init__(readings)
        self.format = fmt
        self.text = text
        self.problems = tuple(problems)

    def to_dict(self) -> dict[str, dict]:
        """Label -> the fields of its `AUReading`, in JSON's types."""
        return {label: reading.to_dict() for label, reading in self.items()}


class AUResult(dict):
    """The answers about one image: a dict of format name -> `AUAnswer`, in the order asked for.

    Attributes:
        contradictions: where one format finds an AU present and another finds it absent altogether, see
            consistency_au_llava.py.
    """

    def __init__(self, answers: dict[str, AUAnswer]):
        super().__init__(answers)
        self.contradictions: tuple[Contradiction, ...] = contradictions(answers)

    def to_dict(self) -> dict[str, dict[str, dict]]:
        """Format name -> label -> the fields of its `AUReading`, in JSON's types."""
        return {name: answer.to_dict() for name, answer in self.items()}


def chosen_formats(formats: str | AUFormat | Sequence[str | AUFormat]) -> tuple[AUFormat, ...]:
    """The formats that a user asks for: one or a sequence, each a name, an `AUFormat` or its dict.

    Raises:
        ValueError: an unknown format, no format, or two with the same name.
    """
    one = isinstance(formats, (str, Mapping)) or not isinstance(formats, Iterable)
    chosen = tuple(get_format(fmt) for fmt in ([formats] if one else formats))
    if not chosen or len({fmt.name for fmt in chosen}) < len(chosen):
        raise ValueError("formats must name at least one format, and none twice.")
    return chosen


def answer_of(fmt: AUFormat, indices: Sequence[int], distributions=None, thresholds=None) -> AUAnswer:
    """The answer with these values, and with these distributions where there are any.

    Args:
        indices: (AUs,) the values, as indices into the scale.
        distributions: (AUs, values) array, or None.
        thresholds: (AUs,) probabilities from which AUs count as present. By default 0.5; then the values of the
            occurrence scale stay as they are, too.
    """
    values = [fmt.value_numbers[index] for index in indices]
    if distributions is None:
        readings = [AUReading(value, None, None, None, value >= fmt.presence_threshold, None) for value in values]
    else:
        numbers = np.array(fmt.value_numbers)
        probability = probability_of_presence(distributions, fmt)
        present = probability >= (DEFAULT_THRESHOLD if thresholds is None else thresholds)
        if thresholds is not None and fmt.scale == "occurrence":
            values = present.astype(float).tolist()
        medians = numbers[(distributions.cumsum(axis=1) >= 0.5 - 1e-9).argmax(axis=1)]
        columns = (values, (distributions @ numbers).tolist(), medians.tolist(), probability.tolist(), present.tolist())
        rows = map(tuple, distributions.tolist())
        readings = [AUReading(*fields) for fields in zip(*columns, rows, strict=True)]
    text = write_answer(dict(zip(fmt.labels, values, strict=True)), fmt)
    return AUAnswer(fmt, dict(zip(fmt.labels, readings, strict=True)), text)


def most_probable(distributions: np.ndarray) -> np.ndarray:
    """The index of the most probable value, given (..., values); of neighbors that are equally probable the middle one.

    Neighbors are equally probable where their last digits are not read.
    """
    equal = distributions >= distributions.max(axis=-1, keepdims=True) * (1 - 1e-6)
    first = equal.argmax(axis=-1)[..., None]
    after = np.arange(distributions.shape[-1]) >= first
    run = np.logical_and.accumulate(equal | ~after, axis=-1) & after
    return first[..., 0] + (run.sum(axis=-1) - 1) // 2


def slot_answers(
    read: Mapping[str, np.ndarray],
    formats: tuple[AUFormat, ...],
    calibration: Mapping | None,
    threshold: float | None = None,
) -> list[list[AUAnswer]]:
    """The answers of each image, one per format, from the distributions of the slots decoder.

    Args:
        read: format name -> (images, AUs, values) probabilities before calibration, float64, those of an AU summing to
            1; arrays, or tensors on the CPU as `read_slots` gives them.
        calibration: `AuLlavaConfig.calibration`.
        threshold: the probability, 0 to 1, from which every AU counts as present (default: each AU's own).
    """
    columns = []
    for fmt in formats:
        distributions, thresholds = calibrate(np.asarray(read[fmt.name]), fmt, calibration)
        if threshold is not None:
            thresholds = np.full_like(thresholds, threshold)
        columns.append([answer_of(fmt, most_probable(rows), rows, thresholds) for rows in distributions])
    return [list(answers) for answers in zip(*columns, strict=True)]


def check_choice(top_k: int | None, threshold: float | None, mirror_images: bool | None = None) -> None:
    """Refuse what the pipeline's arguments of these names cannot be (pipeline_au_llava.py).

    Raises:
        ValueError: `top_k` below 1, `threshold` outside 0 to 1, or `mirror_images` that is neither true nor false.
    """
    if top_k is not None and (isinstance(top_k, bool) or not (isinstance(top_k, Integral) and top_k >= 1)):
        raise ValueError(f"top_k is {shown(top_k)}; it must be a whole number, 1 or more, or None for all AUs.")
    if threshold is not None and (
        isinstance(threshold, bool) or not (isinstance(threshold, Real) and 0 <= threshold <= 1)
    ):
        raise ValueError(
            f"threshold is {shown(threshold)}; it must be a number from 0 to 1, or None for the checkpoint's own."
        )
    if mirror_images is not None and not isinstance(mirror_images, bool):
        raise ValueError(
            f"mirror_images is {shown(mirror_images)}; it must be true or false, or None for the checkpoint's."
        )


def ranked(answers: Iterable[AUAnswer], top_k: int | None = None) -> list[dict]:
    """The AUs of one image as the pipeline gives them (pipeline_au_llava.py): a dict each, highest score first.

    Args:
        top_k: how many (default: all).
    """
    rows = [
        {
            "label": label,
            "score": reading.probability,
            "name": ACTION_UNITS[label].name,
            "format": answer.format.name,
            "value": reading.value,
            "expected": reading.expected,
            "median": reading.median,
            "present": reading.present,
        }
        for answer in answers
        for label, reading in answer.items()
    ]
    rows.sort(key=lambda row: row["score"], reverse=True)
    return rows[:top_k]


__all__ = [
    "DECODERS",
    "AUAnswer",
    "AUReading",
    "AUResult",
    "answer_of",
    "check_choice",
    "chosen_formats",
    "ranked",
    "slot_answers",
]
