"""A table of codes by eye: which action units somebody saw in pictures of faces, to be stored as weak values.

A CSV with a row for each picture: `file`, as the reader names it, and columns such as AU4, AU12 or AU12L from 0
(absent) to 5 (maximum), as FACS's letters. An empty cell is unknown: not coded, hidden, or in doubt. A column without a
side holds for both. Codes of people who are no FACS coders, or of machines, are estimates, not labels: they are for
training, and what is measured against them is agreement, not accuracy.
"""

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from au_llava.action_units import ACTION_UNITS, FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import Defects

MAXIMUM = 5  # FACS's E
SLIGHT = 1.5 / MAXIMUM  # share of the scale of a slight movement (FACS's A to B), which occurrence counts as present
# What the guide tells apart, as shares of the scale: absent, slight (FACS's A to B), clear (C) and strong (D to E).
CLASSES = (0.0, SLIGHT, 2 * SLIGHT, 3 * SLIGHT)
STARTS = (0.1, 0.5, 0.7)  # the least shares of the last three, halfway between the letters
RAREST = 0.005  # share of the coded pictures that must show an AU; with fewer, to be coded would be the sign of absence
UNCODED = "pictures without codes, left out"


class Codes:
    """Codes by eye of pictures.

    Args:
        path: the table, see the head of this file.

    Attributes:
        files: the pictures, file -> AU label -> share of the scale from 0 to 1, NaN where unknown.
        labels: of the AUs that have a column.
        rare: those of them that fewer than `RAREST` of the pictures show. They give no weak values: they would teach
            that no picture like these shows them.
        sha256: of the table, for manifests.

    Raises:
        ValueError: it cannot be read as a table, lacks `file` or columns of AUs, names a picture twice, or a code is
            not a number from 0 to 5.
        FileNotFoundError: there is no such file. OSError: it cannot be opened.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"there is no table of codes {path}: name a CSV.")
        content = path.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        levels = _levels(path, _read(path, content))
        self.labels = tuple(levels.columns)
        shown, known = (levels > 0).sum(), levels.count()
        self.rare = tuple(label for label in self.labels if shown[label] < RAREST * known[label])
        shares = (levels / MAXIMUM).to_dict("records")
        self.files: Mapping[str, Mapping[str, float]] = dict(zip(levels.index, shares, strict=True))

    def weak_values(self, file: str, formats: Sequence[str] = MAIN_FORMATS) -> dict[str, list[float]]:
        """Format -> the picture's codes as shares of the scale from 0 to 1, NaN where unknown.

        On an occurrence scale they say how surely the AU is present: fully from `SLIGHT` on, since BP4D's coders code
        weak movements as present; less is the mean of observers who disagree. A whole lip's AU (AU28) says of its two
        parts only that both are absent. Raises KeyError without such a picture.
        """
        seen = {label: share for label, share in self.files[file].items() if label not in self.rare}
        weak = {name: np.array([_share(seen, label) for label in FORMATS[name].labels]) for name in formats}
        occurrence = [name for name in formats if FORMATS[name].scale == "occurrence"]
        weak |= {name: np.minimum(1, weak[name] / SLIGHT) for name in occurrence}
        return {name: shares.tolist() for name, shares in weak.items()}


def _read(path: Path, content: bytes) -> pd.DataFrame:
    """The cells as text, indexed by file; a column for each AU."""
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, encoding="utf-8-sig", skipinitialspace=True)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip().splitlines()[0]}") from error
    labels = [name for name in table.columns if name in ACTION_UNITS]
    if not labels or {"file", *labels} != set(table.columns):
        raise ValueError(
            f"{path} needs the column file and columns of AUs, such as AU12 or AU12L, and no others; it has "
            f"{', '.join(table.columns)}."
        )
    if table.empty:
        raise ValueError(f"{path} holds no picture: give it a row for each.")
    nameless, twice = table["file"].isna(), table["file"].duplicated()
    if nameless.any():
        raise ValueError(f"{path} must name every picture once; line {nameless.argmax() + 2} names none.")
    if twice.any():
        raise ValueError(f"{path} must name every picture once; {table['file'][twice.argmax()]!r} has two rows.")
    return table.set_index("file")[labels]


def _levels(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The codes as numbers, NaN where unknown."""
    levels = table.apply(pd.to_numeric, errors="coerce")
    wrong = (table.notna() & ~levels.apply(lambda column: column.between(0, MAXIMUM))).to_numpy()
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{path}, line {row + 2}: {table.columns[column]} is {table.iat[row, column]!r}; a code is a number from "
            f"0 to {MAXIMUM}, or empty if unknown."
        )
    return levels


def notes_on(codes: Codes | None) -> tuple[str, ...]:
    """What a user of the records must know about the codes."""
    if codes is None or not codes.rare:
        return ()
    return (f"AUs that fewer than {RAREST:.1%} of the coded pictures show, left unknown: {', '.join(codes.rare)}",)


def count_missing(codes: Codes | None, files: Iterable[str], defects: Defects) -> None:
    """Count the codes of pictures that are not among `files`."""
    absent = sorted(codes.files.keys() - set(files)) if codes is not None else []
    if absent:
        defects.add("codes of pictures that are not there, left out", absent[0], len(absent))


def _share(seen: Mapping[str, float], label: str) -> float:
    whole = seen.get(label[:-1], math.nan) if ACTION_UNITS[label].side else math.nan
    if ACTION_UNITS[label].side in ("top", "bottom") and whole > 0:
        whole = math.nan
    share = seen.get(label, math.nan)
    return whole if math.isnan(share) else share
