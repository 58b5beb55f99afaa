"""The wheel: what is in it, and that it works in an empty folder, with a checkpoint as the Hub would hold it."""

import csv
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT
from PIL import Image

from au_llava.au_publishing.files import checkpoint_files

ASSETS = {"face_rig.npz", "published_results.json", "weak_teacher.json"}
METRIC = """
import json, sys, evaluate
from au_llava import au_metric
metric = evaluate.load(au_metric.__file__, "disfa", cache_dir=sys.argv[1])
labels = [[0] * 12, [3] + [0] * 11]
print(json.dumps([au_metric.__file__, metric.compute(predictions=labels, references=labels)["mae"]]))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone, so git cannot tell what belongs to the project")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory) -> Path:
    """Built from what git tracks, without a network."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    words = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(made)]
    built = subprocess.run([sys.executable, "-m", "pip", *words], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs a command of the installed wheel in an empty folder; its `.folder` has the package.

    The packages that it needs are this environment's; the package itself is found in the folder alone.
    """
    folder, empty = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("empty")
    words = ["install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)
    environment = os.environ | {"PYTHONPATH": str(folder)}

    def run(*words) -> subprocess.CompletedProcess:
        command = [str(word) for word in words]
        if command[0].startswith("au-"):
            command[:1] = [sys.executable, str(folder / "bin" / command[0])]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)

    run.folder = folder / "au_llava"
    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The shipped checkpoint with the files of a model repository, and nothing else."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for name, path in checkpoint_files(ROOT).items():
        shutil.copy(path, folder / name)
    return folder


def test_it_holds_the_package_and_nothing_else(wheel, tracked):
    names = set(ZipFile(wheel).namelist())
    package = {name.removeprefix("au_llava/") for name in names if name.startswith("au_llava/")}
    rooms = {name.split("/")[0] for name in tracked if name.count("/") == 1 and name.endswith("/__init__.py")}
    of_rooms = {name for name in tracked if name.split("/")[0] in rooms}
    of_root = {name for name in tracked if "/" not in name and name.endswith(".py")}
    assets = {name for name in tracked if name.startswith("assets/faces/")} | {f"assets/{name}" for name in ASSETS}
    assert len(assets) > 6
    assert package == of_rooms | of_root | assets
    rest = {name.split("/", 1)[1] for name in names if not name.startswith("au_llava/")}
    assert {"licenses/LICENSE", "licenses/NOTICE", "entry_points.txt", "METADATA"} <= rest
    assert {name.split("/")[0] for name in names} == {"au_llava", f"au_llava-{version()}.dist-info"}
    assert wheel.stat().st_size < 3e6


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_its_metadata(installed):
    [found] = importlib.metadata.distributions(name="au-llava", path=[str(installed.folder.parent)])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found.version == project["version"]
    assert {*found.metadata.get_all("Provides-Extra")} == {*project["optional-dependencies"]}
    assert {script.name for script in found.entry_points} == {*project["scripts"]}


@pytest.mark.parametrize("command", ["au-recognize", "au-evaluate", "au-prepare", "au-train", "au-page"])
def test_help(installed, command):
    told = installed(command, "--help")
    assert told.returncode == 0, told.stderr
    assert "usage: " in told.stdout
    assert str(ROOT) not in told.stdout


def test_reads_a_photograph_with_a_checkpoint_named_by_its_folder(installed, checkpoint, tmp_path):
    from skimage import data

    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    table = tmp_path / "aus.csv"
    read = installed("au-recognize", tmp_path / "astronaut.png", "--model", checkpoint, "--out", table)
    assert read.returncode == 0, read.stderr
    [row] = csv.DictReader(table.open())
    assert (row["success"], row["face_id"]) == ("1", "0")
    assert float(row["AU12_p"]) > 0.5  # she smiles
    assert float(row["AU04_p"]) < 0.5


def test_says_that_it_brings_no_checkpoint(installed, tmp_path):
    picture = installed.folder / "assets" / "faces" / "smile.png"
    read = installed("au-recognize", picture, "--no-detect")
    assert read.returncode == 1
    assert read.stderr.splitlines()[-1] == (
        "recognize_au.py: The installed package brings no checkpoint: name one with --model, a folder or a Hub id."
    )


def test_renders_two_faces_and_scores_a_checkpoint_on_them(installed, checkpoint, tmp_path):
    words = ["--subjects", 2, "--images-per-subject", 1, "--validation", 0, "--test", 1, "--workers", 1]
    made = installed("au-prepare", "rendered", *words, "--seed", 3, "--out", tmp_path / "faces")
    assert made.returncode == 0, made.stderr
    scored = installed("au-evaluate", "--model", checkpoint, "--data", tmp_path / "faces", "--out", tmp_path / "scores")
    assert scored.returncode == 0, scored.stderr
    reported = installed("au-evaluate", "report", tmp_path / "scores")
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "scores" / "report.html").is_file()


def test_loads_the_metric(installed, tmp_path):
    run = installed(sys.executable, "-c", METRIC, tmp_path)
    assert run.returncode == 0, run.stderr
    assert str(installed.folder / "au_metric.py") in run.stdout
    assert "0.0" in run.stdout
