"""Engines: several processes learn what one process learns from the same batches, and save a plain checkpoint."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
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
def starts(tmp_path_factory):
    """Checkpoints by what is special about them, without batch norm: its statistics differ between processes."""
    folder = tmp_path_factory.mktemp("engines")
    special = {"untied": {}, "tied": {"tie_word_embeddings": True}, "text first": {"prompt_order": "text_first"}}
    for name, settings in special.items():
        for part in build_tiny("phrases", **settings):
            part.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def data(rendered_records, tmp_path_factory):
    """10 images, seen twice an epoch; every other image has labels in one format instead of three.

    Batches then hold unequal numbers of AUs, and the mean of their losses is not the loss of all.
    """
    folder = tmp_path_factory.mktemp("data") / "unequal"
    folder.mkdir()
    shutil.copy(rendered_records / "manifest.json", folder)
    for shard in rendered_records.glob("data-*.parquet"):
        with pq.ParquetFile(shard) as file:
            table = file.read()
        pairs = zip(table["frame"].to_pylist(), table["format"].to_pylist(), strict=True)
        pq.write_table(
            table.filter(pa.array([frame == 0 or name == "bp4d" for frame, name in pairs])), folder / shard.name
        )
    return f"{folder}=2"


def words(start, data, out, *flags) -> list[str]:
    common = ["--model_name_or_path", start, "--data", data, "--output_dir", out, *QUIET, "--max_steps", STEPS]
    common += ["--logging_steps", 1, "--learning_rate", 1e-3, "--causal_share", 0.5, "--flip", 0.5]
    common += ["--per_device_train_batch_size", 2, "--warmup_steps", 0]
    common += ["--optim", "sgd", "--max_grad_norm", 1e9]  # Adam and clipping would hide a wrong scale of gradients
    common += ["--activation_checkpointing", "false", "--per_device_eval_batch_size", 2]
    return [str(word) for word in (*common, *flags)]


def alone(start, data, out, *flags):
    """One process that takes the batches of two, one after the other."""
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


def logged(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def losses(folder) -> list[float]:
    return [entry["loss"] for entry in logged(folder) if "loss" in entry]


def assert_same(one, two, name="model.safetensors"):
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    norms = [[entry["grad_norm"] for entry in logged(folder) if "grad_norm" in entry] for folder in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    first, second = load_file(one / name), load_file(two / name)
    assert first.keys() == second.keys()
    for key, weight in first.items():
        torch.testing.assert_close(
            second[key], weight, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the processes would meet on the accelerator")
def test_processes_on_cpus_find_each_other_unasked(starts, data, tmp_path):
    """As torchrun starts them: each would otherwise train by itself, and both would write the output folder."""
    out = together("ddp", starts / "untied", data, tmp_path / "two", "--use_cpu", "false", "--max_steps", 1)
    assert logged(out)[0]["epoch"] == 0.2  # 20 rows, 2 a process and step


KINDS = {
    "everything": [],
    "tied": [],
    "text first": [],
    "text first, frozen and checkpointed": ["--freeze", "vision_tower", "--activation_checkpointing", "true"],
    "frozen and checkpointed": ["--freeze", "vision_tower", "--activation_checkpointing", "true"],
    "lora": ["--use_peft", "true", "--lora_r", 2, "--lora_dropout", 0],
    "unlabelled": ["--unlabelled", "FACES", "--unlabelled_per_labelled", 1.5, "--average_decay", 0.5],
}


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("ddp", "everything"),
        *(pytest.param("ddp", kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:]),
        *(pytest.param("fsdp2", kind, marks=pytest.mark.slow) for kind in KINDS if kind != "unlabelled"),
    ],
)
def test_two_processes_equal_one(starts, data, rendered_records, unlabelled_records, tmp_path, engine, kind):
    start = next((path for path in starts.iterdir() if kind.startswith(path.name)), starts / "untied")
    own = [unlabelled_records if flag == "FACES" else flag for flag in KINDS[kind]]
    flags = [*own, "--eval_strategy", "steps", "--eval_steps", STEPS]
    one = alone(start, data, tmp_path / "one", *flags)
    two = together(engine, start, data, tmp_path / "two", *flags)
    assert_same(one, two, "adapter_model.safetensors" if kind == "lora" else "model.safetensors")
    scores = [entry for entry in logged(two) if "eval_disfa_icc" in entry]
    assert len(scores) == 1
    if kind != "lora":
        model = AutoModelForImageTextToText.from_pretrained(two, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(two, trust_remote_code=True)
        image = load_records(rendered_records)[0]["image"]
        assert tuple(model.recognize(processor, [image])[0]["disfa"]) == FORMATS["disfa"].labels
        assert model.config.tie_word_embeddings == (kind == "tied")


@pytest.mark.slow
def test_an_average_needs_whole_weights(starts, data, tmp_path):
    with pytest.raises(AssertionError, match="ValueError: average_decay and unlabelled need whole weights"):
        together("fsdp2", starts / "untied", data, tmp_path / "two", "--average_decay", 0.9)


def test_accumulated_batches_equal_a_large_one(starts, data, tmp_path):
    """Four slot batches of two images, with unequal numbers of AUs and no flips, equal one of eight."""
    flags = ["--causal_share", 0, "--flip", 0, "--loss_weight_power", 0.5]
    large = [*flags, "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 1]
    small = [*flags, "--gradient_accumulation_steps", 4]
    assert_same(
        alone(starts / "untied", data, tmp_path / "large", *large),
        alone(starts / "untied", data, tmp_path / "small", *small),
    )
