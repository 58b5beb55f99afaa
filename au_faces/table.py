"""Reads a table of faces that the user gives: which face is where, by file and frame."""

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT, Face
from au_llava.au_runs.names import UNKNOWN, unescaped

BOX_EYES = np.array([[0.24, 0.35], [0.76, 0.35]])  # where the eyes lie in one of YuNet's boxes, of its sides


class NoRow(ValueError):
    """A table of faces has no row for a picture or frame, not even one that says it shows no face."""


class FacesTable:
    """Faces that the user gives, by file and frame.

    A CSV with one face per row. Columns, found by their names:

    - `file` (or py-feat's `input`): path of the file, or the end of it. Without it, the rows hold for every file.
    - `frame`: frame of a video, counted from 1, as in OpenFace; from 0 in tables of py-feat (with `input`) and in any
      that has a frame 0. Ignored for pictures: py-feat writes their position in the list. Default 1.
    - `face_id` and `confidence`, if known.
    - the eyes: `eye_right_x`, `eye_right_y`, `eye_left_x`, `eye_left_y` (the person's own right and left, as
      `recognize_au.py` writes them), or the 68 landmarks of OpenFace and py-feat (`x_36` to `y_47` are used),
    - or only a box: `FaceRectX`, `FaceRectY`, `FaceRectWidth`, `FaceRectHeight` (py-feat's names). A box does not say
      how the head is tilted; the eyes are assumed level, where they usually lie in YuNet's boxes.

    A row without numbers in these columns says that the frame shows no face.

    Raises:
        ValueError: not a CSV table in UTF-8, columns are missing or there twice, or a cell is not a number.
        OSError: the file cannot be read.
    """

    EYES = ("eye_right_x", "eye_right_y", "eye_left_x", "eye_left_y")
    BOX = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
    OTHERS = ("file", "input", "frame", "face_id", "confidence", "success")
    LANDMARKS = tuple(f"{axis}_{number}" for number in range(36, 48) for axis in "xy")

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"There is no table of faces {path}: name a CSV file.")
        self.path = path
        self.faces: dict[tuple[str, ...], dict[int, list[Face]]] = {}  # parts of the file's path -> frame -> faces
        self.names: dict[tuple[str, ...], str] = {}  # parts of a path -> as the table has it
        self.matched: dict[tuple[str, ...], tuple[str, ...] | str] = {}  # file -> its rows, or an error message
        try:
            with path.open(encoding="utf-8-sig", newline="") as handle:
                columns = self._read(csv.DictReader(handle, skipinitialspace=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as a CSV table in UTF-8: {error}.") from error
        from_zero = {"frame", "input"} <= columns and "file" not in columns
        if from_zero or any(0 in frames for frames in self.faces.values()):
            self.faces = {
                parts: {number + 1: faces for number, faces in frames.items()} for parts, frames in self.faces.items()
            }

    def _read(self, reader: csv.DictReader) -> set[str]:
        """Add all rows; returns the names of the columns."""
        names = [name.strip() for name in reader.fieldnames or ()]
        kind = next((kind for kind in (self.EYES, self.LANDMARKS, self.BOX) if set(kind) <= set(names)), None)
        if kind is None:
            raise ValueError(
                f"{self.path} has neither {', '.join(self.EYES)}, nor the landmarks x_36 to y_47, nor "
                f"{', '.join(self.BOX)}, separated by commas; it has {', '.join(names[:20]) or 'no columns'}."
            )
        twice = [name for name in (*self.OTHERS, *self.BOX, *kind) if names.count(name) > 1]
        if twice:
            raise ValueError(f"{self.path} has the column {twice[0]} more than once.")
        for number, row in enumerate(reader, start=2):
            try:
                self._add({name.strip(): value or "" for name, value in row.items() if name}, kind)
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}.") from error
        return set(names)

    def _add(self, row: Mapping[str, str], kind: tuple[str, ...]) -> None:
        file = unescaped(row["file"]) if row.get("file") else row.get("input", "")
        parts = _parts(file)
        self.names.setdefault(parts, file)
        frame = _number(row.get("frame", ""))
        frame = 1 if np.isnan(frame) else frame
        if frame != int(frame) or frame < 0:
            raise ValueError(f"frame {row['frame']} is not a whole number")
        faces = self.faces.setdefault(parts, {}).setdefault(int(frame), [])
        numbers = np.array([_number(row[name]) for name in kind]).reshape(-1, 2)
        if np.isnan(numbers).any() or row.get("success", "").strip().lower() in ("0", "0.0", "false"):
            return
        box = np.array([_number(row.get(name, "")) for name in self.BOX])
        if kind == self.BOX:
            eyes = box[:2] + BOX_EYES * box[2:]
        else:
            eyes = numbers if len(numbers) == 2 else numbers.reshape(2, 6, 2).mean(axis=1)
            if np.isnan(box).any():  # the crop's own square, but for the head's tilt
                side = np.hypot(*(eyes[1] - eyes[0])) / EYE_DISTANCE
                box = np.array([*(eyes.mean(axis=0) - side * np.array([0.5, EYE_HEIGHT])), side, side])
        face_id, confidence = (_number(row.get(name, "")) for name in ("face_id", "confidence"))
        if face_id % 1 > 0:
            raise ValueError(f"face_id {row['face_id']} is not a whole number")
        face_id = None if np.isnan(face_id) else int(face_id)
        confidence = None if np.isnan(confidence) else confidence
        faces.append(Face(tuple(map(tuple, eyes.tolist())), tuple(box.tolist()), confidence, face_id))

    def match(self, files: Iterable[Path]) -> None:
        """Find the rows of these files. Give all files at once: rows that fit two of them belong to neither.

        Folders may have been moved, renamed or mounted elsewhere, so paths are compared from their end: a file gets
        the rows whose path shares the most parts with its own, if neither fits another equally well.

        Raises:
            ValueError: the table names no file, but holds the frames of a video, and there are several files.
        """
        files = {_parts(str(file.absolute())): file for file in files}
        if () in self.faces and len(self.faces[()]) > 1 and len(files) > 1:
            raise ValueError(
                f"{self.path} names no file and holds {len(self.faces[()])} frames, so it describes one video, but "
                f"there are {len(files)} files. Add a column file, or read that video alone."
            )
        rows = {parts for parts in self.faces if parts}
        left = dict(files)
        for depth in range(max(map(len, rows), default=0), 0, -1):
            ends = defaultdict(list)
            for parts in rows:
                if len(parts) >= depth:
                    ends[parts[-depth:]].append(parts)
            of_end = defaultdict(list)
            for parts in left:
                if parts[-depth:] in ends:
                    of_end[parts[-depth:]].append(parts)
            for end, found in of_end.items():
                if len(found) == len(ends[end]) == 1:
                    self.matched[found[0]] = ends[end][0]
                else:
                    self._tell_apart(found, ends[end], files)
                rows -= set(ends[end])
                for parts in found:
                    del left[parts]
        self.matched |= dict.fromkeys(left, ())

    def _tell_apart(self, found: Sequence[tuple], rows: Sequence[tuple], files: Mapping[tuple, Path]) -> None:
        """Store an error message for files that fit the same rows."""
        named = ", ".join(sorted(self.names[parts] for parts in rows)[:3])
        for parts in found:
            others = sorted(str(files[other]) for other in found if other != parts)[:3]
            fits = (
                f"{named} fit{'s' * (len(rows) == 1)} it" + (f" and {', '.join(others)}" if others else "") + " alike"
            )
            self.matched[parts] = f"{files[parts]} has no row of its own in {self.path}: {fits}."

    def __call__(self, file: Path, frame: int | None) -> list[Face]:
        """The faces of a video's frame, or of a picture (`frame` None); [] if its row says that it shows none.

        Raises:
            NoRow: the table has no row for it, or several files fit the same rows (see `match`).
        """
        parts = _parts(str(file.absolute()))
        if parts not in self.matched:
            self.match([file])
        row = self.matched[parts]
        if isinstance(row, str):
            raise NoRow(row)
        frames = self.faces.get(row)
        if frames is None:
            raise NoRow(f"{file} has no row in {self.path}.")
        if frame is None and row == () and len(frames) > 1:
            raise NoRow(f"{self.path} names no file and holds {len(frames)} frames of a video, which {file} is not.")
        if frame is None:  # a picture listed twice has two positions in the list, but one face
            return frames[min(frames)]
        if frame not in frames:
            raise NoRow(f"{file} has no row for frame {frame} in {self.path}.")
        return frames[frame]


def _number(cell: str) -> float:
    """The number in a cell; NaN if the cell says that it is unknown. Raises ValueError for other text and infinity."""
    number = float("nan") if cell.strip().lower() in UNKNOWN else float(cell)
    if np.isinf(number):
        raise ValueError(f"{cell} is not a finite number")
    return number


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path from any system, in one spelling: macOS splits accents from letters."""
    return tuple(part for part in re.split(r"[\\/]+", unicodedata.normalize("NFC", name)) if part not in ("", "."))
