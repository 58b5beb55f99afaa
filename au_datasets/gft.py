"""GFT (Sayette Group Formation Task): occurrence of AUs in videos of 96 people, in groups of three.

labels:  one .csv per person anywhere below ROOT, named after the person; a header with AU columns (AU1, AU01, 1, …)
images:  a folder or a video of the same name below IMAGES (ROOT by default)

**Not verified against a real copy:** the columns of the files, the names of people, that frames count from 1 and that
video frame n is label frame n. The reader takes what the header says: AU columns by number, the frame from a column
named so, else the number of the line; any value but 0 and 1 is not annotated (and counted, apart from 9 and -1). Source
of what is known: osf.io/7wcyz. The ten AUs of format "gft" are those that EmoLA evaluates.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .reading import (
    Clip,
    Known,
    Source,
    by_frame,
    check_root,
    clip_images,
    find_folders,
    has_images,
    join,
    read_header,
    read_labels,
)
from .records import Defects

UNKNOWN = (9, -1)
_KNOWN = Known({"subjects": 96, "images": 172800})
_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".wmv")


def open_gft(root: Path, images: Path | None = None) -> Source:
    """The copy of GFT in `root`. Raises FileNotFoundError naming what is missing."""
    check_root(root)
    files = [path for path in sorted(root.rglob("*.csv")) if au_columns(read_header(path))]
    if not files:
        raise FileNotFoundError(f"no .csv file with AU columns below {root}: GFT's annotations have one per person")
    names = {path.stem.lower() for path in files}
    pictures = {}
    for name, folder in find_folders(images or root, r"([^/]+)"):
        if name[1].lower() in names and has_images(folder):
            pictures.setdefault(name[1].lower(), folder)
    for folder, _, contents in os.walk(images or root):
        for name in sorted(contents):
            stem, suffix = os.path.splitext(name.lower())
            if suffix in _VIDEOS:
                pictures.setdefault(stem, Path(folder, name))
    if not pictures.keys() & names:
        raise FileNotFoundError(f"no video or folder of images named like {files[0].stem} below {images or root}")
    clips = [Clip(path.stem, path.stem, (path,), pictures.get(path.stem.lower())) for path in files]
    return Source("gft", root, "a csv per person", clips, read_clip, clips_per_shard=2, known=_KNOWN)


def au_columns(header: list[str]) -> dict[str, int]:
    """AU label -> column, of a header that names AUs as AU1, AU01, or 1."""
    cells = [re.fullmatch(r"(?:AU)?\s*0*([1-9]\d?)(?:_occ\w*)?", cell, re.IGNORECASE) for cell in header]
    return {f"AU{cell[1]}": column for column, cell in enumerate(cells) if cell}


def read_clip(clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of one person."""
    path, where = clip.labels[0], clip.name
    header = read_header(path)
    columns = au_columns(header)
    numbered = next((column for column, cell in enumerate(header) if "frame" in cell.lower()), None)
    if numbered is None:
        defects.add("label files without a column of frames, lines counted from 1", where)
    frames, values = read_labels(path, header, columns, "gft", UNKNOWN, where, defects, numbered)
    labels = by_frame(frames, values, where, defects)
    yield from join("gft", clip, clip_images(clip, labels, defects), {"gft": labels}, defects)
