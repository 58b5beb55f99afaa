"""Evaluation with ONNX Runtime: PyTorch's numbers, no PyTorch in the process, and the engine is told."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from datasets import Dataset
from huggingface_hub.errors import LocalEntryNotFoundError

from au_llava.au_evaluation.command import main
from au_llava.au_evaluation.commands import common
from au_llava.au_publishing import onnx_file
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.engines import Wish, checkpoint_folder, open_engine

FORMATS = ("bp4d", "disfa", "feafa")
HEAVY = ("torch", "transformers", "accelerate")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """A checkpoint that reads mirror images, with the graph of three formats beside its weights."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("engines") / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mirror_images": True}))
    assert onnx_file.run(["--model", str(folder), "--formats", *FORMATS, "--beside"]) == 0
    return folder


def words_of(checkpoint, records, out, *flags) -> list[str]:
    return [str(word) for word in ("--model", checkpoint, "--data", records, "--out", out, *flags)]


def results_of(out):
    return json.loads((out / "results.json").read_text()), Dataset.from_parquet(str(out / "predictions.parquet"))


def evaluate(checkpoint, records, out, *flags):
    main(words_of(checkpoint, records, out, *flags))
    return results_of(out)


@pytest.fixture(scope="module")
def with_torch(checkpoint, rendered_records, tmp_path_factory):
    return evaluate(checkpoint, rendered_records, tmp_path_factory.mktemp("torch"), "--engine", "torch")


def assert_same(rows, others) -> None:
    for row, other in zip(rows, others, strict=True):
        for key in ("row", "format", "values", "median", "present", "text", "problems", "contradictions", "references"):
            assert row[key] == other[key]
        for key in ("probability", "expected"):
            np.testing.assert_allclose(row[key], other[key], atol=1e-5, rtol=0)


def test_onnx_runtime_evaluates_without_pytorch(checkpoint, rendered_records, tmp_path, with_torch):
    """In a process where PyTorch, Transformers and accelerate cannot be imported."""
    program = f"""
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = lambda name: name.partition(".")[0] in {HEAVY!r}
PathFinder.find_spec = staticmethod(lambda name, *more: None if hidden(name) else find(name, *more))
from au_llava.eval_au import run
sys.exit(run({words_of(checkpoint, rendered_records, tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (results, rows), (expected, others) = results_of(tmp_path), with_torch
    assert_same(rows, others)
    told, other = results["provenance"], expected["provenance"]
    assert (told["engine"], other["engine"]) == ("onnx", "torch")
    for key in ("parameters", "dtype", "device", "mirror_images", "data", "decoding"):
        assert told[key] == other[key]
    for name in FORMATS:
        assert results["formats"][name]["n"] == expected["formats"][name]["n"] == 6
        for metric, value in results["formats"][name]["mean"].items():
            assert value == pytest.approx(expected["formats"][name]["mean"][metric], abs=1e-5)


def test_onnx_runtime_knows_how_many_numbers_were_learned(checkpoint):
    model, _ = load_checkpoint(checkpoint)
    engine = open_engine(Wish(str(checkpoint), (), engine="onnx"))
    assert engine.parameters == model.num_parameters()
    assert any(name.endswith("running_mean") for name in model.state_dict())  # which are not learned


def test_an_evaluation_goes_on_with_the_engine_that_began_it(checkpoint, rendered_records, tmp_path, monkeypatch):
    flags = ("--batch-size", 2, "--engine")
    opened = common.open_engine

    def failing(wish):
        engine, calls = opened(wish), []
        recognize = engine.recognize

        def second_fails(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return recognize(*arguments)

        engine.recognize = second_fails
        return engine

    with monkeypatch.context() as changed:
        changed.setattr(common, "open_engine", failing)
        with pytest.raises(KeyboardInterrupt):
            evaluate(checkpoint, rendered_records, tmp_path, *flags, "onnx")
    with pytest.raises(ValueError, match=r"another run \(other engine, checkpoint\)"):
        evaluate(checkpoint, rendered_records, tmp_path, *flags, "torch")
    _, rows = evaluate(checkpoint, rendered_records, tmp_path, *flags, "onnx")
    _, whole = evaluate(checkpoint, rendered_records, tmp_path / "whole", *flags, "onnx")
    assert rows.to_list() == whole.to_list()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoding", "free"], "reads slots only"),
        (["--quantize", "8bit"], "reads with whole weights"),
    ],
)
def test_what_onnx_runtime_cannot_do_is_refused(checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        evaluate(checkpoint, rendered_records, tmp_path, *flags, "--engine", "onnx")


def test_calibration_reads_the_same_with_mirror_images_and_without(checkpoint, rendered_records, tmp_path):
    """Of ten images alone the fits themselves jump with the last digit, but not what they are made from."""
    before = {}
    for engine in ("torch", "onnx"):
        folder, out = shutil.copytree(checkpoint, tmp_path / engine), tmp_path / f"out-{engine}"
        main(["calibrate", *words_of(folder, rendered_records, out, "--part", "train", "--engine", engine)])
        assert json.loads((folder / "config.json").read_text())["calibration"]["fitted_on"]["images"] == 10
        report = json.loads((out / "calibration.json").read_text())["formats"]
        before[engine] = [report[name]["all"][key] for name in FORMATS for key in ("log_loss_before", "brier_before")]
    assert before["onnx"] == pytest.approx(before["torch"], abs=1e-4)
    words = words_of(tmp_path / "onnx", rendered_records, tmp_path / "out", "--part", "train", "--no-mirror")
    main(["calibrate", *words, "--engine", "onnx"])
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["mirror_images"] is False


def test_checkpoints_that_are_not_there_are_named(monkeypatch):
    for name in ("/nowhere/model", "runs/a/b"):
        with pytest.raises(
            ValueError, match=f"There is no folder {name}: name the folder of a checkpoint, or a Hub id"
        ):
            open_engine(Wish(name, ()))

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no such snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(OSError, match="There is no folder modle, and the Hub"):
        checkpoint_folder("modle")
