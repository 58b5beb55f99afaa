"""Finding the files to read: pictures and videos by path, folder, glob pattern or list."""

import fnmatch
import glob
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from au_llava.au_faces.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from au_llava.au_runs.folders import DEAD_LINKS, FOLDERS, JUNK, NO_SUFFIX, files_below, is_junk, told


def find_files(paths: Sequence[str | Path], left_out: Counter | None = None) -> list[Path]:
    """The pictures and videos that `paths` name, each once.

    Args:
        paths: files; folders (everything inside, sorted); glob patterns (`**` reaches into folders); "-" for a list on
            standard input, one path per line. Among several paths, which a shell may have made from `*`, files that
            systems leave in folders are skipped.
        left_out: counts the skipped files, and what folders and patterns hold besides pictures and videos, by suffix.

    Raises:
        FileNotFoundError: a path does not exist or is a pipe, a device or a socket, a folder or pattern holds neither
            pictures nor videos, or the list is empty.
        OSError: a folder cannot be opened.
    """
    left_out = Counter() if left_out is None else left_out
    files = []
    for path in map(str, paths):
        if len(paths) > 1 and is_junk(Path(path).name):
            left_out[JUNK] += 1
        elif path == "-":
            lines = [line for line in _lines_of_input() if line.strip()]
            if not lines:
                raise FileNotFoundError("The list on standard input names no file.")
            listed = [line for line in lines if not any(map(is_junk, Path(line).parts))]
            left_out.update([JUNK] * (len(lines) - len(listed)))
            files += find_files(listed, left_out)
        elif Path(path).is_dir():
            below = files_below(Path(path), left_out=left_out)
            files += _media(below, left_out, f"There is no picture and no video in the folder {path}")
        elif Path(path).is_file():
            files.append(Path(path))
        elif Path(path).exists():  # opening a pipe would wait for a writer
            raise FileNotFoundError(f"{path} is a pipe, a device or a socket: name a file or a folder.")
        elif glob.has_magic(path):
            files += _media(_matches(path, left_out), left_out, f"No picture and no video matches {path}")
        else:
            raise FileNotFoundError(f"There is no file or folder {path}.")
    return list(dict.fromkeys(files))


def _lines_of_input() -> list[str]:
    """The lines of standard input, without the byte order mark and the ends of lines that Windows writes."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # file names, whatever the console's encoding
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    return [line.removesuffix("\r") for line in sys.stdin.read().removeprefix("\ufeff").split("\n")]


def _matches(pattern: str, left_out: Counter) -> Iterator[Path]:
    """The files that match a glob pattern. Folders that `**` reaches into are walked by `files_below`."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.iglob(pattern))
        return
    start = parts.index("**")
    for root in sorted(map(Path, glob.iglob(str(Path(*parts[:start]))))):
        for path in files_below(root, left_out=left_out) if root.is_dir() else ():
            if _fits(path.relative_to(root).parts, parts[start:]):
                yield path


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern."""
    if not wanted or not parts:
        return not parts and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or _fits(parts[1:], wanted)
    return fnmatch.fnmatch(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _media(paths: Iterable[Path], left_out: Counter, nothing: str) -> list[Path]:
    """The pictures and videos among `paths`, sorted; the rest is counted.

    Args:
        nothing: the message if there are none.
    """
    media, before = [], left_out.copy()
    for path in sorted(paths):
        if is_junk(path.name):
            continue
        if not path.is_file():
            left_out[FOLDERS if path.is_dir() else DEAD_LINKS] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            media.append(path)
        else:
            left_out[path.suffix.lower() or NO_SUFFIX] += 1
    if not media:
        others = told(left_out - before)
        raise FileNotFoundError(nothing + (f": it holds {others}." if others else "."))
    return media
