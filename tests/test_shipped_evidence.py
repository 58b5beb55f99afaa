"""The benchmarks behind the shipped checkpoint's claims: pairing, bookkeeping and pictures, on made-up predictions."""

import json
import time

import numpy as np
import pytest
from conftest import load_tool
from datasets import Dataset
from sklearn.metrics import f1_score

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_rendering.view import HELD_OUT

held_out = load_tool("held_out")
robustness = load_tool("robustness")
comparison = load_tool("comparison")


def prediction(name: str, person: int, frame: int, truth, read) -> dict:
    """A row of predictions.parquet; `read` are probabilities on the occurrence scale and values on the others."""
    read = list(map(float, read))
    present = [float(value >= 0.5) for value in read]
    key = {"dataset": "rendered", "subject": f"R1-{person:06d}", "clip": "0", "frame": frame, "format": name}
    return {
        **key,
        "row": 0,
        "asked": name,
        "references": list(map(float, truth)),
        "values": present if name == "bp4d" else read,
        "expected": read,
        "probability": [min(1.0, value) for value in read],
        "present": present,
        "text": "",
        "problems": [],
        "contradictions": [],
    }


def system(noise: float, people: int = 8, images: int = 4) -> dict[tuple, dict]:
    """Predictions of a recognizer with this much noise, by key; the truth is the same for every noise."""
    rows = []
    for person in range(people):
        rng, errors = np.random.default_rng(person), np.random.default_rng([person, round(100 * noise)])
        for frame in range(images):
            for name in MAIN_FORMATS:
                fmt = FORMATS[name]
                truth = rng.choice(fmt.value_numbers, len(fmt.labels))
                top = 1 if name == "bp4d" else fmt.value_numbers[-1]
                read = (truth + noise * top * errors.standard_normal(len(truth))).clip(0, top)
                rows.append(prediction(name, person, frame, truth, read))
    return {tuple(row[key] for key in held_out.KEYS): row for row in rows}


def test_held_out_looks_are_compared_face_by_face():
    usual, harder = system(0.1), system(0.6)
    families = {key: HELD_OUT[int(key[1][-6:]) % 4] for key in usual}
    found = held_out.compare(usual, harder, families)
    assert list(found) == list(HELD_OUT)
    key_rows = [key for key in usual if key[-1] == "bp4d" and families[key] == "toon shading"]
    truth, read = (np.array([harder[key][column] for key in key_rows]) for column in ("references", "present"))
    expected = np.mean([f1_score(truth[:, k], read[:, k]) for k in range(12)])
    each = found["toon shading"]["bp4d"]
    assert each["f1"]["held_out"] == pytest.approx(expected)
    assert each["n"] == 8
    assert each["f1"]["difference"] == pytest.approx(each["f1"]["held_out"] - each["f1"]["usual"])
    low, high = found["wide angle"]["feafa"]["pcc"]["interval"]
    assert low < high < 0


def test_held_out_refuses_other_faces():
    usual, harder = system(0.1), system(0.6, people=7)
    with pytest.raises(ValueError, match="different records"):
        held_out.compare(usual, harder, dict.fromkeys(usual, "wide angle"))


def test_robustness_changes_one_thing_at_a_time():
    plain = robustness.draw("yaw (degrees)", 0, 3, 0)
    for factor, levels in robustness.LEVELS.items():
        if factor not in ("yaw (degrees)", "light", "skin tone (Monk)"):
            strengths, _ = robustness.draw(factor, levels[0], 3, 0)
            assert strengths == plain[0]
        first, other = (robustness.draw(factor, level, 3, 0) for level in levels[:2])
        assert first[0] == other[0]  # the same face
        assert first[1] != other[1]  # another picture


def test_robustness_scores_each_level_and_draws_them(monkeypatch):
    monkeypatch.setattr(robustness, "LEVELS", {factor: levels[:2] for factor, levels in robustness.LEVELS.items()})
    rows = []
    for factor, levels in robustness.LEVELS.items():
        for noise, level in zip((0.1, 0.8), levels, strict=True):
            rows += [{**row, "clip": f"{factor}: {level}"} for row in system(noise).values()]
    found = robustness.summarize(rows)
    for factor, levels in robustness.LEVELS.items():
        good, bad = (found[factor][str(level)]["disfa"] for level in levels)
        assert good["metric"] == "icc"
        assert good["value"] > bad["value"]
        assert good["interval"][0] <= good["value"] <= good["interval"][1]
    figure = robustness.draw_chart(found)
    assert [panel.get_title(loc="left") for panel in figure.axes] == list(robustness.LEVELS)


def test_processor_time_counts_work_and_not_waiting():
    clock = comparison.ProcessorTime(0.5)
    time.sleep(0.3)
    assert clock.spent() < 0.5
    while time.process_time() - clock.start < 0.5:
        sum(range(1000))
    assert clock.spent() == 1


def test_summary_of_the_comparison(tmp_path):
    for name, noise in (("slots", 0.1), ("free", 0.5), ("single", 0.1), ("separate", 0.8)):
        comparison.gather(list(system(noise).values()), tmp_path / "eval" / name)
    found = comparison.summarize(tmp_path, {"ours": 1.0}, {}, resamples=200)
    assert list(found["systems"]) == ["slots", "free", "single", "separate"]
    assert found["slots_minus"]["single"]["bp4d"]["f1"]["difference"] == 0
    assert found["slots_minus"]["separate"]["feafa"]["pcc"]["interval"][0] > 0
    assert found["slots_minus"]["separate"]["disfa"]["mae"]["difference"] < 0
    slots = Dataset.from_parquet(str(tmp_path / "eval" / "slots" / "predictions.parquet"))
    truth, read = (
        np.array([row[key] for row in slots if row["format"] == "feafa"]) for key in ("references", "expected")
    )
    expected = np.mean([np.corrcoef(truth[:, k], read[:, k])[0, 1] for k in range(24)])
    assert found["systems"]["slots"]["feafa"]["pcc"]["value"] == pytest.approx(expected)
    assert found["systems"]["slots"]["feafa"]["pcc"]["averaged"] == 24


def test_tables_show_the_numbers_of_their_files(tmp_path):
    tool = load_tool("write_scores")
    tool.EVALUATIONS = tmp_path
    level = {"feafa": {"metric": "pcc", "value": 0.75, "interval": [0.5, 0.875], "n": 4}}
    (tmp_path / "robustness.json").write_text(json.dumps({"factors": {"blur": {"2": level}}}))
    assert tool.robustness_table().splitlines() == [
        "| changed | level | feafa PCC |",
        "|---|---|---:|",
        "| blur | 2 | 0.750 (0.500 to 0.875) |",
    ]
    each = {"usual": 0.75, "held_out": 0.5, "difference": -0.25, "interval": [-0.5, -0.125]}
    (tmp_path / "held-out.json").write_text(json.dumps({"families": {"toon": {"bp4d": {"n": 4, "f1": each}}}}))
    row = "| toon | bp4d | F1 | 0.750 | 0.500 | -0.250 (-0.500 to -0.125) |"
    assert tool.held_out_table().splitlines()[2] == row


def test_commands_name_a_wrong_path_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {
        "held_out": ["no-a", "no-b", "--data", "nowhere", "--out", "x.json"],
        "robustness": ["--model", "/nowhere", "--out", "x"],
        "photographs": ["--root", "nowhere", "--out", "x.json"],
        "agreement": ["--data", "nowhere", "--out", "x.json"],
        "pretrain_tower": ["--base", "/nowhere", "--data", "nowhere", "--out", "x"],
    }
    for name, options in words.items():
        assert load_tool(name).run(options) == 1, name
        error = capsys.readouterr().err
        assert error.startswith(f"{name}.py: "), error
        assert "nowhere" in error
