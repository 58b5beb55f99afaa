"""Starting a command, with one sentence instead of a traceback where a package is missing.

Standard library only: this must run in a clone in which nothing has been installed. A command at the root is no more
than

    try:
        from au_llava.au_runs.start import command
    except ModuleNotFoundError:  # not installed, which the command then says
        from au_runs.start import command

    run = command("eval_au.py", "au_evaluation.command", "eval")

    if __name__ == "__main__":
        sys.exit(run())
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent


def command(program: str, module: str, extra: str | None = None) -> Callable[[Sequence[str] | None], int]:
    """The `run` of a command whose body is `au_llava.<module>`, which is imported when it runs.

    Args:
        program: what messages begin with, such as "eval_au.py".
        module: it has `run(words) -> int`; in dotted form, such as "au_evaluation.command".
        extra: the optional dependencies in pyproject.toml that the command needs.
    """

    def run(words: Sequence[str] | None = None) -> int:
        """Run the command line `words` (default: the program's own) and return the exit status."""
        try:
            return importlib.import_module(f"au_llava.{module}").run(words)
        except KeyboardInterrupt:  # while it was imported
            print(f"{program}: stopped.", file=sys.stderr)
            return 130
        except ModuleNotFoundError as error:
            sentence = missing(error, extra)
            if sentence is None:
                raise
        print(f"{program}: {sentence}", file=sys.stderr)
        return 1

    return run


def missing(error: ModuleNotFoundError, extra: str | None = None) -> str | None:
    """How to install what `error` misses; None where no installation would help."""
    name = error.name or ""
    if " " in name:  # the sentence of a library that misses another
        return " ".join(name.split())
    package = name.partition(".")[0]
    if not package or package in sys.stdlib_module_names or name.startswith("au_llava."):
        return None
    needed = f'".[{extra}]"' if extra and package != "au_llava" else "."
    if not (FOLDER / "pyproject.toml").is_file():  # installed, not a clone
        needed = needed.replace(".", "au-llava", 1)
        return f"{package} is not installed: run `pip install {needed}`."
    place = "this folder" if Path.cwd() == FOLDER else str(FOLDER)
    return f"{package} is not installed: run `pip install --editable {needed}` in {place}"
