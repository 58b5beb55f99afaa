"""How many rendered faces this machine makes per second, with everything that a record needs.

    python benchmarks/render.py --size 96 --images 240 --workers 2

JPEG encoding and label sampling count, the start of the workers does not. On a busy machine processor time says more
than the rate: an idle core makes 1000 / (ms per image) images per second.
"""

import argparse
import multiprocessing
import os
import sys
import time

from page import add_write_option, make_table, runner, show

from au_llava.au_readers.rendered import sample_records
from au_llava.au_runs.commands import CommandParser

IMAGES_PER_SUBJECT = 6


def render_subject(job: tuple[int, int]) -> float:
    """Make one subject's records; returns the seconds of processor time."""
    number, size = job
    start = time.process_time()
    sample_records(0, number, IMAGES_PER_SUBJECT, size)
    return time.process_time() - start


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--size", type=int, default=96, help="side of the pictures (default: 96)")
    parser.add_argument("--images", type=int, default=240, help="how many (default: 240)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    add_write_option(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        warm_up = [(0, arguments.size)] * 4 * arguments.workers
        pool.map(render_subject, warm_up, chunksize=1)  # loads the rig in every worker
        start = time.perf_counter()
        jobs = [(number, arguments.size) for number in range(arguments.images // IMAGES_PER_SUBJECT)]
        processor = sum(pool.imap_unordered(render_subject, jobs))
        seconds = time.perf_counter() - start
    images = len(jobs) * IMAGES_PER_SUBJECT
    row = {
        "side": arguments.size,
        "images": images,
        "workers": arguments.workers,
        "images/s": f"{images / seconds:.1f}",
        "processor ms per image": f"{1000 * processor / images:.1f}",
        "load of the machine": f"{os.getloadavg()[0]:.1f}",
    }
    table = make_table(*row)
    table.add_row(*map(str, row.values()))
    show([table], arguments.write)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
