"""Where on a face an action unit's reading rests: sensitivity maps, and how much depends on the part they outline.

Method: SmoothGrad (Smilkov et al., arXiv 1706.03825). The map is the gradient of the log-odds of presence with respect
to the pixels: its absolute value, summed over the colors, averaged over slightly noisy copies of the face, and blurred.
On rendered faces, where it is known which part an AU moves, the peak of this map lies in that part more often than the
peak of an occlusion map does (docs/log.md; benchmarks/pointing.py measures it). The method needs only gradients, so it
works with every vision tower.

A map shows where small changes of the face would change the reading most. It shows neither the direction of that change
nor why, nor whether the reading is right, and the heights of two maps cannot be compared. `falls_when_hidden` therefore
measures how much the part above half of the peak matters: how far the probability falls when it is painted over. The
model was not trained on painted faces, so a small fall means little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from au_llava.action_units import AUFormat, mirrored_label
from au_llava.au_recognition.annotation import OUTLINE
from au_llava.calibration_au_llava import calibrate, present_values, probability_of_presence
from au_llava.decoding_au_llava import pixels_of, read_tree
from au_llava.slot_tree_au_llava import SlotTree, slot_tree

COPIES = 4  # of the face, each with its own noise; so many go through a forward pass
NOISE = 0.075  # standard deviation, as a share of the range of the crop's colors; how it was chosen: docs/log.md
BLUR = 1 / 24  # standard deviation, as a share of the crop's side


def evidence_maps(model, processor, image, labels: Mapping[AUFormat, Sequence[str]]) -> dict[str, np.ndarray]:
    """Where on a face crop the readings of some AUs rest; all formats share the same forward passes.

    Args:
        model, processor: as for `recognize`, the model in evaluation mode. The slots decoder is used.
        image: one aligned face crop, as `recognize` takes it.
        labels: format -> its AUs to explain, usually those that were read as present.

    Returns:
        format name -> (len(labels), size, size) float32 in [0, 1], in the given order and in the pixels of the crop
        that the model sees. The maximum of every map is 1 (0 if the face makes no difference). A format without labels
        is left out.

    Raises:
        ValueError: a label is not in its format, there is no label at all, or the image cannot be read.
    """
    pixels, tree, labels = _prepared(model, processor, image, labels)
    noise = torch.randn((COPIES, *pixels.shape[1:]), generator=torch.Generator().manual_seed(0))
    spread = NOISE * (pixels.max() - pixels.min())
    copies = pixels + spread * noise.to(pixels.device, pixels.dtype)
    sizes = _gradient_sizes(model, tree, labels, copies)
    maps = np.stack([gaussian_filter(size, BLUR * len(size)) for size in sizes])
    highest = maps.max(axis=(1, 2), keepdims=True)
    return _by_format(labels, maps / np.where(highest > 0, highest, 1))


@torch.no_grad()
def falls_when_hidden(
    model, processor, image, labels: Mapping[AUFormat, Sequence[str]], maps: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """How far each AU's probability of presence falls when the part of the crop above `OUTLINE` of its map is hidden.

    Args:
        model, processor, image, labels: as for `evidence_maps`.
        maps: what `evidence_maps` returned.

    Returns:
        format name -> (len(labels),): the fall of the calibrated probability, negative if it rises. The hidden part
        gets the mean color of the crop.
    """
    pixels, tree, labels = _prepared(model, processor, image, labels)
    hidden = np.concatenate([maps[fmt.name] > OUTLINE for fmt in labels])[:, None]  # (AUs, 1, size, size)
    painted = torch.where(torch.from_numpy(hidden).to(pixels.device), pixels.mean(dim=(2, 3), keepdim=True), pixels)
    batches = [_read(model, tree, labels, batch) for batch in torch.cat([pixels, painted]).split(COPIES)]
    probabilities = []
    for (fmt, wanted), parts in zip(labels.items(), zip(*batches, strict=True), strict=True):
        asked = replace(fmt, labels=wanted)
        distributions, _ = calibrate(torch.cat(parts).cpu().double().exp().numpy(), asked, model.config.calibration)
        probabilities.append(probability_of_presence(distributions, fmt))
    whole, *painted = np.concatenate(probabilities, axis=1)  # (AUs,) of the crop and of each painted copy
    return _by_format(labels, whole - np.diagonal(painted))


def peak(evidence: np.ndarray) -> tuple[float, float]:
    """Where a map (size, size) is highest: (right, down) as shares of the crop."""
    row, column = np.unravel_index(evidence.argmax(), evidence.shape)
    return (column + 0.5) / len(evidence), (row + 0.5) / len(evidence)


def _prepared(model, processor, image, labels) -> tuple[torch.Tensor, SlotTree, dict[AUFormat, tuple[str, ...]]]:
    """The pixels (1, 3, size, size), the tree of the wanted slots, and the labels without empty formats.

    The tree holds only these slots (and those of the other side, if mirror images are read too): a branch does not
    depend on its neighbors, so the answers are those of the whole tree.
    """
    labels = {fmt: tuple(wanted) for fmt, wanted in labels.items() if wanted}
    for fmt, wanted in labels.items():
        for label in wanted:
            if label not in fmt.labels:
                raise ValueError(f"format {fmt.name} has no {label!r}: choose from {', '.join(fmt.labels)}.")
    if not labels:
        raise ValueError("There is no AU to explain: name at least one.")
    pixels = pixels_of(model, processor, [image])
    image_tokens = processor.num_image_tokens(*pixels.shape[-2:])
    tree = slot_tree(processor, {fmt: _asked(model, wanted, fmt) for fmt, wanted in labels.items()}, image_tokens)
    return pixels, tree.to(model.device), labels


def _asked(model, wanted: Sequence[str], fmt: AUFormat) -> tuple[str, ...]:
    """The wanted AUs, then those that they become in a mirror image, if the model reads mirror images too."""
    mirrored = [mirrored_label(label) for label in wanted] if model.config.mirror_images else []
    return tuple(dict.fromkeys([*wanted, *(label for label in mirrored if label in fmt.labels)]))


def _read(model, tree: SlotTree, labels: Mapping[AUFormat, Sequence[str]], pixels: torch.Tensor) -> list[torch.Tensor]:
    """Log-probabilities of the wanted AUs: per format (images, AUs, values)."""
    readings = tree.by_format(read_tree(model, tree, pixels))
    return [logs[:, : len(wanted)] for wanted, logs in zip(labels.values(), readings, strict=True)]


def _gradient_sizes(model, tree: SlotTree, labels, pixels: torch.Tensor) -> np.ndarray:
    """The absolute gradient of each AU's log-odds of presence, summed over images and colors: (AUs, size, size)."""
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        odds = []
        for fmt, logs in zip(labels, _read(model, tree, labels, pixels), strict=True):
            present = torch.from_numpy(present_values(fmt)).to(pixels.device)
            odds.append(logs[..., present].logsumexp(-1) - logs[..., ~present].logsumexp(-1))  # (images, AUs)
        gradients = (torch.autograd.grad(unit.sum(), pixels, retain_graph=True)[0] for unit in torch.cat(odds, 1).T)
        return np.stack([gradient.abs().sum(dim=(0, 1)).float().cpu().numpy() for gradient in gradients])


def _by_format(labels: Mapping[AUFormat, Sequence[str]], values: np.ndarray) -> dict[str, np.ndarray]:
    """Split an array with a row per AU: format name -> its rows."""
    ends = np.cumsum([len(wanted) for wanted in labels.values()])
    return dict(zip((fmt.name for fmt in labels), np.split(values, ends[:-1]), strict=True))
