"""recognize_au.py on pictures and videos: what it reads, writes and draws, and how it goes on after a fault."""

import csv
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import av
import commands
import numpy as np
import pandas
import pytest
from conftest import ROOT
from PIL import Image

from au_llava.action_units import FORMATS, MAIN_FORMATS, AUFormat
from au_llava.au_datasets.records import load_records
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT
from au_llava.au_faces.media import DamagedVideo, count_frames, is_video, video_frames
from au_llava.au_recognition.annotation import annotated, save_video
from au_llava.au_recognition.inputs import find_files
from au_llava.au_recognition.movement import au_regions, movement
from au_llava.au_recognition.neutral import Neutral
from au_llava.au_recognition.options import make_parser
from au_llava.au_recognition.outputs import Outcome
from au_llava.au_recognition.tables import au_columns, openface_label, strengths
from au_llava.au_recognition.timelines import Track, draw_timeline
from au_llava.au_rendering.pictures import render_face
from au_llava.au_rendering.view import View
from au_llava.au_runs import checkpoints
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.files import only_run, save_figure
from au_llava.au_runs.names import escaped, unescaped
from au_llava.recognize_au import run

FACE = 96


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Every run of the command in this process shares the loaded model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "load_checkpoint", cache(load_checkpoint))
        yield


@pytest.fixture(scope="module")
def pictures(rendered_records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    records = load_records(rendered_records)
    for number in range(3):
        records[3 * number]["image"].save(folder / f"face{number}.png")
    return folder


@pytest.fixture(scope="module")
def expressions():
    """[person][expression] -> a rendered face; the people look different."""
    return [
        [Image.fromarray(render_face(values, subject=subject, size=FACE)) for values in ({}, {"AU12": 1}, {"AU26": 1})]
        for subject in (3, 5)
    ]


@pytest.fixture(scope="module")
def crowd(expressions, tmp_path_factory):
    """A photograph of two people, the second the larger."""
    photograph = Image.new("RGB", (420, 240), (90, 120, 150))
    photograph.paste(expressions[0][1], (20, 60))
    photograph.paste(expressions[1][0].resize((160, 160)), (220, 40))
    path = tmp_path_factory.mktemp("crowd") / "crowd.png"
    photograph.save(path)
    return path


@pytest.fixture(scope="module")
def film(expressions, tmp_path_factory):
    """24 frames of two people, 10 per second; the second is away in frames 9 to 12, both are away in frame 20."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [film_frame(expressions, number) for number in range(1, 25)])
    return path


def film_frame(expressions, number):
    picture = Image.new("RGB", (320, 160), (90, 120, 150))
    if number != 20:
        picture.paste(expressions[0][(number - 1) // 8], (10 + 2 * number, 30))
        if not 9 <= number <= 12:
            picture.paste(expressions[1][number % 3], (210 - number, 32))
    return picture


def write_video(path, pictures, times=None, **options):
    """`times` in milliseconds; ten frames a second by default."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = times[number] if times else 100 * number, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def recognize(checkpoint, *words):
    return run([*map(str, words), "--model", str(checkpoint)])


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def crowd_run(tiny_checkpoint, crowd, tmp_path_factory):
    """The folder of a run over the picture of two people, with itself as the neutral face."""
    folder = tmp_path_factory.mktemp("crowd_run")
    assert recognize(tiny_checkpoint, crowd, "--neutral", crowd, "--out", folder / "aus.csv") == 0
    return folder


FILM_OPTIONS = ("--batch-size", 4, "--neutral", "median", "--formats", "disfa", "bp4d")


@pytest.fixture(scope="module")
def film_run(tiny_checkpoint, film, tmp_path_factory):
    """The folder of a run over the whole film: aus.csv, two timelines and an annotated copy."""
    folder = tmp_path_factory.mktemp("film_run")
    drawn = ["--timeline", folder / "time.png", "--curves", "AU12", "AU1", "--video", folder / "drawn.mp4"]
    assert recognize(tiny_checkpoint, film, *FILM_OPTIONS, "--out", folder / "aus.csv", *drawn) == 0
    return folder


# What is written


def test_folder_gives_table_and_picture_in_any_batches(tiny_checkpoint, pictures, tmp_path, capsys):
    folder = tmp_path / "new" / "folder"  # is made
    out, picture = folder / "aus.csv", folder / "aus.png"
    assert recognize(tiny_checkpoint, pictures, "--no-detect", "--out", out, "--picture", picture) == 0
    rows = read_csv(out)
    assert [row["file"] for row in rows] == [str(pictures / f"face{number}.png") for number in range(3)]
    for row in rows:
        for label in FORMATS["bp4d"].labels:
            name = openface_label(label)
            assert row[f"{name}_c"] in ("0.0", "1.0")
            assert (float(row[f"{name}_p"]) >= 0.5) == (row[f"{name}_c"] == "1.0")
        assert all(0 <= float(row[f"{openface_label(label)}_r"]) <= 5 for label in FORMATS["disfa"].labels)
        assert all(0 <= float(row[openface_label(label)]) <= 1 for label in FORMATS["feafa"].labels)
        assert (row["frame"], row["face_id"], row["timestamp"], row["success"]) == ("1", "0", "0.0", "1")
    assert sum(name.startswith(("AU", "AD")) for name in rows[0]) == 2 * 12 + 12 + 24
    assert Image.open(picture).size[0] > 500
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*MAIN_FORMATS, "face2.png"))
    assert sorted(path.name for path in folder.iterdir()) == ["aus.csv", "aus.csv.provenance.json", "aus.png"]
    recognize(tiny_checkpoint, pictures, "--no-detect", "--out", tmp_path / "one.csv", "--batch_size", 1)
    for row, other in zip(rows, read_csv(tmp_path / "one.csv"), strict=True):
        numbers = [name for name in row if name.startswith("AU")]
        assert [float(row[n]) for n in numbers] == pytest.approx([float(other[n]) for n in numbers], abs=2e-4)


def test_header_is_read_by_pandas_r_and_pyfeat(film_run):
    header = (film_run / "aus.csv").read_text().splitlines()[0].split(",")
    assert header[1:6] == ["frame", "face_id", "timestamp", "confidence", "success"]  # OpenFace's FaceLandmarkVidMulti
    assert len(set(header)) == len(header)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9._]*", name) for name in header)  # what R's make.names leaves alone
    # py-feat's read_feat takes every column with "AU" in it as an AU, and the face's box from these
    assert {"FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"} <= set(header)
    table = pandas.read_csv(film_run / "aus.csv")
    units = table[[name for name in header if "AU" in name]]
    assert all(dtype.kind == "f" for dtype in units.dtypes)
    assert not {"AU12_r", "AU12_c", "AU12_p", "AU12_r_change", "AU12_p_change"} - set(units)


def test_formats_that_clash_are_prefixed():
    columns = au_columns([FORMATS["feafa"], FORMATS["disfa"]], change=True)
    assert {"AU26", "AU26_r", "AU26_change", "AU26_r_change", "AU12L"} <= set(columns)
    mine = AUFormat(name="mine", labels=("AU1", "AU7"), scale="intensity")
    clash = au_columns([FORMATS["disfa"], mine])
    assert {"disfa.AU01_r", "mine.AU01_r", "AU02_r", "AU07_r"} <= set(clash)
    assert clash["mine.AU01_r"] == ("mine", 0, "expected")


def test_other_tables_say_the_same(tiny_checkpoint, film, tmp_path):
    words = [film, "--every", 5, "--formats", "bp4d", "disfa", "--out"]
    for suffix in (".csv", ".parquet", ".jsonl"):
        assert recognize(tiny_checkpoint, *words, tmp_path / f"aus{suffix}") == 0
    table = pandas.read_csv(tmp_path / "aus.csv")
    other = pandas.read_parquet(tmp_path / "aus.parquet")
    assert list(other) == list(table)
    pandas.testing.assert_frame_equal(other, table, check_dtype=False)
    rows = list(map(json.loads, (tmp_path / "aus.jsonl").open()))
    assert [row["face_id"] for row in rows] == [None if np.isnan(number) else number for number in table["face_id"]]
    smile = rows[0]["answers"]["disfa"]["AU12"]
    assert smile["expected"] == table["AU12_r"][0]
    assert smile["expected"] == pytest.approx(np.dot(smile["distribution"], range(6)), abs=1e-3)
    assert smile["low"] == np.searchsorted(np.cumsum(smile["distribution"]), 0.1)
    assert rows[0]["answers"]["bp4d"]["AU12"]["probability"] == table["AU12_p"][0]


def test_provenance_is_in_the_sidecar(crowd_run):
    content = json.loads((crowd_run / "aus.csv.provenance.json").read_text())
    assert content["checkpoint"]["weights_sha256"]["model.safetensors"]
    assert content["detector"]["name"] == "yunet"
    assert content["counts"] == {"files": 1, "faces": 2, "frames_without_face": 0, "faces_turned_away": 0}
    assert {"torch", "transformers"} <= content["versions"].keys()
    assert content["decoding"] == "slots"


# What is read


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A picture of a person who looks ahead, and of the same one turned 40 degrees to the own left."""
    picture = Image.new("RGB", (400, 200), (90, 120, 150))
    for left, yaw in ((0, 0), (200, 40)):
        face = render_face({}, subject=3, size=192, view=View(yaw=yaw, scale=0.7))
        picture.paste(Image.fromarray(face), (left, 4))
    path = tmp_path_factory.mktemp("turned") / "turned.png"
    picture.save(path)
    return path


def test_the_table_has_the_pose(tiny_checkpoint, turned, tmp_path):
    assert recognize(tiny_checkpoint, turned, "--formats", "disfa", "--out", tmp_path / "aus.csv") == 0
    ahead, left = sorted(read_csv(tmp_path / "aus.csv"), key=lambda row: float(row["eye_right_x"]))
    assert abs(float(ahead["pose_Ry"])) < np.radians(8)
    assert np.radians(-55) < float(left["pose_Ry"]) < np.radians(-25)  # OpenFace counts to the right


def test_faces_turned_too_far_are_left_out_and_counted(tiny_checkpoint, turned, tmp_path, capsys):
    table = tmp_path / "aus.csv"
    assert recognize(tiny_checkpoint, turned, "--formats", "disfa", "--max-yaw", 20, "--out", table) == 0
    [row] = read_csv(table)
    assert float(row["eye_left_x"]) < 200
    assert "1 faces turned further than --max-yaw were left out." in capsys.readouterr().err
    counts = json.loads(table.with_name("aus.csv.provenance.json").read_text())["counts"]
    assert counts == {"files": 1, "faces": 1, "frames_without_face": 0, "faces_turned_away": 1}


def test_a_picture_whose_only_face_is_turned_too_far(tiny_checkpoint, turned, tmp_path, capsys):
    Image.open(turned).crop((200, 0, 400, 200)).save(tmp_path / "side.png")
    assert recognize(tiny_checkpoint, tmp_path / "side.png", "--formats", "disfa", "--max-yaw", 20) == 1
    assert "side.png shows no face turned by at most 20 degrees to a side." in capsys.readouterr().err


@pytest.mark.parametrize("degrees", [0, -5, 91])
def test_impossible_max_yaw_is_refused(tiny_checkpoint, turned, capsys, degrees):
    assert recognize(tiny_checkpoint, turned, f"--max-yaw={degrees}") == 1
    assert f"--max-yaw {degrees}: give degrees between 0 and 90." in capsys.readouterr().err


def test_several_faces_are_found_where_they_are(crowd_run):
    """The largest comes first; eyes lie where the renderer puts them, to 5 % of the crop."""
    rows = read_csv(crowd_run / "aus.csv")
    assert [row["face_id"] for row in rows] == ["0", "1"]
    for row, (left, top, side) in zip(rows, [(220, 40, 160), (20, 60, 96)], strict=True):
        for eye, offset in (("right", -EYE_DISTANCE / 2), ("left", EYE_DISTANCE / 2)):
            assert float(row[f"eye_{eye}_x"]) == pytest.approx(left + (0.5 + offset) * side, abs=0.05 * side)
            assert float(row[f"eye_{eye}_y"]) == pytest.approx(top + EYE_HEIGHT * side, abs=0.05 * side)


def test_own_table_of_faces_gives_the_same(tiny_checkpoint, film, tmp_path):
    """One run's table tells another run where the faces are."""
    words = [film, "--every", 6, "--formats", "disfa", "--out"]
    recognize(tiny_checkpoint, *words, tmp_path / "detected.csv")
    recognize(tiny_checkpoint, *words, tmp_path / "given.csv", "--faces", tmp_path / "detected.csv")
    detected, given = (pandas.read_csv(tmp_path / f"{name}.csv") for name in ("detected", "given"))
    pandas.testing.assert_frame_equal(detected.drop(columns="success"), given.drop(columns="success"), atol=0.02)


def pyfeat_table(path, *rows):
    """A table of boxes as py-feat writes it; a row is (left edge, file, frame)."""
    lines = ["FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,FaceScore,input,frame"]
    path.write_text("\n".join([*lines, *(f"{left},1,20,22,0.99,{file},{frame}" for left, file, frame in rows)]) + "\n")
    return path


def test_pyfeats_pictures_get_their_own_faces(tiny_checkpoint, pictures, tmp_path, capsys):
    """py-feat numbers pictures by their place in a list. A picture that is not listed is not one without a face."""
    faces = pyfeat_table(tmp_path / "fex.csv", *((5 - n, f"/study/face{n}.png", 1 - n) for n in range(2)))
    assert recognize(tiny_checkpoint, pictures, "--faces", faces, "--out", tmp_path / "aus.csv") == 1
    rows = read_csv(tmp_path / "aus.csv")
    places = [(os.path.basename(row["file"]), row["FaceRectX"]) for row in rows]
    assert places == [("face0.png", "5.0"), ("face1.png", "4.0")]
    errors = capsys.readouterr().err
    assert f"face2.png has no row in {faces}" in errors
    assert "shows no face" not in errors.splitlines()[0]


def test_pyfeats_videos_count_from_0(tiny_checkpoint, film, tmp_path, capsys):
    faces = pyfeat_table(tmp_path / "fex.csv", *((n, "/study/film.mp4", n) for n in range(20)))
    assert recognize(tiny_checkpoint, film, "--faces", faces, "--every", 3, "--out", tmp_path / "aus.csv") == 1
    rows = [row for row in read_csv(tmp_path / "aus.csv") if row["success"] == "1"]
    assert [(int(row["frame"]), float(row["FaceRectX"])) for row in rows] == [(n, n - 1) for n in range(1, 20, 3)]
    assert f"{film} has no row for frame 22 in {faces}." in capsys.readouterr().err


def test_video_keeps_time_and_people(film_run):
    table = pandas.read_csv(film_run / "aus.csv")
    np.testing.assert_allclose(table["timestamp"], (table["frame"] - 1) / 10, atol=1e-3)
    assert list(table["frame"][table["face_id"] == 0]) == [n for n in range(1, 25) if n != 20]
    assert list(table["frame"][table["face_id"] == 1]) == [n for n in range(1, 25) if n != 20 and not 9 <= n <= 12]
    (empty,) = table[table["face_id"].isna()].to_dict("records")
    assert (empty["frame"], empty["success"], empty["confidence"]) == (20, 0, 0)
    assert np.isnan(empty["AU12_r"])


def test_free_decoding_leaves_unread_cells_empty(tiny_checkpoint, pictures, tmp_path):
    words = ["--no-detect", "--decoding", "free", "--formats", "bp4d"]
    words += ["--out", tmp_path / "aus.csv", "--picture", tmp_path / "aus.png"]
    assert recognize(tiny_checkpoint, pictures / "face0.png", *words) == 0
    assert read_csv(tmp_path / "aus.csv")[0]["AU01_p"] == ""


def test_paths_patterns_and_lists(pictures, film, tmp_path, monkeypatch):
    files = [pictures / f"face{number}.png" for number in range(3)]
    assert find_files([pictures]) == find_files([pictures / "*.png"]) == files
    assert find_files([files[2], pictures, film]) == [files[2], files[0], files[1], film]
    assert find_files([pictures / "**" / "face1.png"]) == [files[1]]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{files[1]}\n\n{film}\n"))
    assert find_files(["-"]) == [files[1], film]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\ufeff{files[1]}\r\n{film}\r\n"))  # from Windows
    assert find_files(["-"]) == [files[1], film]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(FileNotFoundError, match="The list on standard input names no file"):
        find_files(["-"])
    (tmp_path / "notes.txt").touch()
    for path, message in [(tmp_path, "no video in the folder"), (tmp_path / "*.jpg", "matches"), ("x.png", "no file")]:
        with pytest.raises(FileNotFoundError, match=message):
            find_files([path])


def test_sampling_of_a_video(film):
    assert [frame.number for frame in video_frames(film, every=7)] == [1, 8, 15, 22]
    assert [frame.number for frame in video_frames(film, fps=2)] == [1, 6, 11, 16, 21]
    assert [frame.number for frame in video_frames(film, fps=4)] == [1, 4, 6, 9, 11, 14, 16, 19, 21, 24]
    assert len(list(video_frames(film, fps=100))) == 24
    assert count_frames(film, every=7) == 4
    for fps in (0.5, 2, 2.2, 3, 4, 7, 100):
        assert count_frames(film, fps=fps) == len(list(video_frames(film, fps=fps))), fps


# The neutral face


def face(number, person, probability, intensity):
    answers = {"bp4d": {"probability": [probability] * 12}, "disfa": {"expected": [intensity] * 12}}
    return {"file": "film.mp4", "frame": number, "face_id": person, "answers": answers}


NEUTRAL_ANSWERS = {"bp4d": {"probability": [0.5] * 12}, "disfa": {"expected": [2.0] * 12}}


@pytest.mark.parametrize(
    ("neutral", "changes"),
    [
        ("median", [(0.0, 0), (0.1, -1), (-0.1, 3), (0.0, 0)]),  # medians 0.2 and 1 of the first person
        (1, [(0.0, 0), (0.1, -1), (-0.1, 3), (None, None)]),  # the second person is not in frame 1
        (2, [(-0.1, 1), (0.0, 0), (-0.2, 4), (0.0, 0)]),
        (NEUTRAL_ANSWERS, [(-0.3, -1), (-0.2, -2), (-0.4, 2), (0.4, 3)]),
    ],
)
def test_change_against_the_neutral_face(neutral, changes):
    faces = [face(1, 0, 0.2, 1.0), face(2, 0, 0.3, 0.0), face(3, 0, 0.1, 4.0), face(2, 1, 0.9, 5.0)]
    rest = Neutral(faces, [FORMATS["bp4d"], FORMATS["disfa"]], neutral)
    for row, (probability, intensity) in zip(faces, changes, strict=True):
        rest.add_change(row)
        expected = None if probability is None else pytest.approx(probability)
        assert row["answers"]["bp4d"]["change"] == [expected] * 12
        assert row["answers"]["disfa"]["change"] == [intensity] * 12


def test_neutral_picture(crowd_run):
    largest, other = read_csv(crowd_run / "aus.csv")
    assert float(largest["AU12_r_change"]) == pytest.approx(0, abs=1e-3)
    difference = float(other["AU12_r"]) - float(largest["AU12_r"])
    assert float(other["AU12_r_change"]) == pytest.approx(difference, abs=1e-3)


def test_neutral_frame_that_was_not_read(tiny_checkpoint, film, tmp_path, capsys):
    """Where no video has it, nothing is written, and what was read is kept; a file without it is named."""
    words = [film, "--every", 4, "--formats", "disfa", "--out", tmp_path / "aus.csv"]  # frames 1, 5, 9 …
    assert recognize(tiny_checkpoint, *words, "--neutral", 4) == 1
    assert f"no face was read in frame 4 of {film}; frames count from 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["aus.csv.parts"]
    assert recognize(tiny_checkpoint, *words, "--neutral", 5) == 0
    assert "--neutral" not in capsys.readouterr().err
    faces = [face(5, 0, 0.2, 1.0), face(1, 0, 0.2, 1.0) | {"file": "other.mp4"}, face(2, None, 0, 0)]
    assert Neutral(faces, [FORMATS["disfa"], FORMATS["bp4d"]], 5).unknown == ["other.mp4"]


# Pictures


def answer(fmt, **present):
    """An answer in which only these AUs are present, at these values."""
    values = [present.get(label, 0.0) for label in fmt.labels]
    return {"present": [value > 0 for value in values], "expected": values, "probability": values}


def test_pictures_show_aus_of_every_format():
    """Each AU comes from the finest format that has it or its sides: AU12 is absent there, AU15 is not in it."""
    formats = [FORMATS[name] for name in MAIN_FORMATS]
    bp4d, disfa, feafa = formats
    answers = {
        "bp4d": answer(bp4d, AU12=0.9, AU15=0.8, AU7=0.6),
        "disfa": answer(disfa, AU15=4.0, AU12=3.0),
        "feafa": answer(feafa, AU4L=0.5),
    }
    assert strengths(answers, formats) == {"AU4L": 0.5, "AU15": 0.8, "AU7": 0.6}
    regions, moved = au_regions(50), movement({"answers": answers}, formats, 50)
    for label in ("AU4L", "AU15", "AU7"):
        assert moved[np.unravel_index(regions[label].argmax(), (50, 50))] >= 0.7
    assert movement({"answers": answers}, [feafa], 50)[np.unravel_index(regions["AU15"].argmax(), (50, 50))] == 0


def test_notes_hide_no_other_face_and_no_other_note():
    """Two people side by side; the note of the first, with a bar, has room only below."""
    plain = Image.new("RGB", (480, 360), (90, 110, 120))
    boxes = [(45, 75, 145, 185), (300, 75, 140, 190)]
    drawn = np.asarray(
        annotated(plain, [(boxes[0], [("face 0", None), ("AU12L", 0.5)]), (boxes[1], [("face 1", None)])])
    )
    changed = (drawn != np.asarray(plain)).any(-1)
    for left, top, width, height in boxes:
        assert not changed[top + 5 : top + height - 5, left + 5 : left + width - 5].any()
        changed[top - 3 : top + height + 4, left - 3 : left + width + 4] = False  # the box itself
    assert changed.sum() == pytest.approx(8 * 15 * 2.4 * 15 + 3.5 * 15 * 1.4 * 15, rel=0.05)  # both notes, in full


def test_pictures_of_a_video(film, film_run):
    assert sorted(path.name for path in film_run.glob("*.png")) == ["time-film-face0.png", "time-film-face1.png"]
    drawn = list(video_frames(film_run / "drawn.mp4"))
    assert [round(frame.time, 3) for frame in drawn] == [round(number / 10, 3) for number in range(24)]
    before = [np.asarray(frame.image, float) for frame in video_frames(film)]
    marked = [np.abs(np.asarray(frame.image, float) - plain).mean() for frame, plain in zip(drawn, before, strict=True)]
    assert marked[19] < 3 < min(marked[:19])  # nothing is drawn where there is no face


def test_explain_shows_and_says_why(tiny_checkpoint, crowd, film, tmp_path, monkeypatch):
    """For the first faces of pictures; nothing else in the table changes, and an interrupted run can be explained."""
    words = [crowd, film, "--every", 12, "--formats", "bp4d"]
    recognize(tiny_checkpoint, *words, "--out", tmp_path / "plain.jsonl")
    explain = ["--out", tmp_path / "why.jsonl", "--explain", tmp_path / "why.png", "--picture_faces", 1]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, KeyboardInterrupt)
        assert recognize(tiny_checkpoint, *words, *explain[:2]) == 130
    assert recognize(tiny_checkpoint, *words, *explain) == 0
    plain, why = (list(map(json.loads, (tmp_path / f"{name}.jsonl").open())) for name in ("plain", "why"))
    assert len(why) == len(plain) > 2
    explained = 0
    for number, (row, other) in enumerate(zip(why, plain, strict=True)):
        for label, reading in row.get("answers", {}).get("bp4d", {}).items():
            reason = reading.pop("reason", None)
            explained += reason is not None
            assert (reason is not None) == (number < 1 and reading["present"])
            if reason:
                assert reason.startswith(f"{label} (")
                assert f"probability {reading['probability']:.2f}, threshold 0.50" in reason
        assert row == other
    assert explained
    assert Image.open(tmp_path / "why.png").size[1] > 300 * (1 + explained) / 4  # the face itself, and its AUs


def test_regions_lie_where_the_muscles_do():
    regions = au_regions(100)

    def center(label):
        y, x = np.indices((100, 100))
        weight = regions[label] / regions[label].sum()
        return (x * weight).sum(), (y * weight).sum()

    assert center("AU1")[1] < center("AU43L")[1] < center("AU12")[1] < center("AU17")[1]
    assert center("AU12L")[0] > 55 > 45 > center("AU12R")[0]  # the person's left is on the right of the picture
    assert 40 < center("AU12")[0] < 60


# Faults


@pytest.fixture
def mixed(pictures, tmp_path):
    """A folder of three good pictures and every kind of bad file; the bad ones and what messages say of them."""
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    whole = (pictures / "face0.png").read_bytes()
    stream = io.BytesIO()
    Image.open(pictures / "face0.png").resize((200, 200)).save(stream, "JPEG")
    (folder / "truncated.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + whole)
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    write_video(folder / "cut.mp4", [Image.new("RGB", (64, 64))] * 5)
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:200])
    (folder / "notes.txt").touch()
    said = {"truncated.jpg": "truncated", "broken.jpg": "cannot be read", "empty.png": "cannot be read"}
    plugin = ".heic" in Image.registered_extensions()
    said["phone.heic"] = "cannot be read" if plugin else "pip install pillow-heif"
    said |= {"dot.png": "1 x 1", "bomb.png": "exceeds limit", "cut.mp4": "as a video"}
    return folder, said


def test_unreadable_files_are_named_counted_and_skipped(tiny_checkpoint, mixed, tmp_path, capsys):
    folder, said = mixed
    assert recognize(tiny_checkpoint, folder, "--no-detect", "--out", tmp_path / "aus.csv", "--formats", "bp4d") == 1
    errors = capsys.readouterr().err
    for name, message in said.items():
        assert re.search(rf"skipped: .*{re.escape(name)}.*{message}", errors), name
    assert f"{len(said)} of {len(said) + 3} files could not be read" in errors
    assert len(read_csv(tmp_path / "aus.csv")) == 3
    assert len(json.loads((tmp_path / "aus.csv.provenance.json").read_text())["problems"]) == len(said)


@pytest.fixture
def odd_names(pictures, tmp_path):
    """Faces whose names are not UTF-8, markup for rich and a formula for Matplotlib, and plain."""
    names = [os.fsdecode(b"Jos\xe9.png"), "[b] $x_{$.png", "z.png"]
    (tmp_path / "odd").mkdir()
    for number, name in enumerate(names):
        shutil.copy(pictures / f"face{number}.png", tmp_path / "odd" / name)
    return tmp_path / "odd", names


def test_any_name_can_be_written_and_read_again(tiny_checkpoint, odd_names, tmp_path, capsys):
    folder, names = odd_names
    readers = {".csv": pandas.read_csv, ".parquet": pandas.read_parquet}
    readers[".jsonl"] = lambda path: pandas.read_json(path, lines=True)
    for suffix, read_table in readers.items():
        out = tmp_path / f"aus{suffix}"
        picture = ["--picture", tmp_path / "aus.png"] if suffix == ".csv" else []
        assert recognize(tiny_checkpoint, folder, "--no-detect", "--formats", "disfa", "--out", out, *picture) == 0
        files = list(read_table(out)["file"])
        assert set(files) == {escaped(str(folder / name)) for name in names}
        assert set(map(unescaped, files)) == {str(folder / name) for name in names}
        shown = capsys.readouterr().out
        assert r"Jos\xe9.png" in shown
        assert "[b]" in shown
        assert not (tmp_path / f"aus{suffix}.parts").exists()


def test_a_list_of_any_names(odd_names, monkeypatch):
    folder, names = odd_names
    (folder / "._z.png").touch()
    listed = "".join(f"{folder / name}\n" for name in [*names, "._z.png"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(listed)), encoding="ascii"))
    left_out = Counter()
    assert find_files(["-"], left_out) == [folder / name for name in names]
    assert left_out == {"left by systems": 1}


def test_no_console_ends_a_run(tiny_checkpoint, odd_names, tmp_path, monkeypatch):
    folder, _ = odd_names
    (folder / "wall …é.png").write_bytes(b"no picture")
    words = [folder, "--no-detect", "--formats", "disfa", "--out", tmp_path / "aus.csv"]
    for encoding in ("ascii", "latin-1", "utf-8"):
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert recognize(tiny_checkpoint, *words) == 1  # because of the wall
        sys.stderr.flush()
        assert b"1 of 4 files could not be read" in sys.stderr.buffer.getvalue()
        assert len(read_csv(tmp_path / "aus.csv")) == 3


def test_other_files_of_a_folder_are_counted(tiny_checkpoint, pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures, tmp_path / "mixed")
    for name in ("notes.txt", "raw.CR2", ".DS_Store", "._face0.png"):
        (folder / name).touch()
    (folder / "linked").symlink_to(pictures)
    assert recognize(tiny_checkpoint, folder, "--no-detect", "--formats", "bp4d", "--out", tmp_path / "aus.csv") == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("left out, neither"))
    assert set(line.partition(": ")[2].split(", ")) == {"1 .txt", "1 .cr2"}
    assert len(read_csv(tmp_path / "aus.csv")) == 6  # the linked folder's too
    content = json.loads((tmp_path / "aus.csv.provenance.json").read_text())
    assert content["left_out"] == {".txt": 1, ".cr2": 1}


def test_pictures_without_a_face(tiny_checkpoint, crowd, tmp_path, capsys):
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "wall.png")
    assert recognize(tiny_checkpoint, crowd, tmp_path / "wall.png", "--out", tmp_path / "aus.csv") == 1
    assert "wall.png shows no face" in capsys.readouterr().err
    assert {row["file"] for row in read_csv(tmp_path / "aus.csv")} == {str(crowd)}
    assert recognize(tiny_checkpoint, tmp_path / "wall.png") == 1
    assert "No face could be read in any of the 1 files" in capsys.readouterr().err


def test_what_shows_nothing_is_not_drawn(tiny_checkpoint, crowd, film, tmp_path, capsys):
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "wall.png")
    assert recognize(tiny_checkpoint, film, tmp_path / "wall.png", "--every", 20, "--picture", tmp_path / "a.png") == 1
    assert f"--picture {tmp_path / 'a.png'} is not written" in capsys.readouterr().err
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:200])
    words = ["--video", tmp_path / "v.mp4", "--timeline", tmp_path / "t.png", "--out", tmp_path / "aus.csv"]
    assert recognize(tiny_checkpoint, crowd, tmp_path / "cut.mp4", *words) == 1
    errors = capsys.readouterr().err
    assert f"--video {tmp_path / 'v.mp4'} is not written" in errors
    assert f"--timeline {tmp_path / 't.png'} is not written" in errors
    assert {path.name for path in tmp_path.iterdir()} == {"wall.png", "cut.mp4", "aus.csv", "aus.csv.provenance.json"}


def test_all_files_are_written_before_anything_is_printed(tiny_checkpoint, crowd, tmp_path, monkeypatch):
    """Whoever reads the output may leave at its first line."""

    def leave(*_):
        raise BrokenPipeError

    monkeypatch.setattr(Outcome, "show", leave)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(open(os.devnull, "wb")))  # noqa: SIM115
    assert recognize(tiny_checkpoint, crowd, "--out", tmp_path / "aus.csv", "--picture", tmp_path / "a.png") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"aus.csv", "aus.csv.provenance.json", "a.png"}


def test_figures_and_videos_appear_whole_or_not_at_all(film, tmp_path, monkeypatch):
    """An earlier one stays where writing another fails."""
    for name in ("a.png", "a.mp4"):
        (tmp_path / name).write_text("an earlier one")

    class Broken:
        def savefig(self, path, **_):
            Path(path).write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_figure(tmp_path / "a.png", Broken())
    monkeypatch.setattr("au_llava.au_recognition.annotation.annotated", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_video(tmp_path / "a.mp4", [], SimpleNamespace(parts=[film], every=1, fps=None, formats=()))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"] * 2


def test_frames_of_another_size_are_fitted_into_an_annotated_video(tmp_path):
    """Of recorded calls the size changes; nothing is cut off: a white frame of twice the size keeps its black edge."""
    for name, side in (("a.h264", 64), ("b.h264", 128)):
        picture = Image.new("RGB", (side, side), "white")
        picture.paste("black", (3 * side // 4, 0, side, side))
        write_video(tmp_path / name, [picture] * 3)
    film = tmp_path / "film.h264"
    film.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    save_video(tmp_path / "out.mp4", [], SimpleNamespace(parts=[film], every=1, fps=None, formats=()))
    shown = [np.asarray(frame.image.convert("L")) for frame in video_frames(tmp_path / "out.mp4")]
    assert len(shown) == 6
    for pixels in shown:
        assert pixels.shape == (64, 64)
        assert pixels[:, :44].min() > 200
        assert pixels[:, 52:].max() < 50


def test_an_annotated_video_of_any_name(film, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("12:30 talk.mp4")  # FFmpeg would look for a protocol "12"
    save_video(name, [], SimpleNamespace(parts=[film], every=8, fps=None, formats=()))
    assert len(list(video_frames(name))) == 3


def test_a_film_faster_than_the_clock_of_its_annotated_copy(tmp_path):
    with av.open(str(tmp_path / "fast.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12_000)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))))
        container.mux(stream.encode())
    plan = SimpleNamespace(parts=[tmp_path / "fast.mp4"], every=1, fps=None, formats=())
    save_video(tmp_path / "out.mp4", [], plan)
    assert len(list(video_frames(tmp_path / "out.mp4"))) == 30


def test_gif_still_and_moving(expressions, tmp_path):
    still, moving = tmp_path / "still.gif", tmp_path / "moving.gif"
    expressions[0][0].save(still)
    expressions[0][0].save(moving, save_all=True, append_images=expressions[0][1:], duration=200)
    assert (is_video(still), is_video(moving), is_video(tmp_path / "x.mp4")) == (False, True, True)
    assert [(frame.number, round(frame.time, 2)) for frame in video_frames(moving)] == [(1, 0), (2, 0.2), (3, 0.4)]


@pytest.mark.parametrize(("name", "message"), [("film.mkv", "breaks off after"), ("fast.mp4", "film|fast")])
def test_video_with_a_broken_tail(tiny_checkpoint, expressions, tmp_path, capsys, name, message):
    frames = [film_frame(expressions, number) for number in range(1, 25)]
    write_video(tmp_path / name, frames, **({"movflags": "faststart"} if name == "fast.mp4" else {}))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(0.6 * len(content))])
    assert recognize(tiny_checkpoint, tmp_path / name, "--formats", "bp4d", "--out", tmp_path / "aus.csv") == 1
    assert re.search(f"skipped: .*{message}", capsys.readouterr().err)
    frames = {int(row["frame"]) for row in read_csv(tmp_path / "aus.csv")}
    assert frames == set(range(1, len(frames) + 1))
    assert 2 < len(frames) < 24


def test_damage_inside_a_video_is_reported(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 128, 128, 3), np.uint8)
    write_video(tmp_path / "film.mp4", list(map(Image.fromarray, noise)))
    content = bytearray((tmp_path / "film.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = rng.bytes(1000)
    (tmp_path / "film.mp4").write_bytes(content)
    numbers = []
    with pytest.raises(DamagedVideo, match="is damaged"):
        numbers.extend(frame.number for frame in video_frames(tmp_path / "film.mp4"))
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 15


def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0, 40, 80, 700, 740, 2000]
    write_video(tmp_path / "phone.mp4", [Image.new("RGB", (64, 64), (40 * n, 0, 0)) for n in range(6)], times)
    assert [round(1000 * frame.time) for frame in video_frames(tmp_path / "phone.mp4")] == times
    assert [frame.number for frame in video_frames(tmp_path / "phone.mp4", fps=2)] == [1, 4, 6]


def interrupt_after(monkeypatch, calls, error):
    """Let the model fail after it has read `calls` chunks; returns a list of how many faces each chunk had."""
    load, sizes = checkpoints.load_checkpoint, []

    def load_interrupted(*words, **options):
        model, processor = load(*words, **options)
        recognize_all = model.recognize

        def recognize(processor, crops, **options):
            if len(sizes) == calls:
                raise error
            sizes.append(len(crops))
            return recognize_all(processor, crops, **options)

        monkeypatch.setattr(model, "recognize", recognize)
        return model, processor

    monkeypatch.setattr(checkpoints, "load_checkpoint", load_interrupted)
    return sizes


def test_interrupted_run_goes_on(tiny_checkpoint, film, film_run, tmp_path, monkeypatch, capsys):
    words = [film, *FILM_OPTIONS, "--out", tmp_path / "aus.csv"]
    with monkeypatch.context() as patch:
        first = interrupt_after(patch, 3, KeyboardInterrupt)
        assert recognize(tiny_checkpoint, *words) == 130
    journal = tmp_path / "aus.csv.parts" / "process-00000.jsonl"
    assert f"What was read is kept in {journal.parent}: repeat the command to go on" in capsys.readouterr().err
    assert len(journal.read_text().splitlines()) == 1 + 3
    with journal.open("a") as file:
        file.write('{"part": 0, "chunk": 3, "fra')  # a kill in the middle of a line
    with monkeypatch.context() as patch:
        second = interrupt_after(patch, 100, None)
        assert recognize(tiny_checkpoint, *words) == 0
    assert len(second) == 6 - 3  # chunks of four frames; the first three are not read again
    assert sum(first) + sum(second) == 23 + 19  # faces in all
    assert (tmp_path / "aus.csv").read_bytes() == (film_run / "aus.csv").read_bytes()
    assert not journal.exists()


def test_a_run_does_not_go_on_with_an_edited_checkpoint(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    faces = sorted((ROOT / "assets" / "faces").glob("*.png"))[:2]
    words = [*faces, "--no-detect", "--batch-size", 1, "--formats", "bp4d", "--out", tmp_path / "aus.csv"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, KeyboardInterrupt)
        assert recognize(checkpoint, *words) == 130
    path = checkpoint / "processor_config.json"
    settings = json.loads(path.read_text())
    edited = settings | {"image_processor": settings["image_processor"] | {"image_mean": [0.4] * 3}}
    path.write_text(json.dumps(edited))
    assert recognize(checkpoint, *words) == 1
    assert "holds the unfinished work of another run (other checkpoint)" in capsys.readouterr().err
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    assert recognize(checkpoint, *words) == 0


def test_two_runs_do_not_share_a_table(tiny_checkpoint, film, tmp_path, capsys):
    with only_run(tmp_path / "aus.csv.parts", "--out"):
        assert recognize(tiny_checkpoint, film, "--out", tmp_path / "aus.csv") == 1
    assert "Another run is writing to" in capsys.readouterr().err
    assert not any((tmp_path / "aus.csv.parts").iterdir())


def test_work_of_another_run_is_refused_and_kept(tiny_checkpoint, film, tmp_path, monkeypatch, capsys):
    """Repeating the command is advised only where it helps."""
    words = [film, "--out", tmp_path / "aus.csv"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, KeyboardInterrupt)
        assert recognize(tiny_checkpoint, *words, "--batch_size", 4) == 130
    assert "repeat the command to go on" in capsys.readouterr().err
    for other, message in (
        ([*words, "--batch_size", 8], "of another run (other batch_size)"),
        (["nowhere.png", *words], "no file or folder nowhere.png"),
        ([*words, "--curves", "AU99"], "none of the formats has this AU"),
    ):
        assert recognize(tiny_checkpoint, *other) == 1  # now and whenever it is repeated
        error = capsys.readouterr().err
        assert message in error
        assert "What was read is kept in" in error
        assert "repeat the command to go on" not in error


def test_outputs_are_refused_before_the_work(tiny_checkpoint, film, pictures, tmp_path, monkeypatch, capsys):
    film = shutil.copy(film, tmp_path)
    monkeypatch.setattr(checkpoints, "load_checkpoint", lambda *_, **__: pytest.fail("the work has begun"))
    (tmp_path / "folder.csv").mkdir()
    os.link(film, tmp_path / "other_name.mp4")
    for words, message in (
        (["--out", tmp_path / "folder.csv"], "is a folder: name a file"),
        (["--timeline", tmp_path / "x.doc"], "the name must end in"),
        (["--video", tmp_path / "x.gif"], "the name must end in .mp4, .mkv, .mov"),
        (["--video", film], "the same file is read"),
        (["--video", tmp_path / "other_name.mp4"], "the same file is read"),
        (["--timeline", tmp_path / "x.png", "--picture", tmp_path / "x.png"], "is written by --picture"),
        (["--out", tmp_path / "film.mp4" / "aus.csv"], "film.mp4"),
    ):
        assert recognize(tiny_checkpoint, film, pictures, *words) == 1
        assert message in capsys.readouterr().err


def test_curves_name_their_format_where_there_are_several():
    formats, times = [FORMATS["disfa"], FORMATS["feafa"]], np.array([0.0, 0.2])
    track = Track()
    for moment in times:
        numbers = {fmt.name: {kind: [0.5] * len(fmt.labels) for kind in ("expected", "low", "high")} for fmt in formats}
        track.add({"time": moment, "answers": numbers}, formats)
    axes = draw_timeline(track, times, formats, ["AU12", "AU12L"], "film.mp4").axes
    assert [axis.get_ylabel() for axis in axes[2:4]] == ["AU12\ndisfa", "AU12L\nfeafa"]
    assert draw_timeline(track, times, formats[:1], ["AU12"], "film.mp4").axes[1].get_ylabel() == "AU12"


def test_videos_of_one_name_have_timelines_of_their_own(tiny_checkpoint, film, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(film, tmp_path / folder)
    shutil.copy(film, tmp_path / "film.mov")
    words = ["--every", 8, "--formats", "disfa", "--timeline", tmp_path / "aus.png", "--curves", "AU1"]
    assert recognize(tiny_checkpoint, tmp_path / "a", tmp_path / "b", tmp_path / "film.mov", *words) == 0
    names = {f"aus-{video}-face{face}.png" for video in ("a-film", "b-film", "film") for face in (0, 1)}
    assert {path.name for path in tmp_path.glob("*.png")} == names


def test_the_default_model_lies_where_the_program_does(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = make_parser("").parse_args(["me.png"]).model
    assert os.path.isabs(model)
    assert os.path.samefile(os.path.join(model, "config.json"), ROOT / "config.json")


def test_both_spellings_of_options_are_understood():
    parse = make_parser("").parse_args
    former = parse(["me.png", "--batch_size", "3", "--picture_faces=2", "--quantise", "8bit"])
    assert former == parse(["me.png", "--batch-size", "3", "--picture-faces=2", "--quantize", "8bit"])


def test_full_disk(tiny_checkpoint, film, tmp_path, capsys):
    """A limit on the size of a file stands for a full disk: writing fails half way, and the next run goes on."""
    words = [film, "--batch_size", 4, "--formats", "disfa", "bp4d", "--out", tmp_path / "aus.csv"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        assert recognize(tiny_checkpoint, *words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.search(r"File too large.*What was read is kept in .*aus\.csv\.parts", capsys.readouterr().err)
    assert (tmp_path / "aus.csv.parts" / "process-00000.jsonl").read_text().count("\n") >= 2
    assert recognize(tiny_checkpoint, *words) == 0
    assert len(read_csv(tmp_path / "aus.csv")) == 23 + 19 + 1  # of the two people, and the frame without them


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_file_system(tiny_checkpoint, film, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        words = [film, "--batch_size", 4, "--out"]
        assert recognize(tiny_checkpoint, *words, disk / "aus.csv") == 1
        assert re.search(r"No space left on device.*What was read is kept", capsys.readouterr().err)
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert recognize(tiny_checkpoint, *words, disk / "aus.csv") == 0
        assert len(read_csv(disk / "aus.csv")) > 24
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert recognize(tiny_checkpoint, *words, disk / "other.csv") == 1
        assert "Read-only file system" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(tiny_checkpoint, crowd, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert recognize(tiny_checkpoint, crowd, "--out", tmp_path / "locked" / "aus.csv") == 1
    assert "Permission denied" in capsys.readouterr().err


def test_bad_input_is_named(tiny_checkpoint, pictures, film, capsys):
    wrong = {}
    for words, message in (
        ([pictures, "nowhere.png"], "no file or folder nowhere.png"),
        ([pictures, "--formats", "bp5d"], "bp5d"),
        ([pictures, "--out", "aus.xls"], "must end in .csv, .parquet, .jsonl"),
        ([pictures, "--timeline", "x.png"], "there is none"),
        ([pictures, "--video", "x.mp4"], "shows one video"),
        ([pictures, "--neutral", "median"], "is for videos"),
        ([pictures, "--curves", "AU99"], "none of the formats has this AU"),
        ([pictures, "--batch-size", "0"], "must be positive"),
        ([pictures, "--picture-faces", "0"], "must be positive"),
        ([film, "--fps", "inf"], "must be positive"),
        ([film, "--fps", "nan"], "must be positive"),
        ([film, "--faces", "faces.csv", "--no-detect"], "choose one"),
        ([film, "--faces", "faces.csv", "--detector", "none"], "choose one"),
        ([pictures, "--explain", "why.txt"], "--explain why.txt: the name must end in .png, .pdf, .svg"),
        ([pictures, "--explain", "why.png", "--decoding", "free"], "--explain needs the slots decoder"),
        ([pictures, "--no-mirror", "--decoding", "free"], "--no-mirror is for the slots decoder"),
        ([film, "--explain", "why.png"], "--explain is for pictures, but there are only videos"),
        ([film, "--curves", "AU12"], "--curves has no effect without --timeline"),
        ([film, "--neutral", "median"], "--neutral median has no effect without --out"),
        ([film, "--derive", "blink", "openface"], "--derive openface has no effect without --out"),
        ([pictures, "--picture-faces", "2"], "--picture-faces has no effect without --picture or --explain"),
        ([pictures, "--no-detect", "--detector", "yunet"], "--detector yunet has no effect with --no-detect"),
    ):
        status, error = recognize(tiny_checkpoint, *words), capsys.readouterr().err
        if status != 1 or message not in error or not error.startswith("recognize_au.py: "):
            wrong[message] = (status, error)
    assert wrong == {}


def test_openface_labels():
    labels = ["AU1", "AU12", "AU5L", "AU43R", "AD30L"]
    assert list(map(openface_label, labels)) == ["AU01", "AU12", "AU05L", "AU43R", "AD30L"]


# Fresh processes


def process_of(*words):
    """Arguments of `subprocess` for a Python module and its words."""
    return {"args": [sys.executable, "-m", *map(str, words)], "cwd": ROOT}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_run_goes_on(tiny_checkpoint, film, film_run, tmp_path, how):
    words = [film, *FILM_OPTIONS, "--out", tmp_path / "aus.csv"]
    journal = tmp_path / "aus.csv.parts" / "process-00000.jsonl"
    words_and_model = [*words, "--model", tiny_checkpoint]
    process = subprocess.Popen(**process_of("au_llava.recognize_au", *words_and_model), stderr=subprocess.PIPE)
    while process.poll() is None and not (journal.exists() and journal.read_text().count("\n") > 3):
        time.sleep(0.005)
    process.send_signal(how)
    process.wait()
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    assert journal.read_text().count("\n") > 3
    assert recognize(tiny_checkpoint, *words) == 0
    assert (tmp_path / "aus.csv").read_bytes() == (film_run / "aus.csv").read_bytes()


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same(tiny_checkpoint, film, crowd, pictures, tmp_path):
    for name, files in (("video", [film]), ("folder", [pictures, crowd, film])):
        words = [*files, "--batch_size", 2, "--model", tiny_checkpoint, "--out"]
        assert run([*map(str, words), str(tmp_path / f"{name}-1.csv")]) == 0
        words = [*words, tmp_path / f"{name}-2.csv"]
        code, output = commands.run(words, tmp_path / f"{name}.log", processes=2, script=ROOT / "recognize_au.py")
        assert code == 0, output
        assert output.count("Written: ") == 1
        assert (tmp_path / f"{name}-1.csv").read_bytes() == (tmp_path / f"{name}-2.csv").read_bytes()
