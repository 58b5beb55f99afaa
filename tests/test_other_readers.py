"""Readers of GFT, Aff-Wild2, CK+, EmotioNet and of tables of your own, with every defect a copy may have."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dataset_trees import (
    AFF_WILD2_HEADER,
    write,
    write_images,
    write_video,
)
from reading import keys, read, values

from au_llava.au_datasets.records import load_records
from au_llava.au_readers.aff_wild2 import open_aff_wild2
from au_llava.au_readers.ck_plus import open_ck_plus
from au_llava.au_readers.gft import open_gft
from au_llava.au_readers.prepare import parts_of
from au_llava.au_readers.table import open_emotionet, open_table
from au_llava.prepare_data import run


def test_gft(tmp_path):
    write(tmp_path / "AU" / "001A.csv", "Frame,AU01,AU02,AU10,AU99\n1,1,0,9,0\n2,0,-1,1,0\n3,0,2,1,0\n")
    write(tmp_path / "AU" / "002B.csv", "AU1,AU2\n1,0\n")
    write(tmp_path / "AU" / "readme.csv", "name,age\nx,1\n")
    write(tmp_path / "old" / "001A.csv", "Frame,AU01\n1,0\n")
    write_video(tmp_path / "video" / "001A.mp4", 3)
    write_images(tmp_path / "images" / "group 2" / "002b", ["2.jpg"])
    records, defects = read(open_gft(tmp_path))
    assert keys(records) == [("001A", "001A", frame, "gft") for frame in (1, 2, 3)]
    known = [{label: value for label, value in values(record).items() if not np.isnan(value)} for record in records]
    assert known == [{"AU1": 1, "AU2": 0}, {"AU1": 0, "AU10": 1}, {"AU1": 0, "AU10": 1}]
    assert defects == {
        "label files without a column for some AUs": 2,
        "label files without a column of frames, lines counted from 1": 1,
        "labels off the occurrence scale, taken as not annotated": 1,
        "clips that exist twice, left out": 1,
        "images without labels, left out": 1,
        "labelled frames without an image, left out": 1,
    }


def test_aff_wild2(tmp_path):
    sets = tmp_path / "annotations" / "AU_Detection_Challenge"
    rows = ["0,1" + ",0" * 10, ",".join(["-1"] * 12), "1,-1" + ",1" * 10]
    write(sets / "Train_Set" / "video1_left.txt", "\n".join([AFF_WILD2_HEADER, *rows]))
    write(sets / "Validation_Set" / "video2.txt", "AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25\n1,0,0,0,0,0,1,0\n")
    write_images(tmp_path / "cropped_aligned" / "Video1_left", ["00001.jpg", "00002.jpg", "00003.jpg"])
    write_images(tmp_path / "cropped_aligned" / "batch2" / "video2", ["00001.jpg"])
    source = open_aff_wild2(tmp_path)
    records, defects = read(source)
    assert keys(records) == [
        ("video1_left", "video1_left", 1, "aff-wild2"),
        ("video1_left", "video1_left", 3, "aff-wild2"),
        ("video2", "video2", 1, "aff-wild2"),
    ]
    assert [value for value in records[0]["values"]] == [0, 1] + [0] * 10
    assert np.isnan(values(records[1])["AU2"])
    assert values(records[1])["AU26"] == 1
    assert np.isnan(values(records[2])["AU26"])
    assert values(records[2])["AU1"] == 1
    assert defects == {"label files without a column for some AUs": 1}  # of 2020: 8 AUs
    parts = parts_of(source, validation=0.0, test=0.1, seed=0)
    assert {clip.name: part for clip, part in parts.items()} == {"video1_left": "train", "video2": "test"}
    (sets / "Train_Set" / "video1_left.txt").unlink()  # a copy of the validation set alone
    assert set(parts_of(open_aff_wild2(tmp_path), validation=0.1, test=0.1, seed=0).values()) == {"test"}


def test_ck_plus(tmp_path):
    name = "S005_001_00000011"
    write(tmp_path / "FACS" / "S005" / "001" / f"{name}_facs.txt", "   9.0000000e+00   0.0\n   1.70e+01   4.0\nx\n")
    write_images(tmp_path / "cohn-kanade-images" / "S005" / "001", ["S005_001_00000001.png", f"{name}.png"])
    write(tmp_path / "FACS" / "S006" / "002" / "S006_002_00000003_facs.txt", "")
    write_images(tmp_path / "cohn-kanade-images" / "S006" / "002", ["S006_002_00000003.png"])
    ungraded = tmp_path / "FACS" / "S007" / "001" / "S007_001_00000002_facs.txt"
    write(ungraded, "\ufeff   9.0e+00\r\n   1.70e+01\r\n")
    write_images(tmp_path / "cohn-kanade-images" / "s007" / "001", ["S007_001_00000002.PNG"])
    write_images(tmp_path / "cohn-kanade-images" / "S007" / "002", ["S007_002_00000002.png"])
    (tmp_path / "FACS" / "S008" / "001").mkdir(parents=True)
    (tmp_path / "FACS" / "S008" / "001" / "S008_001_00000001_facs.txt").symlink_to(tmp_path / "gone.txt")
    records, defects = read(open_ck_plus(tmp_path))
    assert keys(records) == [
        ("S005", "001", 11, "ck-plus"),
        ("S006", "002", 3, "ck-plus"),
        ("S007", "001", 2, "ck-plus"),
    ]
    unreadable, neutral, graded = map(values, records)
    assert {label for label, value in unreadable.items() if value == 1} == {"AU9", "AU17"}  # 0 is present, ungraded
    assert sum(map(np.isnan, unreadable.values())) == 15  # which AU the line "x" is of is not known
    assert sum(neutral.values()) == 0
    assert {label: value for label, value in graded.items() if value} == {"AU9": 1, "AU17": 1}  # no intensity at all
    assert defects == {
        "label lines that are not an AU and its intensity, left out": 1,
        "sequences without a label file, left out": 1,
        "label files that cannot be read": 1,
    }


def test_emotionet(tmp_path):
    lines = [
        "URL,URL orig,'AU 1','AU 2','AU 12','AU 51'",
        "'http://x/N_0000000001/N_0000000001_00002.jpg','http://y/a.jpg',1,999,0,0",
        "'http://x/N_0000000001/N_0000000001_00003.jpg','http://y/b.jpg',0,0,1,0",
        "'http://x/N_0000000007/N_0000000007_00001.jpg','http://y/c.jpg',0,0,1,0",
    ]
    lines += [",,1,1,1,1", lines[1]]
    write(tmp_path / "labels" / "EmotioNet_FACS_aws_2020_24600.csv", "\n".join(lines))
    write_images(tmp_path / "imgs", ["N_0000000001_00002.JPG", "N_0000000007_00001.jpg"])
    records, defects = read(open_emotionet(tmp_path))
    assert keys(records) == [("N_0000000001", "0", 2, "emotionet"), ("N_0000000007", "0", 1, "emotionet")]
    known = {label: value for label, value in values(records[0]).items() if not np.isnan(value)}
    assert known == {"AU1": 1, "AU12": 0}
    assert defects == {
        "AUs of the format without a column, not annotated": 9,
        "AU columns that the format does not have, left out": 1,
        "rows without a URL, left out": 1,
        "rows for an image that has one, left out": 1,
        "labelled frames without an image, left out": 1,
    }


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table(tmp_path, suffix):
    write_images(tmp_path / "faces", ["a.jpg", "b.jpg", "c.jpg"])
    table = pd.DataFrame(
        {
            "image": ["faces/a.jpg", "faces/b.jpg", "faces/c.jpg", "faces/gone.jpg", "faces/a.jpg"],
            "subject": [2, 1, 1, 1, 2],
            "clip": ["x", "x", "y", "y", "x"],
            "frame": [5, 1, 1, 2, 5],
            "AU01": [0, 1, 5, 0, 0],
            "au_12": [3.0, None, 0.5, 0, 3],
            "AU99": 1,
            "au_file": "x",
        }
    )
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False, encoding="utf-8-sig", lineterminator="\r\n")
    else:
        table.to_parquet(path)
    records, defects = read(open_table(path, "disfa", dataset="mine"))
    assert keys(records) == [("1", "x", 1, "disfa"), ("1", "y", 1, "disfa"), ("2", "x", 5, "disfa")]
    known = [{label: value for label, value in values(record).items() if not np.isnan(value)} for record in records]
    assert known == [{"AU1": 1}, {"AU1": 5}, {"AU1": 0, "AU12": 3}]
    assert {record["dataset"] for record in records} == {"mine"}
    assert defects == {
        "AUs of the format without a column, not annotated": 10,
        "AU columns that the format does not have, left out": 1,
        "labels off the intensity scale, taken as not annotated": 1,
        "labelled frames without an image, left out": 1,
        "rows for an image that has one, left out": 1,
    }


def test_table_keeps_names_as_text_and_clips_as_recordings(tmp_path):
    """001 and 1 are two people; a clip that the user calls 0 is a recording, which "0" means none of."""
    write_images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    text = "Image,subject,Clip,FRAME,AU1\na.jpg,001,0,1,0\nb.jpg,1,0,1,0\n c.jpg , 1 , 0,1,5\n"
    records, defects = read(open_table(write(tmp_path / "t.csv", text), "disfa"))
    assert keys(records) == [("001", "clip 0", 1, "disfa"), ("1", "clip 0", 1, "disfa")]
    assert defects["rows for a frame that has one, left out"] == 1
    records, _ = read(open_table(write(tmp_path / "u.csv", "image,subject,AU1\na.jpg,1,0\n"), "disfa"))
    assert keys(records) == [("1", "0", 0, "disfa")]


def test_table_of_occurrence_and_intensity(tmp_path):
    """As OpenFace and recognize_au.py name them: AU12_c and AU12_r; a plain name comes before either."""
    write_images(tmp_path, ["a.jpg"])
    path = write(tmp_path / "t.csv", "image,subject,AU01_c,AU12_C,au12_r,AU17,AU17_r,AU12_p\na.jpg,1,0,1,4,1,3,0.9\n")
    known = {}
    for name in ("bp4d", "disfa"):
        records, defects = read(open_table(path, name))
        known[name] = {label: value for label, value in values(records[0]).items() if not np.isnan(value)}
        assert defects["AU columns that the format does not have, left out"] == {"bp4d": 2, "disfa": 3}[name]
    assert known == {"bp4d": {"AU1": 0, "AU12": 1, "AU17": 1}, "disfa": {"AU12": 4, "AU17": 1}}
    with pytest.raises(ValueError, match=r"no column for any AU of feafa .*; it has image, subject, AU01_c, AU12_C"):
        open_table(write(tmp_path / "u.csv", "image,subject,AU01_c,AU12_C\na.jpg,1,0,1\n"), "feafa")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,subject,AU1\na.jpg,1,0\n", "no column 'image'; it has picture, subject, AU1"),
        ("image,subject,AU1\na.jpg,1,0\na.jpg,,0\n", "column 'subject' of .* has empty cells, such as in row 2"),
        (
            "image,subject,AU1\na.jpg,'  ',0\na.jpg,\"  \",0\n",
            "column 'subject' of .* has empty cells, such as in row 2",
        ),
        (
            'image,subject,AU1,AU2\na.jpg,1,0,\nb.jpg,1,0,"0,5"\n',
            "column 'AU2' of .* intensity .* 0 to 5: row 2 says '0,5'",
        ),
        ("image,subject,AU1\na.jpg,1,absent\n", "column 'AU1' of .* row 1 says 'absent'"),
        ("image,subject,AU99\na.jpg,1,0\n", r"no column for any AU of disfa \(AU1, .*; it has image, subject, AU99"),
        ("image,subject,AU01_c\na.jpg,1,0\n", "no column for any AU of disfa"),
        ("image,subject,AU01_r\na.jpg,1,A\n", "column 'AU01_r' of .* row 1 says 'A'"),
        (
            "image,subject,AU1,AU2\na.jpg,1,2,0\nb.jpg,1,B,B\n",
            "column 'AU2' of .* nothing but 0 of the intensity scale of disfa, 0 to 5: row 2 says 'B'",
        ),
        ("image,subject,AU1\na.jpg,1,0\nb.jpg,1,0.5\nc.jpg,1,1.5\n", "column 'AU1' .* but 0 .* row 2 says '0.5'"),
        ("image,subject,clip,AU1\na.jpg,1,,0\n", "column 'clip' of .* has empty cells"),
        ("image,subject,frame,AU1\na.jpg,1,1.5,0\n", "column 'frame' of .* must hold whole numbers: row 1 says '1.5'"),
        ("image,subject,frame,AU1\na.jpg,1,,0\n", "column 'frame' of .* must hold whole numbers"),
        ("image,subject,AU1,AU01\na.jpg,1,0,1\n", "two columns for AU1: AU1 and AU01"),
        (
            "image,subject,AU1,AU1\na.jpg,1,0,1\n",
            "t.csv cannot be read as a table: it has the column 'AU1' more than once",
        ),
        ("image,subject,frame,AU1\na.jpg,1,inf,0\n", "column 'frame' of .* must hold whole numbers: row 1 says 'inf'"),
        (
            "image,subject,frame,AU1\na.jpg,1,1e30,0\n",
            "column 'frame' of .* must hold whole numbers: row 1 says '1e30'",
        ),
        ("image,subject,AU1\na.jpg,1,0,7\nb.jpg,1,0\n,,,,,\n", "t.csv cannot be read as a table: Error tokenizing"),
        (b"image,subject,AU1\n\xe9.jpg,1,0\n", "t.csv cannot be read as a table: 'utf-8' codec"),
        ("", "t.csv cannot be read as a table: No columns"),
    ],
)
def test_table_errors(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        open_table(write(tmp_path / "t.csv", text), "disfa")
    assert "\n" not in str(error.value)


def test_table_a_code_for_unknown_and_a_single_odd_cell_are_counted(tmp_path):
    """9 beside zeros may be an AU that never occurs; a letter beside other values hides little."""
    write_images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    text = "image,subject,AU1,AU2\na.jpg,1,0,2\nb.jpg,1,9,B\nc.jpg,1,9,0\n"
    records, defects = read(open_table(write(tmp_path / "t.csv", text), "disfa"))
    known = [{label: value for label, value in values(record).items() if not np.isnan(value)} for record in records]
    assert known == [{"AU1": 0, "AU2": 2}, {}, {"AU2": 0}]
    assert defects["labels off the intensity scale, taken as not annotated"] == 3


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_table_separated_as_in_europe(tmp_path, mark):
    """A decimal comma is part of a number: of 0, 1 and 0,5 not only 0 and 1 are kept."""
    write_images(tmp_path, ["a.jpg", "b.jpg", "c,d.jpg"])
    lines = ["image;subject;AU2L;AU2R", "a.jpg;1;0,5;0", "b.jpg;1;1;", '"c,d.jpg";2;0;0,25']
    path = write(tmp_path / "t.csv", "\ufeff" + "\r\n".join(lines).replace(";", mark))
    records, defects = read(open_table(path, "feafa"))
    assert [record["subject"] for record in records] == ["1", "1", "2"]
    known = [{label: value for label, value in values(record).items() if not np.isnan(value)} for record in records]
    assert known == [{"AU2L": 0.5, "AU2R": 0}, {"AU2L": 1}, {"AU2L": 0, "AU2R": 0.25}]
    assert set(defects) == {"AUs of the format without a column, not annotated"}


def test_table_an_accented_name_is_one_person(tmp_path):
    """macOS writes an accented letter in names of files as two characters; nobody may be in two parts for that."""
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    text = "image,subject,clip,AU1\na.jpg,Jos\u00e9,\u00e9t\u00e9,0\nb.jpg,Jose\u0301,e\u0301te\u0301,1\n"
    records, _ = read(open_table(write(tmp_path / "t.csv", text), "disfa"))
    assert keys(records) == [("Jos\u00e9", "\u00e9t\u00e9", 0, "disfa"), ("Jos\u00e9", "\u00e9t\u00e9", 1, "disfa")]


@pytest.mark.parametrize(
    ("index", "types"),
    [
        (["frame"], {}),
        (["image", "subject"], {"AU1": "Int64"}),
        (["image"], {"subject": "category", "AU2": "category", "frame": "category"}),
        (["frame"], {"image": "category", "AU1": "float32", "AU2": "string"}),
        (["frame"], {"image": pd.ArrowDtype(pa.large_string()), "AU1": "Int64", "AU2": "uint8"}),
        (["subject"], {"frame": "Int64", "AU1": "float64[pyarrow]", "AU2": pd.ArrowDtype(pa.decimal128(21, 1))}),
    ],
)
def test_table_with_an_index_categories_and_arrows_types(tmp_path, index, types):
    """What pandas calls an index are columns of the file: frame numbers that are one are not lost."""
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    columns = {"image": ["a.jpg", "b.jpg"], "subject": 7, "frame": [30, 31], "AU1": [1, None], "AU2": [0, 4]}
    pd.DataFrame(columns).astype(types).set_index(index).to_parquet(tmp_path / "t.parquet")
    records, _ = read(open_table(tmp_path / "t.parquet", "disfa"))
    assert keys(records) == [("7", "0", 30, "disfa"), ("7", "0", 31, "disfa")]
    known = [{label: value for label, value in values(record).items() if not np.isnan(value)} for record in records]
    assert known == [{"AU1": 1, "AU2": 0}, {"AU2": 4}]


def test_table_an_image_has_one_row_however_its_path_is_written(tmp_path):
    """Or one face would be two people, who may be in two parts."""
    write_images(tmp_path / "faces", ["a.jpg"])
    (tmp_path / "labels").mkdir()
    text = f"image,subject,AU1\n../faces/a.jpg,1,0\n{tmp_path}/faces/a.jpg,2,0\n.././faces//a.jpg,3,0\n"
    records, defects = read(open_table(write(tmp_path / "labels" / "t.csv", text), "disfa"))
    assert [record["subject"] for record in records] == ["1"]
    assert defects["rows for an image that has one, left out"] == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("cells", [["TRUE", "FALSE", "NA"], ["True", "False", ""], [True, False, None]])
def test_table_true_and_false_are_1_and_0(tmp_path, suffix, cells):
    """As R, pandas and Parquet write them."""
    write_images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    table = pd.DataFrame(
        {"image": ["a.jpg", "b.jpg", "c.jpg"], "subject": "1", "AU6": cells, "AU12": [True, False, True]}
    )
    path = tmp_path / f"mine.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    records, defects = read(open_table(path, "bp4d"))
    assert [values(record)["AU12"] for record in records] == [1, 0, 1]
    assert [values(record)["AU6"] for record in records[:2]] == [1, 0]
    assert np.isnan(values(records[2])["AU6"])
    assert set(defects) == {"AUs of the format without a column, not annotated"}


@pytest.mark.parametrize("name", ["NA", "None", "nan", "null", "N/A", "NaN", "<NA>"])
def test_table_only_an_empty_cell_is_empty(tmp_path, name):
    """Of people and recordings; of a label, these words mean that it is not annotated."""
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    rows = {"image": ["a.jpg", "b.jpg"], "subject": [name, "B"], "clip": ["x", name], "AU1": [1, 0], "AU2": [name, 3]}
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.astype({"AU2": str}).to_parquet(tmp_path / "t.parquet")
    for path in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        records, defects = read(open_table(path, "disfa"))
        found = {(r["subject"], r["clip"]): (values(r)["AU1"], str(values(r)["AU2"])) for r in records}
        assert found == {("B", name): (0, "3.0"), (name, "x"): (1, "nan")}
        assert set(defects) == {"AUs of the format without a column, not annotated"}


def test_tables_are_data_sets_of_their_own(tmp_path):
    """By where they lie; wherever one stands, and by whichever link."""
    text = "image,subject,AU1\na.jpg,1,0\n"
    one, other = (write(tmp_path / lab / "data" / "labels.csv", text) for lab in "ab")
    names = {open_table(path, "disfa").dataset for path in (one, other)}
    assert len(names) == 2
    assert all(re.fullmatch(r"labels-[0-9a-f]{8}", name) for name in names)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert open_table(tmp_path / "link" / "data" / "labels.csv", "bp4d").dataset == open_table(one, "disfa").dataset
    write_images(tmp_path / "a" / "data", ["b.jpg"])
    write(one, text.replace("a.jpg", "b.jpg"))
    words = ["table", "--root", one, "--format", "bp4d", "--out", tmp_path / "out", "--name", "smiles", "--workers", 1]
    assert run([*map(str, words), "--validation", "0", "--test", "0"]) == 0
    assert load_records(tmp_path / "out")["dataset"][:] == ["smiles"]


def test_table_of_pictures_in_cells_is_refused(tmp_path):
    pd.DataFrame({"image": [{"bytes": b"", "path": "a.jpg"}], "subject": "1", "AU1": 0}).to_parquet(
        tmp_path / "t.parquet"
    )
    with pytest.raises(ValueError, match=r"column 'image' of .* must hold paths of image files"):
        open_table(tmp_path / "t.parquet", "disfa")
    with pytest.raises(ValueError, match=r"u\.parquet cannot be read as a table"):
        open_table(write(tmp_path / "u.parquet", b"PAR1"), "disfa")
