"""The scripts of maintenance/: the untrained base, putting a checkpoint in its place, and the version."""

import json
import re
import shutil
import tomllib
from datetime import date

import pytest
import torch
import yaml
from conftest import ROOT, build_tiny, load_tool, random_faces
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import ACTION_UNITS, FORMATS, prompt
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.manifests import read_training_manifest, training_manifest, write_training_manifest
from au_llava.au_runs.provenance import weights_sha256
from au_llava.au_training import untrained


def test_the_base_is_the_same_for_a_seed(tmp_path):
    tool = load_tool("build_tiny_base")
    for name, seed in {"first": "1", "again": "1", "other": "2"}.items():
        assert tool.run(["--out", str(tmp_path / name), "--seed", seed, "--image_size", "64"]) == 0
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again", "other"))
    head = "model.language_model.layers.0.mlp.up_proj.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[head], other[head])
    processor = AutoProcessor.from_pretrained(tmp_path / "first", trust_remote_code=True)
    assert processor.image_processor.crop_size == {"height": 64, "width": 64}
    words = "AU1: 0, AU2: 1"
    assert processor.tokenizer.tokenize(words) == ["AU1: ", "0", ", ", "AU2: ", "1"]


def test_an_installed_checkpoint_is_small_and_says_who_it_has_seen(tiny_checkpoint, tmp_path):
    tool, root = load_tool("install_checkpoint"), tmp_path / "root"
    root.mkdir()
    with pytest.raises(ValueError, match=r"has no training_manifest.json"):
        tool.install(tiny_checkpoint, root)
    checkpoint = tmp_path / "trained"
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    model.save_pretrained(checkpoint)
    AutoProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True).save_pretrained(checkpoint)
    manifest = training_manifest(["rendered:R0-000001", "rendered:R0-000002"], [], [], [*FORMATS], {})
    write_training_manifest(checkpoint, manifest)
    tool.install(checkpoint, root)
    weights = load_file(root / "model.safetensors")
    assert torch.bfloat16 in {weight.dtype for weight in weights.values()}
    assert json.loads((root / "config.json").read_text())["dtype"] == "float32"
    assert read_training_manifest(str(root)) == manifest


def test_labels_that_came_later_get_tokens_when_a_checkpoint_is_installed(tmp_path, monkeypatch):
    """They start as the mean of what spelled them; other prompts and their answers stay as they were."""
    later = ("AD101", "AD101L", "AD101R", "AD102")
    monkeypatch.setattr(untrained, "ACTION_UNITS", {k: v for k, v in ACTION_UNITS.items() if k not in later})
    model, processor = build_tiny("phrases")
    trained, root = tmp_path / "trained", tmp_path / "root"
    for part in (model, processor):
        part.save_pretrained(trained)
    write_training_manifest(trained, training_manifest(["rendered:R0-000001"], [], [], [*FORMATS], {}))
    monkeypatch.undo()
    shutil.copytree(trained, root)  # with the code
    load_tool("install_checkpoint").install(trained, root)
    installed, beside = load_checkpoint(str(root))
    assert len(beside.tokenizer) == len(processor.tokenizer) + 2 * len(later) == installed.config.text_config.vocab_size
    assert beside.tokenizer.tokenize("AD101L: ") == ["AD101L: "]
    spelled = processor.tokenizer("AD101L: ", add_special_tokens=False).input_ids
    assert len(spelled) == len("AD101L: ")
    new = beside.tokenizer.convert_tokens_to_ids("AD101L: ")
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(each, name)().weight for each in (model, installed))
        assert_close(after[new], before[spelled].mean(0), atol=2e-3, rtol=1e-2)  # bfloat16
    text = prompt(FORMATS["feafa"])
    assert beside.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    rounded, _ = load_checkpoint(str(trained), dtype="bfloat16")
    assert_close(distributions(installed, beside), distributions(rounded.float(), processor), atol=1e-5, rtol=0)


def test_installed_adapters_load_beside_their_base_alone(tiny_checkpoint, tmp_path, monkeypatch):
    """From the root, with its processor, as base and adapters together answer; nowhere else, on no other weights."""
    tool, root, trained = load_tool("install_checkpoint"), tmp_path / "root", tmp_path / "trained"
    shutil.copytree(tiny_checkpoint, root)
    with pytest.raises(ValueError, match="trained holds no adapters"):
        tool.install_adapters(trained, root / "adapters", root)
    model = adapt(AutoModelForImageTextToText.from_pretrained(root, trust_remote_code=True), trained)
    manifest = training_manifest(["rendered:R0-000001"], [], [], [*FORMATS], {})
    for weights in ({}, {"base_weights": {"model.safetensors": "0" * 64}}):
        write_training_manifest(trained, manifest | weights)
        with pytest.raises(ValueError, match="was not trained on the weights in"):
            tool.install_adapters(trained, root / "adapters", root)
    write_training_manifest(trained, manifest | {"base_weights": weights_sha256(str(root))})
    tool.install_adapters(trained, root / "adapters", root)
    names = {path.name for path in (root / "adapters").iterdir()}
    assert names == {*tool.ADAPTER_FILES, "training_manifest.json"}
    stored = load_file(root / "adapters" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}

    monkeypatch.chdir(root)
    read, processor = load_checkpoint("adapters")
    assert_close(distributions(read, processor), distributions(model, processor), atol=2e-3, rtol=0)  # rounded weights
    untouched = AutoModelForImageTextToText.from_pretrained(root, trust_remote_code=True)
    assert (distributions(untouched, processor) - distributions(model, processor)).abs().max() > 0.01
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is not the base that the adapters in root/adapters were trained on"):
        load_checkpoint("root/adapters")


def adapt(base, folder):
    """Random adapters on `base`, saved in `folder`; returns base and adapters together."""
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|down_proj)")).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def distributions(model, processor) -> torch.Tensor:
    [result] = model.recognize(processor, random_faces(1), formats=["disfa"])
    return torch.tensor([reading.distribution for reading in result["disfa"].values()])


def stage_of(checkpoint, folder, seed: int, people: list[str], base=None):
    """A checkpoint whose weights and running statistics differ from those of another seed."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in [*model.parameters(), *(each for each in model.buffers() if each.is_floating_point())]:
            weight.add_(torch.rand(weight.shape, generator=generator))
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True).save_pretrained(folder)
    write_training_manifest(folder, training_manifest(people, [], [], [*FORMATS], {}, base=base))
    return folder


def test_stages_of_a_training_are_averaged(tiny_checkpoint, tmp_path, capsys):
    tool = load_tool("average_checkpoints")
    second = stage_of(tiny_checkpoint, tmp_path / "second", 1, ["rendered:R0-000001"])
    base = read_training_manifest(str(second))
    third = stage_of(tiny_checkpoint, tmp_path / "third", 2, ["rendered:R0-000002"], base)
    assert tool.run([str(second), str(third), "--out", str(tmp_path / "mean")]) == 0
    before, after, mean = (load_file(tmp_path / name / "model.safetensors") for name in ("second", "third", "mean"))
    assert before.keys() == mean.keys()
    for name, weight in mean.items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, (before[name] + after[name]) / 2)
    assert read_training_manifest(str(tmp_path / "mean")) == read_training_manifest(str(third))
    assert tool.run([str(third), str(second), "--out", str(tmp_path / "wrong")]) == 1
    assert "name the last stage of the training last" in capsys.readouterr().err
    assert tool.run([str(third), "--out", str(tmp_path / "one")]) == 1
    assert "Name two checkpoints or more" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


VERSIONED = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")


def versions(root) -> tuple[str, str, object, list[tuple[str, str]]]:
    """What the package, the citation (with its day) and the changelog say."""
    package = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    changelog = re.findall(r"^## ([\d.]+) \((.+)\)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    return package, citation["version"], citation.get("date-released"), changelog


def test_package_citation_and_changelog_name_one_version():
    package, cited, day, changelog = versions(ROOT)
    assert package == cited
    assert [(package, str(day))] == changelog[:1] if changelog else day is None


@pytest.fixture
def copy(tmp_path):
    for name in VERSIONED:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_a_new_version_stands_in_all_three(copy):
    tool = load_tool("set_version")
    before = versions(copy)[3]
    changes = (copy / "CHANGELOG.md").read_text().partition("## Unreleased\n")[2]
    tool.set_version(copy, "7.0.0", date(2027, 1, 15))
    assert versions(copy) == ("7.0.0", "7.0.0", date(2027, 1, 15), [("7.0.0", "2027-01-15"), *before])
    assert (copy / "CHANGELOG.md").read_text().endswith(f"## Unreleased\n\n## 7.0.0 (2027-01-15)\n{changes}")
    tool.set_version(copy, "7.0.1", date(2027, 2, 1))
    assert versions(copy)[:3] == ("7.0.1", "7.0.1", date(2027, 2, 1))
    assert (copy / "CITATION.cff").read_text().count("date-released") == 1


@pytest.mark.parametrize(
    ("version", "message"),
    [("7.0.0", "is not above 7.0.0"), ("6.9", "is not above 7.0.0"), ("seven", "'seven' is no version")],
)
def test_a_version_that_cannot_be(copy, version, message):
    tool = load_tool("set_version")
    tool.set_version(copy, "7.0.0", date(2027, 1, 15))
    before = [(copy / name).read_text() for name in VERSIONED]
    with pytest.raises(ValueError, match=message):
        tool.set_version(copy, version, date(2027, 1, 16))
    assert [(copy / name).read_text() for name in VERSIONED] == before


def test_a_changelog_without_changes_is_no_release(copy):
    (copy / "CHANGELOG.md").write_text("# Changelog\n")
    with pytest.raises(ValueError, match="say there what changed"):
        load_tool("set_version").set_version(copy, "7.0.0", date(2027, 1, 15))
