"""Which files are read: pictures and videos by path, folder, glob pattern or list."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from au_llava.media_au import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The pictures and videos that `paths` name, none twice.

    Args:
        paths: files; folders (everything inside, sorted); glob patterns (`**` reaches into folders); "-" for a list on
            standard input, one path a line.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder or pattern without pictures and videos.
    """
    found = []
    for path in map(str, paths):
        if path == "-":
            found += find_files([line for line in sys.stdin.read().splitlines() if line.strip()])
        elif Path(path).is_dir():
            found += _media(Path(path).rglob("*"), f"There is no picture and no video in the folder {path}.")
        elif Path(path).exists():
            found.append(Path(path))
        elif glob.has_magic(path):
            found += _media(map(Path, glob.iglob(path, recursive=True)), f"No picture and no video matches {path}.")
        else:
            raise FileNotFoundError(f"There is no file or folder {path}.")
    return list(dict.fromkeys(found))


def _media(paths: Iterator[Path], nothing: str) -> list[Path]:
    inside = sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_file())
    if not inside:
        raise FileNotFoundError(nothing)
    return inside
