"""Prompts that come before the image: their keys and values, computed once and shared by images, batches and branches.

With `prompt_order="text_first"` the text of a prompt does not see the image, so that a causal language model gives its
tokens the same keys and values for every image. `shared_prompts` computes them; `SharedLayer` lets every row of a batch
continue them, without a copy for each row except while its layer computes. `PromptStore` keeps them between calls as
long as the language model computes the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

Prompt = tuple[int, ...]  # token ids
States = list[tuple[torch.Tensor, torch.Tensor]]  # per layer, keys and values (1, heads, tokens, width)

MOST_PROMPTS = 8  # kept by a `PromptStore`; the oldest goes first


class PromptLayer(DynamicLayer):
    """Remembers the keys and values of one forward pass. Nothing came before them.

    With gradient checkpointing the backward pass runs the layer again, which changes nothing.
    """

    def update(self, key_states, value_states, *args, **kwargs):
        self.keys, self.values = key_states, value_states
        return key_states, value_states


class SharedLayer(DynamicLayer):
    """Keys and values (1, heads, tokens, width) that every row of a batch continues.

    Args:
        grows: whether the continuation is kept for the next pass, as `generate` needs it.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, grows: bool):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.grows = keys, values, grows

    def update(self, key_states, value_states, *args, **kwargs):
        batch = key_states.shape[0]
        keys = torch.cat([self.keys.expand(batch, -1, -1, -1), key_states], dim=-2)
        values = torch.cat([self.values.expand(batch, -1, -1, -1), value_states], dim=-2)
        if self.grows:
            self.keys, self.values = keys, values
        return keys, values


def shared_cache(prompts: Sequence[States], grows: bool = False) -> Cache:
    """The cache in which every row of a batch finds all these prompts, one after the other.

    Which of them a token sees is for the attention mask to say.
    """
    layers = []
    for states in zip(*prompts, strict=True):
        keys, values = (torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0] for parts in zip(*states, strict=True))
        layers.append(SharedLayer(keys, values, grows))
    return Cache(layers=layers)


def shared_prompts(language_model, prompts: Sequence[Prompt], device: torch.device) -> list[States]:
    """The states of each prompt, by one forward pass with gradients where they are enabled.

    Prompts are rows, padded on the right, where causal attention does not see the padding.

    Raises:
        ValueError: the language model does not keep keys and values (a state-space model), or gradient checkpointing
            that cuts them off.
    """
    longest = max(map(len, prompts))
    rows = [[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in prompts]
    cache = Cache(layer_class_to_replicate=PromptLayer)
    language_model(input_ids=torch.tensor(rows, device=device), past_key_values=cache, use_cache=True)
    layers = [layer for layer in cache.layers if layer.keys is not None]
    if len(layers) < language_model.config.num_hidden_layers:
        raise ValueError(
            "prompt_order='text_first' shares the keys and values of attention, and a "
            f"{language_model.config.model_type} has layers without them: use prompt_order='image_first'."
        )
    trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in language_model.parameters())
    if trained and not layers[-1].keys.requires_grad:
        raise ValueError(
            "prompt_order='text_first' needs gradient checkpointing without reentrance: set "
            "activation_checkpointing_kwargs: {use_reentrant: false}."
        )
    return [
        [(layer.keys[[row], :, : len(prompt)], layer.values[[row], :, : len(prompt)]) for layer in layers]
        for row, prompt in enumerate(prompts)
    ]


@contextmanager
def caches_kept(language_model) -> Iterator[None]:
    """Context in which checkpointed layers get their cache: those of this file may be run again."""
    layers = [module for module in language_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer._can_checkpoint_with_cache = True
    try:
        yield
    finally:
        for layer in layers:
            del layer._can_checkpoint_with_cache


def computation(language_model, device: torch.device) -> tuple:
    """What the states of a prompt depend on: equal as long as nobody changes it.

    Covered are weights that are replaced, moved, converted or written in place, adapters that are switched, merged or
    scaled, the attention backend, and autocast. A write that PyTorch does not count (through `.data`) is not seen.
    """
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    seen = [device, language_model.config._attn_implementation, autocast]
    for module in language_model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            seen += [] if tensor is None else _contents(tensor)
        if "merged_adapters" in vars(module):  # a layer that PEFT adapts
            adapters = (tuple(module.active_adapters), tuple(module.merged_adapters), module.disable_adapters)
            seen += [adapters, tuple(sorted(getattr(module, "scaling", {}).items()))]
    return tuple(seen)


def _contents(tensor: torch.Tensor) -> list[tuple]:
    """Where a tensor's data lies and how often it was written; of a sharded or quantized one, each part's."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts, _ = tensor.__tensor_flatten__()
        return [each for part in parts for each in _contents(getattr(tensor, part))]
    return [(tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device)]


class PromptStore:
    """The states of the last prompts, dropped as soon as the language model computes anything else."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.computation, self.states = None, {}

    def get(self, language_model, prompts: Sequence[Prompt], device: torch.device) -> list[States]:
        """The states of `prompts`, as `shared_prompts` gives them without gradients."""
        if self.computation != computation(language_model, device):
            self.clear()
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.states]
        with torch.inference_mode(False), torch.no_grad():  # gradients may pass through what continues them later
            new = shared_prompts(language_model, missing, device) if missing else []
        states = {**self.states, **dict(zip(missing, new, strict=True))}
        self.computation = computation(language_model, device)  # a 4-bit layer rearranges its weight in its first pass
        latest = [prompt for prompt in states if prompt not in prompts] + list(dict.fromkeys(prompts))
        self.states = {prompt: states[prompt] for prompt in latest[-MOST_PROMPTS:]}
        return [states[prompt] for prompt in prompts]


__all__ = ["PromptStore", "caches_kept", "shared_cache", "shared_prompts"]
