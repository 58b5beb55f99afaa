"""Paints a face: the color of every sample of skin, brows, lips, hair, eyes and mouth.

Colors are linear RGB. Masks are smooth functions of the mean face's coordinates, evaluated at the samples, so that
brows, lips, beard and wrinkles move with the skin and have no ragged edges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from au_llava.au_rendering.appearance import Appearance, Brow
from au_llava.au_rendering.masks import bump, ridges, smoothstep
from au_llava.au_rendering.raster import light_reach, vertex_normals
from au_llava.au_rendering.rig import load_rig
from au_llava.au_rendering.wrinkles import wrinkles

FLAT_COLORS = {"mouth": (0.16, 0.035, 0.035), "tongue": (0.42, 0.13, 0.13), "teeth": (0.74, 0.68, 0.58)}
IRIS_ANGLE, PUPIL_ANGLE = 0.48, 0.20  # radians from the gaze; an iris is about 11.7 mm wide on a 24 mm ball
BLOOD = np.array([0.05, 0.36, 0.30], np.float32)  # share of each color that blood under the skin absorbs


@dataclass(frozen=True)
class PaintMap:
    """Per-vertex values that depend only on the rig."""

    coordinates: np.ndarray  # (V, 3) mean position; on the eyeballs the angle from the gaze to the left, up, and 0
    occlusion: np.ndarray  # (V,) share of ambient light that reaches the vertex at rest
    scalp: np.ndarray  # (V,) height above the usual hair line, eye distances
    is_skin: np.ndarray  # (V,) 0 or 1


@cache
def paint_map() -> PaintMap:
    """The rig's paint map, computed once per process (about a second)."""
    rig = load_rig()
    coordinates = rig.mean.copy()
    for region, (center, axis) in zip(("eye_left", "eye_right"), rig.eye_frames, strict=True):
        ball = rig.vertices_of(region)
        direction = rig.mean[ball] - center
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        along = (direction @ axis)[:, None]
        tangent = direction - along * axis
        angle = np.arccos(along.clip(-1, 1)) / np.linalg.norm(tangent, axis=1, keepdims=True).clip(1e-6)
        coordinates[ball] = np.concatenate([tangent[:, :2] * angle, np.zeros((len(ball), 1))], axis=1)
    directions = np.random.default_rng(0).standard_normal((120, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    normals = vertex_normals(rig.mean, rig.faces)
    received, possible = np.zeros(len(rig.mean)), np.full(len(rig.mean), 1e-3)
    for direction in directions:
        facing = (normals @ direction).clip(0)
        received += facing * light_reach(rig.mean, rig.faces, direction, 0.3, 128)
        possible += facing
    x, y, z = rig.mean.T
    scalp = y - 1.02 + 1.1 * (-(z + 0.45)).clip(0) + 0.10 * np.cos(x * 2.5)
    is_skin = np.zeros(len(rig.mean), np.float32)
    is_skin[rig.vertices_of("skin")] = 1
    return PaintMap(coordinates, (received / possible).clip(0.05, 1).astype(np.float32), scalp, is_skin)


def sample_colors(
    look: Appearance,
    strengths: Mapping[str, float],
    region: np.ndarray,
    attributes: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Color (3, N) and shininess factor (N,) of samples of the head.

    Args:
        region: (N,) region number of each sample.
        attributes: (7, N) x, y, z of the paint map, lips, lids, mottle and scalp, interpolated at the samples.
        rng: draws the grain of the beard only.
    """
    names = load_rig().region_names
    color = np.empty((3, len(region)), np.float32)
    shine = np.ones(len(region), np.float32)
    skin = np.flatnonzero((region == names.index("skin")) | (region == names.index("eye_cavity")))
    color[:, skin], shine[skin] = _skin_colors(look, strengths, attributes[:, skin], rng)

    eye = np.flatnonzero((region == names.index("eye_left")) | (region == names.index("eye_right")))
    across, upwards = attributes[:2, eye]
    angle = np.hypot(across, upwards)
    ball = np.outer(
        np.float32(look.sclera) * np.array([0.72, 0.68, 0.65], np.float32), 1 - 0.25 * smoothstep(0.6, 1.1, angle)
    )
    rays = 1 + 0.20 * np.cos(np.arctan2(upwards, across) * 22)
    _cover(ball, 1 - smoothstep(IRIS_ANGLE - 0.04, IRIS_ANGLE + 0.04, angle), look.iris)
    ball *= np.where(angle < IRIS_ANGLE, rays * (1 - 0.55 * smoothstep(0.36, 0.47, angle)), 1)
    _cover(ball, 1 - smoothstep(PUPIL_ANGLE - 0.03, PUPIL_ANGLE + 0.02, angle), np.full(3, 0.01))
    color[:, eye] = ball
    for name, flat in FLAT_COLORS.items():
        color[:, region == names.index(name)] = np.array(flat)[:, None]
    teeth = np.flatnonzero(region == names.index("teeth"))
    color[:, teeth] *= 1 - 0.35 * ridges(attributes[0, teeth] * 8, 8)
    return color, shine


def _cover(color: np.ndarray, amount: np.ndarray, paint: np.ndarray) -> None:
    """Blend `paint` (3,) or (3, N) over `color` (3, N), in place, by `amount` (N,)."""
    paint = np.asarray(paint, np.float32)
    color += amount * ((paint[:, None] if paint.ndim == 1 else paint) - color)


def _cover_some(color: np.ndarray, amount: np.ndarray, paint: np.ndarray) -> None:
    """`_cover`, faster for amounts that are 0 at most samples."""
    some = np.flatnonzero(amount > 1e-3)
    part = color[:, some]
    _cover(part, amount[some], paint if paint.ndim == 1 else paint[:, some])
    color[:, some] = part


def _skin_colors(look: Appearance, strengths, attributes: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Color (3, N) and shininess (N,) of skin with its hair and make-up."""
    x, y, z, lips, lids, mottle, scalp = attributes
    ax = np.abs(x)
    base = np.asarray(look.skin, np.float32)
    # Cheeks and nose tip carry more blood; the sockets are darker.
    rosy = bump(ax, 0.62, 0.28) * bump(y, -0.55, 0.28) + 0.8 * bump(ax, 0, 0.17) * bump(y, -0.68, 0.15)
    socket = np.float32(look.socket) * bump(ax, 0.48, 0.33) * bump(y, 0.0, 0.22)
    furrows = {label: look.furrows * strength for label, strength in strengths.items()} if look.furrows else {}
    shade = (1 + 0.06 * mottle) * (1 - wrinkles(x, y, z, furrows, look.lines))
    if look.freckles:
        spots = (np.sin(61 * x + 13 * y) * np.sin(53 * y - 17 * x + 9 * mottle)).clip(0) ** 4
        shade *= 1 - look.freckles * spots * bump(y, -0.4, 0.45) * (np.abs(z) < 0.9)
    tone = np.empty((3, len(x)), np.float32)
    for channel, socket_share in enumerate((0.7, 1.0, 0.9)):
        blood = 1 - look.blush * BLOOD[channel] * rosy
        tone[channel] = base[channel] * shade * blood * (1 - socket_share * socket)

    if look.beard > 0:
        jaw = smoothstep(-0.90, -1.15, y + 0.30 * smoothstep(0.75, 1.1, ax)) * smoothstep(-1.4, -0.8, z)
        cheek = (smoothstep(0.42, 0.62, ax + 0.9 * (-1.05 - y).clip(0)) + smoothstep(-1.25, -1.36, y)).clip(0, 1)
        mustache = smoothstep(-0.80, -0.93, y + 0.35 * ax**2) * smoothstep(0.52, 0.30, ax) * (y > -1.14)
        below = jaw * cheek * smoothstep(-2.0, -1.75, y)
        if look.beard_style == "goatee":
            below *= smoothstep(0.42, 0.32, ax)
        hairs = {"mustache": mustache, "jaw": below}.get(look.beard_style, np.maximum(below, mustache)) * (1 - lips)
        grain = 0.85 + 0.3 * rng.random(len(x), dtype=np.float32)
        _cover_some(tone, (hairs * look.beard * grain).clip(0, 0.95), look.hair)
    red = smoothstep(0.15, 0.85, lips)
    _cover_some(tone, 0.9 * red, look.lips)
    if look.eye_shadow is not None:
        _cover_some(tone, 0.7 * bump(ax, 0.5, 0.24) * bump(y, 0.13, 0.08), look.eye_shadow)
    rims = np.float32(look.liner) * np.where(y > 0.0, np.float32(1.0), np.float32(0.4))
    _cover_some(tone, lids * rims, 0.12 * look.skin + 0.01)

    darkness, height = look.crease
    fold = bump(y - (0.5 - ax) ** 2 * -0.35, 0.13 + height, 0.018) * bump(ax, 0.5, 0.24)
    _cover_some(tone, darkness * fold, 0.25 * look.skin)
    brow = _brow_cover(look.brow, x, y)
    _cover_some(tone, brow * look.brow.amount, look.brow.color)

    shine = (0.55 + 1.2 * red) * (1 - 0.8 * brow)
    if look.hair_amount > 0:
        line = look.hair_line
        if look.fringe:  # uneven below, shorter over the nose than over the temples or the reverse
            line -= look.fringe * (1 + 0.25 * np.sin(5 * x + 9 * look.lines.phase)) * (z > -0.5)
        hair = smoothstep(-0.06, 0.07, scalp - line + 0.015 * mottle) * look.hair_amount
        strands = 0.75 + 0.35 * np.sin(37 * x + 9 * mottle) * np.sin(11 * z + 5 * x)
        _cover_some(tone, hair, np.outer(look.hair, strands).astype(np.float32))
        shine *= 1 - 0.7 * hair
    if look.cap is not None:
        covered = smoothstep(-0.02, 0.02, scalp - look.hair_line)
        _cover_some(tone, covered, look.cap)
        shine *= 1 - 0.9 * covered
    return tone, shine


def _brow_cover(brow: Brow, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,) in [0, 1]: how much the hairs of the brows cover."""
    cover = np.zeros_like(x)
    near = np.flatnonzero((np.abs(x) < 1.1) & (y > 0.0) & (y < 0.85))
    bx, by = np.abs(x[near]), y[near]
    along = ((bx - brow.inner) * np.float32(1 / (brow.outer - brow.inner))).clip(0, 1)
    arch = 0.13 * brow.arch * np.sin(2.55 * along) - 0.11 * smoothstep(0.55, 1.0, along)
    middle = 0.29 + brow.height + arch + brow.slope * along + np.where(x[near] > 0, 0.5, -0.5) * brow.uneven
    half = 0.062 * brow.thickness * (1 - 0.65 * smoothstep(0.4, 1.0, along)) * (0.4 + 0.6 * smoothstep(0, 0.2, along))
    ends = smoothstep(brow.inner, brow.inner + 0.1, bx) * smoothstep(brow.outer, brow.outer - 0.08, bx)
    hairs = 0.9 + 0.1 * np.cos(bx * 70 + by * 45)
    cover[near] = smoothstep(1.25, 0.55, np.abs(by - middle) / half.clip(0.012)) * ends * hairs
    return cover
