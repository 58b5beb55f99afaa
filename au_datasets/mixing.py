"""Mixes prepared data sets into the rows of one training: which people, frames and formats of each, and how often.

A data set is given by its folder, or by a mapping (in a recipe; as a flag, the same mapping in YAML's flow style):

    data/disfa                  once per epoch
    data/disfa=2                twice
    {path: data/bp4d, weight: 0.5, protocol: bp4d-3fold, tested: P1, formats: [bp4d], convert_to: [gft], frames: 10}

Labels of one picture in several formats become one row, across folders too. Pictures are the same if data set, subject,
clip and frame are equal, or if they are the same file; FEAFA's part B shows DISFA's frames (`shown_picture`). Outside
of `NUMBERED` data sets, two folders may give different pictures the same name, so their content must be equal too. If
a folder is given twice, its rows stay apart.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import combinations

import datasets
import numpy as np
import yaml

from au_llava.action_units import get_format
from au_llava.au_datasets.conversion import convert_values, convertible
from au_llava.au_datasets.folds import check_disjoint, get_protocol, people_of, person_key, protocol_split
from au_llava.au_datasets.records import (
    KEY,
    NUMBERED,
    check_names,
    content_of,
    group_by_image,
    keys_of,
    load_records,
)
from au_llava.au_runs.formats import known_format

VALIDATION_SEED = 0  # a protocol's parts, including validation, do not change between runs


@dataclass(frozen=True)
class TrainingData:
    """One prepared data set in a training.

    Args:
        path: a folder made by prepare_data.py.
        weight: how often its images are shown per epoch; for a fraction, a fixed random share of them.
        formats: use only labels in these formats.
        protocol, tested: divide by a published protocol (`folds.PROTOCOLS`) whose part `tested` is tested, instead of
            by the records' `part`. It may be the protocol of another data set that shows the same people.
        validation: with a protocol, the share of the training people who validate.
        convert_to: derive labels in these formats too, for images without them (`conversion.convert_values`).
        frames: train on every k-th labelled frame of each clip, or with "changed" on frames whose labels differ from
            those of the frame before.

    Raises:
        ValueError: a value is out of range or has no effect.
    """

    path: str
    weight: float = 1.0
    formats: Sequence[str] | None = None
    protocol: str | None = None
    tested: str | None = None
    validation: float = 0.1
    convert_to: Sequence[str] = ()
    frames: int | str = 1

    def __post_init__(self):
        if not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise ValueError(f"{self.path}: weight is {self.weight!r}; it must be positive: passes per epoch.")
        if (self.protocol is None) != (self.tested is None):
            raise ValueError(f"{self.path}: protocol and tested go together, such as bp4d-3fold and P1.")
        if self.frames != "changed" and not (isinstance(self.frames, int) and self.frames >= 1):
            raise ValueError(f"{self.path}: frames is {self.frames!r}; it must be a whole number from 1, or 'changed'.")
        for name in ("formats", "convert_to"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{self.path}: {name} must be a list, such as [bp4d].")
            words = getattr(self, name)
            if words:  # a frozen dataclass
                object.__setattr__(self, name, [known_format(word).name for word in words])

    @classmethod
    def read(cls, entry) -> "TrainingData":
        """Read a path, "path=weight", a mapping, or a mapping written in YAML. Raises ValueError for anything else."""
        if isinstance(entry, cls):
            return entry
        if isinstance(entry, str) and entry.startswith("{"):
            try:
                entry = yaml.safe_load(entry)
            except yaml.YAMLError:
                raise ValueError(f"{entry} is not a YAML mapping such as {{path: data/bp4d, weight: 2}}.") from None
        if isinstance(entry, str):
            path, _, weight = entry.partition("=")
            try:
                return cls(path, float(weight or 1))
            except ValueError:
                raise ValueError(f"{entry}: the number after '=' must be positive: passes per epoch.") from None
        known = [field.name for field in fields(cls)]
        if not isinstance(entry, dict) or "path" not in entry or set(entry) - set(known):
            raise ValueError(f"{entry}: a data set needs path; optional are {', '.join(known[1:])}.")
        return cls(**entry)

    def load(self, part: str, formats: Iterable[str] | None = None, labelled: bool = True) -> datasets.Dataset:
        """Its records of a part. Raises ValueError if there are none, or if they should be `labelled` but are not."""
        formats = self.formats or formats
        if self.protocol is None:
            return load_records(self.path, part=part, formats=formats, labelled=labelled)
        records = load_records(self.path, formats=formats, labelled=labelled)
        names = records[get_protocol(self.protocol).unit][:]
        split = protocol_split(self.protocol, self.tested, VALIDATION_SEED, self.validation, names)
        members = split.get(part, [])
        kept = np.flatnonzero(np.isin(names, members))
        if not len(kept):
            raise ValueError(
                f"{self.path} has no record of the {part} part of {self.protocol} that tests {self.tested}"
                + (f": the people drawn to validate are {', '.join(members) or 'nobody'}" * (part == "validation"))
                + "."
            )
        return records.select(kept)

    @cached_property
    def tested_records(self) -> datasets.Dataset | None:
        """Its records of the test part, in every format; None if there are none."""
        try:
            return replace(self, formats=None).load("test", labelled=False)
        except ValueError:
            return None

    def tested_people(self) -> set[str]:
        """`person_key`s of all who are tested, and so must not be trained on; of a protocol with published people all
        of them, whether they are in the folder or not."""
        records = self.tested_records
        people = set() if records is None else set(people_of(records))
        if self.protocol is not None and (protocol := get_protocol(self.protocol)).unit == "subject":
            people |= {person_key(protocol.dataset, name) for name in protocol.parts[self.tested]}
        return people


def validating(tables: Iterable, part: str, formats: Iterable[str] | None = None) -> list[TrainingData]:
    """The tables that have records of `part`, because a folder may hold only training people.

    Takes the arguments of `training_rows`. If no table has any, all are returned, and reading them reports the error.
    """
    tables = [TrainingData.read(entry) for entry in tables]
    kept = []
    for table in tables:
        if table.protocol is None:
            records = load_records(table.path, formats=table.formats or formats)
            if part not in records.unique("part"):
                continue
        kept.append(table)
    return kept or tables


def part_records(entries: Iterable[str], part: str) -> tuple[datasets.Dataset, list[str]]:
    """The records of a part of several data sets, one after another, and the folders of all of these data sets.

    Args:
        entries: folders, or mappings in YAML whose path, formats, protocol, tested and validation say which records;
            their other keys only concern training.

    Raises:
        ValueError: a mapping cannot be read, nothing is left, or folders use one name for different pictures.
    """
    tables = [TrainingData.read(entry) if entry.startswith("{") else TrainingData(entry) for entry in entries]
    kept = validating(tables, part)
    loaded = [table.load(part) for table in kept]
    check_names([table.path for table in kept], loaded)
    records = loaded[0] if len(loaded) == 1 else datasets.concatenate_datasets(loaded)
    return records, [table.path for table in tables]


def check_people(train, validation, tables: Iterable[TrainingData], side: str = "train") -> None:
    """Refuse a training whose training, validation and tested people overlap, across data sets too.

    Two tables of the same picture files may call their people differently, so no file may be on two sides either.

    Args:
        train, validation: records or rows with `dataset`, `subject` and `image`; validation may be None.
        tables: whose tested people must be in neither.
        side: what to call the training people in the message.

    Raises:
        ValueError: somebody, or a picture file, is in two of them; the message names the people or one file.
    """
    tables = list(tables)
    sides = {name: rows for name, rows in ((side, train), ("validation", validation)) if rows is not None}
    people = {name: people_of(rows) for name, rows in sides.items()}
    check_disjoint({**people, "test": set().union(*(table.tested_people() for table in tables))})
    tested = [table.tested_records for table in tables if table.tested_records is not None]
    files = {name: set(files_of(rows)) for name, rows in sides.items()}
    files["test"] = set().union(*map(files_of, tested))
    for (one, first), (other, second) in combinations(files.items(), 2):
        if shared := (first & second) - {None}:
            raise ValueError(
                f"{len(shared)} picture files are in both {one} and {other}, such as {min(shared)}: two tables name "
                "their people differently. Prepare both with one --name."
            )


def files_of(records: datasets.Dataset) -> list[str | None]:
    """The absolute path of each record's picture; None where the record holds the picture itself."""
    stored = records.with_format(None).select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    paths = stored.flatten().select_columns(["image.path"])["image.path"][:]  # without the bytes
    return [os.path.abspath(path) if path and os.sep in path else None for path in paths]


def shown_picture(dataset: str, subject: str, clip: str, frame: int) -> tuple[str, str, str, int]:
    """What identifies a picture across data sets: its key; for FEAFA's part B, the key of the DISFA frame it shows.

    As in the readers, frame k of part B is label frame k + 1 of DISFA's left camera. This also matches frames of videos
    and crops, which each folder stores itself.
    """
    if dataset == "feafa" and subject.startswith("SN"):
        return "disfa", subject, "left", frame + 1
    return dataset, subject, clip, frame


def kept_frames(keys: Sequence[tuple], values: Sequence, frames: int | str) -> list[int]:
    """The numbers of the images to train on.

    Args:
        keys: (dataset, subject, clip, frame) of each image.
        values: labels of each image, compared for equality.
        frames: as in `TrainingData`; every k-th frame, starting with the first of a clip.
    """
    clips = defaultdict(list)
    for index, key in enumerate(keys):
        clips[key[:3]].append(index)
    kept = []
    for members in clips.values():
        members.sort(key=lambda index: keys[index][3])
        if frames == "changed":
            pairs = zip([None, *members[:-1]], members, strict=True)
            kept += [own for before, own in pairs if before is None or values[before] != values[own]]
        else:
            kept += members[::frames]
    return sorted(kept)


def _labels(table: TrainingData, records: datasets.Dataset, groups: Sequence[dict]) -> list[dict[str, list[float]]]:
    """For each image, format -> values, including derived formats."""
    values = records["values"][:]
    labels = [{name: values[row] for name, row in group.items()} for group in groups]
    for target in map(get_format, table.convert_to):
        derived: dict[int, np.ndarray] = {}
        for name in sorted({name for of_image in labels for name in of_image if name != target.name}):
            source = get_format(name)
            images = [i for i, group in enumerate(groups) if name in group and target.name not in group]
            if not images or not convertible(source, target):
                continue
            converted = convert_values([labels[i][name] for i in images], source, target)
            for image, row in zip(images, converted, strict=True):  # values from an earlier format stay
                before = derived.get(image, row)
                derived[image] = np.where(np.isnan(before), row, before)
        known = {image: row for image, row in derived.items() if not np.isnan(row).all()}
        if not known and not any(target.name in of_image for of_image in labels):
            given = sorted({name for of_image in labels for name in of_image})
            raise ValueError(f"{table.path}: no label of {target.name} follows from its {', '.join(given)}.")
        for image, row in known.items():
            labels[image][target.name] = row.tolist()
    return labels


def unlabelled_rows(tables: Sequence, part: str, formats: Iterable[str] | None, seed: int = 0) -> datasets.Dataset:
    """`training_rows` of pictures whose labels are unknown or must not be used, with their `margin` and `coded`."""
    return training_rows(tables, part, formats, seed, ("margin", "coded"), unlabelled=True)


def _without_labels(table: TrainingData, records: datasets.Dataset) -> datasets.Dataset:
    """Records whose `values` are weak values (NaN without any); `margin` is 0 and `coded` False if they have none."""
    if table.convert_to:
        raise ValueError(f"{table.path}: convert_to derives labels, and unlabelled pictures have none: leave it out.")
    added = {}
    if "weak" not in records.column_names:
        added["weak"] = [[math.nan] * len(get_format(name).labels) for name in records["format"][:]]
    if "margin" not in records.column_names:
        added["margin"] = [0.0] * len(records)
    if "coded" not in records.column_names:
        added["coded"] = [False] * len(records)
    if added:
        records = datasets.concatenate_datasets([records, datasets.Dataset.from_dict(added)], axis=1)
    return records.remove_columns("values").rename_column("weak", "values")


def _identities(pictures: datasets.Dataset, tables_of: Mapping[tuple, int]) -> list[list]:
    """For each record of a picture, what the same picture shares in other tables: its `shown_picture`, and its file.

    Args:
        pictures: one record of each.
        tables_of: key -> number of tables that have it. If several do, content tells pictures apart as well.
    """
    stored = pictures.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    identities = []
    for row, (key, file) in enumerate(zip(keys_of(pictures), files_of(pictures), strict=True)):
        by_content = key[0] not in NUMBERED and tables_of[key] > 1
        shown = (*key, content_of(stored[row]["image"])) if by_content else shown_picture(*key)
        identities.append([shown] if file is None else [shown, file])
    return identities


def _turns(images: Sequence[int], weight: float, seed: int) -> list[tuple[int, int]]:
    """(pass, image) for each time that an image is shown in an epoch; the last pass may show a random share of them."""
    whole = int(weight)
    rest = np.random.default_rng(seed).permutation(len(images))[: round((weight % 1) * len(images))]
    return [(turn, image) for turn in range(whole) for image in images] + [(whole, images[place]) for place in rest]


def training_rows(
    tables: Sequence,
    part: str,
    formats: Iterable[str] | None,
    seed: int = 0,
    metadata: Sequence[str] = (),
    unlabelled: bool = False,
) -> datasets.Dataset:
    """One row per image: `image`, its `KEY`, `formats` (names), `values` (one list per format), `index`.

    Args:
        tables: entries for `TrainingData.read`.
        part: "train", "validation" or "test", the value of the `part` column to use.
        formats: names of the formats to keep for tables that do not list their own; None keeps all.
        seed: chooses the rows of a fractional pass.
        metadata: further columns of the records to keep.
        unlabelled: ignore the labels: `values` are then the records' `weak`, a weak teacher's estimates as shares of
            the scale, 0 to 1, NaN where it has none.

    Raises:
        ValueError: an entry cannot be read, or nothing is left to train on.
    """
    images, chosen, labels, row_of, offset = [], [], [], {}, 0
    tables = list(map(TrainingData.read, tables))
    loaded = [table.load(part, formats, labelled=not unlabelled) for table in tables]
    if unlabelled:
        loaded = [_without_labels(table, records) for table, records in zip(tables, loaded, strict=True)]
    tables_of = Counter(key for records in loaded for key in set(keys_of(records)))
    for table, records in zip(tables, loaded, strict=True):
        groups = group_by_image(records)
        of_table = _labels(table, records, groups)
        first = [min(group.values()) for group in groups]
        pictures = records.select(first)
        identities = _identities(pictures, tables_of)
        kept = kept_frames(keys_of(pictures), [repr(values) for values in of_table], table.frames)
        for turn, image in _turns(kept, table.weight, seed):
            names = [(turn, name) for name in identities[image]]
            row = next((row_of[name] for name in names if name in row_of), None)
            if row is None or labels[row].keys() & of_table[image].keys():
                row = len(labels)
                labels.append({})
                chosen.append(offset + first[image])
            labels[row] |= of_table[image]
            row_of |= dict.fromkeys(names, row)
        images.append(records.select_columns(["image", *KEY, *metadata]))
        offset += len(records)
    if not labels:
        raise ValueError(
            f"No record of part {part!r} is left in {', '.join(table.path for table in tables)}: check part and "
            "formats."
        )
    rows = datasets.concatenate_datasets(images).select(chosen)
    added = datasets.Dataset.from_dict(  # not add_column: it pickles every number for its fingerprint
        {
            "formats": [list(of_image) for of_image in labels],
            "values": [list(of_image.values()) for of_image in labels],
            "index": range(len(labels)),
        }
    )
    return datasets.concatenate_datasets([rows, added], axis=1)
