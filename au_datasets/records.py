"""Records: the one table that every data set is turned into, and how it is written and read.

One row is one image annotated in one format; an image annotated in three formats has three adjacent rows.

| column    | type            | meaning |
|-----------|-----------------|---------|
| `image`   | Image           | embedded file bytes, or a path that is kept as a path |
| `dataset` | string          | the data set it comes from, such as "rendered" |
| `subject` | string          | the person; parts are exclusive by this column |
| `clip`    | string          | the recording; "0" for single images, such as rendered faces |
| `frame`   | int64           | the dataset's own frame number |
| `format`  | string          | the name of the format of `values`: "bp4d", "disfa", "feafa" |
| `values`  | list of float32 | in the order of the labels; NaN is *not annotated*, neither present nor absent |
| `part`    | string          | "train", "validation" or "test" |

Further columns are the dataset's own metadata. A folder of records holds `data-*.parquet` and `manifest.json`.

Unusual choice: image bytes are dictionary-encoded in Parquet, so the rows of one image store them only once.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from au_llava.action_units import FORMATS, own_formats
from au_llava.au_runs.files import replacing, write_json
from au_llava.au_runs.formats import know_formats

SCHEMA_VERSION = 1
PARTS = ("train", "validation", "test")
KEY = ("dataset", "subject", "clip", "frame")  # what identifies an image
# Data sets whose own numbers identify the picture of a record, in every copy and however it is cropped.
NUMBERED = {"bp4d", "bp4d-plus", "disfa", "feafa", "gft", "aff-wild2", "ck-plus", "emotionet"}
NO_CLIP = "0"  # value of `clip` of single images
MANIFEST = "manifest.json"
NOT_ANNOTATED = "not annotated"  # the key of NaN among the manifest's counts of values
_DEFECTS = "defects"  # key of a shard's Parquet metadata


def record_features(metadata: Mapping[str, object]) -> Features:
    """The columns of a record table: the fixed ones, and metadata as column name -> feature."""
    return Features(
        {
            "image": Image(),
            "dataset": Value("string"),
            "subject": Value("string"),
            "clip": Value("string"),
            "frame": Value("int64"),
            "format": Value("string"),
            "values": List(Value("float32")),
            "part": Value("string"),
            **metadata,
        }
    )


def shard_path(folder: Path, part: str, number: int, total: int) -> Path:
    """The file of shard `number` of `total` of a part.

    Because the part is in the name, `datasets.load_dataset("parquet", data_dir=folder)` makes splits of the parts, and
    reads only the shards: otherwise it would try to read the manifest as Parquet too.
    """
    return folder / f"data-{part}-{number:05d}-of-{total:05d}.parquet"


def plan_shards(folder: Path, parts: Mapping[Hashable, str], per_shard: int) -> list[tuple[Path, str, list]]:
    """(file, part, members) of each shard: the same for the same parts.

    Args:
        parts: the part of each member, such as a clip or the number of a subject, in the order of the records.
        per_shard: members of a shard, at most.
    """
    shards = []
    for part in PARTS:
        members = [member for member, own in parts.items() if own == part]
        groups = [members[start : start + per_shard] for start in range(0, len(members), per_shard)]
        shards += [(shard_path(folder, part, number, len(groups)), part, group) for number, group in enumerate(groups)]
    return shards


class Defects:
    """What is wrong with a source: the number of defects of each kind, and the first examples."""

    EXAMPLES = 5

    def __init__(self):
        self.found: dict[str, dict] = {}  # kind -> {"count": int, "examples": [str]}

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count a defect; `kind` is a plural that can stand before a colon and the count."""
        self.merge({kind: {"count": count, "examples": [example]}})

    def merge(self, found: Mapping[str, Mapping]) -> None:
        for kind, more in found.items():
            known = self.found.setdefault(kind, {"count": 0, "examples": []})
            known["count"] += more["count"]
            known["examples"] = (known["examples"] + more["examples"])[: self.EXAMPLES]

    def lines(self) -> list[str]:
        """One line per kind: "images without labels: 3 (F001/T1 frame 7, …)"."""
        return [
            f"{kind}: {entry['count']} ({', '.join(entry['examples'])}"
            f"{' …' * (entry['count'] > len(entry['examples']))})"
            for kind, entry in sorted(self.found.items())
        ]


def write_shard(records: Iterable[Mapping], features: Features, path: Path, defects: Defects | None = None) -> None:
    """Write records as one Parquet file that either exists completely or not at all.

    Records are consumed one by one and never held all at once. `defects`, as they are after the last record, are stored
    in the file, so that they survive an interruption.
    """
    # Without the higher limit Parquet gives up the dictionary after 1 MB and stores every image once per row.
    with (
        replacing(path) as unfinished,
        pq.ParquetWriter(unfinished, features.arrow_schema, dictionary_pagesize_limit=2**30) as file,
    ):
        for group in _groups(records):
            file.write_table(pa.Table.from_pylist(group, schema=features.arrow_schema))
        if defects is not None:
            file.add_key_value_metadata({_DEFECTS: json.dumps(defects.found)})


def _groups(records: Iterable[Mapping]) -> Iterator[list[Mapping]]:
    """Records in lists of about 32 MB, which are written one after another."""
    group, size = [], 0
    for record in records:
        expected = len(FORMATS[record["format"]].labels)
        if len(record["values"]) != expected:
            raise ValueError(f"a {record['format']} record needs {expected} values, got {len(record['values'])}")
        group.append(record)
        size += 2000 + len(record["image"]["bytes"] or b"")
        if size > 32e6:
            yield group
            group, size = [], 0
    if group:
        yield group


def _read_manifest(folder: Path) -> dict:
    """The manifest of a folder. Raises ValueError for a file of this name that `start_folder` did not write."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= {"schema_version", "complete", "arguments"}:
        raise ValueError(f"{folder / MANIFEST} is not of prepare_data.py, or damaged: choose another folder")
    return manifest


def start_folder(folder: Path, arguments: Mapping) -> None:
    """Prepare `folder` for shards made with `arguments`, or check that it already holds such shards.

    Raises ValueError if the folder was made with other arguments or holds shards without a manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file():
        before = _read_manifest(folder)["arguments"]
        differing = [name for name in sorted({*before, *arguments}) if before.get(name) != arguments.get(name)]
        if differing:
            told = ", ".join(f"{name} {before.get(name)!r} (now {arguments.get(name)!r})" for name in differing)
            raise ValueError(
                f"{folder} was made with {told}: repeat the first command to resume or choose another --out"
            )
    elif any(folder.glob("data-*.parquet")):
        raise ValueError(f"{folder} holds data-*.parquet but no {MANIFEST}: choose another --out")
    else:
        write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "complete": False, "arguments": arguments})
    for unfinished in folder.glob(".data-*.parquet.*"):
        unfinished.unlink()


def finish_folder(
    folder: Path,
    arguments: Mapping,
    warnings: Sequence[str] = (),
    known: Callable[[Mapping], list[dict]] | None = None,
) -> dict:
    """Count and hash the shards of a complete folder and write its manifest.

    `content_sha256` covers keys, parts, formats, values, weak values and images in row order, but not the Parquet
    encoding. Only a few rows are in memory at a time.

    Args:
        arguments: of the command that made the folder, as given to `start_folder`.
        warnings: for the manifest, before the defects that the shards hold.
        known: compares the manifest with a complete copy of the data set, for the manifest's entry "known".

    Returns:
        the manifest.

    Raises:
        ValueError: there is no record.
    """
    defects = Defects()
    counted = _counted(folder, f"{arguments['root']}/" if "root" in arguments else "", defects)
    warnings = [*warnings, *defects.lines()]
    if not counted["images"]:
        raise ValueError(f"no image is left to store: {'; '.join(warnings) or 'the source is empty'}")
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "complete": True,
        "arguments": dict(arguments),
        "own_formats": [fmt.to_dict() for fmt in own_formats() if fmt.name in counted["rows_per_format"]],
        "versions": {name: version(name) for name in ("au-llava", "datasets", "numpy", "pillow", "pyarrow")},
        "warnings": warnings,
        **counted,
    }
    if known is not None:
        manifest["known"] = known(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def _counted(folder: Path, root: str, defects: Defects) -> dict:
    """The manifest's entries about the records in the shards; `defects` receives those that the shards hold.

    Args:
        root: see `_hash_row`.
    """
    content = hashlib.sha256()
    clips: defaultdict[str, Counter] = defaultdict(Counter)
    subjects_of_part: defaultdict[str, set] = defaultdict(set)
    images_of_part: Counter = Counter()
    rows_of_format: Counter = Counter()
    values: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    previous = None
    for rows in _stored_rows(folder, defects):
        labels_of_format = defaultdict(list)
        for row in rows:
            _hash_row(content, row, root)
            labels_of_format[row["format"]].append(row["values"])
            key = tuple(row[name] for name in KEY)
            if key != previous:
                clips[row["subject"]][row["clip"]] += 1
                subjects_of_part[row["part"]].add(row["subject"])
                images_of_part[row["part"]] += 1
                previous = key
        for name, labels in labels_of_format.items():
            rows_of_format[name] += len(labels)
            _count_values(FORMATS[name], np.array(labels), values[name])
    return {
        "content_sha256": content.hexdigest(),
        "images": sum(images_of_part.values()),
        "images_per_part": dict(images_of_part),
        "subjects_per_part": {part: len(names) for part, names in subjects_of_part.items()},
        "rows_per_format": dict(rows_of_format),
        "values": {
            name: {label: dict(sorted(counts.items())) for label, counts in labels.items()}
            for name, labels in values.items()
        },
        "images_per_subject": {subject: sum(counts.values()) for subject, counts in clips.items()},
        "images_per_clip": {subject: dict(counts) for subject, counts in clips.items()},
    }


def _stored_rows(folder: Path, defects: Defects) -> Iterator[list[dict]]:
    """The rows of all shards, at most 256 at a time; `defects` receives those of each shard before its rows."""
    for shard in sorted(folder.glob("data-*.parquet")):
        with pq.ParquetFile(shard) as file:
            defects.merge(json.loads((file.metadata.metadata or {}).get(_DEFECTS.encode(), b"{}")))
            yield from map(pa.RecordBatch.to_pylist, file.iter_batches(256))


def _hash_row(content, row: Mapping, root: str) -> None:
    """Add a row to a hash; of an image that stays a path, the path, relative to `root` if it lies there."""
    content.update(json.dumps([row[name] for name in (*KEY, "part", "format")]).encode())
    for name in ("values", "weak"):
        content.update(np.array(row.get(name, ()), "<f4").tobytes())
    content.update(row["image"]["bytes"] or row["image"]["path"].removeprefix(root).encode())


def _count_values(fmt, labels: np.ndarray, counts: Mapping[str, Counter]) -> None:
    """Add labels (rows, AUs) to counts: AU -> value as text -> number. Continuous values are rounded to tenths."""
    for label, column in zip(fmt.labels, labels.T, strict=True):
        known = column[~np.isnan(column)]
        for value, count in zip(*np.unique(known, return_counts=True), strict=True):
            counts[label][f"{value:.1f}" if fmt.scale == "continuous" else str(int(value))] += int(count)
        if len(known) < len(column):
            counts[label][NOT_ANNOTATED] += len(column) - len(known)


def load_records(
    path: str | Path | Iterable[str | Path],
    part: str | None = None,
    formats: Iterable[str] | None = None,
    labelled: bool = True,
) -> Dataset:
    """The records of one folder, or of several one after another.

    Args:
        part: keep only "train", "validation" or "test".
        formats: keep only rows of these formats.
        labelled: refuse a folder without any labels, whose `values` can be neither trained on nor scored against.

    Raises:
        FileNotFoundError: a folder has no records.
        ValueError: a folder is unfinished, does not follow the schema or has no labels; folders use one name for
            different pictures; or nothing is left.
    """
    folders = [Path(path)] if isinstance(path, str | Path) else [Path(folder) for folder in path]
    tables = [_load_folder(folder, labelled) for folder in folders]
    check_names(folders, tables)
    records = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    kept = np.ones(len(records), bool)
    if part is not None:
        kept &= np.array(records["part"][:]) == part
    if formats is not None:
        formats = list(formats)
        kept &= np.isin(np.array(records["format"][:]), formats)
    if not kept.any():
        asked = [f"part {part!r}"] * (part is not None) + [f"formats {formats}"] * (formats is not None)
        found = f"parts {sorted(records.unique('part'))} and formats {sorted(records.unique('format'))}"
        where = ", ".join(map(str, folders))
        raise ValueError(f"no record of {' and '.join(asked) or 'any kind'} in {where}: it has {found}")
    return records if kept.all() else records.select(np.flatnonzero(kept))


def _load_folder(folder: Path, labelled: bool) -> Dataset:
    shards = sorted(folder.glob("data-*.parquet"))
    if not shards or not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"no data-*.parquet with a {MANIFEST} in {folder}: make them with prepare_data.py")
    manifest = _read_manifest(folder)
    if manifest["schema_version"] != SCHEMA_VERSION:
        arrived = manifest["schema_version"]
        raise ValueError(
            f"{folder} follows record schema {arrived}, this code reads {SCHEMA_VERSION}: prepare it again"
        )
    if not manifest["complete"]:
        raise ValueError(f"{folder} is unfinished: run the command that made it again to resume")
    if labelled and not _has_labels(manifest):
        raise ValueError(f"{folder} holds no labels; give it as --unlabelled")
    try:
        know_formats(manifest)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    try:
        records = Dataset.from_parquet([str(shard) for shard in shards])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{folder} holds a damaged file ({error}): prepare it again") from error
    for name, feature in record_features({}).items():
        arrived = records.features.get(name)
        if arrived != feature:
            raise ValueError(f"column {name!r} of {folder} is {arrived}, expected {feature}: prepare it again")
    unknown = set(records["format"][:]) - FORMATS.keys()
    if unknown:
        raise ValueError(f"{folder} has records of unknown formats {sorted(unknown)}; known are {sorted(FORMATS)}")
    return records


def _has_labels(manifest: Mapping) -> bool:
    counts = (values for labels in manifest["values"].values() for values in labels.values())
    return any(values.keys() - {NOT_ANNOTATED} for values in counts)


def content_of(image: Mapping) -> str:
    """A hash of a stored image (undecoded, as in `datasets`), or its path if the file cannot be read."""
    try:
        content = image["bytes"] or Path(image["path"]).read_bytes()
    except OSError:
        return image["path"]
    return hashlib.sha256(content).hexdigest()


def keys_of(records: Dataset) -> list[tuple]:
    """What identifies the picture of each record in its folder."""
    columns = records.select_columns(list(KEY))[:]
    return list(zip(*(columns[name] for name in KEY), strict=True))


def check_names(folders: Sequence[str | Path], tables: Sequence[Dataset]) -> None:
    """Raise ValueError if two folders use one name for different pictures."""
    if len(tables) == 1:
        return
    stored = [table.select_columns("image").cast_column("image", Image(decode=False)) for table in tables]
    seen: dict[tuple, tuple[int, int]] = {}
    for number, table in enumerate(tables):
        for row, key in enumerate(keys_of(table)):
            before, first = seen.setdefault(key, (number, row))
            if before == number or key[0] in NUMBERED:
                continue
            if content_of(stored[before][first]["image"]) != content_of(stored[number][row]["image"]):
                named = " ".join(f"{name} {part}" for name, part in zip(KEY, key, strict=True))
                raise ValueError(
                    f"{named} is one picture in {folders[before]} and another in {folders[number]}: prepare one of "
                    "them again with another --name"
                )


def group_by_image(records: Dataset) -> list[dict[str, int]]:
    """For each distinct image, in order of appearance, format -> row number.

    Decodes no image. Raises ValueError if an image has two rows of one format.
    """
    columns = records.select_columns([*KEY, "format"]).with_format(None)[:]
    groups: dict[tuple, dict[str, int]] = {}
    for row, (*key, name) in enumerate(zip(*(columns[column] for column in (*KEY, "format")), strict=True)):
        group = groups.setdefault(tuple(key), {})
        if name in group:
            raise ValueError(f"rows {group[name]} and {row} both annotate {dict(zip(KEY, key, strict=True))} as {name}")
        group[name] = row
    return list(groups.values())
