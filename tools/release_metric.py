"""Gather the metric into a folder that is ready to be a Space: code, card, widget and requirements.

    python tools/release_metric.py runs/space                               # writes runs/space/au_metric
    python tools/release_metric.py runs/space --push_to USER/au_metric      # and uploads it, after `hf auth login`

`evaluate.load("USER/au_metric")` looks for `au_metric.py` in the Space of that name, and for the files that this one
names in its imports. Text of the card and the widget is the metric's own, and the requirements are this project's.

The widget is our own: that of `evaluate` 0.4.6 needs Gradio 3, whose NumPy 1 does not go with a current pyarrow.
"""

import argparse
import ast
import json
import shutil
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

from au_llava.action_units import FORMATS, write_answer
from au_llava.au_metric import CITATION, DESCRIPTION, USAGE
from au_llava.au_publishing.hub import upload

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "au_metric.py"
TITLE = "AU metric"
GRADIO = "6.31.0"  # that the widget has been seen to work with

CARD = """\
---
{metadata}
---

# {title}

{description}
## How to use

```python
{examples}
```

## Inputs

```text
{inputs}
```

## Output

```text
{output}
```

## Limits

- A mean over AUs gives a rare AU, whose score is uncertain, the weight of a common one. Look at the scores per AU.
- F1 depends on how common an AU is in the images at hand; compare data sets by f1_skew_normalised or balanced_accuracy.
- Frames of one person are no independent samples: this metric gives no intervals.
- Action units are movements of the face. They are not emotions, intentions or truthfulness.

## Citation

```bibtex
{citation}```
"""

APP = '''\
"""The widget: answers and labels in, scores out."""

import json
from pathlib import Path

import evaluate
import gradio as gr

FORMATS = {{
{formats}
}}
metric = evaluate.load(str(Path(__file__).with_name("{script}")))


def compute(format, unparsed, answers, labels):
    """Scores of answers, one a line, against labels, one JSON list a line."""
    try:
        rows = [json.loads(row) for row in labels.splitlines()]
        return metric.compute(predictions=answers.splitlines(), references=rows, format=format, unparsed=unparsed)
    except (ValueError, TypeError) as error:  # the input, not the program, is wrong
        raise gr.Error(str(error)) from None


widget = gr.Interface(
    compute,
    [
        gr.Dropdown(list(FORMATS), value="{format}", label="Format"),
        gr.Radio(["left_out", "absent"], value="left_out", label="AUs that an answer leaves unread"),
        gr.Textbox(lines=4, label="Answers, one a line"),
        gr.Textbox(lines=4, label="Labels, one JSON list a line, null where not annotated"),
    ],
    gr.JSON(label="Scores"),
    title="{title}",
    description="""{description}""",
    article="\\n".join(f"- {{name}}: {{labels}}" for name, labels in FORMATS.items()),
    examples=[["{format}", "left_out", {answers}, {labels}]],
    cache_examples=False,
    flagging_mode="never",
)

if __name__ == "__main__":
    widget.launch()
'''


def imports(file: str) -> tuple[list[str], set[str]]:
    """What a file of the repository imports: modules beside it, and packages that have to be installed."""
    beside, packages = [], set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            beside.append(node.module)
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.partition(".")[0])
    return beside, packages - sys.stdlib_module_names


def modules(script: str) -> list[str]:
    """The script and the files that it needs, all of which it has to name itself: `evaluate` copies no others."""
    named, _ = imports(script)
    for name in named:
        further = sorted({*imports(f"{name}.py")[0]} - {*named})
        if further:
            raise ValueError(f"{name}.py imports {further}; {script} has to import these too, one per line")
    return [script, *(f"{name}.py" for name in named)]


def requirements(files: list[str]) -> str:
    """The packages that the files import, with the versions of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = {*project["dependencies"], *(line for extra in extras for line in extra)}
    packages = {name for file in files for name in imports(file)[1]}
    lines = [line for line in sorted(declared) if Requirement(line).name in packages]
    if len(lines) != len(packages):
        raise ValueError(f"{', '.join(files)} import {sorted(packages)}, but pyproject.toml declares {lines}")
    return "\n".join(lines) + "\n"


def card(load_from: str) -> str:
    """README.md of the Space, in the metric's own words."""
    usage, _, examples = USAGE.replace(f"./{SCRIPT}", load_from).partition("Examples:\n")
    inputs, _, output = usage.partition("Returns:\n")
    metadata = SpaceCardData(
        title=TITLE,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version="3.11",
        app_file="app.py",
        license="apache-2.0",
        tags=["evaluate", "metric", "facial-action-units", "facs"],
    )
    return CARD.format(
        metadata=metadata.to_yaml(),
        title=TITLE,
        description=DESCRIPTION,
        examples=">>> import evaluate\n" + dedent(examples).strip(),
        inputs=dedent(inputs.partition("Args:\n")[2]).strip(),
        output=dedent(output).strip(),
        citation=CITATION,
    )


def widget(script: str) -> str:
    """app.py of the Space, with an example of the format that has the fewest AUs."""
    fmt = min(FORMATS.values(), key=lambda each: len(each.labels))
    highest = int(fmt.value_numbers[-1])
    answers = [write_answer(dict.fromkeys(fmt.labels, value), fmt) for value in (0, highest)]
    labels = [[0] * len(fmt.labels), [highest] * (len(fmt.labels) - 1) + [None]]
    return APP.format(
        formats="\n".join(f'    "{name}": "{" ".join(each.labels)}",' for name, each in FORMATS.items()),
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
        repo: Hub id that its examples load it from. Without one they load the folder.

    Returns:
        the folder. `evaluate.load` takes it as it is, wherever it is copied to under this name.
    """
    files = modules(SCRIPT)
    beside = [*files[1:], "app.py"]
    if not name.isidentifier() or f"{name}.py" in beside:
        raise ValueError(f"{name!r} cannot be the metric's name: it names a Python file beside {', '.join(beside)}")
    folder = out / name
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(ROOT / file, folder / file)
    script = (folder / SCRIPT).rename(folder / f"{name}.py")
    load_from = repo or f"./{name}"
    script.write_text(script.read_text().replace(f"./{SCRIPT}", load_from))
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "README.md").write_text(card(load_from))
    (folder / "app.py").write_text(widget(script.name))
    (folder / "requirements.txt").write_text(requirements(files))
    return folder


def push(folder: Path, repo: str) -> str:
    """Upload the folder to the Space `repo`, which is made if it does not exist. Returns its address."""
    files = {path.name: path for path in folder.iterdir()}
    space = {"repo_type": "space", "space_sdk": "gradio"}
    return upload(repo, files, "Metric of AU-LLaVA", private=False, update=True, **space)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write the Space's folder into")
    parser.add_argument("--name", help="of the metric (default: that of the Space, else au_metric)")
    parser.add_argument("--push_to", metavar="USER/NAME", help="the Space to upload to (default: none)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    repo, name = arguments.push_to, arguments.name
    if repo and (repo.count("/") != 1 or name not in (None, repo.split("/")[1])):
        raise SystemExit(f"--push_to {repo}: give USER/NAME, NAME as in --name: evaluate loads NAME.py from Space NAME")
    name = name or (repo.split("/")[1] if repo else "au_metric")
    try:
        folder = release(arguments.out, name, repo)
    except (FileExistsError, ValueError) as error:
        raise SystemExit(f"Nothing released: {error}") from None
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if repo:
        try:
            print(f"Uploaded: {push(folder, repo)}")
        except ValueError as error:
            raise SystemExit(f"Not uploaded: {error}") from None


if __name__ == "__main__":
    main(make_parser().parse_args())
