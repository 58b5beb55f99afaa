"""How answers are read out of the network: `recognize`, and the three decoders behind it.

- slots (default): one forward pass reads the value distribution of every AU of every requested format.
- constrained: autoregressive over the values only; the fixed text between them costs no step of its own.
- free: plain `generate`, then `parse_answer`: what other LLM-based recognisers do, kept as the honest baseline.

The slots decoder rests on one idea: everything that could be asked and answered about an image is a set of token
sequences (a prompt, then "AU12: 3"), and that set is a tree whose trunk is the image. `SlotTree` lays the tree out as
one sequence: a token attends to its ancestors and itself, and its position is its depth. Each token then has exactly
the hidden state that ordinary causal attention over its own path would give it, so one pass equals asking for each AU
on its own. Formats share the image and the purpose, values of several tokens (0.37) share their leading digits, and any
tokenizer works, because nothing but token sequences is looked at.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .action_units import AUFormat, get_format, parse_answer, write_answer

DECODERS = ("slots", "constrained", "free")


@dataclass(frozen=True)
class AUReading:
    """What was read for one AU. `None` marks what the decoder cannot tell (free decoding, an unread AU)."""

    value: float | None  # on the format's scale: the most probable value
    expected: float | None  # mean of the distribution, on the format's scale
    probability: float | None  # of presence: P(value >= the format's presence_threshold), 0 to 1
    distribution: tuple[float, ...] | None  # probability of each of the format's value_numbers, sums to 1


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


@dataclass(frozen=True)
class Slot:
    """One AU of one format in a `SlotTree`."""

    format_index: int
    label: str
    decisions: slice  # its rows in SlotTree.decision_nodes
    values: slice  # its rows in SlotTree.value_paths


class SlotTree:
    """The token tree of some formats: layout, mask, and where to read every value.

    Args:
        prompts: token ids of one prompt per format, image tokens expanded, up to where the answer begins.
        answers: per format, per AU label, per value of the scale: the token ids of "label: value".

    Attributes (N tokens, D decisions, C = most choices at one decision, V = values of all slots together):
        input_ids: (N,) long. positions: (N,) long, depth in the tree. mask: (N, N) bool, True = may attend.
        slots: `Slot` per format and AU.
        decision_nodes: (D,) long, the token whose next-token logits decide between values.
        choices: (D, C) long, the token ids that may follow, -1 where there are fewer than C.
        value_paths: (V, longest path) long, for each value the flat indices decision * C + choice that lead to it,
            D * C where the path is shorter.
        value_targets: per value, the (decision, token id) pairs that lead to it: the training targets.

    Raises:
        ValueError: the tokenizer writes two values of a scale with the same tokens, or one value as the beginning of
            another.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], answers: Sequence[dict[str, Sequence[Sequence[int]]]]):
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self.slots: list[Slot] = []
        self.value_targets: list[list[tuple[int, int]]] = []
        nodes: list[int] = []
        choices: list[list[int]] = []
        for index, (prompt, labels) in enumerate(zip(prompts, answers, strict=True)):
            start = self._add_path(-1, prompt)
            for label, sequences in labels.items():
                first_decision, first_value = len(nodes), len(self.value_targets)
                targets = self._add_slot(start, label, sequences, nodes, choices)
                self.value_targets.extend(targets)
                self.slots.append(
                    Slot(index, label, slice(first_decision, len(nodes)), slice(first_value, len(self.value_targets)))
                )
        self._finish(nodes, choices)

    def __len__(self) -> int:
        return len(self.input_ids)

    def _add_path(self, node: int, tokens: Iterable[int]) -> int:
        for token in tokens:
            child = self._children.get((node, token))
            if child is None:
                child = len(self._tokens)
                self._children[node, token] = child
                self._tokens.append(token)
                self._parents.append(node)
            node = child
        return node

    def _add_slot(self, start, label, sequences, nodes, choices) -> list[list[tuple[int, int]]]:
        """Add the decisions of one AU; returns per value its (decision, token) pairs. Only tokens that lead to a
        decision become part of the tree: the last token of a value is never an input."""
        following: dict[tuple[int, ...], list[int]] = {}  # prefix of the answer -> tokens that may come next
        for sequence in sequences:
            for depth, token in enumerate(sequence):
                options = following.setdefault(tuple(sequence[:depth]), [])
                if token not in options:
                    options.append(token)
        if len(set(map(tuple, sequences))) < len(sequences) or any(tuple(s) in following for s in sequences):
            raise ValueError(
                f"The tokenizer does not tell the values of {label} apart: two of them share their tokens or one is "
                "the beginning of another. Use a tokenizer that keeps digits."
            )
        decisions = {}
        for prefix, options in following.items():
            if len(options) > 1:
                decisions[prefix] = len(nodes)
                nodes.append(self._add_path(start, prefix))
                choices.append(options)
        return [[(decisions[s[:d]], s[d]) for d in range(len(s)) if s[:d] in decisions] for s in map(tuple, sequences)]

    def _finish(self, nodes: list[int], choices: list[list[int]]):
        count, width = len(self._tokens), max(map(len, choices))
        self.input_ids = torch.tensor(self._tokens)
        self.positions = torch.zeros(count, dtype=torch.long)
        self.mask = torch.eye(count, dtype=torch.bool)
        for node, parent in enumerate(self._parents):  # parents come before their children
            if parent >= 0:
                self.positions[node] = self.positions[parent] + 1
                self.mask[node] |= self.mask[parent]
        self.decision_nodes = torch.tensor(nodes)
        self.choices = torch.tensor([row + [-1] * (width - len(row)) for row in choices])
        flat = len(nodes) * width
        paths = [
            [decision * width + choices[decision].index(token) for decision, token in targets]
            for targets in self.value_targets
        ]
        longest = max(map(len, paths))
        self.value_paths = torch.tensor([path + [flat] * (longest - len(path)) for path in paths])

    def to(self, device) -> "SlotTree":
        """A copy whose tensors are on `device`."""
        moved = copy.copy(self)
        for name in ("input_ids", "positions", "mask", "decision_nodes", "choices", "value_paths"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tree as inputs of one forward pass over `pixel_values` (batch, 3, height, width)."""
        batch = pixel_values.shape[0]
        return {
            "input_ids": self.input_ids.expand(batch, -1),
            "attention_mask": self.mask.expand(batch, 1, -1, -1),
            "position_ids": self.positions.expand(batch, -1),
            "pixel_values": pixel_values,
        }

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probability of every value of every slot.

        Args:
            logits: (batch, D, vocabulary) at `decision_nodes`.

        Returns:
            (batch, V) float32; over the values of one slot the probabilities sum to 1.
        """
        absent = self.choices < 0
        chosen = logits.gather(2, self.choices.clamp(min=0).expand(len(logits), -1, -1)).float()
        steps = chosen.masked_fill(absent, -torch.inf).log_softmax(-1)  # (batch, D, C)
        steps = torch.nn.functional.pad(steps.flatten(1), (0, 1))  # one more column: 0, for shorter paths
        return steps[:, self.value_paths].sum(-1)


@lru_cache(maxsize=16)
def compile_slots(processor, formats: tuple[AUFormat, ...], image_tokens: int) -> SlotTree:
    """The `SlotTree` of `formats` for this processor's tokenizer; kept, since it is the same for every image."""
    prompts = [processor.prompt_ids(fmt, image_tokens) for fmt in formats]
    answers = []
    for fmt in formats:
        texts = [f"{label}: {value}" for label in fmt.labels for value in fmt.value_strings]
        ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = len(fmt.value_strings)
        answers.append({label: ids[i * width : (i + 1) * width] for i, label in enumerate(fmt.labels)})
    return SlotTree(prompts, answers)


@torch.no_grad()
def recognize(
    model,
    processor,
    images,
    formats: Sequence[str | AUFormat] = ("bp4d", "disfa", "feafa"),
    decoding: str = "slots",
    batch_size: int = 16,
    **generate_kwargs,
) -> list[dict[str, AUAnswer]]:
    """Read the action units of face images.

    Args:
        processor: the `AuLlavaProcessor` of this model.
        images: one image or a sequence of them: paths, PIL images, NumPy arrays or tensors (see `load_face_image`),
            each showing one aligned face.
        formats: names of built-in formats, or `AUFormat`s.
        decoding: "slots", "constrained" or "free" (see the head of this file).
        batch_size: images per forward pass. Answers do not depend on it.
        generate_kwargs: for free decoding, passed to `generate` (`do_sample`, `max_new_tokens`, ...).

    Returns:
        per image a dict: format name -> `AUAnswer`, itself a dict of label -> `AUReading`.

    Raises:
        ValueError: unknown decoder or format, no image, or an image that cannot be read.
    """
    if decoding not in DECODERS:
        raise ValueError(f"decoding={decoding!r} is not known: choose one of {', '.join(DECODERS)}.")
    if generate_kwargs and decoding != "free":
        raise ValueError(f"{', '.join(generate_kwargs)} only apply to decoding='free', not to {decoding!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    formats = tuple(get_format(fmt) for fmt in ([formats] if isinstance(formats, str) else formats))
    if not formats or len({fmt.name for fmt in formats}) < len(formats):
        raise ValueError("formats must name at least one format, and none twice.")
    stacked = hasattr(images, "shape") and len(images.shape) == 4  # an array or tensor of several images
    images = list(images) if isinstance(images, (list, tuple)) or stacked else [images]
    if not images:
        raise ValueError("There is no image to recognise: images is empty.")
    decode = {"slots": _decode_slots, "constrained": _decode_constrained, "free": _decode_free}[decoding]
    was_training = model.training
    model.eval()
    try:
        results = []
        for start in range(0, len(images), batch_size):
            batch = processor.image_processor(images[start : start + batch_size], return_tensors="pt")
            pixel_values = batch["pixel_values"].to(model.device, model.dtype)
            for answers in decode(model, processor, pixel_values, formats, **generate_kwargs):
                results.append({fmt.name: answer for fmt, answer in zip(formats, answers, strict=True)})
        return results
    finally:
        model.train(was_training)


def _answer(fmt: AUFormat, distributions: Sequence[torch.Tensor | None], values: Sequence[int]) -> AUAnswer:
    """The answer whose AUs have these values (indices into the scale) and, where known, distributions (values,)."""
    numbers = torch.tensor(fmt.value_numbers)
    readings = {}
    for label, distribution, index in zip(fmt.labels, distributions, values, strict=True):
        value = fmt.value_numbers[index]
        if distribution is None:
            readings[label] = AUReading(value, None, None, None)
            continue
        expected = (distribution * numbers).sum().item()
        probability = distribution[numbers >= fmt.presence_threshold].sum().clamp(max=1.0).item()
        readings[label] = AUReading(value, expected, probability, tuple(distribution.tolist()))
    return AUAnswer(fmt, readings, write_answer({label: reading.value for label, reading in readings.items()}, fmt))


def _decode_slots(model, processor, pixel_values, formats) -> list[list[AUAnswer]]:
    tree = compile_slots(processor, formats, processor.num_image_tokens(*pixel_values.shape[-2:])).to(model.device)
    logits = model(**tree.model_inputs(pixel_values), logits_to_keep=tree.decision_nodes, use_cache=False).logits
    probabilities = tree.log_probabilities(logits).exp().cpu()
    results = []
    for row in probabilities:
        by_format = [[] for _ in formats]
        for slot in tree.slots:
            by_format[slot.format_index].append(row[slot.values])
        results.append(
            [_answer(fmt, rows, [int(r.argmax()) for r in rows]) for fmt, rows in zip(formats, by_format, strict=True)]
        )
    return results


@lru_cache(maxsize=16)
def compile_template(processor, fmt: AUFormat) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Per AU of a whole answer: the fixed tokens before its value, and the tokens of every value of the scale.

    Raises:
        ValueError: the tokenizer is not a fast one (no character offsets), or merges a value with the text around it.
    """
    spans, texts = [], []
    for value in fmt.value_strings:
        text, row = "", []
        for label in fmt.labels:
            text += f"{', ' if text else ''}{label}: "
            row.append((len(text), len(text) + len(value)))
            text += value
        texts.append(text)
        spans.append(row)
    if not processor.tokenizer.is_fast:
        raise ValueError("Constrained decoding needs a fast tokenizer (one that reports character offsets).")
    encoded = processor.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
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
        per_au = [walker.choose(fixed, values) for fixed, values in compile_template(processor, fmt)]
        columns.append(
            [
                _answer(fmt, [d for d, _ in per_image], [v for _, v in per_image])
                for per_image in zip(*per_au, strict=True)
            ]
        )
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

    def choose(self, fixed: tuple[int, ...], values: list[tuple[int, ...]]) -> list[tuple[torch.Tensor | None, int]]:
        """Append `fixed` to every row, then the greedily best of `values`; per row (distribution or None, index)."""
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
                    distributions[i] = scores.softmax(-1).cpu()
                token = options[int(scores.argmax())]
                chosen[i] += (token,)
                self.pending[i].append(token)
        return [(d, values.index(c)) for d, c in zip(distributions, chosen, strict=True)]


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
    readings = {label: AUReading(parsed.values[label], parsed.values[label], None, None) for label in fmt.labels}
    return AUAnswer(fmt, readings, text, parsed.problems)


__all__ = ["DECODERS", "AUAnswer", "AUReading", "Slot", "SlotTree", "compile_slots", "compile_template", "recognize"]
