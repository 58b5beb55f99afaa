"""Renders a face with an appearance in a view to a picture in linear light. NumPy and SciPy on the CPU.

Unusual choices
- Light is computed at the vertices (one to two pixels apart) and interpolated; color is computed at the samples
  (`paint.py`).
- The picture is sampled twice in each direction and averaged in linear light.
- The crop is aligned by the eyes, as in AU pipelines; tilt, shift and scale of the view are added afterward.
- There are several styles (`View.shading`, and light from one lamp or from all around), so that a model trained on the
  pictures cannot rely on the look of one renderer.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
from scipy.sparse import csr_array

from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT
from au_llava.au_rendering.appearance import Appearance
from au_llava.au_rendering.masks import smoothstep
from au_llava.au_rendering.paint import paint_map, sample_colors
from au_llava.au_rendering.raster import light_reach, rasterize, vertex_normals
from au_llava.au_rendering.rig import load_rig
from au_llava.au_rendering.scene import background, glasses_mesh
from au_llava.au_rendering.view import CLAY, View

SUPERSAMPLING = 2
TOON_STEP = 0.3  # height of a band of toon shading, in units of light


@cache
def _vertex_sets() -> dict[str, np.ndarray]:
    """Vertex numbers of the parts that are lit in their own way."""
    rig = load_rig()
    sets = {name: rig.vertices_of(name) for name in ("eye_left", "eye_right", "tongue", "teeth")}
    sets["mouth"] = np.setdiff1d(rig.vertices_of("mouth"), rig.vertices_of("skin"))
    sets["eyes"] = np.concatenate([sets["eye_left"], sets["eye_right"]])
    return sets


def _turn_eyes(gaze: tuple[float, float]) -> np.ndarray:
    """(V, 3) movement of eyeballs and lids for a `gaze` to the subject's left and up."""
    rig = load_rig()
    to_left, upwards = gaze
    amounts = {
        "eyeLookOutLeft": to_left,
        "eyeLookInRight": to_left,
        "eyeLookInLeft": -to_left,
        "eyeLookOutRight": -to_left,
        "eyeLookUpLeft": upwards,
        "eyeLookUpRight": upwards,
        "eyeLookDownLeft": -upwards,
        "eyeLookDownRight": -upwards,
    }
    movement = np.zeros_like(rig.mean)
    for name, amount in amounts.items():
        if amount > 0:
            movement += np.float32(amount) * rig.shapes[rig.shape_names.index(name)]
    return movement


def head_rotation(yaw: float, pitch: float) -> np.ndarray:
    """(3, 3) for row vectors: turn a head by `yaw` to its own left and then `pitch` upward, in degrees."""
    a, b = np.deg2rad([yaw, pitch])
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return (turn @ nod).astype(np.float32)


def project(vertices: np.ndarray, eyes: np.ndarray, view: View, size: int):
    """Perspective and the eye-aligned crop: (V, 2) pixels, (V,) nearness, the eyes' midpoint, pixels per unit."""

    def perspective(points):
        nearness = 1 / (view.distance - points[:, 2])
        return points[:, :2] * nearness[:, None], nearness

    flat, nearness = perspective(vertices)
    eye_points, eye_nearness = perspective(eyes)
    unit = EYE_DISTANCE * size * view.scale
    turn = _in_plane(eye_points, view)
    center = np.array([0.5 + view.shift[0], EYE_HEIGHT + view.shift[1]]) * size
    pixels = (flat - eye_points.mean(axis=0)) @ turn * (unit / eye_nearness.mean()) * [1, -1] + center
    return pixels, nearness, center, unit


def _in_plane(eye_points: np.ndarray, view: View) -> np.ndarray:
    """(2, 2) for row vectors (x, y), y up: level the eyes (2, 2), then tilt by the view's roll."""
    across = eye_points[0] - eye_points[1]
    tilt = -np.arctan2(across[1], across[0]) - np.deg2rad(view.roll)
    return np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])


def place_points(identity: np.ndarray, movement: np.ndarray, view: View, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the points of a face lie in a picture by `render`, and how the head is turned there.

    Args:
        identity, movement, view: as in `render`.

    Returns:
        (5, 2) pixels, in the order of `au_faces.points.TEMPLATE`, an eye being the middle of its corners; and the
        head's rotation (3, 3), whose columns point to its left, up and ahead (x right, y up, z to the viewer).
    """
    rig = load_rig()
    rotation = head_rotation(view.yaw, view.pitch)
    vertices = (identity + movement + _turn_eyes(view.gaze)).astype(np.float32) @ rotation
    eyes = np.stack([vertices[_vertex_sets()[name]].mean(axis=0) for name in ("eye_left", "eye_right")])
    corners = project(vertices[rig.face_points], eyes, view, size)[0]
    points = np.concatenate([corners[:4].reshape(2, 2, 2).mean(axis=1), corners[4:]])
    in_picture = np.eye(3)
    nearness = 1 / (view.distance - eyes[:, 2:])
    in_picture[:2, :2] = _in_plane(eyes[:, :2] * nearness, view)
    return points, (rotation @ in_picture).T


def _vertex_light(
    vertices: np.ndarray,
    normals: np.ndarray,
    faces: np.ndarray,
    oiliness: float,
    opening: float,
    tongue: float,
    view: View,
):
    """(V, 4) light that the rig's vertices return: diffuse RGB, to be multiplied by their color, and mirrored.

    Args:
        opening, tongue: how far the lips are parted and the tongue is out, 0 to 1.
    """
    count = len(normals)
    sets = _vertex_sets()
    occlusion = 1.0 if view.shading == "matte" else paint_map().occlusion[:, None]
    azimuth, elevation = np.deg2rad([view.key_azimuth, view.key_elevation])
    key = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    lit = light_reach(vertices, faces, key, view.softness)[:count]
    # Light bleeds round edges of skin, red most (wrapped diffuse); a larger lamp reaches further round.
    bleeding = np.zeros(3, np.float32) if view.shading == "matte" else np.array([0.22, 0.10, 0.07], np.float32)
    wrap = bleeding + np.float32(0.25 * view.softness)
    direct = ((normals @ key.astype(np.float32))[:, None] + wrap) / (1 + wrap)
    light = view.key_strength * np.asarray(view.key_color, np.float32) * direct.clip(0) * lit[:, None]
    if view.environment:
        azimuths, elevations = np.deg2rad([lamp[:2] for lamp in view.environment]).T
        flat = np.cos(elevations)
        lamps = np.stack([np.sin(azimuths) * flat, np.sin(elevations), np.cos(azimuths) * flat]).astype(np.float32)
        around = (0.5 + 0.5 * normals @ lamps) ** 2 @ np.array([lamp[2] for lamp in view.environment], np.float32)
    else:
        fill = np.array([-key[0], 0.25, 0.8])
        towards = (normals @ (fill / np.linalg.norm(fill)).astype(np.float32))[:, None]
        light += view.fill * (0.4 + 0.6 * towards).clip(0)
        room = 0.72 + 0.28 * normals[:, 1:2] + 0.12 * normals[:, 0:1]  # brighter above, a little to one side
        around = view.ambient * room * np.asarray(view.ambient_tint)
    light = light * (0.35 + 0.65 * occlusion) + around * occlusion
    half = key + np.array([0, 0, 1])
    gloss = (normals @ (half / np.linalg.norm(half)).astype(np.float32)).clip(0)
    mirrored = view.key_strength * lit * (0.10 * gloss**14 + 0.25 * gloss**60) * (0.3 + oiliness)
    mirrored[sets["eyes"]] = 1.2 * view.key_strength * gloss[sets["eyes"]] ** 90  # wet, so far sharper
    # Light enters the mouth as far as the lips let it.
    light[sets["mouth"]] *= 0.35
    light[sets["tongue"]] *= 0.2 + 0.3 * opening + 0.5 * tongue
    even = 0.55 * (float(np.mean(around)) if view.environment else view.ambient + view.fill)
    light[sets["teeth"]] = (0.2 * light[sets["teeth"]] + even) * (0.12 + 0.88 * opening)
    if view.shading == "matte":
        mirrored[:] = 0
    if view.shading == "toon":
        level = light.mean(axis=1, keepdims=True).clip(1e-3)
        light *= (np.floor(level / TOON_STEP) + 0.5) * TOON_STEP / level
    return np.concatenate([light, mirrored[:, None]], axis=1)


def render(
    identity: np.ndarray,
    movement: np.ndarray,
    strengths: Mapping[str, float],
    look: Appearance,
    view: View,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Render one face, before degradation.

    Args:
        identity: (V, 3) neutral head in rig coordinates.
        movement: (V, 3) of the face.
        strengths: by sided AU label, in [0, 1], for the furrows that come with the movement.
        rng: draws the background and the grain of the beard only.

    Returns:
        (size, size, 3) linear RGB, float32; and (2, L, 2) positions of `FaceRig.landmarks`, right and down in crop
        widths, of this face and of the same head at rest in the same crop.
    """
    rig, paint = load_rig(), paint_map()
    vertices = (identity + movement + _turn_eyes(view.gaze)).astype(np.float32)
    opening = float(smoothstep(0.0, 0.06, np.array(rig.lip_gap(vertices) - rig.lip_gap(identity))))
    normals = vertex_normals(vertices, rig.faces)
    if look.hair_amount > 0:
        lift = smoothstep(0.0, 0.35, paint.scalp - look.hair_line) * paint.is_skin * look.hair_volume
        vertices = vertices + lift[:, None].astype(np.float32) * normals
    eyes = np.stack([vertices[_vertex_sets()[name]].mean(axis=0) for name in ("eye_left", "eye_right")])
    faces = rig.faces
    if look.glasses is not None:
        rims, rim_faces = glasses_mesh(identity, look.frame, rig)
        faces = np.concatenate([faces, rim_faces + len(vertices)])
        vertices = np.concatenate([vertices, rims.astype(np.float32)])
    rotation = head_rotation(view.yaw, view.pitch)
    vertices, normals, eyes = vertices @ rotation, normals @ rotation, eyes @ rotation

    samples = size * SUPERSAMPLING
    points, nearness, center, unit = project(vertices, eyes, view, samples)
    at_rest = project(identity[rig.landmarks] @ rotation, eyes, view, samples)[0]
    landmarks = np.stack([points[rig.landmarks], at_rest]) / samples
    pixels, triangles, weights = rasterize(points, nearness, faces, samples)
    light = _vertex_light(vertices, normals, faces, look.oiliness, opening, strengths.get("AD19", 0.0), view)
    picture = background(size, look, center / SUPERSAMPLING, unit / SUPERSAMPLING, rng)
    picture = picture.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1).reshape(-1, 3)

    if look.glasses is not None:
        on_frame = triangles >= len(rig.faces)
        picture[pixels[on_frame]] = look.glasses * (view.key_strength + view.ambient) + 0.03
        pixels, triangles, weights = pixels[~on_frame], triangles[~on_frame], weights[~on_frame]
    attributes = np.column_stack([paint.coordinates, rig.lips, rig.lids, look.mottle, paint.scalp, light])  # (V, 11)
    corners = rig.faces[triangles].ravel()
    interpolate = csr_array((weights.ravel(), corners, np.arange(0, len(corners) + 1, 3)), (len(pixels), len(identity)))
    attributes = np.ascontiguousarray((interpolate @ attributes.astype(np.float32)).T)  # (11, N)
    color, shine = sample_colors(look, strengths, rig.regions[triangles], attributes[:7], rng)
    if view.shading == "clay":
        color += CLAY * (look.clay[:, None] - color)
    picture[pixels] = (color * attributes[7:10] + shine * attributes[10]).T
    picture = picture.reshape(samples, samples, 3)
    steps = range(SUPERSAMPLING)
    total = sum(picture[row::SUPERSAMPLING, column::SUPERSAMPLING] for row in steps for column in steps)
    return total * np.float32(view.exposure / SUPERSAMPLING**2), landmarks.astype(np.float32)


def draw_values(values: np.ndarray, identity: np.ndarray, movement: np.ndarray, view: View, size: int) -> np.ndarray:
    """Draw a number per vertex instead of light, to see what is where in a picture by `render`.

    Args:
        values: (V,) a number per vertex.
        identity, movement, view: as in `render`; hair and glasses are left out.

    Returns:
        (size, size) float32, interpolated over the visible surface; 0 where there is no head.
    """
    rig = load_rig()
    rotation = head_rotation(view.yaw, view.pitch)
    vertices = (identity + movement + _turn_eyes(view.gaze)).astype(np.float32) @ rotation
    eyes = np.stack([vertices[_vertex_sets()[name]].mean(axis=0) for name in ("eye_left", "eye_right")])
    points, nearness, _, _ = project(vertices, eyes, view, size)
    pixels, triangles, weights = rasterize(points, nearness, rig.faces, size)
    drawn = np.zeros(size * size, np.float32)
    drawn[pixels] = (values[rig.faces[triangles]] * weights).sum(axis=1)
    return drawn.reshape(size, size)
