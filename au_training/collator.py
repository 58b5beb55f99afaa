"""From images with known AUs to training batches: the two layouts that AU-LLaVA is trained on.

- slots: the token tree of the slots decoder (`SlotTree`), all formats known for an image in one sequence, so that the
  image is encoded once; loss on the values only (`slot_loss`).
- causal: prompt and answer as ordinary text, for `generate`; loss on the whole answer, or on its values only. One known
  format per image, and the prompt asks only for the AUs that are annotated, so that the model never learns to leave AUs
  out.

An AU whose label is NaN carries no loss in either. Unlabelled pictures may join slot batches, each twice: varied
strongly for the model that learns, as a plain crop for the one that it learns from (au_training/mean_teacher.py).

Every random choice (layout, format, flip, variation, unlabelled pictures) is a function of the seed and the rows in the
batch, not of hidden state: a resumed run sees what the uninterrupted one would have seen. So are batches of about equal
length (`GroupedSampler`), in which little is padded.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import ImageOps
from transformers.trainer_pt_utils import get_length_grouped_indices

from au_llava.action_units import AUFormat, get_format, round_to_scale, write_answer
from au_llava.au_training.augmentation import mirrored_values, plain_crop, strongly_varied_image, varied_image
from au_llava.image_processing_au_llava import load_face_image
from au_llava.slot_tree_au_llava import compile_slots

IGNORED = -100  # label id without loss, as in Transformers
CAUSAL_LOSSES = ("answer", "values")


@lru_cache(maxsize=4096)
def value_target(value: float, fmt: AUFormat, width: float) -> torch.Tensor:
    """Target distribution (values,) over the scale for a label.

    With `width` 0 all mass is on the label. Otherwise the mass of a present AU spreads over the values above 0 as a
    Gaussian around the label, `width` being its standard deviation as a share of the scale; an absent AU (0) stays
    exactly absent, since presence is a matter of kind, not of degree.
    """
    numbers = torch.tensor(fmt.value_numbers)
    if width == 0 or value == 0:
        return (numbers == numbers[fmt.value_numbers.index(value)]).float()
    distance = (numbers - value) / (width * fmt.value_numbers[-1])
    return (-0.5 * distance.square()).masked_fill(numbers == 0, -torch.inf).softmax(0)


def slot_loss(
    logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor, annotated: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy between target and predicted value distribution over the annotated AUs, weighted.

    Args:
        logits: (batch, positions, tokens).
        rows: (batch, D) which of the positions holds each decision.
        columns: (batch, D, C) which of the tokens may follow, -1 where there are fewer than C.
        targets: (batch, D, C) target mass of each choice times the AU's weight (1 unless the collator has weights); all
            zero at decisions of AUs that are not annotated.
        annotated: (batch,) sum of the weights of each row's annotated AUs: without weights, their number.

    Returns:
        scalar; only tokens that can follow compete, as in the slots decoder.
    """
    cells = rows[..., None] * logits.shape[-1] + columns.clamp(min=0)  # (batch, D, C) into positions x tokens
    chosen = logits.flatten(1).gather(1, cells.flatten(1)).view(columns.shape).float()
    chosen = chosen.masked_fill(columns < 0, torch.finfo(torch.float32).min)
    return -(targets * chosen.log_softmax(-1)).sum() / annotated.sum().clamp(min=1e-6)


def slot_lengths(formats: Sequence[Sequence[str]], processor) -> list[int]:
    """Tokens of the slot tree of each row that has labels in these `formats`."""
    crop = processor.image_processor.crop_size
    image_tokens = processor.num_image_tokens(crop["height"], crop["width"])
    lengths = {
        names: len(compile_slots(processor, tuple(map(get_format, names)), image_tokens))
        for names in set(map(tuple, formats))
    }
    return [lengths[tuple(names)] for names in formats]


class GroupedSampler(torch.utils.data.Sampler):
    """Row numbers for an epoch in which rows of about equal length follow each other, as Transformers groups them.

    They depend on seed and epoch alone, so a resumed run draws what the uninterrupted one would have drawn.

    Args:
        lengths: of each row. batch_size: rows of a step.
        rows: the rows of an epoch, such as a `WeightedSampler`; None: each once.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, rows: torch.utils.data.Sampler | None = None
    ):
        self.lengths, self.batch_size, self.seed, self.rows = lengths, batch_size, seed, rows
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if self.rows is not None:
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rows = range(len(self)) if self.rows is None else list(self.rows)
        draw = int(np.random.default_rng([self.seed, self.epoch]).integers(2**63))
        generator = torch.Generator().manual_seed(draw)
        order = get_length_grouped_indices([self.lengths[row] for row in rows], self.batch_size, generator=generator)
        yield from (rows[place] for place in order)


class AUCollator:
    """Collates rows of `train_sft.training_rows` into model inputs.

    Args:
        processor: `AuLlavaProcessor`.
        causal_share: share of the batches laid out as ordinary causal text, 0 to 1; the rest are slot trees.
        ordinal_width: spread of the slots' targets over neighbouring values, see `value_target`; 0 is plain
            cross-entropy.
        flip: probability of a horizontal flip (sided labels swap), 0 to 1.
        seed: of all random choices.
        causal_loss: what of a causal answer carries loss: the whole "answer" and its end, or its "values".
        augment: vary crop, light and colours of the images a little (`varied_image`).
        slot_weights: format -> AU -> positive weight of its loss in slot batches, 1 where there is none.
        unlabelled_per_labelled: unlabelled pictures that join a slot batch, relative to its rows.

    Attributes:
        features: where rows name their image by `features`, the features (image tokens, width) of every name, which
            the batch then holds as `image_features` in place of pixels (au_training/features.py). Flips and variation
            change pixels and cannot be combined with it.
    """

    def __init__(
        self,
        processor,
        causal_share: float = 0.25,
        ordinal_width: float = 0.0,
        flip: float = 0.0,
        seed: int = 0,
        causal_loss: str = "answer",
        augment: bool = False,
        slot_weights: Mapping[str, Mapping[str, float]] | None = None,
        unlabelled_per_labelled: float = 0.0,
    ):
        for name, share in (("causal_share", causal_share), ("flip", flip)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it must lie between 0 and 1.")
        self.processor = processor
        if ordinal_width < 0:
            raise ValueError(f"ordinal_width is {ordinal_width}; it must be 0 (off) or more.")
        if causal_loss not in CAUSAL_LOSSES:
            raise ValueError(f"causal_loss is {causal_loss!r}; it must be one of {', '.join(CAUSAL_LOSSES)}.")
        self.augment = augment
        self.slot_weights = slot_weights or {}
        self.causal_share = causal_share
        self.causal_loss = causal_loss
        self.ordinal_width = ordinal_width
        self.flip = flip
        self.seed = seed
        self.unlabelled_per_labelled = unlabelled_per_labelled
        self.features: Mapping[str, torch.Tensor] = {}

    def _layout(self, rows: Sequence[dict]) -> tuple[bool, np.random.Generator]:
        """Whether a batch of these rows is causal, and the generator of its further random choices."""
        rng = np.random.default_rng([self.seed, *(row["index"] for row in rows)])
        return rng.random() < self.causal_share, rng

    def joining(self, rows: Sequence[dict], available: int) -> list[int]:
        """Which of `available` unlabelled pictures join a batch of these rows, each once while there are enough; none
        join a causal one."""
        causal, rng = self._layout(rows)
        count = 0 if causal else round(self.unlabelled_per_labelled * len(rows))
        return rng.spawn(1)[0].choice(available, count, replace=count > available).tolist()

    def __call__(self, rows: Sequence[dict], unlabelled: Sequence[dict] = ()) -> dict[str, torch.Tensor]:
        """The batch of some rows and of unlabelled pictures that join it.

        Args:
            rows: with `image` (PIL) or `features`, `formats` (names or AUFormat dicts), `values` (one list per format)
                and `index`.
            unlabelled: rows of `mixing.unlabelled_rows`, all with the same formats, their `image` decoded; they come
                last in the batch, without labels. With them it also holds `plain_pixel_values` (pictures, 3, height,
                width) and `weak` (pictures, AUs of all formats); a picture that is flipped is so in all three.
        """
        causal, rng = self._layout(rows)
        images, labels = [], []
        for row in rows:
            known = {get_format(fmt): values for fmt, values in zip(row["formats"], row["values"], strict=True)}
            image = row.get("image")
            if self.augment:
                image = varied_image(load_face_image(image), rng)
            if rng.random() < self.flip:
                image = ImageOps.mirror(image)
                known = {fmt: mirrored_values(values, fmt) for fmt, values in known.items()}
            images.append(image)
            labels.append(known)
        plain, weak = [], []
        for row in unlabelled:
            believed = {get_format(fmt): values for fmt, values in zip(row["formats"], row["values"], strict=True)}
            image = load_face_image(row["image"])
            views = [strongly_varied_image(image, rng, row["margin"]), plain_crop(image, row["margin"])]
            if rng.random() < self.flip:
                views = list(map(ImageOps.mirror, views))
                believed = {fmt: mirrored_values(values, fmt) for fmt, values in believed.items()}
            images.append(views[0])
            plain.append(views[1])
            weak.append([value for values in believed.values() for value in values])
            labels.append({fmt: [math.nan] * len(fmt.labels) for fmt in believed})
        if "features" in rows[0]:
            vision = {"image_features": torch.stack([self.features[row["features"]] for row in rows])}
            image_tokens = vision["image_features"].shape[1]
        else:
            pixel_values = self.processor.image_processor([*images, *plain], return_tensors="pt")["pixel_values"]
            vision = {"pixel_values": pixel_values[: len(images)]}
            if plain:
                vision |= {"plain_pixel_values": pixel_values[len(images) :], "weak": torch.tensor(weak)}
            image_tokens = self.processor.num_image_tokens(*pixel_values.shape[-2:])
        batch = self._causal(labels, image_tokens, rng) if causal else self._slots(labels, image_tokens)
        return {**batch, **vision}

    def _slots(self, labels: list[dict[AUFormat, Sequence[float]]], image_tokens: int) -> dict[str, torch.Tensor]:
        trees = [compile_slots(self.processor, tuple(known), image_tokens) for known in labels]
        length = max(map(len, trees))
        decisions, choices = (max(tree.choices.shape[dim] for tree in trees) for dim in (0, 1))
        batch = {
            "input_ids": torch.full((len(trees), length), self.processor.tokenizer.pad_token_id),
            "attention_mask": torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1, 1),  # padding sees itself
            "position_ids": torch.zeros(len(trees), length, dtype=torch.long),
            "decision_nodes": torch.zeros(len(trees), decisions, dtype=torch.long),
            "choices": torch.full((len(trees), decisions, choices), -1),
            "choice_targets": torch.zeros(len(trees), decisions, choices),
            "annotated": torch.tensor(
                [
                    sum(
                        self._weight(fmt, label)
                        for fmt, values in known.items()
                        for label, value in zip(fmt.labels, values, strict=True)
                        if not math.isnan(value)
                    )
                    for known in labels
                ]
            ),
        }
        for row, (tree, known) in enumerate(zip(trees, labels, strict=True)):
            size, (nodes, width) = len(tree), tree.choices.shape
            batch["input_ids"][row, :size] = tree.input_ids
            batch["attention_mask"][row, 0, :size, :size] = tree.mask
            batch["position_ids"][row, :size] = tree.positions
            batch["decision_nodes"][row, :nodes] = tree.decision_nodes
            batch["choices"][row, :nodes, :width] = tree.choices
            batch["choice_targets"][row, :nodes, :width] = self._targets(tree, known)
        return batch

    def _weight(self, fmt: AUFormat, label: str) -> float:
        return self.slot_weights.get(fmt.name, {}).get(label, 1)

    def _targets(self, tree, known: dict[AUFormat, Sequence[float]]) -> torch.Tensor:
        """Per decision and choice (D, C), the weighted target probability mass of the values that pass through it."""
        formats = list(known)
        value_masses = torch.zeros(len(tree.value_paths))
        for slot in tree.slots:
            fmt = formats[slot.format_index]
            value = known[fmt][fmt.labels.index(slot.label)]
            if not math.isnan(value):
                target = value_target(round_to_scale(value, fmt), fmt, self.ordinal_width)
                value_masses[slot.values] = target * self._weight(fmt, slot.label)
        masses = torch.zeros(tree.choices.numel() + 1)  # the last cell collects the padding of short paths
        masses.index_add_(0, tree.value_paths.flatten(), value_masses.repeat_interleave(tree.value_paths.shape[1]))
        return masses[:-1].view(tree.choices.shape)

    def _causal(self, labels, image_tokens: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        sequences = []
        for known in labels:
            annotated = {fmt: values for fmt, values in known.items() if not all(map(math.isnan, values))}
            fmt, values = list((annotated or known).items())[rng.integers(len(annotated or known))]
            values = {label: v for label, v in zip(fmt.labels, values, strict=True) if not math.isnan(v)}
            asked = AUFormat(fmt.name, tuple(values) or fmt.labels, fmt.scale, fmt.presence_threshold)
            prompt = self.processor.prompt_ids(asked, image_tokens)
            answer, learned = self._answer(write_answer(values, asked)) if values else ([], [])
            sequences.append((prompt, answer, learned))
        length = max(len(prompt) + len(answer) for prompt, answer, _ in sequences)
        input_ids = torch.full((len(sequences), length), self.processor.tokenizer.pad_token_id)
        mask = torch.zeros_like(input_ids)
        targets = torch.full_like(input_ids, IGNORED)
        for row, (prompt, answer, learned) in enumerate(sequences):
            end = len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            mask[row, :end] = 1
            targets[row, len(prompt) : end] = torch.tensor(learned, dtype=torch.long)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": targets}

    def _answer(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of an answer with its end, and the same with `IGNORED` for tokens that carry no loss."""
        ids = self.processor.answer_ids(text)
        if self.causal_loss == "answer":
            return ids, ids
        values = [match.span(1) for match in re.finditer(r": ([\d.]+)", text)]
        offsets = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        learned = [
            token if any(start < last and first < end for first, last in values) else IGNORED
            for token, (start, end) in zip(ids, offsets, strict=False)  # the end of the turn has no offset
        ]
        return ids, learned + [IGNORED] * (len(ids) - len(learned))
