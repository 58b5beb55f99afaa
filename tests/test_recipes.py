"""Every recipe parses, names parts that exist, and trains a tiny model of its families with its own options."""

import re
import subprocess
import sys

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from conftest import ROOT, TOKENIZERS
from peft import PeftModel
from safetensors.torch import load_file
from test_from_pretrained_parts import save_vision, without_chat_markers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from au_llava.au_datasets.mixing import TrainingData
from au_llava.au_datasets.records import load_records
from au_llava.au_publishing import merging
from au_llava.au_runs.manifests import read_training_manifest
from au_llava.au_training.command import main, make_parser
from au_llava.au_training.start import freeze_parts, load_model, starting_point
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
# Replacements of the parts that a recipe names: encoders as in test_from_pretrained_parts, and language models.
VISION = {"google/siglip2": "siglip", "openai/clip": "clip", "facebook/dinov2": "dinov2"}
TEXT = {"HuggingFaceTB/SmolLM2": "smollm2", "Qwen/Qwen3": "qwen3", "lmsys/vicuna": "vicuna"}
PROJECTION = "multi_modal_projector"


def save_text(kind: str, folder):
    """A tiny language model of a family, with a tokenizer that writes numbers and turns like the family's."""
    tokenizer = TOKENIZERS["grouped digits" if kind == "qwen3" else "single digits"]()
    if kind == "vicuna":  # no chat markers, nothing to pad with
        special = {"bos_token": "<s>", "eos_token": "</s>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=without_chat_markers(tokenizer), **special)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,  # what 4-bit layers on a CPU want
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kind == "vicuna" else 2,
        "tie_word_embeddings": kind != "vicuna",
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    config = Qwen3Config(**settings, head_dim=32) if kind == "qwen3" else LlamaConfig(**settings)
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Hub id -> the folder of its tiny replacement."""
    folder = tmp_path_factory.mktemp("parts")
    for kind in VISION.values():
        save_vision(kind, folder / kind)
    for kind in TEXT.values():
        save_text(kind, folder / kind)

    def stand_in(source: str) -> str:
        return str(folder / next(kind for start, kind in {**VISION, **TEXT}.items() if source.startswith(start)))

    return stand_in


def options(name: str) -> dict:
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())


def parsed(name: str, *flags):
    words = ["--config", ROOT / "recipes" / f"{name}.yaml", "--use_cpu", "true", *flags]
    return make_parser().parse_args_and_config([str(word) for word in words], fail_with_unknown_args=True)


def train(name: str, parts, records, out, *flags):
    """Run a recipe for two steps with other parts, other data and a small batch; all other options are its own."""
    recipe = options(name)
    words = [word for key in ("vision", "text") if key in recipe for word in (f"--{key}", parts(recipe[key]))]
    words += ["--data", records, "--output_dir", out, "--max_steps", 2, "--save_steps", 2, "--logging_steps", 1]
    words += ["--per_device_train_batch_size", 2, "--per_device_eval_batch_size", 4, "--gradient_accumulation_steps", 1]
    words += ["--dataloader_num_workers", 0, "--disable_tqdm", "true", "--warmup_steps", 0]
    if recipe["eval_strategy"] != "no":
        words += ["--eval_steps", 2]
    main(*parsed(name, *words, *flags))
    logged = yaml.safe_load((out / "trainer_state.json").read_text())["log_history"]
    values = {key: value for entry in logged for key, value in entry.items()}
    assert 0 < values["loss"] < 100
    assert ("eval_disfa_icc" in values) is (recipe["eval_strategy"] != "no")
    return out


def moved(before, after) -> set[str]:
    """Parts in which a weight changed."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name].float(), new[name].float())}
    return {re.search(r"vision_tower|multi_modal_projector|language_model|lm_head", name)[0] for name in changed}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses(path):
    ours, training, _ = parsed(path.stem)
    assert training.output_dir == f"runs/{path.stem.replace('_', '-')}"
    for entry in ours.data:
        TrainingData.read(entry)
    stated = " ".join(line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    for file in re.findall(r"recipes/[\w/.-]+\.yaml", stated):
        assert (ROOT / file).is_file(), file
    if not path.stem.endswith("_tiny"):
        assert "Frozen:" in stated
        assert "Not run at full size here." in stated


def test_a_misspelt_key_fails(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((ROOT / "recipes" / "small.yaml").read_text() + "pixel_unshufle: 2\n")
    with pytest.raises(ValueError, match="pixel_unshufle"):
        make_parser().parse_args_and_config(["--config", str(recipe), "--use_cpu", "true"], fail_with_unknown_args=True)


def test_the_second_stage_starts_from_the_first():
    first, second = options("paper-7b-stage1"), options("paper-7b-stage2")
    assert second["model_name_or_path"] == first["output_dir"]
    assert second["data"] == first["data"]
    assert "OUR READING OF THE PAPER" in (ROOT / "recipes" / "paper-7b-stage2.yaml").read_text()


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_configuration_parses(path, tmp_path):
    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    assert (
        config.distributed_type
        == {
            "single-gpu": "NO",
            "cpu": "NO",
            "ddp": "MULTI_GPU",
            "fsdp2": "FSDP",
            "zero2": "DEEPSPEED",
            "zero3": "DEEPSPEED",
        }[path.stem]
    )
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(wrong))


@pytest.fixture(scope="module")
def small(parts, rendered_records, tmp_path_factory):
    return train("small", parts, rendered_records, tmp_path_factory.mktemp("small"))


def test_small_trains_everything(small, rendered_records):
    assert moved(small / "base", small) == {"vision_tower", PROJECTION, "language_model"}  # the head is the embedding
    assert AutoConfig.from_pretrained(small, trust_remote_code=True).pixel_unshuffle == 2
    model = AuLlavaForConditionalGeneration.from_pretrained(small)
    processor = AutoProcessor.from_pretrained(small, trust_remote_code=True)
    image = load_records(rendered_records)[0]["image"]
    assert len(model.recognize(processor, [image])[0]["disfa"]) == 12


@pytest.mark.slow
def test_base_trains_everything(parts, rendered_records, tmp_path):
    out = train("base", parts, rendered_records, tmp_path)
    assert moved(out / "base", out) == {"vision_tower", PROJECTION, "language_model"}


def adapters(folder) -> set[str]:
    """Parts that the adapters in a folder change; all adapters were trained."""
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    return {re.search(r"vision_tower|multi_modal_projector|language_model|lm_head", name)[0] for name in weights}


def test_paper_7b_in_two_stages(parts, rendered_records, tmp_path):
    first = train("paper-7b-stage1", parts, rendered_records, tmp_path / "1")
    assert moved(first / "base", first) == {PROJECTION}
    start = ("--model_name_or_path", first)
    second = train("paper-7b-stage2", parts, rendered_records, tmp_path / "2", *start)
    assert adapters(second) == {PROJECTION, "language_model"}
    saved = load_file(second / "adapter_model.safetensors")
    trained = next(weight for name, weight in saved.items() if name.endswith("projector.weight"))
    assert trained.dtype == torch.float32
    before = load_file(first / "model.safetensors")["model.multi_modal_projector.weight"]
    assert not torch.equal(before.float(), trained)
    merged = tmp_path / "merged"
    assert merging.run([str(second), "--out", str(merged)]) == 0
    assert moved(first, merged) == {PROJECTION, "language_model"}


def test_smollm2_135m_adapts_a_language_model_to_a_tower(parts, tiny_checkpoint, rendered_records, tmp_path):
    own = lambda source: str(tiny_checkpoint) if source == "." else parts(source)
    out = train("smollm2_135m", own, rendered_records, tmp_path / "out", "--cache_features", tmp_path / "features")
    assert adapters(out) == {PROJECTION, "language_model"}
    base = load_file(out / "base" / "model.safetensors")
    shipped = load_file(tiny_checkpoint / "model.safetensors")
    tower = [name for name in shipped if "vision_tower" in name]
    assert tower
    assert all(torch.equal(base[name], shipped[name]) for name in tower)
    assert AutoConfig.from_pretrained(out / "base", trust_remote_code=True).prompt_order == "text_first"


def test_arkit_tiny_adapts_tower_words_and_language_model(parts, tiny_checkpoint, rendered_records, tmp_path):
    """The words too: the names of AUs that the base never met would else be all alike to it."""
    start = ("--model_name_or_path", tiny_checkpoint, "--unlabelled", rendered_records)
    out = train("arkit_tiny", parts, rendered_records, tmp_path / "out", *start, "--unlabelled_per_labelled", 1)
    assert adapters(out) == {"vision_tower", PROJECTION, "language_model"}
    names = load_file(out / "adapter_model.safetensors")
    assert any("embed_tokens.lora_embedding_A" in name for name in names)
    assert {"model.safetensors"} == {*read_training_manifest(str(out))["base_weights"]}


@pytest.mark.slow
def test_dinov2_7b_adapts_both(parts, rendered_records, tmp_path):
    out = train("dinov2-7b", parts, rendered_records, tmp_path)
    assert adapters(out) == {"vision_tower", PROJECTION, "language_model"}
    names = load_file(out / "adapter_model.safetensors")
    for projection in ("vision_tower.encoder.layer.0.attention.q_proj", "vision_tower.encoder.layer.0.mlp.fc1"):
        assert any(projection in name for name in names)


@pytest.mark.slow
def test_qlora_7b_adapts_a_model_in_four_bits(parts, rendered_records, tmp_path):
    out = train("qlora-7b", parts, rendered_records, tmp_path, "--optim", "adamw_torch")  # 8-bit Adam needs a GPU
    assert adapters(out) == {PROJECTION, "language_model"}
    *_, model_args = parsed("qlora-7b", "--output_dir", tmp_path)
    model_args.model_name_or_path = str(out / "base")
    model = load_model(model_args, parsed("qlora-7b")[1])
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["model.language_model.layers.0.mlp.up_proj"] == "Linear4bit"
    assert kinds["model.multi_modal_projector"] == kinds["lm_head"] == "Linear"
    assert "Linear4bit" not in {kind for name, kind in kinds.items() if "vision_tower" in name}
    assert PeftModel.from_pretrained(model, out).active_adapters == ["default"]


@pytest.mark.parametrize(("vision", "text"), [("siglip", "qwen3"), ("clip", "vicuna"), ("dinov2", "smollm2")])
def test_fsdp_wraps_every_layer(parts, tmp_path, vision, text):
    """recipes/accelerate/fsdp2.yaml names no classes: they come from the model, for all parts."""
    sources = {kind: start for start, kind in {**VISION, **TEXT}.items()}
    model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(parts(sources[vision]), parts(sources[text]))
    model.save_pretrained(tmp_path)
    _, training, model_args = parsed("rendered_tiny", "--model_name_or_path", tmp_path)
    model = load_model(model_args, training)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = [type(module).__name__ for module in model.modules() if policy(module)]
    layer = {"siglip": "SiglipEncoderLayer", "clip": "CLIPEncoderLayer", "dinov2": "Dinov2Layer"}[vision]
    assert wrapped.count(layer) == 2
    assert wrapped.count("Qwen3DecoderLayer" if text == "qwen3" else "LlamaDecoderLayer") == 2
    assert not {"AuLlavaForConditionalGeneration", "Embedding", "Linear"} & set(wrapped)


def test_frozen_language_model_is_checkpointed(parts):
    """Gradients pass through it: without checkpointing, a first stage would keep as much as a whole training."""
    source = parts("openai/clip"), parts("lmsys/vicuna")
    kept = {}
    for checkpointed in (False, True):
        model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(*source)
        freeze_parts(model, ["vision_tower", "language_model"])
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()
        saved = []
        inputs = torch.rand(1, 30, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            loss = model.model.language_model(inputs_embeds=inputs).last_hidden_state.sum()
        kept[checkpointed] = sum(saved)
        loss.backward()
        assert inputs.grad.any()
        assert not any(module.training for module in model.model.language_model.layers[0].children())
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vision", "a"], "Say what to start from"),
        (["--model_name_or_path", "a", "--vision", "b", "--text", "c"], "Say what to start from"),
        ([], "Say what to start from"),
    ],
)
def test_what_to_start_from(rendered_records, tmp_path, flags, message):
    words = ["--data", str(rendered_records), "--output_dir", str(tmp_path), "--use_cpu", "true", *flags]
    with pytest.raises(ValueError, match=message):
        main(*make_parser().parse_args_and_config(words))


def test_a_base_is_built_once_and_of_what_was_asked_for(small, parts):
    words = ["--vision", parts("google/siglip2"), "--text", parts("HuggingFaceTB/SmolLM2"), "--output_dir", small]
    built = (small / "base" / "model.safetensors").stat().st_mtime_ns
    assert starting_point(*parsed("small", *words)) == str(small / "base")
    assert (small / "base" / "model.safetensors").stat().st_mtime_ns == built
    with pytest.raises(ValueError, match="delete it or choose another output_dir"):
        starting_point(*parsed("small", *words, "--pixel_unshuffle", 1))


@pytest.mark.slow
def test_the_command_line_of_a_recipe(parts, rendered_records, tmp_path):
    launch = ["accelerate.commands.accelerate_cli", "launch", "--config_file", ROOT / "recipes/accelerate/cpu.yaml"]
    words = [*launch, ROOT / "train_sft.py", "--config", ROOT / "recipes" / "small.yaml", "--use_cpu", "true"]
    words += ["--vision", parts("google/siglip2"), "--text", parts("HuggingFaceTB/SmolLM2"), "--data", rendered_records]
    words += ["--output_dir", tmp_path, "--max_steps", 1, "--eval_strategy", "no", "--per_device_train_batch_size", 2]
    run = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "model.safetensors").is_file()
