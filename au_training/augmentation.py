"""Augmentation of training pictures: flips that swap sided labels, and variations that keep every action unit.

Only the horizontal flip changes labels: the subject's left and right swap. `varied_image`, for labelled pictures, moves
the crop by a few percent and changes brightness, color and sharpness a little: every AU keeps its strength.
`strongly_varied_image`, for unlabelled pictures whose target is read off their `plain_crop`, also rotates, degrades and
partly covers the face. Nothing ever distorts a face.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from au_llava.action_units import AUFormat, mirrored_label

SHIFT = 0.04  # of the crop, in widths
ZOOM = 0.07
LEVELS = 0.12  # standard deviation of brightness (share of full scale), contrast (log) and, halved, of each color
BLURRED = 0.1  # share of pictures
BLUR = 0.008  # largest standard deviation, in widths

# Strong variation:
TURN = 20  # degrees, at most
STRONG_SHIFT, STRONG_ZOOM = 0.06, 0.15
STRONG_LEVELS = 0.15
GRAY = 0.15  # share of pictures, like the first number of each of the following
SQUARE, SQUARE_SIDES = 0.5, (0.08, 0.2)  # shares of the crop's side: smaller than a mouth or a pair of eyes
COARSE, COARSE_SIDES = 0.3, (0.35, 0.8)  # shares of the crop's resolution
STRONG_BLURRED, STRONG_BLUR = 0.2, 0.02
NOISE, NOISE_LEVEL = 0.3, 0.06  # largest standard deviation, as a share of full scale
JPEG, JPEG_QUALITIES = 0.3, (15, 60)


def mirrored_values(values: Sequence[float], fmt: AUFormat) -> list[float]:
    """The values (in `fmt`'s label order) of the horizontally flipped image: left and right swap.

    A side whose counterpart is missing from the format becomes NaN (unknown).
    """
    sources = [mirrored_label(label) for label in fmt.labels]
    return [values[fmt.labels.index(label)] if label in fmt.labels else math.nan for label in sources]


def varied_image(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same face with slightly different crop, light, color and sharpness; the size stays.

    Args:
        image: RGB, the crop of a face. Its border is repeated where the new crop extends beyond it.
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
    """The model's crop: the square in the middle of a picture that is stored with a margin.

    Args:
        image: its shorter side is (1 + 2 * margin) times the crop's.
        margin: width around the crop on every side, as a share of the crop's side; 0 or more.
    """
    side = min(image.size) / (1 + 2 * margin)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    size = (round(side), round(side))
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def strongly_varied_image(image: Image.Image, rng: np.random.Generator, margin: float = 0.0) -> Image.Image:
    """A much harder picture of the same face than the `plain_crop`: rotated, degraded, in other light and colors.

    The geometry is one similarity transform of the stored picture, including its margin: a face is rotated, moved and
    scaled, never distorted. At most a square of a fifth of the crop's side is painted over.

    Args:
        image, margin: as in `plain_crop`; RGB. The border is repeated where the new crop extends beyond the picture.

    Returns:
        RGB, with the size of the `plain_crop`.
    """
    side = round(min(image.size) / (1 + 2 * margin))
    image = _turned(image, side, rng)
    pixels = _relit(np.asarray(image, np.float32), STRONG_LEVELS, rng)
    if rng.random() < GRAY:
        pixels[:] = pixels.mean(axis=2, keepdims=True)
    if rng.random() < SQUARE:
        size = max(1, round(rng.uniform(*SQUARE_SIDES) * side))
        top, left = rng.integers(side - size + 1, size=2)
        pixels[top : top + size, left : left + size] = rng.uniform(0, 255, 3)
    return _degraded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), rng)


def _turned(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A square of `side` pixels around the middle of a picture, rotated, moved and scaled."""
    angle, extent = math.radians(rng.uniform(-TURN, TURN)), 1 + rng.uniform(-STRONG_ZOOM, STRONG_ZOOM)
    right, down = rng.uniform(-STRONG_SHIFT, STRONG_SHIFT, 2) * side
    cosine, sine = extent * math.cos(angle), extent * math.sin(angle)
    reach = (cosine + abs(sine)) * side / 2 + max(abs(right), abs(down))  # from the middle to the new crop's corners
    missing = max(0, math.ceil(reach - min(image.size) / 2) + 1)
    if missing:
        image = Image.fromarray(np.pad(np.asarray(image), ((missing,) * 2, (missing,) * 2, (0, 0)), mode="edge"))
    across = image.width / 2 + right - (cosine - sine) * side / 2
    along = image.height / 2 + down - (sine + cosine) * side / 2
    matrix = (cosine, -sine, across, sine, cosine, along)  # from new to old coordinates
    return image.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _relit(pixels: np.ndarray, levels: float, rng: np.random.Generator) -> np.ndarray:
    """Float pixels (height, width, 3), 0 to 255, with random brightness, contrast and color balance."""
    brightness, contrast = rng.normal(0, levels) * 255, math.exp(rng.normal(0, levels))
    colors = contrast * (1 + rng.normal(0, levels / 2, 3))
    return (pixels - 128) * colors.astype(np.float32) + np.float32(128 + brightness)


def _degraded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as a worse camera or a worse connection would deliver it."""
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
