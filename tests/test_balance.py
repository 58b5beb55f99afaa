"""Rare AUs: loss weights and rows seen more often, by hand."""

import math

import numpy as np
import pytest

from au_llava.au_datasets.balance import label_statistics, loss_weights, row_weights
from au_llava.au_training.samplers import WeightedSampler

NAN = math.nan


def test_loss_weights():
    statistics = {"bp4d": {"AU1": {"rate": 0.5}, "AU2": {"rate": 0.125}, "AU4": {"rate": 0.0}}}
    raw = np.array([1 / 0.5, 1 / 0.125, 1 / 0.02])  # a rate counts as 0.02 at least
    expected = dict(zip(("AU1", "AU2", "AU4"), raw / raw.mean(), strict=True))
    assert loss_weights(statistics, 1)["bp4d"] == pytest.approx(expected)
    raw = np.sqrt(raw)
    assert list(loss_weights(statistics, 0.5)["bp4d"].values()) == pytest.approx(raw / raw.mean())
    assert set(loss_weights(statistics, 0)["bp4d"].values()) == {1.0}


def labels(*present):
    """Values of the bp4d format in which the AUs at these places are present, AU7 unknown."""
    values = [float(place in present) for place in range(12)]
    values[4] = NAN
    return [values]


def test_rows_with_rare_aus_count_more_within_each_person():
    values = [labels(0), labels(), labels(), labels(), labels(1), labels(1), labels(1), labels(1)]
    people = ["a"] * 4 + ["b"] * 4
    formats = [["bp4d"]] * 8
    statistics = label_statistics(["bp4d"] * 8, [each[0] for each in values])  # AU1: 1/8, AU2: 1/2
    weights = row_weights(formats, values, people, statistics, often=0.5)
    factor = math.sqrt(0.5 / 0.125)
    assert weights == pytest.approx([factor * 4 / (factor + 3), *[4 / (factor + 3)] * 3, 1, 1, 1, 1])
    assert weights[:4].sum() == weights[4:].sum() == pytest.approx(4)


def test_sampler_follows_weights_seed_and_epoch():
    weights = np.array([0.5, 1.0, 2.5, 1.0, 0.0 + 1e-9, 1.0])
    sampler = WeightedSampler(weights, seed=3)
    epochs = []
    for epoch in range(400):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == 6
        counts = np.bincount(drawn, minlength=6)
        assert (np.abs(counts - weights) < 1).all()  # each rounded up or down
        epochs.append(counts)
    assert np.mean(epochs, axis=0) == pytest.approx(weights, abs=0.08)
    again = WeightedSampler(weights, seed=3)
    again.set_epoch(399)
    assert list(again) == drawn
    assert list(WeightedSampler(weights, 1)) != list(WeightedSampler(weights, 4))
