"""What is read: pictures and videos by path, folder, glob pattern or list, and the frames of a video.

A frame is counted from 1, as OpenFace counts, and carries its own time: videos of variable frame rate keep theirs.
"""

import fnmatch
import glob
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from au_llava.folders_au import DEAD_LINKS, FOLDERS, JUNK, NO_SUFFIX, files_below, is_junk, told

with suppress(ImportError):  # photographs of iPhones, for those who have the plugin
    from pillow_heif import register_heif_opener

    register_heif_opener()

# HEIC is looked for without its plugin too: such a photograph is reported, not passed over in silence.
PICTURES = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN} | {".heic", ".heif"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".m2ts", ".3gp"}
PICTURES -= VIDEOS  # Pillow lists .mpg, but reads nothing of it
SHORTFALL = 0.5  # seconds that a video may be shorter than it says before that counts as damage


@dataclass(frozen=True)
class Frame:
    """One picture: a file of its own, or a frame of a video."""

    file: Path
    number: int = 1
    time: float = 0.0  # seconds from the first frame
    image: Image.Image | None = None  # None: to be opened when it is its turn


class DamagedVideo(ValueError):
    """A video that cannot be read to its end. What was read before holds."""


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
        elif path.suffix.lower() in PICTURES | VIDEOS:
            inside.append(path)
        else:
            left_out[path.suffix.lower() or NO_SUFFIX] += 1
    if not inside:
        besides = told(left_out - before)
        raise FileNotFoundError(nothing + (f": it holds {besides}." if besides else "."))
    return inside


def is_video(path: Path) -> bool:
    """By the name; a GIF by whether it moves."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower() in VIDEOS
    try:
        with Image.open(path) as image:
            return getattr(image, "is_animated", False)
    except OSError:
        return False


def count_frames(path: Path, every: int = 1, fps: float | None = None) -> int:
    """About how many frames `video_frames` will give, from what the file says of itself; 0 where it says nothing."""
    try:
        with _opened(path) as container:
            stream = container.streams.video[0]
            seconds = _duration(container, stream) or 0
            frames = stream.frames or round(seconds * float(stream.average_rate or 0))
    except DamagedVideo:
        return 0
    return min(frames, round(seconds * fps)) if fps else -(-frames // every)


def video_frames(path: Path, every: int = 1, fps: float | None = None) -> Iterator[Frame]:
    """The frames of a video in the order they are shown, upright, as RGB.

    Args:
        every: take one frame of so many. fps: take so many a second, the first at or after each tick of that clock; a
            video with fewer gives all it has.

    Raises:
        DamagedVideo: at its end, where some of it could not be read; at once, where none of it can.
    """
    from av.error import FFmpegError

    number, first, damaged, due = 0, None, 0, 0
    time = 0.0
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = packet.decode()
            except FFmpegError:  # a damaged packet; where the file itself breaks off, no further one comes
                damaged += 1
                continue
            for frame in frames:
                number += 1
                damaged += frame.is_corrupt
                shown = frame.time if frame.time is not None else (number - 1) / float(stream.average_rate or 25)
                first = shown if first is None else first
                time = shown - first
                wanted = time >= due / fps - 1e-6 if fps else (number - 1) % every == 0
                if wanted:
                    due = int(time * fps + 1e-6) + 1 if fps else 0
                    image = frame.to_image()
                    yield Frame(path, number, time, image.rotate(frame.rotation, expand=True))
        declared = _duration(container, stream)
    if number == 0:
        raise DamagedVideo(f"{path} holds no frame that can be read.")
    if damaged:
        raise DamagedVideo(f"{path} is damaged ({damaged} times); {number} frames could be read.")
    if declared is not None and time < declared - SHORTFALL - 1 / float(stream.average_rate or 25):
        raise DamagedVideo(f"{path} breaks off after {time:.1f} of {declared:.1f} seconds ({number} frames).")


def _opened(path: Path):
    try:
        import av
    except ImportError as error:
        raise ValueError("Reading videos needs PyAV: pip install 'au-llava[recognize]'.") from error
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise DamagedVideo(f"{path} cannot be read as a video: {error}.") from error
    if not container.streams.video:
        container.close()
        raise DamagedVideo(f"{path} holds no pictures.")
    return container


def _duration(container, stream) -> float | None:
    """Seconds that the video says it lasts."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration is not None else None
