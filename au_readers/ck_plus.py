"""CK+ (extended Cohn-Kanade): AUs of the last, strongest image of 593 sequences of 123 people.

labels:  ROOT/FACS/S005/001/S005_001_00000011_facs.txt, lines "AU   intensity" in float notation
images:  ROOT/cohn-kanade-images/S005/001/S005_001_00000011.png

A file lists the AUs that are present, so all others are absent (or unknown, if a line cannot be read). Intensity 0, or
none, means present but not graded (from memory of the data set's own text; cosanlab/py-feat reads it so too). Therefore
records hold occurrence only. Format "ck-plus" has the 17 AUs that the data set's authors score (Lucey et al. 2010, from
memory, not verified).
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import Defects
from au_llava.au_faces.media import IMAGE_SUFFIXES
from au_llava.au_readers.files import file_names, find_files, find_folders, missing, needed_folder
from au_llava.au_readers.labels import UNREADABLE, join
from au_llava.au_readers.pictures import distinct
from au_llava.au_readers.source import Clip, Known, Picture, Source

_KNOWN = Known({"subjects": 123, "clips": 593, "images": 593})


def open_ck_plus(root: Path, images: Path | None = None) -> Source:
    """The copy of CK+ in `root`. Raises FileNotFoundError, which names the missing folder."""
    coding = needed_folder(root, r"FACS(?:[-_]labels)?", "FACS")
    pictures = needed_folder(images or root, r"cohn-kanade-images", "cohn-kanade-images")
    folders = {(name[1].upper(), name[2]): path for name, path in find_folders(pictures, r"(S\d{3})/(\d{3})")}
    clips = [
        Clip(name[1].upper(), name[2], (path,), folders.get((name[1].upper(), name[2])))
        for name, folder in find_folders(coding, r"(S\d{3})/(\d{3})")
        for _, path in find_files(folder, r".+_\d+_facs\.txt")
    ]
    if not clips:
        raise missing(f"no label files such as S005/001/S005_001_00000011_facs.txt in {coding}", coding)
    defects = Defects()
    clips = distinct(clips, defects)
    for subject, sequence in sorted(folders.keys() - {(clip.subject, clip.name) for clip in clips}):
        defects.add("sequences without a label file, left out", f"{subject}/{sequence}")
    return Source("ck-plus", coding.parent, "FACS", clips, read_clip, 1000, known=_KNOWN, defects=defects)


def read_clip(clip: Clip, defects: Defects) -> Iterator[dict]:
    """The record of a sequence's last image."""
    path = clip.labels[0]
    stem = path.stem[: -len("_facs")]
    frame, present = int(stem.rpartition("_")[2]), read_presence(path, defects)
    images = [
        (frame, Picture(str(clip.images / name)))
        for name in (file_names(clip.images) if clip.images else ())
        if os.path.splitext(name.lower()) in {(stem.lower(), suffix) for suffix in IMAGE_SUFFIXES}
    ]
    yield from join("ck-plus", clip, images[:1], {"ck-plus": {} if present is None else {frame: present}}, defects)


def read_presence(path: Path, defects: Defects) -> list[float] | None:
    """Occurrence of the AUs of format "ck-plus", from a file that lists those present; None if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        defects.add(UNREADABLE, f"{path.name}: {error}")
        return None
    present, absent = set(), 0.0
    for line in filter(str.strip, lines):
        try:
            number, *grade = map(float, line.split())
        except ValueError:
            number, grade = math.nan, []
        if len(grade) < 2 and number.is_integer():
            present.add(f"AU{number:.0f}")
        else:
            defects.add("label lines that are not an AU and its intensity, left out", f"{path.name}: {line.strip()}")
            absent = math.nan
    return [1.0 if label in present else absent for label in FORMATS["ck-plus"].labels]
