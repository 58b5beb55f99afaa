"""The skeleton of every command line: the parser, the exit status, and errors as one sentence."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

QUANTIZATIONS = ("8bit", "4bit")  # choices of --quantize, see quantization_au_llava.py
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose options are spelled with hyphens; underscores are accepted: `--batch_size`.

    The description is printed as it is written, options cannot be abbreviated, and empty arguments are refused.
    """

    def __init__(self, description: str | None = None, **settings):
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False} | settings
        super().__init__(description=description, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        words = hyphenated(sys.argv[1:] if args is None else args)
        if any(not word or (word.startswith("--") and word.endswith("=")) for word in words):
            self.error("an empty argument arrived, which would mean the current folder: is a variable not set?")
        return super().parse_known_args(words, namespace)


def positive(text: str) -> int:
    """The type of an option that takes a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def hyphenated(words: Sequence[str]) -> list[str]:
    """`words` with hyphens for underscores in the names of options, up to a word "--"."""
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words[place] = name.replace("_", "-") + equals + value
    return words


class CommandEnded(Exception):
    """A command that ends early, with one sentence for its user.

    Args:
        status: exit status; above 128 for a signal, which ends all processes alike.
    """

    def __init__(self, sentence: str, status: int = 1):
        super().__init__(sentence)
        self.status = status


def run_command(program: str, main: Callable[[], int | None]) -> int:
    """Run `main` and return its exit status (None is 0).

    A ValueError, an OSError, a CommandEnded and Ctrl+C (130) become one sentence on standard error, which begins with
    the name of the `program`. It ends quietly (1) if nobody reads what it prints any more, as with `| head`. Other
    errors are bugs and keep their traceback.
    """
    print_anything()
    try:
        status = main() or 0
        print(end="", flush=True)  # sys.stdout is None where standard output is closed
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return 1
    except CommandEnded as end:
        sentence, status = str(end), end.status
    except (ValueError, OSError) as error:
        sentence, status = sentence_of(error), 1
    except KeyboardInterrupt:
        sentence, status = "stopped.", 130
    if status < 128 or os.environ.get("RANK", "0") == "0":
        print(f"{program}: {sentence}", file=sys.stderr, flush=True)
    return status


def print_anything() -> None:
    r"""From now on, print a character that the console lacks as \u2026 instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def sentence_of(error: BaseException) -> str:
    """What went wrong, for users: `str(error)`, or of an error of the system "FILE: Permission denied."

    If the error is that the cache of Hugging Face's libraries cannot be written, it says how to move that. A
    checkpoint's code is copied into that cache before it runs, so a read-only home stops every command that loads one.
    """
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.filename is not None and _stops_caching(cause):
            return (
                f"{cause.filename} cannot be written ({cause.strerror}), but Hugging Face's libraries keep downloads "
                "and code there: set HF_HOME to a writable folder, such as HF_HOME=./huggingface."
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror}."
    return str(error)


def _stops_caching(error: OSError) -> bool:
    """Whether the cache, a folder in it or a folder that holds it cannot be made or written."""
    from huggingface_hub import constants  # here: only needed when something is wrong
    from transformers.dynamic_module_utils import HF_MODULES_CACHE

    path = Path(error.filename).absolute()
    folders = [Path(folder).absolute() for folder in (constants.HF_HOME, constants.HF_HUB_CACHE, HF_MODULES_CACHE)]
    if any(folder.is_relative_to(path) for folder in folders):
        return error.errno in (*UNWRITABLE, errno.ENOENT)
    return error.errno in UNWRITABLE and any(path.is_relative_to(folder) for folder in folders)
