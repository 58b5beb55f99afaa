"""How the checkpoint reads photographs that nobody coded: beside a weak teacher, and beside other views of themselves.

    python benchmarks/agreement.py --data data/fairface --part validation --out runs/agreement.json
    python benchmarks/agreement.py --data data/fairface --groups race gender age --out runs/agreement.json

None of this is accuracy: there are no labels, and the teacher (`weak`, made by prepare_data.py from MediaPipe's
blendshapes) is wrong at times and may be biased. It tells two checkpoints apart. Records need the columns `margin`
(share of the crop's side that is stored beyond the crop, on each side) and `weak` (per AU a share of the scale, NaN
where the teacher is not believed). Measured are

- agreement, per AU where the teacher is believed: Pearson's and Spearman's correlation of the expected value with the
  teacher's, and the ROC AUC of the expected value for "teacher at least 0.5" against "teacher at most 0.1", shares of
  the scale; what lies between is left out of the AUC;
- stability: how much the expected value changes (mean absolute difference, share of the scale) and how many decisions
  change between the plain crop and its mirror image, a slightly moved one (rotated by 5 degrees, shifted by 3 % of its
  side, zoomed by 5 %), a slightly lighter or darker one of other contrast (20 % each), and one of half the resolution.
  A checkpoint that reads every image with its mirror image is asked without for the mirror comparison, which would
  else be 0 by construction;
- neutral faces: of those whose every believed AU is at most 0.1 by the teacher, the share that each AU is read into.

"summary" in the JSON holds one number of each kind, means over AUs (and over the four changes): by these a training
chooses. --groups compares AU12, AU25 and AU43 between groups of people. Groups are what annotators saw, not what people
are. Intervals are 95 % bootstrap intervals over people.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from page import origin
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import get_format, mirrored_label
from au_llava.au_datasets.conversion import sources
from au_llava.au_datasets.folds import person_key
from au_llava.au_datasets.records import PARTS, group_by_image, load_records
from au_llava.au_evaluation.audits import FEWEST_SUBJECTS
from au_llava.au_evaluation.photographs import (
    Readings,
    columns_of,
    correlation,
    group_agreement,
    rank_auc,
    rank_correlation,
    read_crops,
    shares,
)
from au_llava.au_evaluation.scoring import jsonable
from au_llava.au_readers.source import Picture
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.manifests import check_unseen, people_of
from au_llava.au_runs.provenance import content_hashes

STRONG, NEAR_ZERO = 0.5, 0.1  # shares of the scale: from and up to which the teacher is taken to be clear
ROTATION, SHIFT, ZOOM = 5.0, 0.03, 0.05  # degrees; shares of the crop's side
SEED = 0  # of the directions of change
LEVELS = 0.2  # share by which brightness and contrast change
GROUPED = {"AU12": "disfa", "AU25": "disfa", "AU43": "feafa"}  # AU -> the format it is compared in between groups


def crop(image: Image.Image, margin: float, size: int, rotation=0.0, shift=(0.0, 0.0), zoom=1.0) -> Image.Image:
    """The model's crop of a picture that is stored with a margin, or a slightly moved one.

    Args:
        image: square, RGB. margin: of `image`, share of the crop's side on each side. size: of the crop in pixels.
        rotation: degrees. shift: right and down, shares of the crop's side. zoom: above 1, the face gets larger. What
            lies beyond the picture repeats its border.
    """
    width = image.size[0]
    side = width / (1 + 2 * margin)
    if rotation:
        border = width // 4
        padded = np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="edge")
        turned = Image.fromarray(padded).rotate(rotation, Image.Resampling.BICUBIC)
        image = turned.crop((border, border, border + width, border + width))
    extent = side / zoom
    left, top = (width / 2 + side * each - extent / 2 for each in shift)
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
    """Unlabelled records: one image of one person each, and what the weak teacher says of it.

    Attributes:
        images: stored pictures, RGB. margins: (images,). size: of a crop in pixels. weak: (images, columns) shares of
            the scale, NaN where not believed. subjects: (images,). rows: (images,) a row of each. formats, columns:
            what is asked for. skipped: pictures that cannot be read -> why.

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
        kept, self.images, self.skipped = [], [], {}
        for group in groups:
            first = next(iter(group.values()))
            image = stored[first]["image"]
            try:
                self.images.append(Picture(image["path"] or "the crop", content=image["bytes"]).open())
            except (OSError, ValueError) as error:
                self.skipped[person_key(columns["dataset"][first], columns["subject"][first])] = str(error)
            else:
                kept.append(group)
        if not kept:
            raise ValueError(f"none of the {len(groups)} pictures can be read.")
        self.rows = [next(iter(group.values())) for group in kept]
        self.subjects = [person_key(columns["dataset"][row], columns["subject"][row]) for row in self.rows]
        self.margins = [columns["margin"][row] for row in self.rows]
        weak = [[value for name in self.formats for value in columns["weak"][group[name]]] for group in kept]
        lengths = {len(each) for each in weak}
        if lengths != {len(self.columns)}:
            raise ValueError(
                f"weak labels must be {len(self.columns)}, one for each AU of {', '.join(self.formats)}, not "
                f"{', '.join(map(str, sorted(lengths)))}."
            )
        self.weak = np.array(weak, dtype=np.float32)  # as stored: a tenth is a tenth
        if np.nanmin(self.weak, initial=0) < 0 or np.nanmax(self.weak, initial=0) > 1:
            raise ValueError("weak labels must be shares of the scale, 0 to 1, or NaN.")
        if np.isnan(self.weak).all():
            raise ValueError("the teacher is believed on no AU of any image: every weak label is NaN.")

    def crops(self, change: Callable = plain) -> list[Image.Image]:
        """The crop of every image, changed in directions that are drawn once and for all."""
        signs = np.random.default_rng(SEED).choice([-1, 1], size=(len(self.images), 4))
        stored = zip(self.images, self.margins, signs, strict=True)
        return [change(image, margin, self.size, each) for image, margin, each in stored]

    def believed(self) -> list[int]:
        """The columns on which the teacher is believed in any image."""
        return np.flatnonzero(~np.isnan(self.weak).all(axis=0)).tolist()


def weak_class(weak: np.ndarray) -> np.ndarray:
    """1 where the teacher is clear that the AU is strong, 0 where it is near none, NaN elsewhere."""
    return np.where(weak >= STRONG, 1.0, np.where(weak <= NEAR_ZERO, 0.0, np.nan))


def agreement(photographs: Photographs, read: Readings) -> tuple[dict, dict]:
    """format -> AU -> measure -> result, and measure -> mean over AUs: agreement with the weak teacher."""
    kept = photographs.believed()
    columns = [photographs.columns[column] for column in kept]
    expected, weak = read.expected[:, kept], photographs.weak[:, kept]
    classes = weak_class(weak)
    few = np.minimum(np.sum(classes == 1, axis=0), np.sum(classes == 0, axis=0)) < FEWEST_SUBJECTS
    found = {
        "pearson": correlation(expected, weak, photographs.subjects, columns),
        "spearman": rank_correlation(expected, weak, photographs.subjects, columns),
        "roc_auc": rank_auc(expected, np.where(few, np.nan, classes), photographs.subjects, columns),
    }
    return by_format({name: each["per_column"] for name, each in found.items()}), means(found)


def means(found: Mapping[str, Mapping]) -> dict:
    return {name: each["mean"] for name, each in found.items()}


def by_format(found: Mapping[str, Mapping]) -> dict:
    """measure -> (format, AU) -> result, as format -> AU -> measure -> result."""
    nested: dict = {}
    for measure, columns in found.items():
        for (name, label), each in columns.items():
            nested.setdefault(name, {}).setdefault(label, {})[measure] = each
    return nested


def sides_changed_back(read: Readings) -> Readings:
    """What was read off mirror images, as what it says of the images themselves."""
    kept = [read.columns.index((name, mirrored_label(label))) for name, label in read.columns]
    return Readings(read.columns, read.expected[:, kept], read.probability[:, kept], read.present[:, kept])


def changes(photographs: Photographs, read: Readings, model, reading: Callable[[list, str], Readings]) -> dict:
    """change -> (difference of expected values, 1 where the decision changed), (images, columns) each.

    Args:
        read: off the plain crops. reading: (crops, what is done) -> what `model` reads off them.
    """
    found = {}
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
        found[name] = (np.abs(after.expected - before.expected), (after.present != before.present).astype(float))
    return found


def stability(changed: Mapping[str, tuple], photographs: Photographs) -> tuple[dict, dict]:
    """change -> {"mean", "formats"} of "difference" and "changed" (see `changes`), and their means over changes."""

    def of(tables) -> dict:
        return {
            key: shares(table, photographs.subjects, photographs.columns)
            for key, table in zip(("difference", "changed"), tables, strict=True)
        }

    found = {name: of(tables) for name, tables in changed.items()}
    told = {
        name: {
            "mean": means(each),
            "formats": by_format({key: result["per_column"] for key, result in each.items()}),
        }
        for name, each in found.items()
    }
    return told, means(of(np.mean(list(changed.values()), axis=0)))


def neutral(photographs: Photographs, read: Readings) -> tuple[dict, dict]:
    """{"images", "formats": format -> AU -> {"present": result}} of faces that the teacher finds neutral, and the mean.

    A face is neutral if the teacher is believed on some AU and every such AU is at most `NEAR_ZERO`.
    """
    unknown = np.isnan(photographs.weak)
    kept = np.flatnonzero(((photographs.weak <= NEAR_ZERO) | unknown).all(axis=1) & ~unknown.all(axis=1))
    subjects = np.asarray(photographs.subjects)[kept]
    found = shares(read.present[kept], subjects, photographs.columns)
    return {"images": len(kept), "formats": by_format({"present": found["per_column"]})}, found["mean"]


def compare_groups(photographs: Photographs, read: Readings, groups: Mapping[str, Sequence]) -> dict:
    """AU -> {"format", and what `group_agreement` gives} of the AUs of `GROUPED` that records of these formats have."""
    found = {}
    for label, name in GROUPED.items():
        if name not in photographs.formats:
            continue
        kept = [photographs.columns.index((name, each)) for each in sources(label, get_format(name))]
        weak = weak_class(photographs.weak[:, kept].max(axis=1))  # NaN where a side is unknown
        side = read.stronger_side(name, label)
        found[label] = {"format": name} | group_agreement(side, weak, groups, photographs.subjects, label)
    return found


def told(each: Mapping) -> str:
    if math.isnan(each["value"]):
        return "n.d."
    low, high = each["interval"]
    return f"{each['value']:.3f} ({low:.3f} to {high:.3f})"


SUMMARY = {  # key -> words
    "pearson": "agreement: Pearson's correlation",
    "spearman": "agreement: Spearman's correlation",
    "roc_auc": "agreement: ROC AUC",
    "difference": "mean change of the expected value, share of the scale",
    "changed": "share of decisions that change",
    "neutral_present": "share of AUs read into neutral faces",
}


def show(found: Mapping) -> None:
    """Print the tables."""
    console = Console()
    summary = Table(title="Photographs without labels, beside a weak teacher (not accuracy)", title_justify="left")
    summary.add_column("mean over AUs")
    summary.add_column("", justify="right")
    for key, words in SUMMARY.items():
        summary.add_row(words, told(found["summary"][key]))
    per_au = Table(title="Agreement with the weak teacher", title_justify="left")
    for column in ("format", "AU", "Pearson", "Spearman", "ROC AUC", "clear and strong"):
        per_au.add_column(column, justify="left" if column in ("format", "AU") else "right")
    for name, aus in found["agreement"].items():
        for label, each in aus.items():
            cells = [told(each[key]) for key in ("pearson", "spearman", "roc_auc")]
            per_au.add_row(name, label, *cells, str(each["roc_auc"]["positives"]))
    console.print(summary, per_au)
    for label, each in found.get("groups", {}).items():
        table = Table(title=f"{label} by groups ({each['format']})", title_justify="left")
        for column in ("groups of", "group", "images", "read as present", "clear: strong, near 0", "ROC AUC", "bias"):
            table.add_column(column, justify="left" if column in ("groups of", "group") else "right")
        for column, groups in each["columns"].items():
            for group, of_group in groups.items():
                cells = [
                    f"{of_group['n']}",
                    told(of_group["present"]),
                    f"{of_group['strong']}, {of_group['near_zero']}",
                ]
                table.add_row(column, group, *cells, told(of_group["roc_auc"]), told(of_group["bias"]))
        console.print(table)
        few = [f"{group} ({column})" for column, groups in each["too_small"].items() for group in groups]
        if few:
            console.print(f"Too few clear faces for {label}: {', '.join(few)}")


def measure(model, processor, photographs: Photographs, groups: Mapping[str, Sequence], batch_size: int = 32) -> dict:
    """Everything but where it comes from; see the head of this file."""

    def reading(crops: list, what: str) -> Readings:
        return read_crops(model, processor, crops, photographs.formats, batch_size, what)

    read = reading(photographs.crops(), "Reading plain crops")
    per_au, agreed = agreement(photographs, read)
    per_change, stable = stability(changes(photographs, read, model, reading), photographs)
    neutral_faces, neutral_mean = neutral(photographs, read)
    found = {
        "summary": agreed | stable | {"neutral_present": neutral_mean},
        "agreement": per_au,
        "stability": per_change,
        "neutral": neutral_faces,
    }
    return found | ({"groups": compare_groups(photographs, read, groups)} if groups else {})


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="folder of records with the columns margin and weak")
    parser.add_argument("--part", choices=PARTS, default="validation", help="of the records (default: validation)")
    parser.add_argument(
        "--model", default=str(HOME), help="checkpoint: a folder or a Hub id (default: the shipped one)"
    )
    parser.add_argument("--groups", nargs="+", default=[], metavar="COLUMN", help="compare the groups of these columns")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(words)
    check_writable(arguments.out)
    records = load_records(arguments.data, part=arguments.part, labelled=False)
    absent = sorted(set(arguments.groups) - set(records.column_names))
    if absent:
        raise ValueError(
            f"no column {', '.join(absent)} to group by; the records have {', '.join(records.column_names)}."
        )
    people = check_unseen(arguments.model, people_of(records), roles=("train", "unlabelled"))
    logging.disable_progress_bar()  # of loading weights
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    photographs = Photographs(records, processor.image_processor.crop_size["height"])
    groups = records.select_columns(arguments.groups)[photographs.rows] if arguments.groups else {}
    found = measure(model, processor, photographs, groups)
    content = {
        "schema_version": 1,
        "provenance": origin(arguments.model, model)
        | {"data": content_hashes([arguments.data]), "part": arguments.part, "trained_people": people},
        "faces": {
            "images": len(photographs.images),
            "people": len(set(photographs.subjects)),
            "skipped": photographs.skipped,
        },
        **found,
    }
    arguments.out.write_text(json.dumps(jsonable(content), indent=1) + "\n")
    show(found)
    for file, problem in photographs.skipped.items():
        print(f"skipped: {file}: {problem}", file=sys.stderr)
    if photographs.skipped:
        total = len(photographs.images) + len(photographs.skipped)
        print(f"{len(photographs.skipped)} of {total} pictures were skipped.", file=sys.stderr)
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"agreement.py: {sentence_of(error)}")
