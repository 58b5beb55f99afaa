"""GFT (Sayette Group Formation Task): occurrence of AUs in videos of 96 people, in groups of three.

labels:  one .csv per person anywhere below ROOT, named after the person; a header with AU columns (AU1, AU01, 1, …)
images:  a folder or a video of the same name below IMAGES (ROOT by default)

**Not verified against a real copy:** the columns of the files, the names of people, that frames count from 1 and that
video frame n is label frame n. The reader follows the header: it finds AU columns by number, and takes the frame from a
column whose name says so, else from the number of the line. All values but 0 and 1 mean not annotated (and are counted,
except 9 and -1). Source: osf.io/7wcyz. The ten AUs of format "gft" are those that EmoLA evaluates.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from au_llava.au_datasets.records import Defects
from au_llava.au_faces.media import VIDEO_SUFFIXES
from au_llava.au_readers.files import check_root, find_folders, has_images, missing
from au_llava.au_readers.labels import au_columns, by_frame, join, read_header, read_labels
from au_llava.au_readers.pictures import clip_images, distinct
from au_llava.au_readers.source import Clip, Known, Source
from au_llava.au_runs.folders import files_below

UNKNOWN = (9, -1)
_KNOWN = Known({"subjects": 96, "images": 172800})


def open_gft(root: Path, images: Path | None = None) -> Source:
    """The copy of GFT in `root`. Raises FileNotFoundError, which names what is missing."""
    check_root(root)
    defects = Defects()
    files = [path for path in files_below(root, {".csv"}) if au_columns(read_header(path, path.name, defects))]
    if not files:
        raise missing(f"no .csv file with AU columns below {root}: GFT's annotations have one per person", root)
    place, names = images or root, "|".join(re.escape(path.stem) for path in files)
    pictures: dict[str, Path] = {}
    for name, folder in find_folders(place, f"({names})"):
        if has_images(folder):
            pictures.setdefault(name[1].lower(), folder)
    for path in files_below(place, VIDEO_SUFFIXES):
        pictures.setdefault(path.stem.lower(), path)
    clips = (Clip(path.stem, path.stem, (path,), pictures.get(path.stem.lower())) for path in files)
    clips = distinct(clips, defects)
    if not any(clip.images for clip in clips):
        raise missing(f"no video or folder of images named like {files[0].stem} below {place}", place)
    return Source("gft", root, "a csv per person", clips, read_clip, clips_per_shard=2, known=_KNOWN, defects=defects)


def read_clip(clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of one person."""
    path, where = clip.labels[0], clip.name
    header = read_header(path, where, defects)
    columns = au_columns(header)
    numbered = next((column for column, cell in enumerate(header) if "frame" in cell.lower()), None)
    if numbered is None:
        defects.add("label files without a column of frames, lines counted from 1", where)
    frames, values = read_labels(path, header, columns, "gft", UNKNOWN, where, defects, numbered)
    labels = by_frame(frames, values, where, defects)
    yield from join("gft", clip, clip_images(clip, labels, defects), {"gft": labels}, defects)
