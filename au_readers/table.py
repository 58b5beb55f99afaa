"""Your own data: a CSV or Parquet table with an image, a subject and one column per AU; and EmotioNet's table.

An AU column has the label of the format, in any case, with leading zeros, spaces or quotes: AU12, au_12, 'AU 1'. If
there is none, AU12_c is read for an occurrence format and AU12_r for an intensity format, as OpenFace names them: one
table may hold both. Columns "clip" and "frame", in any case, are optional; the default frame is the number of the row.
A label is unknown if the column is missing, if the cell is empty or says so (NA, NaN, None), or if its value is off the
scale (which is counted). True and False are 1 and 0. A column is refused if all it holds is off the scale, and if it
would keep nothing but zeros, beside letters or several other numbers. An image is a path, absolute or relative to
--images, and has one row. Subjects and clips are text: 001 and 1 are two people, and NA is one. Cells may also be
separated by semicolons, tabs or |, and numbers may have a decimal comma.

The data set is named by --name, by default after the table and a hash of its path, because subject 1 of one table is
not subject 1 of another.

EmotioNet: ROOT/EmotioNet_FACS_aws_2020_24600.csv, columns URL, URL orig, 'AU 1' …; 999 means unknown; an image has the
name at the end of its URL (N_0000000001_00002.jpg) and lies in any folder below IMAGES. Save an .xlsx as .csv first.
Source: cosanlab/py-feat, trainAUvisModel.py. People are not named; to be safe, all images with the same prefix
(N_0000000001) count as one person. **Not verified against a real copy:** what the prefix means.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from au_llava.action_units import FORMATS, get_format
from au_llava.au_datasets.records import NO_CLIP, Defects
from au_llava.au_faces.media import IMAGE_SUFFIXES
from au_llava.au_readers.files import check_root, missing
from au_llava.au_readers.labels import join, on_scale
from au_llava.au_readers.source import Clip, Known, Picture, Source, local_name
from au_llava.au_runs.folders import files_below
from au_llava.au_runs.names import UNKNOWN, composed

_MARKS = {"occurrence": "_C", "intensity": "_R"}  # at the end of OpenFace's columns

_KNOWN_EMOTIONET = Known({"images": 24600})  # the number in the file's name


@dataclass(frozen=True)
class Rows:
    """A table that has been read. N rows, L labels of the format."""

    images: list[str]  # N paths; empty where there is no such file
    frames: np.ndarray  # (N,) int64
    values: np.ndarray  # (N, L) float64; NaN for an empty cell, infinity for one that is not a number
    of_clip: dict[tuple[str, str], np.ndarray]  # (subject, clip) -> numbers of its rows
    defects: Defects  # of the table as a whole


def open_table(
    path: Path,
    name: str,
    images: Path | None = None,
    image_column: str = "image",
    subject_column: str = "subject",
    dataset: str | None = None,
) -> Source:
    """The table in `path`.

    Args:
        name: a format of `FORMATS`, which sets the AUs and their scale. Other AUs of the table are left out.
        images: folder that the paths of the image column are relative to; the table's own by default.
        dataset: the records' `dataset`; by default the table's `local_name`.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the format is unknown, the table cannot be read, or a needed column is missing or has cells that are
            empty or invalid.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    folder = images or path.parent
    load = partial(_load_table, path, get_format(name).name, folder, image_column, subject_column)
    return _source(dataset or local_name(path.stem, path), path, folder, name, load, ())


def open_emotionet(root: Path, images: Path | None = None) -> Source:
    """The copy of EmotioNet in `root`. Raises FileNotFoundError, which names what is missing."""
    check_root(root)
    tables = [path for path in files_below(root, {".csv"}) if path.name.lower().startswith("emotionet_facs")]
    if not tables:
        raise missing(f"no EmotioNet_FACS_aws_2020_24600.csv below {root}; an .xlsx has to be saved as .csv", root)
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
    rows = load()
    return Source(
        dataset=dataset,
        root=root,
        layout=path.name,
        clips=[Clip(*key, labels=(path,)) for key in sorted(rows.of_clip)],
        read=partial(read_clip, dataset, name, load, unknown),
        clips_per_shard=5000,
        known=known or Known(),
        defects=rows.defects,
        pictures=tuple(filter(None, rows.images)),
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


def _read(path: Path, needed: Collection[str]) -> pd.DataFrame:
    """A table with plain column names. Raises ValueError if it cannot be read or lacks a needed column."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
            table = table.reset_index([name for name in table.index.names if name is not None])
            table = table.astype(dict.fromkeys(table.select_dtypes("category"), object))
        else:
            text = {"dtype": str, "keep_default_na": False, "na_values": [""]}  # a person may be called NA
            text |= {"encoding": "utf-8-sig", "skipinitialspace": True, "sep": _separator(path)}
            table = pd.read_csv(path, **text)
            names = pd.read_csv(path, **text, header=None, nrows=1).iloc[0].dropna()
            if names.duplicated().any():  # pandas would number them: AU12, AU12.1
                raise ValueError(f"it has the column {names[names.duplicated()].iloc[0]!r} more than once")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip().splitlines()[0]}") from error
    plain = [str(column).strip().strip("'\"").strip() for column in table.columns]
    lower = ("image", "subject", "clip", "frame")
    table.columns = [c.lower() if c.lower() in lower and c.lower() not in plain else c for c in plain]
    for column in needed:
        if column not in table:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(table.columns[:20])}")
    return table


def _separator(path: Path) -> str:
    """What separates the cells of a table, most often in its first line; a comma if there is only one column."""
    with path.open(encoding="utf-8-sig") as file:
        return max(",;\t|", key=file.readline().count)


def _text(cells: pd.Series) -> pd.Series:
    """Cells as text without blanks at their ends; NaN where nothing is left."""
    text = cells.astype(str).str.strip()
    return text.mask(cells.isna() | (text == ""))


def _names(cells: pd.Series) -> pd.Series:
    """Names of people or recordings, however their accented letters are written."""
    return cells.astype(str).str.strip().map(composed)


def _numbers(cells: pd.Series) -> np.ndarray:
    """(rows,) float64 of a column: True is 1, False 0, an empty cell NaN, and a cell that is not a number infinity."""
    if pd.api.types.is_numeric_dtype(cells):  # booleans too
        return cells.to_numpy(np.float64, na_value=np.nan)
    words = _text(cells).str.lower().str.replace(r"^(\d+),(\d+)$", r"\1.\2", regex=True)  # a decimal comma
    words = words.mask(words.isin(UNKNOWN)).replace({"true": "1", "false": "0"})
    numbers = pd.to_numeric(words, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return np.where(np.isnan(numbers) & words.notna(), np.inf, numbers)


def _labels(
    path: Path, table: pd.DataFrame, name: str, defects: Defects, unknown: Collection[float] = ()
) -> np.ndarray:
    """(rows, labels of format `name`) float64, as `Rows.values` has them.

    Raises ValueError if no column is of an AU of the format, if two are of the same one, and as `_check_scale`.
    """
    columns: dict[str, str] = {}
    for column in table.columns:
        label = re.sub(r"^(A[UD])[\s_]*0*(?=\d)", r"\1", column.upper())
        if columns.setdefault(label, column) != column:
            raise ValueError(f"{path} has two columns for {label}: {columns[label]} and {column}")
    labels, used = FORMATS[name].labels, set()
    values = np.full((len(table), len(labels)), np.nan)
    for index, label in enumerate(labels):
        marked = label + _MARKS.get(FORMATS[name].scale, "")
        key = next((key for key in (label, marked) if key in columns), None)
        if key is None:
            defects.add("AUs of the format without a column, not annotated", label)
            continue
        used.add(key)
        cells = table[columns[key]]
        values[:, index] = _numbers(cells)
        _check_scale(path, cells, values[:, index], name, unknown)
    if not used:
        raise ValueError(
            f"{path} has no column for any AU of {name} ({', '.join(labels)}); it has {', '.join(table.columns[:20])}"
        )
    for label in columns:
        if label not in used and re.fullmatch(r"A[UD]\d+[LRTB]?(_[CR])?", label):
            defects.add("AU columns that the format does not have, left out", columns[label])
    return values


def _check_scale(path: Path, cells: pd.Series, values: np.ndarray, name: str, unknown: Collection[float]) -> None:
    """Raise ValueError if a column keeps nothing, or nothing but zeros beside letters or several other numbers.

    Args:
        cells: the column, as it was read.
        values: (rows,), from `_numbers`.
        name: of the format.
    """
    given = ~np.isnan(values) & ~np.isin(values, list(unknown))
    known = ~np.isnan(on_scale(values, name, "", Defects(), unknown))
    off = values[given & ~known]
    codes = np.isinf(off).any() or len(np.unique(off)) > 1  # a single number may stand for "unknown"
    lost = codes and not values[known].any()  # all that is not absent
    if given.any() and (lost or not known.any()):
        row = (given & ~known).argmax()
        raise ValueError(
            f"column {cells.name!r} of {path} holds nothing{' but 0' * bool(known.any())} of the {FORMATS[name].scale} "
            f"scale of {name}, {_scale(name)}: row {row + 1} says {cells.iloc[row]!r}"
        )


def _scale(name: str) -> str:
    """The values of a format in words: "0 to 5", "0 or 1"."""
    numbers = FORMATS[name].value_numbers
    return f"{numbers[0]:g} {'or' if len(numbers) == 2 else 'to'} {numbers[-1]:g}"


def _rows_of_clip(
    images: pd.Series, subjects: pd.Series, clips: pd.Series, defects: Defects
) -> dict[tuple[str, str], np.ndarray]:
    """`Rows.of_clip`, without rows whose image already has one."""
    again = images.map(os.path.normpath).duplicated().to_numpy()  # ../faces/a.png may also be named in full
    if again.any():
        defects.add("rows for an image that has one, left out", images[again].iloc[0], int(again.sum()))
    kept = np.flatnonzero(~again)
    groups = pd.DataFrame({"subject": subjects, "clip": clips}).iloc[kept].groupby(["subject", "clip"]).indices
    return {key: kept[places] for key, places in groups.items()}


@lru_cache(maxsize=1)  # once per process
def _load_table(path: Path, name: str, folder: Path, image_column: str, subject_column: str) -> Rows:
    table = _read(path, (image_column, subject_column))
    for column in (image_column, subject_column, "clip"):
        if column in table and (empty := _text(table[column]).isna()).any():
            raise ValueError(f"column {column!r} of {path} has empty cells, such as in row {empty.argmax() + 1}")
    defects = Defects()
    values = _labels(path, table, name, defects)
    if not table[image_column].map(lambda cell: isinstance(cell, str)).all():
        raise ValueError(f"column {image_column!r} of {path} must hold paths of image files")
    paths = table[image_column].str.strip().map(lambda cell: str(folder / cell))
    frames = np.arange(len(table))
    if "frame" in table:
        numbers = pd.to_numeric(table["frame"], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        if (odd := ~((numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53))).any():
            told = f"row {odd.argmax() + 1} says {table['frame'].iloc[odd.argmax()]!r}"
            raise ValueError(f"column 'frame' of {path} must hold whole numbers: {told}")
        frames = numbers.astype(np.int64)
    clips = pd.Series(NO_CLIP, index=table.index)
    if "clip" in table:
        clips = _names(table["clip"]).replace(NO_CLIP, f"clip {NO_CLIP}")  # these are recordings
    subjects = _names(table[subject_column])
    return Rows(
        images=[path if Path(path).is_file() else "" for path in paths],
        frames=frames,
        values=values,
        of_clip=_rows_of_clip(paths, subjects, clips, defects),
        defects=defects,
    )


@lru_cache(maxsize=1)  # once per process
def _load_emotionet(path: Path, images: Path) -> Rows:
    table = _read(path, ("URL",))
    defects = Defects()
    if empty := int(table["URL"].isna().sum()):
        defects.add("rows without a URL, left out", path.name, empty)
        table = table.dropna(subset="URL", ignore_index=True)
    values = _labels(path, table, "emotionet", defects, (999,))
    found = {path.name.lower(): str(path) for path in files_below(images, IMAGE_SUFFIXES)}
    names = table["URL"].str.strip(" '\"").str.rpartition("/")[2]
    stems = names.str.rpartition(".")[0]
    numbers = pd.to_numeric(stems.str.rpartition("_")[2], errors="coerce")
    people = stems.str.rpartition("_")[0].where(numbers.notna(), stems)
    return Rows(
        images=[found.get(name.lower(), "") for name in names],
        frames=numbers.fillna(0).to_numpy(np.int64),
        values=values,
        of_clip=_rows_of_clip(names, people, pd.Series(NO_CLIP, table.index), defects),
        defects=defects,
    )
