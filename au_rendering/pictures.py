"""Takes the picture of a made-up person: exposure, occluder, motion, blur, noise and JPEG."""

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import shift

from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_rendering.masks import smoothstep
from au_llava.au_rendering.people import Subject, sample_subject
from au_llava.au_rendering.render import render
from au_llava.au_rendering.rig import expand_sides
from au_llava.au_rendering.view import CLAY, View


def picture(
    subject: Subject, strengths: Mapping[str, float], view: View, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a subject, (size, size, 3) uint8 sRGB, and its landmarks (2, 64, 2) as `render` gives them.

    `rng` draws the background, the color of an occluder and sensor noise.
    """
    # Cameras meter partly on the face, so that very light and very dark skin end up closer to mid gray.
    skin = subject.look.skin.mean()
    shown = skin + CLAY * (subject.look.clay.mean() - skin) if view.shading == "clay" else skin
    metered = (0.42 / (shown + 0.05)) ** 0.55
    around = 0.8 if view.environment else view.ambient + 0.6 * view.fill
    lamps = 0.75 * view.key_strength + around
    view = replace(view, exposure=view.exposure * metered * (1.05 / lamps) ** 0.7)
    movement = subject.movement(strengths)
    light, landmarks = render(subject.identity, movement, strengths, subject.look, view, size, rng)
    developed = encode_srgb(light)
    if view.contrast != 1 or view.saturation != 1:
        gray = developed.mean(axis=2, keepdims=True)
        developed = gray + view.saturation * (developed - gray)
        developed = (0.45 + view.contrast * (developed - 0.45)).clip(0, 1)
    if view.occluder is not None:
        _occlude(developed, view, rng)
    if any(view.motion):
        taps = np.linspace(-0.5, 0.5, 5)[:, None] * view.motion * size / 96
        developed = np.mean([shift(developed, (down, right, 0), order=1, mode="nearest") for right, down in taps], 0)
    image = Image.fromarray((255 * developed + 0.5).astype(np.uint8))
    if view.resolution < 1:
        small = max(16, round(view.resolution * size))
        image = image.resize((small, small), Image.Resampling.BOX).resize((size, size), Image.Resampling.BICUBIC)
    if view.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(view.blur * size / 96))
    if view.noise > 0:
        grain = rng.standard_normal((size, size, 3), dtype=np.float32) * view.noise
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    if view.jpeg_quality is not None:
        image = Image.open(io.BytesIO(jpeg_bytes(image, view.jpeg_quality)))
    return np.asarray(image.convert("RGB")), landmarks


def render_face(
    values: Mapping[str, float],
    subject: int = 0,
    seed: int = 0,
    size: int = 96,
    view: View | None = None,
) -> np.ndarray:
    """A face that shows the given AUs: (size, size, 3) uint8 RGB.

    Args:
        values: strength in [0, 1] by AU label, sided ("AU12L") or not ("AU12" moves both sides); other AUs are at rest.
            All combinations are allowed, and AU26 alone parts the lips even without AU25.
        subject: number of the made-up person drawn with `seed`.
        view: pose, light and degradation; by default frontal, evenly lit and clean. `View(yaw=20)` turns the head.

    Raises:
        ValueError: the rig cannot move a label, or a strength is outside [0, 1].
    """
    strengths = expand_sides(values)
    rng = np.random.default_rng([seed, subject, 0])
    return picture(sample_subject(seed, subject), strengths, view or View(), size, rng)[0]


def encode_srgb(picture: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] of linear light, with a soft shoulder instead of a hard clip above 0.8."""
    picture = picture.copy()
    bright = picture > 0.8
    picture[bright] = 0.8 + 0.2 * np.tanh((picture[bright] - 0.8) / 0.2 * 0.7)
    picture = picture.clip(0, 1)
    return np.where(picture <= 0.0031308, 12.92 * picture, 1.055 * picture ** (1 / 2.4) - 0.055)


def _occlude(picture: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """Draw the view's occluder over a picture (size, size, 3) of sRGB in [0, 1], in place."""
    x, y, length, width, turn = view.occluder
    size = len(picture)
    down, right = (np.mgrid[0:size, 0:size] + 0.5) / size
    angle = np.deg2rad(turn)
    along = (right - x) * np.cos(angle) + (down - y) * np.sin(angle)
    across = (down - y) * np.cos(angle) - (right - x) * np.sin(angle)
    inside = smoothstep(1.15, 0.85, np.hypot(along / length, across / width))[..., None]
    color = rng.random(3) * (0.7 + 0.3 * across[..., None] / width).clip(0, 1)
    picture += inside * (color - picture)
