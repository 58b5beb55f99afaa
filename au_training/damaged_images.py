"""Owner of images that cannot be read: they stay in their batch without loss, are named, counted and recorded."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import datasets
import numpy as np
import torch
from PIL import Image

from au_llava.action_units import get_format
from au_llava.au_datasets.records import KEY

logger = logging.getLogger("au_llava.train")

BLANK = Image.new("RGB", (64, 64))  # stands in for an image that cannot be read
FEWEST_IMAGES = 100  # read before the share of damaged ones can end a training


def decoded(file: Mapping) -> Image.Image:
    """The picture in an image file (`bytes` or `path`, as `datasets` stores it); `BLANK` if it cannot be read."""
    try:
        return datasets.Image().decode_example(file)
    except Exception:  # Pillow raises all kinds of errors for damaged files
        return BLANK


class ReadableRows:
    """Wraps `AUCollator`: decodes the images and removes the loss from those that cannot be read.

    A damaged image becomes a blank one with unknown labels. The batch so keeps its size and its random choices, and
    every process computes it even if no image in it can be read.

    It adds two lists to the batch: `rows`, the `index` of every row, and `unreadable`, the `index` of those without an
    image. If unlabelled pictures join, it also adds `unlabelled_rows`, the list of their `index`, and `readable`, a
    boolean tensor (pictures,).

    Args:
        collate: `AUCollator`.
        unlabelled: rows of `mixing.unlabelled_rows` that may join, with undecoded images; or None.
    """

    def __init__(self, collate, unlabelled: datasets.Dataset | None = None):
        self.collate = collate
        self.unlabelled = unlabelled

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        decoded = [self._decode(row) for row in rows]
        joining = [] if self.unlabelled is None else self.collate.joining(rows, len(self.unlabelled))
        if joining:
            unlabelled = [self._decode(row) for row in self.unlabelled.__getitems__(joining)]
            batch = self.collate(decoded, unlabelled)
            batch["unlabelled_rows"] = joining
            batch["readable"] = torch.tensor([row["image"] is not BLANK for row in unlabelled])
        else:
            batch = self.collate(decoded)
        batch["rows"] = [row["index"] for row in rows]
        batch["unreadable"] = [row["index"] for row in decoded if row.get("image") is BLANK]
        return batch

    def _decode(self, row: dict) -> dict:
        if "image" not in row:  # has cached features instead
            return row
        image = decoded(row["image"])
        if image is not BLANK:
            return {**row, "image": image}
        unknown = [[float("nan")] * len(get_format(name).labels) for name in row["formats"]]
        return {**row, "image": BLANK, "values": unknown}


def name_images(table: datasets.Dataset, indices: Iterable[int]) -> list[str]:
    """ "dataset:subject clip frame" of the rows of `training_rows` with these values of `index`."""
    rows = table.select_columns(list(KEY)).select(np.flatnonzero(np.isin(table["index"][:], list(indices))))
    return ["{dataset}:{subject} {clip} {frame}".format(**row) for row in rows]


def missing_disk(failed: int, asked: int, example: str) -> str:
    """The error message if most of the images cannot be read."""
    return (
        f"{failed} of {asked} images cannot be read, such as {example}: is a disk or folder missing that the data was "
        "prepared from?"
    )


class DamagedImages:
    """The images that this process could not read, in training and validation.

    Attributes:
        names: "dataset:subject clip frame" of each.
    """

    def __init__(self):
        self.names: set[str] = set()
        self.asked = self.failed = 0

    def count(self, table: datasets.Dataset, rows: Sequence[int], unreadable: Sequence[int]) -> None:
        """Count a batch and warn about each image that is new.

        Args:
            table: rows of `training_rows`. rows, unreadable: values of `index`, as in a batch of `ReadableRows`.

        Raises:
            ValueError: over half of the images so far cannot be read.
        """
        self.asked += len(rows)
        self.failed += len(unreadable)
        if not unreadable:
            return
        names = name_images(table, unreadable)
        for name in set(names) - self.names:
            logger.warning("The image of %s cannot be read: skipped.", name)
        self.names.update(names)
        if self.asked >= FEWEST_IMAGES and self.failed > self.asked / 2:
            raise ValueError(missing_disk(self.failed, self.asked, names[0]))
