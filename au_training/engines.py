"""What FSDP and DeepSpeed need around the model: whole weights for scoring, and its own class for saving."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from trl.models import unwrap_model_for_generation


@contextmanager
def whole_model(trainer) -> Iterator[torch.nn.Module]:
    """The model with whole weights in every process, which may then run it on any number of images.

    With sharded weights, each layer would wait for processes that have no images left.
    """
    if trainer.is_deepspeed_enabled:
        checkpointing = trainer.args.activation_checkpointing_kwargs
        with unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=checkpointing
        ) as model:
            yield model
        return
    shards = [module for module in trainer.model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False)
        module.unshard()
    yield trainer.accelerator.unwrap_model(trainer.model)
    for module in shards:
        module.set_reshard_after_forward(trainer.accelerator.state.fsdp_plugin.reshard_after_forward)
        module.reshard()


def gather_weight(module: torch.nn.Module) -> None:
    """Gather a layer's weight under FSDP, for code that reads it without calling the layer."""
    if isinstance(module, FSDPModule):
        module.unshard()


@contextmanager
def plain_class(model: torch.nn.Module, state_dict: dict | None) -> Iterator[None]:
    """Prepare a model under FSDP2 for saving: it gets its own class, and `state_dict` loses its tied weights.

    FSDP2 replaces the class, and PyTorch's code would be saved in place of the model's. It gathers tied weights twice.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    for name in model.all_tied_weights_keys:
        state_dict.pop(name, None)
    sharded = type(model)
    model.__class__ = sharded.__bases__[1]
    yield
    model.__class__ = sharded
