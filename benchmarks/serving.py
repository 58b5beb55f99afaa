"""The slots pass in PyTorch, as an exported program and as an ONNX file, and typed questions: measured in one run.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/serving.py --write serving

Measures the time from prepared pixels to the calibrated distributions of three formats. The engines take turns, so that
a slow moment of the machine affects all, and the best turn of each counts. Their largest difference from eager PyTorch,
in probability, is measured on the same pixels.

Typed questions (docs/serving.md#decision-model) are the AUs of bp4d and disfa, about a face in a PNG file. They are
answered by the model's own route, which reads the mirror image too, and by Transformers' plain route, which makes a
pass of each; both read the whole request and write the whole answer.
"""

import argparse
import base64
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from decoding import best_seconds
from page import add_model_option, add_write_option, make_table, runner, show
from rich.table import Table
from transformers import DecisionConfig, DecisionPipeline

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_publishing.export import INPUT_NAME, export
from au_llava.au_publishing.onnx_file import save_onnx
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME
from au_llava.calibration_au_llava import calibrate
from au_llava.decoding_au_llava import read_slots

ALL = tuple(FORMATS[name] for name in MAIN_FORMATS)
FACE = HOME / "assets" / "faces" / "smile.png"
ASKED = {"bp4d": {"type": "noul"}, "disfa": {"type": "score", "criteria": list("012345")}}  # one token each


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
        return [calibrate(read[fmt.name].numpy(), fmt, calibration)[0] for fmt in ALL]

    return {
        "eager PyTorch": eager,
        "torch.export": lambda pixels: [distributions.numpy() for distributions in program(pixels).values()],
        "ONNX Runtime": lambda pixels: session.run(None, {INPUT_NAME: pixels.numpy()}),
    }


def routes(name: str, model, processor) -> dict:
    """Name -> function that answers the same request about `FACE`; the first just recognizes its formats."""
    image = {"type": "image", "format": "png", "data_base64": base64.b64encode(FACE.read_bytes()).decode()}
    questions = {f"{fmt} {label}": question for fmt, question in ASKED.items() for label in FORMATS[fmt].labels}
    request = {"state": "face", "assets": {"face": image}, "questions": questions}
    decide = DecisionPipeline(model=model, processor=processor, tokenizer=processor.tokenizer)
    other, beside = load_checkpoint(name, dtype="float32", device="cpu")  # that route adds tokens to its tokenizer
    config = DecisionConfig.from_pretrained(name)
    plain = DecisionPipeline(model=other, processor=beside, tokenizer=beside.tokenizer, decision_config=config)

    def plainly():
        with patch("transformers.pipelines.decision.DecisionMixin", type("NoDecisionModel", (), {})):
            return plain(request)

    return {
        "recognize": lambda: model.recognize(processor, FACE, list(ASKED)),
        "own route": lambda: decide(request),
        "plain route": plainly,
    }


def questions_table(name: str, model, processor, repeats: int) -> Table:
    """How long the questions of a request take, by either route."""
    ways = routes(name, model, processor)
    count = len(ways["own route"]())
    best = best_seconds(ways, repeats)
    table = make_table("answered by", "milliseconds", "times recognize", "times own route", text=["answered by"])
    for way, seconds in best.items():
        ratios = (f"{seconds / best[other]:.2f}" for other in ("recognize", "own route"))
        table.add_row(way, f"{1000 * seconds:.1f}", *ratios)
    table.caption = f"{count} questions of one request; processor time, best of {repeats} turns"
    return table


def main(arguments: argparse.Namespace) -> None:
    model, processor = load_checkpoint(arguments.model, dtype="float32", device="cpu")
    crop = processor.image_processor.crop_size
    table = make_table(
        *("batch", "engine", "seconds", "images/s", "times eager", "largest difference"),
        text=["engine"],
        caption=f"onnxruntime {version('onnxruntime')}; largest difference: of a probability, from eager",
    )
    with torch.inference_mode():
        ways = engines(model, processor)
        for batch in arguments.batch_sizes:
            pixels = torch.randn(batch, 3, crop["height"], crop["width"], generator=torch.Generator().manual_seed(0))
            results = {name: read(pixels) for name, read in ways.items()}  # also warms up
            best = best_seconds({name: partial(read, pixels) for name, read in ways.items()}, arguments.repeats)
            for name, seconds in best.items():
                pairs = zip(results[name], results["eager PyTorch"], strict=True)
                differences = [np.abs(other - eager).max() for other, eager in pairs]
                rate, ratio = batch / seconds, best["eager PyTorch"] / seconds
                row = (str(batch), name, f"{seconds:.4f}", f"{rate:.1f}", f"{ratio:.2f}", f"{max(differences):.0e}")
                table.add_row(*row)
            table.add_section()
    asked = questions_table(arguments.model, model, processor, arguments.repeats)
    show([table, asked], arguments.write)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="images a pass (default: 1 16)")
    parser.add_argument("--repeats", type=int, default=30, help="turns; the best one counts (default: 30)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
