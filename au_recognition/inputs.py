"""Which files are read: pictures and videos by path, folder, glob pattern or list."""

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
    """The pictures and videos that `paths` name, none twice.

    Args:
        paths: files; folders (everything inside, sorted); glob patterns (`**` reaches into folders); "-" for a list on
            standard input, one path a line. Of several, as a shell makes them of `*`, those that systems leave in
            folders are passed over.
        left_out: counts what folders and patterns hold besides, by suffix, and what the list of paths is spared.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder or pattern without pictures and videos.
        OSError: a folder that cannot be opened.
    """
    left_out = Counter() if left_out is None else left_out
    found = []
    for path in map(str, paths):
        if len(paths) > 1 and is_junk(Path(path).name):
            left_out[JUNK] += 1
        elif path == "-":
            listed = [line for line in _lines_of_input() if line.strip()]
            kept = [line for line in listed if not any(map(is_junk, Path(line).parts))]
            left_out.update([JUNK] * (len(listed) - len(kept)))
            found += find_files(kept, left_out)
        elif Path(path).is_dir():
            below = files_below(Path(path), left_out=left_out)
            found += _media(below, left_out, f"There is no picture and no video in the folder {path}")
        elif Path(path).exists():
            found.append(Path(path))
        elif glob.has_magic(path):
            found += _media(_matches(path, left_out), left_out, f"No picture and no video matches {path}")
        else:
            raise FileNotFoundError(f"There is no file or folder {path}.")
    return list(dict.fromkeys(found))


def _lines_of_input() -> list[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):  # names of files, whatever the console's encoding
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    return sys.stdin.read().split("\n")


def _matches(pattern: str, left_out: Counter) -> Iterator[Path]:
    """The files that match a glob pattern. Where `**` reaches into folders, they are walked as folders are."""
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
    if not wanted or not parts:
        return not parts and all(each == "**" for each in wanted)
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or _fits(parts[1:], wanted)
    return fnmatch.fnmatch(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _media(paths: Iterable[Path], left_out: Counter, nothing: str) -> list[Path]:
    inside, before = [], left_out.copy()
    for path in sorted(paths):
        if is_junk(path.name):
            continue
        if not path.is_file():
            left_out[FOLDERS if path.is_dir() else DEAD_LINKS] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            inside.append(path)
        else:
            left_out[path.suffix.lower() or NO_SUFFIX] += 1
    if not inside:
        besides = told(left_out - before)
        raise FileNotFoundError(nothing + (f": it holds {besides}." if besides else "."))
    return inside
