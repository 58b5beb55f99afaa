"""The prior of photographs: estimated by hand-computed and brute-force likelihood, applied, stored and chosen."""

import io
import json
import shutil

import datasets
import numpy as np
import pytest
from conftest import build_tiny, random_faces
from PIL import Image

from au_llava.action_units import FORMATS, AUFormat
from au_llava.au_datasets.records import (
    finish_folder,
    load_records,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)
from au_llava.au_evaluation import calibration as fit_calibration
from au_llava.au_evaluation import priors
from au_llava.au_evaluation.command import main
from au_llava.au_evaluation.predictions import predict, use_prior, without_margin
from au_llava.au_evaluation.priors import LEAST_ODDS, coded_shift, estimate_prior, fit_photographs
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.engines import TorchEngine
from au_llava.au_runs.manifests import check_unseen
from au_llava.calibration_au_llava import apply_entries, calibrate, check_calibration, entries_for, with_prior
from au_llava.configuration_au_llava import AuLlavaConfig

OCCURRENCE = AUFormat("o", ("AU1",), "occurrence")
INTENSITY = AUFormat("i", ("AU1", "AU2"), "intensity")


def calibration(fmt, prior="photographs", **aus):
    of_format = {"scale": fmt.scale, "presence_threshold": fmt.presence_threshold, "aus": aus}
    return {"formats": {fmt.name: of_format}, "fitted_on": {}, "prior": prior}


def readings(rate, faces, seed=0, prior=0.4, offset=0.0):
    """Probabilities of presence, right where the prior is `prior`, of faces where a share `rate` shows the AU: log
    odds are normal, 2 on either side of 0, with variance 4 (so that the density ratio is the odds)."""
    rng = np.random.default_rng(seed)
    present = rng.random(faces) < rate
    odds = rng.normal(np.where(present, 2, -2), 2) + np.log(prior / (1 - prior)) + offset
    return 1 / (1 + np.exp(-odds))


def test_by_hand():
    """Three of ten read 0.9, the others 0.1: the derivative 0.3 * 1.6 / (0.2 + 1.6 q) = 0.7 * 1.6 / (1.8 - 1.6 q)."""
    assert estimate_prior(np.array([0.9] * 3 + [0.1] * 7), 0.5) == pytest.approx(0.25)
    # With a prior of 0.2 the densities are 4.5 and 0.5 against 0.125 and 1.125: q = (3.25 / 8 - 0.625) / … < 0.
    assert estimate_prior(np.array([0.9] * 1 + [0.1] * 99), 0.2) == 0
    assert estimate_prior(np.array([0.9] * 99 + [0.1] * 1), 0.2) == 1


@pytest.mark.parametrize(("rate", "prior"), [(0.03, 0.4), (0.2, 0.5), (0.7, 0.3)])
def test_it_is_where_expectation_maximisation_ends_and_the_rate_that_was_drawn(rate, prior):
    probabilities = readings(rate, 4000, prior=prior)
    q = prior
    for _ in range(3000):  # equations 2.9 of Saerens et al.
        present = q / prior * probabilities
        q = np.mean(present / (present + (1 - q) / (1 - prior) * (1 - probabilities)))
    found = estimate_prior(probabilities, prior)
    assert found == pytest.approx(q, abs=1e-5)
    assert found == pytest.approx(rate, abs=0.02)


def test_where_label_shift_does_not_hold_the_estimate_errs_and_the_bounds_keep_it():
    """Faces without the AU that read higher look like more AUs; ones that read lower like none."""
    prior, rate = 0.4, 0.2
    assert estimate_prior(readings(rate, 4000, offset=1), prior) > rate + 0.05
    assert estimate_prior(readings(0.02, 4000, offset=-2), prior) == 0
    for offset, shift in ((3.0, 0.0), (-3.0, np.log(LEAST_ODDS))):
        entry = calibration(OCCURRENCE, AU1={"method": "none", "threshold": 0.3})["formats"]["o"]
        labelled, unlabelled = (
            np.stack([1 - each, each], -1)[:, None]
            for each in (readings(prior, 4000), readings(0.3, 4000, 1, offset=offset))
        )
        found = fit_photographs(entry, labelled, unlabelled, OCCURRENCE)["AU1"]
        assert found["shift"] == entry["aus"]["AU1"]["photographs"]["shift"] == pytest.approx(shift, abs=1e-4)
        odds = lambda each: each / (1 - each)
        assert odds(found["used"]) == pytest.approx(odds(found["labelled"]) * np.exp(shift), rel=1e-3)


def test_the_same_faces_give_no_shift_and_thresholds_are_one_half_at_least():
    rng = np.random.default_rng(0)
    read = rng.dirichlet(np.ones(6), (500, 2))
    entry = calibration(
        INTENSITY,
        AU1={"method": "temperature", "temperature": 1.5, "threshold": 0.2},
        AU2={"method": "none", "threshold": 0.7},
    )["formats"]["i"]
    found = fit_photographs(entry, read, read[::-1], INTENSITY)
    for label, threshold in (("AU1", 0.5), ("AU2", 0.7)):
        assert entry["aus"][label]["photographs"] == {"shift": 0, "threshold": threshold}
        assert found[label]["estimated"] == pytest.approx(found[label]["labelled"], abs=1e-6)


def test_the_shift_corrects_what_the_prior_has_got_wrong():
    """Fitted on faces of another rate, probabilities come true on them: their sum is the number of AUs."""
    labelled, unlabelled = (
        np.stack([1 - each, each], -1)[:, None] for each in (readings(0.4, 4000), readings(0.2, 4000, 1))
    )
    entry = calibration(OCCURRENCE, AU1={"method": "none", "threshold": 0.5})
    fit_photographs(entry["formats"]["o"], labelled, unlabelled, OCCURRENCE)
    shifted, _ = calibrate(unlabelled, OCCURRENCE, entry)
    assert unlabelled[..., 1].mean() > 0.23
    assert shifted[..., 1].mean() == pytest.approx(0.2, abs=0.02)


def test_faces_that_read_alike_tell_nothing():
    """One AU of them keeps its prior (its isotonic curve may be flat); if all do, something is wrong with the faces."""
    rng = np.random.default_rng(0)
    read, alike = rng.dirichlet(np.ones(6), (200, 2)), np.full((200, 2, 6), 1 / 6)
    entry = {"method": "none", "threshold": 0.5}
    of_format = calibration(INTENSITY, AU1=dict(entry), AU2=dict(entry))["formats"]["i"]
    half = np.stack([alike[:, 0], read[:, 1] ** 9 / (read[:, 1] ** 9).sum(-1, keepdims=True)], 1)
    found = fit_photographs(of_format, read, half, INTENSITY)
    assert np.isnan(found["AU1"]["estimated"])
    assert found["AU1"]["used"] == pytest.approx(found["AU1"]["labelled"])
    assert of_format["aus"]["AU1"]["photographs"]["shift"] == 0
    assert not np.isnan(found["AU2"]["estimated"])
    with pytest.raises(ValueError, match="all unlabeled faces read alike in i"):
        fit_photographs(of_format, read, alike, INTENSITY)


def test_codes_say_how_many_show_the_au():
    """The shift that codes ask for, found by search; threefold odds are the limit."""
    read, shifts = readings(0.3, 400), np.linspace(-1, 1, 20_001)
    odds = np.log(read / (1 - read))
    for share in (0.25, 0.35):
        means = np.array([(1 / (1 + np.exp(-odds - shift))).mean() for shift in shifts])
        assert coded_shift(read, share) == pytest.approx(shifts[np.abs(means - share).argmin()], abs=2e-4)
    assert coded_shift(read, 0.0) == pytest.approx(np.log(LEAST_ODDS))
    assert coded_shift(read, 1.0) == pytest.approx(-np.log(LEAST_ODDS))


def test_applied_by_hand():
    read = np.array([[[0.5, 0.1, 0.2, 0.1, 0.1, 0.0], [0, 0, 0, 0, 0, 1.0]]])  # P(presence) = P(2) + … = 0.4
    entry = {"method": "none", "threshold": 0.3, "photographs": {"shift": float(np.log(0.5)), "threshold": 0.6}}
    shipped = calibration(INTENSITY, AU1=entry, AU2=entry)
    changed, thresholds = calibrate(read, INTENSITY, shipped)
    np.testing.assert_allclose(changed[0, 0], np.array([0.5, 0.1, 0.1, 0.05, 0.05, 0]) / 0.8)
    np.testing.assert_allclose(changed[0, 1], read[0, 1])  # certain before, certain after
    assert thresholds.tolist() == [0.6, 0.6]
    for other in (with_prior(shipped, "rendered"), {key: shipped[key] for key in ("formats", "fitted_on")}):
        unchanged, thresholds = calibrate(read, INTENSITY, other)
        np.testing.assert_allclose(unchanged, read, rtol=1e-12)
        assert thresholds.tolist() == [0.3, 0.3]
        assert "shift" not in entries_for(other, INTENSITY)["AU1"]
    before = apply_entries(read, [{"shift": 1.3}] * 2, np.arange(6) >= 2)[0, 0]
    assert np.log(before[2:].sum() / before[:2].sum()) == pytest.approx(np.log(0.4 / 0.6) + 1.3)


@pytest.mark.parametrize(
    ("prior", "photographs", "message"),
    [
        ("life", {"shift": -1.0, "threshold": 0.5}, "prior is 'life'; it must be one of photographs, rendered"),
        ("rendered", None, "photographs is None; with a prior it must be"),
        ("photographs", {"shift": -1.0}, "with a prior it must be"),
        ("photographs", {"shift": float("nan"), "threshold": 0.5}, "shift is nan; it is a difference of log-odds"),
        ("photographs", {"shift": "-1", "threshold": 0.5}, "shift is '-1'; it is a difference of log-odds"),
        ("photographs", {"shift": -1.0, "threshold": "0.5"}, "threshold on photographs is '0.5'; it is a probability"),
        ("photographs", {"shift": -1.0, "threshold": 2}, "threshold on photographs is 2"),
    ],
)
def test_wrong_entries_are_refused(prior, photographs, message):
    entry = {"method": "none", "threshold": 0.5, **({} if photographs is None else {"photographs": photographs})}
    with pytest.raises(ValueError, match=message):
        check_calibration(calibration(OCCURRENCE, prior, AU1=entry))


def test_a_checkpoint_without_photographs_reads_as_before_or_says_so():
    old = calibration(OCCURRENCE, AU1={"method": "none", "threshold": 0.3})
    del old["prior"]
    check_calibration(old)
    assert with_prior(old, "rendered") is old
    assert with_prior(None, "rendered") is None
    for each in (None, old):
        with pytest.raises(ValueError, match="no prior of photographs"):
            with_prior(each, "photographs")
    with pytest.raises(ValueError, match="prior is 'posed'"):
        with_prior(old, "posed")


def test_recognize_reads_with_the_prior_of_the_checkpoint():
    model, processor = build_tiny()
    faces, fmt = random_faces(2), FORMATS["bp4d"]
    plain = model.recognize(processor, faces, formats=["bp4d"])
    entry = {"method": "none", "threshold": 0.4, "photographs": {"shift": -1.0, "threshold": 0.5}}
    model.config.calibration = calibration(fmt, **dict.fromkeys(fmt.labels, entry))
    for before, after in zip(plain, model.recognize(processor, faces, formats=["bp4d"]), strict=True):
        for label, reading in after["bp4d"].items():
            odds = before["bp4d"][label].probability / (1 - before["bp4d"][label].probability) * np.exp(-1)
            assert reading.probability == pytest.approx(odds / (1 + odds), abs=1e-6)
            assert reading.present == (odds >= 1)
    model.config.calibration = with_prior(model.config.calibration, "rendered")
    again = model.recognize(processor, faces, formats=["bp4d"])
    assert [each["bp4d"]["AU1"].probability for each in again] == [each["bp4d"]["AU1"].probability for each in plain]


@pytest.mark.parametrize(
    ("kinds", "asked", "used"),
    [
        (["rendered"], None, "rendered"),
        (["fairface"], None, "photographs"),
        (["rendered", "disfa"], None, "photographs"),
        (["rendered"], "photographs", "photographs"),
        (["fairface"], "rendered", "rendered"),
    ],
)
def test_rendered_faces_are_scored_as_rendered_faces(kinds, asked, used):
    engine = TorchEngine(*build_tiny())
    entry = {"method": "none", "threshold": 0.4, "photographs": {"shift": -1.0, "threshold": 0.5}}
    engine.calibration = calibration(OCCURRENCE, AU1=entry)
    use_prior(engine, datasets.Dataset.from_dict({"dataset": kinds}), asked)
    assert engine.model.config.calibration["prior"] == used


def test_the_margin_of_a_stored_crop_is_cut_off():
    pixels = np.zeros((134, 134, 3), np.uint8)
    pixels[19:115, 19:115] = 255  # 96 + 2 * 0.2 * 96 = 134.4
    found = without_margin(Image.fromarray(pixels), 0.2)
    assert found.size == (96, 96)
    assert np.asarray(found).min() == 255
    whole = Image.fromarray(pixels)
    assert without_margin(whole, 0.0) is whole


def write_photographs(folder, rendered_records, weak=None):
    """Unlabelled records: the training images of `rendered_records` with a black margin around them.

    Args:
        weak: (label of an AU) -> its weak value; None for records without a column of them.
    """
    start_folder(folder, {})
    metadata = {"margin": datasets.Value("float32")}
    if weak:
        metadata["weak"] = datasets.List(datasets.Value("float32"))
    rows = []
    for record in load_records(rendered_records, part="train"):
        whole = Image.new("RGB", (64, 64))
        whole.paste(record["image"], (16, 16))
        whole.save(content := io.BytesIO(), "PNG")
        values = [float("nan")] * len(record["values"])
        fixed = {"dataset": "photos", "subject": f"P{record['subject']}", "values": values, "margin": 0.5}
        if weak:
            fixed["weak"] = list(map(weak, FORMATS[record["format"]].labels))
        kept = {key: record[key] for key in ("clip", "frame", "format", "part")}
        rows.append({"image": {"bytes": content.getvalue(), "path": None}, **kept, **fixed})
    write_shard(rows, record_features(metadata), shard_path(folder, "train", 0, 1))
    finish_folder(folder, {})
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, rendered_records):
    return write_photographs(tmp_path_factory.mktemp("records") / "photographs", rendered_records)


def run(checkpoint, *flags):
    return main([str(flag) for flag in ("--model", checkpoint, *flags)])


def test_command_stores_the_prior_and_scores_rendered_people_without_it(
    tiny_checkpoint, rendered_records, photographs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fit_calibration, "FEWEST", 1)
    monkeypatch.setattr(fit_calibration, "FEWEST_UNLABELED", 10)
    plain, checkpoint = tmp_path / "plain", tmp_path / "model"
    flags = ("--calibrate", rendered_records, "--part", "train", "--out", tmp_path / "out")
    for folder, more in ((plain, ()), (checkpoint, ("--unlabelled", photographs))):
        shutil.copytree(tiny_checkpoint, folder)
        run(folder, *flags, *more)
    assert "estimated" in capsys.readouterr().out
    with_it, without = (AuLlavaConfig.from_pretrained(folder).calibration for folder in (checkpoint, plain))
    assert with_it["prior"] == "photographs"
    assert with_it["fitted_on"]["unlabelled"]["images"] == 10
    # The photographs are the people calibrated on, so that nothing shifts.
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())["priors"]
    for name, of_format in with_it["formats"].items():
        for label, entry in of_format["aus"].items():
            assert entry["photographs"]["shift"] == pytest.approx(0, abs=1e-3)
            if report[name][label]["estimated"] is not None:  # a flat curve reads all faces alike
                assert report[name][label]["estimated"] == pytest.approx(report[name][label]["labelled"], abs=1e-3)
            del entry["photographs"]
    assert with_it["formats"] == without["formats"]
    with pytest.raises(ValueError, match="in its calibration part"):
        check_unseen(str(checkpoint), ["photos:PR0-000000", *(f"photos:PR0-{each:06d}" for each in range(10))])

    scores = {}
    for name, folder, more in (
        ("plain", plain, ()),
        ("rendered", checkpoint, ()),
        ("photographs", checkpoint, ("--prior", "photographs")),
    ):
        run(folder, "--data", rendered_records, "--formats", "feafa", "--out", tmp_path / name, *more)
        scores[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert scores["rendered"]["formats"] == scores["plain"]["formats"] != scores["photographs"]["formats"]
    assert [each["provenance"]["prior"] for each in scores.values()] == [None, "rendered", "photographs"]


def test_command_stores_the_prior_that_codes_tell(
    tiny_checkpoint, rendered_records, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr(fit_calibration, "FEWEST", 1)
    for module in (fit_calibration, priors):
        monkeypatch.setattr(module, "FEWEST_UNLABELED", 10)
    levels = {"AU12": 1.0, "AU12L": 0.3, "AU4": 0.0, "AU6": 0.5, "AU15": 0.4}
    coded = write_photographs(tmp_path / "coded", rendered_records, lambda label: levels.get(label, float("nan")))
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, checkpoint)
    flags = ("--calibrate", rendered_records, "--part", "train", "--out", tmp_path / "out")
    for more, message in (
        (("--coded", coded), "--coded needs --unlabelled too, for the AUs that are not coded"),
        (
            ("--coded", photographs, "--unlabelled", photographs),
            "photographs holds no codes: make it with prepare_data.py fairface --codes CSV",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(checkpoint, *flags, *more)
    run(checkpoint, *flags, "--unlabelled", photographs, "--coded", coded)
    stored = AuLlavaConfig.from_pretrained(checkpoint).calibration
    assert stored["prior"] == "photographs"
    assert [stored["fitted_on"][kind]["images"] for kind in ("coded", "unlabelled")] == [10, 10]
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())["priors"]
    limit = -np.log(LEAST_ODDS)
    for name, of_format in stored["formats"].items():
        for label, entry in of_format["aus"].items():
            # 0.6 of the scale is certain and 0.3 as likely present as not; an occurrence scale has probabilities
            told = {"AU12": 1.0, "AU12L": 0.3 / 0.6, "AU4": 0.0, "AU6": 0.5 / 0.6, "AU15": 0.4 / 0.6}.get(label)
            if name == "bp4d":
                told = levels.get(label)
            shift = entry["photographs"]["shift"]
            assert report[name][label]["coded"] == (told is not None)
            if told is None:  # the photographs are the people calibrated on, so that nothing shifts
                assert shift == pytest.approx(0, abs=1e-3)
                continue
            assert report[name][label]["estimated"] == pytest.approx(told, abs=1e-6)
            if told in (0, 1):
                assert shift == pytest.approx(limit if told else -limit, abs=1e-4)
    with pytest.raises(ValueError, match="in its calibration part"):
        check_unseen(str(checkpoint), [f"photos:PR0-{each:06d}" for each in range(10)])


def test_labels_of_unlabelled_faces_and_margins_are_not_looked_at(tiny_checkpoint, rendered_records, photographs):
    """A stored margin is not read, whatever is in it."""
    engine = TorchEngine(*load_checkpoint(str(tiny_checkpoint)))
    of_photographs, of_rendered = (
        predict(engine, load_records(folder, part="train", labelled=False), batch_size=32)
        for folder in (photographs, rendered_records)
    )
    for one, other in zip(of_photographs, of_rendered, strict=True):
        np.testing.assert_allclose(one["probability"], other["probability"], atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calibrate", "{rendered}", "--part", "train"], "train part of .* has 10 images, too few"),
        (["--calibrate", "{rendered}", "--prior", "rendered"], "--prior has no effect with eval_au.py calibrate"),
        (["--data", "{rendered}"], "--unlabelled has no effect without eval_au.py calibrate"),
    ],
)
def test_bad_commands(tiny_checkpoint, rendered_records, photographs, tmp_path, flags, message):
    flags = [flag.format(rendered=rendered_records) for flag in flags]
    with pytest.raises(ValueError, match=message):
        run(tiny_checkpoint, *flags, "--unlabelled", photographs, "--out", tmp_path)


def test_a_prior_needs_a_calibration(tiny_checkpoint, rendered_records, tmp_path):
    with pytest.raises(ValueError, match="no prior of photographs"):
        run(tiny_checkpoint, "--data", rendered_records, "--prior", "photographs", "--out", tmp_path)
    with pytest.raises(ValueError, match="--prior has no effect with --uncalibrated"):
        run(tiny_checkpoint, "--data", "x", "--prior", "rendered", "--uncalibrated", "--out", tmp_path)
