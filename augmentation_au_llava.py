"""Changes of a training picture that keep its action units: what changes of the labels with them, and what must not.

Only the horizontal flip touches labels: the subject's left and right swap, and with them every sided label. The other
changes move the crop by a few per cent, brighten, recolour or soften: a face keeps every AU, at the same strength. What
would hide or bend a face (cut-out, elastic warps, strong rotation) is left out.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from .action_units import AUFormat, mirrored_label

SHIFT = 0.04  # of the crop, in widths
ZOOM = 0.07
LEVELS = 0.12  # standard deviation of brightness (of full scale), contrast and each colour's share
BLURRED = 0.1  # share of pictures
BLUR = 0.008  # at most, standard deviation in widths


def mirrored_values(values: Sequence[float], fmt: AUFormat) -> list[float]:
    """The values (in `fmt`'s label order) of the horizontally flipped image: left and right swap.

    A side whose counterpart is not in the format becomes NaN (unknown)."""
    sources = [mirrored_label(label) for label in fmt.labels]
    return [values[fmt.labels.index(label)] if label in fmt.labels else math.nan for label in sources]


def varied_image(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another picture of the same face, of the same size: crop, light, colour and sharpness vary a little.

    Args:
        image: RGB, the crop of a face. Where the new crop reaches beyond it, its border is repeated.
    """
    width, height = image.size
    margin = math.ceil((SHIFT + ZOOM / 2) * max(width, height)) + 1
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    extent = 1 + rng.uniform(-ZOOM, ZOOM)
    right, down = rng.uniform(-SHIFT, SHIFT, 2) + (1 - extent) / 2
    left, top = margin + right * width, margin + down * height
    box = (left, top, left + extent * width, top + extent * height)
    image = Image.fromarray(padded).resize((width, height), Image.Resampling.BILINEAR, box=box)
    brightness, contrast = rng.normal(0, LEVELS) * 255, math.exp(rng.normal(0, LEVELS))
    colours = contrast * (1 + rng.normal(0, LEVELS / 2, 3))
    pixels = (np.asarray(image, np.float32) - 128) * colours.astype(np.float32) + np.float32(128 + brightness)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < BLURRED:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR) * width))
    return image
