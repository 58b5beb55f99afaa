"""The published results: that every row is well-formed, sourced, and agrees with itself."""

import json
import math
from collections import Counter

import pytest
from conftest import ROOT

from au_llava.action_units import ACTION_UNITS
from au_llava.au_datasets.folds import PROTOCOLS

CONTENT = json.loads((ROOT / "assets" / "published_results.json").read_text(encoding="utf-8"))
ROWS = CONTENT["rows"]
CROSS_DOMAIN = {"bp4d-to-disfa": ("f1",)}
METRICS = {**{name: protocol.metrics for name, protocol in PROTOCOLS.items()}, **CROSS_DOMAIN}
RANGES = {"f1": (0, 100), "icc": (-1, 1), "pcc": (-1, 1), "mae": (0, 5), "mse": (0, 25)}
STATUSES = {"seen in the source", "secondary", "inferred", "conflicting"}
NEEDED = {"method", "protocol", "metric", "mean", "source", "status"}


def row_id(row):
    return f"{row['method']}, {row['protocol']}, {row['metric']}"


every_row = pytest.mark.parametrize("row", ROWS, ids=row_id)


def test_the_file_says_what_it_is():
    assert list(CONTENT) == ["schema_version", "about", "rows"]
    assert CONTENT["schema_version"] == 1
    assert all(status in CONTENT["about"] for status in STATUSES)


@every_row
def test_schema(row):
    assert NEEDED <= row.keys() <= NEEDED | {"per_au", "note"}
    assert row["metric"] in METRICS[row["protocol"]]
    assert row["status"] in STATUSES
    assert all(isinstance(row[name], str) and row[name].strip() for name in row.keys() - {"mean", "per_au"})
    assert "memory" not in json.dumps(row)
    if row["status"] == "conflicting":
        assert "note" in row


@every_row
def test_values_are_in_range(row):
    lowest, highest = RANGES[row["metric"]]
    for value in (row["mean"], *row.get("per_au", {}).values()):
        assert isinstance(value, float)
        assert lowest <= value <= highest
    if row["metric"] == "f1":
        assert row["mean"] > 1  # percent, not a share


@every_row
def test_per_au_values_belong_to_the_protocol_and_average_to_the_mean(row):
    if "per_au" not in row:
        return
    assert row["per_au"].keys() <= ACTION_UNITS.keys()
    assert tuple(row["per_au"]) == PROTOCOLS[row["protocol"]].labels
    average = math.fsum(row["per_au"].values()) / len(row["per_au"])
    rounding = 0.1 if row["metric"] == "f1" else 0.01
    assert abs(average - row["mean"]) < rounding or f"average {average:.1f}" in row["note"]


def test_no_result_stands_twice():
    counts = Counter(map(row_id, ROWS))
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_main_protocols_have_something_to_compare_with():
    counts = Counter(row["protocol"] for row in ROWS)
    assert counts["bp4d-3fold"] > 30
    assert counts["disfa-3fold"] > 30
    assert counts["disfa-intensity-3fold"] > 10
