"""One model for all formats against the usual way, on the same data, resolution and compute.

    python benchmarks/comparison.py --data data/rendered-train --test data/rendered-test --out runs/comparison

Four systems, from scratch on the training people, thresholds chosen on the validation people, scored on the test part:

- slots, free: this project's model (tower pre-training, then train_sft.py), read by slots and by free decoding;
- single: copies of it that learn one format each, with the same number of steps each;
- separate: three discriminative networks, a timm ResNet of the tower's shape with a linear head each, BCE for
  occurrence and MSE for the other scales; together they get the processor time that the one model took.

Finished steps are not repeated: start the same command to go on. Writes OUT/comparison.json; needs timm (with
torchvision), which nothing else here does.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers import AutoProcessor, Trainer, TrainerCallback, TrainingArguments

from au_llava.action_units import MAIN_FORMATS, AUFormat, get_format
from au_llava.au_datasets.mixing import training_rows
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.calibration import best_threshold
from au_llava.au_evaluation.predictions import KEYS
from au_llava.au_evaluation.scoring import jsonable, score_predictions
from au_llava.eval_au import main as eval_au
from au_llava.tools.pretrain_tower import SharesCollator

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "rendered_tiny.yaml"
HEADLINE = {"bp4d": ("f1", "roc_auc"), "disfa": ("icc", "mae"), "feafa": ("pcc", "mae")}


def run(*words) -> None:
    """Run one of the project's commands; CalledProcessError if it fails."""
    subprocess.run([sys.executable, *map(str, words)], check=True)


def children_seconds() -> float:
    """Processor seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class SeparateNetwork(nn.Module):
    """A timm ResNet of the shape of a tower, for one format.

    Args:
        vision_config: of the tower, a transformers ResNetConfig. fmt: the format.
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
    """Ends training after `seconds` of this process's processor time, and knows how much of it has gone."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.process_time()

    def gone(self) -> float:
        """Share of the time that has gone, 0 to 1."""
        return min(1.0, (time.process_time() - self.start) / self.seconds)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.gone() >= 1


def train_separate(name: str, base: Path, data: list[str], test: list[str], seconds: float, out: Path) -> list[dict]:
    """Train a network for the format `name` and read the test part; rows as in predictions.parquet."""
    fmt = get_format(name)
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(base, trust_remote_code=True)
    config = json.loads((base / "config.json").read_text())["vision_config"]
    network = SeparateNetwork(argparse.Namespace(**config), fmt).to(memory_format=torch.channels_last)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    plain = [weight for weight in network.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0}], 3e-3
    )
    clock = ProcessorTime(seconds)
    cosine = lambda step: min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * clock.gone()))
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
    train, validation = (training_rows(data, part, [name]) for part in ("train", "validation"))
    tested = training_rows(test, "test", [name])
    trainer = Trainer(
        network,
        options,
        data_collator=SharesCollator(processor, [name], seed=0),
        train_dataset=train,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)),
        callbacks=[clock],
    )
    trainer.train()
    trainer.data_collator = SharesCollator(processor, [name], seed=0, training=False)
    shares, truth = {}, {}
    for part, rows in (("validation", validation), ("test", tested)):
        found = trainer.predict(rows)
        shares[part], truth[part] = 1 / (1 + np.exp(-found.predictions.astype(float))), found.label_ids
    top = fmt.value_numbers[-1]
    present = truth["validation"] * top >= fmt.presence_threshold - 1e-6
    thresholds = [best_threshold(shares["validation"][:, k], present[:, k]) for k in range(len(fmt.labels))]
    records = load_records(test, part="test", formats=[name])
    assert np.allclose(np.array(records["values"][:]), truth["test"] * top, atol=1e-4)
    rows = []
    for number, (record, share) in enumerate(
        zip(records.select_columns([*KEYS, "values"]), shares["test"], strict=True)
    ):
        present, expected = (share >= thresholds).astype(float).tolist(), (share * top).tolist()
        rows.append(
            {
                **{key: record[key] for key in KEYS},
                "row": number,
                "asked": name,
                "references": record["values"],
                "values": present if fmt.scale == "occurrence" else expected,
                "expected": expected,
                "probability": share.tolist(),  # of presence on the occurrence scale, else what ranks as it does
                "present": present,
                "text": "",
                "problems": [],
                "contradictions": [],
            }
        )
    return rows


def timed(folder: Path, *words) -> float:
    """Run the command that fills `folder`, unless it has done so; the processor seconds that it took."""
    kept = folder / "seconds.json"
    if not kept.is_file():
        before = children_seconds()
        run(*words)
        kept.write_text(json.dumps(children_seconds() - before))
    return json.loads(kept.read_text())


def train_ours(name: str, formats: list[str], arguments: argparse.Namespace) -> tuple[Path, float]:
    """Tower pre-training, fine-tuning and calibration of a copy that learns `formats`; its folder, and the processor
    seconds that training took."""
    seen, model, calibration = (arguments.out / f"{name}{end}" for end in ("-seen", "", "-calibration"))
    tower = (ROOT / "tools" / "pretrain_tower.py", "--base", arguments.out / "base", "--data", *arguments.data)
    few = ("--formats", *formats, "--place_weight", 0, "--workers", 0, "--epochs", arguments.epochs)
    fine_tuning = (ROOT / "train_sft.py", "--config", RECIPE, "--model_name_or_path", seen, "--data", *arguments.data)
    steps = ("--max_steps", arguments.steps, "--warmup_steps", arguments.steps // 10, "--learning_rate", 1.5e-3)
    steps += ("--per_device_train_batch_size", 64, "--use_cpu", "true")  # it is processor time that is shared out
    quiet = ("--dataloader_num_workers", 0, "--eval_strategy", "no", "--save_strategy", "no")
    seconds = timed(seen, *tower, *few, "--out", seen)
    seconds += timed(model, *fine_tuning, *steps, *quiet, "--formats", *formats, "--output_dir", model)
    timed(calibration, ROOT / "eval_au.py", "--model", model, "--calibrate", *arguments.data, "--out", calibration)
    return model, seconds


def evaluate(model: Path, arguments: argparse.Namespace, out: Path, *options) -> None:
    """Predictions and scores of a checkpoint on the test part, in `out`."""
    if not (out / "results.json").is_file():
        run(ROOT / "eval_au.py", "--model", model, "--data", *arguments.test, "--out", out, *options)


def gather(rows: list[dict], out: Path) -> None:
    """Write predictions of several models as one system's."""
    out.mkdir(parents=True, exist_ok=True)
    rows = sorted(rows, key=lambda row: [row[key] for key in KEYS])
    datasets.Dataset.from_list(rows).to_parquet(out / "predictions.parquet")


def summarise(out: Path, seconds: dict[str, float], setting: dict) -> dict:
    """Scores of every system and how the others differ from slots, as comparison.json holds them."""
    systems, differences = {}, {}
    for name in ("slots", "free", "single", "separate"):
        rows = datasets.Dataset.from_parquet(str(out / "eval" / name / "predictions.parquet")).to_list()
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
            for fmt, scores in score_predictions(rows).items()
        }
        if name != "slots":
            path = out / f"slots-minus-{name}.json"
            eval_au(["compare", str(out / "eval" / "slots"), str(out / "eval" / name), "--out", str(path)])
            compared = json.loads(path.read_text())
            differences[name] = {
                fmt: {m: compared[fmt]["mean"][m] for m in metrics if m in compared[fmt]["mean"]}
                for fmt, metrics in HEADLINE.items()
            }
    return {
        "schema_version": 1,
        "setting": setting,
        "processor_seconds": seconds,
        "systems": systems,
        "slots_minus": differences,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", nargs="+", required=True, help="record tables with training and validation people")
    parser.add_argument("--test", nargs="+", required=True, help="record tables with test people")
    parser.add_argument("--image_size", type=int, default=64, help="side of the images (default: 64)")
    parser.add_argument("--epochs", type=float, default=2.5, help="of tower pre-training (default: 2.5)")
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        help="of fine-tuning, 64 images each; a language model from scratch needs about a thousand (default: 1000)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; taken up again if it has some")
    arguments = parser.parse_args()
    out, formats = arguments.out, list(MAIN_FORMATS)
    base = out / "base"
    if not base.is_dir():
        run(ROOT / "maintenance" / "build_tiny_base.py", "--image-size", arguments.image_size, "--out", base)
    ours, taken = train_ours("ours", formats, arguments)
    evaluate(ours, arguments, out / "eval" / "slots")
    evaluate(ours, arguments, out / "eval" / "free", "--decoding", "free")
    seconds = {"ours": taken}

    single = []
    for name in formats:
        model, seconds[f"single-{name}"] = train_ours(f"single-{name}", [name], arguments)
        evaluate(model, arguments, out / "eval" / f"single-{name}", "--formats", name)
        single += datasets.Dataset.from_parquet(str(out / "eval" / f"single-{name}" / "predictions.parquet")).to_list()
    gather(single, out / "eval" / "single")

    separate = []
    for name in formats:
        kept = out / "eval" / f"separate-{name}" / "predictions.parquet"
        if not kept.is_file():
            share = seconds["ours"] / len(formats)
            gather(train_separate(name, base, arguments.data, arguments.test, share, out), kept.parent)
        separate += datasets.Dataset.from_parquet(str(kept)).to_list()
    gather(separate, out / "eval" / "separate")

    setting = {key: getattr(arguments, key) for key in ("data", "test", "image_size", "epochs", "steps")}
    content = jsonable(summarise(out, seconds, setting))
    (out / "comparison.json").write_text(json.dumps(content, indent=1))
    Console().print(f"Written: {out / 'comparison.json'}")


if __name__ == "__main__":
    main()
