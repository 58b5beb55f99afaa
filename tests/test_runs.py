"""What commands share: starting, options, exit status, files that appear whole, journals, loading a checkpoint."""

import argparse
import io
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from conftest import ROOT, random_faces

from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandEnded, CommandParser, print_anything, run_command
from au_llava.au_runs.files import replacing, write_json
from au_llava.au_runs.journal import Journal
from au_llava.au_runs.progress import progress_bar, track
from au_llava.au_runs.provenance import settings_sha256
from au_llava.au_runs.start import FOLDER, command, missing

IDENTITY = {"weights": "a", "formats": ("bp4d", "disfa")}


TOOLS = sorted((ROOT / "tools").glob("*.py"))


def parser() -> CommandParser:
    made = CommandParser("What it does,\n    in two lines.", prog="command.py")
    made.add_argument("words", nargs="*")
    made.add_argument("--batch-size", type=int)
    made.add_argument("--no-detect", action="store_true")
    return made


def test_options_are_spelled_with_hyphens_or_underscores():
    for words in (["--batch-size", "3"], ["--batch_size", "3"], ["--batch_size=3"], ["--batch-size=3"]):
        assert parser().parse_args(words).batch_size == 3, words
    arguments = parser().parse_args(["--no_detect", "a_b", "--", "--c_d"])
    assert arguments == argparse.Namespace(words=["a_b", "--c_d"], batch_size=None, no_detect=True)


def test_options_of_subcommands_too():
    made = CommandParser()
    made.add_subparsers(dest="what").add_parser("score").add_argument("--max-images")
    assert made.parse_args(["score", "--max_images", "a_b"]).max_images == "a_b"


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["--batch", "3"])
    assert end.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_help_keeps_its_lines():
    assert "What it does,\n    in two lines." in parser().format_help()


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "sentence"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raising(ValueError("3 is too few.")), 1, "command.py: 3 is too few.\n"),
        (raising(FileNotFoundError(2, "No such file", "x")), 1, "command.py: x: No such file.\n"),
        (raising(OSError(28, "No space left on device")), 1, "command.py: No space left on device.\n"),
        (raising(CommandEnded("stopped early.", 143)), 143, "command.py: stopped early.\n"),
        (raising(KeyboardInterrupt()), 130, "command.py: stopped.\n"),
    ],
)
def test_a_command_ends_with_a_status_and_a_sentence(main, status, sentence, capsys):
    assert run_command("command.py", main) == status
    assert capsys.readouterr().err == sentence


def test_whoever_reads_the_output_may_leave(tmp_path):
    """`command | head`: quiet, with a status, whether the pipe breaks while something is printed or at the end."""
    for flush in (False, True):
        body = f"run_command('x', lambda: print('a' * 10, flush={flush}))"
        script = f"import sys; from au_llava.au_runs.commands import run_command; sys.exit({body})"
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", [["--batch-size", ""], ["--batch-size="], [""]])
def test_empty_arguments_are_refused(words, capsys):
    """`--out "$RESULTS"`, if RESULTS is not set, would write into the current folder."""
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words)
    assert end.value.code == 2
    assert "is a variable not set?" in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    with pytest.raises(TypeError):
        run_command("command.py", raising(TypeError()))


def test_a_signal_is_told_by_one_process(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run_command("command.py", raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


def test_any_console_prints_anything(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    print_anything()
    print("José … \udce9", flush=True)
    assert console.buffer.getvalue() == b"Jos\\xe9 \\u2026 \\udce9\n"


def test_a_started_command_runs_its_body(monkeypatch):
    body = type(sys)("au_llava.body")
    body.run = lambda words: len(words)
    monkeypatch.setitem(sys.modules, "au_llava.body", body)
    assert command("command.py", "body")(["a", "b"]) == 2


def test_a_command_can_be_stopped_while_it_is_imported(monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", stop)
    assert command("command.py", "body")([]) == 130
    assert capsys.readouterr().err == "command.py: stopped.\n"


def test_a_missing_package_is_one_sentence(monkeypatch, capsys):
    body = type(sys)("au_llava.body")
    body.run = lambda words: __import__("surely_not_there")
    monkeypatch.setitem(sys.modules, "au_llava.body", body)
    monkeypatch.chdir(FOLDER)
    assert command("command.py", "body", "train")([]) == 1
    expected = 'surely_not_there is not installed: run `pip install --editable ".[train]"` in this folder'
    assert capsys.readouterr().err == f"command.py: {expected}\n"
    monkeypatch.chdir("/")
    assert missing(ModuleNotFoundError(name="trl.trainer"), "train").endswith(f" in {FOLDER}")
    sentence = "The 'deepspeed>=0.9.3' distribution was not found and is required by this application."  # Transformers'
    assert missing(PackageNotFoundError(f"{sentence} \n")) == sentence


def test_a_module_missing_from_this_package_is_a_bug():
    with pytest.raises(ModuleNotFoundError):
        command("command.py", "not_there")([])


def test_every_room_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {path.parent.relative_to(ROOT) for path in ROOT.glob("au_*/**/__init__.py")}
    expected = {"au_llava", *(".".join(("au_llava", *room.parts)) for room in rooms)}
    assert {*settings["tool"]["setuptools"]["packages"]} == expected
    commands = {f"au_llava.{path.stem}:run" for path in ROOT.glob("*.py")}
    assert {*settings["project"]["scripts"].values()} <= commands


def test_an_uninstalled_package_is_one_sentence():
    """For every command in a clone, by a Python in which nothing is installed."""
    names = [*["recognize_au", "eval_au", "prepare_data", "train_sft", "app"], *(f"tools/{p.stem}" for p in TOOLS)]
    assert len(names) == 13
    for name in names:
        done = subprocess.run([sys.executable, "-S", f"{name}.py"], cwd=ROOT, env={}, capture_output=True, text=True)
        sentence = "au_llava is not installed: run `pip install --editable .` in this folder"
        assert (done.returncode, done.stderr) == (1, f"{name.removeprefix('tools/')}.py: {sentence}\n")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n "b": 1,\n "a": 2\n}\n'

    def write_half():
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise OSError("The disk is full.")

    with pytest.raises(OSError, match="full"):
        write_half()
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert json.loads(path.read_text()) == {"b": 1, "a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def write(weights: str | None):
        with replacing(tmp_path / "checkpoint") as unfinished:
            unfinished.mkdir()
            (unfinished / "weights").write_text(weights)

    with pytest.raises(TypeError):
        write(None)
    assert not list(tmp_path.iterdir())
    write("1, 2, 3")
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "weights"]


def write_entries(folder, *entries, process=0, identity=IDENTITY):
    with Journal(folder, identity, ("row", "asked")).writer(process) as write:
        for row, asked, value in entries:
            write({"row": row, "asked": asked, "value": value})


def test_a_journal_gives_back_what_any_process_finished(tmp_path):
    folder = tmp_path / "unfinished"
    assert dict(Journal(folder, IDENTITY, ("row", "asked"))) == {}
    write_entries(folder, (4, "bp4d", 0.5), (3, "bp4d", 1))
    write_entries(folder, (9, "disfa", "é"), process=1)
    write_entries(folder, (3, "bp4d", 2))
    journal = Journal(folder, IDENTITY, ("row", "asked"))
    assert list(journal) == [(4, "bp4d"), (3, "bp4d"), (9, "disfa")]
    assert [entry["value"] for entry in journal.values()] == [0.5, 2, "é"]
    assert (3, "bp4d") in journal
    assert (3, "disfa") not in journal


def test_a_journal_leaves_out_a_line_that_was_cut_off(tmp_path):
    write_entries(tmp_path, (1, "bp4d", 1), (2, "bp4d", 2))
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    assert list(Journal(tmp_path, IDENTITY, ("row", "asked"))) == [(1, "bp4d")]
    write_entries(tmp_path, (5, "bp4d", 5))
    assert list(Journal(tmp_path, IDENTITY, ("row", "asked"))) == [(1, "bp4d"), (5, "bp4d")]
    file.write_text('{"identity"')
    assert not Journal(tmp_path, IDENTITY, ("row", "asked"))
    write_entries(tmp_path, (6, "bp4d", 5))
    assert list(Journal(tmp_path, IDENTITY, ("row", "asked"))) == [(6, "bp4d")]


def test_a_journal_of_another_run_is_refused(tmp_path):
    write_entries(tmp_path, (1, "bp4d", 1))
    with pytest.raises(ValueError, match=r"unfinished work of another run \(other weights\): repeat that command"):
        Journal(tmp_path, IDENTITY | {"weights": "b"}, ("row", "asked"))


def test_settings_of_adapters_are_theirs_and_their_base_s(tmp_path):
    """Whatever is edited changes the hash, except what is said besides: calibration and mirror images."""
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    for folder in (base, adapters):
        folder.mkdir()
    write_json(base / "config.json", {"prompt_order": "image_first", "calibration": None, "mirror_images": False})
    write_json(adapters / "adapter_config.json", {"base_model_name_or_path": str(base), "lora_alpha": 8})
    seen = [settings_sha256(str(adapters))]
    write_json(base / "config.json", {"prompt_order": "image_first", "calibration": {}, "mirror_images": True})
    assert settings_sha256(str(adapters)) == seen[0]
    for path, content in (
        (base / "config.json", {"prompt_order": "text_first"}),
        (base / "processor_config.json", {"image_processor": {"image_mean": [0.5] * 3}}),
        (base / "processor_config.json", {"image_processor": {"image_mean": [0.4] * 3}}),
        (base / "tokenizer.json", {}),
        (base / "generation_config.json", {}),
        (adapters / "processor_config.json", {}),
        (adapters / "adapter_config.json", {"base_model_name_or_path": str(base), "lora_alpha": 16}),
    ):
        write_json(path, content)
        seen.append(settings_sha256(str(adapters)))
    assert len(set(seen)) == len(seen) == 8


def test_progress_is_shown_on_standard_error(capsys):
    with progress_bar("frames") as bar:
        bar.advance(bar.add_task("reading faces", total=2), 2)
    assert list(track([1, 2], "counting")) == [1, 2]
    with progress_bar(shown=False) as bar:
        bar.add_task("hidden", total=2)
    output = capsys.readouterr()
    assert output.out == ""
    assert "2/2 frames" in output.err
    assert "counting" in output.err
    assert "hidden" not in output.err


def test_a_loaded_checkpoint_reads_faces(tiny_checkpoint):
    model, processor = load_checkpoint(tiny_checkpoint)
    assert not model.training
    with torch.no_grad():
        [result] = model.recognize(processor, random_faces(1), formats=["bp4d"])
    assert set(result) == {"bp4d"}
    model, _ = load_checkpoint(str(tiny_checkpoint), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
