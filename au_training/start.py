"""What a training starts from: the checkpoint or the two parts of a new model, quantised, frozen where asked for."""

import json
import os
from functools import partial
from pathlib import Path

from torch.nn.modules.batchnorm import _BatchNorm
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import ModelConfig, SFTConfig, get_quantization_config

from au_llava.au_runs.provenance import weights_sha256
from au_llava.au_training.options import AUArguments, AUTrainingConfig
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PARTS_FILE = "parts.json"  # in OUTPUT_DIR/base: what it was put together of


def check_start(arguments: AUArguments, model_args: ModelConfig) -> None:
    """Raise ValueError unless either a checkpoint or both parts of a new model are named."""
    named, parts = model_args.model_name_or_path, (arguments.vision, arguments.text)
    if bool(named) == any(parts) or not (named or all(parts)):
        raise ValueError(
            "Say what to start from: --model_name_or_path (a folder or a Hub id), or --vision and --text together."
        )


def starting_point(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig) -> str:
    """The checkpoint to start from: the one that is named, or OUTPUT_DIR/base, put together where it is not there yet.

    A Hub id or an absolute path: adapters store it, and are loaded from anywhere.
    On disk, since sharded and quantised models and LoRA's adapters need a folder that they can be loaded from.
    """
    if model_args.model_name_or_path:
        return from_anywhere(model_args.model_name_or_path)
    parts = arguments.vision, arguments.text
    base = Path(training_args.output_dir) / "base"
    options = {"pixel_unshuffle": arguments.pixel_unshuffle, "trust_remote_code": training_args.trust_remote_code}
    layer = {"vision_feature_layer": arguments.vision_feature_layer, "dtype": model_args.dtype}
    parts = tuple(map(from_anywhere, parts))
    made_of = {"vision": parts[0], "text": parts[1], **options, **layer}
    with training_args.main_process_first(local=training_args.save_on_each_node, desc="building the base"):
        if not base.is_dir():
            unfinished = base.with_name(f".base.{os.getpid()}")
            set_seed(training_args.seed)  # of the projector
            model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(*parts, **options, **layer)
            model.save_pretrained(unfinished)
            AuLlavaProcessor.from_vision_text_pretrained(*parts, **options).save_pretrained(unfinished)
            (unfinished / PARTS_FILE).write_text(json.dumps(made_of, indent=1) + "\n")
            unfinished.rename(base)
    found = json.loads((base / PARTS_FILE).read_text())
    if found != made_of:
        raise ValueError(f"{base} was made of {found}, not of {made_of}: delete it or choose another output_dir.")
    return from_anywhere(str(base))


def from_anywhere(name: str) -> str:
    """The absolute path of a folder; a Hub id as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def base_weights(model_args: ModelConfig) -> dict[str, str] | None:
    """The content of the base that adapters are trained on, by weight file; None of one that is stored quantised, in
    whose place tools/merge_adapter.py takes the one that it was made from."""
    name, revision = model_args.model_name_or_path, model_args.model_revision
    if hasattr(AuLlavaConfig.from_pretrained(name, revision=revision), "quantization_config"):
        return None
    return weights_sha256(name, revision)


def load_model(model_args: ModelConfig, training_args: SFTConfig):
    """The model to train, in float32 unless `--dtype` says otherwise (of what is frozen); quantised if asked for."""
    quantization = get_quantization_config(model_args)
    model = AuLlavaForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype if model_args.dtype not in (None, "auto") else "float32",
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        device_map={"": training_args.device} if quantization is not None else None,
    )
    if is_deepspeed_zero3_enabled():  # notes renamings that were not needed, by which the weights would be saved
        model._weight_conversions = []
    # FSDP wraps these classes and stops at one that the model lacks, such as the tower's unused pooling head.
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = sorted(present & set(model._no_split_modules))
    return model


def keep_statistics(model: AuLlavaForConditionalGeneration) -> None:
    """Take batch-norm statistics out of training, for adapters: they are saved without them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = partial(lambda kept, mode=True: kept, module)


def freeze_parts(model: AuLlavaForConditionalGeneration, parts: list[str]) -> None:
    """Take parts of the model out of training: no gradients, and evaluation mode (batch-norm statistics stay too).

    Only the layers themselves, not what is in them, know that training is on: else gradients that pass through a frozen
    language model would not be checkpointed.
    """

    def train(part, mode=True):
        for module in part.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = mode
        return part

    for name in parts:
        part = getattr(model.model, name).eval().requires_grad_(False)
        part.train = partial(train, part)
        if name == "language_model":
            model.lm_head.requires_grad_(False)
