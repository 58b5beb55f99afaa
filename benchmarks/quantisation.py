"""What 16, 8 and 4 bits cost: scores, memory and processor time of a checkpoint, side by side in one run.

    OMP_NUM_THREADS=1 python benchmarks/quantisation.py --data data/rendered-test --images 500 --write quantisation

Every precision reads the same images with the slots decoder, calibrated, in all formats that they are annotated in.
Scores are means over AUs, as eval_au.py has them. Memory is what weights and buffers take. Seconds are processor time,
which other programs on the machine do not change, images decoded and prepared included.
"""

import argparse
import sys
import time
from importlib.metadata import version

import numpy as np
from page import add_write_option, show
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import get_format
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_evaluation.predictions import predict, use_prior
from au_llava.au_evaluation.scoring import by_format, score_arguments
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME
from au_llava.metrics_au import score
from au_llava.quantization_au_llava import loading_options

PRECISIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bits": {"dtype": "float32", **loading_options("8bit")},
    "4 bits (NF4)": {"dtype": "float32", **loading_options("4bit")},
}
METRICS = {"occurrence": ("f1",), "intensity": ("f1", "icc", "pcc", "mae"), "continuous": ("f1", "icc", "pcc", "mae")}


def measure(arguments: argparse.Namespace, records, options: dict) -> tuple[float, float, list[dict]]:
    """(MiB of weights, processor seconds per 100 images, predictions) of one precision."""
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, **options).eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    use_prior(model, records)
    memory = model.get_memory_footprint() / 2**20
    predict(model, processor, records.select(range(1)))  # compiles the token tree
    start, timing = time.process_time(), {}
    predictions = predict(model, processor, records, batch_size=16, timing=timing)
    return memory, 100 * (time.process_time() - start) / timing["images"], predictions


def tables(measured: dict[str, tuple], images: int) -> list[Table]:
    """Scores per format and precision, and what they cost."""
    scores = Table(
        title=f"{images} images; means over AUs; changes of probabilities and decisions against float32",
        title_justify="left",
    )
    for column in ("format", "precision", "F1", "ICC", "PCC", "MAE", "mean change of P", "decisions changed"):
        scores.add_column(column, justify="left" if column in ("format", "precision") else "right")
    exact = by_format(measured["float32"][2])
    for name in exact:
        fmt = get_format(name)
        references, _ = score_arguments(exact[name], fmt)
        for precision, (_, _, predictions) in measured.items():
            found, scored = score_arguments(by_format(predictions)[name], fmt)
            means = score(fmt=scored, **found)["mean"]
            shown = [f"{means[key]:.3f}" if key in METRICS[fmt.scale] else "" for key in ("f1", "icc", "pcc", "mae")]
            change = np.abs(found["probabilities"] - references["probabilities"]).mean()
            flipped = np.mean(found["decisions"] != references["decisions"])
            changes = ("", "") if precision == "float32" else (f"{change:.4f}", f"{100 * flipped:.1f} %")
            scores.add_row(name, precision, *shown, *changes)
        scores.add_section()
    costs = Table(caption=f"bitsandbytes {version('bitsandbytes')}")
    for column in ("precision", "MiB of weights", "processor s per 100 images"):
        costs.add_column(column, justify="left" if column == "precision" else "right")
    for precision, (memory, seconds, _) in measured.items():
        costs.add_row(precision, f"{memory:.2f}", f"{seconds:.2f}")
    return [scores, costs]


def main(arguments: argparse.Namespace) -> None:
    logging.disable_progress_bar()
    records = load_records([arguments.data], part="test")
    groups = group_by_image(records)[: arguments.images]
    records = records.select(sorted(row for group in groups for row in group.values()))
    measured = {name: measure(arguments, records, options) for name, options in PRECISIONS.items()}
    notes = "Only the language model's layers are quantised. What a large one loses was not measured here."
    show(tables(measured, len(groups)), arguments.write, notes)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=str(HOME), help="checkpoint folder or Hub id (default: this repository)")
    parser.add_argument("--data", default="data/rendered-test", help="folder made by prepare_data.py")
    parser.add_argument("--images", type=int, help="read this many images (default: all of the test part)")
    add_write_option(parser)
    return parser


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"quantisation.py: {sentence_of(error)}")
