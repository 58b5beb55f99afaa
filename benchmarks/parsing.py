"""Whether every answer can be parsed: the three decoders on faces and on images without a face.

    python prepare_data.py rendered --subjects 200 --images-per-subject 10 --seed 1 --validation 0 --test 1 \
        --out data/rendered-test
    python benchmarks/parsing.py --model . --faces data/rendered-test --images 1000

Half of the images are faces; the others are, in equal shares, noise, a single color, objects and destroyed faces. An
answer counts as read if `parse_answer` finds every AU in it. For any image, slots and constrained decoding guarantee
that, and consistent numbers: the command fails if one of them breaks the guarantee once.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from page import add_model_option, add_write_option, make_table, runner, show
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from rich.table import Table

from au_llava.action_units import FORMATS, MAIN_FORMATS, AUFormat, parse_answer
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.progress import progress_bar
from au_llava.pictures_au_llava import load_face_image
from au_llava.readings_au_llava import DECODERS

GUARANTEED = ("slots", "constrained")


# ---- Images: makers of (random generator, a face) -> image -----------------------------------------------------
def _size(rng) -> tuple[int, int]:
    return tuple(rng.integers(32, 257, 2).tolist())


def _color(rng) -> tuple[int, int, int]:
    return tuple(rng.integers(0, 256, 3).tolist())


def noise(rng, face):
    width, height = _size(rng)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def black(rng, face):
    return Image.new("RGB", _size(rng), "black")


def white(rng, face):
    return Image.new("RGB", _size(rng), "white")


def colored(rng, face):
    return Image.new("RGB", _size(rng), _color(rng))


def gradient(rng, face):
    width, height = _size(rng)
    down, right = rng.random(2)
    ramp = np.add.outer(down * np.linspace(0, 1, height), right * np.linspace(0, 1, width))[..., None]
    return Image.fromarray((ramp / ramp.max() * _color(rng)).astype(np.uint8))


def checkerboard(rng, face):
    width, height = _size(rng)
    cell = rng.integers(2, 33)
    odd = np.add.outer(np.arange(height) // cell, np.arange(width) // cell) % 2
    return Image.fromarray(np.array([_color(rng), _color(rng)], np.uint8)[odd])


def text(rng, face):
    """Lines that look like answers, right and wrong ones."""
    image = Image.new("RGB", _size(rng), _color(rng))
    lines = [f"AU{rng.integers(1, 30)}: {rng.choice(['5', '0.37', 'maybe', 'not visible'])}" for _ in range(12)]
    ImageDraw.Draw(image).multiline_text((4, 4), "\n".join(lines), _color(rng), ImageFont.load_default(14))
    return image


def shapes(rng, face):
    image = Image.new("RGB", _size(rng), _color(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        corners = [tuple(point) for point in rng.integers(0, 257, (3, 2)).tolist()]
        draw.polygon(corners, _color(rng))
        (left, top), radius = corners[0], int(rng.integers(4, 64))
        draw.ellipse((left, top, left + radius, top + radius), _color(rng))
    return image


def upside_down_crop(rng, face):
    left, top = (rng.random(2) * 0.5 * np.array(face.size)).tolist()
    return face.rotate(180).crop((int(left), int(top), int(left) + face.width // 2, int(top) + face.height // 2))


def occluded(rng, face):
    """Covered over nine tenths of each side."""
    face = face.copy()
    left, top = (rng.random(2) * 0.1 * np.array(face.size)).tolist()
    ImageDraw.Draw(face).rectangle((left, top, left + 0.9 * face.width, top + 0.9 * face.height), _color(rng))
    return face


def blurred(rng, face):
    return face.filter(ImageFilter.GaussianBlur(face.width / 4))


def inverted(rng, face):
    return ImageOps.invert(face)


KINDS = {
    "face": (lambda rng, face: face,),
    "noise": (noise,),
    "one color": (black, white, colored),
    "no face": (gradient, checkerboard, text, shapes),
    "destroyed": (upside_down_crop, occluded, blurred, inverted),
}


def load_faces(folder: str, count: int, seed: int) -> list[Image.Image]:
    """Up to `count` different images of a record folder, drawn at random."""
    records = load_records(folder)
    rows = [next(iter(group.values())) for group in group_by_image(records)]
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    return [load_face_image(image) for image in records.select(drawn)["image"]]


def image_mix(faces: Sequence[Image.Image], count: int, seed: int) -> list[tuple[str, Image.Image]]:
    """(kind, image) in an order that mixes the kinds; image `i` depends only on `seed`, `i` and its face."""
    others = [kind for kind in KINDS if kind != "face"]
    images = []
    for number in range(count):
        kind = others[number // 2 % len(others)] if number % 2 else "face"
        makers = KINDS[kind]
        maker = makers[number // (2 * len(others)) % len(makers)]
        images.append((kind, maker(np.random.default_rng([seed, number]), faces[number % len(faces)])))
    return images


# ---- Answers --------------------------------------------------------------------------------------------------
@dataclass
class Tally:
    """Counts over answers."""

    answers: int = 0
    read: int = 0  # in full
    aus: int = 0
    unread_aus: int = 0
    faulty: int = 0  # answers with `faulty` numbers

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    @property
    def broken(self) -> int:
        return self.answers - self.read + self.faulty


def faulty(answer, fmt: AUFormat, decoding: str) -> bool:
    """Whether a number in a slots or constrained answer contradicts the scale, its distribution or the text."""
    values = parse_answer(answer.text, fmt).values
    for label in fmt.labels:
        reading = answer[label]
        if reading.value not in fmt.value_numbers or reading.value != values[label]:
            return True
        if reading.distribution is None:  # constrained decoding of a value of several tokens
            if decoding == "slots":
                return True
            continue
        sums_up = math.isclose(sum(reading.distribution), 1, abs_tol=1e-3)
        if not sums_up or min(reading.distribution) < 0 or len(reading.distribution) != len(fmt.value_numbers):
            return True
        if not (0 <= reading.probability <= 1 and 0 <= reading.expected <= fmt.value_numbers[-1] + 1e-3):
            return True
    return False


def judge(answer, fmt: AUFormat, decoding: str) -> Tally:
    parsed = parse_answer(answer.text, fmt)
    unread = sum(status != "read" for status in parsed.status.values())
    bad = decoding in GUARANTEED and faulty(answer, fmt, decoding)
    return Tally(1, parsed.ok, len(fmt.labels), unread, bad)


def tally(model, processor, images: Sequence[tuple[str, Image.Image]], batch_size: int) -> dict[tuple, Tally]:
    """(decoder, format name, kind of image) -> `Tally`."""
    counts = {(decoding, name, kind): Tally() for decoding in DECODERS for name in MAIN_FORMATS for kind in KINDS}
    with progress_bar() as progress:
        for decoding in DECODERS:
            task = progress.add_task(decoding, total=len(images))
            for start in range(0, len(images), batch_size):
                kinds, batch = zip(*images[start : start + batch_size], strict=True)
                results = model.recognize(processor, list(batch), decoding=decoding, batch_size=batch_size)
                for kind, answers in zip(kinds, results, strict=True):
                    for name in MAIN_FORMATS:
                        counts[decoding, name, kind] += judge(answers[name], FORMATS[name], decoding)
                progress.advance(task, len(batch))
    return counts


def summary(counts: dict[tuple, Tally]) -> Table:
    """The share of answers read in full and the number of unread AUs per decoder, kind of image and format."""
    table = make_table(
        *("decoder", "images", "", *MAIN_FORMATS, "faulty"),
        text=["decoder", "images"],
        title="Answers read in full (AUs that were not read)",
        caption="faulty: a value off the scale or unlike the text, or an invalid distribution",
    )
    for decoding in DECODERS:
        for kind in KINDS:
            _add_row(table, decoding, kind, [counts[decoding, name, kind] for name in MAIN_FORMATS])
        totals = [sum((counts[decoding, name, kind] for kind in KINDS), Tally()) for name in MAIN_FORMATS]
        _add_row(table, decoding, "all", totals, style="bold")
        table.add_section()
    return table


def _add_row(table: Table, decoding: str, kind: str, by_format: Sequence[Tally], **options):
    if images := by_format[0].answers:
        cells = [
            f"{count.read / images:.1%}" + f" ({count.unread_aus})" * bool(count.unread_aus) for count in by_format
        ]
        faulty_answers = str(sum(count.faulty for count in by_format)) if decoding in GUARANTEED else ""
        table.add_row(decoding, kind, str(images), *cells, faulty_answers, **options)


def main(arguments: argparse.Namespace) -> int:
    faces = load_faces(arguments.faces, arguments.images, arguments.seed)
    images = image_mix(faces, arguments.images, arguments.seed)
    counts = tally(*load_checkpoint(arguments.model), images, arguments.batch_size)
    failed, lines = False, []
    for decoding in DECODERS:
        total = sum((count for key, count in counts.items() if key[0] == decoding), Tally())
        lost = total.answers - total.read
        lines.append(
            f"- {decoding}: {lost} of {total.answers} answers ({lost / total.answers:.2%}) not read in full, "
            f"{total.unread_aus} of {total.aus} AUs ({total.unread_aus / total.aus:.2%}) unread"
        )
        failed |= decoding in GUARANTEED and total.broken > 0
    show([summary(counts)], arguments.write, "\n".join(lines))
    if failed:
        print("parsing.py: slots or constrained decoding broke its guarantee", file=sys.stderr)
    return int(failed)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--faces", required=True, help="folder made by prepare_data.py; its images are the faces")
    parser.add_argument("--images", type=int, default=1000, help="number of images of all kinds (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="for choosing faces and making all else (default: 0)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per forward pass (default: 16)")
    add_write_option(parser)
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
