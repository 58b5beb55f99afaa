"""Finds the files of a data set, whose copies differ in how folders are nested and named.

Files that macOS and Windows leave in folders are never seen: `._2440.jpg` beside 2440.jpg is no picture.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from au_llava.au_faces.media import IMAGE_SUFFIXES
from au_llava.au_runs.folders import entries, files_below, subfolders

ARCHIVE_SUFFIXES = {".zip", ".rar", ".7z", ".tar", ".gz"}


def check_root(root: Path) -> None:
    """Raise FileNotFoundError if `root` is not a folder."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")


def missing(sentence: str, root: Path) -> FileNotFoundError:
    """An error with this sentence that also names an archive below `root` that may hold what is missing."""
    archive = next(files_below(root, ARCHIVE_SUFFIXES), None)
    return FileNotFoundError(sentence + (f" ({archive.relative_to(root)} is not unpacked)" if archive else ""))


def file_names(folder: Path) -> list[str]:
    """The names of the files in a folder, in order, without broken links."""
    return sorted(entry.name for entry in entries(folder) if entry.is_file())


def find_folders(root: Path, pattern: str, depth: int = 5) -> Iterator[tuple[re.Match, Path]]:
    """The folders whose path ends in `pattern` (whole names, any case), in order, each with its match.

    These are `root` and folders up to `depth` levels below it. The path above `root` counts too, so that a root one
    level too low is found. Folders inside a match are not searched, and circular links not followed.
    """
    ending = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)

    def search(folder: Path, depth: int, above: frozenset):
        found = ending.search(folder.as_posix())
        if found:
            yield found, folder
        if depth and (not found or folder == root):
            for inner in subfolders(folder):
                if inner.resolve() not in above:
                    yield from search(inner, depth - 1, above | {inner.resolve()})

    return search(root, depth, frozenset({root.resolve()}))


def find_files(folder: Path, pattern: str) -> Iterator[tuple[re.Match, Path]]:
    """The files in `folder` whose whole name matches `pattern` (any case), in order, each with its match.

    Broken links are included, so that a missing label file is counted when it is read.
    """
    for name in sorted(entry.name for entry in entries(folder) if not entry.is_dir()):
        found = re.fullmatch(pattern, name, re.IGNORECASE)
        if found:
            yield found, folder / name


def needed_folder(root: Path, pattern: str, name: str) -> Path:
    """The one folder that matches `pattern`: `root`, one in it, or else one a level further down.

    Args:
        name: its usual name, for messages.

    Raises:
        FileNotFoundError: `root` is not a folder, or no folder or several match.
    """
    check_root(root)
    levels = ([path for _, path in find_folders(root, pattern, depth)] for depth in range(3))
    found = next(filter(None, levels), [])
    if len(found) > 1:
        raise FileNotFoundError(f"{len(found)} folders {name} below {root}: take one, such as --root {found[0].parent}")
    if not found:
        raise missing(f"no folder {name} in {root}: --root is the folder that holds it", root)
    return found[0]


def has_images(folder: Path) -> bool:
    return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries(folder))
