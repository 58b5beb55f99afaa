"""`prepare_data.py rendered`: same content however it is run, resumable, clear about mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from datasets import load_dataset

from au_llava.au_datasets.folds import check_disjoint
from au_llava.au_datasets.records import load_records
from au_llava.au_readers.workers import in_processes
from au_llava.au_runs.files import only_run
from au_llava.prepare_data import run

SCRIPT = Path(__file__).resolve().parent.parent / "prepare_data.py"


def arguments(out, workers=1, **changes):
    options = {"subjects": 6, "images-per-subject": 2, "seed": 3, "size": 32, "out": out, "workers": workers, **changes}
    return ["rendered", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def content(out):
    return json.loads((out / "manifest.json").read_text())["content_sha256"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished folder of four shards, made by one worker."""
    out = tmp_path_factory.mktemp("rendered") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("au_llava.au_readers.rendered.IMAGES_PER_SHARD", 4)
        assert run(arguments(out)) == 0
    return out


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("au_llava.au_readers.rendered.IMAGES_PER_SHARD", 4)


def test_records_have_every_format_and_exclusive_parts(finished):
    records = load_records(finished)
    assert len(list(finished.glob("data-*.parquet"))) == 4  # two of the training part, one of each other
    assert len(records) == 6 * 2 * 3
    assert records["format"][:6] == ["bp4d", "disfa", "feafa"] * 2
    assert records[0]["image"].size == (32, 32)
    people = {}
    for part, subject in zip(records["part"][:], records["subject"][:], strict=True):
        people.setdefault(part, set()).add(subject)
    assert people.keys() == {"train", "validation", "test"}
    check_disjoint(people)


def test_datasets_reads_the_folder_with_a_split_per_part(finished):
    splits = load_dataset("parquet", data_dir=str(finished))
    records = load_records(finished)
    assert splits.keys() == {"train", "validation", "test"}
    for part, rows in splits.items():
        assert set(rows["part"]) == {part}
        assert len(rows) == records["part"][:].count(part)
    assert splits["test"][0]["image"].size == (32, 32)


def test_two_workers_give_the_same_content(finished, tmp_path, small_shards):
    assert run(arguments(tmp_path / "two", workers=2)) == 0
    assert content(tmp_path / "two") == content(finished)


def test_an_interrupted_run_resumes_to_the_same_content(finished, tmp_path, small_shards, monkeypatch):
    out = tmp_path / "cut"
    out.mkdir()
    manifest = json.loads((finished / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    kept = sorted(finished.glob("data-*.parquet"))[1]
    (out / kept.name).write_bytes(kept.read_bytes())
    (out / ".data-train-00000-of-00002.parquet.999").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="unfinished"):
        load_records(out)
    before = (out / kept.name).stat().st_mtime_ns
    assert run(arguments(out)) == 0
    assert (out / kept.name).stat().st_mtime_ns == before
    assert content(out) == content(finished)
    assert not list(out.glob(".data-*"))


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    """One would delete the other's unfinished shards."""
    with only_run(tmp_path, "--out"):
        assert run(arguments(tmp_path)) == 1
    assert "Another run is writing to" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def end_this_process(_):
    os.kill(os.getpid(), signal.SIGKILL)


def tell_and_wait(path):
    Path(f"{path}.new").write_text(str(os.getpid()))
    Path(f"{path}.new").rename(path)
    time.sleep(3600)


def test_a_killed_worker_ends_the_run():
    """As the kernel kills where memory runs out: one sentence, no endless wait."""
    with pytest.raises(OSError, match=r"a worker process was killed, .*: run the same command again"):
        list(in_processes(end_this_process, [0, 1, 2], 2))


@pytest.mark.slow
def test_workers_end_with_their_killed_parent(tmp_path):
    """kill -9 of the command leaves no worker behind."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from au_llava.au_readers.workers import in_processes\n"
        "from test_prepare_data import tell_and_wait\n"
        "if __name__ == '__main__':\n"
        "    list(in_processes(tell_and_wait, sys.argv[2:], 2))\n"
    )
    told = [tmp_path / "a", tmp_path / "b"]
    with subprocess.Popen([sys.executable, script, Path(__file__).parent, *told]) as parent:
        while not all(path.is_file() for path in told):
            assert parent.poll() is None
            time.sleep(0.05)
        workers = [psutil.Process(int(path.read_text())) for path in told]
        parent.kill()
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        time.sleep(0.05)


def test_other_arguments_are_refused_in_one_sentence(finished, capsys, small_shards):
    assert run(arguments(finished, seed=4)) == 1
    error = capsys.readouterr().err
    assert "seed 3 (now 4)" in error
    assert error.count("\n") == 1


def test_too_few_subjects_is_one_sentence(tmp_path, capsys):
    assert run(arguments(tmp_path / "few", subjects=2)) == 1
    assert "2 subjects cannot fill the 3 parts" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("subjects", "0"), ("test", "1.5"), ("size", "big")])
def test_bad_options_are_named(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(arguments(tmp_path, **{option: value}))
    assert stopped.value.code == 2
    assert f"--{option}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_runs_from_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *arguments(tmp_path / "cli")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 images" in done.stdout
