"""What recognize_au.py writes and prints when everything has been read: first all files, then what it says of them.

What draws figures is imported where it is asked for: Matplotlib, and PyTorch for explanations, take longer than reading
a picture.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

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
from au_llava.au_runs.names import escaped, listed
from au_llava.au_runs.progress import track
from au_llava.pictures_au_llava import load_face_image

Explained = tuple[dict, Image.Image, list]  # a face, the crop that was read, its `Explanation`s (reasons.py)


@dataclass(frozen=True)
class Outcome:
    """What a run prints at its end. All files are written before, since who reads it may leave: `| head`."""

    summary: Table
    written: tuple[str, ...]  # lines for standard output
    notes: tuple[str, ...]  # lines for standard error
    status: int

    def show(self) -> int:
        """Print it; returns the exit status."""
        Console().print(self.summary)
        for line in self.written:
            print(f"Written: {line}")
        for note in self.notes:
            print(note, file=sys.stderr)
        return self.status


def write_outputs(arguments: argparse.Namespace, engine, readings: Readings, neutral, left_out: Mapping) -> Outcome:
    """Write the table, its sidecar and the pictures; returns what is to be said of them.

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
        names = listed(list(map(escaped, rest.unknown)))
        lost = f"--neutral {neutral}: no face was read in frame {neutral} of {names}"
        if not rest.by_person:
            raise ValueError(f"{lost}; frames count from 1, and --every and --fps leave some out.")
        print(f"{lost}: changes there are unknown.", file=sys.stderr)
    derived = Derived(readings, plan.formats, arguments.derive)
    summary = write_table(arguments.out, readings, rest, explained, derived)
    if not summary.faces:
        raise ValueError(f"No face could be read in any of the {files} files.")
    written, notes = [], []
    if arguments.out:
        counts = {"files": files, "faces": summary.faces, "frames_without_face": summary.frames_without}
        counts["faces_turned_away"] = readings.turned()
        said = {escaped(file): escaped(problem) for file, problem in problems.items()}
        content = sidecar(readings.journal.identity, arguments.neutral, counts, said, left_out, engine)
        write_json(arguments.out.with_name(f"{arguments.out.name}.provenance.json"), content)
        written.append(f"{arguments.out} ({summary.faces + summary.frames_without} rows)")
    for option, paths in draw(arguments, readings, explained).items():
        written += map(str, paths)
        if not paths:
            notes.append(f"--{option} {getattr(arguments, option)} is not written: nothing was read that it shows.")
    if turned := readings.turned():
        notes.append(f"{turned} faces turned further than --max-yaw were left out.")
    if problems:
        notes.append(f"{len(problems)} of {files} files could not be read in full or show no face.")
    return Outcome(summary.table(), tuple(written), tuple(notes), 1 if problems else 0)


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


def draw(arguments: argparse.Namespace, readings: Readings, explained: list[Explained]) -> dict[str, list[Path]]:
    """Write the pictures, timelines and the video that were asked for.

    Returns:
        option -> the files written; none where there is nothing to draw.
    """
    drawn: dict[str, list[Path]] = {}
    if arguments.picture:
        from au_llava.au_recognition.pictures import save_faces

        faces = first_faces(readings, arguments.picture_faces)
        if faces:
            save_faces(arguments.picture, faces, readings.plan.formats)
        drawn["picture"] = [arguments.picture] * bool(faces)
    if arguments.explain:
        from au_llava.au_recognition.pictures import save_evidence

        if explained:
            save_evidence(arguments.explain, explained)
        drawn["explain"] = [arguments.explain] * bool(explained)
    if arguments.timeline:
        from au_llava.au_recognition.timelines import save_timelines

        drawn["timeline"] = save_timelines(arguments.timeline, readings, arguments.curves)
    if arguments.video:
        frames = any(readings.plan.is_video(entry["part"]) and entry["frames"] for entry in readings.entries())
        if frames:
            save_video(arguments.video, readings, readings.plan)
        drawn["video"] = [arguments.video] * frames
    return drawn
