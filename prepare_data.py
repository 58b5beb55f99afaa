"""Turn a dataset into one record table: OUT/data-*.parquet and OUT/manifest.json (schema: `au_datasets/records.py`).

    python prepare_data.py rendered --subjects 200 --images-per-subject 10 --seed 0 --out data/rendered
    python prepare_data.py bp4d --root /data/BP4D --out data/bp4d
    python prepare_data.py disfa --root /data/DISFA --protocol disfa-3fold --tested P1 --out data/disfa-p1
    python prepare_data.py table --root faces.csv --format disfa --out data/mine
    python prepare_data.py fairface --root /data/FairFace --out data/fairface
    python prepare_data.py unlabelled --root /data/pictures --out data/pictures

Rendered faces need no license and no download; of the other datasets you hold a copy (docs/data.md: where to ask), and
`prepare_data.py DATASET --help` says what must lie where. A run that was stopped is resumed by repeating its command;
the content does not depend on the number of workers. Tested on CPUs only (2 cores).
"""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from au_llava.action_units import FORMATS
from au_llava.au_datasets.folds import PROTOCOLS, assign_parts
from au_llava.au_datasets.records import PARTS, finish_folder, record_features, shard_path, start_folder, write_shard
from au_llava.au_faces.detect import DETECTORS
from au_llava.au_readers import aff_wild2, bp4d, ck_plus, disfa, fairface, feafa, gft, moved, table, unlabelled
from au_llava.au_readers.files import check_root
from au_llava.au_readers.prepare import Crop, finish_source, parts_of, prepare_shard, start_source
from au_llava.au_readers.rendered import RENDERED_METADATA, sample_records
from au_llava.au_rendering.people import subject_name
from au_llava.au_runs.commands import print_anything, sentence_of

IMAGES_PER_SHARD = 240
RENDERED_FEATURES = record_features(RENDERED_METADATA)


def render_shard(job: tuple) -> int:
    """Render the subjects of one shard and write it; returns its number of images. Runs in a worker process."""
    path, numbers, part, arguments = job
    records = []
    options = (arguments["images_per_subject"], arguments["size"], arguments["held_out_looks"])
    for number in numbers:
        records += [{**record, "part": part} for record in sample_records(arguments["seed"], number, *options)]
    write_shard(records, RENDERED_FEATURES, path)
    return len(numbers) * arguments["images_per_subject"]


def prepare_rendered(args: argparse.Namespace) -> dict:
    """Render the shards that are missing and write the manifest; returns the manifest."""
    names = ("subjects", "images_per_subject", "seed", "size", "held_out_looks", "validation", "test")
    arguments = {"dataset": "rendered", **{name: getattr(args, name) for name in names}}
    fractions = {"train": 1 - args.validation - args.test, "validation": args.validation, "test": args.test}
    parts = assign_parts((subject_name(args.seed, k) for k in range(args.subjects)), fractions, args.seed)
    start_folder(args.out, arguments)

    per_shard = max(1, IMAGES_PER_SHARD // args.images_per_subject)
    jobs, done = [], 0
    for part in PARTS:
        members = [k for k in range(args.subjects) if parts[subject_name(args.seed, k)] == part]
        shards = [members[start : start + per_shard] for start in range(0, len(members), per_shard)]
        for shard, numbers in enumerate(shards):
            path = shard_path(args.out, part, shard, len(shards))
            if path.is_file():
                done += len(numbers) * args.images_per_subject
            else:
                jobs.append((path, numbers, part, arguments))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("Rendering images", total=args.subjects * args.images_per_subject, completed=done)
        for images in _in_processes(render_shard, jobs, args.workers):
            progress.advance(task, images)
    return finish_folder(
        args.out, arguments, ["rendered faces are not real faces: results on them say little of real ones"]
    )


def _in_processes(function: Callable, jobs: list, workers: int) -> Iterator:
    """The results of `function` for each job as they come, from up to `workers` fresh processes."""
    if not jobs:
        return
    # One thread a worker: the work is many small arrays, and sums must not depend on a thread count.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker) as pool:
        try:
            for done in as_completed([pool.submit(function, job) for job in jobs]):
                yield done.result()
        except BaseException as error:
            for worker in multiprocessing.active_children():  # nobody waits for what they are at
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise OSError(
                    "a worker process was ended from outside, perhaps for want of memory: the same command resumes, "
                    "with fewer --workers it needs less"
                ) from None
            raise


def _start_worker() -> None:
    """Ctrl-C is for the parent process alone; a worker ends when its parent does, be it killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def prepare_source(args: argparse.Namespace) -> dict:
    """Read what is missing of a real dataset and write the manifest; returns the manifest."""
    if bool(args.protocol or args.folds) != bool(args.tested) or (args.protocol and args.folds):
        raise ValueError("--tested PART goes with --protocol NAME or with --folds K, one of them")
    if args.images:
        check_root(args.images)
    source = args.open_source(args)
    if not source.clips:
        raise ValueError(f"nothing can be read in {args.root}: {'; '.join(source.defects.lines()) or 'it is empty'}")
    if args.test is not None and (args.tested or any(clip.part for clip in source.clips)):
        raise ValueError("--test draws whom to test, but --tested or the dataset itself says so already")
    crop = None if source.crops else _crop(args, source.pictures)
    if crop:
        crop.check()
    elif not source.crops and (args.faces or args.detector):
        raise ValueError("--faces and --detector say where the faces are that --crop cuts out: give --crop SIZE too")
    args.test = args.test_drawn if args.test is None else args.test
    parts = parts_of(source, args.validation, args.test, args.seed, args.protocol, args.folds, args.tested)
    beside = ("out", "workers", "prepare", "open_source", "test_drawn", "dataset", "root")  # the content does not care
    arguments = {name: _plain(value) for name, value in vars(args).items() if name not in beside}
    arguments, jobs = start_source(source, parts, arguments, args.out, crop)
    left = sum(len(clips) for *_, clips in jobs)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("Reading clips", total=len(source.clips), completed=len(source.clips) - left)
        alone = min(args.workers, len(jobs)) < 2  # starting a process would take longer
        results = map(prepare_shard, jobs) if alone else _in_processes(prepare_shard, jobs, args.workers)
        for clips in results:
            progress.advance(task, clips)
    manifest = finish_source(source, arguments, args.out)
    report(manifest)
    return manifest


def _crop(args: argparse.Namespace, pictures: tuple[str, ...] | None = None) -> Crop | None:
    place = args.images or (args.root if args.root.is_dir() else args.root.parent)
    margin = getattr(args, "margin", 0.0)
    return args.crop and Crop(args.crop, place, args.faces, args.detector or "packaged", margin, pictures)


def report(manifest: dict) -> None:
    """Print what was found, beside what a complete copy holds, and every warning."""
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


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return share


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    rendered = datasets.add_parser(
        "rendered",
        help="faces with exactly known action units, drawn by this project",
        description="Render faces with exactly known action units. Many subjects with few images each teach a model "
        "more than the reverse. Each image gets three records: bp4d, disfa and feafa.",
    )
    rendered.add_argument("--subjects", type=_positive, required=True, help="made-up people to draw")
    rendered.add_argument("--images-per-subject", type=_positive, required=True, help="pictures of each")
    rendered.add_argument("--seed", type=int, default=0, help="another seed draws other people (default: 0)")
    rendered.add_argument(
        "--size", type=_positive, default=96, help="side of the square picture in pixels (default: 96)"
    )
    rendered.add_argument(
        "--held-out-looks",
        action="store_true",
        help="draw the same people and faces in looks that are never drawn otherwise (flat shading like a drawing, "
        "light from two colored lamps, a wide-angle lens, unusual head shapes): a test of what a model carries over",
    )
    rendered.add_argument("--out", type=Path, required=True, help="folder for the records; resumed if it has some")
    rendered.add_argument("--workers", type=_positive, default=os.cpu_count(), help="processes (default: all cores)")
    rendered.add_argument("--validation", type=_share, default=0.05, help="share of the subjects (default: 0.05)")
    rendered.add_argument("--test", type=_share, default=0.1, help="share of the subjects (default: 0.1)")
    rendered.set_defaults(prepare=prepare_rendered)
    add_sources(datasets)
    add_moved(datasets)
    return parser


def add_sources(datasets) -> None:
    """The sub-commands of real datasets. Their help is the text at the head of their readers."""

    def add(
        name: str,
        title: str,
        module,
        open_source: Callable,
        root: str = "folder of the copy",
        labelled: bool = True,
    ):
        parser = datasets.add_parser(
            name,
            help=title,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--root", type=_path, required=True, help=root)
        if labelled:
            parser.add_argument("--images", type=_path, metavar="DIR", help="where the images lie, if not below --root")
        parser.add_argument("--out", type=Path, required=True, help="folder for the records; resumed if it has some")
        parser.add_argument("--workers", type=_positive, default=os.cpu_count(), help="processes (default: all cores)")
        known = [each.name for each in PROTOCOLS.values() if name.startswith(each.dataset) and name != "bp4d-plus"]
        crops = parser.add_argument_group(
            "crops",
            "Images stay where they are, unless you ask for copies of the face alone, as rendered faces are cut."
            if labelled
            else "Always made, of the largest face, as rendered faces are cut.",
        )
        side = "side of the copies in pixels" + ("" if labelled else " (default: 96)")
        crops.add_argument("--crop", type=_positive, default=None if labelled else 96, metavar="SIZE", help=side)
        crops.add_argument(
            "--faces", type=_path, metavar="CSV", help="eyes, landmarks or boxes that you have (au_faces/table.py)"
        )
        crops.add_argument("--detector", choices=DETECTORS[:2], help="finds them otherwise (default: packaged)")
        parts = parser.add_argument_group(
            "parts", "of the records: who trains, validates and is tested. By default drawn by subject."
        )
        parts.add_argument("--protocol", choices=known, help="published parts; --tested names the one to test")
        parts.add_argument("--folds", type=_positive, metavar="K", help="draw parts K1, K2, … instead")
        parts.add_argument("--tested", metavar="PART", help="such as P1 (--protocol) or K1 (--folds); the others train")
        parts.add_argument(
            "--validation",
            type=_share,
            default=0.05,
            help="share of the subjects, with --tested of those who train (default: %(default)s)",
        )
        test = 0.1 if labelled else 0.0
        parts.add_argument("--test", type=_share, help=f"share of the subjects (default: {test}), without --tested")
        parts.add_argument("--seed", type=int, default=0, help="another seed draws other people (default: 0)")
        parser.set_defaults(prepare=prepare_source, open_source=open_source, test_drawn=test)
        if not labelled:
            parser.set_defaults(images=None)
            beyond = "share of --crop kept beyond it on every side, to turn and shift it in training (default: 0.2)"
            crops.add_argument("--margin", type=_share, default=0.2, help=beyond)
            parser.add_argument(
                "--teacher",
                choices=unlabelled.TEACHERS,
                default="none",
                help="whose weak values to store (default: none)",
            )
        return parser

    add(
        "bp4d",
        "BP4D: 12 AUs present or absent, 5 from 0 to 5",
        bp4d,
        lambda args: bp4d.open_bp4d(args.root, args.images),
    )
    add(
        "bp4d-plus",
        "BP4D+: the same of 140 people",
        bp4d,
        lambda args: bp4d.open_bp4d(args.root, args.images, plus=True),
    )
    parser = add(
        "disfa",
        "DISFA: 12 AUs from 0 to 5",
        disfa,
        lambda args: disfa.open_disfa(args.root, args.images, args.cameras, args.first_frame),
    )
    parser.add_argument("--cameras", nargs="+", choices=disfa.CAMERAS, default=["left"], help="(default: left)")
    parser.add_argument(
        "--first-frame", type=int, choices=(0, 1), help="number of the first of --images (default: found out)"
    )
    add("feafa", "FEAFA: 24 movements from 0 to 1", feafa, lambda args: feafa.open_feafa(args.root, args.images))
    parser = add(
        "feafa-plus",
        "FEAFA+: the same, with DISFA's videos",
        feafa,
        lambda args: feafa.open_feafa(
            args.root, args.images, True, args.disfa, args.disfa_images, args.numbers_are_people
        ),
    )
    parser.add_argument("--disfa", type=_path, metavar="DIR", help="a copy of DISFA with its videos, for part B")
    parser.add_argument("--disfa-images", type=_path, metavar="DIR", help="or a tree of its images")
    parser.add_argument(
        "--numbers-are-people", action="store_true", help="take part B's folder 2.output for SN002: not documented"
    )
    add("gft", "GFT: 10 AUs present or absent", gft, lambda args: gft.open_gft(args.root, args.images))
    add(
        "aff-wild2",
        "Aff-Wild2: 12 AUs present or absent, in the wild",
        aff_wild2,
        lambda args: aff_wild2.open_aff_wild2(args.root, args.images),
    )
    add(
        "ck-plus",
        "CK+: 17 AUs present or absent, one image a sequence",
        ck_plus,
        lambda args: ck_plus.open_ck_plus(args.root, args.images),
    )
    add(
        "emotionet",
        "EmotioNet: 12 AUs present or absent, images of the web",
        table,
        lambda args: table.open_emotionet(args.root, args.images),
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
    parser.add_argument("--format", choices=FORMATS, required=True, help="which AUs to take, and their scale")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="holds paths (default: image)")
    parser.add_argument(
        "--name", help="of the data set (default: the table's, and eight digits that stand for where it lies)"
    )
    parser.add_argument("--subject-column", default="subject", metavar="NAME", help="(default: subject)")
    parser = add(
        "fairface",
        "FairFace: faces of adults in the wild, without labels",
        fairface,
        lambda args: fairface.open_fairface(args.root, _crop(args), args.teacher, args.all_ages),
        labelled=False,
    )
    parser.set_defaults(validation=0.0423)  # 1,000 of the 23,647 adults whose heads are about frontal, to choose by
    parser.add_argument(
        "--all-ages",
        action="store_true",
        help="take people under 20 too, who are left out otherwise: the bands do not tell minors from people of 18 "
        "and 19, and minors cannot consent to what is made of their faces",
    )
    parser = add(
        "unlabelled",
        "your own pictures and videos of faces, without labels",
        unlabelled,
        lambda args: unlabelled.open_unlabelled(
            args.root, _crop(args), args.teacher, args.every, args.subjects, args.name
        ),
        root="any folder",
        labelled=False,
    )
    parser.add_argument("--every", type=_positive, default=1, metavar="K", help="take every K-th frame of videos")
    parser.add_argument(
        "--subjects", choices=unlabelled.SUBJECTS, default="files", help="what is one person (default: files)"
    )
    parser.add_argument(
        "--name",
        help="of the data set (default: unlabelled-, the folder's name, and eight digits that stand for where it lies)",
    )


def add_moved(datasets) -> None:
    """The sub-command of photographs that are moved."""
    parser = datasets.add_parser(
        "moved",
        help="faces without labels that are at rest, their pictures moved by known action units",
        description=moved.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--root", type=_path, required=True, metavar="FOLDER", help="records of faces without labels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the records; resumed if it has some")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--per-face", type=_positive, default=2, help="moved pictures of each face (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other movements (default: 0)")
    nothing = dict.fromkeys(("images", "faces", "detector", "protocol", "folds", "tested", "test"))
    parser.set_defaults(
        **nothing,
        prepare=prepare_source,
        open_source=lambda args: moved.open_moved(args.root, args.per_face, args.seed),
        test_drawn=0.0,
        validation=0.0,
    )


def main(argv: list[str] | None = None) -> int:
    print_anything()
    args = make_parser().parse_args(argv)
    try:
        manifest = args.prepare(args)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py: {sentence_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare_data.py: stopped; the same command resumes", file=sys.stderr)
        return 130
    print(
        f"{args.out}: {manifest['images']} images, subjects {manifest['subjects_per_part']}, "
        f"content {manifest['content_sha256'][:12]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
