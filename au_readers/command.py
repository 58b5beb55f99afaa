"""Turn a data set into a folder of records: OUT/data-*.parquet and OUT/manifest.json (columns: au_datasets/records.py).

    python prepare_data.py rendered --subjects 200 --images-per-subject 10 --seed 0 --out data/rendered
    python prepare_data.py bp4d --root /data/BP4D --out data/bp4d
    python prepare_data.py disfa --root /data/DISFA --protocol disfa-3fold --tested P1 --out data/disfa-p1
    python prepare_data.py table --root faces.csv --format disfa --out data/mine
    python prepare_data.py fairface --root /data/FairFace --out data/fairface
    python prepare_data.py unlabelled --root /data/pictures --out data/pictures

Rendered faces need no license and no download. The other data sets you must obtain yourself (docs/data.md says where to
ask); `prepare_data.py DATASET --help` describes the folders it expects. If a run stops early, repeat the command to
resume it. The content does not depend on the number of workers. Tested on CPUs only (2 cores).
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from au_llava.action_units import MAIN_FORMATS, get_format
from au_llava.au_datasets.codes import Codes
from au_llava.au_datasets.folds import PROTOCOLS
from au_llava.au_faces.detect import DETECTORS
from au_llava.au_readers import (
    aff_wild2,
    bp4d,
    ck_plus,
    disfa,
    faces,
    fairface,
    feafa,
    gft,
    moved,
    rendered,
    table,
    unlabelled,
)
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.files import check_root
from au_llava.au_readers.prepare import finish_source, parts_of, prepare_shard, start_source
from au_llava.au_readers.workers import in_processes
from au_llava.au_runs.commands import CommandEnded, CommandParser, positive, run_command
from au_llava.au_runs.files import only_run
from au_llava.au_runs.formats import FormatNames, add_formats_option, as_stored, choices
from au_llava.au_runs.progress import progress_bar


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` (default: the program's own) and return the exit status."""
    return run_command("prepare_data.py", lambda: _prepare(words))


def _prepare(words: Sequence[str] | None) -> None:
    args = make_parser().parse_args(words)
    try:
        manifest = args.prepare(args)
    except KeyboardInterrupt:
        raise CommandEnded("stopped; run the same command again to resume.", 130) from None
    print(
        f"{args.out}: {manifest['images']} images, subjects {manifest['subjects_per_part']}, "
        f"content {manifest['content_sha256'][:12]}"
    )


# ---- Preparing ------------------------------------------------------------------------------------------------
def prepare_rendered(args: argparse.Namespace) -> dict:
    """Render the shards that are missing and write the manifest; returns the manifest."""
    names = ("subjects", "images_per_subject", "seed", "size", "held_out_looks", "validation", "test")
    arguments = {"dataset": "rendered", **{name: getattr(args, name) for name in names}}
    arguments |= stored_formats(args)
    with only_run(args.out, "--out"):
        jobs, finished = rendered.start_rendering(arguments, args.out)
        with progress_bar("images") as progress:
            total = args.subjects * args.images_per_subject
            task = progress.add_task("Rendering", total=total, completed=finished)
            for images in in_processes(rendered.render_shard, jobs, args.workers):
                progress.advance(task, images)
        return rendered.finish_rendering(arguments, args.out)


def prepare_source(args: argparse.Namespace) -> dict:
    """Read the shards of a data set that are missing and write the manifest; returns the manifest."""
    if bool(args.protocol or args.folds) != bool(args.tested) or (args.protocol and args.folds):
        raise ValueError("--tested PART needs either --protocol NAME or --folds K, and they need --tested PART")
    if getattr(args, "codes", None):
        if args.teacher != "none":
            raise ValueError("--teacher and --codes both give the weak values: choose one")
        args.codes = Codes(args.codes)
    if args.images:
        check_root(args.images)
    source = args.open_source(args)
    if not source.clips:
        raise ValueError(f"nothing can be read in {args.root}: {'; '.join(source.defects.lines()) or 'it is empty'}")
    if args.test is not None and (args.tested or any(clip.part for clip in source.clips)):
        raise ValueError("--test draws a test part, but --tested or the data set itself already defines one")
    crop = None if source.crops else make_crop(args, source.pictures)
    if crop:
        crop.check()
    elif not source.crops and (args.faces or args.detector):
        raise ValueError("--faces and --detector locate the faces that --crop cuts out: give --crop SIZE too")
    args.test = args.test_drawn if args.test is None else args.test
    parts = parts_of(source, args.validation, args.test, args.seed, args.protocol, args.folds, args.tested)
    with only_run(args.out, "--out"):
        arguments, jobs = start_source(source, parts, content_arguments(args), args.out, crop)
        left = sum(len(clips) for *_, clips in jobs)
        with progress_bar("clips") as progress:
            task = progress.add_task("Reading", total=len(source.clips), completed=len(source.clips) - left)
            in_this_process = min(args.workers, len(jobs)) < 2  # starting a process would take longer
            done = map(prepare_shard, jobs) if in_this_process else in_processes(prepare_shard, jobs, args.workers)
            for clips in done:
                progress.advance(task, clips)
        manifest = finish_source(source, arguments, args.out)
    report(manifest)
    return manifest


def stored_formats(args: argparse.Namespace) -> dict:
    """--format and --formats as the manifest stores them, the latter only if it is not the default."""
    stored = {}
    if "format" in args:
        stored["format"] = as_stored(get_format(args.format))
    if "formats" in args and args.formats != list(MAIN_FORMATS):
        stored["formats"] = [as_stored(get_format(name)) for name in args.formats]
    return stored


def content_arguments(args: argparse.Namespace) -> dict:
    """The arguments that decide the content of the records, as the manifest stores them."""
    others = ("out", "workers", "prepare", "open_source", "test_drawn", "dataset", "root", "formats", "codes")
    arguments = {name: value for name, value in vars(args).items() if name not in others}
    if getattr(args, "codes", None):
        arguments["codes"] = args.codes.sha256
    arguments |= stored_formats(args)
    return {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}


def make_crop(args: argparse.Namespace, pictures: tuple[str, ...] | None = None) -> Crop | None:
    """How faces are cropped; None if they are not."""
    if not args.crop:
        return None
    base = args.images or (args.root if args.root.is_dir() else args.root.parent)
    margin = getattr(args, "margin", 0.0)
    return Crop(args.crop, base, args.faces, args.detector or "packaged", margin, pictures)


def report(manifest: dict) -> None:
    """Print what was found, compared with a complete copy, and all warnings."""
    arguments = manifest["arguments"]
    print(f"found: {arguments['layout']} in {arguments['root']}")
    print(f"data set: {arguments['dataset']}")
    if manifest["known"]:
        shown = Table("", "complete copy", "found", title="Is the copy complete?")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in manifest["known"]:
            same = row["expected"] == row["found"]
            shown.add_row(row["what"], f"{row['expected']:,}", f"{row['found']:,}", style=None if same else "bold red")
        Console().print(shown)
    for warning in manifest["warnings"]:
        print(f"warning: {warning}")


# ---- Options --------------------------------------------------------------------------------------------------
def make_parser() -> CommandParser:
    """The parser, with a subcommand for each data set, whose help is the text at the head of its reader."""
    parser = CommandParser(__doc__, prog="prepare_data.py")
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    _add_rendered(datasets)
    _add_labelled(datasets)
    _add_unlabelled(datasets)
    _add_moved(datasets)
    return parser


def _add_rendered(datasets) -> None:
    parser = datasets.add_parser(
        "rendered",
        help="faces with exactly known action units, drawn by this project",
        description="Render faces with exactly known action units. Many subjects with few images each teach a model "
        "more than the reverse. Each image gets a record in each format.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--subjects", type=positive, required=True, help="number of made-up people")
    parser.add_argument("--images-per-subject", type=positive, required=True, help="pictures of each of them")
    parser.add_argument("--seed", type=_seed, default=0, help="another seed draws other people (default: 0)")
    parser.add_argument("--size", type=positive, default=96, help="side of the square picture in pixels (default: 96)")
    parser.add_argument(
        "--held-out-looks",
        action="store_true",
        help="draw the same people and expressions in looks that are never drawn otherwise (flat shading like a "
        "drawing, light from two colored lamps, a wide-angle lens, unusual head shapes), to test how well a model "
        "generalizes",
    )
    add_formats_option(parser, "a record of each image in these: ")
    _add_output(parser)
    parser.add_argument("--validation", type=_share, default=0.05, help="share of the subjects (default: 0.05)")
    parser.add_argument("--test", type=_share, default=0.1, help="share of the subjects (default: 0.1)")
    parser.set_defaults(prepare=prepare_rendered)


def _add_labelled(datasets) -> None:
    def add(name: str, title: str, module: ModuleType, open_source: Callable, root: str = "folder of the copy"):
        parser = _add_source(datasets, name, title, module, open_source, root)
        parser.add_argument(
            "--images", type=_path, metavar="DIR", help="folder of the images (default: --root, or its folder)"
        )
        crops = parser.add_argument_group(
            "crops", "By default images stay where they are. --crop stores copies of the face, cropped as in training."
        )
        crops.add_argument("--crop", type=positive, metavar="SIZE", help="side of the copies in pixels")
        _add_detection(crops)
        _add_parts(parser, name, test=0.1)
        return parser

    add("bp4d", "BP4D: 12 AUs present or absent, 5 from 0 to 5", bp4d, lambda args: bp4d.open_bp4d(*_places(args)))
    add("bp4d-plus", "BP4D+: the same, 140 people", bp4d, lambda args: bp4d.open_bp4d(*_places(args), plus=True))
    parser = add(
        "disfa",
        "DISFA: 12 AUs from 0 to 5",
        disfa,
        lambda args: disfa.open_disfa(*_places(args), args.cameras, args.first_frame),
    )
    parser.add_argument(
        "--cameras", nargs="+", choices=disfa.CAMERAS, default=["left"], help="whose videos (default: left)"
    )
    parser.add_argument(
        "--first-frame", type=int, choices=(0, 1), help="number of the first image in --images (default: detected)"
    )
    add("feafa", "FEAFA: 24 movements from 0 to 1", feafa, lambda args: feafa.open_feafa(*_places(args)))
    parser = add(
        "feafa-plus",
        "FEAFA+: the same, with DISFA's videos",
        feafa,
        lambda args: feafa.open_feafa(*_places(args), True, args.disfa, args.disfa_images, args.numbers_are_people),
    )
    parser.add_argument("--disfa", type=_path, metavar="DIR", help="a copy of DISFA with its videos, for part B")
    parser.add_argument("--disfa-images", type=_path, metavar="DIR", help="or a folder tree of its images")
    parser.add_argument(
        "--numbers-are-people",
        action="store_true",
        help="assume that part B's folder 2.output shows SN002 and so on, which is not documented",
    )
    add("gft", "GFT: 10 AUs present or absent", gft, lambda args: gft.open_gft(*_places(args)))
    add(
        "aff-wild2",
        "Aff-Wild2: 12 AUs present or absent, in the wild",
        aff_wild2,
        lambda args: aff_wild2.open_aff_wild2(*_places(args)),
    )
    add(
        "ck-plus",
        "CK+: 17 AUs present or absent, one image per sequence",
        ck_plus,
        lambda args: ck_plus.open_ck_plus(*_places(args)),
    )
    add(
        "emotionet",
        "EmotioNet: 12 AUs present or absent, images from the web",
        table,
        lambda args: table.open_emotionet(*_places(args)),
    )
    parser = add(
        "table",
        "your own CSV or Parquet",
        table,
        lambda args: table.open_table(
            args.root, args.format, args.images, args.image_column, args.subject_column, args.name
        ),
        root="the table",
    )
    parser.add_argument(
        "--format", action=FormatNames, required=True, help=f"which AUs to read, and their scale: {choices()}"
    )
    parser.add_argument("--image-column", default="image", metavar="NAME", help="column of paths (default: image)")
    parser.add_argument(
        "--subject-column", default="subject", metavar="NAME", help="column of people (default: subject)"
    )
    parser.add_argument("--name", help="name of the data set (default: the table's name and a hash of its path)")


def _add_unlabelled(datasets) -> None:
    def add(name: str, title: str, module: ModuleType, open_source: Callable, root: str = "folder of the copy"):
        parser = _add_source(datasets, name, title, module, open_source, root)
        crops = parser.add_argument_group("crops", "The largest face of each picture, cropped as in training.")
        crops.add_argument(
            "--crop", type=positive, default=96, metavar="SIZE", help="side of the crops in pixels (default: 96)"
        )
        crops.add_argument(
            "--margin",
            type=_share,
            default=0.2,
            help="share of --crop to keep on every side, so that training can turn and shift the crop (default: 0.2)",
        )
        _add_detection(crops)
        _add_parts(parser, name, test=0.0)
        parser.add_argument(
            "--teacher", choices=faces.TEACHERS, default="none", help="store its weak values (default: none)"
        )
        parser.add_argument(
            "--codes",
            type=_path,
            metavar="CSV",
            help="store codes by eye as weak values, instead of a teacher's: columns file (as the records name it) and "
            "AU4, AU12, … from 0 to 5, empty where unknown. Other pictures are left out",
        )
        add_formats_option(parser, "a record of each image in these: ")
        parser.set_defaults(images=None)
        return parser

    parser = add(
        "fairface",
        "FairFace: faces of adults in the wild, without labels",
        fairface,
        lambda args: fairface.open_fairface(
            args.root, make_crop(args), args.teacher, args.all_ages, args.formats, args.codes
        ),
    )
    parser.set_defaults(validation=0.0423)  # 1,000 of the 23,647 adults whose heads are about frontal, to choose by
    parser.add_argument(
        "--all-ages",
        action="store_true",
        help="include people under 20. By default they are left out: the age bands do not tell minors from people of "
        "18 and 19, and minors cannot consent to what is made of their faces",
    )
    parser = add(
        "unlabelled",
        "your own pictures and videos of faces, without labels",
        unlabelled,
        lambda args: unlabelled.open_unlabelled(
            args.root, make_crop(args), args.teacher, args.every, args.subjects, args.name, args.formats, args.codes
        ),
        root="any folder",
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="K", help="take every K-th frame of videos (default: 1)"
    )
    parser.add_argument(
        "--subjects", choices=unlabelled.SUBJECTS, default="files", help="what shows one person (default: files)"
    )
    parser.add_argument(
        "--name", help="name of the data set (default: unlabelled-, the folder's name and a hash of its path)"
    )


def _add_moved(datasets) -> None:
    title = "faces without labels that are at rest, moved by known action units"
    parser = _add_source(
        datasets,
        "moved",
        title,
        moved,
        lambda args: moved.open_moved(args.root, args.per_face, args.seed),
        "folder of records of faces without labels",
    )
    parser.add_argument("--per-face", type=positive, default=2, help="moved pictures of each face (default: 2)")
    parser.add_argument("--seed", type=_seed, default=0, help="another seed draws other movements (default: 0)")
    nothing = dict.fromkeys(("images", "faces", "detector", "protocol", "folds", "tested", "test"))
    parser.set_defaults(**nothing, test_drawn=0.0, validation=0.0)


def _add_source(
    datasets, name: str, title: str, module: ModuleType, open_source: Callable, root: str
) -> argparse.ArgumentParser:
    """A subcommand with the options that all readers have."""
    parser = datasets.add_parser(name, help=title, description=module.__doc__)
    parser.add_argument("--root", type=_path, required=True, help=root)
    _add_output(parser)
    parser.set_defaults(prepare=prepare_source, open_source=open_source)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the records; an unfinished one is resumed")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), help="number of processes (default: all cores)"
    )


def _add_detection(crops) -> None:
    crops.add_argument(
        "--faces", type=_path, metavar="CSV", help="your own table of eyes, landmarks or boxes (docs/recognize.md)"
    )
    crops.add_argument(
        "--detector", choices=DETECTORS[:2], help="detects the faces if there is no table (default: packaged)"
    )


def _add_parts(parser: argparse.ArgumentParser, name: str, test: float) -> None:
    """Options that say who trains, validates and is tested; `test` is the default share of people to test."""
    dataset = name.removesuffix("-plus") if name == "feafa-plus" else name
    protocols = [protocol.name for protocol in PROTOCOLS.values() if protocol.dataset == dataset]
    parts = parser.add_argument_group("parts", "Who trains, validates and is tested. By default subjects are drawn.")
    if protocols:
        parts.add_argument("--protocol", choices=protocols, help="use published parts; --tested names the one to test")
    parts.add_argument("--folds", type=positive, metavar="K", help="draw K parts, K1, K2, …, instead")
    tested = "P1 (--protocol), K1 (--folds)" if protocols else "K1 (--folds)"
    parts.add_argument("--tested", metavar="PART", help=f"{tested} or another; the rest trains")
    parts.add_argument(
        "--validation",
        type=_share,
        default=0.05,
        help="share of the subjects, of the training ones if --tested is given (default: %(default)s)",
    )
    parts.add_argument("--test", type=_share, help=f"share of the subjects, without --tested (default: {test})")
    parts.add_argument("--seed", type=_seed, default=0, help="another seed draws other parts (default: 0)")
    parser.set_defaults(test_drawn=test, **({} if protocols else {"protocol": None}))


def _places(args: argparse.Namespace) -> tuple[Path, Path | None]:
    return args.root, args.images


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return share
