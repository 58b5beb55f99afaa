"""Speed, machine utilization and memory of the three decoders, on the same weights in one run.

    python benchmarks/decoding.py --model .                # the shipped checkpoint
    python benchmarks/decoding.py --shape siglip2-smollm2  # random weights, SigLIP2-base/16-224 + SmolLM2-135M
    python benchmarks/decoding.py --shape siglip2-smollm2 --prompt-order text_first
    python benchmarks/decoding.py --shape clip-vicuna-7b --dtype bfloat16  # needs a GPU: 14 GB of weights
    python benchmarks/decoding.py --model . --memory       # peak memory instead of seconds

`prefill` is the lower bound for any decoder that reads one prompt at a time: from prepared pixels and tokens, the
network encodes the images once, reads every prompt once and writes no answer. The others are whole calls of
`recognize`, with image processing and answers. "all" is the three formats. `free` is plain `generate`, without the keys
and values that prompts with the text first share. Runs take turns, so that a slow moment of the machine affects all,
and the best of each counts. On a CPU seconds are processor time, which other programs change little. Random weights
never end an answer, so `free` gets exactly the number of tokens in a whole answer, where a trained model stops too.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from page import add_write_option, make_table, runner, show
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from au_llava.action_units import FORMATS, MAIN_FORMATS, prompt, write_answer
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_training.untrained import byte_pair_tokenizer, published_shape, untrained
from au_llava.configuration_au_llava import PROMPT_ORDERS
from au_llava.processing_au_llava import CHATML_TEMPLATE, PLAIN_TEMPLATE
from au_llava.readings_au_llava import DECODERS
from au_llava.slot_tree_au_llava import compile_slots

ALL = tuple(FORMATS[name] for name in MAIN_FORMATS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ---- What is measured -----------------------------------------------------------------------------------------
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"  # a digit is a token
SHAPES = {  # name: vision, text, chat template, settings of `AuLlavaConfig`
    "siglip2-smollm2": (
        *("google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct", CHATML_TEMPLATE),
        {"pixel_unshuffle": 2},
    ),
    "clip-vicuna-7b": (  # as in LLaVA-1.5-7B
        *("openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5", PLAIN_TEMPLATE),
        {"vision_feature_layer": -2},
    ),
}


def build(shape: str, dtype: torch.dtype, device: str = DEVICE, prompt_order: str = "image_first"):
    """Random weights of a shape, made on the device and in the dtype, and a processor that fits: (model, processor).

    The tokenizer takes about a token a word and a token a digit, as SmolLM2's does for our prompts; Llama's takes more.
    """
    vision, text, template, settings = SHAPES[shape]
    texts = [prompt(fmt) + "user assistant" for fmt in ALL]
    tokenizer, vision = byte_pair_tokenizer(texts, WORDS, 2000), published_shape(vision)
    if vision.model_type.startswith("siglip"):
        vision.vision_use_head = False
    side, text = vision.image_size, published_shape(text)
    settings = {**settings, "prompt_order": prompt_order}
    model, processor = untrained(vision, text, tokenizer, side, template, 0, dtype, device, **settings)
    return model.eval(), processor


def load(arguments: argparse.Namespace):
    """The (model, processor) that the command line asks for."""
    if arguments.shape:
        return build(arguments.shape, getattr(torch, arguments.dtype), prompt_order=arguments.prompt_order)
    return load_checkpoint(arguments.model, dtype=arguments.dtype, device=DEVICE)


def noise_images(processor, count: int) -> list[np.ndarray]:
    crop = processor.image_processor.crop_size
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, crop["height"], crop["width"], 3), dtype=np.uint8))


def image_tokens(processor) -> int:
    crop = processor.image_processor.crop_size
    return processor.num_image_tokens(crop["height"], crop["width"])


def read(model, processor, images, formats, decoding: str):
    """`recognize` all images in one batch; `free` writes exactly as many tokens as a whole answer has."""
    options = {"decoding": decoding, "batch_size": len(images)}
    if decoding != "free":
        model.recognize(processor, images, formats=formats, **options)
        return
    for fmt in formats:
        answer = write_answer(dict.fromkeys(fmt.labels, 0), fmt)
        tokens = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
        plain = {"max_new_tokens": tokens, "min_new_tokens": tokens, "use_cache": True}  # `generate`'s own cache
        model.recognize(processor, images, formats=[fmt], **options, **plain)


# ---- Seconds --------------------------------------------------------------------------------------------------
def seconds() -> float:
    """Seconds of processor time on a CPU, by the clock on a GPU."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def best_seconds(tasks: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The best of `repeats` times of every task; they take turns, and a first turn warms up."""
    times = {name: [] for name in tasks}
    for _ in range(1 + repeats):
        for name, task in tasks.items():
            start = seconds()
            task()
            times[name].append(seconds() - start)
    return {name: min(measured) for name, (_, *measured) in times.items()}


def measure(model, processor, batch: int, repeats: int) -> dict[str, float]:
    """Seconds per batch, by "decoder, formats"."""
    images = noise_images(processor, batch)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    ids = {fmt: torch.tensor(processor.prompt_ids(fmt, image_tokens(processor)), device=model.device) for fmt in ALL}

    @torch.no_grad()
    def prefill(*formats):
        features = {"image": model.get_image_features(pixels, return_dict=True)}
        for fmt in formats:
            prompts = ids[fmt].expand(batch, -1)
            model(input_ids=prompts, mm_encoder_outputs=features, logits_to_keep=1, use_cache=False)

    tasks = {"prefill, feafa": lambda: prefill(FORMATS["feafa"]), "prefill, all": lambda: prefill(*ALL)}
    for fmt in ALL:
        tasks[f"slots, {fmt.name}"] = lambda fmt=fmt: read(model, processor, images, [fmt], "slots")
    for decoding in DECODERS:
        tasks[f"{decoding}, all"] = lambda how=decoding: read(model, processor, images, ALL, how)
    return best_seconds(tasks, repeats)


def table_row(name: str, times: dict[str, float], batch: int) -> tuple[str, ...]:
    """A row of the table of `measure`'s times; with ratios only where they are meaningful."""
    took = times[name]
    decoder, asked = name.split(", ")
    prefill = times.get(f"prefill, {asked}") if decoder != "prefill" else None
    return (
        str(batch),
        name,
        f"{took:.3f}",
        f"{batch / took:.3g}",
        f"{times['free, all'] / took:.1f} x" if prefill and asked == "all" else "",
        f"{took / prefill:.2f}" if prefill else "",
        f"{took / times['slots, feafa']:.2f}" if name == "slots, all" else "",
    )


# ---- Machine utilization --------------------------------------------------------------------------------------
def slots_operations(model, processor) -> int:
    """Floating-point operations in the matrix products and convolutions of slots for one image and three formats.

    Prompts that are computed once for all images are not among them. Attention runs as plain matrix products here,
    because the counter does not know all fused kernels.
    """
    images = noise_images(processor, 1)
    read(model, processor, images, ALL, "slots")  # computes the prompts
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        read(model, processor, images, ALL, "slots")
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype, side: int, repeats: int) -> float:
    """Floating-point operations per second in a product of two (side, side) matrices."""
    left, right = torch.randn(2, side, side, device=DEVICE).to(dtype)
    took = best_seconds({"product": lambda: torch.nn.functional.linear(left, right)}, repeats)["product"]
    return 2 * side**3 / took


# ---- Memory ---------------------------------------------------------------------------------------------------
def peak_growth(task: Callable) -> int:
    """Bytes by which the peak of memory during `task` exceeds the memory before it."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that Linux remembers from building the model
    before = _resident_peak()
    task()
    return _resident_peak() - before


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def decoder_memory(arguments: argparse.Namespace, decoding: str, batch: int) -> int:
    """Bytes that one decoder needs in addition to the loaded model; to be called in a fresh process."""
    model, processor = load(arguments)
    for weight in model.parameters():
        weight.sum()  # makes weights resident that are mapped from a file
    images = noise_images(processor, batch)
    read(model, processor, images[:1], ALL, decoding)  # loads code, which is not the decoder's memory
    return peak_growth(lambda: read(model, processor, images, ALL, decoding))


def memory_table(arguments: argparse.Namespace) -> Table:
    """Peak memory of every decoder and batch size, for three formats.

    Each is measured in a fresh process that has loaded the model and read one image, as the growth of the peak of
    CUDA's allocator or, on a CPU, of the resident set that Linux counts; freed tensors return to the system at once.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by glibc when a process starts
    title = f"{_name(arguments)}: peak MiB above the loaded model, three formats"
    table = make_table("batch", *DECODERS, title=title, min_width=80)
    for batch in arguments.batch_sizes:
        cells = []
        for decoding in DECODERS:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                cells.append(fresh.submit(decoder_memory, arguments, decoding, batch).result() / 2**20)
        table.add_row(str(batch), *(f"{cell:,.1f}" for cell in cells))
    return table


# ---- Command line ---------------------------------------------------------------------------------------------
def _name(arguments: argparse.Namespace) -> str:
    order = "" if arguments.model else f", {arguments.prompt_order.replace('_', ' ')}"
    return f"{arguments.model or arguments.shape}{order}, {arguments.dtype}"


def main(arguments: argparse.Namespace):
    if arguments.shape == "clip-vicuna-7b" and DEVICE == "cpu":
        raise ValueError(
            "clip-vicuna-7b has 7 billion parameters, 14 GB in bfloat16: it needs a GPU and there is none. Use "
            "--shape siglip2-smollm2 or a --model on a CPU."
        )
    if arguments.memory:
        show([memory_table(arguments)], arguments.write)
        return
    model, processor = load(arguments)
    tokens = len(compile_slots(processor, ALL, image_tokens(processor)))
    rate = matrix_rate(model.dtype, 8192 if DEVICE == "cuda" else 2048, arguments.repeats)
    operations = slots_operations(model, processor)
    table = make_table(
        *("batch", "what", "seconds", "images/s", "against\nfree", "of\nprefill", "of slots\nfeafa"),
        text=["what"],
        title=f"{_name(arguments)}: {model.num_parameters():,} parameters, tree of {tokens} tokens",
    )
    shares = []
    for batch in arguments.batch_sizes:
        times = measure(model, processor, batch, arguments.repeats)
        for name in times:
            table.add_row(*table_row(name, times, batch))
        table.add_section()
        shares.append(operations * batch / times["slots, all"] / rate)
    reached = ", ".join(
        f"{share:.1%} at batch {batch}" for batch, share in zip(arguments.batch_sizes, shares, strict=True)
    )
    notes = (
        f"Slots, three formats: {operations / 1e9:,.2f} GFLOP per image; of the measured matrix rate "
        f"({rate / 1e9:,.0f} GFLOP/s) they reach {reached}."
    )
    show([table], arguments.write, notes)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="checkpoint folder or Hub id")
    which.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument(
        "--prompt-order", choices=PROMPT_ORDERS, default="image_first", help="of --shape (default: image_first)"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: float32)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the best one counts (default: 3)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of seconds")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
