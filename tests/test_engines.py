"""Engines: several processes learn what one process learns from the same batches, and save a plain checkpoint."""

import json

import pytest
import torch
import yaml
from commands import QUIET, run
from conftest import ROOT, build_tiny
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import FORMATS
from au_llava.au_datasets.records import load_records

STEPS = 5


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint whose tower has no batch norm: its statistics are each process's own."""
    folder = tmp_path_factory.mktemp("engines") / "start"
    for part in build_tiny("phrases"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(rendered_records):
    """20 rows; half of them know one format, half three: losses of equal weight per batch would be wrong."""
    return [rendered_records, f"{{path: {rendered_records}, formats: [bp4d]}}"]


def words(start, data, out, *flags) -> list[str]:
    common = ["--model_name_or_path", start, "--data", *data, "--output_dir", out, *QUIET, "--max_steps", STEPS]
    common += ["--logging_steps", 1, "--learning_rate", 1e-2, "--causal_share", 0.5, "--flip", 0.5]
    common += ["--per_device_train_batch_size", 2, "--gradient_checkpointing", "false", "--warmup_steps", 0]
    return [str(word) for word in (*common, *flags)]


def alone(start, data, out, *flags):
    """One process, which takes the batches of two one after another."""
    code, output = run(words(start, data, out, "--gradient_accumulation_steps", 2, *flags), out.with_suffix(".log"))
    assert code == 0, output
    return out


def together(engine, start, data, out, *flags):
    """Two processes under "ddp" or "fsdp2"."""
    script, environment = ROOT / "train_sft.py", {}
    if engine == "fsdp2":
        script = ROOT / "tests" / "fsdp_on_cpu.py"
        options = yaml.safe_load((ROOT / "recipes" / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
        environment = {name.upper(): value for name, value in options.items()} | {"ACCELERATE_USE_FSDP": "true"}
    arguments = words(start, data, out, *flags)
    code, output = run(arguments, out.with_suffix(".log"), processes=2, script=script, **environment)
    assert code == 0, output
    return out


def losses(folder) -> list[float]:
    logged = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in logged if "loss" in entry]


def assert_same(one, two, name="model.safetensors"):
    """Loss curves and weights agree; the weights have moved far more than they differ."""
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    first, second = load_file(one / name), load_file(two / name)
    assert first.keys() == second.keys()
    for key, weight in first.items():
        torch.testing.assert_close(
            second[key], weight, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_equal_one(start, data, tmp_path, engine):
    one = alone(start, data, tmp_path / "one")
    two = together(engine, start, data, tmp_path / "two")
    assert_same(one, two)
