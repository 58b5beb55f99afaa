"""From images with known AUs to training batches: the two layouts that AU-LLaVA is trained on.

- slots: the token tree of the slots decoder (`SlotTree`), all formats known for an image in one sequence, so that the
  image is encoded once; loss on value tokens only.
- causal: prompt and answer as ordinary text, for `generate`; loss on the answer only. One known format per image, and
  the prompt asks only for the AUs that are annotated, so that the model never learns to leave AUs out.

An AU whose label is NaN carries no loss in either. Every random choice (layout, format, flip) is a function of the seed
and the rows in the batch, not of hidden state: a resumed run sees what the uninterrupted one would have seen.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import ImageOps

from .action_units import AUFormat, get_format, mirrored_label, quantise, write_answer
from .decoding_au_llava import compile_slots

IGNORED = -100  # label id without loss, as in Transformers


def mirrored_values(values: Sequence[float], fmt: AUFormat) -> list[float]:
    """The values (in `fmt`'s label order) of the horizontally flipped image: left and right swap.

    A side whose counterpart is not in the format becomes NaN (unknown)."""
    sources = [mirrored_label(label) for label in fmt.labels]
    return [values[fmt.labels.index(label)] if label in fmt.labels else math.nan for label in sources]


class AUCollator:
    """Collates rows of `train_sft.training_rows` into model inputs.

    Args:
        processor: `AuLlavaProcessor`.
        causal_share: share of the batches laid out as ordinary causal text, 0 to 1; the rest are slot trees.
        flip: probability of a horizontal flip (sided labels swap), 0 to 1.
        seed: of all random choices.
    """

    def __init__(self, processor, causal_share: float = 0.25, flip: float = 0.0, seed: int = 0):
        for name, share in (("causal_share", causal_share), ("flip", flip)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it must lie between 0 and 1.")
        self.processor = processor
        self.causal_share = causal_share
        self.flip = flip
        self.seed = seed

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Rows with `image` (PIL), `formats` (names or AUFormat dicts), `values` (one list per format) and `index`."""
        rng = np.random.default_rng([self.seed, *(row["index"] for row in rows)])
        causal = rng.random() < self.causal_share
        images, labels = [], []
        for row in rows:
            known = {get_format(fmt): values for fmt, values in zip(row["formats"], row["values"], strict=True)}
            image = row["image"]
            if rng.random() < self.flip:
                image = ImageOps.mirror(image)
                known = {fmt: mirrored_values(values, fmt) for fmt, values in known.items()}
            images.append(image)
            labels.append(known)
        pixel_values = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        image_tokens = self.processor.num_image_tokens(*pixel_values.shape[-2:])
        batch = self._causal(labels, image_tokens, rng) if causal else self._slots(labels, image_tokens)
        return {**batch, "pixel_values": pixel_values}

    def _slots(self, labels: list[dict[AUFormat, Sequence[float]]], image_tokens: int) -> dict[str, torch.Tensor]:
        trees = [compile_slots(self.processor, tuple(known), image_tokens) for known in labels]
        length = max(map(len, trees))
        input_ids = torch.full((len(trees), length), self.processor.tokenizer.pad_token_id)
        positions = torch.zeros(len(trees), length, dtype=torch.long)
        mask = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1, 1)  # padding attends to itself
        targets = torch.full((len(trees), length), IGNORED)
        for row, (tree, known) in enumerate(zip(trees, labels, strict=True)):
            input_ids[row, : len(tree)] = tree.input_ids
            positions[row, : len(tree)] = tree.positions
            mask[row, 0, : len(tree), : len(tree)] = tree.mask
            nodes, tokens = self._targets(tree, known)
            targets[row, nodes] = tokens
        return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions, "shift_labels": targets}

    @staticmethod
    def _targets(tree, known: dict[AUFormat, Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes of the tree with a target, and the token ids that should follow them."""
        formats = list(known)
        decisions, tokens = [], []
        for slot in tree.slots:
            fmt = formats[slot.format_index]
            value = known[fmt][fmt.labels.index(slot.label)]
            if math.isnan(value):
                continue
            index = fmt.value_numbers.index(quantise(value, fmt))
            for decision, token in tree.value_targets[slot.values.start + index]:
                decisions.append(decision)
                tokens.append(token)
        return tree.decision_nodes[decisions], torch.tensor(tokens, dtype=torch.long)

    def _causal(self, labels, image_tokens: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        sequences = []
        for known in labels:
            annotated = {fmt: values for fmt, values in known.items() if not all(map(math.isnan, values))}
            fmt, values = list((annotated or known).items())[rng.integers(len(annotated or known))]
            values = {label: v for label, v in zip(fmt.labels, values, strict=True) if not math.isnan(v)}
            asked = AUFormat(fmt.name, tuple(values) or fmt.labels, fmt.scale, fmt.presence_threshold)
            prompt = self.processor.prompt_ids(asked, image_tokens)
            answer = self.processor.answer_ids(write_answer(values, asked)) if values else []
            sequences.append((prompt, answer))
        length = max(len(prompt) + len(answer) for prompt, answer in sequences)
        input_ids = torch.full((len(sequences), length), self.processor.tokenizer.pad_token_id)
        mask = torch.zeros_like(input_ids)
        targets = torch.full_like(input_ids, IGNORED)
        for row, (prompt, answer) in enumerate(sequences):
            end = len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            mask[row, :end] = 1
            targets[row, len(prompt) : end] = torch.tensor(answer, dtype=torch.long)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": targets}
