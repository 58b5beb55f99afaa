"""The repository as a newcomer finds it: shipped checkpoint, README and card, and that they tell the truth."""

import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import torch
from conftest import ROOT, load_tool
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import FORMATS, parse_answer
from au_llava.au_evaluation.command import parse as parse_evaluation
from au_llava.au_runs.manifests import read_training_manifest, seen_people

TOP_LEVEL = (
    "pyproject.toml README.md model_card.md modeling_au_llava.py configuration_au_llava.py processing_au_llava.py "
    "train_sft.py eval_au.py tests LICENSE NOTICE CHANGELOG.md CONTRIBUTING.md CITATION.cff constraints.txt Makefile"
)


@pytest.fixture(scope="module")
def shipped():
    model = AutoModel.from_pretrained(str(ROOT), trust_remote_code=True).eval()
    return model, AutoProcessor.from_pretrained(str(ROOT), trust_remote_code=True)


def test_top_level_files_exist():
    assert [name for name in TOP_LEVEL.split() if not (ROOT / name).exists()] == []


def test_root_loads_by_the_auto_classes(shipped):
    model, processor = shipped
    assert type(model).__name__ == "AuLlavaForConditionalGeneration"
    assert type(processor).__name__ == "AuLlavaProcessor"
    assert AutoConfig.from_pretrained(str(ROOT), trust_remote_code=True).model_type == "au_llava"
    assert (
        type(AutoModelForImageTextToText.from_pretrained(str(ROOT), trust_remote_code=True)).__name__
        == type(model).__name__
    )
    assert model.dtype == torch.float32


def test_shipped_weights_are_small_and_finite():
    path = ROOT / "model.safetensors"
    assert path.stat().st_size < 12e6
    with safe_open(path, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = tensors.get_tensor(name)
            if tensor.is_floating_point():
                assert tensor.dtype == torch.bfloat16
                assert tensor.isfinite().all(), name


def test_shipped_checkpoint_has_not_seen_whom_others_draw():
    """Those of `make demo`, of the sample faces and the page, and of the benchmarks: another seed, other people."""
    [demo] = re.findall(r"prepare_data.py rendered .*--seed (\d+)", (ROOT / "Makefile").read_text())
    elsewhere = {
        path: int(re.search(r"^SEED\b.*?= (\d+)", (ROOT / path).read_text(), re.MULTILINE)[1])
        for path in ("app.py", "maintenance/sample_faces.py", "benchmarks/robustness.py", "benchmarks/pointing.py")
    }
    seen = seen_people(read_training_manifest(str(ROOT)))
    met = {subject_seed(name) for people in seen.values() for name in people if name.startswith("rendered:")}
    assert met
    assert {path: seed for path, seed in {"Makefile": int(demo), **elsewhere}.items() if seed in met} == {}


def subject_seed(person: str) -> int:
    """7 of "rendered:R7-000123"."""
    return int(re.fullmatch(r"rendered:R(\d+)-\d+", person)[1])


@pytest.mark.parametrize("decoding", ["slots", "constrained", "free"])
def test_shipped_checkpoint_answers_in_every_format(shipped, decoding):
    model, processor = shipped
    faces = sorted((ROOT / "assets" / "faces").glob("*.png"))
    for answers in model.recognize(processor, faces, decoding=decoding):
        for name, answer in answers.items():
            assert parse_answer(answer.text, FORMATS[name]).ok


def test_shipped_checkpoint_sees_the_plain_cases(shipped):
    """The sample faces show what their names say (maintenance/sample_faces.py): the strongest AUs must be found."""
    model, processor = shipped

    def probability(face, label, name="feafa"):
        return model.recognize(processor, ROOT / "assets" / "faces" / f"{face}.png")[0][name][label].probability

    assert probability("smile", "AU12", "bp4d") > 0.5 > probability("frown", "AU12", "bp4d")
    assert probability("surprise", "AU26") > 0.5 > probability("rest", "AU26")
    assert probability("frown", "AU4", "bp4d") > 0.5 > probability("rest", "AU4", "bp4d")
    assert probability("wink", "AU43L") > 0.5 > probability("wink", "AU43R")


def test_scores_in_documents_are_those_of_the_evaluation():
    tool = load_tool("write_scores")
    documents = tool.documents()
    assert len(documents) > 2
    assert [name for name, text in documents.items() if tool.filled(text) != text] == []


def test_shipped_evaluations_belong_together():
    evaluations = {name: load_tool("write_scores").evaluation(name) for name in ("slots", "free", "constrained")}
    assert len({json.dumps(each["provenance"]["data"]) for each in evaluations.values()}) == 1
    for decoder, each in evaluations.items():
        assert each["provenance"]["decoding"] == decoder
        assert each["provenance"]["part"] == "test"


def snippets(language):
    """(file, number, code) of every fenced block of a language in the documents."""
    for name in ("README.md", "model_card.md"):
        blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
        yield from ((name, number, block) for number, block in enumerate(blocks))


@pytest.mark.parametrize("name", ["README.md", "model_card.md"])
def test_snippets_run(name):
    """The Python blocks of a document, one after another, in a fresh process at the repository root."""
    code = "\n".join(block for file, _, block in snippets("python") if file == name)
    code = code.replace('"face.png"', '"assets/faces/smile.png"')  # the reader's own picture
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "AU1: " in run.stdout


def test_commands_in_documents_parse():
    """Every `python X.py --flag` line names a script that exists and flags that it knows."""
    text = "".join(
        path.read_text() for path in (ROOT / "README.md", ROOT / "model_card.md", *sorted((ROOT / "docs").glob("*.md")))
    )
    lines = re.findall(r"^    (?:python|accelerate launch) (\S+\.py) ?(.*)$", text, re.MULTILINE)
    assert len(lines) >= 8
    for script, rest in lines:
        if script == "eval_au.py":
            parse_evaluation(shlex.split(rest))
            continue
        source = (ROOT / script).read_text()
        if script.startswith("benchmarks/"):
            source += (ROOT / "benchmarks" / "page.py").read_text()
        if "BooleanOptionalAction" in source:  # such flags can be denied
            rest = rest.replace("--no-", "--")
        for flag in re.findall(r"--(\w[\w-]*)", rest):
            passed_on = script == "benchmarks/imbalance.py"  # what it does not know goes to train_sft.py
            known = load_train_options() if script == "train_sft.py" or passed_on else ()
            assert flag in known or (f'"--{flag}"' in source and script != "train_sft.py"), f"{script} --{flag}"


def load_train_options() -> set[str]:
    from au_llava.train_sft import make_parser

    return {option.removeprefix("--") for action in make_parser()._actions for option in action.option_strings} | {
        "config",
        "key",
    }


def test_linked_files_exist():
    documents = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))
    for name in ("README.md", "CONTRIBUTING.md", *documents):
        folder = (ROOT / name).parent
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text()):
            assert (folder / target).exists(), f"{name}: {target}"


def test_sample_faces_are_square_pictures():
    faces = list((ROOT / "assets" / "faces").glob("*.png"))
    assert len(faces) >= 6
    assert {Image.open(face).size for face in faces} == {(192, 192)}


def test_constraints_satisfy_the_declared_ranges():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    extras = project["optional-dependencies"]
    del extras["teacher"]  # its OpenCV takes the place of the one that is pinned
    declared = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]
    for requirement in map(Requirement, declared):
        if requirement.name != "au-llava":
            name = requirement.name.lower().replace("_", "-")
            assert requirement.specifier.contains(pinned[name]), requirement
