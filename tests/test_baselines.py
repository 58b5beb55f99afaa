"""Baselines that look at no picture, by hand."""

import math

import pytest

from au_llava.action_units import AUFormat
from au_llava.au_datasets import balance
from au_llava.au_datasets.balance import label_statistics
from au_llava.au_evaluation import baselines
from au_llava.au_evaluation.baselines import (
    baseline_rows,
    baselines_table,
    nearest_frames,
    score_baselines,
    transfer_baselines,
)

NAN = math.nan
FMT = AUFormat("mine", ("AU6", "AU12"), "intensity")


@pytest.fixture(autouse=True)
def own_format(monkeypatch):
    for module in (baselines, balance):
        monkeypatch.setattr(module, "get_format", lambda name: FMT)


def rows(*frames, clip="T1"):
    """One row per (frame, labels)."""
    return [
        {"dataset": "d", "subject": "F001", "clip": clip, "frame": frame, "format": "mine", "references": labels}
        for frame, labels in frames
    ]


FOUR = rows((10, [0.0, 4.0]), (11, [1.0, 4.0]), (20, [0.0, NAN]), (22, [3.0, 0.0]))


def test_statistics_of_known_labels():
    found = label_statistics(["mine"] * 4, [[0, NAN], [2, NAN], [4, NAN], [NAN, NAN]])
    assert found == {"mine": {"AU6": {"mean": 2.0, "rate": pytest.approx(2 / 3), "n": 3}}}


def test_nearest_frame_is_of_the_same_clip_and_the_earlier_of_two():
    assert nearest_frames(FOUR) == [1, 0, 3, 2]
    assert nearest_frames(rows((4, []), (0, []), (2, []))) == [2, 2, 1]
    assert nearest_frames(rows((1, [])) + rows((2, []), clip="T2")) == [None, None]
    assert nearest_frames(rows((1, []), (2, []), clip="0")) == [None, None]  # no recording
    other = [{**row, "subject": "F002"} for row in rows((2, []))]
    assert nearest_frames(rows((1, [])) + other) == [None, None]


def test_what_each_baseline_answers():
    statistics = {"AU6": {"mean": 1.5, "rate": 0.25, "n": 4}}  # AU12 was not annotated in training
    found = baseline_rows(FOUR, FMT, statistics)
    assert {tuple(row["values"]) for row in found["all-zero"]} == {(0.0, 0.0)}
    constant = found["training-mean"][0]
    assert constant["expected"] == pytest.approx([1.5, NAN], nan_ok=True)
    assert constant["present"] == pytest.approx([0.0, NAN], nan_ok=True)  # a rate of 0.25 is a no
    assert constant["probability"] == pytest.approx([0.25, NAN], nan_ok=True)
    copied = [row["expected"] for row in found["neighbour-copy"]]
    assert copied[:2] + copied[3:] == [[1.0, 4.0], [0.0, 4.0], pytest.approx([0.0, NAN], nan_ok=True)]
    assert found["neighbour-copy"][2]["present"] == [1.0, 0.0]
    occurrence = AUFormat("mine", ("AU6", "AU12"), "occurrence")
    often = {label: {"mean": 0.5, "rate": 0.5, "n": 2} for label in occurrence.labels}
    assert baseline_rows(FOUR, occurrence, often)["training-mean"][0]["values"] == [1.0, 1.0]


def test_scores_by_hand():
    statistics = {"mine": {"AU6": {"mean": 1.0, "rate": 0.6, "n": 5}, "AU12": {"mean": 3.0, "rate": 0.7, "n": 5}}}
    found = score_baselines(FOUR, statistics)["mine"]
    # labels of AU6: 0 1 0 3, of AU12: 4 4 ? 0; present from 2
    assert found["all-zero"]["per_au"] == {
        "AU6": {"f1": 0.0, "icc": 0.0, "mae": pytest.approx(4 / 4)},
        "AU12": {"f1": 0.0, "icc": 0.0, "mae": pytest.approx(8 / 3)},
    }
    assert found["training-mean"]["per_au"]["AU6"]["mae"] == pytest.approx((1 + 0 + 1 + 2) / 4)
    assert found["training-mean"]["per_au"]["AU6"]["f1"] == pytest.approx(2 * 1 / (2 * 1 + 3 + 0))
    assert found["training-mean"]["mean"]["mae"] == pytest.approx((1 + 5 / 3) / 2)
    copy = found["neighbour-copy"]  # AU6: 1 0 3 0; AU12: 4 4 0 ?
    assert copy["per_au"]["AU6"]["mae"] == pytest.approx((1 + 1 + 3 + 3) / 4)
    assert copy["per_au"]["AU12"] == {"f1": 1.0, "icc": pytest.approx(NAN, nan_ok=True), "mae": 0.0}
    assert copy["unparsed"] == 1  # the label of frame 22's neighbour is unknown


def test_beside_a_transfer_by_hand():
    """Asked in sided strengths, known as intensities of the whole: presence, on the shared AU alone."""
    asked = AUFormat("asked", ("AU12L", "AU12R"), "continuous")
    statistics = {"AU12L": {"mean": 0.1, "rate": 0.1, "n": 9}, "AU12R": {"mean": 0.5, "rate": 0.8, "n": 9}}
    found = transfer_baselines(FOUR, asked, FMT, statistics)
    # presence of AU12 (from 2): 1 1 ? 0; its neighbours': 1 1 0 ?
    f1 = {name: {label: each["f1"] for label, each in result["per_au"].items()} for name, result in found.items()}
    assert f1 == {
        "all-zero": {"AU12": 0.0},
        "training-mean": {"AU12": pytest.approx(2 * 2 / (2 * 2 + 1))},  # one side is present at most times
        "neighbour-copy": {"AU12": 1.0},
    }
    found = transfer_baselines(rows((1, [0.0, 2.0]), clip="0"), asked, FMT, None)
    assert found["training-mean"] == {"left_out": "the training labels are not known"}
    assert found["neighbour-copy"] == {"left_out": "no two frames of one clip"}


def test_what_cannot_be_said_is_left_out_and_named():
    found = score_baselines(rows((1, [0.0, 2.0]), (2, [0.0, 0.0]), clip="0"), {})["mine"]
    assert found["training-mean"] == {"left_out": "the training labels are not known"}
    assert found["neighbour-copy"] == {"left_out": "no two frames of one clip"}
    table = baselines_table({"mine": {"mean": {"f1": 0.5, "icc": NAN, "mae": 1.0}, "baselines": found}})
    assert [list(column.cells) for column in table.columns] == [
        ["mine", "mine"],
        ["this model", "all-zero"],
        ["0.500", "0.000"],
        ["n.d.", "0.000"],
        ["1.000", "0.500"],
    ]
    assert "training-mean left out: the training labels are not known (mine)" in table.caption
