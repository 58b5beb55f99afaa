"""Merge LoRA adapters into their base: a complete checkpoint that can be evaluated, served and published.

    python tools/merge_adapter.py runs/paper-7b-stage2 --out runs/paper-7b
    python tools/merge_adapter.py runs/qlora-7b --out runs/merged --base runs/qlora-7b/base --dtype bfloat16

The base is loaded unquantized, even if the training quantized it (QLoRA): the merged weights are those of the full
base, whose answers differ a little from the quantized one's. Modules that were trained in full replace the base's.
Code, processor, training manifest and card are copied. The base's calibration is dropped: fit a new one with
`eval_au.py calibrate`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, logging

from au_llava.au_runs.checkpoints import check_base
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.engines import check_there
from au_llava.au_runs.files import replacing
from au_llava.au_runs.manifests import TRAINING_MANIFEST
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor

DTYPES = ("auto", "float32", "bfloat16")


def read_adapter(folder: Path) -> LoraConfig:
    """The settings of the adapters in `folder`. Raises ValueError if there are none, or none that can be merged."""
    lacking = [name for name in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME) if not (folder / name).is_file()]
    if lacking:
        raise ValueError(
            f"{folder} holds no adapters ({', '.join(lacking)}): name what train_sft.py --use_peft true wrote."
        )
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder} holds {config.peft_type.value} adapters; only LoRA can be merged into weights.")
    return config


def load_base(base: str, dtype: str) -> AuLlavaForConditionalGeneration:
    """The base in full precision. Raises ValueError if it is missing or stored quantized."""
    try:
        check_there(base)
        if not hasattr(AuLlavaConfig.from_pretrained(base), "quantization_config"):
            return AuLlavaForConditionalGeneration.from_pretrained(base, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The base {base} cannot be loaded: say where it is with --base ({str(error).splitlines()[0]})."
        ) from None
    raise ValueError(f"The base {base} is stored quantized: name the one it was made from with --base.")


def merge(adapter: Path, base: str | None = None, dtype: str = "auto") -> AuLlavaForConditionalGeneration:
    """The base with the adapters merged into its weights.

    Args:
        adapter: folder that train_sft.py wrote.
        base: folder or Hub id; by default the one that the adapters name.
        dtype: one of `DTYPES`; "auto" is the base's.

    Raises:
        ValueError: no LoRA adapters, no base, a base that they were not trained on, or adapters that do not fit it.
    """
    config = read_adapter(adapter)
    given, base = base, base or config.base_model_name_or_path
    model = load_base(base, dtype)
    check_base(str(adapter), given)
    try:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload().to(model.dtype)
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()  # PyTorch writes a line for each tensor that does not fit
        raise ValueError(f"The adapters in {adapter} do not fit the base {base}: {last}") from None
    head, embeddings = model.lm_head.weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and not torch.equal(head, embeddings):  # one of them was trained in full
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    return model


def save(model: AuLlavaForConditionalGeneration, adapter: Path, out: Path) -> None:
    """Write the merged model with processor, manifest and card into `out`, which appears once it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as unfinished:
        unfinished.mkdir()
        card = adapter / "README.md"
        if card.is_file() and ModelCard.load(card).data.library_name != "peft":  # PEFT's own card says nothing
            shutil.copy(card, unfinished)
        model.save_pretrained(unfinished)
        source = adapter if (adapter / "processor_config.json").is_file() else model.name_or_path
        AuLlavaProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(unfinished)
        if (adapter / TRAINING_MANIFEST).is_file():
            shutil.copy(adapter / TRAINING_MANIFEST, unfinished)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("adapter", type=Path, help="folder that train_sft.py --use_peft true wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, which must not exist")
    parser.add_argument("--base", help="folder or Hub id of the base (default: the one that the adapters name)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the merged weights (default: the base's)")
    return parser


def main(arguments) -> None:
    logging.disable_progress_bar()  # of loading weights
    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists: choose another --out.")
    model = merge(arguments.adapter, arguments.base, arguments.dtype)
    save(model, arguments.adapter, arguments.out)
    print(f"Merged: {arguments.out} ({model.num_parameters():,} parameters in {model.dtype})")


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("merge_adapter.py", lambda: main(make_parser().parse_args(words)))
