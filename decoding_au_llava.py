"""How answers are read out of the network: `recognize`, and the three decoders behind it.

- slots (default): one forward pass over a token tree (slot_tree_au_llava.py) reads the value distribution of every AU
  of every requested format. Its two steps, `read_slots` and `slot_answers`, are also those of pipeline_au_llava.py.
- constrained: autoregressive over the values only; the fixed text between them costs no step of its own.
- free: plain `generate`, then `parse_answer`: what other LLM-based recognisers do, kept as the honest baseline.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch

from .action_units import MAIN_FORMATS, AUFormat, get_format, mirrored_label, parse_answer, write_answer
from .calibration_au_llava import DEFAULT_THRESHOLD, calibrate
from .consistency_au_llava import Contradiction, contradictions
from .slot_tree_au_llava import SlotTree, compile_slots

DECODERS = ("slots", "constrained", "free")


@dataclass(frozen=True)
class AUReading:
    """What was read for one AU. `None` marks what the decoder cannot tell (free decoding, an unread AU)."""

    value: float | None  # on the format's scale: the most probable value; on the occurrence scale, 1 if present
    expected: float | None  # mean of the distribution, on the format's scale
    median: float | None  # of the distribution: the least value that at least half of the probability is at or below
    probability: float | None  # of presence: P(value >= the format's presence_threshold), 0 to 1
    present: bool | None  # whether the probability reaches the AU's decision threshold (0.5 unless calibrated)
    distribution: tuple[float, ...] | None  # probability of each of the format's value_numbers, sums to 1

    def to_dict(self) -> dict[str, float | bool | list[float] | None]:
        """The fields in JSON's types."""
        return asdict(self) | {"distribution": None if self.distribution is None else list(self.distribution)}


class AUAnswer(dict):
    """The answer in one format: a dict of label -> `AUReading`, in the format's order.

    Attributes:
        format: the `AUFormat` that was asked for.
        text: the answer as text; slots and constrained decoding always write one that `parse_answer` reads in full,
            free decoding keeps what the model said.
        problems: what `parse_answer` found wrong with `text` (empty except in free decoding).
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
    """What was read off one image: a dict of format name -> `AUAnswer`, in the order asked for.

    Attributes:
        contradictions: where one of the formats finds an AU present and another finds it absent altogether, see
            consistency_au_llava.py.
    """

    def __init__(self, answers: dict[str, AUAnswer]):
        super().__init__(answers)
        self.contradictions: tuple[Contradiction, ...] = contradictions(answers)

    def to_dict(self) -> dict[str, dict[str, dict]]:
        """Format name -> label -> the fields of its `AUReading`, in JSON's types: for `json.dumps`."""
        return {name: answer.to_dict() for name, answer in self.items()}


def chosen_formats(formats: str | AUFormat | Sequence[str | AUFormat]) -> tuple[AUFormat, ...]:
    """The formats that a user asks for, by what `get_format` takes: one, or a sequence of them.

    Raises:
        ValueError: an unknown format, none, or two of one name.
    """
    one = isinstance(formats, (str, Mapping)) or not isinstance(formats, Iterable)
    chosen = tuple(get_format(fmt) for fmt in ([formats] if one else formats))
    if not chosen or len({fmt.name for fmt in chosen}) < len(chosen):
        raise ValueError("formats must name at least one format, and none twice.")
    return chosen


@torch.no_grad()
def recognize(
    model,
    processor,
    images,
    formats: Sequence[str | AUFormat] = MAIN_FORMATS,
    decoding: str = "slots",
    batch_size: int = 16,
    **generate_kwargs,
) -> list[AUResult]:
    """Read the action units of face images.

    The slots decoder applies the checkpoint's calibration (`model.config.calibration`), if it has one, and takes the
    mean with what it reads off the mirror images if `model.config.mirror_images` says so.

    Args:
        processor: the `AuLlavaProcessor` of this model.
        images: one image or a sequence of them: paths, PIL images, NumPy arrays or tensors (see `load_face_image`),
            each showing one aligned face.
        formats: names of built-in formats, or `AUFormat`s.
        decoding: "slots", "constrained" or "free" (see the head of this file).
        batch_size: images per forward pass. Answers do not depend on it.
        generate_kwargs: for free decoding, passed to `generate` (`do_sample`, `max_new_tokens`, ...).

    Returns:
        per image an `AUResult`: format name -> `AUAnswer`, itself a dict of label -> `AUReading`.

    Raises:
        ValueError: unknown decoder or format, no image, or an image that cannot be read.
    """
    if decoding not in DECODERS:
        raise ValueError(f"decoding={decoding!r} is not known: choose one of {', '.join(DECODERS)}.")
    if generate_kwargs and decoding != "free":
        raise ValueError(f"{', '.join(generate_kwargs)} only apply to decoding='free', not to {decoding!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    formats = chosen_formats(formats)
    stacked = hasattr(images, "shape") and len(images.shape) == 4  # an array or tensor of several images
    images = list(images) if isinstance(images, (list, tuple)) or stacked else [images]
    if not images:
        raise ValueError("There is no image to recognise: images is empty.")
    decode = {"slots": _decode_slots, "constrained": _decode_constrained, "free": _decode_free}[decoding]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        results = []
        for start in range(0, len(images), batch_size):
            batch = processor.image_processor(images[start : start + batch_size], return_tensors="pt")
            pixel_values = batch["pixel_values"].to(model.device, model.dtype)
            for answers in decode(model, processor, pixel_values, formats, **generate_kwargs):
                results.append(AUResult({fmt.name: answer for fmt, answer in zip(formats, answers, strict=True)}))
        return results
    finally:
        for module, mode in modes.items():  # a part may have been in another mode than the whole
            module.training = mode


def _answer(fmt: AUFormat, found: Sequence[int], distributions=None, thresholds=None) -> AUAnswer:
    """The answer whose AUs have these values (indices into the scale) and, where known, these distributions.

    Args:
        distributions: (AUs, values) array, or None.
        thresholds: (AUs,) decision thresholds of presence; by default what the values say.
    """
    values = [fmt.value_numbers[index] for index in found]
    if distributions is None:
        readings = [AUReading(value, None, None, None, value >= fmt.presence_threshold, None) for value in values]
    else:
        numbers = np.array(fmt.value_numbers)
        probability = distributions[:, numbers >= fmt.presence_threshold].sum(axis=1).clip(max=1)
        present = probability >= (DEFAULT_THRESHOLD if thresholds is None else thresholds)
        if thresholds is not None and fmt.scale == "occurrence":
            values = present.astype(float).tolist()
        medians = numbers[(distributions.cumsum(axis=1) >= 0.5 - 1e-9).argmax(axis=1)]
        columns = (values, (distributions @ numbers).tolist(), medians.tolist(), probability.tolist(), present.tolist())
        rows = map(tuple, distributions.tolist())
        readings = [AUReading(*each) for each in zip(*columns, rows, strict=True)]
    text = write_answer(dict(zip(fmt.labels, values, strict=True)), fmt)
    return AUAnswer(fmt, dict(zip(fmt.labels, readings, strict=True)), text)


def read_slots(model, processor, pixel_values: torch.Tensor, formats: tuple[AUFormat, ...]) -> dict[str, torch.Tensor]:
    """What one forward pass over `pixel_values` (images, 3, height, width) reads, before calibration.

    With `model.config.mirror_images` the pass holds the mirror images too, and what is read is the mean of the two.

    Returns:
        format name -> (images, AUs, values) probabilities, float64 on the CPU; those of one AU sum to 1.
    """
    tree = compile_slots(processor, formats, processor.num_image_tokens(*pixel_values.shape[-2:])).to(model.device)
    read = read_tree(model, tree, pixel_values, [fmt.labels for fmt in formats])
    # Float32 sums to 1 but for 1e-7, which is much where calibration divides by what an AU that is certain leaves over.
    return {fmt.name: logs.cpu().double().softmax(-1) for fmt, logs in zip(formats, read, strict=True)}


def read_tree(
    model,
    tree: SlotTree,
    pixel_values: torch.Tensor,
    labels: Sequence[Sequence[str]],
    mirror_images: bool | None = None,
) -> list[torch.Tensor]:
    """Per format of `tree`, whose AUs are `labels`: (images, AUs, values) log-probabilities that one pass reads.

    Args:
        mirror_images: whether to take the mean with the mirror images; by default what the configuration says.
    """
    mirror_images = model.config.mirror_images if mirror_images is None else mirror_images
    views = with_mirror_images(pixel_values) if mirror_images else pixel_values
    read = tree.by_format(tree.log_probabilities(model(**tree.model_inputs(views)).logits))
    if mirror_images:
        read = [mirror_mean(logs, of_format) for logs, of_format in zip(read, labels, strict=True)]
    return read


def with_mirror_images(pixel_values: torch.Tensor) -> torch.Tensor:
    """(images, 3, height, width) to (2 images, 3, height, width): the images, then their mirror images."""
    return torch.cat([pixel_values, pixel_values.flip(-1)])


def mirror_mean(log_probabilities: torch.Tensor, labels: Sequence[str]) -> torch.Tensor:
    """The mean of what was read off images and off their mirror images, where left and right have changed places.

    Args:
        log_probabilities: (2 images, AUs, values) of `with_mirror_images`, normalised.
        labels: of the AUs. One whose other side is not among them is read off the image alone.

    Returns:
        (images, AUs, values) log-probabilities.
    """
    straight, mirrored = log_probabilities.unflatten(0, (2, -1)).unbind()
    sources = [mirrored_label(label) for label in labels]
    columns = [labels.index(source) if source in labels else column for column, source in enumerate(sources)]
    known = torch.tensor([[source in labels] for source in sources], device=straight.device)
    other = torch.where(known, mirrored[:, columns], straight)
    return torch.stack([straight, other]).logsumexp(0) - math.log(2)


def slot_answers(
    read: Mapping[str, torch.Tensor],
    formats: tuple[AUFormat, ...],
    calibration: Mapping | None,
    threshold: float | None = None,
) -> list[list[AUAnswer]]:
    """Per image one answer for each of `formats`, from what `read_slots` read.

    Args:
        calibration: `AuLlavaConfig.calibration`.
        threshold: the probability, 0 to 1, from which on every AU counts as present; by default each AU's own.
    """
    columns = []
    for fmt in formats:
        distributions, thresholds = calibrate(read[fmt.name].numpy(), fmt, calibration)
        if threshold is not None:
            thresholds = np.full_like(thresholds, threshold)
        columns.append([_answer(fmt, rows.argmax(axis=1), rows, thresholds) for rows in distributions])
    return [list(answers) for answers in zip(*columns, strict=True)]


def _decode_slots(model, processor, pixel_values, formats) -> list[list[AUAnswer]]:
    return slot_answers(read_slots(model, processor, pixel_values, formats), formats, model.config.calibration)


def compile_template(processor, fmt: AUFormat) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Per AU of a whole answer: the fixed tokens before its value, and the tokens of every value of the scale.

    Raises:
        ValueError: the tokenizer is not a fast one (no character offsets), or merges a value with the text around it.
    """
    return _template(processor.tokenizer, fmt)


@lru_cache(maxsize=16)
def _template(tokenizer, fmt: AUFormat) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    spans, texts = [], []
    for value in fmt.value_strings:
        text, row = "", []
        for label in fmt.labels:
            text += f"{', ' if text else ''}{label}: "
            row.append((len(text), len(text) + len(value)))
            text += value
        texts.append(text)
        spans.append(row)
    if not tokenizer.is_fast:
        raise ValueError("Constrained decoding needs a fast tokenizer (one that reports character offsets).")
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    segments = [(None, []) for _ in fmt.labels]
    for ids, offsets, row in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        position = 0
        for index, (start, end) in enumerate(row):
            first = next(i for i in range(position, len(ids)) if offsets[i][1] > start)
            last = next(i for i in range(first, len(ids)) if offsets[i][1] >= end)
            fixed, values = segments[index]
            if offsets[last][1] != end or fixed not in (None, tuple(ids[position:first])):
                raise ValueError(
                    f"The tokenizer merges the value of {fmt.labels[index]} with the text around it, so that it cannot "
                    "be decoded on its own: use decoding='slots'."
                )
            segments[index] = (tuple(ids[position:first]), [*values, tuple(ids[first : last + 1])])
            position = last + 1
    return segments


def _decode_constrained(model, processor, pixel_values, formats) -> list[list[AUAnswer]]:
    images = model.get_image_features(pixel_values, return_dict=True)
    image_tokens = processor.num_image_tokens(*pixel_values.shape[-2:])
    columns = []
    for fmt in formats:
        prompt = processor.prompt_ids(fmt, image_tokens)
        walker = _Walker(model, [list(prompt) for _ in pixel_values], {"image": images})
        chosen = [walker.choose(fixed, values) for fixed, values in compile_template(processor, fmt)]
        answers = []
        for choices in zip(*chosen, strict=True):  # of one image: (value, distribution or None) per AU
            values, distributions = zip(*choices, strict=True)
            known = None if any(each is None for each in distributions) else np.stack(distributions)
            answers.append(_answer(fmt, values, known))
        columns.append(answers)
    return [list(answers) for answers in zip(*columns, strict=True)]


class _Walker:
    """Greedy decoding of values with forced text between them, batched, over one key-value cache.

    Tokens wait in `pending` until a decision needs the logits after them; rows that need fewer tokens than others in a
    step are padded on the left of that step and the padding is masked.
    """

    def __init__(self, model, pending: list[list[int]], encoder_outputs: dict):
        self.model = model
        self.pending = pending
        self.first_inputs = {"mm_encoder_outputs": encoder_outputs}
        self.cache = None
        self.mask = torch.zeros(len(pending), 0, dtype=torch.long, device=model.device)
        self.pad = pending[0][-1]  # any token but the image token: its embedding is masked

    def _advance(self) -> torch.Tensor:
        """Feed what is pending; returns the logits (batch, vocabulary) after each row's last token."""
        width = max(map(len, self.pending))
        rows = [[self.pad] * (width - len(row)) + row for row in self.pending]
        step_mask = [[0] * (width - len(row)) + [1] * len(row) for row in self.pending]
        step_mask = torch.tensor(step_mask, device=self.model.device)
        positions = (self.mask.sum(1, keepdim=True) + step_mask.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, step_mask], 1)
        outputs = self.model(
            input_ids=torch.tensor(rows, device=self.model.device),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self.first_inputs,
        )
        self.first_inputs = {}
        self.cache = outputs.past_key_values
        self.pending = [[] for _ in self.pending]
        return outputs.logits[:, -1]

    def choose(self, fixed: tuple[int, ...], values: list[tuple[int, ...]]) -> list[tuple[int, np.ndarray | None]]:
        """Append `fixed` to every row, then the greedily best of `values`.

        Returns:
            per row the index of the value, and its distribution (values,) if a single token decides.
        """
        for row in self.pending:
            row.extend(fixed)
        chosen = [() for _ in self.pending]
        distributions = [None for _ in self.pending]
        while open_rows := [i for i, prefix in enumerate(chosen) if prefix not in values]:
            logits = self._advance()
            for i in open_rows:
                depth = len(chosen[i])
                options = list(dict.fromkeys(v[depth] for v in values if v[:depth] == chosen[i]))
                scores = logits[i, options].float()
                if depth == 0 and all(len(value) == 1 for value in values):
                    distributions[i] = scores.double().softmax(-1).cpu().numpy()
                token = options[int(scores.argmax())]
                chosen[i] += (token,)
                self.pending[i].append(token)
        return [(values.index(tokens), rest) for tokens, rest in zip(chosen, distributions, strict=True)]


def _decode_free(model, processor, pixel_values, formats, **generate_kwargs) -> list[list[AUAnswer]]:
    image_tokens = processor.num_image_tokens(*pixel_values.shape[-2:])
    columns = []
    for fmt in formats:
        prompt = torch.tensor(processor.prompt_ids(fmt, image_tokens), device=model.device)
        input_ids = prompt.expand(len(pixel_values), -1)
        longest = write_answer(dict.fromkeys(fmt.labels, fmt.value_numbers[-1]), fmt)
        limit = len(processor.tokenizer(longest, add_special_tokens=False)["input_ids"]) + 8  # room to end it
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=pixel_values,
            **{"do_sample": False, "max_new_tokens": limit, **generate_kwargs},
        )
        texts = processor.tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
        columns.append([_parsed_answer(fmt, text.strip()) for text in texts])
    return [list(answers) for answers in zip(*columns, strict=True)]


def _parsed_answer(fmt: AUFormat, text: str) -> AUAnswer:
    parsed = parse_answer(text, fmt)
    readings = {}
    for label, value in parsed.values.items():
        readings[label] = AUReading(
            value, value, value, None, None if value is None else value >= fmt.presence_threshold, None
        )
    return AUAnswer(fmt, readings, text, parsed.problems)


__all__ = [
    "DECODERS",
    "AUAnswer",
    "AUReading",
    "AUResult",
    "chosen_formats",
    "compile_template",
    "mirror_mean",
    "read_slots",
    "read_tree",
    "recognize",
    "slot_answers",
    "with_mirror_images",
]
