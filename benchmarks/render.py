"""Measure how many rendered faces a second this machine makes, with everything that a record needs.

    python benchmarks/render.py --size 96 --images 240 --workers 2

Prints one line of JSON. Start-up of the workers is not counted, JPEG encoding and label sampling are. On a busy machine
`cpu_ms_per_image` says more than the rate: an idle core makes 1000 / cpu_ms_per_image images a second.
"""

import argparse
import json
import multiprocessing
import os
import time

from au_llava.au_datasets.rendered import sample_records

IMAGES_PER_SUBJECT = 6


def render_subject(job: tuple[int, int]) -> float:
    """Make one subject's records; returns the processor time in seconds."""
    number, size = job
    start = time.process_time()
    sample_records(0, number, IMAGES_PER_SUBJECT, size)
    return time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        pool.map(render_subject, [(0, args.size)] * 4 * args.workers, chunksize=1)  # loads the rig in every worker
        start = time.perf_counter()
        jobs = [(number, args.size) for number in range(args.images // IMAGES_PER_SUBJECT)]
        processor = sum(pool.imap_unordered(render_subject, jobs))
        seconds = time.perf_counter() - start
    images = len(jobs) * IMAGES_PER_SUBJECT
    result = {
        "images_per_second": round(images / seconds, 1),
        "cpu_ms_per_image": round(1000 * processor / images, 1),
        "load_1min": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result | vars(args)))
