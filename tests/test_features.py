"""Cached image features: training from them equals training from images, and wrong options are refused."""

import json
import os
import shutil
import time
from collections import namedtuple

import datasets
import pytest
import torch
from commands import QUIET, run
from conftest import TOWERS, build_tiny, random_faces
from safetensors.torch import load_file, save_file
from test_train_sft import moved_parts, train, weights

from au_llava.au_datasets.records import KEY, finish_folder, load_records, record_features, shard_path, start_folder
from au_llava.au_datasets.records import write_shard as write_records
from au_llava.au_runs.manifests import read_training_manifest
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
    """Folders of one training from images and of the same from cached features, and the cache."""
    out = tmp_path_factory.mktemp("trained")
    flags = [*FROZEN, "--eval_strategy", "steps", "--eval_steps", 4]
    train(tiny_checkpoint, rendered_records, out / "images", *flags)
    train(tiny_checkpoint, rendered_records, out / "cached", *flags, "--cache_features", out / "cache")
    return out


@pytest.fixture
def encoded(monkeypatch):
    """Number of images in each call of `image_features`; the first call of a training only finds the shape."""
    counts = []
    original = features.image_features
    spy = lambda model, pixels: counts.append(len(pixels)) or original(model, pixels)
    monkeypatch.setattr(features, "image_features", spy)
    return counts


# ---- What is trained ------------------------------------------------------------------------------------------
def test_training_from_the_cache_is_training_from_images(trained):
    """Bit-equal on a CPU: losses of both layouts, evaluation and all weights, including the tower's."""
    assert len(losses(trained / "images")) == 5
    assert losses(trained / "images") == losses(trained / "cached")
    images, cached = weights(trained / "images"), weights(trained / "cached")
    assert not moved_parts(images, cached)


def test_no_image_is_decoded_and_no_tower_runs(trained, tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    """If every image is in the cache, training needs neither."""
    used = []
    monkeypatch.setattr(features, "image_features", lambda *_: used.append("tower"))
    monkeypatch.setattr("datasets.Image.decode_example", lambda *_, **__: used.append("image"))
    cache = trained / "cache"
    train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--cache_features", cache)
    assert used == []
    assert losses(tmp_path) == losses(trained / "cached")[:4]


def test_projector_and_language_model_alone_are_trained(trained, tiny_checkpoint):
    moved = moved_parts(weights(tiny_checkpoint), weights(trained / "cached"))
    assert moved == {"multi_modal_projector", "language_model", "lm_head"}


@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_what_the_projector_receives(tower):
    """For every kind of tower: after projection, they are the embeddings of the whole model."""
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


def test_interrupted_caching_is_resumed(trained, tiny_checkpoint, rendered_records, tmp_path, encoded, monkeypatch):
    """A run killed while writing its third shard keeps the two finished ones; its unfinished file is removed."""
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
    flags = ["--cache_features", cache, "--train_part", "test", "--dataloader_num_workers", 1]
    train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, *flags)
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
    """A folder holds several revisions; one that does not match is never read."""
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
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
        (["--freeze", "language_model"], r"needs a frozen vision tower: freeze: \[vision_tower\]"),
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
def test_options_that_change_features_are_refused(tiny_checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--cache_features", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_too_little_space_is_reported_before_writing(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(ValueError, match=r"would take 0\.0 GB \(10 x 16 x 16 float32\); the disk has 0\.0 GB left"):
        train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, "--cache_features", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*"))


@pytest.fixture
def damaged_records(rendered_records, tmp_path):
    """`rendered_records` with the first training image truncated: the one that SFTTrainer reads."""
    out = tmp_path / "damaged"
    start_folder(out, {"damaged": True})
    records = load_records(rendered_records).cast_column("image", datasets.Image(decode=False))
    rows = list(records.select_columns(list(record_features({}))))
    cut = next(row for row in rows if row["part"] == "train")
    for row in rows:
        if all(row[name] == cut[name] for name in KEY):
            row["image"] = {"bytes": row["image"]["bytes"][:200], "path": None}
    for part in ("train", "validation"):
        of_part = (row for row in rows if row["part"] == part)
        write_records(of_part, record_features({}), shard_path(out, part, 0, 1))
    finish_folder(out, {"damaged": True})
    return out, f"{cut['dataset']}:{cut['subject']} {cut['clip']} {cut['frame']}"


def test_unreadable_image_is_skipped_as_in_training_from_images(damaged_records, tiny_checkpoint, tmp_path, caplog):
    """The other images have bit-equal losses, and the manifest has the same entry."""
    records, damaged = damaged_records
    flags = [*FROZEN, "--oversample_below", 0.9, "--eval_strategy", "steps", "--eval_steps", 5, "--max_steps", 5]
    train(tiny_checkpoint, records, tmp_path / "images", *flags)
    for name in ("first", "second"):  # which has the others in the cache
        caplog.clear()
        train(tiny_checkpoint, records, tmp_path / name, *flags, "--cache_features", tmp_path / "cache")
        assert f"1 of 10 images cannot be read: skipped, such as {damaged}." in caplog.text
        assert read_training_manifest(str(tmp_path / name))["unreadable"] == [damaged]
        assert losses(tmp_path / name) == losses(tmp_path / "images")
    assert read_training_manifest(str(tmp_path / "images"))["unreadable"] == [damaged]
    assert sum(len(load_file(shard)) for shard in (tmp_path / "cache").glob("*/*.safetensors")) == IMAGES - 1


def test_missing_disk_is_named(rendered_records, tiny_checkpoint, tmp_path):
    """Records with paths, most of them to missing files."""
    out = tmp_path / "paths"
    start_folder(out, {})
    records = load_records(rendered_records, part="train").cast_column("image", datasets.Image(decode=False))
    rows = list(records.select_columns(list(record_features({}))))
    for number, row in enumerate(rows):
        path = tmp_path / f"{number // 3}.jpg"
        if number < 9:
            path.write_bytes(row["image"]["bytes"])
        row["image"] = {"bytes": None, "path": str(path)}
    write_records(rows, record_features({}), shard_path(out, "train", 0, 1))
    finish_folder(out, {})
    with pytest.raises(ValueError, match=r"7 of 10 images cannot be read, such as rendered:.* is a disk or folder"):
        train(tiny_checkpoint, out, tmp_path / "out", *FROZEN, "--cache_features", tmp_path / "cache")


# ---- With the other options -----------------------------------------------------------------------------------
def test_grouped_and_weighted_rows_from_the_cache_resume_exactly(trained, tiny_checkpoint, rendered_records, tmp_path):
    """Grouped rows of two lengths, killed in the middle of the first epoch of ten steps and resumed."""
    flags = [*FROZEN, "--data", f"{{path: {rendered_records}, formats: [bp4d]}}", rendered_records]
    flags += ["--cache_features", trained / "cache", "--train_sampling_strategy", "group_by_length"]
    flags += ["--oversample_below", 0.9, "--max_steps", 12, "--save_strategy", "steps", "--save_steps", 7]
    train(tiny_checkpoint, "", tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", tmp_path / "cut" / "checkpoint-7")
    train(tiny_checkpoint, "", tmp_path / "cut", *flags, "--resume_from_checkpoint", "true")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert not moved_parts(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_two_processes_share_the_images(tiny_checkpoint, rendered_records, tmp_path):
    """Each writes its own shard and both train from all, as from images: the projector's gradients are averaged."""
    words = ["--model_name_or_path", tiny_checkpoint, "--data", rendered_records, *QUIET, *FROZEN, "--max_steps", 2]
    words += ["--per_device_train_batch_size", 2]
    for name, flags in (("images", ()), ("cached", ("--cache_features", tmp_path / "cache"))):
        code, output = run([*words, "--output_dir", tmp_path / name, *flags], tmp_path / f"{name}.log", processes=2)
        assert code == 0, output[-2000:]
    assert output.count("writing 1.02e-05 GB") == 1
    first, second = (load_file(shard).keys() for shard in (tmp_path / "cache").glob("*/*.safetensors"))
    assert (len(first), len(second), len(first | second)) == (5, 5, 10)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "images"), rel=1e-6)
    images, cached = weights(tmp_path / "images"), weights(tmp_path / "cached")
    for name in images:
        torch.testing.assert_close(cached[name], images[name], rtol=1e-4, atol=1e-6)


def test_sixteen_bits_are_kept_as_training_computes_them(tiny_checkpoint, rendered_records, tmp_path):
    """Under bf16 autocast the projector receives 16 bits, and is trained from the cache as from images."""
    for name, flags in (("images", ()), ("cached", ("--cache_features", tmp_path / "cache"))):
        train(tiny_checkpoint, rendered_records, tmp_path / name, *FROZEN, "--bf16", "true", *flags)
    (shard,) = (tmp_path / "cache").glob("*/*.safetensors")
    assert {each.dtype for each in load_file(shard).values()} == {torch.bfloat16}
    assert losses(tmp_path / "images") == losses(tmp_path / "cached")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_liger_kernel", "true"], "no kernels for AU-LLaVA"),
        (["--train_sampling_strategy", "batch_rebalance"], "use group_by_length"),
        (["--train_sampling_strategy", "sequential", "--oversample_below", 0.5], "leave train_sampling_strategy out"),
    ],
)
def test_options_that_would_pass_unnoticed_are_refused(tiny_checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, *flags)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["images", "cache"])
def test_compiled_training_is_training(trained, tiny_checkpoint, rendered_records, tmp_path, source):
    """Both layouts, traced by torch.compile: tree mask, few logits, and features instead of images."""
    flags = ["--torch_compile", "true", "--torch_compile_backend", "eager"]
    flags += ["--cache_features", trained / "cache"] if source == "cache" else []
    train(tiny_checkpoint, rendered_records, tmp_path, *FROZEN, *flags)
    assert losses(tmp_path) == pytest.approx(losses(trained / "images")[:4], rel=1e-5)
