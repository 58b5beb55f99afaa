"""What the readers of real datasets share: what a source is, finding files, reading numbers, joining frames and labels.

A reader is one file with an `open_*` function that looks at a folder, says in one sentence what is missing, and returns
a `Source`: clips to read and a `read(clip, defects)` that yields records. Unusual choices
- Frame numbers are read from file names as numbers, never formatted: copies of one dataset differ in padding.
- A label that is missing, marked unknown or off its scale becomes NaN; what is strange is counted in `Defects`.
- Frames of a video are stored in the table as JPEG (quality 95): one file a clip that is there completely or not at
  all makes a run resumable, and 130,000 loose files are spared. Images that exist as files stay paths.
- A reader yields records whose `image` is a `Picture`, which knows its file: crops are made from it.
- Files that macOS and Windows leave in folders are never seen: `._2440.jpg` beside 2440.jpg is no picture.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import csv

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import Defects
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_faces.media import IMAGE_SUFFIXES, DamagedVideo, every_frame
from au_llava.au_runs.folders import entries, files_below, subfolders
from au_llava.au_runs.names import escaped
from au_llava.image_processing_au_llava import load_face_image, open_image

ARCHIVE_SUFFIXES = {".zip", ".rar", ".7z", ".tar", ".gz"}


@dataclass(frozen=True)
class Clip:
    """One recording of one person.

    Args:
        labels: files that hold its labels, or the folder of them; of faces without labels the pictures themselves.
        images: its folder of images, or its video; None where there is none.
        part: "train" or "test", where the dataset itself divides its people.
    """

    subject: str
    name: str
    labels: tuple[Path, ...]
    images: Path | None = None
    part: str | None = None


@dataclass(frozen=True)
class Picture:
    """An image as readers find it."""

    path: str  # of the image, or of the video
    number: int = 1  # of the frame in the video, from 1
    frame: Image.Image | None = None  # of the video, or what was cut out
    content: bytes | None = None  # of the file, where a table holds it
    eyes: tuple | None = None  # as `crop_face` takes them, where the dataset gives them

    def stored(self) -> dict:
        """The image of a record: the path of a file, its bytes from a table or if its name is no UTF-8, the JPEG of a
        video's frame."""
        if self.frame is not None:
            return {"bytes": jpeg_bytes(self.frame), "path": None}
        content = self.content
        if content is None and escaped(self.path) != self.path:  # no table can hold this name
            content = Path(self.path).read_bytes()
        return {"bytes": content, "path": self.path if content is None else None}

    def open(self) -> Image.Image:
        """As `load_face_image` gives it. Raises ValueError or OSError for a file that is no whole image."""
        if self.frame is not None:
            return self.frame
        return load_face_image(self.path if self.content is None else open_image(io.BytesIO(self.content), self.path))


@dataclass(frozen=True)
class Known:
    """What a complete copy holds, to compare with: numbers of subjects, clips, images, and of present AUs by format."""

    counts: Mapping[str, int] = field(default_factory=dict)  # of "subjects", "clips" and "images"
    present: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # format -> label -> values that are present


@dataclass(frozen=True)
class Source:
    """A copy of a dataset that was found on disk.

    Args:
        dataset: the records' `dataset`.
        root: where it lies.
        layout: which of the known forms of the dataset this copy has.
        clips: what there is to read.
        read: gives the records of a clip, without their `part` and with a `Picture` as image, and adds what is wrong
            with it to the defects.
        clips_per_shard: how many clips are written as one file.
        metadata: column -> feature (of datasets), beside the fixed columns of a record.
        known: what a complete copy holds.
        defects: what was already found to be wrong.
        notes: what anyone who uses the records should know.
        crops: `read` gives crops of faces, so there is nothing left to crop.
        pictures: all image files, where they are known without reading a clip.
    """

    dataset: str
    root: Path
    layout: str
    clips: list[Clip]
    read: Callable[[Clip, Defects], Iterator[dict]]
    clips_per_shard: int
    metadata: Mapping[str, object] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    defects: Defects = field(default_factory=Defects)
    notes: tuple[str, ...] = ()
    crops: bool = False
    pictures: tuple[str, ...] | None = None

    def fingerprint(self) -> str:
        """SHA-256 over the names of the clips and the names and sizes of their label files (of folders: the count)."""
        content = hashlib.sha256()
        for clip in self.clips:
            sizes = [
                len(file_names(path)) if path.is_dir() else path.stat().st_size if path.exists() else None
                for path in clip.labels
            ]
            names = [path.name for path in clip.labels]
            content.update(repr((clip.subject, clip.name, clip.part, names, sizes, clip.images is None)).encode())
        return content.hexdigest()


def local_name(name: str, path: Path) -> str:
    """Of a data set of one's own: `name` and eight digits of the hash of where it lies, such as "labels-3f2a91c0"."""
    return f"{escaped(name)}-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]}"


# ---- Finding files --------------------------------------------------------------------------------------------
def check_root(root: Path) -> None:
    """Raise FileNotFoundError where `root` is no folder."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")


def file_names(folder: Path) -> list[str]:
    """Of the files in a folder, in order. A link that leads nowhere is no file."""
    return sorted(entry.name for entry in entries(folder) if entry.is_file())


def find_folders(root: Path, pattern: str, depth: int = 5) -> Iterator[tuple[re.Match, Path]]:
    """`root` and the folders below it, in order, whose path ends in `pattern` (whole names, any case), and the match.

    The path that leads to `root` counts, so that a root one level too low is found too. A folder below `root` that
    matches is not entered. No deeper than `depth` levels, and not where links lead in a circle.
    """
    ending = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)

    def search(folder: Path, depth: int, above: frozenset):
        found = ending.search(folder.as_posix())
        if found:
            yield found, folder
        if depth and (not found or folder == root):
            for inner in subfolders(folder):
                if inner.resolve() not in above:
                    yield from search(inner, depth - 1, above | {inner.resolve()})

    return search(root, depth, frozenset({root.resolve()}))


def find_files(folder: Path, pattern: str) -> Iterator[tuple[re.Match, Path]]:
    """Files in `folder`, in order, whose whole name matches `pattern` in any case, and the match.

    Links that lead nowhere are among them: a label file that is missing has to be counted by who reads it.
    """
    for name in sorted(entry.name for entry in entries(folder) if not entry.is_dir()):
        found = re.fullmatch(pattern, name, re.IGNORECASE)
        if found:
            yield found, folder / name


def needed_folder(root: Path, pattern: str, name: str) -> Path:
    """The one folder that matches `pattern`: `root`, one in it, or else one a level further down.

    Args:
        name: how the copies that are known call it.

    Raises:
        FileNotFoundError: `root` is no folder, or none or several match.
    """
    check_root(root)
    levels = ([path for _, path in find_folders(root, pattern, depth)] for depth in range(3))
    found = next(filter(None, levels), [])
    if len(found) > 1:
        raise FileNotFoundError(f"{len(found)} folders {name} below {root}: take one, such as --root {found[0].parent}")
    if not found:
        raise missing(f"no folder {name} in {root}: --root is the folder that holds it", root)
    return found[0]


def missing(sentence: str, root: Path) -> FileNotFoundError:
    """The error that says so, and which archive below `root` may hold what is missing."""
    archive = next(files_below(root, ARCHIVE_SUFFIXES), None)
    return FileNotFoundError(sentence + (f" ({archive.relative_to(root)} is not unpacked)" if archive else ""))


def has_images(folder: Path) -> bool:
    return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries(folder))


def distinct(clips: Iterable[Clip], defects: Defects) -> list[Clip]:
    """The first clip of each subject and name; further ones, such as those of a second copy, are counted."""
    kept: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        if kept.setdefault((clip.subject, clip.name), clip) is not clip:
            defects.add("clips that are there twice, left out", str(clip.labels[0]))
    return list(kept.values())


def numbered_images(folder: Path | None, where: str, defects: Defects) -> dict[int, str]:
    """Path of each image of a folder by frame number: the digits that end the file's name, whatever their padding."""
    images: dict[int, str] = {}
    if folder is None:
        defects.add("clips without images", where)
        return images
    for name in file_names(folder):
        stem, dot, suffix = name.rpartition(".")
        if (dot + suffix).lower() not in IMAGE_SUFFIXES:
            continue
        digits = stem if stem.isdecimal() else re.search(r"\d*$", stem)[0]
        if not digits:
            defects.add("images without a frame number in their name", f"{where}/{name}")
        elif images.setdefault(int(digits), f"{folder}{os.sep}{name}") != f"{folder}{os.sep}{name}":
            defects.add("images with the frame number of another one, left out", f"{where}/{name}")
    return images


# ---- Reading labels -------------------------------------------------------------------------------------------
UNREADABLE = "label files that cannot be read"


def read_header(path: Path, where: str, defects: Defects) -> list[str]:
    """The cells of the first line, without quotes, spaces and byte order mark; none of a file that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [cell.strip().strip("'\"").strip() for cell in file.readline().split(",")]
    except (OSError, UnicodeDecodeError) as error:
        defects.add(UNREADABLE, f"{where}: {error}")
        return []


def read_numbers(
    path: Path, where: str, defects: Defects, header: bool, width: int, take: Sequence[int] | None = None
) -> np.ndarray:
    """(rows, columns) float64 of a comma separated file of `width` columns; an empty cell is NaN.

    Lines with another number of cells are left out and counted. A file that cannot be read is counted and gives no
    rows. `take` says which columns to convert, and in which order: all by default.
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
    """Frame numbers (rows,) and values (rows, labels of format `name`) of a file with a header, none without a column.

    Args:
        columns: AU label -> column. A label without one is NaN, and counted.
        unknown: values that mean not annotated.
        frame_column: holds the frame numbers; without it lines are counted from 1.
    """
    labels = FORMATS[name].labels
    found = [label for label in labels if label in columns]
    if not found:
        if header:  # else counted as unreadable
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


def by_frame(frames: np.ndarray, values: np.ndarray, where: str, defects: Defects) -> dict[int, list[float]]:
    """Values (n, labels) by frame number (n,): the first of those that share a number."""
    whole = np.isfinite(frames) & (frames == np.floor(frames))
    if not whole.all():
        defects.add("label lines without a frame number, left out", where, int((~whole).sum()))
    numbers = frames[whole].astype(np.int64)
    unique, first = np.unique(numbers, return_index=True)
    if len(unique) < len(numbers):
        defects.add("label lines for a frame that has one, left out", where, len(numbers) - len(unique))
    return dict(zip(unique.tolist(), values[whole][first].tolist(), strict=True))


def on_scale(values: np.ndarray, name: str, where: str, defects: Defects, unknown: Collection[float] = ()):
    """Values with NaN for those in `unknown`, and for any that the scale of format `name` does not have (counted)."""
    values = np.array(values, np.float64)
    values[np.isin(values, list(unknown))] = np.nan
    fmt = FORMATS[name]
    good = (values >= 0) & (values <= 1) if fmt.scale == "continuous" else np.isin(values, fmt.value_numbers)
    bad = ~good & ~np.isnan(values)
    if bad.any():
        example = f"{where}: {values[bad][0]:g}"
        defects.add(f"labels off the {fmt.scale} scale, taken as not annotated", example, int(bad.sum()))
        values[bad] = np.nan
    return values


# ---- Joining --------------------------------------------------------------------------------------------------
def join(
    dataset: str,
    clip: Clip,
    images: Iterable[tuple[int, Picture]],
    labels: Mapping[str, Mapping[int, list[float]]],
    defects: Defects,
    metadata: Callable[[int], dict] = lambda frame: {},
) -> Iterator[dict]:
    """The records of a clip, without their `part`: one per frame that has an image and labels, and per format.

    Args:
        images: (frame number, picture) as they come.
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


def image_files(images: Mapping[int, str], offset: int = 0) -> Iterator[tuple[int, Picture]]:
    """(number plus `offset`, picture) of files by number, in order."""
    for number in sorted(images):
        yield number + offset, Picture(images[number])


def video_frames(path: Path, wanted: Collection[int], where: str, defects: Defects) -> Iterator[tuple[int, Picture]]:
    """(frame number from 1, picture) of a video, decoded once from its start, so that no seek can miss a frame.

    Frames that are not `wanted` come without their image. A video that breaks off is counted.
    """
    number = 0
    try:
        for frame in every_frame(path, lambda number, time: number in wanted, counted=True):
            number = frame.number
            yield number, Picture(str(path), number, frame.image)
    except DamagedVideo as error:
        defects.add("videos that cannot be decoded to their end", f"{where}: stops after frame {number} ({error})")


def clip_images(clip: Clip, wanted: Collection[int], defects: Defects) -> Iterator[tuple[int, Picture]]:
    """(frame number, picture) of a clip's video, counted from 1, or of its folder, numbered by file name."""
    where = f"{clip.subject}/{clip.name}"
    if clip.images is not None and clip.images.is_file():
        return video_frames(clip.images, wanted, where, defects)
    return image_files(numbered_images(clip.images, where, defects))
