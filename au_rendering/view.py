"""Camera, light and degradation of a picture, and how they are drawn at random."""

from dataclasses import dataclass, replace

import numpy as np

HELD_OUT = ("toon shading", "split light", "wide angle", "unusual shape")  # looks kept for tests
CLAY = 0.85  # share of the colors that clay shading removes


@dataclass(frozen=True)
class View:
    """Camera, light and degradation of one picture.

    Angles in degrees, from the subject's view: yaw to their left, pitch upward, roll (head tilt) to their left.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    distance: float = 11.0  # of the camera, in eye distances (about 6 cm)
    shift: tuple[float, float] = (0.0, 0.0)  # of the crop, in crop widths, right and down
    scale: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)  # to the subject's left and up, in [-1, 1]
    key_azimuth: float = -35.0  # degrees to the image's right
    key_elevation: float = 35.0
    key_strength: float = 1.0
    key_color: tuple[float, float, float] = (1.0, 0.97, 0.92)
    softness: float = 0.5  # 0 is a point with hard shadows, 1 a large soft box
    fill: float = 0.25
    ambient: float = 0.45
    ambient_tint: tuple[float, float, float] = (0.95, 1.0, 1.08)
    environment: tuple[tuple[float, float, tuple[float, float, float]], ...] = ()
    """Broad lamps all around, as (azimuth, elevation, color) in degrees; they replace fill and ambient light."""
    shading: str = "skin"
    """How the surface reflects light: "skin" is translucent with gloss and dark cavities; "matte" is plain Lambert;
    "clay" is like skin but nearly without colors, as a scan; and "toon" has flat bands of brightness, as a drawing."""
    exposure: float = 1.0
    occluder: tuple[float, float, float, float, float] | None = None
    """An opaque ellipse over the face: center right and down, half axes (all in crop widths), turn in degrees."""
    resolution: float = 1.0  # share of the picture's pixels, along a side, that the camera resolved
    blur: float = 0.0  # pixels of a picture of side 96
    motion: tuple[float, float] = (0.0, 0.0)  # camera shake, right and down, in pixels of a picture of side 96
    contrast: float = 1.0
    saturation: float = 1.0  # 0 is gray
    noise: float = 0.0  # standard deviation, of 255
    jpeg_quality: int | None = None


def sample_view(rng: np.random.Generator, held_out: str = "") -> View:
    """Draw pose, light, camera and degradation of one picture; `held_out` replaces one by a look of `HELD_OUT`."""
    kind = rng.choice(["hard", "soft", "environment"], p=[0.35, 0.3, 0.35])
    hard = kind == "hard"
    warmth = rng.normal(0, 0.09)
    tint = rng.normal(0, 0.06)
    view = View(
        yaw=float(np.clip(rng.normal(0, 14), -40, 40)),
        pitch=float(np.clip(rng.normal(0, 9), -25, 25)),
        roll=float(np.clip(rng.normal(0, 5), -15, 15)),
        distance=float(np.exp(rng.uniform(np.log(6), np.log(40)))),
        shift=tuple(rng.normal(0, 0.03, 2)),
        scale=float(np.clip(rng.normal(1, 0.09), 0.75, 1.25)),
        key_azimuth=float(rng.uniform(-75, 75)),
        key_elevation=float(rng.uniform(-5, 65)),
        key_strength=float(rng.uniform(0.7, 1.3) if hard else rng.uniform(0.1, 0.8)),
        key_color=(1 + warmth, 1.0, 1 - warmth),
        softness=float(rng.uniform(0, 0.35) if hard else rng.uniform(0.5, 1.0)),
        fill=float(rng.uniform(0.05, 0.45)),
        ambient=float(rng.uniform(0.12, 0.4) if hard else rng.uniform(0.35, 0.75)),
        ambient_tint=(1 + tint, 1.0, 1 - tint),
        environment=_sample_environment(rng) if kind == "environment" else (),
        shading=str(rng.choice(["skin", "matte", "clay"], p=[0.72, 0.18, 0.10])),
        exposure=float(np.exp(rng.normal(0, 0.2))),
        gaze=tuple(rng.normal(0, 0.25, 2).clip(-0.8, 0.8)),
        occluder=_sample_occluder(rng) if rng.random() < 0.12 else None,
        resolution=float(rng.uniform(0.35, 1.0)) if rng.random() < 0.25 else 1.0,
        blur=float(rng.choice([0.0, rng.uniform(0.2, 0.8)])),
        motion=tuple(rng.normal(0, 1.0, 2)) if rng.random() < 0.12 else (0.0, 0.0),
        contrast=float(np.clip(rng.normal(1, 0.12), 0.65, 1.35)),
        saturation=0.0 if rng.random() < 0.08 else float(np.clip(rng.normal(1, 0.2), 0.2, 1.6)),
        noise=float(rng.choice([rng.uniform(0, 2), rng.uniform(2, 8)])),
        jpeg_quality=int(rng.integers(25, 95)) if rng.random() < 0.5 else None,
    )
    if held_out == "toon shading":
        return replace(view, shading="toon")
    if held_out == "wide angle":  # an arm's length and nearer
        return replace(view, distance=3.2 + 1.3 * (view.scale - 0.75))
    if held_out == "split light":  # a reddish and a bluish lamp from the two sides, little else
        sides = ((-80.0, 15.0, (1.5, 0.45, 0.35)), (80.0, 15.0, (0.3, 0.5, 1.5)))
        return replace(view, environment=sides, key_strength=0.05, softness=1.0)
    return view


def _sample_environment(rng: np.random.Generator):
    """3 to 7 broad lamps all around, more above than below, together about as bright as the other kinds of light."""
    count = int(rng.integers(3, 8))
    strengths = rng.exponential(1.0, count)
    strengths *= rng.uniform(0.9, 1.6) / strengths.sum()
    colors = strengths[:, None] * (1 + rng.normal(0, 0.15, (count, 3))).clip(0.4, 1.6)
    azimuths, heights = rng.uniform(-180, 180, count), rng.uniform(-0.4, 1, count)
    elevations = np.rad2deg(np.arcsin(heights))
    return tuple(
        (float(azimuth), float(elevation), tuple(color))
        for azimuth, elevation, color in zip(azimuths, elevations, colors, strict=True)
    )


def _sample_occluder(rng: np.random.Generator) -> tuple[float, float, float, float, float]:
    """An ellipse like a finger, a strand of hair or a cup, which covers up to 3.5 % of the picture."""
    length = rng.uniform(0.06, 0.3)
    width = min(rng.uniform(0.02, 0.08), 0.011 / length)
    return (*rng.random(2), length, width, rng.uniform(0, 180))
