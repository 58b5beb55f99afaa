"""The tables: one row per face, as CSV, Parquet or JSON Lines; the change against a person's neutral face.

Columns carry OpenFace's names where OpenFace has them (`frame`, `face_id`, `timestamp`, `confidence`, `success`,
`AU12_c`, `AU12_r`) and py-feat's for the box of the face, whose readers find them under these names.
A file's name that is no UTF-8 is escaped (au_runs/names.py).
"""

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_recognition.runner import Journal, Plan
from au_llava.au_runs.names import escaped

BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
EYES = ("eye_right_x", "eye_right_y", "eye_left_x", "eye_left_y")
INTEGERS = ("frame", "face_id", "success")
FACE_COLUMNS = ("file", "frame", "face_id", "timestamp", "confidence", "success", *BOX, "FaceScore", *EYES)
SUFFIXES = (".csv", ".parquet", ".jsonl")


def openface_label(label: str) -> str:
    """AU1 -> AU01, AU43L -> AU43L: two digits, as OpenFace writes them."""
    return re.sub(r"\d+", lambda digits: f"{int(digits[0]):02d}", label, count=1)


def measure(fmt: AUFormat) -> str:
    """The one number that stands for an AU in pictures and changes: probability of presence, or expected strength."""
    return "probability" if fmt.scale == "occurrence" else "expected"


def heading(fmt: AUFormat) -> str:
    """What `measure` is, in words."""
    kinds = {"occurrence": "probability of presence", "intensity": "expected intensity, 0 to 5"}
    return kinds.get(fmt.scale, "expected strength, 0 to 1")


def au_columns(formats: Sequence[AUFormat], change: bool = False) -> dict[str, tuple[str, int, str]]:
    """Column -> (format, number of the AU, what of it is written).

    Occurrence: `AU01_c` (0 or 1) and `AU01_p` (probability of presence, 0 to 1); intensity: `AU01_r` (mean of the
    distribution, 0 to 5); continuous: `AU43L` (mean, 0 to 1). Where two formats would write the same column, both are
    prefixed by the format's name.

    Args:
        change: add `AU01_p_change`, `AU01_r_change` and `AU43L_change`, see `changes`.
    """
    of_format = {fmt.name: {} for fmt in formats}
    for fmt in formats:
        ending = {"occurrence": "_p", "intensity": "_r"}.get(fmt.scale, "")
        for number, label in enumerate(fmt.labels):
            name, columns = openface_label(label), of_format[fmt.name]
            if fmt.scale == "occurrence":
                columns[f"{name}_c"] = (fmt.name, number, "value")
            columns[f"{name}{ending}"] = (fmt.name, number, measure(fmt))
            if change:
                columns[f"{name}{ending}_change"] = (fmt.name, number, "change")
    count = Counter(column for columns in of_format.values() for column in columns)
    return {
        f"{name}.{column}" if count[column] > 1 else column: what
        for name, columns in of_format.items()
        for column, what in columns.items()
    }


def faces_read(journal: Journal, plan: Plan, ids: Mapping) -> Iterator[dict]:
    """One dict per face: `file`, `frame`, `time`, `face_id` and what reading.py keeps of it, in the plan's order.

    A frame of a video without a face gives one too, its `face_id` None: the time axis stays whole. A picture without a
    face gives none.

    Args:
        ids: what `face_ids` gives.
    """
    for line in journal:
        is_video = isinstance(plan.parts[line["part"]], Path)
        for frame, numbers in zip(line["frames"], ids[line["part"], line["chunk"]], strict=True):
            where = {"file": frame["file"], "frame": frame["frame"], "time": frame["time"]}
            for face, number in sorted(zip(frame["faces"], numbers, strict=True), key=lambda pair: pair[1]):
                yield {**where, **face, "face_id": number}
            if is_video and not frame["faces"]:
                yield {**where, "face_id": None}


class Neutral:
    """The neutral face of every person, and the change against it.

    change = measure - neutral measure, where the measure is the expected strength (intensity, continuous) or the
    probability of presence (occurrence), and the neutral measure is, AU by AU,

    - "median": its median over all frames of the person (`face_id`) in the video. As OpenFace does with its dynamic
      models, this takes a face to be at rest most of the time;
    - a number: its value in that frame of the video, unknown where the person is not in that frame;
    - the answers of a neutral picture: its value there, for everyone.

    It is not clipped: below zero, an AU is weaker than at rest.

    Args:
        faces: what `faces_read` gives. neutral: as above.
    """

    def __init__(self, faces: Iterable[dict], formats: Sequence[AUFormat], neutral: str | int | Mapping):
        self.formats = formats
        self.everyone = self._measures(neutral) if isinstance(neutral, Mapping) else {}
        of_person = defaultdict(list)
        if not self.everyone:
            for face in faces:
                if face["face_id"] is not None and neutral in ("median", face["frame"]):
                    of_person[face["file"], face["face_id"]].append(self._measures(face["answers"]))
        self.of_person = {
            person: {fmt.name: np.median([each[fmt.name] for each in read], axis=0) for fmt in formats}
            for person, read in of_person.items()
        }

    def add_change(self, face: dict) -> None:
        """Put a list `change` beside the other readings of a face; None where it is unknown."""
        if face["face_id"] is None:
            return
        rest = self.of_person.get((face["file"], face["face_id"]), self.everyone)
        for name, read in self._measures(face["answers"]).items():
            change = read - rest.get(name, np.nan)
            face["answers"][name]["change"] = [None if np.isnan(each) else round(float(each), 4) for each in change]

    def _measures(self, answers: Mapping) -> dict[str, np.ndarray]:
        """Format -> (AUs,), NaN where unread."""
        return {fmt.name: np.array(answers[fmt.name][measure(fmt)], float) for fmt in self.formats}


@contextmanager
def open_table(path: Path, formats: Sequence[AUFormat], change: bool = False):
    """A function that writes one face; the file appears when all are written, or not at all.

    Args:
        path: its suffix, .csv, .parquet or .jsonl, says what is written.

    Raises:
        OSError: no permission, or no space left.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    columns = au_columns(formats, change)
    kind = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}[path.suffix.lower()]
    try:
        with kind(unfinished, formats if kind is _json_lines else columns) as write:
            yield write
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _row(face: Mapping, columns: Mapping[str, tuple[str, int, str]]) -> dict:
    """The cells of a face; None where nothing is known."""
    row = {"file": escaped(face["file"]), "frame": face["frame"], "face_id": face["face_id"], "timestamp": face["time"]}
    if face["face_id"] is None:
        return {**dict.fromkeys((*FACE_COLUMNS, *columns)), **row, "success": 0, "confidence": 0.0}
    eyes = (None,) * 4 if face["eyes"] is None else [number for eye in face["eyes"] for number in eye]
    row |= {"confidence": face["confidence"], "success": 1, **dict(zip(BOX, face["box"], strict=True))}
    row |= {"FaceScore": face["confidence"], **dict(zip(EYES, eyes, strict=True))}
    return row | {column: face["answers"][name][what][number] for column, (name, number, what) in columns.items()}


@contextmanager
def _csv(path: Path, columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*FACE_COLUMNS, *columns])
        writer.writeheader()
        yield lambda face: writer.writerow(_row(face, columns))


@contextmanager
def _parquet(path: Path, columns):
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    types = {"file": pyarrow.string(), **dict.fromkeys(INTEGERS, pyarrow.int64())}
    schema = pyarrow.schema([(name, types.get(name, pyarrow.float64())) for name in (*FACE_COLUMNS, *columns)])
    rows = []
    with ParquetWriter(path, schema) as writer:

        def write(face, most=2000):
            if face is not None:
                rows.append(_row(face, columns))
            if len(rows) >= most:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows.clear()

        yield write
        write(None, most=1)


@contextmanager
def _json_lines(path: Path, formats):
    """Everything that was read: per format and AU a dict of what reading.py keeps."""
    with path.open("w", encoding="utf-8") as file:

        def write(face):
            row = _row(face, {})
            if face["face_id"] is not None:
                row["answers"] = {
                    fmt.name: {
                        label: {what: values[number] for what, values in face["answers"][fmt.name].items()}
                        for number, label in enumerate(fmt.labels)
                    }
                    for fmt in formats
                }
                row |= {"contradictions": face["contradictions"], "problems": face["problems"]}
            file.write(json.dumps(row) + "\n")

        yield write
