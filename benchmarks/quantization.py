"""The cost of 16, 8 and 4 bits: scores, memory and processor time of a checkpoint, measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py --data data/rendered-test --images 500 --write quantisation

Every precision reads the same images with the slots decoder, calibrated, in all annotated formats. Scores are means
over AUs, as in eval_au.py. Memory is that of weights and buffers. Seconds are processor time, which other programs do
not change, with decoding and preparing the images.
"""

import argparse
import sys
import time
from importlib.metadata import version

import numpy as np
from page import add_model_option, add_write_option, make_table, runner, show
from rich.table import Table

from au_llava.action_units import get_format
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_evaluation.predictions import predict, use_prior
from au_llava.au_evaluation.rows import by_format
from au_llava.au_evaluation.scoring import score_arguments
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.engines import TorchEngine
from au_llava.metrics_au import score

PRECISIONS = {  # arguments of `load_checkpoint`
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bits": {"dtype": "float32", "quantize": "8bit"},
    "4 bits (NF4)": {"dtype": "float32", "quantize": "4bit"},
}
METRICS = {"occurrence": ("f1",), "intensity": ("f1", "icc", "pcc", "mae"), "continuous": ("f1", "icc", "pcc", "mae")}


def measure(arguments: argparse.Namespace, records, options: dict) -> tuple[float, float, list[dict]]:
    """(MiB of weights, processor seconds per 100 images, predictions) of one precision."""
    model, processor = load_checkpoint(arguments.model, **options)
    engine = TorchEngine(model, processor)
    use_prior(engine, records)
    memory = model.get_memory_footprint() / 2**20
    predict(engine, records.select(range(1)))  # builds the token tree
    start, timing = time.process_time(), {}
    predictions = predict(engine, records, batch_size=16, timing=timing)
    return memory, 100 * (time.process_time() - start) / timing["images"], predictions


def tables(measured: dict[str, tuple], images: int) -> list[Table]:
    """Scores per format and precision, and what they cost."""
    scores = make_table(
        *("format", "precision", "F1", "ICC", "PCC", "MAE", "mean change of P", "decisions changed"),
        text=["format", "precision"],
        title=f"{images} images; means over AUs; changes of probabilities and decisions against float32",
    )
    exact = by_format(measured["float32"][2])
    for name in exact:
        fmt = get_format(name)
        references, _ = score_arguments(exact[name], fmt)
        for precision, (_, _, predictions) in measured.items():
            readings, scored = score_arguments(by_format(predictions)[name], fmt)
            means = score(fmt=scored, **readings)["mean"]
            shown = [f"{means[key]:.3f}" if key in METRICS[fmt.scale] else "" for key in ("f1", "icc", "pcc", "mae")]
            change = np.abs(readings["probabilities"] - references["probabilities"]).mean()
            flipped = np.mean(readings["decisions"] != references["decisions"])
            changes = ("", "") if precision == "float32" else (f"{change:.4f}", f"{100 * flipped:.1f} %")
            scores.add_row(name, precision, *shown, *changes)
        scores.add_section()
    columns = ("precision", "MiB of weights", "processor s per 100 images")
    costs = make_table(*columns, text=["precision"], caption=f"bitsandbytes {version('bitsandbytes')}")
    for precision, (memory, seconds, _) in measured.items():
        costs.add_row(precision, f"{memory:.2f}", f"{seconds:.2f}")
    return [scores, costs]


def main(arguments: argparse.Namespace) -> None:
    records = load_records([arguments.data], part="test")
    groups = group_by_image(records)[: arguments.images]
    records = records.select(sorted(row for group in groups for row in group.values()))
    measured = {name: measure(arguments, records, options) for name, options in PRECISIONS.items()}
    notes = "Only the language model's layers are quantized. The loss of a large model was not measured."
    show(tables(measured, len(groups)), arguments.write, notes)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--data", default="data/rendered-test", help="folder made by prepare_data.py")
    parser.add_argument("--images", type=int, help="read this many images (default: all of the test part)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
