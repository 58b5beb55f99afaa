"""What recognize_au.py writes and prints when everything has been read.

What draws figures is imported where it is asked for: Matplotlib, and PyTorch for explanations, take longer than reading
a picture.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from PIL import Image
from rich.console import Console

from au_llava.au_faces.crop import crop_face
from au_llava.au_recognition.annotation import save_video
from au_llava.au_recognition.derived import Derived
from au_llava.au_recognition.neutral import Neutral
from au_llava.au_recognition.readings import Readings, first_faces
from au_llava.au_recognition.runner import Plan
from au_llava.au_recognition.sidecar import sidecar
from au_llava.au_recognition.summary import Summary
from au_llava.au_recognition.tables import open_table
from au_llava.au_runs.files import write_json
from au_llava.au_runs.names import escaped
from au_llava.au_runs.progress import track
from au_llava.pictures_au_llava import load_face_image

Explained = tuple[dict, Image.Image, list]  # a face, the crop that was read, its `Explanation`s (reasons.py)


def write_outputs(arguments: argparse.Namespace, engine, readings: Readings, neutral, left_out: Mapping) -> int:
    """Write the table, its sidecar and the pictures, and print the summary; returns the exit status.

    Args:
        engine: that has read; with --explain, a `TorchEngine`.
        neutral: as `Neutral` takes it, or None.
        left_out: what the folders hold besides pictures and videos.

    Raises:
        ValueError: there is no face in any file, or none in the frame that --neutral names.
        OSError: an output cannot be written.
    """
    plan = readings.plan
    files = len(plan.files())
    problems = readings.problems()
    for problem in problems.values():
        print(f"skipped: {escaped(problem)}", file=sys.stderr)
    explained = []
    if arguments.explain:
        explained = explain_faces(engine, plan, first_faces(readings, arguments.picture_faces))
    rest = None if neutral is None else Neutral(readings, plan.formats, neutral)
    if rest is not None and rest.unknown:
        names = ", ".join(map(escaped, rest.unknown[:3])) + (" …" if len(rest.unknown) > 3 else "")
        said = f"--neutral {neutral}: no face was read in frame {neutral} of {names}"
        if not rest.by_person:
            raise ValueError(
                f"{said}: name a frame that shows the face and is read (--fps and --every leave out some)."
            )
        print(f"{said}: changes there are unknown.", file=sys.stderr)
    derived = Derived(readings, plan.formats, arguments.derive)
    summary = write_table(arguments.out, readings, rest, explained, derived)
    if not summary.faces:
        raise ValueError(f"No face could be read in any of the {files} files.")
    Console().print(summary.table())
    if arguments.out:
        counts = {"files": files, "faces": summary.faces, "frames_without_face": summary.frames_without}
        counts["faces_turned_away"] = readings.turned()
        said = {escaped(file): escaped(problem) for file, problem in problems.items()}
        content = sidecar(readings.journal.identity, arguments.neutral, counts, said, left_out, engine)
        write_json(arguments.out.with_name(f"{arguments.out.name}.provenance.json"), content)
        print(f"Written: {arguments.out} ({summary.faces + summary.frames_without} rows)")
    for path in draw(arguments, readings, explained):
        print(f"Written: {path}")
    if turned := readings.turned():
        print(f"{turned} faces turned further than --max-yaw were left out.", file=sys.stderr)
    if problems:
        print(f"{len(problems)} of {files} files could not be read in full or show no face.", file=sys.stderr)
    return 1 if problems else 0


def explain_faces(engine, plan: Plan, faces: Iterable[dict]) -> list[Explained]:
    from au_llava.au_recognition.reasons import explain

    explained = []
    for face in track(faces, "explaining faces"):
        image = load_face_image(face["file"])
        crop = image if face["eyes"] is None else crop_face(image, face["eyes"], plan.size)
        explained.append((face, crop, explain(engine.model, engine.processor, crop, face["answers"], plan.formats)))
    return explained


def write_table(
    path: Path | None,
    readings: Readings,
    neutral: Neutral | None,
    explained: Iterable[Explained],
    derived: Derived,
) -> Summary:
    """Write the table, if a path is given, and sum it up."""
    formats = readings.plan.formats
    explanations = {(face["file"], face["face_id"]): reasons for face, _, reasons in explained}
    summary = Summary(formats, derived.blinks)
    table = open_table(path, formats, neutral is not None, derived.columns) if path else nullcontext(lambda _: None)
    with table as write:
        for face in readings:
            if neutral is not None:
                neutral.add_change(face)
            derived.add(face)
            add_reasons(face, explanations.get((face["file"], face["face_id"]), ()))
            write(face)
            summary.add(face)
    return summary


def add_reasons(face: Mapping, explanations: Iterable) -> None:
    """Add a list `reason` to each format's answer of an explained face; None for an AU that is not present."""
    for explanation in explanations:
        labels = explanation.format.labels
        reasons = face["answers"][explanation.format.name].setdefault("reason", [None] * len(labels))
        reasons[labels.index(explanation.label)] = explanation.reason


def draw(arguments: argparse.Namespace, readings: Readings, explained: list[Explained]) -> Iterable[Path]:
    """Write the pictures, timelines and the video that were asked for; yields each path when it is written."""
    if arguments.picture:
        from au_llava.au_recognition.pictures import save_faces

        save_faces(arguments.picture, readings, readings.plan.formats, arguments.picture_faces)
        yield arguments.picture
    if explained:
        from au_llava.au_recognition.pictures import save_evidence

        save_evidence(arguments.explain, explained)
        yield arguments.explain
    if arguments.timeline:
        from au_llava.au_recognition.timelines import save_timelines

        yield from save_timelines(arguments.timeline, readings, arguments.curves)
    if arguments.video:
        save_video(arguments.video, readings, readings.plan)
        yield arguments.video
