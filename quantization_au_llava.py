"""Loading in 8 or 4 bits with bitsandbytes: which parts keep their precision, and two limits of bitsandbytes on CPUs.

By default (`llm_int8_skip_modules`) only the layers of the language model are quantized. In a full-size model the
vision tower and the projector are a small share of the weights, and every answer depends on them; the head often shares
its weight with the embeddings.
"""

from copy import copy
from logging import ERROR, getLogger

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import is_bitsandbytes_available
from transformers.utils.quantization_config import QuantizationConfigMixin

# Module names, complete from the root of the model: Transformers would not match "vision_tower" alone.
UNQUANTIZED = ("lm_head", "model.vision_tower", "model.multi_modal_projector")

# On CPUs with AVX512-BF16 bitsandbytes 0.50.2 repacks 4-bit weights: inputs in blocks of 64 weights (the size that
# Transformers always uses), outputs in blocks of 32 (bitsandbytes/functional.py, _convert_weight_packed_for_cpu).
PACKED_INPUTS, PACKED_OUTPUTS = 64, 32


def loading_options(quantize: str | None) -> dict:
    """Arguments of `from_pretrained` for "8bit" or "4bit" (NF4), or for None.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if quantize is None:
        return {}
    if not is_bitsandbytes_available():
        raise ValueError("Loading in 8 or 4 bits needs bitsandbytes: pip install bitsandbytes")
    getLogger("bitsandbytes.autograd._functions").setLevel(ERROR)  # warns of a cast, per layer and batch
    return {"quantization_config": BitsAndBytesConfig(**{f"load_in_{quantize}": True}, bnb_4bit_quant_type="nf4")}


def with_default_skips(quantization: QuantizationConfigMixin | dict | None) -> QuantizationConfigMixin | None:
    """`quantization` as an object; a bitsandbytes one that names no modules to skip gets `UNQUANTIZED`."""
    if isinstance(quantization, dict):
        quantization = AutoQuantizationConfig.from_dict(quantization)
    if isinstance(quantization, BitsAndBytesConfig) and quantization.llm_int8_skip_modules is None:
        quantization = copy(quantization)
        quantization.llm_int8_skip_modules = list(UNQUANTIZED)
    return quantization


def check_computable(model: PreTrainedModel) -> None:
    """Check that this CPU can compute in all 4-bit layers.

    Raises:
        ValueError: it cannot, because of a layer's size; the message says which modules to skip.
    """
    odd = {
        name: module
        for name, module in _layers_in_4_bits(model)
        if module.support_avx512bf16_for_cpu
        and module.weight.device.type == "cpu"
        and (module.in_features % PACKED_INPUTS or module.out_features % PACKED_OUTPUTS)
    }
    if odd:
        name, module = next(iter(odd.items()))
        skipped = model.config.quantization_config.llm_int8_skip_modules or UNQUANTIZED
        skipped = [*skipped, *sorted({layer.rpartition(".")[2] for layer in odd})]
        raise ValueError(
            f"{name} has {module.in_features} inputs and {module.out_features} outputs; in 4 bits this CPU computes "
            f"only in multiples of {PACKED_INPUTS} and {PACKED_OUTPUTS}: load in 8 bits, or set "
            f"llm_int8_skip_modules={skipped}."
        )


def check_savable(model: PreTrainedModel) -> None:
    """Check that the 4-bit weights can be saved.

    Raises:
        ValueError: a forward pass on a CPU has repacked them, and bitsandbytes would save other weights.
    """
    for name, module in _layers_in_4_bits(model):
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                f"{name} was repacked by a forward pass on this CPU, and bitsandbytes would save other weights: load "
                "the model anew and save it before it computes anything."
            )


def _layers_in_4_bits(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Name and module of each 4-bit layer, found by class name, since bitsandbytes need not be installed."""
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]


__all__ = [
    "UNQUANTIZED",
    "check_computable",
    "check_savable",
    "loading_options",
    "with_default_skips",
]
