"""The benchmark of rare AUs runs end to end on tiny sizes and counts correctly."""

import json

import numpy as np
import pytest
from conftest import load_tool

from au_llava import prepare_data
from au_llava.action_units import FORMATS
from au_llava.au_runs.manifests import read_training_manifest

imbalance = load_tool("imbalance")


def test_skewed_rows_are_as_rare_as_asked():
    rng = np.random.default_rng(0)
    present = rng.random((4000, 3)) < (0.3, 0.2, 0.02)
    kept = imbalance.skewed_rows(present, 0.03)
    rates = present[kept].mean(axis=0)
    assert rates[:2] == pytest.approx([0.03, 0.03], abs=0.004)
    assert rates[2] <= 0.031
    assert set(np.flatnonzero(~present.any(axis=1))) <= set(kept)


def test_summary_by_hand():
    seeds = [{label: dict.fromkeys(imbalance.METRICS, base) for label in FORMATS["bp4d"].labels} for base in (0.2, 0.4)]
    seeds[0]["AU2"]["f1"] = None  # undefined there
    seeds[1]["AU2"]["f1"] = 1.0
    found = imbalance.summary({"plain": seeds})["plain"]
    assert found["rare"]["f1"] == pytest.approx((0.4, np.std([0.2, 0.6], ddof=1)))
    assert found["others"]["f1"] == pytest.approx((0.3, np.std([0.2, 0.4], ddof=1)))


def test_other_settings_are_refused(tmp_path):
    """Finished arms were made with the first settings; only seeds and arms can be added."""
    settings = {"data": "a", "steps": 10, "train": ("--freeze", "vision_tower")}
    for _ in range(2):
        imbalance.start_run(tmp_path / "out", settings)
    with pytest.raises(ValueError, match="was made with another steps, train: choose another --out"):
        imbalance.start_run(tmp_path / "out", settings | {"steps": 20, "train": ()})


@pytest.mark.slow
def test_runs_and_goes_on(tiny_checkpoint, tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(imbalance, "RARE", ("AU23",))  # few faces might all show one of the usual three
    records = tmp_path_factory.mktemp("records") / "rendered"  # enough people to choose thresholds on
    options = "--subjects 20 --images-per-subject 1 --size 32 --validation 0.5 --test 0.2 --workers 1"
    assert prepare_data.run(["rendered", *options.split(), "--out", str(records)]) == 0
    words = ["--data", records, "--test", records, "--base", tiny_checkpoint, "--out", tmp_path]
    words += ["--rate", 0.4, "--steps", 1, "--batch_size", 2, "--seeds", 0, "--freeze", "vision_tower"]
    for arms in (["plain"], ["plain", "both"]):  # the second continues
        assert imbalance.run([*map(str, words), "--arms", *arms]) == 0
        trained = (tmp_path / "plain-0" / "model.safetensors").stat().st_mtime_ns
    assert trained < (tmp_path / "both-0" / "trainer_state.json").stat().st_mtime_ns
    recipes = {arm: read_training_manifest(tmp_path / f"{arm}-0")["recipe"] for arm in ("plain", "both")}
    assert recipes["both"]["freeze"] == ["vision_tower"]
    assert (recipes["both"]["oversample_below"], recipes["both"]["loss_weight_power"]) == (0.1, 0.5)
    assert not {"oversample_below", "loss_weight_power"} & recipes["plain"].keys()
    calibration = json.loads((tmp_path / "both-0" / "config.json").read_text())["calibration"]
    assert list(calibration["fitted_on"]["data"]) == [str(tmp_path / "skewed-train")]
    written = json.loads((tmp_path / "imbalance.json").read_text())
    assert written["settings"]["train"] == ["--freeze", "vision_tower"]
    assert list(written["summary"]) == ["plain", "both"]
    assert set(written["per_au"]["plain"][0]) == set(FORMATS["bp4d"].labels)


@pytest.mark.slow
def test_a_failing_step_ends_the_benchmark(rendered_records, tiny_checkpoint, tmp_path, capfd):
    words = ["--data", rendered_records, "--test", rendered_records, "--base", tiny_checkpoint, "--out", tmp_path]
    assert imbalance.run([*map(str, words), "--rate", "0.4", "--frieze", "vision_tower"]) == 1
    error = capfd.readouterr().err
    assert "--frieze" in error
    assert "train_sft.py failed, see above" in error
