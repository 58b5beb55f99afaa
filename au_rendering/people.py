"""Rendered faces with known action units: who is shown, how, and one picture of it.

Everything is a function of (seed, subject number, image number), so any picture can be drawn again alone and the
work can be split in any way. Skin tone is drawn independently of face shape, age and gender.

Looks vary widely (shading, light, camera, what is worn, what is behind), so that a model cannot learn one renderer's
style. The looks of `HELD_OUT` are never drawn unless asked for: the same people and faces in them show how far a model
carries beyond what it was trained on.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from datasets import List, Value
from PIL import Image, ImageFilter
from scipy.ndimage import shift

from au_llava.au_rendering.activations import label_values, sample_activations
from au_llava.au_rendering.paint import BEARDS, Appearance, Brow, RestLines, smoothstep
from au_llava.au_rendering.render import CLAY, View, render
from au_llava.au_rendering.rig import SHAPES, expand_sides, load_rig

FORMAT_NAMES = ("bp4d", "disfa", "feafa")
RECORD_JPEG_QUALITY = 95
RENDERED_METADATA = {  # columns beside the fixed ones of a record
    "skin_tone": Value("int64"),  # 1 to 10, the Monk scale
    "age": Value("float64"),
    "gender": Value("float64"),
    "yaw": Value("float64"),  # degrees, as are pitch and roll
    "pitch": Value("float64"),
    "roll": Value("float64"),
    "light": Value("string"),  # "hard", "soft", "environment"; "split" is held out
    "light_strength": Value("float64"),
    "shading": Value("string"),  # one of render.SHADINGS
    "distance": Value("float64"),  # of the camera, in eye distances
    "resolution": Value("float64"),  # share of the picture's pixels along a side
    "blur": Value("float64"),  # pixels of a picture of side 96
    "occlusion": Value("float64"),  # share of the picture that something before the face covers
    "held_out": Value("string"),  # one of HELD_OUT, "" for looks that training shows
    "landmarks": List(Value("float32")),  # (2, 64, 2) flat: the face and the same head at rest, in crop widths
}
HELD_OUT = ("toon shading", "split light", "wide angle", "unusual shape")

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
    gains: Mapping[str, float]  # how far each movement goes, by sided label: nobody moves like the mean
    manner: np.ndarray  # (V, 1) the same by place, smooth

    def movement(self, strengths: Mapping[str, float]) -> np.ndarray:
        """(V, 3) movement of this face. Strength is a share of the person's own full movement, as in FACS."""
        own = {label: strength * self.gains[label] for label, strength in strengths.items()}
        return load_rig().offsets(own) * self.manner


def subject_name(seed: int, number: int) -> str:
    """The record's name of a subject, such as "R0-000123"."""
    return f"R{seed}-{number:06d}"


def smooth_field(rng: np.random.Generator, amplitude: float, channels: int) -> np.ndarray:
    """(V, channels) smooth random values over the head with a standard deviation of about `amplitude`."""
    mean = load_rig().mean
    centres = rng.uniform([-1.2, -2.0, -0.5], [1.2, 1.2, 0.8], (8, 3))
    widths = rng.uniform(0.35, 0.9, 8)
    distance = ((mean[:, None] - centres) ** 2).sum(axis=2)
    return (np.exp(-distance / (2 * widths**2)) @ rng.normal(0, amplitude, (8, channels))).astype(np.float32)


def sample_subject(seed: int, number: int, held_out: str = "", skin_tone: int | None = None) -> Subject:
    """Subject `number` of the data set drawn with `seed`, or the same person with another head or skin.

    Args:
        held_out: "unusual shape" gives a head farther from the mean than anybody's otherwise.
        skin_tone: 1 to 10 on the Monk scale instead of the one that was drawn; hair, eyes and lips go with it.
    """
    person = _draw_subject(seed, number, held_out, None)
    if skin_tone is None:
        return person
    other = _draw_subject(seed, number, held_out, skin_tone).look
    colours = {name: getattr(other, name) for name in ("skin", "lips", "iris", "hair", "blush")}
    colours["brow"] = replace(person.look.brow, colour=other.brow.colour)
    return replace(person, skin_tone=skin_tone, look=replace(person.look, **colours))


def _draw_subject(seed: int, number: int, held_out: str, skin_tone: int | None) -> Subject:
    rng = np.random.default_rng([seed, number])
    rest_rng = np.random.default_rng([seed, number, 1])  # of its own: nothing else of a person depends on it
    rig = load_rig()
    age, gender, drawn_tone = rng.random(), rng.random(), int(rng.integers(1, 11))
    skin_tone = drawn_tone if skin_tone is None else skin_tone
    extent = rng.uniform(0.5, 1.0)  # of the deviation from the mean head
    modes = (1.35 if held_out == "unusual shape" else extent) * rig.sample_modes(age, gender, rng)
    rest = _draw_rest(rest_rng)
    identity = rig.identity(modes, warp=smooth_field(rng, 0.025, 3) + rig.offsets(rest))

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
    cap = rng.random(3) ** 2 * 0.8 if rng.random() < 0.12 else None
    look = Appearance(
        skin=skin.clip(0.005, 0.95),
        lips=(natural_lips + painted * (make_up - natural_lips)).clip(0.01, 0.9),
        iris=linear(iris_pool[rng.integers(len(iris_pool))]) * rng.uniform(0.8, 1.3),
        brow=_draw_brow((hair * rng.uniform(0.5, 1.0) + 0.12 * skin).clip(0, skin * 0.55), male, rest_rng),
        hair=hair,
        mottle=mottle / mottle.std(),
        sclera=rest_rng.uniform(0.55, 1.0),
        socket=rest_rng.uniform(0.0, 0.5),
        crease=(rest_rng.uniform(0, 0.8) * (rest_rng.random() < 0.8), rest_rng.normal(0.03, 0.03)),
        hair_amount=0.0 if bald else rng.uniform(0.85, 1.0),
        hair_volume=rng.uniform(0.02, 0.35),
        hair_line=rng.normal(0.05, 0.10) + (0.15 * age if male else 0) - (0.1 if cap is not None else 0),
        fringe=rest_rng.uniform(0.2, 0.75) if rest_rng.random() < 0.25 else 0.0,
        long_hair=bool(rng.random() < (0.08 if male else 0.65)),
        beard=beard,
        blush=rng.uniform(0.1, 0.9) * (1.1 - darkness),
        lines=_draw_lines(age, rest_rng),
        oiliness=rng.uniform(0.0, 0.9),
        glasses=linear(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))]) if rng.random() < 0.15 else None,
        clothes=rng.random(3) ** 2 * 0.7,
        furrows=0.0 if rng.random() < 0.15 else rng.uniform(0.2, 1.2),
        frame=(rng.uniform(0.88, 1.12), rng.uniform(0.05, 0.12), rng.uniform(0.5, 1.0)),
        beard_style=BEARDS[0] if rng.random() < 0.5 else BEARDS[rng.integers(1, len(BEARDS))],
        freckles=rng.uniform(0.2, 0.6) if skin_tone <= 6 and rng.random() < 0.15 else 0.0,
        eye_shadow=rng.random(3) ** 2 * 0.6 * skin.max() if rng.random() < 0.35 * gender else None,
        liner=rng.uniform(0.3, 0.95),
        cap=cap,
        clay=np.full(3, rng.uniform(0.25, 0.75)) * rng.uniform(0.85, 1.15, 3),
    )
    gains = {label: float(np.clip(rng.normal(1, 0.1), 0.8, 1.25)) for label in SHAPES}
    to_eyes = np.linalg.norm(np.abs(rig.mean) * [1, 1, 0] - [0.5, 0, 0], axis=1)
    away = smoothstep(0.3, 0.6, to_eyes)[:, None]  # lids that shut must meet
    manner = (1 + away * smooth_field(rng, 0.12, 1).clip(-0.3, 0.3)).astype(np.float32)
    gains |= {label: 1 - rest[label] for label in ("AU43L", "AU43R")}
    return Subject(subject_name(seed, number), age, gender, skin_tone, identity, look, gains, manner)


# How far faces at rest differ along each movement: standard deviation, as a share of the full movement. Chosen by eye,
# so that they differ as in photographs, and well below the weakest strength that is labelled (0.20).
_REST_SPREAD = {
    **{"AU1": 0.10, "AU2": 0.10, "AU4": 0.10, "AU6": 0.04, "AU7": 0.06, "AU9": 0.03, "AU12": 0.05, "AU14": 0.04},
    **{"AU15": 0.05, "AU17": 0.05, "AU18": 0.05, "AU20": 0.06, "AU24": 0.05, "AU43": 0.06},
}


def _draw_rest(rng: np.random.Generator) -> dict[str, float]:
    """How a face at rest stands along each movement, by sided label: either way, the two sides nearly alike."""
    rest = {}
    for name, spread in _REST_SPREAD.items():
        common = float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))
        for label in expand_sides({name: 0.0}):
            rest[label] = common + 0.25 * float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))
    return rest


def _draw_brow(colour: np.ndarray, male: bool, rng: np.random.Generator) -> Brow:
    faint = rng.random() < 0.12
    return Brow(
        colour=colour * rng.uniform(0.6, 1.4),
        amount=rng.uniform(0.15, 0.5) if faint else rng.uniform(0.55, 0.98),
        thickness=rng.uniform(0.8, 2.0) if male else rng.uniform(0.55, 1.5),
        height=float(np.clip(rng.normal(-0.02, 0.045), -0.12, 0.10)),
        arch=float(np.clip(rng.normal(0.9, 0.45), -0.2, 2.0)),
        slope=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
        uneven=float(np.clip(rng.normal(0, 0.012), -0.03, 0.03)),
        inner=rng.uniform(0.05, 0.20),
        outer=rng.uniform(0.80, 1.02),
    )


def _draw_lines(age: float, rng: np.random.Generator) -> RestLines:
    """Lines of age, each zone with a share of its own; some people have some of them at any age."""
    of_age = (age * rng.uniform(0.5, 1.0, 6)) ** 1.3
    at_any_age = rng.uniform(0, 0.6, 6) * (rng.random(6) < 0.25)
    return RestLines(*np.maximum(of_age, at_any_age).tolist(), spacing=rng.uniform(5.5, 10), phase=rng.random())


def _smooth(values: np.ndarray) -> np.ndarray:
    """One step of averaging per-vertex values (V,) over the mesh."""
    faces = load_rig().faces
    mean = values[faces].mean(axis=1)
    index = faces.ravel()
    total = np.bincount(index, np.repeat(mean, 3), minlength=len(values))
    return (total / np.bincount(index, minlength=len(values)).clip(1)).astype(np.float32)


def sample_view(rng: np.random.Generator, held_out: str = "") -> View:
    """Pose, light, camera and degradation of one picture; `held_out` replaces one of them by a look of `HELD_OUT`."""
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
        key_colour=(1 + warmth, 1.0, 1 - warmth),
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
    """3 to 7 broad lamps anywhere, more above than below; together about as bright as the other kinds of light."""
    count = int(rng.integers(3, 8))
    strengths = rng.exponential(1.0, count)
    strengths *= rng.uniform(0.9, 1.6) / strengths.sum()
    colours = strengths[:, None] * (1 + rng.normal(0, 0.15, (count, 3))).clip(0.4, 1.6)
    azimuths, heights = rng.uniform(-180, 180, count), rng.uniform(-0.4, 1, count)
    elevations = np.rad2deg(np.arcsin(heights))
    return tuple(
        (float(azimuth), float(elevation), tuple(colour))
        for azimuth, elevation, colour in zip(azimuths, elevations, colours, strict=True)
    )


def _sample_occluder(rng: np.random.Generator) -> tuple[float, float, float, float, float]:
    """A finger, a strand, a cup: an ellipse that covers up to 3.5 % of the picture."""
    length = rng.uniform(0.06, 0.3)
    width = min(rng.uniform(0.02, 0.08), 0.011 / length)
    return (*rng.random(2), length, width, rng.uniform(0, 180))


def _occlude(picture: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """Draw the view's occluder over a picture (size, size, 3) of sRGB in [0, 1], in place."""
    x, y, length, width, turn = view.occluder
    size = len(picture)
    down, right = (np.mgrid[0:size, 0:size] + 0.5) / size
    angle = np.deg2rad(turn)
    along = (right - x) * np.cos(angle) + (down - y) * np.sin(angle)
    across = (down - y) * np.cos(angle) - (right - x) * np.sin(angle)
    inside = smoothstep(1.15, 0.85, np.hypot(along / length, across / width))[..., None]
    colour = rng.random(3) * (0.7 + 0.3 * across[..., None] / width).clip(0, 1)
    picture += inside * (colour - picture)


def picture(
    subject: Subject, strengths: Mapping[str, float], view: View, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a subject: (size, size, 3) uint8 sRGB, and its landmarks (2, 64, 2) as `render` gives them.

    `rng` draws the background, the colour of an occluder and sensor noise.
    """
    # A camera meters partly on the face: very light and very dark skin end nearer to mid grey than they are.
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
        grey = developed.mean(axis=2, keepdims=True)
        developed = grey + view.saturation * (developed - grey)
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
    return picture(sample_subject(seed, subject), strengths, view or View(), size, rng)[0]


def sample_records(seed: int, number: int, images: int, size: int, held_out: bool = False) -> list[dict]:
    """The records (three formats an image) of one subject, without their `part`.

    With `held_out` the same person makes the same faces in one of the looks of `HELD_OUT`, by turns of the number.
    """
    family = HELD_OUT[number % len(HELD_OUT)] if held_out else ""
    subject = sample_subject(seed, number, family)
    records = []
    for index in range(images):
        rng = np.random.default_rng([seed, number, 1 + index])
        strengths, view = sample_activations(rng), sample_view(rng, family)
        pixels, landmarks = picture(subject, strengths, view, size, rng)
        content = jpeg_bytes(pixels)
        kind = "environment" if view.environment else "hard" if view.softness < 0.4 else "soft"
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
                    "light": "split" if family == "split light" else kind,
                    "light_strength": view.key_strength,
                    "shading": view.shading,
                    "distance": view.distance,
                    "resolution": view.resolution,
                    "blur": view.blur,
                    "occlusion": np.pi * view.occluder[2] * view.occluder[3] if view.occluder else 0.0,
                    "held_out": family,
                    "landmarks": landmarks.round(3).ravel().tolist(),
                }
            )
    return records
