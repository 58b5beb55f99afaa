"""Aff-Wild2's AU set: occurrence of 12 AUs (8 in 2020) in videos from the web.

labels:  a folder Training_Set or Train_Set, and Validation_Set, in ROOT/AU_Set or ROOT/AU_Detection_Challenge (at any
         depth), with files such as video61.txt or 15-24-1920x1080_left.txt
images:  cropped_aligned/video61/00001.jpg below IMAGES (ROOT by default)

A header names the AUs; the n-th line after it, from 1, belongs to image n. -1 means unknown. Published readers drop
lines with a -1; here only the cell becomes NaN, and lines of nothing but -1 are left out. Sources: wtomin's
create_train_val_annotation_file.py, lingjivoo/OpenGraphAU.

The labels of the challenge's test set are not public, so results are published on the validation set: its videos are
the part "test" here, and validation videos are drawn from the training set. It is unknown who appears in which video:
each video (and each of _left and _right) counts as a person.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from au_llava.au_datasets.records import Defects
from au_llava.au_readers.files import check_root, find_files, find_folders, missing
from au_llava.au_readers.labels import au_columns, by_frame, join, read_header, read_labels
from au_llava.au_readers.pictures import distinct, image_files, numbered_images
from au_llava.au_readers.source import Clip, Source
from au_llava.au_runs.folders import subfolders

UNKNOWN = (-1,)


def open_aff_wild2(root: Path, images: Path | None = None) -> Source:
    """The copy of Aff-Wild2 in `root`. Raises FileNotFoundError, which names the missing folder."""
    check_root(root)
    sets = list(find_folders(root, r"(?:AU_Set|AU_\w+_Challenge)/(Train|Training|Validation)_Set"))
    if not sets:
        sentence = f"no folder AU_Detection_Challenge/Train_Set or AU_Set/Training_Set below {root}"
        raise missing(f"{sentence} (nor their Validation_Set)", root)
    place, pictures = images or root, {}
    for _, folder in find_folders(place, r"cropped_aligned[^/]*"):
        # A download in batches has one more level: cropped_aligned/batch1/video61.
        for within in (folder, *(path for _, path in find_folders(folder, r"batch[^/]*", depth=1))):
            pictures |= {path.name.lower(): path for path in subfolders(within)}
    if not pictures:
        raise missing(f"no folder cropped_aligned with one folder per video below {place}", place)
    clips = [
        Clip(path.stem, path.stem, (path,), pictures.get(path.stem.lower()), "test" if name[1][0] in "Vv" else "train")
        for name, folder in sets
        for _, path in find_files(folder, r".+\.txt")
    ]
    defects = Defects()
    clips = sorted(distinct(clips, defects), key=lambda clip: clip.name)
    return Source("aff-wild2", root, "challenge", clips, read_clip, clips_per_shard=8, defects=defects)


def read_clip(clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of one video."""
    path, where = clip.labels[0], clip.name
    header = read_header(path, where, defects)
    columns = au_columns(header)
    frames, values = read_labels(path, header, columns, "aff-wild2", UNKNOWN, where, defects)
    known = ~np.isnan(values).all(axis=1)
    labels = by_frame(frames[known], values[known], where, defects)
    images = numbered_images(clip.images, where, defects)
    unknown = set(frames[~known].tolist())
    images = {number: image for number, image in images.items() if number not in unknown}
    yield from join("aff-wild2", clip, image_files(images), {"aff-wild2": labels}, defects)
