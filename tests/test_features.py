"""Cached image features: training from them equals training from images, and what would make them wrong is refused."""

import json
import os
import shutil
import time
from collections import namedtuple

import pytest
import torch
from conftest import TOWERS, build_tiny, random_faces
from safetensors.torch import load_file
from test_train_sft import moved_parts, train, weights

from au_llava.au_training import features
from au_llava.au_training.features import FeatureCache, image_features, tower_revision

FROZEN = ("--freeze", "vision_tower", "--causal_share", 0.4, "--logging_steps", 1, "--save_strategy", "no")
IMAGES = 14  # of rendered_records: 10 to train on, 4 to evaluate on


def logged(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def losses(folder) -> list[float]:
    return [entry[key] for entry in logged(folder) for key in ("loss", "eval_loss") if key in entry]


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, rendered_records, tmp_path_factory):
    """Folders of the same training from images and from cached features, and the cache."""
    out = tmp_path_factory.mktemp("trained")
    flags = [*FROZEN, "--eval_strategy", "steps", "--eval_steps", 4]
    train(tiny_checkpoint, rendered_records, out / "images", *flags)
    train(tiny_checkpoint, rendered_records, out / "cached", *flags, "--cache_features", out / "cache")
    return out


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of `image_features` encoded; the first call of a training only asks for the shape."""
    counts = []
    original = features.image_features
    spy = lambda model, pixels: counts.append(len(pixels)) or original(model, pixels)  # noqa: E731
    monkeypatch.setattr(features, "image_features", spy)
    return counts


# ---- What is trained ------------------------------------------------------------------------------------------
def test_training_from_the_cache_is_training_from_images(trained):
    """Bit for bit on a CPU: losses of both layouts, evaluation, and all weights, the tower's among them."""
    assert len(losses(trained / "images")) == 5
    assert losses(trained / "images") == losses(trained / "cached")
    images, cached = weights(trained / "images"), weights(trained / "cached")
    assert not moved_parts(images, cached)


def test_no_image_is_decoded_and_no_tower_runs(trained, tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    """With every image in the cache a training needs neither, but for the first row, which SFTTrainer looks at."""
    used = []
    monkeypatch.setattr(features, "image_features", lambda *_: used.append("tower"))
    monkeypatch.setattr("datasets.Image.decode_example", lambda *_, **__: used.append("image"))
    cache = trained / "cache"
    train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--cache_features", cache)
    assert used == ["image"]
    assert losses(tmp_path) == losses(trained / "cached")[:4]


def test_projector_and_language_model_alone_are_trained(trained, tiny_checkpoint):
    moved = moved_parts(weights(tiny_checkpoint), weights(trained / "cached"))
    assert moved == {"multi_modal_projector", "language_model", "lm_head"}


@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_what_the_projector_receives(tower):
    """Of every kind of tower: projected, they are the embeddings of the whole model."""
    config, stride, width = TOWERS[tower]
    model, processor = build_tiny("phrases", vision_config=config)
    pixels = processor.image_processor(random_faces(2), return_tensors="pt")["pixel_values"]
    found = image_features(model.model, pixels)
    side = pixels.shape[-1] // stride
    assert found.shape == (2, side**2, width)
    with torch.no_grad():
        embeddings = torch.stack(model.model.get_image_features(pixels).pooler_output)
        assert torch.equal(model.model.multi_modal_projector(found), embeddings)


# ---- What is on disk ------------------------------------------------------------------------------------------
def test_every_image_is_encoded_once_and_found_by_its_content(trained):
    (shard,) = (trained / "cache").glob("*/*.safetensors")
    content = load_file(shard)
    assert len(content) == IMAGES
    assert all(len(key) == 64 for key in content)
    cache = FeatureCache(shard.parent)
    assert all(torch.equal(cache[key], content[key]) for key in content)
    assert {(each.shape, each.dtype) for each in content.values()} == {((16, 16), torch.float32)}


def test_size_is_stated_before_it_is_written(tiny_checkpoint, rendered_records, tmp_path, caplog, monkeypatch):
    seen = []
    original = features.write_shard
    monkeypatch.setattr(features, "write_shard", lambda *a: seen.append(caplog.text) or original(*a))
    train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--max_steps", 1, "--cache_features", tmp_path / "c")
    size = 10 * 16 * 16 * 4
    assert f"writing {size / 1e9:.3g} GB, 10 x 16 x 16 float32" in seen[0]
    (shard,) = (tmp_path / "c").glob("*/*.safetensors")
    assert size < shard.stat().st_size < size + 2000  # and the names


def test_interrupted_caching_is_taken_up_again(
    trained, tiny_checkpoint, rendered_records, tmp_path, encoded, monkeypatch
):
    """Of a run killed while it wrote its third shard, the two finished ones are kept, and what it left is removed."""
    flags = [*FROZEN, "--cache_features", tmp_path / "cache"]
    monkeypatch.setattr(features, "SHARD_BYTES", 1)  # a shard a batch
    written = []

    def killed(source, target):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(target)
        shutil.move(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_checkpoint, rendered_records, tmp_path / "killed", *flags)
    kept = {path: path.stat().st_mtime_ns for path in written}
    abandoned, busy = (written[0].with_name(f".x.safetensors.{number}") for number in (1, 2))
    abandoned.touch()
    busy.touch()
    os.utime(abandoned, times=(time.time() - 7200,) * 2)
    encoded.clear()
    train(tiny_checkpoint, rendered_records, tmp_path / "resumed", *flags)
    assert encoded == [1, 2, 2, 2]  # the shape, and the six images that were lost
    assert {path: path.stat().st_mtime_ns for path in written} == kept
    assert sorted(path.name for path in written[0].parent.glob(".*")) == [busy.name]
    assert losses(tmp_path / "resumed") == losses(trained / "cached")[:4]


def test_new_images_are_added(trained, tiny_checkpoint, rendered_records, tmp_path, encoded):
    cache = shutil.copytree(trained / "cache", tmp_path / "cache")
    train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--cache_features", cache, "--train_part", "test")
    assert encoded == [1, 2, 2, 2]  # six images of the test part
    assert sum(map(len, map(FeatureCache, cache.iterdir()))) == IMAGES + 6


def test_revision_is_of_all_that_features_depend_on():
    model, processor = build_tiny("phrases")
    images = processor.image_processor
    first = tower_revision(model.model, images, "no")
    assert tower_revision(*[part for part in (build_tiny("phrases")[0].model, images)], "no") == first
    assert tower_revision(model.model, images, "bf16") != first
    model.config.vision_config._name_or_path = "elsewhere"
    model.model.multi_modal_projector.weight.data += 1
    assert tower_revision(model.model, images, "no") == first
    images.image_mean = [0.4, 0.5, 0.5]
    changed = tower_revision(model.model, images, "no")
    assert changed != first
    model.config.vision_config.layer_norm_eps *= 2
    assert tower_revision(model.model, images, "no") != changed
    changed = tower_revision(model.model, images, "no")
    next(model.model.vision_tower.parameters()).data.view(-1)[-1] += 1e-3
    assert tower_revision(model.model, images, "no") != changed


def test_another_tower_is_encoded_anew(trained, tiny_checkpoint, rendered_records, tmp_path, encoded):
    """A folder holds several revisions; the one that does not fit is never read."""
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    from safetensors.torch import save_file

    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if "vision_tower" in name and tensors[name].ndim == 4)
    save_file({**tensors, name: tensors[name] * 0.5}, other / "model.safetensors", metadata={"format": "pt"})
    cache = shutil.copytree(trained / "cache", tmp_path / "cache")
    train(other, rendered_records, tmp_path / "cached", *FROZEN, "--cache_features", cache)
    assert sum(encoded) == 1 + 10
    assert len(list(cache.iterdir())) == 2
    train(other, rendered_records, tmp_path / "images", *FROZEN)
    assert losses(tmp_path / "cached") == losses(tmp_path / "images")
    assert losses(tmp_path / "cached") != losses(trained / "cached")[:4]


def test_damaged_shard_is_named(tiny_checkpoint, rendered_records, trained, tmp_path):
    cache = shutil.copytree(trained / "cache", tmp_path / "cache")
    (shard,) = cache.glob("*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{shard.name} cannot be read .*delete it"):
        train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--cache_features", cache)


# ---- What is refused or left out ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze", "language_model"], r"stays as it is: freeze: \[vision_tower\]"),
        (["--freeze", "vision_tower", "--flip", 0.5], "leave out flip and augment"),
        (["--freeze", "vision_tower", "--augment", "true"], "leave out flip and augment"),
        (
            [
                "--freeze",
                "vision_tower",
                "--use_peft",
                "true",
                "--lora_target_modules",
                "query",
                "q_proj",
                "convolution",
            ],
            "LoRA adapts this one",
        ),
    ],
)
def test_what_would_make_features_wrong_is_refused(tiny_checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--cache_features", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_too_little_room_is_said_before_anything_is_written(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(ValueError, match=r"would take 0\.0 GB \(10 x 16 x 16 float32\); the disk has 0\.0 GB left"):
        train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--cache_features", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*"))
