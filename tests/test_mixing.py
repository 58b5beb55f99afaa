"""Several prepared datasets as one training: parts, formats, the same picture in two folders, conversion, frames."""

import math

import pytest
from PIL import Image

from au_llava.action_units import FORMATS
from au_llava.au_datasets.mixing import TrainingData, check_people, kept_frames, training_rows, validating
from au_llava.au_datasets.records import (
    finish_folder,
    load_records,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)

NAN = math.nan


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of records from (dataset, subject, clip, frame, format, value of all AUs, part) and a picture."""

    def make(name, *rows):
        out = tmp_path / name
        start_folder(out, {})
        for part in dict.fromkeys(row[6] for row in rows):
            records = []
            for dataset, subject, clip, frame, fmt, value, _, *picture in (row for row in rows if row[6] == part):
                path = tmp_path / (picture[0] if picture else f"{name}-{subject}-{clip}-{frame}.png")
                Image.new("RGB", (8, 8)).save(path)
                values = value if isinstance(value, list) else [value] * len(FORMATS[fmt].labels)
                records.append(
                    {
                        "image": {"bytes": None, "path": str(path)},
                        **{"dataset": dataset, "subject": subject, "clip": clip, "frame": frame},
                        **{"format": fmt, "values": values, "part": part},
                    }
                )
            write_shard(records, record_features({}), shard_path(out, part, 0, 1))
        finish_folder(out, {})
        return str(out)

    return make


def test_entries_are_read_alike_from_recipes_and_flags():
    assert TrainingData.read("data/disfa=2") == TrainingData("data/disfa", 2.0)
    expected = TrainingData("data/bp4d", 0.5, ["bp4d"], "bp4d-3fold", "P1", frames=10)
    flag = "{path: data/bp4d, weight: 0.5, formats: [bp4d], protocol: bp4d-3fold, tested: P1, frames: 10}"
    assert TrainingData.read(flag) == expected
    mapping = {"path": "data/bp4d", "weight": 0.5, "formats": ["bp4d"], "protocol": "bp4d-3fold", "tested": "P1"}
    assert TrainingData.read({**mapping, "frames": 10}) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "x", "wieght": 2}, "needs path; optional are weight"),
        ({"weight": 2}, "needs path"),
        ("{path: x", "not a YAML mapping"),
        ({"path": "x", "weight": "much"}, "weight is 'much'"),
        ({"path": "x", "protocol": "bp4d-3fold"}, "go together"),
        ({"path": "x", "frames": 0}, "frames is 0"),
        ({"path": "x", "formats": "bp4d"}, r"formats must be a list"),
        ({"path": "x", "convert_to": ["bp5d"]}, "unknown format 'bp5d'"),
    ],
)
def test_bad_entries_are_named(entry, message):
    with pytest.raises(ValueError, match=message):
        TrainingData.read(entry)


def test_a_folder_may_hold_training_people_only(folder):
    both = folder(
        "both", *(("disfa", f"SN00{i}", "left", 1, "disfa", 1.0, p) for i, p in enumerate(("train", "validation")))
    )
    more = folder("more", ("gft", "G1", "c", 1, "bp4d", 1.0, "train"))
    assert [table.path for table in validating([both, f"{more}=2"], "validation")] == [both]
    protocol = {"path": more, "protocol": "bp4d-3fold", "tested": "P1"}  # divides its people by itself
    assert len(validating([both, protocol], "validation")) == 2
    with pytest.raises(ValueError, match="no record of part 'validation'"):
        training_rows(validating([more], "validation"), "validation", None)


def test_the_same_picture_in_two_folders_is_one_row(folder):
    """By the key, or by the file where two datasets number their frames differently."""
    one = folder("one", ("disfa", "SN001", "left", 1, "disfa", 2.0, "train", "a.png"))
    key = folder("key", ("disfa", "SN001", "left", 1, "bp4d", 1.0, "train"))
    file = folder("file", ("feafa", "SN001", "SN001", 0, "feafa", 0.5, "train", "a.png"))
    rows = training_rows([one, key, file], "train", None)
    assert rows["formats"][:] == [["disfa", "bp4d", "feafa"]]
    assert [values[0] for values in rows["values"][0]] == [2.0, 1.0, 0.5]
    rows = training_rows([f"{one}=2", file], "train", None)  # the first pass of each meets, the second stays alone
    assert rows["formats"][:] == [["disfa", "feafa"], ["disfa"]]
    other = folder("other", ("disfa", "SN001", "left", 1, "disfa", 3.0, "train"))
    assert training_rows([one, other], "train", None)["formats"][:] == [["disfa"], ["disfa"]]  # labelled twice


def test_pictures_that_differ_are_never_one_row(tmp_path, folder):
    """Two labs that name their table, people and frames alike: the pictures decide, not the names."""
    one = folder("a", ("labels", "1", "0", 0, "disfa", 3.0, "train"), ("labels", "2", "0", 1, "disfa", 3.0, "train"))
    other = folder("b", ("labels", "1", "0", 0, "bp4d", 0.0, "train"), ("labels", "2", "0", 1, "bp4d", 0.0, "train"))
    rows = training_rows([one, other], "train", None)
    assert rows["formats"][:] == [["disfa", "bp4d"]] * 2  # the same picture, gray, lies at both places
    for number in range(2):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"b-{number + 1}-0-{number}.png")
    rows = training_rows([one, other], "train", None)
    assert rows["formats"][:] == [["disfa"], ["disfa"], ["bp4d"], ["bp4d"]]
    assert training_rows([one, {"path": one, "weight": 1}], "train", None)["formats"][:] == [["disfa"]] * 4
    with pytest.raises(ValueError, match=r"dataset labels subject 1 clip 0 frame 0 is one picture in .*a and another"):
        load_records([one, other])
    numbered = [
        folder(name, ("disfa", "SN001", "left", 1, fmt, 1.0, "train")) for name, fmt in (("c", "disfa"), ("d", "bp4d"))
    ]
    Image.new("RGB", (8, 8), "red").save(tmp_path / "d-SN001-left-1.png")  # cropped otherwise
    assert training_rows(numbered, "train", None)["formats"][:] == [["disfa", "bp4d"]]


def test_frames_of_feafas_part_b_are_those_of_disfa(folder):
    """Without a file in common, as decoded from videos or cropped: FEAFA's frame 0 is DISFA's label frame 1."""
    disfa = folder("disfa", *(("disfa", "SN001", "left", frame, "disfa", 1.0, "train") for frame in (1, 2)))
    right = folder("right", ("disfa", "SN001", "right", 1, "disfa", 2.0, "train"))
    feafa = folder(
        "feafa",
        ("feafa", "SN001", "SN001", 0, "feafa", 0.5, "train"),
        ("feafa", "SN002", "SN002", 0, "feafa", 0.5, "train"),
        ("feafa", "PV001", "PV001", 0, "feafa", 0.5, "train"),
    )
    rows = training_rows([feafa, disfa, right], "train", None)
    found = list(zip(rows["subject"][:], rows["formats"][:], strict=True))
    assert found == [
        ("SN001", ["feafa", "disfa"]),
        ("SN002", ["feafa"]),
        ("PV001", ["feafa"]),
        ("SN001", ["disfa"]),
        ("SN001", ["disfa"]),
    ]


def test_formats_and_conversion_per_dataset(folder):
    labels = (("disfa", 2.0), ("feafa", 0.5))
    both = [("disfa", "SN001", "left", 1, *each, "train") for each in labels]
    path = folder("d", *both)
    rows = training_rows([{"path": path, "formats": ["disfa"], "convert_to": ["bp4d"]}], "train", ["feafa"])
    assert rows["formats"][0] == ["disfa", "bp4d"]
    known = dict(zip(FORMATS["bp4d"].labels, rows["values"][0][1], strict=True))
    unknown = {label for label, value in known.items() if math.isnan(value)}
    assert unknown == {"AU7", "AU10", "AU14", "AU23", "AU24"}
    assert {known[label] for label in known.keys() - unknown} == {1.0}
    rows = training_rows([{"path": path, "convert_to": ["bp4d"]}], "train", None)  # what disfa lacks, feafa may know
    assert dict(zip(FORMATS["bp4d"].labels, rows["values"][0][2], strict=True))["AU10"] == 1.0
    with pytest.raises(ValueError, match="no label of disfa follows from its feafa"):
        training_rows([{"path": path, "formats": ["feafa"], "convert_to": ["disfa"]}], "train", None)


def bp4d(subject, part="train"):
    return ("bp4d", subject, "T1", 1, "bp4d", 0.0, part)


def test_protocols_divide_instead_of_the_part_column(folder):
    path = folder("bp4d", *(bp4d(f"F{number:03d}", "train") for number in range(1, 24)))
    table = TrainingData(path, protocol="bp4d-3fold", tested="P1")
    people = {part: set(table.load(part)["subject"][:]) for part in ("train", "validation", "test")}
    assert people["test"] == {"F001", "F002", "F008", "F009", "F010", "F016", "F018", "F023"}
    assert people["train"] | people["validation"] | people["test"] == {f"F{number:03d}" for number in range(1, 24)}
    assert sum(map(len, people.values())) == 23
    assert people["validation"]
    assert "bp4d:M014" in table.tested_people()  # though nobody prepared him
    train = table.load("train")
    check_people(train, table.load("validation"), [table])
    with pytest.raises(ValueError, match="1 subjects are in both train and test: bp4d:F001"):
        check_people(table.load("test").select([0]), None, [table])


def test_a_picture_file_on_two_sides_is_refused_whatever_its_people_are_called(folder):
    """Two tables of the same pictures, without --name: their data sets and so their people have other names."""
    one = folder("one", *(("one", who, "c", 1, "disfa", 0.0, "train", f"{who}.png") for who in "ab"))
    two = folder(
        "two", *(("two", who, "c", 1, "bp4d", 0.0, part, f"{who}.png") for who, part in (("a", "test"), ("c", "train")))
    )
    tables = [TrainingData(one), TrainingData(two)]
    rows = training_rows(tables, "train", None)
    with pytest.raises(ValueError, match=r"1 picture files are in both train and test, such as .*a\.png: .*one --name"):
        check_people(rows, None, tables)
    check_people(rows, None, tables[:1])
    with pytest.raises(ValueError, match="in both train and validation"):
        check_people(rows, tables[1].load("test"), [])


def test_people_shared_by_datasets_are_refused(folder):
    """FEAFA's part B shows DISFA's people: the fold that tests them must hold for both."""
    subjects = ("SN001", "SN003", "SN006")
    disfa = folder("disfa", *(("disfa", s, "left", 1, "disfa", 0.0, "train") for s in subjects))
    feafa = folder("feafa", *(("feafa", s, s, 0, "feafa", 0.0, "train") for s in subjects))
    fold = {"protocol": "disfa-3fold", "tested": "P1", "validation": 0.0}
    tables = [TrainingData(disfa, **fold), TrainingData(feafa)]
    with pytest.raises(ValueError, match="in both train and test: disfa:SN001"):
        check_people(training_rows(tables, "train", None), None, tables)
    tables = [TrainingData(disfa, **fold), TrainingData(feafa, **fold)]
    rows = training_rows(tables, "train", None)
    check_people(rows, None, tables)
    assert set(rows["subject"][:]) == {"SN003", "SN006"}


def test_frames_of_a_clip():
    keys = [("d", "F001", "T1", frame) for frame in (5, 1, 2, 9, 3)] + [("d", "F001", "T2", 4)]
    labels = list("BAABAB")  # T1 in order: A(1) A(2) A(3) B(5) B(9)
    assert kept_frames(keys, labels, 1) == [0, 1, 2, 3, 4, 5]
    assert kept_frames(keys, labels, 2) == [1, 3, 4, 5]  # frames 1, 3, 9 and the other clip's first
    assert kept_frames(keys, labels, "changed") == [0, 1, 5]


def test_frames_in_training(folder):
    rows = [("bp4d", "F001", "T1", frame, "bp4d", float(frame > 3), "train") for frame in range(1, 7)]
    path = folder("clip", *rows)
    values = training_rows([{"path": path, "frames": "changed"}], "train", None)["values"][:]
    assert [row[0][0] for row in values] == [0.0, 1.0]
    assert len(training_rows([{"path": path, "frames": 4, "weight": 2}], "train", None)) == 4
