"""Changes of a training picture that keep its action units: what changes of the labels with them, and what must not.

Only the horizontal flip touches labels: the subject's left and right swap, and with them every sided label. The other
changes of a labelled picture (`varied_image`) move the crop by a few per cent, brighten, recolour or soften: a face
keeps every AU, at the same strength. An unlabelled picture, whose target is read off its `plain_crop`, may also be
turned, worse in quality and a little hidden (`strongly_varied_image`). Nothing ever bends a face.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from au_llava.action_units import AUFormat, mirrored_label

SHIFT = 0.04  # of the crop, in widths
ZOOM = 0.07
LEVELS = 0.12  # standard deviation of brightness (of full scale), contrast and each colour's share
BLURRED = 0.1  # share of pictures
BLUR = 0.008  # at most, standard deviation in widths

# Of strong variation:
TURN = 20  # degrees, at most
STRONG_SHIFT, STRONG_ZOOM = 0.06, 0.15
STRONG_LEVELS = 0.15
GREY = 0.15  # share of pictures, as each of the following
SQUARE, SQUARE_SIDES = 0.5, (0.08, 0.2)  # of the crop: never as large as a mouth or a pair of eyes
COARSE, COARSE_SIDES = 0.3, (0.35, 0.8)  # of the crop's pixels
STRONG_BLURRED, STRONG_BLUR = 0.2, 0.02
NOISE, NOISE_LEVEL = 0.3, 0.06  # standard deviation of full scale, at most
JPEG, JPEG_QUALITIES = 0.3, (15, 60)


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
    pixels = _relit(np.asarray(image, np.float32), LEVELS, rng)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < BLURRED:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR) * width))
    return image


def plain_crop(image: Image.Image, margin: float) -> Image.Image:
    """The model's crop out of a picture that is stored with more around it.

    Args:
        image: the crop is a square in its middle; the shorter side is (1 + 2 * margin) times the crop's.
        margin: what the picture has beyond the crop on every side, as a share of the crop's side; 0 or more.
    """
    side = min(image.size) / (1 + 2 * margin)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    size = (round(side), round(side))
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def strongly_varied_image(image: Image.Image, rng: np.random.Generator, margin: float = 0.0) -> Image.Image:
    """Another picture of the same face, much worse than the `plain_crop`: turned, lit, coloured and degraded anew.

    The geometry is one similarity transform of the stored picture, margin included: a face is turned, moved and scaled,
    never bent. At most a square of a fifth of the crop's side is painted over.

    Args:
        image, margin: as of `plain_crop`; RGB. Where the new crop reaches beyond the picture, its border is repeated.

    Returns:
        RGB, of the size of the `plain_crop`.
    """
    side = round(min(image.size) / (1 + 2 * margin))
    image = _turned(image, side, rng)
    pixels = _relit(np.asarray(image, np.float32), STRONG_LEVELS, rng)
    if rng.random() < GREY:
        pixels[:] = pixels.mean(axis=2, keepdims=True)
    if rng.random() < SQUARE:
        size = max(1, round(rng.uniform(*SQUARE_SIDES) * side))
        top, left = rng.integers(side - size + 1, size=2)
        pixels[top : top + size, left : left + size] = rng.uniform(0, 255, 3)
    return _degraded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), rng)


def _turned(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A square of `side` pixels about the middle of a picture, turned, moved and scaled."""
    angle, extent = math.radians(rng.uniform(-TURN, TURN)), 1 + rng.uniform(-STRONG_ZOOM, STRONG_ZOOM)
    right, down = rng.uniform(-STRONG_SHIFT, STRONG_SHIFT, 2) * side
    cosine, sine = extent * math.cos(angle), extent * math.sin(angle)
    reach = (cosine + abs(sine)) * side / 2 + max(abs(right), abs(down))  # of the new crop's corners from the middle
    missing = max(0, math.ceil(reach - min(image.size) / 2) + 1)
    if missing:
        image = Image.fromarray(np.pad(np.asarray(image), ((missing,) * 2, (missing,) * 2, (0, 0)), mode="edge"))
    across = image.width / 2 + right - (cosine - sine) * side / 2
    along = image.height / 2 + down - (sine + cosine) * side / 2
    matrix = (cosine, -sine, across, sine, cosine, along)  # from the new picture's places to the old one's
    return image.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _relit(pixels: np.ndarray, levels: float, rng: np.random.Generator) -> np.ndarray:
    """Float pixels (height, width, 3), 0 to 255, with another brightness, contrast and share of each colour."""
    brightness, contrast = rng.normal(0, levels) * 255, math.exp(rng.normal(0, levels))
    colours = contrast * (1 + rng.normal(0, levels / 2, 3))
    return (pixels - 128) * colours.astype(np.float32) + np.float32(128 + brightness)


def _degraded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A picture as a worse camera, or a worse connection, would have given it."""
    size = image.size
    if rng.random() < COARSE:
        coarse = max(8, round(rng.uniform(*COARSE_SIDES) * size[0]))
        image = image.resize((coarse, coarse), Image.Resampling.BILINEAR).resize(size, Image.Resampling.BILINEAR)
    if rng.random() < STRONG_BLURRED:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, STRONG_BLUR) * size[0]))
    if rng.random() < NOISE:
        noise = rng.standard_normal((*size, 3), np.float32) * np.float32(rng.uniform(0, NOISE_LEVEL) * 255)
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < JPEG:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITIES)))
        image = Image.open(file).convert("RGB")
    return image
