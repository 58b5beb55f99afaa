"""What a face is painted with: the colour of every sample of skin, brows, lips, hair, eyes and mouth, and the backdrop.

Colours are linear RGB. Masks are smooth functions of the mean face's coordinates, evaluated at the samples, so that
brows, lips, beard and wrinkles move with the skin and have no ragged edges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from au_llava.au_rendering.raster import light_reach, vertex_normals
from au_llava.au_rendering.rig import FaceRig, load_rig

FLAT_COLOURS = {"mouth": (0.16, 0.035, 0.035), "tongue": (0.42, 0.13, 0.13), "teeth": (0.74, 0.68, 0.58)}
IRIS_ANGLE, PUPIL_ANGLE = 0.48, 0.20  # radians from the gaze; an iris is about 11.7 mm wide on a 24 mm ball
BEARDS = ("full", "goatee", "moustache", "jaw")
BLOOD = np.array([0.05, 0.36, 0.30], np.float32)  # how much blood under the skin takes of each colour


@dataclass(frozen=True)
class Brow:
    """The brows of a person at rest. Lengths and heights in eye distances.

    People at rest differ in all of this, so none of it may tell that a brow is raised or lowered.
    """

    colour: np.ndarray  # (3,) linear RGB
    amount: float  # how much of the skin the hairs cover, 0 to 1
    thickness: float  # factor
    height: float  # against the mean
    arch: float  # factor on the mean's
    slope: float  # of the outer end against the inner one
    uneven: float  # of the left brow against the right one
    inner: float  # from the middle of the face
    outer: float


@dataclass(frozen=True)
class RestLines:
    """Lines that a face has at rest, each amount in [0, 1], whatever moves."""

    forehead: float
    frown: float
    eyes: float  # crow's feet
    bags: float  # under the eyes
    nose: float  # from the wings of the nose to the mouth
    mouth: float  # below its corners
    spacing: float  # lines of the forehead an eye distance
    phase: float  # of these lines


@dataclass(frozen=True)
class Appearance:
    """How a subject looks. Colours are (3,) linear RGB in [0, 1]; amounts lie in [0, 1] unless said otherwise."""

    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    hair: np.ndarray
    clothes: np.ndarray
    mottle: np.ndarray  # (V,) smooth variation of the skin, about standard normal
    brow: Brow
    sclera: float  # brightness of the white of the eye, factor
    socket: float  # how dark the eye sockets are
    crease: tuple[float, float]  # fold of the upper lid: how dark, and how far above the lid, eye distances
    hair_amount: float  # 0 is bald
    hair_volume: float  # eye distances
    hair_line: float  # eye distances upwards
    fringe: float  # how far hair falls over the forehead, eye distances; 0 is none
    long_hair: bool
    beard: float
    blush: float
    lines: RestLines
    furrows: float  # factor on those that AUs make
    oiliness: float
    glasses: np.ndarray | None  # colour of the frame
    frame: tuple[float, float, float]  # of glasses: size (factor), thickness (of the rim's radius), roundness
    beard_style: str  # one of BEARDS
    freckles: float
    eye_shadow: np.ndarray | None  # colour on the upper lids
    liner: float  # how dark the rims of the lids are
    cap: np.ndarray | None  # colour of a cap or scarf in place of hair
    clay: np.ndarray  # colour of the whole head under clay shading


@dataclass(frozen=True)
class PaintMap:
    """What depends on the rig alone."""

    coordinates: np.ndarray  # (V, 3) mean position; on the eyeballs the angle from the gaze to the left, up, and 0
    occlusion: np.ndarray  # (V,) share of ambient light that reaches the vertex at rest
    scalp: np.ndarray  # (V,) height above the usual hair line, eye distances
    is_skin: np.ndarray  # (V,) 0 or 1


@cache
def paint_map() -> PaintMap:
    """The rig's paint map, computed once per process (about a second)."""
    rig = load_rig()
    coordinates = rig.mean.copy()
    for region, (centre, axis) in zip(("eye_left", "eye_right"), rig.eye_frames, strict=True):
        ball = rig.vertices_of(region)
        direction = rig.mean[ball] - centre
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


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; falling where `low` is above `high`."""
    t = ((value - low) * (1 / (high - low))).clip(0, 1)
    return t * t * (3 - 2 * t)


def _bump(value: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((value - centre) * (1 / width)) ** 2))


def _ridges(phase: np.ndarray, sharpness: int) -> np.ndarray:
    """Lines at whole numbers of `phase`."""
    return (0.5 + 0.5 * np.cos(phase * np.float32(2 * np.pi))) ** sharpness


def wrinkles(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, strengths: Mapping[str, float], rest: RestLines
) -> np.ndarray:
    """Darkening in [0, 0.75] of skin at mean-face coordinates (N,): furrows that AUs make, and those at rest.

    They are drawn where FACS describes them, not simulated; amounts were chosen by eye.
    """
    darkening = np.zeros_like(x)

    def strength(label):
        return np.float32(strengths.get(label, 0.0))

    def sided(label, on_left):
        left, right = strength(label + "L"), strength(label + "R")
        return np.where(on_left, left, right) if left != right else left

    def near(condition):
        where = np.flatnonzero(condition)
        return where, np.abs(x[where]), y[where], x[where] > 0

    # Forehead: horizontal lines over the inner (AU1) and the outer brow (AU2); frown lines between the brows (AU4).
    where, ax, ay, left = near((y > 0.15) & (y < 1.0) & (z > -0.4))
    middle = _bump(ax, 0, 0.38)
    raised = middle * strength("AU1") + (1 - middle) * sided("AU2", left) * _bump(ax, 0.7, 0.32)
    raised += np.float32(0.6 * rest.forehead)
    lines = (
        _ridges((ay - 0.06 * np.cos(ax * 4)) * np.float32(rest.spacing) + np.float32(rest.phase), 5)
        * smoothstep(0.42, 0.52, ay)
        * smoothstep(0.95, 0.8, ay)
    )
    frown = _bump(ax, 0.085, 0.024) * _bump(ay, 0.30, 0.13)
    darkening[where] += 0.40 * raised * lines + (0.60 * sided("AU4", left) + 0.35 * np.float32(rest.frown)) * frown

    # Nose: lines across its root and along its sides (AU9).
    if strength("AU9"):
        where, ax, ay, left = near((np.abs(x) < 0.4) & (y > -0.6) & (y < 0.35))
        root = _ridges((ay + 0.9 * ax**2) * 11.8, 3) * _bump(ax, 0, 0.16) * _bump(ay, 0.02, 0.13)
        sides = _ridges((ax + 0.7 * ay) * 13.3, 3) * _bump(ax, 0.20, 0.07) * _bump(ay, -0.22, 0.13)
        darkening[where] += strength("AU9") * (0.50 * root + 0.45 * sides)

    # Eyes: crow's feet and the bag under the eye (AU6), the tight line under the lower lid (AU7).
    where, ax, ay, left = near((np.abs(x) > 0.15) & (np.abs(x) < 1.15) & (y > -0.45) & (y < 0.25))
    cheek = sided("AU6", left)
    feet = _ridges(np.arctan2(ay + 0.02, ax - 0.62) * 2.4, 3) * _bump(np.hypot(ax - 0.62, ay + 0.02), 0.25, 0.09)
    bag = _bump(ay - 0.25 * (ax - 0.5) ** 2, -0.27, 0.022) * _bump(ax, 0.48, 0.25)
    tight = _bump(ay - 0.45 * (ax - 0.5) ** 2, -0.16, 0.016) * _bump(ax, 0.5, 0.20)
    darkening[where] += (0.50 * cheek + 0.3 * np.float32(rest.eyes)) * feet * (ax > 0.66)
    darkening[where] += (0.35 * cheek + 0.35 * np.float32(rest.bags)) * bag
    darkening[where] += 0.50 * sided("AU7", left) * tight

    where, ax, ay, left = near((np.abs(x) < 0.9) & (y > -1.75) & (y < -0.55) & (z > -0.7))
    # From the wing of the nose to beside the mouth (AU12), its upper end alone (AU9, AU10).
    fold_x = 0.30 + 0.22 * ((-0.72 - ay) * (1 / 0.42)).clip(0, 1.2) ** np.float32(0.8)
    fold = _bump(ax - fold_x, 0, 0.028) * smoothstep(-1.28, -1.05, ay) * smoothstep(-0.66, -0.78, ay)
    smile = np.maximum(sided("AU12", left), 0.6 * strength("AU10"))
    upper = np.maximum(strength("AU9"), strength("AU10")) * smoothstep(-1.0, -0.85, ay)
    furrow = (0.42 * smile + 0.35 * np.float32(rest.nose) + 0.35 * upper) * fold
    furrow += 0.65 * sided("AU14", left) * _bump(ax, 0.47, 0.030) * _bump(ay, -1.12, 0.085)  # dimple
    drooping = _bump(ax + 0.35 * (ay + 1.16), 0.40, 0.028) * _bump(ay, -1.24, 0.08)  # below the corner
    furrow += (0.45 * sided("AU15", left) + 0.2 * np.float32(rest.mouth)) * drooping
    if strength("AU20L") or strength("AU20R"):
        furrow += (
            0.40
            * sided("AU20", left)
            * _ridges((ax - 0.1 * ay) * 10, 3)
            * _bump(ax, 0.6, 0.11)
            * _bump(ay, -1.15, 0.16)
        )
    if strength("AU17"):  # pitted chin
        pits = (0.5 + 0.5 * np.cos(ax * 47) * np.cos(ay * 43)) ** 2
        furrow += 0.30 * strength("AU17") * pits * _bump(ax, 0, 0.24) * _bump(ay, -1.52, 0.11)
    if strength("AU18") or strength("AU23"):  # radial lines round the lips: pursed in the middle, tight all along
        rims = _bump(ay, -0.93, 0.05) + _bump(ay, -1.33, 0.05)
        furrow += 0.35 * strength("AU18") * _ridges(ax * 13.3, 3) * rims * _bump(ax, 0, 0.28)
        furrow += 0.55 * strength("AU23") * _ridges(ax * 13.3, 5) * rims * _bump(ax, 0, 0.38)
    if strength("AU24"):  # skin bulges above and below the pressed lips: a furrow behind each bulge, and at the corners
        behind = _bump(ay + 0.3 * ax**2, -0.97, 0.022) + _bump(ay - 0.4 * ax**2, -1.30, 0.026)
        corners = _bump(ax, 0.40, 0.028) * _bump(ay, -1.12, 0.06)
        furrow += strength("AU24") * (0.45 * behind * smoothstep(0.36, 0.22, ax) + 0.45 * corners)
    darkening[where] += furrow
    return darkening.clip(0, 0.75)


def sample_colours(
    look: Appearance,
    strengths: Mapping[str, float],
    region: np.ndarray,
    attributes: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Colour (3, N) and shininess factor (N,) of samples of the head.

    Args:
        region: (N,) region number of each sample.
        attributes: (7, N) x, y, z of the paint map, lips, lids, mottle and scalp, interpolated at the samples.
        rng: draws the grain of the beard only.
    """
    names = load_rig().region_names
    colour = np.empty((3, len(region)), np.float32)
    shine = np.ones(len(region), np.float32)
    skin = np.flatnonzero((region == names.index("skin")) | (region == names.index("eye_cavity")))
    colour[:, skin], shine[skin] = _skin_colours(look, strengths, attributes[:, skin], rng)

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
    colour[:, eye] = ball
    for name, flat in FLAT_COLOURS.items():
        colour[:, region == names.index(name)] = np.array(flat)[:, None]
    teeth = np.flatnonzero(region == names.index("teeth"))
    colour[:, teeth] *= 1 - 0.35 * _ridges(attributes[0, teeth] * 8, 8)
    return colour, shine


def _cover(colour: np.ndarray, amount: np.ndarray, paint: np.ndarray) -> None:
    """Blend `paint` (3,) or (3, N) over `colour` (3, N) in place, by `amount` (N,)."""
    paint = np.asarray(paint, np.float32)
    colour += amount * ((paint[:, None] if paint.ndim == 1 else paint) - colour)


def _cover_some(colour: np.ndarray, amount: np.ndarray, paint: np.ndarray) -> None:
    """`_cover`, for amounts that are 0 at most samples."""
    some = np.flatnonzero(amount > 1e-3)
    part = colour[:, some]
    _cover(part, amount[some], paint if paint.ndim == 1 else paint[:, some])
    colour[:, some] = part


def _skin_colours(look: Appearance, strengths, attributes: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Colour (3, N) and shininess (N,) of skin and of what grows or is painted on it."""
    x, y, z, lips, lids, mottle, scalp = attributes
    ax = np.abs(x)
    base = np.asarray(look.skin, np.float32)
    # Cheeks and nose tip carry more blood; the sockets are darker.
    rosy = _bump(ax, 0.62, 0.28) * _bump(y, -0.55, 0.28) + 0.8 * _bump(ax, 0, 0.17) * _bump(y, -0.68, 0.15)
    socket = np.float32(look.socket) * _bump(ax, 0.48, 0.33) * _bump(y, 0.0, 0.22)
    furrows = {label: look.furrows * strength for label, strength in strengths.items()} if look.furrows else {}
    shade = (1 + 0.06 * mottle) * (1 - wrinkles(x, y, z, furrows, look.lines))
    if look.freckles:
        spots = (np.sin(61 * x + 13 * y) * np.sin(53 * y - 17 * x + 9 * mottle)).clip(0) ** 4
        shade *= 1 - look.freckles * spots * _bump(y, -0.4, 0.45) * (np.abs(z) < 0.9)
    tone = np.empty((3, len(x)), np.float32)
    for channel, socket_share in enumerate((0.7, 1.0, 0.9)):
        blood = 1 - look.blush * BLOOD[channel] * rosy
        tone[channel] = base[channel] * shade * blood * (1 - socket_share * socket)

    if look.beard > 0:
        jaw = smoothstep(-0.90, -1.15, y + 0.30 * smoothstep(0.75, 1.1, ax)) * smoothstep(-1.4, -0.8, z)
        cheek = (smoothstep(0.42, 0.62, ax + 0.9 * (-1.05 - y).clip(0)) + smoothstep(-1.25, -1.36, y)).clip(0, 1)
        moustache = smoothstep(-0.80, -0.93, y + 0.35 * ax**2) * smoothstep(0.52, 0.30, ax) * (y > -1.14)
        below = jaw * cheek * smoothstep(-2.0, -1.75, y)
        if look.beard_style == "goatee":
            below *= smoothstep(0.42, 0.32, ax)
        hairs = {"moustache": moustache, "jaw": below}.get(look.beard_style, np.maximum(below, moustache)) * (1 - lips)
        grain = 0.85 + 0.3 * rng.random(len(x), dtype=np.float32)
        _cover_some(tone, (hairs * look.beard * grain).clip(0, 0.95), look.hair)
    red = smoothstep(0.15, 0.85, lips)
    _cover_some(tone, 0.9 * red, look.lips)
    if look.eye_shadow is not None:
        _cover_some(tone, 0.7 * _bump(ax, 0.5, 0.24) * _bump(y, 0.13, 0.08), look.eye_shadow)
    rims = np.float32(look.liner) * np.where(y > 0.0, np.float32(1.0), np.float32(0.4))
    _cover_some(tone, lids * rims, 0.12 * look.skin + 0.01)

    darkness, height = look.crease
    fold = _bump(y - (0.5 - ax) ** 2 * -0.35, 0.13 + height, 0.018) * _bump(ax, 0.5, 0.24)
    _cover_some(tone, darkness * fold, 0.25 * look.skin)
    brow = _brow_cover(look.brow, x, y)
    _cover_some(tone, brow * look.brow.amount, look.brow.colour)

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
    """(N,) in [0, 1], where the hairs of the brows lie."""
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


def background(size: int, look: Appearance, centre: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3): a flat wall, a gradient with blobs, clouds or a room; long hair and clothes drawn flat.

    Args:
        centre: (2,) pixel of the midpoint of the eyes.
        unit: pixels of one eye distance.
    """
    ys, xs = (grid.astype(np.float32) / size for grid in np.mgrid[0:size, 0:size])

    def shade():
        grey = rng.random() ** 1.8
        return (grey * (1 + 0.35 * rng.standard_normal(3, np.float32))).clip(0, 1).astype(np.float32)

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
    u, v = (xs * size - centre[0]) / unit, -(ys * size - centre[1]) / unit  # eye distances from between the eyes
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
    """A spectacle frame that fits this face: (W, 3) vertices and (T, 3) faces of two rims and a bridge, flat bands.

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
