"""What helps rare AUs: rows seen more often, weighted losses, both, or nothing; on rendered faces with skewed rates.

    python benchmarks/imbalance.py --data data/rendered-train --test data/rendered-test --base runs/imbalance-base --out runs/imbalance

Faces that show one of the `RARE` AUs are left out of both folders until each of these is present in about `--rate` of
the images. Every arm is trained on the same images from the same start with the same number of steps, once per seed, and
scored on the skewed test images, with thresholds chosen on the skewed validation people, as a shipped model is. Further
options go to train_sft.py, in every arm alike: with `--freeze vision_tower` a step costs less. Finished steps are not
repeated: start the same command to go on. Writes OUT/imbalance.json and prints means and standard deviations over seeds.

Subsampling by clip is not measured: rendered faces have no clips.
"""  # noqa: E501

import argparse
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
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

ROOT = Path(__file__).resolve().parent.parent
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
    """The rows to keep so that each AU is present in about `rate` of them: all without any, and others while they fit.

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
    """Write the records of a folder in format bp4d, skewed part by part, unless that was done before."""
    arguments = {"skewed": source, "rate": rate, "rare": list(RARE)}
    start_folder(out, arguments)
    records = load_records(source, formats=["bp4d"])
    columns = list(record_features({}))
    raw = records.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    parts, places = np.array(records["part"][:]), [FORMATS["bp4d"].labels.index(label) for label in RARE]
    for part in sorted(set(parts)):
        path = shard_path(out, part, 0, 1)
        rows = np.flatnonzero(parts == part)
        kept = rows[skewed_rows(np.array(records.select(rows)["values"][:])[:, places] == 1, rate)]
        if not path.is_file():
            write_shard((raw[int(row)] for row in kept), record_features({}), path)
    finish_folder(out, arguments)


def summary(results: dict[str, list[dict]]) -> dict:
    """Arm -> "all", "rare", "others" -> metric -> (mean, standard deviation) over seeds of the mean over AUs.

    Args:
        results: arm -> of each seed, AU -> metric -> score, None where undefined.
    """
    labels = FORMATS["bp4d"].labels
    groups = {"all": labels, "rare": RARE, "others": tuple(label for label in labels if label not in RARE)}
    found: dict = {}
    for arm, seeds in results.items():
        for group, members in groups.items():
            for metric in METRICS:
                means = [
                    np.nanmean([float("nan") if s[a][metric] is None else s[a][metric] for a in members]) for s in seeds
                ]
                deviation = np.std(means, ddof=1) if len(means) > 1 else 0.0
                found.setdefault(arm, {}).setdefault(group, {})[metric] = (float(np.mean(means)), float(deviation))
    return found


def start_run(arguments: argparse.Namespace, further: list[str]) -> None:
    """Write OUT/settings.json, or check that what OUT holds was made with the same settings."""
    settings = {key: getattr(arguments, key) for key in ("data", "test", "base", "rate", "steps", "batch_size")}
    settings["train"], path = further, arguments.out / "settings.json"
    if path.is_file() and (before := json.loads(path.read_text())) != settings:
        differing = [key for key in settings if before[key] != settings[key]]
        sys.exit(f"imbalance.py: {arguments.out} was made with another {', '.join(differing)}: choose another --out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def run_script(name: str, words: list) -> None:
    """Run a script of this repository; end where it fails (it says why)."""
    done = subprocess.run([sys.executable, str(ROOT / name), *map(str, words)])
    if done.returncode:
        sys.exit(f"imbalance.py: {name} failed, see above; the same command goes on from there")


def main(words: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="records with parts train and validation")
    parser.add_argument("--test", required=True, help="records with a test part")
    parser.add_argument("--base", required=True, help="checkpoint that every arm starts from")
    parser.add_argument("--rate", type=float, default=0.03, help="of the rare AUs (default: 0.03)")
    parser.add_argument("--steps", type=int, default=470, help="of each training (default: 470)")
    parser.add_argument("--batch_size", type=int, default=64, help="of each training (default: 64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    arguments, further = parser.parse_known_args(words)
    start_run(arguments, further)
    for source, name in ((arguments.data, "train"), (arguments.test, "test")):
        skew_folder(source, arguments.out / f"skewed-{name}", arguments.rate)
    results: dict[str, list[dict]] = {}
    for arm in arguments.arms:
        for seed in arguments.seeds:
            run = arguments.out / f"{arm.replace(' ', '-')}-{seed}"
            if not (run / "trainer_state.json").is_file():  # the last file that training writes
                train = ["--config", ROOT / "recipes" / "rendered_tiny.yaml", "--model_name_or_path", arguments.base]
                train += ["--data", arguments.out / "skewed-train", "--output_dir", run, "--eval_strategy", "no"]
                train += ["--save_strategy", "no", "--max_steps", arguments.steps, "--seed", seed]
                train += ["--per_device_train_batch_size", arguments.batch_size, "--dataloader_num_workers", 1]
                train += ["--causal_share", 0, *ARMS[arm], *further]
                run_script("train_sft.py", train)
            if not (run / "eval" / "results.json").is_file():
                calibrate = ["--calibrate", arguments.out / "skewed-train", "--out", run / "calibration"]
                run_script("eval_au.py", ["--model", run, *calibrate])
                score = ["--model", run, "--data", arguments.out / "skewed-test", "--out", run / "eval"]
                run_script("eval_au.py", score)
            scores = json.loads((run / "eval" / "results.json").read_text())["formats"]["bp4d"]["per_au"]
            results.setdefault(arm, []).append({label: {m: each[m] for m in METRICS} for label, each in scores.items()})
    found = summary(results)
    table = Table(title=f"{len(arguments.seeds)} seeds; rare ({arguments.rate:.0%}): {', '.join(RARE)}")
    for column in ("arm", "AUs", *METRICS):
        table.add_column(column)
    for arm, groups in found.items():
        for group, metrics in groups.items():
            table.add_row(arm, group, *(f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in metrics.values()))
    Console().print(table)
    settings = json.loads((arguments.out / "settings.json").read_text()) | {"seeds": arguments.seeds}
    written = {"schema_version": 1, "settings": settings, "summary": found, "per_au": results}
    (arguments.out / "imbalance.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
