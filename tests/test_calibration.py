"""Calibration: applied by hand-computed numbers, fitted on data whose answer is known, carried by the checkpoint."""

import json
import shutil

import numpy as np
import pytest
from conftest import build_tiny, random_faces
from sklearn.metrics import f1_score

from au_llava.action_units import FORMATS, AUFormat, parse_answer
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation import calibration as fit_calibration
from au_llava.au_evaluation.calibration import best_threshold, fit_format
from au_llava.au_evaluation.command import main
from au_llava.au_runs.manifests import training_manifest, write_training_manifest
from au_llava.calibration_au_llava import apply_entries, calibrate, check_calibration
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.readings_au_llava import slot_answers

NAN = float("nan")
INTENSITY = AUFormat("i", ("AU1", "AU2", "AU4"), "intensity")


def entry(fmt, **aus):
    return {
        "formats": {fmt.name: {"scale": fmt.scale, "presence_threshold": fmt.presence_threshold, "aus": aus}},
        "fitted_on": {},
    }


def test_applied_by_hand():
    read = np.array([[[0.5, 0.1, 0.2, 0.1, 0.1, 0.0]] * 3])  # P(presence) = P(2) + … = 0.4
    calibration = entry(
        INTENSITY,
        AU1={"method": "temperature", "temperature": 0.5, "threshold": 0.3},
        AU2={"method": "isotonic", "probability": [0.2, 0.6], "calibrated": [0.1, 0.3], "threshold": 0.25},
    )
    changed, thresholds = calibrate(read, INTENSITY, calibration)
    squares = np.array([0.25, 0.01, 0.04, 0.01, 0.01, 0])
    np.testing.assert_allclose(changed[0, 0], squares / squares.sum())  # exponent 1 / 0.5
    # The curve maps 0.4 to 0.2: present values shrink by half, the others grow from 0.6 to 0.8.
    np.testing.assert_allclose(changed[0, 1], [0.5 * 4 / 3, 0.1 * 4 / 3, 0.1, 0.05, 0.05, 0])
    np.testing.assert_allclose(changed[0, 2], read[0, 2])
    assert thresholds.tolist() == [0.3, 0.25, 0.5]
    assert read[0, 0, 0] == 0.5  # the input is left alone


def test_thresholds_written_as_whole_numbers_can_be_replaced_by_any():
    always = {"method": "none", "threshold": 0}
    calibration = entry(INTENSITY, AU1=always, AU2=always, AU4=always)
    read = {"i": np.array([[[0.7, 0.0, 0.3, 0.0, 0.0, 0.0]] * 3])}  # P(presence) = 0.3
    for threshold, present in ((None, True), (0.2, True), (0.4, False)):
        [[answer]] = slot_answers(read, (INTENSITY,), calibration, threshold)
        assert [reading.present for reading in answer.values()] == [present] * 3


def test_curves_are_those_of_numpy():
    """Below, on, between and above the points, at a step (two points at one probability), beside a shorter curve."""
    steps = {"probability": [0.1, 0.4, 0.4, 0.8], "calibrated": [0.05, 0.2, 0.6, 0.9]}
    short = {"probability": [0.2, 0.6], "calibrated": [0.1, 0.3]}
    masses = np.array([0.01, 0.1, 0.25, 0.4, 0.400001, 0.6, 0.8, 0.99])
    read = np.stack([1 - masses, masses], -1)[:, None].repeat(2, 1)
    changed = apply_entries(read, [steps, short], np.array([False, True]))
    for column, curve in enumerate((steps, short)):
        expected = np.interp(masses, curve["probability"], curve["calibrated"])
        np.testing.assert_allclose(changed[:, column, 1], expected, rtol=1e-12)
    np.testing.assert_allclose(changed.sum(-1), 1, rtol=1e-12)


def test_a_format_of_the_same_name_and_another_meaning_is_left_alone():
    read = np.full((1, 3, 6), 1 / 6)
    calibration = entry(INTENSITY, AU1={"method": "temperature", "temperature": 3.0, "threshold": 0.9})
    for other in (AUFormat("i", INTENSITY.labels, "intensity", 3.0), AUFormat("j", INTENSITY.labels, "intensity")):
        _, thresholds = calibrate(read, other, calibration)
        assert thresholds.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic", "threshold": 0.5}, "method is 'magic'"),
        ({"method": "none", "threshold": 1.5}, "threshold is 1.5"),
        ({"method": "none", "threshold": "0.5"}, "threshold is '0.5'; it is a probability"),
        ({"method": "none", "threshold": True}, "threshold is True; it is a probability"),
        ({"method": "none", "threshold": 0.5, "reject_below": "0.8"}, "reject_below is '0.8'; it is a probability"),
        ({"method": "temperature", "temperature": 0.0, "threshold": 0.5}, "must be a number above 0"),
        ({"method": "temperature", "temperature": "1.3", "threshold": 0.5}, "temperature is '1.3'; it must be"),
        ({"method": "temperature", "temperature": float("inf"), "threshold": 0.5}, "temperature is inf"),
        ({"method": "temperature", "temperature": 10**400, "threshold": 0.5}, "must be a number above 0"),
        ({"method": "isotonic", "probability": 0.5, "calibrated": [0.5], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": ["0"], "calibrated": [0.5], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [[0]], "calibrated": [[0.5]], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [0, 1], "calibrated": [0.9, 0.1], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [0, 1], "calibrated": [0.5, 1.1], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [0, 1], "calibrated": [0.5, NAN], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [0, 1], "calibrated": [0.5], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [], "calibrated": [], "threshold": 0.5}, "must rise"),
        ({"method": "isotonic", "probability": [0, 1], "threshold": 0.5}, "of i AU1 lacks calibrated: fit it"),
        ({"method": "temperature", "threshold": 0.5}, "of i AU1 lacks temperature: fit it"),
        ({"method": "none"}, "of i AU1 lacks threshold: fit it"),
        (None, "of i AU1 lacks method, threshold: fit it"),
    ],
)
def test_wrong_entries_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_calibration(entry(INTENSITY, AU1=values))
    with pytest.raises(ValueError, match=r"fit it with eval_au\.py"):
        check_calibration({"AU1": values})
    with pytest.raises(ValueError, match="calibration of i lacks scale, presence_threshold: fit it"):
        check_calibration({"formats": {"i": {"aus": {"AU1": values}}}})


def test_objects_and_numbers_of_another_type_are_refused():
    with pytest.raises(ValueError, match="calibration must be None or"):
        check_calibration({"formats": []})
    of_format = entry(INTENSITY, AU1={"method": "none", "threshold": 0.5})["formats"]["i"]
    with pytest.raises(ValueError, match=r"calibration of i: aus is \[\]; it must be \{label: entry\}"):
        check_calibration({"formats": {"i": {**of_format, "aus": []}}})
    with pytest.raises(ValueError, match="of i: presence_threshold is '2'; it must be a number"):  # or it is ignored
        check_calibration({"formats": {"i": {**of_format, "presence_threshold": "2"}}})


def simulate(temperature, images=4000, seed=0):
    """Labels drawn from distributions, and the distributions as a model whose logits are `temperature` times too big
    would report them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.2, (images, 1, 6))
    true = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = np.array([[rng.choice(6, p=row[0])] for row in true], dtype=float)
    read = np.exp(logits * temperature)
    subjects = [f"S{index % 40}" for index in range(images)]
    return read / read.sum(-1, keepdims=True), labels, subjects


@pytest.mark.parametrize("temperature", [0.6, 2.5])
def test_the_temperature_is_found(temperature):
    fmt = AUFormat("one", ("AU1",), "intensity")
    read, labels, subjects = simulate(temperature)
    labels[:50] = np.nan
    fit = fit_format(read, labels, subjects, fmt)
    found = fit["entry"]["aus"]["AU1"]
    assert found["method"] == "temperature"
    assert found["temperature"] == pytest.approx(temperature, rel=0.06)
    assert np.isnan(fit["before"][:50]).all()
    assert np.isnan(fit["after"][:50]).all()
    truth = labels[50:] >= 2

    def error(probability):
        bins = np.minimum((probability * 15).astype(int), 14)
        return sum(abs(probability[bins == b].sum() - truth[bins == b].sum()) for b in range(15)) / len(truth)

    assert error(fit["after"][50:]) < 0.6 * error(fit["before"][50:])


def test_a_bent_curve_needs_isotonic_and_a_calibrated_model_nothing():
    fmt = AUFormat("one", ("AU1",), "occurrence")
    rng = np.random.default_rng(1)
    true = rng.random(6000)
    labels = (rng.random(6000) < true).astype(float)[:, None]
    subjects = [f"S{index % 30}" for index in range(6000)]
    straight = fit_format(np.stack([1 - true, true], -1)[:, None], labels, subjects, fmt)
    assert straight["entry"]["aus"]["AU1"]["method"] == "none"
    bent = np.where(true < 0.5, 0.02 + 0.1 * true, 0.3 + 0.4 * true)
    fit = fit_format(np.stack([1 - bent, bent], -1)[:, None], labels, subjects, fmt)
    assert fit["entry"]["aus"]["AU1"]["method"] == "isotonic"
    assert np.abs(fit["after"][:, 0] - true).mean() < 0.06
    assert len(fit["entry"]["aus"]["AU1"]["probability"]) <= fit_calibration.KNOTS


def test_no_subject_calibrates_itself(monkeypatch):
    """A subject's `after` does not change with that subject's own labels."""
    fmt = AUFormat("one", ("AU1",), "intensity")
    read, labels, subjects = simulate(2.0, images=400)
    first = fit_format(read, labels, subjects, fmt)["after"]
    own = np.array(subjects) == "S7"
    labels[own] = 5 - labels[own]
    second = fit_format(read, labels, subjects, fmt)["after"]
    np.testing.assert_array_equal(first[own], second[own])


def test_rare_aus_and_few_subjects():
    fmt = AUFormat("one", ("AU1",), "intensity")
    read, labels, subjects = simulate(2.0, images=300)
    rare = fit_format(read, np.where(labels >= 2, 0, labels), subjects, fmt)
    assert rare["entry"]["aus"]["AU1"] == {"method": "none", "threshold": 0.5}
    with pytest.raises(ValueError, match="too few to calibrate"):
        fit_format(read, labels, ["S1"] * 300, fmt)


def test_an_au_that_few_of_the_people_are_coded_for():
    """As where data sets with different AUs are joined: fewer people than folds leave it as it is, more do not."""
    fmt = AUFormat("one", ("AU1",), "intensity")
    read, labels, subjects = simulate(2.5)
    who = np.array(subjects)
    one = fit_format(read, np.where((who == "S7")[:, None], labels, np.nan), subjects, fmt)
    assert one["entry"]["aus"]["AU1"] == {"method": "none", "threshold": 0.5}
    coded = np.isin(who, [f"S{number}" for number in range(8)])
    among = fit_format(read, np.where(coded[:, None], labels, np.nan), subjects, fmt)
    alone = fit_format(read[coded], labels[coded], who[coded], fmt)
    assert among["entry"] == alone["entry"]
    np.testing.assert_array_equal(among["after"][coded], alone["after"])


def test_best_threshold_is_the_best():
    rng = np.random.default_rng(0)
    probabilities = rng.random(200).round(2)
    truth = rng.random(200) < probabilities**2
    found = best_threshold(probabilities, truth)
    best = max(f1_score(truth, probabilities >= each) for each in np.linspace(0, 1, 401))
    assert f1_score(truth, probabilities >= found) == pytest.approx(best)


def test_recognize_applies_it_to_slots_only():
    model, processor = build_tiny()
    fmt = FORMATS["bp4d"]
    faces = random_faces(2)
    plain = model.recognize(processor, faces, formats=["bp4d"])
    constrained = model.recognize(processor, faces, formats=["bp4d"], decoding="constrained")
    model.config.calibration = entry(
        fmt,
        AU1={"method": "temperature", "temperature": 2.0, "threshold": 0.001},
        AU2={"method": "none", "threshold": 0.999},
    )
    for before, after in zip(plain, model.recognize(processor, faces, formats=["bp4d"]), strict=True):
        before, after = before["bp4d"], after["bp4d"]
        odds = before["AU1"].probability / (1 - before["AU1"].probability)
        assert after["AU1"].probability == pytest.approx(odds**0.5 / (1 + odds**0.5), abs=1e-5)
        assert (after["AU1"].value, after["AU1"].present) == (1, True)
        assert (after["AU2"].value, after["AU2"].present) == (0, False)
        assert after["AU2"].probability == pytest.approx(before["AU2"].probability)
        assert parse_answer(after.text, fmt).values == {label: reading.value for label, reading in after.items()}
    again = model.recognize(processor, faces, formats=["bp4d"], decoding="constrained")
    assert [answers["bp4d"].text for answers in again] == [answers["bp4d"].text for answers in constrained]


def run(checkpoint, *flags):
    return main([str(flag) for flag in ("--model", checkpoint, *flags)])


def test_command_stores_it_in_the_checkpoint(tiny_checkpoint, rendered_records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_calibration, "FEWEST", 1)
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    before = json.loads((checkpoint / "config.json").read_text())
    run(checkpoint, "--calibrate", rendered_records, "--part", "train", "--out", tmp_path / "out")
    assert "log loss" in capsys.readouterr().out
    after = json.loads((checkpoint / "config.json").read_text())
    calibration = after.pop("calibration")
    before.pop("calibration", None)
    assert after == before
    assert after["mirror_images"] is False
    assert calibration["fitted_on"]["subjects"] == 5
    assert calibration["fitted_on"]["images"] == 10
    manifest = json.loads((rendered_records / "manifest.json").read_text())
    assert calibration["fitted_on"]["data"] == {str(rendered_records): manifest["content_sha256"]}
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())["formats"]
    assert set(report["feafa"]["per_au"]) == set(FORMATS["feafa"].labels)
    assert {"ece_before", "ece_after", "log_loss_before", "brier_after"} <= set(report["feafa"]["all"])
    assert (tmp_path / "out" / "reliability.png").stat().st_size > 5000

    config = AuLlavaConfig.from_pretrained(checkpoint)
    assert config.calibration == calibration
    config.save_pretrained(tmp_path / "again")
    assert AuLlavaConfig.from_pretrained(tmp_path / "again").calibration == calibration

    flags = ("--data", rendered_records, "--formats", "feafa", "--out")
    run(checkpoint, *flags, tmp_path / "calibrated")
    run(checkpoint, *flags, tmp_path / "raw", "--uncalibrated")
    run(tiny_checkpoint, *flags, tmp_path / "original")
    scores = [json.loads((tmp_path / each / "results.json").read_text()) for each in ("calibrated", "raw", "original")]
    assert scores[1]["formats"] == scores[2]["formats"] != scores[0]["formats"]
    assert [bool(each["calibration"]) for each in scores] == [True, False, False]
    assert "abstention" in scores[0]["formats"]["feafa"]


def test_calibrating_mirrored_readings(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    """The checkpoint reads as it was calibrated, until it is told otherwise."""
    monkeypatch.setattr(fit_calibration, "FEWEST", 1)
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    flags = ("--calibrate", rendered_records, "--part", "train", "--out", tmp_path / "out")
    found = {}
    for flag, stored in (("", False), ("--mirror", True), ("", True), ("--no-mirror", False)):
        run(checkpoint, *flags, *filter(None, [flag]))
        config = AuLlavaConfig.from_pretrained(checkpoint)
        assert config.mirror_images is stored
        found.setdefault(stored, []).append(config.calibration)
    assert found[True][0] == found[True][1] != found[False][0] == found[False][1]


def test_nobody_is_calibrated_on_who_was_trained_on(tiny_checkpoint, rendered_records, tmp_path):
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    people = people_of(load_records(rendered_records, part="train"))
    write_training_manifest(checkpoint, training_manifest(people, [], [], ["bp4d"], {}))
    with pytest.raises(ValueError, match=r"has seen 5 of these 5 people in its train part.* calibrate on others"):
        run(checkpoint, "--calibrate", rendered_records, "--part", "train", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calibrate", "x", "--groups", "age"], "--groups has no effect with eval_au.py calibrate"),
        (["--calibrate", "x", "--decoding", "free"], "--decoding has no effect with eval_au.py calibrate"),
        (["--data", "x", "--name", "Mine"], "--name has no effect without eval_au.py protocol"),
        (["--data", "x", "--no-mirror"], "--mirror has no effect without eval_au.py calibrate"),
        (
            ["--data", "x", "--protocol", "bp4d-3fold", "--part", "test"],
            "--part has no effect with eval_au.py protocol",
        ),
    ],
)
def test_flags_without_effect_are_refused(tiny_checkpoint, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(tiny_checkpoint, *flags, "--out", tmp_path)


def test_a_hub_id_cannot_be_calibrated(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint)
    with pytest.raises(ValueError, match="are needed"):
        run(".", "--calibrate", rendered_records, "--out", tmp_path)  # two validation subjects
    with pytest.raises(ValueError, match=r"no folder that holds one"):
        run("somebody/model", "--calibrate", rendered_records, "--out", tmp_path)
