"""What is measured on photographs without labels, by hand and against scikit-learn and SciPy, on invented pictures."""

import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, load_tool, random_faces
from datasets import List, Value
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score
from test_intervals import drawn_images
from transformers import AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import finish_folder, load_records, record_features, shard_path, start_folder
from au_llava.au_datasets.records import write_shard as write_records
from au_llava.au_evaluation.intervals import mean_with_interval
from au_llava.au_evaluation.photographs import (
    Readings,
    columns_of,
    correlation,
    group_agreement,
    rank_auc,
    rank_correlation,
    read_crops,
)
from au_llava.au_runs.manifests import training_manifest, write_training_manifest

photographs = load_tool("photographs")
agreement = load_tool("agreement")


def start(benchmark, *words):
    """Run a benchmark in this process; errors are raised."""
    return benchmark.main(benchmark.make_parser().parse_args(list(map(str, words))))


NAN = math.nan
COLUMNS = columns_of(MAIN_FORMATS)


def readings_of(images: int, **numbers) -> Readings:
    """Nothing read, but for columns given as "disfa_AU12": (probabilities, which are the expected shares too)."""
    expected = np.zeros((images, len(COLUMNS)))
    for name, values in numbers.items():
        expected[:, COLUMNS.index(tuple(name.split("_")))] = values
    return Readings(COLUMNS, expected, expected, (expected >= 0.4).astype(float))


# ---- au_evaluation/photographs.py --------------------------------------------------------------------------------
def test_means_and_their_intervals_equal_a_bootstrap_by_loop():
    rng = np.random.default_rng(0)
    values = rng.random((30, 3))
    values[rng.random((30, 3)) < 0.2] = NAN
    values[:, 2] = NAN
    subjects = np.array([f"s{number}" for number in rng.integers(0, 6, 30)])
    means, bounds, mean, mean_bounds = mean_with_interval(values, subjects, resamples=50, level=0.9, seed=2)
    np.testing.assert_allclose(means[:2], np.nanmean(values[:, :2], axis=0))
    assert math.isnan(means[2])
    assert mean == pytest.approx(np.mean(means[:2]))
    drawn = np.array([np.nanmean(values[images][:, :2], axis=0) for images, _ in drawn_images(subjects, 50, seed=2)])
    np.testing.assert_allclose(bounds[:2], np.percentile(drawn, [5, 95], axis=0).T)
    np.testing.assert_allclose(mean_bounds, np.percentile(drawn.mean(axis=1), [5, 95]))


def test_auc_by_hand():
    numbers = np.array([[0.9], [0.4], [0.4], [0.1], [1.0]])
    positive = np.array([[1], [1], [0], [0], [NAN]])  # 3.5 of 4 pairs are in order, one of them a tie
    found = rank_auc(numbers, positive, list("aabbc"), ["AU12"])
    each = found["per_column"]["AU12"]
    assert each["value"] == found["mean"]["value"] == pytest.approx(3.5 / 4)
    assert (each["positives"], each["negatives"]) == (2, 2)


def test_ranks_and_correlations_are_those_of_the_libraries():
    rng = np.random.default_rng(1)
    others = rng.random((80, 2)).round(2)
    numbers = (others + rng.normal(0, 0.2, others.shape)).clip(0, 1)
    others[:20, 1] = NAN
    people, columns = list(range(80)), [("disfa", "AU12"), ("feafa", "AU12L")]
    pearson, spearman = (measure(numbers, others, people, columns) for measure in (correlation, rank_correlation))
    auc = rank_auc(numbers, np.where(np.isnan(others), NAN, others > 0.5), people, columns)
    for k, column in enumerate(columns):
        known = ~np.isnan(others[:, k])
        pair = numbers[known, k], others[known, k]
        assert pearson["per_column"][column]["value"] == pytest.approx(scipy.stats.pearsonr(*pair).statistic)
        assert spearman["per_column"][column]["value"] == pytest.approx(scipy.stats.spearmanr(*pair).statistic)
        assert auc["per_column"][column]["value"] == pytest.approx(roc_auc_score(pair[1] > 0.5, pair[0]))
        assert pearson["per_column"][column]["n"] == known.sum()
        low, high = spearman["per_column"][column]["interval"]
        assert low < spearman["per_column"][column]["value"] < high


def test_a_constant_has_no_correlation_and_one_class_no_auc():
    constant, rising = np.full((4, 1), 0.3), np.array([[0.1], [0.2], [0.3], [0.4]])
    assert math.isnan(correlation(constant, rising, list("abcd"), ["AU1"])["mean"]["value"])
    assert math.isnan(rank_auc(rising, np.ones((4, 1)), list("abcd"), ["AU1"])["mean"]["value"])


def test_of_two_sides_the_stronger_one_counts():
    read = readings_of(2, feafa_AU12L=[0.2, 0.5], feafa_AU12R=[0.3, 0.1], disfa_AU12=[0.7, 0.0])
    side = read.stronger_side("feafa", "AU12")
    assert side["expected"].tolist() == [0.3, 0.5]
    assert side["present"].tolist() == [0, 1]
    assert read.stronger_side("disfa", "AU12")["probability"].tolist() == [0.7, 0]
    with pytest.raises(ValueError, match="'bp4d' does not code AU25"):
        read.stronger_side("bp4d", "AU25")


def test_crops_are_read_as_shares_of_each_scale(tiny):
    model, processor = tiny
    faces = random_faces(3)
    read = read_crops(model, processor, faces, batch_size=2)
    assert read.columns == COLUMNS
    for row, result in enumerate(model.recognize(processor, faces)):
        for name, label in (("bp4d", "AU7"), ("disfa", "AU12"), ("feafa", "AU9")):
            reading, column = result[name][label], COLUMNS.index((name, label))
            top = FORMATS[name].value_numbers[-1]
            assert read.expected[row, column] == pytest.approx(reading.expected / top, abs=1e-5)
            assert read.probability[row, column] == pytest.approx(reading.probability, abs=1e-5)
            assert read.present[row, column] == reading.present


def test_groups_by_hand():
    """Group a: every strong face above every other; b: the other way round; c: too few clear ones."""
    classes = np.array([1.0] * 10 + [0.0] * 10 + [1.0] * 10 + [0.0] * 10 + [1.0, 0.0, NAN])
    probability = np.array([0.9] * 10 + [0.1] * 10 + [0.2] * 10 + [0.4] * 10 + [0.5] * 3)
    groups = {"race": ["a"] * 20 + ["b"] * 20 + ["c"] * 3, "age": [None] * 43}
    side = {"probability": probability, "present": (probability > 0.3).astype(float)}
    found = group_agreement(side, classes, groups, list(map(str, range(43))), "AU12")
    a, b = (found["columns"]["race"][group] for group in "ab")
    assert (a["n"], a["strong"], a["near_zero"]) == (20, 10, 10)
    assert (a["roc_auc"]["value"], b["roc_auc"]["value"]) == (1, 0)
    assert (a["present"]["value"], b["present"]["value"]) == (0.5, 0.5)
    assert a["bias"]["value"] == pytest.approx(0)
    assert b["bias"]["value"] == pytest.approx((0.2 - 1 + 0.4) / 2)
    assert found["too_small"] == {"race": {"c": 1}, "age": {}}
    assert found["gaps"]["race"]["roc_auc"]["groups"] == ["a", "b"]
    assert found["columns"]["age"] == {}


# ---- benchmarks/photographs.py ----------------------------------------------------------------------------------
def test_smile_scores_and_neutral_shares_by_hand():
    smiling, people = np.array([False, True] * 3), ["001", "001", "002", "002", "003", "003"]
    read = readings_of(6, disfa_AU12=[0.1, 0.9, 0.6, 0.5, 0.45, 0.2], feafa_AU12R=[0, 1, 0, 1, 0, 1])
    smile = photographs.smile_scores(read, smiling, people)
    # Pairs (smiling above neutral): .9 beats all three, .5 beats .1 and .45, .2 beats .1.
    assert smile["disfa"]["AU12"]["expected"]["value"] == pytest.approx(6 / 9)
    assert smile["disfa"]["AU12"]["found"]["value"] == pytest.approx(2 / 3)
    assert smile["feafa"]["AU12"]["probability"]["value"] == 1
    assert smile["disfa"]["AU6"]["expected"]["value"] == 0.5  # all ties
    assert {name: list(aus) for name, aus in smile.items()} == {
        "bp4d": ["AU12", "AU6"],
        "disfa": ["AU12", "AU6", "AU25"],
        "feafa": ["AU12"],
    }
    neutral = photographs.neutral_shares(read, smiling, people)
    aus = neutral["formats"]
    assert aus["disfa"]["AU12"]["half"]["value"] == pytest.approx(1 / 3)  # of .1, .6, .45
    assert aus["disfa"]["AU12"]["decided"]["value"] == pytest.approx(2 / 3)  # whose threshold is .4
    assert neutral["mean"]["decided"]["value"] == pytest.approx(2 / 3 / len(COLUMNS))
    assert aus["feafa"]["AU12R"]["decided"] == {"value": 0, "interval": [0, 0]}
    assert [(name, label) for name, label, _ in photographs.worst(neutral, 1)] == [("disfa", "AU12")]


@pytest.fixture
def london(tmp_path):
    """A made-up set of rendered faces: two whole people, one without a smile, one gray picture, one damaged."""
    root = tmp_path / "london"
    root.mkdir()
    for name, face in (("001_03", "rest"), ("001_08", "smile"), ("002_03", "frown"), ("002_08", "surprise")):
        Image.open(ROOT / "assets" / "faces" / f"{face}.png").convert("RGB").save(root / f"{name}.jpg")
    (root / "003_03.jpg").write_bytes((root / "001_03.jpg").read_bytes())
    Image.new("RGB", (200, 200), "gray").save(root / "004_03.jpg")
    (root / "004_08.jpg").write_bytes(b"no picture")
    return root


def test_the_whole_benchmark_counts_what_it_cannot_read(london, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "photographs.json"
    assert photographs.run(["--root", str(london), "--model", str(tiny_checkpoint), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    faces = found["faces"]
    assert (faces["people"], faces["pictures"], faces["neutral"], faces["smiling"]) == (4, 7, 3, 2)
    assert faces["incomplete"] == ["003"]
    assert faces["skipped"].keys() == {"004_03.jpg", "004_08.jpg"}
    assert faces["skipped"]["004_03.jpg"] == "shows no face"
    assert str(tmp_path) not in json.dumps(found["faces"])
    assert len(found["provenance"]["checkpoint"]["weights_sha256"]["model.safetensors"]) == 64
    assert found["neutral"]["formats"].keys() == set(MAIN_FORMATS)
    assert all(len(found["neutral"]["formats"][name]) == len(FORMATS[name].labels) for name in MAIN_FORMATS)
    shown = capsys.readouterr()
    assert "2 of 7 pictures were skipped." in shown.err
    assert "missing for 1 people: 003" in shown.err
    assert "this folder 4: not the published test" in shown.err


def test_smiling_faces_alone_are_refused(london, tiny):
    for path in london.glob("*_03.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match="faces to read in 0 neutral and 2 smiling"):
        photographs.measure(*tiny, london, mediapipe=False)


def test_an_empty_folder_is_no_london_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no pictures named like 001_03\.jpg"):
        start(photographs, "--root", tmp_path, "--out", tmp_path / "x.json")


def test_blendshapes_are_the_mean_of_both_sides(london, monkeypatch):
    """A stand-in for MediaPipe's landmarker that finds no face in one picture."""
    names = ("mouthSmileLeft", "mouthSmileRight", "cheekSquintLeft", "cheekSquintRight")
    numbers = {"001_03": (0.0, 0.4, 0, 0), "001_08": (0.1, 0.5, 0, 0), "002_03": (0.9, 0.0, 0, 0), "002_08": None}

    class Landmarker:
        def __call__(self, stem):
            return numbers[stem] and SimpleNamespace(blendshapes=np.array(numbers[stem]))

    stand_in = SimpleNamespace(Landmarker=Landmarker, BLENDSHAPES=names)
    monkeypatch.setitem(sys.modules, "au_llava.au_faces.landmarks", stand_in)
    monkeypatch.setattr(sys.modules["au_llava.au_faces"], "landmarks", stand_in, raising=False)
    found = photographs.blendshape_scores({london / f"{stem}.jpg": stem for stem in numbers})
    assert found["found"] == 3
    assert found["AU12"]["blendshape"] == "mouthSmile"
    assert found["AU12"]["value"] == 0.5  # .3 lies above .2 and below .45
    assert found["AU6"]["value"] == 0.5  # ties


# ---- benchmarks/agreement.py ------------------------------------------------------------------------------------
def test_the_crop_is_the_middle_of_what_is_stored():
    stored = np.random.default_rng(0).integers(0, 256, (36, 36, 3), np.uint8)  # a crop of 24 with a margin of 1/4
    image = Image.fromarray(stored)
    assert (np.asarray(agreement.crop(image, 0.25, 24)) == stored[6:30, 6:30]).all()
    moved = agreement.crop(image, 0.25, 24, shift=(1 / 24, -2 / 24))
    assert (np.asarray(moved) == stored[4:28, 7:31]).all()
    whole = agreement.crop(image, 0.25, 36, zoom=24 / 36)
    assert (np.asarray(whole) == stored).all()


def test_what_lies_beyond_a_picture_repeats_its_border():
    stored = np.zeros((20, 20, 3), np.uint8)
    stored[:, -1] = 200
    moved = np.asarray(agreement.crop(Image.fromarray(stored), 0, 20, shift=(0.25, 0)))
    assert (moved[:, -6:] == 200).all()
    assert (moved[:, :-6] == 0).all()


def test_a_turn_is_about_the_middle_and_keeps_the_border():
    stored = np.zeros((41, 41, 3), np.uint8)
    stored[20, 30] = 255  # right of the middle: turned by a quarter to the left it is above
    turned = np.asarray(agreement.crop(Image.fromarray(stored), 0, 41, rotation=90))
    assert turned[10, 20].tolist() == [255] * 3
    bright = agreement.crop(Image.new("RGB", (40, 40), "white"), 0, 40, rotation=5)
    assert np.asarray(bright).min() == 255


def weak_values(images: int, **numbers) -> np.ndarray:
    weak = np.full((images, len(COLUMNS)), NAN)
    for name, values in numbers.items():
        weak[:, COLUMNS.index(tuple(name.split("_")))] = values
    return weak


def stand_in(weak: np.ndarray, **more) -> SimpleNamespace:
    """Photographs that have no pictures."""
    believed = np.flatnonzero(~np.isnan(weak).all(axis=0)).tolist()
    subjects = [f"fairface:{number}" for number in range(len(weak))]
    named = {"weak": weak, "subjects": subjects, "columns": COLUMNS, "formats": MAIN_FORMATS, **more}
    return SimpleNamespace(believed=lambda: believed, **named)


def test_agreement_is_measured_where_the_teacher_is_believed():
    strong = np.linspace(0, 1, 41)  # 21 from one half on, 5 up to a tenth
    many = np.tile(strong, 3)
    faces = stand_in(weak_values(len(many), disfa_AU12=many, feafa_AU9=0.3))
    per_au, mean = agreement.agreement(faces, readings_of(len(many), disfa_AU12=1 - many**2, feafa_AU9=many))
    assert {name: list(aus) for name, aus in per_au.items()} == {"disfa": ["AU12"], "feafa": ["AU9"]}
    each = per_au["disfa"]["AU12"]
    assert each["spearman"]["value"] == pytest.approx(-1)
    assert each["roc_auc"]["value"] == 0
    assert (each["roc_auc"]["positives"], each["roc_auc"]["negatives"]) == (63, 15)
    assert each["pearson"]["value"] == pytest.approx(np.corrcoef(many, 1 - many**2)[0, 1])
    assert math.isnan(per_au["feafa"]["AU9"]["pearson"]["value"])  # the teacher says the same of all
    assert mean["pearson"]["value"] == each["pearson"]["value"]


def test_decisions_are_compared_where_the_teacher_is_clear():
    weak = np.r_[np.full(20, 0.5), np.full(10, 0.3), np.full(40, 0.1)]  # strong, between, near zero
    read = np.r_[np.full(15, 0.9), np.zeros(5), np.full(10, 0.9), np.full(4, 0.9), np.zeros(36)]
    faces = stand_in(weak_values(70, bp4d_AU12=weak))
    per_au, mean = agreement.agreement(faces, readings_of(70, bp4d_AU12=read))
    each = {key: result["value"] for key, result in per_au["bp4d"]["AU12"].items()}
    assert each["found_strong"] == pytest.approx(15 / 20)
    assert each["found_near_zero"] == pytest.approx(4 / 40)
    assert each["f1"] == pytest.approx(f1_score([1] * 20 + [0] * 40, np.r_[read[:20], read[30:]] >= 0.4))
    assert mean["f1"]["value"] == pytest.approx(each["f1"])


@pytest.mark.parametrize(("strong", "near_zero"), [(9, 50), (50, 9)])
def test_few_clear_faces_are_not_compared(strong, near_zero):
    weak = np.r_[np.full(strong, 0.9), np.zeros(near_zero)]
    per_au, mean = agreement.agreement(stand_in(weak_values(59, disfa_AU12=weak)), readings_of(59, disfa_AU12=weak))
    of_au = per_au["disfa"]["AU12"]
    found = {key: result["value"] for key, result in of_au.items()}
    assert math.isnan(found["roc_auc"])
    assert math.isnan(found["f1"])
    assert math.isnan(mean["roc_auc"]["value"])
    assert found["found_strong"] == pytest.approx(1 if strong == 50 else NAN, nan_ok=True)
    assert found["found_near_zero"] == pytest.approx(0 if near_zero == 50 else NAN, nan_ok=True)
    assert (of_au["found_strong"]["n"], of_au["found_near_zero"]["n"]) == (strong, near_zero)
    assert mean["pearson"]["value"] == pytest.approx(1)


def test_neutral_faces_are_those_whose_every_believed_au_is_near_zero():
    weak = weak_values(4, disfa_AU12=[0.1, 0.05, 0.0, NAN], disfa_AU25=[0.0, 0.2, NAN, NAN])  # the first and third
    found, mean = agreement.neutral(stand_in(weak), readings_of(4, disfa_AU4=[1, 1, 0, 1], disfa_AU1=[0, 1, 0, 1]))
    assert found["images"] == 2
    assert found["formats"]["disfa"]["AU4"]["present"]["value"] == 0.5
    assert found["formats"]["disfa"]["AU1"]["present"]["value"] == 0
    assert mean["value"] == pytest.approx(0.5 / len(COLUMNS))


def test_without_neutral_faces_nothing_is_said_of_them():
    found, mean = agreement.neutral(stand_in(weak_values(2, disfa_AU12=[0.3, NAN])), readings_of(2))
    assert found["images"] == 0
    assert math.isnan(mean["value"])


def half_brightness(crops) -> Readings:
    """Reads AU12L as the brightness of the picture's right half, where the person's left is, AU12R as the other's."""
    halves = np.array([[np.asarray(crop)[:, part].mean() / 255 for part in (slice(8, 16), slice(8))] for crop in crops])
    return readings_of(len(crops), feafa_AU12L=halves[:, 0], feafa_AU12R=halves[:, 1])


def test_sides_change_back_in_the_mirror_which_is_read_alone():
    stored = np.zeros((16, 16, 3), np.uint8)
    stored[:, 8:] = 204
    faces = stand_in(weak_values(1), images=[Image.fromarray(stored)], margins=[0.0], size=16)
    faces.crops = lambda change=agreement.plain: agreement.Photographs.crops(faces, change)
    model, asked = SimpleNamespace(config=SimpleNamespace(mirror_images=True)), {}

    def reading(crops, what):
        asked[what] = model.config.mirror_images
        return half_brightness(crops)

    changed = agreement.changes(faces, half_brightness(faces.crops()), model, reading)
    assert list(changed) == ["mirror image", "moved", "light", "half resolution"]
    assert changed["mirror image"][0].max() == 0
    assert changed["light"][0].max() > 0.05
    assert asked.pop("Reading plain crops alone") is asked.pop("Reading: mirror image") is False
    assert all(asked.values())
    assert model.config.mirror_images is True


def test_stability_by_hand():
    one, two = np.zeros((2, 48)), np.zeros((2, 48))
    one[:, 0], two[0, 0] = 0.2, 0.4
    nothing = np.zeros((2, 48))
    found, mean = agreement.stability({"a": (one, nothing), "b": (two, nothing + 1)}, stand_in(weak_values(2)))
    name, label = COLUMNS[0]
    assert found["a"]["formats"][name][label]["difference"]["value"] == pytest.approx(0.2)
    assert found["b"]["mean"]["difference"]["value"] == pytest.approx(0.2 / 48)
    assert found["b"]["mean"]["changed"]["value"] == 1
    assert mean["difference"]["value"] == pytest.approx(0.2 / 48)
    assert mean["changed"]["value"] == 0.5


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((48, 48)).save(file, "PNG")
    return file.getvalue()


def write_photographs(folder, images: int = 24, change=lambda row: row):
    """A folder of records of the validation part: noise with a margin of a quarter, AU12 believed at the disfa row."""
    features = record_features({"margin": Value("float32"), "weak": List(Value("float32")), "race": Value("string")})

    def rows():
        for number in range(images):
            for name in MAIN_FORMATS:
                weak = [(0.1, 0.5)[number % 2] if label == "AU12" else NAN for label in FORMATS[name].labels]
                key = {"dataset": "fairface", "subject": f"{number}.jpg", "clip": "0", "frame": 0, "format": name}
                values = [NAN] * len(weak)
                row = {**key, "image": {"bytes": picture(number), "path": None}, "values": values, "part": "validation"}
                yield change({**row, "margin": 0.25, "weak": weak, "race": "ab"[number % 3 > 1]})

    start_folder(folder, {})
    write_records(rows(), features, shard_path(folder, "validation", 0, 1))
    finish_folder(folder, {})
    return folder


def test_the_whole_comparison(tiny_checkpoint, tmp_path, capsys):
    def damage(row):
        return row | {"image": {"bytes": b"no picture", "path": None}} if row["subject"] == "3.jpg" else row

    data, out = write_photographs(tmp_path / "data", change=damage), tmp_path / "new" / "agreement.json"
    words = ["--data", str(data), "--model", str(tiny_checkpoint), "--groups", "race", "--out", str(out)]
    assert agreement.run(words) == 0
    found = json.loads(out.read_text())
    assert found["faces"]["images"] == found["faces"]["people"] == 23
    assert found["faces"]["skipped"].keys() == {"fairface:3.jpg"}
    assert found["provenance"]["data"] == {
        str(data): json.loads((data / "manifest.json").read_text())["content_sha256"]
    }
    assert found["summary"].keys() == set(agreement.SUMMARY)
    assert found["summary"]["roc_auc"]["value"] is not None
    assert found["agreement"].keys() == {"bp4d", "disfa"}
    assert found["neutral"]["images"] == 12
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    side = processor.image_processor.crop_size["height"]
    pictures = [Image.open(io.BytesIO(picture(number))) for number in range(24) if number != 3]
    crops = [agreement.crop(image, 0.25, side) for image in pictures]
    answers = model.recognize(processor, crops, formats=list(MAIN_FORMATS))
    for name in MAIN_FORMATS:
        for label, result in found["found"][name].items():
            share = np.mean([answer[name][label].present for answer in answers])
            assert result["present"]["value"] == pytest.approx(share)
    assert found["groups"]["AU12"]["too_small"]["race"].keys() == {"a", "b"}
    assert found["groups"]["AU25"]["columns"]["race"] == {}
    assert "1 of 24 pictures were skipped." in capsys.readouterr().err


def test_a_checkpoint_is_not_compared_on_faces_it_learned_from(tiny_checkpoint, tmp_path):
    data, model = write_photographs(tmp_path / "data", images=2), tmp_path / "model"
    model.mkdir()
    write_training_manifest(model, training_manifest(["fairface:1.jpg"], [], [], [], {}))
    with pytest.raises(ValueError, match="has seen 1 of these 2 people"):
        start(agreement, "--data", data, "--model", model, "--out", tmp_path / "x.json")


def test_groups_must_be_columns(tmp_path):
    data = write_photographs(tmp_path / "data", images=2)
    with pytest.raises(ValueError, match=r"no column mood to group by; the records have .*race"):
        start(agreement, "--data", data, "--groups", "mood", "--out", tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row | {"weak": row["weak"][:-1]}, "weak labels must be 48, .* not 45"),
        (lambda row: row | {"weak": [2.0] * len(row["weak"])}, "shares of the scale, 0 to 1"),
        (lambda row: row | {"weak": [NAN] * len(row["weak"])}, "trusted on no AU"),
        (lambda row: row | {"image": {"bytes": b"no picture", "path": None}}, "none of the 2 pictures"),
        (
            lambda row: row | {"frame": int(row["format"] == "feafa")},
            "not every image has a row in each",
        ),
    ],
)
def test_unfit_records_are_refused_in_one_sentence(tmp_path, change, problem):
    records = load_records(write_photographs(tmp_path / "data", images=2, change=change), labelled=False)
    with pytest.raises(ValueError, match=problem):
        agreement.Photographs(records, 32)


def test_labelled_records_have_no_weak_labels(rendered_records):
    with pytest.raises(ValueError, match="no column margin and weak"):
        agreement.Photographs(load_records(rendered_records), 32)
