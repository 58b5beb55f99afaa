"""How well two observers agree who coded the same pictures by eye: Cohen's kappa of presence and of level, for each AU.

    python tools/compare_codes.py mine.csv yours.csv
    python tools/compare_codes.py recipes/fairface_codes_first.csv recipes/fairface_codes_second.csv --markdown

Both tables are as `prepare_data.py --codes` takes them. A picture counts for an AU if both know it, and the AU is
present if its code is above 0. Kappa of presence is 1 for full agreement and 0 for chance; the one of the level weighs
differences by their square (Cohen, Weighted kappa, 1968), with the codes 0 to 5 as they are. In brackets 95 % bootstrap
intervals over pictures. Of an AU that one of the two never found there is no kappa.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from sklearn.metrics import cohen_kappa_score

from au_llava.au_datasets.codes import Codes
from au_llava.au_evaluation.tables import console_table, markdown_table, number
from au_llava.au_runs.commands import CommandParser, run_command

HEADER = ("AU", "pictures", "found by the first", "by the second", "kappa of presence", "kappa of the level")
SEED, RESAMPLES = 0, 1000


def kappa(first: np.ndarray, second: np.ndarray, weights: str | None = None) -> float:
    """Cohen's kappa of two observers' codes; NaN if one of them gave all pictures the same."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    # Labels are the even steps between the codes, so that weights follow their distance: scikit-learn weighs ranks.
    steps = np.round(np.stack([first, second]) * 100).astype(int)
    return float(cohen_kappa_score(*steps, weights=weights, labels=np.arange(steps.max() + 1) if weights else None))


def kappa_and_interval(first: np.ndarray, second: np.ndarray, weights: str | None = None) -> str:
    value = kappa(first, second, weights)
    if math.isnan(value):
        return number(value)
    drawn = np.random.default_rng(SEED).integers(0, len(first), (RESAMPLES, len(first)))
    resampled = [kappa(first[rows], second[rows], weights) for rows in drawn]
    return number(value, np.nanpercentile(resampled, [2.5, 97.5]).tolist())


def compare(first: Codes, second: Codes) -> list[tuple[str, ...]]:
    """A row of `HEADER` for each AU that both tables have.

    Raises:
        ValueError: they share no picture, or no AU.
    """
    shared = sorted(first.files.keys() & second.files.keys())
    labels = [label for label in first.labels if label in second.labels]
    if not shared or not labels:
        raise ValueError(f"the two tables have no {'AU' if shared else 'picture'} in common: nothing can be compared.")
    rows = []
    for label in labels:
        pairs = np.array([(first.files[file][label], second.files[file][label]) for file in shared])
        one, other = pairs[~np.isnan(pairs).any(axis=1)].T
        present = kappa_and_interval((one > 0).astype(float), (other > 0).astype(float))
        found = (str(int((codes > 0).sum())) for codes in (one, other))
        rows.append((label, str(len(one)), *found, present, kappa_and_interval(one, other, "quadratic")))
    return rows


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = CommandParser(__doc__, prog="compare_codes.py")
    parser.add_argument("first", type=Path, help="a table of codes")
    parser.add_argument("second", type=Path, help="another observer's, of the same pictures")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args(words)

    def main() -> None:
        rows = compare(Codes(arguments.first), Codes(arguments.second))
        if arguments.markdown:
            print(markdown_table(HEADER, rows, "lrrrrr"))
            return
        table = console_table(f"{arguments.first} and {arguments.second}", HEADER, "lrrrrr")
        for row in rows:
            table.add_row(*row)
        Console().print(table)

    return run_command("compare_codes.py", main)
