"""What surrounds a face: background, hair and clothes behind it, glasses in front of it."""

import numpy as np
from PIL import Image

from au_llava.au_rendering.appearance import Appearance
from au_llava.au_rendering.masks import smoothstep
from au_llava.au_rendering.rig import FaceRig


def background(size: int, look: Appearance, center: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3): a flat wall, a gradient with blobs, clouds or a room, with flat long hair and clothes.

    Args:
        center: (2,) pixel of the midpoint of the eyes.
        unit: pixels of one eye distance.
    """
    ys, xs = (grid.astype(np.float32) / size for grid in np.mgrid[0:size, 0:size])

    def shade():
        gray = rng.random() ** 1.8
        return (gray * (1 + 0.35 * rng.standard_normal(3, np.float32))).clip(0, 1).astype(np.float32)

    def coarse(cells, channels):
        """A smooth random texture of mean 1, (size, size, channels)."""
        grid = rng.uniform(0.0, 2.0, (channels, cells, cells)).astype(np.float32)
        layers = [Image.fromarray(layer).resize((size, size), Image.Resampling.BILINEAR) for layer in grid]
        return np.stack([np.asarray(layer) for layer in layers], axis=-1)

    first, second = shade(), shade()
    kind = rng.random()
    if kind < 0.15:  # a wall, sometimes black or white as around a scan
        wall = rng.random()
        picture = np.zeros((size, size, 3), np.float32) + (0.0 if wall < 0.2 else 1.0 if wall < 0.4 else first)
    elif kind < 0.45:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (0.5 + (0.5 * np.cos(angle)) * (xs - 0.5) + (0.5 * np.sin(angle)) * (ys - 0.5)).clip(0, 1)
        picture = first + (second - first) * ramp[..., None]
        for _ in range(rng.integers(0, 6)):
            x, y, radius = rng.random(), rng.random(), rng.uniform(0.05, 0.35)
            blob = smoothstep(1, 1 - rng.uniform(0.05, 0.9), np.hypot(xs - x, ys - y) / radius) * rng.uniform(0.2, 1)
            picture += blob[..., None] * (shade() - picture)
        if rng.random() < 0.4:
            picture *= 0.7 + 0.3 * coarse(int(rng.integers(3, 24)), 1)
    elif kind < 0.75:  # brightness falls with frequency as in photographs of foliage or clouds
        amount = sum(coarse(cells, 1) / cells**0.7 for cells in (2, 4, 8, 16, 32))
        amount = (amount - amount.min()) / np.ptp(amount).clip(1e-6)
        picture = (first + (second - first) * amount) * (0.75 + 0.25 * coarse(4, 3))
    else:  # upright planes of different brightness, out of focus
        picture = np.zeros((size, size, 3), np.float32) + first
        for _ in range(rng.integers(2, 9)):
            x, y, width, height = rng.random(), rng.random(), *rng.uniform(0.03, 0.4, 2)
            sharp = rng.uniform(0.01, 0.1)
            plane = smoothstep(width + sharp, width, np.abs(xs - x)) * smoothstep(
                height + sharp, height, np.abs(ys - y)
            )
            picture += plane[..., None] * (shade() - picture)
    u, v = (xs * size - center[0]) / unit, -(ys * size - center[1]) / unit  # eye distances from between the eyes
    if look.long_hair and (look.hair_amount > 0 or look.cap is not None):
        crown = 1.55 * np.sqrt((1 - (v / 2.15) ** 2).clip(1e-4))
        amount = smoothstep(1.04, 0.96, np.abs(u) / np.where(v > 0, crown, 1.55 - 0.06 * v))
        strands = (0.8 + 0.2 * np.sin(u * 40 + np.sin(v * 3)))[..., None]
        falling = 0.7 * look.hair * strands if look.cap is None else 0.6 * look.cap
        picture += amount[..., None] * (falling - picture)
    shoulders = smoothstep(-0.04, 0.04, -1.9 - 0.25 * np.abs(u) ** 1.5 - v)
    picture += shoulders[..., None] * (0.6 * look.clothes - picture)
    return picture.astype(np.float32)


def glasses_mesh(identity: np.ndarray, frame: tuple, rig: FaceRig) -> tuple[np.ndarray, np.ndarray]:
    """Glasses that fit this face: (W, 3) vertices and (T, 3) faces of two rims and a bridge, as flat bands.

    `frame` is `Appearance.frame`.
    """
    extent, thickness, roundness = frame
    steps = 28
    turn = np.arange(steps) * 2 * np.pi / steps
    outline = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    outline = np.sign(outline) * np.abs(outline) ** roundness  # between an ellipse and a rectangle
    depth = identity[rig.lids > 0.9, 2].max() + 0.26  # before the lids, shut ones too
    points, faces = [], []
    for region in ("eye_left", "eye_right"):
        x, y, _ = identity[rig.vertices_of(region)].mean(axis=0)
        for inner in (1 - thickness, 1 + thickness):
            ring = extent * outline * np.array([0.40, 0.29]) * inner + np.array([1.02 * x, y - 0.04])
            points.append(np.c_[ring, depth + 0.08 - 0.35 * ring[:, 0] ** 2])
        start = (len(points) - 2) * steps
        for k in range(steps):
            a, b = start + k, start + (k + 1) % steps
            faces += [(a, a + steps, b), (b, a + steps, b + steps)]
    start = len(points) * steps
    points.append(np.array([[x, y, depth + 0.08] for y in (0.05, 0.10) for x in (-0.16, 0.16)]))
    faces += [(start, start + 1, start + 2), (start + 1, start + 3, start + 2)]
    return np.concatenate(points), np.array(faces)
