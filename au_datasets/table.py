"""One's own data: a CSV or Parquet table with an image, a subject and one column per AU; and EmotioNet's table.

An AU column is named as the format's label, in any case, with leading zeros, spaces or quotes: AU12, au_12, 'AU 1'.
Columns "clip" and "frame" are taken if they are there; a frame is otherwise the number of the row. A label is NaN where
the table lacks the column, the cell is empty, or it holds what the scale does not have (counted). An image is a path,
absolute or below `images`.

EmotioNet: ROOT/EmotioNet_FACS_aws_2020_24600.csv, columns URL, URL orig, 'AU 1' …; 999 is unknown; an image is named as
its URL ends (N_0000000001_00002.jpg) and lies in any folder below IMAGES. An .xlsx has to be saved as .csv first.
Source: cosanlab/py-feat, trainAUvisModel.py. People are not named: images of one prefix (N_0000000001) count as one
person, the safe side. **Not verified against a real copy:** what the prefix means.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..action_units import FORMATS, get_format
from .reading import IMAGE_SUFFIXES, Clip, Known, Picture, Source, check_root, join, on_scale
from .records import Defects

_KNOWN_EMOTIONET = Known({"images": 24600})  # the number in the file's name


@dataclass(frozen=True)
class Rows:
    """A table that has been read. N rows, L labels of the format."""

    images: list[str]  # N paths; empty where there is no such file
    frames: np.ndarray  # (N,) int64
    values: np.ndarray  # (N, L) float64; NaN for an empty cell, infinity for one that is no number
    of_clip: dict[tuple[str, str], np.ndarray]  # (subject, clip) -> numbers of its rows
    lacking: tuple[str, ...]  # labels without a column


def open_table(
    path: Path, name: str, images: Path | None = None, image_column: str = "image", subject_column: str = "subject"
) -> Source:
    """The table in `path`, whose stem becomes the records' `dataset`.

    Args:
        name: the format, in `FORMATS`: which AUs, and on which scale. Further AUs of the table are left out.
        images: the folder that the image column's paths begin at; the table's own by default.

    Raises:
        FileNotFoundError: where there is no such table.
        ValueError: for an unknown format, a table without the needed columns or with cells of them empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    folder = images or path.parent
    load = partial(_load_table, path, get_format(name).name, folder, image_column, subject_column)
    return _source(path.stem, path, folder, name, load, ())


def open_emotionet(root: Path, images: Path | None = None) -> Source:
    """The copy of EmotioNet in `root`. Raises FileNotFoundError naming what is missing."""
    check_root(root)
    tables = sorted(root.rglob("EmotioNet_FACS*.csv"))
    if not tables:
        raise FileNotFoundError(f"no EmotioNet_FACS_aws_2020_24600.csv below {root} (an .xlsx has to be saved as .csv)")
    load = partial(_load_emotionet, tables[0], images or root)
    return _source("emotionet", tables[0], root, "emotionet", load, (999,), _KNOWN_EMOTIONET)


def _source(
    dataset: str,
    path: Path,
    root: Path,
    name: str,
    load: Callable[[], Rows],
    unknown: Collection[float],
    known: Known | None = None,
) -> Source:
    rows, defects = load(), Defects()
    for label in rows.lacking:
        defects.add("AUs of the format without a column, not annotated", label)
    return Source(
        dataset=dataset,
        root=root,
        layout=path.name,
        clips=[Clip(*key, labels=(path,)) for key in sorted(rows.of_clip)],
        read=partial(read_clip, dataset, name, load, unknown),
        clips_per_shard=5000,
        known=known or Known(),
        defects=defects,
    )


def read_clip(
    dataset: str, name: str, load: Callable[[], Rows], unknown: Collection[float], clip: Clip, defects: Defects
) -> Iterator[dict]:
    """The records of a clip's rows."""
    rows, where = load(), f"{clip.subject}/{clip.name}"
    numbers = rows.of_clip[clip.subject, clip.name]
    frames = rows.frames[numbers].tolist()
    values = on_scale(rows.values[numbers], name, where, defects, unknown).tolist()
    images, labels = [], {}
    for number, frame, row in zip(numbers, frames, values, strict=True):
        if frame in labels:
            defects.add("rows for a frame that has one, left out", f"{where} frame {frame}")
            continue
        labels[frame] = row
        if rows.images[number]:
            images.append((frame, Picture(rows.images[number])))
    yield from join(dataset, clip, images, {name: labels}, defects)


def _read(path: Path, name: str) -> tuple[pd.DataFrame, np.ndarray, tuple[str, ...]]:
    """A table with plain column names, its (rows, labels) values for a format, and the labels that it lacks."""
    if path.suffix.lower() == ".parquet":
        table = pd.read_parquet(path)
    else:
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True, low_memory=False)
    table.columns = [str(column).strip().strip("'\"").strip() for column in table.columns]
    columns = {re.sub(r"^(A[UD])[\s_]*0*(?=\d)", r"\1", column.upper()): column for column in table.columns}
    labels = FORMATS[name].labels
    values = np.full((len(table), len(labels)), np.nan)
    for index, label in enumerate(labels):
        if label in columns:
            cells = table[columns[label]]
            numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
            values[:, index] = np.where(np.isnan(numbers) & cells.notna(), np.inf, numbers)
    lacking = tuple(label for label in labels if label not in columns)
    if len(lacking) == len(labels):
        raise ValueError(f"{path} has no column for any AU of {name}: {', '.join(labels)}")
    return table, values, lacking


def _rows_of_clip(subjects: pd.Series, clips: pd.Series) -> dict[tuple[str, str], np.ndarray]:
    return pd.DataFrame({"subject": subjects, "clip": clips}).groupby(["subject", "clip"]).indices


@lru_cache(maxsize=1)  # once per process
def _load_table(path: Path, name: str, folder: Path, image_column: str, subject_column: str) -> Rows:
    table, values, lacking = _read(path, name)
    for column in (image_column, subject_column):
        if column not in table:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(table.columns)}")
        if table[column].isna().any():
            raise ValueError(f"column {column!r} of {path} has empty cells")
    if not table[image_column].map(lambda cell: isinstance(cell, str)).all():
        raise ValueError(f"column {image_column!r} of {path} must hold paths of image files")
    paths = [os.path.join(folder, cell) for cell in table[image_column]]
    frames = pd.to_numeric(table["frame"]).to_numpy(np.int64) if "frame" in table else np.arange(len(table))
    clips = table["clip"].astype(str) if "clip" in table else pd.Series("0", index=table.index)
    return Rows(
        images=[path if os.path.isfile(path) else "" for path in paths],
        frames=frames,
        values=values,
        of_clip=_rows_of_clip(table[subject_column].astype(str), clips),
        lacking=lacking,
    )


@lru_cache(maxsize=1)  # once per process
def _load_emotionet(path: Path, images: Path) -> Rows:
    table, values, lacking = _read(path, "emotionet")
    if "URL" not in table:
        raise ValueError(f"{path} has no column URL; it has {', '.join(table.columns[:5])}, …")
    found = {
        name: os.path.join(folder, name)
        for folder, _, names in os.walk(images)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    }
    names = table["URL"].astype(str).str.strip(" '\"").str.rpartition("/")[2]
    stems = names.str.rpartition(".")[0]
    numbers = pd.to_numeric(stems.str.rpartition("_")[2], errors="coerce")
    return Rows(
        images=[found.get(name, "") for name in names],
        frames=numbers.fillna(0).to_numpy(np.int64),
        values=values,
        of_clip=_rows_of_clip(stems.str.rpartition("_")[0].where(numbers.notna(), stems), pd.Series("0", table.index)),
        lacking=lacking,
    )
