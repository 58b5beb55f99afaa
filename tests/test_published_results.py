"""The published results: that every row is well-formed, sourced, and agrees with itself.

Those of others, and our own of photographs: which weights they are of, and that the tables show them.
"""

import hashlib
import json
import math
from collections import Counter

import pytest
from conftest import ROOT, load_tool

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


def test_the_file_says_what_it_is():
    assert list(CONTENT) == ["schema_version", "about", "rows"]
    assert CONTENT["schema_version"] == 1
    assert all(status in CONTENT["about"] for status in STATUSES)


def faults_of(row) -> list[str]:
    """What is wrong with a row's form."""
    strings = [row[name] for name in row.keys() - {"mean", "per_au"}]
    rules = {
        "keys": NEEDED <= row.keys() <= NEEDED | {"per_au", "note"},
        "metric": row["metric"] in METRICS[row["protocol"]],
        "status": row["status"] in STATUSES,
        "empty text": all(isinstance(text, str) and text.strip() for text in strings),
        "from memory": "memory" not in json.dumps(row),
        "conflicting without a note": row["status"] != "conflicting" or "note" in row,
    }
    return [f"{row_id(row)}: {rule}" for rule, kept in rules.items() if not kept]


def range_faults_of(row) -> list[str]:
    lowest, highest = RANGES[row["metric"]]
    values = (row["mean"], *row.get("per_au", {}).values())
    wrong = [value for value in values if not isinstance(value, float) or not lowest <= value <= highest]
    if row["metric"] == "f1" and row["mean"] <= 1:
        wrong.append(f"{row['mean']}, a share instead of percent")
    return [f"{row_id(row)}: {value}" for value in wrong]


def average_faults_of(row) -> list[str]:
    """Values per AU belong to the protocol and average to the mean."""
    if "per_au" not in row:
        return []
    average = math.fsum(row["per_au"].values()) / len(row["per_au"])
    rounding = 0.1 if row["metric"] == "f1" else 0.01
    rules = {
        "unknown AU": row["per_au"].keys() <= ACTION_UNITS.keys(),
        "AUs of the protocol": tuple(row["per_au"]) == PROTOCOLS[row["protocol"]].labels,
        f"average {average:.1f}": abs(average - row["mean"]) < rounding
        or f"average {average:.1f}" in row.get("note", ""),
    }
    return [f"{row_id(row)}: {rule}" for rule, kept in rules.items() if not kept]


def test_rows_are_well_formed():
    assert [fault for row in ROWS for fault in faults_of(row)] == []


def test_values_are_in_range():
    assert [fault for row in ROWS for fault in range_faults_of(row)] == []


def test_values_per_au_belong_to_the_protocol_and_average_to_the_mean():
    assert [fault for row in ROWS for fault in average_faults_of(row)] == []


def test_faults_are_found():
    row = next(row for row in ROWS if row["metric"] == "f1" and "per_au" in row)
    assert faults_of(row | {"status": "heard", "source": " "}) != []
    assert range_faults_of(row | {"mean": 0.6}) != []
    assert average_faults_of(row | {"mean": row["mean"] + 1, "note": ""}) != []


def test_no_result_stands_twice():
    counts = Counter(map(row_id, ROWS))
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_main_protocols_have_something_to_compare_with():
    counts = Counter(row["protocol"] for row in ROWS)
    assert counts["bp4d-3fold"] > 30
    assert counts["disfa-3fold"] > 30
    assert counts["disfa-intensity-3fold"] > 10


# ---- photographs ------------------------------------------------------------------------------------------------
write_scores = load_tool("write_scores")
FILES = [path for kind in ("photographs", "agreement") for path in write_scores.EVALUATIONS.glob(f"{kind}*.json")]
OF_PHOTOGRAPHS = sorted(path.stem for path in FILES)


@pytest.mark.parametrize("name", OF_PHOTOGRAPHS)
def test_photographs_are_measured_by_a_command_that_can_be_typed_again(name):
    origin = write_scores.evaluation(name)["provenance"]
    words = origin["command"].split()
    assert (ROOT / words[words.index("python") + 1]).is_file()
    assert not any(word.startswith("/") for word in words)
    assert not origin["checkpoint"]["name"].startswith("/")


@pytest.mark.parametrize("name", [name for name in OF_PHOTOGRAPHS if not name.endswith("-before")])
def test_photographs_are_read_by_the_shipped_weights(name):
    shipped = hashlib.sha256((ROOT / "model.safetensors").read_bytes()).hexdigest()
    weights = write_scores.evaluation(name)["provenance"]["checkpoint"]["weights_sha256"]
    assert weights == {"model.safetensors": shipped}


def test_the_london_set_was_whole():
    for name in ("photographs-before", "photographs"):
        faces = write_scores.evaluation(name)["faces"]
        assert (faces["people"], faces["neutral"], faces["smiling"]) == (102, 102, 102)
        assert faces["skipped"] == {}


def each(value: float, **more) -> dict:
    return {"value": value, "interval": [value - 0.125, value + 0.125], **more}


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The script with made-up evaluations: `give(name, content)` stores one."""
    tool = load_tool("write_scores")
    monkeypatch.setattr(tool, "EVALUATIONS", tmp_path)
    tool.give = lambda name, content: (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tool


def test_an_unknown_evaluation_is_refused(tool, capsys):
    tool.give("slots", {})
    assert tool.run(["slot=runs/eval"]) == 1
    assert capsys.readouterr().err == (
        "write_scores.py: There is no evaluation 'slot': write NAME=PATH with a name of slots.\n"
    )


def photographs(value: float) -> dict:
    read = {"half": each(value), "decided": each(value + 0.25)}
    return {
        "faces": {"people": 3, "neutral": 3, "smiling": 2, "skipped": {"003_08.jpg": "shows no face"}},
        "smile": {"disfa": {"AU12": {key: each(value) for key in ("expected", "probability", "found")}}},
        "neutral": {
            "mean": read,
            "formats": {"bp4d": {"AU12": {"half": each(0), "decided": each(0)}}, "disfa": {"AU12": read}},
        },
    }


def test_tables_of_the_london_set(tool):
    tool.give("photographs-before", photographs(0.25))
    tool.give(
        "photographs", photographs(0.5) | {"mediapipe": {"found": 5, "AU12": each(0.75, blendshape="mouthSmile")}}
    )
    lines = tool.photographs_table().splitlines()
    before, now, mediapipe = "0.250 (0.125 to 0.375)", "0.500 (0.375 to 0.625)", "0.750 (0.625 to 0.875)"
    words = "smile against neutral, AUC of the expected value"
    assert lines[2] == f"| {words} | disfa | AU12 | {before} | {now} | {mediapipe}, mouthSmile |"
    assert lines[3] == f"| the same, of the probability | disfa | AU12 | {before} | {now} |  |"
    assert lines[-3].startswith(
        "| share of neutral faces read as present, shipped threshold | all | mean of all | 0.500 ("
    )
    assert lines[-1].startswith("3 neutral and 2 smiling faces of 3 people; 1 pictures skipped.")
    rows = tool.neutral_table().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| disfa", "| bp4d"]  # that with more false findings first
    assert rows[0].endswith(f"| {before} | {now} | {now} | {mediapipe} |")


def test_summary_of_the_london_set(tool):
    def found(value):
        content = photographs(value)
        content["smile"]["disfa"] |= {label: content["smile"]["disfa"]["AU12"] for label in ("AU6", "AU25")}
        return content

    tool.give("photographs-before", found(0.25))
    tool.give("photographs", found(0.5) | {"mediapipe": {"found": 5, "AU12": each(0.75, blendshape="mouthSmile")}})
    for name, value in (("codes-london-before", 0.25), ("codes-london", 0.5)):
        of_au = {"roc_auc": each(value)}
        tool.give(name, {"agreement": {"bp4d": {"AU12": of_au, "AU6": of_au}, "disfa": {"AU25": of_au}}})
    rows = tool.photographs_summary().splitlines()[2:]
    before, now, mediapipe = "0.250 (0.125 to 0.375)", "0.500 (0.375 to 0.625)", "0.750 (0.625 to 0.875)"
    assert rows[0] == f"| AU12: seen by eye against not seen, ROC AUC (bp4d) | {before} | {now} |  |"
    assert rows[2] == f"| AU25: seen by eye against not seen, ROC AUC (disfa) | {before} | {now} |  |"
    assert rows[3] == f"| AU12: told to smile against neutral, ROC AUC (disfa) | {before} | {now} | {mediapipe} |"
    assert rows[4].endswith(f"| {before} | {now} |  |")
    assert rows[6] == f"| AU12 read into neutral faces, share (disfa) | {now} | {mediapipe} |  |"  # decided: 0.25 above
    assert len(rows) == 8


def agreement(value: float) -> dict:
    found = {"spearman": each(value), "roc_auc": each(value), "f1": each(value)}
    found |= {"found_strong": each(value, n=11), "found_near_zero": each(value / 2)}
    group = {"n": 20, **{key: each(value) for key in ("present", "roc_auc", "bias")}}
    gap = {"difference": 0.25, "interval": [0.125, 0.375], "p_holm": 0.03125, "groups": ["a", "b"]}
    return {
        "faces": {"images": 1234},
        "summary": {key: each(value) for key in (*write_scores.AGREEMENT, *found)},
        "agreement": {"disfa": {"AU12": found}},
        "neutral": {"images": 99},
        "found": {"disfa": {"AU1": {"present": each(value / 2)}, "AU12": {"present": each(value)}}},
        "groups": {
            "AU12": {
                "columns": {"race": {"a": group, "b": group}, "age": {}},
                "gaps": {"race": {"roc_auc": gap}, "age": {}},
                "too_small": {"race": {}, "age": {"70 and more": 3}},
            }
        },
    }


def test_tables_of_agreement_with_codes(tool):
    tool.give("codes-before", agreement(0.25))
    tool.give("codes", agreement(0.5))
    before, now = "0.250 (0.125 to 0.375)", "0.500 (0.375 to 0.625)"
    lines = tool.codes_table().splitlines()
    assert lines[2] == f"| ROC AUC | {before} | {now} |"
    assert lines[-1].startswith("1,234 photographs.")
    assert lines[4] == f"| share of AUs found where they are strong | {before} | {now} |"
    head, _, row = tool.agreement_per_au_table("codes").splitlines()
    assert head.endswith("| F1, shipped | found where strong | found where near zero |")
    assert row == f"| disfa | AU12 | 11 | {before} | {now} | {before} | {now} | {now} | {now} | {before} |"


def test_tables_of_agreement_and_groups(tool):
    tool.give("agreement-before", agreement(0.25))
    tool.give("agreement", agreement(0.5))
    before, now = "0.250 (0.125 to 0.375)", "0.500 (0.375 to 0.625)"
    lines = tool.agreement_table().splitlines()
    assert lines[2] == f"| agreement: Pearson's correlation | {before} | {now} |"
    assert lines[-1].startswith("1,234 photographs; 99 that the teacher finds neutral.")
    row = tool.agreement_per_au_table().splitlines()[2]
    assert row == f"| disfa | AU12 | 11 | {before} | {now} | {before} | {now} | {now} | {now} | {before} |"
    lines = tool.found_table().splitlines()
    assert lines[2] == f"| disfa | AU12 | {before} | {now} |"
    assert lines[3] == "| disfa | AU1 | 0.125 (0.000 to 0.250) | 0.250 (0.125 to 0.375) |"
    lines = tool.photograph_groups_table().splitlines()
    assert lines[2] == f"| AU12 | race | a | 20 | {now} | {now} | {now} |"
    assert lines[-3] == "| AU12 | race | a: 0.500 | b: 0.500 | 0.250 (0.125 to 0.375) | 0.031 |"
    assert lines[-1] == "Too few clear faces to compare: AU12, age: 70 and more."
