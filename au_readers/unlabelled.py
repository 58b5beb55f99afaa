"""Faces without labels: your own pictures and videos, in any folders below ROOT.

The largest face is cropped from each picture and from every K-th frame of each video. All values are NaN. Pictures
without a face and files that cannot be read are left out and counted. Where the crop reaches beyond the picture, the
picture's border is repeated.

By default each file counts as another person. With --subjects folders, all files below a folder of ROOT show one
person, so that nobody gets into two parts. The data set is named by --name, by default after the folder and a hash of
its path, because face.png of one folder is not face.png of another.

Beside the fixed columns, a record holds `margin`, the share of the crop's side that was kept on every side, and `weak`,
a weak teacher's estimates: shares of the scale from 0 to 1 in the order of the format's labels, NaN where it has none.
With --teacher mediapipe they come from MediaPipe's blendshapes (au_datasets/weak_teacher.py). They are only for
training: never score against them.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from au_llava.au_datasets.codes import UNCODED, Codes, count_missing, notes_on
from au_llava.au_datasets.records import NO_CLIP, Defects
from au_llava.au_faces.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_video
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.faces import NOTE, UNLABELLED_METADATA, check_teacher, face_records, find_face, weak_values
from au_llava.au_readers.files import check_root, missing
from au_llava.au_readers.pictures import video_frames
from au_llava.au_readers.source import Clip, Picture, Source, local_name
from au_llava.au_runs.folders import files_below, told
from au_llava.au_runs.names import composed

SUBJECTS = ("files", "folders")


def open_unlabelled(
    root: Path,
    crop: Crop,
    teacher: str,
    every: int,
    subjects: str,
    name: str | None,
    formats: Sequence[str],
    codes: Codes | None,
) -> Source:
    """The pictures and videos below `root`.

    Args:
        crop: detects and crops the faces.
        teacher: one of `faces.TEACHERS`.
        every: take every k-th frame of a video, from the first.
        subjects: one of `SUBJECTS`: one person is one file, or one folder in `root` with all that is below it.
        name: the records' `dataset`; None for the folder's `local_name`.
        formats: of the records, and of the teacher's estimates.
        codes: if any, only pictures that they code, by their paths in `root`, are read, and they are the weak values
            instead of a teacher's.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds neither pictures nor videos.
        ValueError, OSError: the detector or the teacher cannot be used.
    """
    check_root(root)
    crop.check()
    check_teacher(teacher)
    pictures, clips, defects, left_out = defaultdict(list), [], Defects(), Counter()
    for path in files_below(root, IMAGE_SUFFIXES | VIDEO_SUFFIXES, left_out):
        place = path.relative_to(root)
        if subjects == "folders" and len(place.parts) == 1:
            defects.add("files that are not in a person's folder, left out", place.name)
            continue
        subject = composed(place.parts[0]) if subjects == "folders" else place.as_posix()
        if is_video(path):
            clips.append(Clip(subject, place.as_posix(), labels=(path,), images=path))
        else:
            pictures[subject].append(path)
    count_missing(codes, [path.relative_to(root).as_posix() for paths in pictures.values() for path in paths], defects)
    videos = bool(clips)
    clips += [Clip(subject, NO_CLIP, labels=tuple(paths)) for subject, paths in pictures.items()]
    if not clips and not defects.found:
        besides = f": it holds {told(left_out)}" if left_out else ""
        raise missing(f"no picture and no video below {root}{besides}", root)
    dataset = name or local_name(f"unlabelled-{root.resolve().name}", root)
    return Source(
        dataset=dataset,
        root=root,
        layout=" and ".join(["pictures"] * bool(pictures) + ["videos"] * videos),
        clips=clips,
        read=partial(read_clip, dataset, root, crop, teacher, every, formats, codes),
        clips_per_shard=20 if videos else 500,
        metadata=UNLABELLED_METADATA,
        defects=defects,
        notes=(NOTE, *notes_on(codes), *([f"left out below {root}: {told(left_out)}"] if left_out else [])),
        crops=True,
    )


def read_clip(
    dataset: str,
    root: Path,
    crop: Crop,
    teacher: str,
    every: int,
    formats: Sequence[str],
    codes: Codes | None,
    clip: Clip,
    defects: Defects,
) -> Iterator[dict]:
    """The records of a video, or of the pictures of one person, which are counted from 1. Codes are of pictures."""
    if codes is not None and clip.images is not None:
        defects.add(UNCODED, clip.name)
        return
    if clip.images is None:
        pictures = ((number, Picture(str(path))) for number, path in enumerate(clip.labels, start=1))
    else:
        taken = range(1, sys.maxsize, every)
        frames = video_frames(clip.images, taken, clip.name, defects)
        pictures = ((number, picture) for number, picture in frames if number in taken)
    for number, picture in pictures:
        file = Path(picture.path).relative_to(root).as_posix()
        where = file + (f" frame {number}" if clip.images else "")
        if codes is not None and file not in codes.files:
            defects.add(UNCODED, where)
            continue
        face = find_face(picture, crop, where, defects)
        if face is not None:
            if codes is not None:
                weak = codes.weak_values(file, formats)
            else:
                measured = None if teacher == "none" else face.measure()
                weak = weak_values(measured and measured.blendshapes, formats)
            yield from face_records(dataset, clip, number, face.crop, face.margin, weak, codes is not None)
