"""Turn a dataset into one record table: OUT/data-*.parquet and OUT/manifest.json (schema: `au_datasets/records.py`).

    python prepare_data.py rendered --subjects 200 --images-per-subject 10 --seed 0 --out data/rendered

Rendered faces need no licence and no download. A run that was stopped is resumed by repeating its command; the
content does not depend on the number of workers. Tested on CPUs only (2 cores).
"""

import argparse
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from au_llava.au_datasets.folds import assign_parts
from au_llava.au_datasets.records import (
    PARTS,
    finish_folder,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)
from au_llava.au_datasets.rendered import RENDERED_METADATA, sample_records, subject_name

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
        if jobs:
            # One thread a worker: the work is many small arrays, and sums must not depend on a thread count.
            for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[name] = "1"
            # Ctrl-C is for this process alone; leaving the block ends the workers.
            quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
            with multiprocessing.get_context("spawn").Pool(min(args.workers, len(jobs)), **quiet) as pool:
                for images in pool.imap_unordered(render_shard, jobs):
                    progress.advance(task, images)
    return finish_folder(
        args.out, arguments, ["rendered faces are not real faces: results on them say little of real ones"]
    )


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
        raise argparse.ArgumentTypeError(f"expected a share of the subjects from 0 to 1, got {text!r}")
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
        "light from two coloured lamps, a wide-angle lens, unusual head shapes): a test of what a model carries over",
    )
    rendered.add_argument("--out", type=Path, required=True, help="folder for the records; resumed if it has some")
    rendered.add_argument("--workers", type=_positive, default=os.cpu_count(), help="processes (default: all cores)")
    rendered.add_argument("--validation", type=_share, default=0.05, help="share of the subjects (default: 0.05)")
    rendered.add_argument("--test", type=_share, default=0.1, help="share of the subjects (default: 0.1)")
    rendered.set_defaults(prepare=prepare_rendered)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        manifest = args.prepare(args)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
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
