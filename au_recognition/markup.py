"""Readings as HTML for a page: bars beside their numbers, in tables that a screen reader can walk through.

Owns how a page looks. Nothing is told by colour alone: what is present is also bold, and said to screen readers; the
colours are those of pictures.py, lighter on a dark page. Pictures and the table to save lie inside the HTML itself, so
that nothing need be stored for them.
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
from au_llava.au_recognition.evidence import OUTLINE
from au_llava.au_recognition.pictures import BAR_COLOUR, PRESENT_COLOUR, SHOWN_SIDE, TINT, annotated
from au_llava.au_recognition.reasons import Explanation
from au_llava.au_recognition.tables import heading, measure, open_table

WIDEST = 720  # pixels of a picture in the HTML

STYLE = f"""
.au-page {{ --bar: {BAR_COLOUR}; --present: {PRESENT_COLOUR}; --mark: {TINT}; --quiet: var(--neutral-600);
  --paper: var(--body-background-fill); overflow-x: auto; }}
.dark .au-page {{ --bar: #64748b; --present: #58aeea; --mark: #ff9d4d; --quiet: var(--neutral-300); }}
.au-page h1 {{ margin: 0; }}
.au-page h3 {{ margin: 0 0 .25rem; font-size: 1rem; }}
.au-page p {{ margin: .4rem 0; }}
.au-page ul {{ margin: .4rem 0; padding-left: 1.2rem; list-style: disc; font-size: .9rem; }}
.au-page figure {{ margin: 0; }}
.au-page :is(figcaption, .au-quiet) {{ font-size: .8rem; font-weight: normal; color: var(--quiet); }}
.au-hidden {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
.au-notice {{ border-left: 4px solid var(--present); padding-left: .75rem; }}
.au-problem {{ border-left: 4px solid var(--mark); padding-left: .75rem; }}
.au-columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem; }}
.au-figures {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
.au-figures img {{ max-width: 100%; max-height: 15rem; border-radius: 6px; }}
.au-reasons {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: 1rem; }}
.au-reasons img {{ width: {SHOWN_SIDE}px; max-width: 100%; border-radius: 6px; margin-bottom: .3rem; }}
.au-page section table {{ width: 100%; margin: 0; border: 0; border-collapse: collapse; font-size: .85rem;
  line-height: 1.25; }}
.au-page table :is(thead, tr, th, td) {{ border: 0; background: none; padding: .12rem .2rem; text-align: left; }}
.au-page table th {{ font-weight: normal; }}
.au-page table th span {{ font-size: .74rem; }}
.au-page thead :is(th, td) {{ font-size: .75rem; color: var(--quiet); }}
.au-page tbody th {{ white-space: nowrap; }}
.au-page tbody td:not(.au-number) {{ width: 100%; }}
@media (max-width: 640px) {{
  .au-page tbody th {{ width: 50%; white-space: normal; }}
  .au-page tbody td:not(.au-number) {{ width: 50%; }}
}}
.au-page table .au-number {{ width: 2.7rem; text-align: right; font-variant-numeric: tabular-nums; }}
.au-page .au-present :is(th, .au-number) {{ font-weight: 700; }}
.au-page a[download] {{ display: inline-block; padding: .3rem .8rem; border: 1px solid var(--border-color-primary);
  border-radius: 6px; }}
.au-track {{ position: relative; height: .8rem; min-width: 2.5rem; background: var(--background-fill-secondary);
  box-shadow: inset 0 0 0 1px var(--border-color-primary); }}
.au-track > div {{ position: absolute; top: 0; bottom: 0; }}
.au-bar {{ background: var(--bar); }}
.au-present .au-bar {{ background: var(--present); }}
.au-track .au-band {{ top: calc(50% - 1px); bottom: auto; height: 2px; background: var(--body-text-color);
  box-shadow: 0 0 0 1px var(--paper); }}
.au-track .au-mark {{ top: -2px; bottom: -2px; width: 4px; margin-left: -2px; background: var(--mark);
  box-shadow: 0 0 0 1px var(--paper); }}
"""

MACROS = """\
{% macro figure(image, alt, caption) %}
<figure><img src="{{ image | jpeg }}" alt="{{ alt }}">{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}
</figure>{% endmacro %}
{% macro track(row) %}
<div class="au-track" aria-hidden="true"><div class="au-bar" style="left:0;width:{{ row.bar }}%"></div>
{%- if row.band %}<div class="au-band" style="left:{{ row.band[0] }}%;right:{{ row.band[1] }}%"></div>{% endif %}
{%- if row.mark %}<div class="au-mark" style="left:{{ row.mark }}%"></div>{% endif %}
</div>{% endmacro %}
"""
TEMPLATES = {
    "problem": '<div class="au-page"><p class="au-problem" role="alert">{{ text }}</p></div>',
    "face": '<div class="au-page">{{ figure(image, alt, caption) }}</div>',
    "picture": """\
<div class="au-page"><p role="status">{{ name }}: {{ count }} face{{ "s" if count > 1 }}</p>
<div class="au-figures">{{ figure(whole, "The picture, a box around every face", none) }}
{{ figure(crop, "Face %d, turned and cut" % number, "face %d as the model sees it" % number) }}</div></div>""",
    "tables": """\
<div class="au-page"><div class="au-columns">
{% for fmt, heading, rows in tables %}<section><h3>{{ fmt.name }} <span class="au-quiet">{{ heading }}</span></h3>
<table><thead><tr><th scope="col">action unit</th><td></td>
{%- for column in ("set" if shown, "mean" if fmt.scale != "occurrence", "prob.") if column %}
<th scope="col" class="au-number">{{ column }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr{% if row.present %} class="au-present"{% endif %}><th scope="row" title="{{ row.definition }}">
{{- row.label }} <span class="au-quiet">{{ row.name }}</span>
{%- if row.present %}<span class="au-hidden">, present</span>{% endif %}</th><td>{{ track(row) }}</td>
{%- for number in row.numbers %}<td class="au-number">{{ number }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></section>
{% endfor %}</div>
{% if contradictions %}<p>Where the formats contradict each other:</p>
<ul>{% for each in contradictions %}<li>{{ each }}</li>{% endfor %}</ul>{% endif %}
{% if file %}<p><a download="{{ file }}" href="{{ table }}">Download {{ file }}</a></p>{% endif %}</div>""",
    "reasons": """\
<div class="au-page"><div class="au-reasons">{% for label, image, reason in reasons %}
{{ figure(image, "The face, tinted where the reading of %s rests" % label, reason) }}{% else %}
<p>No action unit of this format is read as present.</p>{% endfor %}</div></div>""",
}


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


PAGES = jinja2.Environment(
    loader=jinja2.DictLoader({name: MACROS + text for name, text in TEMPLATES.items()}),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)
PAGES.filters["jpeg"] = lambda image: _data(jpeg_bytes(image, 90), "image/jpeg")


def problem(text: str) -> str:
    """What is wrong with an upload."""
    return PAGES.get_template("problem").render(text=text)


def drawn_face(image: Image.Image, alt: str, caption: str) -> str:
    """One picture."""
    return PAGES.get_template("face").render(image=image, alt=alt, caption=caption)


def seen(image: Image.Image, faces: Sequence[dict], number: int) -> str:
    """The whole picture with its faces in boxes, and face `number` as the model sees it.

    Args:
        faces: as `faces_read` gives them, each with its `crop`.
    """
    whole = ImageOps.contain(image, (WIDEST, WIDEST))
    scale = whole.width / image.width
    notes = [([scale * side for side in face["box"]], [(f"face {face['face_id']}", None)]) for face in faces]
    crop = faces[number]["crop"].resize((2 * SHOWN_SIDE,) * 2, Image.Resampling.BICUBIC)
    words = {"name": faces[number]["file"], "count": len(faces), "number": number}
    return PAGES.get_template("picture").render(whole=annotated(whole, notes), crop=crop, **words)


def tables(
    answers: Mapping,
    formats: Sequence[AUFormat],
    shown: Mapping[str, Sequence[float]] | None = None,
    contradictions: Sequence[str] = (),
    file: str | None = None,
    faces: Sequence[dict] = (),
) -> str:
    """A table per format, side by side where there is room: per AU a bar, numbers, and the band of `reading_of`.

    Args:
        answers: what `reading_of` keeps of a face; contradictions: likewise.
        shown: format name -> the values that the face was made to show, if they are known.
        file: name of a link that saves the CSV table of `faces`.
    """
    filled = [
        (fmt, heading(fmt), _rows(fmt, answers[fmt.name], None if shown is None else shown[fmt.name]))
        for fmt in formats
    ]
    table = _data(csv_table(faces, formats), "text/csv") if file else None
    words = {"contradictions": contradictions, "file": file, "table": table}
    return PAGES.get_template("tables").render(tables=filled, shown=shown is not None, **words)


def _rows(fmt: AUFormat, read: Mapping, shown: Sequence[float] | None) -> list[dict]:
    """What the template writes of each AU; places on the bar in percent of its length, from the left or the right."""
    top, digits = fmt.value_numbers[-1], 1 if fmt.scale == "intensity" else 2
    rows = []
    for number, label in enumerate(fmt.labels):
        reading = {key: values[number] for key, values in read.items()}
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
    """The table that recognize_au.py writes of such faces."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aus.csv"
        with open_table(path, formats) as write:
            for face in faces:
                write(face)
        return path.read_bytes()


def reasons(explanations: Sequence[Explanation], crop: Image.Image) -> str:
    """Every explained AU: the crop tinted by the map of its evidence, a line where that is above `OUTLINE`."""
    crop = ImageOps.fit(crop, (SHOWN_SIDE, SHOWN_SIDE)).convert("L").convert("RGB")  # on grey the tint is seen best
    tint = Image.new("RGB", crop.size, TINT)
    found = []
    for each in explanations:
        evidence = Image.fromarray(each.evidence).resize(crop.size, Image.Resampling.BILINEAR)
        tinted = Image.composite(tint, crop, evidence.point(lambda share: 0.7 * 255 * share).convert("L"))
        most = Image.fromarray(np.asarray(evidence) > OUTLINE).convert("L")
        for colour, width in (("white", 7), ("black", 3)):  # seen on dark and on light skin
            tinted.paste(colour, mask=ImageChops.subtract(most, most.filter(ImageFilter.MinFilter(width))))
        found.append((each.label, tinted, each.reason))
    return PAGES.get_template("reasons").render(reasons=found)
