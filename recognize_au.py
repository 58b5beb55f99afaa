"""Read the action units of face images: a table to look at, a CSV to compute with, a picture to show.

    python recognize_au.py photo.jpg
    python recognize_au.py assets/faces --formats bp4d disfa feafa --out aus.csv --picture aus.png
    python recognize_au.py faces/*.png --model runs/rendered-tiny --decoding constrained

PATHs are images or folders (every image inside is taken). Each image should show one face, upright and cropped from
brows to chin. A file that cannot be read is named, counted and skipped; the exit status is then 1.

CSV columns, named as OpenFace names them: `file`; of occurrence formats `AU01_c` (0 or 1) and `AU01_p` (probability of
presence, 0 to 1); of intensity formats `AU01_r` (mean of the distribution, 0 to 5); of continuous formats `AU43L`
(mean, 0 to 1). Where two formats would write the same column, both are prefixed by the format's name.
"""

import argparse
import csv
import re
import sys
from collections import Counter
from pathlib import Path

import matplotlib
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import FORMATS, MAIN_FORMATS, get_format
from au_llava.decoding_au_llava import DECODERS
from au_llava.image_processing_au_llava import load_face_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
BAR_COLOUR, PRESENT_COLOUR = "#9aa7b8", "#0b63a5"  # told apart in grey and by the colour-blind


def find_images(paths: list[Path]) -> list[Path]:
    """The images that `paths` name: files as they are, folders by what is inside, sorted.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without images.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"There is no image in the folder {path}.")
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"There is no file or folder {path}.")
    return found


def openface_label(label: str) -> str:
    """AU1 -> AU01, AU43L -> AU43L: two digits, as OpenFace writes them."""
    return re.sub(r"\d+", lambda digits: f"{int(digits[0]):02d}", label, count=1)


def columns_of(answer) -> dict[str, float]:
    """The CSV columns of one answer: name -> value, empty where an AU was not read."""
    row = {}
    for label, reading in answer.items():
        name = openface_label(label)
        if answer.format.scale == "occurrence":
            row[f"{name}_c"] = reading.value
            row[f"{name}_p"] = reading.probability
        else:
            row[f"{name}_r" if answer.format.scale == "intensity" else name] = reading.expected
    return {name: "" if value is None else round(value, 4) for name, value in row.items()}


def csv_rows(files: list[Path], results: list[dict]) -> list[dict]:
    """One row per image over all formats."""
    per_format = {name: columns_of(answer) for name, answer in results[0].items()}
    clashes = {column for column, count in Counter(c for cs in per_format.values() for c in cs).items() if count > 1}
    rows = []
    for file, result in zip(files, results, strict=True):
        row = {"file": str(file)}
        for name, answer in result.items():
            columns = columns_of(answer)
            row |= {f"{name}.{c}" if c in clashes else c: value for c, value in columns.items()}
        rows.append(row)
    return rows


def summary_table(files: list[Path], results: list[dict]) -> Table:
    """What a person wants to see: per image and format, the AUs found and how strong."""
    table = Table(title="Action units", title_justify="left", show_lines=True)
    table.add_column("image")
    for name, answer in results[0].items():
        table.add_column(f"{name} ({answer.format.scale})")
    for file, result in zip(files, results, strict=True):
        cells = []
        for answer in result.values():
            found = [(label, reading) for label, reading in answer.items() if reading.present]
            unread = sum(reading.value is None for reading in answer.values())
            text = ", ".join(f"{label}={_strength(answer.format, reading)}" for label, reading in found) or "none"
            cells.append(text + (f"  ({unread} unread)" if unread else ""))
        table.add_row(file.name, *cells)
    return table


def _strength(fmt, reading) -> str:
    if fmt.scale == "occurrence":
        return "" if reading.probability is None else f"{reading.probability:.0%}"
    return f"{reading.expected:.1f}" if fmt.scale == "intensity" else f"{reading.expected:.2f}"


def draw(files: list[Path], results: list[dict], images: list[Image.Image]):
    """A figure: one row per image, the face and a bar chart per format (dark bars: present)."""
    formats = [answer.format for answer in results[0].values()]
    widths = [1.6, *(len(fmt.labels) * 0.2 + 0.4 for fmt in formats)]
    figure, axes = plt.subplots(
        len(files), len(widths), figsize=(sum(widths) * 1.15, 1.9 * len(files)), width_ratios=widths, squeeze=False
    )
    for row, file, result, image in zip(axes, files, results, images, strict=True):
        row[0].imshow(image)
        row[0].set_title(file.name, fontsize=7)
        row[0].axis("off")
        for axis, answer in zip(row[1:], result.values(), strict=True):
            fmt = answer.format
            readings = list(answer.values())
            heights = [r.probability if fmt.scale == "occurrence" else r.expected for r in readings]
            heights = [0.0 if height is None else height for height in heights]
            colours = [PRESENT_COLOUR if r.present else BAR_COLOUR for r in readings]
            axis.bar(range(len(heights)), heights, color=colours)
            axis.set_xticks(range(len(heights)), fmt.labels, rotation=90, fontsize=6)
            axis.set_ylim(0, fmt.value_numbers[-1])
            axis.tick_params(axis="y", labelsize=6)
            axis.set_title(f"{fmt.name}: " + ("probability" if fmt.scale == "occurrence" else fmt.scale), fontsize=7)
            axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def main(arguments: argparse.Namespace) -> int:
    logging.disable_progress_bar()  # of loading weights
    formats = [get_format(name) for name in arguments.formats]
    files, images, skipped = [], [], []
    for file in find_images(arguments.paths):
        try:
            images.append(load_face_image(file))
            files.append(file)
        except ValueError as error:
            skipped.append(str(error))
    for problem in skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    if not files:
        raise ValueError(f"None of the {len(skipped)} files could be read as an image.")
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    results, size = [], arguments.batch_size
    starts = range(0, len(images), size)
    for start in track(starts, "reading faces", console=Console(stderr=True), disable=len(starts) == 1):
        batch = images[start : start + size]
        results += model.recognize(processor, batch, formats=formats, decoding=arguments.decoding, batch_size=size)
    Console().print(summary_table(files, results))
    if arguments.out:
        rows = csv_rows(files, results)
        with arguments.out.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"Written: {arguments.out} ({len(rows)} rows)")
    if arguments.picture:
        shown = slice(0, arguments.picture_faces)
        draw(files[shown], results[shown], images[shown]).savefig(arguments.picture, dpi=110)
        print(f"Written: {arguments.picture}")
    if skipped:
        print(f"{len(skipped)} of {len(files) + len(skipped)} files could not be read.", file=sys.stderr)
    return 1 if skipped else 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    parser.add_argument("--model", default=".", help="checkpoint folder or Hub id (default: this repository)")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=list(MAIN_FORMATS),
        help=f"any of {', '.join(FORMATS)} (default: {' '.join(MAIN_FORMATS)})",
    )
    parser.add_argument("--decoding", choices=DECODERS, default="slots", help="how answers are read (default: slots)")
    parser.add_argument("--batch_size", type=int, default=16, help="images per forward pass (default: 16)")
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--picture", type=Path, help="annotated picture to write (PNG, PDF or SVG)")
    parser.add_argument("--picture_faces", type=int, default=6, help="most faces in the picture (default: 6)")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(make_parser().parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"recognize_au.py: {error}")
