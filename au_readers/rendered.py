"""Rendered faces: pictures with exactly known action units, drawn by this project.

Everything is a function of (seed, subject number, image number). Looks vary widely (shading, light, camera, what is
worn, what is behind), so that a model cannot learn one renderer's style. The looks of `HELD_OUT` are only drawn when
asked for: the same people and faces in them show how well a model generalizes to looks it was not trained on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import List, Value

from au_llava.action_units import FORMATS, MAIN_FORMATS, get_format
from au_llava.au_datasets.folds import assign_parts
from au_llava.au_datasets.records import (
    NO_CLIP,
    finish_folder,
    plan_shards,
    record_features,
    start_folder,
    write_shard,
)
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_rendering.activations import label_values, on_request, sample_activations, with_gaze
from au_llava.au_rendering.people import sample_subject, subject_name
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.view import HELD_OUT, sample_view

IMAGES_PER_SHARD = 240
NOTE = "rendered faces are not real faces: results on them say little about real ones"
RENDERED_METADATA = {  # columns beside the fixed ones of a record
    "skin_tone": Value("int64"),  # 1 to 10, the Monk scale
    "age": Value("float64"),
    "gender": Value("float64"),
    "yaw": Value("float64"),  # degrees, as are pitch and roll
    "pitch": Value("float64"),
    "roll": Value("float64"),
    "light": Value("string"),  # "hard", "soft", "environment"; "split" is held out
    "light_strength": Value("float64"),
    "shading": Value("string"),  # as in `View`
    "distance": Value("float64"),  # of the camera, in eye distances
    "resolution": Value("float64"),  # share of the picture's pixels along a side
    "blur": Value("float64"),  # pixels of a picture of side 96
    "occlusion": Value("float64"),  # share of the picture that is covered by something in front of the face
    "held_out": Value("string"),  # one of HELD_OUT, or "" for the usual looks
    "landmarks": List(Value("float32")),  # (2, 64, 2) flat: the face and the same head at rest, in crop widths
}


def sample_records(
    seed: int, number: int, images: int, size: int, held_out: bool = False, formats: Sequence[str] = MAIN_FORMATS
) -> list[dict]:
    """The records of one subject, one per image and format, without their `part`.

    With `held_out` the same person shows the same expressions in one of the looks of `HELD_OUT`, which subject numbers
    take in turn.
    """
    family = HELD_OUT[number % len(HELD_OUT)] if held_out else ""
    subject = sample_subject(seed, number, family)
    labels = {label for name in formats for label in FORMATS[name].labels}
    records = []
    for index in range(images):
        rng = np.random.default_rng([seed, number, 1 + index])
        strengths, view = sample_activations(rng), sample_view(rng, family)
        # The generator is separate, so that pictures for other formats stay as they were.
        strengths, view = on_request(strengths, view, labels, np.random.default_rng([seed, number, 1 + index, 1]))
        shown = with_gaze(strengths, view.gaze)
        pixels, landmarks = picture(subject, strengths, view, size, rng)
        content = jpeg_bytes(pixels)
        kind = "environment" if view.environment else "hard" if view.softness < 0.4 else "soft"
        for name in formats:
            records.append(
                {
                    "image": {"bytes": content, "path": None},
                    "dataset": "rendered",
                    "subject": subject.name,
                    "clip": NO_CLIP,
                    "frame": index,
                    "format": name,
                    "values": label_values(shown, name),
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


def start_rendering(arguments: Mapping, out: Path) -> tuple[list[tuple], int]:
    """The jobs of `render_shard` whose shards `out` lacks, and how many images its other shards hold.

    Args:
        arguments: of the command, as the manifest stores them.

    Raises:
        ValueError: `out` was made with other arguments, or there are too few subjects.
    """
    seed, subjects, images = arguments["seed"], arguments["subjects"], arguments["images_per_subject"]
    validation, test = arguments["validation"], arguments["test"]
    fractions = {"train": 1 - validation - test, "validation": validation, "test": test}
    names = [subject_name(seed, number) for number in range(subjects)]
    drawn = assign_parts(names, fractions, seed)
    start_folder(out, arguments)
    parts = {number: drawn[name] for number, name in enumerate(names)}
    jobs, finished = [], 0
    for path, part, numbers in plan_shards(out, parts, max(1, IMAGES_PER_SHARD // images)):
        if path.is_file():
            finished += len(numbers) * images
        else:
            jobs.append((path, part, numbers, arguments))
    return jobs, finished


def render_shard(job: tuple) -> int:
    """Render the subjects of one shard and write it; returns its number of images. Runs in a worker process."""
    path, part, numbers, arguments = job
    formats = [get_format(stored).name for stored in arguments.get("formats", MAIN_FORMATS)]
    options = (arguments["images_per_subject"], arguments["size"], arguments["held_out_looks"], formats)
    records = [
        {**record, "part": part} for number in numbers for record in sample_records(arguments["seed"], number, *options)
    ]
    write_shard(records, record_features(RENDERED_METADATA), path)
    return len(numbers) * arguments["images_per_subject"]


def finish_rendering(arguments: Mapping, out: Path) -> dict:
    """Write the manifest of a folder that holds all shards; returns it."""
    return finish_folder(out, arguments, [NOTE])
