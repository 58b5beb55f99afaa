"""What the estimated priors of unlabelled faces are worth: rendered people, few of them with each AU.

    python benchmarks/priors.py --model . --data data/rendered-test --part test --out runs/priors

The checkpoint, whose calibration comes from other people, reads the people of --data. Of their faces, --faces are drawn
for every AU so that a known share shows it (with replacement), and au_evaluation/priors.py estimates that share. The
same is done with readings that are off: log-odds of presence a unit too high or too low, or half or twice as large.
There label shift, on which the estimate rests, does not hold. Writes priors.json, and prints for every format the mean
estimate over AUs and its mean absolute error.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit, logit

from au_llava.action_units import get_format
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.predictions import predict, use_prior
from au_llava.au_evaluation.priors import estimate_prior
from au_llava.au_evaluation.scoring import by_format
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.provenance import code_commit, content_hashes
from au_llava.eval_au import load, write_json

SHARES = (0.03, 0.1, 0.3)
READINGS = {"as read": (0, 1), "a unit higher": (1, 1), "a unit lower": (-1, 1), "halved": (0, 0.5), "doubled": (0, 2)}
FEWEST = 20  # faces with and without an AU, to draw from


def drawn(truth: np.ndarray, share: float, faces: int, rng: np.random.Generator) -> np.ndarray:
    """`faces` indices into (images,) booleans; the share `share` of them points to True."""
    present, absent = np.flatnonzero(truth), np.flatnonzero(~truth)
    count = round(share * faces)
    return np.concatenate([rng.choice(present, count), rng.choice(absent, faces - count)])


def estimates(rows: list[dict], faces: int, rng: np.random.Generator) -> dict:
    """AU -> reading -> the estimated prior for each of `SHARES`, of the rows of one format."""
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


def table(found: dict) -> Table:
    result = Table(title=f"Estimated shares of faces that show an AU, where {SHARES} do", title_justify="left")
    result.add_column("format")
    result.add_column("readings")
    for share in SHARES:
        result.add_column(f"{share:.0%}: mean, mean absolute error", justify="right")
    for name, of_format in found.items():
        for reading in READINGS:
            values = np.array([each[reading] for each in of_format.values()])
            errors = np.abs(values - SHARES).mean(axis=0)
            cells = (f"{mean:.1%}, {error:.1%}" for mean, error in zip(values.mean(axis=0), errors, strict=True))
            result.add_row(name, reading, *cells)
        result.add_section()
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model", default=str(HOME), help="checkpoint: a folder or a Hub id (default: the shipped one)"
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders of rendered people")
    parser.add_argument("--part", default="test", help="of these folders (default: test)")
    parser.add_argument("--faces", type=int, default=2000, help="drawn for each share (default: 2000)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    check_writable(arguments.out / "priors.json")
    records = load_records(arguments.data, part=arguments.part)
    model, processor = load(arguments.model, None)
    use_prior(model, records, "rendered")
    rng = np.random.default_rng(0)
    predictions = predict(model, processor, records, batch_size=32, progress=True)
    found = {name: estimates(rows, arguments.faces, rng) for name, rows in by_format(predictions).items()}
    setting = {"model": arguments.model, "data": content_hashes(arguments.data), "part": arguments.part}
    setting |= {"faces": arguments.faces, "shares": SHARES, "commit": code_commit()}
    write_json(arguments.out / "priors.json", {"schema_version": 1, "setting": setting, "estimates": found})
    Console().print(table(found))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"priors.py: {sentence_of(error)}")
