"""The network: towers, folding, tying, attention backends, generation, training aids, quantization, saving."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import TOKENIZERS, TOWERS, build_tiny, random_faces
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
    SiglipVisionConfig,
)

from au_llava.action_units import get_format
from au_llava.au_publishing.export import SlotsGraph
from au_llava.au_recognition.evidence import evidence_maps
from au_llava.au_runs.engines import TorchEngine
from au_llava.configuration_au_llava import AuLlavaConfig, add_image_token
from au_llava.modeling_au_llava import MAX_EXTRA_TOKENS, AuLlavaForConditionalGeneration, features_to_tokens
from au_llava.pipeline_au_llava import AURecognitionPipeline


def inputs_for(processor, count: int = 2, fmt: str = "bp4d"):
    """A batch of prompts about different faces."""
    text = processor.apply_chat_template(processor.messages(fmt), add_generation_prompt=True)
    return processor(images=random_faces(count), text=[text] * count, return_tensors="pt")


def text_config(kind: str, **settings):
    """A tiny language model of another architecture, for the default tokenizer of `build_tiny`."""
    tokenizer = TOKENIZERS["grouped digits"]()
    add_image_token(tokenizer)
    settings = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **settings,
    }
    if kind == "gpt2":
        return GPT2Config(**settings)
    settings = {"intermediate_size": 64, "num_key_value_heads": 2, **settings}
    return Qwen3Config(**settings, head_dim=8) if kind == "qwen3" else LlamaConfig(**settings)


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model(**inputs).logits


def assert_close(actual, expected, atol=1e-4):
    np.testing.assert_allclose(actual.detach().float().numpy(), expected.detach().float().numpy(), atol=atol)


# Vision towers and image tokens.


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_runs_and_learns(tower):
    model, processor = build_tiny(vision_config=TOWERS[tower][0])
    inputs = inputs_for(processor)
    features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    per_image = (32 // TOWERS[tower][1]) ** 2
    assert [tuple(f.shape) for f in features] == [(per_image, 32)] * 2
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * per_image
    output = model(**inputs, labels=inputs["input_ids"])
    shifted = output.logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(shifted, inputs["input_ids"][:, 1:].flatten())
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    output.loss.backward()
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_an_image_changes_the_answer(tiny):
    model, processor = tiny
    result = logits(model, inputs_for(processor))[:, -1]
    assert (result[0] - result[1]).abs().max() > 1e-3


def test_feature_map_becomes_tokens_row_by_row():
    features = torch.arange(12.0).reshape(1, 2, 2, 3)  # two channels, two rows, three columns
    expected = [[[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]]
    assert features_to_tokens(features, (2, 3), 1).tolist() == expected
    tokens = torch.tensor([[[-1.0, -1.0], [-2.0, -2.0], *expected[0]]])  # a class token and a register first
    assert features_to_tokens(tokens, (2, 3), 1).tolist() == expected


@pytest.mark.parametrize("tower", ["dinov2 with registers", "dinov3", "clip"])
def test_class_and_register_tokens_are_dropped(tower):
    model, processor = build_tiny(vision_config=TOWERS[tower][0])
    pixel_values = inputs_for(processor)["pixel_values"]
    hidden = model.model.vision_tower(pixel_values).last_hidden_state
    assert hidden.shape[1] - 16 == {"clip": 1}.get(tower, 5)
    expected = model.model.multi_modal_projector(hidden[:, -16:])
    assert_close(torch.stack(model.get_image_features(pixel_values).pooler_output), expected, atol=1e-6)


@pytest.mark.parametrize("fold", [2, 4])
@pytest.mark.parametrize("tower", ["siglip", "dinov3", "resnet"])
def test_pixel_unshuffle_folds_neighbors(tower, fold):
    model, processor = build_tiny(vision_config=TOWERS[tower][0], pixel_unshuffle=fold)
    inputs = inputs_for(processor)
    side = 4 // fold
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * side**2
    hidden = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    if hidden.ndim == 3:  # to (batch, width, rows, columns)
        hidden = hidden[:, -16:].transpose(1, 2).reshape(2, -1, 4, 4)
    for image, tokens in zip(hidden, model.get_image_features(inputs["pixel_values"]).pooler_output, strict=True):
        assert len(tokens) == side**2
        for row in range(side):
            for column in range(side):
                block = [
                    image[channel, row * fold + down, column * fold + right]
                    for channel in range(len(image))
                    for down in range(fold)
                    for right in range(fold)
                ]
                expected = model.model.multi_modal_projector(torch.stack(block))
                assert_close(tokens[row * side + column], expected, atol=1e-5)


STAGE = {"vision_stride": 8, "vision_width": 16}  # of the last stage; each has a stride and a width of its own
FIRST = {"vision_stride": 4, "vision_width": 8}  # of the stem


@pytest.mark.parametrize(
    ("tower", "layer", "extra"),
    [
        *((tower, layer, {}) for tower in ("siglip", "clip", "dinov3") for layer in (0, -2, [-2, -1], [0, 1])),
        *((tower, layer, STAGE) for tower in ("resnet", "convnextv2") for layer in (-1, [-1, -1])),
        ("resnet", 0, FIRST),
        ("convnextv2", 0, FIRST),
        ("regnet", -1, STAGE),
    ],
)
def test_vision_feature_layer(tower, layer, extra):
    model, processor = build_tiny(vision_config=TOWERS[tower][0], vision_feature_layer=layer, **extra)
    pixel_values = inputs_for(processor)["pixel_values"]
    hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    picked = [hidden[index] for index in (layer if isinstance(layer, list) else [layer])]
    tokens = torch.cat([h.flatten(2).transpose(1, 2) if h.ndim == 4 else h[:, -16:] for h in picked], dim=-1)
    expected = model.model.multi_modal_projector(tokens)
    assert_close(torch.stack(model.get_image_features(pixel_values).pooler_output), expected, atol=1e-6)
    assert logits(model, inputs_for(processor)).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "grid", "fold", "message"),
    [
        ((1, 15, 4), (4, 4), 1, "returned 15 tokens .* imply 4 x 4: set vision_stride"),
        ((1, 16 + MAX_EXTRA_TOKENS + 1, 4), (4, 4), 1, "returned 49 tokens .* imply 4 x 4: set vision_stride"),
        ((1, 8, 2, 2), (4, 4), 1, "a 2 x 2 feature map .* imply 4 x 4: set vision_stride"),
        ((1, 9, 4), (3, 3), 2, "3 x 3 feature map cannot be folded by pixel_unshuffle=2"),
    ],
)
def test_grids_that_do_not_fit_are_refused(shape, grid, fold, message):
    with pytest.raises(ValueError, match=message):
        features_to_tokens(torch.zeros(shape), grid, fold)


def test_image_tokens_without_features_are_refused_with_both_counts(tiny):
    model, processor = tiny
    inputs = inputs_for(processor)
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match="tokens: 32, features: 16"):
        model(**inputs)


@pytest.mark.parametrize("bias", [False, True])
def test_the_projector_is_one_linear_layer(bias):
    model, _ = build_tiny(projector_bias=bias)
    projector = {name for name, _ in model.named_parameters() if "multi_modal_projector" in name}
    assert projector == {"model.multi_modal_projector.weight", *["model.multi_modal_projector.bias"] * bias}


def test_text_without_an_image_runs(tiny):
    model, processor = tiny
    assert logits(model, processor(text=["AU12: 1"], return_tensors="pt")).isfinite().all()


# Language models.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_language_models_tied_and_untied(kind, tied, tmp_path):
    model, processor = build_tiny(text_config=text_config(kind, tie_word_embeddings=tied))
    assert model.config.tie_word_embeddings is tied
    embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
    assert (embeddings.data_ptr() == head.data_ptr()) is tied
    for decoding in ("slots", "constrained", "free"):
        assert model.recognize(processor, random_faces(1), formats=["bp4d"], decoding=decoding)
    model.save_pretrained(tmp_path)
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.get_input_embeddings().weight.data_ptr() == loaded.lm_head.weight.data_ptr()) is tied
    inputs = inputs_for(processor)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_resizing_keeps_the_tie():
    model, _ = build_tiny(text_config=text_config("llama", tie_word_embeddings=True))
    model.resize_token_embeddings(900)
    assert model.lm_head.weight.shape == (900, 32)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.config.text_config.vocab_size == 900


# Attention, compilation, generation.


@pytest.mark.parametrize("backend", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_backends_agree(backend):
    model, processor = build_tiny()
    inputs = inputs_for(processor)
    expected = logits(model, inputs)
    model.set_attn_implementation({"text_config": backend})
    assert model.model.language_model.config._attn_implementation == backend
    assert_close(logits(model, inputs), expected)


def test_attention_backend_can_be_chosen_at_load(tmp_path):
    model, processor = build_tiny()
    model.save_pretrained(tmp_path)
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    for part in (loaded.model.vision_tower, loaded.model.language_model):
        assert part.config._attn_implementation == "eager"
    inputs = inputs_for(processor)
    assert_close(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_forward_compiles_in_one_graph(backend):
    model, processor = build_tiny()
    inputs = inputs_for(processor)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_close(logits(compiled, inputs), logits(model, inputs))
    torch._dynamo.reset()


def test_padding_side_does_not_matter(tiny):
    """Prompts of different lengths, padded left or right or not at all, end in the same prediction."""
    model, processor = tiny
    faces = random_faces(2)
    texts = [
        processor.apply_chat_template(processor.messages(fmt), add_generation_prompt=True) for fmt in ("bp4d", "feafa")
    ]
    alone = [
        logits(model, processor(images=face, text=text, return_tensors="pt"))[0, -1]
        for face, text in zip(faces, texts, strict=True)
    ]
    for side in ("left", "right"):
        batch = processor(images=faces, text=texts, padding=True, padding_side=side, return_tensors="pt")
        result = logits(model, batch)
        lengths = batch["attention_mask"].sum(1)
        assert lengths[0] < lengths[1] == result.shape[1]
        for row, expected in enumerate(alone):
            last = -1 if side == "left" else lengths[row] - 1
            assert_close(result[row, last], expected)


def test_a_batch_equals_its_rows(tiny):
    model, processor = tiny
    batch = inputs_for(processor, count=4)
    together = logits(model, batch)
    for row in range(4):
        assert_close(logits(model, {name: tensor[row : row + 1] for name, tensor in batch.items()})[0], together[row])


def test_generation_with_a_static_cache_is_the_same(tiny):
    model, processor = tiny
    inputs = inputs_for(processor)
    options = {"max_new_tokens": 12, "do_sample": False}
    dynamic = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), dynamic)
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), dynamic)
    encoded = model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    assert torch.equal(model.generate(**inputs, **options, mm_encoder_outputs={"image": encoded}), dynamic)


def test_generation_equals_a_loop_of_forwards(tiny):
    model, processor = tiny
    inputs = inputs_for(processor, count=1)
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    for _ in range(generated.shape[1] - inputs["input_ids"].shape[1]):
        token = logits(model, inputs)[:, -1:].argmax(-1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert torch.equal(inputs["input_ids"], generated)


def test_beams_and_several_samples(tiny):
    model, processor = tiny
    inputs = inputs_for(processor)
    length = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    samples = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert (len(beams), len(samples)) == (4, 6)
    assert beams.shape[1] <= length + 4
    assert torch.equal(beams[:2, :length], inputs["input_ids"][:1].expand(2, -1))


def test_encoded_images_can_be_passed(tiny):
    model, processor = tiny
    inputs = inputs_for(processor)
    expected = logits(model, inputs)
    encoded = model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    assert torch.equal(logits(model, {**inputs, "mm_encoder_outputs": {"image": encoded}}), expected)


def test_a_cache_can_be_continued(tiny):
    model, processor = tiny
    inputs = inputs_for(processor)
    expected = logits(model, inputs)[:, -5:]
    cache = DynamicCache()
    first = {name: tensor[:, :-5] for name, tensor in inputs.items() if name != "pixel_values"}
    logits(model, {**first, "pixel_values": inputs["pixel_values"], "past_key_values": cache})
    rest = {"input_ids": inputs["input_ids"][:, -5:], "attention_mask": inputs["attention_mask"]}
    assert_close(logits(model, {**rest, "past_key_values": cache}), expected)


# Training aids.


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model, processor = build_tiny()
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
            assert model.is_gradient_checkpointing
        inputs = inputs_for(processor)
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for part in ("vision_tower.encoder", "multi_modal_projector", "language_model"):
        assert any(part in name for name in plain)
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient, atol=1e-6)


def test_lora_trains_the_language_model_only(tmp_path):
    model, processor = build_tiny()
    model.save_pretrained(tmp_path / "base")
    inputs = inputs_for(processor)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    places = {name.rpartition(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    prefix = "base_model.model.model.language_model.layers"
    assert places == {f"{prefix}.{layer}.self_attn.{kind}_proj" for layer in range(2) for kind in "qv"}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted(**inputs, labels=inputs["input_ids"]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        name = name.replace(".base_layer", "")
        assert "lora_" in name or torch.equal(p, before[name])
    adapted.eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    untrained = logits(base, inputs)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert_close(logits(loaded, inputs), logits(adapted, inputs), atol=1e-5)
    assert (logits(loaded, inputs) - untrained).abs().max() > 1e-3
    merged = loaded.merge_and_unload()
    assert_close(logits(merged, inputs), logits(adapted, inputs))
    assert merged.recognize(processor, random_faces(1), formats=["bp4d"])


def test_adapters_trained_beside_batch_norm_are_saved_whole(tmp_path):
    """Its statistics are not in an adapter's file, so they must not follow the training's images."""
    model, processor = build_tiny(vision_config=TOWERS["resnet"][0])
    model.save_pretrained(tmp_path / "base")
    inputs = inputs_for(processor)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj")).train()
    adapted(**inputs)
    adapted.eval().save_pretrained(tmp_path / "adapter")
    base = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert_close(logits(loaded, inputs), logits(adapted, inputs), atol=0)


def test_batch_norm_follows_the_images_unless_it_is_frozen():
    model, processor = build_tiny(vision_config=TOWERS["resnet"][0])
    stem, *others = (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    stem.requires_grad_(False)
    model.train()(**inputs_for(processor))
    assert [stem.num_batches_tracked, *(layer.num_batches_tracked for layer in others)] == [0] + [1] * len(others)


@pytest.mark.parametrize("tower", ["resnet", "siglip"])
def test_pixels_may_have_another_precision(tower):
    model, processor = build_tiny(vision_config=TOWERS[tower][0])
    inputs = inputs_for(processor)
    model.bfloat16()
    given = logits(model, inputs)
    assert torch.equal(given, logits(model, {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}))


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(bits, tmp_path):
    """The language model is quantized; vision tower, projector and head keep their precision."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**size, image_size=32, patch_size=8)
    language = text_config("llama", hidden_size=64, intermediate_size=128)
    model, processor = build_tiny(vision_config=vision, text_config=language)
    model.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        **{f"load_in_{bits}bit": True},
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=quantization)
    kind = {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    quantized = [name for name, module in loaded.named_modules() if type(module).__name__ == kind]
    assert len(quantized) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in quantized)
    kept = model.model.vision_tower.state_dict()
    for name, weight in loaded.model.vision_tower.state_dict().items():
        assert torch.equal(weight, kept[name].to(weight.dtype))
    inputs = inputs_for(processor)
    result, expected = logits(loaded, inputs), logits(model, inputs)
    agreement = torch.cosine_similarity(result.flatten().float(), expected.flatten(), dim=0)
    assert agreement > {8: 0.999, 4: 0.95}[bits]
    for decoding in ("slots", "constrained"):
        answer = loaded.recognize(processor, random_faces(2), formats=["disfa"], decoding=decoding)[1]["disfa"]
        assert all(np.isclose(sum(reading.distribution), 1, atol=1e-3) for reading in answer.values())


def test_tensor_parallel_plan_covers_language_model_and_head(tiny):
    model, _ = tiny
    assert model._tp_plan["lm_head"] == "colwise_gather_output"
    assert model._tp_plan["model.language_model.layers.*.self_attn.q_proj"] == "colwise"
    assert model._tp_plan["model.language_model.layers.*.mlp.down_proj"] == "rowwise"
    assert {"LlamaDecoderLayer", "SiglipEncoderLayer"} <= set(model._no_split_modules)


# Saving and loading.


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_maps(tiny, device_map, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    inputs = inputs_for(processor)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_offloading_to_disk(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    loaded = AuLlavaForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map={**parts, "model.language_model": "disk"}, offload_folder=tmp_path / "offload"
    )
    inputs = inputs_for(processor)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_bfloat16_saved_and_loaded_in_float32(tmp_path):
    model, processor = build_tiny()
    model = model.bfloat16()
    model.save_pretrained(tmp_path)
    assert AuLlavaForConditionalGeneration.from_pretrained(tmp_path).dtype == torch.bfloat16
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.float())
    for each in (model, loaded):  # recognize casts the pixels itself
        assert each.recognize(processor, random_faces(1), formats=["bp4d"])


def test_a_channels_last_tower_is_saved(tmp_path):
    model, processor = build_tiny(vision_config=TOWERS["resnet"][0])
    inputs = inputs_for(processor)
    expected = logits(model, inputs)
    model.model.vision_tower.to(memory_format=torch.channels_last)
    assert_close(logits(model, inputs), expected, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert_close(logits(AuLlavaForConditionalGeneration.from_pretrained(tmp_path), inputs), expected, atol=1e-5)


def test_parts_are_found_where_tools_look_for_them(tiny):
    """Attribute names that generate, PEFT, vLLM and accelerate rely on."""
    model, _ = tiny
    assert model.get_encoder("image") is model.model.vision_tower
    assert model.get_decoder() is model.model.language_model
    assert model.base_model is model.model
    assert model.get_output_embeddings() is model.lm_head
    assert copy.deepcopy(model).config.to_dict() == model.config.to_dict()


# Where weights lie.

PARTS = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")


def all_answers(model, processor):
    """Every number that each decoder and the pipeline read."""
    read = [
        reading.value if decoding == "free" else reading.expected
        for decoding in ("slots", "constrained", "free")
        for answer in model.recognize(processor, random_faces(2), formats=["bp4d"], decoding=decoding)
        for reading in answer["bp4d"].values()
    ]
    recognizer = AURecognitionPipeline(model=model, processor=processor)
    read += [au["score"] for image in recognizer(tuple(random_faces(2)), formats="bp4d") for au in image]
    return np.array([np.nan if number is None else number for number in read])


@pytest.fixture(scope="module", params=["siglip", "resnet tied"])
def stored(request, tmp_path_factory):
    """(folder, processor, answers) of a saved model; SigLIP's was built with the pooling head that is not used."""
    tower, *tied = request.param.split()
    text = text_config("llama", tie_word_embeddings=bool(tied))
    model, processor = build_tiny("phrases", vision_config=TOWERS[tower][0])
    text.vocab_size = model.config.text_config.vocab_size
    model, processor = build_tiny("phrases", vision_config=TOWERS[tower][0], text_config=text, mirror_images=True)
    folder = tmp_path_factory.mktemp("stored")
    model.save_pretrained(folder)
    return folder, processor, all_answers(model, processor)


@pytest.mark.parametrize("on_disk", [*((part,) for part in PARTS), PARTS], ids=lambda parts: parts[-1])
def test_a_part_on_disk_answers_alike(stored, on_disk, tmp_path):
    folder, processor, expected = stored
    places = {part: "disk" if part in on_disk else "cpu" for part in PARTS}
    loaded = AuLlavaForConditionalGeneration.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    assert any(parameter.is_meta for parameter in loaded.parameters()) or on_disk == ("lm_head",)
    assert loaded.device == torch.device("cpu")
    np.testing.assert_allclose(all_answers(loaded, processor), expected, atol=1e-5)
    assert getattr(loaded, "hf_device_map", places)["model.vision_tower"] == places["model.vision_tower"]
    whole = AuLlavaForConditionalGeneration.from_pretrained(folder)
    assert TorchEngine(loaded, processor).fingerprint() == TorchEngine(whole, processor).fingerprint()


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload, "auto"])
def test_an_offloaded_model_answers_alike(stored, offload, tmp_path):
    folder, processor, expected = stored
    if offload == "auto":
        memory = {"device_map": "auto", "max_memory": {"cpu": "150KB"}, "offload_folder": tmp_path}
        model = AuLlavaForConditionalGeneration.from_pretrained(folder, **memory)
        assert "disk" in model.hf_device_map.values()
    else:
        model = AuLlavaForConditionalGeneration.from_pretrained(folder)
        options = {"offload_dir": tmp_path} if offload is disk_offload else {}
        model = offload(model, execution_device=torch.device("cpu"), **options)
    assert any(parameter.is_meta for parameter in model.parameters())
    np.testing.assert_allclose(all_answers(model, processor), expected, atol=1e-5)
    with pytest.raises(ValueError, match="some are offloaded: load the model without device_map"):
        SlotsGraph(model, processor, (get_format("bp4d"),))


def test_evidence_of_an_offloaded_model_is_the_same(tiny, tmp_path):
    model, processor = tiny
    labels = {get_format("bp4d"): ("AU12",)}
    expected = evidence_maps(model, processor, random_faces(1)[0], labels)["bp4d"]
    model.save_pretrained(tmp_path)
    offloaded = cpu_offload(AuLlavaForConditionalGeneration.from_pretrained(tmp_path), torch.device("cpu"))
    found = evidence_maps(offloaded, processor, random_faces(1)[0], labels)["bp4d"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_head_that_is_more_than_its_weight_is_asked_itself():
    """Adapters, hooks, wrappers: the slots decoder sees what the head's own forward gives."""
    model, processor = build_tiny()
    before = model.recognize(processor, random_faces(1), formats=["disfa"])[0]["disfa"]["AU12"].distribution
    hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 0)
    flat = model.recognize(processor, random_faces(1), formats=["disfa"])[0]["disfa"]["AU12"].distribution
    np.testing.assert_allclose(flat, [1 / 6] * 6, atol=1e-6)
    hook.remove()
    after = model.recognize(processor, random_faces(1), formats=["disfa"])[0]["disfa"]["AU12"].distribution
    assert after == before


# Settings of parts.


@pytest.mark.parametrize(
    ("asked", "vision", "text"),
    [
        ("sdpa", "eager", "sdpa"),
        ("eager", "eager", "eager"),
        ("flex_attention", "eager", "flex_attention"),
        ({"text_config": "eager", "vision_config": "sdpa"}, "eager", "eager"),
        ({"vision_config": "sdpa"}, "eager", "sdpa"),
    ],
)
def test_attention_goes_to_the_parts_that_have_it(tiny_checkpoint, asked, vision, text):
    """The tower of this checkpoint is convolutional."""
    chosen = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    chosen.set_attn_implementation(asked)
    config = AuLlavaConfig.from_pretrained(tiny_checkpoint)
    for model in (
        AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint, attn_implementation=asked),
        AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, attn_implementation=asked, trust_remote_code=True),
        AuLlavaForConditionalGeneration._from_config(config, attn_implementation=asked),
        chosen,
    ):
        assert model.model.vision_tower.config._attn_implementation == vision
        assert model.model.language_model.config._attn_implementation == text


def test_attention_of_a_tower_that_has_it(tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    asked = {"text_config": "sdpa", "vision_config": "eager"}
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=asked)
    assert loaded.model.vision_tower.config._attn_implementation == "eager"
    assert loaded.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("load", [True, False])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("spda", '"spda"` is not supported'),
        ({"text_config": "spda"}, '"spda"` is not supported'),
        ({"vision_config": "spda"}, '"spda"` is not supported'),
        ({"vision": "sdpa"}, "given for vision; the parts are vision_config, text_config"),
    ],
)
def test_unknown_attention_is_refused(tiny_checkpoint, asked, message, load):
    choose = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint).set_attn_implementation
    if load:
        choose = partial(AuLlavaForConditionalGeneration.from_pretrained, tiny_checkpoint)
    with pytest.raises(ValueError, match=message):
        choose(attn_implementation=asked)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_parts_of_two_precisions(backend, tmp_path):
    """dtype={...}: the mask of the slots pass has the language model's."""
    model, processor = build_tiny()
    model.set_attn_implementation(backend)
    model.model.language_model.bfloat16()
    model.lm_head.bfloat16()
    model.model.multi_modal_projector.float()
    assert model.recognize(processor, random_faces(1))  # three formats: a tree of several blocks


# What a calibration describes.

CALIBRATION = {
    "formats": {
        "bp4d": {
            "scale": "occurrence",
            "presence_threshold": 1.0,
            "aus": {"AU12": {"method": "none", "threshold": 0.99}},
        }
    }
}


def calibrated(folder):
    model, _ = build_tiny(calibration=CALIBRATION)
    model.save_pretrained(folder / "base")
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj")
    adapted = get_peft_model(AuLlavaForConditionalGeneration.from_pretrained(folder / "base"), config)
    adapted.save_pretrained(folder / "adapter")
    return AuLlavaForConditionalGeneration.from_pretrained(folder / "base"), config


def test_what_changes_weights_drops_the_calibration(tmp_path):
    model, config = calibrated(tmp_path)
    changes = {
        "load_adapter": lambda: model.load_adapter(tmp_path / "adapter"),
        "add_adapter": lambda: model.add_adapter(config),
        "PEFT": lambda: PeftModel.from_pretrained(model, tmp_path / "adapter"),
        "new adapters": lambda: get_peft_model(model, config),
        "merged": lambda: PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload(),
        "trained": lambda: model.train(),
    }
    for name, change in changes.items():
        model, config = calibrated(tmp_path)
        assert model.config.calibration == CALIBRATION
        change()
        assert model.config.calibration is None, name
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert loaded.config.calibration is None


def test_what_keeps_the_weights_keeps_the_calibration(tmp_path):
    model, _ = calibrated(tmp_path)
    _, processor = build_tiny()
    model.recognize(processor, random_faces(1), formats=["bp4d"])
    model.eval()
    model.resize_token_embeddings(900)
    model.bfloat16()
    model.save_pretrained(tmp_path / "again")
    again = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert model.config.calibration == again.config.calibration == CALIBRATION


def test_a_calibration_fitted_with_the_adapters_stays(tmp_path):
    model, _ = calibrated(tmp_path)
    model.load_adapter(tmp_path / "adapter")
    model.config.calibration = CALIBRATION
    _, processor = build_tiny()
    reading = model.recognize(processor, random_faces(1), formats=["bp4d"])[0]["bp4d"]["AU12"]
    assert reading.present is (reading.probability >= 0.99)
    assert model.config.calibration == CALIBRATION


def test_recognize_leaves_every_part_in_its_mode():
    model, processor = build_tiny(calibration=CALIBRATION)
    model.train()
    model.model.vision_tower.eval()  # as a frozen tower is
    model.config.calibration = CALIBRATION
    model.recognize(processor, random_faces(1), formats=["bp4d"])
    assert model.training
    assert model.model.language_model.training
    assert not model.model.vision_tower.training
    assert model.config.calibration == CALIBRATION
