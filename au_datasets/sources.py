"""Turn a `Source` into a folder of records: parts, shards, resuming, the manifest and what a complete copy would hold.

A shard is one Parquet file of whole clips of one part. It exists completely or not at all, and carries the defects
that were found while it was written; a run that was killed is repeated and writes the shards that are missing.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from datasets import Value

from ..action_units import FORMATS
from .folds import assign_parts, kfold, protocol_split, split_parts
from .reading import Clip, Known, Source
from .records import PARTS, Defects, finish_folder, record_features, shard_path, start_folder, write_shard


def parts_of(
    source: Source,
    validation: float,
    test: float,
    seed: int,
    protocol: str | None = None,
    folds: int | None = None,
    tested: str | None = None,
) -> dict[Clip, str]:
    """The part of each clip.

    By the tested part of a published protocol or of `folds` drawn ones; else by the dataset's own division; else by
    drawing subjects. In any case the validation part is drawn from the training people, by `seed`.

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


def plan_shards(source: Source, parts: Mapping[Clip, str], out: Path) -> list[tuple[Path, str, list[Clip]]]:
    """(file, part, clips) of each shard: the same for the same clips and parts."""
    shards = []
    for part in PARTS:
        members = [clip for clip in source.clips if parts[clip] == part]
        groups = [members[k : k + source.clips_per_shard] for k in range(0, len(members), source.clips_per_shard)]
        shards += [(shard_path(out, part, k, len(groups)), part, group) for k, group in enumerate(groups)]
    return shards


def prepare_shard(job: tuple) -> int:
    """Write one shard of a source; returns its number of clips. May run in a worker process."""
    source, path, part, clips = job
    defects = Defects()
    records = ({**record, "part": part} for clip in clips for record in source.read(clip, defects))
    features = record_features({name: Value(dtype) for name, dtype in source.metadata.items()})
    write_shard(records, features, path, defects)
    return len(clips)


def start_source(source: Source, parts: Mapping[Clip, str], arguments: Mapping, out: Path) -> tuple[dict, list[tuple]]:
    """Make `out` ready: all arguments that the content depends on, and the jobs of `prepare_shard` that are left.

    Raises ValueError where `out` was made with other arguments or from other label files.
    """
    arguments = {
        **arguments,
        "dataset": source.dataset,
        "root": str(source.root),
        "layout": source.layout,
        "labels": source.fingerprint(),
    }
    start_folder(out, arguments)
    shards = plan_shards(source, parts, out)
    return arguments, [(source, *shard) for shard in shards if not shard[0].is_file()]


def finish_source(source: Source, arguments: Mapping, out: Path) -> dict:
    """Write the manifest, with the comparison with a complete copy under "known"; returns it.

    Raises ValueError where no image has labels.
    """
    return finish_folder(out, arguments, [*source.notes, *source.defects.lines()], partial(compare, source.known))


def compare(known: Known, manifest: Mapping) -> list[dict]:
    """{"what", "expected", "found"} for each number that is known of a complete copy."""
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
            present = sum(n for value, n in values.items() if value != "not annotated" and float(value) >= least)
            rows.append({"what": f"{name} {label} at least {least:g}", "expected": count, "found": present})
    return rows
