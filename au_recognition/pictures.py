"""Annotated pictures and videos: where each face is, what was read off it, and where on the face that shows.

Colours are told apart in grey and by the colour-blind: dark and light blue, and one orange (Okabe and Ito's palette).
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from au_llava.action_units import AUFormat
from au_llava.au_faces.faces import EYE_DISTANCE, EYE_HEIGHT, crop_face
from au_llava.au_faces.media import DamagedVideo, is_video, video_frames
from au_llava.au_recognition.evidence import OUTLINE
from au_llava.au_recognition.runner import Plan
from au_llava.au_recognition.tables import measure
from au_llava.au_rendering.rig import SHAPES, expand_sides, load_rig
from au_llava.au_runs.names import escaped
from au_llava.image_processing_au_llava import load_face_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEAST_MOVEMENT = 0.3  # of an AU's largest: what moves less is left out of its region
COLUMNS, PANEL_SIDE, LINE = 4, 2.5, 58  # panels in a row of `save_evidence`, inches of one, characters under it
BAR_COLOUR, PRESENT_COLOUR, TINT = "#9aa7b8", "#0b63a5", "#d55e00"
SHOWN_SIDE = 224  # pixels of a face in the picture
DPI = 160
VIDEO_AUS = 6  # most AUs named beside a face of a video


def save_faces(path: Path, faces: Iterable[dict], plan: Plan, most: int) -> None:
    """The first `most` faces of the pictures, a row each: picture, face tinted where it moves, bars per format."""
    figure = draw_faces(first_faces(faces, most), plan.formats)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def first_faces(faces: Iterable[dict], most: int) -> list[dict]:
    """The first `most` faces of the pictures among what `faces_read` gives: those that are drawn."""
    return list(islice((face for face in faces if not is_video(Path(face["file"]))), most))


def draw_faces(faces: Sequence[dict], formats: Sequence[AUFormat]):
    """A figure with a row per face.

    Args:
        faces: what `faces_read` gives, of pictures.
    """
    located = int(any(face["eyes"] is not None for face in faces))  # whether the face is a part of its picture
    widths = [*[1.8] * located, 1.8, *(len(fmt.labels) * 0.2 + 0.5 for fmt in formats)]
    figure, axes = plt.subplots(
        len(faces),
        len(widths),
        figsize=(sum(widths) * 1.1, 2.1 * len(faces)),
        width_ratios=widths,
        squeeze=False,
        layout="constrained",
    )
    for row, face in zip(axes, faces, strict=True):
        image = load_face_image(face["file"])
        file = escaped(Path(face["file"]).name)
        name = f"{file}, face {face['face_id']}" if located else file
        if located:
            _show_place(row[0], image, face)
            row[0].set_title(name, fontsize=7, parse_math=False)
        crop = image.resize((SHOWN_SIDE,) * 2) if face["eyes"] is None else crop_face(image, face["eyes"], SHOWN_SIDE)
        _show_movement(row[located], crop, face, formats)
        row[located].set_title("where it moves" if located else name, fontsize=7, parse_math=False)
        for axis, fmt in zip(row[1 + located :], formats, strict=True):
            _show_bars(axis, fmt, face["answers"][fmt.name])
    return figure


def _show_place(axis, image: Image.Image, face: dict) -> None:
    axis.imshow(image)
    left, top, width, height = face["box"]
    for colour, line in (("white", 2.2), (PRESENT_COLOUR, 1.2)):  # seen on dark and on bright ground
        axis.add_patch(plt.Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line))
    axis.axis("off")


def _show_movement(axis, crop: Image.Image, face: dict, formats: Sequence[AUFormat]) -> None:
    _show_tinted(axis, crop, movement(face, formats, crop.size[0]), 0.3)
    axis.axis("off")


def _show_tinted(axis, crop: Image.Image, strength: np.ndarray, level: float) -> None:
    """A face under a tint of some strength (size, size) in [0, 1], outlined where that exceeds `level`."""
    tint = np.zeros((*strength.shape, 4))
    tint[..., :3] = matplotlib.colors.to_rgb(TINT)
    tint[..., 3] = 0.7 * strength
    axis.imshow(crop)
    axis.imshow(tint)
    if strength.max() > level:
        for colour, width in (("white", 1.6), ("black", 0.7)):  # seen on dark and on light skin
            axis.contour(strength, levels=[level], colors=[colour], linewidths=width)


def _show_bars(axis, fmt: AUFormat, read: dict) -> None:
    """A bar per AU, dark where present, with the band that holds 80 % of the probability."""
    heights = [height or 0.0 for height in read[measure(fmt)]]
    colours = [PRESENT_COLOUR if present else BAR_COLOUR for present in read["present"]]
    places = range(len(heights))
    axis.bar(places, heights, color=colours)
    if fmt.scale != "occurrence" and "low" in read:
        for colour, line in (("white", 1.8), ("black", 0.8)):
            axis.vlines(places, read["low"], read["high"], color=colour, linewidth=line)
    axis.set_xticks(places, fmt.labels, rotation=90, fontsize=6)
    axis.set_ylim(0, fmt.value_numbers[-1])
    axis.tick_params(axis="y", labelsize=6)
    axis.set_title(f"{fmt.name}: " + ("probability" if fmt.scale == "occurrence" else fmt.scale), fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def save_evidence(path: Path, faces: Iterable[tuple[dict, Image.Image, Sequence]]) -> None:
    """Per face the crop, and every AU found with the map of its evidence over it and its reason under it.

    The tint is the map; the line encloses where it is above `OUTLINE`.

    Args:
        faces: of each what `faces_read` gives, the crop that was read, and its `Explanation`s.
    """
    panels = []
    for face, crop, explanations in faces:
        name = f"{escaped(Path(face['file']).name)}, face {face['face_id']}"
        row = [(name if explanations else f"{name}: no AU read as present", crop, None)]
        row += [(f"{each.format.name}: {each.label}", crop, each) for each in explanations]
        panels += row + [None] * (-len(row) % COLUMNS)
    rows = len(panels) // COLUMNS
    size = (COLUMNS * PANEL_SIDE, rows * (PANEL_SIDE + 0.9))
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if panel:
            _show_evidence(axis, *panel)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _show_evidence(axis, title: str, crop: Image.Image, explanation) -> None:
    """One panel; without an explanation, the crop alone."""
    axis.set_title(title, fontsize=7, parse_math=False)
    crop = ImageOps.fit(crop, (SHOWN_SIDE, SHOWN_SIDE))  # what the image processor takes of it
    if explanation is None:
        axis.imshow(crop)
        return
    places = np.arange(SHOWN_SIDE) * len(explanation.evidence) // SHOWN_SIDE
    evidence = explanation.evidence[places][:, places]
    _show_tinted(axis, crop.convert("L").convert("RGB"), evidence, OUTLINE)  # on grey the tint is seen best
    axis.set_xlabel(fill(explanation.reason, LINE), fontsize=5.5, loc="left")


def movement(face: dict, formats: Sequence[AUFormat], size: int) -> np.ndarray:
    """(size, size) in [0, 1]: where on the aligned face the AUs that are present move it, and how much.

    The strongest AU of each place counts, at its strength in the finest of the formats.
    """
    fmt = max(formats, key=lambda each: len(each.value_numbers))
    read, regions = face["answers"][fmt.name], au_regions(size)
    strength = np.zeros((size, size))
    for label, present, value in zip(fmt.labels, read["present"], read[measure(fmt)], strict=True):
        if present and label in regions:
            share = 1.0 if value is None else value / fmt.value_numbers[-1]
            strength = np.maximum(strength, min(1.0, 0.25 + share) * regions[label])
    return strength


@cache
def au_regions(size: int) -> dict[str, np.ndarray]:
    """AU label -> (size, size) in [0, 1]: how far full strength moves each place of an aligned frontal face.

    From the face rig: the movement of its mean head's skin, seen from the front, each AU scaled to its largest.
    """
    from scipy.ndimage import gaussian_filter

    rig = load_rig()
    skin = rig.vertices_of("skin")
    points = rig.mean[skin] * [EYE_DISTANCE, -EYE_DISTANCE, 0] * size + [0.5 * size, EYE_HEIGHT * size, 0]
    x, y = np.round(points[:, :2]).astype(int).T
    front = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (rig.mean[skin, 2] > -0.6)

    def spread(weights):
        picture = np.zeros((size, size))
        np.add.at(picture, (y[front], x[front]), weights[front])
        return gaussian_filter(picture, size / 40)

    coverage = spread(np.ones(len(skin)))
    regions = {}
    for label in {*SHAPES, *(name.rstrip("LRTB") for name in SHAPES)}:
        moved = np.linalg.norm(rig.offsets(expand_sides({label: 1.0}))[skin], axis=1)
        picture = spread(moved) / np.maximum(coverage, 1e-3 * coverage.max())
        regions[label] = ((picture / picture.max() - LEAST_MOVEMENT) / (1 - LEAST_MOVEMENT)).clip(0)
    return regions


def save_video(path: Path, faces: Iterable[dict], plan: Plan) -> None:
    """A copy of the plan's video with a box and the strongest AUs beside every face. The frames that were read only."""
    import av

    notes = {}
    for face in faces:
        if face["face_id"] is not None and is_video(Path(face["file"])):
            notes.setdefault(face["frame"], []).append((face["box"], _note(face, plan.formats)))
    video = next(part for part in plan.parts if isinstance(part, Path))
    clock = Fraction(1, 1000)
    try:
        with av.open(str(path), "w") as container:
            stream = None
            try:
                for frame in video_frames(video, plan.every, plan.fps):
                    if stream is None:
                        stream = container.add_stream("libx264", options={"crf": "20"})
                        stream.width, stream.height = (side - side % 2 for side in frame.image.size)
                        stream.pix_fmt, stream.time_base = "yuv420p", clock
                        stream.codec_context.time_base = clock
                    picture = annotated(frame.image, notes.get(frame.number, ()))
                    drawn = av.VideoFrame.from_image(picture.crop((0, 0, stream.width, stream.height)))
                    drawn.pts, drawn.time_base = round(frame.time / clock), clock
                    container.mux(stream.encode(drawn))
            except DamagedVideo:
                pass  # reported when it was read
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise OSError(f"{path} cannot be written: {error}.") from error


def _note(face: dict, formats: Sequence[AUFormat]) -> list[tuple[str, float | None]]:
    """(label, share of the scale) of the strongest AUs present, in the finest of the formats."""
    fmt = max(formats, key=lambda each: len(each.value_numbers))
    read = face["answers"][fmt.name]
    found = [
        (label, 1.0 if value is None else value / fmt.value_numbers[-1])
        for label, present, value in zip(fmt.labels, read["present"], read[measure(fmt)], strict=True)
        if present
    ]
    return [(f"face {face['face_id']}", None), *sorted(found, key=lambda pair: -pair[1])[:VIDEO_AUS]]


def annotated(image: Image.Image, notes: Iterable[tuple]) -> Image.Image:
    """A copy with boxes and, beside each, its notes: (box, [(text, length of the bar in [0, 1] or None), …])."""
    image = image.copy()
    draw = ImageDraw.Draw(image, "RGBA")
    unit = max(10, min(image.size) // 24)  # height of a line in pixels
    font = ImageFont.load_default(unit * 0.85)
    for (left, top, width, height), lines in notes:
        for colour, stroke in (("white", 4), (PRESENT_COLOUR, 2)):
            draw.rectangle((left, top, left + width, top + height), outline=colour, width=max(1, stroke * unit // 14))
        panel, tall = (8 if any(share is not None for _, share in lines) else 3.5) * unit, unit * (len(lines) + 0.4)
        x = left + width + 4 if left + width + 4 + panel <= image.size[0] else max(0, left - panel - 4)
        y = min(max(0, top), max(0, image.size[1] - tall))
        draw.rectangle((x, y, x + panel, y + tall), fill=(0, 0, 0, 170))
        for line, (text, share) in enumerate(lines):
            place = y + unit * (line + 0.2)
            draw.text((x + 0.4 * unit, place), text, "white", font)
            if share is not None:
                bar = (x + 3.7 * unit, place + 0.15 * unit, x + 7.6 * unit, place + 0.85 * unit)
                draw.rectangle((*bar[:2], bar[0] + share * (bar[2] - bar[0]), bar[3]), fill=TINT)
                draw.rectangle(bar, outline="white")
    return image
