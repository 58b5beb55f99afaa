"""Build a Space of the metric: code, card, widget and requirements in one folder.

    python tools/release_metric.py runs/space                               # writes runs/space/au_metric
    python tools/release_metric.py runs/space --push-to USER/au_metric      # and uploads it, after `hf auth login`

`evaluate.load("USER/au_metric")` downloads `au_metric.py` from the Space of that name, and the files that it imports.
The text of card and widget comes from the metric, and the requirements from this project.

The widget is our own: the one in `evaluate` 0.4.6 needs Gradio 3, whose NumPy 1 conflicts with a current pyarrow.
"""

import ast
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

from au_llava.action_units import FORMATS, write_answer
from au_llava.au_metric import CITATION, DESCRIPTION, USAGE
from au_llava.au_publishing.spaces import PYTHON, project_settings, render, tested_version
from au_llava.au_publishing.upload import upload
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, replacing

SCRIPT = "au_metric.py"
TITLE = "AU metric"


def imports(file: str, home: Path = HOME) -> tuple[list[str], set[str]]:
    """(modules beside the file, packages to install) that a file of the repository imports."""
    beside, packages = [], set()
    for node in ast.walk(ast.parse((home / file).read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            beside.append(node.module)
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.partition(".")[0])
    return beside, packages - sys.stdlib_module_names


def modules(script: str, home: Path = HOME) -> list[str]:
    """The script and the files that it needs; it must import all of them itself, since `evaluate` copies no others."""
    named, _ = imports(script, home)
    for name in named:
        further = sorted({*imports(f"{name}.py", home)[0]} - {*named})
        if further:
            raise ValueError(f"{name}.py imports {further}; {script} has to import these too, one per line")
    return [script, *(f"{name}.py" for name in named)]


def requirements(files: list[str], home: Path = HOME) -> str:
    """The packages that the files import, with the versions in pyproject.toml."""
    project = project_settings(home)["project"]
    extras = project["optional-dependencies"].values()
    declared = {*project["dependencies"], *(line for extra in extras for line in extra)}
    packages = {name for file in files for name in imports(file, home)[1]}
    lines = [line for line in sorted(declared) if Requirement(line).name in packages]
    if len(lines) != len(packages):
        raise ValueError(f"{', '.join(files)} import {sorted(packages)}, but pyproject.toml declares {lines}")
    return "\n".join(lines) + "\n"


def card(load_from: str) -> str:
    """README.md of the Space, with the metric's own texts."""
    usage, _, examples = USAGE.replace(f"./{SCRIPT}", load_from).partition("Examples:\n")
    inputs, _, output = usage.partition("Returns:\n")
    metadata = SpaceCardData(
        title=TITLE,
        sdk="gradio",
        sdk_version=tested_version("gradio"),
        python_version=PYTHON,
        app_file="app.py",
        license="apache-2.0",
        tags=["evaluate", "metric", "facial-action-units", "facs"],
    )
    return render(
        "metric_space.md.jinja",
        metadata=metadata.to_yaml(),
        title=TITLE,
        description=DESCRIPTION,
        examples=">>> import evaluate\n" + dedent(examples).strip(),
        inputs=dedent(inputs.partition("Args:\n")[2]).strip(),
        output=dedent(output).strip(),
        citation=CITATION,
    )


def widget(script: str) -> str:
    """app.py of the Space, with an example in the format that has the fewest AUs."""
    fmt = min(FORMATS.values(), key=lambda candidate: len(candidate.labels))
    highest = int(fmt.value_numbers[-1])
    answers = [write_answer(dict.fromkeys(fmt.labels, value), fmt) for value in (0, highest)]
    labels = [[0] * len(fmt.labels), [highest] * (len(fmt.labels) - 1) + [None]]
    return render(
        "metric_widget.py.jinja",
        formats="\n".join(f'    "{name}": "{" ".join(known.labels)}",' for name, known in FORMATS.items()),
        script=script,
        format=fmt.name,
        title=TITLE,
        description=DESCRIPTION.strip(),
        answers=json.dumps("\n".join(answers)),
        labels=json.dumps("\n".join(map(json.dumps, labels))),
    )


def release(out: Path, name: str, repo: str | None = None) -> Path:
    """Write the Space `name` into the folder `out`/`name`, which must not exist.

    Args:
        repo: Hub id from which its examples load it; by default they load the folder.

    Returns:
        the folder. `evaluate.load` accepts it wherever it is copied, under this name.

    Raises:
        ValueError: a name that `evaluate` could not load.
        FileExistsError: the folder exists.
    """
    files = modules(SCRIPT)
    beside = [*files[1:], "app.py"]
    if not name.isidentifier() or f"{name}.py" in beside:
        raise ValueError(f"{name!r} cannot be the metric's name: use a Python name other than {', '.join(beside)}")
    folder = out / name
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name another folder or delete it.")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        for file in files:
            shutil.copy(HOME / file, unfinished / file)
        script = (unfinished / SCRIPT).rename(unfinished / f"{name}.py")
        load_from = repo or f"./{name}"
        script.write_text(script.read_text().replace(f"./{SCRIPT}", load_from))
        shutil.copy(HOME / "LICENSE", unfinished / "LICENSE")
        (unfinished / "README.md").write_text(card(load_from))
        (unfinished / "app.py").write_text(widget(script.name))
        (unfinished / "requirements.txt").write_text(requirements(files))
    return folder


def push(folder: Path, repo: str) -> str:
    """Upload the folder to the Space `repo`, which is created if needed. Returns its address."""
    files = {path.name: path for path in folder.iterdir()}
    space = {"repo_type": "space", "space_sdk": "gradio"}
    return upload(repo, files, "Metric of AU-LLaVA", private=False, update=True, **space)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder in which the Space's folder is written")
    parser.add_argument("--name", help="name of the metric (default: that of the Space, otherwise au_metric)")
    parser.add_argument("--push-to", metavar="USER/NAME", help="the Space to upload to (default: no upload)")
    return parser


def main(arguments) -> None:
    repo, name = arguments.push_to, arguments.name
    if repo and (repo.count("/") != 1 or name not in (None, repo.split("/")[1])):
        raise ValueError(f"--push-to {repo}: give USER/NAME, NAME as in --name: evaluate loads NAME.py from Space NAME")
    name = name or (repo.split("/")[1] if repo else "au_metric")
    folder = release(arguments.out, name, repo)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if repo:
        print(f"Uploaded: {push(folder, repo)}")


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("release_metric.py", lambda: main(make_parser().parse_args(words)))
