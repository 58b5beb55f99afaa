"""Figures of faces in pictures: where each face is, what the model reads off it, and where on the face that shows."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from au_llava.action_units import AUFormat
from au_llava.au_faces.crop import crop_face
from au_llava.au_recognition.annotation import BAR_COLOR, OUTLINE, PRESENT_COLOR, SHOWN_SIDE, TINT
from au_llava.au_recognition.movement import movement
from au_llava.au_recognition.tables import measure
from au_llava.au_runs.files import save_figure
from au_llava.au_runs.names import escaped
from au_llava.pictures_au_llava import load_face_image

COLUMNS, PANEL_SIDE, LINE = 4, 2.5, 58  # panels in a row of `save_evidence`, inches of one, characters under it


def save_faces(path: Path, faces: Sequence[dict], formats: Sequence[AUFormat]) -> None:
    """Draw faces of pictures, one per row: the picture, where the face moves, and bars per format.

    Args:
        faces: as `Readings` gives them.
    """
    located = int(any(face["eyes"] is not None for face in faces))  # 1: a face is a part of its picture
    widths = [*[1.8] * located, 1.8, *(len(fmt.labels) * 0.2 + 0.5 for fmt in formats)]
    figure = Figure(figsize=(sum(widths) * 1.1, 2.1 * len(faces)), layout="constrained")
    axes = figure.subplots(len(faces), len(widths), width_ratios=widths, squeeze=False)
    for row, face in zip(axes, faces, strict=True):
        image = load_face_image(face["file"])
        file = escaped(Path(face["file"]).name)
        name = f"{file}, face {face['face_id']}" if located else file
        if located:
            _show_place(row[0], image, face)
            row[0].set_title(name, fontsize=7, parse_math=False)
        crop = image.resize((SHOWN_SIDE,) * 2) if face["eyes"] is None else crop_face(image, face["eyes"], SHOWN_SIDE)
        _show_tinted(row[located], crop, movement(face, formats, SHOWN_SIDE), 0.3)
        row[located].axis("off")
        row[located].set_title("where it moves" if located else name, fontsize=7, parse_math=False)
        for axis, fmt in zip(row[1 + located :], formats, strict=True):
            _show_bars(axis, fmt, face["answers"][fmt.name])
    save_figure(path, figure)


def _show_place(axis, image: Image.Image, face: dict) -> None:
    axis.imshow(image)
    left, top, width, height = face["box"]
    for color, line in (("white", 2.2), (PRESENT_COLOR, 1.2)):  # visible on dark and on bright ground
        axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=color, linewidth=line))
    axis.axis("off")


def _show_tinted(axis, crop: Image.Image, strength: np.ndarray, level: float) -> None:
    """A face under a tint whose strength (size, size) lies in [0, 1], with a line around what exceeds `level`."""
    tint = np.zeros((*strength.shape, 4))
    tint[..., :3] = to_rgb(TINT)
    tint[..., 3] = 0.7 * strength
    axis.imshow(crop)
    axis.imshow(tint)
    if strength.max() > level:
        for color, width in (("white", 1.6), ("black", 0.7)):  # visible on dark and on light skin
            axis.contour(strength, levels=[level], colors=[color], linewidths=width)


def _show_bars(axis, fmt: AUFormat, answer: dict) -> None:
    """A bar per AU, dark where it is present, and the band that holds 80 % of the probability."""
    heights = [height or 0.0 for height in answer[measure(fmt)]]
    colors = [PRESENT_COLOR if present else BAR_COLOR for present in answer["present"]]
    places = range(len(heights))
    axis.bar(places, heights, color=colors)
    if fmt.scale != "occurrence" and "low" in answer:
        for color, line in (("white", 1.8), ("black", 0.8)):
            axis.vlines(places, answer["low"], answer["high"], color=color, linewidth=line)
    axis.set_xticks(places, fmt.labels, rotation=90, fontsize=6)
    axis.set_ylim(0, fmt.value_numbers[-1])
    axis.tick_params(axis="y", labelsize=6)
    axis.set_title(f"{fmt.name}: " + ("probability" if fmt.scale == "occurrence" else fmt.scale), fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def save_evidence(path: Path, faces: Iterable[tuple[dict, Image.Image, Sequence]]) -> None:
    """Draw per face its crop, then for every AU that is present its evidence map over the crop and its reason below.

    The tint is the map; the line encloses what is above `OUTLINE`.

    Args:
        faces: (face as `Readings` gives it, the crop that was read, its `Explanation`s).
    """
    panels = []
    for face, crop, explanations in faces:
        name = f"{escaped(Path(face['file']).name)}, face {face['face_id']}"
        row = [(name if explanations else f"{name}: no AU read as present", crop, None)]
        row += [(f"{reason.format.name}: {reason.label}", crop, reason) for reason in explanations]
        panels += row + [None] * (-len(row) % COLUMNS)
    rows = len(panels) // COLUMNS
    figure = Figure(figsize=(COLUMNS * PANEL_SIDE, rows * (PANEL_SIDE + 0.9)), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if panel:
            _show_evidence(axis, *panel)
    save_figure(path, figure)


def _show_evidence(axis, title: str, crop: Image.Image, explanation) -> None:
    """One panel; the crop alone if there is no explanation."""
    axis.set_title(title, fontsize=7, parse_math=False)
    crop = ImageOps.fit(crop, (SHOWN_SIDE, SHOWN_SIDE))  # the part that the image processor takes
    if explanation is None:
        axis.imshow(crop)
        return
    places = np.arange(SHOWN_SIDE) * len(explanation.evidence) // SHOWN_SIDE
    evidence = explanation.evidence[places][:, places]
    _show_tinted(axis, crop.convert("L").convert("RGB"), evidence, OUTLINE)  # a tint shows best on gray
    axis.set_xlabel(fill(explanation.reason, LINE), fontsize=5.5, loc="left")
