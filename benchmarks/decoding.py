"""Speed, use of the machine and memory of the three decoders, side by side on the same weights in one run.

    python benchmarks/decoding.py --model .                # the shipped checkpoint
    python benchmarks/decoding.py --shape siglip2-smollm2  # random weights, SigLIP2-base/16-224 + SmolLM2-135M
    python benchmarks/decoding.py --shape clip-vicuna-7b --dtype bfloat16  # needs a GPU: 14 GB of weights
    python benchmarks/decoding.py --model . --memory       # peak memory instead of seconds

`prefill` is the least that any prompt-by-prompt decoder can do: the network encodes the images once and reads every
prompt once, on pixels and tokens that are ready, and writes no answer. The others are whole calls of `recognize`, image
processing and answers included. "all" is the three formats. Runs take turns, so that a slow spell of the machine falls
on all alike, and the best of each counts. Random weights never end an answer, so `free` is given exactly the tokens of
a whole answer; a trained model stops there too.
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
from page import add_write_option, show
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import FORMATS, MAIN_FORMATS, prompt, write_answer
from au_llava.au_runs.commands import sentence_of
from au_llava.au_training.untrained import byte_pair_tokenizer, published_shape, untrained
from au_llava.decoding_au_llava import DECODERS
from au_llava.processing_au_llava import CHATML_TEMPLATE, PLAIN_TEMPLATE
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


def build(shape: str, dtype: torch.dtype, device: str = DEVICE):
    """Random weights of a shape, made on the device and in the dtype, and a processor that fits: (model, processor).

    The tokenizer takes about a token a word and a token a digit, as SmolLM2's does for our prompts; Llama's takes more.
    """
    vision, text, template, settings = SHAPES[shape]
    texts = [prompt(fmt) + "user assistant" for fmt in ALL]
    tokenizer, vision = byte_pair_tokenizer(texts, WORDS, 2000), published_shape(vision)
    if vision.model_type.startswith("siglip"):
        vision.vision_use_head = False
    side, text = vision.image_size, published_shape(text)
    model, processor = untrained(vision, text, tokenizer, side, template, 0, dtype, device, **settings)
    return model.eval(), processor


def load(arguments: argparse.Namespace):
    """The (model, processor) that the command line asks for."""
    logging.disable_progress_bar()  # of loading weights
    dtype = getattr(torch, arguments.dtype)
    if arguments.shape:
        return build(arguments.shape, dtype)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=dtype, trust_remote_code=True)
    return model.to(DEVICE).eval(), AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)


def noise_images(processor, count: int) -> list[np.ndarray]:
    crop = processor.image_processor.crop_size
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, crop["height"], crop["width"], 3), dtype=np.uint8))


def image_tokens(processor) -> int:
    crop = processor.image_processor.crop_size
    return processor.num_image_tokens(crop["height"], crop["width"])


def read(model, processor, images, formats, decoding: str):
    """`recognize` all images in one batch; `free` writes exactly the tokens of a whole answer."""
    options = {"decoding": decoding, "batch_size": len(images)}
    if decoding != "free":
        model.recognize(processor, images, formats=formats, **options)
        return
    for fmt in formats:
        answer = write_answer(dict.fromkeys(fmt.labels, 0), fmt)
        tokens = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
        model.recognize(processor, images, formats=[fmt], **options, max_new_tokens=tokens, min_new_tokens=tokens)


# ---- Seconds --------------------------------------------------------------------------------------------------
def best_seconds(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The best of `repeats` times of every run; they take turns, and a first turn warms up."""
    times = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: min(measured) for name, (_, *measured) in times.items()}


def measure(model, processor, batch: int, repeats: int) -> dict[str, float]:
    """Seconds per batch by "decoder, what it was asked for"."""
    images = noise_images(processor, batch)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    ids = {fmt: torch.tensor(processor.prompt_ids(fmt, image_tokens(processor)), device=model.device) for fmt in ALL}

    @torch.no_grad()
    def prefill(*formats):
        features = {"image": model.get_image_features(pixels, return_dict=True)}
        for fmt in formats:
            prompts = ids[fmt].expand(batch, -1)
            model(input_ids=prompts, mm_encoder_outputs=features, logits_to_keep=1, use_cache=False)

    runs = {"prefill, feafa": lambda: prefill(FORMATS["feafa"]), "prefill, all": lambda: prefill(*ALL)}
    for fmt in ALL:
        runs[f"slots, {fmt.name}"] = lambda fmt=fmt: read(model, processor, images, [fmt], "slots")
    for decoding in DECODERS:
        runs[f"{decoding}, all"] = lambda how=decoding: read(model, processor, images, ALL, how)
    return best_seconds(runs, repeats)


def table_row(name: str, times: dict[str, float], batch: int) -> tuple[str, ...]:
    """One line of the table of `measure`'s times; ratios only where like can be compared with like."""
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


# ---- Use of the machine ---------------------------------------------------------------------------------------
def slots_operations(model, processor) -> int:
    """Floating-point operations of the matrix products and convolutions that slots run for one image, three formats.

    Counted with attention as plain matrix products, because the counter does not know every fused one.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        read(model, processor, noise_images(processor, 1), ALL, "slots")
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype, side: int, repeats: int) -> float:
    """Floating-point operations a second of a product of two (side, side) matrices."""
    left, right = torch.randn(2, side, side, device=DEVICE).to(dtype)
    took = best_seconds({"product": lambda: torch.nn.functional.linear(left, right)}, repeats)["product"]
    return 2 * side**3 / took


# ---- Memory ---------------------------------------------------------------------------------------------------
def peak_growth(run: Callable) -> int:
    """Bytes by which memory rises above its present level at most while `run` runs."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak, which building the model has set
    before = _resident_peak()
    run()
    return _resident_peak() - before


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def decoder_memory(arguments: argparse.Namespace, decoding: str, batch: int) -> int:
    """Bytes that one decoder needs above the loaded model, for a process of its own."""
    model, processor = load(arguments)
    for weight in model.parameters():
        weight.sum()  # weights that a file is mapped to become resident
    images = noise_images(processor, batch)
    read(model, processor, images[:1], ALL, decoding)  # the code that a first call loads is not the decoder's need
    return peak_growth(lambda: read(model, processor, images, ALL, decoding))


def memory_table(arguments: argparse.Namespace) -> Table:
    """Peak memory of every decoder and batch size, three formats.

    Each in a fresh process that has loaded the model and read one image: the growth of the peak of CUDA's allocator, or
    on a CPU of the resident set as Linux counts it, where freed tensors return to the system at once.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by glibc when a process starts
    title = f"{_name(arguments)}: peak MiB above the loaded model, three formats"
    table = Table(title=title, min_width=80)
    for column in ("batch", *DECODERS):
        table.add_column(column, justify="right")
    for batch in arguments.batch_sizes:
        cells = []
        for decoding in DECODERS:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                cells.append(fresh.submit(decoder_memory, arguments, decoding, batch).result() / 2**20)
        table.add_row(str(batch), *(f"{cell:,.1f}" for cell in cells))
    return table


# ---- Command line ---------------------------------------------------------------------------------------------
def _name(arguments: argparse.Namespace) -> str:
    return f"{arguments.model or arguments.shape}, {arguments.dtype}"


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
    title = f"{_name(arguments)}: {model.num_parameters():,} parameters, tree of {tokens} tokens"
    table = Table(title=title)
    for column in ("batch", "what", "seconds", "images/s", "against\nfree", "of\nprefill", "of slots\nfeafa"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
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
        f"Slots, three formats: {operations / 1e9:,.2f} GFLOP an image; of the measured matrix rate "
        f"({rate / 1e9:,.0f} GFLOP/s) they reach {reached}."
    )
    show([table], arguments.write, notes)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="checkpoint folder or Hub id")
    which.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: float32)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts (default: 3)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of seconds")
    add_write_option(parser)
    return parser


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"decoding.py: {sentence_of(error)}")
