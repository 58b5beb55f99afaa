"""What the checkpoint reads off photographs of people told to smile and told not to: the Face Research Lab London Set.

    python benchmarks/photographs.py --root data/london_set --out runs/photographs.json
    python benchmarks/photographs.py --root data/london_set --mediapipe --out runs/photographs.json

The set (DeBruine and Jones 2017, doi 10.6084/m9.figshare.5047666, CC BY 4.0) shows 102 people, each neutral
(NNN_03.jpg) and smiling (NNN_08.jpg). Nobody coded it: it says who was told to smile, not which action units (AUs) are
there. Never train or choose anything on it; no picture of it is redistributed. Measured are

- how well AU12, AU6 and AU25 tell the smiling faces from the neutral ones (ROC AUC of the expected value and of the
  probability, of the stronger side where a format codes sides), and the share of smiling faces whose AU is found;
- the share of neutral faces that each AU is read into, above a probability of one half and by the shipped thresholds.

Faces are found, cropped and read as recognize_au.py does. --mediapipe measures MediaPipe's raw blendshapes of the same
pictures, whole, beside: the mean of both sides. Intervals are 95 % bootstrap intervals over people.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from page import origin
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import MAIN_FORMATS, get_format
from au_llava.au_datasets.conversion import sources
from au_llava.au_evaluation.photographs import Readings, rank_auc, read_crops, shares
from au_llava.au_evaluation.scoring import jsonable
from au_llava.au_faces.faces import YUNET_SHA256, YuNet, crop_face
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.image_processing_au_llava import load_face_image

PEOPLE = 102  # of the whole set
SUFFIXES = {"_03.jpg": False, "_08.jpg": True}  # end of a file's name -> whether the person smiles
SMILE = ("AU12", "AU6", "AU25")  # what a smile with parted lips is made of
BLENDSHAPES = {"AU12": "mouthSmile", "AU6": "cheekSquint"}  # of MediaPipe; parted lips have none
WORST = 10  # AUs in the table of those that are read into neutral faces most often


def find_pictures(root: Path) -> list[Path]:
    """The pictures of the set, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(path for suffix in SUFFIXES for path in root.glob(f"*{suffix}"))
    if not found:
        raise FileNotFoundError(
            f"{root} holds no pictures named like 001_03.jpg and 001_08.jpg: give the folder of the London set's "
            "frontal faces."
        )
    return found


def person_of(path: Path) -> str:
    return path.name.partition("_")[0]


def smiles(path: Path) -> bool:
    return SUFFIXES[path.name[len(person_of(path)) :]]


def open_pictures(paths: Sequence[Path]) -> tuple[dict[Path, Image.Image], dict[str, str]]:
    """The pictures that can be read, and file name -> what is wrong with the others."""
    images, skipped = {}, {}
    for path in paths:
        try:
            images[path] = load_face_image(path)
        except (ValueError, OSError) as error:
            skipped[path.name] = str(error).replace(str(path), path.name)
    return images, skipped


def crop_faces(images: dict[Path, Image.Image], size: int) -> tuple[dict[Path, Image.Image], dict[str, str]]:
    """The crop of the largest face of every picture, and file name -> what is wrong with the others."""
    detector, crops, skipped = YuNet(), {}, {}
    for path, image in track(images.items(), description="Finding faces"):
        faces = detector(image)
        if faces:
            crops[path] = crop_face(image, faces[0].eyes, size)
        else:
            skipped[path.name] = "shows no face"
    return crops, skipped


def incomplete(paths: Sequence[Path]) -> list[str]:
    """The people with one of the two pictures missing from `paths`."""
    names = [{person_of(path) for path in paths if smiles(path) == smiling} for smiling in SUFFIXES.values()]
    return sorted(names[0] ^ names[1])


def smile_scores(readings: Readings, smiling: np.ndarray, people: Sequence[str]) -> dict:
    """format -> AU -> {"expected", "probability": ROC AUC, "found": share of smiling faces read as present}."""
    found = {}
    for name in MAIN_FORMATS:
        labels = [label for label in SMILE if sources(label, get_format(name))]
        each = [readings.stronger_side(name, label) for label in labels]
        table = {key: np.stack([columns[key] for columns in each], axis=1) for key in each[0]}
        positive = np.repeat(smiling[:, None].astype(float), len(labels), axis=1)
        aucs = {key: rank_auc(table[key], positive, people, labels) for key in ("expected", "probability")}
        read = shares(np.where(positive == 1, table["present"], np.nan), people, labels)
        found[name] = {
            label: {key: _result(auc["per_column"][label]) for key, auc in aucs.items()}
            | {"found": read["per_column"][label]}
            for label in labels
        }
    return found


def neutral_shares(readings: Readings, smiling: np.ndarray, people: Sequence[str]) -> dict:
    """{"mean", "formats": format -> AU -> …} of {"half", "decided"}: the share of neutral faces that an AU is read
    into, above one half and by the checkpoint's threshold."""
    neutral, people = ~smiling, np.asarray(people)[~smiling]
    above = {"half": readings.probability[neutral] > 0.5, "decided": readings.present[neutral]}
    found = {key: shares(table.astype(float), people, readings.columns) for key, table in above.items()}
    formats = {name: {} for name, _ in readings.columns}
    for name, label in readings.columns:
        formats[name][label] = {key: each["per_column"][name, label] for key, each in found.items()}
    return {"mean": {key: each["mean"] for key, each in found.items()}, "formats": formats}


def blendshape_scores(images: dict[Path, Image.Image]) -> dict:
    """ROC AUC of MediaPipe's raw blendshapes, the mean of both sides: AU -> result; "found": pictures with a face.

    Raises:
        ValueError: MediaPipe or its model is not installed, or it finds no face in any picture.
    """
    from au_llava.au_datasets import weak_teacher

    landmarker = weak_teacher.Landmarker()
    measured = {path: landmarker(image) for path, image in track(images.items(), description="Measuring blendshapes")}
    measured = {path: each.blendshapes for path, each in measured.items() if each is not None}
    if not measured:
        raise ValueError("MediaPipe finds no face in any picture.")
    table = np.array(list(measured.values()))
    sides = [
        [weak_teacher.BLENDSHAPES.index(f"{shape}{side}") for side in ("Left", "Right")]
        for shape in BLENDSHAPES.values()
    ]
    numbers = np.stack([table[:, pair].mean(axis=1) for pair in sides], axis=1)
    positive = np.array([[smiles(path)] * len(sides) for path in measured], dtype=float)
    aucs = rank_auc(numbers, positive, list(map(person_of, measured)), list(BLENDSHAPES))["per_column"]
    return {label: {"blendshape": BLENDSHAPES[label]} | _result(auc) for label, auc in aucs.items()} | {
        "found": len(measured)
    }


def _result(auc: dict) -> dict:
    return {key: auc[key] for key in ("value", "interval")}


def worst(neutral: dict, count: int = WORST) -> list[tuple[str, str, dict]]:
    """(format, AU, shares) of the AUs that are read into neutral faces most often, by the shipped thresholds."""
    every = [(name, label, each) for name, aus in neutral["formats"].items() for label, each in aus.items()]
    return sorted(every, key=lambda row: -row[2]["decided"]["value"])[:count]


def told(each: dict) -> str:
    low, high = each["interval"]
    return f"{each['value']:.3f} ({low:.3f} to {high:.3f})"


def show(found: dict) -> None:
    """Print the tables."""
    smile = Table(title="Smiling against neutral, Face Research Lab London Set", title_justify="left")
    for column in ("format", "AU", "AUC of expected value", "AUC of probability", "found in smiling faces"):
        smile.add_column(column, justify="left" if column in ("format", "AU") else "right")
    for name, aus in found["smile"].items():
        for label, each in aus.items():
            smile.add_row(name, label, *(told(each[key]) for key in ("expected", "probability", "found")))
    for label in BLENDSHAPES if "mediapipe" in found else ():
        each = found["mediapipe"][label]
        smile.add_row("MediaPipe", f"{label} ({each['blendshape']})", told(each), "", "")
    neutral = Table(title="Read most often into neutral faces (share of them)", title_justify="left")
    for column in ("format", "AU", "above one half", "by the shipped threshold"):
        neutral.add_column(column, justify="left" if column in ("format", "AU") else "right")
    for name, label, each in worst(found["neutral"]):
        neutral.add_row(name, label, told(each["half"]), told(each["decided"]))
    mean = found["neutral"]["mean"]
    neutral.add_row("mean", "all", told(mean["half"]), told(mean["decided"]), style="bold")
    for table in (smile, neutral):
        Console().print(table)


def measure(model, processor, root: Path, mediapipe: bool) -> dict:
    """Everything but where it comes from; see the head of this file.

    Raises:
        FileNotFoundError: no picture of the set is there.
        ValueError: no face is found in either kind of picture; MediaPipe is asked for and not installed.
    """
    paths = find_pictures(root)
    images, skipped = open_pictures(paths)
    crops, faceless = crop_faces(images, processor.image_processor.crop_size["height"])
    skipped |= faceless
    smiling = np.array([smiles(path) for path in crops], dtype=bool)
    people = list(map(person_of, crops))
    if smiling.all() or not smiling.any():
        raise ValueError(
            f"{root} has faces to read in {np.sum(~smiling)} neutral and {np.sum(smiling)} smiling pictures "
            f"(of {len(paths)}): at least one of each is needed."
        )
    readings = read_crops(model, processor, list(crops.values()), what="Reading faces")
    found = {
        "faces": {
            "set": "Face Research Lab London Set (DeBruine and Jones 2017), neutral and smiling, frontal",
            "people": len({person_of(path) for path in paths}),
            "pictures": len(paths),
            "neutral": int(np.sum(~smiling)),
            "smiling": int(np.sum(smiling)),
            "incomplete": incomplete(paths),
            "skipped": skipped,
            "detector_sha256": YUNET_SHA256,
        },
        "smile": smile_scores(readings, smiling, people),
        "neutral": neutral_shares(readings, smiling, people),
    }
    return found | ({"mediapipe": blendshape_scores(images)} if mediapipe else {})


def say_what_is_missing(faces: dict) -> None:
    for file, problem in faces["skipped"].items():
        print(f"skipped: {file}: {problem}", file=sys.stderr)
    if faces["skipped"]:
        print(f"{len(faces['skipped'])} of {faces['pictures']} pictures were skipped.", file=sys.stderr)
    if faces["incomplete"]:
        names = ", ".join(faces["incomplete"])
        print(f"One of the two pictures is missing of {len(faces['incomplete'])} people: {names}.", file=sys.stderr)
    if faces["people"] != PEOPLE:
        print(f"The set has {PEOPLE} people, this folder {faces['people']}: not the published test.", file=sys.stderr)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, required=True, help="folder with NNN_03.jpg and NNN_08.jpg")
    parser.add_argument(
        "--model", default=str(HOME), help="checkpoint: a folder or a Hub id (default: the shipped one)"
    )
    parser.add_argument("--mediapipe", action="store_true", help="also measure MediaPipe's blendshapes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args(words)
    check_writable(arguments.out)
    find_pictures(arguments.root)  # before anything is loaded
    logging.disable_progress_bar()  # of loading weights
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    found = measure(model, processor, arguments.root, arguments.mediapipe)
    packages = ("opencv-python-headless", *(["mediapipe"] if arguments.mediapipe else []))
    content = {"schema_version": 1, "provenance": origin(arguments.model, model, *packages), **found}
    arguments.out.write_text(json.dumps(jsonable(content), indent=1) + "\n")
    show(found)
    say_what_is_missing(found["faces"])
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"photographs.py: {sentence_of(error)}")
