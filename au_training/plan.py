"""What a recipe takes, before it is started: parameters, memory, tokens and steps. Nothing is downloaded or trained.

    python tools/plan.py --config recipes/small.yaml
    python tools/plan.py --config recipes/base.yaml --accelerate recipes/accelerate/fsdp2.yaml --text Qwen/Qwen3-1.7B

Takes every option of train_sft.py. The network is built in its real shape on PyTorch's meta device, which takes no
memory, then frozen and adapted by the code that trains it. Shapes, image sizes and tokenizers come from the encoder and
the language model if they are on this machine (folders, or the Hub's cache: `hf download ID config.json`), otherwise
from `PUBLISHED` in au_training/untrained.py. au_training/memory.py says what is counted.
"""

import dataclasses
import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import get_peft_model
from transformers import PreTrainedConfig
from trl import ModelConfig, get_peft_config

from au_llava.action_units import MAIN_FORMATS, AUFormat, get_format
from au_llava.au_datasets.mixing import TrainingData, training_rows
from au_llava.au_runs.commands import run_command
from au_llava.au_runs.files import HOME
from au_llava.au_training.memory import MEMORY, layers_of, operations, processes_of, sizes
from au_llava.au_training.options import AUArguments, AUTrainingConfig, RecipeParser
from au_llava.au_training.start import LORA_TARGETS, check_start, freeze_parts
from au_llava.au_training.untrained import PUBLISHED, processor_for, published_shape, word_tokenizer
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.parts_au_llava import part_config, vision_settings
from au_llava.processing_au_llava import AuLlavaProcessor
from au_llava.slot_tree_au_llava import SlotTree, compile_slots

RECIPES = HOME / "recipes"
GIB = 2**30
ABOUT = ", about: its tokenizer is not on this machine; one token per word, digit and sign"


@dataclasses.dataclass
class PlanArguments:
    """The machines to plan for."""

    accelerate: str | None = dataclasses.field(
        default=None, metadata={"help": "File of recipes/accelerate: the number of GPUs, and what they share."}
    )


def local_folder(source: str, revision: str | None = None) -> Path | None:
    """The folder on this machine of a Hub id or path, without asking the network; None if there is none.

    Args:
        revision: of a Hub id (default: its main one).
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        cached = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:  # a path
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def shape_of(source: str) -> PreTrainedConfig:
    """The configuration of an encoder, a language model or a whole checkpoint.

    Raises:
        ValueError: it is neither on this machine nor among `PUBLISHED`.
    """
    folder = local_folder(source)
    if folder is not None and ((folder / "config.json").is_file() or any(folder.glob("*.gguf"))):
        return part_config(str(folder))
    if source in PUBLISHED:
        return published_shape(source)
    raise ValueError(
        f"The shape of {source} is not known: it is not on this machine (`hf download {source} config.json`)."
    )


def configuration(arguments: AUArguments, model_args: ModelConfig) -> tuple[AuLlavaConfig, str, str]:
    """The network's configuration, and the id or folder that its image size and its tokenizer come from.

    Raises:
        ValueError: no starting point is named, or it is missing and no recipe makes it.
    """
    check_start(arguments, model_args)
    start = model_args.model_name_or_path
    if start is not None and (folder := local_folder(start, model_args.model_revision)) is not None:
        return AuLlavaConfig.from_pretrained(folder), start, start
    if start is not None:
        arguments = dataclasses.replace(arguments, **made_by_recipe(start))
    vision, text = shape_of(arguments.vision), shape_of(arguments.text)
    read = {"vision_feature_layer": arguments.vision_feature_layer}
    if (folder := local_folder(arguments.vision)) is not None:
        read = vision_settings(str(folder), **read)
    config = AuLlavaConfig(
        vision_config=getattr(vision, "vision_config", vision),
        text_config=getattr(text, "text_config", text),
        pixel_unshuffle=arguments.pixel_unshuffle,
        prompt_order=arguments.prompt_order,
        **read,
    )
    return config, arguments.vision, arguments.text


def made_by_recipe(folder: str) -> dict:
    """The parts of the network that a recipe writes to `folder`: a first stage that has not run yet."""
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        if recipe["output_dir"] == folder and "vision" in recipe:
            keys = ("vision", "text", "pixel_unshuffle", "prompt_order", "vision_feature_layer")
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


def processor_of(
    config: AuLlavaConfig, vision: str, text: str, revision: str | None = None
) -> tuple[AuLlavaProcessor, bool]:
    """The processor, and whether its tokenizer is the real one rather than a stand-in."""
    folders = local_folder(vision, revision), local_folder(text, revision)
    images = folders[0] and any(folders[0].glob("*processor_config.json"))
    side = PUBLISHED[vision][1] if vision in PUBLISHED else getattr(config.vision_config, "image_size", None)
    if images:
        side = AuLlavaImageProcessor.like(str(folders[0])).crop_size["height"]
    if images and vision == text:  # a whole checkpoint
        return AuLlavaProcessor.from_pretrained(folders[0], trust_remote_code=True), True
    shared = {name: getattr(config, name) for name in ("vision_stride", "pixel_unshuffle", "prompt_order")}
    if images and folders[1] and (any(folders[1].glob("tokenizer*")) or any(folders[1].glob("*.gguf"))):
        return AuLlavaProcessor.from_vision_text_pretrained(*map(str, folders), **shared), True
    return processor_for(config, word_tokenizer(), side), False


def sequences(arguments: AUArguments, training_args: AUTrainingConfig) -> tuple[Counter, list[str]]:
    """The number of training rows by their formats, and the datasets that are missing.

    If one is missing, a single row with all formats stands for all: the longest sequence.
    """
    tables = [TrainingData.read(entry) for entry in arguments.data]
    missing = [table.path for table in tables if not Path(table.path).is_dir()]
    if missing:
        return Counter([tuple(map(get_format, arguments.formats or MAIN_FORMATS))]), missing
    rows = training_rows(tables, arguments.train_part, arguments.formats, training_args.seed)
    return Counter(tuple(map(get_format, formats)) for formats in rows["formats"][:]), []


@dataclasses.dataclass(frozen=True)
class Work:
    """What the steps of a training amount to.

    Attributes:
        images: in the training data. batch: images per step. tokens: per image, with its share of the prompts that a
            batch computes once, on average. operations: per step.
    """

    images: int
    batch: int
    tokens: float
    operations: float
    steps: int
    processes: int

    @property
    def hours(self) -> float:
        """At 100 TFLOP/s sustained per GPU."""
        return self.steps * self.operations / self.processes / 1e14 / 3600


def work_of(training_args: AUTrainingConfig, model, rows: Counter, trees: dict, features: int, cluster) -> Work:
    """Steps and operations of training on `rows` (formats -> rows) with the trees of their formats."""
    processes, _ = processes_of(cluster)
    images = rows.total()
    tokens = sum(len(trees[formats]) * count for formats, count in rows.items()) / images
    tokens += prompt_tokens(trees) / training_args.per_device_train_batch_size
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * processes
    steps = training_args.max_steps
    if steps < 0:
        steps = math.ceil(training_args.num_train_epochs * math.ceil(images / batch))
    of_step = operations(model, tokens, features, training_args.activation_checkpointing) * batch
    return Work(images, batch, tokens, of_step, steps, processes)


def prompt_tokens(trees: dict[tuple[AUFormat, ...], SlotTree]) -> int:
    """Tokens of the prompts that a batch computes once, if it holds images of all these trees."""
    return sum(map(len, {prefix for tree in trees.values() for prefix in tree.prefixes}))


def report(
    plan: PlanArguments, arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig
) -> str:
    """The plan as text."""
    cluster = load_config_from_file(plan.accelerate) if plan.accelerate else None
    config, vision, text = configuration(arguments, model_args)
    revision = model_args.model_revision
    told = ", ".join(source_of(part, revision) for part in (vision, text))
    model = meta_model(config, arguments, model_args)
    processor, is_real = processor_of(config, vision, text, revision)
    side = processor.image_processor.crop_size["height"]
    image_tokens, features = processor.num_image_tokens(side, side), (side // config.vision_stride) ** 2
    rows, missing = sequences(arguments, training_args)
    trees = {formats: compile_slots(processor, formats, image_tokens) for formats in rows}
    longest = max(trees, key=lambda formats: len(trees[formats]))
    length, prompts = len(trees[longest]), prompt_tokens(trees)
    size = sizes(model, training_args, model_args, length, features, cluster, prompt_rows=math.ceil(prompts / length))
    work = work_of(training_args, model, rows, trees, features, cluster)
    processes, engine = processes_of(cluster)
    gpus = f"{processes} with {engine}" if processes > 1 else "one"
    step_tokens, teraflop = f"{round(work.batch * work.tokens):,} tokens", f"{work.operations / 1e12:,.0f} TFLOP"
    lines = [
        ("network", f"{vision} + {text}; {told}"),
        ("parameters", f"{size.parameters:,}; trained: {size.trained:,} ({size.trained / size.parameters:.1%})"),
        ("images", f"{side} x {side} pixels, {image_tokens} tokens"),
        ("sequence", f"{length} tokens for {', '.join(fmt.name for fmt in longest)}{'' if is_real else ABOUT}"),
        *([("prompts", f"{prompts:,} tokens, once a batch")] if prompts else []),
        ("memory", f"{size.memory / GIB:.1f} GiB per GPU, {gpus}:"),
        *((f"  {name}", f"{getattr(size, name) / GIB:.1f}") for name in MEMORY),
        *(("", note) for note in left_out(model, arguments)),
        ("step", f"{work.batch} images, {step_tokens}, {teraflop}"),
        ("steps", steps_line(work, missing)),
        (
            "in short",
            f"{size.parameters:,} parameters, {size.trained:,} trained; {size.memory / GIB:.1f} GiB per GPU at a batch "
            f"of {training_args.per_device_train_batch_size}; {step_tokens} and {teraflop} a step of {work.batch} "
            "images.",
        ),
    ]
    return "\n".join(f"{name:15}{content}" for name, content in lines)


def left_out(model, arguments: AUArguments) -> list[str]:
    """What the memory does not count."""
    notes = []
    if layers_of(model, "vision_tower") is None:
        notes.append("without the activations of the convolutional tower")
    if arguments.unlabelled:
        notes.append("without the unlabelled images")
    return notes


def steps_line(work: Work, missing: list[str]) -> str:
    """The steps and hours in words. `missing`: datasets that are not there, without which steps are unknown."""
    if missing:
        return f"unknown: {', '.join(missing)} not there. {10_000 / work.batch:.0f} per 10,000 images"
    return f"{work.steps:,}, for {work.images:,} images; {work.hours:.1f} h at 100 TFLOP/s sustained per GPU"


def source_of(source: str, revision: str | None) -> str:
    """Where the shape of an encoder or a language model comes from, in words."""
    return "shape as published" if local_folder(source, revision) is None else "shape from its config.json"


def make_parser() -> RecipeParser:
    return RecipeParser(
        (PlanArguments, AUArguments, AUTrainingConfig, ModelConfig), description=__doc__, allow_abbrev=False
    )


def plan(words: Sequence[str]) -> str:
    """The plan that a command line asks for, as text."""
    # Planning for a GPU needs none: without this, TrainingArguments would refuse bf16 on a machine that has none.
    words = [*words, "--use_cpu", "true"]
    return report(*make_parser().parse_args_and_config(words, fail_with_unknown_args=True))


def run(words: Sequence[str] | None = None) -> int:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    return run_command("plan.py", lambda: print(plan(sys.argv[1:] if words is None else words)))
