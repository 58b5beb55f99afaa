"""Files that this program writes: each appears whole or not at all, and two runs never write to one folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The repository. In a clone and in a Space the checkpoint lies there too.
HOME = Path(__file__).resolve().parent.parent


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden path beside `path`; the file or folder written there takes the place of `path` at the end.

    If anything is raised, `path` stays as it was and the unfinished file or folder is deleted. The hidden path has
    another suffix: writers that go by the suffix must be told the format. A folder cannot replace a folder that holds
    something.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def write_json(path: str | Path, content, indent: int = 1, sort_keys: bool = False) -> None:
    """Write `content` as a JSON file."""
    write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_figure(path: Path, figure, dpi: int = 160, **options) -> None:
    """Write a figure of Matplotlib in the format of the path's suffix.

    Args:
        options: of `savefig`.
    """
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=dpi, format=path.suffix[1:].lower(), **options)


def check_writable(path: Path) -> None:
    """Make the folder of the file `path`. Raises OSError if no file can be written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file.")
    with tempfile.TemporaryFile(dir=path.parent):
        pass


@contextmanager
def only_run(folder: Path, option: str) -> Iterator[None]:
    """Context of the only run that writes to `folder`, which is made: two would spoil each other's unfinished files.

    The lock ends with the process, however that ends. Systems and network drives that lock no folders do without.

    Args:
        option: of the command, which names the folder.

    Raises:
        ValueError: another run is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another run is writing to {folder}: choose another {option}, or wait for its end."
                ) from None
        yield
    finally:
        os.close(place)
