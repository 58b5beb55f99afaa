"""The Space is complete: a process without this package loads it and gets the same numbers."""

import ast
import doctest
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import create_autospec

import evaluate
import pytest
from conftest import ROOT
from huggingface_hub import RepoCard
from packaging.requirements import Requirement

from au_llava.au_publishing import metric_space

FILES = {
    *("LICENSE", "README.md", "action_units.py", "answers_au_llava.py", "app.py", "au_metric.py", "metrics_au.py"),
    "requirements.txt",
}
NAN = float("nan")
CASES = [
    {"predictions": ["AU1, AU12", "AU4"], "references": [[1.0] * 12, [0.0] * 11 + [NAN]], "format": "bp4d"},
    {"predictions": [[1.5, NAN], [0.0, 2.0]], "references": [[2.0, 1.0], [0.0, NAN]], "unparsed": "absent"}
    | {"format": {"name": "mine", "labels": ["AU6", "AU12"], "scale": "intensity"}},
]

# What the other process runs in the folder above the Space's, whose name is its argument: the metric on the cases that
# it is sent, the example of the card, and the widget's function on the widget's own example.
STRANGER = '''
import doctest, importlib.abc, json, re, runpy, sys, types
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    """Makes the installed package, and any bare import of one of the Space's files, fail."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("au_llava", "au_metric", "action_units", "answers_au_llava", "metrics_au"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import au_llava.action_units
except ImportError:
    pass
else:
    raise AssertionError("the package can be imported: this check would prove nothing")
import evaluate

name = sys.argv[1]
metric = evaluate.load(f"./{name}")
scores = [metric.compute(**case) for case in json.load(sys.stdin)]

card = re.search("```python\\n(.*?)```", Path(name, "README.md").read_text(), re.DOTALL)[1]
example = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(card, {}, "README.md", None, 0))

class Part:
    """Replaces a part of Gradio and keeps its arguments."""
    def __init__(self, *arguments, **more):
        self.arguments, self.more = arguments, more

parts = ("Dropdown", "Radio", "Textbox", "JSON", "Interface")
sys.modules["gradio"] = types.SimpleNamespace(**dict.fromkeys(parts, Part), Error=RuntimeError)
widget = runpy.run_path(f"{name}/app.py")["widget"]
(row,) = widget.more["examples"]
assert len(row) == len(widget.arguments[1])
compute = widget.arguments[0]
try:
    compute(*row[:3], "[0")
except RuntimeError as error:
    refusal = str(error)
print(json.dumps({"scores": scores, "example": example, "shown": compute(*row), "refusal": refusal}))
'''


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(ROOT / "au_metric.py"), cache_dir=str(tmp_path / "cache"))


def test_a_stranger_loads_it_and_gets_the_same(metric, tmp_path):
    expected = [metric.compute(**case) for case in CASES]
    name = "facs_scores"
    folder = metric_space.release(tmp_path / "out", name)
    assert files(folder) == FILES - {"au_metric.py"} | {f"{name}.py"}
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere / name)
    shutil.rmtree(tmp_path / "out")

    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment["USE_TORCH"] = "0"  # `datasets` would import it, for nothing
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, name],  # -I: nothing comes from the current folder or PYTHONPATH
        cwd=elsewhere,
        env=environment,
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    result = json.loads(process.stdout.splitlines()[-1])
    assert str(result["scores"]) == str(expected)
    failed, attempted = result["example"]
    assert failed == 0
    assert attempted >= 8
    assert result["shown"]["n"] == 2
    assert result["shown"]["accuracy"] == 1
    assert result["refusal"]


def test_a_released_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_space, "requirements", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metric_space.release(tmp_path, "au_metric")
    assert not list(tmp_path.iterdir())


class Hub(SimpleHTTPRequestHandler):
    """Serves one folder as the main branch of the Space `someone/au_metric`, and nothing else."""

    def translate_path(self, path):
        return super().translate_path(path.removeprefix("/spaces/someone/au_metric/resolve/main"))

    def do_GET(self):
        if self.path.startswith("/spaces/someone/au_metric/resolve/main/"):
            super().do_GET()
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


def test_evaluate_loads_it_from_a_hub(metric, tmp_path, monkeypatch):
    expected = metric.compute(**CASES[0])
    folder = metric_space.release(tmp_path, "au_metric", "someone/au_metric")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: Hub(*arguments, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", address + "/spaces/{path}/resolve/{revision}/{name}")
    monkeypatch.setattr(evaluate.config, "DOWNLOADED_EVALUATE_PATH", str(tmp_path / "downloads"))
    try:
        metric = evaluate.load("someone/au_metric", cache_dir=str(tmp_path / "cache"))
        assert "someone--au_metric" in type(metric).__module__
        assert str(metric.compute(**CASES[0])) == str(expected)
        assert 'evaluate.load("someone/au_metric")' in metric.inputs_description
    finally:
        server.shutdown()
        server.server_close()


def test_card_says_what_the_metric_says(tmp_path):
    folder = metric_space.release(tmp_path, "au_metric", "someone/au_metric")
    card = RepoCard.load(folder / "README.md")
    assert card.data.sdk == "gradio"
    assert {"evaluate", "metric"} <= set(card.data.tags)
    assert (folder / card.data.to_dict()["app_file"]).is_file()
    source = ast.parse((folder / "au_metric.py").read_text())
    said = {node.targets[0].id: node.value.value for node in source.body if isinstance(node, ast.Assign)}
    words = " ".join(card.content.split())
    for part in re.split(r"Args:|Returns:|Examples:", said["USAGE"]):
        assert " ".join(part.split()) in words
    assert " ".join(said["DESCRIPTION"].split()) in words
    examples = doctest.DocTestParser().get_examples(card.content)
    assert 'metric = evaluate.load("someone/au_metric")\n' in [example.source for example in examples]
    assert "./" not in card.content


def test_requirements_are_the_packages_that_the_code_imports(tmp_path):
    folder = metric_space.release(tmp_path, "au_metric")
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    lines = (folder / "requirements.txt").read_text().splitlines()
    needed = imported - sys.stdlib_module_names - {"gradio"}  # that one is named in the card
    assert {Requirement(line).name for line in lines} == needed
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in project and ">=" in line for line in lines)


def run(*words) -> int:
    return metric_space.run([str(word) for word in words])


def test_nothing_is_uploaded_unless_asked_for(tmp_path, monkeypatch):
    upload = create_autospec(metric_space.upload)
    monkeypatch.setattr(metric_space, "upload", upload)
    assert run(tmp_path / "kept") == 0
    assert files(tmp_path / "kept") == {f"au_metric/{name}" for name in FILES}
    upload.assert_not_called()

    assert run(tmp_path / "pushed", "--push-to", "someone/facs_scores") == 0
    folder = tmp_path / "pushed" / "facs_scores"
    repo, sent, _ = upload.call_args.args
    assert repo == "someone/facs_scores"
    assert upload.call_args.kwargs["repo_type"] == "space"
    assert sent == {path.name: path for path in folder.iterdir()}
    assert (folder / "facs_scores.py").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "au-metric"], "'au-metric' cannot be the metric's name"),
        (["--name", "metrics_au"], "use a Python name other than action_units.py"),
        (["--name", "app"], "'app' cannot be"),
        (["--push-to", "au_metric"], "give USER/NAME"),
        (["--push-to", "someone/au_metric", "--name", "other"], "NAME as in --name"),
    ],
)
def test_what_evaluate_could_not_load_is_refused(tmp_path, words, message, capsys):
    assert run(tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "au_metric").mkdir()
    (tmp_path / "au_metric" / "mine.txt").write_text("mine")
    assert run(tmp_path) == 1
    assert "exists" in capsys.readouterr().err
    assert files(tmp_path) == {"au_metric/mine.txt"}


def test_a_file_that_the_script_does_not_import_is_noticed(tmp_path):
    """`evaluate` would not copy it."""
    for name in ("au_metric.py", "action_units.py", "answers_au_llava.py", "metrics_au.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "metrics_au.py").open("a") as file:
        file.write("from .further import something\nimport torch\nimport yaml\n")
    with pytest.raises(ValueError, match=r"metrics_au.py imports \['further'\]; au_metric.py has to import"):
        metric_space.modules("au_metric.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with pytest.raises(ValueError, match="yaml"):
        metric_space.requirements(["metrics_au.py"], tmp_path)
