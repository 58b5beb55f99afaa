"""The pictures of a clip with their frame numbers: files of a folder, or frames of a video.

Frame numbers are read from file names as numbers and never formatted: copies of one data set differ in padding.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from au_llava.au_datasets.records import Defects
from au_llava.au_faces.media import IMAGE_SUFFIXES, DamagedVideo, every_frame
from au_llava.au_readers.files import file_names
from au_llava.au_readers.source import Clip, Picture


def distinct(clips: Iterable[Clip], defects: Defects) -> list[Clip]:
    """The first clip of each subject and name; others, such as those of a second copy, are counted."""
    kept: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        if kept.setdefault((clip.subject, clip.name), clip) is not clip:
            defects.add("clips that exist twice, left out", str(clip.labels[0]))
    return list(kept.values())


def numbered_images(folder: Path | None, where: str, defects: Defects) -> dict[int, str]:
    """Frame number -> path of the images in a folder. The digits at the end of a name are its number, padded or not."""
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


def image_files(images: Mapping[int, str], offset: int = 0) -> Iterator[tuple[int, Picture]]:
    """(number + `offset`, picture) of the files, in the order of their numbers."""
    for number in sorted(images):
        yield number + offset, Picture(images[number])


def video_frames(path: Path, wanted: Collection[int], where: str, defects: Defects) -> Iterator[tuple[int, Picture]]:
    """(frame number from 1, picture) of a video, decoded once from its start, so that no seek can miss a frame.

    Frames that are not `wanted` have no image. A damaged video is counted.
    """
    number = 0
    try:
        for frame in every_frame(path, lambda number, time: number in wanted, counted=True):
            number = frame.number
            yield number, Picture(str(path), number, frame.image)
    except DamagedVideo as error:
        defects.add("videos that cannot be decoded to their end", f"{where}: stops after frame {number} ({error})")


def clip_images(clip: Clip, wanted: Collection[int], defects: Defects) -> Iterator[tuple[int, Picture]]:
    """(frame number, picture) of a clip's video, counted from 1, or of its folder, numbered by file names."""
    where = f"{clip.subject}/{clip.name}"
    if clip.images is not None and clip.images.is_file():
        return video_frames(clip.images, wanted, where, defects)
    return image_files(numbered_images(clip.images, where, defects))
