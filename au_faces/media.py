"""Decodes videos and animations frame by frame: upright, with square pixels, as 8-bit RGB, each with its time.

Owns which file names are pictures and which are videos, and how videos are opened. Single pictures are opened by
`load_face_image` (pictures_au_llava.py). Unusual choices
- Frames are counted from 1, as in OpenFace, and carry their time, so videos may have a variable frame rate.
- Recordings put end to end, as with `cat` from a camera's .mts files, start their clock anew; here time goes on.
- Only the video track tells whether a recording is complete: sound that lasts longer is not damage.
- Animated GIF, PNG, WebP and AVIF are read by Pillow, which handles their transparency, all else by FFmpeg (PyAV).
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from au_llava.pictures_au_llava import load_face_image, pictures_in

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".avi", ".divx", ".mkv", ".webm", ".ogv", ".wmv", ".asf", ".flv"),
    *(".f4v", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".dv", ".mjpeg", ".h264", ".264"),
    *(".h265", ".265", ".hevc", ".ivf", ".y4m"),
}
NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow lists but cannot read
# HEIC is included even without its plugin: such a photograph is reported, not silently skipped.
IMAGE_SUFFIXES = {".heic", ".heif"} | {
    suffix
    for suffix, name in Image.registered_extensions().items()
    if name in Image.OPEN and name not in NO_PICTURES and suffix not in VIDEO_SUFFIXES
}
MOVING = {".gif", ".png", ".apng", ".webp", ".avif", ".avifs"}  # suffixes of pictures that may be animations
UNTIMED = 0.1  # seconds that an animation's frame of up to 10 ms is shown, in browsers and in FFmpeg

SHORTFALL = 0.5  # seconds that may be missing at a video's end before it counts as damaged,
SHORT_SHARE = 0.25  # or this share of a short video
RESTART = 0.5  # seconds by which time goes back where another recording begins
NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS: the length that a raw stream declares is a guess

TURNS = {  # (a, b, c, d) of a display matrix: x' = a x + c y, y' = b x + d y (FFmpeg, libavutil/display.h)
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Frame:
    """One picture: a file of its own, or a frame of a video."""

    file: Path
    number: int = 1
    time: float = 0.0  # seconds from the first frame
    image: Image.Image | None = None  # None: a file that is not opened yet, or a frame that was not wanted


class DamagedVideo(ValueError):
    """A video that cannot be read to its end. The frames before the damage are valid."""


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its name; GIF, PNG, WebP and AVIF are videos if they are animated."""
    suffix = path.suffix.lower()
    if suffix in MOVING:
        with suppress(Exception), Image.open(path) as image:  # errors are reported when it is read
            return getattr(image, "is_animated", False)
    return suffix in VIDEO_SUFFIXES


def count_frames(path: Path, every: int = 1, fps: float | None = None) -> int:
    """About how many frames `video_frames` will yield, according to the file's header; 0 if that does not say."""
    if path.suffix.lower() in MOVING:
        with suppress(Exception), Image.open(path) as image:
            return -(-pictures_in(image) // every)
        return 0
    try:
        with _opened(path) as (container, stream):
            seconds = _declared(container, stream) or (container.duration or 0) / 1e6
            frames = stream.frames or round(seconds * _rate(container, stream))
    except (DamagedVideo, OSError):
        return 0
    if not fps:
        return -(-frames // every)
    last = seconds * (1 - 1 / max(frames, 1))  # when the last frame begins
    return min(frames, int(last * fps + 1e-6) + 1)


def video_frames(path: Path, every: int = 1, fps: float | None = None) -> Iterator[Frame]:
    """The frames of a video or animation in the order they are shown.

    Args:
        every: take every k-th frame.
        fps: take this many frames per second, the first at or after each tick; a slower video gives all its frames.

    Raises:
        DamagedVideo: see `every_frame`.
    """
    due = 0

    def wanted(number: int, time: float) -> bool:
        nonlocal due
        if fps is None:
            return (number - 1) % every == 0
        if time < due / fps - 1e-6:
            return False
        due = int(time * fps + 1e-6) + 1
        return True

    return (frame for frame in every_frame(path, wanted) if frame.image is not None)


def every_frame(path: Path, wanted: Callable[[int, float], bool], counted: bool = False) -> Iterator[Frame]:
    """All frames of a video or animation in the order they are shown, decoded from the start.

    Args:
        wanted: (number, time) -> whether the frame comes with its image; called once per frame, in order.
        counted: whether the frames' numbers matter. If so, reading ends at the first frame that cannot be decoded,
            because it is unknown how many frames are lost there.

    Raises:
        DamagedVideo: at the end, if some of it could not be read; at once, if none of it can be.
    """
    return (_animation if path.suffix.lower() in MOVING else _video)(path, wanted, counted)


# ---- Animations -----------------------------------------------------------------------------------------------
def _animation(path: Path, wanted: Callable, counted: bool) -> Iterator[Frame]:
    number, time = 0, 0.0
    try:
        with Image.open(path) as image:
            first = int(image.info.get("default_image", False))  # an APNG's still, for viewers without animation
            for picture in islice(ImageSequence.Iterator(image), first, None):
                picture.load()
                number += 1
                shown = load_face_image(picture.copy()) if wanted(number, time) else None
                yield Frame(path, number, time, shown)
                seconds = picture.info.get("duration", 0) / 1000
                time += seconds if seconds > 0.01 else UNTIMED
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        raise DamagedVideo(f"{path} is damaged ({error}); {number} frames could be read.") from error


# ---- Videos ---------------------------------------------------------------------------------------------------
def _video(path: Path, wanted: Callable, counted: bool) -> Iterator[Frame]:
    from av.error import FFmpegError
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: high dynamic range takes it seconds of preparation
    number, damaged, first, end = 0, 0, None, 0.0
    before = time = 0.0  # of the last frame: on the recording's clock, and from the first frame
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        rate, aspect = _rate(container, stream), stream.sample_aspect_ratio or 1
        declared = _declared(container, stream)
        packets = container.demux(*[] if declared is None else [stream])
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.stream.index != stream.index:  # `packet.stream_index` is missing in the last, empty packets
                    end = max(end, _end(packet))
                    continue
                frames = packet.decode()
            except FFmpegError:  # a damaged packet; if the file is cut off, there are no more
                damaged += 1
                if counted:
                    break
                continue
            for frame in frames:
                number += 1
                damaged += frame.is_corrupt
                shown = frame.time if frame.time is not None else (number - 1) / rate
                lasts = float(frame.duration * frame.time_base) if frame.duration else 1 / rate
                if first is None:
                    first = shown
                elif shown < before - RESTART:
                    first = shown - time - lasts
                end = max(end, shown + lasts)
                before, time = shown, shown - first
                try:
                    image = _upright(frame, aspect, reformatter) if wanted(number, time) else None
                except (FFmpegError, ValueError, OSError) as error:
                    raise DamagedVideo(f"frame {number} of {path} cannot be converted to RGB: {error}") from error
                yield Frame(path, number, time, image)
        if declared is None and not container.format.flags & NO_TIMESTAMPS and container.duration is not None:
            declared = container.duration / 1e6  # of the longest track; `end` is where the last track ended
    if number == 0:
        raise DamagedVideo(f"{path} holds no frame that can be read.")
    if damaged:
        raise DamagedVideo(f"{path} is damaged ({damaged} times); {number} frames could be read.")
    reached = end - min(first, 0)
    if declared is not None and reached < declared - min(SHORTFALL, SHORT_SHARE * declared):
        raise DamagedVideo(f"{path} breaks off after {reached:.1f} of {declared:.1f} seconds ({number} frames).")


@contextmanager
def _opened(path: Path):
    """Open a video: (container, video stream)."""
    try:
        import av
    except ImportError as error:
        raise ValueError("Reading videos needs PyAV: pip install 'au-llava[recognize]'.") from error
    try:
        # Absolute, since FFmpeg takes "talk" in "talk:1.mp4" for a protocol; metadata may be in any encoding.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise DamagedVideo(f"{path} cannot be read as a video: {error}.") from error
    with container:
        yield container, _stream(path, container)


def _stream(path: Path, container):
    """The default video track, leaving aside cover images and thumbnails."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    tracks = [track for track in container.streams.video if not track.disposition & still]
    if not tracks:
        raise DamagedVideo(f"{path} holds no moving pictures.")
    stream = next((track for track in tracks if track.disposition & Disposition.default), tracks[0])
    if len(tracks) > 1:
        warnings.warn(f"{path} holds {len(tracks)} video tracks; only stream {stream.index} is read.", stacklevel=2)
    if stream.codec_context is None:
        raise DamagedVideo(f"{path} is in a format that this build of FFmpeg cannot decode.")
    return stream


def _declared(container, stream) -> float | None:
    """The duration that the video track declares, in seconds; Matroska stores it in a tag, if at all."""
    if container.format.flags & NO_TIMESTAMPS:
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    for name, value in stream.metadata.items():
        time = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", value) if name.upper().startswith("DURATION") else None
        if time:
            hours, minutes, seconds = map(float, time.groups())
            return 3600 * hours + 60 * minutes + seconds
    return None


def _rate(container, stream) -> float:
    """Frames per second; of a raw stream what its codec says, because FFmpeg assumes 25 for all of them."""
    return float((stream.guessed_rate if container.format.flags & NO_TIMESTAMPS else stream.average_rate) or 25)


def _end(packet) -> float:
    """When the packet of another track ends, in seconds; 0 if unknown."""
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _upright(frame, aspect, reformatter) -> Image.Image:
    """A decoded frame as it should be shown.

    Args:
        aspect: width of a stored pixel divided by its height. The width is scaled and the height kept, as containers
            define it (MP4's track header, Matroska's DisplayWidth).
    """
    from av.video.reformatter import ColorPrimaries, ColorTrc

    colors = {}  # FFmpeg converts matrix and range by itself, but high dynamic range only on request
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        colors = {"dst_color_trc": ColorTrc.IEC61966_2_1, "dst_color_primaries": ColorPrimaries.BT709}
    pixels = reformatter.reformat(frame, format="rgba", **colors).to_ndarray()
    if any(component.is_alpha for component in frame.format.components):
        image = load_face_image(Image.fromarray(pixels))
    else:  # with a fourth byte, FFmpeg and Pillow take half the time
        pixels = np.ascontiguousarray(pixels)  # FFmpeg pads the rows of a width that is no multiple of 4
        image = Image.frombytes("RGB", (frame.width, frame.height), pixels, "raw", "RGBX")
    width = round(image.width * aspect)
    if width != image.width:
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    turn = _turn(frame)
    return image if turn is None else image.transpose(turn)


def _turn(frame) -> Image.Transpose | None:
    """The transposition that turns a frame upright: its display matrix, rounded to quarter turns."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    straight = abs(a * d) >= abs(b * c)
    return TURNS[tuple(int(np.sign(value)) for value in ((a, 0, 0, d) if straight else (0, b, c, 0)))]
