"""Train the network that reads where eyes look, assets/gaze.onnx (au_faces/gaze.py).

    python maintenance/fit_gaze.py --work runs/gaze --out assets/gaze.onnx

It learns from the eyes of heads that the renderer draws; the last 600 are left out and scored at the end. `--work`
keeps what was drawn, for the next run. `benchmarks/gaze.py` measures it as it is used.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from crop_networks import Block, cut, export, kept, train, turned, vary
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from au_llava.au_faces.gaze import HEIGHT, UNIT, WIDTH, ahead_in_strip, cut_strip
from au_llava.au_faces.points import eyeballs
from au_llava.au_rendering.activations import SHUT, sample_activations
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import place_points
from au_llava.au_rendering.view import sample_view
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.progress import track

HELD_OUT = 600
HEAD_SIZE = 112  # pixels of a drawn head; its picture shows little but the eyes
STORED = 64  # pixels of a stored strip between the eyes
WIDE, HIGH = 144, 72  # its pixels
STRAIGHT, BLINKING = 0.25, 0.3  # shares of heads that look about straight ahead, and whose lids are anywhere


@dataclass(frozen=True)
class Eyes:
    """Wide strips with both eyes, aligned by their true places."""

    strips: torch.Tensor  # (N, 3, HIGH, WIDE) uint8
    ahead: torch.Tensor  # (N, 2) where the face points in the strip, as `ahead_in_strip` gives it
    gaze: torch.Tensor  # (N, 2) to the person's left and up, from -1 to 1
    seen: torch.Tensor  # (N,) bool, whether an eye is open

    def __getitem__(self, rows) -> "Eyes":
        return Eyes(*(column[rows] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.strips)


def head(seed: int, number: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float], bool]:
    """A row of `Eyes`: those of a drawn head, turned further than the heads that AUs are learned from."""
    rng = np.random.default_rng([seed, number])
    subject, strengths = sample_subject(seed, number), sample_activations(rng)
    if rng.random() < BLINKING:
        shut = rng.uniform(0, 1)
        strengths = {label: value for label, value in strengths.items() if label[:-1] not in ("AU5", "AU7")}
        strengths |= {f"AU43{side}": float(np.clip(shut + rng.normal(0, 0.03), 0, 1)) for side in "LR"}
    gaze = rng.normal(0, 0.1, 2) if rng.random() < STRAIGHT else rng.uniform(-1, 1, 2)
    view = replace(
        sample_view(rng),
        yaw=float(np.clip(rng.normal(0, 22), -55, 55)),
        pitch=float(np.clip(rng.normal(0, 13), -35, 35)),
        roll=float(np.clip(rng.normal(0, 10), -40, 40)),
        scale=float(rng.uniform(1.2, 1.7)),
        shift=(0.0, 0.15),
        gaze=tuple(gaze.tolist()),
        resolution=float(rng.uniform(0.2, 1.0)) if rng.random() < 0.5 else 1.0,
    )
    pixels, _ = picture(subject, strengths, view, HEAD_SIZE, rng)
    points, rotation = place_points(subject.identity, subject.movement(strengths), view, HEAD_SIZE)
    eyes = eyeballs(*points[:2])
    strip = cut_strip(Image.fromarray(pixels), eyes, STORED, WIDE, HIGH)
    seen = min(strengths.get("AU43L", 0.0), strengths.get("AU43R", 0.0)) < SHUT
    return strip, ahead_in_strip(rotation, eyes), view.gaze, seen


def draw_heads(seed: int, count: int) -> dict[str, np.ndarray]:
    """The columns of `Eyes`, as they are kept."""
    strips, ahead, gaze, seen = zip(*(head(seed, number) for number in track(range(count), "Drawing")), strict=True)
    return {"strips": np.stack(strips), "ahead": np.stack(ahead), "gaze": np.array(gaze), "seen": np.array(seen)}


class GazeNetwork(nn.Module):
    """Strips (N, 3, HEIGHT, WIDTH) in 0 to 255 and ahead (N, 2) -> (N, 3): gaze, log odds that an eye is open."""

    def __init__(self):
        super().__init__()
        self.eye = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(Block(16, 24, 2), Block(24, 24), Block(24, 40, 2), Block(40, 40), nn.Flatten()),
        )
        features = 40 * (HEIGHT // 8) * (WIDTH // 16)
        self.head = nn.Sequential(nn.Linear(2 * features + 2, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, strips: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
        strips = strips / 127.5 - 1
        right, left = strips[..., : WIDTH // 2], strips[..., WIDTH // 2 :].flip(3)  # so that both look alike
        return self.head(torch.cat([self.eye(right), self.eye(left), ahead], 1))


def look(eyes: Eyes, scale: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network sees if eyes are placed wrong, see `cut`: strips in 0 to 255, and the directions ahead there."""
    strips = cut(eyes.strips, STORED, (HEIGHT, WIDTH), UNIT, scale, turn, shift)
    return strips, turned(eyes.ahead[:, None], turn)[:, 0]


def draw_batch(eyes: Eyes, size: int) -> tuple[torch.Tensor, ...]:
    """Strips, varied, and directions ahead, both about as wrong as face points are; gaze; whether an eye is open."""
    eyes = eyes[torch.randint(len(eyes), (size,))]
    wrong = torch.exp(torch.randn(size) * 0.05), torch.randn(size) * 0.05, torch.randn(size, 2) * 0.04
    strips, ahead = look(eyes, *wrong)
    ahead, gaze = ahead + torch.randn(size, 2) * 0.08, eyes.gaze.clone()
    mirrored = torch.rand(size) < 0.5
    strips[mirrored] = strips[mirrored].flip(3)
    for column in (ahead, gaze):
        column[mirrored, 0] *= -1
    return vary(strips), ahead, gaze, eyes.seen


def loss_of(network: GazeNetwork, eyes: Eyes, size: int) -> torch.Tensor:
    """The loss of a batch."""
    strips, ahead, gaze, seen = draw_batch(eyes, size)
    answer = network(strips, ahead)
    return F.smooth_l1_loss(answer[seen, :2], gaze[seen], beta=0.1) + 0.1 * F.binary_cross_entropy_with_logits(
        answer[:, 2], seen.float()
    )


@torch.no_grad()
def scores(network: GazeNetwork, eyes: Eyes) -> dict[str, float]:
    """PCC of the gaze of open eyes, to the left and up, and AUC of whether they are open."""
    count = len(eyes)
    answer = network(*look(eyes, torch.ones(count), torch.zeros(count), torch.zeros(count, 2))).numpy()
    seen = eyes.seen.numpy()
    pairs = zip(("to the left", "up"), answer[seen, :2].T, eyes.gaze[eyes.seen].numpy().T, strict=True)
    return {f"PCC {way}": np.corrcoef(*both)[0, 1] for way, *both in pairs} | {
        "AUC open": roc_auc_score(seen, answer[:, 2])
    }


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for what was drawn")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--heads", type=int, default=12000, help="heads to draw (default: 12000)")
    parser.add_argument("--steps", type=int, default=2600, help="batches to train on (default: 2600)")
    parser.add_argument("--batch-size", type=int, default=192, help="heads in a batch (default: 192)")
    parser.add_argument("--seed", type=int, default=122, help="of heads and training (default: 122)")
    arguments = parser.parse_args(words)

    def main() -> None:
        torch.manual_seed(arguments.seed)
        stored = kept(arguments.work / "eyes.npz", lambda: draw_heads(arguments.seed, arguments.heads))
        strips = torch.from_numpy(stored["strips"]).permute(0, 3, 1, 2).contiguous()
        numbers = (torch.from_numpy(stored[name]).float() for name in ("ahead", "gaze"))
        eyes = Eyes(strips, *numbers, torch.from_numpy(stored["seen"]))
        if len(eyes) <= HELD_OUT:
            raise ValueError(f"more than {HELD_OUT} heads are needed to hold out.")
        seen = eyes[: len(eyes) - HELD_OUT]
        network = train(GazeNetwork(), lambda each: loss_of(each, seen, arguments.batch_size), arguments.steps)
        export(network, {"strips": torch.zeros(1, 3, HEIGHT, WIDTH), "ahead": torch.zeros(1, 2)}, arguments.out)
        table = Table("held-out heads", "value", title="Eyes where they are")
        for name, value in scores(network, eyes[-HELD_OUT:]).items():
            table.add_row(name, f"{value:.3f}")
        Console().print(table)
        print(f"Written: {arguments.out}")

    return run_command("fit_gaze.py", main)


if __name__ == "__main__":
    sys.exit(run())
