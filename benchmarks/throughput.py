"""Images a second that PyTorch reads in large batches, where loading is not the limit: for a GPU.

    python benchmarks/throughput.py --device cuda --write throughput
    OMP_NUM_THREADS=1 python benchmarks/throughput.py --device cpu --batches 2 --batch-size 8

Three formats. "network" starts from prepared pixels on the device and ends with the distributions in the processor's
memory; "with answers" starts from prepared pixels there, the next batch being copied to the device meanwhile, and goes
on to calibrated answers. Decoding pictures is left out: as many threads or processes do it as keep up. On a GPU seconds
are those of the clock, on a processor those of processor time.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from page import add_model_option, add_write_option, make_table, runner, show

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.decoding_au_llava import read_slots
from au_llava.readings_au_llava import slot_answers

ALL = tuple(FORMATS[name] for name in MAIN_FORMATS)


def ways(model, processor, batches: list[torch.Tensor]) -> dict[str, Callable[[], int]]:
    """What is measured -> a function that reads all batches and returns how many images it has read.

    Args:
        batches: (images, 3, height, width) pixels in the memory of the processor.
    """
    there = [pixels.to(model.device) for pixels in batches]

    def network() -> int:
        return sum(len(next(iter(read_slots(model, processor, pixels, ALL).values()))) for pixels in there)

    def with_answers() -> int:
        read, upcoming = 0, batches[0].to(model.device, non_blocking=True)
        for number in range(len(batches)):
            pixels = upcoming
            if number + 1 < len(batches):
                upcoming = batches[number + 1].to(model.device, non_blocking=True)
            read += len(slot_answers(read_slots(model, processor, pixels, ALL), ALL, model.config.calibration))
        return read

    return {"network": network, "with answers": with_answers}


def rates(tasks: dict[str, Callable[[], int]], device: str, repeats: int) -> dict[str, float]:
    """Images a second of each; the best of `repeats` turns, after one that warms up."""

    def seconds() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    best = dict.fromkeys(tasks, 0.0)
    for turn in range(1 + repeats):
        for name, task in tasks.items():
            start = seconds()
            images = task()
            if turn:
                best[name] = max(best[name], images / (seconds() - start))
    return best


def main(arguments: argparse.Namespace) -> None:
    if min(arguments.batch_size, arguments.batches, arguments.repeats) < 1:
        raise ValueError("--batch-size, --batches and --repeats must be positive.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU that PyTorch can use: take --device cpu.")
    model, processor = load_checkpoint(arguments.model, dtype=arguments.dtype, device=arguments.device)
    crop = processor.image_processor.crop_size
    shape = (arguments.batch_size, 3, crop["height"], crop["width"])
    batches = [torch.randn(shape, dtype=model.dtype) for _ in range(arguments.batches)]
    if arguments.device == "cuda":
        batches = [pixels.pin_memory() for pixels in batches]
    table = make_table("batch", "what", "images/s", text=["what"], title=f"{arguments.device}, {arguments.dtype}")
    with torch.inference_mode():
        for name, rate in rates(ways(model, processor, batches), arguments.device, arguments.repeats).items():
            table.add_row(str(arguments.batch_size), name, f"{rate:,.0f}")
    show([table], arguments.write)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to compute (default: cuda)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: float32)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a pass (default: 64)")
    parser.add_argument("--batches", type=int, default=20, help="batches a turn (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the best one counts (default: 3)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
