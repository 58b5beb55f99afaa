"""Reads tables of labels and joins them with pictures by frame number.

A label that is missing, marked unknown or off its scale becomes NaN; anything odd is counted in `Defects`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import Defects
from au_llava.au_readers.source import Clip, Picture

UNREADABLE = "label files that cannot be read"


def read_header(path: Path, where: str, defects: Defects) -> list[str]:
    """The cells of the first line, without quotes, spaces and byte order mark; [] if the file cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [cell.strip().strip("'\"").strip() for cell in file.readline().split(",")]
    except (OSError, UnicodeDecodeError) as error:
        defects.add(UNREADABLE, f"{where}: {error}")
        return []


def au_columns(header: list[str]) -> dict[str, int]:
    """AU label -> column, from a header that names AUs as AU1, AU01 or 1."""
    cells = [re.fullmatch(r"(?:AU)?\s*0*([1-9]\d?)(?:_occ\w*)?", cell, re.IGNORECASE) for cell in header]
    return {f"AU{cell[1]}": column for column, cell in enumerate(cells) if cell}


def read_numbers(
    path: Path, where: str, defects: Defects, header: bool, width: int, take: Sequence[int] | None = None
) -> np.ndarray:
    """(rows, columns) float64 from a comma-separated file of `width` columns; an empty cell is NaN.

    Lines with another number of cells are left out and counted. A file that cannot be read is counted and gives no
    rows. `take` lists the columns to read, in their order; all by default.
    """
    names = [str(column) for column in range(width)]
    taken = names if take is None else [str(column) for column in take]

    def skip(line):
        defects.add("label lines with a wrong number of cells, left out", f"{where}: {line.actual_columns} cells")
        return "skip"

    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False, skip_rows=int(header), column_names=names),
            csv.ParseOptions(invalid_row_handler=skip),
            csv.ConvertOptions(column_types=dict.fromkeys(taken, pa.float64()), include_columns=taken),
        )
    except (pa.ArrowInvalid, OSError) as error:
        defects.add(UNREADABLE, f"{where}: {str(error).splitlines()[0]}")
        return np.empty((0, len(taken)))
    return np.column_stack([column.to_numpy() for column in table.columns])


def read_labels(
    path: Path,
    header: Sequence[str],
    columns: Mapping[str, int],
    name: str,
    unknown: Collection[float],
    where: str,
    defects: Defects,
    frame_column: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers (rows,) and values (rows, labels of format `name`) from a file with a header; no rows without AUs.

    Args:
        columns: AU label -> column. A label without a column is NaN, and counted.
        unknown: values that mean not annotated.
        frame_column: column of the frame numbers; without it lines are counted from 1.
    """
    labels = FORMATS[name].labels
    found = [label for label in labels if label in columns]
    if not found:
        if header:  # otherwise it was counted as unreadable
            defects.add("label files whose header names no AUs", f"{where}: {','.join(header[:5])},…")
        return np.empty(0), np.empty((0, len(labels)))
    if len(found) < len(labels):
        lacking = [label for label in labels if label not in columns]
        defects.add("label files without a column for some AUs", f"{where}: {' '.join(lacking)}")
    take = ([] if frame_column is None else [frame_column]) + [columns[label] for label in found]
    table = read_numbers(path, where, defects, True, len(header), take)
    values = np.full((len(table), len(labels)), np.nan)
    values[:, [labels.index(label) for label in found]] = table[:, -len(found) :]
    frames = np.arange(1.0, len(table) + 1) if frame_column is None else table[:, 0]
    return frames, on_scale(values, name, where, defects, unknown)


def read_au_files(
    files: Iterable[tuple[str, Path]], name: str, where: str, defects: Defects, unknown: Collection[float] = ()
) -> dict[int, list[float]]:
    """Values of format `name` by frame number, from a file for each AU with lines "frame,value" and no header.

    A frame that a file lacks is NaN there. Missing and second files, and such frames, are counted.

    Args:
        files: (AU label, path); those of AUs that the format does not have are not read.
        unknown: values that mean not annotated.
    """
    labels = FORMATS[name].labels
    columns: dict[str, dict[int, float]] = {}
    for label, path in files:
        if label in columns:
            defects.add("label files for an AU that has one, left out", f"{where}: {path.name}")
        elif label in labels:
            table = read_numbers(path, path.name, defects, header=False, width=2)
            values = on_scale(table[:, 1], name, path.name, defects, unknown)
            columns[label] = by_frame(table[:, 0], values, path.name, defects)
    for label in labels:
        if label not in columns:
            defects.add("clips without the label file of an AU", f"{where}: {label}")
    frames = sorted(set().union(*columns.values()))
    uneven = [frame for frame in frames if any(frame not in column for column in columns.values())]
    if uneven:
        kind = "frames that the files of some AUs lack, there not annotated"
        defects.add(kind, f"{where} frame {uneven[0]}", len(uneven))
    return {frame: [columns.get(label, {}).get(frame, np.nan) for label in labels] for frame in frames}


def by_frame(frames: np.ndarray, values: np.ndarray, where: str, defects: Defects) -> dict[int, list[float]]:
    """Values (n, labels) by frame number (n,); if frames share a number, the first."""
    whole = np.isfinite(frames) & (frames == np.floor(frames))
    if not whole.all():
        defects.add("label lines without a frame number, left out", where, int((~whole).sum()))
    numbers = frames[whole].astype(np.int64)
    unique, first = np.unique(numbers, return_index=True)
    if len(unique) < len(numbers):
        defects.add("label lines for a frame that has one, left out", where, len(numbers) - len(unique))
    return dict(zip(unique.tolist(), values[whole][first].tolist(), strict=True))


def on_scale(
    values: np.ndarray, name: str, where: str, defects: Defects, unknown: Collection[float] = ()
) -> np.ndarray:
    """Values with NaN for those in `unknown`, and for those off the scale of format `name`, which are counted."""
    values = np.array(values, np.float64)
    values[np.isin(values, list(unknown))] = np.nan
    fmt = FORMATS[name]
    good = (values >= 0) & (values <= 1) if fmt.scale == "continuous" else np.isin(values, fmt.value_numbers)
    bad = ~good & ~np.isnan(values)
    if bad.any():
        first = values[bad][0]
        example = f"{where}: {'not a number' if np.isinf(first) else f'{first:g}'}"
        defects.add(f"labels off the {fmt.scale} scale, taken as not annotated", example, int(bad.sum()))
        values[bad] = np.nan
    return values


def join(
    dataset: str,
    clip: Clip,
    images: Iterable[tuple[int, Picture]],
    labels: Mapping[str, Mapping[int, list[float]]],
    defects: Defects,
    metadata: Callable[[int], dict] = lambda frame: {},
) -> Iterator[dict]:
    """The records of a clip, without their `part`: one for each format of each frame that has an image and labels.

    Args:
        images: (frame number, picture), in any order.
        labels: format name -> frame number -> values. Frames without an image, and images without labels, are counted.
        metadata: further columns of a frame.
    """
    where = f"{clip.subject}/{clip.name}"
    missing = set().union(*labels.values())
    for frame, image in images:
        if frame not in missing:
            defects.add("images without labels, left out", f"{where} frame {frame}")
            continue
        missing.discard(frame)
        for name, values in labels.items():
            if frame in values:
                yield {
                    "image": image,
                    "dataset": dataset,
                    "subject": clip.subject,
                    "clip": clip.name,
                    "frame": frame,
                    "format": name,
                    "values": values[frame],
                    **metadata(frame),
                }
    if missing:
        defects.add("labelled frames without an image, left out", f"{where} frame {min(missing)}", len(missing))
