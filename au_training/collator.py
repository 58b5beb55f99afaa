"""Collates images with known AUs into training batches, in one of two layouts.

- Slots: the token tree of the slots decoder (`SlotTree`), with all known formats of an image in one sequence, so that
  the image is encoded once. Only the values carry loss (`slot_loss`).
- Causal: prompt and answer as ordinary text, for `generate`. The whole answer carries loss, or only its values. Each
  image takes one of its formats, and the prompt asks only for annotated AUs: the model must never learn to skip AUs.

An AU whose label is NaN carries no loss in either. Unlabelled pictures may join slot batches, each in two versions:
strongly varied for the model that learns, and as a plain crop for the one it learns from (mean_teacher.py).

Every random choice (layout, format, flip, variation, unlabelled pictures) depends only on the seed and the rows of the
batch, so a resumed run gets the batches of the uninterrupted one.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import ImageOps

from au_llava.action_units import AUFormat, add_format, get_format, own_formats, round_to_scale, write_answer
from au_llava.au_training.augmentation import mirrored_values, plain_crop, strongly_varied_image, varied_image
from au_llava.au_training.loss import IGNORED, value_target
from au_llava.pictures_au_llava import load_face_image
from au_llava.slot_tree_au_llava import compile_slots

CAUSAL_LOSSES = ("answer", "values")


class AUCollator:
    """Collates rows of `mixing.training_rows` into model inputs.

    Args:
        processor: `AuLlavaProcessor`.
        causal_share: share of the batches in the causal layout, 0 to 1; the rest are slot trees.
        ordinal_width: spread of the slots' targets over neighboring values, see `value_target`; 0 is plain
            cross-entropy.
        flip: probability of a horizontal flip (sided labels swap), 0 to 1.
        seed: of all random choices.
        causal_loss: which part of a causal answer carries loss: the whole "answer" and its end, or its "values".
        augment: vary crop, light and colors of the images a little (`varied_image`).
        slot_weights: format -> AU -> positive weight of its loss in slot batches; 1 by default.
        unlabelled_per_labelled: number of unlabelled pictures that join a slot batch, relative to its rows.

    Attributes:
        features: the features (image tokens, width) of every name, for rows that name their image by `features`. The
            batch then holds `image_features` instead of pixels (features.py). Flips and variation change pixels and
            cannot be combined with it.

    Raises:
        ValueError: a share that is not from 0 to 1, a negative width, or an unknown `causal_loss`.
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
        if not 0 <= ordinal_width < math.inf:
            raise ValueError(f"ordinal_width is {ordinal_width}; it must be 0 (off) or more.")
        if causal_loss not in CAUSAL_LOSSES:
            raise ValueError(f"causal_loss is {causal_loss!r}; it must be one of {', '.join(CAUSAL_LOSSES)}.")
        self.processor = processor
        self.causal_share = causal_share
        self.ordinal_width = ordinal_width
        self.flip = flip
        self.seed = seed
        self.causal_loss = causal_loss
        self.augment = augment
        self.slot_weights = slot_weights or {}
        self.unlabelled_per_labelled = unlabelled_per_labelled
        self.features: Mapping[str, torch.Tensor] = {}
        self.own_formats = own_formats()

    def __setstate__(self, state: dict) -> None:
        """In a worker of the data loader, which may be a new process that knows the built-in formats only."""
        self.__dict__.update(state)
        for fmt in self.own_formats:
            add_format(fmt)

    def _layout(self, rows: Sequence[dict]) -> tuple[bool, np.random.Generator]:
        """Whether a batch of these rows is causal, and the generator of its other random choices."""
        rng = np.random.default_rng([self.seed, *(row["index"] for row in rows)])
        return rng.random() < self.causal_share, rng

    def joining(self, rows: Sequence[dict], available: int) -> list[int]:
        """Numbers of the unlabelled pictures, out of `available`, that join a batch of these rows.

        No picture joins twice while there are enough, and none joins a causal batch.
        """
        causal, rng = self._layout(rows)
        count = 0 if causal else round(self.unlabelled_per_labelled * len(rows))
        return rng.spawn(1)[0].choice(available, count, replace=count > available).tolist()

    def __call__(self, rows: Sequence[dict], unlabelled: Sequence[dict] = ()) -> dict[str, torch.Tensor]:
        """The batch of labelled rows and of the unlabelled pictures that join it.

        Args:
            rows: with `image` (PIL) or `features`, `formats` (names or AUFormat dicts), `values` (one list per format)
                and `index`.
            unlabelled: rows of `mixing.unlabelled_rows`, all with the same formats, with decoded `image`. They come
                last in the batch, without labels, and add `plain_pixel_values` (pictures, 3, height, width), `weak`
                (pictures, AUs of all formats) and `coded` (pictures,). A flip applies to pictures and `weak`.
        """
        causal, rng = self._layout(rows)
        labelled = [self._labelled(row, rng) for row in rows]
        joined = [self._unlabelled(row, rng) for row in unlabelled]
        images = [image for image, _ in labelled] + [varied for varied, _, _ in joined]
        labels = [known for _, known in labelled]
        labels += [{fmt: [math.nan] * len(fmt.labels) for fmt in estimates} for _, _, estimates in joined]
        if "features" in rows[0]:
            vision = {"image_features": torch.stack([self.features[row["features"]] for row in rows])}
            image_tokens = vision["image_features"].shape[1]
        else:
            plain = [crop for _, crop, _ in joined]
            pixel_values = self.processor.image_processor([*images, *plain], return_tensors="pt")["pixel_values"]
            vision = {"pixel_values": pixel_values[: len(images)]}
            if joined:
                weak = [[value for values in estimates.values() for value in values] for _, _, estimates in joined]
                vision |= {"plain_pixel_values": pixel_values[len(images) :], "weak": torch.tensor(weak)}
                vision |= {"coded": torch.tensor([row["coded"] for row in unlabelled])}
            image_tokens = self.processor.num_image_tokens(*pixel_values.shape[-2:])
        batch = self._causal(labels, image_tokens, rng) if causal else self._slots(labels, image_tokens)
        return {**batch, **vision}

    def _labelled(self, row: dict, rng: np.random.Generator):
        """(image, labels by format) of a row, varied and flipped; the image is None for cached features."""
        known = {get_format(fmt): values for fmt, values in zip(row["formats"], row["values"], strict=True)}
        image = row.get("image")
        if self.augment:
            image = varied_image(load_face_image(image), rng)
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
            known = {fmt: mirrored_values(values, fmt) for fmt, values in known.items()}
        return image, known

    def _unlabelled(self, row: dict, rng: np.random.Generator):
        """(strongly varied image, plain crop, weak estimates by format) of an unlabelled picture, flipped together."""
        estimates = {get_format(fmt): values for fmt, values in zip(row["formats"], row["values"], strict=True)}
        image = load_face_image(row["image"])
        views = [strongly_varied_image(image, rng, row["margin"]), plain_crop(image, row["margin"])]
        if rng.random() < self.flip:
            views = list(map(ImageOps.mirror, views))
            estimates = {fmt: mirrored_values(values, fmt) for fmt, values in estimates.items()}
        return *views, estimates

    def _slots(self, labels: list[dict[AUFormat, Sequence[float]]], image_tokens: int) -> dict[str, torch.Tensor]:
        trees = [compile_slots(self.processor, tuple(known), image_tokens) for known in labels]
        decisions, choices = (max(tree.choices.shape[dim] for tree in trees) for dim in (0, 1))
        batch = {
            **self._tokens([(tree.prefixes, tree.input_ids, tree.mask, tree.positions) for tree in trees]),
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
            nodes, width = tree.choices.shape
            batch["decision_nodes"][row, :nodes] = tree.decision_nodes
            batch["choices"][row, :nodes, :width] = tree.choices
            batch["choice_targets"][row, :nodes, :width] = self._targets(tree, known)
        return batch

    def _tokens(self, sequences: Sequence[tuple]) -> dict:
        """The tokens of a batch, their positions and what they see: `prefixes` are shared, the rest is padded.

        Args:
            sequences: (prefixes, input_ids, mask, positions) of each row, as the attributes of a `SlotTree`.
        """
        length = max(len(ids) for _, ids, _, _ in sequences)
        prefixes = list(dict.fromkeys(prefix for own, *_ in sequences for prefix in own))
        begins = dict(zip(prefixes, itertools.accumulate(map(len, prefixes), initial=0), strict=False))
        before = sum(map(len, prefixes))
        batch = {
            "input_ids": torch.full((len(sequences), length), self.processor.tokenizer.pad_token_id),
            "attention_mask": torch.zeros(len(sequences), 1, length, before + length, dtype=torch.bool),
            "position_ids": torch.zeros(len(sequences), length, dtype=torch.long),
        }
        for row, (own, ids, seen, positions) in enumerate(sequences):
            batch["input_ids"][row, : len(ids)] = ids
            batch["position_ids"][row, : len(ids)] = positions
            mask = batch["attention_mask"][row, 0]
            mask[:, before:].fill_diagonal_(True)  # padding sees itself
            *columns, last = seen.split([*map(len, own), len(ids)], dim=1)
            mask[: len(ids), before : before + len(ids)] = last
            for prefix, column in zip(own, columns, strict=True):
                mask[: len(ids), begins[prefix] : begins[prefix] + len(prefix)] = column
        return {**batch, "prefixes": prefixes} if prefixes else batch

    def _weight(self, fmt: AUFormat, label: str) -> float:
        return self.slot_weights.get(fmt.name, {}).get(label, 1)

    def _targets(self, tree, known: dict[AUFormat, Sequence[float]]) -> torch.Tensor:
        """Weighted target probability mass (D, C) of the values that pass through each choice of each decision."""
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
            annotated = {fmt: values for fmt, values in known.items() if not all(map(math.isnan, values))} or known
            fmt, values = list(annotated.items())[rng.integers(len(annotated))]
            values = {label: v for label, v in zip(fmt.labels, values, strict=True) if not math.isnan(v)}
            asked = AUFormat(fmt.name, tuple(values) or fmt.labels, fmt.scale, fmt.presence_threshold)
            prompt = self.processor.prompt_ids(asked, image_tokens)
            answer, learned = self._answer(write_answer(values, asked)) if values else ([], [])
            sequences.append((prompt, answer, learned))
        shared = [self.processor.shared_length(prompt) for prompt, _, _ in sequences]
        texts = [prompt[count:] + answer for count, (prompt, answer, _) in zip(shared, sequences, strict=True)]
        length = max(map(len, texts))
        if any(shared):
            prefixes = [(tuple(prompt[:count]),) for count, (prompt, _, _) in zip(shared, sequences, strict=True)]
            batch = self._tokens([_text_after(own, text) for own, text in zip(prefixes, texts, strict=True)])
        else:  # an ordinary batch, for any attention backend
            batch = {
                "input_ids": torch.full((len(texts), length), self.processor.tokenizer.pad_token_id),
                "attention_mask": torch.zeros(len(texts), length, dtype=torch.long),
            }
            for row, text in enumerate(texts):
                batch["input_ids"][row, : len(text)] = torch.tensor(text)
                batch["attention_mask"][row, : len(text)] = 1
        targets = torch.full((len(texts), length), IGNORED)
        for row, (text, (_, _, learned)) in enumerate(zip(texts, sequences, strict=True)):
            targets[row, len(text) - len(learned) : len(text)] = torch.tensor(learned, dtype=torch.long)
        return {**batch, "labels": targets}

    def _answer(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of an answer with its end, and its label ids: `IGNORED` for tokens without loss."""
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


def _text_after(prefixes: Sequence[tuple[int, ...]], text: Sequence[int]) -> tuple:
    """(prefixes, input_ids, mask, positions) of ordinary text that continues its only prefix."""
    before = len(prefixes[0])
    mask = torch.ones(len(text), before + len(text), dtype=torch.bool).tril(before)
    return prefixes, torch.tensor(text), mask, torch.arange(before, before + len(text))
