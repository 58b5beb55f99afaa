"""Time and memory of scores, bootstrap intervals and the comparison of two systems, on simulated answers.

    python benchmarks/metrics.py                                        # as DISFA: 140,000 images, 12 AUs, 41 subjects
    python benchmarks/metrics.py --format feafa --images 28000 --subjects 7000

All metrics are computed, for decisions, values and probabilities; 5 % of the cells have no label. Memory is the peak of
the process so far, with imports and data.
"""

import argparse
import resource
import sys
import time

import numpy as np
from page import add_write_option, make_table, runner, show

from au_llava.action_units import FORMATS
from au_llava.au_evaluation.intervals import intervals, paired_difference
from au_llava.au_runs.commands import CommandParser
from au_llava.metrics_au import score


def simulate(fmt, images: int, subjects: int, seed: int = 0) -> tuple[np.ndarray, list[str], list[dict]]:
    """Labels (images, AUs) with rare high values, their subjects, and two systems that read them with noise."""
    rng = np.random.default_rng(seed)
    shape, highest = (images, len(fmt.labels)), fmt.value_numbers[-1]
    strength = rng.beta(0.3, 1.5, shape)
    systems = []
    for noise in (0.1, 0.12):
        read = np.clip(strength + rng.normal(0, noise, shape), 0, 1)
        values = np.round(read) if fmt.scale == "occurrence" else read * highest
        systems.append({"predictions": values, "probabilities": 1 / (1 + np.exp(-10 * (read - 0.4)))})
    references = np.round(strength * highest, 2 if fmt.scale == "continuous" else 0)
    references[rng.random(shape) < 0.05] = np.nan
    return references, [f"subject {number}" for number in rng.integers(subjects, size=images)], systems


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--format", choices=FORMATS, default="disfa", help="AUs and scale (default: disfa)")
    parser.add_argument("--images", type=int, default=140_000, help="(default: 140000)")
    parser.add_argument("--subjects", type=int, default=41, help="(default: 41)")
    parser.add_argument("--resamples", type=int, default=1000, help="(default: 1000)")
    add_write_option(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    fmt = FORMATS[arguments.format]
    references, subjects, (a, b) = simulate(fmt, arguments.images, arguments.subjects)
    measured = {
        "imports and data": lambda: None,
        "score": lambda: score(references=references, fmt=fmt, subjects=subjects, **a),
        "intervals": lambda: intervals(
            references=references, subjects=subjects, fmt=fmt, resamples=arguments.resamples, **a
        ),
        "paired_difference": lambda: paired_difference(a, b, references, subjects, fmt, resamples=arguments.resamples),
    }
    title = (
        f"{arguments.images:,} images, {len(fmt.labels)} AUs ({fmt.scale}), {arguments.subjects:,} subjects, "
        f"{arguments.resamples:,} resamples"
    )
    table = make_table("what", "seconds", "peak memory (MB)", text=["what"], title=title)
    for name, compute in measured.items():
        start = time.perf_counter()
        compute()
        took = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
        table.add_row(name, f"{took:.2f}", f"{peak:.0f}")
    show([table], arguments.write)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
