"""Read the action units of faces in pictures and videos: a table to compute with, a picture to show.

    python recognize_au.py photo.jpg
    python recognize_au.py assets/faces --formats bp4d disfa feafa --out aus.csv --picture aus.png
    python recognize_au.py interview.mp4 --fps 5 --out aus.csv --timeline aus.png --neutral median
    python recognize_au.py photos --out aus.jsonl --explain why.png
    find photos -newer last.csv | python recognize_au.py - --out aus.parquet
    accelerate launch recognize_au.py photos --out aus.csv

A PATH is a picture, a video, a folder (everything inside), a glob pattern, or "-" for a list on standard input. The
command detects each face, levels the eyes and crops it as in training. With --no-detect it takes pictures as they are:
upright face crops, brows to chin.

Finished work is kept in OUT.parts until the table is written: if a run is interrupted or killed, repeat the command and
it goes on. A file that cannot be read or shows no face is named, counted and skipped, and the exit status is 1. After
Ctrl+C it is 130.

The table has one row per face. Columns are named as in OpenFace: `file, frame, face_id, timestamp, confidence,
success`; the box and the eyes; for occurrence formats `AU01_c` (0 or 1) and `AU01_p` (probability of presence, 0 to 1);
for intensity formats `AU01_r` (mean of the distribution, 0 to 5); for continuous formats `AU43L` (mean, 0 to 1). If two
formats have a column of the same name, both are prefixed with the format's name. OUT.provenance.json says where the
numbers come from. docs/recognize.md explains all of it.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from au_llava.action_units import get_format
from au_llava.au_faces.crop import Face
from au_llava.au_faces.detect import YUNET_SHA256, YuNet
from au_llava.au_faces.media import Frame
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import MODEL
from au_llava.au_faces.table import FacesTable
from au_llava.au_faces.track import Track
from au_llava.au_recognition.inputs import find_files
from au_llava.au_recognition.options import check_options, make_parser
from au_llava.au_recognition.outputs import write_outputs
from au_llava.au_recognition.readings import Readings
from au_llava.au_recognition.runner import (
    Find,
    Plan,
    open_journal,
    parts_of,
    read_faces,
    read_picture,
    unfinished_parts,
)
from au_llava.au_recognition.sidecar import checkpoint_identity, plan_identity
from au_llava.au_runs.commands import CommandEnded, run_command, sentence_of
from au_llava.au_runs.engines import Wish, open_engine
from au_llava.au_runs.files import only_run
from au_llava.au_runs.folders import told
from au_llava.au_runs.names import escaped
from au_llava.au_runs.processes import processes
from au_llava.calibration_au_llava import with_prior
from au_llava.onnx_au_llava import sha256_of


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` and return the exit status."""
    return run_command("recognize_au.py", lambda: main(make_parser(__doc__).parse_args(words)))


def main(arguments: argparse.Namespace) -> int:
    """Recognize, and say after an error where finished work is kept."""
    try:
        return recognize(arguments)
    except BrokenPipeError:  # nobody reads what is printed: run_command ends quietly
        raise
    except (ValueError, OSError) as error:
        # A full disk can be emptied; most other errors would come again.
        goes_on = isinstance(error, OSError) and error.errno is not None
        raise CommandEnded(escaped(sentence_of(error)) + kept_work(arguments.out, goes_on)) from error
    except KeyboardInterrupt:
        raise CommandEnded("stopped." + kept_work(arguments.out, goes_on=True), 130) from None


def kept_work(out: Path | None, goes_on: bool) -> str:
    """The end of an error message: where finished work is kept, and what to do. Empty if there is none.

    Args:
        goes_on: whether it helps to repeat the command.
    """
    folder = parts_folder(out)
    if folder is None or not any(folder.glob("*.jsonl")):
        return ""
    return f" What was read is kept in {folder}" + (": repeat the command to go on." if goes_on else ".")


def parts_folder(out: Path | None) -> Path | None:
    """Where finished work is kept until the table `out` is written."""
    return out and out.with_name(f"{out.name}.parts")


def recognize(arguments: argparse.Namespace) -> int:
    """Read the files and write the outputs; returns the exit status."""
    left_out = Counter()
    files = find_files(arguments.paths, left_out)
    check_options(arguments, files)
    finder, detector = face_finder(arguments, files)
    state = processes()
    if left_out.total() and state.is_main_process:
        print(f"left out, neither pictures nor videos: {told(left_out)}", file=sys.stderr)
    engine = open_engine(
        Wish(
            arguments.model,
            tuple(map(get_format, arguments.formats)),
            engine=arguments.engine,
            decoding=arguments.decoding,
            quantize=arguments.quantize,
            explains=arguments.explain is not None,
            mirror_images=False if arguments.no_mirror else None,
        )
    )
    if arguments.prior is not None:
        engine.calibration = with_prior(engine.calibration, arguments.prior)
    plan = make_plan(arguments, files, finder, size=engine.size)
    neutral = neutral_of(arguments.neutral, engine, plan)
    checkpoint = checkpoint_identity(arguments.model, engine)
    checkpoint |= {"base_sha256": engine.base_sha256, "quantised": arguments.quantize}
    identity = plan_identity(plan, checkpoint, detector)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as lock:
        folder = parts_folder(arguments.out) or Path(scratch)
        if state.is_main_process:
            lock.enter_context(only_run(folder, "--out"))
        read_faces(engine, plan, folder, identity)
        if not state.is_main_process:
            return 0
        journal = open_journal(folder, identity)
        if unfinished := unfinished_parts(journal, plan):
            raise ValueError(
                f"{len(unfinished)} parts are not in {folder}: all machines must share the folder of --out."
            )
        outcome = write_outputs(arguments, engine, Readings(journal, plan), neutral, left_out)
        if arguments.out:
            shutil.rmtree(folder)
    return outcome.show()


def face_finder(arguments: argparse.Namespace, files: Sequence[Path]) -> tuple[Callable[[], Find], dict]:
    """What `Plan` takes as `finder`, and which one it is, for the sidecar."""
    if arguments.faces:
        table = FacesTable(arguments.faces)
        table.match(files)

        def look_up(_: Photo, frame: Frame) -> list[Face]:
            return table(frame.file, None if frame.image is None else frame.number)

        return lambda: look_up, {"name": "table", "sha256": sha256_of(arguments.faces)}
    if arguments.no_detect or arguments.detector == "none":
        return lambda: whole_picture, {"name": "none"}
    detector = YuNet(arguments.detector)
    hashes = {"sha256": YUNET_SHA256, "points_sha256": sha256_of(MODEL)}
    return lambda: Track(detector), {"name": "yunet", **hashes}


def whole_picture(photo: Photo, _: Frame) -> list[Face]:
    """A picture that is a face crop already."""
    return [Face(None, (0, 0, *photo.whole().size), None)]


def make_plan(arguments: argparse.Namespace, files: Sequence[Path], finder: Callable[[], Find], size: int) -> Plan:
    return Plan(
        parts=parts_of(files, arguments.batch_size),
        finder=finder,
        size=size,
        formats=tuple(map(get_format, arguments.formats)),
        decoding=arguments.decoding,
        batch_size=arguments.batch_size,
        every=arguments.every,
        fps=arguments.fps,
        max_yaw=arguments.max_yaw,
        gaze="arkit" in arguments.derive,
        distributions=arguments.out is not None and arguments.out.suffix.lower() == ".jsonl",
    )


def neutral_of(neutral: str | None, engine, plan: Plan) -> str | int | Mapping | None:
    """What `Neutral` takes: "median", a frame's number, or the answers of a picture; None without --neutral."""
    if neutral is None or neutral == "median":
        return neutral
    return int(neutral) if neutral.isdecimal() else read_picture(engine, plan, Path(neutral))
