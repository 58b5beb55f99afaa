"""The configuration: what it refuses, what it derives from a vision tower, and that it survives being saved."""

import json

import pytest
from conftest import TOWERS, build_tiny
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import LlamaConfig, Swinv2Config, ViTConfig

from au_llava.configuration_au_llava import IMAGE_TOKEN, AuLlavaConfig, add_image_token


@pytest.mark.parametrize("tower", TOWERS)
def test_stride_and_width_come_from_the_tower(tower):
    vision_config, stride, width = TOWERS[tower]
    config = AuLlavaConfig(vision_config=vision_config)
    assert (config.vision_stride, config.vision_width, config.projector_in_features) == (stride, width, width)


def test_defaults_are_the_tower_and_language_model_of_llava():
    config = AuLlavaConfig()
    assert config.vision_config.model_type == "clip_vision_model"
    assert config.text_config.model_type == "llama"
    assert (config.vision_stride, config.vision_width) == (14, 1024)


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"pixel_unshuffle": 2}, 4 * 32),
        ({"vision_feature_layer": -2}, 32),
        ({"vision_feature_layer": [-2, -1]}, 2 * 32),
        ({"vision_feature_layer": [-2, -1], "pixel_unshuffle": 2}, 8 * 32),
    ],
)
def test_width_of_an_image_token(settings, width):
    assert AuLlavaConfig(vision_config=TOWERS["siglip"][0], **settings).projector_in_features == width


def test_unknown_keys_are_kept_and_named_once(caplog, tmp_path):
    """As a newer Transformers, a quantizer or a training library write them."""
    foreign = {"pixel_unshufle": 2, "rope_base_of_next_year": {"theta": 1e4}, "initializer_range": 0.02}
    config = AuLlavaConfig(vision_config=TOWERS["siglip"][0], **foreign)
    config.save_pretrained(tmp_path)
    loaded = AuLlavaConfig.from_pretrained(tmp_path)
    AuLlavaConfig.from_pretrained(tmp_path)
    for each in (config, loaded):
        assert {key: getattr(each, key) for key in foreign} == foreign
        assert each.pixel_unshuffle == 1
    assert {key: loaded.to_dict()[key] for key in foreign} == foreign
    [message] = [record.message for record in caplog.records if "does not know" in record.message]
    assert message.endswith(
        "does not know: initializer_range, pixel_unshufle (did you mean pixel_unshuffle?), rope_base_of_next_year."
    )


def test_known_keys_are_not_named(caplog, tmp_path):
    model, _ = build_tiny()
    model.save_pretrained(tmp_path)
    AuLlavaConfig.from_pretrained(tmp_path, attn_implementation="eager", dtype="bfloat16", output_attentions=True)
    assert not [record for record in caplog.records if "does not know" in record.message]


def test_normalization_keys_can_be_set_as_transformers_own_tests_do():
    config = AuLlavaConfig(vision_config=TOWERS["siglip"][0])
    for key in ("initializer_range", "layer_norm_eps", "rms_norm_eps", "initializer_factor"):
        setattr(config, key, 1e-10)
    again = type(config)(**config.to_dict())
    assert again.layer_norm_eps == 1e-10


@pytest.mark.parametrize(
    "settings",
    [
        {"image_token_id": "<image>"},
        {"pixel_unshuffle": 2.0},
        {"vision_stride": "14"},
        {"vision_feature_layer": "last"},
        {"projector_bias": "no"},
    ],
)
def test_wrong_types_are_refused(settings):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(settings))):
        AuLlavaConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel_unshuffle": 0}, "pixel_unshuffle is 0"),
        ({"vision_stride": 0}, "vision_stride is 0"),
        ({"vision_feature_layer": []}, "vision_feature_layer is empty"),
        ({"vision_config": LlamaConfig()}, "stride of a llama .* set vision_stride"),
        ({"vision_config": ViTConfig(patch_size=[16, 8])}, "stride of a vit .* set vision_stride"),
        ({"vision_config": TOWERS["resnet"][0], "vision_feature_layer": 0}, "layer=0 of a resnet .* stride of its own"),
    ],
)
def test_settings_that_cannot_work_say_what_to_set(settings, message):
    with pytest.raises(ValueError, match=message):
        AuLlavaConfig(**settings)


def test_stride_and_width_can_be_given():
    config = AuLlavaConfig(vision_config=Swinv2Config(), vision_stride=32)
    assert (config.vision_stride, config.vision_width) == (32, 768)
    inner = AuLlavaConfig(vision_config=TOWERS["resnet"][0], vision_feature_layer=1, vision_stride=4, vision_width=8)
    assert inner.projector_in_features == 8


@pytest.mark.parametrize("tower", TOWERS)
def test_saved_and_loaded_it_is_the_same(tower, tmp_path):
    config = AuLlavaConfig(
        vision_config=TOWERS[tower][0],
        text_config=LlamaConfig(hidden_size=32, tie_word_embeddings=True),
        image_token_id=7,
        pixel_unshuffle=2,
        projector_bias=False,
        vision_stride=4,
        vision_width=3,
        vision_feature_layer=[-2, -1],
    )
    config.save_pretrained(tmp_path)
    loaded = AuLlavaConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_feature_layer == [-2, -1]
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_auto_map_sends_every_auto_class_to_this_code(tmp_path):
    AuLlavaConfig().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_au_llava.AuLlavaConfig",
        "AutoModel": "modeling_au_llava.AuLlavaForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_au_llava.AuLlavaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_au_llava.AuLlavaForConditionalGeneration",
        "AutoModelForDecision": "modeling_au_llava.AuLlavaForConditionalGeneration",
    }


def test_everything_transformers_writes_into_config_json_is_known(tmp_path):
    """A key of Transformers' own that our list of known keys lacks would make a checkpoint unreadable."""
    model, _ = build_tiny()
    model.save_pretrained(tmp_path)
    options = {"attn_implementation": "eager", "dtype": "bfloat16", "output_attentions": True, "use_cache": False}
    loaded = AuLlavaConfig.from_pretrained(tmp_path, **options)
    assert loaded.text_config.to_dict() == {**model.config.text_config.to_dict(), "dtype": loaded.text_config.dtype}


@pytest.mark.parametrize("tied", [False, True])
def test_tying_follows_the_language_model(tied):
    assert AuLlavaConfig(text_config=LlamaConfig(tie_word_embeddings=tied)).tie_word_embeddings is tied


def test_image_token_is_added_once(tiny):
    tokenizer = tiny[1].tokenizer
    before = len(tokenizer)
    assert add_image_token(tokenizer) == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == before - 1
    assert len(tokenizer) == before
    assert tokenizer(f"a{IMAGE_TOKEN}b", add_special_tokens=False)["input_ids"].count(before - 1) == 1
