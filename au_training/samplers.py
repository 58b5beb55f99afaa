"""The order of training rows: rare AUs more often, and batches of similar length, so that little is padded."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from au_llava.action_units import get_format
from au_llava.slot_tree_au_llava import SlotTree, compile_slots


class WeightedSampler(torch.utils.data.Sampler):
    """Row numbers for an epoch, as many as there are rows; each row comes as often as its weight says, rounded.

    The draw is systematic (one random offset, equal steps over the summed weights) and then shuffled. It depends only
    on seed and epoch, so a resumed run draws the rows of the uninterrupted one.

    Args:
        weights: (rows,) positive.
    """

    def __init__(self, weights: np.ndarray, seed: int):
        self.bounds = np.cumsum(weights) / np.sum(weights)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.bounds)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        steps = (np.arange(len(self)) + rng.random()) / len(self)
        rows = np.searchsorted(self.bounds, steps, side="right").clip(max=len(self) - 1)
        yield from rng.permutation(rows).tolist()


def slot_trees(formats: Sequence[Sequence[str]], processor) -> dict[tuple[str, ...], SlotTree]:
    """The slot tree of each distinct combination of formats that rows have labels in."""
    crop = processor.image_processor.crop_size
    image_tokens = processor.num_image_tokens(crop["height"], crop["width"])
    return {
        names: compile_slots(processor, tuple(map(get_format, names)), image_tokens)
        for names in set(map(tuple, formats))
    }


def slot_lengths(formats: Sequence[Sequence[str]], processor) -> list[int]:
    """Number of tokens in the slot tree of each row, given the formats that the row has labels in."""
    trees = slot_trees(formats, processor)
    return [len(trees[tuple(names)]) for names in formats]


class GroupedSampler(torch.utils.data.Sampler):
    """Row numbers for an epoch in which rows of similar length follow each other, grouped as in Transformers.

    The order depends only on seed and epoch, so a resumed run draws the rows of the uninterrupted one.

    Args:
        lengths: of each row.
        batch_size: rows in a step.
        rows: sampler of the rows of an epoch, such as a `WeightedSampler`; None takes each row once.
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
