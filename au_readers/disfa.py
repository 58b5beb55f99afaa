"""DISFA: intensity of 12 AUs, 0 to 5, in every frame of 27 videos.

labels:  ROOT/ActionUnit_Labels/SN001/SN001_au1.txt, lines "frame,intensity", frames counted from 1
videos:  LeftVideoSN001_comp.avi, RightVideo…, in any folder below ROOT or IMAGES and in any spelling
images:  or any folder named after a person (SN001, LeftVideoSN001_comp, …) with images below IMAGES, or below ROOT if
         that has no videos. Unless its path contains "right", it belongs to the left camera.

The AU of a file is taken from its name, never from the order of files (LibreFace issue 2). Each video is decoded once
from its start; frame and label line of the same number belong together, and the shorter of the two ends the clip. Image
trees are numbered from 0 (ME-GraphAU, JAA-Net) or from 1 (ffmpeg): see `first_number`. Sources: amogh112/deepFAU's
notebook and OpenFace's readers for the tree; CVI-SZU/ME-GraphAU, tool/DISFA_image_label_process.py.

Column `bad_frame` marks frames that ZhiwenShao/PyTorch-JAANet leaves out because landmark detection failed (face hidden
or out of view). The records include them; leave them out to compare with results on its lists.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from datasets import Value

from au_llava.au_datasets.records import Defects
from au_llava.au_faces.media import VIDEO_SUFFIXES
from au_llava.au_readers.files import check_root, find_files, find_folders, has_images, missing, needed_folder
from au_llava.au_readers.labels import join, read_au_files
from au_llava.au_readers.pictures import image_files, numbered_images, video_frames
from au_llava.au_readers.source import Clip, Known, Source
from au_llava.au_runs.folders import files_below, subfolders

CAMERAS = ("left", "right")

# Frames absent from PyTorch-JAANet's lists, there counted from 0, inclusive.
_BAD_FROM_0 = """
SN001 397-419 3189-3242; SN002 799-825; SN004 4540-4554; SN006 1348-1404; SN009 1735-1807 1850-1884; SN010 4844-4844;
SN011 4528-4532 4829-4844; SN021 573-615 984-1163 1189-1204 1304-1337 1664-1709 1861-2476 2553-4656 4709-4721;
SN023 1020-1048 3377-3556 3583-3667 4546-4620 4740-4771 4824-4844; SN025 4595-4661 4815-4834; SN027 3460-3493 4737-4784;
SN028 1874-1884 4570-4689; SN029 4089-4542; SN030 938-961 1405-1421 2099-2131 2892-2954
"""
BAD_FRAMES: dict[str, frozenset[int]] = {  # subject -> label frames, counted from 1
    subject: frozenset(
        frame for first, last in (span.split("-") for span in spans) for frame in range(int(first) + 1, int(last) + 2)
    )
    for subject, *spans in (entry.split() for entry in _BAD_FROM_0.split(";"))
}

_KNOWN = Known(
    {"subjects": 27, "clips": 27, "images": 130814},
    {  # intensity 2 or more
        "disfa": {
            "AU1": 6506,
            "AU2": 5644,
            "AU4": 19933,
            "AU6": 10327,
            "AU9": 5473,
            "AU12": 16851,
            "AU25": 36247,
            "AU26": 11533,
        }
    },
)


def open_disfa(
    root: Path, images: Path | None = None, cameras: Sequence[str] = ("left",), first: int | None = None
) -> Source:
    """The copy of DISFA in `root`.

    Args:
        images: a tree of images to use instead of the videos in `root`, or where the videos are.
        cameras: "left", "right" or both; each is a clip.
        first: number of the first image of a tree, 0 or 1; None detects it.

    Raises:
        FileNotFoundError: a folder is missing; the message names it.
        ValueError: the images' numbering contradicts itself, or `first` is given for videos.
    """
    coding = needed_folder(root, r"ActionUnit_?Labels", "ActionUnit_Labels")
    files = {
        name[1].upper(): tuple(path for _, path in find_files(folder, r"SN\d{3}_au\d+\.txt"))
        for name, folder in find_folders(coding, r"(SN\d{3})", depth=2)
    }
    if not files:
        raise missing(f"no folders such as SN001 in {coding}", coding)
    pictures = find_pictures(root, images)
    clips, defects = [], Defects()
    for subject, paths in files.items():
        for camera in cameras:
            if (subject, camera) in pictures:
                clips.append(Clip(subject, camera, paths, pictures[subject, camera]))
            else:
                defects.add("people without images, left out", f"{subject} {camera}")
    if not clips:
        place = images or root
        sentence = f"no video such as LeftVideoSN001_comp.avi and no folder of images named like SN001 below {place}"
        raise missing(f"{sentence} for camera {' or '.join(cameras)}: name them by --images", place)
    layout = "videos"
    if clips[0].images.is_dir():
        if first is None:
            first = first_number([clip.images for clip in clips])
        layout = f"images numbered from {first}"
    elif first is not None:
        raise ValueError("--first-frame says how images are numbered, but these are videos: leave it out.")
    return Source(
        dataset="disfa",
        root=coding.parent,
        layout=layout,
        clips=clips,
        read=partial(read_clip, 1 - (first or 0)),
        clips_per_shard=1,
        metadata={"bad_frame": Value("bool")},
        known=_KNOWN if len(cameras) == 1 else Known({"subjects": 27, "clips": 54, "images": 2 * 130814}),
        defects=defects,
    )


def find_pictures(root: Path, images: Path | None = None) -> dict[tuple[str, str], Path]:
    """(subject, camera) -> its video or its folder of images, below `images` or else `root`.

    Never a mix: if there are both, folders are taken below `images` and videos below `root`.
    """
    place = images or root
    check_root(place)
    videos: dict[tuple[str, str], Path] = {}
    for path in files_below(place, VIDEO_SUFFIXES):
        name = re.match(r"(left|right)_?Video_?(SN\d{3})", path.name, re.IGNORECASE)
        if name:
            videos.setdefault((name[2].upper(), name[1].lower()), path)
    folders: dict[tuple[str, str], Path] = {}
    for name, folder in find_folders(place, r"[^/]*(SN\d{3})[^/]*"):
        for path in (folder, *subfolders(folder)):
            if has_images(path):
                inner = path.relative_to(place).as_posix().lower()
                camera = "right" if re.search(r"(?<![a-z])right", inner) else "left"
                folders.setdefault((name[1].upper(), camera), path)
    return (folders or videos) if images else (videos or folders)


def first_number(folders: Sequence[Path]) -> int:
    """The number of the first frame in a tree of images, 0 or 1, by the lowest and highest number in it.

    Some lists leave frames out, so a single folder that starts at 0 decides for the tree. Raises ValueError if one
    folder starts at 0 and one goes beyond 4844, the last of DISFA's 4845 frames.
    """
    numbers = {number for folder in folders for number in numbered_images(folder, folder.name, Defects())}
    if 0 in numbers and max(numbers) > 4844:
        raise ValueError(
            f"images are numbered 0 to {max(numbers)}, but DISFA has 4845 frames: give --first-frame 0 or 1"
        )
    return 0 if 0 in numbers else 1


def read_clip(offset: int, clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of one person and camera; `offset` is added to image numbers to get label frames."""
    where = f"{clip.subject}/{clip.name}"
    of_aus = [("AU" + re.search(r"au0*(\d+)$", path.stem, re.IGNORECASE)[1], path) for path in clip.labels]
    labels = read_au_files(of_aus, "disfa", where, defects)
    if clip.images.is_file():
        frames = video_frames(clip.images, labels, where, defects)
    else:
        frames = image_files(numbered_images(clip.images, where, defects), offset)
    bad = BAD_FRAMES.get(clip.subject, frozenset())
    yield from join("disfa", clip, frames, {"disfa": labels}, defects, lambda frame: {"bad_frame": frame in bad})
