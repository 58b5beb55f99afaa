"""The `evaluate` metric: loading offline from anywhere, and what it computes."""

import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

from au_llava.action_units import FORMATS, AUFormat

SCRIPT = Path(__file__).parents[1] / "au_metric.py"
NAN = float("nan")
FORMAT = AUFormat("mine", ("AU6", "AU12"), "intensity")


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield cache


@pytest.fixture
def metric(offline, tmp_path):
    return evaluate.load(str(SCRIPT), cache_dir=str(tmp_path))


def test_answers_are_parsed_and_scored(metric):
    scores = metric.compute(
        predictions=["AU6: 1, AU12: 3", "AU6: 4, AU12: 1", "no idea", "**AU06** = 3; AU12 is not visible"],
        references=[[1, NAN], [2, 1], [5, 5], [3, 2]],
        format=FORMAT,
    )
    assert scores["mae_AU6"] == pytest.approx(2 / 3)
    assert scores["mae_AU12"] == 1.0
    assert scores["mae"] == pytest.approx(5 / 6)
    assert (scores["n"], scores["n_AU6"], scores["n_AU12"], scores["annotated"]) == (4, 3, 2, 7)
    assert scores["unparsed_rate"] == pytest.approx(2 / 7)
    assert (scores["unparsed_AU6"], scores["support_AU6"], scores["support_AU12"]) == (1, 2, 1)
    assert scores["f1_AU6"] == 1
    assert {f"{name}{au}" for name in ("f1", "icc", "pcc", "mae", "mse") for au in ("", "_AU6", "_AU12")} <= set(scores)


def test_formats_by_name_by_dict_and_by_object_agree(metric):
    case = {"predictions": ["AU1, AU12", "AU4"], "references": [[1, 0, 0, 0, 0, 0, 1] + [0] * 5, [NAN] * 2 + [1] * 10]}
    fmt = FORMATS["bp4d"]
    by_name, by_dict, by_object = (metric.compute(**case, format=how) for how in ("bp4d", fmt.to_dict(), fmt))
    assert str(by_name) == str(by_dict) == str(by_object)
    assert (by_name["f1_AU1"], by_name["f1_AU4"], by_name["f1_AU10"], by_name["n_AU2"]) == (1, 1, 0, 1)
    assert math.isnan(by_name["f1_AU2"])
    assert "mae" not in by_name


def test_add_and_add_batch(metric):
    metric.add(prediction="AU6: 1, AU12: 3", reference=[1, 3])
    metric.add_batch(predictions=["AU6: 0, AU12: 0", "AU6: 0"], references=[[1, 0], [0, None]])
    scores = metric.compute(format=FORMAT)
    assert (scores["n_AU6"], scores["n_AU12"], scores["mae_AU6"]) == (3, 2, pytest.approx(1 / 3))


def test_combine(metric):
    both = evaluate.combine({"ours": metric, "again": metric})
    scores = both.compute(predictions=["AU6: 1, AU12: 3"], references=[[1, 3]], format=FORMAT)
    assert scores["ours_mae"] == scores["again_mae"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": [[1, 2]]}, "None is no format"),
        ({"references": [[1, 2]], "format": "bp5d"}, "unknown format 'bp5d'"),
        (
            {"references": [[1, 2, 3]], "format": FORMAT},
            r"rows of \[3\] numbers, but format 'mine' has 2 AUs: AU6, AU12",
        ),
        ({"references": [[9, 2]], "format": FORMAT}, "not from 0 to 5, such as 9"),
        ({"references": [[1, 2], [1, 2]], "format": FORMAT}, r"predictions \(1\) and references \(2\)"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=["AU6: 1, AU12: 3"], **arguments)


RUN_THE_EXAMPLE = """
import doctest, evaluate, os, sys
elsewhere, absolute = sys.argv[1:]
for path in ("./au_metric.py", absolute):
    text = evaluate.load(path).inputs_description.replace("./au_metric.py", path)
    example = doctest.DocTestParser().get_doctest(text, {"evaluate": evaluate}, path, None, 0)
    print(doctest.DocTestRunner().run(example))
    os.chdir(elsewhere)
"""


def test_the_documented_example_runs_in_a_fresh_offline_process(tmp_path):
    """From the repository root by relative path, then from another folder by absolute path, with cold caches."""
    cache = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", RUN_THE_EXAMPLE, str(tmp_path), str(SCRIPT)],
        cwd=SCRIPT.parent,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split("\n")[:-1] == ["TestResults(failed=0, attempted=6)"] * 2, result.stdout + result.stderr
