"""Configuration of AU-LLaVA: the vision tower, the language model, and how image features become tokens.

Owns everything that the network and the processor must agree on (stride and width of the vision features, the
pixel-unshuffle factor, the id of the image token, the order of prompts), which part can use an attention
implementation, and which code files a checkpoint is loaded with. Unknown keys are kept, since newer versions and other
libraries write their own, and named in a warning, since they may be misspelled settings.
"""

from copy import deepcopy
from difflib import get_close_matches

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .calibration_au_llava import check_calibration

logger = logging.get_logger(__name__)

IMAGE_TOKEN = "<image>"
PROMPT_ORDERS = ("image_first", "text_first")

# The file and class that the Auto classes load from a checkpoint with trust_remote_code.
AUTO_MAP = {
    "AutoConfig": "configuration_au_llava.AuLlavaConfig",
    "AutoModel": "modeling_au_llava.AuLlavaForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_au_llava.AuLlavaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_au_llava.AuLlavaForConditionalGeneration",
    "AutoModelForDecision": "modeling_au_llava.AuLlavaForConditionalGeneration",
}

# The file and class that `transformers.pipeline` loads, by task.
CUSTOM_PIPELINES = {
    "au-recognition": {
        "impl": "pipeline_au_llava.AURecognitionPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "image",
    }
}

# Total stride of convolutional towers, from their modeling files in Transformers. ResNet divides by four in the stem
# and by two in every stage but the first; RegNet by two in the stem and in every stage; ConvNeXt by patch_size in the
# stem and by two in every stage but the first.
CONVOLUTIONAL_STRIDES = {
    "resnet": lambda config: 4 * 2 ** (len(config.depths) - 1 + config.downsample_in_first_stage),
    "regnet": lambda config: 2 * 2 ** len(config.depths),
    "convnext": lambda config: config.patch_size * 2 ** (len(config.depths) - 1),
    "convnextv2": lambda config: config.patch_size * 2 ** (len(config.depths) - 1),
    "dinov3_convnext": lambda config: 4 * 2 ** (len(config.depths) - 1),
}

# Settings that switch on a tower's pooling head (SigLIP, AIMv2). Its output is not used, so it would never learn; and
# PyTorch's attention, which computes it, bypasses the hooks of offloading.
UNUSED_HEADS = ("vision_use_head", "use_head")

# Keys that Transformers itself writes into config.json.
_COMMON_KEYS = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "trust_remote_code",
    "transformers_version",
    "use_cache",
}


def add_image_token(tokenizer) -> int:
    """Add `IMAGE_TOKEN` to `tokenizer` as a special token if it is missing; returns its id.

    It is added after all existing tokens, so that the same tokenizer always gets the same id.
    """
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def check_prompt_order(order: str) -> None:
    """Raise ValueError unless `order` is one of `PROMPT_ORDERS`."""
    if order not in PROMPT_ORDERS:
        raise ValueError(f"prompt_order is {order!r}; it must be {' or '.join(PROMPT_ORDERS)}.")


def drop_unused_heads(vision_config: PreTrainedConfig) -> None:
    """Switch off the pooling head of a vision tower, see `UNUSED_HEADS`."""
    for switch in UNUSED_HEADS:
        if getattr(vision_config, switch, False):
            setattr(vision_config, switch, False)


def timm_geometry(vision_config: PreTrainedConfig) -> tuple[int, int]:
    """(stride, width) of the final features of a tower from timm, which its configuration does not name.

    Raises:
        ImportError: timm is not installed.
    """
    with torch.device("meta"):
        tower = AutoModel.from_config(vision_config).timm_model
    return tower.feature_info[-1]["reduction"], tower.num_features


def takes_attention(config: PreTrainedConfig, implementation: str | None) -> bool:
    """Whether the model of `config` supports the attention `implementation`; a convolutional one supports none.

    True for unknown implementations and for models with code of their own: building the model will tell.
    """
    if implementation not in ALL_ATTENTION_FUNCTIONS.valid_keys() or type(config) not in AutoModel._model_mapping:
        return True
    model = AutoModel._model_mapping[type(config)]
    kind = next((kind for kind in ("sdpa", "flex_attn") if kind[:4] in implementation), "flash_attn")
    return getattr(model, f"_supports_{kind}")


def attention_of_parts(config: PreTrainedConfig, asked: str | dict | None) -> dict[str, str | None]:
    """An `attn_implementation` by part of `config`; "" is the whole.

    The vision tower is left out, and so keeps its own, if it does not support what is asked for.

    Args:
        asked: one implementation for all parts, or a dict by part: "text_config", "vision_config", "".

    Raises:
        ValueError: an unknown part.
    """
    parts = ("", *config.sub_configs)
    if not isinstance(asked, dict):
        asked = dict.fromkeys(parts, asked)
    unknown = sorted(set(asked) - set(parts))
    if unknown:
        raise ValueError(
            f"attn_implementation is given for {', '.join(unknown)}; the parts are {', '.join(config.sub_configs)}."
        )
    vision = asked.get("vision_config")
    if vision is not None and not takes_attention(config.vision_config, vision):
        asked = {part: implementation for part, implementation in asked.items() if part != "vision_config"}
    return asked


@strict
class AuLlavaConfig(PreTrainedConfig):
    """Configuration of `AuLlavaForConditionalGeneration`.

    Args:
        vision_config: configuration (or its dict, with `model_type`) of any Transformers vision encoder that returns
            `last_hidden_state` as tokens (batch, tokens, width) or as a feature map (batch, width, rows, columns).
        text_config: configuration (or its dict) of any causal language model in Transformers.
        image_token_id: id of the placeholder `<image>` that image features replace.
        vision_feature_layer: None takes the tower's `last_hidden_state`; an index takes that entry of `hidden_states`
            (LLaVA-1.5 uses -2); several indices are concatenated along the width.
        vision_stride: input pixels per feature along one side. Derived from `vision_config` for ViTs (`patch_size`) and
            the convolutional towers in `CONVOLUTIONAL_STRIDES`; required for all others.
        vision_width: channels of one vision feature. Derived from `vision_config` where possible.
        pixel_unshuffle: r folds r x r neighboring features into one token of r*r times the width, so that an image
            takes r*r times fewer tokens.
        projector_bias: whether the linear projector has a bias.
        calibration: what the slots decoder applies to its readings, see calibration_au_llava.py; None for nothing.
        mirror_images: whether the slots decoder also reads the mirror image, in the same pass, and gives the mean of
            both. This is more accurate, gives a mirrored face exactly the mirrored answer, and takes up to twice the
            time. (`from_pretrained` would drop a key named `mirror`.)
        prompt_order: what comes first in a prompt. "image_first": the image, then what is asked for, as in LLaVA.
            "text_first": what is asked for, then the image; the text is then the same for every image, and its keys and
            values are computed only once (slot_tree_au_llava.py). Weights are trained for one order.

    Raises:
        ValueError: a malformed calibration, a number below 1, an unknown order, or a stride or width that is neither
            given nor derivable.
    """

    model_type = "au_llava"
    sub_configs_defaults = {  # noqa: RUF012 - Transformers' own declaration style
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={  # CLIP ViT-L/14-336, the tower of LLaVA-1.5
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    vision_feature_layer: int | list[int] | None = None
    vision_stride: int | None = None
    vision_width: int | None = None
    pixel_unshuffle: int = 1
    projector_bias: bool = True
    calibration: dict | None = None
    mirror_images: bool = False
    prompt_order: str = "image_first"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        known = _COMMON_KEYS | set(PreTrainedConfig.__dataclass_fields__)
        unknown = sorted(key for key in kwargs if key not in known)
        if unknown:
            near = {key: get_close_matches(key, AuLlavaConfig.__annotations__, 1) for key in unknown}
            named = (key + "".join(f" (did you mean {match}?)" for match in near[key]) for key in unknown)
            logger.warning_once(f"AuLlavaConfig keeps but does not use keys that it does not know: {', '.join(named)}.")
        super().__post_init__(**kwargs)
        self.auto_map = AUTO_MAP | (getattr(self, "auto_map", None) or {})  # older checkpoints name fewer
        if getattr(self, "custom_pipelines", None) is None:
            self.custom_pipelines = deepcopy(CUSTOM_PIPELINES)  # `pipeline` writes classes into it
        drop_unused_heads(self.vision_config)
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        check_calibration(self.calibration)
        check_prompt_order(self.prompt_order)
        if self.vision_feature_layer == []:
            raise ValueError("vision_feature_layer is empty: leave it at None for the tower's final output.")
        if self.vision_stride is None:
            self.vision_stride = self._derived_stride()
        if self.vision_width is None:
            self.vision_width = self._derived_width()
        for name in ("pixel_unshuffle", "vision_stride", "vision_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")

    @property
    def _attn_implementation(self):
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None):
        PreTrainedConfig._attn_implementation.fset(self, attention_of_parts(self, value))

    def _derived_stride(self) -> int:
        vision = self.vision_config
        if vision.model_type in CONVOLUTIONAL_STRIDES:
            if self.vision_feature_layer is not None:
                raise ValueError(
                    f"vision_feature_layer={self.vision_feature_layer} of a {vision.model_type} has a stride of its "
                    "own: set vision_stride and vision_width too, or leave the layer at None for the last stage."
                )
            return CONVOLUTIONAL_STRIDES[vision.model_type](vision)
        if vision.model_type == "timm_wrapper":
            return timm_geometry(vision)[0]
        if isinstance(getattr(vision, "patch_size", None), int):
            return vision.patch_size
        raise ValueError(
            f"The stride of a {vision.model_type} vision tower is not known: set vision_stride to the number of input "
            "pixels per feature along one side."
        )

    def _derived_width(self) -> int:
        vision = self.vision_config
        if vision.model_type == "timm_wrapper":
            return timm_geometry(vision)[1]
        width = vision.hidden_sizes[-1] if hasattr(vision, "hidden_sizes") else getattr(vision, "hidden_size", None)
        if width is None:
            raise ValueError(
                f"The width of a {vision.model_type} vision tower is not known: set vision_width to the number of "
                "channels of one vision feature."
            )
        return width

    @property
    def projector_in_features(self) -> int:
        """Width of one image token before the projector: layers * pixel_unshuffle^2 * vision_width."""
        layers = len(self.vision_feature_layer) if isinstance(self.vision_feature_layer, list) else 1
        return layers * self.pixel_unshuffle**2 * self.vision_width


AuLlavaConfig.register_for_auto_class()

__all__ = ["IMAGE_TOKEN", "PROMPT_ORDERS", "AuLlavaConfig", "add_image_token"]
