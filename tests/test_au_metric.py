"""The `evaluate` metric: loading offline from anywhere, and what it computes."""

import doctest
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch

from au_llava.action_units import FORMATS, AUFormat, write_answer
from au_llava.metrics_au import score

SCRIPT = Path(__file__).parents[1] / "au_metric.py"
NAN = float("nan")
FORMAT = AUFormat("mine", ("AU6", "AU12"), "intensity")
ANSWERS = ["AU6: 1, AU12: 3", "AU6: 4, AU12: 1", "no idea", "**AU06** = 3; AU12 is not visible"]
LABELS = [[1, NAN], [2, 1], [5, 5], [3, 2]]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda *arguments, **more: evaluate.load(str(SCRIPT), *arguments, cache_dir=str(tmp_path), **more)


@pytest.fixture
def metric(load):
    return load()


def simulate(fmt, images=60, seed=0):
    """Labels with gaps, and values of the scale that read them, some not at all."""
    rng = np.random.default_rng(seed)
    labels, values = rng.choice(fmt.value_numbers, (2, images, len(fmt.labels)))
    values = np.where(rng.random(values.shape) < 0.5, labels, values)
    labels[rng.random(labels.shape) < 0.1] = NAN
    values[rng.random(values.shape) < 0.1] = NAN
    return labels, values


def test_answers_are_parsed_and_scored(metric):
    scores = metric.compute(predictions=ANSWERS, references=LABELS, format=FORMAT)
    assert scores["mae_AU6"] == pytest.approx(2 / 3)
    assert scores["mae_AU12"] == 1.0
    assert scores["mae"] == pytest.approx(5 / 6)
    assert (scores["n"], scores["n_AU6"], scores["n_AU12"], scores["annotated"]) == (4, 3, 2, 7)
    assert scores["unparsed_rate"] == pytest.approx(2 / 7)
    assert (scores["unparsed_AU6"], scores["support_AU6"], scores["support_AU12"]) == (1, 2, 1)
    assert scores["f1_AU6"] == 1


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_answers_values_and_score_agree(metric, fmt):
    labels, values = simulate(fmt)
    answers = [write_answer(dict(zip(fmt.labels, row, strict=True)), fmt) for row in values.tolist()]
    expected = score(values, labels, fmt)
    of_answers = metric.compute(predictions=answers, references=labels, format=fmt)
    of_values = metric.compute(predictions=values, references=labels, format=fmt)
    assert str(of_values) == str(of_answers)
    assert {key: of_values[key] for key in expected["mean"]} == pytest.approx(expected["mean"], nan_ok=True)
    for label, of_au in expected["per_au"].items():
        for key, value in of_au.items():
            if key != "undefined":
                assert of_values[f"{key}_{label}"] == pytest.approx(value, nan_ok=True), (key, label)
    assert of_values["unparsed_rate"] == expected["unparsed"] / expected["annotated"] > 0


def test_every_score_is_documented_and_a_number(metric):
    scores = metric.compute(predictions=ANSWERS, references=LABELS, format=FORMAT)
    documented = metric.inputs_description.partition("Returns:")[2].partition("Examples:")[0]
    for key, value in scores.items():
        assert key.removesuffix("_AU6").removesuffix("_AU12") in documented, key
        assert key == "undefined" or type(value) in (int, float), key
    metrics = ("f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc", "f1_skew_normalised")
    metrics += ("icc", "icc_1_1", "pcc", "mae", "mse", "mae_nonzero")
    per_au = {f"{key}_{label}" for key in (*metrics, "support", "n", "unparsed") for label in FORMAT.labels}
    assert set(scores) == {*metrics, *per_au, "n", "annotated", "unparsed_rate", "undefined"}


def test_what_is_undefined_is_nan_with_the_reason(metric):
    scores = metric.compute(predictions=["AU6: 0, AU12: 1"] * 2, references=[[0, 1], [0, 3]], format=FORMAT)
    assert scores["undefined"]["recall_AU6"] == "no positive label"
    assert scores["undefined"]["pcc_AU12"] == "predictions constant"
    assert {key for key, value in scores.items() if value != value and "AU" in key} == set(scores["undefined"])


def test_unread_is_left_out_or_absent_and_counted_either_way(metric):
    left_out = metric.compute(predictions=ANSWERS, references=LABELS, format=FORMAT)
    assert str(left_out) == str(
        metric.compute(predictions=ANSWERS, references=LABELS, format=FORMAT, unparsed="left_out")
    )
    absent = metric.compute(predictions=ANSWERS, references=LABELS, format=FORMAT, unparsed="absent")
    zeroed = [[1, 3], [4, 1], [0, 0], [3, 0]]
    expected = metric.compute(predictions=zeroed, references=LABELS, format=FORMAT)
    counts = {key: left_out[key] for key in left_out if key.startswith("unparsed")}
    assert counts == {"unparsed_AU6": 1, "unparsed_AU12": 1, "unparsed_rate": pytest.approx(2 / 7)}
    assert str(absent) == str({**expected, **counts})
    assert (left_out["n_AU6"], absent["n_AU6"]) == (3, 4)
    assert absent["recall_AU6"] < left_out["recall_AU6"] == 1


def test_values_may_lie_between_those_of_the_scale_unless_it_is_occurrence(metric):
    scores = metric.compute(predictions=[[1.9, 5.5], [2.0, -0.5]], references=[[2, 5], [2, 0]], format=FORMAT)
    assert (scores["recall_AU6"], scores["mae_AU12"]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="not 0 or 1"):
        metric.compute(predictions=[[0.5] * 12], references=[[1] * 12], format="bp4d")


def test_arrays_and_tensors_are_values(metric):
    values, labels = [[1.0, 3.5], [0.0, NAN]], [[1.0, 3.0], [NAN, 0.0]]
    kinds = (list, np.array, torch.tensor, lambda rows: torch.tensor(rows, dtype=torch.bfloat16))
    scores = [metric.compute(predictions=of(values), references=of(labels), format=FORMAT) for of in kinds]
    assert len(set(map(str, scores))) == 1


def test_formats_by_name_by_dict_and_by_object_agree(metric):
    case = {"predictions": ["AU1, AU12", "AU4"], "references": [[1, 0, 0, 0, 0, 0, 1] + [0] * 5, [NAN] * 2 + [1] * 10]}
    fmt = FORMATS["bp4d"]
    by_name, by_dict, by_object = (metric.compute(**case, format=how) for how in ("bp4d", fmt.to_dict(), fmt))
    assert str(by_name) == str(by_dict) == str(by_object)
    assert (by_name["f1_AU1"], by_name["f1_AU4"], by_name["f1_AU10"], by_name["n_AU2"]) == (1, 1, 0, 1)
    assert math.isnan(by_name["f1_AU2"])
    assert "mae" not in by_name


def test_settings_at_loading_hold_until_compute_says_otherwise(load):
    labels, values = simulate(FORMATS["disfa"])
    case = {"predictions": values, "references": labels}
    expected = load().compute(**case, format="disfa", unparsed="absent")
    for metric in (load("disfa", unparsed="absent"), load(format=FORMATS["disfa"].to_dict(), unparsed="absent")):
        assert str(metric.compute(**case)) == str(expected)
    assert str(load("feafa", unparsed="left_out").compute(**case, format="disfa", unparsed="absent")) == str(expected)


@pytest.mark.parametrize("predictions", [ANSWERS, [[1, 3], [4, 1], [NAN, NAN], [3, 0]]], ids=["answers", "values"])
@pytest.mark.parametrize("settings", [{}, {"keep_in_memory": True}], ids=str)
def test_what_is_added_one_by_one_or_in_batches_counts_together(load, predictions, settings):
    metric = load(format=FORMAT, **settings)
    expected = metric.compute(predictions=predictions, references=LABELS)
    metric.add(prediction=predictions[0], reference=[1, None])
    metric.add_batch(predictions=[], references=[])
    metric.add_batch(predictions=predictions[1:], references=LABELS[1:])
    assert str(metric.compute()) == str(expected)
    assert str(metric.compute(predictions=predictions, references=LABELS)) == str(expected)


@pytest.mark.parametrize("fmt", [FORMATS["bp4d"], FORMATS["feafa"]], ids=["answers", "values"])
def test_processes_pool_what_each_has_seen(load, fmt):
    """Threads here: it is by files and their locks that `evaluate` joins processes."""
    labels, predictions = simulate(fmt, images=7)
    if fmt.name == "bp4d":
        predictions = [write_answer(dict(zip(fmt.labels, row, strict=True)), fmt) for row in predictions.tolist()]

    def compute(process):
        share = slice(0, 3) if process == 0 else slice(3, 7)
        metric = load(fmt.name, num_process=2, process_id=process, experiment_id="shared")
        return metric.compute(predictions=predictions[share], references=labels[share])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(compute, range(2))
    assert second is None
    assert str(first) == str(load(fmt.name).compute(predictions=predictions, references=labels))


class Length(evaluate.Metric):
    """Some other metric of the same inputs."""

    def _info(self):
        features = {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("float64"))}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions, references):
        return {"length": max(map(len, predictions)), "n": len(predictions)}


def test_combine(load, tmp_path):
    """With another metric, and with itself: in two formats, under two conventions."""
    case = {"predictions": ANSWERS, "references": LABELS}
    ours = load(format=FORMAT)
    expected = ours.compute(**case)
    mixed = evaluate.combine([ours, Length(cache_dir=str(tmp_path))]).compute(**case)
    assert (mixed["length"], mixed["au_metric_n"], mixed["length_n"]) == (max(map(len, ANSWERS)), 4, 4)
    assert mixed["mae"] == expected["mae"]

    strict = FORMAT.to_dict() | {"presence_threshold": 1}
    both = evaluate.combine([ours, load(format=strict)])
    both.add(prediction=ANSWERS[0], reference=LABELS[0])
    both.add_batch(predictions=ANSWERS[1:], references=LABELS[1:])
    scores = both.compute()
    assert (scores["au_metric_0_support_AU6"], scores["au_metric_1_support_AU6"]) == (2, 3)

    conventions = {name: load(unparsed=name) for name in ("left_out", "absent")}
    scores = evaluate.combine(conventions).compute(**case, format=FORMAT)
    assert (scores["left_out_n_AU6"], scores["absent_n_AU6"]) == (3, 4)
    assert scores["left_out_unparsed_rate"] == scores["absent_unparsed_rate"] == pytest.approx(2 / 7)


def test_scores_can_be_saved(metric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = metric.compute(predictions=ANSWERS, references=LABELS, format=FORMAT)
    saved = json.loads(Path(evaluate.save(tmp_path / "scores.json", **scores)).read_text())
    assert str({key: saved[key] for key in scores}) == str(scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": [[1, 2]]}, "None is not a format"),
        ({"references": [[1, 2]], "format": "bp5d"}, "unknown format 'bp5d'"),
        ({"references": [[1, 2]], "format": FORMAT, "unparsed": "ignore"}, "'left_out' or 'absent', not 'ignore'"),
        ({"references": [[1, 2, 3]], "format": FORMAT}, r"references have shape \(1, 3\), but format 'mine' needs"),
        ({"references": [[9, 2]], "format": FORMAT}, "not from 0 to 5, such as 9"),
        ({"references": [[1, 2], [1, 2]], "format": FORMAT}, "1 predictions but 2 references"),
        ({"references": None, "format": FORMAT}, "references are missing"),
        ({"references": ["AU6: 1"], "format": FORMAT}, "don't match the expected format"),
        ({"predictions": [[1, 2, 3]], "references": [[1, 2]], "format": FORMAT}, r"predictions have shape \(1, 3\)"),
        (
            {"predictions": [[1, 2], [1]], "references": [[1, 2]] * 2, "format": FORMAT},
            "predictions must be numbers in rows of equal length",
        ),
        ({"predictions": [[1, math.inf]], "references": [[1, 2]], "format": FORMAT}, "not finite"),
        ({"predictions": [1.0], "references": [[1, 2]], "format": FORMAT}, "don't match the expected format"),
        ({"predictions": ["AU6: 1", [1, 2]], "references": [[1, 2]] * 2, "format": FORMAT}, "all answers"),
        ({"predictions": ["AU6: 1", None], "references": [[1, 2]] * 2, "format": FORMAT}, "'' for none"),
        ({"predictions": [], "references": [], "format": FORMAT}, "call `add` or `add_batch` at least once"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**{"predictions": ["AU6: 1, AU12: 3"], **arguments})


def test_wrong_settings_are_refused_at_loading(load):
    with pytest.raises(ValueError, match="unknown format 'bp5d'"):
        load("bp5d")
    with pytest.raises(ValueError, match="'left_out' or 'absent', not 'zero'"):
        load("bp4d", unparsed="zero")


def test_the_metric_is_usable_after_a_refusal(metric):
    """And takes the other kind of predictions then."""
    for wrong in ([[9, 9]] * 4, [[1, 2]] * 3, ["AU6: 1"] * 4, [[1, 2, 3]] * 4, [[1, 2], [1]] * 2):
        with pytest.raises(ValueError, match="references"):
            metric.compute(predictions=ANSWERS, references=wrong, format=FORMAT)
        assert metric.compute(predictions=[[1, 2]] * 4, references=LABELS, format=FORMAT)["n"] == 4


RUN_THE_EXAMPLE = """
import doctest, evaluate, os, sys
elsewhere, absolute = sys.argv[1:]
for path in ("./au_metric.py", absolute):
    text = evaluate.load(path).inputs_description.replace("./au_metric.py", path)
    example = doctest.DocTestParser().get_doctest(text, {"evaluate": evaluate}, path, None, 0)
    print(doctest.DocTestRunner().run(example))
    os.chdir(elsewhere)
"""


def test_the_documented_example_runs_in_a_fresh_offline_process(metric, tmp_path):
    """From the repository root by relative path, then from another folder by absolute path, with cold caches."""
    examples = len(doctest.DocTestParser().get_examples(metric.inputs_description))
    assert examples >= 8
    cache = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    cache["USE_TORCH"] = "0"  # `datasets` would import it, for nothing
    result = subprocess.run(
        [sys.executable, "-c", RUN_THE_EXAMPLE, str(tmp_path), str(SCRIPT)],
        cwd=SCRIPT.parent,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
    )
    expected = [f"TestResults(failed=0, attempted={examples})"] * 2
    assert result.stdout.split("\n")[:-1] == expected, result.stdout + result.stderr
