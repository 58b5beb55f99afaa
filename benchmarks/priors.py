"""How accurate the priors estimated from unlabeled faces are, on rendered people who rarely show each AU.

    python benchmarks/priors.py --model . --data data/rendered-test --part test --out runs/priors

The checkpoint, calibrated on other people, reads the people of --data. For every AU, --faces of their faces are drawn
with replacement so that a known share shows the AU, and au_evaluation/priors.py estimates that share. This is repeated
with distorted readings, whose log-odds of presence are a unit too high or too low, or half or twice as large: they
violate label shift, which the estimate assumes. Writes priors.json and prints, for every format, the mean estimate over
AUs and its mean absolute error.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from page import add_model_option, make_table, runner, write_results
from rich.console import Console
from rich.table import Table
from scipy.special import expit, logit

from au_llava.action_units import get_format
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.predictions import predict, use_prior
from au_llava.au_evaluation.priors import estimate_prior
from au_llava.au_evaluation.rows import by_format
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.engines import TorchEngine
from au_llava.au_runs.files import check_writable
from au_llava.au_runs.provenance import code_commit, content_hashes

SHARES = (0.03, 0.1, 0.3)
READINGS = {"as read": (0, 1), "a unit higher": (1, 1), "a unit lower": (-1, 1), "halved": (0, 0.5), "doubled": (0, 2)}
FEWEST = 20  # faces with and without an AU, to draw from


def drawn(truth: np.ndarray, share: float, faces: int, rng: np.random.Generator) -> np.ndarray:
    """`faces` indices into (images,) booleans, a share `share` of them at True."""
    present, absent = np.flatnonzero(truth), np.flatnonzero(~truth)
    count = round(share * faces)
    return np.concatenate([rng.choice(present, count), rng.choice(absent, faces - count)])


def estimates(rows: list[dict], faces: int, rng: np.random.Generator) -> dict:
    """AU -> kind of reading -> the estimated prior for each of `SHARES`, from the rows of one format."""
    fmt = get_format(rows[0]["format"])
    probability, references = (np.array([row[key] for row in rows], float) for key in ("probability", "references"))
    found = {}
    for label, read, labels in zip(fmt.labels, probability.T, references.T, strict=True):
        known = ~np.isnan(labels) & ~np.isnan(read)
        read, truth = read[known].clip(1e-6, 1 - 1e-6), labels[known] >= fmt.presence_threshold
        if min(truth.sum(), (~truth).sum()) < FEWEST:
            continue
        found[label] = {}
        for name, (offset, factor) in READINGS.items():
            changed = expit(factor * logit(read) + offset)
            found[label][name] = [
                estimate_prior(changed[drawn(truth, share, faces, rng)], float(read.mean())) for share in SHARES
            ]
    return found


def table(estimated: dict) -> Table:
    result = make_table(
        *("format", "readings", *(f"{share:.0%}: mean, mean absolute error" for share in SHARES)),
        text=["format", "readings"],
        title=f"Estimated shares of faces that show an AU, where {SHARES} do",
    )
    for name, of_format in estimated.items():
        for reading in READINGS:
            values = np.array([of_au[reading] for of_au in of_format.values()])
            errors = np.abs(values - SHARES).mean(axis=0)
            cells = (f"{mean:.1%}, {error:.1%}" for mean, error in zip(values.mean(axis=0), errors, strict=True))
            result.add_row(name, reading, *cells)
        result.add_section()
    return result


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders of rendered people")
    parser.add_argument("--part", default="test", help="of these folders (default: test)")
    parser.add_argument("--faces", type=int, default=2000, help="drawn for each share (default: 2000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out / "priors.json")
    records = load_records(arguments.data, part=arguments.part)
    engine = TorchEngine(*load_checkpoint(arguments.model))
    use_prior(engine, records, "rendered")
    rng = np.random.default_rng(0)
    with torch.no_grad():
        predictions = predict(engine, records, batch_size=32, progress=True)
    estimated = {name: estimates(rows, arguments.faces, rng) for name, rows in by_format(predictions).items()}
    setting = {"model": arguments.model, "data": content_hashes(arguments.data), "part": arguments.part}
    setting |= {"faces": arguments.faces, "shares": SHARES, "commit": code_commit()}
    write_results(arguments.out / "priors.json", {"setting": setting, "estimates": estimated})
    Console().print(table(estimated))


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
