"""Building a model and its processor from pretrained parts: the weights are those of the sources, and it answers."""

import json

import pytest
import torch
from conftest import TOKENIZERS, TOWERS, random_faces
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    ConvNextImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
)

from au_llava.configuration_au_llava import IMAGE_TOKEN
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import CHATML_TEMPLATE, PLAIN_TEMPLATE, AuLlavaProcessor

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_vision(kind: str, folder):
    """A vision checkpoint as published; returns the vision encoder whose weights it holds."""
    torch.manual_seed(1)
    config = TOWERS[kind][0]
    statistics = {"image_mean": MEAN, "image_std": STD}
    whole = None
    if kind == "clip":
        text = CLIPTextConfig(**SMALL_TEXT, vocab_size=50, projection_dim=16)
        whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=config.to_dict(), projection_dim=16))
        images = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=32, **statistics)
    elif kind == "siglip":
        text = SiglipTextConfig(**SMALL_TEXT, vocab_size=50)
        whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=config.to_dict()))
        images = SiglipImageProcessorPil(size={"height": 32, "width": 32}, **statistics)
    elif kind.startswith("dino"):
        images = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, **statistics)
    else:
        images = ConvNextImageProcessorPil(size={"shortest_edge": 32}, **statistics)
    tower = whole.vision_model if whole else AutoModel.from_config(config)
    (whole or tower).save_pretrained(folder)
    images.save_pretrained(folder)
    return tower


def without_chat_markers(tokenizer) -> Tokenizer:
    """The same tokens with the names that Llama-2 gives its special ones."""
    names = {"<|endoftext|>": "<pad>", "<|im_start|>": "<s>", "<|im_end|>": "</s>"}
    text = tokenizer.backend_tokenizer.to_str()
    for old, new in names.items():
        text = text.replace(old, new)
    return Tokenizer.from_str(text)


def save_text(kind: str, folder, tied: bool = False):
    """A language model checkpoint as published, its tokenizer without an image token; returns the model."""
    torch.manual_seed(2)
    tokenizer = TOKENIZERS["grouped digits" if kind == "qwen3" else "single digits"]()
    if kind == "llama":  # as Llama-2: no chat markers, nothing to pad with
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=without_chat_markers(tokenizer), bos_token="<s>", eos_token="</s>"
        )
    settings = {
        **SMALL_TEXT,
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": tied,
    }
    config = Qwen3Config(**settings, head_dim=8) if kind == "qwen3" else LlamaConfig(**settings)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def build(vision, text, **settings):
    model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(str(vision), str(text), **settings)
    settings.pop("dtype", None)
    settings.pop("vision_feature_layer", None)
    return model, AuLlavaProcessor.from_vision_text_pretrained(str(vision), str(text), **settings)


def assert_same_weights(module, source, grown: bool = False):
    """Every weight of `module` is that of `source`; with `grown`, its embeddings have rows after those of `source`."""
    weights, expected = module.state_dict(), source.state_dict()
    assert weights.keys() <= expected.keys()
    assert {name for name in expected if name not in weights} == {n for n in expected if n.startswith("head.")}
    for name, weight in weights.items():
        rows = len(expected[name]) if grown and "embed_tokens" in name else None
        assert torch.equal(weight[:rows] if rows else weight, expected[name]), name


def assert_answers(model, processor):
    assert model.config.image_token_id == processor.image_token_id
    assert processor.tokenizer.convert_ids_to_tokens(model.config.image_token_id) == IMAGE_TOKEN
    assert model.config.image_token_id < model.get_input_embeddings().num_embeddings
    assert model.config.vision_stride == processor.vision_stride
    assert not model.training
    generation = model.generation_config
    assert generation.pad_token_id == processor.tokenizer.pad_token_id is not None
    assert processor.tokenizer.eos_token_id in generation.eos_token_id
    for decoding, options in (("slots", {}), ("constrained", {}), ("free", {"max_new_tokens": 8})):
        results = model.recognize(processor, random_faces(2), formats=["bp4d"], decoding=decoding, **options)
        assert [list(answers) for answers in results] == [["bp4d"]] * 2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ("clip", "llama"),
        ("siglip", "qwen3"),
        ("dinov2", "llama"),
        ("dinov3", "qwen3"),
        ("convnextv2", "qwen3"),
        ("resnet", "llama"),
    ],
)
def test_parts_keep_their_weights(vision, text, tied, tmp_path):
    tower = save_vision(vision, tmp_path / "vision")
    language = save_text(text, tmp_path / "text", tied)
    model, processor = build(tmp_path / "vision", tmp_path / "text")

    assert_same_weights(model.model.vision_tower, tower)
    assert_same_weights(model.model.language_model, language.base_model, grown=True)
    rows = language.config.vocab_size
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == rows + 1
    assert torch.equal(model.lm_head.weight[:rows], language.lm_head.weight)
    assert (model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()) is tied
    assert model.config.tie_word_embeddings is tied
    assert model.config.image_token_id == rows

    images = processor.image_processor
    assert (tuple(images.image_mean), tuple(images.image_std)) == (tuple(MEAN), tuple(STD))
    assert (images.crop_size["height"], images.crop_size["width"]) == (32, 32)
    assert images.size["shortest_edge"] == 32
    assert processor.chat_template == (CHATML_TEMPLATE if text == "qwen3" else PLAIN_TEMPLATE)
    assert_answers(model, processor)

    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    loaded = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    answers = model.recognize(processor, random_faces(2), formats=["bp4d"])
    loaded_processor = AuLlavaProcessor.from_pretrained(tmp_path / "whole", trust_remote_code=True)
    assert loaded.recognize(loaded_processor, random_faces(2), formats=["bp4d"]) == answers


@pytest.mark.parametrize("parts", ["both", "vision", "text"])
def test_halves_of_a_llava_checkpoint(parts, tmp_path):
    """LLaVA-1.5 as published: CLIP's penultimate layer, a vocabulary padded beyond the tokenizer, <image> known."""
    torch.manual_seed(3)
    language = save_text("llama", tmp_path / "text")
    save_vision("clip", tmp_path / "vision")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.add_tokens(["<pad>"])
    vocabulary = len(tokenizer) + 5
    text_config = LlamaConfig(**{**language.config.to_dict(), "vocab_size": vocabulary})
    config = LlavaConfig(
        vision_config=TOWERS["clip"][0],
        text_config=text_config,
        image_token_index=len(tokenizer) - 1,
        image_seq_length=16,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.save_pretrained(tmp_path / "llava")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, image_mean=MEAN, image_std=STD)
    LlavaProcessor(images, tokenizer, patch_size=8).save_pretrained(tmp_path / "llava")

    vision = tmp_path / ("vision" if parts == "text" else "llava")
    text = tmp_path / ("text" if parts == "vision" else "llava")
    model, processor = build(vision, text, vision_feature_layer=-2)
    if parts != "text":
        assert_same_weights(model.model.vision_tower, llava.model.vision_tower)
    if parts != "vision":
        assert_same_weights(model.model.language_model, llava.model.language_model)
        assert torch.equal(model.lm_head.weight, llava.lm_head.weight)
        assert model.get_input_embeddings().num_embeddings == vocabulary  # there was room
        assert model.config.image_token_id == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert model.config.vision_feature_layer == -2
    assert_answers(model, processor)


def test_options_reach_model_and_processor(tmp_path):
    save_vision("siglip", tmp_path / "vision")
    save_text("qwen3", tmp_path / "text")
    model, processor = build(tmp_path / "vision", tmp_path / "text", pixel_unshuffle=2, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert processor.num_image_tokens(32, 32) == 4
    assert "head" not in dict(model.model.vision_tower.named_children())  # SigLIP's pooled output is not used
    assert_answers(model, processor)


def test_dtype_auto_is_that_of_the_language_model(tmp_path):
    save_vision("clip", tmp_path / "vision")
    save_text("qwen3", tmp_path / "text")
    AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.bfloat16).save_pretrained(tmp_path / "text")
    model, _ = build(tmp_path / "vision", tmp_path / "text")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


def test_chat_models_end_at_their_turn(tmp_path):
    """A ChatML model whose text ends otherwise (as Qwen's base models): generation stops at either."""
    save_vision("clip", tmp_path / "vision")
    save_text("qwen3", tmp_path / "text")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "text")
    model, _ = build(tmp_path / "vision", tmp_path / "text")
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    assert model.generation_config.eos_token_id == ends


def test_a_vision_folder_without_its_weights_is_refused(tmp_path):
    save_vision("clip", tmp_path / "vision")
    save_text("qwen3", tmp_path / "text")
    model, _ = build(tmp_path / "vision", tmp_path / "text")
    model.save_pretrained(tmp_path / "whole")
    TOWERS["clip"][0].save_pretrained(tmp_path / "whole")  # claims to be CLIP, holds an AU-LLaVA
    with pytest.raises(ValueError, match="whole lacks weights of a clip_vision_model vision encoder, such as "):
        build(tmp_path / "whole", tmp_path / "text")


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"size": 40, "crop_size": 32, "do_center_crop": True}, 32),  # as openai/clip-vit-large-patch14 writes it
        ({"size": {"height": 24, "width": 24}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": False}, 24),
        ({"size": {"shortest_edge": 24}, "crop_pct": 0.875}, 24),
        ({"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 24, "width": 24}}, 24),
    ],
)
def test_image_settings_are_read_from_any_kind_of_file(settings, side, tmp_path):
    settings = {"image_mean": MEAN, "image_std": STD, "resample": 2, **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    images = AuLlavaImageProcessor.like(str(tmp_path))
    assert (images.size["shortest_edge"], images.crop_size["height"], images.crop_size["width"]) == (side, side, side)
    assert (tuple(images.image_mean), tuple(images.image_std), images.resample) == (tuple(MEAN), tuple(STD), 2)
