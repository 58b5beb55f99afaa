"""One model for all formats against separate models, with the same data, resolution and compute.

    python benchmarks/comparison.py --data data/rendered-train --test data/rendered-test --out runs/comparison

Four systems are trained from scratch on the training people, with thresholds chosen on the validation people, and
scored on the test part:

- slots, free: this project's model (tower pretraining, then train_sft.py), with slots and with free decoding;
- single: three such models that learn one format each, each with the same number of steps;
- separate: three discriminative networks, each a timm ResNet of the tower's shape with a linear head (BCE for
  occurrence, MSE for the other scales); together they get as much processor time as the one model.

Run the same command again to continue: finished steps are not repeated. Writes OUT/comparison.json. Needs timm (with
torchvision), which nothing else here needs.
"""

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from page import run_script, runner, start_run, write_results
from torch import nn
from transformers import AutoProcessor, Trainer, TrainerCallback, TrainingArguments

from au_llava.action_units import MAIN_FORMATS, AUFormat, get_format
from au_llava.au_datasets.mixing import training_rows
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.calibration import best_threshold
from au_llava.au_evaluation.command import main as evaluate_command
from au_llava.au_evaluation.predictions import write_predictions
from au_llava.au_evaluation.rows import KEYS
from au_llava.au_evaluation.scoring import score_predictions
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME, replacing, write_json
from au_llava.au_training.tower import SharesCollator

RECIPE = HOME / "recipes" / "rendered_tiny.yaml"
HEADLINE = {"bp4d": ("f1", "roc_auc"), "disfa": ("icc", "mae"), "feafa": ("pcc", "mae")}


def children_seconds() -> float:
    """Seconds of processor time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class SeparateNetwork(nn.Module):
    """A timm ResNet with the shape of a tower, for one format.

    Args:
        vision_config: of the tower, a ResNetConfig of Transformers.
    """

    def __init__(self, vision_config, fmt: AUFormat):
        super().__init__()
        from timm.models.resnet import BasicBlock, ResNet

        self.backbone = ResNet(
            BasicBlock,
            layers=tuple(vision_config.depths),
            channels=tuple(vision_config.hidden_sizes),
            num_classes=len(fmt.labels),
        )
        self.occurrence = fmt.scale == "occurrence"

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor):
        """pixel_values (batch, 3, height, width), labels (batch, AUs) as shares of the scale, NaN where unknown."""
        logits = self.backbone(pixel_values)
        known = ~labels.isnan()
        if self.occurrence:
            loss = nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
        else:
            loss = nn.functional.mse_loss(logits.sigmoid()[known], labels[known])
        return {"loss": loss, "logits": logits}


class ProcessorTime(TrainerCallback):
    """Ends training after `seconds` of this process's processor time."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.process_time()

    def spent(self) -> float:
        """Share of the time that is spent, 0 to 1."""
        return min(1.0, (time.process_time() - self.start) / self.seconds)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.spent() >= 1


def train_separate(name: str, base: Path, data: list[str], test: list[str], seconds: float, out: Path) -> list[dict]:
    """Train a network for the format `name` and read the test part; rows as in predictions.parquet."""
    fmt = get_format(name)
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(base, trust_remote_code=True)
    config = json.loads((base / "config.json").read_text())["vision_config"]
    network = SeparateNetwork(argparse.Namespace(**config), fmt).to(memory_format=torch.channels_last)
    trainer = separate_trainer(network, SharesCollator(processor, [name], seed=0), data, name, seconds, out)
    trainer.train()
    trainer.data_collator = SharesCollator(processor, [name], seed=0, training=False)
    shares, truth = {}, {}
    for part, rows in (
        ("validation", training_rows(data, "validation", [name])),
        ("test", training_rows(test, "test", [name])),
    ):
        predicted = trainer.predict(rows)
        shares[part], truth[part] = 1 / (1 + np.exp(-predicted.predictions.astype(float))), predicted.label_ids
    top = fmt.value_numbers[-1]
    present = truth["validation"] * top >= fmt.presence_threshold - 1e-6
    thresholds = [best_threshold(shares["validation"][:, k], present[:, k]) for k in range(len(fmt.labels))]
    records = load_records(test, part="test", formats=[name])
    assert np.allclose(np.array(records["values"][:]), truth["test"] * top, atol=1e-4)
    records = records.select_columns([*KEYS, "values"])
    return [
        prediction(fmt, number, record, share, thresholds)
        for number, (record, share) in enumerate(zip(records, shares["test"], strict=True))
    ]


def separate_trainer(network, collator, data: list[str], name: str, seconds: float, out: Path) -> Trainer:
    """A trainer for `seconds` of processor time, in which the learning rate falls along a cosine."""
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    plain = [weight for weight in network.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0}], 3e-3
    )
    clock = ProcessorTime(seconds)
    cosine = lambda step: min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * clock.spent()))
    options = TrainingArguments(
        output_dir=str(out / f"separate-{name}"),
        num_train_epochs=1000,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        max_grad_norm=2.0,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(
        network,
        options,
        data_collator=collator,
        train_dataset=training_rows(data, "train", [name]),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)),
        callbacks=[clock],
    )


def prediction(fmt: AUFormat, number: int, record: dict, share: np.ndarray, thresholds: list[float]) -> dict:
    """A row of predictions.parquet; `share` are a network's outputs (AUs,) as shares of the scale."""
    present, expected = (share >= thresholds).astype(float).tolist(), (share * fmt.value_numbers[-1]).tolist()
    return {
        **{key: record[key] for key in KEYS},
        "row": number,
        "asked": fmt.name,
        "references": record["values"],
        "values": present if fmt.scale == "occurrence" else expected,
        "expected": expected,
        "probability": share.tolist(),  # of presence on the occurrence scale; on the others it ranks the same
        "present": present,
        "text": "",
        "problems": [],
        "contradictions": [],
    }


def timed(folder: Path, script: str, *words) -> float:
    """Run the script that fills `folder`, unless it has done so; returns its seconds of processor time."""
    path = folder / "seconds.json"
    if not path.is_file():
        before = children_seconds()
        run_script(script, *words)
        write_json(path, children_seconds() - before)
    return json.loads(path.read_text())


def train_ours(name: str, formats: list[str], arguments: argparse.Namespace) -> tuple[Path, float]:
    """Pretrain the tower, fine-tune and calibrate a model for `formats`.

    Returns:
        its folder, and the seconds of processor time of the training.
    """
    seen, model, calibration = (arguments.out / f"{name}{end}" for end in ("-seen", "", "-calibration"))
    tower = ("--base", arguments.out / "base", "--data", *arguments.data)
    few = ("--formats", *formats, "--place_weight", 0, "--workers", 0, "--epochs", arguments.epochs)
    fine_tuning = ("--config", RECIPE, "--model_name_or_path", seen, "--data", *arguments.data)
    steps = ("--max_steps", arguments.steps, "--warmup_steps", arguments.steps // 10, "--learning_rate", 1.5e-3)
    steps += ("--per_device_train_batch_size", 64, "--use_cpu", "true")  # processor time is what is shared
    quiet = ("--dataloader_num_workers", 0, "--eval_strategy", "no", "--save_strategy", "no")
    seconds = timed(seen, "tools/pretrain_tower.py", *tower, *few, "--out", seen)
    seconds += timed(model, "train_sft.py", *fine_tuning, *steps, *quiet, "--formats", *formats, "--output_dir", model)
    timed(calibration, "eval_au.py", "calibrate", "--model", model, "--data", *arguments.data, "--out", calibration)
    return model, seconds


def evaluate(model: Path, arguments: argparse.Namespace, out: Path, *options) -> None:
    """Write predictions and scores of a checkpoint on the test part to `out`, unless they are there."""
    if not (out / "results.json").is_file():
        run_script("eval_au.py", "--model", model, "--data", *arguments.test, "--out", out, *options)


def predictions_in(folder: Path) -> list[dict]:
    return datasets.Dataset.from_parquet(str(folder / "predictions.parquet")).to_list()


def gather(rows: list[dict], out: Path) -> None:
    """Write the predictions of several models as those of one system."""
    out.mkdir(parents=True, exist_ok=True)
    rows = sorted(rows, key=lambda row: [row[key] for key in KEYS])
    write_predictions(out, rows)


def summarize(out: Path, seconds: dict[str, float], setting: dict, resamples: int = 5000) -> dict:
    """Scores of every system, and their differences from slots by so many resamples, as comparison.json holds them."""
    systems, differences = {}, {}
    for name in ("slots", "free", "single", "separate"):
        systems[name] = {
            fmt: {
                metric: {
                    "value": scores["mean"][metric],
                    "interval": scores["mean_interval"][metric],
                    "averaged": scores["averaged"][metric],
                }
                for metric in HEADLINE[fmt]
                if metric in scores["mean"]
            }
            for fmt, scores in score_predictions(predictions_in(out / "eval" / name)).items()
        }
        if name != "slots":
            path = out / f"slots-minus-{name}.json"
            folders = [str(out / "eval" / system) for system in ("slots", name)]
            evaluate_command(["compare", *folders, "--resamples", str(resamples), "--out", str(path)])
            compared = json.loads(path.read_text())
            differences[name] = {
                fmt: {metric: compared[fmt]["mean"][metric] for metric in metrics if metric in compared[fmt]["mean"]}
                for fmt, metrics in HEADLINE.items()
            }
    return {"setting": setting, "processor_seconds": seconds, "systems": systems, "slots_minus": differences}


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="record tables with training and validation people")
    parser.add_argument("--test", nargs="+", required=True, help="record tables with test people")
    parser.add_argument("--image-size", type=int, default=64, help="side of the images (default: 64)")
    parser.add_argument("--epochs", type=float, default=2.5, help="of tower pretraining (default: 2.5)")
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        help="of fine-tuning, 64 images each; a language model from scratch needs about a thousand (default: 1000)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; finished steps in it are kept")
    return parser


def main(arguments: argparse.Namespace) -> None:
    out, formats = arguments.out, list(MAIN_FORMATS)
    setting = {key: getattr(arguments, key) for key in ("data", "test", "image_size", "epochs", "steps")}
    start_run(out, setting)
    base = out / "base"
    if not base.is_dir():
        with replacing(base) as unfinished:
            run_script("maintenance/build_tiny_base.py", "--image-size", arguments.image_size, "--out", unfinished)
    ours, taken = train_ours("ours", formats, arguments)
    evaluate(ours, arguments, out / "eval" / "slots")
    evaluate(ours, arguments, out / "eval" / "free", "--decoding", "free")
    seconds = {"ours": taken}

    single = []
    for name in formats:
        folder = out / "eval" / f"single-{name}"
        model, seconds[f"single-{name}"] = train_ours(f"single-{name}", [name], arguments)
        evaluate(model, arguments, folder, "--formats", name)
        single += predictions_in(folder)
    gather(single, out / "eval" / "single")

    separate = []
    for name in formats:
        folder = out / "eval" / f"separate-{name}"
        if not (folder / "predictions.parquet").is_file():
            share = seconds["ours"] / len(formats)
            gather(train_separate(name, base, arguments.data, arguments.test, share, out), folder)
        separate += predictions_in(folder)
    gather(separate, out / "eval" / "separate")

    write_results(out / "comparison.json", summarize(out, seconds, setting))


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
