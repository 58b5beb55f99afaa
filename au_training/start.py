"""The starting point of a training: a checkpoint, or a new model from two parts; quantized and frozen as asked."""

import json
import os
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.peft_utils import find_adapter_config_file
from trl import ModelConfig, SFTConfig, get_quantization_config

from au_llava.au_runs.engines import check_there
from au_llava.au_runs.files import replacing
from au_llava.au_runs.manifests import of_parts, write_training_manifest
from au_llava.au_runs.provenance import weights_sha256
from au_llava.au_training.options import AUArguments, AUTrainingConfig, refuse_without_effect
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
OF_NEW_MODELS = ("pixel_unshuffle", "prompt_order", "vision_feature_layer")
PARTS_FILE = "parts.json"  # in OUTPUT_DIR/base: the parts and options that it was built from


def check_start(arguments: AUArguments, model_args: ModelConfig) -> None:
    """Raise ValueError unless the options name either a checkpoint or both parts of a new model, and fit that."""
    named, parts = model_args.model_name_or_path, (arguments.vision, arguments.text)
    if bool(named) == any(parts) or not (named or all(parts)):
        raise ValueError(
            "Say what to start from: --model_name_or_path (a folder or a Hub id), or --vision and --text together."
        )
    refuse_without_effect(arguments, OF_NEW_MODELS if named else (), "a new model (--vision and --text)")
    refuse_without_effect(model_args, () if named else ("model_revision",), "--model_name_or_path")


def starting_point(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig) -> str:
    """The checkpoint to start from: the one in the options, or OUTPUT_DIR/base, built from its parts if need be.

    The base lies on disk because sharded and quantized models and LoRA adapters are loaded from a folder.

    Returns:
        a Hub id or an absolute path: adapters store it and are loaded from anywhere.

    Raises:
        ValueError, OSError: what it starts from is not there.
        ValueError: OUTPUT_DIR/base was built from other parts, or the checkpoint holds adapters: what is trained in
            their base would not be saved, and new adapters would replace them.
    """
    if named := model_args.model_name_or_path:
        check_there(named, model_args.model_revision)
        if find_adapter_config_file(named, revision=model_args.model_revision):
            raise ValueError(
                f"{named} holds adapters, not a whole model: merge them (tools/merge_adapter.py {named} --out FOLDER) "
                "and start from that folder."
            )
        return from_anywhere(named)
    parts = arguments.vision, arguments.text
    for part in parts:
        if not os.path.isfile(part):  # a GGUF file, which is refused in a sentence of its own
            check_there(part)
    base = Path(training_args.output_dir) / "base"
    options = {
        "pixel_unshuffle": arguments.pixel_unshuffle,
        "prompt_order": arguments.prompt_order,
        "trust_remote_code": training_args.trust_remote_code,
    }
    layer = {"vision_feature_layer": arguments.vision_feature_layer, "dtype": model_args.dtype}
    parts = tuple(map(from_anywhere, parts))
    made_of = {"vision": parts[0], "text": parts[1], **options, **layer}
    with training_args.main_process_first(local=training_args.save_on_each_node, desc="building the base"):
        if not base.is_dir():
            set_seed(training_args.seed)  # for the projector
            model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(*parts, **options, **layer)
            with replacing(base) as unfinished:
                model.save_pretrained(unfinished)
                AuLlavaProcessor.from_vision_text_pretrained(*parts, **options).save_pretrained(unfinished)
                if manifest := of_parts(parts):
                    write_training_manifest(unfinished, manifest)
                (unfinished / PARTS_FILE).write_text(json.dumps(made_of, indent=1) + "\n")
    stored = {"prompt_order": "image_first", **json.loads((base / PARTS_FILE).read_text())}  # older bases name none
    if stored != made_of:
        raise ValueError(f"{base} was made of {stored}, not of {made_of}: delete it or choose another output_dir.")
    return from_anywhere(str(base))


def from_anywhere(name: str) -> str:
    """The absolute path of a folder; a Hub id unchanged."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def base_weights(model_args: ModelConfig) -> dict[str, str] | None:
    """Weight file -> content hash of the base that adapters are trained on.

    None for a base that is stored quantized: tools/merge_adapter.py merges into the one that it was made from.
    """
    name, revision = model_args.model_name_or_path, model_args.model_revision
    if hasattr(AuLlavaConfig.from_pretrained(name, revision=revision), "quantization_config"):
        return None
    return weights_sha256(name, revision)


def start_model(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig):
    """(model, processor) at the starting point, ready to train."""
    model = load_model(model_args, training_args)
    # Training drops the calibration with its first step, which a resumed run that is complete never takes.
    model.config.calibration = None
    freeze_parts(model, arguments.freeze)
    if arguments.channels_last:
        model.model.vision_tower.to(memory_format=torch.channels_last)
    # Like the model's, the class of this code: an older checkpoint's code must not be saved with the new weights.
    name, revision = model_args.model_name_or_path, model_args.model_revision
    return model, AuLlavaProcessor.from_pretrained(name, revision=revision, trust_remote_code=True)


def load_model(model_args: ModelConfig, training_args: SFTConfig):
    """The model to train, in float32 unless `--dtype` gives another type for frozen weights; quantized if asked for."""
    quantization = get_quantization_config(model_args)
    model = AuLlavaForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype if model_args.dtype not in (None, "auto") else "float32",
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        device_map={"": training_args.device} if quantization is not None else None,
    )
    if is_deepspeed_zero3_enabled():  # it records renamings that were not needed, and would rename the saved weights
        model._weight_conversions = []
    # FSDP wraps these classes and fails on one that the model lacks, such as the tower's unused pooling head.
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = sorted(present & set(model._no_split_modules))
    return model


def freeze_parts(model: AuLlavaForConditionalGeneration, parts: list[str]) -> None:
    """Freeze parts of the model: no gradients, and evaluation mode, which also keeps batch-norm statistics.

    The layers themselves, but not the modules in them, still follow `train()`: gradients that pass through a frozen
    language model would otherwise not be checkpointed.
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


def fit_precision(model, training_args: AUTrainingConfig, model_args: ModelConfig) -> None:
    """Put the trained weights into float32 where autocast computes in 16 bits, which are too few for small steps.

    Without autocast, adapters of a quantized model also need float32: TRL makes them bfloat16, which does not fit.
    """
    mixed = training_args.bf16 or training_args.fp16
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    if mixed != quantized:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
