"""Plans: parameters against published counts, memory against what autograd keeps, steps by hand."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, build_tiny
from huggingface_hub.constants import HF_HUB_CACHE
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import (
    Cache,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from au_llava.action_units import FORMATS
from au_llava.au_training import memory, plan
from au_llava.au_training.start import LORA_TARGETS
from au_llava.au_training.untrained import PUBLISHED, published_shape
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.prefix_au_llava import PromptRowsLayer
from au_llava.slot_tree_au_llava import compile_slots

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.endswith("_tiny"))
ACCELERATE = ROOT / "recipes" / "accelerate"
# Parameters as their authors or the Hub count them, a shared embedding once; Vicuna's are Llama-2-7B's.
COUNTS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "facebook/dinov2-large": 304_368_640,
    "openai/clip-vit-large-patch14-336": 303_507_456,
}


def numbers(text: str) -> dict[str, str]:
    """The lines of a plan by their first word."""
    return {line[:15].strip(): line[15:] for line in text.splitlines()}


@pytest.fixture(scope="module")
def plans():
    return {path.stem: plan.plan(["--config", str(path), "--data", "nowhere"]) for path in RECIPES}


def test_published_shapes_have_the_published_sizes():
    tiny_text, tiny_vision = LlamaConfig(**TEXT), SiglipVisionConfig(**VISION)
    for source, count in COUNTS.items():
        shape = published_shape(source)
        vision = "vision" in shape.model_type or shape.model_type == "dinov2"
        config = {"vision_config": shape if vision else tiny_vision, "text_config": tiny_text if vision else shape}
        with torch.device("meta"):
            model = AuLlavaForConditionalGeneration._from_config(AuLlavaConfig(**config))
        parts = [model.model.vision_tower] if vision else [model.model.language_model, model.lm_head]
        weights = {weight for part in parts for weight in part.parameters()}
        assert sum(weight.numel() for weight in weights) == count, source


def test_plans_leave_the_published_shapes_as_they_are(plans):
    assert [source for source, (shape, _) in PUBLISHED.items() if shape.dtype is not None] == []
    assert PUBLISHED["google/siglip2-base-patch16-224"][0].vision_use_head  # which no model of ours has


def test_every_published_shape_is_used_by_a_recipe():
    text = "".join(path.read_text() for path in RECIPES)
    assert [source for source in PUBLISHED if source not in text] == []


def test_recipes_state_their_plan(plans):
    outdated = []
    for path in RECIPES:
        comments = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
        if numbers(plans[path.stem])["in short"] not in " ".join(comments):
            outdated.append(path.name)
    assert outdated == []


def test_the_document_states_them_too(plans):
    text = (ROOT / "docs" / "training.md").read_text()
    for name, told in plans.items():
        row = re.search(rf"^\| `{name}` .*$", text, re.MULTILINE)[0].split(" | ")
        lines = numbers(told)
        assert row[-1] == f"{lines['memory'].split()[0]} |"
        assert row[-2] == lines["parameters"].split("trained: ")[1]
        assert row[-3] == lines["images"].split()[-2]


def test_recipes_train_what_they_say(plans):
    def trained(name):
        count, share = numbers(plans[name])["parameters"].split("; trained: ")
        return int(count.replace(",", "")), int(share.split(" ")[0].replace(",", ""))

    for name in ("small", "base"):
        assert trained(name)[0] == trained(name)[1]
    projector = 1024 * 4096 + 4096
    assert trained("paper-7b-stage1") == (303_507_456 + projector + 6_738_415_616, projector)
    # LoRA of rank r adds r (inputs + outputs) per matrix: four of 4096 x 4096, three of 4096 x 11008, in 32 layers.
    per_rank = 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert trained("paper-7b-stage2")[1] == trained("qlora-7b")[1] == projector + 64 * per_rank
    towers = 24 * (4 * (1024 + 1024) + 2 * (1024 + 4096))
    assert trained("dinov2-7b")[1] == projector + 8 * (per_rank + towers)
    assert trained("paper-7b-stage2")[0] == trained("paper-7b-stage1")[0]


def saved_bytes(model, run) -> int:
    """What autograd keeps from a forward pass under bf16 autocast, without weights and their copies."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    shapes = {tuple(module.weight.shape) for module in linear}
    owned = {StorageWeakRef(weight.untyped_storage()) for weight in model.parameters()}
    sizes, alive = {}, []

    def pack(tensor):
        copy_of_weight = tuple(tensor.shape) in shapes or tuple(tensor.shape[::-1]) in shapes
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference not in owned and not copy_of_weight:
            sizes[reference] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        run()
    return sum(sizes.values())


SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4}
TEXT = {**SHAPE, "vocab_size": 50, "num_key_value_heads": 2, "head_dim": 16}
VISION = {**SHAPE, "image_size": 63, "patch_size": 7}
RATIO = {"mlp_ratio": 3}  # 192 / 64
LENGTH = {"language_model": 80, "vision_tower": 81}


def language_model(kind, config, layers, dtype=torch.float32):
    return kind(config(**TEXT, num_hidden_layers=layers)).to(dtype).train()


CASES = {
    "llama": ("language_model", True, lambda n: language_model(LlamaModel, LlamaConfig, n)),
    "qwen3": ("language_model", True, lambda n: language_model(Qwen3Model, Qwen3Config, n)),
    "frozen llama": (
        "language_model",
        False,
        lambda n: language_model(LlamaModel, LlamaConfig, n, torch.bfloat16).requires_grad_(False),
    ),
    "siglip": ("vision_tower", True, lambda n: SiglipVisionModel(SiglipVisionConfig(**VISION, num_hidden_layers=n))),
    "clip": ("vision_tower", True, lambda n: CLIPVisionModel(CLIPVisionConfig(**VISION, num_hidden_layers=n))),
    "dinov2": (
        "vision_tower",
        True,
        lambda n: Dinov2Model(Dinov2Config(**VISION, **RATIO, num_hidden_layers=n)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_formula_is_what_autograd_keeps(name):
    """Difference of two layers, so that embeddings and norms around them do not count."""
    part, trained, build = CASES[name]
    length = LENGTH[part]

    def run(model):
        if part == "vision_tower":
            return model(torch.rand(1, 3, 63, 63))
        inputs = torch.rand(1, length, 64, dtype=next(model.parameters()).dtype, requires_grad=True)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        return model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)

    def kept(layers):
        model = build(layers)
        return saved_bytes(model, lambda: run(model))

    class Whole(torch.nn.Module):
        def __init__(self, layers):
            super().__init__()
            setattr(self, part, build(layers))

    shape = memory.layers_of(Whole(2), part)
    assert shape == (2, 64, 64, 192, "gated" if part == "language_model" else "plain")
    counted = (kept(4) - kept(2)) / 2
    formula = memory.kept_bytes(shape, trained, 2, length, checkpointed=False) / 2
    assert formula == pytest.approx(counted, rel=0.2), counted / length


def test_lora_keeps_what_a_trained_layer_keeps():
    def kept(layers):
        model = language_model(LlamaModel, LlamaConfig, layers, torch.bfloat16)
        config = LoraConfig(r=2, lora_dropout=0.0, target_modules=LORA_TARGETS.replace("language_model", ""))
        model = get_peft_model(model, config)
        inputs = torch.rand(1, 80, 64, dtype=torch.bfloat16, requires_grad=True)
        return saved_bytes(model, lambda: model(inputs_embeds=inputs, use_cache=False))

    counted = (kept(4) - kept(2)) / 2
    formula = memory.kept_bytes((1, 64, 64, 192, "gated"), True, 2, 80, checkpointed=False)
    assert 0.7 < formula / counted < 1.3


def test_checkpointing_keeps_inputs_and_one_layer():
    shape = (10, 64, 64, 192, "gated")
    one = memory.kept_bytes((1, *shape[1:]), True, 2, 80, checkpointed=False)
    assert memory.kept_bytes(shape, True, 2, 80, checkpointed=False) == 10 * one
    assert memory.kept_bytes(shape, True, 2, 80, checkpointed=True) == one + 80 * 10 * 64 * 4
    assert memory.kept_bytes(shape, True, 2, 80, checkpointed=True, stream=2) == one + 80 * 10 * 64 * 2


def sizes_of(recipe, *flags, cluster=None):
    words = ["--config", str(ROOT / "recipes" / f"{recipe}.yaml"), "--use_cpu", "true", *flags]
    _, ours, training, model_args = plan.make_parser().parse_args_and_config(words)
    config, *_ = plan.configuration(ours, model_args)
    model = plan.meta_model(config, ours, model_args)
    cluster = load_config_from_file(str(ACCELERATE / f"{cluster}.yaml")) if cluster else None
    return memory.sizes(model, training, model_args, 1000, 196, cluster)


def test_bytes_per_parameter():
    size = sizes_of("small")
    count = size.parameters
    assert (size.weights, size.gradients, size.optimizer, size.copies) == (4 * count, 4 * count, 8 * count, 2 * count)
    plain = sizes_of("small", "--bf16", "false")
    assert (plain.weights, plain.copies) == (4 * count, 0)
    frozen = sizes_of("paper-7b-stage1")
    projector = 1024 * 4096 + 4096
    assert frozen.weights == 2 * (frozen.parameters - projector) + 4 * projector
    quantised = sizes_of("qlora-7b")
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    rest = quantised.parameters - linear + quantised.trained  # the projector is there twice: as it was, and trained
    assert quantised.weights == pytest.approx(linear * (0.5 + 0.127 / 8) + 2 * rest)
    assert quantised.optimizer == 2 * quantised.trained
    assert quantised.memory < 22 * 2**30  # the card it is for has 24


def test_what_engines_divide():
    alone = sizes_of("small")
    for cluster, divided in {
        "single-gpu": (),
        "ddp": (),
        "zero2": ("gradients", "optimizer"),
        "zero3": ("weights", "gradients", "optimizer", "copies"),
        "fsdp2": ("weights", "gradients", "optimizer", "copies"),
    }.items():
        shared = sizes_of("small", cluster=cluster)
        for name in memory.MEMORY:
            expected = getattr(alone, name) / (8 if name in divided else 1)
            assert getattr(shared, name) == expected, (cluster, name)


def test_files_on_this_machine_are_read(tmp_path, rendered_records):
    """The configuration, tokenizer and data of a checkpoint: tokens and steps by hand."""
    model, processor = build_tiny()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    words = ["--model_name_or_path", tmp_path, "--data", rendered_records, "--output_dir", tmp_path / "out"]
    words += ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--num_train_epochs", 3]
    told = numbers(plan.plan([str(word) for word in words]))
    assert told["parameters"].startswith(f"{model.num_parameters():,}; trained: {model.num_parameters():,}")
    length = len(compile_slots(processor, tuple(FORMATS[name] for name in ("bp4d", "disfa", "feafa")), 16))
    assert told["sequence"] == f"{length} tokens for bp4d, disfa, feafa"
    assert told["step"].startswith(f"8 images, {8 * length:,} tokens")
    assert told["steps"].startswith(f"{3 * math.ceil(10 / 8)}, for 10 images")
    assert told["network"].endswith("shape from its config.json")


def test_a_revision_is_planned_for(tmp_path, rendered_records):
    """Its configuration and its processor: only v2's makes a quarter of the image tokens."""
    cached = Path(HF_HUB_CACHE, "models--someone--planned")
    for revision, commit, options in (("main", "a" * 40, {}), ("v2", "b" * 40, {"pixel_unshuffle": 2})):
        for part in build_tiny(**options):
            part.save_pretrained(cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / revision).write_text(commit)
    words = ["--model_name_or_path", "someone/planned", "--data", str(rendered_records), "--output_dir", str(tmp_path)]
    for revision, tokens in (("main", 16), ("v2", 4)):
        told = numbers(plan.plan([*words, "--model_revision", revision]))
        assert told["images"].endswith(f" {tokens} tokens")
        assert told["network"].endswith("shape from its config.json, shape from its config.json")


def test_prompts_before_the_image_count_once_a_batch(tmp_path, rendered_records):
    model, processor = build_tiny(prompt_order="text_first")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    words = ["--model_name_or_path", tmp_path, "--data", rendered_records, "--output_dir", tmp_path / "out"]
    words += ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    told = numbers(plan.plan([str(word) for word in words]))
    names = ("bp4d", "disfa", "feafa")
    length = len(compile_slots(processor, tuple(FORMATS[name] for name in names), 16))
    prompts = [processor.prompt_ids(FORMATS[name], 16) for name in names]
    prompts = sum(ids.index(processor.image_token_id) for ids in prompts)
    assert told["sequence"] == f"{length} tokens for bp4d, disfa, feafa"
    assert told["prompts"] == f"{prompts:,} tokens, once a batch"
    assert told["step"].startswith(f"8 images, {8 * length + 2 * prompts:,} tokens")


@pytest.mark.parametrize("rows", [1, 3])
def test_attention_to_prompts_keeps_a_copy_for_each_row(rows):
    """As on a GPU, where the attention's kernel gets whole keys and values for each row."""
    length, batch, before = 80, 2, rows * 80

    def kept(layers):
        model = language_model(LlamaModel, LlamaConfig, layers)
        cache = Cache(layers=[PromptRowsLayer(rows) for _ in range(layers)])
        inputs = torch.rand(rows + batch, length, 64, requires_grad=True)
        mask = torch.ones(rows + batch, 1, length, before + length, dtype=torch.bool)
        positions = torch.arange(length).expand(rows + batch, -1)
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        return saved_bytes(model, lambda: model(inputs_embeds=inputs, use_cache=False, **given))

    counted = (kept(4) - kept(2)) / 2 / (rows + batch)
    formula = memory.kept_bytes((1, 64, 64, 192, "gated"), True, 2, length, checkpointed=False, before=before)
    assert formula == pytest.approx(counted, rel=0.2), counted / length


def test_parts_on_this_machine_are_read(tmp_path):
    LlamaConfig(**TEXT, num_hidden_layers=1).save_pretrained(tmp_path / "text")
    words = ["--vision", "facebook/dinov2-large", "--text", str(tmp_path / "text"), "--data", "nowhere"]
    told = numbers(plan.plan([*words, "--output_dir", str(tmp_path)]))
    assert told["images"] == "224 x 224 pixels, 256 tokens"
    assert "its tokenizer is not on this machine" in told["sequence"]
    assert told["steps"].startswith("unknown: nowhere not there")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vision", "a/b"], "The shape of a/b is not known"),
        (["--text", "a/b"], "The shape of a/b is not known"),
        (["--model_name_or_path", "a/b"], "Say what to start from"),
        (["--model_revision", "v2"], "model_revision has no effect without --model_name_or_path"),
        (["--optim", "rmsprop"], "The memory of the optimizer rmsprop is not known"),
        (["--learning_rat", "1"], "learning_rat"),
        (["--accelerate", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_named(flags, message):
    words = ["--config", str(ROOT / "recipes" / "small.yaml"), "--data", "nowhere", *flags]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan.plan(words)


def test_a_first_stage_is_found_by_what_it_writes():
    stage2 = yaml.safe_load((ROOT / "recipes" / "paper-7b-stage2.yaml").read_text())
    assert plan.made_by_recipe(stage2["model_name_or_path"])["text"] == "lmsys/vicuna-7b-v1.5"
    with pytest.raises(ValueError, match="runs/nothing is not there, and no recipe"):
        plan.made_by_recipe("runs/nothing")
