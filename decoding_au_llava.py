"""Reading answers out of the network: `recognize` and its three decoders.

- slots (default): one forward pass over a token tree (slot_tree_au_llava.py) reads the distribution over the values of
  every AU in every format (`read_slots`); readings_au_llava.py makes the answers. pipeline_au_llava.py uses both, too.
- constrained: autoregressive over the values only; the fixed text between them needs no steps of its own.
- free: plain `generate`, then `parse_answer`, as other LLM-based recognizers do; the baseline.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from .action_units import (
    MAIN_FORMATS,
    SEPARATOR,
    AUFormat,
    parse_answer,
    value_prefix,
    write_answer,
)
from .readings_au_llava import DECODERS, AUAnswer, AUReading, AUResult, answer_of, chosen_formats, slot_answers
from .slot_tree_au_llava import SlotTree, compile_slots

CACHE_OPTIONS = ("past_key_values", "use_cache", "cache_implementation")  # of `generate`


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

    The slots decoder applies the checkpoint's calibration (`model.config.calibration`) if there is one. With
    `model.config.mirror_images` it also reads the mirror images and gives the mean of both.

    Args:
        processor: the `AuLlavaProcessor` of this model.
        images: one image or a sequence of images, each showing one aligned face: paths, PIL images, NumPy arrays or
            tensors (see `load_face_image`).
        formats: one format or a sequence: names of built-in formats, `AUFormat`s or their dicts.
        decoding: "slots", "constrained" or "free" (see the head of this file).
        batch_size: images per forward pass. It does not change the answers.
        generate_kwargs: only for free decoding, passed to `generate` (`do_sample`, `max_new_tokens`, ...), which must
            still give one text for each image.

    Returns:
        one `AUResult` per image: format name -> `AUAnswer`, itself a dict of label -> `AUReading`.

    Raises:
        ValueError: an unknown decoder or format, arguments that do not fit, no image, or an image that cannot be read.
        FileNotFoundError: no such image file.
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
        raise ValueError("There is no image to read: images is empty.")
    decode = {"slots": _decode_slots, "constrained": _decode_constrained, "free": _decode_free}[decoding]
    results = []
    with evaluation_mode(model):
        for start in range(0, len(images), batch_size):
            pixel_values = pixels_of(model, processor, images[start : start + batch_size])
            for answers in decode(model, processor, pixel_values, formats, **generate_kwargs):
                results.append(AUResult({fmt.name: answer for fmt, answer in zip(formats, answers, strict=True)}))
    return results


def modules_of(model) -> list[torch.nn.Module]:
    """What `model.modules()` gives, in a third of the time, since names are not put together; the root comes first.

    A part that has two places in the model comes twice.
    """
    modules = [model]
    for module in modules:
        modules += [part for part in module._modules.values() if part is not None]
    return modules


@contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its parts is in the mode it was in."""
    training = [module for module in modules_of(model) if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def pixels_of(model, processor, images: Sequence) -> torch.Tensor:
    """The pixels of some images, (images, 3, height, width), where and in the type that the model computes."""
    return processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)


def check_fit(model, processor, tokens: int, formats: Sequence[AUFormat]) -> None:
    """Raise ValueError if model and processor write prompts differently, or `tokens` in a row exceed the context."""
    expected, given = model.config.prompt_order, processor.prompt_order
    if expected != given:
        raise ValueError(
            f"The processor writes prompts {given} and the model was made for {expected}: load both from the same "
            "checkpoint, or give both the same prompt_order."
        )
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise ValueError(
            f"A question in {', '.join(fmt.name for fmt in formats)} takes {tokens} tokens, and the language model's "
            f"context holds {context}: ask for fewer AUs, make fewer image tokens (pixel_unshuffle), or use a language "
            "model with a longer context."
        )


def read_slots(
    model,
    processor,
    pixel_values: torch.Tensor,
    formats: tuple[AUFormat, ...],
    mirror_images: bool | None = None,
) -> dict[str, torch.Tensor]:
    """Read distributions with one forward pass over `pixel_values` (images, 3, height, width), before calibration.

    Args:
        mirror_images: whether the pass includes the mirror images, and the mean of both is returned (default: as in
            the configuration).

    Returns:
        format name -> (images, AUs, values) probabilities, float64 on the CPU; those of one AU sum to 1.
    """
    tree = compile_slots(processor, formats, processor.num_image_tokens(*pixel_values.shape[-2:]))
    tree = tree.to(pixel_values.device)
    check_fit(model, processor, tree.depth, formats)
    read = tree.by_format(read_tree(model, tree, pixel_values, mirror_images).cpu().double())
    # In float32 sums are off by 1e-7: too much for calibration, which divides by probabilities near 0.
    return {fmt.name: logs.softmax(-1) for fmt, logs in zip(formats, read, strict=True)}


def read_tree(
    model,
    tree: SlotTree,
    pixel_values: torch.Tensor,
    mirror_images: bool | None = None,
) -> torch.Tensor:
    """Read (images, V) log-probabilities of every value of `tree` with one forward pass.

    Args:
        mirror_images: whether to take the mean with the mirror images (default: as in the configuration).
    """
    mirror_images = model.config.mirror_images if mirror_images is None else mirror_images
    views = with_mirror_images(pixel_values) if mirror_images else pixel_values
    read = tree.log_probabilities(model(**tree.model_inputs(views)).logits)
    return tree.mirror_mean(read) if mirror_images else read


def with_mirror_images(pixel_values: torch.Tensor) -> torch.Tensor:
    """(images, 3, height, width) to (2 * images, 3, height, width): the images, then their mirror images."""
    return torch.cat([pixel_values, pixel_values.flip(-1)])


def _decode_slots(model, processor, pixel_values, formats) -> list[list[AUAnswer]]:
    return slot_answers(read_slots(model, processor, pixel_values, formats), formats, model.config.calibration)


@lru_cache(maxsize=16)
def compile_template(tokenizer, fmt: AUFormat) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Per AU of an answer: the fixed tokens before its value, and the tokens of every value of the scale.

    Raises:
        ValueError: the tokenizer is not a fast one (no character offsets), or merges a value with the text around it.
    """
    spans, texts = [], []
    for value in fmt.value_strings:
        text, row = "", []
        for label in fmt.labels:
            text += (SEPARATOR if text else "") + value_prefix(label)
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
        prompt, template = processor.prompt_ids(fmt, image_tokens), compile_template(processor.tokenizer, fmt)
        answer = sum(len(fixed) + max(map(len, values)) for fixed, values in template)
        check_fit(model, processor, len(prompt) + answer, [fmt])
        shared = processor.shared_length(prompt)
        cache = model.prompt_cache(prompt[:shared]) if shared else None
        walker = _Walker(model, [prompt[shared:] for _ in pixel_values], {"image": images}, cache)
        chosen = [walker.choose(fixed, values) for fixed, values in template]
        answers = []
        for choices in zip(*chosen, strict=True):  # of one image: (index of the value, distribution or None) per AU
            indices, distributions = zip(*choices, strict=True)
            complete = all(distribution is not None for distribution in distributions)
            answers.append(answer_of(fmt, indices, np.stack(distributions) if complete else None))
        columns.append(answers)
    return [list(answers) for answers in zip(*columns, strict=True)]


class _Walker:
    """Greedy decoding of values with forced text between them, batched, with one key-value cache.

    Tokens wait in `pending` until a decision needs the logits after them. In each step, rows with fewer pending tokens
    are padded on the left, and the padding is masked.
    """

    def __init__(self, model, pending: list[list[int]], encoder_outputs: dict, cache=None):
        self.model = model
        self.pending = pending
        self.first_inputs = {"mm_encoder_outputs": encoder_outputs}
        self.cache = cache
        known = cache.get_seq_length() if cache else 0
        self.mask = torch.ones(len(pending), known, dtype=torch.long, device=model.device)
        self.pad = pending[0][-1]  # any token but the image token: its embedding is masked

    def _advance(self) -> torch.Tensor:
        """Feed the pending tokens; returns the logits (batch, vocabulary) after each row's last token."""
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
        """Append `fixed` to every row, then the most probable of `values`, chosen token by token.

        Returns:
            per row the index of the value, and the distribution (values,) if a single token decides, else None.
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
        return list(zip(map(values.index, chosen), distributions, strict=True))


def _decode_free(model, processor, pixel_values, formats, **generate_kwargs) -> list[list[AUAnswer]]:
    image_tokens = processor.num_image_tokens(*pixel_values.shape[-2:])
    columns = []
    for fmt in formats:
        prompt = processor.prompt_ids(fmt, image_tokens)
        check_fit(model, processor, len(prompt), [fmt])
        shared = processor.shared_length(prompt)
        known = {}
        if shared and generate_kwargs.keys().isdisjoint(CACHE_OPTIONS):
            known = {"past_key_values": model.prompt_cache(prompt[:shared])}
        input_ids = torch.tensor(prompt, device=model.device).expand(len(pixel_values), -1)
        longest = write_answer(dict.fromkeys(fmt.labels, fmt.value_numbers[-1]), fmt)
        limit = len(processor.tokenizer(longest, add_special_tokens=False)["input_ids"]) + 8  # a few more to end it
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=pixel_values,
            **{"do_sample": False, "max_new_tokens": limit, **known, **generate_kwargs},
        )
        if not isinstance(output, torch.Tensor) or len(output) != len(pixel_values):
            raise ValueError(
                "generate did not return one text for each image: leave out num_return_sequences and "
                "return_dict_in_generate, or call generate itself."
            )
        texts = processor.tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
        columns.append([_parsed_answer(fmt, text.strip()) for text in texts])
    return [list(answers) for answers in zip(*columns, strict=True)]


def _parsed_answer(fmt: AUFormat, text: str) -> AUAnswer:
    parsed = parse_answer(text, fmt)
    readings = {}
    for label, value in parsed.values.items():
        present = None if value is None else value >= fmt.presence_threshold
        readings[label] = AUReading(value, value, value, None, present, None)
    return AUAnswer(fmt, readings, text, parsed.problems)


__all__ = [
    "check_fit",
    "compile_template",
    "evaluation_mode",
    "modules_of",
    "pixels_of",
    "read_slots",
    "read_tree",
    "recognize",
    "with_mirror_images",
]
