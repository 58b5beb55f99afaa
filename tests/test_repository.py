"""The repository as a newcomer finds it: shipped checkpoint, README and card, and that they tell the truth."""

import json
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load_tool
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_relative_import_files

from au_llava.action_units import FORMATS, parse_answer
from au_llava.au_evaluation.command import subcommand
from au_llava.au_page import drawing
from au_llava.au_runs.manifests import read_training_manifest, seen_people

TOP_LEVEL = (
    "pyproject.toml README.md model_card.md modeling_au_llava.py configuration_au_llava.py processing_au_llava.py "
    "train_sft.py eval_au.py tests LICENSE NOTICE CHANGELOG.md CONTRIBUTING.md CITATION.cff constraints.txt Makefile"
)

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "model_card.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES)
WITH_SNIPPETS = ("README.md", "model_card.md", "docs/answers.md", "docs/evaluation.md", "docs/recognize.md")


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
    elsewhere = {name: load_tool(name).SEED for name in ("sample_faces", "robustness", "pointing")}
    elsewhere |= {"Makefile": int(demo), "page": drawing.SEED}
    seen = seen_people(read_training_manifest(str(ROOT)))
    met = {subject_seed(name) for people in seen.values() for name in people if name.startswith("rendered:")}
    assert met
    assert {name: seed for name, seed in elsewhere.items() if seed in met} == {}


def subject_seed(person: str) -> int:
    """7 of "rendered:R7-000123"."""
    return int(re.fullmatch(r"rendered:R(\d+)-\d+", person)[1])


@pytest.mark.parametrize("decoding", ["slots", "constrained", "free"])
def test_shipped_checkpoint_answers_in_every_format(shipped, decoding):
    model, processor = shipped
    faces = sorted((ROOT / "assets" / "faces").glob("*.png"))
    parsed = [
        parse_answer(answer.text, FORMATS[name])
        for answers in model.recognize(processor, faces, decoding=decoding)
        for name, answer in answers.items()
    ]
    unread = sum(value is None for each in parsed for value in each.values.values())
    if decoding == "free":  # nothing makes plain `generate` write what can be read
        assert unread <= 0.01 * sum(len(each.values) for each in parsed)
    else:
        assert all(each.ok for each in parsed)


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


def python_of(name: str) -> str:
    """The Python blocks of a document, one after another."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL))


def test_every_document_with_python_is_run():
    """docs/serving.md has tests of its own, since its snippets need a server, ONNX Runtime or bitsandbytes."""
    assert {name for name in DOCUMENTS if python_of(name)} == {*WITH_SNIPPETS, "docs/serving.md"}


def test_snippets_run():
    """In a fresh process at the repository root, each document with names of its own."""
    codes = {name: python_of(name).replace('"face.png"', '"assets/faces/smile.png"') for name in WITH_SNIPPETS}
    program = (
        "import json, sys\nfor name, code in json.load(sys.stdin).items():\n    exec(compile(code, name, 'exec'), {})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(codes), cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("AU1: ") >= 3  # README.md, model_card.md, docs/answers.md


def commands_in_documents() -> dict[tuple[str, ...], set[str]]:
    """(script, subcommand if there is one) -> options that documents use with it, spelled with hyphens."""
    text = "".join((ROOT / name).read_text() for name in DOCUMENTS)
    lines = re.findall(
        r"^(?:    |\| .* \| `)(?:OMP_NUM_THREADS=\d )?(?:python|accelerate launch)((?: --\S+ \S+)*) (\S+\.py)(.*)$",
        text,
        re.MULTILINE,
    )
    used = {}
    for _, script, rest in lines:
        command = (script,)
        if script == "eval_au.py":  # knows older spellings of its subcommands
            command = (script, subcommand(rest.split())[0])
        elif script == "prepare_data.py" and (reader := re.match(r" [a-z][\w-]*", rest)):
            command = (script, reader[0].strip())
        options = re.findall(r"(?<=\s)--([a-z][\w-]*)", rest)
        used.setdefault(command, set()).update(option.replace("_", "-") for option in options)
    return used


def options_of(command: tuple[str, ...], monkeypatch, capsys) -> set[str]:
    """The options that `--help` of a command names, spelled with hyphens."""
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    assert not end.value.code, command
    return {option.replace("_", "-") for option in re.findall(r"--([a-z][\w-]*)", capsys.readouterr().out)}


def test_commands_in_documents_have_the_options_they_use(monkeypatch, capsys):
    used = commands_in_documents()
    assert len(used) > 20
    training = options_of(("train_sft.py",), monkeypatch, capsys) | {"config"}
    unknown = {}
    for command, options in used.items():
        known = training if command == ("train_sft.py",) else options_of(command, monkeypatch, capsys)
        if command == ("benchmarks/imbalance.py",):  # hands on what it does not know
            known |= training
        if options - known - {"help"}:
            unknown[command] = options - known
    assert unknown == {}


def anchors(document: Path) -> set[str]:
    """What GitHub calls the headings of a document in links."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    broken = []
    for name in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", (ROOT / name).read_text()):
            path = (ROOT / name).parent / target if target else ROOT / name
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(f"{name}: {target}#{anchor}")
    assert broken == []


def test_names_in_documents_exist():
    """Files with a folder (`au_faces/faces.py`) and modules (`au_llava.au_faces.faces.crop_face`)."""
    missing = []
    for name in DOCUMENTS:
        if name in ("CHANGELOG.md", "docs/log.md"):  # which tell of the past
            continue
        text = (ROOT / name).read_text()
        folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
        for path in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/.-]+\.(?:py|yaml|json|npz)\b", text):
            if not (ROOT / path).exists() and not path.startswith(("runs/", "data/")) and "NAME" not in path:
                missing.append(f"{name}: {path}")
        for dotted in re.findall(r"\bau_llava(?!\.onnx)(?:\.\w+)+", text):
            try:
                pkgutil.resolve_name(dotted)
            except (ImportError, AttributeError):
                missing.append(f"{name}: {dotted}")
    assert missing == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [page for page in sorted(pages) if index.count(f"| [{page}]({page}) |") != 1] == []


def the_map() -> dict[str, list[str]]:
    """Group -> entries, of the map in CONTRIBUTING.md."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| entry | what it is |")[2].partition("\n\n")[0]
    groups = {}
    for title, entry in re.findall(r"^\| (?:\*\*(.+?)\*\*|`(.+?)`) \|", table, re.MULTILINE):
        if title:
            groups[title] = []
        else:
            next(reversed(groups.values())).append(entry)
    return groups


def test_the_map_names_everything_once():
    """Every entry at the root that git tracks, among them every room and folder of scripts."""
    if not (ROOT / ".git").exists():
        pytest.skip("no clone, so git cannot tell what belongs to the project")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.splitlines()
    mapped = [entry for entries in the_map().values() for entry in entries]
    assert sorted(mapped) == sorted({path.split("/")[0] for path in tracked})
    rooms = {path.split("/")[0] for path in tracked if path.count("/") == 1 and path.endswith("/__init__.py")}
    assert rooms | {"__init__.py"} == {*the_map()["Rooms of the package"]}


def test_the_map_knows_which_files_travel():
    """Those that Transformers copies: what model and processor import relatively, and they themselves."""
    loaded = [ROOT / "modeling_au_llava.py", ROOT / "processing_au_llava.py"]
    travelling = {Path(path).name for file in loaded for path in (file, *get_relative_import_files(file))}
    assert {*the_map()["Travels with a checkpoint"]} == travelling


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


def test_install_page_has_every_extra_and_commands_name_theirs():
    """A command without a package it needs names an extra, which the page must give to that command."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = dict(re.findall(r"^\| `([a-z]+)` \| (.*) \|$", (ROOT / "docs/install.md").read_text(), re.MULTILINE))
    assert rows.keys() == extras.keys()
    starts = [re.search(r'command\("(.+?)", ".+?", "(.+?)"\)', path.read_text()) for path in ROOT.glob("*.py")]
    named = {start[1]: start[2] for start in starts if start}
    assert len(named) == 5
    assert {program for program, extra in named.items() if f"`{program}`" not in rows[extra]} == set()


def test_console_scripts_are_commands():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert len(scripts) == 5
    for target in scripts.values():
        assert callable(pkgutil.resolve_name(target))
