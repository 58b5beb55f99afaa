"""Which patches of a face an action unit's probability rests on: occlusion maps.

Method: occlusion (Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2). A
square of the crop is painted over, the model reads again, and the map says, at the place of the square, by how much the
probability of presence fell. It needs nothing of the model but its answers, so it works with every vision tower.

What it does not show: evidence that is spread over more than one square (hiding either mouth corner may change nothing
while the other is seen), why the model looks there, or whether it is right. A painted square is itself something that
the model has not seen on a face, so small falls mean little. What speaks against an AU is not shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from au_llava.action_units import AUFormat
from au_llava.calibration_au_llava import calibrate
from au_llava.slot_tree_au_llava import SlotTree

GRID = 8  # places of the square along a side of the crop
SQUARE = 0.25  # side of the square, of the crop's side


@torch.no_grad()
def evidence_maps(
    model, processor, image, labels: Mapping[AUFormat, Sequence[str]], batch_size: int = 16
) -> dict[str, np.ndarray]:
    """Where on a face crop the probabilities of some AUs rest; all formats come from the same forward passes.

    Args:
        model, processor: as for `recognize`; read by the slots decoder, calibrated as there.
        image: one aligned face crop, as `recognize` takes it.
        labels: format -> the AUs of it to explain, usually those that were read as present. A format without any is
            left out.
        batch_size: hidden squares per forward pass.

    Returns:
        format name -> (len(labels), size, size) float32, in the order given and in the pixels of the crop that the
        model sees: by how much the probability of presence falls (0 where it does not) when a square of `SQUARE` of the
        side is hidden around each of `GRID` x `GRID` places. The maximum is the largest fall that was measured.

    Raises:
        ValueError: a label that the format does not have, no label at all, or an image that cannot be read.
    """
    labels = {fmt: tuple(wanted) for fmt, wanted in labels.items() if wanted}
    for fmt, wanted in labels.items():
        for label in wanted:
            if label not in fmt.labels:
                raise ValueError(f"format {fmt.name} has no {label!r}: choose of {', '.join(fmt.labels)}.")
    if not labels:
        raise ValueError("There is no AU to explain: name at least one.")
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    size = pixels.shape[-1]
    tree = _tree(processor, labels, processor.num_image_tokens(*pixels.shape[-2:])).to(model.device)
    hidden = torch.from_numpy(_squares(size)).to(model.device)  # (places, size, size)
    fill = pixels.mean(dim=(2, 3), keepdim=True)
    views = [pixels, *(torch.where(each[:, None], fill, pixels) for each in hidden.split(batch_size))]
    read = [_probabilities(model, tree, labels, each) for each in views]
    cell = np.arange(size) * GRID // size
    maps = {}
    for fmt in labels:
        whole, *covered = (each[fmt.name] for each in read)
        falls = (whole - np.concatenate(covered)).clip(0)  # (places, AUs)
        maps[fmt.name] = falls.T.reshape(-1, GRID, GRID)[:, cell][:, :, cell].astype(np.float32)
    return maps


def _tree(processor, labels: Mapping[AUFormat, Sequence[str]], image_tokens: int) -> SlotTree:
    """The slots of some AUs only: a branch does not depend on its neighbours, so they are read as among all."""
    answers = [
        {
            label: processor.tokenizer([f"{label}: {value}" for value in fmt.value_strings], add_special_tokens=False)[
                "input_ids"
            ]
            for label in wanted
        }
        for fmt, wanted in labels.items()
    ]
    return SlotTree([processor.prompt_ids(fmt, image_tokens) for fmt in labels], answers)


def _squares(size: int) -> np.ndarray:
    """(GRID * GRID, size, size) booleans: the hidden square around each place, row by row, cut off at the border."""
    pixel = (np.arange(size) + 0.5) / size
    centre = (np.arange(GRID) + 0.5) / GRID
    near = np.abs(pixel - centre[:, None]) <= SQUARE / 2  # (GRID, size)
    return (near[:, None, :, None] & near[None, :, None, :]).reshape(-1, size, size)


def _probabilities(model, tree: SlotTree, labels, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Format name -> (images, AUs) calibrated probability of presence."""
    values = tree.log_probabilities(model(**tree.model_inputs(pixels)).logits).exp().cpu()
    found = {}
    for (fmt, wanted), read in zip(labels.items(), tree.by_format(values), strict=True):
        asked = replace(fmt, labels=wanted)
        distributions, _ = calibrate(read.double().numpy(), asked, model.config.calibration)
        present = np.array(fmt.value_numbers) >= fmt.presence_threshold
        found[fmt.name] = distributions[..., present].sum(axis=-1)
    return found


def peak(evidence: np.ndarray) -> tuple[float, float]:
    """Right and down, in shares of the crop, of the place at which a map (size, size) is highest."""
    row, column = np.unravel_index(evidence.argmax(), evidence.shape)
    return (column * GRID // len(evidence) + 0.5) / GRID, (row * GRID // len(evidence) + 0.5) / GRID
