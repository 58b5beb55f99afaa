"""FairFace: faces from the web with age, gender and race as observers judged them, used as faces without labels.

as released:        ROOT/fairface_label_train.csv with columns file, age, gender, race; ROOT/train/1.jpg
                    and the same of val, if you have it
as Parquet:         ROOT/train-00000-of-00004.parquet, … with columns image {bytes, path}, file, age, and if known
                    gender, race, eye_right, eye_left ([x, y] in pixels), yaw, pitch (degrees), blendshapes (52 numbers,
                    their names under blendshape_names of the schema's metadata)

Age is a band of years. People under 20 are left out: the bands do not tell minors from people of 18 and 19, and minors
cannot consent to what is made of their faces. --all-ages includes them. The official validation part becomes the part
"test". As far as is known, every photograph shows another person. If the table has the eyes (each the middle of the
eye's corners), no face is detected; if it has blendshapes, --teacher mediapipe uses them and does not need MediaPipe.

License: CC BY 4.0 (Karkkainen & Joo 2021, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age for Bias
Measurement and Mitigation"). The photographs come from Flickr; its authors do not name the photographers (issue 5 of
the data set's repository). Age, gender and race are what observers saw. They are stored to compare groups, never to
identify anybody.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Value

from au_llava.au_datasets.codes import UNCODED, Codes, count_missing, notes_on
from au_llava.au_datasets.records import NO_CLIP, Defects
from au_llava.au_faces.landmarks import BLENDSHAPES
from au_llava.au_faces.media import IMAGE_SUFFIXES
from au_llava.au_faces.points import eyeballs
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.faces import NOTE, UNLABELLED_METADATA, check_teacher, face_records, find_face, weak_values
from au_llava.au_readers.files import check_root, file_names, find_files, find_folders, has_images, missing
from au_llava.au_readers.pictures import distinct
from au_llava.au_readers.source import Clip, Known, Picture, Source
from au_llava.au_runs.folders import subfolders

ADULT = 20  # years; the band before, 10-19, holds people of 18 and 19 too
METADATA = {
    **UNLABELLED_METADATA,
    **dict.fromkeys(("age", "gender", "race"), Value("string")),  # the data set's own words
    **dict.fromkeys(("yaw", "pitch"), Value("float32")),  # degrees, NaN where unknown
}
CREDIT = (
    "FairFace is CC BY 4.0: credit Karkkainen & Joo 2021; the Flickr photographers are not named in it (issue 5 of its "
    "repository)"
)
_RELEASED = {"train": 86744, "val": 10954}  # photographs, as Hugging Face counts in HuggingFaceM4/FairFace
_EYES = ("eye_right", "eye_left")


def open_fairface(
    root: Path, crop: Crop, teacher: str, all_ages: bool, formats: Sequence[str], codes: Codes | None
) -> Source:
    """The copy of FairFace in `root` or a folder in it.

    Args:
        crop: crops the faces, and detects them if the table does not give the eyes.
        teacher: one of `faces.TEACHERS`.
        all_ages: include people under 20.
        formats: of the records, and of the teacher's estimates.
        codes: if any, only photographs that they code are read, and they are the weak values instead of a teacher's.

    Raises:
        FileNotFoundError: something is missing; the message names it.
        ValueError, OSError: a table cannot be read or lacks a column, or the detector or the teacher cannot be used.
    """
    check_root(root)
    for folder in (root, *subfolders(root)):
        shards = list(find_files(folder, r"(train|val|validation)-\d+-of-\d+\.parquet"))
        tables = shards or list(find_files(folder, r"fairface_label_(train|val)\.csv"))
        if tables:
            break
    else:
        raise missing(f"neither fairface_label_train.csv nor train-00000-of-00004.parquet in {root}", root)
    parts = [name[1].lower() for name, _ in tables]
    divided = set(parts) != {"train"}  # otherwise parts are drawn
    defects, clips, files, detects, measures = Defects(), [], [], bool(crop.faces), False
    for part, (_, path) in zip(parts, tables, strict=True):
        rows = read_rows(path, ("file", "age", *_EYES))
        pictures = None if shards else _pictures(root, part)
        detects |= not all(_eyes(row) for row in rows)
        measures |= teacher != "none" and blendshape_order(path) is None
        own = ("train" if part == "train" else "test") if divided else None
        files += [row["file"] for row in rows]
        clips += _clips(path, rows, pictures, own, all_ages, defects)
    count_missing(codes, files, defects)
    if crop.faces and shards:  # the pictures that the table's rows are matched with are in no folder
        crop = replace(crop, pictures=tuple(files))
    if detects:
        crop.check()
    check_teacher(teacher, measures)
    return Source(
        dataset="fairface",
        root=folder,
        layout="Parquet" if shards else "release",
        clips=distinct(clips, defects),
        read=partial(read_clip, crop, teacher, formats, codes),
        clips_per_shard=1000,
        metadata=METADATA,
        known=Known({"images": sum(map(_RELEASED.get, parts))} if all_ages and not shards else {}),
        defects=defects,
        notes=(NOTE, CREDIT, *notes_on(codes)),
        crops=True,
    )


def _clips(
    path: Path, rows: list[dict], pictures: Path | None, part: str | None, all_ages: bool, defects: Defects
) -> Iterator[Clip]:
    """A clip for each row of a table. `pictures`: the folder of the photographs, if the table does not hold them."""
    names = set() if pictures is None else set(file_names(pictures))
    for row in rows:
        name = row["file"].rpartition("/")[2]
        present = pictures is None or name in names
        names.discard(name)
        age = lowest_age(row["age"])
        if not all_ages and (age is None or age < ADULT):
            whose = "people whose age is not told" if age is None else f"people under {ADULT}"
            defects.add(f"photographs of {whose}, left out", row["file"])
        elif not present:
            defects.add("rows without a photograph, left out", row["file"])
        else:
            yield Clip(row["file"], NO_CLIP, (path,), pictures and pictures / name, part)
    strangers = sorted(name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
    if strangers:
        defects.add("photographs without a row, left out", strangers[0], len(strangers))


def _pictures(root: Path, part: str) -> Path:
    """The folder of a part's photographs. Raises FileNotFoundError if there is none."""
    for _, folder in find_folders(root, part, depth=2):
        if has_images(folder):
            return folder
    raise missing(f"no folder {part} with photographs in {root}", root)


def lowest_age(band: str | None) -> int | None:
    """The lowest age in years of a band such as "20-29" or "more than 70"; None if it gives none."""
    found = re.fullmatch(r"(?:more than )?(\d+)(?:-\d+|\+)?", (band or "").strip(), re.IGNORECASE)
    return int(found[1]) if found else None


def read_rows(path: Path, columns: Sequence[str]) -> list[dict]:
    """The rows of a CSV with all its columns, or of a Parquet file with those of `columns` that it has.

    Raises ValueError if it cannot be read, or lacks a column that every copy has.
    """
    try:
        if path.suffix.lower() == ".csv":
            table = pa.Table.from_pandas(pd.read_csv(path, dtype=str, encoding="utf-8-sig"), preserve_index=False)
        else:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                table = file.read([name for name in columns if name in schema.names])
                if "image" not in schema.names or not pa.types.is_struct(schema.field("image").type):
                    raise ValueError("it has no column 'image' of {bytes, path}")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from error
    text = {pa.string(), pa.large_string()}
    for name in ("file", "age"):
        if name not in table.column_names or table.schema.field(name).type not in text:
            raise ValueError(f"{path} needs a column {name!r} of text; it has {', '.join(table.column_names)}")
    return [row for row in table.to_pylist() if row["file"]]


@lru_cache(maxsize=1)  # the clips of one file follow each other
def rows_of(path: Path) -> dict[str, dict]:
    """File -> its row, with all columns."""
    columns = ("image", "file", "age", "gender", "race", *_EYES, "yaw", "pitch", "blendshapes")
    return {row["file"]: row for row in read_rows(path, columns)}


@lru_cache(maxsize=8)
def blendshape_order(path: Path) -> list[int] | None:
    """Positions of `BLENDSHAPES` among the blendshapes of a Parquet file; None if it has none.

    Raises ValueError if the file does not name them.
    """
    if path.suffix.lower() == ".csv":
        return None
    schema = pq.read_schema(path)
    if "blendshapes" not in schema.names:
        return None
    names = (schema.metadata or {}).get(b"blendshape_names", b"").decode().split()
    if set(BLENDSHAPES) - set(names):
        raise ValueError(f"{path} does not name its blendshapes under 'blendshape_names' of the schema's metadata")
    return [names.index(name) for name in BLENDSHAPES]


def _eyes(row: Mapping) -> tuple | None:
    """The eyes to crop by, from the middles of their corners; None if the row does not give them."""
    if not all(row.get(name) for name in _EYES):
        return None
    return tuple(map(tuple, eyeballs(*(np.array(row[name], dtype=float) for name in _EYES)).tolist()))


def read_clip(
    crop: Crop, teacher: str, formats: Sequence[str], codes: Codes | None, clip: Clip, defects: Defects
) -> Iterator[dict]:
    """The records of one photograph."""
    if codes is not None and clip.subject not in codes.files:
        defects.add(UNCODED, clip.subject)
        return
    path = clip.labels[0]
    row = rows_of(path)[clip.subject]
    if clip.images is None:
        picture = Picture(clip.subject, content=(row["image"] or {}).get("bytes") or b"", eyes=_eyes(row))
    else:
        picture = Picture(str(clip.images))
    face = find_face(picture, crop, clip.subject, defects)
    if face is None:
        return
    blendshapes, angles = None, {name: row.get(name) for name in ("yaw", "pitch")}
    if teacher != "none":
        order = blendshape_order(path)
        if order is not None:
            blendshapes = row["blendshapes"] and np.array(row["blendshapes"], np.float32)[order]
        elif (measured := face.measure()) is not None:
            blendshapes, angles = measured.blendshapes, {"yaw": measured.yaw, "pitch": measured.pitch}
    metadata = {name: row.get(name) for name in ("age", "gender", "race")}
    metadata |= {name: math.nan if angle is None else angle for name, angle in angles.items()}
    weak = weak_values(blendshapes, formats) if codes is None else codes.weak_values(clip.subject, formats)
    yield from face_records("fairface", clip, 1, face.crop, face.margin, weak, codes is not None, metadata)
