"""Can every answer be read? The three decoders on faces, and on images that are no face at all.

    python prepare_data.py rendered --subjects 200 --images-per-subject 10 --seed 1 --validation 0 --test 1 \
        --out data/rendered-test
    python benchmarks/parsing.py --model . --faces data/rendered-test --images 1000

Half of the images are faces; the others are in equal shares noise, one colour, things that are no face, and faces that
have been destroyed. An answer counts as read if `parse_answer` finds every AU in it. Slots and constrained decoding
promise that for any image, and numbers that make sense: the command fails if either of them breaks the promise once.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from page import add_write_option, show
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import FORMATS, MAIN_FORMATS, AUFormat, parse_answer
from au_llava.au_datasets.records import group_by_image, load_records
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME
from au_llava.decoding_au_llava import DECODERS
from au_llava.image_processing_au_llava import load_face_image

GUARANTEED = ("slots", "constrained")


# ---- Images: makers of (random generator, a face) -> image -----------------------------------------------------
def _size(rng) -> tuple[int, int]:
    return tuple(rng.integers(32, 257, 2).tolist())


def _colour(rng) -> tuple[int, int, int]:
    return tuple(rng.integers(0, 256, 3).tolist())


def noise(rng, face):
    width, height = _size(rng)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def black(rng, face):
    return Image.new("RGB", _size(rng), "black")


def white(rng, face):
    return Image.new("RGB", _size(rng), "white")


def coloured(rng, face):
    return Image.new("RGB", _size(rng), _colour(rng))


def gradient(rng, face):
    width, height = _size(rng)
    down, right = rng.random(2)
    ramp = np.add.outer(down * np.linspace(0, 1, height), right * np.linspace(0, 1, width))[..., None]
    return Image.fromarray((ramp / ramp.max() * _colour(rng)).astype(np.uint8))


def checkerboard(rng, face):
    width, height = _size(rng)
    cell = rng.integers(2, 33)
    odd = np.add.outer(np.arange(height) // cell, np.arange(width) // cell) % 2
    return Image.fromarray(np.array([_colour(rng), _colour(rng)], np.uint8)[odd])


def text(rng, face):
    """Lines that look like answers, false ones among them."""
    image = Image.new("RGB", _size(rng), _colour(rng))
    lines = [f"AU{rng.integers(1, 30)}: {rng.choice(['5', '0.37', 'maybe', 'not visible'])}" for _ in range(12)]
    ImageDraw.Draw(image).multiline_text((4, 4), "\n".join(lines), _colour(rng), ImageFont.load_default(14))
    return image


def shapes(rng, face):
    image = Image.new("RGB", _size(rng), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        corners = [tuple(point) for point in rng.integers(0, 257, (3, 2)).tolist()]
        draw.polygon(corners, _colour(rng))
        (left, top), radius = corners[0], int(rng.integers(4, 64))
        draw.ellipse((left, top, left + radius, top + radius), _colour(rng))
    return image


def upside_down_crop(rng, face):
    left, top = (rng.random(2) * 0.5 * np.array(face.size)).tolist()
    return face.rotate(180).crop((int(left), int(top), int(left) + face.width // 2, int(top) + face.height // 2))


def occluded(rng, face):
    """Nine tenths of each side are covered."""
    face = face.copy()
    left, top = (rng.random(2) * 0.1 * np.array(face.size)).tolist()
    ImageDraw.Draw(face).rectangle((left, top, left + 0.9 * face.width, top + 0.9 * face.height), _colour(rng))
    return face


def blurred(rng, face):
    return face.filter(ImageFilter.GaussianBlur(face.width / 4))


def inverted(rng, face):
    return ImageOps.invert(face)


KINDS = {
    "face": (lambda rng, face: face,),
    "noise": (noise,),
    "one colour": (black, white, coloured),
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
    """(kind, image) in an order that mixes the kinds; image `i` depends on `seed`, `i` and its face alone."""
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
    """Whether any number of a slots or constrained answer contradicts the scale, its distribution or the text."""
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
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
    table = Table(
        title="Answers read in full (AUs that were not read)",
        caption="faulty: a value off the scale or unlike the text, or a distribution that is none",
    )
    for column in ("decoder", "images", "", *MAIN_FORMATS, "faulty"):
        table.add_column(column, justify="left" if column in ("decoder", "images") else "right", no_wrap=True)
    for decoding in DECODERS:
        for kind in KINDS:
            _add_row(table, decoding, kind, [counts[decoding, name, kind] for name in MAIN_FORMATS])
        totals = [sum((counts[decoding, name, kind] for kind in KINDS), Tally()) for name in MAIN_FORMATS]
        _add_row(table, decoding, "all", totals, style="bold")
        table.add_section()
    return table


def _add_row(table: Table, decoding: str, kind: str, by_format: Sequence[Tally], **options):
    if images := by_format[0].answers:
        cells = [f"{each.read / images:.1%}" + f" ({each.unread_aus})" * bool(each.unread_aus) for each in by_format]
        strange = str(sum(each.faulty for each in by_format)) if decoding in GUARANTEED else ""
        table.add_row(decoding, kind, str(images), *cells, strange, **options)


def load(name: str):
    """(model, processor) of a checkpoint."""
    logging.disable_progress_bar()  # of loading weights
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return model, AutoProcessor.from_pretrained(name, trust_remote_code=True)


def main(arguments: argparse.Namespace) -> int:
    faces = load_faces(arguments.faces, arguments.images, arguments.seed)
    images = image_mix(faces, arguments.images, arguments.seed)
    counts = tally(*load(arguments.model), images, arguments.batch_size)
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
        print("parsing.py: slots or constrained decoding gave an answer that must not be", file=sys.stderr)
    return int(failed)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=str(HOME), help="checkpoint folder or Hub id (default: this repository)")
    parser.add_argument("--faces", required=True, help="folder made by prepare_data.py; its images are the faces")
    parser.add_argument("--images", type=int, default=1000, help="how many, all kinds together (default: 1000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of faces and of all other images (default: 0)"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images per forward pass (default: 16)")
    add_write_option(parser)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(make_parser().parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"parsing.py: {sentence_of(error)}")
