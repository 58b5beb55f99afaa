"""Derived columns: blinks over time, OpenFace's AUs, ARKit's blendshapes."""

import csv
import json

import pandas
import pytest
from conftest import ROOT
from PIL import Image
from test_media import write_video

from au_llava import recognize_au
from au_llava.action_units import FORMATS, AUFormat, get_format
from au_llava.au_datasets.conversion import sides_of
from au_llava.au_faces.landmarks import BLENDSHAPES
from au_llava.au_recognition.derived import ARKIT, LONGEST_BLINK, OPENFACE, Derived, check_derivable, find_blinks
from au_llava.au_recognition.summary import Summary
from au_llava.au_recognition.tables import au_columns, open_table
from au_llava.au_rendering.activations import GAZE
from au_llava.au_rendering.pictures import render_face
from au_llava.au_rendering.rig import SHAPES
from au_llava.au_rendering.view import View
from au_llava.au_runs.formats import read_format

MAIN = [FORMATS[name] for name in ("bp4d", "disfa", "feafa")]


def at(rate: float, states: str) -> tuple[list[float], list[int | None]]:
    """Times and states of frames: "-" open, "#" closed, "?" unknown, " " not in the picture."""
    seen = [(number, state) for number, state in enumerate(states) if state != " "]
    return [number / rate for number, _ in seen], [{"-": 0, "#": 1, "?": None}[state] for _, state in seen]


def told(rate: float, states: str) -> tuple[str, int, float]:
    """The same signs for blinks, how many, and seconds."""
    blinks, count, seconds = find_blinks(*at(rate, states))
    return "".join({0: "-", 1: "#", None: "?"}[blink] for blink in blinks), count, seconds


@pytest.mark.parametrize(
    ("states", "blinks", "count"),
    [
        ("---##---#---", "---##---#---", 2),
        ("-###############-", "-###############-", 1),  # 15 frames of 1/30 s: half a second
        ("-################-", "------------------", 0),  # one more is a closed eye, AU43
        ("##----", "??----", 0),  # when did it begin?
        ("----##", "----??", 0),
        ("--?##--", "--???--", 0),
        ("--##?--", "--???--", 0),
        ("------", "------", 0),
        ("##", "??", 0),
        ("--#- --#--", "--#---#--", 2),  # a frame without the face is bridged
        ("--#  #--", "--??--", 0),  # two are not: it may have opened in between
        ("--##  --", "--??--", 0),
    ],
)
def test_blinks_are_short_closures_seen_whole(states, blinks, count):
    signs, number, seconds = told(30, states)
    assert (signs, number) == (blinks, count)
    assert seconds == pytest.approx((len(signs) - signs.count("?")) / 30)


def test_too_few_frames_a_second_tell_no_blink():
    states = "----##----"
    assert told(20, states)[1] == told(60, states)[1] == 1
    assert told(15, states) == ("?" * 10, 0, 0.0)
    assert told(5, states) == ("?" * 10, 0, 0.0)
    assert find_blinks([0.0], [1]) == ([None], 0, 0.0)
    assert find_blinks([], []) == ([], 0, 0.0)


def test_half_a_second_is_the_limit_at_every_rate():
    for rate in (20, 24, 25, 30, 50, 60, 120):
        most = int(LONGEST_BLINK * rate)
        assert told(rate, f"-{'#' * most}-")[1] == 1, rate
        assert told(rate, f"-{'#' * (most + 1)}-")[1] == 0, rate


def answers(**present) -> dict:
    """What a face reads as: absent, but for label=value, on the scale of a format that has it."""
    made = {}
    for fmt in MAIN:
        values = [float(present.get(label, 0)) for label in fmt.labels]
        made[fmt.name] = {"value": values, "expected": values, "probability": [float(v > 0) for v in values]}
        made[fmt.name]["present"] = [value >= fmt.presence_threshold for value in values]
    return made


def video(states: str, file: str = "a.mp4", face_id: int = 0, rate: float = 30) -> list[dict]:
    closed = {"#": {"AU43L": 0.9, "AU43R": 0.8}, "L": {"AU43L": 0.9}, "-": {}}
    return [
        {
            **{"file": file, "frame": number + 1, "time": round(number / rate, 4), "face_id": face_id},
            **{"answers": answers(**closed[state]), "eyes": None, "box": (0, 0, 9, 9)},
            **{"confidence": 0.9, "pose": None, "gaze": None, "contradictions": [], "problems": []},
        }
        for number, state in enumerate(states)
    ]


def test_a_video_has_its_blinks_by_person():
    faces = [
        *video("--##--"),
        *video("------", face_id=1),
        *video("-LL-##-", "b.mp4"),
        *video("-##-", "slow.mp4", 0, 10),
    ]
    faces += [*video("#", "a.png"), {"file": "a.mp4", "frame": 7, "time": 0.2, "face_id": None}]
    derived = Derived(faces, MAIN, ["blink"])
    assert derived.columns == ("AU45_c",)
    assert derived.blinks.keys() == {("a.mp4", 0), ("a.mp4", 1), ("b.mp4", 0)}
    assert derived.blinks["a.mp4", 0] == (1, pytest.approx(0.2, abs=1e-3))
    assert derived.blinks["a.mp4", 1][0] == 0
    assert derived.blinks["b.mp4", 0][0] == 1  # one eye alone winks
    for face in faces:
        derived.add(face)
    assert [face["derived"]["AU45_c"] for face in faces[:6]] == [0, 0, 1, 1, 0, 0]
    assert [face["derived"]["AU45_c"] for face in faces[-6:-1]] == [None] * 5  # 10 frames a second; a picture
    assert "derived" not in faces[-1]


def test_the_summary_tells_blinks_per_minute():
    faces = video("--##--" * 100)
    derived = Derived(faces, MAIN, ["blink"])
    summary = Summary(MAIN, derived.blinks)
    for face in faces:
        summary.add(face)
    [cell] = summary.table().columns[0].cells
    assert cell.plain.splitlines() == ["a.mp4", "600 frames", "100 blinks in 20 s", "(300.0 a minute)"]


@pytest.mark.parametrize("name", ["frames", "unread"])
def test_the_summary_takes_a_format_of_any_name(name):
    mine = AUFormat(name, ("AU1", "AU12"), "intensity")
    answer = {"value": [None, 3], "present": [False, True], "expected": [None, 2.84]}
    summary = Summary([mine], {})
    summary.add({"file": "a.png", "face_id": 0, "answers": {name: answer}})
    assert list(summary.table().columns[1].cells) == ["AU12=2.8  (1 unread)"]


def test_the_summary_says_what_its_numbers_are():
    picture, film = Summary(MAIN, {}), Summary(MAIN, {})
    for face in video("#", "a.png"):
        picture.add(face)
    for face in video("-###"):
        film.add(face)
    assert picture.table().caption == (
        "bp4d: probability of presence; disfa: expected intensity, 0 to 5; feafa: expected strength, 0 to 1"
    )
    assert film.table().caption == "video: share of the frames in which the AU is present"
    [cell] = film.table().columns[3].cells
    assert cell == "AU43L 75%, AU43R 75%"


def test_openface_has_all_its_columns():
    formats = au_columns(MAIN)
    derived = Derived([], MAIN, ["openface"])
    names = [f"AU{int(label[2:]):02d}_{kind}" for label in OPENFACE for kind in "cr"]
    names.remove("AU28_r")
    assert len(OPENFACE) == 18
    assert set(names) <= {*formats, *derived.columns}
    assert not set(derived.columns) & set(formats)
    face = video("-")[0] | {"answers": answers(AU5=2, AU9=1, AU10=1, AU28T=0.5, AU26=0.9)}
    derived.add(face)
    read = {name: value for name, value in face["derived"].items() if value is not None}
    assert read == {"AU05_c": 1, "AU09_c": 0, "AU20_c": 0, "AU25_c": 0, "AU26_c": 0, "AU28_c": 1}
    unknown = {"AU07_r", "AU10_r", "AU14_r", "AU23_r", "AU45_r", "AU45_c"}  # a picture has no blink
    assert {name for name, value in face["derived"].items() if value is None} == unknown


def test_an_intensity_that_a_format_has_is_taken():
    mine = AUFormat("mine", ("AU7L", "AU7R", "AU14"), "intensity")
    derived = Derived([], [mine], ["openface"])
    face = video("-")[0]
    face["answers"] = {"mine": {"expected": [1.5, 2.5, None], "present": [False, True, None]}}
    derived.add(face)
    assert face["derived"]["AU07_r"] == 2.5
    assert face["derived"]["AU07_c"] == 1
    assert face["derived"]["AU14_c"] is None


def test_arkit_has_52_shapes_named_as_mediapipes():
    assert len(ARKIT) == 52
    assert {*ARKIT} == {*BLENDSHAPES} - {"_neutral"} | {"tongueOut"}


def test_arkit_shapes_follow_the_aus_that_move_them_in_the_rig():
    """All but AU24, whose shape is made for the rig; the eyes turn with the view's gaze."""
    for shape, labels in ARKIT.items():
        moved = [shown for label in labels for shown in (label, *sides_of(label)) if shown in SHAPES]
        assert bool(moved) == (labels[-1] not in GAZE), shape
        for label in moved:
            if label != "AU24" and not (len(labels) > 1 and label[-1] not in (labels[0][-1], labels[1][-1])):
                assert SHAPES[label].get(shape, 0) > 0, (shape, label)


def test_arkit_is_read_off_continuous_strengths_alone():
    derived = Derived([], MAIN, ["arkit"])
    assert derived.columns == tuple(ARKIT)
    face = video("-")[0] | {"answers": answers(AU12L=0.75, AU10=0.5, AU28B=0.25, AD30R=1.0, AU1=5, AU43R=0.125)}
    derived.add(face)
    read = {name: value for name, value in face["derived"].items() if value}
    assert read == {
        **{"mouthSmileLeft": 0.75, "mouthUpperUpLeft": 0.5, "mouthUpperUpRight": 0.5, "mouthRollLower": 0.25},
        **{"jawRight": 1.0, "eyeBlinkRight": 0.125},
    }
    unknown = {name for name, value in face["derived"].items() if value is None}
    assert len(unknown) == 52 - 27
    assert {"browInnerUp", "cheekSquintLeft", "tongueOut", "eyeLookInLeft", "mouthPressRight"} <= unknown


def test_the_format_for_animators_determines_what_the_renderer_can_show():
    fmt = read_format(ROOT / "recipes" / "formats" / "arkit.yaml")
    derived = Derived([], [fmt], ["arkit"])
    face = video("-")[0]
    face["answers"] = {fmt.name: {"expected": [0.5] * len(fmt.labels)}}
    derived.add(face)
    unknown = {shape for shape, value in face["derived"].items() if value != 0.5}
    assert unknown == {f"eyeLook{way}{side}" for way in ("Up", "Down", "In", "Out") for side in ("Left", "Right")}
    assert {*fmt.labels} == {*SHAPES} - {"AU23", "AU25"}


@pytest.mark.parametrize("formats", [MAIN, [AUFormat("eyes", ("AU61", "AU62", "AU63"), "continuous")]])
def test_the_gaze_comes_from_the_eyes_unless_a_format_has_it(formats):
    derived, face = Derived([], formats, ["arkit"]), video("-")[0]
    face["gaze"] = {"AU61": 0.75, "AU62": 0.0, "AU63": 0.0, "AU64": 0.5}
    face["answers"]["eyes"] = {"expected": [0.0, 0.25, 0.0]}
    derived.add(face)
    read = {shape: value for shape, value in face["derived"].items() if "Look" in shape and value}
    down = {"eyeLookDownLeft": 0.5, "eyeLookDownRight": 0.5}
    if formats is MAIN:
        assert read == {"eyeLookOutLeft": 0.75, "eyeLookInRight": 0.75, **down}
    else:
        assert read == {"eyeLookInLeft": 0.25, "eyeLookOutRight": 0.25, **down}


def test_both_eyes_follow_the_gaze():
    """Looking to the left turns the left eye out and the right eye in."""
    fmt = AUFormat("eyes", GAZE, "continuous")
    derived, face = Derived([], [fmt], ["arkit"]), video("-")[0]
    values = {"AU61": 0.75, "AU64": 0.5}
    face["answers"] = {fmt.name: {"expected": [values.get(label, 0.0) for label in fmt.labels]}}
    derived.add(face)
    assert {shape: value for shape, value in face["derived"].items() if value} == {
        **{"eyeLookOutLeft": 0.75, "eyeLookInRight": 0.75, "eyeLookDownLeft": 0.5, "eyeLookDownRight": 0.5},
    }


@pytest.mark.slow
def test_the_shipped_checkpoint_counts_the_blinks_of_a_rendered_person(tmp_path, capsys):
    """Two blinks, a closed eye of 0.8 s and a wink, at 25 frames a second."""
    shut = {*range(10, 14), *range(20, 25), *range(32, 52)}
    strengths = [{"AU43L": 1.0, "AU43R": 1.0} if frame in shut else {} for frame in range(65)]
    strengths[57:61] = [{"AU43L": 1.0}] * 4
    pictures = [Image.fromarray(render_face(each, subject=4, seed=9, size=192, view=View(yaw=4))) for each in strengths]
    write_video(tmp_path / "a.mp4", pictures, rate=25)
    table = tmp_path / "aus.csv"
    words = [str(tmp_path / "a.mp4"), "--no-detect", "--prior", "rendered", "--derive", "blink", "--out", str(table)]
    assert recognize_au.run([*words, "--formats", "feafa"]) == 0
    assert "2 blinks in 3 s" in capsys.readouterr().out
    blinks = {int(row["frame"]) - 1 for row in csv.DictReader(table.open()) if row["AU45_c"] == "1"}
    assert blinks <= {*range(9, 15), *range(19, 26)}
    assert blinks >= {11, 12, 21, 22, 23}


def test_what_cannot_be_derived_is_refused():
    with pytest.raises(ValueError, match="blink needs a format with AU43, such as feafa"):
        check_derivable([get_format("disfa")], ["blink"])
    with pytest.raises(ValueError, match="arkit needs a continuous format, such as feafa"):
        check_derivable([get_format("emotionet")], ["blink", "arkit"])
    check_derivable(MAIN, ["blink", "openface", "arkit"])
    check_derivable([get_format("bp4d")], ["openface"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_tables_hold_derived_columns(suffix, tmp_path):
    path, faces = tmp_path / f"aus{suffix}", video("--##--")
    derived = Derived(faces, MAIN, ["blink", "arkit"])
    missing = {**dict.fromkeys(faces[0]), "file": "a.mp4", "frame": 7, "time": 0.2}
    with open_table(path, MAIN, derived=derived.columns) as write:
        for face in (*faces, missing):
            derived.add(face)
            write(face)
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["derived"]["AU45_c"] for row in rows[:-1]] == [0, 0, 1, 1, 0, 0]
        assert rows[2]["derived"]["eyeBlinkLeft"] == 0.9
        assert rows[2]["derived"]["tongueOut"] is None
        return
    table = pandas.read_csv(path) if suffix == ".csv" else pandas.read_parquet(path)
    assert [*table.columns[-53:]] == ["AU45_c", *ARKIT]
    assert table["AU45_c"].tolist()[:-1] == [0, 0, 1, 1, 0, 0]
    assert table["eyeBlinkRight"].tolist()[2] == 0.8
    assert table["tongueOut"].isna().all()
    assert table.iloc[-1].isna()["AU45_c"]


def test_the_command_writes_them(tiny_checkpoint, tmp_path, capsys):
    table = tmp_path / "aus.csv"
    picture = str(ROOT / "assets" / "faces" / "smile.png")
    words = [picture, "--no-detect", "--model", str(tiny_checkpoint), "--out", str(table)]
    assert recognize_au.run([*words, "--derive", "blink", "openface", "arkit"]) == 0
    [row] = csv.DictReader(table.open())
    assert row["AU45_c"] == ""
    assert 0 <= float(row["jawOpen"]) <= 1
    assert float(row["mouthSmileLeft"]) == float(row["AU12L"])
    assert recognize_au.run([*words, "--formats", "disfa", "--derive", "blink"]) == 1
    assert "--derive blink needs a format with AU43" in capsys.readouterr().err
