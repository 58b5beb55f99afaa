"""Photographs moved by known action units: where the skin goes, what is known of it, and what is left out."""

import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from au_llava import prepare_data
from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import finish_folder, record_features, shard_path, start_folder, write_shard
from au_llava.au_faces.landmarks import BLENDSHAPES, Measured
from au_llava.au_readers import moved
from au_llava.au_readers.faces import UNLABELLED_METADATA
from au_llava.au_readers.rendered import sample_records
from au_llava.au_rendering.rig import load_rig

SIDE, MARGIN = 134, 0.2
RIG = load_rig()


def measured(yaw=0.0, pitch=0.0, **blendshapes) -> Measured:
    """The mean face's landmarks in a crop of it, as far as they are looked at; blendshapes are 0 unless given."""
    landmarks = np.zeros((478, 2), np.float32)
    for (_, points), height in zip(moved.ANCHORS, moved.mean_heights((0, 0), SIDE, MARGIN), strict=True):
        landmarks[list(points)] = SIDE / 2, height
    values = np.zeros(len(BLENDSHAPES), np.float32)
    for name, value in blendshapes.items():
        values[BLENDSHAPES.index(name)] = value
    return Measured(values, landmarks, yaw, pitch, 0.0, np.eye(3))


def vertex_at(x, y) -> int:
    front = RIG.vertices_of("skin")
    front = front[RIG.mean[front, 2] > 0]
    return front[np.argmin(((RIG.mean[front, :2] - [x, y]) ** 2).sum(axis=1))]


def center_of_blob(image: Image.Image) -> np.ndarray:
    light = np.asarray(image, float)[..., 0] - 100
    light[light < 20] = 0
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()


@pytest.mark.parametrize(
    ("label", "place"), [("AU1", (0.2, 0.36)), ("AU2L", (0.7, 0.4)), ("AU4L", (0.5, 0.36)), ("AU12L", (0.4, -1.08))]
)
def test_skin_goes_where_the_rig_moves_it(label, place):
    """A light spot painted on the skin ends where the projected vertex under it does, to half a pixel."""
    vertex = vertex_at(*place)
    movement = RIG.offsets({label: 0.8})
    before, after = (moved.places(v, (0, 0), SIDE, MARGIN)[vertex] for v in (RIG.mean, RIG.mean + movement))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    spot = 100 + 150 * np.exp(-((columns - before[0]) ** 2 + (rows - before[1]) ** 2) / 8)
    image = Image.fromarray(np.repeat(spot[..., None], 3, axis=2).astype(np.uint8))
    went = center_of_blob(moved.move_face(image, measured(), MARGIN, {label: 0.8})) - center_of_blob(image)
    assert np.hypot(*(after - before)) > 1.5  # pixels: there is something to see
    assert went == pytest.approx(after - before, abs=0.7)


def test_nothing_moves_without_strength_and_one_side_alone_with_a_sided_one():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    still = np.asarray(moved.move_face(image, measured(), MARGIN, {"AU4L": 0.0}), int)
    assert np.abs(still - np.asarray(image)).max() <= 1
    changed = np.abs(np.asarray(moved.move_face(image, measured(), MARGIN, {"AU4L": 1.0}), int) - still).sum(
        axis=(0, 2)
    )
    assert changed[SIDE // 2 + 4 :].sum() > 20 * changed[: SIDE // 2 - 8].sum()  # the subject's left is on the right


def test_landmarks_out_of_order_give_no_picture():
    face = measured()
    face.landmarks[152] = face.landmarks[2] - [0, 20]  # the chin above the nose
    assert moved.move_face(Image.new("RGB", (SIDE, SIDE)), face, MARGIN, {"AU1": 1.0}) is None


def test_only_what_is_at_rest_counts_as_at_rest():
    assert moved.regions_at_rest(measured().blendshapes) == {"brows", "eyes", "mouth"}
    smile = measured(mouthSmileLeft=0.6, mouthSmileRight=0.6).blendshapes
    assert moved.regions_at_rest(smile) == {"brows"}
    assert moved.regions_at_rest(measured(browDownLeft=0.7, browDownRight=0.1).blendshapes) == {"eyes", "mouth"}


def test_known_values_are_shares_of_the_moved_regions_alone():
    weak = moved.known_values({"brows"}, {"AU4L": 0.5, "AU4R": 0.4})
    value = {name: dict(zip(FORMATS[name].labels, weak[name], strict=True)) for name in weak}
    assert (value["bp4d"]["AU4"], value["bp4d"]["AU1"], value["bp4d"]["AU2"]) == (1, 0, 0)
    assert value["disfa"]["AU4"] == pytest.approx(3 / 5)  # 5 * 0.5, half rounded up
    assert (value["feafa"]["AU4L"], value["feafa"]["AU4R"]) == (0.5, 0.4)
    for name, label in (("bp4d", "AU12"), ("disfa", "AU9"), ("feafa", "AU43L"), ("feafa", "AU12R")):
        assert math.isnan(value[name][label])
    both = moved.known_values({"brows", "mouth"}, {})
    assert both["disfa"][FORMATS["disfa"].labels.index("AU9")] == 0


def test_movements_are_of_the_regions_at_rest_and_as_frequent_as_the_table_says():
    rng = np.random.default_rng(0)
    draws = [moved.draw_strengths({"brows"}, rng) for _ in range(3000)]
    assert {label.rstrip("LR") for each in draws for label in each} == {"AU1", "AU2", "AU4"}
    assert all(moved.WEAKEST <= value <= 1 for each in draws for value in each.values())
    frowns = np.mean([bool({"AU4L", "AU4R"} & each.keys()) for each in draws])
    # AU4 alone and with AU1, less those where neither side came along
    assert frowns == pytest.approx(0.28 * (1 - moved.ONE_SIDED**2), abs=0.03)
    assert np.mean([not each for each in draws]) == pytest.approx(0.30, abs=0.03)
    mouths = [moved.draw_strengths({"mouth"}, rng) for _ in range(500)]
    assert not any({"AU6L", "AU6R", "AU9", "AU1"} & each.keys() for each in mouths)


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A folder of three faces without labels (the second not at rest, the third turned away), and its landmarker."""
    records = []
    for number, record in enumerate(sample_records(0, 0, 3, SIDE)[::3]):
        for name in ("bp4d", "disfa", "feafa"):
            unknown = [math.nan] * len(FORMATS[name].labels)
            fixed = {key: record[key] for key in ("image", "clip", "frame")}
            labels = {"dataset": "mine", "subject": f"face {number}", "format": name, "values": unknown}
            records.append({**fixed, **labels, "part": "train", "margin": MARGIN, "weak": unknown})
    folder = tmp_path / "faces"
    arguments = {"dataset": "mine"}
    start_folder(folder, arguments)
    write_shard(records, record_features(UNLABELLED_METADATA), shard_path(folder, "train", 0, 1))
    finish_folder(folder, arguments)
    answers = [measured(), measured(browInnerUp=0.9, mouthSmileLeft=0.9, mouthSmileRight=0.9), measured(yaw=40.0)]
    monkeypatch.setattr(moved, "landmarker", lambda: lambda image: answers.pop(0))
    monkeypatch.setattr(moved, "check_teacher", lambda teacher: None)
    return folder


def test_prepare_data_moves_faces_at_rest_and_counts_the_others(faces, tmp_path, capsys):
    out = tmp_path / "moved"
    assert prepare_data.run(["moved", "--root", str(faces), "--out", str(out), "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert "faces that are not at rest, left out: 1 (face 1 " in told
    assert "faces that are not seen from the front, left out: 1 (face 2 " in told
    rows = pq.read_table(next(out.glob("data-train-*.parquet"))).to_pylist()
    assert len(rows) == 2 * 3  # two pictures, three formats
    assert {(row["dataset"], row["subject"], row["part"]) for row in rows} == {("mine", "face 0", "train")}
    assert all(math.isnan(value) for row in rows for value in row["values"])
    assert any(value >= moved.WEAKEST for row in rows if row["format"] == "feafa" for value in row["weak"])
    sizes = {Image.open(io.BytesIO(row["image"]["bytes"])).size for row in rows}
    assert sizes == {(SIDE, SIDE)}
    assert {round(row["margin"], 3) for row in rows} == {MARGIN}


def test_labelled_records_are_not_moved(tmp_path, capsys):
    labelled = tmp_path / "rendered"
    words = ["rendered", "--subjects", "1", "--images-per-subject", "1", "--validation", "0", "--test", "0"]
    assert prepare_data.run([*words, "--workers", "1", "--out", str(labelled)]) == 0
    assert prepare_data.run(["moved", "--root", str(labelled), "--out", str(tmp_path / "moved")]) == 1
    assert "holds no faces without labels" in capsys.readouterr().err
