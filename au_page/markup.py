"""Readings as HTML: bars beside their numbers, in tables that a screen reader can walk through.

Owns how the page looks, with parts.html and page.css. Nothing is told by color alone: what is present is also bold, and
announced to screen readers. The colors are those of annotated pictures, lighter on a dark page. Pictures and the CSV
table lie inside the HTML itself, so nothing has to be stored for them.
"""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from au_llava.action_units import ACTION_UNITS, AUFormat
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_recognition.annotation import BAR_COLOR, OUTLINE, PRESENT_COLOR, SHOWN_SIDE, TINT, annotated
from au_llava.au_recognition.tables import heading, measure, open_table

WIDEST = 720  # pixels of a picture in the HTML


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"]),
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["jpeg"] = lambda image: _data(jpeg_bytes(image, 90), "image/jpeg")

STYLE = _TEMPLATES.get_template("page.css").render(
    bar=BAR_COLOR, present=PRESENT_COLOR, tint=TINT, face_side=SHOWN_SIDE
)


def part(name: str, *contents, **named) -> str:
    """A part of the page: the macro `name` of parts.html."""
    return str(getattr(_TEMPLATES.get_template("parts.html").module, name)(*contents, **named))


def picture(image: Image.Image, faces: Sequence[dict], number: int, live: bool = False) -> str:
    """The whole picture with boxes around its faces, and face `number` as the model sees it.

    Args:
        faces: as `Readings` gives them, each with its `crop`.
        live: whether another picture follows at once; then screen readers do not announce it.
    """
    whole = ImageOps.contain(image, (WIDEST, WIDEST))
    scale = whole.width / image.width
    notes = [([scale * side for side in face["box"]], [(f"face {face['face_id']}", None)]) for face in faces]
    crop = faces[number]["crop"].resize((2 * SHOWN_SIDE,) * 2, Image.Resampling.BICUBIC)
    return part("picture", faces[number]["file"], len(faces), annotated(whole, notes), crop, number, live)


def tables(
    answers: Mapping,
    formats: Sequence[AUFormat],
    shown: Mapping[str, Sequence[float]] | None = None,
    contradictions: Sequence[str] = (),
    file: str | None = None,
    faces: Sequence[dict] = (),
) -> str:
    """A table per format, side by side where there is room: per AU a bar, its numbers, and the band of `reading_of`.

    Args:
        answers, contradictions: of one face, as `reading_of` gives them.
        shown: format name -> the values that the face was made to show, if they are known.
        file: name of a link that saves the CSV table of `faces`.
    """
    filled = [
        (fmt, heading(fmt), _rows(fmt, answers[fmt.name], None if shown is None else shown[fmt.name]))
        for fmt in formats
    ]
    table = _data(csv_table(faces, formats), "text/csv") if file else None
    return part("tables", filled, shown is not None, contradictions, file, table)


def _rows(fmt: AUFormat, answer: Mapping, shown: Sequence[float] | None) -> list[dict]:
    """What the template writes for each AU; places on the bar in percent of its length, from the left or the right."""
    top, digits = fmt.value_numbers[-1], 1 if fmt.scale == "intensity" else 2
    rows = []
    for number, label in enumerate(fmt.labels):
        reading = {key: values[number] for key, values in answer.items()}
        unit = ACTION_UNITS[label]
        row = {"label": label, "name": unit.name, "definition": unit.definition, "present": reading["present"]}
        row |= {"bar": f"{100 * reading[measure(fmt)] / top:.1f}", "band": None, "mark": None, "numbers": []}
        if shown is not None:
            row["mark"] = f"{100 * shown[number] / top:.1f}"
            row["numbers"].append(f"{shown[number]:g}")
        if fmt.scale != "occurrence":
            row["band"] = (f"{100 * reading['low'] / top:.1f}", f"{100 - 100 * reading['high'] / top:.1f}")
            row["numbers"].append(f"{reading['expected']:.{digits}f}")
        row["numbers"].append(f"{reading['probability']:.2f}")
        rows.append(row)
    return rows


def csv_table(faces: Sequence[dict], formats: Sequence[AUFormat]) -> bytes:
    """The table that recognize_au.py would write for these faces."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aus.csv"
        with open_table(path, formats) as write:
            for face in faces:
                write(face)
        return path.read_bytes()


def reasons(explanations: Sequence, crop: Image.Image) -> str:
    """Per `Explanation` (au_recognition/reasons.py) the crop, tinted by its evidence map, with a line around what is
    above `OUTLINE`."""
    crop = ImageOps.fit(crop, (SHOWN_SIDE, SHOWN_SIDE)).convert("L").convert("RGB")  # a tint shows best on gray
    tint = Image.new("RGB", crop.size, TINT)
    panels = []
    for explanation in explanations:
        evidence = Image.fromarray(explanation.evidence).resize(crop.size, Image.Resampling.BILINEAR)
        tinted = Image.composite(tint, crop, evidence.point(lambda share: 0.7 * 255 * share).convert("L"))
        above = Image.fromarray(np.asarray(evidence) > OUTLINE).convert("L")
        for color, width in (("white", 7), ("black", 3)):  # visible on dark and on light skin
            tinted.paste(color, mask=ImageChops.subtract(above, above.filter(ImageFilter.MinFilter(width))))
        panels.append((explanation.label, tinted, explanation.reason))
    return part("reasons", panels)
