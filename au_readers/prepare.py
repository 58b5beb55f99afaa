"""Turns a `Source` into a folder of records: parts, crops, shards, manifest, and the comparison with a full copy.

A shard is one Parquet file with whole clips of one part. It exists completely or not at all, and stores the defects
found while it was written. Repeating a run that was killed writes the shards that are missing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from au_llava.action_units import FORMATS
from au_llava.au_datasets.folds import assign_parts, kfold, protocol_split, split_parts
from au_llava.au_datasets.records import (
    NOT_ANNOTATED,
    Defects,
    finish_folder,
    plan_shards,
    record_features,
    start_folder,
    write_shard,
)
from au_llava.au_faces.table import NoRow
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.source import Clip, Known, Source
from au_llava.au_runs.names import escaped


def parts_of(
    source: Source,
    validation: float,
    test: float,
    seed: int,
    protocol: str | None = None,
    folds: int | None = None,
    tested: str | None = None,
) -> dict[Clip, str]:
    """The part of each clip, in the order of the clips.

    The tested part comes from a published protocol or from `folds`; otherwise the data set's own division is used, and
    if it has none, subjects are drawn. The validation part is always drawn from the training people, by `seed`.

    Raises ValueError for a part that the protocol does not test, and for too few subjects.
    """
    subjects = {clip.subject for clip in source.clips}
    official = {clip.subject: clip.part for clip in source.clips if clip.part}
    if protocol:
        split = protocol_split(protocol, tested, seed, validation, subjects)
    elif folds:
        split = split_parts(kfold(subjects, folds, seed), tested, seed, validation)
    elif official:
        by_part = {part: [name for name, own in official.items() if own == part] for part in ("train", "test")}
        split = split_parts(by_part, "test", seed, validation)
    else:
        drawn = assign_parts(subjects, {"train": 1 - validation - test, "validation": validation, "test": test}, seed)
        return {clip: drawn[clip.subject] for clip in source.clips}
    part_of = {name: part for part, names in split.items() for name in names}
    return {clip: part_of[clip.subject] for clip in source.clips}


def prepare_shard(job: tuple) -> int:
    """Write one shard of a source; returns its number of clips. May run in a worker process."""
    source, crop, path, part, clips = job
    defects = Defects()

    def records() -> Iterator[dict]:
        picture = image = None
        for clip in clips:
            for record in source.read(clip, defects):
                if record["image"] is not picture:  # adjacent rows show the same one
                    picture, where = record["image"], f"{clip.subject}/{clip.name} {record['frame']}"
                    try:
                        image = crop(picture) if crop else picture.stored()
                        if image is None:
                            defects.add("frames without a face, left out", where)
                    except NoRow as error:
                        image = None
                        defects.add("frames without a row in the table of faces, left out", f"{where}: {error}")
                    except (OSError, ValueError) as error:  # a damaged image, or eyes outside of it
                        image = None
                        defects.add("frames that cannot be cropped, left out", f"{where}: {error}")
                if image is not None:
                    names = {name: escaped(record[name]) for name in ("subject", "clip")}
                    yield {**record, **names, "image": image, "part": part}

    write_shard(records(), record_features(source.metadata), path, defects)
    return len(clips)


def start_source(
    source: Source, parts: Mapping[Clip, str], arguments: Mapping, out: Path, crop: Crop | None
) -> tuple[dict, list[tuple]]:
    """Start or resume `out`. Returns all arguments that the content depends on, and the jobs that are left to do.

    Raises ValueError if `out` was made with other arguments or from other label files.
    """
    arguments = {
        **arguments,
        "dataset": source.dataset,
        "root": str(source.root),
        "layout": source.layout,
        "labels": source.fingerprint(),
    }
    start_folder(out, arguments)
    shards = plan_shards(out, parts, source.clips_per_shard)
    others = sorted(path.name for path in {*out.glob("data-*.parquet")} - {shard[0] for shard in shards})
    if others:  # they would be counted and trained on too
        raise ValueError(f"{out} holds {others[0]}, which is not of this run: choose another --out")
    reader = replace(source, clips=[])  # a job has its own clips; without this, all 100,000 would go with each job
    return arguments, [(reader, crop, *shard) for shard in shards if not shard[0].is_file()]


def finish_source(source: Source, arguments: Mapping, out: Path) -> dict:
    """Write the manifest, which compares the records with a complete copy under "known"; returns it.

    Raises ValueError if there is no record.
    """
    return finish_folder(out, arguments, [*source.notes, *source.defects.lines()], partial(compare, source.known))


def compare(known: Known, manifest: Mapping) -> list[dict]:
    """{"what", "expected", "found"} for each number that is known about a complete copy."""
    found = {
        "subjects": len(manifest["images_per_subject"]),
        "clips": sum(map(len, manifest["images_per_clip"].values())),
        "images": manifest["images"],
    }
    rows = [{"what": name, "expected": count, "found": found[name]} for name, count in known.counts.items()]
    for name, labels in known.present.items():
        least = FORMATS[name].presence_threshold
        for label, count in labels.items():
            values = manifest["values"].get(name, {}).get(label, {})
            present = sum(n for value, n in values.items() if value != NOT_ANNOTATED and float(value) >= least)
            rows.append({"what": f"{name} {label} at least {least:g}", "expected": count, "found": present})
    return rows
