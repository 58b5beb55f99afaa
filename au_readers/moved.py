"""Photographs of faces at rest, warped by the movement that known action units make on the face rig.

Photographs with coded action units need an agreement, and the weak teacher knows little about brows. But warping a face
at rest shows what a known movement looks like on real skin. ROOT holds faces without labels, made by `prepare_data.py
fairface` or `unlabelled`; the faces of its training part are warped. MediaPipe measures what is at rest and where brows
and mouth are (`pip install "au-llava[teacher]"`).

The strengths are stored as weak values, for the regions at rest only. They are not labels: nobody knows whether a face
was fully at rest, and a warp adds neither furrows nor teeth. Every region is also moved a little at random, since faces
at rest differ, and many only so: a model must not learn that warped means moved.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from scipy.ndimage import gaussian_filter

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import Defects, load_records
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT
from au_llava.au_faces.landmarks import Measured, side_of
from au_llava.au_readers.faces import NOTE, UNLABELLED_METADATA, check_teacher, face_records, landmarker
from au_llava.au_readers.source import Clip, Picture, Source
from au_llava.au_rendering.activations import label_values
from au_llava.au_rendering.render import draw_values, head_rotation, project
from au_llava.au_rendering.rig import expand_sides, load_rig
from au_llava.au_rendering.view import View

STRONGEST_TURN = 22.0  # degrees of yaw and pitch; beyond it the warp stretches the hidden half of the face
# A region counts as at rest if these blendshapes (means of both sides) are at most this strong. Chosen by looking at
# photographs of FairFace's training part.
AT_REST = {
    "brows": {"browInnerUp": 0.3, "browOuterUp": 0.15, "browDown": 0.3},
    "eyes": {"eyeSquint": 0.45, "eyeBlink": 0.4, "mouthSmile": 0.15},
    "mouth": {
        **{"mouthSmile": 0.1, "mouthFrown": 0.1, "mouthPucker": 0.4, "mouthLowerDown": 0.05, "mouthUpperUp": 0.08},
        "jawOpen": 0.05,
    },
}
# The AUs that are known once a region at rest was moved, or left as it was. AU9 moves both brows and mouth.
KNOWN = {
    ("brows",): ("AU1", "AU2", "AU4"),
    ("eyes",): ("AU6", "AU7"),
    ("mouth",): ("AU10", "AU12", "AU15", "AU16", "AU17", "AU20", "AU25", "AU26"),
    ("brows", "mouth"): ("AU9",),
}
# Probability of each movement of a region; otherwise it stays at rest. A warp cannot open mouths or eyes.
MOVEMENTS = {
    ("brows",): {("AU1",): 0.12, ("AU2",): 0.13, ("AU1", "AU2"): 0.17, ("AU4",): 0.20, ("AU1", "AU4"): 0.08},
    ("eyes",): {("AU6",): 0.08, ("AU7",): 0.12},
    ("mouth",): {
        **{("AU12",): 0.15, ("AU15",): 0.10, ("AU17",): 0.10, ("AU15", "AU17"): 0.07, ("AU20",): 0.07},
        ("AU6", "AU12"): 0.06,
    },
    ("brows", "mouth"): {("AU9",): 0.06},
}
WEAKEST = 0.35  # of the strengths drawn: weaker movements look like faces at rest
ONE_SIDED = 0.06  # share of sides that do not move
JITTER = 0.06  # standard deviation of the movement of faces that stay at rest, as a share of the full movement
JITTERED = ("AU1", "AU2", "AU4", "AU7", "AU12", "AU15", "AU17")

# Points whose heights are matched between rig and photograph: of the mean face (x, y), and MediaPipe's landmarks
# (https://github.com/google-ai-edge/mediapipe, face_geometry's canonical face model).
ANCHORS = (
    (((0.5, 0.36), (-0.5, 0.36)), (66, 105, 63, 107, 65, 52, 53, 55, 296, 334, 293, 336, 295, 282, 283, 285)),  # brows
    (((0.0, -0.72),), (2,)),  # below the nose
    (((0.0, -1.13),), (13, 14)),  # where the lips meet
    (((0.0, -1.62),), (152,)),  # chin
)
FOREHEAD = 0.6  # eye distances above the brows up to which the forehead moves with them


def open_moved(root: Path, per_face: int, seed: int) -> Source:
    """Moved copies of the training faces in `root`, a folder of records without labels.

    Args:
        per_face: moved pictures of each face that has a region at rest.
        seed: draws the movements.

    Raises:
        FileNotFoundError: `root` holds no records.
        ValueError: it holds labels or no margin, or MediaPipe cannot be used.
    """
    records = load_records(root, labelled=False)
    if "margin" not in records.column_names:
        raise ValueError(f"{root} holds no faces without labels: make them with prepare_data.py fairface or unlabelled")
    check_teacher("mediapipe")
    clips = []
    for number, shard in enumerate(sorted(root.glob("data-train-*.parquet"))):
        subjects = pq.read_table(shard, columns=["subject"])["subject"].to_pylist()
        clips += [Clip(subject, f"moved-{seed}-{number}", (shard,)) for subject in dict.fromkeys(subjects)]
    [dataset] = records.unique("dataset")
    return Source(
        dataset=dataset,
        root=root,
        layout="faces without labels",
        clips=clips,
        read=partial(read_clip, dataset, per_face, seed),
        clips_per_shard=1000,
        metadata=UNLABELLED_METADATA,
        notes=(NOTE, "these photographs are warped, and only what was at rest is known"),
        crops=True,
    )


@lru_cache(maxsize=1)  # the clips of one file follow each other
def _faces_of(shard: Path) -> dict[str, list[dict]]:
    """Subject -> its pictures, one row each."""
    columns = ["image", "subject", "clip", "frame", "format", "margin"]
    faces: dict[str, list[dict]] = {}
    for row in pq.read_table(shard, columns=columns).to_pylist():
        if row["format"] == MAIN_FORMATS[0]:
            faces.setdefault(row["subject"], []).append(row)
    return faces


def read_clip(dataset: str, per_face: int, seed: int, clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of the moved pictures of one person."""
    count = 0
    for row in _faces_of(clip.labels[0])[clip.subject]:
        where = f"{clip.subject} {row['clip']} {row['frame']}"
        image = open_image_of(row)
        measured = landmarker()(image)
        if measured is None or max(abs(measured.yaw), abs(measured.pitch)) > STRONGEST_TURN:
            defects.add("faces that are not seen from the front, left out", where)
            continue
        regions = regions_at_rest(measured.blendshapes)
        if not {"brows", "mouth"} & regions:
            defects.add("faces that are not at rest, left out", where)
            continue
        rng = np.random.default_rng([seed, zlib.crc32(where.encode())])
        for _ in range(per_face):
            strengths = draw_strengths(regions, rng)
            moved = move_face(image, measured, row["margin"], _jittered(strengths, rng))
            if moved is None:
                defects.add("faces whose landmarks are out of order, left out", where)
                break
            count += 1
            crop, weak = Picture(where, frame=moved), known_values(regions, strengths)
            yield from face_records(dataset, clip, count, crop, row["margin"], weak)


def open_image_of(row: Mapping) -> Image.Image:
    """The RGB image of a record's row."""
    return Picture(row["image"]["path"] or row["subject"], content=row["image"]["bytes"]).open()


def regions_at_rest(blendshapes: np.ndarray) -> set[str]:
    """The regions of `AT_REST` that show no movement in blendshapes (52,)."""
    return {
        region
        for region, bounds in AT_REST.items()
        if all(side_of(blendshapes[None], name)[0] <= most for name, most in bounds.items())
    }


def draw_strengths(regions: set[str], rng: np.random.Generator) -> dict[str, float]:
    """Strengths by sided label, each at least `WEAKEST`, of the regions that are at rest."""
    strengths: dict[str, float] = {}
    for needed, movements in MOVEMENTS.items():
        if not regions.issuperset(needed):
            continue
        chances = [*movements.values(), 1 - sum(movements.values())]
        chosen = [*movements, ()][rng.choice(len(chances), p=chances)]
        for label in chosen:
            if label not in ("AU6", "AU7") or "eyes" in regions:
                sides = expand_sides({label: round(float(rng.uniform(WEAKEST, 1)), 2)})
                strengths |= {
                    side: value for side, value in sides.items() if len(sides) == 1 or rng.random() > ONE_SIDED
                }
    return strengths


def _jittered(strengths: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    moved = dict(strengths)
    for label in JITTERED:
        for side in expand_sides({label: 0.0}):
            moved[side] = moved.get(side, 0.0) + float(rng.normal(0, JITTER))
    return moved


def known_values(regions: set[str], strengths: Mapping[str, float]) -> dict[str, list[float]]:
    """Format -> weak values, shares of the scale, of a face whose `regions` at rest were moved; NaN elsewhere."""
    known = {label for needed, labels in KNOWN.items() if regions.issuperset(needed) for label in labels}
    weak = {}
    for name in MAIN_FORMATS:
        fmt = FORMATS[name]
        shares = np.array(label_values(strengths, name)) / fmt.value_numbers[-1]
        told = [label.rstrip("LR") in known for label in fmt.labels]
        weak[name] = np.where(told, shares, math.nan).tolist()
    return weak


def move_face(
    image: Image.Image, measured: Measured, margin: float, strengths: Mapping[str, float]
) -> Image.Image | None:
    """Warp the picture of a face.

    Args:
        image: an eye-aligned square crop with its margin, from `crop_face`.
        measured: landmarks and pose of the face in it.
        strengths: by sided label, as shares of the rig's full movement; negative ones move the other way.

    Returns:
        a picture like `image`; None if brows, eyes, nose, mouth and chin are not in this order from top to bottom.
    """
    import cv2  # MediaPipe brings it

    side = image.size[0]
    pose = tuple(5 * round(angle / 5) for angle in (measured.yaw, measured.pitch))
    unit = EYE_DISTANCE * side / (1 + 2 * margin)  # pixels of an eye distance
    eyes = (margin + EYE_HEIGHT) / (1 + 2 * margin) * side
    heights = [float(measured.landmarks[list(points), 1].mean()) for _, points in ANCHORS]
    own = _scale_of(heights, eyes, unit)
    mean = _scale_of(mean_heights(pose, side, margin), eyes, unit)
    if (np.diff(own) < 1).any():
        return None
    field = sum(strength * _unit_field(label, pose, side, margin) for label, strength in strengths.items())
    rows = np.arange(side, dtype=np.float32)
    on_mean = np.interp(rows, own, mean).astype(np.float32)  # heights of the mean face that the rows lie at
    stretch = np.gradient(on_mean).clip(0.4)
    to_right, down = np.meshgrid(rows, rows)
    x, y = to_right, down
    for _ in range(3):  # the movement is given at the place that the skin comes from
        place = np.interp(y, rows, on_mean).astype(np.float32)
        across, along = (cv2.remap(part, x, place, cv2.INTER_LINEAR) for part in field)
        x = to_right - across
        y = (down - along / np.interp(y, rows, stretch)).astype(np.float32)
    moved = cv2.remap(np.asarray(image), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return Image.fromarray(moved)


def _scale_of(heights: Sequence[float], eyes: float, unit: float) -> np.ndarray:
    """Rows from above the brows to below the chin, including the eyes, that match between two faces."""
    brows, *below = heights
    return np.array([0, brows - FOREHEAD * unit, brows, eyes, *below, below[-1] + unit, 1e4])


def _view(pose: tuple[float, float], margin: float) -> View:
    scale = 1 / (1 + 2 * margin)
    return View(
        yaw=pose[0], pitch=pose[1], distance=15, scale=scale, shift=(0, (margin + EYE_HEIGHT) * scale - EYE_HEIGHT)
    )


def places(vertices: np.ndarray, pose: tuple[float, float], side: int, margin: float) -> np.ndarray:
    """(V, 2) pixels of the rig's vertices (V, 3) in a crop of the given side, aligned by the mean face's eyes."""
    rotation = head_rotation(*pose)
    rig = load_rig()
    eyes = np.stack([rig.mean[rig.vertices_of(name)].mean(axis=0) for name in ("eye_left", "eye_right")])
    return project(vertices @ rotation, eyes @ rotation, _view(pose, margin), side)[0]


@lru_cache(maxsize=256)
def mean_heights(pose: tuple[float, float], side: int, margin: float) -> tuple[float, ...]:
    """Rows of the anchors of the mean face."""
    rig = load_rig()
    front = rig.vertices_of("skin")
    front = front[rig.mean[front, 2] > 0]
    shown = places(rig.mean, pose, side, margin)
    nearest = lambda point: front[np.argmin(((rig.mean[front, :2] - point) ** 2).sum(axis=1))]
    return tuple(float(np.mean([shown[nearest(point), 1] for point in points])) for points, _ in ANCHORS)


@lru_cache(maxsize=800)
def _unit_field(label: str, pose: tuple[float, float], side: int, margin: float) -> np.ndarray:
    """(2, side, side) pixels to the right and down by which the mean face's skin moves at strength 1."""
    rig = load_rig()
    moved = rig.mean + rig.offsets({label: 1.0})
    shift = places(moved, pose, side, margin) - places(rig.mean, pose, side, margin)
    still = np.zeros_like(rig.mean)
    parts = [draw_values(np.ascontiguousarray(part), rig.mean, still, _view(pose, margin), side) for part in shift.T]
    return gaussian_filter(np.stack(parts), (0, 0.011 * side, 0.011 * side)).astype(np.float32)
