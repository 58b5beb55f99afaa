"""FEAFA and FEAFA+: strengths of 24 facial movements, 0 to 1, in every frame.

part A:  FEAFA-A/PV001.output/00000123.auw below ROOT; the image of that stem is beside it, or in another folder PV001…
         below IMAGES (ROOT by default)
part B:  FEAFA-B/SN001.output/00000123.auw (some copies: 2.output/gong2_2_00004832.auw); the images are DISFA's

An .auw file holds 24 numbers separated by spaces, in the order of format "feafa". The digits at the end of its name are
the frame number, counted from 0. Sources: youknowitskyle/farapy-data-tools, FEAFA+/*.py;
jamesjg/resnet-for-au-master, make_img_and_label.py; sccnlab/E-DFE, load_FEAFA_train.py.

**Not verified against a real copy:** that frame k of part B is DISFA's label frame k + 1 and shows its left camera;
whether "left" means the person's own left. Look at one asymmetric frame before you trust sides. It is not documented
who is shown in a folder of part B whose name is only a number: such folders are left out unless --numbers-are-people is
given.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Value

from au_llava.au_datasets.records import Defects
from au_llava.au_readers.disfa import find_pictures, first_number
from au_llava.au_readers.files import check_root, file_names, find_files, find_folders, has_images, missing
from au_llava.au_readers.labels import UNREADABLE, join, on_scale
from au_llava.au_readers.pictures import distinct, image_files, numbered_images, video_frames
from au_llava.au_readers.source import Clip, Known, Source

_NUMBERS = {"clips": {"A": 127, "B": 27}, "images": {"A": 99356, "B": 130828}}


def open_feafa(
    root: Path,
    images: Path | None = None,
    plus: bool = False,
    disfa: Path | None = None,
    disfa_images: Path | None = None,
    numbers_are_people: bool = False,
) -> Source:
    """The copy of FEAFA (part A) in `root`, or of FEAFA+ (with part B).

    Args:
        images: folder of part A's images, if they are not beside the labels.
        plus: read part B too, whose images are DISFA's.
        disfa: a copy of DISFA with its videos, for part B.
        disfa_images: or a tree of its images.
        numbers_are_people: assume that part B's folder 2.output shows SN002, an unconfirmed guess.

    Raises:
        FileNotFoundError: a folder is missing; the message names it.
    """
    check_root(root)
    folders = [
        (name[1].upper(), path)
        for name, path in find_folders(root, r"(PV\d{3}|SN\d{3}|\d{1,3})(?:\.output)?")
        if any(each.lower().endswith(".auw") for each in file_names(path))
    ]
    if not folders:
        raise missing(f"no folder such as FEAFA-A/PV001.output with .auw files below {root}", root)
    beside = {name: path for name, path in folders if has_images(path)}
    elsewhere: dict[str, Path] = {}
    for name, path in find_folders(images or root, r"(PV\d{3})[^/]*"):
        if has_images(path):
            elsewhere.setdefault(name[1].upper(), path)
    of_a = {**elsewhere, **beside} if images is None else {**beside, **elsewhere}
    pictures = find_pictures(disfa, disfa_images) if plus and (disfa or disfa_images) else {}
    if plus and not pictures:
        raise FileNotFoundError(
            f"part B's images are DISFA's, and there are none in {disfa or disfa_images}"
            if disfa or disfa_images
            else "part B's images are DISFA's: give --disfa or --disfa-images"
        )
    clips, defects = [], Defects()
    for name, path in folders:
        if name.startswith("PV"):
            clips.append(Clip(name, name, (path,), of_a.get(name)))
        elif not plus:
            defects.add("clips of part B, left out", path.name)
        elif name.isdigit() and not numbers_are_people:
            defects.add("clips named by a bare number, left out (--numbers-are-people reads them)", path.name)
        else:
            subject = name if name.startswith("SN") else f"SN{int(name):03d}"
            clips.append(Clip(subject, subject, (path,), pictures.get((subject, "left"))))
    clips = distinct(clips, defects)
    trees = [path for path in pictures.values() if path.is_dir()]
    parts = sorted({part_of(clip) for clip in clips})
    return Source(
        dataset="feafa",
        root=root,
        layout=f"part {' and '.join(parts)}",
        clips=clips,
        read=partial(read_clip, first_number(trees) if trees else 0),
        clips_per_shard=8,
        metadata={"feafa_part": Value("string")},
        known=Known({what: sum(number[part] for part in parts) for what, number in _NUMBERS.items()}),
        defects=defects,
        notes=(
            "train, validation and test share no clips, but may share people: part A shows 122 people in 127 clips and "
            "does not say who is who",
        )
        * ("A" in parts),
    )


def part_of(clip: Clip) -> str:
    return "A" if clip.subject.startswith("PV") else "B"


def read_clip(first: int, clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of one folder; if its images are DISFA's, `first` is the number of the first one."""
    where = clip.name
    labels = read_strengths(clip.labels[0], where, defects)
    if clip.images is not None and clip.images.is_file():
        wanted = {frame + 1 for frame in labels}
        frames = ((number - 1, image) for number, image in video_frames(clip.images, wanted, where, defects))
    else:
        offset = 0 if part_of(clip) == "A" else -first
        frames = image_files(numbered_images(clip.images, where, defects), offset)
    part = {"feafa_part": part_of(clip)}
    yield from join("feafa", clip, frames, {"feafa": labels}, defects, lambda frame: part)


def read_strengths(folder: Path, where: str, defects: Defects) -> dict[int, list[float]]:
    """Frame -> 24 strengths, from the .auw files of a folder."""
    rows: dict[int, list[float]] = {}
    for found, path in find_files(folder, r"(.*?)(\d*)\.auw"):
        name, number = path.name, found[2]
        try:
            row = [float(cell) for cell in path.read_text(encoding="utf-8-sig").replace(",", " ").split()]
        except OSError as error:
            defects.add(UNREADABLE, f"{where}/{name}: {error.strerror}")
            continue
        except ValueError:
            row = []
        if not number or len(row) != 24:
            defects.add("label files that are not 24 numbers of a frame, left out", f"{where}/{name}: {len(row)}")
        elif int(number) in rows:
            defects.add("label files for a frame that has one, left out", f"{where}/{name}")
        else:
            rows[int(number)] = row
    if not rows:
        return {}
    values = on_scale(np.array(list(rows.values())), "feafa", where, defects)
    return dict(zip(rows, values.tolist(), strict=True))
