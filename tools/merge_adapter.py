"""Merge the LoRA adapters of a training into their base: a plain checkpoint, to be evaluated, served and published.

    python tools/merge_adapter.py runs/paper-7b-stage2 --out runs/paper-7b
    python tools/merge_adapter.py runs/qlora-7b --out runs/merged --base runs/qlora-7b/base --dtype bfloat16

The base is loaded unquantised, also where it was quantised for the training (QLoRA): the merged weights are then those
of the full base, whose answers differ a little from what the training saw. Modules that were trained in full replace
the base's. Code, processor, training manifest and card come along. A calibration of the base does not: fit a new one
with eval_au.py --calibrate.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftModel
from transformers.utils import logging

from au_llava.au_runs.checkpoints import check_base
from au_llava.au_runs.commands import print_anything, sentence_of
from au_llava.au_runs.manifests import TRAINING_MANIFEST
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor

DTYPES = ("auto", "float32", "bfloat16")


def read_adapter(folder: Path) -> LoraConfig:
    """The settings of the adapters in `folder`. Raises ValueError where there are none that can be merged."""
    lacking = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if lacking:
        raise ValueError(
            f"{folder} holds no adapters ({', '.join(lacking)}): name what train_sft.py --use_peft true wrote."
        )
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder} holds {config.peft_type.value} adapters; only LoRA can be merged into weights.")
    return config


def load_base(base: str, dtype: str) -> AuLlavaForConditionalGeneration:
    """The base, in full precision. Raises ValueError if it is not there or is stored quantised."""
    try:
        if hasattr(AuLlavaConfig.from_pretrained(base), "quantization_config"):
            raise ValueError(f"The base {base} is stored quantised: name the one it was made from with --base.")
        return AuLlavaForConditionalGeneration.from_pretrained(base, dtype=dtype)
    except OSError as error:
        raise ValueError(
            f"The base {base} cannot be loaded: say where it is with --base ({str(error).splitlines()[0]})."
        ) from None


def merge(adapter: Path, base: str | None = None, dtype: str = "auto") -> AuLlavaForConditionalGeneration:
    """The base with the adapters in its weights.

    Args:
        adapter: folder that train_sft.py wrote.
        base: folder or Hub id; by default what the adapters name.
        dtype: one of `DTYPES`; "auto" is the base's.

    Raises:
        ValueError: no LoRA adapters, no base, another base than the one that they were trained on, or adapters that do
            not fit it.
    """
    config = read_adapter(adapter)
    named, base = base, base or config.base_model_name_or_path
    model = load_base(base, dtype)
    check_base(str(adapter), named)
    try:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload().to(model.dtype)
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()  # PyTorch names every tensor that does not fit on a line of its own
        raise ValueError(f"The adapters in {adapter} do not fit the base {base}: {last}") from None
    head, embeddings = model.lm_head.weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and not torch.equal(head, embeddings):  # one of them was trained in full
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    return model


def save(model: AuLlavaForConditionalGeneration, adapter: Path, out: Path) -> None:
    """Write the merged model and what belongs to it into `out`, which appears only once it is whole."""
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        card = adapter / "README.md"
        if card.is_file() and ModelCard.load(card).data.library_name != "peft":  # not PEFT's own, which says nothing
            shutil.copy(card, unfinished)
        model.save_pretrained(unfinished)
        source = adapter if (adapter / "processor_config.json").is_file() else model.name_or_path
        AuLlavaProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(unfinished)
        if (adapter / TRAINING_MANIFEST).is_file():
            shutil.copy(adapter / TRAINING_MANIFEST, unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("adapter", type=Path, help="folder that train_sft.py --use_peft true wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--base", help="folder or Hub id of the base (default: what the adapters name)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the merged weights (default: the base's)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    logging.disable_progress_bar()  # of loading weights
    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists: choose another --out.")
    model = merge(arguments.adapter, arguments.base, arguments.dtype)
    save(model, arguments.adapter, arguments.out)
    print(f"Merged: {arguments.out} ({model.num_parameters():,} parameters in {model.dtype})")


if __name__ == "__main__":
    print_anything()
    try:
        main(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"merge_adapter.py: {sentence_of(error)}")
