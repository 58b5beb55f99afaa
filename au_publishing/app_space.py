"""Build a Space of the page: app.py, code, checkpoint, examples, card and requirements in one folder.

    python tools/release_app.py runs/app-space
    hf upload USER/NAME runs/app-space --repo-type=space    # after `hf auth login`

The folder is complete: Python finds the code in its subfolder au_llava, and the page finds the checkpoint there, where
it lies beside the code as in a clone. Requirements are those of this project.

With --static, build a page that runs in the browser itself, with webcam, without Python and without uploads
(docs/browser.md). It needs the extra `export`, and npm's package of ONNX Runtime Web:

    npm pack onnxruntime-web@1.30.0
    python tools/release_app.py runs/static --static --onnxruntime-web onnxruntime-web-1.30.0.tgz
    python -m http.server --directory runs/static
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import SpaceCardData

from au_llava.au_publishing.spaces import PYTHON, extra_requirements, project_settings, render, tested_version
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, replacing

CHECKPOINT = ("*.json", "*.safetensors", "*.jinja", "slots.onnx")  # beside the code
BESIDE = ("app.py", "LICENSE", "NOTICE")  # beside the folder au_llava
NOT_COPIED = ("__pycache__", ".*")  # in the folders of code


def card() -> str:
    """README.md of the Space."""
    metadata = SpaceCardData(
        title="AU-LLaVA",
        sdk="gradio",
        sdk_version=tested_version("gradio"),
        python_version=PYTHON,
        app_file="app.py",
        license="apache-2.0",
        short_description="Facial action units of a picture, in three formats",
        tags=["facial-action-units", "facs"],
    )
    return render("app_space.md.jinja", metadata=metadata.to_yaml())


def release(out: Path) -> None:
    """Write the Space into the folder `out`.

    Raises:
        FileExistsError: the folder exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: name a new folder.")
    settings = project_settings()
    project, packages = settings["project"], settings["tool"]["setuptools"]["packages"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as folder:
        folder.mkdir()
        for name in BESIDE:
            shutil.copy(HOME / name, folder / name)
        (folder / "README.md").write_text(card())
        lines = {*project["dependencies"], *extra_requirements(project, "app")}
        (folder / "requirements.txt").write_text("\n".join(sorted(lines)) + "\n")
        code = folder / "au_llava"
        code.mkdir()
        for pattern in ("*.py", *CHECKPOINT):
            for path in sorted(HOME.glob(pattern)):
                if path.name not in BESIDE:
                    shutil.copy(path, code / path.name)
        for package in packages:
            room = Path(*package.split(".")[1:])
            if len(room.parts) == 1:  # with its templates and styles, and the rooms inside it
                shutil.copytree(HOME / room, code / room, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (code / "assets").mkdir()
        for asset in ("face_rig.npz", "face_points.onnx"):
            shutil.copy(HOME / "assets" / asset, code / "assets" / asset)
        shutil.copytree(HOME / "assets" / "faces", code / "assets" / "faces")


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the folder to write, which must not exist")
    add("--static", action="store_true", help="build the page that runs in the browser itself")
    add("--onnxruntime-web", type=Path, metavar="FILE", help="with --static: the file that `npm pack` writes")
    add("--model", help="with --static: checkpoint folder or Hub id (default: this repository)")
    return parser


def main(arguments) -> None:
    if arguments.static:
        static(arguments)
    elif arguments.onnxruntime_web or arguments.model:
        raise ValueError("--onnxruntime-web and --model belong to --static.")
    else:
        release(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    names = ", ".join(sorted(path.name for path in arguments.out.iterdir()))
    print(f"{arguments.out}: {names} ({size / 1e6:.1f} MB)")


def static(arguments) -> None:
    if arguments.onnxruntime_web is None:
        raise ValueError("--static needs --onnxruntime-web FILE: `npm pack onnxruntime-web@1.30.0` writes the file.")
    try:
        from au_llava.au_publishing import static_space
    except ModuleNotFoundError as error:
        raise ValueError(f"--static needs the extra export; {error.name} is not installed.") from error
    static_space.release(arguments.out, arguments.onnxruntime_web, arguments.model or str(HOME))


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("release_app.py", lambda: main(make_parser().parse_args(words)))
