"""Gather the page into a folder that is ready to be a Space: page, code, checkpoint, examples, card and requirements.

    python tools/release_app.py runs/app-space
    hf upload USER/NAME runs/app-space --repo-type=space    # after `hf auth login`

The folder needs nothing else: Python finds the code in its folder au_llava, beside app.py, and the page finds the
checkpoint there, as both lie together in a clone. The Space's requirements are this project's.
"""

import argparse
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ("*.json", "*.safetensors", "*.jinja")  # what `from_pretrained` reads at the root, beside the code
BESIDE = ("app.py", "LICENSE", "NOTICE")

CARD = """\
---
{metadata}
---

# AU-LLaVA

A page that reads facial action units (AUs) off pictures in three formats at once, shows what each reading rests on, and
draws faces for the model to read back.

- The checkpoint **learned AUs from rendered faces** and got used to photographs that nobody coded: how accurate
  it is on them is not known.
- AUs are movements of the face. They are not emotions, intentions or truthfulness, and must not be used to infer those,
  nor for surveillance.
- Pictures are not kept: they are deleted within ten minutes and used for nothing but the answer.

It needs no GPU. On one's own computer: `pip install -r requirements.txt` and `python app.py`.
"""


def requirements(project: dict, extra: str) -> Iterator[str]:
    """What an extra of the project installs, its own extras written out."""
    for line in project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            yield line
        for other in sorted(requirement.extras) if requirement.name == project["name"] else ():
            yield from requirements(project, other)


def card(constraints: str) -> str:
    """README.md of the Space, whose Gradio is the version that the tests prove."""
    pins = dict(line.split("==") for line in constraints.splitlines() if "==" in line)
    metadata = SpaceCardData(
        title="AU-LLaVA",
        sdk="gradio",
        sdk_version=pins["gradio"],
        python_version="3.11",
        app_file="app.py",
        license="apache-2.0",
        short_description="Facial action units of a picture, in three formats",
        tags=["facial-action-units", "facs"],
    )
    return CARD.format(metadata=metadata.to_yaml())


def release(out: Path) -> None:
    """Write the Space into the folder `out`.

    Raises:
        FileExistsError: the folder is there already.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, packages = settings["project"], settings["tool"]["setuptools"]["packages"]
    out.mkdir(parents=True)
    for name in BESIDE:
        shutil.copy(ROOT / name, out / name)
    (out / "README.md").write_text(card((ROOT / "constraints.txt").read_text()))
    lines = {*project["dependencies"], *requirements(project, "app")}
    (out / "requirements.txt").write_text("\n".join(sorted(lines)) + "\n")
    code = out / "au_llava"
    for package in packages:
        folder = Path(*package.split(".")[1:])
        (code / folder).mkdir()
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name not in BESIDE:
                shutil.copy(path, code / folder / path.name)
    for pattern in CHECKPOINT:
        for path in sorted(ROOT.glob(pattern)):
            shutil.copy(path, code / path.name)
    (code / "assets").mkdir()
    shutil.copy(ROOT / "assets" / "face_rig.npz", code / "assets" / "face_rig.npz")
    shutil.copytree(ROOT / "assets" / "faces", code / "assets" / "faces")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not exist")
    out = parser.parse_args().out
    try:
        release(out)
    except FileExistsError:
        raise SystemExit(f"Nothing released: {out} exists already; name a new folder.") from None
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
