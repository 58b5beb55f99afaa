"""docs/study.ipynb: it runs, gives the numbers that it shows, and R gives the same."""

import re
import shutil
import subprocess

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from au_llava.au_runs.manifests import read_training_manifest, seen_people

NOTEBOOK = ROOT / "docs" / "study.ipynb"
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> list[str]:
    """What a cell shows as text, without figures."""
    written = [output for output in cell.outputs if "image/png" not in output.get("data", {})]
    return [output.text if output.output_type == "stream" else output.data["text/plain"] for output in written]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The notebook, run as it is, and the folder that it ran in."""
    folder, notebook = tmp_path_factory.mktemp("study"), read()
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook, folder


def test_stored_outputs_are_complete_and_small():
    notebook = read()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 700_000
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}  # no warnings
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_its_people_are_unknown_to_the_shipped_checkpoint():
    [seed] = re.findall(r"^SEED = (\d+)", code_cells(read())[0].source, re.MULTILINE)
    people = {person for group in seen_people(read_training_manifest(str(ROOT))).values() for person in group}
    assert any(person.startswith("rendered:") for person in people)
    assert not [person for person in people if person.startswith(f"rendered:R{seed}-")]


@pytest.mark.slow
def test_running_it_gives_the_numbers_that_it_shows(study):
    for cell, stored in zip(code_cells(study[0]), code_cells(read()), strict=True):
        for text, before in zip(shown(cell), shown(stored), strict=True):
            assert re.sub(rf"{NUMBER}|\s+", "", text) == re.sub(rf"{NUMBER}|\s+", "", before)
            numbers, expected = ([*map(float, re.findall(NUMBER, each))] for each in (text, before))
            assert numbers == pytest.approx(expected, rel=0.06, abs=0.02), cell.source


@pytest.mark.slow
def test_r_gives_the_same(study):
    rscript = shutil.which("Rscript")
    if rscript is None or subprocess.run([rscript, "-e", "library(nlme)"], capture_output=True).returncode:
        pytest.skip("R with nlme is not installed")
    notebook, folder = study
    [code] = [code for cell in notebook.cells for code in re.findall(r"```r\n(.*?)```", cell.source, re.DOTALL)]
    run = subprocess.run([rscript, "-"], input=code, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    interval, tests = (dict(zip(*map(str.split, pair), strict=True)) for pair in _pairs(run.stdout))
    [text] = [text for cell in code_cells(notebook) for text in shown(cell) if text.startswith("joke - weather")]
    effect, _, low, high, freedom, t_value = map(float, re.findall(NUMBER, text.replace(" - ", " "))[:6])
    of_r = [float(interval[name]) for name in ("lower", "est.", "upper")]
    assert of_r == pytest.approx([low, effect, high], abs=0.01)
    assert float(tests["DF"]) == freedom
    assert float(tests["t-value"]) == pytest.approx(t_value, rel=0.03)  # standard errors of two kinds, see section 8


def _pairs(printed: str) -> list[tuple[str, str]]:
    """(names, values) of the vectors that R printed, one after another."""
    lines = [line for line in printed.splitlines() if line.strip()]
    return list(zip(lines[::2], lines[1::2], strict=True))
