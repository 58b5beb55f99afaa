"""Train the network that places the points of faces, assets/face_points.onnx (au_faces/points.py).

    python maintenance/fit_face_points.py --photographs fairface/*.parquet --work runs/face-points \\
        --out assets/face_points.onnx

It learns from photographs, measured by MediaPipe's face landmarker, and from heads that the renderer draws. Photographs
come as Parquet files with the columns `image` and `file`; 1,000 of them, chosen by a hash of `file`, are left out and
scored at the end, as are the last 500 heads. `--work` keeps what was measured and drawn, for the next run.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from crop_networks import Block, cut, export, kept, train, turned, vary
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from au_llava.au_faces.crop import cut_square
from au_llava.au_faces.landmarks import Landmarker
from au_llava.au_faces.points import SIDE, TEMPLATE, fit_frame
from au_llava.au_readers.source import Picture
from au_llava.au_rendering.activations import sample_activations
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import place_points
from au_llava.au_rendering.view import View, sample_view
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.progress import track

HELD_OUT, HELD_OUT_HEADS = 1000, 500
# MediaPipe's landmarks: corners of the right eye, of the left eye, tip of the nose, corners of the mouth.
EYES, OTHERS = ((33, 133), (362, 263)), (1, 61, 291)
HEAD_SIZE = 112  # pixels of a drawn head
WIDE = 1.75  # side of a stored crop, in sides of the crop that the network looks at
STORED = 112  # its pixels
MIRRORED = [1, 0, 2, 4, 3]  # the points of a mirrored face
HEADS_SHARE, FAR_SHARE, NEAR_SHARE = 0.2, 0.12, 0.4  # of a batch: heads; crops beside the face; nearly right crops
EYE_DISTANCE = TEMPLATE[1, 0] - TEMPLATE[0, 0]


@dataclass(frozen=True)
class Faces:
    """Wide crops of faces, aligned by their true points."""

    images: torch.Tensor  # (N, 3, STORED, STORED) uint8
    points: torch.Tensor  # (N, 5, 2), in sides of the crop that the network looks at
    directions: torch.Tensor  # (N, 4): x and y of the directions ahead and up, in the crop; y points up

    def __getitem__(self, rows) -> "Faces":
        return Faces(self.images[rows], self.points[rows], self.directions[rows])

    def __len__(self) -> int:
        return len(self.images)


def align(image: Image.Image, points: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row of `Faces` from a picture, its points (5, 2) in pixels, and the head's rotation (3, 3) in the picture."""
    edge, corner = fit_frame(points)
    start = corner - edge * (1 + 1j) * (WIDE - 1) / 2
    along = edge / abs(edge)
    scale = abs(edge) * WIDE / STORED
    wide = cut_square(image, (start.real, start.imag), (along.real, along.imag), scale, STORED)
    inside = (points @ [1, 1j] - corner) / edge
    ahead, up = along * (rotation[0, 2] + 1j * rotation[1, 2]), along * (rotation[0, 1] + 1j * rotation[1, 1])
    directions = np.array([ahead.real, ahead.imag, up.real, up.imag])
    return np.asarray(wide), np.stack([inside.real, inside.imag], axis=1), directions


def photographs(paths: Sequence[Path]) -> Iterator[tuple]:
    """For each photograph its name and a row of `Faces`; None for the row where MediaPipe finds no face."""
    landmarker = Landmarker()
    for path in paths:
        table = pq.read_table(path, columns=["image", "file"])
        for name, image in zip(table["file"].to_pylist(), table["image"], strict=True):
            photograph = Picture(name, content=image.as_py()["bytes"]).open()
            measured = landmarker(photograph)
            row = None
            if measured is not None:
                eyes = [measured.landmarks[list(corners)].mean(axis=0) for corners in EYES]
                points = np.array([*eyes, *measured.landmarks[list(OTHERS)]], float)
                row = align(photograph, points, measured.rotation)
            yield name, row


def head(seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row of `Faces`: a drawn head, turned further than those that AUs are learned from."""
    subject = sample_subject(seed, number)
    rng = np.random.default_rng([seed, number])
    strengths = sample_activations(rng)
    view: View = replace(
        sample_view(rng),
        yaw=float(np.clip(rng.normal(0, 25), -65, 65)),
        pitch=float(np.clip(rng.normal(0, 15), -40, 40)),
        roll=float(np.clip(rng.normal(0, 14), -50, 50)),
        scale=float(rng.uniform(0.5, 0.85)),
        shift=(float(rng.normal(0, 0.05)), float(rng.uniform(0.02, 0.12))),
    )
    pixels, _ = picture(subject, strengths, view, HEAD_SIZE, rng)
    points, rotation = place_points(subject.identity, subject.movement(strengths), view, HEAD_SIZE)
    return align(Image.fromarray(pixels), points, rotation)


def gather(arguments: argparse.Namespace) -> tuple[Faces, Faces, list[str], int]:
    """Photographs, heads, the names of the photographs, and how many show no face; kept in the folder `--work`."""

    def measured() -> dict[str, np.ndarray]:
        total = sum(pq.ParquetFile(path).metadata.num_rows for path in arguments.photographs)
        rows = list(track(photographs(arguments.photographs), "Measuring photographs", total=total))
        found = [(name, *row) for name, row in rows if row is not None]
        return _columns(found) | {"missed": np.array(len(rows) - len(found))}

    def drawn() -> dict[str, np.ndarray]:
        numbers = track(range(arguments.heads), "Drawing heads")
        return _columns([(str(number), *head(arguments.seed, number)) for number in numbers])

    real = kept(arguments.work / "photographs.npz", measured)
    heads = kept(arguments.work / "heads.npz", drawn)
    return _faces(real), _faces(heads), real["names"].tolist(), int(real["missed"])


def _columns(rows: Sequence[tuple]) -> dict[str, np.ndarray]:
    names, images, points, directions = zip(*rows, strict=True)
    numbers = {"points": np.stack(points), "directions": np.stack(directions)}
    return {"names": np.array(names), "images": np.stack(images)} | {
        name: array.astype(np.float32) for name, array in numbers.items()
    }


def _faces(stored: dict[str, np.ndarray]) -> Faces:
    images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous()
    return Faces(images, torch.from_numpy(stored["points"]), torch.from_numpy(stored["directions"]))


def look(faces: Faces, scale: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the network sees if its guess is wrong by these (N,) scales, (N,) radians clockwise and (N, 2) sides.

    Returns:
        crops (N, 3, SIDE, SIDE) in 0 to 255, and points and directions of the faces in them.
    """
    crops = cut(faces.images, STORED / WIDE, (SIDE, SIDE), SIDE, scale, turn, shift)
    cos, sin = torch.cos(turn), torch.sin(turn)
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1) / scale[:, None, None]
    points = (faces.points - 0.5 - shift[:, None]) @ back + 0.5
    return crops, points, turned(faces.directions.view(-1, 2, 2), turn).flatten(1)


class PointsNetwork(nn.Module):
    """Crops (N, 3, 64, 64) in 0 to 255 -> (N, 15): points less `TEMPLATE`, directions, log odds that it is a face."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(Block(16, 24, 2), Block(24, 24), Block(24, 48, 2), Block(48, 48), Block(48, 80, 2), Block(80, 80)),
            *(nn.Flatten(), nn.Linear(80 * 16, 128), nn.ReLU(), nn.Linear(128, 15)),
        )

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.layers(crops / 127.5 - 1)


def draw_batch(real: Faces, heads: Faces, size: int) -> tuple[torch.Tensor, ...]:
    """Crops as `look` gives them, varied, with points, directions, and whether each shows a face in its place."""
    rows = [torch.randint(len(faces), (count,)) for faces, count in _shares(real, heads, size)]
    faces = [faces[rows] for faces, rows in zip((real, heads), rows, strict=True)]
    faces = Faces(*(torch.cat(parts) for parts in zip(*(vars(part).values() for part in faces), strict=True)))
    scale, turn, shift = torch.exp(torch.randn(size) * 0.14), torch.randn(size) * 0.2, torch.randn(size, 2) * 0.07
    near = torch.rand(size) < NEAR_SHARE  # as in the second pass
    scale[near], turn[near], shift[near] = scale[near] ** 0.3, turn[near] * 0.2, shift[near] * 0.3
    far = torch.rand(size) < FAR_SHARE
    direction, distance = torch.rand(size) * 2 * torch.pi, 0.65 + 0.5 * torch.rand(size)
    aside = torch.stack([torch.cos(direction), torch.sin(direction)], 1) * distance[:, None]
    scale[far], shift[far] = torch.exp(torch.randn(size) * 0.3)[far], aside[far]
    crops, points, directions = look(faces, scale, turn, shift)
    mirrored = torch.rand(size) < 0.5
    crops[mirrored] = crops[mirrored].flip(3)
    points[mirrored] = points[mirrored][:, MIRRORED] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    directions[mirrored] *= torch.tensor([-1.0, 1.0, -1.0, 1.0])
    return vary(crops), points, directions, ~far


def _shares(real: Faces, heads: Faces, size: int) -> tuple[tuple[Faces, int], tuple[Faces, int]]:
    of_heads = round(HEADS_SHARE * size)
    return (real, size - of_heads), (heads, of_heads)


def loss_of(network: PointsNetwork, real: Faces, heads: Faces, size: int) -> torch.Tensor:
    """The loss of a batch."""
    crops, points, directions, is_face = draw_batch(real, heads, size)
    answer = network(crops)
    placed = answer[is_face, :10].view(-1, 5, 2) + torch.tensor(TEMPLATE, dtype=torch.float32)
    return (
        10 * F.smooth_l1_loss(placed, points[is_face], beta=0.01)
        + 0.5 * F.smooth_l1_loss(answer[is_face, 10:14], directions[is_face], beta=0.05)
        + 0.05 * F.binary_cross_entropy_with_logits(answer[:, 14], is_face.float())
    )


@torch.no_grad()
def errors(network: PointsNetwork, faces: Faces) -> dict[str, torch.Tensor]:
    """(N,) errors from guesses about as wrong as YuNet's: of the worse eye in eye distances, of angles in degrees."""
    noise = torch.Generator().manual_seed(1)
    count = len(faces)
    scale = torch.exp(torch.randn(count, generator=noise) * 0.08)
    turn, shift = torch.randn(count, generator=noise) * 0.1, torch.randn(count, 2, generator=noise) * 0.04
    crops, points, directions = look(faces, scale, turn, shift)
    answer = network(crops)
    placed = answer[:, :10].view(-1, 5, 2) + torch.tensor(TEMPLATE, dtype=torch.float32)
    off = (placed - points).norm(dim=2) * scale[:, None] / EYE_DISTANCE
    sines = (answer[:, 10:12].clamp(-1, 1), directions[:, :2].clamp(-1, 1))
    angles = torch.rad2deg(torch.asin(sines[0]) - torch.asin(sines[1])).abs()
    return {"worse eye": off[:, :2].max(dim=1)[0], "yaw": angles[:, 0], "pitch": angles[:, 1]}


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="Parquet files")
    parser.add_argument("--work", type=Path, required=True, help="folder for what was measured and drawn")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--heads", type=int, default=8000, help="heads to draw (default: 8000)")
    parser.add_argument("--steps", type=int, default=4000, help="batches to train on (default: 4000)")
    parser.add_argument("--batch-size", type=int, default=192, help="faces in a batch (default: 192)")
    parser.add_argument("--seed", type=int, default=77, help="of heads and training (default: 77)")
    arguments = parser.parse_args(words)

    def main() -> None:
        torch.manual_seed(arguments.seed)
        real, heads, names, missed = gather(arguments)
        order = sorted(range(len(names)), key=lambda row: hashlib.sha256(names[row].encode()).hexdigest())
        if len(order) <= HELD_OUT or len(heads) <= HELD_OUT_HEADS:
            raise ValueError(f"more than {HELD_OUT} photographs and {HELD_OUT_HEADS} heads are needed to hold out.")
        seen = real[order[HELD_OUT:]], heads[: len(heads) - HELD_OUT_HEADS]
        network = train(PointsNetwork(), lambda each: loss_of(each, *seen, arguments.batch_size), arguments.steps)
        export(network, {"crops": torch.zeros(1, 3, SIDE, SIDE)}, arguments.out)
        table = Table("held out", "error", "median", "nine in ten below", title="One pass, from a guess like YuNet's")
        for name, faces in (("photographs", real[order[:HELD_OUT]]), ("heads", heads[-HELD_OUT_HEADS:])):
            for kind, values in errors(network, faces).items():
                table.add_row(name, kind, f"{values.median():.3f}", f"{values.quantile(0.9):.3f}")
        Console().print(table)
        print(f"Written: {arguments.out}; MediaPipe found no face in {missed} of {missed + len(names)} photographs")

    return run_command("fit_face_points.py", main)


if __name__ == "__main__":
    sys.exit(run())
