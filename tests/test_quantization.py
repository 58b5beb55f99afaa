"""8 and 4 bits: what is quantized without being named, what is refused, and training with adapters on it."""

import copy
import json
from ast import literal_eval

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from conftest import build_tiny, load_tool, random_faces
from datasets import Dataset
from safetensors.torch import load_file
from test_train_sft import train
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlamaConfig, SiglipVisionConfig

from au_llava import recognize_au
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.command import main as evaluate
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.quantization_au_llava import UNQUANTIZED, loading_options, with_default_skips

KINDS = {8: "Linear8bitLt", 4: "Linear4bit"}
VISION = SiglipVisionConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
)


def bits(count: int, **options) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(**{f"load_in_{count}bit": True}, **options)


def save_tiny(folder, tokenizer: str = "grouped digits", **sizes):
    """A checkpoint whose linear layers have `sizes`, by default such that every CPU computes in 4 bits in them."""
    text = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, **sizes}
    model, processor = build_tiny(tokenizer, VISION, text_config=LlamaConfig(vocab_size=1024, **text))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "base"
    return folder, *save_tiny(folder)


def quantized(model) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ in KINDS.values()}


LANGUAGE_LAYERS = {
    f"model.language_model.layers.{layer}.{name}"
    for layer in (0, 1)
    for name in (
        *(f"self_attn.{each}_proj" for each in "qkvo"),
        *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
    )
}


@pytest.mark.parametrize("count", [8, 4])
@pytest.mark.parametrize("as_dict", [False, True])
def test_only_the_language_model_is_quantized_by_default(checkpoint, count, as_dict):
    folder, model, processor = checkpoint
    asked = bits(count)
    before = copy.deepcopy(asked.to_dict())
    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, quantization_config=asked.to_dict() if as_dict else asked
    )
    assert quantized(loaded) == LANGUAGE_LAYERS
    assert {type(dict(loaded.named_modules())[name]).__name__ for name in LANGUAGE_LAYERS} == {KINDS[count]}
    assert asked.to_dict() == before  # what the caller holds is the caller's
    kept = model.model.vision_tower.state_dict() | model.model.multi_modal_projector.state_dict()
    for part in (loaded.model.vision_tower, loaded.model.multi_modal_projector):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, kept[name])
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    read, exact = (
        torch.tensor(
            [reading.distribution for reading in each.recognize(processor, random_faces(1))[0]["disfa"].values()]
        )
        for each in (loaded, model)
    )
    assert 0 < (read - exact).abs().max() < 0.5
    assert_close(read.sum(-1), torch.ones(12, dtype=read.dtype), atol=1e-4, rtol=0)


def test_named_exceptions_are_obeyed(checkpoint):
    loaded = AuLlavaForConditionalGeneration.from_pretrained(
        checkpoint[0], quantization_config=bits(4, llm_int8_skip_modules=["lm_head", ".*mlp"])
    )
    assert {name for name in quantized(loaded) if "language_model" in name} == {
        name for name in LANGUAGE_LAYERS if "self_attn" in name
    }
    assert "model.multi_modal_projector" in quantized(loaded)


def test_other_settings_pass_unchanged():
    assert with_default_skips(None) is None
    named = bits(8, llm_int8_skip_modules=[])
    assert with_default_skips(named) is named
    filled = with_default_skips(bits(4, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True))
    assert (filled.bnb_4bit_quant_type, filled.bnb_4bit_use_double_quant) == ("nf4", True)
    assert tuple(filled.llm_int8_skip_modules) == UNQUANTIZED


def test_saved_in_4_bits_and_loaded_again(checkpoint, tmp_path):
    loaded = AuLlavaForConditionalGeneration.from_pretrained(checkpoint[0], quantization_config=bits(4))
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"] == [
        *UNQUANTIZED
    ]
    again, info = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert quantized(again) == LANGUAGE_LAYERS
    faces, processor = random_faces(1), checkpoint[2]
    assert again.recognize(processor, faces) == loaded.recognize(processor, faces)


def test_saving_after_a_forward_pass_on_a_cpu_is_refused(checkpoint, tmp_path):
    """What Linear4bit.forward does on CPUs with AVX512-BF16, done by hand, since not every CPU has that. That saving
    would lose weights then is checked too: if it no longer does, the refusal can go."""
    loaded = AuLlavaForConditionalGeneration.from_pretrained(checkpoint[0], quantization_config=bits(4))
    layer = loaded.model.language_model.layers[1].mlp.down_proj
    with torch.no_grad():
        identity = torch.eye(layer.in_features)
        before = layer.train()(identity)
    layer.weight.data, _ = _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj was repacked .* load the model anew"):
        loaded.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    layer.state_dict()  # repacks back
    with torch.no_grad():
        assert (layer(identity) - before).abs().max() > 1e-3


def test_sizes_that_this_cpu_cannot_compute_are_named(tmp_path, monkeypatch):
    save_tiny(tmp_path, intermediate_size=88)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    with pytest.raises(ValueError, match=r"mlp\.gate_proj has 64 inputs and 88 outputs; .* multiples of 64 and 32"):
        AuLlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=bits(4))
    try:
        AuLlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=bits(4))
    except ValueError as error:
        advice = literal_eval(str(error).rpartition("llm_int8_skip_modules=")[2].rstrip("."))
    loaded = AuLlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=bits(4, llm_int8_skip_modules=advice)
    )
    assert quantized(loaded) == {name for name in LANGUAGE_LAYERS if "self_attn" in name}
    assert quantized(AuLlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=bits(8)))
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=bits(4))
    assert quantized(loaded) == LANGUAGE_LAYERS


@pytest.mark.usefixtures("any_size_in_4_bits")
@pytest.mark.parametrize("count", [8, 4])
def test_adapters_are_trained_on_a_quantized_base(tiny_checkpoint, rendered_records, tmp_path, count):
    """QLoRA through train_sft.py: the projector in full and adapters move, quantized weights do not."""
    flags = ["--use_peft", "true", "--lora_r", 2, "--lora_modules_to_save", "multi_modal_projector"]
    train(tiny_checkpoint, rendered_records, tmp_path, *flags, f"--load_in_{count}bit", "true", "--max_steps", 2)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    start = load_file(tiny_checkpoint / "model.safetensors")
    projector = saved["base_model.model.model.multi_modal_projector.weight"]
    assert projector.dtype == torch.float32
    assert not torch.equal(projector, start["model.multi_modal_projector.weight"])
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    assert all("lora_" in name or "multi_modal_projector" in name for name in saved)


def test_commands_read_in_bits(checkpoint, rendered_records, tmp_path):
    """eval_au.py and recognize_au.py --quantise: the numbers of a model that was loaded so, and it is recorded."""
    folder, _, processor = checkpoint
    words = ["--data", rendered_records, "--formats", "bp4d", "--max_images", 2, "--out", tmp_path / "eval"]
    evaluate(list(map(str, ["--model", folder, "--quantise", "4bit", *words])))
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["provenance"]["quantised"] == "4bit"
    rows = Dataset.from_parquet(str(tmp_path / "eval" / "predictions.parquet"))
    images = load_records(rendered_records, part="test", formats=["bp4d"])["image"][:2]
    loaded = AuLlavaForConditionalGeneration.from_pretrained(folder, **loading_options("4bit"))
    for row, result in zip(rows, loaded.recognize(processor, list(images), formats=["bp4d"]), strict=True):
        exact = [reading.probability for reading in result["bp4d"].values()]
        assert_close(torch.tensor(row["probability"]), torch.tensor(exact), atol=1e-5, rtol=0)

    images[0].save(tmp_path / "face.png")
    words = [tmp_path / "face.png", "--no-detect", "--formats", "disfa", "--out", tmp_path / "aus.csv"]
    assert recognize_au.run(list(map(str, [*words, "--model", folder, "--quantise", "8bit"]))) == 0
    sidecar = json.loads((tmp_path / "aus.csv.provenance.json").read_text())
    assert sidecar["checkpoint"]["quantised"] == "8bit"
    loaded = AuLlavaForConditionalGeneration.from_pretrained(folder, **loading_options("8bit"))
    (result,) = loaded.recognize(processor, tmp_path / "face.png", formats=["disfa"])
    header, line = (tmp_path / "aus.csv").read_text().splitlines()
    written = dict(zip(header.split(","), line.split(","), strict=True))
    assert float(written["AU12_r"]) == pytest.approx(result["disfa"]["AU12"].expected, abs=1e-3)


def test_bits_without_bitsandbytes_are_told_in_a_sentence(monkeypatch):
    assert loading_options(None) == {}
    monkeypatch.setattr("au_llava.quantization_au_llava.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install bitsandbytes"):
        loading_options("4bit")


def test_table_of_the_benchmark():
    """By hand: one of two images, one of 12 AUs, changes from 0.9 (present, right) to 0.3 (absent, wrong)."""
    read = {"references": [1.0] * 12, "format": "bp4d", "dataset": "d", "subject": "s"}
    exact = [
        {**read, "probability": [0.9] * 12, "values": [1.0] * 12, "expected": [0.9] * 12, "present": [1.0] * 12}
        for _ in range(2)
    ]
    other = copy.deepcopy(exact)
    for key, value in (("probability", 0.3), ("values", 0.0), ("expected", 0.3), ("present", 0.0)):
        other[1][key][4] = value
    tool = load_tool("quantization")
    scores, costs = tool.tables({"float32": (8.0, 1.0, exact), "4 bits (NF4)": (2.5, 1.25, other)}, images=2)
    cells = [list(column.cells) for column in scores.columns]
    f1 = (11 + 2 / 3) / 12  # of the AU that changed: one of two found, no false alarm
    assert cells[2] == ["1.000", f"{f1:.3f}"]
    assert cells[-2:] == [["", f"{0.6 / 24:.4f}"], ["", "4.2 %"]]
    assert [list(column.cells) for column in costs.columns][1:] == [["8.00", "2.50"], ["1.00", "1.25"]]
