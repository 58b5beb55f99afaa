"""The parts that a new model is built from: a vision encoder, a language model and its tokenizer.

Owns where they may come from: a Hub id or a folder of either; a whole vision-language model, such as LLaVA or another
checkpoint of AU-LLaVA; and, for the language model, a folder with a GGUF file, whose weights are dequantized.
"""

from pathlib import Path

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import ADAPTER_CONFIG_NAME, is_gguf_available

from .configuration_au_llava import AuLlavaConfig, drop_unused_heads


def gguf_option(source: str) -> dict[str, str]:
    """`{"gguf_file": name}` for a folder whose weights are a GGUF file, {} for everything else.

    Raises:
        ValueError: a GGUF file itself, several of them, or the package gguf is missing.
    """
    folder = Path(source)
    if folder.suffix == ".gguf" and folder.is_file():
        raise ValueError(f"{source} is a GGUF file: name the folder that holds it, and no other GGUF file.")
    files = sorted(path.name for path in folder.glob("*.gguf")) if folder.is_dir() else []
    if not files or any(folder.glob("*.safetensors")):
        return {}
    if len(files) > 1:
        raise ValueError(
            f"{source} holds {len(files)} GGUF files ({', '.join(files)}): put the one to use into a folder of its own."
        )
    if not is_gguf_available():
        raise ValueError(f"{folder / files[0]} needs the package gguf: pip install gguf.")
    return {"gguf_file": files[0]}


def _from_gguf(load, source: str, file: str, **options):
    """`load(source, gguf_file=file)`; what Transformers cannot load is a ValueError in one sentence."""
    try:
        return load(source, gguf_file=file, **options)
    except Exception as error:  # the readers of GGUF files raise all kinds of errors
        reason = (str(error).strip("'\"").splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"Transformers cannot load {Path(source, file)} ({reason}): name a folder with the model's safetensors."
        ) from error


def part_config(source: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a part, or of the whole model that it is part of.

    A checkpoint of AU-LLaVA is read by this code, not by its own, and so needs no trust.

    Raises:
        ValueError: adapters, a folder with several GGUF files, or a GGUF file that cannot be loaded.
    """
    if file := gguf_option(source):
        return _from_gguf(AutoConfig.from_pretrained, source, file["gguf_file"])
    if Path(source, ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"{source} holds adapters, not a whole model: merge them with tools/merge_adapter.py first.")
    settings, _ = PreTrainedConfig.get_config_dict(source)
    if settings.get("model_type") == AuLlavaConfig.model_type:
        return AuLlavaConfig.from_pretrained(source)
    return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


def vision_settings(
    source: str,
    trust_remote_code: bool = False,
    vision_feature_layer: int | list[int] | None = None,
    vision_stride: int | None = None,
    vision_width: int | None = None,
) -> dict:
    """How the tower of `source` is read: settings of `AuLlavaConfig`.

    What is not given is as in `source`, if that is a checkpoint of AU-LLaVA, or else left to `AuLlavaConfig`.
    """
    given = {"vision_stride": vision_stride, "vision_width": vision_width}
    if vision_feature_layer is not None:  # another layer may have another stride and width
        return {"vision_feature_layer": vision_feature_layer, **given}
    config = part_config(source, trust_remote_code)
    known = {}
    if config.model_type == AuLlavaConfig.model_type:
        known = {name: getattr(config, name) for name in ("vision_feature_layer", *given)}
    return known | {name: value for name, value in given.items() if value is not None}


def part_tokenizer(source: str, trust_remote_code: bool = False):
    """The tokenizer of the language model `source`."""
    if file := gguf_option(source):
        return _from_gguf(AutoTokenizer.from_pretrained, source, file["gguf_file"])
    return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def load_language_model(source: str, whole, dtype, trust_remote_code: bool):
    """The causal language model of `source`, not quantized.

    Args:
        whole: class that loads a checkpoint of AU-LLaVA.

    Raises:
        ValueError: a vision-language model that is stored quantized; see also `part_config`.
    """
    config = part_config(source, trust_remote_code)
    if file := gguf_option(source):
        return _dequantized(source, file["gguf_file"], dtype)
    loader = _loader_of_whole(config, whole)
    if loader is None:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        raise ValueError(f"{source} is stored quantized: name the checkpoint that it was made from.")
    model = loader.from_pretrained(source, dtype=dtype)
    config = model.config.text_config
    config.tie_word_embeddings = model.config.tie_word_embeddings
    language_model = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    language_model.base_model.load_state_dict(model.model.language_model.state_dict())
    language_model.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    return language_model


def _dequantized(source: str, file: str, dtype):
    """The language model of a GGUF file with plain weights, and a configuration that says so."""
    options = {"dtype": dtype}
    if hasattr(transformers, "GgufConfig"):  # otherwise Transformers always dequantizes
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    language_model = _from_gguf(AutoModelForCausalLM.from_pretrained, source, file, **options)
    if hasattr(language_model.config, "quantization_config"):
        del language_model.config.quantization_config
    return language_model


def load_vision_tower(source: str, whole, dtype, trust_remote_code: bool):
    """The vision tower of `source`.

    Args:
        whole: class that loads a checkpoint of AU-LLaVA.

    Raises:
        ValueError: `source` does not hold the weights of a vision encoder; see also `part_config`.
    """
    config = part_config(source, trust_remote_code)
    loader = _loader_of_whole(config, whole)
    if loader is not None:
        return loader.from_pretrained(source, dtype=dtype).model.vision_tower
    vision_config = getattr(config, "vision_config", config)
    drop_unused_heads(vision_config)
    options = {"config": vision_config, "dtype": dtype, "trust_remote_code": trust_remote_code}
    tower, loading = AutoModel.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{source} lacks weights of a {vision_config.model_type} vision encoder, such as {missing[0]}."
        )
    return tower


def _loader_of_whole(config: PreTrainedConfig, whole):
    """The class that loads the vision-language model of `config`; None for the configuration of a single part."""
    if config.model_type == AuLlavaConfig.model_type:
        return whole
    both = "text_config" in config.sub_configs and "vision_config" in config.sub_configs
    return AutoModelForImageTextToText if both and type(config) in AutoModelForImageTextToText._model_mapping else None


__all__ = ["load_language_model", "load_vision_tower", "part_config", "part_tokenizer", "vision_settings"]
