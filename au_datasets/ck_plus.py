"""CK+ (extended Cohn-Kanade): AUs of the last, strongest image of 593 sequences of 123 people.

labels:  ROOT/FACS/S005/001/S005_001_00000011_facs.txt, lines "AU   intensity" in float notation
images:  ROOT/cohn-kanade-images/S005/001/S005_001_00000011.png

A file lists the AUs that are present, so an AU that it does not list is absent. Intensity 0 means present but not
graded, as recalled from the data set's own text and as cosanlab/py-feat reads it, so records tell occurrence only.
Format "ck-plus" has the 17 AUs that the data set's authors score (Lucey et al. 2010, recalled, not verified).
"""

from collections.abc import Iterator
from pathlib import Path

from ..action_units import FORMATS
from .reading import Clip, Known, Picture, Source, check_root, find_files, find_folders, join
from .records import Defects

_KNOWN = Known({"subjects": 123, "clips": 593, "images": 593})


def open_ck_plus(root: Path, images: Path | None = None) -> Source:
    """The copy of CK+ in `root`. Raises FileNotFoundError naming the folder that is missing."""
    check_root(root)
    coding = next((path for _, path in find_folders(root, r"FACS(?:[-_]labels)?", depth=2)), None)
    pictures = next((path for _, path in find_folders(images or root, r"cohn-kanade-images", depth=2)), None)
    if coding is None:
        raise FileNotFoundError(f"no folder FACS in {root}: --root is the folder that holds it")
    if pictures is None:
        raise FileNotFoundError(f"no folder cohn-kanade-images in {images or root}")
    clips = [
        Clip(name[1].upper(), name[2], (path,), pictures / folder.parent.name / folder.name)
        for name, folder in find_folders(coding, r"(S\d{3})/(\d{3})")
        for _, path in find_files(folder, r".+_facs\.txt")
    ]
    if not clips:
        raise FileNotFoundError(f"no label files such as S005/001/S005_001_00000011_facs.txt in {coding}")
    return Source("ck-plus", root, "FACS", clips, read_clip, clips_per_shard=1000, known=_KNOWN)


def read_clip(clip: Clip, defects: Defects) -> Iterator[dict]:
    """The record of a sequence's last image."""
    path = clip.labels[0]
    stem = path.stem[: -len("_facs")]
    present = set()
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        try:
            number, _grade = map(float, line.split())
        except ValueError:
            if line.strip():
                defects.add(
                    "label lines that are not an AU and its intensity, left out", f"{path.name}: {line.strip()}"
                )
            continue
        present.add(f"AU{number:.0f}")
    values = [float(label in present) for label in FORMATS["ck-plus"].labels]
    frame = int(stem.rpartition("_")[2])
    image = clip.images / f"{stem}.png"
    images = [(frame, Picture(str(image)))] if image.is_file() else []
    yield from join("ck-plus", clip, images, {"ck-plus": {frame: values}}, defects)
