"""Owner of the averaged weights: an exponential moving average of the trained weights, which is what gets saved.

The average covers trained weights and the model's floating-point statistics (batch norm), but not frozen weights: with
LoRA, only the adapters. To use it, the average and the trained weights swap places (`in_place`).

A checkpoint's model file holds the average, so loading a checkpoint gives the average. The file `TRAINED` beside it
holds the weights that a resumed training continues from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

TRAINED = "trained_weights.safetensors"


class AveragedWeights(TrainerCallback):
    """Exponential moving average of a model's trained weights, updated after every optimizer step.

    At step t the decay is min(decay, (1 + t) / (10 + t)), as in `tf.train.ExponentialMovingAverage` with `num_updates`:
    early on, when the weights move most, the average follows closely.

    Args:
        model: not wrapped by DDP or another engine.
        decay: share of the average that each step keeps, at least 0 and below 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.trained: dict[str, torch.Tensor] = {}  # the model's own tensors
        self.average: dict[str, torch.Tensor] = {}

    def start(self) -> None:
        """Start the average at the current weights. ValueError for 16-bit weights: small steps would vanish in them."""
        saved = self.model.state_dict().keys()
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        statistics = {
            name: buffer for name, buffer in self.model.named_buffers() if name in saved and buffer.is_floating_point()
        }
        self.trained = weights | statistics
        for name, tensor in self.trained.items():
            if tensor.dtype != torch.float32:
                raise ValueError(
                    f"average_decay needs trained weights in float32, and {name} is {tensor.dtype}: set bf16: true "
                    "(for a quantized model bf16: false), or turn averaging off (average_decay: 0)."
                )
        self.average = {name: tensor.detach().clone() for name, tensor in self.trained.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move(list(self.average.values()), list(self.trained.values()), step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the model holds the average and `average` the trained weights; nothing is copied.

        Do not enter it between a forward pass and its backward pass, which would use the wrong weights.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, tensor in self.trained.items():
            tensor.data, self.average[name].data = self.average[name].data, tensor.data
        torch.clear_autocast_cache()  # it holds 16-bit copies of the swapped weights

    def save_trained(self, folder: Path) -> None:
        """Write the trained weights beside a checkpoint's model file, which holds the average."""
        save_file({name: tensor.detach().contiguous() for name, tensor in self.trained.items()}, folder / TRAINED)

    def load_trained(self, folder: Path) -> None:
        """Load what `save_trained` wrote into the model. ValueError if the checkpoint was saved without an average."""
        if not (folder / TRAINED).is_file():
            raise ValueError(f"{folder} has no averaged weights: resume without average_decay, as it was trained.")
        trained = load_file(folder / TRAINED)
        with torch.no_grad():
            for name, tensor in self.trained.items():
                tensor.copy_(trained[name])
