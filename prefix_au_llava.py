"""Prompts that come before the image: their keys and values, computed once and shared by images, batches and branches.

With `prompt_order="text_first"` the text of a prompt does not see the image, so that a causal language model gives its
tokens the same keys and values for every image.

- To read, `states_of` computes them and `PromptStore` keeps them between calls, as long as the language model
  computes the same. `SharedLayer` lets every row of a batch continue them, with a copy for each row only while
  its layer computes; on a CPU `KnownLayer` hands them to `TreeMask`, which needs no copies.
- To learn, they are computed in the pass that continues them, as further rows of the batch (`with_prompt_rows`), so
  that gradients, checkpointing and sharded weights see one ordinary pass. `PromptRowsLayer` hands their keys and values
  to every row; on a CPU `TreeMask` attends to them without copies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

Prompt = tuple[int, ...]  # token ids
States = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values (1, heads, tokens, width), of each layer or prompt

MOST_PROMPTS = 8  # kept by a `PromptStore`; the oldest goes first


class SharedLayer(DynamicLayer):
    """Keys and values of prompts, one after the other, that every row of a batch continues in one pass.

    Args:
        states: keys and values (1, heads, tokens, width) of each prompt. They are joined only while the layer computes.
    """

    def __init__(self, states: States):
        super().__init__()
        self.states = states

    def update(self, key_states, value_states, *args, **kwargs):
        batch = key_states.shape[0]
        keys, values = (
            torch.cat([*(part.expand(batch, -1, -1, -1) for part in parts), new], dim=-2)
            for parts, new in zip(zip(*self.states, strict=True), (key_states, value_states), strict=True)
        )
        return keys, values


class KnownLayer(SharedLayer):
    """The same without a copy for each row: attention takes the prompts from the `TreeMask`.

    Args:
        mask: the `TreeMask` of the pass. A layer asks its cache just before it attends.
    """

    def __init__(self, states: States, mask):
        super().__init__(states)
        self.mask = mask

    def update(self, key_states, value_states, *args, **kwargs):
        self.mask.known = [torch.cat(parts, dim=-2)[0] for parts in zip(*self.states, strict=True)]
        return key_states, value_states


class GrowingLayer(DynamicLayer):
    """Keys and values (1, heads, tokens, width) of a prompt that rows of any number continue, token by token."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states, value_states, *args, **kwargs):
        shape = (key_states.shape[0], -1, -1, -1)
        self.keys, self.values = self.keys.expand(shape), self.values.expand(shape)
        return super().update(key_states, value_states, *args, **kwargs)


def shared_cache(prompts: Sequence[States], mask=None) -> Cache:
    """The cache in which every row of a batch finds all these prompts; which a token sees is for the mask to say.

    Args:
        mask: the `TreeMask` that attends to them, or None for any other attention.
    """
    layers = map(list, zip(*prompts, strict=True))
    return Cache(layers=[SharedLayer(each) if mask is None else KnownLayer(each, mask) for each in layers])


def growing_cache(prompt: States) -> Cache:
    """The cache in which every row continues this prompt, for `generate` and the like."""
    return Cache(layers=[GrowingLayer(keys, values) for keys, values in prompt])


def states_of(language_model, prompt: Prompt, device: torch.device) -> States:
    """Keys and values (1, heads, tokens, width) of each layer, by a forward pass over one prompt.

    Raises:
        ValueError: the language model does not keep keys and values in every layer (a state-space model).
    """
    cache = DynamicCache()
    language_model(input_ids=torch.tensor([prompt], device=device), past_key_values=cache, use_cache=True)
    layers = [layer for layer in cache.layers if layer.get_seq_length() == len(prompt)]
    if len(layers) < language_model.config.num_hidden_layers:
        raise ValueError(
            "prompt_order='text_first' shares the keys and values of attention, and a "
            f"{language_model.config.model_type} has layers without them: use prompt_order='image_first'."
        )
    return [(layer.keys, layer.values) for layer in layers]


class PromptRowsLayer(DynamicLayer):
    """Puts the keys and values of the first `rows` rows of a batch, one after the other, before those of every row.

    It remembers nothing, so that a checkpointed layer may be run again.
    """

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def update(self, key_states, value_states, *args, **kwargs):
        return self._after_prompts(key_states), self._after_prompts(value_states)

    def _after_prompts(self, states: torch.Tensor) -> torch.Tensor:
        prompts = states[: self.rows].transpose(0, 1).flatten(1, 2)  # (heads, rows * tokens, width)
        return torch.cat([prompts.expand(states.shape[0], -1, -1, -1), states], dim=-2)


def with_prompt_rows(
    prompts: Sequence[Prompt], input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put prompts into a batch as its first rows, cut into pieces as long as its rows.

    Args:
        input_ids: (batch, N). positions: (batch, N).
        mask: (batch or 1, 1, N, P + N), True = may attend; the P tokens of all prompts come first.

    Returns:
        the number of rows R for the prompts, then `input_ids` and `positions` (R + batch, N) and the mask
        (R + batch, 1, N, R * N + N) for `PromptRowsLayer` or `TreeMask`.
    """
    device, (batch, length) = mask.device, input_ids.shape
    lengths = torch.tensor(list(map(len, prompts)))
    rows = -(-int(lengths.sum()) // length)
    padding = rows * length - int(lengths.sum())
    texts = torch.tensor([token for prompt in prompts for token in prompt] + [prompts[0][0]] * padding)
    places = torch.cat([torch.arange(count) for count in (*lengths.tolist(), padding)])
    owner = torch.repeat_interleave(torch.arange(len(prompts) + 1), torch.tensor([*lengths, padding]))
    seen = (owner[:, None] == owner) & (places[:, None] >= places)  # padding is one more prompt, which nobody sees
    seen = torch.nn.functional.pad(seen.view(rows, 1, length, -1), (0, length)).to(device)
    before, own = mask.expand(batch, -1, -1, -1).split([mask.shape[-1] - length, length], dim=-1)
    mask = torch.cat([torch.nn.functional.pad(before, (0, padding)), own], dim=-1)
    return (
        rows,
        torch.cat([texts.view(rows, length).to(device), input_ids]),
        torch.cat([seen, mask]),
        torch.cat([places.view(rows, length).to(device), positions]),
    )


@contextmanager
def caches_kept(language_model) -> Iterator[None]:
    """Context in which checkpointed layers get their cache: a `PromptRowsLayer` gives the same when it is run again.

    Raises:
        ValueError: checkpointing by a Transformers that always takes the cache away.
    """
    layers = [
        module
        for module in language_model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.training and module.gradient_checkpointing
    ]
    if layers and not hasattr(layers[0], "_can_checkpoint_with_cache"):
        raise ValueError(
            "prompt_order='text_first' with activation_checkpointing needs a newer Transformers: 5.23 will do."
        )
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
    scaled, and autocast. A write that PyTorch does not count (through `.data`) is not seen.
    """
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    seen = [device, autocast]
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
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        return [each for part in parts if isinstance(part, torch.Tensor) for each in _contents(part)]
    return [(tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device)]


class PromptStore:
    """The states of the last prompts, dropped as soon as the language model computes anything else."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.computation, self.states = None, {}

    def get(self, language_model, prompts: Sequence[Prompt], device: torch.device) -> list[States]:
        """The states of each of `prompts`, without gradients.

        One pass for each that is new, the longest first, keeps the peak of memory low.
        """
        if self.computation != computation(language_model, device):
            self.clear()
        missing = sorted(set(prompts) - self.states.keys(), key=lambda prompt: (-len(prompt), prompt))
        with torch.inference_mode(False), torch.no_grad():  # gradients may pass through what continues them later
            new = {prompt: states_of(language_model, prompt, device) for prompt in missing}
        states = {**self.states, **new}
        self.computation = computation(language_model, device)  # a 4-bit layer rearranges its weight in its first pass
        latest = [prompt for prompt in states if prompt not in prompts] + list(dict.fromkeys(prompts))
        self.states = {prompt: states[prompt] for prompt in latest[-MOST_PROMPTS:]}
        return [states[prompt] for prompt in prompts]


__all__ = ["PromptRowsLayer", "PromptStore", "caches_kept", "growing_cache", "shared_cache", "with_prompt_rows"]
