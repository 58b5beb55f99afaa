"""What commands say if the cache of Hugging Face's libraries cannot be written."""

import errno
from itertools import product

import pytest
from huggingface_hub import constants
from transformers import dynamic_module_utils

from au_llava import handler, recognize_au
from au_llava.au_runs.commands import sentence_of


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """A cache folder that cannot be made, even by root, because a file is in the way."""
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "huggingface"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(home / "modules"))
    return home


def test_one_sentence_names_hf_home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    places = (tmp_path, tmp_path / "home", tmp_path / "home" / "modules" / "transformers_modules")
    for number, place in product((errno.EACCES, errno.EROFS, errno.ENOSPC), places):
        sentence = sentence_of(OSError(number, "no way", str(place)))
        assert sentence.startswith(f"{place} cannot be written (no way), ")
        assert sentence.endswith("set HF_HOME to a writable folder, such as HF_HOME=./huggingface.")
    wrapped = OSError("We could not cache it")
    wrapped.__cause__ = PermissionError(errno.EACCES, "no way", str(tmp_path / "home" / "hub"))
    assert "set HF_HOME" in sentence_of(wrapped)


def test_other_errors_say_what_they_said(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    missing, table = str(tmp_path / "home" / "missing"), str(tmp_path / "table.csv")
    assert sentence_of(ValueError("3 is too few.")) == "3 is too few."
    assert sentence_of(OSError("there is no checkpoint")) == "there is no checkpoint"
    assert sentence_of(FileNotFoundError(errno.ENOENT, "No such file", missing)) == f"{missing}: No such file."
    assert sentence_of(PermissionError(errno.EACCES, "no way", table)) == f"{table}: no way."


def test_a_command_ends_with_the_sentence(no_home, tiny_checkpoint, tmp_path, capsys):
    picture = "assets/faces/smile.png"
    command = [picture, "--model", str(tiny_checkpoint), "--no-detect", "--out", str(tmp_path / "aus.csv")]
    assert recognize_au.run(command) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("recognize_au.py: ")
    assert "cannot be written (Not a directory)" in line
    assert "set HF_HOME" in line


def test_the_handler_says_so_too(no_home, tiny_checkpoint):
    with pytest.raises(OSError, match=r"cannot be written .* set HF_HOME to a writable folder"):
        handler.EndpointHandler(str(tiny_checkpoint))
