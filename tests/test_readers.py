"""Readers of BP4D, DISFA and FEAFA on small trees in their on-disk formats, with every defect a copy may have."""

import os

import numpy as np
import pytest
from dataset_trees import (
    BP4D_HEADER,
    bp4d_tree,
    disfa_labels,
    feafa_line,
    feafa_tree,
    occurrence_row,
    write,
    write_images,
    write_video,
)
from reading import keys, level, read, values

from au_llava.au_readers.bp4d import BP4D_PLUS_ORDER, occurrence_columns, open_bp4d
from au_llava.au_readers.disfa import BAD_FRAMES, open_disfa
from au_llava.au_readers.feafa import open_feafa


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
        "clips without the label file of an AU": 1,
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
    codes = ["5", *("9" if au == 23 else "0" for au in BP4D_PLUS_ORDER)]  # the first line of a file without a header
    for header in (["0", "4", "1"], ["frame", "happy"], ["0"], [], codes):
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
        "clips without the label file of an AU": 10,
        "label files for an AU that has one, left out": 1,
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
    write(tmp_path / "ActionUnit_Labels" / "SN001" / "SN001_AU06.txt", "1,0\n2,0\n3,0\n")  # sorts before au6
    write_images(tmp_path / "frames" / "SN001", ["1.png", "2.png", "3.png"])
    records, defects = read(open_disfa(tmp_path, tmp_path / "frames"))
    assert [values(record)["AU2"] for record in records] == [0, 1, 2]
    assert np.isnan([values(record)["AU1"] for record in records]).tolist() == [False, True, True]
    assert [values(record)["AU6"] for record in records] == [0, 0, 0]
    assert defects == {
        "labels off the intensity scale, taken as not annotated": 1,
        "label lines for a frame that has one, left out": 1,
        "label lines without a frame number, left out": 1,
        "label files that cannot be read": 1,
        "label files for an AU that has one, left out": 1,
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
    (tmp_path / "LeftVideoSN004_comp.avi").touch()
    with pytest.raises(ValueError, match="--first-frame says how images are numbered, but these are videos"):
        open_disfa(tmp_path, first=1)


def test_disfa_bad_frames_are_flagged(tmp_path):
    assert sum(map(len, BAD_FRAMES.values())) == 130814 + 1 - 126144 - 0
    disfa_labels(tmp_path, "SN004", range(4540, 4557))
    write_images(tmp_path / "frames" / "SN004", [f"{k}.png" for k in (0, *range(4539, 4556))])
    records, _ = read(open_disfa(tmp_path, tmp_path / "frames"))
    assert [record["frame"] for record in records if record["bad_frame"]] == list(range(4541, 4556))
    assert len(records) == 17


# ---- FEAFA ----------------------------------------------------------------------------------------------------
def test_feafa_part_a(tmp_path):
    root = feafa_tree(tmp_path)
    write(root / "FEAFA-A" / "PV002.output" / "00000001.auw", "0.1 " * 23)
    write(root / "FEAFA-A" / "PV002.output" / "00000002.auw", "1.5 nan " + "0.25 " * 22)
    source = open_feafa(root, root / "pictures")
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
def test_feafa_part_b_shows_disfa(tmp_path, kind):
    root = feafa_tree(tmp_path)
    disfa = root / "disfa"
    if kind == "video":
        for subject in ("SN001", "SN002"):
            write_video(disfa / "Videos_LeftCamera" / f"LeftVideo{subject}_comp.avi", 3)
        where = {"disfa": disfa}
    else:
        first = int(kind[-1])
        for subject in ("SN001", "SN002"):
            write_images(disfa / subject, [f"{k + first}.jpg" for k in range(3)])
        where = {"disfa_images": disfa}
    records, defects = read(open_feafa(root, plus=True, **where))
    part_b = [record for record in records if record["feafa_part"] == "B"]
    assert keys(part_b) == [("SN001", "SN001", frame, "feafa") for frame in range(3)]
    for record in part_b:  # FEAFA's frame k is DISFA's label frame k + 1
        if kind == "video":
            assert level(record) == record["frame"] + 1
        else:
            assert record["image"].path.endswith(f"SN001/{record['frame'] + first}.jpg")
    assert defects["clips named by a bare number, left out (--numbers-are-people reads them)"] == 1
    alone = open_feafa(root / "FEAFA-B", plus=True, **where)
    assert (alone.layout, alone.known.counts, alone.notes) == ("part B", {"clips": 27, "images": 130828}, ())
    assert keys(read(alone)[0]) == keys(part_b)
    records, _ = read(open_feafa(root, plus=True, numbers_are_people=True, **where))
    assert ("SN002", "SN002", 1, "feafa") in keys(records)
