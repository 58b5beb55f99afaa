"""The slots pass as PyTorch runs it, as an exported program, and as an ONNX file: images per second, in one run.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/serving.py --write serving

Pixels are ready; what is timed is the way from there to the distributions of three formats, calibration included.
Engines take turns, so that a slow spell of the machine falls on all alike, and the best of each counts. Their largest
difference from eager PyTorch, in probability, is measured on the same pixels.
"""

import argparse
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from decoding import best_seconds
from page import add_write_option, show
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_publishing.export import INPUT_NAME, export, save_onnx
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME
from au_llava.calibration_au_llava import calibrate
from au_llava.decoding_au_llava import read_slots

ALL = tuple(FORMATS[name] for name in MAIN_FORMATS)


def engines(model, processor) -> dict:
    """Name -> function from pixels (images, 3, height, width) to one array of distributions per format."""
    threads = torch.get_num_threads()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "au_llava.onnx"
        save_onnx(model, processor, ALL, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    program = export(model, processor, ALL).module()
    calibration = model.config.calibration

    def eager(pixels):
        read = read_slots(model, processor, pixels, ALL)
        return [calibrate(read[fmt.name].double().numpy(), fmt, calibration)[0] for fmt in ALL]

    return {
        "eager PyTorch": eager,
        "torch.export": lambda pixels: [each.numpy() for each in program(pixels).values()],
        "ONNX Runtime": lambda pixels: session.run(None, {INPUT_NAME: pixels.numpy()}),
    }


def main(arguments: argparse.Namespace) -> None:
    logging.disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    crop = processor.image_processor.crop_size
    table = Table(caption=f"onnxruntime {version('onnxruntime')}; largest difference: of a probability, from eager")
    for column in ("batch", "engine", "seconds", "images/s", "times eager", "largest difference"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    with torch.inference_mode():
        ways = engines(model, processor)
        for batch in arguments.batch_sizes:
            pixels = torch.randn(batch, 3, crop["height"], crop["width"], generator=torch.Generator().manual_seed(0))
            found = {name: run(pixels) for name, run in ways.items()}  # also warms up
            best = best_seconds({name: partial(run, pixels) for name, run in ways.items()}, arguments.repeats)
            for name, seconds in best.items():
                differences = [np.abs(a - b).max() for a, b in zip(found[name], found["eager PyTorch"], strict=True)]
                rate, ratio = batch / seconds, best["eager PyTorch"] / seconds
                row = (str(batch), name, f"{seconds:.4f}", f"{rate:.1f}", f"{ratio:.2f}", f"{max(differences):.0e}")
                table.add_row(*row)
            table.add_section()
    show([table], arguments.write)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=str(HOME), help="checkpoint folder or Hub id (default: this repository)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16], help="images a pass (default: 1 16)")
    parser.add_argument("--repeats", type=int, default=30, help="turns, of which the best counts (default: 30)")
    add_write_option(parser)
    return parser


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"serving.py: {sentence_of(error)}")
