"""The record table: writing, reading back, grouping and its errors."""

import hashlib
import io
import json
import math
import shutil
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, List, Value
from PIL import Image

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import (
    MANIFEST,
    Defects,
    finish_folder,
    group_by_image,
    load_records,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)

FEATURES = record_features({"age": Value("float64")})


def jpeg(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def record(subject="a", frame=0, name="bp4d", part="train", values=None, content=None):
    return {
        "image": {"bytes": content or jpeg(frame), "path": None},
        "dataset": "made",
        "subject": subject,
        "clip": "1",
        "frame": frame,
        "format": name,
        "values": values or [0.0] * len(FORMATS[name].labels),
        "part": part,
        "age": 0.5,
    }


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    unknown = [math.nan] * 12
    unknown[3] = 1.0
    shards = [
        [record("a", 0), record("a", 0, "disfa"), record("a", 7, values=unknown)],
        [record("b", 0, "feafa", "test"), record("b", 0, "bp4d", "test")],
    ]
    start_folder(out, {"seed": 1})
    for number, rows in enumerate(shards):
        write_shard(rows, FEATURES, shard_path(out, "train", number, len(shards)))
    finish_folder(out, {"seed": 1}, ["made up"])
    return out


def test_round_trip_keeps_unknown_values_unknown(folder):
    records = load_records(folder)
    assert len(records) == 5
    assert records.features == FEATURES
    values = np.array(records[2]["values"])
    assert np.isnan(values).sum() == 11
    assert values[3] == 1
    assert records[0]["image"].size == (8, 8)


def test_manifest_counts(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["complete"]
    assert manifest["images"] == 3
    assert manifest["images_per_part"] == {"train": 2, "test": 1}
    assert manifest["images_per_subject"] == {"a": 2, "b": 1}
    assert manifest["rows_per_format"] == {"bp4d": 3, "disfa": 1, "feafa": 1}
    assert manifest["values"]["bp4d"]["AU1"] == {"0": 2, "not annotated": 1}
    assert manifest["values"]["bp4d"]["AU6"] == {"0": 2, "1": 1}
    assert manifest["warnings"] == ["made up"]


def test_defects_of_shards_reach_the_manifest(tmp_path):
    """Counts add up over shards, and the first five examples are kept."""
    start_folder(tmp_path, {})
    for number in range(2):
        defects = Defects()

        def rows(number=number, defects=defects):
            yield record(frame=number)
            for k in range(4):
                defects.add("odd rows", f"{number}.{k}", count=2)

        write_shard(rows(), FEATURES, shard_path(tmp_path, "train", number, 2), defects)
    manifest = finish_folder(tmp_path, {}, ["first"], known=lambda manifest: [manifest["images"]])
    assert manifest["warnings"] == ["first", "odd rows: 16 (0.0, 0.1, 0.2, 0.3, 1.0 …)"]
    assert manifest["known"] == [2]
    assert manifest["images_per_clip"] == {"a": {"1": 2}}


def test_content_hash_is_that_of_keys_values_and_images(tmp_path):
    """In row order; of an image that stays a path, the path from the root of the data set."""
    features = record_features({"weak": List(Value("float32"))})
    stored = record("a", 7, values=[1.0] * 11 + [math.nan]) | {"weak": [0.5]}
    kept = record("b", 0, "disfa", "test") | {"image": {"bytes": None, "path": "/data/set/b/0.png"}, "weak": []}
    start_folder(tmp_path, {"root": "/data/set"})
    for number, row in enumerate((stored, kept)):
        write_shard([row], features, shard_path(tmp_path, "train", number, 2))
    expected = b"".join(
        [
            b'["made", "a", "1", 7, "train", "bp4d"]',
            struct.pack("<13f", *[1.0] * 11, math.nan, 0.5),
            jpeg(7),
            b'["made", "b", "1", 0, "test", "disfa"]',
            bytes(4 * 12),
            b"b/0.png",
        ]
    )
    manifest = finish_folder(tmp_path, {"root": "/data/set"})
    assert manifest["content_sha256"] == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "a web page"}', '{"schema_version": 1}'])
def test_a_manifest_of_another_program_is_refused(folder, tmp_path, content):
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    (foreign / MANIFEST).write_text(content)
    for use in (load_records, lambda path: start_folder(path, {})):
        with pytest.raises(ValueError, match=r"manifest\.json is not of prepare_data\.py, or damaged"):
            use(foreign)


def test_a_damaged_shard_is_named(folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    shard = next(damaged.glob("data-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged holds a damaged file"):
        load_records(damaged)


def test_a_folder_without_records_is_not_finished(tmp_path):
    start_folder(tmp_path, {})
    write_shard([], FEATURES, shard_path(tmp_path, "train", 0, 1))
    with pytest.raises(ValueError, match="no image is left to store: all gone"):
        finish_folder(tmp_path, {}, ["all gone"])


def test_shards_are_written_as_records_come(tmp_path):
    """An endless number of records needs no more memory than a group of them: groups of about 32 MB."""
    big = bytes(10_000_000)
    taken = []

    def rows():
        for frame in range(8):
            taken.append(len(list(tmp_path.iterdir())))
            yield record(frame=frame, content=big)

    write_shard(rows(), FEATURES, tmp_path / "data-0.parquet")
    assert taken == [1] * 8  # the unfinished file is there from the start
    file = pq.ParquetFile(tmp_path / "data-0.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [4, 4]


def test_part_and_formats_select_rows(folder):
    assert len(load_records(folder, part="test")) == 2
    only = load_records(folder, part="train", formats=["bp4d"])
    assert set(only["format"][:]) == {"bp4d"}
    assert len(only) == 2
    assert len(load_records([folder, folder])) == 10


def test_rows_of_one_image_store_it_once(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(60_000) for _ in range(40)]
    rows = [
        record(frame=k, name=name, content=c) for k, c in enumerate(contents) for name in ("bp4d", "disfa", "feafa")
    ]
    write_shard(rows, FEATURES, tmp_path / "data-0.parquet")
    assert (tmp_path / "data-0.parquet").stat().st_size < 1.1 * 40 * 60_000
    assert pq.read_table(tmp_path / "data-0.parquet").num_rows == 120


def test_group_by_image_equals_a_loop():
    rng = np.random.default_rng(0)
    rows = [
        {"dataset": "d", "subject": s, "clip": c, "frame": f, "format": name}
        for s in "abc"
        for c in "12"
        for f in range(3)
        for name in ("bp4d", "disfa", "feafa")
        if rng.random() < 0.7
    ]
    rng.shuffle(rows)
    expected = []
    for row in rows:
        same = [k for k, other in enumerate(rows) if all(other[n] == row[n] for n in ("subject", "clip", "frame"))]
        group = {rows[k]["format"]: k for k in same}
        if group not in expected:
            expected.append(group)
    assert group_by_image(Dataset.from_list(rows)) == expected


def test_group_by_image_does_not_decode_and_refuses_doubles(folder):
    assert group_by_image(load_records(folder)) == [{"bp4d": 0, "disfa": 1}, {"bp4d": 2}, {"feafa": 3, "bp4d": 4}]
    broken = Dataset.from_list(
        [record(content=b"no image"), record(content=b"no image", name="disfa")], features=FEATURES
    )
    assert group_by_image(broken) == [{"bp4d": 0, "disfa": 1}]
    with pytest.raises(ValueError, match="rows 0 and 1 both annotate"):
        group_by_image(Dataset.from_list([record(), record()], features=FEATURES))


def test_errors_of_loading(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make them with prepare_data\.py"):
        load_records(tmp_path)
    with pytest.raises(ValueError, match="it has parts"):
        load_records(folder, part="validation")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(ValueError, match="unfinished"):
        load_records(folder)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        load_records(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for shard in folder.glob("data-*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns(["values"]), shard)
    with pytest.raises(ValueError, match="column 'values'"):
        load_records(folder)


def test_a_record_with_too_few_values_is_refused(tmp_path):
    with pytest.raises(ValueError, match="disfa record needs 12 values, got 3"):
        write_shard([record(name="disfa", values=[0.0] * 3)], FEATURES, tmp_path / "data-0.parquet")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_shared_by_different_arguments(folder):
    start_folder(folder, {"seed": 1})
    with pytest.raises(ValueError, match=r"seed 1 \(now 2\)"):
        start_folder(folder, {"seed": 2})
