"""The speed of training, against plain TRL on the same records in the same run.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/training.py --model . --write training
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/training.py --shape siglip2-smollm2 --images 2 --steps 2
    python benchmarks/training.py --model . --data data/rendered-train --turns 1 --compile

A record is one image labeled in one format. Plain TRL is an unmodified `SFTTrainer` on one row of image, question and
answer per record, with the loss on the answer; it encodes an image once per format. All variants start from the same
weights, freeze the tower and take the same number of records per step. This project's variants train slot trees: the
values, not the words between them. Without `--data` the records are rendered.

Variants take turns, so that a slow moment of the machine affects all, and the best turn of each counts, without its
first step (warm-up, compilation). On a CPU seconds are processor time, which other programs do not change; "loading" is
the share of them in which training waits for its batches, which the training process loads itself (no workers).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import datasets
import torch
from decoding import DEVICE, SHAPES, build, seconds
from page import add_write_option, make_table, runner, show
from rich.table import Table
from transformers import AutoProcessor, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from au_llava.action_units import get_format, write_answer
from au_llava.au_datasets.mixing import training_rows
from au_llava.au_runs.commands import CommandParser
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.features import use_cached_features
from au_llava.au_training.options import AUTrainingConfig
from au_llava.au_training.start import freeze_parts
from au_llava.au_training.trainer import AUTrainer
from au_llava.configuration_au_llava import PROMPT_ORDERS
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.prepare_data import run as prepare_data

PLAIN = "plain TRL: a sequence per record"


class Stopwatch(TrainerCallback):
    """Measures the seconds of a training's steps after the first `skipped` ones, and of waiting for batches in them."""

    def __init__(self, trainer, skipped: int):
        self.skipped = skipped
        fetch = trainer.get_batch_samples

        def timed(*arguments):
            start = seconds()
            batches = fetch(*arguments)
            self.waited += seconds() - start
            return batches

        trainer.get_batch_samples = timed
        trainer.add_callback(self)
        trainer.remove_callback(PrinterCallback)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.waited = seconds(), 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.skipped:
            self.start, self.waited = seconds(), 0.0
        elif state.global_step == state.max_steps:
            self.took = seconds() - self.start


def plain_rows(rows: datasets.Dataset, processor) -> datasets.Dataset:
    """One row per record of `training_rows`: image, question and answer, in TRL's prompt-completion form."""
    records = []
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        for name, values in zip(row["formats"], row["values"], strict=True):
            fmt = get_format(name)
            turns = processor.messages(fmt, write_answer(dict(zip(fmt.labels, values, strict=True)), fmt))
            records.append({"image": row["image"], "prompt": turns[:1], "completion": turns[1:]})
    return datasets.Dataset.from_list(records).cast_column("image", datasets.Image())


def mixed_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows as in a mixture: every third with labels in all formats, the others only in the first format."""
    columns = {
        name: [entry if row % 3 == 0 else entry[:1] for row, entry in enumerate(rows[name][:])]
        for name in ("formats", "values")
    }
    rows = rows.remove_columns(list(columns))
    for name, column in columns.items():
        rows = rows.add_column(name, column)
    return rows


def make_model(arguments: argparse.Namespace):
    """The (model, processor) of the command line, with a frozen tower."""
    if arguments.shape:
        model, processor = build(arguments.shape, torch.float32, prompt_order=arguments.prompt_order)
    else:
        model = AuLlavaForConditionalGeneration.from_pretrained(arguments.model).to(DEVICE)
        processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    freeze_parts(model, ["vision_tower"])
    return model, processor


def make_trainer(arguments: argparse.Namespace, rows: datasets.Dataset, plain: bool = False, **options):
    """A trainer with its own model: plain TRL's or this project's; `options` are training arguments."""
    model, processor = make_model(arguments)
    settings = {
        "output_dir": tempfile.mkdtemp(dir=arguments.folder),
        "use_cpu": DEVICE == "cpu",
        "bf16": DEVICE != "cpu",
        "activation_checkpointing": False,
        "max_length": None,
        "max_steps": arguments.steps + 1,
        "per_device_train_batch_size": arguments.images * (len(rows[0]["formats"]) if plain else 1),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1000,
        **options,
    }
    common = {"model": model, "processing_class": processor}
    if plain:
        return SFTTrainer(args=SFTConfig(**settings), train_dataset=plain_rows(rows, processor), **common)
    collator = AUCollator(processor, causal_share=0)
    return AUTrainer(args=AUTrainingConfig(**settings), train_dataset=rows, data_collator=collator, **common)


def measure(trainers: dict, turns: int, skipped: int) -> dict[str, tuple[float, float]]:
    """Per trainer, the seconds of its best turn without `skipped` steps, and the share of them spent waiting."""
    watches = {name: Stopwatch(trainer, skipped) for name, trainer in trainers.items()}
    best: dict[str, tuple[float, float]] = {}
    for _ in range(turns):
        for name, trainer in trainers.items():
            trainer.train()
            took = watches[name].took
            best[name] = min(best.get(name, (took, 1)), (took, watches[name].waited / took))
    return best


def comparison(title: str, times: dict[str, tuple[float, float]], records: int) -> Table:
    """Records a second of every variant, against the first one.

    Args:
        records: the number of records that each variant trained on in its seconds.
    """
    table = make_table("variant", "records/s", "times the first", "loading", text=["variant"], title=title)
    first = next(iter(times.values()))[0]
    for name, (took, waited) in times.items():
        table.add_row(name, f"{records / took:.3g}", f"{first / took:.2f}", f"{waited:.1%}")
    return table


def render(arguments: argparse.Namespace, side: int) -> str:
    """Render training data for one epoch, so that no image appears twice in a turn; returns its folder."""
    folder = str(Path(arguments.folder) / "rendered")
    people = arguments.images * (arguments.steps + 1)
    words = ["rendered", "--subjects", people, "--images-per-subject", 1, "--size", side, "--workers", 1]
    prepare_data([*map(str, words), "--validation", "0", "--test", "0", "--out", folder])
    return folder


def compare_variants(arguments: argparse.Namespace, rows: datasets.Dataset) -> tuple[Table, float]:
    """Plain TRL against slot trees, on images in all formats; and the seconds of encoding images for the cache."""
    trainers = {
        PLAIN: make_trainer(arguments, rows, plain=True),
        "all formats of an image in one sequence": make_trainer(arguments, rows),
        "one sequence, cached features": make_trainer(arguments, rows),
    }
    start = seconds()
    use_cached_features(trainers["one sequence, cached features"], arguments.folder)
    encoding = seconds() - start
    if arguments.compile:
        compiled = trainers["one sequence, cached features, compiled"] = make_trainer(
            arguments, rows, torch_compile=True
        )
        use_cached_features(compiled, arguments.folder)
    times = measure(trainers, arguments.turns, skipped=1)
    records = arguments.images * arguments.steps * len(rows[0]["formats"])
    return comparison("Three formats of every image, frozen tower", times, records), encoding


def compare_sampling(arguments: argparse.Namespace, rows: datasets.Dataset) -> Table:
    """Random order against groups of equal length, on a mixture."""
    mixed, few = mixed_rows(rows), max(1, arguments.images // 4)  # groups need many batches to choose from
    options = {"per_device_train_batch_size": few, "max_steps": len(mixed) // few}
    trainers = {
        f"cached features, {strategy}": make_trainer(arguments, mixed, train_sampling_strategy=strategy, **options)
        for strategy in ("random", "group_by_length")
    }
    for trainer in trainers.values():
        use_cached_features(trainer, arguments.folder)
    times = measure(trainers, arguments.turns, skipped=0)  # the whole epoch: the same rows in another order
    records = sum(map(len, mixed["formats"][:]))
    return comparison(f"Every third image in all formats, the others in one; {few} images per step", times, records)


def compare(arguments: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    model, processor = make_model(arguments)
    data = arguments.data or render(arguments, processor.image_processor.crop_size["height"])
    rows = training_rows([data], "train", None)
    rows = rows.select(range(min(len(rows), arguments.images * (arguments.steps + 1))))
    variants, encoding = compare_variants(arguments, rows)
    sampling = compare_sampling(arguments, rows)
    unit = "of processor time" if DEVICE == "cpu" else "by the clock"
    notes = (
        f"{model.num_parameters():,} parameters; {arguments.images} images per step, {arguments.steps} steps, best of "
        f"{arguments.turns} turns, seconds {unit}. Encoding for the cache, once: "
        f"{1000 * encoding / len(rows):.1f} ms per image."
    )
    show([variants, sampling], arguments.write, notes)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="checkpoint, such as . for the shipped one")
    what.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument(
        "--prompt-order", choices=PROMPT_ORDERS, default="image_first", help="of --shape (default: image_first)"
    )
    parser.add_argument("--data", help="records of images in several formats; default: rendered for this run")
    parser.add_argument("--images", type=int, default=16, help="per step (default: 16)")
    parser.add_argument("--steps", type=int, default=6, help="per turn, after the first (default: 6)")
    parser.add_argument("--turns", type=int, default=3, help="the best one counts (default: 3)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    add_write_option(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as arguments.folder:
        compare(arguments)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
