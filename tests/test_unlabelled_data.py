"""Faces without labels: FairFace in both layouts, anybody's pictures and videos, and who must not take them."""

import io
import json
import os
import types
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_trees import write
from PIL import Image

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.mixing import TrainingData, training_rows, unlabelled_rows, validating
from au_llava.au_datasets.records import finish_folder, load_records, record_features, shard_path, write_shard
from au_llava.au_evaluation import calibration
from au_llava.au_evaluation.command import main as evaluate
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT, crop_face
from au_llava.au_faces.table import FacesTable
from au_llava.au_readers import crops, fairface
from au_llava.au_readers import faces as sharing
from au_llava.au_readers.fairface import lowest_age
from au_llava.au_readers.source import local_name
from au_llava.prepare_data import run as prepare_data

FACES = Path(__file__).resolve().parents[1] / "assets" / "faces"
SIDE, LEFT, TOP = 112, 60, 40  # of a face in a photograph of 224 x 224
NAMES = ["jawOpen", "mouthSmileLeft", "_neutral"]  # as a table may order them
TAUGHT = {"bp4d": "AU12", "disfa": "AU25", "feafa": "AU12L"}


def eyes_of(side, left, top):
    return [[left + (0.5 + sign * EYE_DISTANCE / 2) * side, top + EYE_HEIGHT * side] for sign in (-1, 1)]


EYES = eyes_of(SIDE, LEFT, TOP)


def photograph(face="smile", side=SIDE, place=(LEFT, TOP)):
    picture = Image.new("RGB", (224, 224), (90, 120, 150))
    picture.paste(Image.open(FACES / f"{face}.png").convert("RGB").resize((side, side), Image.Resampling.BOX), place)
    return picture


def encoded(image=None, kind="JPEG"):
    buffer = io.BytesIO()
    (image or photograph()).save(buffer, kind, quality=95)
    return buffer.getvalue()


def run(command, root, out, *words):
    return prepare_data([command, *map(str, ["--root", root, "--out", out, "--workers", 1, *words])])


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def defects(out):
    """Kind -> how many, of the warnings of a manifest that count something."""
    found = [line.rpartition(" (")[0].rpartition(": ") for line in manifest(out)["warnings"] if "left out: " in line]
    return {kind: int(count) for kind, _, count in found}


def subjects(out, part=None):
    records = load_records(out, part, labelled=False)
    return sorted(set(records["subject"][:]))


@pytest.fixture
def teacher(monkeypatch):
    """A stand-in for the weak teacher that believes one AU per format; `measured` is what its landmarker sees next."""
    stand_in = types.SimpleNamespace(measured=[], seen=[])

    class WeakTeacher:
        @classmethod
        def load(cls, path=None):
            return cls()

        def values(self, blendshapes, format_name):
            assert blendshapes.shape == (1, 3)
            labels = FORMATS[format_name].labels
            found = np.full((1, len(labels)), np.nan, np.float32)
            found[:, labels.index(TAUGHT[format_name])] = blendshapes[:, 1 if format_name == "disfa" else 2]
            return found

    class Landmarker:
        def __init__(self, model=None):
            if stand_in.measured is None:
                raise ValueError("Measuring blendshapes needs MediaPipe.")

        def __call__(self, image):
            stand_in.seen.append(image)
            return stand_in.measured.pop(0)

    monkeypatch.setattr(sharing, "WeakTeacher", WeakTeacher)
    monkeypatch.setattr(sharing, "Landmarker", Landmarker)
    monkeypatch.setattr(fairface, "BLENDSHAPES", ("_neutral", "jawOpen", "mouthSmileLeft"))
    for cached in (sharing.weak_teacher, sharing.landmarker, fairface.blendshape_order, fairface.rows_of):
        cached.cache_clear()
    yield stand_in
    for cached in (sharing.weak_teacher, sharing.landmarker, fairface.blendshape_order):
        cached.cache_clear()


@pytest.fixture
def no_detector(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing has to be detected")

    crops.face_finder.cache_clear()
    monkeypatch.setattr(crops, "YuNet", refuse)


# ---- FairFace as Parquet --------------------------------------------------------------------------------------
def row(number, age="20-29", image=None, **changes):
    return {
        "image": {"bytes": encoded() if image is None else image, "path": f"train/{number}.jpg"},
        "file": f"train/{number}.jpg",
        "age": age,
        "gender": "Female",
        "race": "Indian",
        "eye_right": EYES[0],
        "eye_left": EYES[1],
        "yaw": -3.5,
        "pitch": 8.0,
        "blendshapes": [0.25, 0.75, 0.0],
        **changes,
    }


def write_table(path, rows, names=NAMES):
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"blendshape_names": " ".join(names)}), path)
    return path


@pytest.fixture
def shards(tmp_path):
    first = [row(1), row(2, "10-19"), row(3, image=encoded()[:500]), row(4, "more than 70", blendshapes=None)]
    second = [row(5, "0-2"), row(6, yaw=None), row(7, eye_left=[500.0, 60.0]), row(1), row(8, "?"), row(9, image=b"")]
    for number, rows in enumerate((first, second)):
        write_table(tmp_path / "fair" / f"train-0000{number}-of-00002.parquet", rows)
    return tmp_path / "fair"


def test_parquet_records(shards, tmp_path, no_detector):
    out = tmp_path / "out"
    assert run("fairface", shards, out) == 0
    records = load_records(out, labelled=False)
    assert subjects(out) == ["train/1.jpg", "train/4.jpg", "train/6.jpg"]
    assert set(records["part"][:]) == {"train", "validation"}  # one of three validates, nobody is tested
    one = [each for each in records if each["subject"] == "train/1.jpg"]
    assert [each["format"] for each in one] == list(MAIN_FORMATS)
    for each in one:
        size = len(FORMATS[each["format"]].labels)
        assert np.isnan(each["values"]).all()
        assert np.isnan(each["weak"]).all()
        assert (len(each["values"]), len(each["weak"])) == (size, size)
        assert (each["dataset"], each["clip"], each["frame"]) == ("fairface", "0", 1)
        assert (each["age"], each["gender"], each["race"]) == ("20-29", "Female", "Indian")
        assert (each["yaw"], each["pitch"]) == (-3.5, 8.0)
        assert each["image"].size == (134, 134)  # 1.4 * 96 = 134.4
        assert each["margin"] == pytest.approx(19 / 96)
    yaw = {each["subject"]: each["yaw"] for each in records}
    assert np.isnan(yaw["train/6.jpg"])
    (right, height), (left, _) = EYES  # level, so the eyeballs lie 0.05 of the distance higher and 4 % further apart
    across = left - right
    eyeballs = [(x, height - 0.05 * across) for x in (right - 0.02 * across, left + 0.02 * across)]
    expected = crop_face(Image.open(io.BytesIO(encoded())), eyeballs, 96, 0.2)
    assert np.abs(np.asarray(one[0]["image"], int) - np.asarray(expected, int)).mean() < 1.5


def test_what_is_left_out_is_counted(shards, tmp_path, no_detector):
    assert run("fairface", shards, tmp_path / "out") == 0
    assert defects(tmp_path / "out") == {
        "photographs of people under 20, left out": 2,
        "photographs of people whose age is not told, left out": 1,
        "pictures that cannot be read, left out": 2,  # one broken off, one empty
        "pictures with impossible positions of the eyes, left out": 1,
        "clips that exist twice, left out": 1,
    }
    assert any("carry no labels" in line for line in manifest(tmp_path / "out")["warnings"])


def test_a_table_of_faces_for_photographs_in_parquet(tmp_path):
    root = tmp_path / "fair"
    for part, numbers in (("train", (1, 2)), ("val", (1,))):
        rows = [row(number, file=f"{part}/{number}.jpg") for number in numbers]
        write_table(root / f"{part}-00000-of-00001.parquet", rows)
    numbers = ",".join(f"{number:g}" for point in EYES for number in point)
    lines = [f"{name},{numbers}" for name in ("2.jpg", "train/1.jpg")]
    write(tmp_path / "faces.csv", "\n".join([f"file,{','.join(FacesTable.EYES)}", *lines]))
    out = tmp_path / "out"
    assert run("fairface", root, out, "--validation", 0, "--faces", tmp_path / "faces.csv") == 0
    assert subjects(out) == ["train/1.jpg", "train/2.jpg"]
    assert defects(out) == {"pictures without a row in the table of faces, left out": 1}  # val/1.jpg


def test_all_ages_on_request(shards, tmp_path, no_detector):
    assert run("fairface", shards, tmp_path / "out", "--all-ages") == 0
    assert {"train/2.jpg", "train/5.jpg", "train/8.jpg"} < set(subjects(tmp_path / "out"))
    assert not any("people" in kind for kind in defects(tmp_path / "out"))


@pytest.mark.parametrize(
    ("band", "years"),
    [
        ("0-2", 0),
        ("3-9", 3),
        ("10-19", 10),
        ("20-29", 20),
        ("more than 70", 70),
        ("70+", 70),
        ("?", None),
        (None, None),
    ],
)
def test_bands_of_age(band, years):
    assert lowest_age(band) == years


def test_parquet_teacher_reads_the_stored_blendshapes(shards, tmp_path, no_detector, teacher):
    """By their names, and without a landmarker."""
    teacher.measured = None  # there is no MediaPipe
    assert run("fairface", shards, tmp_path / "out", "--teacher", "mediapipe") == 0
    for each in load_records(tmp_path / "out", labelled=False):
        taught = FORMATS[each["format"]].labels.index(TAUGHT[each["format"]])
        believed = np.flatnonzero(~np.isnan(each["weak"])).tolist()
        if each["subject"] == "train/4.jpg":  # has none
            assert believed == []
        else:
            assert believed == [taught]
            assert each["weak"][taught] == (0.25 if each["format"] == "disfa" else 0.75)
        assert np.isnan(each["values"]).all()


def test_other_formats_can_be_asked_for(shards, tmp_path, no_detector, teacher):
    teacher.measured = None
    assert run("fairface", shards, tmp_path / "out", "--teacher", "mediapipe", "--formats", "feafa", "disfa") == 0
    records = load_records(tmp_path / "out", labelled=False)
    assert records.unique("format") == ["feafa", "disfa"]
    assert manifest(tmp_path / "out")["arguments"]["formats"] == ["feafa", "disfa"]
    assert run("fairface", shards, tmp_path / "usual") == 0
    assert "formats" not in manifest(tmp_path / "usual")["arguments"]  # as before there were others


def test_weak_values_belong_to_the_content(shards, tmp_path, no_detector, teacher):
    """Two folders that teach differently are not the same data."""
    teacher.measured = None
    for name in ("none", "mediapipe"):
        assert run("fairface", shards, tmp_path / name, "--teacher", name) == 0
    assert len({manifest(tmp_path / name)["content_sha256"] for name in ("none", "mediapipe")}) == 2


def test_a_resumed_run_gives_the_same_content(shards, tmp_path, no_detector):
    out = tmp_path / "out"
    assert run("fairface", shards, out) == 0
    before = manifest(out)
    (out / "data-train-00000-of-00001.parquet").unlink()
    (out / "manifest.json").write_text(json.dumps({**before, "complete": False}))
    assert run("fairface", shards, out) == 0
    assert manifest(out) == before


def test_other_arguments_and_other_tables_are_refused(shards, tmp_path, no_detector, capsys):
    assert run("fairface", shards, tmp_path / "out") == 0
    assert run("fairface", shards, tmp_path / "out", "--margin", 0.1) == 1
    assert "margin 0.2 (now 0.1)" in capsys.readouterr().err
    write_table(shards / "train-00001-of-00002.parquet", [row(11), row(12)])
    assert run("fairface", shards, tmp_path / "out") == 1
    assert "labels" in capsys.readouterr().err


def test_eyes_that_no_table_gives_are_found(tmp_path):
    write_table(tmp_path / "fair" / "train-00000-of-00001.parquet", [row(1, eye_left=None), row(2), row(3)])
    assert run("fairface", tmp_path / "fair", tmp_path / "out") == 0
    crops = {each["subject"]: np.asarray(each["image"], int) for each in load_records(tmp_path / "out", labelled=False)}
    assert len(crops) == 3
    assert np.abs(crops["train/1.jpg"] - crops["train/2.jpg"]).mean() < 12  # YuNet's idea of an eye is a little other


def broken_table(root, rows=None, **options):
    return write_table(root / "train-00000-of-00001.parquet", rows or [row(1), row(2)], **options)


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda root: root.mkdir(), [], "neither fairface_label_train.csv nor train-00000-of-00004.parquet in"),
        (lambda root: None, [], "there is no folder"),
        (lambda root: write(root / "fairface.zip", "zip"), [], "fairface.zip is not unpacked"),
        (lambda root: write(root / "train-00000-of-00001.parquet", "no table"), [], "cannot be read"),
        (lambda root: broken_table(root, [{"image": {"bytes": b"", "path": "x"}}]), [], "needs a column 'file'"),
        (lambda root: broken_table(root, [row(1, age=3)]), [], "needs a column 'age' of text"),
        (
            lambda root: broken_table(root, [row(1, image=b"") | {"image": "x"}]),
            [],
            "no column 'image' of {bytes, path}",
        ),
        (lambda root: broken_table(root, names=[]), ["--teacher", "mediapipe"], "does not name its blendshapes"),
        (lambda root: broken_table(root, [row(1, age="0-2")]), [], "photographs of people under 20, left out: 1"),
        (lambda root: broken_table(root, [row(1, image=b""), row(2, image=b"")]), [], "no image is left to store"),
        (lambda root: broken_table(root, [row(1)]), [], "1 subjects cannot fill the 2 parts"),
    ],
)
def test_what_is_no_copy_is_refused_in_one_sentence(make, words, message, tmp_path, capsys, teacher):
    make(tmp_path / "fair")
    assert run("fairface", tmp_path / "fair", tmp_path / "out", *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error[error.index("prepare_data.py: ") :].count("\n") == 1  # after the progress bar


# ---- FairFace as released -------------------------------------------------------------------------------------
HEADER = "file,age,gender,race,service_test\n"


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "release"
    for number in (1, 2, 3, 4, 9):
        write(root / "fairface-img-margin025-trainval" / "train" / f"{number}.jpg", encoded())
    ages = ["50-59", "3-9", "20-29", "30-39", "40-49"]
    lines = [f"train/{number}.jpg,{age},Male,East Asian,True\n" for number, age in zip("12345", ages, strict=True)]
    write(root / "fairface_label_train.csv", HEADER + "".join(lines))
    return root


def test_released_layout(release, tmp_path):
    assert run("fairface", release, tmp_path / "out") == 0
    records = load_records(tmp_path / "out", labelled=False)
    assert subjects(tmp_path / "out") == ["train/1.jpg", "train/3.jpg", "train/4.jpg"]
    assert set(records["part"][:]) == {"train", "validation"}
    assert {(each["gender"], each["race"]) for each in records} == {("Male", "East Asian")}
    assert np.isnan(records["yaw"][:]).all()
    assert defects(tmp_path / "out") == {
        "photographs of people under 20, left out": 1,
        "rows without a photograph, left out": 1,  # 5
        "photographs without a row, left out": 1,  # 9
    }


def test_a_release_is_compared_with_a_complete_one(release, tmp_path):
    """Of all ages, for how many are adults is not published."""
    assert run("fairface", release, tmp_path / "all", "--all-ages") == 0
    assert manifest(tmp_path / "all")["known"] == [{"what": "images", "expected": 86744, "found": 4}]
    assert run("fairface", release, tmp_path / "adults") == 0
    assert manifest(tmp_path / "adults")["known"] == []


def test_the_official_validation_part_is_tested(release, tmp_path):
    write(
        release / "fairface_label_val.csv", HEADER + "val/1.jpg,20-29,Male,Black,True\nval/2.jpg,3-9,Male,Black,True\n"
    )
    for number in (1, 2):
        write(release / "fairface-img-margin025-trainval" / "val" / f"{number}.jpg", encoded())
    assert run("fairface", release, tmp_path / "out") == 0
    assert subjects(tmp_path / "out", "test") == ["val/1.jpg"]
    assert len(subjects(tmp_path / "out", "train")) == 2
    assert len(subjects(tmp_path / "out", "validation")) == 1


def test_released_layout_with_a_teacher(release, tmp_path, teacher):
    """The landmarker sees the face that was cut out, larger; what it does not find stays unknown."""
    shapes = np.array([0.0, 0.5, 0.125], np.float32)
    teacher.measured = [types.SimpleNamespace(blendshapes=shapes, yaw=12.0, pitch=-4.0), None, None]
    assert run("fairface", release, tmp_path / "out", "--teacher", "mediapipe") == 0
    records = [each for each in load_records(tmp_path / "out", labelled=False) if not np.isnan(each["weak"]).all()]
    assert len(records) == 3  # of one photograph
    assert {(each["yaw"], each["pitch"]) for each in records} == {(12.0, -4.0)}
    weak = {each["format"]: np.nansum(each["weak"]) for each in records}
    assert weak == {"bp4d": 0.125, "disfa": 0.5, "feafa": 0.125}
    assert [image.size for image in teacher.seen] == [(384, 384)] * 3


def test_a_release_without_its_photographs(release, tmp_path, capsys):
    (release / "fairface-img-margin025-trainval").rename(tmp_path / "elsewhere")
    assert run("fairface", release, tmp_path / "out") == 1
    assert "no folder train with photographs in" in capsys.readouterr().err


def test_a_teacher_that_is_not_installed_is_one_sentence(release, tmp_path, teacher, capsys):
    teacher.measured = None
    assert run("fairface", release, tmp_path / "out", "--teacher", "mediapipe") == 1
    assert capsys.readouterr().err == "prepare_data.py: Measuring blendshapes needs MediaPipe.\n"


# ---- Anybody's pictures and videos ----------------------------------------------------------------------------
def write_faces(path, faces):
    """A video, one face a frame; None is a frame without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=20, options={"qscale": "2"})
        stream.width = stream.height = 224
        stream.pix_fmt = "yuv420p"
        for face in faces:
            image = photograph(face) if face else Image.new("RGB", (224, 224), (90, 120, 150))
            video.mux(stream.encode(av.VideoFrame.from_image(image)))
        video.mux(stream.encode())
    return path


@pytest.fixture
def pictures(tmp_path):
    """Two people's folders and a loose file, with everything that can be wrong."""
    root = tmp_path / "holidays"
    write(root / "ann" / "beach" / "1.JPG", encoded())
    write(root / "ann" / "2.png", encoded(photograph("frown"), "PNG"))
    write(root / "ann" / "wall.jpg", encoded(Image.new("RGB", (64, 64), (90, 120, 150))))
    write(root / "ann" / "notes.txt", "no picture")
    write(root / "bob" / "broken.png", encoded(kind="PNG")[:4000])
    write(root / "bob" / "empty.jpg", "")
    write_faces(root / "bob" / "clip.mp4", ["rest", "smile", None, "frown", "rest"])
    write(root / "bob" / "off.avi", "no video")
    write(root / "loose.jpg", encoded())
    write(root / "._loose.jpg", "left by a system")
    return root


def keys(out):
    records = load_records(out, labelled=False)
    return [
        tuple(each) for each in zip(*(records[name][:] for name in ("subject", "clip", "frame", "format")), strict=True)
    ]


def test_every_file_is_somebody(pictures, tmp_path):
    out = tmp_path / "out"
    assert run("unlabelled", pictures, out, "--validation", 0) == 0
    shown = [
        *(("bob/clip.mp4", "bob/clip.mp4", frame) for frame in (1, 2, 4, 5)),
        *((name, "0", 1) for name in ("ann/2.png", "ann/beach/1.JPG", "loose.jpg")),
    ]
    assert sorted(keys(out)) == sorted((*each, name) for each in shown for name in MAIN_FORMATS)
    assert set(load_records(out, labelled=False)["dataset"][:]) == {local_name("unlabelled-holidays", pictures)}
    assert defects(out) == {
        "pictures without a face, left out": 2,  # wall.jpg, frame 3
        "pictures that cannot be read, left out": 2,
    }
    told = " ".join(manifest(out)["warnings"])
    assert "bob/clip.mp4 frame 3" in told
    assert "videos that cannot be decoded to their end: 1 (bob/off.avi" in told
    assert f"left out below {pictures}: 1 .txt" in told


def test_folders_of_one_name_are_two_data_sets(tmp_path):
    """Their face.png are two pictures, and two people."""
    folders = [tmp_path / lab / "faces" for lab in ("a", "b")]
    for folder, face in zip(folders, ("smile", "frown"), strict=True):
        write(folder / "face.png", encoded(photograph(face), "PNG"))
        assert run("unlabelled", folder, folder.parent / "out", "--validation", 0) == 0
    outs = [folder.parent / "out" for folder in folders]
    assert len(set(load_records(outs, labelled=False)["dataset"][:])) == 2
    assert len(unlabelled_rows(list(map(str, outs)), "train", ["disfa"])) == 2


def test_linked_folders_are_read_and_names_of_other_bytes(tmp_path):
    write(tmp_path / "disk" / "a.png", encoded(kind="PNG"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in", target_is_directory=True)
    with open(os.fsencode(tmp_path / "in") + b"/Jos\xe9.png", "wb") as file:
        file.write(encoded(kind="PNG"))
    write(tmp_path / "in" / "@eaDir" / "a.png", encoded(kind="PNG"))
    out = tmp_path / "out"
    assert run("unlabelled", tmp_path / "in", out, "--validation", 0.5) == 0
    assert subjects(out) == [r"Jos\xe9.png", "linked/a.png"]


def test_moving_pictures_are_videos(tmp_path):
    frames = [photograph(face) for face in ("rest", "smile")]
    (tmp_path / "in").mkdir()
    frames[0].save(
        tmp_path / "in" / "moving.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True
    )
    frames[0].save(tmp_path / "in" / "still.webp", lossless=True)
    assert run("unlabelled", tmp_path / "in", tmp_path / "out", "--validation", 0) == 0
    shown = [("moving.webp", "moving.webp", 1), ("moving.webp", "moving.webp", 2), ("still.webp", "0", 1)]
    assert sorted(keys(tmp_path / "out")) == sorted((*each, name) for each in shown for name in MAIN_FORMATS)


def test_a_picture_without_a_row_in_the_table_of_faces(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / "in" / name, encoded(kind="PNG"))
    numbers = ",".join(f"{number:g}" for point in EYES for number in point)
    table = f"file,{','.join(FacesTable.EYES)}\nelsewhere/b.png,{numbers}\n"
    write(tmp_path / "faces.csv", table)
    out = tmp_path / "out"
    assert run("unlabelled", tmp_path / "in", out, "--validation", 0, "--faces", tmp_path / "faces.csv") == 0
    assert subjects(out) == ["b.png"]
    assert defects(out) == {"pictures without a row in the table of faces, left out": 1}


def test_every_folder_is_somebody(pictures, tmp_path):
    out = tmp_path / "out"
    assert (
        run("unlabelled", pictures, out, "--subjects", "folders", "--every", 3, "--name", "mine", "--validation", 0.5)
        == 0
    )
    shown = [("bob", "bob/clip.mp4", 1), ("bob", "bob/clip.mp4", 4), ("ann", "0", 1), ("ann", "0", 3)]
    assert sorted(keys(out)) == sorted((*each, name) for each in shown for name in MAIN_FORMATS)
    assert len(subjects(out, "validation")) == len(subjects(out, "train")) == 1
    assert set(load_records(out, labelled=False)["dataset"][:]) == {"mine"}
    assert defects(out)["files that are not in a person's folder, left out"] == 1


def test_a_persons_folder_on_macos_and_elsewhere(tmp_path):
    """macOS writes an accented letter in a name as two characters."""
    write(tmp_path / "in" / "Jos\u00e9" / "a.png", encoded(kind="PNG"))
    write(tmp_path / "in" / "Jose\u0301" / "b.png", encoded(kind="PNG"))
    out = tmp_path / "out"
    assert run("unlabelled", tmp_path / "in", out, "--subjects", "folders", "--validation", 0) == 0
    assert {key[:3] for key in keys(out)} == {("Jos\u00e9", "0", 1), ("Jos\u00e9", "0", 2)}


def test_the_largest_face_is_cut_out(tmp_path):
    """As crop_face cuts it, larger by the margin."""
    picture = photograph("smile", 120, (100, 100))
    picture.paste(photograph("frown", 64, (10, 10)).crop((10, 10, 74, 74)), (10, 10))
    picture.save(tmp_path / "two.png")
    assert run("unlabelled", tmp_path, tmp_path / "out", "--validation", 0, "--crop", 60, "--margin", 0.25) == 0
    (image, *_) = (each["image"] for each in load_records(tmp_path / "out", labelled=False))
    assert image.size == (90, 90)
    expected = (crop_face(picture, eyes_of(*place), 60, 0.25) for place in ((120, 100, 100), (64, 10, 10)))
    near, far = (np.abs(np.asarray(image, int) - np.asarray(each, int)).mean() for each in expected)
    assert 2 * near < far, (near, far)


def test_videos_and_pictures_with_a_teacher(tmp_path, teacher):
    write(tmp_path / "in" / "a.png", encoded(kind="PNG"))
    write_faces(tmp_path / "in" / "b.mp4", ["rest", "smile"])
    shapes = [types.SimpleNamespace(blendshapes=np.array([0, level, 0], np.float32)) for level in (0.25, 0.5)]
    teacher.measured = [shapes[0], None, shapes[1]]  # the video comes first
    assert run("unlabelled", tmp_path / "in", tmp_path / "out", "--validation", 0, "--teacher", "mediapipe") == 0
    weak = {
        (each["subject"], each["frame"]): np.nansum(each["weak"])
        for each in load_records(tmp_path / "out", formats=["disfa"], labelled=False)
    }
    assert weak == {("b.mp4", 1): 0.25, ("b.mp4", 2): 0.0, ("a.png", 1): 0.5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no folder"),
        (lambda root: write(root / "notes.txt", "x"), "no picture and no video below"),
        (lambda root: write(root / "album.zip", "x"), "album.zip is not unpacked"),
        (
            lambda root: [Image.new("RGB", (64, 64)).save(write(root / f"{n}.png", "")) for n in range(2)],
            "pictures without a face, left out: 2 (0.png, 1.png)",
        ),
    ],
)
def test_a_folder_without_faces_is_refused_in_one_sentence(make, message, tmp_path, capsys):
    make(tmp_path / "in")
    assert run("unlabelled", tmp_path / "in", tmp_path / "out", "--validation", 0) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error[error.index("prepare_data.py: ") :].count("\n") == 1  # after the progress bar


def test_loose_files_are_nobodys(tmp_path, capsys):
    write(tmp_path / "in" / "a.jpg", encoded())
    assert run("unlabelled", tmp_path / "in", tmp_path / "out", "--subjects", "folders") == 1
    assert "files that are not in a person's folder, left out: 1 (a.jpg)" in capsys.readouterr().err


# ---- Who reads labels -----------------------------------------------------------------------------------------
@pytest.fixture
def faces(tmp_path):
    for name in "ab":
        write(tmp_path / "in" / f"{name}.jpg", encoded())
    assert run("unlabelled", tmp_path / "in", tmp_path / "out", "--validation", 0.5) == 0
    return tmp_path / "out"


@pytest.mark.parametrize(
    "read",
    [
        load_records,
        lambda folder: load_records(folder, part="test"),
        lambda folder: TrainingData(str(folder)).load("train"),
        lambda folder: validating([str(folder)], "validation"),
        lambda folder: training_rows([f"{folder}=2"], "train", None),
        lambda folder: evaluate(
            ["--model", "nowhere", "--data", str(folder), "--part", "validation", "--out", str(folder.with_name("x"))]
        ),
    ],
)
def test_readers_of_labels_refuse_it(read, faces):
    with pytest.raises(ValueError, match=rf"^{faces} holds no labels; give it as --unlabelled$"):
        read(faces)


def test_priors_are_estimated_on_them(faces, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_UNLABELED", 1)
    assert len(calibration.unlabeled_records([str(faces)])) == 1


def test_their_people_can_be_tested_and_so_not_trained_on(faces):
    assert TrainingData(str(faces)).tested_people() == set()
    table = TrainingData(str(faces))
    assert len(table.load("train", labelled=False)) == 3
    rows = [{**each, "image": {"bytes": encoded(), "path": None}} for each in table.load("train", labelled=False)]
    write_shard(
        [{**each, "part": "test"} for each in rows],
        record_features(sharing.UNLABELLED_METADATA),
        shard_path(faces, "train", 0, 1),
    )
    assert table.tested_people() == {f"{rows[0]['dataset']}:{rows[0]['subject']}"}


def test_one_label_is_enough(faces):
    """Labelled and unlabelled rows in one folder are read as ever."""
    records = load_records(faces, part="train", labelled=False)
    rows = [{**each, "image": {"bytes": encoded(), "path": None}} for each in records]
    rows[0]["values"] = [1.0] + [np.nan] * (len(rows[0]["values"]) - 1)
    features = record_features(sharing.UNLABELLED_METADATA)
    write_shard(rows, features, shard_path(faces, "train", 0, 1))
    finish_folder(faces, manifest(faces)["arguments"])
    assert len(load_records(faces)) == 6
    assert len(training_rows([str(faces)], "train", None)) == 1
