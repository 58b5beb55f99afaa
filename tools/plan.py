"""What a recipe takes, before it is started: parameters, memory, tokens and steps. Nothing is downloaded or trained.

    python tools/plan.py --config recipes/small.yaml
    python tools/plan.py --config recipes/base.yaml --accelerate recipes/accelerate/fsdp2.yaml --text Qwen/Qwen3-1.7B

Takes every flag of train_sft.py. The network is built with its real shape on PyTorch's meta device, which takes no
memory, and frozen and adapted by train_sft.py's own code. Shapes come from the config.json of the encoder and the
language model where they are on this machine (folders, or the Hub's cache: `hf download ID config.json`), and from
`PUBLISHED` where they are not; image sizes and tokenizers likewise.

Memory, per GPU, by what autograd and the optimizer keep:

- weights 4 bytes (2 where `dtype` is a 16-bit type and they are frozen; NF4 0.5 and its scales), gradients 4 bytes and
  the optimizer's state (`OPTIMIZER_BYTES`) per trained parameter, divided by the number of GPUs as ZeRO and FSDP do;
- half-precision copies of float32 weights, which autocast makes and keeps until the backward pass;
- activations: bytes per token and layer (`KEPT`), counted on Transformers' layers, in the manner of Korthikanti et al.
  2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198). With gradient checkpointing
  only each layer's input and the inside of one layer (Chen et al. 2016, arXiv 1604.06174).

Left out: the CUDA context, fragmentation, and buffers of communication. Compute is 2 operations per parameter and token
forward, as much again for the gradient of the input and for that of each trained weight (Kaplan et al. 2020,
arXiv 2001.08361), and one more forward with checkpointing. How fast that goes is for the machine to say.
"""

import dataclasses
import logging
import math
import re
import sys
from collections import Counter
from pathlib import Path

import datasets
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
)
from trl import ModelConfig, TrlParser, get_peft_config

from au_llava.action_units import FORMATS, MAIN_FORMATS, AUFormat, get_format, prompt, value_texts
from au_llava.au_datasets.mixing import TrainingData, training_rows
from au_llava.au_runs.commands import sentence_of
from au_llava.au_training.options import AUArguments, AUTrainingConfig
from au_llava.au_training.start import LORA_TARGETS, check_start, freeze_parts
from au_llava.configuration_au_llava import AuLlavaConfig, add_image_token
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import CHATML_TEMPLATE, AuLlavaProcessor
from au_llava.slot_tree_au_llava import compile_slots

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
GIB = 2**30
MEMORY = ("weights", "gradients", "optimizer", "copies", "activations")
WORDS = {  # after the number of tokens: is its tokenizer the real one?
    True: "",
    False: ", about: its tokenizer is not on this machine; one token per word, digit and sign",
}


def _text(
    kind, vocabulary: int, width: int, mlp: int, layers: int, heads: int, groups: int, **more
) -> PreTrainedConfig:
    return kind(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        **more,
    )


_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
_TIED = {"tie_word_embeddings": True}
# Shapes as in the config.json that each id has on the Hub; of an encoder also the side of its images, as in its
# preprocessor_config.json.
PUBLISHED: dict[str, tuple[PreTrainedConfig, int | None]] = {
    "google/siglip2-base-patch16-224": (SiglipVisionConfig(image_size=224, patch_size=16), 224),
    "google/siglip2-so400m-patch16-384": (SiglipVisionConfig(**_SO400M, image_size=384, patch_size=16), 384),
    "openai/clip-vit-large-patch14-336": (CLIPVisionConfig(**_VIT_L, intermediate_size=4096, image_size=336), 336),
    "facebook/dinov2-large": (Dinov2Config(**_VIT_L, image_size=518), 224),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (_text(LlamaConfig, 49152, 576, 1536, 30, 9, 3, **_TIED), None),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (_text(LlamaConfig, 49152, 960, 2560, 32, 15, 5, **_TIED), None),
    "Qwen/Qwen3-0.6B": (_text(Qwen3Config, 151936, 1024, 3072, 28, 16, 8, head_dim=128, **_TIED), None),
    "Qwen/Qwen3-1.7B": (_text(Qwen3Config, 151936, 2048, 6144, 28, 16, 8, head_dim=128, **_TIED), None),
    "lmsys/vicuna-7b-v1.5": (_text(LlamaConfig, 32000, 4096, 11008, 32, 32, 32), None),
}

# State in bytes per trained parameter: Adam keeps two numbers, 8-bit Adam two of one byte, Adafactor a row and a column
# per matrix, which is next to nothing.
OPTIMIZER_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "paged_adamw", "paged_adamw_32bit"), 8),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("adafactor", "sgd"), 0),
}
ADDED = re.compile(r"\.lora_|\.original_module\.")  # by PEFT: adapters, and modules_to_save as they were
NF4_BYTES = {
    False: 0.5 + 4 / 64,
    True: 0.5 + 0.127 / 8,
}  # per weight, scales included; with double quantisation (QLoRA)

# Kept for the backward pass, per token and layer: (float32 numbers, numbers in half precision) by the width h, that of
# attention q and that of the MLP f. Float32: the residual stream that each norm reads, and what an RMSNorm
# normalised. Half: what every linear layer reads, queries, keys, values and the attention's result, and in a gated MLP
# gate, up, activation and product. Behind frozen weights, only what the gradient passes through. LoRA keeps what a
# trained layer does, within a few percent.
KEPT = {
    ("gated", True): lambda h, q, f: (4 * h, 5 * h + 4 * q + 4 * f),
    ("gated", False): lambda h, q, f: (2 * h, 4 * q + 3 * f),
    ("plain", True): lambda h, q, f: (2 * h, 4 * h + 4 * q + 2 * f),
    ("plain", False): lambda h, q, f: (2 * h, 4 * q + f),
}


@dataclasses.dataclass
class PlanArguments:
    """What is planned for."""

    accelerate: str | None = dataclasses.field(
        default=None, metadata={"help": "File of recipes/accelerate: how many GPUs, and what is divided among them."}
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Parameters, tokens and bytes per GPU of a training."""

    parameters: int
    trained: int
    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float

    @property
    def memory(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations


def local_folder(source: str) -> Path | None:
    """The folder of a Hub id or path on this machine, without asking the network; None where there is none."""
    if Path(source).is_dir():
        return Path(source)
    try:
        cached = try_to_load_from_cache(source, "config.json")
    except HFValidationError:  # a path
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def shape_of(source: str) -> PreTrainedConfig:
    """The configuration of an encoder, a language model or a whole checkpoint.

    Raises:
        ValueError: it is neither on this machine nor among `PUBLISHED`.
    """
    folder = local_folder(source)
    if folder is not None and (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if source in PUBLISHED:
        return PUBLISHED[source][0]
    raise ValueError(
        f"The shape of {source} is not known: it is not on this machine (`hf download {source} config.json`)."
    )


def configuration(arguments: AUArguments, model_args: ModelConfig) -> tuple[AuLlavaConfig, str, str]:
    """The network's configuration, and where its image size and its tokenizer come from: ids or folders.

    Raises:
        ValueError: what the training starts from is not named, or is not there and no recipe makes it.
    """
    check_start(arguments, model_args)
    start = model_args.model_name_or_path
    if start is not None and (folder := local_folder(start)) is not None:
        return AuLlavaConfig.from_pretrained(folder), start, start
    if start is not None:
        arguments = dataclasses.replace(arguments, **made_by_recipe(start))
    vision, text = shape_of(arguments.vision), shape_of(arguments.text)
    vision = vision.vision_config if "vision_config" in vision.sub_configs else vision
    config = AuLlavaConfig(
        vision_config=vision,
        text_config=text,
        pixel_unshuffle=arguments.pixel_unshuffle,
        vision_feature_layer=arguments.vision_feature_layer,
    )
    return config, arguments.vision, arguments.text


def made_by_recipe(folder: str) -> dict:
    """What the network is made of that one of recipes/ writes to `folder`: a first stage that has not run yet."""
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        if recipe["output_dir"] == folder and "vision" in recipe:
            keys = ("vision", "text", "pixel_unshuffle", "vision_feature_layer")
            return {key: recipe[key] for key in keys if key in recipe}
    raise ValueError(f"{folder} is not there, and no recipe in {RECIPES.name}/ makes it.")


def meta_model(config: AuLlavaConfig, arguments: AUArguments, model_args: ModelConfig):
    """The network on the meta device, frozen and adapted as train_sft.py does."""
    dtype = getattr(torch, "float32" if model_args.dtype in (None, "auto") else model_args.dtype)
    with torch.device("meta"):
        model = AuLlavaForConditionalGeneration._from_config(config, dtype=dtype)
    freeze_parts(model, arguments.freeze)
    peft_config = get_peft_config(model_args)
    if peft_config is None:
        return model
    peft_config.target_modules = peft_config.target_modules or LORA_TARGETS
    with torch.device("meta"):
        return get_peft_model(model, peft_config)


def processor_of(config: AuLlavaConfig, vision: str, text: str) -> tuple[AuLlavaProcessor, bool]:
    """The processor, and whether its tokenizer is the real one rather than a stand-in."""
    folders = local_folder(vision), local_folder(text)
    if folders[0] and (folders[0] / "processor_config.json").is_file():  # a whole checkpoint
        return AuLlavaProcessor.from_pretrained(folders[0], trust_remote_code=True), True
    grid = {"vision_stride": config.vision_stride, "pixel_unshuffle": config.pixel_unshuffle}
    if all(folders) and (folders[0] / "preprocessor_config.json").is_file() and any(folders[1].glob("tokenizer*")):
        return AuLlavaProcessor.from_vision_text_pretrained(*map(str, folders), **grid), True
    side = PUBLISHED[vision][1] if vision in PUBLISHED else config.vision_config.image_size
    images = AuLlavaImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    tokenizer = stand_in_tokenizer()
    add_image_token(tokenizer)
    return AuLlavaProcessor(images, tokenizer, **grid, chat_template=CHATML_TEMPLATE), False


def stand_in_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign of our prompts and answers; Qwen's own takes 4 % more for three formats."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(words), behavior="isolated")
    answers = [text for fmt in FORMATS.values() for label in fmt.labels for text in value_texts(label, fmt)]
    trainer = trainers.WordLevelTrainer(vocab_size=10**6, special_tokens=["?", "<|im_start|>", "<|im_end|>"])
    tokenizer.train_from_iterator([*map(prompt, FORMATS.values()), *answers, "user\nassistant\n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="?", unk_token="?")


def sequences(arguments: AUArguments, training_args: AUTrainingConfig) -> tuple[Counter, list[str]]:
    """How many training rows have which formats, and the datasets that are not there.

    Where one is missing, a single row with all formats stands for all: the longest sequence.
    """
    tables = [TrainingData.read(entry) for entry in arguments.data]
    missing = [table.path for table in tables if not Path(table.path).is_dir()]
    if missing:
        return Counter([tuple(map(get_format, arguments.formats or MAIN_FORMATS))]), missing
    rows = training_rows(tables, arguments.train_part, arguments.formats, training_args.seed)
    return Counter(tuple(map(get_format, formats)) for formats in rows["formats"][:]), []


def layers_of(model, part: str) -> tuple[int, int, int, int, str] | None:
    """(layers, width h, attention's width q, MLP's width f, "gated" or "plain") of a tower or a language model.

    None where its layers are not transformers as Llama, Qwen, CLIP, SigLIP and DINOv2 have them.
    """
    shapes = {name.replace(".base_layer", ""): tuple(p.shape) for name, p in model.named_parameters() if part in name}
    queries = [shape for name, shape in shapes.items() if name.endswith("q_proj.weight")]
    mlps = [shape for name, shape in shapes.items() if name.endswith(("up_proj.weight", "fc1.weight"))]
    if not queries or not mlps:
        return None
    kind = "gated" if any(name.endswith("gate_proj.weight") for name in shapes) else "plain"
    return len(queries), queries[0][1], queries[0][0], mlps[0][0], kind


def kept_bytes(shape, trained: bool, half: int, length: int, checkpointed: bool, stream: int = 4) -> int:
    """Bytes that the backward pass needs of one sequence of `length` tokens, see `KEPT`.

    Args:
        shape: see `layers_of`. half: bytes of a number in half precision, 4 where there is none. stream: bytes of a
            number of what passes from layer to layer: what the weights have.
    """
    layers, width, attention, mlp, kind = shape
    single, other = KEPT[kind, trained](width, attention, mlp)
    inside = 4 * single + half * (other + (length if kind == "gated" else 0))  # the tree's mask, in the language model
    return length * (layers * stream * width + inside if checkpointed else layers * inside)


def sizes(
    model, training_args: AUTrainingConfig, model_args: ModelConfig, tokens: int, features: int, cluster
) -> Sizes:
    """Parameters and bytes per GPU.

    Args:
        model: `meta_model`.
        tokens, features: of the longest sequence, and of an image in the tower.
        cluster: accelerate's configuration; None: one GPU.
    """
    mixed = training_args.bf16 or training_args.fp16
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    linear = {
        module.weight
        for name, module in model.named_modules()
        if "language_model" in name and type(module) is nn.Linear
    }
    bytes_quantised = NF4_BYTES[model_args.use_bnb_nested_quant] if model_args.load_in_4bit else 1
    weights = trained_bytes = copies = trained = 0
    for weight in model.parameters():
        each = weight.element_size()
        if weight.requires_grad:
            each = (2 if quantised else 4) if mixed else each
            trained, trained_bytes = trained + weight.numel(), trained_bytes + each * weight.numel()
            copies += 2 * weight.numel() if mixed and each == 4 else 0
        elif quantised and weight in linear:
            each = bytes_quantised
        weights += each * weight.numel()
    optimizer = str(getattr(training_args.optim, "value", training_args.optim))
    if optimizer not in OPTIMIZER_BYTES:
        raise ValueError(f"What {optimizer} keeps is not known here; known: {', '.join(OPTIMIZER_BYTES)}.")
    state = OPTIMIZER_BYTES[optimizer]
    batch, half = training_args.per_device_train_batch_size, 2 if mixed else 4
    checkpointing = training_args.activation_checkpointing
    activations = 0
    for part, length in (("vision_tower", features), ("language_model", tokens)):
        learns = any(weight.requires_grad for name, weight in model.named_parameters() if part in name)
        shape = layers_of(model, part)
        stream = max(p.element_size() for name, p in model.named_parameters() if part in name and "lora_" not in name)
        if shape is not None and (learns or part == "language_model"):  # behind it lies the projector
            activations += batch * kept_bytes(shape, learns, half, length, checkpointing, stream)
    processes, engine = processes_of(cluster)
    return Sizes(
        parameters=sum(weight.numel() for name, weight in model.named_parameters() if not ADDED.search(name)),
        trained=trained,
        weights=weights / (processes if engine in ("FSDP", "ZeRO-3") else 1),
        gradients=trained_bytes / (processes if engine in ("FSDP", "ZeRO-2", "ZeRO-3") else 1),
        optimizer=state * trained / (processes if engine in ("FSDP", "ZeRO-2", "ZeRO-3") else 1),
        copies=copies / (processes if engine in ("FSDP", "ZeRO-3") else 1),
        activations=activations,
    )


def processes_of(cluster) -> tuple[int, str]:
    """(number of processes, "DDP", "FSDP", "ZeRO-3", …) of an accelerate configuration."""
    if cluster is None:
        return 1, "DDP"
    if cluster.distributed_type == "DEEPSPEED":
        return cluster.num_processes, f"ZeRO-{cluster.deepspeed_config['zero_stage']}"
    return cluster.num_processes, "FSDP" if cluster.distributed_type == "FSDP" else "DDP"


def operations(model, tokens: float, features: float, checkpointed: bool) -> float:
    """Floating-point operations of one image forward and back; `tokens` and `features` on average."""
    total = 0.0
    for part, length in (("vision_tower", features), ("language_model", tokens)):
        weights = [p for name, p in model.named_parameters() if part in name and p.ndim > 1 and "embed" not in name]
        count, learned = (sum(p.numel() for p in ps) for ps in (weights, [p for p in weights if p.requires_grad]))
        passed = part == "language_model" or learned
        total += 2 * length * (count + (count * (1 + checkpointed) + learned if passed else 0))
    return total


def report(
    plan: PlanArguments, arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig
) -> str:
    """The plan as text."""
    cluster = load_config_from_file(plan.accelerate) if plan.accelerate else None
    config, vision, text = configuration(arguments, model_args)
    model = meta_model(config, arguments, model_args)
    processor, real = processor_of(config, vision, text)
    side = processor.image_processor.crop_size["height"]
    image_tokens, features = processor.num_image_tokens(side, side), (side // config.vision_stride) ** 2
    rows, missing = sequences(arguments, training_args)
    lengths = {formats: len(compile_slots(processor, formats, image_tokens)) for formats in rows}
    images, mean = rows.total(), sum(lengths[formats] * count for formats, count in rows.items()) / rows.total()
    size = sizes(model, training_args, model_args, max(lengths.values()), features, cluster)
    processes, engine = processes_of(cluster)
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * processes
    steps = training_args.max_steps
    if steps < 0:
        steps = math.ceil(training_args.num_train_epochs * math.ceil(images / batch))
    work = operations(model, mean, features, training_args.activation_checkpointing) * batch
    lines = [
        ("network", f"{vision} + {text}; {', '.join(map(source_of, (vision, text)))}"),
        ("parameters", f"{size.parameters:,}; trained: {size.trained:,} ({size.trained / size.parameters:.1%})"),
        ("images", f"{side} x {side} pixels, {image_tokens} tokens"),
        ("sequence", f"{max(lengths.values())} tokens for {names(max(lengths, key=lengths.get))}" + WORDS[real]),
        ("memory", f"{size.memory / GIB:.1f} GiB per GPU, {f'{processes} with {engine}' if processes > 1 else 'one'}:"),
        *((f"  {name}", f"{getattr(size, name) / GIB:.1f}") for name in MEMORY),
        ("step", f"{batch} images, {round(batch * mean):,} tokens, {work / 1e12:.0f} TFLOP"),
    ]
    if layers_of(model, "vision_tower") is None:
        lines.insert(-1, ("", "without the activations of the convolutional tower"))
    if arguments.unlabelled:
        lines.insert(-1, ("", "without the unlabelled images"))
    if missing:
        lines.append(("steps", f"unknown: {', '.join(missing)} not there. {10_000 / batch:.0f} per 10,000 images"))
    else:
        hours = steps * work / processes / 1e14 / 3600
        lines.append(("steps", f"{steps:,}, for {images:,} images; {hours:.1f} h at 100 TFLOP/s sustained per GPU"))
    share = training_args.per_device_train_batch_size
    short = (
        f"{size.parameters:,} parameters, {size.trained:,} trained; {size.memory / GIB:.1f} GiB per GPU at a batch of "
        f"{share}; {round(batch * mean):,} tokens and {work / 1e12:,.0f} TFLOP a step of {batch} images."
    )
    return "\n".join(f"{name:15}{text}" for name, text in [*lines, ("in short", short)])


def names(formats: tuple[AUFormat, ...]) -> str:
    return ", ".join(fmt.name for fmt in formats)


def source_of(source: str) -> str:
    return "shape as published" if local_folder(source) is None else "shape from its config.json"


def make_parser() -> TrlParser:
    return TrlParser(
        (PlanArguments, AUArguments, AUTrainingConfig, ModelConfig), description=__doc__, allow_abbrev=False
    )


def main(words: list[str]) -> str:
    # No GPU is needed to plan for one: TrainingArguments would refuse bf16 without.
    return report(*make_parser().parse_args_and_config([*words, "--use_cpu", "true"], fail_with_unknown_args=True))


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        print(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"plan.py: {sentence_of(error)}")
