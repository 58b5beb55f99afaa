"""The AU-LLaVA network: vision tower -> one linear projector -> causal language model.

This is LLaVA as in Transformers (forward, generation, caching and parallelism are inherited), with these differences:

- The projector is a single linear layer, as in the paper (arXiv 2409.08444), optionally over r x r neighboring features
  folded into channels (pixel unshuffle), which divides the number of image tokens by r^2.
- The vision tower may be convolutional: a feature map (batch, width, rows, columns) becomes rows * columns tokens.
- Class and register tokens of ViTs are dropped, whatever their number.
- Every attention backend that can honor a mask accepts a 4-D boolean one (batch or 1, 1, queries, keys), and logits can
  be limited to some positions and tokens. The slots decoder and its training use both (slot_tree_au_llava.py).
"""

import copy
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoModel,
    PreTrainedConfig,
)
from transformers.cache_utils import Cache
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .card_au_llava import write_card
from .configuration_au_llava import AuLlavaConfig, add_image_token, attention_of_parts
from .decoding_au_llava import modules_of, recognize
from .parts_au_llava import load_language_model, load_vision_tower, part_tokenizer, vision_settings
from .pipeline_au_llava import AURecognitionPipeline
from .prefix_au_llava import (
    PromptRowsLayer,
    PromptStore,
    States,
    caches_kept,
    growing_cache,
    shared_cache,
    with_prompt_rows,
)
from .quantization_au_llava import check_computable, check_savable, with_default_skips
from .tree_attention_au_llava import TreeMask

if find_spec("transformers.decision"):
    from .decision_au_llava import AuDecisionMixin
else:  # Transformers 5.20 and older have no decision models

    class AuDecisionMixin:
        pass


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where files are.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

MAX_EXTRA_TOKENS = 32  # class and register tokens of a ViT (5 in DINOv3); more would mean a wrong stride


def features_to_tokens(features: torch.Tensor, grid: tuple[int, int], fold: int) -> torch.Tensor:
    """Turn the output of a vision tower into a token sequence in row-major order.

    Args:
        features: (batch, width, rows, columns) of a convolutional tower, or (batch, extra + rows * columns, width) of
            a ViT, whose `extra` leading tokens (class, registers) are dropped.
        grid: (rows, columns) expected from the image size and the stride of the tower.
        fold: `pixel_unshuffle`.

    Returns:
        (batch, rows / fold * columns / fold, fold * fold * width)

    Raises:
        ValueError: the tower's grid differs from `grid`, or `fold` does not divide it.
    """
    rows, columns = grid
    if features.ndim == 3:
        if not 0 <= features.shape[1] - rows * columns <= MAX_EXTRA_TOKENS:
            raise ValueError(
                f"The vision tower returned {features.shape[1]} tokens where the image size and vision_stride imply "
                f"{rows} x {columns}: set vision_stride in the configuration to the tower's stride."
            )
        features = features[:, -rows * columns :]  # (batch, rows * columns, width)
        features = features.transpose(1, 2).unflatten(2, (rows, columns))
    elif tuple(features.shape[2:]) != (rows, columns):
        raise ValueError(
            f"The vision tower returned a {features.shape[2]} x {features.shape[3]} feature map where the image size "
            f"and vision_stride imply {rows} x {columns}: set vision_stride in the configuration to the tower's stride."
        )
    if rows % fold or columns % fold:
        raise ValueError(f"A {rows} x {columns} feature map cannot be folded by pixel_unshuffle={fold}.")
    folded = nn.functional.pixel_unshuffle(features, fold)  # (batch, width * fold * fold, rows / fold, columns / fold)
    return folded.flatten(2).transpose(1, 2)


def is_plain(layer: nn.Module) -> bool:
    """Whether `layer` is a linear layer that computes with nothing but its weight, which is present as a whole.

    A layer that is quantized, adapted, sharded, offloaded or hooked must be called, as only it knows what it computes.
    A layer gathered by FSDP counts as plain: its hooks do nothing more, and a call by only some of the processes would
    wait forever.
    """
    weight = getattr(layer, "weight", None)
    gathered = any(parent.__name__ == "FSDPModule" for parent in type(layer).__mro__)
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__
    return (
        isinstance(layer, nn.Linear)
        and (gathered or (type(layer) is nn.Linear and not hooked))
        and type(weight) is nn.Parameter
        and tuple(weight.shape) == (layer.out_features, layer.in_features)
        and weight.device.type != "meta"
    )


class AuLlavaPreTrainedModel(LlavaPreTrainedModel):
    """Weight initialization and support flags, those of LLaVA."""

    config_class = AuLlavaConfig
    config: AuLlavaConfig
    _keys_to_ignore_on_load_unexpected = [r"vision_tower\.head\."]  # noqa: RUF012 - see UNUSED_HEADS of the configuration

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False):
        """As in Transformers, but a vision tower that does not support the implementation keeps its own."""
        parts = attention_of_parts(self.config, attn_implementation)
        super().set_attn_implementation(parts, allow_all_kernels)

    @property
    def device(self) -> torch.device:
        """Where the model computes, even while accelerate keeps parameters elsewhere (`device_map`, `cpu_offload`).

        Those parameters are on the device "meta" except while their module runs.
        """
        device = super().device
        if device.type != "meta":
            return device
        for placed in (module._hf_hook for module in modules_of(self) if "_hf_hook" in vars(module)):
            for hook in getattr(placed, "hooks", [placed]):  # a sequence of hooks, or one
                place = getattr(hook, "execution_device", None)
                if place is not None:
                    return torch.device(place)
        return device


class AuLlavaModel(AuLlavaPreTrainedModel, LlavaModel):
    """Vision tower, linear projector and language model, without the head.

    Args:
        config: `AuLlavaConfig`.
    """

    def __init__(self, config: AuLlavaConfig):
        AuLlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = nn.Linear(
            config.projector_in_features, config.text_config.hidden_size, bias=config.projector_bias
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.prompts = PromptStore()
        self.post_init()

    def train(self, mode: bool = True):
        """As in PyTorch, but a batch-norm layer of the tower whose weights are frozen keeps its statistics, too.

        Adapters are saved without them, and a frozen part should give what it gave before.
        """
        super().train(mode)
        for layer in modules_of(self.vision_tower):
            weights = list(layer.parameters(recurse=False)) if isinstance(layer, _BatchNorm) else []
            if weights and not any(weight.requires_grad for weight in weights):
                layer.eval()
        return self

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode images into language-model embeddings.

        Args:
            pixel_values: (images, 3, height, width), normalized as by the processor, in any floating-point type.
            vision_feature_layer: overrides the configuration's.
            vision_feature_select_strategy, image_sizes: LLaVA's, not used; towers of timm would not take them.

        Returns:
            the tower's output, with `pooler_output` = one (tokens, hidden size) tensor per image.
        """
        outputs, embeddings = self.encode_images(pixel_values, vision_feature_layer, **kwargs)
        outputs.pooler_output = list(embeddings)
        return outputs

    def encode_images(
        self, pixel_values: torch.Tensor, vision_feature_layer: int | list[int] | None, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """The tower's output, and (images, tokens, hidden size) embeddings in one tensor."""
        layers = [vision_feature_layer] if isinstance(vision_feature_layer, int) else vision_feature_layer
        if layers is not None and not kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = layers  # keeps only these; a list, as a plain 0 would mean none
        pixel_values = pixel_values.to(self.vision_tower.dtype)  # as LLaVA's towers do; a convolutional one does not
        outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        features = [outputs.last_hidden_state] if layers is None else [outputs.hidden_states[i] for i in layers]
        stride = self.config.vision_stride
        grid = (pixel_values.shape[-2] // stride, pixel_values.shape[-1] // stride)
        tokens = [features_to_tokens(layer, grid, self.config.pixel_unshuffle) for layer in features]
        return outputs, self.multi_modal_projector(torch.cat(tokens, dim=-1))

    def get_placeholder_mask(self, input_ids, inputs_embeds, image_features):
        """LLaVA's; its error message counts features correctly only if `image_features` has a batch dimension."""
        return super().get_placeholder_mask(input_ids, inputs_embeds, image_features[None])

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        mm_encoder_outputs=None,
        prefixes: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ):
        """LLaVA's forward; a 4-D boolean `attention_mask` (True = may attend) is converted for the attention backend.

        Args:
            prefixes: token ids of texts without images that every row continues, or None. They are computed once for
                all rows. The mask then has (batch or 1, 1, tokens, tokens of all prefixes + tokens), `position_ids` are
                needed, and a row may hold the placeholders of its image several times.

        Raises:
            ValueError: a 4-D mask with flash attention, which cannot honor it.
        """
        if prefixes is not None:
            positions = kwargs["position_ids"]
            return self._continue(prefixes, input_ids, attention_mask, positions, pixel_values, mm_encoder_outputs)
        if attention_mask is not None and attention_mask.ndim == 4 and attention_mask.dtype == torch.bool:
            attention_mask = self._fit_tree_mask(attention_mask)
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def _continue(
        self, prefixes, input_ids, attention_mask, position_ids, pixel_values=None, mm_encoder_outputs=None
    ) -> LlavaModelOutputWithPast:
        """The forward pass over rows that continue `prefixes`; arguments as for `forward`."""
        rows = 0
        if self._in_one_pass():
            prompts = [tuple(prefix) for prefix in prefixes]
            batch = with_prompt_rows(prompts, input_ids, attention_mask, position_ids)
            rows, input_ids, attention_mask, position_ids = batch
            layers = range(self.config.text_config.num_hidden_layers)
            attention_mask = self._fit_tree_mask(attention_mask, rows * input_ids.shape[1], rows)
            joined = isinstance(attention_mask, TreeMask)  # by its own attention
            cache = None if joined else Cache(layers=[PromptRowsLayer(rows) for _ in layers])
        else:
            attention_mask = self._fit_tree_mask(attention_mask, sum(map(len, prefixes)))
            joined = isinstance(attention_mask, TreeMask)
            cache = shared_cache(self.prompt_states(prefixes), attention_mask if joined else None)
        embeddings = self.get_input_embeddings()(input_ids)
        if mm_encoder_outputs is None:
            mm_encoder_outputs = {"image": self.get_image_features(pixel_values, return_dict=True)}
        images = self._repeated(mm_encoder_outputs["image"].pooler_output, input_ids[rows:]).to(embeddings)
        places = self.get_placeholder_mask(input_ids, inputs_embeds=embeddings, image_features=images)
        with caches_kept(self.language_model):
            hidden = self.language_model(
                inputs_embeds=embeddings.masked_scatter(places, images),
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=False,
            ).last_hidden_state
        return LlavaModelOutputWithPast(last_hidden_state=hidden[rows:])

    def _in_one_pass(self) -> bool:
        """Whether prompts belong into the pass that continues them.

        So it is where gradients of the language model could be wanted, where its weights are about to change, and where
        they are sharded (DTensor, ZeRO-3): then all processes must make equally many passes.
        """
        weights = list(self.language_model.parameters())
        learns = self.training or (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights))
        return learns or any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in weights)

    def prompt_states(self, prefixes: Sequence[Sequence[int]]) -> list[States]:
        """Keys and values of texts before the image (token ids), without gradients, see prefix_au_llava.py.

        In evaluation mode they are kept for the next call.
        """
        if self.training:
            self.prompts.clear()
        return self.prompts.get(self.language_model, [tuple(prefix) for prefix in prefixes], self.device)

    def _repeated(self, features: Sequence[torch.Tensor], input_ids: torch.Tensor) -> torch.Tensor:
        """Each image's features (tokens, hidden size) as often as its row of `input_ids` has placeholders for them."""
        counts = (input_ids == self.config.image_token_id).sum(1).tolist()
        repeats = [count // len(image) for image, count in zip(features, counts, strict=True)]
        return torch.cat([image for image, times in zip(features, repeats, strict=True) for _ in range(times)])

    def _fit_tree_mask(self, mask: torch.Tensor, before: int = 0, prompts: int = 0) -> torch.Tensor | BlockMask:
        """A boolean mask as the attention backend takes it; `before` and `prompts` as for `TreeMask.of`."""
        backend = self.language_model.config._attn_implementation
        if "flash" in backend:
            raise ValueError(
                f"The attention backend {backend} cannot honor the tree mask of the slots decoder: load the model "
                "with attn_implementation='sdpa' (or 'eager', 'flex_attention'), or use decoding='constrained' "
                "or 'free'."
            )
        if backend == "sdpa":
            return TreeMask.of(mask, self.language_model.dtype, before, prompts) if mask.device.type == "cpu" else mask
        if backend == "flex_attention":
            batch, _, queries, keys = mask.shape
            allowed = lambda b, h, q, k: mask[b, 0, q, k]
            return create_block_mask(allowed, batch, None, queries, keys, device=mask.device)
        dtype = self.language_model.dtype
        additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return additive.masked_fill(~mask, torch.finfo(dtype).min)


class AuLlavaForConditionalGeneration(AuDecisionMixin, AuLlavaPreTrainedModel, LlavaForConditionalGeneration):
    """AU-LLaVA with its language-modelling head: generates text, and reads AUs with `recognize`.

    Args:
        config: `AuLlavaConfig`.
    """

    def __init__(self, config: AuLlavaConfig):
        AuLlavaPreTrainedModel.__init__(self, config)
        self.model = AuLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        embeddings = self.get_input_embeddings()  # called embed_tokens in Llama, wte in GPT-2, ...
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    recognize = recognize

    def prompt_cache(self, prefix: Sequence[int]) -> Cache:
        """A key-value cache in which rows continue `prefix`, token ids of a text before the image."""
        return growing_cache(*self.model.prompt_states([prefix]))

    # `config.calibration` describes the weights that it was fitted on: whatever changes them drops it. Embeddings for
    # more tokens change no reading, and quantized weights count as the same weights, rounded.

    def __setattr__(self, name, value):
        if name == "peft_config":  # set by PEFT on every model whose layers it adapts
            self._drop_calibration("adapters were put into the model")
        super().__setattr__(name, value)

    def train(self, mode: bool = True):
        """As in PyTorch. If `mode` is True, the calibration is dropped: training changes the weights."""
        if mode:
            self._drop_calibration("the model is trained")
            self.model.prompts.clear()
        return super().train(mode)

    def _drop_calibration(self, reason: str):
        if self.config.calibration is not None:
            self.config.calibration = None
            logger.warning("The calibration was dropped, since %s: fit a new one with eval_au.py calibrate.", reason)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict | None = None,
        logit_tokens: torch.LongTensor | None = None,
        **kwargs,
    ) -> LlavaCausalLMOutputWithPast:
        """LLaVA's forward, with the signature that `generate` inspects; `logit_tokens` limits the logits to compute.

        Args:
            logits_to_keep: as in LLaVA: how many last positions, or which positions, get logits.
            logit_tokens: (K,) token ids whose logits are wanted. Values are spelled with a few digits: their rows of
                the head cost almost nothing, while the whole vocabulary at every decision of a batch takes gigabytes.

        Returns:
            LLaVA's output; with `logit_tokens`, `logits` is (batch, positions, K), in the order of `logit_tokens`.
        """
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "mm_encoder_outputs": mm_encoder_outputs,
            **kwargs,
        }
        if logit_tokens is None:
            return super().forward(labels=labels, logits_to_keep=logits_to_keep, **inputs)
        outputs = self.model(**inputs)
        hidden = outputs.last_hidden_state
        count = isinstance(logits_to_keep, int)
        positions = slice(-logits_to_keep, None) if count else logits_to_keep.to(hidden.device)
        logits = self.token_logits(hidden[:, positions], logit_tokens)
        return LlavaCausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    def token_logits(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The head's logits (..., K) for the token ids (K,), given hidden states (..., hidden size)."""
        if is_plain(self.lm_head):
            weight = self.lm_head.weight
            return nn.functional.linear(hidden, weight.index_select(0, tokens.to(weight.device)))
        logits = self.lm_head(hidden)
        return logits.index_select(-1, tokens.to(logits.device))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, quantization_config=None, **kwargs):
        """As in Transformers, with two differences.

        In 8 or 4 bits only the language model's layers are quantized by default. A head that shares its weight with the
        embeddings is placed on their device, whatever `device_map` says about it.

        Raises:
            ValueError: this CPU cannot compute in a 4-bit layer of such a size.
        """
        quantization = with_default_skips(quantization_config)
        given = {} if quantization is None else {"quantization_config": quantization}
        if isinstance(kwargs.get("device_map"), dict):
            kwargs["device_map"] = cls._with_tied_head(kwargs["device_map"], pretrained_model_name_or_path, kwargs)
        model = super().from_pretrained(pretrained_model_name_or_path, *model_args, **given, **kwargs)
        check_computable(model[0] if isinstance(model, tuple) else model)  # with output_loading_info, a pair
        return model

    @classmethod
    def _with_tied_head(cls, device_map: dict, name: str, options: dict) -> dict:
        """`device_map` with the head on the device of the embeddings, if they share their weight."""
        config = options.get("config")
        if not isinstance(config, PreTrainedConfig):
            hub = {key: options[key] for key in HUB_OPTIONS if key in options}
            config = cls.config_class.from_pretrained(config or name, **hub)
        if not config.tie_word_embeddings:
            return device_map
        with torch.device("meta"):
            embeddings = cls(copy.deepcopy(config))._tied_weights_keys["lm_head.weight"]
        enclosing = [key for key in device_map if not key or f"{embeddings}.".startswith(f"{key}.")]
        if not enclosing:
            return device_map
        rest = {key: place for key, place in device_map.items() if key.split(".")[0] != "lm_head"}
        return {**rest, "lm_head": device_map[max(enclosing, key=len)]}

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """As in Transformers; also saves the pipeline's code and, if the folder has none, a model card.

        Raises:
            ValueError: 4-bit weights that a forward pass on a CPU has repacked, so that others would be saved.
        """
        check_savable(self)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            custom_object_save(AURecognitionPipeline, save_directory)
            write_card(save_directory)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        *,
        pixel_unshuffle: int = 1,
        vision_feature_layer: int | list[int] | None = None,
        vision_stride: int | None = None,
        vision_width: int | None = None,
        prompt_order: str = "image_first",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
    ) -> "AuLlavaForConditionalGeneration":
        """Build a model from a pretrained vision encoder and a pretrained language model; the projector is new.

        Args:
            vision: Hub id or folder of a vision encoder, of a two-tower model (CLIP, SigLIP) or of a LLaVA or AU-LLaVA
                checkpoint, whose vision tower is used.
            text: Hub id or folder of a causal language model with its tokenizer, or of a LLaVA or AU-LLaVA checkpoint;
                or a folder with a GGUF file, whose weights are dequantized.
            pixel_unshuffle, vision_feature_layer, vision_stride, vision_width, prompt_order: see `AuLlavaConfig`. The
                tower of an AU-LLaVA checkpoint is read as there unless these say otherwise.
            dtype: of all weights; "auto" is the language model's.
            trust_remote_code: whether to run code that comes with `vision` and `text`.

        Returns:
            the model, in evaluation mode. The image token is the next id after the tokenizer of `text`, and the
            embeddings grow to hold it. Build the matching processor with
            `AuLlavaProcessor.from_vision_text_pretrained(vision, text, ...)`.

        Raises:
            ValueError: `vision` does not hold the weights of a vision encoder; adapters that are not merged; a folder
                with several GGUF files; a GGUF file that Transformers cannot load, or the package gguf is missing.
        """
        common = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        language_model = load_language_model(text, cls, **common)
        vision_tower = load_vision_tower(vision, cls, **common)
        tokenizer = part_tokenizer(text, trust_remote_code)
        image_token_id = add_image_token(tokenizer)
        if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
            language_model.resize_token_embeddings(len(tokenizer))

        config = AuLlavaConfig(
            vision_config=vision_tower.config,
            text_config=language_model.config,
            image_token_id=image_token_id,
            pixel_unshuffle=pixel_unshuffle,
            prompt_order=prompt_order,
            **vision_settings(vision, trust_remote_code, vision_feature_layer, vision_stride, vision_width),
        )
        model = cls._from_config(config, dtype=language_model.dtype)
        model.model.vision_tower.load_state_dict(vision_tower.state_dict())
        model.model.language_model.load_state_dict(language_model.base_model.state_dict())
        model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
        _set_special_tokens(model.generation_config, tokenizer)
        return model.eval()


def _set_special_tokens(generation_config, tokenizer) -> None:
    """Padding, and where generation ends: at the end of a text or of a ChatML turn."""
    padded = tokenizer.pad_token_id is not None
    generation_config.pad_token_id = tokenizer.pad_token_id if padded else tokenizer.eos_token_id
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    known = dict.fromkeys(end for end in ends if end not in (None, tokenizer.unk_token_id))
    generation_config.eos_token_id = list(known)


AuLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["AuLlavaForConditionalGeneration", "AuLlavaModel", "AuLlavaPreTrainedModel"]
