"""The renderer: a deformed face mesh, an appearance and a view in, an RGB picture out. NumPy only, no display.

Unusual choices
- Light is computed at the vertices (they lie one to two pixels apart) and interpolated; colour is computed at the
  pixels, from smooth masks in the mean face's coordinates, so that brows, irises, lips, beard and wrinkles move with
  the skin and have no ragged edges.
- Visibility is a z-buffer without a loop over triangles: every (triangle, pixel) pair of the bounding boxes is tested
  at once and the nearest one is written last.
- Pixels are sampled twice in each direction and averaged in linear light.
- The crop is aligned by the eyes, as AU pipelines do; roll, shift and scale jitter are added afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from .face_rig import FaceRig, load_rig

SUPERSAMPLING = 2
EYE_DISTANCE = 0.29  # of the crop's width
EYE_HEIGHT = 0.385  # of the crop's height, from the top
SHADOW_SIZE = 96  # pixels of the shadow map's side


@dataclass(frozen=True)
class Appearance:
    """How a subject looks. Colours are linear RGB in [0, 1]; amounts are in [0, 1] unless said otherwise."""

    skin: np.ndarray  # (3,)
    lips: np.ndarray  # (3,)
    iris: np.ndarray  # (3,)
    brow: np.ndarray  # (3,)
    hair: np.ndarray  # (3,)
    mottle: np.ndarray  # (V,) smooth skin variation, about standard normal
    brow_thickness: float = 1.0  # factor
    brow_height: float = 0.0  # eye distances
    brow_amount: float = 0.9
    hair_amount: float = 1.0  # 0 is bald
    hair_volume: float = 0.12  # eye distances
    hair_line: float = 0.0  # eye distances upwards
    long_hair: bool = False
    beard: float = 0.0
    blush: float = 0.2
    wrinkles: float = 0.2  # those of age, there at rest
    oiliness: float = 0.3
    glasses: np.ndarray | None = None  # (3,) colour of the frame
    clothes: np.ndarray = field(default_factory=lambda: np.array([0.1, 0.12, 0.2]))  # (3,)


@dataclass(frozen=True)
class View:
    """Camera, light and degradation of one picture.

    Angles in degrees, as the subject turns: yaw to the own left, pitch upwards, roll (head tilt) to the own left.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    distance: float = 11.0  # of the camera, in eye distances (about 6 cm)
    shift: tuple[float, float] = (0.0, 0.0)  # of the crop, in crop widths, right and down
    scale: float = 1.0
    key_azimuth: float = -35.0  # degrees to the image's right
    key_elevation: float = 35.0
    key_strength: float = 1.0
    key_colour: tuple[float, float, float] = (1.0, 0.97, 0.92)
    softness: float = 0.5  # 0 is a point light with hard shadows, 1 a large soft box
    fill: float = 0.25
    ambient: float = 0.45
    ambient_tint: tuple[float, float, float] = (0.95, 1.0, 1.08)
    exposure: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)  # to the subject's left and up, in [-1, 1]
    blur: float = 0.0  # pixels of the final picture
    noise: float = 0.0  # standard deviation, of 255
    jpeg_quality: int | None = None


def rasterise(points: np.ndarray, nearness: np.ndarray, faces: np.ndarray, size: int):
    """Nearest front-facing triangle at each pixel centre.

    Args:
        points: (V, 2) pixel coordinates, x right and y down.
        nearness: (V,) larger is nearer; affine in the image plane (1 / depth for a perspective camera).
        faces: (F, 3) vertex numbers, counter-clockwise seen from the front.
        size: side of the square picture.

    Returns:
        pixels (N,) flat numbers of the covered pixels, triangles (N,), barycentric weights (N, 3) float32.
    """
    points = points.astype(np.float32)
    corners = points[faces]  # (F, 3, 2)
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    low = np.ceil(corners.min(axis=1) - 0.5).clip(0).astype(np.int32)
    high = np.floor(corners.max(axis=1) - 0.5).clip(None, size - 1).astype(np.int32)
    extent = (high - low + 1).clip(0)
    kept = np.flatnonzero((area < -1e-6) & (extent.prod(axis=1) > 0))

    # Affine forms in (x, y, 1): the weights of corners 1 and 2, and the nearness.
    inverse = 1 / area[kept]
    e1, e2, origin = edge1[kept], edge2[kept], corners[kept, 0] - 0.5
    w1 = np.stack([e2[:, 1], -e2[:, 0]], axis=1) * inverse[:, None]
    w2 = np.stack([-e1[:, 1], e1[:, 0]], axis=1) * inverse[:, None]
    near = nearness.astype(np.float32)[faces[kept]]
    slope = w1 * (near[:, 1] - near[:, 0])[:, None] + w2 * (near[:, 2] - near[:, 0])[:, None]
    constants = [-(form * origin).sum(axis=1) for form in (w1, w2, slope)]
    forms = np.stack(
        [
            *(w1[:, 0], w1[:, 1], constants[0]),
            *(w2[:, 0], w2[:, 1], constants[1]),
            *(slope[:, 0], slope[:, 1], constants[2] + near[:, 0]),
        ]
    )  # (9, kept)

    width, count = extent[kept, 0], extent[kept].prod(axis=1)
    pair = np.repeat(np.arange(len(kept), dtype=np.int32), count)
    local = np.arange(len(pair), dtype=np.int32) - np.repeat((np.cumsum(count) - count).astype(np.int32), count)
    row, column = np.divmod(local, width[pair])
    x, y = low[kept, 0][pair] + column, low[kept, 1][pair] + row
    weight1 = forms[0][pair] * x + forms[1][pair] * y + forms[2][pair]
    weight2 = forms[3][pair] * x + forms[4][pair] * y + forms[5][pair]
    inside = np.flatnonzero((weight1 >= 0) & (weight2 >= 0) & (weight1 + weight2 <= 1))
    pair, x, y = pair[inside], x[inside], y[inside]
    key = forms[6][pair] * x + forms[7][pair] * y + forms[8][pair]
    order = np.argsort(key)
    winner = np.full(size * size, -1, np.int32)
    winner[(y * size + x)[order]] = order
    pixels = np.flatnonzero(winner >= 0)
    won = winner[pixels]
    weight1, weight2 = weight1[inside[won]], weight2[inside[won]]
    return pixels, kept[pair[won]], np.stack([1 - weight1 - weight2, weight1, weight2], axis=1)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, weighted by triangle area."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    index = faces.T.ravel()
    total = np.stack(
        [np.bincount(index, np.tile(normal[:, axis], 3), minlength=len(vertices)) for axis in range(3)], axis=1
    )
    return (total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-12)).astype(np.float32)


def _lit(vertices: np.ndarray, faces: np.ndarray, direction: np.ndarray, size: int, softness: float) -> np.ndarray:
    """(V,) share of a distant light in `direction` (unit) that reaches each vertex, by a filtered shadow map."""
    side = np.cross([0.0, 1.0, 0.0] if abs(direction[1]) < 0.9 else [1.0, 0.0, 0.0], direction)
    side /= np.linalg.norm(side)
    up = np.cross(direction, side)
    plane = np.stack([vertices @ side, -(vertices @ up)], axis=1)
    low = plane.min(axis=0)
    plane = (plane - low) / (plane.max(axis=0) - low).max() * (size - 1)
    depth = vertices @ direction
    pixels, triangles, weights = rasterise(plane, depth, faces, size)
    margin = 4 + int(4 * softness)
    shadow_map = np.full((size + 2 * margin) ** 2, -np.inf, np.float32)
    at = (pixels // size + margin) * (size + 2 * margin) + pixels % size + margin
    shadow_map[at] = (depth[faces[triangles]] * weights).sum(axis=1)
    spread = 0.6 + 2.4 * softness
    lit = np.zeros(len(vertices), np.float32)
    taps = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]
    for dx, dy in taps:
        column = np.clip(plane[:, 0] + dx * spread, 0, size - 1).astype(np.int32) + margin
        row = np.clip(plane[:, 1] + dy * spread, 0, size - 1).astype(np.int32) + margin
        blocker = shadow_map[row * (size + 2 * margin) + column]
        lit += 1 - ((blocker - depth - 0.05) / 0.08).clip(0, 1)
    return lit / len(taps)


@dataclass(frozen=True)
class _Paint:
    """What depends on the rig alone: coordinates for the masks, and ambient light that reaches each vertex at rest."""

    coordinates: np.ndarray  # (V, 3) mean position; for the eyes, direction from the gaze (left, up) and 0
    occlusion: np.ndarray  # (V,) in [0, 1]
    scalp: np.ndarray  # (V,) signed height above the usual hair line
    is_skin: np.ndarray  # (V,) bool


@cache
def _paint() -> _Paint:
    rig = load_rig()
    coordinates = rig.mean.copy()
    for region, (centre, axis) in zip(("eye_left", "eye_right"), rig.eye_frames, strict=True):
        ball = rig.vertices_of(region)
        direction = rig.mean[ball] - centre
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        along = direction @ axis
        tangent = direction - along[:, None] * axis
        angle = np.arccos(along.clip(-1, 1)) / np.linalg.norm(tangent, axis=1).clip(1e-6)
        coordinates[ball] = np.concatenate([tangent[:, :2] * angle[:, None], np.zeros((len(ball), 1))], axis=1)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((120, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    normals = vertex_normals(rig.mean, rig.faces)
    received, possible = np.zeros(len(rig.mean)), np.full(len(rig.mean), 1e-3)
    for direction in directions:
        facing = (normals @ direction).clip(0)
        received += facing * _lit(rig.mean, rig.faces, direction, 128, 0.3)
        possible += facing
    x, y, z = rig.mean.T
    scalp = y - 1.02 + 1.1 * (-(z + 0.45)).clip(0) + 0.10 * np.cos(x * 2.5)
    is_skin = np.zeros(len(rig.mean), bool)
    is_skin[rig.vertices_of("skin")] = True
    return _Paint(coordinates, (received / possible).clip(0.05, 1).astype(np.float32), scalp, is_skin)


def _smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    t = ((value - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def _wrinkles(x, y, z, strengths: Mapping[str, float], age: float) -> np.ndarray:
    """Darkening in [0, 1] of skin at mean-face coordinates (N,): furrows that AUs make, and those of age.

    Positions and shapes follow the pictures of the FACS manual; they are drawn, not simulated.
    """
    darkening = np.zeros_like(x)

    def add(amount, where, furrow):
        if np.ndim(amount) or amount > 0:
            darkening[where] += amount * furrow

    def get(label):
        return strengths.get(label, 0.0)

    left = x > 0
    brow = np.flatnonzero((y > 0.15) & (y < 1.05) & (z > -0.4))
    bx, by = x[brow], y[brow]
    outer = np.where(bx > 0, get("AU2L"), get("AU2R"))
    centre = np.exp(-((bx / 0.38) ** 2))
    raised = centre * get("AU1") + (1 - centre) * outer * np.exp(-(((np.abs(bx) - 0.7) / 0.32) ** 2)) + 0.4 * age
    lines = (0.5 + 0.5 * np.cos((by - 0.06 * np.cos(bx * 4)) * 2 * np.pi / 0.125)) ** 5
    add(0.40 * raised, brow, lines * _smoothstep(0.42, 0.52, by) * (1 - _smoothstep(0.8, 0.95, by)))
    frown = np.where(bx > 0, get("AU4L"), get("AU4R"))
    vertical = np.exp(-(((np.abs(bx) - 0.085) / 0.024) ** 2)) * np.exp(-(((by - 0.30) / 0.13) ** 2))
    add(0.60 * frown + 0.2 * age, brow, vertical)

    nose = np.flatnonzero((np.abs(x) < 0.35) & (y > -0.6) & (y < 0.3))
    nx, ny = x[nose], y[nose]
    bridge = (0.5 + 0.5 * np.cos((ny + 0.9 * nx**2) * 2 * np.pi / 0.085)) ** 3
    add(0.50 * get("AU9"), nose, bridge * np.exp(-((nx / 0.16) ** 2) - (((ny - 0.02) / 0.13) ** 2)))
    sides = (0.5 + 0.5 * np.cos((np.abs(nx) + 0.7 * ny) * 2 * np.pi / 0.075)) ** 3
    add(0.45 * get("AU9"), nose, sides * np.exp(-(((np.abs(nx) - 0.20) / 0.07) ** 2) - (((ny + 0.22) / 0.13) ** 2)))

    eyes = np.flatnonzero((np.abs(x) > 0.2) & (np.abs(x) < 1.15) & (y > -0.45) & (y < 0.2))
    ex, ey = np.abs(x[eyes]), y[eyes]
    squint = np.where(left[eyes], get("AU6L"), get("AU6R"))
    fan = (0.5 + 0.5 * np.cos(np.arctan2(ey + 0.02, ex - 0.62) * 15)) ** 3
    radius = np.hypot(ex - 0.62, ey + 0.02)
    add(0.50 * squint + 0.25 * age, eyes, fan * np.exp(-(((radius - 0.25) / 0.09) ** 2)) * (ex > 0.66))
    bag = np.exp(-(((ey + 0.27 - 0.25 * (ex - 0.5) ** 2) / 0.022) ** 2)) * np.exp(-(((ex - 0.48) / 0.25) ** 2))
    add(0.35 * squint + 0.2 * age, eyes, bag)
    tight = np.where(left[eyes], get("AU7L"), get("AU7R"))
    under = np.exp(-(((ey + 0.16 - 0.45 * (ex - 0.5) ** 2) / 0.016) ** 2)) * np.exp(-(((ex - 0.5) / 0.20) ** 2))
    add(0.50 * tight, eyes, under)

    mouth = np.flatnonzero((np.abs(x) < 0.9) & (y > -1.75) & (y < -0.55) & (z > -0.7))
    mx, my, on_left = np.abs(x[mouth]), y[mouth], left[mouth]

    def sided(label):
        return np.where(on_left, get(label + "L"), get(label + "R"))

    fold_x = 0.30 + 0.22 * ((-0.72 - my) / 0.42).clip(0, 1.2) ** 0.8  # from the wing of the nose to beside the mouth
    fold = np.exp(-(((mx - fold_x) / 0.028) ** 2)) * _smoothstep(-1.28, -1.05, my) * (1 - _smoothstep(-0.78, -0.66, my))
    add(0.42 * np.maximum(sided("AU12"), 0.6 * get("AU10")) + 0.3 * age, mouth, fold)
    upper_fold = fold * _smoothstep(-1.0, -0.85, my)
    add(0.35 * np.maximum(get("AU9"), get("AU10")), mouth, upper_fold)
    dimple = np.exp(-(((mx - 0.47) / 0.030) ** 2) - (((my + 1.12) / 0.085) ** 2))
    add(0.65 * sided("AU14"), mouth, dimple)
    below = np.exp(-(((mx - 0.40 - 0.35 * (-1.16 - my)) / 0.028) ** 2) - (((my + 1.24) / 0.08) ** 2))
    add(0.45 * sided("AU15") + 0.1 * age, mouth, below)
    stretch = (0.5 + 0.5 * np.cos((mx - 0.1 * my) * 2 * np.pi / 0.10)) ** 3
    add(0.40 * sided("AU20"), mouth, stretch * np.exp(-(((mx - 0.60) / 0.11) ** 2) - (((my + 1.15) / 0.16) ** 2)))
    pits = (0.5 + 0.5 * np.cos(mx * 47) * np.cos(my * 43)) ** 2
    add(0.30 * get("AU17"), mouth, pits * np.exp(-((mx / 0.24) ** 2) - (((my + 1.52) / 0.11) ** 2)))
    purse = (0.5 + 0.5 * np.cos(mx * 2 * np.pi / 0.075)) ** 3
    around = np.exp(-(((my + 0.93) / 0.05) ** 2)) + np.exp(-(((my + 1.33) / 0.05) ** 2))
    add(0.35 * get("AU18") + 0.30 * get("AU23"), mouth, purse * around * np.exp(-((mx / 0.28) ** 2)))
    return darkening.clip(0, 0.75)


def _albedo(rig, paint, look: Appearance, strengths, triangles, weights, rng) -> tuple[np.ndarray, np.ndarray]:
    """Linear colour (N, 3) and shininess factor (N,) of each covered sample."""
    corner = rig.faces[triangles]  # (N, 3)
    region = rig.regions[triangles]
    x, y, z = np.einsum("nk,nkc->cn", weights, paint.coordinates[corner])
    vertex_data = np.stack([rig.lips, rig.lids, look.mottle, paint.scalp], axis=1).astype(np.float32)
    lips, lids, mottle, scalp = np.einsum("nk,nkc->cn", weights, vertex_data[corner])
    names = rig.region_names
    colour = np.empty((len(x), 3), np.float32)
    shine = np.ones(len(x), np.float32)

    skin = np.flatnonzero((region == names.index("skin")) | (region == names.index("eye_cavity")))
    sx, sy, sz, ax = x[skin], y[skin], z[skin], np.abs(x[skin])
    tone = look.skin * (1 + 0.06 * mottle[skin])[:, None]
    # Cheeks, nose tip and ears carry more blood.
    rosy = np.exp(-(((ax - 0.62) / 0.28) ** 2) - (((sy + 0.55) / 0.28) ** 2))
    rosy += 0.8 * np.exp(-((sx / 0.17) ** 2) - (((sy + 0.68) / 0.15) ** 2))
    tone *= 1 - look.blush * rosy[:, None] * np.array([0.05, 0.36, 0.30])
    socket = np.exp(-(((ax - 0.48) / 0.33) ** 2) - (((sy + 0.03) / 0.20) ** 2))
    tone *= 1 - 0.20 * socket[:, None] * np.array([0.7, 1.0, 0.9])
    tone *= (1 - _wrinkles(sx, sy, sz, strengths, look.wrinkles))[:, None] ** np.array([0.85, 1.0, 1.05])

    def cover(base, amount, paint_colour):
        return base + amount[:, None] * (paint_colour - base)

    if look.beard > 0:
        jaw = _smoothstep(-0.90, -1.15, sy + 0.30 * _smoothstep(0.75, 1.1, ax)) * _smoothstep(-1.2, -0.6, sz + 0.2)
        cheek = _smoothstep(0.42, 0.62, ax + 0.9 * (-1.05 - sy).clip(0)) + _smoothstep(-1.25, -1.36, sy)
        moustache = _smoothstep(-0.80, -0.93, sy + 0.35 * ax**2) * _smoothstep(0.52, 0.30, ax) * (sy > -1.14)
        neck = 1 - _smoothstep(-1.75, -2.0, sy)
        hairs = np.maximum(jaw * cheek.clip(0, 1) * neck.clip(0, 1), moustache) * (1 - lips[skin].clip(0, 1))
        grain = 0.85 + 0.3 * rng.random(len(skin), dtype=np.float32)
        tone = cover(tone, (hairs * look.beard * grain).clip(0, 0.95), look.hair)
    red = _smoothstep(0.15, 0.85, lips[skin])
    tone = cover(tone, 0.9 * red, look.lips)
    tone = cover(tone, lids[skin] * np.where(sy > 0.0, 0.75, 0.30), 0.12 * look.skin + 0.01)
    arch = 0.30 + look.brow_height + 0.13 * np.sin((ax - 0.1).clip(0, 1) * 2.9) - 0.11 * _smoothstep(0.55, 0.95, ax)
    half = 0.062 * look.brow_thickness * (1 - 0.65 * _smoothstep(0.45, 0.95, ax)) * _smoothstep(0.08, 0.22, ax)
    brow = _smoothstep(1.25, 0.55, np.abs(sy - arch) / half.clip(0.012)) * _smoothstep(0.10, 0.20, ax)
    brow *= (1 - _smoothstep(0.88, 0.96, ax)) * (0.95 + 0.05 * np.cos(ax * 70 + sy * 45))
    tone = cover(tone, brow * look.brow_amount, look.brow)
    if look.hair_amount > 0:
        strands = 0.75 + 0.35 * np.sin(37 * sx + 9 * mottle[skin]) * np.sin(11 * sz + 5 * sx)
        hair = _smoothstep(-0.06, 0.07, scalp[skin] - look.hair_line + 0.015 * mottle[skin]) * look.hair_amount
        hair *= region[skin] == names.index("skin")
        tone = cover(tone, hair, look.hair * strands[:, None])
        shine[skin] *= 1 - 0.7 * hair
    colour[skin] = tone
    shine[skin] *= (0.55 + 1.2 * red) * (1 - 0.8 * brow)

    for name in ("eye_left", "eye_right"):
        eye = np.flatnonzero(region == names.index(name))
        if not len(eye):
            continue
        r = np.hypot(x[eye], y[eye])  # angle from the gaze in radians; an iris is about 0.49 rad wide at its edge
        white = np.array([0.72, 0.68, 0.65]) * (1 - 0.25 * _smoothstep(0.6, 1.1, r))[:, None]
        rays = 1 + 0.20 * np.cos(np.arctan2(y[eye], x[eye]) * 22)
        iris = look.iris * (rays * (1 - 0.55 * _smoothstep(0.36, 0.47, r)))[:, None]
        white = cover(white, 1 - _smoothstep(0.44, 0.52, r), iris)
        colour[eye] = cover(white, 1 - _smoothstep(0.17, 0.22, r), np.array([0.01, 0.01, 0.01]))
        shine[eye] = 1.0
    flat = {"mouth": (0.16, 0.035, 0.035), "tongue": (0.42, 0.13, 0.13), "teeth": (0.74, 0.68, 0.58)}
    for name, rgb in flat.items():
        colour[region == names.index(name)] = rgb
    teeth = np.flatnonzero(region == names.index("teeth"))
    gaps = 1 - 0.35 * (0.5 + 0.5 * np.cos(x[teeth] * 2 * np.pi / 0.125)) ** 8
    colour[teeth] *= gaps[:, None]
    return colour, shine


def _background(size: int, look: Appearance, centre: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) linear RGB: a gradient, soft blobs or a coarse texture; long hair and clothes drawn flat."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size

    def shade():
        grey = rng.random() ** 1.8
        return (grey * (1 + 0.35 * rng.standard_normal(3))).clip(0, 1)

    first, second = shade(), shade()
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (0.5 + 0.5 * ((xs - 0.5) * np.cos(angle) + (ys - 0.5) * np.sin(angle))).clip(0, 1)
    picture = first + (second - first) * ramp[..., None]
    for _ in range(rng.integers(0, 6)):
        bx, by, radius = rng.random(), rng.random(), rng.uniform(0.05, 0.35)
        blob = _smoothstep(1, 1 - rng.uniform(0.05, 0.9), np.hypot(xs - bx, ys - by) / radius)
        picture += blob[..., None] * rng.uniform(0.2, 1) * (shade() - picture)
    if rng.random() < 0.4:
        cells = rng.integers(3, 24)
        coarse = rng.uniform(0.7, 1.3, (cells, cells))
        picture *= coarse[
            (ys * cells).astype(int).clip(0, cells - 1), (xs * cells).astype(int).clip(0, cells - 1), None
        ]
    u, v = (xs * size - centre[0]) / unit, -(ys * size - centre[1]) / unit  # eye distances from between the eyes
    if look.long_hair and look.hair_amount > 0:
        fall = np.abs(u) / np.where(v > 0, 1.55 * np.sqrt((1 - (v / 2.15) ** 2).clip(1e-4)), 1.55 + 0.06 * -v)
        strands = 0.8 + 0.2 * np.sin(u * 40 + np.sin(v * 3))
        amount = _smoothstep(1.04, 0.96, fall)
        picture += amount[..., None] * (look.hair * strands[..., None] * 0.7 - picture)
    shoulders = _smoothstep(-0.04, 0.04, -1.9 - 0.25 * np.abs(u) ** 1.5 - v)
    return picture + shoulders[..., None] * (look.clothes * 0.6 - picture)


def _glasses(identity: np.ndarray, rig: FaceRig) -> tuple[np.ndarray, np.ndarray]:
    """Spectacle frame as a mesh on this face: (W, 3) vertices, (T, 3) faces. Two rims and a bridge of flat bands."""
    turn = np.linspace(0, 2 * np.pi, 29)[:-1]
    shape = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    shape = np.sign(shape) * np.abs(shape) ** 0.75  # between an ellipse and a rectangle
    points, faces = [], []
    for region in ("eye_left", "eye_right"):
        middle = identity[rig.vertices_of(region)].mean(axis=0)
        middle = np.array([middle[0] * 1.02, middle[1] - 0.04, identity[rig.lids > 0.9, 2].max() + 0.20])
        start = len(points) * 28
        for factor in (0.92, 1.08):
            ring = np.concatenate([shape * np.array([0.40, 0.29]) * factor, np.zeros((28, 1))], axis=1)
            ring[:, 2] = -0.35 * np.abs(ring[:, 0] + middle[0]) ** 2 + 0.08
            points.append(middle * [1, 1, 1] + ring)
        for k in range(28):
            a, b, c, d = start + k, start + (k + 1) % 28, start + 28 + k, start + 28 + (k + 1) % 28
            faces += [(a, c, b), (b, c, d)]
    vertices = np.concatenate(points)
    z = vertices[:, 2].max()
    bridge = np.array([[-0.16, 0.05, z], [0.16, 0.05, z], [-0.16, 0.10, z], [0.16, 0.10, z]])
    base = len(vertices)
    faces += [(base, base + 1, base + 2), (base + 1, base + 3, base + 2)]
    return np.concatenate([vertices, bridge]), np.array(faces)


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    """(3, 3) rotation for row vectors of a head turned by `yaw` to its left and `pitch` upwards, in degrees."""
    a, b = np.deg2rad([yaw, pitch])
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return turn @ nod


def render(
    identity: np.ndarray,
    strengths: Mapping[str, float],
    look: Appearance,
    view: View,
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One face as (size, size, 3) linear RGB, float32, before degradation.

    Args:
        identity: (V, 3) neutral head in rig coordinates.
        strengths: movement by sided AU label, in [0, 1].
        rng: draws the background and the grain of hair only.
    """
    rig, paint = load_rig(), _paint()
    vertices = identity + rig.offsets(strengths)
    horizontal, vertical = view.gaze
    looks = {
        "eyeLookOutLeft": horizontal,
        "eyeLookInRight": horizontal,
        "eyeLookInLeft": -horizontal,
        "eyeLookOutRight": -horizontal,
        "eyeLookUpLeft": vertical,
        "eyeLookUpRight": vertical,
        "eyeLookDownLeft": -vertical,
        "eyeLookDownRight": -vertical,
    }
    for name, amount in looks.items():
        if amount > 0:
            vertices = vertices + amount * rig.shapes[rig.shape_names.index(name)]
    faces = rig.faces
    normals = vertex_normals(vertices, faces)
    if look.hair_amount > 0.5:
        lift = _smoothstep(0.0, 0.35, paint.scalp - look.hair_line) * paint.is_skin * look.hair_volume
        vertices = vertices + lift[:, None] * normals
    eyes = np.stack([vertices[rig.vertices_of(name)].mean(axis=0) for name in ("eye_left", "eye_right")])
    frame_start = len(faces)
    if look.glasses is not None:
        rims, rim_faces = _glasses(identity, rig)
        faces = np.concatenate([faces, rim_faces + len(vertices)])
        vertices = np.concatenate([vertices, rims])
        normals = np.concatenate([normals, np.tile([0.0, 0.5, 0.87], (len(rims), 1))])

    rotation = _rotation(view.yaw, view.pitch)
    turned, turned_normals, eyes = vertices @ rotation, normals @ rotation, eyes @ rotation

    # Camera: perspective, then shift, scale and tilt so that the eyes fall where the crop wants them.
    samples = size * SUPERSAMPLING
    nearness = 1 / (view.distance - turned[:, 2])
    flat = turned[:, :2] * nearness[:, None]
    eye_nearness = 1 / (view.distance - eyes[:, 2])
    eye_points = eyes[:, :2] * eye_nearness[:, None]
    middle = eye_points.mean(axis=0)
    unit = EYE_DISTANCE * samples * view.scale  # samples for one eye distance
    level = -np.arctan2(*(eye_points[0] - eye_points[1])[::-1]) + np.deg2rad(-view.roll)
    tilt = np.array([[np.cos(level), np.sin(level)], [-np.sin(level), np.cos(level)]])
    screen = (flat - middle) @ tilt * unit / eye_nearness.mean() * np.array([1, -1])
    centre = np.array([0.5 + view.shift[0], EYE_HEIGHT + view.shift[1]]) * samples
    screen = screen + centre
    pixels, triangles, weights = rasterise(screen, nearness, faces, samples)

    # Light at the vertices.
    azimuth, elevation = np.deg2rad([view.key_azimuth, view.key_elevation])
    key = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    facing = turned_normals @ key
    head = slice(0, len(identity))
    lit = np.ones(len(vertices), np.float32)
    lit[head] = _lit(turned, faces, key, SHADOW_SIZE, view.softness)[head]
    # Light bleeds round edges of skin, red most (wrapped diffuse); a larger lamp wraps further.
    wrap = np.array([0.22, 0.10, 0.07]) + 0.25 * view.softness
    diffuse = ((facing[:, None] + wrap) / (1 + wrap)).clip(0) * lit[:, None]
    light = view.key_strength * diffuse * np.array(view.key_colour)
    fill = np.array([-key[0], 0.25, 0.8])
    light += view.fill * ((turned_normals @ (fill / np.linalg.norm(fill)))[:, None] * 0.6 + 0.4).clip(0)
    occlusion = np.concatenate([paint.occlusion, np.ones(len(vertices) - len(identity))])[:, None]
    room = 0.72 + 0.28 * turned_normals[:, 1:2] + 0.12 * turned_normals[:, 0:1]  # brighter above, a little to one side
    light = light * (0.35 + 0.65 * occlusion) + view.ambient * room * occlusion * np.array(view.ambient_tint)
    half = key + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    gloss = (turned_normals @ half).clip(0)
    specular = view.key_strength * lit * (0.10 * gloss**14 + 0.25 * gloss**60) * (0.3 + look.oiliness)
    # The wet eye mirrors the lamp far more sharply.
    eye_vertices = np.concatenate([rig.vertices_of("eye_left"), rig.vertices_of("eye_right")])
    specular[eye_vertices] = 1.2 * view.key_strength * gloss[eye_vertices] ** 90
    light[np.setdiff1d(rig.vertices_of("mouth"), rig.vertices_of("skin"))] *= 0.35
    light[rig.vertices_of("tongue")] *= 0.5
    light[rig.vertices_of("teeth")] = light[rig.vertices_of("teeth")] * 0.2 + 0.55 * (view.ambient + view.fill)

    vertex_light = np.concatenate([light, specular[:, None]], axis=1).astype(np.float32)
    shaded = np.einsum("nk,nkc->nc", weights, vertex_light[faces[triangles]])
    colour = np.empty((len(pixels), 3), np.float32)
    on_head = triangles < frame_start
    surface, shine = _albedo(rig, paint, look, strengths, triangles[on_head], weights[on_head], rng)
    colour[on_head] = surface * shaded[on_head, :3] + (shine * shaded[on_head, 3])[:, None]
    if look.glasses is not None:
        colour[~on_head] = look.glasses * shaded[~on_head, :3] + 0.05
    picture = _background(samples, look, centre, unit, rng).astype(np.float32).reshape(-1, 3)
    picture[pixels] = colour
    picture = picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
    return picture * view.exposure
