"""The checkpoint on uncoded photographs: agreement with a weak teacher, and with itself on changed images.

    python benchmarks/agreement.py --data data/fairface --part validation --out runs/agreement.json
    python benchmarks/agreement.py --data data/fairface --groups race gender age --out runs/agreement.json

None of this is accuracy: there are no labels, and the teacher (`weak`, made by prepare_data.py from MediaPipe's
blendshapes or from codes by eye) is sometimes wrong and may be biased. It compares checkpoints. Records need the
columns `margin` (share of the crop's side that is stored around the crop, on each side) and `weak` (per AU a share of
the scale, NaN where the teacher is not trusted). The benchmark measures

- agreement, per AU that the teacher is trusted on: Pearson's and Spearman's correlation of the expected value with the
  teacher's. On the faces where the teacher is clear (at least 0.5 against at most 0.1, in shares of the scale) also
  the ROC AUC of the expected value, the F1 of the decision, and the share of either class in which the AU is found;
- stability: by how much the expected value changes (mean absolute difference, share of the scale), and how many
  decisions change, between the plain crop and four others: its mirror image; a slightly moved crop (rotated by 5
  degrees, shifted by 3 % of its side, zoomed by 5 %); one with 20 % other brightness and contrast; one at half the
  resolution. A checkpoint that also reads mirror images reads without them for the mirror comparison, which would
  otherwise be 0 by construction;
- neutral faces: the share in which each AU is found, of faces on which all trusted AUs of the teacher are at most 0.1;
- all faces: the share in which each AU is found.

"summary" in the JSON holds one number per measure, as means over AUs (and over the four changes); training chooses by
these. --groups compares AU12, AU25 and AU43 between groups of people. Groups are what annotators saw, not what people
are. Intervals are 95 % bootstrap intervals over people.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from page import add_model_option, make_table, origin, runner, say_skipped, told, write_results
from PIL import Image, ImageEnhance
from rich.console import Console

from au_llava.action_units import get_format, mirrored_label
from au_llava.au_datasets.conversion import sources
from au_llava.au_datasets.folds import people_of, person_key
from au_llava.au_datasets.records import PARTS, group_by_image, load_records
from au_llava.au_evaluation.group_audit import FEWEST_SUBJECTS
from au_llava.au_evaluation.photographs import (
    Readings,
    columns_of,
    correlation,
    decisions,
    group_agreement,
    rank_auc,
    rank_correlation,
    read_crops,
    shares,
)
from au_llava.au_readers.source import Picture
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable
from au_llava.au_runs.manifests import check_unseen
from au_llava.au_runs.provenance import content_hashes

STRONG, NEAR_ZERO = 0.5, 0.1  # shares of the scale: the teacher is clear from the first up and the second down
ROTATION, SHIFT, ZOOM = 5.0, 0.03, 0.05  # degrees; shares of the crop's side
SEED = 0  # for the directions of change
LEVELS = 0.2  # share by which brightness and contrast change
GROUPED = {"AU12": "disfa", "AU25": "disfa", "AU43": "feafa"}  # AU -> the format in which groups are compared


def crop(image: Image.Image, margin: float, size: int, rotation=0.0, shift=(0.0, 0.0), zoom=1.0) -> Image.Image:
    """The model's crop of a picture that is stored with a margin, or a slightly moved crop.

    Beyond the picture its border is repeated.

    Args:
        image: square, RGB.
        margin: of `image`, share of the crop's side on each side.
        size: of the crop in pixels.
        rotation: degrees.
        shift: right and down, shares of the crop's side.
        zoom: above 1, the face gets larger.
    """
    width = image.size[0]
    side = width / (1 + 2 * margin)
    if rotation:
        border = width // 4
        padded = np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="edge")
        turned = Image.fromarray(padded).rotate(rotation, Image.Resampling.BICUBIC)
        image = turned.crop((border, border, border + width, border + width))
    extent = side / zoom
    left, top = (width / 2 + side * offset - extent / 2 for offset in shift)
    border = max(0, math.ceil(-min(left, top, width - left - extent, width - top - extent)))
    if border:
        image = Image.fromarray(np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="edge"))
    left, top = left + border, top + border
    box = (left, top, left + extent, top + extent)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def plain(image, margin, size, signs) -> Image.Image:
    return crop(image, margin, size)


def mirrored(image, margin, size, signs) -> Image.Image:
    return crop(image, margin, size).transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def moved(image, margin, size, signs) -> Image.Image:
    turn, right, down, nearer = signs
    return crop(image, margin, size, turn * ROTATION, (right * SHIFT, down * SHIFT), 1 + nearer * ZOOM)


def relit(image, margin, size, signs) -> Image.Image:
    plain = ImageEnhance.Brightness(crop(image, margin, size)).enhance(1 + signs[0] * LEVELS)
    return ImageEnhance.Contrast(plain).enhance(1 + signs[1] * LEVELS)


def coarser(image, margin, size, signs) -> Image.Image:
    small = crop(image, margin, size).resize((size // 2, size // 2), Image.Resampling.BICUBIC)
    return small.resize((size, size), Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable] = {  # name -> (stored image, margin, size, four signs of -1 or 1) -> crop
    "mirror image": mirrored,
    "moved": moved,
    "light": relit,
    "half resolution": coarser,
}


class Photographs:
    """Unlabeled records, each one image of one person, with weak labels.

    Attributes:
        images: stored pictures, RGB.
        margins, subjects, rows: (images,) margin, person and first record of each image.
        size: of a crop in pixels.
        weak: (images, columns) shares of the scale, NaN where the teacher is not trusted.
        formats, columns: what is read.
        skipped: name of an unreadable picture -> why.

    Raises:
        ValueError: the records lack a column, their images have rows in different formats, a weak label is off the
            scale, or no picture can be read.
    """

    def __init__(self, records: datasets.Dataset, size: int):
        lacking = [name for name in ("margin", "weak") if name not in records.column_names]
        if lacking:
            raise ValueError(
                f"the records have no column {' and '.join(lacking)}: they are not photographs with weak labels, as "
                "prepare_data.py fairface makes them."
            )
        groups = group_by_image(records)
        self.formats = tuple(groups[0])
        if any(set(group) != set(self.formats) for group in groups):
            raise ValueError(f"not every image has a row in each of {', '.join(self.formats)}: prepare them again.")
        self.columns, self.size = columns_of(self.formats), size
        columns = records.select_columns(["dataset", "subject", "margin", "weak"])[:]
        stored = records.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        readable, self.images, self.skipped = [], [], {}
        for group in groups:
            first = next(iter(group.values()))
            image = stored[first]["image"]
            try:
                self.images.append(Picture(image["path"] or "the crop", content=image["bytes"]).open())
            except (OSError, ValueError) as error:
                self.skipped[person_key(columns["dataset"][first], columns["subject"][first])] = str(error)
            else:
                readable.append(group)
        if not readable:
            raise ValueError(f"none of the {len(groups)} pictures can be read.")
        self.rows = [next(iter(group.values())) for group in readable]
        self.subjects = [person_key(columns["dataset"][row], columns["subject"][row]) for row in self.rows]
        self.margins = [columns["margin"][row] for row in self.rows]
        weak = [[value for name in self.formats for value in columns["weak"][group[name]]] for group in readable]
        lengths = set(map(len, weak))
        if lengths != {len(self.columns)}:
            raise ValueError(
                f"weak labels must be {len(self.columns)}, one for each AU of {', '.join(self.formats)}, not "
                f"{', '.join(map(str, sorted(lengths)))}."
            )
        self.weak = np.array(weak, dtype=np.float32)  # as stored: a tenth is a tenth
        if np.nanmin(self.weak, initial=0) < 0 or np.nanmax(self.weak, initial=0) > 1:
            raise ValueError("weak labels must be shares of the scale, 0 to 1, or NaN.")
        if np.isnan(self.weak).all():
            raise ValueError("the teacher is trusted on no AU of any image: every weak label is NaN.")

    def crops(self, change: Callable = plain) -> list[Image.Image]:
        """The crop of every image, changed in random directions that are always the same."""
        directions = np.random.default_rng(SEED).choice([-1, 1], size=(len(self.images), 4))
        stored = zip(self.images, self.margins, directions, strict=True)
        return [change(image, margin, self.size, signs) for image, margin, signs in stored]

    def believed(self) -> list[int]:
        """The columns on which the teacher is trusted in any image."""
        return np.flatnonzero(~np.isnan(self.weak).all(axis=0)).tolist()


def weak_class(weak: np.ndarray) -> np.ndarray:
    """1 where the teacher clearly finds the AU strong, 0 where it clearly finds it near zero, NaN elsewhere."""
    return np.where(weak >= STRONG, 1.0, np.where(weak <= NEAR_ZERO, 0.0, np.nan))


def agreement(photographs: Photographs, read: Readings) -> tuple[dict, dict]:
    """Agreement with the weak teacher: format -> AU -> measure -> result, and measure -> mean over AUs.

    With fewer than `FEWEST_SUBJECTS` images of a class, what needs it is NaN.
    """
    trusted = photographs.believed()
    columns = [photographs.columns[column] for column in trusted]
    expected, present, weak = read.expected[:, trusted], read.present[:, trusted], photographs.weak[:, trusted]
    classes, subjects = weak_class(weak), photographs.subjects

    def found(of_class: int) -> dict:
        images = classes == of_class
        counts = images.sum(axis=0)
        known = np.where(images & (counts >= FEWEST_SUBJECTS), present, np.nan)
        result = shares(known, subjects, columns)
        for column, count in zip(columns, counts.tolist(), strict=True):
            result["per_column"][column]["n"] = count
        return result

    few = np.minimum(np.sum(classes == 1, axis=0), np.sum(classes == 0, axis=0)) < FEWEST_SUBJECTS
    compared = np.where(few, np.nan, classes)
    results = {
        "pearson": correlation(expected, weak, subjects, columns),
        "spearman": rank_correlation(expected, weak, subjects, columns),
        "roc_auc": rank_auc(expected, compared, subjects, columns),
        "f1": decisions(present, compared, subjects, columns),
        "found_strong": found(1),
        "found_near_zero": found(0),
    }
    return by_format(results), means(results)


def means(results: Mapping[str, Mapping]) -> dict:
    return {measure: result["mean"] for measure, result in results.items()}


def by_format(results: Mapping[str, Mapping]) -> dict:
    """measure -> {"per_column": (format, AU) -> result}, as format -> AU -> measure -> result."""
    nested: dict = {}
    for measure, columns in results.items():
        for (name, label), result in columns["per_column"].items():
            nested.setdefault(name, {}).setdefault(label, {})[measure] = result
    return nested


def sides_changed_back(read: Readings) -> Readings:
    """Readings of mirror images with the sides swapped, as readings of the images themselves."""
    order = [read.columns.index((name, mirrored_label(label))) for name, label in read.columns]
    return Readings(read.columns, read.expected[:, order], read.probability[:, order], read.present[:, order])


def changes(photographs: Photographs, read: Readings, model, reading: Callable[[list, str], Readings]) -> dict:
    """change -> (absolute difference of expected values, 1 where the decision changed), (images, columns) each.

    Args:
        read: readings of the plain crops.
        reading: (crops, description) -> readings by `model`.
    """
    differences = {}
    for name, change in CHANGES.items():
        before, mirror_images = read, model.config.mirror_images
        try:
            if change is mirrored and mirror_images:
                model.config.mirror_images = False
                before = reading(photographs.crops(), "Reading plain crops alone")
            after = reading(photographs.crops(change), f"Reading: {name}")
        finally:
            model.config.mirror_images = mirror_images
        after = sides_changed_back(after) if change is mirrored else after
        differences[name] = (np.abs(after.expected - before.expected), (after.present != before.present).astype(float))
    return differences


def stability(changed: Mapping[str, tuple], photographs: Photographs) -> tuple[dict, dict]:
    """change -> {"mean", "formats"} of "difference" and "changed" (see `changes`), and their means over changes."""

    def of(tables) -> dict:
        return {
            key: shares(table, photographs.subjects, photographs.columns)
            for key, table in zip(("difference", "changed"), tables, strict=True)
        }

    results = {name: of(tables) for name, tables in changed.items()}
    per_change = {name: {"mean": means(result), "formats": by_format(result)} for name, result in results.items()}
    return per_change, means(of(np.mean(list(changed.values()), axis=0)))


def neutral(photographs: Photographs, read: Readings) -> tuple[dict, dict]:
    """{"images", "formats": format -> AU -> {"present": result}} for the teacher's neutral faces, and the mean.

    A face is neutral if the teacher is trusted on some AU and every such AU is at most `NEAR_ZERO`.
    """
    unknown = np.isnan(photographs.weak)
    rows = np.flatnonzero(((photographs.weak <= NEAR_ZERO) | unknown).all(axis=1) & ~unknown.all(axis=1))
    subjects = np.asarray(photographs.subjects)[rows]
    present = shares(read.present[rows], subjects, photographs.columns)
    return {"images": len(rows), "formats": by_format({"present": present})}, present["mean"]


def compare_groups(photographs: Photographs, read: Readings, groups: Mapping[str, Sequence]) -> dict:
    """AU -> {"format", and the results of `group_agreement`}, for the AUs of `GROUPED` in the records' formats."""
    compared = {}
    for label, name in GROUPED.items():
        if name not in photographs.formats:
            continue
        columns = [photographs.columns.index((name, source)) for source in sources(label, get_format(name))]
        weak = weak_class(photographs.weak[:, columns].max(axis=1))  # NaN where a side is unknown
        side = read.stronger_side(name, label)
        compared[label] = {"format": name} | group_agreement(side, weak, groups, photographs.subjects, label)
    return compared


SUMMARY = {  # key in the JSON -> words in the table
    "pearson": "agreement: Pearson's correlation",
    "spearman": "agreement: Spearman's correlation",
    "roc_auc": "agreement: ROC AUC",
    "f1": "agreement: F1",
    "found_strong": "share of AUs found where the teacher finds them strong",
    "found_near_zero": "share of AUs found where the teacher finds them near zero",
    "difference": "mean change of the expected value, share of the scale",
    "changed": "share of decisions that change",
    "neutral_present": "share of AUs found in neutral faces",
}


def show(results: Mapping) -> None:
    """Print the tables."""
    console = Console()
    title = "Photographs without labels, beside a weak teacher (not accuracy)"
    summary = make_table("mean over AUs", "", text=["mean over AUs"], title=title)
    for key, words in SUMMARY.items():
        summary.add_row(words, told(results["summary"][key]))
    ranks = make_table(
        *("format", "AU", "Pearson", "Spearman", "ROC AUC"), text=["format", "AU"], title="Expected values"
    )
    decided = make_table(
        *("format", "AU", "strong", "F1", "found: strong", "found: near zero"), text=["format", "AU"], title="Decisions"
    )
    for name, aus in results["agreement"].items():
        for label, of_au in aus.items():
            ranks.add_row(name, label, *(told(of_au[key]) for key in ("pearson", "spearman", "roc_auc")))
            cells = [told(of_au[key]) for key in ("f1", "found_strong", "found_near_zero")]
            decided.add_row(name, label, str(of_au["found_strong"]["n"]), *cells)
    console.print(summary, ranks, decided)
    for label, compared in results.get("groups", {}).items():
        show_groups(console, label, compared)


def show_groups(console: Console, label: str, compared: Mapping) -> None:
    """Print the table of one AU of `compare_groups`."""
    table = make_table(
        *("groups of", "group", "images", "read as present", "clear: strong, near 0", "ROC AUC", "bias"),
        text=["groups of", "group"],
        title=f"{label} by groups ({compared['format']})",
    )
    for column, groups in compared["columns"].items():
        for group, scores in groups.items():
            clear = f"{scores['strong']}, {scores['near_zero']}"
            cells = (str(scores["n"]), told(scores["present"]), clear, told(scores["roc_auc"]), told(scores["bias"]))
            table.add_row(column, group, *cells)
    console.print(table)
    few = [f"{group} ({column})" for column, groups in compared["too_small"].items() for group in groups]
    if few:
        console.print(f"Too few clear faces for {label}: {', '.join(few)}")


def measure(model, processor, photographs: Photographs, groups: Mapping[str, Sequence], batch_size: int = 32) -> dict:
    """All results, without their provenance; see the head of this file."""

    def reading(crops: list, description: str) -> Readings:
        return read_crops(model, processor, crops, photographs.formats, batch_size, description)

    read = reading(photographs.crops(), "Reading plain crops")
    per_au, agreed = agreement(photographs, read)
    per_change, stable = stability(changes(photographs, read, model, reading), photographs)
    neutral_faces, neutral_mean = neutral(photographs, read)
    present = shares(read.present, photographs.subjects, photographs.columns)
    results = {
        "summary": agreed | stable | {"neutral_present": neutral_mean},
        "agreement": per_au,
        "stability": per_change,
        "neutral": neutral_faces,
        "found": by_format({"present": present}),
    }
    return results | ({"groups": compare_groups(photographs, read, groups)} if groups else {})


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--data", required=True, help="folder of records with the columns margin and weak")
    parser.add_argument("--part", choices=PARTS, default="validation", help="of the records (default: validation)")
    add_model_option(parser)
    parser.add_argument("--groups", nargs="+", default=[], metavar="COLUMN", help="compare the groups of these columns")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    records = load_records(arguments.data, part=arguments.part, labelled=False)
    absent = sorted(set(arguments.groups) - set(records.column_names))
    if absent:
        raise ValueError(
            f"no column {', '.join(absent)} to group by; the records have {', '.join(records.column_names)}."
        )
    people = check_unseen(arguments.model, people_of(records), roles=("train", "unlabelled"))
    model, processor = load_checkpoint(arguments.model, dtype="float32")
    photographs = Photographs(records, processor.image_processor.crop_size["height"])
    groups = records.select_columns(arguments.groups)[photographs.rows] if arguments.groups else {}
    results = measure(model, processor, photographs, groups)
    data = {"data": content_hashes([arguments.data]), "part": arguments.part, "trained_people": people}
    counts = {"images": len(photographs.images), "people": len(set(photographs.subjects))}
    faces = counts | {"skipped": photographs.skipped}
    write_results(arguments.out, {"provenance": origin(arguments.model, model) | data, "faces": faces, **results})
    show(results)
    say_skipped(photographs.skipped, len(photographs.images) + len(photographs.skipped))


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
