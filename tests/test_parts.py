"""Where the parts of a new model come from: GGUF files, other checkpoints of AU-LLaVA, towers of timm; and bad ones."""

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
from conftest import TOKENIZERS, build_tiny, random_faces
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, ResNetConfig

from au_llava.au_runs.manifests import read_training_manifest, seen_people, write_training_manifest
from au_llava.au_training.command import main, make_parser
from au_llava.au_training.command import run as train
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.parts_au_llava import part_config
from au_llava.processing_au_llava import AuLlavaProcessor

HEADS, GROUPS, LAYERS = 4, 2, 2
GGUF_NAMES = {  # from Transformers' names of a Llama layer to llama.cpp's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOWER = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in llama.cpp's order, which rotates neighbors where Transformers rotates halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, architecture: str = "llama", kind: gguf.GGMLQuantizationType | None = None, context: int = 4096):
    """A tiny Llama as llama.cpp writes it, in 32 bits or with quantized projections; returns it and its tokenizer."""
    torch.manual_seed(2)
    tokenizer = TOKENIZERS["grouped digits"]()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_dimension_count(32 // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    parts = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    control = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control[token not in [*tokenizer.all_special_tokens, "<|im_start|>"]] for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in parts["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        if name.startswith("model.layers."):
            _, _, layer, module = name.split(".", 3)
            stem = module.removesuffix(".weight")
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": GROUPS}.get(stem)
            weight = interleaved(weight, heads) if heads else weight
            new = f"blk.{layer}.{GGUF_NAMES[stem]}.weight"
        else:
            new = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        array = weight.numpy()
        if kind is not None and array.ndim == 2 and new.startswith("blk"):
            writer.add_tensor(new, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(new, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def save(parts, folder):
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint of AU-LLaVA with the phrase tokenizer, and its model."""
    folder = tmp_path_factory.mktemp("parts") / "checkpoint"
    parts = build_tiny("phrases", vision_config=TOWER)
    return save(parts, folder), parts[0]


def build(vision, text, **options):
    model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(str(vision), str(text), **options)
    return model, AuLlavaProcessor.from_vision_text_pretrained(str(vision), str(text), **options)


def assert_equal(module, source):
    """Every weight of `module` is that of `source`; embeddings may have more rows."""
    weights, expected = module.state_dict(), source.state_dict()
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name][: len(weight)] if weight.ndim else weights[name], weight), name


# ---- GGUF -----------------------------------------------------------------------------------------------------------
def test_a_gguf_file_is_the_model_it_was_made_from(checkpoint, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    language, tokenizer = write_gguf(text / "tiny.gguf")
    model, processor = build(checkpoint[0], text, prompt_order="text_first")

    assert_equal(model.model.language_model, language.base_model)
    assert not hasattr(model.config.text_config, "quantization_config")
    sentence = "AU12: 3, AU4: 0.57"
    assert processor.tokenizer(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]

    save((model, processor), tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors")] == ["model.safetensors"]
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert_equal(loaded, model)
    for decoding in ("slots", "constrained"):
        faces = random_faces(2)
        expected = model.recognize(processor, faces, formats=["disfa"], decoding=decoding)
        assert loaded.recognize(processor, faces, formats=["disfa"], decoding=decoding) == expected


def test_quantized_weights_are_dequantized(checkpoint, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    language, _ = write_gguf(tmp_path / "tiny.gguf", kind=kind)
    model, _ = build(checkpoint[0], tmp_path)
    mlp = language.model.layers[0].mlp.up_proj.weight.detach().numpy()
    expected = gguf.dequantize(gguf.quantize(mlp, kind), kind)
    found = model.model.language_model.layers[0].mlp.up_proj.weight
    assert type(found) is torch.nn.Parameter
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-7)
    assert not np.allclose(expected, mlp, atol=1e-7)  # there was something to dequantize
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_two_gguf_files_are_refused(checkpoint, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"holds 2 GGUF files \(a\.gguf, b\.gguf\): put the one to use"):
        build(checkpoint[0], tmp_path)


def test_a_gguf_file_itself_is_refused(checkpoint, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=r"tiny\.gguf is a GGUF file: name the folder that holds it"):
        build(checkpoint[0], tmp_path / "tiny.gguf")


def test_safetensors_beside_a_gguf_file_are_taken(checkpoint, tmp_path):
    language, tokenizer = write_gguf(tmp_path / "tiny.gguf")
    torch.nn.init.zeros_(language.model.norm.weight)
    save((language, tokenizer), tmp_path)
    model, _ = build(checkpoint[0], tmp_path)
    assert not model.model.language_model.norm.weight.any()


def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("au_llava.parts_au_llava.is_gguf_available", lambda: False)
    with pytest.raises(ValueError, match=r"tiny\.gguf needs the package gguf: pip install gguf\."):
        build(checkpoint[0], tmp_path)


def test_an_unknown_architecture_is_one_sentence(checkpoint, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", architecture="gptneox")
    with pytest.raises(ValueError, match=r"^Transformers cannot load .*tiny\.gguf \(.*gptneox.*\): name a folder"):
        build(checkpoint[0], tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no GGUF at all" * 9])
def test_a_damaged_file_is_one_sentence(content, checkpoint, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"^Transformers cannot load .*tiny\.gguf"):
        build(checkpoint[0], tmp_path)


# ---- Checkpoints of AU-LLaVA ----------------------------------------------------------------------------------------
def test_the_tower_of_a_checkpoint(checkpoint, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    folder, source = checkpoint
    model, processor = build(folder, tmp_path)
    assert_equal(model.model.vision_tower, source.model.vision_tower)
    images = AuLlavaProcessor.from_pretrained(folder, trust_remote_code=True).image_processor
    for name in ("size", "crop_size", "image_mean", "image_std", "resample"):
        assert getattr(processor.image_processor, name) == getattr(images, name), name


def test_the_language_model_of_a_checkpoint(checkpoint):
    folder, source = checkpoint
    model, processor = build(folder, folder)
    assert_equal(model.model.language_model, source.model.language_model)
    assert torch.equal(model.lm_head.weight, source.lm_head.weight)
    assert model.config.image_token_id == source.config.image_token_id
    assert len(processor.tokenizer) == source.config.text_config.vocab_size


def test_a_tower_is_read_as_the_checkpoint_reads_it(tmp_path):
    """A layer that is not the last, whose stride and width Transformers' configuration does not tell."""
    settings = {"vision_feature_layer": 1, "vision_stride": 4, "vision_width": 8}
    folder = save(build_tiny("phrases", vision_config=TOWER, **settings), tmp_path / "checkpoint")
    model, processor = build(folder, folder)
    assert {name: getattr(model.config, name) for name in settings} == settings
    assert processor.vision_stride == 4
    assert processor.num_image_tokens(32, 32) == 64
    assert model.recognize(processor, random_faces(1), formats=["bp4d"])


def test_adapters_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds adapters, not a whole model: merge them with tools/merge_adapter\.py"):
        part_config(str(tmp_path))


# ---- From the command line ------------------------------------------------------------------------------------------
def train_words(vision, text, data, out, *more):
    words = ["--vision", vision, "--text", text, "--data", data, "--output_dir", out, "--max_steps", 1]
    words += ["--per_device_train_batch_size", 2, "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    return [str(word) for word in (*words, "--eval_strategy", "no", "--save_strategy", "no", *more)]


def test_training_joins_a_tower_to_a_gguf_file_and_remembers_its_people(checkpoint, rendered_records, tmp_path):
    text, vision = tmp_path / "text", tmp_path / "vision"
    text.mkdir()
    write_gguf(text / "tiny.gguf")
    shutil.copytree(checkpoint[0], vision)
    people = {"train": ["faces:P1"], "unlabelled": [], "validation": ["faces:P2"], "calibration": []}
    manifest = {"schema_version": 2, "people": people, "data": {}, "formats": [], "recipe": {}, "base": None}
    write_training_manifest(vision, manifest)
    words = train_words(vision, text, rendered_records, tmp_path / "out", "--prompt_order", "text_first")
    main(*make_parser().parse_args_and_config(words))

    model = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.config.prompt_order == "text_first"
    assert model.config.text_config.num_key_value_heads == GROUPS
    seen = seen_people(read_training_manifest(str(tmp_path / "out")))
    assert "faces:P1" in seen["train"]
    assert "faces:P2" in seen["validation"]
    assert len(seen["train"]) > 1  # and those of this training


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("ambiguous", "does not tell the values of .* apart"),
        ("short", "context holds 64"),
        ("two", "holds 2 GGUF files"),
    ],
)
def test_bad_language_models_end_training_with_a_sentence(bad, told, checkpoint, rendered_records, tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    if bad == "ambiguous":  # a tokenizer that drops digits
        language, tokenizer = write_gguf(tmp_path / "tiny.gguf")
        save((language, tokenizer), text)
        settings = json.loads((text / "tokenizer.json").read_text())
        digits = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": "#"}
        settings["normalizer"] = digits
        (text / "tokenizer.json").write_text(json.dumps(settings))
        assert (
            AutoTokenizer.from_pretrained(text)("1")["input_ids"]
            == AutoTokenizer.from_pretrained(text)("2")["input_ids"]
        )
    else:
        write_gguf(text / "tiny.gguf", context=64)
        if bad == "two":
            shutil.copy(text / "tiny.gguf", text / "other.gguf")
    assert train(train_words(checkpoint[0], text, rendered_records, tmp_path / "out")) == 1
    lines = capsys.readouterr().err.splitlines()
    [sentence] = [line for line in lines if line.startswith("train_sft.py: ")]
    assert re.search(told, sentence)


# ---- timm -----------------------------------------------------------------------------------------------------------
@pytest.mark.timm
@pytest.mark.parametrize(
    ("architecture", "stride", "width", "extra"),
    [("resnet10t", 32, 512, {}), ("vit_tiny_patch16_224", 16, 192, {"depth": 1, "img_size": 64})],
)
def test_towers_of_timm(architecture, stride, width, extra, tmp_path):
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperModel

    from au_llava.image_processing_au_llava import AuLlavaImageProcessor

    torch.manual_seed(1)
    config = TimmWrapperConfig(architecture=architecture, do_pooling=False, num_labels=0, model_args=extra or None)
    tower = TimmWrapperModel(config)
    side = {"shortest_edge": 64}, {"height": 64, "width": 64}
    save((tower, AuLlavaImageProcessor(size=side[0], crop_size=side[1])), tmp_path / "vision")
    (tmp_path / "text").mkdir()
    write_gguf(tmp_path / "text" / "tiny.gguf")
    model, processor = build(tmp_path / "vision", tmp_path / "text")
    assert (model.config.vision_stride, model.config.vision_width) == (stride, width)
    assert_equal(model.model.vision_tower, tower)
    answers = model.recognize(processor, random_faces(2, size=64), formats=["bp4d"])
    save((model, processor), tmp_path / "whole")
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert loaded.recognize(processor, random_faces(2, size=64), formats=["bp4d"]) == answers
    plain = timm.create_model(architecture, num_classes=0, **extra).eval()
    plain.load_state_dict(tower.timm_model.state_dict())
    pixels = processor.image_processor(random_faces(2, size=64), return_tensors="pt")["pixel_values"]
    features = loaded.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(features, plain.forward_features(pixels))
