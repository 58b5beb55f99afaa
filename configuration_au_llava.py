"""Configuration of AU-LLaVA: which vision tower, which language model, and how image features become tokens.

Owns every architectural number that the network and the processor must agree on: the stride and the width of the vision
features, the pixel-unshuffle factor, the id of the image token; which of the two parts can take a setting; and by which
of its code files a checkpoint is loaded. A key that it does not know is kept, since newer versions and other libraries
write their own, and named once in a warning, since it may be a misspelt setting.
"""

from copy import deepcopy
from difflib import get_close_matches

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .calibration_au_llava import check_calibration

logger = logging.get_logger(__name__)

IMAGE_TOKEN = "<image>"

# Which file and class the Auto classes load from a checkpoint with trust_remote_code.
AUTO_MAP = {
    "AutoConfig": "configuration_au_llava.AuLlavaConfig",
    "AutoModel": "modeling_au_llava.AuLlavaForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_au_llava.AuLlavaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_au_llava.AuLlavaForConditionalGeneration",
    "AutoModelForDecision": "modeling_au_llava.AuLlavaForConditionalGeneration",
}

# Which file and class `transformers.pipeline` makes a pipeline of, by task.
CUSTOM_PIPELINES = {
    "au-recognition": {
        "impl": "pipeline_au_llava.AURecognitionPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "image",
    }
}

# Total stride of convolutional towers with n stages, from their modeling files in Transformers: ResNet's stem divides
# by four and every stage but the first by two; RegNet's stem and every stage by two; ConvNeXt's patches are patch_size
# wide.
CONVOLUTIONAL_STRIDES = {
    "resnet": lambda config: 4 * 2 ** (len(config.depths) - 1 + config.downsample_in_first_stage),
    "regnet": lambda config: 2 * 2 ** len(config.depths),
    "convnext": lambda config: config.patch_size * 2 ** (len(config.depths) - 1),
    "convnextv2": lambda config: config.patch_size * 2 ** (len(config.depths) - 1),
    "dinov3_convnext": lambda config: 4 * 2 ** (len(config.depths) - 1),
}

# What switches on a tower's pooled output (SigLIP, AIMv2): it is not used, would never learn, and PyTorch's attention,
# which computes it, reads its weights past the hooks of offloading.
UNUSED_HEADS = ("vision_use_head", "use_head")

# What Transformers itself puts beside a model's own fields in config.json.
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
    """Make sure that `tokenizer` knows `IMAGE_TOKEN` as one special token, and return its id.

    The token is added after all existing ones, so that two callers starting from the same tokenizer get the same id.
    """
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def takes_attention(config: PreTrainedConfig, implementation: str | None) -> bool:
    """Whether the model of `config` can attend by `implementation`; a convolutional one attends by none.

    True for an unknown implementation and for a model of unknown code: building the model tells.
    """
    if implementation not in ALL_ATTENTION_FUNCTIONS.valid_keys() or type(config) not in AutoModel._model_mapping:
        return True
    model = AutoModel._model_mapping[type(config)]
    kind = next((kind for kind in ("sdpa", "flex_attn") if kind[:4] in implementation), "flash_attn")
    return getattr(model, f"_supports_{kind}")


def attention_of_parts(config: PreTrainedConfig, asked: str | dict | None) -> dict[str, str | None]:
    """What an `attn_implementation` means for the whole ("") and each part of `config`.

    The vision tower keeps what it has where it cannot take what is asked for.

    Args:
        asked: one for all, or a dict by part: "text_config", "vision_config", "" (the whole).

    Raises:
        ValueError: a part that there is not.
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
        asked = {part: each for part, each in asked.items() if part != "vision_config"}
    return asked


@strict
class AuLlavaConfig(PreTrainedConfig):
    """Configuration of `AuLlavaForConditionalGeneration`.

    Args:
        vision_config: configuration (or its dict, with `model_type`) of any Transformers vision encoder that returns
            `last_hidden_state` as tokens (batch, tokens, width) or as a feature map (batch, width, rows, columns).
        text_config: configuration (or its dict) of any causal language model in Transformers.
        image_token_id: id of the placeholder `<image>` that image features replace.
        vision_feature_layer: `None` takes the tower's `last_hidden_state`; an index takes that entry of `hidden_states`
            (LLaVA-1.5 uses -2); several indices are concatenated along the width.
        vision_stride: input pixels per feature along one side. Read from `vision_config` for ViTs (`patch_size`) and
            the convolutional towers in `CONVOLUTIONAL_STRIDES`; to be given for any other.
        vision_width: channels of one vision feature. Read from `vision_config` where possible.
        pixel_unshuffle: r folds r x r neighbouring features into one token of r*r times the width, so that an image
            costs r*r times fewer tokens.
        projector_bias: whether the linear projector has a bias.
        calibration: what the slots decoder applies to its readings, see calibration_au_llava.py; None applies nothing.
        mirror_images: whether the slots decoder reads the mirror image too, in the same pass, and gives the mean of the
            two: more accurate, and a mirrored face gets exactly the mirrored answer, for up to twice the time. (A key
            named `mirror` could not be given to `from_pretrained`, which drops it.)

    Raises:
        ValueError: calibration of another shape, number below 1, or a stride or width that cannot be
            derived and was not given.
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
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        known = _COMMON_KEYS | set(PreTrainedConfig.__dataclass_fields__)
        unknown = sorted(key for key in kwargs if key not in known)
        if unknown:
            meant = {key: get_close_matches(key, AuLlavaConfig.__annotations__, 1) for key in unknown}
            named = (key + "".join(f" (did you mean {near}?)" for near in meant[key]) for key in unknown)
            logger.warning_once(f"AuLlavaConfig keeps but does not use keys that it does not know: {', '.join(named)}.")
        super().__post_init__(**kwargs)
        self.auto_map = AUTO_MAP | (getattr(self, "auto_map", None) or {})  # older checkpoints name fewer
        if getattr(self, "custom_pipelines", None) is None:
            self.custom_pipelines = deepcopy(CUSTOM_PIPELINES)  # `pipeline` writes classes into it
        for switch in UNUSED_HEADS:
            if getattr(self.vision_config, switch, False):
                setattr(self.vision_config, switch, False)
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        check_calibration(self.calibration)
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
        if isinstance(getattr(vision, "patch_size", None), int):
            return vision.patch_size
        raise ValueError(
            f"The stride of a {vision.model_type} vision tower is not known: set vision_stride to the number of input "
            "pixels per feature along one side."
        )

    def _derived_width(self) -> int:
        vision = self.vision_config
        width = vision.hidden_sizes[-1] if hasattr(vision, "hidden_sizes") else getattr(vision, "hidden_size", None)
        if width is None:
            raise ValueError(
                f"The width of a {vision.model_type} vision tower is not known: set vision_width to the number of "
                "channels of one vision feature."
            )
        return width

    @property
    def projector_in_features(self) -> int:
        """Width of one image token before the projector: layers x pixel_unshuffle^2 x vision_width."""
        layers = len(self.vision_feature_layer) if isinstance(self.vision_feature_layer, list) else 1
        return layers * self.pixel_unshuffle**2 * self.vision_width


AuLlavaConfig.register_for_auto_class()

__all__ = ["IMAGE_TOKEN", "AuLlavaConfig", "add_image_token"]
