"""Robustness: killed, terminated and interrupted trainings, full disks, damaged images, NaN losses."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import QUIET, run, start
from conftest import build_tiny
from safetensors.torch import load_file

from au_llava.au_datasets.mixing import training_rows
from au_llava.au_runs.commands import CommandEnded, run_command
from au_llava.au_runs.manifests import read_training_manifest
from au_llava.au_training.averaging import TRAINED
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.damaged_images import ReadableRows, name_images
from au_llava.au_training.recovery import UNFINISHED, ending_with_advice, replacing_contents

STEPS = 12
SAVED = 4  # every so many steps
PEOPLE = ("dataset", "subject", "clip", "frame")


def words(checkpoint, records, out, *flags) -> list[str]:
    common = ["--model_name_or_path", checkpoint, "--data", records, "--output_dir", out, *QUIET, "--logging_steps", 1]
    common += ["--max_steps", STEPS, "--save_steps", SAVED, "--per_device_train_batch_size", 2]
    common += ["--learning_rate", 1e-2, "--causal_share", 0.4, "--flip", 0.5, "--augment", "true"]
    common += ["--average_decay", 0.9]
    return [str(word) for word in (*common, *flags)]


def losses(folder) -> list[float]:
    logged = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in logged if "loss" in entry]


def checkpoints(folder) -> dict[str, bytes]:
    """Every file of every checkpoint."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("checkpoint-*/*")}


def assert_one_sentence(output: str, *parts: str):
    assert "Traceback" not in output
    sentence = [line for line in output.splitlines() if line.startswith("train_sft.py: ")]
    assert len(sentence) == 1, output
    for part in parts:
        assert part in sentence[0]


def assert_bit_equal(one, two):
    assert len(losses(one)) == STEPS
    assert losses(one) == losses(two)
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (two / UNFINISHED).exists()


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, rendered_records, tmp_path_factory):
    """An undisturbed training."""
    out = tmp_path_factory.mktemp("recovery") / "whole"
    code, output = run(words(tiny_checkpoint, rendered_records, out), out.with_suffix(".log"))
    assert code == 0, output
    return out


def wait_for(path, process):
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_training_goes_on_bit_equal(whole, tiny_checkpoint, rendered_records, tmp_path):
    """Killed before anything is saved, while a checkpoint is written, after one, and while the model is written."""
    out, log = tmp_path / "killed", tmp_path / "log"
    arguments = words(tiny_checkpoint, rendered_records, out, "--resume_from_checkpoint", "true")
    moments = [out, out / UNFINISHED / f"checkpoint-{SAVED}", out / f"checkpoint-{SAVED}"]
    moments += [out / UNFINISHED / f"checkpoint-{2 * SAVED}", out / UNFINISHED / "config.json"]
    for moment in moments:
        (process,) = start(arguments, log)
        wait_for(moment, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for saved in out.glob("checkpoint-*"):  # whole, however little time there was
            whole_files = {"model.safetensors", TRAINED, "optimizer.pt", "trainer_state.json"}
            assert whole_files <= set(os.listdir(saved))
    code, output = run(arguments, log)
    assert code == 0, output
    assert_bit_equal(whole, out)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM after step"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_end_with_a_sentence(whole, tiny_checkpoint, rendered_records, tmp_path, number, code, says):
    out, log = tmp_path / "cut", tmp_path / "log"
    arguments = words(tiny_checkpoint, rendered_records, out, "--resume_from_checkpoint", "true")
    (process,) = start(arguments, log)
    wait_for(out / f"checkpoint-{SAVED}", process)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, log.read_text()
    assert_one_sentence(log.read_text(), says, "--resume_from_checkpoint true")
    assert not (out / "model.safetensors").exists()
    steps = sorted(int(folder.name.removeprefix("checkpoint-")) for folder in out.glob("checkpoint-*"))
    if number == signal.SIGTERM:
        assert f"after step {steps[-1]}," in log.read_text()
        assert not (out / UNFINISHED).exists()
    if number == signal.SIGINT:  # resuming after one of the signals is enough
        return
    code, output = run(arguments, log)
    assert code == 0, output
    assert_bit_equal(whole, out)


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(tiny_checkpoint, rendered_records, tmp_path):
    """Only one of them gets the signal."""
    out, log = tmp_path / "cut", tmp_path / "log"
    both = start(words(tiny_checkpoint, rendered_records, out), log, processes=2)
    wait_for(out / f"checkpoint-{SAVED}", both[0])
    both[1].terminate()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [143, 143], log.read_text()
    assert_one_sentence(log.read_text(), "stopped by SIGTERM after step")
    newest = max(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.removeprefix("checkpoint-")))
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= set(os.listdir(newest))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_nan_loss_stops(tiny_checkpoint, rendered_records, tmp_path, processes):
    """The first step is infinitely large, so the second has a NaN loss."""
    out = tmp_path / "out"
    flags = ["--learning_rate", 1e38, "--max_grad_norm", 0, "--save_steps", 1, "--warmup_steps", 0]
    arguments = words(tiny_checkpoint, rendered_records, out, *flags)
    code, output = run(arguments, tmp_path / "log", processes=processes)
    assert code == 1
    assert "Traceback" not in output
    sentences = [line for line in output.splitlines() if line.startswith("train_sft.py: ")]
    assert len(sentences) == processes
    rows = training_rows([str(rendered_records)], "train", None)
    named = [name for name in name_images(rows, rows["index"][:]) if any(name in line for line in sentences)]
    assert len(named) == 2 * processes  # the batches
    assert all("at step 2" in line for line in sentences)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1"]
    assert not (out / "model.safetensors").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_saved(whole, tiny_checkpoint, rendered_records, tmp_path):
    """At first there is space for the weights of a second checkpoint but not for the optimizer, then for neither."""
    optimizer = (whole / "checkpoint-4" / "optimizer.pt").stat().st_size
    weights = (whole / "model.safetensors").stat().st_size
    assert weights < optimizer
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(whole / "checkpoint-4", out / "checkpoint-4")
    shutil.copy(tiny_checkpoint / "model.safetensors", out)  # of an earlier training
    before, model = checkpoints(out), (out / "model.safetensors").read_bytes()
    resumed = words(tiny_checkpoint, rendered_records, out, "--resume_from_checkpoint", "true")
    for limit in (optimizer - 1, weights - 1):
        log.unlink(missing_ok=True)
        code, output = run(resumed, log, file_limit=limit)
        assert code == 1
        assert_one_sentence(output, "could not be written", "--resume_from_checkpoint true")
        assert checkpoints(out) == before
        assert not (out / UNFINISHED).exists()
    log.unlink()
    code, output = run([*resumed, "--save_strategy", "no"], log, file_limit=weights - 1)
    assert code == 1
    assert_one_sentence(output, "could not be written")
    assert (out / "model.safetensors").read_bytes() == model
    log.unlink()
    code, output = run(resumed, log)
    assert code == 0, output
    assert_bit_equal(whole, out)


@pytest.mark.slow
def test_the_best_checkpoint_keeps_its_place(tiny_checkpoint, rendered_records, tmp_path):
    """Its recorded path is the final one, not that of the unfinished folder; other checkpoints are deleted as usual."""
    flags = ["--eval_strategy", "steps", "--eval_steps", 2, "--save_steps", 2, "--max_steps", 6]
    flags += ["--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss", "--save_total_limit", 1]
    out = tmp_path / "out"
    code, output = run(words(tiny_checkpoint, rendered_records, out, *flags), tmp_path / "log")
    assert code == 0, output
    state = json.loads((out / "trainer_state.json").read_text())
    scored = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = out / f"checkpoint-{min(scored, key=scored.get)}"
    assert state["best_model_checkpoint"] == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert sorted(out.glob("checkpoint-*")) == [best]
    kept, final = load_file(best / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(kept[name], final[name]) for name in kept)


def damage(records: Path, out: Path, count: int) -> set[str]:
    """Write a copy of records in which `count` images of each part are damaged; returns their names."""
    out.mkdir()
    (out / "manifest.json").write_bytes((records / "manifest.json").read_bytes())
    damaged = {"train": {}, "validation": {}, "test": {}}
    for shard in sorted(records.glob("data-*.parquet")):
        with pq.ParquetFile(shard) as file:
            table = file.read()
        rows = table.to_pylist()
        for row in rows:
            key = tuple(row[name] for name in PEOPLE)
            of_part = damaged[row["part"]]
            if key not in of_part and len(of_part) < count:
                of_part[key] = len(of_part) % 3
            if key in of_part:
                stored = row["image"]["bytes"]
                # truncated, no image at all, a file that is gone
                row["image"] = [
                    {"bytes": stored[: len(stored) // 2], "path": row["image"]["path"]},
                    {"bytes": b"no image", "path": row["image"]["path"]},
                    {"bytes": None, "path": str(out / f"{row['subject']}.png")},
                ][of_part[key]]
        pq.write_table(table.from_pylist(rows, schema=table.schema), out / shard.name)
    return {f"{key[0]}:{key[1]} {key[2]} {key[3]}" for part in ("train", "validation") for key in damaged[part]}


@pytest.mark.parametrize(
    ("processes", "workers", "count"),
    [(1, 0, 3), pytest.param(1, 2, 10, marks=pytest.mark.slow), pytest.param(2, 1, 3, marks=pytest.mark.slow)],
)
def test_damaged_images_are_skipped_and_counted(tiny_checkpoint, rendered_records, tmp_path, processes, workers, count):
    """Up to all of them: then whole batches carry no loss."""
    names = damage(rendered_records, tmp_path / "records", count)
    out = tmp_path / "out"
    flags = ["--eval_strategy", "steps", "--eval_steps", 6, "--dataloader_num_workers", workers]
    arguments = words(tiny_checkpoint, tmp_path / "records", out, *flags)
    code, output = run(arguments, tmp_path / "log", processes=processes)
    assert code == 0, output
    assert read_training_manifest(str(out))["unreadable"] == sorted(names)
    assert f"{len(names)} images could not be read and were skipped" in output
    assert np.isfinite(losses(out)).all()
    logged = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert any("eval_disfa_icc" in entry for entry in logged)


def test_a_damaged_image_carries_no_loss(rendered_records):
    """The batch keeps its size and its random choices, and the other images keep their targets."""
    _, processor = build_tiny("phrases")
    rows = training_rows([str(rendered_records)], "train", None)
    encoded = rows.cast_column("image", type(rows.features["image"])(decode=False))
    collate = ReadableRows(AUCollator(processor, causal_share=0, flip=0.5))
    good = [encoded[row] for row in range(3)]
    bad = [good[0], {**good[1], "image": {"bytes": b"no image", "path": None}}, good[2]]
    one, two = collate(good), collate(bad)
    assert (one["rows"], one["unreadable"]) == ([0, 1, 2], [])
    assert (two["rows"], two["unreadable"]) == ([0, 1, 2], [1])
    for name in ("choice_targets", "annotated", "pixel_values"):
        assert torch.equal(one[name][[0, 2]], two[name][[0, 2]])
    assert two["annotated"][1] == 0
    assert not two["choice_targets"][1].any()
    assert one["annotated"][1] > 0


@pytest.mark.slow
def test_many_damaged_images_end_the_training(tiny_checkpoint, rendered_records, tmp_path):
    """As if the disk with the images is missing."""
    damage(rendered_records, tmp_path / "records", 10)
    flags = ["--max_steps", 60, "--save_strategy", "no"]
    code, output = run(words(tiny_checkpoint, tmp_path / "records", tmp_path / "out", *flags), tmp_path / "log")
    assert code == 1
    assert_one_sentence(output, "images cannot be read", "is a disk or folder missing")


@pytest.mark.parametrize("big", [lambda: torch.empty(10**15), lambda: torch.OutOfMemoryError("CUDA out of memory.")])
def test_out_of_memory_says_what_to_lower(big, capsys):
    def allocate():
        with ending_with_advice():
            result = big()
            if isinstance(result, Exception):
                raise result

    assert run_command("train_sft.py", allocate) == 1
    assert_one_sentence(capsys.readouterr().err, "out of memory", "lower per_device_train_batch_size")


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), ending_with_advice():
        raise RuntimeError("shapes do not fit")


def test_replacing_is_all_or_nothing(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")
    (tmp_path / "README.md").write_text("mine")

    def write():
        with replacing_contents(tmp_path, True, lambda: None) as folder:
            (folder / "model.safetensors").write_text("ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(CommandEnded, match="No space left"):
        write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.safetensors": "old",
        "README.md": "mine",
    }
    with replacing_contents(tmp_path, True, lambda: None) as folder:
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            (folder / name).write_text("new")
    assert sorted(os.listdir(tmp_path)) == [
        "README.md",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
