"""The tables, one row per face, as CSV, Parquet or JSON Lines; and which number stands for an AU in pictures.

Columns have OpenFace's names where OpenFace has such a column (`frame`, `face_id`, `timestamp`, `confidence`,
`success`, `AU12_c`, `AU12_r`) and py-feat's for the box of the face, so that readers of those tables find them.
A file name that is not UTF-8 is escaped (au_runs/names.py).
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from au_llava.action_units import AUFormat
from au_llava.au_faces.table import FacesTable
from au_llava.au_runs.files import replacing
from au_llava.au_runs.names import escaped

BOX, EYES = FacesTable.BOX, FacesTable.EYES  # so that --faces takes the tables that are written here
POSE = ("pose_Rx", "pose_Ry", "pose_Rz")  # radians, OpenFace's signs (au_faces/points.py)
INTEGERS = ("frame", "face_id", "success")
FACE_COLUMNS = ("file", "frame", "face_id", "timestamp", "confidence", "success", *BOX, "FaceScore", *EYES, *POSE)
SUFFIXES = (".csv", ".parquet", ".jsonl")
ROWS_AT_ONCE = 2000  # that are written to a Parquet file together


def openface_label(label: str) -> str:
    """AU1 -> AU01, AU43L -> AU43L: two digits, as OpenFace writes them."""
    return re.sub(r"\d+", lambda digits: f"{int(digits[0]):02d}", label, count=1)


def measure(fmt: AUFormat) -> str:
    """The one number that stands for an AU in pictures and changes: probability of presence, or expected strength."""
    return "probability" if fmt.scale == "occurrence" else "expected"


def strengths(answers: Mapping[str, Mapping], formats: Sequence[AUFormat]) -> dict[str, float]:
    """The AUs that are present: label -> `measure` as a share of the scale, 1 where it is unknown.

    An AU is taken from the format with the most values among those that have it, or one of its sides.

    Args:
        answers: format name -> answer, as `Readings` gives them.
    """
    shares, known = {}, set()
    for fmt in sorted(formats, key=lambda fmt: -len(fmt.value_numbers)):
        answer = answers[fmt.name]
        for label, present, value in zip(fmt.labels, answer["present"], answer[measure(fmt)], strict=True):
            if present and label.rstrip("LRTB") not in known:
                shares[label] = 1.0 if value is None else value / fmt.value_numbers[-1]
        known |= {label.rstrip("LRTB") for label in fmt.labels}
    return shares


def heading(fmt: AUFormat) -> str:
    """`measure` in words."""
    kinds = {"occurrence": "probability of presence", "intensity": "expected intensity, 0 to 5"}
    return kinds.get(fmt.scale, "expected strength, 0 to 1")


def au_columns(formats: Sequence[AUFormat], change: bool = False) -> dict[str, tuple[str, int, str]]:
    """The columns of AUs: name -> (format, number of the AU in it, which of its numbers).

    Occurrence: `AU01_c` (0 or 1) and `AU01_p` (probability of presence, 0 to 1); intensity: `AU01_r` (mean of the
    distribution, 0 to 5); continuous: `AU43L` (mean, 0 to 1). If two formats have a column of the same name, both are
    prefixed with the format's name.

    Args:
        change: also have `AU01_p_change`, `AU01_r_change` and `AU43L_change`, see neutral.py.
    """
    by_format = {fmt.name: {} for fmt in formats}
    for fmt in formats:
        ending = {"occurrence": "_p", "intensity": "_r"}.get(fmt.scale, "")
        for number, label in enumerate(fmt.labels):
            name, columns = openface_label(label), by_format[fmt.name]
            if fmt.scale == "occurrence":
                columns[f"{name}_c"] = (fmt.name, number, "value")
            columns[f"{name}{ending}"] = (fmt.name, number, measure(fmt))
            if change:
                columns[f"{name}{ending}_change"] = (fmt.name, number, "change")
    count = Counter(column for columns in by_format.values() for column in columns)
    return {
        f"{name}.{column}" if count[column] > 1 else column: source
        for name, columns in by_format.items()
        for column, source in columns.items()
    }


@contextmanager
def open_table(
    path: Path, formats: Sequence[AUFormat], change: bool = False, derived: Sequence[str] = ()
) -> Iterator[Callable[[Mapping], None]]:
    """A function that writes one face, as `Readings` gives it; the file appears when all are written, or not at all.

    Args:
        path: its suffix (.csv, .parquet or .jsonl) decides the format.
        change: whether faces hold the change against the neutral face.
        derived: further columns, whose values faces hold as `derived` (derived.py).

    Raises:
        OSError: no permission, or no space left.
    """
    with replacing(path) as unfinished, _writer(path.suffix.lower(), unfinished, formats, change, derived) as write:
        yield write


def _writer(
    suffix: str, path: Path, formats: Sequence[AUFormat], change: bool, derived: Sequence[str]
) -> AbstractContextManager:
    if suffix == ".jsonl":
        return _json_lines(path, formats)
    return {".csv": _csv, ".parquet": _parquet}[suffix](path, au_columns(formats, change) | dict.fromkeys(derived))


def _row(face: Mapping, columns: Mapping[str, tuple[str, int, str] | None]) -> dict:
    """The cells of a face; None where nothing is known. `columns`: as from `au_columns`, None for a derived one."""
    row = {"file": escaped(face["file"]), "frame": face["frame"], "face_id": face["face_id"], "timestamp": face["time"]}
    if face["face_id"] is None:
        return {**dict.fromkeys((*FACE_COLUMNS, *columns)), **row, "success": 0, "confidence": 0.0}
    eyes = (None,) * 4 if face["eyes"] is None else [number for eye in face["eyes"] for number in eye]
    row |= {"confidence": face["confidence"], "success": 1, **dict(zip(BOX, face["box"], strict=True))}
    row |= {"FaceScore": face["confidence"], **dict(zip(EYES, eyes, strict=True))}
    row |= zip(POSE, face["pose"] or (None,) * 3, strict=True)
    for column, source in columns.items():
        if source is None:
            row[column] = face["derived"][column]
        else:
            name, number, kind = source
            row[column] = face["answers"][name][kind][number]
    return row


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

        def flush():
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        def write(face):
            rows.append(_row(face, columns))
            if len(rows) >= ROWS_AT_ONCE:
                flush()

        yield write
        if rows:
            flush()


@contextmanager
def _json_lines(path: Path, formats):
    """Everything that was read: per format and AU a dict of its numbers."""
    with path.open("w", encoding="utf-8") as file:

        def write(face):
            row = _row(face, {})
            if face["face_id"] is not None:
                row["answers"] = {
                    fmt.name: {
                        label: {kind: values[number] for kind, values in face["answers"][fmt.name].items()}
                        for number, label in enumerate(fmt.labels)
                    }
                    for fmt in formats
                }
                row |= {"contradictions": face["contradictions"], "problems": face["problems"]}
                if "derived" in face:
                    row["derived"] = face["derived"]
            file.write(json.dumps(row) + "\n")

        yield write
