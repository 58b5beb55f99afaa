"""Owner of the averaged weights: the exponential moving average of what is trained, which is what gets saved.

The average holds what is trained and the model's floating-point statistics (batch norm), not what is frozen: of LoRA on
a large model the adapters alone. To read with it, the average and the trained weights change places (`in_place`).

A checkpoint's model file is the average, so whatever loads a checkpoint gets it; `TRAINED`, beside it, holds the
weights that training goes on from.
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
    """Exponential moving average of a model's trained weights, moved after every optimizer step.

    At step t the decay is min(decay, (1 + t) / (10 + t)), as `tf.train.ExponentialMovingAverage` has it with
    `num_updates`: early on, when the weights move most, the average follows closely.

    Args:
        model: not wrapped by an engine.
        decay: share of the average that a step keeps, from 0 to below 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.trained: dict[str, torch.Tensor] = {}  # in use: the model's own tensors
        self.average: dict[str, torch.Tensor] = {}

    def start(self) -> None:
        """Begin with the weights as they are. ValueError where they have 16 bits, in which small steps would vanish."""
        saved = self.model.state_dict().keys()
        weights = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        statistics = {
            name: each for name, each in self.model.named_buffers() if name in saved and each.is_floating_point()
        }
        self.trained = weights | statistics
        halves = next(((name, each.dtype) for name, each in self.trained.items() if each.dtype != torch.float32), None)
        if halves:
            raise ValueError(
                f"average_decay needs what is trained in float32, and {halves[0]} is {halves[1]}: set bf16: true (of a "
                "quantised model bf16: false), or leave averaging out (average_decay: 0)."
            )
        self.average = {name: each.detach().clone() for name, each in self.trained.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move(list(self.average.values()), list(self.trained.values()), step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average meanwhile, and the average the trained weights: nothing is copied.

        Not between a forward pass and its backward pass, which would read the other weights.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, live in self.trained.items():
            live.data, self.average[name].data = self.average[name].data, live.data
        torch.clear_autocast_cache()  # keeps weights in 16 bits that are now others

    def save_trained(self, folder: Path) -> None:
        """Write the trained weights beside a checkpoint's model file, which is the average."""
        save_file({name: each.detach().contiguous() for name, each in self.trained.items()}, folder / TRAINED)

    def load_trained(self, folder: Path) -> None:
        """Put what `save_trained` wrote into the model. ValueError where a checkpoint was saved without an average."""
        if not (folder / TRAINED).is_file():
            raise ValueError(f"{folder} has no averaged weights: resume without average_decay, as it was trained.")
        trained = load_file(folder / TRAINED)
        with torch.no_grad():
            for name, live in self.trained.items():
                live.copy_(trained[name])
