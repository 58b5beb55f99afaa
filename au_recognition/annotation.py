"""Annotated pictures and videos: a box around each face, and beside it the strongest action units.

Owns the colors on pictures of faces: dark blue, light blue and one orange (Okabe and Ito's palette), which can be told
apart in gray and by color-blind people.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from au_llava.action_units import AUFormat
from au_llava.au_faces.media import DamagedVideo, is_video, video_frames
from au_llava.au_recognition.runner import Plan
from au_llava.au_recognition.tables import strengths
from au_llava.au_runs.files import replacing

BAR_COLOR, PRESENT_COLOR, TINT = "#9aa7b8", "#0b63a5", "#d55e00"
SHOWN_SIDE = 224  # pixels of a face in a picture
OUTLINE = 0.5  # share of an evidence map's maximum; what is higher is outlined, and hidden to see what it matters
VIDEO_AUS = 6  # AUs named beside a face of a video, at most
CLOCK = Fraction(1, 10_000)  # seconds per tick of an annotated video, as exact as times in tables
VIDEOS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # suffixes of annotated videos, their formats in FFmpeg


def annotated(image: Image.Image, notes: Iterable[tuple]) -> Image.Image:
    """A copy with boxes and notes beside them, where they hide the least of all boxes and of each other.

    Args:
        notes: (box, lines) per face, where the box is (left, top, width, height) in pixels and a line is (text, length
            of its bar in [0, 1], or None for no bar).
    """
    image, notes = image.copy(), list(notes)
    draw = ImageDraw.Draw(image, "RGBA")
    unit = max(10, min(image.size) // 24)  # height of a line in pixels
    font = ImageFont.load_default(unit * 0.85)
    taken = [(left, top, left + width, top + height) for (left, top, width, height), _ in notes]
    for box in taken:
        for color, stroke in (("white", 4), (PRESENT_COLOR, 2)):
            draw.rectangle(box, outline=color, width=max(1, stroke * unit // 14))
    for box, (_, lines) in zip(tuple(taken), notes, strict=True):
        panel, tall = (8 if any(share is not None for _, share in lines) else 3.5) * unit, unit * (len(lines) + 0.4)
        x, y = _place(box, panel, tall, image.size, taken)
        taken.append((x, y, x + panel, y + tall))
        draw.rectangle(taken[-1], fill=(0, 0, 0, 170))
        for line, (text, share) in enumerate(lines):
            place = y + unit * (line + 0.2)
            draw.text((x + 0.4 * unit, place), text, "white", font)
            if share is not None:
                bar = (x + 3.7 * unit, place + 0.15 * unit, x + 7.6 * unit, place + 0.85 * unit)
                draw.rectangle((*bar[:2], bar[0] + share * (bar[2] - bar[0]), bar[3]), fill=TINT)
                draw.rectangle(bar, outline="white")
    return image


def _place(box: tuple, width: float, height: float, size: tuple[int, int], taken: Sequence[tuple]) -> tuple:
    """The upper left corner of a note beside a box, in a picture of this size, that overlaps least with `taken`.

    Right of the box is preferred, then left, below and above.
    """
    left, top, right, bottom = box
    corners = [(right + 4, top), (left - width - 4, top), (left, bottom + 4), (left, top - height - 4)]
    inside = [(min(max(0, x), max(0, size[0] - width)), min(max(0, y), max(0, size[1] - height))) for x, y in corners]

    def hidden(corner):
        x, y = corner
        wide = (min(x + width, other[2]) - max(x, other[0]) for other in taken)
        tall = (min(y + height, other[3]) - max(y, other[1]) for other in taken)
        return sum(max(0, across) * max(0, down) for across, down in zip(wide, tall, strict=True))

    return min(inside, key=hidden)


def save_video(path: Path, faces: Iterable[dict], plan: Plan) -> None:
    """Write a copy of the plan's video, with a box and the strongest AUs beside every face; only frames that were read.

    It appears whole or not at all.

    Args:
        faces: as `Readings` gives them, of a video with a frame that could be read.

    Raises:
        OSError: `path` cannot be written.
    """
    import av

    notes = {}
    for face in faces:
        if face["face_id"] is not None and is_video(Path(face["file"])):
            notes.setdefault(face["frame"], []).append((face["box"], _lines(face, plan.formats)))
    video = next(part for part in plan.parts if isinstance(part, Path))
    path, kind = path.absolute(), VIDEOS[path.suffix.lower()]  # FFmpeg takes "talk" in "talk:1.mp4" for a protocol
    try:
        with replacing(path) as file, av.open(str(file), "w", format=kind) as container:
            stream, ticks = None, -1
            try:
                for frame in video_frames(video, plan.every, plan.fps):
                    if stream is None:
                        size = frame.image.size
                        stream = _video_stream(container, size)
                    # Calls over a network are recorded in sizes that change: all frames are fitted into the first.
                    picture = ImageOps.pad(annotated(frame.image, notes.get(frame.number, ())), size)
                    drawn = av.VideoFrame.from_image(picture.crop((0, 0, stream.width, stream.height)))
                    ticks = max(round(frame.time / CLOCK), ticks + 1)  # two frames may have one time, but not here
                    drawn.pts, drawn.time_base = ticks, CLOCK
                    container.mux(stream.encode(drawn))
            except DamagedVideo:
                pass  # reported when the video was read
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise OSError(f"{path} cannot be written: {error}.") from error


def _video_stream(container, size: tuple[int, int]):
    """An H.264 stream of pictures of this size, cut to even sides, as its color format needs."""
    stream = container.add_stream("libx264", options={"crf": "20"})
    stream.width, stream.height = (side - side % 2 for side in size)
    stream.pix_fmt, stream.time_base = "yuv420p", CLOCK
    stream.codec_context.time_base = CLOCK
    return stream


def _lines(face: dict, formats: Sequence[AUFormat]) -> list[tuple[str, float | None]]:
    """The note beside a face: its number, then (label, share of the scale) of the strongest AUs (`strengths`)."""
    shares = strengths(face["answers"], formats).items()
    return [(f"face {face['face_id']}", None), *sorted(shares, key=lambda pair: -pair[1])[:VIDEO_AUS]]
