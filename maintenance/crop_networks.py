"""What the networks that look at crops of a face share: cutting and varying crops, a block, training, the files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from au_llava.au_runs.files import replacing
from au_llava.au_runs.progress import progress_bar


def cut(
    images: torch.Tensor,
    stored: float,
    size: tuple[int, int],
    unit: float,
    scale: torch.Tensor,
    turn: torch.Tensor,
    shift: torch.Tensor,
) -> torch.Tensor:
    """Crops around the middle of pictures, from places that are a little wrong.

    Args:
        images: (N, 3, H, W) in 0 to 255.
        stored: pixels of `images` in a unit of length.
        size: (height, width) of the crops.
        unit: their pixels in a unit of length.
        scale, turn, shift: (N,) factors, (N,) radians clockwise and (N, 2) units by which the crops are off.

    Returns:
        (N, 3, height, width) float32.
    """
    rows, columns = ((torch.arange(side) + 0.5 - side / 2) / unit for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    across, down = scale * torch.cos(turn), scale * torch.sin(turn)
    column = across[:, None, None] * x - down[:, None, None] * y + shift[:, :1, None]
    row = down[:, None, None] * x + across[:, None, None] * y + shift[:, 1:, None]
    halves = torch.tensor([images.shape[3], images.shape[2]]) / 2 / stored
    grid = torch.stack([column, row], -1) / halves
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def turned(directions: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """(N, K, 2) directions, x right and y up, as they are in crops that are turned by (N,) radians clockwise."""
    cos, sin = torch.cos(turn), torch.sin(turn)
    return directions @ torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)


def vary(crops: torch.Tensor) -> torch.Tensor:
    """Change saturation, brightness, contrast, color and gamma; lower the resolution of some; add noise and patches."""
    count, size = len(crops), crops.shape[2:]
    gray = crops.mean(1, keepdim=True)
    saturation = torch.rand(count, 1, 1, 1) * 1.3 * (torch.rand(count, 1, 1, 1) > 0.12)
    crops = gray + saturation * (crops - gray)
    crops = (crops - 128) * torch.exp(torch.randn(count, 1, 1, 1) * 0.25) + 128
    crops = (crops + torch.randn(count, 1, 1, 1) * 22 + torch.randn(count, 3, 1, 1) * 8).clamp(0, 255)
    crops = 255 * (crops / 255) ** torch.exp(torch.randn(count, 1, 1, 1) * 0.2)
    coarse = count // 5
    kept = int(torch.randint(16, 48, ())) / 64  # share of the pixels along a side
    small = F.interpolate(crops[:coarse], size=[round(kept * side) for side in size], mode="area")
    crops = torch.cat([F.interpolate(small, size=size, mode="bilinear"), crops[coarse:]])
    crops = crops + torch.randn_like(crops) * torch.rand(count, 1, 1, 1) * 10 * (torch.rand(count, 1, 1, 1) < 0.5)
    for number in torch.randint(count, (count // 4,)).tolist():
        height, width = torch.randint(4, 22, (2,)).tolist()
        top, left = (int(torch.randint(most - side, ())) for most, side in zip(size, (height, width), strict=True))
        crops[number, :, top : top + height, left : left + width] = torch.rand(3, 1, 1) * 255
    return crops.clamp(0, 255)


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al., 2016)."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.relu(self.path(maps) + self.shortcut(maps))


def train(network: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor], steps: int) -> nn.Module:
    """Train a network by the loss of one batch after another; returns the moving average of the weights."""
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    with progress_bar("batches") as bar:
        task = bar.add_task("training", total=steps)
        for _ in range(steps):
            loss = loss_of(network)
            if not torch.isfinite(loss):
                raise ValueError("the loss is not a number: lower the learning rate.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            bar.advance(task)
    return average.module.eval()


def export(network: nn.Module, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a network as ONNX, for any number of faces.

    Args:
        inputs: an example of each, by name; the first dimension is that of the faces.
    """
    with replacing(path) as unfinished:
        torch.onnx.export(
            network,
            tuple(inputs.values()),
            str(unfinished),
            input_names=list(inputs),
            output_names=["answers"],
            dynamic_axes={name: {0: "faces"} for name in (*inputs, "answers")},
            dynamo=False,  # OpenCV reads what the older exporter writes
        )


def kept(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which is written with what `make` gives if it is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, unfinished.open("wb") as handle:
            np.savez(handle, **make())
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
