"""Which training helps rare AUs: oversampling, weighted losses, both or neither, on rendered faces with skewed rates.

    python benchmarks/imbalance.py --data data/rendered-train --test data/rendered-test --base runs/imbalance-base --out runs/imbalance

Faces with one of the `RARE` AUs are removed from both folders until each of these AUs is present in about `--rate` of the
images. Every arm trains on the same images from the same start with the same number of steps, once per seed, and is
scored on the skewed test images with thresholds chosen on the skewed validation people, like a shipped model. Other
options go to train_sft.py, in every arm: `--freeze vision_tower` makes a step cheaper. Run the same command again to
continue: finished steps are not repeated. Writes OUT/imbalance.json and prints means and standard deviations over seeds.

Subsampling by clip is not measured: rendered faces have no clips.
"""  # noqa: E501

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from page import make_table, run_script, start_run
from rich.console import Console
from rich.table import Table

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import (
    finish_folder,
    load_records,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, write_json

RARE = ("AU2", "AU15", "AU23")
ARMS = {
    "plain": (),
    "oversample 0.1": ("--oversample_below", 0.1),
    "oversample 0.3": ("--oversample_below", 0.3),
    "weights 0.5": ("--loss_weight_power", 0.5),
    "weights 1": ("--loss_weight_power", 1),
    "both": ("--oversample_below", 0.1, "--loss_weight_power", 0.5),
}
METRICS = ("f1", "roc_auc", "average_precision")


def skewed_rows(present: np.ndarray, rate: float, seed: int = 0) -> list[int]:
    """The rows to keep so that each AU is present in about `rate` of them: all rows without AUs, and others that fit.

    Args:
        present: (rows, rare AUs) booleans.
    """
    kept = np.flatnonzero(~present.any(axis=1)).tolist()
    allowed, counts = rate * len(kept) / (1 - min(0.9, rate * present.shape[1])), np.zeros(present.shape[1])
    for row in np.random.default_rng(seed).permutation(np.flatnonzero(present.any(axis=1))):
        if (counts + present[row] <= allowed).all():
            counts += present[row]
            kept.append(int(row))
    return sorted(kept)


def skew_folder(source: str, out: Path, rate: float) -> None:
    """Write the records of a folder in format bp4d, each part skewed, unless they are there already."""
    arguments = {"skewed": source, "rate": rate, "rare": list(RARE)}
    start_folder(out, arguments)
    records = load_records(source, formats=["bp4d"])
    columns = list(record_features({}))
    raw = records.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    parts, places = np.array(records["part"][:]), [FORMATS["bp4d"].labels.index(label) for label in RARE]
    for part in sorted(set(parts)):
        path = shard_path(out, part, 0, 1)
        rows = np.flatnonzero(parts == part)
        present = np.array(records.select(rows)["values"][:])[:, places] == 1
        if not path.is_file():
            chosen = rows[skewed_rows(present, rate)].tolist()
            write_shard((raw[row] for row in chosen), record_features({}), path)
    finish_folder(out, arguments)


def summary(results: dict[str, list[dict]]) -> dict:
    """Arm -> "all", "rare", "others" -> metric -> (mean, standard deviation) over seeds of the mean over AUs.

    Args:
        results: arm -> per seed, AU -> metric -> score, None where undefined.
    """
    labels = FORMATS["bp4d"].labels
    groups = {"all": labels, "rare": RARE, "others": tuple(label for label in labels if label not in RARE)}
    means: dict = {}
    for arm, seeds in results.items():
        for group, members in groups.items():
            for metric in METRICS:
                table = np.array([[scores[label][metric] for label in members] for scores in seeds], dtype=float)
                of_seeds = np.nanmean(table, axis=1)
                deviation = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else 0.0
                means.setdefault(arm, {}).setdefault(group, {})[metric] = (float(np.mean(of_seeds)), float(deviation))
    return means


def run_arm(arm: str, seed: int, arguments: argparse.Namespace, further: list[str]) -> dict:
    """Train, calibrate and evaluate one arm with one seed, as far as that is not done: AU -> metric -> score."""
    run = arguments.out / f"{arm.replace(' ', '-')}-{seed}"
    if not (run / "trainer_state.json").is_file():  # the last file that training writes
        train = ["--config", HOME / "recipes" / "rendered_tiny.yaml", "--model_name_or_path", arguments.base]
        train += ["--data", arguments.out / "skewed-train", "--output_dir", run, "--eval_strategy", "no"]
        train += ["--save_strategy", "no", "--max_steps", arguments.steps, "--seed", seed]
        train += ["--per_device_train_batch_size", arguments.batch_size, "--dataloader_num_workers", 1]
        train += ["--causal_share", 0, *ARMS[arm], *further]
        run_script("train_sft.py", *train)
    if not (run / "eval" / "results.json").is_file():
        data = arguments.out / "skewed-train"
        run_script("eval_au.py", "calibrate", "--model", run, "--data", data, "--out", run / "calibration")
        score = ["--model", run, "--data", arguments.out / "skewed-test", "--out", run / "eval"]
        run_script("eval_au.py", *score)
    per_au = json.loads((run / "eval" / "results.json").read_text())["formats"]["bp4d"]["per_au"]
    return {label: {metric: scores[metric] for metric in METRICS} for label, scores in per_au.items()}


def table_of(means: dict, seeds: int, rate: float) -> Table:
    title = f"{seeds} seeds; rare ({rate:.0%}): {', '.join(RARE)}"
    table = make_table("arm", "AUs", *METRICS, text=["arm", "AUs"], title=title)
    for arm, groups in means.items():
        for group, metrics in groups.items():
            table.add_row(arm, group, *(f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in metrics.values()))
    return table


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--data", required=True, help="records with parts train and validation")
    parser.add_argument("--test", required=True, help="records with a test part")
    parser.add_argument("--base", required=True, help="checkpoint that every arm starts from")
    parser.add_argument("--rate", type=float, default=0.03, help="of the rare AUs (default: 0.03)")
    parser.add_argument("--steps", type=int, default=470, help="of each training (default: 470)")
    parser.add_argument("--batch-size", type=int, default=64, help="of each training (default: 64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    return parser


def main(arguments: argparse.Namespace, further: list[str]) -> None:
    settings = {key: getattr(arguments, key) for key in ("data", "test", "base", "rate", "steps", "batch_size")}
    settings["train"] = further
    start_run(arguments.out, settings)
    for source, name in ((arguments.data, "train"), (arguments.test, "test")):
        skew_folder(source, arguments.out / f"skewed-{name}", arguments.rate)
    results = {arm: [run_arm(arm, seed, arguments, further) for seed in arguments.seeds] for arm in arguments.arms}
    means = summary(results)
    settings["seeds"] = arguments.seeds
    content = {"schema_version": 1, "settings": settings, "summary": means, "per_au": results}
    write_json(arguments.out / "imbalance.json", content)
    Console().print(table_of(means, len(arguments.seeds), arguments.rate))


def run(words: Sequence[str] | None = None) -> int:
    """Run the benchmark with the command line `words` (default: the program's own)."""
    arguments, further = make_parser().parse_known_args(words)
    return run_command("imbalance.py", lambda: main(arguments, further))


if __name__ == "__main__":
    sys.exit(run())
