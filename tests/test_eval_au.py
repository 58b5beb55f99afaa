"""Evaluation: what is written, that it agrees with the metrics computed apart, and that processes do not matter."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from datasets import Dataset
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import load_records
from au_llava.eval_au import main, make_parser

ALL = ("bp4d", "disfa", "feafa")


def evaluate(checkpoint, records, out, *flags):
    words = ["--model", checkpoint, "--data", records, "--out", out, *flags]
    main(make_parser().parse_args([str(word) for word in words]))
    return json.loads((out / "results.json").read_text()), Dataset.from_parquet(str(out / "predictions.parquet"))


@pytest.fixture(scope="module")
def evaluated(tiny_checkpoint, rendered_records, tmp_path_factory):
    return evaluate(tiny_checkpoint, rendered_records, tmp_path_factory.mktemp("eval"), "--batch_size", 2)


def test_every_record_is_predicted_once_beside_its_labels(evaluated, rendered_records):
    _, predictions = evaluated
    records = load_records(rendered_records, part="test")
    key = ("subject", "clip", "frame", "format")
    expected = {tuple(row[k] for k in key): row["values"] for row in records.remove_columns("image")}
    actual = {tuple(row[k] for k in key): row["references"] for row in predictions}
    assert actual == expected
    assert len(predictions) == len(records)
    for row in predictions:
        labels = FORMATS[row["format"]].labels
        assert len(row["values"]) == len(row["expected"]) == len(row["probability"]) == len(labels)
        assert row["problems"] == []


def test_scores_equal_independent_ones(evaluated):
    results, predictions = evaluated
    for name in ALL:
        rows = [row for row in predictions if row["format"] == name]
        references = np.array([row["references"] for row in rows])
        read = np.array([row["values" if name == "bp4d" else "expected"] for row in rows])
        for column, label in enumerate(FORMATS[name].labels):
            scores = results["formats"][name]["per_au"][label]
            truth, guess = references[:, column], read[:, column]
            if name == "bp4d":
                assert scores["accuracy"] == pytest.approx(accuracy_score(truth, guess))
                if truth.any():
                    assert scores["f1"] == pytest.approx(f1_score(truth, guess, zero_division=0))
                assert scores["support"] == truth.sum()
            else:
                assert scores["mae"] == pytest.approx(np.abs(truth - guess).mean(), rel=1e-5)
                if np.ptp(truth) > 0:
                    assert scores["pcc"] == pytest.approx(pearsonr(truth, guess).statistic, abs=1e-6)
                else:
                    assert scores["pcc"] is None
        means = [scores["mae"] for scores in results["formats"]["feafa"]["per_au"].values()]
        assert results["formats"]["feafa"]["mean"]["mae"] == pytest.approx(np.mean(means))


def test_results_say_where_they_come_from(evaluated, rendered_records):
    results, _ = evaluated
    provenance = results["provenance"]
    assert results["schema_version"] == 1
    manifest = json.loads((rendered_records / "manifest.json").read_text())
    assert provenance["data"] == {str(rendered_records): manifest["content_sha256"]}
    assert (provenance["part"], provenance["decoding"]) == ("test", "slots")
    assert provenance["packages"]["transformers"]
    assert results["formats"]["bp4d"]["n"] == 6
    assert results["formats"]["bp4d"]["unparsed"] == 0


@pytest.mark.parametrize("decoding", ["constrained", "free"])
def test_other_decoders(tiny_checkpoint, rendered_records, tmp_path, decoding):
    flags = ["--decoding", decoding, "--formats", "disfa", "--max_images", 2]
    results, predictions = evaluate(tiny_checkpoint, rendered_records, tmp_path, *flags)
    assert list(results["formats"]) == ["disfa"]
    assert len(predictions) == 2
    unread = sum(np.isnan(row["values"]).sum() for row in predictions)
    assert results["formats"]["disfa"]["unparsed"] == unread
    if decoding == "constrained":
        assert unread == 0


def test_two_processes_give_the_same_predictions(evaluated, tiny_checkpoint, rendered_records, tmp_path):
    launch = "accelerate.commands.accelerate_cli launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    words = [*launch.split(), "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", ROOT / "eval_au.py"]
    words += ["--model", tiny_checkpoint, "--data", rendered_records, "--out", tmp_path, "--batch_size", "2"]
    run = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    results, _ = evaluated
    assert json.loads((tmp_path / "results.json").read_text())["formats"] == results["formats"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--part", "holiday"], "no record of part 'holiday'"),
        (["--formats", "bp5d"], "bp5d"),
    ],
)
def test_bad_input_is_named(tiny_checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(tiny_checkpoint, rendered_records, tmp_path, *flags)


def test_unknown_flags_are_refused(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--data", "x", "--out", "y", "--modle", "z"])
    assert "--modle" in capsys.readouterr().err
