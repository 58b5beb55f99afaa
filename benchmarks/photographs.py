"""The checkpoint on photographs of people who were told to smile and not to smile: the Face Research Lab London Set.

    python benchmarks/photographs.py --root data/london_set --out runs/photographs.json
    python benchmarks/photographs.py --root data/london_set --mediapipe --out runs/photographs.json

The set (DeBruine and Jones 2017, doi 10.6084/m9.figshare.5047666, CC BY 4.0) shows 102 people, each neutral
(NNN_03.jpg) and smiling (NNN_08.jpg). It is not coded: it says who was told to smile, not which action units (AUs) are
present. Never train or choose anything on it; its pictures are not redistributed. The benchmark measures

- how well AU12, AU6 and AU25 separate smiling from neutral faces (ROC AUC of the expected value and of the probability,
  of the stronger side if a format codes sides), and the share of smiling faces in which each AU is found;
- the share of neutral faces in which each AU is found, with a threshold of one half and with the shipped thresholds.

Faces are detected, cropped and read as by recognize_au.py. --mediapipe also measures MediaPipe's raw blendshapes on the
whole pictures, as the mean of both sides. Intervals are 95 % bootstrap intervals over people.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from page import add_model_option, make_table, origin, runner, say_skipped, told, write_results
from PIL import Image
from rich.console import Console

from au_llava.action_units import MAIN_FORMATS, get_format
from au_llava.au_datasets.conversion import sources
from au_llava.au_evaluation.photographs import Readings, rank_auc, read_crops, shares
from au_llava.au_faces.crop import crop_face
from au_llava.au_faces.detect import YUNET_SHA256, YuNet
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import check_writable
from au_llava.au_runs.progress import track
from au_llava.pictures_au_llava import load_face_image

PEOPLE = 102  # of the whole set
SUFFIXES = {"_03.jpg": False, "_08.jpg": True}  # end of a file's name -> whether the person smiles
SMILE = ("AU12", "AU6", "AU25")  # the AUs of a smile with parted lips
BLENDSHAPES = {"AU12": "mouthSmile", "AU6": "cheekSquint"}  # of MediaPipe; it has none for parted lips
WORST = 10  # AUs in the table of those found most often in neutral faces


def find_pictures(root: Path) -> list[Path]:
    """The pictures of the set, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(path for suffix in SUFFIXES for path in root.glob(f"*{suffix}"))
    if not paths:
        raise FileNotFoundError(
            f"{root} holds no pictures named like 001_03.jpg and 001_08.jpg: give the folder of the London set's "
            "frontal faces."
        )
    return paths


def person_of(path: Path) -> str:
    return path.name.partition("_")[0]


def smiles(path: Path) -> bool:
    return SUFFIXES[path.name[len(person_of(path)) :]]


def open_pictures(paths: Sequence[Path]) -> tuple[dict[Path, Image.Image], dict[str, str]]:
    """The readable pictures, and file name -> problem for the others."""
    images, skipped = {}, {}
    for path in paths:
        try:
            images[path] = load_face_image(path)
        except (ValueError, OSError) as error:
            skipped[path.name] = str(error).replace(str(path), path.name)
    return images, skipped


def crop_faces(images: dict[Path, Image.Image], size: int) -> tuple[dict[Path, Image.Image], dict[str, str]]:
    """The crop of the largest face in every picture, and file name -> problem for the others."""
    detector, crops, skipped = YuNet(), {}, {}
    for path, image in track(images.items(), description="Detecting faces"):
        faces = detector(image)
        if faces:
            crops[path] = crop_face(image, faces[0].eyes, size)
        else:
            skipped[path.name] = "shows no face"
    return crops, skipped


def incomplete(paths: Sequence[Path]) -> list[str]:
    """The people who have only one of the two pictures in `paths`."""
    names = [{person_of(path) for path in paths if smiles(path) == smiling} for smiling in SUFFIXES.values()]
    return sorted(names[0] ^ names[1])


def smile_scores(readings: Readings, smiling: np.ndarray, people: Sequence[str]) -> dict:
    """format -> AU -> {"expected", "probability": ROC AUC, "found": share of smiling faces read as present}."""
    scores = {}
    for name in MAIN_FORMATS:
        labels = [label for label in SMILE if sources(label, get_format(name))]
        sides = [readings.stronger_side(name, label) for label in labels]
        table = {key: np.stack([columns[key] for columns in sides], axis=1) for key in sides[0]}
        positive = np.repeat(smiling[:, None].astype(float), len(labels), axis=1)
        aucs = {key: rank_auc(table[key], positive, people, labels) for key in ("expected", "probability")}
        read = shares(np.where(positive == 1, table["present"], np.nan), people, labels)
        scores[name] = {
            label: {key: _result(auc["per_column"][label]) for key, auc in aucs.items()}
            | {"found": read["per_column"][label]}
            for label in labels
        }
    return scores


def neutral_shares(readings: Readings, smiling: np.ndarray, people: Sequence[str]) -> dict:
    """{"mean", "formats": format -> AU -> …} of {"half", "decided"}: the share of neutral faces with an AU.

    With a threshold of one half, and with the checkpoint's thresholds.
    """
    neutral, people = ~smiling, np.asarray(people)[~smiling]
    above = {"half": readings.probability[neutral] > 0.5, "decided": readings.present[neutral]}
    results = {key: shares(table.astype(float), people, readings.columns) for key, table in above.items()}
    formats = {name: {} for name, _ in readings.columns}
    for name, label in readings.columns:
        formats[name][label] = {key: result["per_column"][name, label] for key, result in results.items()}
    return {"mean": {key: result["mean"] for key, result in results.items()}, "formats": formats}


def blendshape_scores(images: dict[Path, Image.Image]) -> dict:
    """ROC AUC of MediaPipe's raw blendshapes, as means of both sides: AU -> result; "found": pictures with a face.

    Raises:
        ValueError: MediaPipe or its model is not installed, or it finds no face at all.
    """
    from au_llava.au_faces import landmarks

    landmarker = landmarks.Landmarker()
    measured = {path: landmarker(image) for path, image in track(images.items(), description="Measuring blendshapes")}
    measured = {path: face.blendshapes for path, face in measured.items() if face is not None}
    if not measured:
        raise ValueError("MediaPipe finds no face in any picture.")
    table = np.array(list(measured.values()))
    sides = [
        [landmarks.BLENDSHAPES.index(f"{shape}{side}") for side in ("Left", "Right")] for shape in BLENDSHAPES.values()
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
    """(format, AU, shares) of the AUs found most often in neutral faces with the shipped thresholds."""
    rows = [(name, label, found) for name, aus in neutral["formats"].items() for label, found in aus.items()]
    return sorted(rows, key=lambda row: -row[2]["decided"]["value"])[:count]


def show(results: dict) -> None:
    """Print the tables."""
    smile = make_table(
        *("format", "AU", "AUC of expected value", "AUC of probability", "found in smiling faces"),
        text=["format", "AU"],
        title="Smiling against neutral, Face Research Lab London Set",
    )
    for name, aus in results["smile"].items():
        for label, scores in aus.items():
            smile.add_row(name, label, *(told(scores[key]) for key in ("expected", "probability", "found")))
    for label in BLENDSHAPES if "mediapipe" in results else ():
        scores = results["mediapipe"][label]
        smile.add_row("MediaPipe", f"{label} ({scores['blendshape']})", told(scores), "", "")
    neutral = make_table(
        *("format", "AU", "above one half", "by the shipped threshold"),
        text=["format", "AU"],
        title="Found most often in neutral faces (share of them)",
    )
    for name, label, found in worst(results["neutral"]):
        neutral.add_row(name, label, told(found["half"]), told(found["decided"]))
    mean = results["neutral"]["mean"]
    neutral.add_row("mean", "all", told(mean["half"]), told(mean["decided"]), style="bold")
    Console().print(smile, neutral)


def measure(model, processor, root: Path, mediapipe: bool) -> dict:
    """All results, without their provenance; see the head of this file.

    Raises:
        FileNotFoundError: no picture of the set.
        ValueError: no face in either kind of picture, or MediaPipe is asked for and not installed.
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
    results = {
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
    return results | ({"mediapipe": blendshape_scores(images)} if mediapipe else {})


def say_what_is_missing(faces: dict) -> None:
    """Print to standard error which pictures were skipped or are missing from the set."""
    say_skipped(faces["skipped"], faces["pictures"])
    if faces["incomplete"]:
        names = ", ".join(faces["incomplete"])
        print(f"One of the two pictures is missing for {len(faces['incomplete'])} people: {names}.", file=sys.stderr)
    if faces["people"] != PEOPLE:
        print(f"The set has {PEOPLE} people, this folder {faces['people']}: not the published test.", file=sys.stderr)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with NNN_03.jpg and NNN_08.jpg")
    add_model_option(parser)
    parser.add_argument("--mediapipe", action="store_true", help="also measure MediaPipe's blendshapes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    find_pictures(arguments.root)  # fails before anything is loaded
    model, processor = load_checkpoint(arguments.model, dtype="float32")
    results = measure(model, processor, arguments.root, arguments.mediapipe)
    packages = ("onnxruntime", *(["mediapipe"] if arguments.mediapipe else []))
    write_results(arguments.out, {"provenance": origin(arguments.model, model, *packages), **results})
    show(results)
    say_what_is_missing(results["faces"])


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
