"""The scripts of maintenance/: the untrained base of the shipped checkpoint, and putting a checkpoint in its place."""

import json

import pytest
import torch
from conftest import load_tool
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import FORMATS
from au_llava.au_runs.manifests import read_training_manifest, training_manifest, write_training_manifest


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
