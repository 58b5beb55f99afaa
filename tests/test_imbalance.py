"""The benchmark of rare AUs runs end to end on tiny sizes and counts rightly."""

import json

import numpy as np
import pytest
from conftest import load_tool

from au_llava.action_units import FORMATS

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


@pytest.mark.slow
def test_runs_and_goes_on(rendered_records, tiny_checkpoint, tmp_path):
    words = ["--data", rendered_records, "--test", rendered_records, "--base", tiny_checkpoint, "--out", tmp_path]
    words += ["--rate", 0.4, "--steps", 1, "--batch_size", 2, "--seeds", 0, "--arms", "plain", "both"]
    for _ in range(2):  # the second finds all of it done
        imbalance.main(list(map(str, words)))
    written = json.loads((tmp_path / "imbalance.json").read_text())
    assert list(written["summary"]) == ["plain", "both"]
    assert set(written["per_au"]["plain"][0]) == set(FORMATS["bp4d"].labels)
