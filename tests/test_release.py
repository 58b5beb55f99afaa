"""Publishing: a fake Hub receives just the files that a stranger needs to load the model and get the same answers."""

import json
import os
import re
import shutil
import subprocess
import sys

import hub_server
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, build_tiny, random_faces
from huggingface_hub import EvalResultEntry, ModelCard, constants, parse_eval_result_entries
from PIL import Image

from au_llava.au_publishing import release
from au_llava.au_publishing.card import base_models, license_notes
from au_llava.au_publishing.release import gather
from au_llava.au_publishing.upload import upload
from au_llava.au_runs.manifests import training_manifest, write_training_manifest
from au_llava.au_training.command import main as train
from au_llava.au_training.command import make_parser

# What the other process runs: Hub id, folder of expected tensors and picture.
STRANGER = """
import sys
import torch
from transformers import AutoModel, AutoProcessor
repo, folder = sys.argv[1:]
model = AutoModel.from_pretrained(repo, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
assert "au_llava" not in sys.modules
answers = model.recognize(processor, f"{folder}/face.png")[0]
read = torch.tensor([each.probability for answer in answers.values() for each in answer.values()])
torch.testing.assert_close(read, torch.load(f"{folder}/expected.pt", weights_only=True), rtol=0, atol=1e-6)
print("the same")
"""


@pytest.fixture
def hub(monkeypatch):
    with hub_server.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield server


def manifest_of(people, recipe=None, base=None):
    return training_manifest(people, [], ["/secret/place/data/faces"], ["disfa"], recipe or {}, base)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as training leaves it, with files that must not be published; and the model in it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    model, processor = build_tiny()
    model.save_pretrained(folder, max_shard_size="100KB")
    processor.save_pretrained(folder)
    recipe = {"learning_rate": 0.1, "vision": "google/siglip2-base-patch16-224", "text": "HuggingFaceTB/SmolLM2-135M"}
    write_training_manifest(folder, manifest_of(["bp4d:F001", "rendered:R0-1"], recipe))
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nTrained on /secret/place/data/faces.\n")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "data-00000.parquet", "face.png", "notes.txt"):
        (folder / name).write_bytes(b"private")
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"private")
    return folder, model, processor


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    mean = {"f1": 0.5, "icc": 0.25, "mcc": 0.125, "pcc": None}
    origin = {"data": {"data/test": "abc"}, "part": "test", "decoding": "slots", "date": "2026-01-02T03:04:05+00:00"}
    scores = {"provenance": origin, "formats": {"disfa": {"mean": mean, "n": 7}}}
    (folder / "results.json").write_text(json.dumps(scores))
    return folder


def run(*words) -> int:
    return release.run([str(word) for word in words])


def expected_files(folder):
    weights = {path.name for path in folder.glob("model-*.safetensors")} | {"model.safetensors.index.json"}
    code = {path.name for path in folder.glob("*.py")}
    templates = {"chat_template.jinja", "decision_template.jinja"}
    processor = templates | {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert len(weights) > 2
    assert "pipeline_au_llava.py" in code
    return (
        weights
        | code
        | processor
        | {*("README.md", "config.json", "decision.json", "generation_config.json")}
        | {*("training_manifest.json", "recipe.yaml")}
    )


def test_a_dry_run_lists_the_files_without_a_request(hub, trained, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    folder, *_ = trained
    assert run(folder, "--repo_id", "someone/mine", "--dry_run") == 0  # underscores are accepted
    lines = capsys.readouterr().out.splitlines()
    listed = {
        line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines if re.match(r" +[\d,]+  \S+$", line)
    }
    assert listed.keys() == expected_files(folder)
    assert listed["config.json"] == (folder / "config.json").stat().st_size
    total = next(line for line in lines if "bytes in" in line)
    assert int(total.split()[0].replace(",", "")) == sum(listed.values())
    left = " ".join(line for line in lines if line.startswith("Left out"))
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-4", "data-00000.parquet", "face.png", "notes.txt"):
        assert name in left
    assert lines[-1] == "Nothing was sent."
    assert hub.requests == []


def test_a_stranger_loads_what_was_published(hub, trained, evaluation, tmp_path, capsys):
    folder, model, processor = trained
    assert run(folder, "--repo-id", "someone/mine", "--evaluation", evaluation) == 0
    repo = hub.repositories["someone/mine"]
    assert repo["private"]
    assert repo["files"].keys() == expected_files(folder)
    assert "hf_write" not in capsys.readouterr().out
    for content in repo["files"].values():
        assert b"hf_write" not in content
        assert b"/secret" not in content
        assert str(folder).encode() not in content
    assert any(path.startswith("lfs/") for method, path in hub.requests if method == "PUT")

    Image.fromarray(np.round(random_faces(1)[0] * 255).astype(np.uint8)).save(tmp_path / "face.png")
    answers = model.recognize(processor, tmp_path / "face.png")[0]
    torch.save(torch.tensor([r.probability for a in answers.values() for r in a.values()]), tmp_path / "expected.pt")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_read"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    words = [sys.executable, "-I", "-c", STRANGER, "someone/mine", str(tmp_path)]
    stranger = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert stranger.stdout.strip().endswith("the same"), stranger.stderr[-3000:]


def test_the_card_says_what_is_known(trained, evaluation):
    folder, *_ = trained
    card = ModelCard(gather(folder, "someone/mine", [evaluation]).files["README.md"].decode())
    assert card.data.base_model == ["google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M"]
    assert (card.data.license, card.data.library_name) == ("other", "transformers")
    results = {(r.metric_type, r.dataset_config): (r.metric_value, r.dataset_split) for r in card.data.eval_results}
    assert results == {("f1", "disfa"): (0.5, "test"), ("icc", "disfa"): (0.25, "test")}
    assert 'AutoModel.from_pretrained("someone/mine", trust_remote_code=True)' in card.text
    assert "| test | test | 7 | slots | disfa | 0.500 |" in card.text
    assert "Trained on BP4D, which is distributed by Binghamton University, under a signed agreement." in card.text
    assert "Trained on faces." in card.text


def test_recipe_runs_again(trained, tmp_path):
    folder, *_ = trained
    recipe = gather(folder, "someone/mine").files["recipe.yaml"]
    assert yaml.safe_load(recipe)["data"] == ["faces"]
    (tmp_path / "recipe.yaml").write_bytes(recipe)
    words = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    ours, training, _ = make_parser().parse_args_and_config(words, fail_with_unknown_args=True)
    assert (ours.text, training.learning_rate) == ("HuggingFaceTB/SmolLM2-135M", 0.1)


def test_eval_results_are_written_for_a_benchmark_on_the_hub(trained, evaluation):
    folder, *_ = trained
    files = gather(folder, "someone/mine", [evaluation], benchmark="lab/faces-test").files
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/faces-test-1.yaml"]))
    origin = {"date": "2026-01-02T03:04:05+00:00", "notes": "decoder slots, part test, mean over AUs"}
    assert entries == [
        EvalResultEntry("lab/faces-test", "disfa_f1", 0.5, **origin),
        EvalResultEntry("lab/faces-test", "disfa_icc", 0.25, **origin),
    ]
    assert not any(name.startswith(".eval_results") for name in gather(folder, "someone/mine", [evaluation]).files)


def test_terms_follow_the_data_over_several_trainings():
    assert "not recorded which data" in license_notes(None)[0]
    assert license_notes(manifest_of(["rendered:R0-1"])) == []
    first = manifest_of(["disfa:SN001"], {"vision": "openai/clip", "text": "lmsys/vicuna"})
    second = manifest_of(["rendered:R0-1", "mine:anna"], {"model_name_or_path": "runs/stage1"}, base=first)
    notes = license_notes(second)
    assert [note.split(",")[0] for note in notes[:2]] == ["Trained on DISFA", "Trained on mine"]
    assert "Started from openai/clip and lmsys/vicuna" in notes[2]
    assert base_models(second) == ["openai/clip", "lmsys/vicuna"]


def test_the_shipped_checkpoint_can_be_published():
    made = gather(ROOT, "someone/au-llava-tiny", [ROOT / "assets" / "evaluation" / "slots.json"])
    code = {name for name in made.files if name.endswith(".py")}
    assert {"modeling_au_llava.py", "processing_au_llava.py", "action_units.py"} <= code
    assert not code & {"train_sft.py", "eval_au.py", "au_publishing/release.py"}
    assert {"model.safetensors", "LICENSE", "NOTICE", "handler.py", "training_manifest.json"} <= made.files.keys()
    card = ModelCard(made.files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert made.notes == []
    assert {result.dataset_name for result in card.data.eval_results} == {"rendered-test"}


def broken(trained, tmp_path, change):
    folder = tmp_path / "mine"
    shutil.copytree(trained[0], folder)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [path.unlink() for path in f.glob("model*")], r"lacks weights \(model.safetensors\)"),
        (lambda f: next(f.glob("model-*")).unlink(), "is missing or not a complete safetensors file"),
        (lambda f: next(f.glob("model-*")).write_bytes(b"cut off"), "not a complete safetensors file"),
        (lambda f: (f / "processor_config.json").unlink(), "lacks processor_config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "lacks a tokenizer"),
        (lambda f: (f / "decoding_au_llava.py").unlink(), "lacks decoding_au_llava.py, which its checkpoint loads"),
        (lambda f: (f / "pipeline_au_llava.py").unlink(), "lacks pipeline_au_llava.py"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "holds pytorch_model.bin: pickles run code"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds LoRA adapters.*merge them"),
        (lambda f: (f / "README.md").unlink(), "has no README.md"),
        (shutil.rmtree, "lacks weights"),
    ],
)
def test_incomplete_checkpoints_are_refused(trained, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        gather(broken(trained, tmp_path, change), "someone/mine")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation", "nowhere"], "nowhere cannot be read as results of eval_au.py"),
        (["--evaluation", ROOT / "assets" / "published_results.json"], "does not hold the scores of one checkpoint"),
        (["--benchmark", "lab/faces"], "name the evaluation too"),
        (["--repo-id", "mine"], "give USER/NAME"),
    ],
)
def test_bad_flags_are_named(trained, flags, message, capsys):
    assert run(trained[0], "--repo-id", "someone/mine", "--dry-run", *flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "someone/new", "No Hugging Face token: run `hf auth login`"),
        ("hf_secret_wrong", "someone/new", "does not accept the token"),
        ("hf_read", "someone/new", "may not write to someone/new"),
        ("hf_write", "other/new", "may not write to other/new"),
        ("hf_write", "someone/old", "someone/old exists: choose another name"),
    ],
)
def test_the_hub_says_no(hub, monkeypatch, token, repo_id, message):
    upload("someone/old", {"README.md": b"old"}, "first")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=message) as error:
        upload(repo_id, {"README.md": b"new"}, "second")
    assert "hf_" not in str(error.value).replace("HF_TOKEN", "")
    assert hub.repositories.keys() == {"someone/old"}
    assert hub.repositories["someone/old"]["files"] == {"README.md": b"old"}


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="The Hub cannot be reached"):
        upload("someone/new", {"README.md": b"new"}, "first")


def test_an_update_replaces_the_weights(hub):
    old = {"model.safetensors": b"1", "README.md": b"1", "picture.png": b"theirs"}
    upload("someone/mine", old, "first", private=False)
    assert not hub.repositories["someone/mine"]["private"]
    upload("someone/mine", {"model-00001-of-00001.safetensors": b"2", "README.md": b"2"}, "second", update=True)
    files = hub.repositories["someone/mine"]["files"]
    assert files == {"model-00001-of-00001.safetensors": b"2", "README.md": b"2", "picture.png": b"theirs"}


def test_training_publishes_its_result(hub, tiny_checkpoint, rendered_records, tmp_path):
    words = ["--model_name_or_path", tiny_checkpoint, "--data", rendered_records, "--output_dir", tmp_path / "mine"]
    words += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", 1, "--save_steps", 1]
    words = [str(word) for word in (*words, "--per_device_train_batch_size", 2, "--push_to_hub", "true")]
    train(*make_parser().parse_args_and_config(words))
    repo = hub.repositories["someone/mine"]
    assert repo["private"]
    assert repo["commits"] == 1
    assert {"model.safetensors", "modeling_au_llava.py", "training_manifest.json", "recipe.yaml"} <= repo[
        "files"
    ].keys()
    assert not any(name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name for name in repo["files"])
    assert repo["files"]["model.safetensors"] == (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert str(tmp_path).encode() not in b"".join(repo["files"].values())
    with pytest.raises(ValueError, match="someone/mine exists"):  # before anything is trained
        train(*make_parser().parse_args_and_config([*words, "--data", "nowhere"]))
    with pytest.raises(ValueError, match="merge the adapters"):
        train(*make_parser().parse_args_and_config([*words, "--use_peft", "true"]))
