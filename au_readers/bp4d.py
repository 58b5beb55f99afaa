"""BP4D, its FERA 2015 copy, and BP4D+: occurrence of 12 AUs and intensity of five in every frame.

BP4D as released:     ROOT/AUCoding/AU_OCC/F001_T1.csv, ROOT/AUCoding/AU_INT/AU06/F001_T1_AU06.csv
its FERA 2015 copy:   ROOT/AUCoding/F001_T1.csv, ROOT/AU Intensity Codes3.0/AU06/F001_T1_AU06.csv
BP4D+:                as BP4D, with 34 AU columns that are not numbered by position
images:               any folder F001/T1 with images below ROOT or IMAGES: BP4D-training, 2D+3D, Sequences_2D+3D, …
its 2D videos:        or 2F01_T5.avi; as distributed 2F01_09.avi, numbered 01, 03, 07, 08, 09, 10, 11, 13 for T1 to T8

AU_OCC has a header; the first column is the frame and the header of the others is the AU. Values are 0, 1 and 9
(unknown). AU_INT has no header and two columns, frame and 0 to 5 or 9. Only a span of each recording is coded. The name
of an image is its frame number; frames of a video are counted from 1. Sources:
sspnet.eu/FERA2015/challenge-guidelines; CVI-SZU/ME-GraphAU, tool/BP4D_image_label_process.py;
TadasBaltrusaitis/FERA-2015; ubicomplab/rPPG-Toolbox, BP4DPlusBigSmallLoader.py; forever208/FMAE-IAT,
AU/BP4D_preprocess.py (videos).

**Not verified against a real copy:** whether BP4D's images start at 0 or 1 (frames and files are matched by number; the
manifest counts those without a match and names clips that start at 0); whether BP4D+'s header holds AU numbers (used if
they rise, otherwise the order of two public readers is assumed).

BP4D+ is coded like BP4D, so its records have BP4D's formats, and dataset "bp4d-plus". AUs beyond BP4D's twelve are left
out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import Defects
from au_llava.au_faces.media import VIDEO_SUFFIXES
from au_llava.au_readers.files import find_files, find_folders, has_images, missing, needed_folder
from au_llava.au_readers.labels import by_frame, join, read_au_files, read_header, read_labels
from au_llava.au_readers.pictures import clip_images
from au_llava.au_readers.source import Clip, Known, Picture, Source
from au_llava.au_runs.folders import files_below

UNKNOWN = (9,)
_NAME = r"([FM]\d{3})_(T\d+)"
_VIDEO_NUMBERS = {f"{number:02d}": f"T{task}" for task, number in enumerate((1, 3, 7, 8, 9, 10, 11, 13), start=1)}
# ubicomplab/rPPG-Toolbox, BP4DPlusBigSmallLoader.py; positions confirmed by FMAE-IAT, AU/BP4D_plus_preprocess.py.
BP4D_PLUS_ORDER = (1, 2, 4, 5, 6, 7, 9, *range(10, 21), 22, 23, 24, *range(27, 40))

# Positives: fitted to ME-GraphAU's weight files, which agree to 0.002 %; five also counted exactly elsewhere.
_BP4D = Known(
    {"subjects": 41, "clips": 328, "images": 146847},
    {
        "bp4d": dict(
            zip(
                FORMATS["bp4d"].labels,
                (31043, 25110, 29755, 67677, 80617, 87271, 82531, 68376, 24869, 50407, 24288, 22229),
                strict=True,
            )
        )
    },
)
_BP4D_PLUS = Known({"subjects": 140, "clips": 560})  # AUs are coded for T1, T6, T7 and T8 of 140 people


def open_bp4d(root: Path, images: Path | None = None, plus: bool = False) -> Source:
    """The copy of BP4D, or of BP4D+, in `root`.

    Args:
        images: folder that holds folders such as F001/T1 or videos, at any depth; `root` by default.

    Raises:
        FileNotFoundError: a folder is missing; the message names it.
    """
    coding = needed_folder(root, "AUCoding", "AUCoding")

    def inside(folder: Path, pattern: str) -> Path | None:
        return next((path for _, path in find_folders(folder, pattern, depth=2)), None)

    occurrence, intensity = inside(coding, "AU_OCC"), inside(coding, "AU_INT")
    layout = "release"
    if occurrence is None:
        layout, occurrence = "FERA 2015 copy", coding
        intensity = inside(coding.parent, r"AU Intensity Codes[^/]*") or intensity
    files = list(find_files(occurrence, rf"{_NAME}\.csv"))
    if not files:
        sentence = f"no label files such as F001_T1.csv in {coding}/AU_OCC (release) or {coding} (FERA)"
        raise missing(sentence, coding)
    graded = defaultdict(list)
    for _, folder in find_folders(intensity, r"AU\d+", depth=1) if intensity else ():
        for name, path in find_files(folder, rf"{_NAME}.*\.csv"):
            graded[name[1].upper(), name[2].upper()].append(path)

    place = images or root
    pictures = find_pictures(place)
    if not pictures:
        sentence = f"no folder of images such as F001/T1/2440.jpg and no video such as 2F01_T1.avi below {place}"
        raise missing(f"{sentence}: unpack them or name them by --images", place)
    videos = any(path.is_file() for path in pictures.values())
    clips = [
        Clip(*key, labels=(path, *graded.pop(key, ())), images=pictures.pop(key, None))
        for key, path in (((name[1].upper(), name[2].upper()), path) for name, path in files)
    ]
    defects = Defects()
    for left, kind in ((graded, "intensity files without an occurrence file"), (pictures, "recordings never coded")):
        for subject, task in left:
            defects.add(f"{kind}, left out", f"{subject}/{task}")
    name = "bp4d-plus" if plus else "bp4d"
    return Source(
        dataset=name,
        root=coding.parent,
        layout=layout + (", videos" if videos else "") + ("" if intensity else ", without intensities"),
        clips=clips,
        read=partial(read_clip, name, bool(intensity)),
        clips_per_shard=2 if videos else 40,
        known=_BP4D_PLUS if plus else _BP4D,
        defects=defects,
    )


def find_pictures(place: Path) -> dict[tuple[str, str], Path]:
    """(subject, task) -> its folder of images below `place`, or else its video."""
    found: dict[tuple[str, str], Path] = {}
    for name, folder in find_folders(place, r"([FM]\d{3})/(T\d+)"):
        if has_images(folder):
            found.setdefault((name[1].upper(), name[2].upper()), folder)
    for path in files_below(place, VIDEO_SUFFIXES):
        name = re.fullmatch(r"2([FM])(\d\d)_(T[1-8]|\d\d)", path.stem, re.IGNORECASE)
        task = name and _VIDEO_NUMBERS.get(name[3], name[3].upper())
        if name and task.startswith("T"):
            found.setdefault((f"{name[1].upper()}0{name[2]}", task), path)
    return found


def read_clip(dataset: str, graded: bool, clip: Clip, defects: Defects) -> Iterator[dict]:
    """The records of one task of one person."""
    occurrence, *intensities = clip.labels
    where = f"{clip.subject}/{clip.name}"
    labels = {"bp4d": read_occurrence(occurrence, defects)}
    if graded:
        of_aus = [("AU" + re.search(r"[1-9]\d*", path.parent.name)[0], path) for path in intensities]
        labels["bp4d-intensity"] = read_au_files(of_aus, "bp4d-intensity", where, defects, UNKNOWN)
        odd = labels["bp4d-intensity"].keys() ^ labels["bp4d"].keys()
        if intensities and odd:
            defects.add("frames with occurrence or intensity only", f"{where} frame {min(odd)}", len(odd))
    # A recording is much longer than its coded span, so images outside the span are not defects.
    first, last = min(labels["bp4d"], default=0), max(labels["bp4d"], default=-1)

    def spanned() -> Iterator[tuple[int, Picture]]:
        for number, picture in clip_images(clip, labels["bp4d"], defects):
            if number == 0:
                defects.add("clips whose images start at 0 though labels start at 1", where)
            if number > last:
                return
            if number >= first:
                yield number, picture

    yield from join(dataset, clip, spanned(), labels, defects)


def read_occurrence(path: Path, defects: Defects) -> dict[int, list[float]]:
    """Frame -> occurrence of the AUs of format "bp4d", from an AU_OCC file. An AU without a column is NaN."""
    header = read_header(path, path.name, defects)
    columns = {f"AU{number}": column for number, column in occurrence_columns(header).items()}
    frames, values = read_labels(path, header, columns, "bp4d", UNKNOWN, path.name, defects, frame_column=0)
    return by_frame(frames, values, path.name, defects)


def occurrence_columns(header: list[str]) -> dict[int, int]:
    """AU number -> column, from the header of an AU_OCC file, whose first column is the frame. Empty if it has no AUs.

    BP4D: 0,1,…,99. BP4D+: AU numbers (1,1,2,4,5,… in cosanlab/py-feat's reader), or 34 columns that are only counted
    or have other names, which are in the order `BP4D_PLUS_ORDER`. A line of codes is no header.
    """
    cells = [re.fullmatch(r"(?:AU)?\s*0*(\d+)", cell, re.IGNORECASE) for cell in header[1:]]
    numbers = [int(cell[1]) for cell in cells if cell]
    rising = len(numbers) == len(cells) > 0 and all(a < b for a, b in pairwise(numbers))
    if numbers and not rising and {*numbers} <= {0, 1, *UNKNOWN}:  # taken for a header, it would be lost unnoticed
        return {}
    if len(cells) == len(BP4D_PLUS_ORDER) and (not rising or numbers[-1] - numbers[0] == len(cells) - 1):
        numbers = BP4D_PLUS_ORDER
    elif not rising:
        return {}
    return {number: column for column, number in enumerate(numbers, start=1)}
