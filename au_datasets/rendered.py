"""Rendered faces with known action units: who is shown, how, and one picture of it.

Everything is a function of (seed, subject number, image number), so any picture can be drawn again alone and the
work can be split in any way. Skin tone is drawn independently of face shape, age and gender.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from .activations import label_values, sample_activations
from .face_rig import expand_sides, load_rig
from .paint import Appearance
from .render import View, render

FORMAT_NAMES = ("bp4d", "disfa", "feafa")
RECORD_JPEG_QUALITY = 95
RENDERED_METADATA = {  # column -> type, beside the fixed columns of a record
    "skin_tone": "int64",
    "age": "float64",
    "gender": "float64",
    "yaw": "float64",
    "pitch": "float64",
    "roll": "float64",
    "light": "string",
    "light_strength": "float64",
}

# The ten-step Monk Skin Tone scale (https://skintone.google, sRGB of its swatches), lightest first.
MONK_SCALE = ["f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420"]
IRIS_COLOURS = ["3b2314", "54331b", "6b4a26", "7b6b3a", "5f7a55", "5d7f99", "7f9bb0", "3f5f80"]
HAIR_COLOURS = ["0b0908", "16100c", "2b1b12", "452a18", "6b4526", "9a7040", "b8935a", "7a3a1c", "8a8580", "c9c5be"]


def linear(colour: str) -> np.ndarray:
    """(3,) linear RGB in [0, 1] of a hexadecimal sRGB colour."""
    value = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def encode_srgb(picture: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] of linear light, with a soft shoulder instead of a hard clip above 0.8."""
    picture = picture.copy()
    bright = picture > 0.8
    picture[bright] = 0.8 + 0.2 * np.tanh((picture[bright] - 0.8) / 0.2 * 0.7)
    picture = picture.clip(0, 1)
    return np.where(picture <= 0.0031308, 12.92 * picture, 1.055 * picture ** (1 / 2.4) - 0.055)


@dataclass(frozen=True)
class Subject:
    """One made-up person. `identity` (V, 3) is the neutral head."""

    name: str
    age: float  # 0 is 25 years, 1 is 90
    gender: float  # 0 is male, 1 female, by the shape of the face alone
    skin_tone: int  # 1 to 10, the Monk scale
    identity: np.ndarray
    look: Appearance


def subject_name(seed: int, number: int) -> str:
    """The record's name of a subject, such as "R0-000123"."""
    return f"R{seed}-{number:06d}"


def sample_subject(seed: int, number: int) -> Subject:
    """Subject `number` of the data set drawn with `seed`."""
    rng = np.random.default_rng([seed, number])
    rig = load_rig()
    age, gender, skin_tone = rng.random(), rng.random(), int(rng.integers(1, 11))
    identity = rig.identity(0.75 * rig.sample_modes(age, gender, rng))

    darkness = skin_tone / 10
    # The swatches are flat colours; skin that light passes through looks warmer, deep tones most.
    warmth = np.array([1.06, 0.89, 0.79]) + darkness**3 * np.array([0.45, 0.10, 0.0])
    skin = linear(MONK_SCALE[skin_tone - 1]) * warmth * rng.normal(1, 0.05) * rng.normal(1, 0.02, 3)
    dark_pool = HAIR_COLOURS if skin_tone <= 5 else HAIR_COLOURS[:4]
    hair = linear(dark_pool[rng.integers(len(dark_pool))]) * rng.normal(1, 0.1)
    if rng.random() < 0.7 * age**2:
        hair = linear(HAIR_COLOURS[-1 - int(rng.integers(2))])
    iris_pool = IRIS_COLOURS if skin_tone <= 6 else IRIS_COLOURS[:4]
    natural_lips = skin * np.array([0.86, 0.50, 0.50]) + np.array([0.035, 0.0, 0.004])
    make_up = linear(f"{rng.integers(110, 200):02x}{rng.integers(15, 80):02x}{rng.integers(30, 90):02x}")
    painted = rng.uniform(0.5, 0.95) if rng.random() < 0.45 * gender else 0.0
    mottle = rng.standard_normal(len(identity)).astype(np.float32)
    for _ in range(6):
        mottle = _smooth(mottle)
    male = gender < 0.5
    beard_kind = rng.random()
    beard = 0.0 if not male or beard_kind < 0.45 else rng.uniform(0.15, 0.4) if beard_kind < 0.75 else 0.78
    bald = male and rng.random() < 0.12 + 0.25 * age
    look = Appearance(
        skin=skin.clip(0.005, 0.95),
        lips=(natural_lips + painted * (make_up - natural_lips)).clip(0.01, 0.9),
        iris=linear(iris_pool[rng.integers(len(iris_pool))]) * rng.uniform(0.8, 1.3),
        brow=(hair * rng.uniform(0.5, 1.0) + 0.12 * skin).clip(0, skin * 0.55),
        hair=hair,
        mottle=mottle / mottle.std(),
        brow_thickness=rng.uniform(0.65, 1.1) if not male else rng.uniform(0.85, 1.5),
        brow_height=rng.normal(0, 0.02),
        brow_amount=rng.uniform(0.65, 0.95),
        hair_amount=0.0 if bald else rng.uniform(0.85, 1.0),
        hair_volume=rng.uniform(0.02, 0.35),
        hair_line=rng.normal(0.05, 0.10) + (0.15 * age if male else 0),
        long_hair=bool(rng.random() < (0.08 if male else 0.65)),
        beard=beard,
        blush=rng.uniform(0.1, 0.9) * (1.1 - darkness),
        wrinkles=(age * rng.uniform(0.5, 1.0)) ** 1.3,
        oiliness=rng.uniform(0.0, 0.9),
        glasses=linear(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))]) if rng.random() < 0.12 else None,
        clothes=rng.random(3) ** 2 * 0.7,
    )
    return Subject(subject_name(seed, number), age, gender, skin_tone, identity, look)


def _smooth(values: np.ndarray) -> np.ndarray:
    """One step of averaging per-vertex values (V,) over the mesh."""
    faces = load_rig().faces
    mean = values[faces].mean(axis=1)
    index = faces.ravel()
    total = np.bincount(index, np.repeat(mean, 3), minlength=len(values))
    return (total / np.bincount(index, minlength=len(values)).clip(1)).astype(np.float32)


def sample_view(rng: np.random.Generator) -> View:
    """Pose, light, camera and degradation of one picture."""
    hard = rng.random() < 0.45
    warmth = rng.normal(0, 0.09)
    tint = rng.normal(0, 0.06)
    return View(
        yaw=float(np.clip(rng.normal(0, 12), -35, 35)),
        pitch=float(np.clip(rng.normal(0, 8), -22, 22)),
        roll=float(np.clip(rng.normal(0, 5), -15, 15)),
        distance=float(rng.uniform(8, 20)),
        shift=tuple(rng.normal(0, 0.025, 2)),
        scale=float(np.clip(rng.normal(1, 0.08), 0.8, 1.2)),
        key_azimuth=float(rng.uniform(-75, 75)),
        key_elevation=float(rng.uniform(-5, 65)),
        key_strength=float(rng.uniform(0.7, 1.3) if hard else rng.uniform(0.25, 0.8)),
        key_colour=(1 + warmth, 1.0, 1 - warmth),
        softness=float(rng.uniform(0, 0.35) if hard else rng.uniform(0.5, 1.0)),
        fill=float(rng.uniform(0.05, 0.45)),
        ambient=float(rng.uniform(0.12, 0.4) if hard else rng.uniform(0.35, 0.75)),
        ambient_tint=(1 + tint, 1.0, 1 - tint),
        exposure=float(np.exp(rng.normal(0, 0.18))),
        gaze=tuple(rng.normal(0, 0.25, 2).clip(-0.8, 0.8)),
        blur=float(rng.choice([0.0, rng.uniform(0.2, 0.65)])),
        noise=float(rng.choice([rng.uniform(0, 2), rng.uniform(2, 8)])),
        jpeg_quality=int(rng.integers(35, 95)) if rng.random() < 0.5 else None,
    )


def picture(subject: Subject, strengths: Mapping[str, float], view: View, size: int, rng) -> np.ndarray:
    """(size, size, 3) uint8 sRGB picture of a subject; `rng` draws background and sensor noise."""
    # A camera meters partly on the face: very light and very dark skin end nearer to mid grey than they are.
    metered = (0.42 / (subject.look.skin.mean() + 0.05)) ** 0.55
    lamps = 0.75 * view.key_strength + view.ambient + 0.6 * view.fill
    view = replace(view, exposure=view.exposure * metered * (1.05 / lamps) ** 0.7)
    light = render(subject.identity, strengths, subject.look, view, size, rng)
    image = Image.fromarray((255 * encode_srgb(light) + 0.5).astype(np.uint8))
    if view.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(view.blur * size / 96))
    if view.noise > 0:
        grain = rng.standard_normal((size, size, 3), dtype=np.float32) * view.noise
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    if view.jpeg_quality is not None:
        image = Image.open(io.BytesIO(jpeg_bytes(image, view.jpeg_quality)))
    return np.asarray(image.convert("RGB"))


def jpeg_bytes(image: Image.Image | np.ndarray, quality: int = RECORD_JPEG_QUALITY) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def render_face(
    values: Mapping[str, float],
    subject: int = 0,
    seed: int = 0,
    size: int = 96,
    view: View | None = None,
) -> np.ndarray:
    """A face that shows the given AUs: (size, size, 3) uint8 RGB.

    Args:
        values: strength in [0, 1] by AU label, sided ("AU12L") or not ("AU12" moves both sides); the rest is at rest.
            No combination is refused, and AU26 given alone parts the lips without AU25 being named.
        subject: number of the made-up person among those of `seed`.
        view: pose, light and degradation; frontal, evenly lit and clean by default. `View(yaw=20)` turns the head.

    Raises:
        ValueError: for a label that the rig cannot move or a strength outside [0, 1].
    """
    strengths = expand_sides(values)
    rng = np.random.default_rng([seed, subject, 0])
    return picture(sample_subject(seed, subject), strengths, view or View(), size, rng)


def sample_records(subject: Subject, seed: int, number: int, images: int, size: int) -> list[dict]:
    """The records (three formats an image) of one subject, without their `part`."""
    records = []
    for index in range(images):
        rng = np.random.default_rng([seed, number, 1 + index])
        strengths, view = sample_activations(rng), sample_view(rng)
        content = jpeg_bytes(picture(subject, strengths, view, size, rng))
        for name in FORMAT_NAMES:
            records.append(
                {
                    "image": {"bytes": content, "path": None},
                    "dataset": "rendered",
                    "subject": subject.name,
                    "clip": "0",
                    "frame": index,
                    "format": name,
                    "values": label_values(strengths, name),
                    "skin_tone": subject.skin_tone,
                    "age": subject.age,
                    "gender": subject.gender,
                    "yaw": view.yaw,
                    "pitch": view.pitch,
                    "roll": view.roll,
                    "light": "hard" if view.softness < 0.4 else "soft",
                    "light_strength": view.key_strength,
                }
            )
    return records
