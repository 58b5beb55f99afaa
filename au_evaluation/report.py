"""One report of an evaluation: a page that needs no other file, and the same as Markdown with its figures beside it.

    from au_llava.au_evaluation.report import write_report

    write_report("runs/eval", image_of=lambda row: records[row["row"]]["image"])

reads the results.json and predictions.parquet that eval_au.py wrote to the folder. Numbers are taken from results.json;
only curves and counts are computed here. A section without data is left out. Tables and figures are made once, as
`Section`s, which two templates write out. In the page, figures are inline SVG whose colours are CSS variables, so that
they follow the reader's light or dark theme; there is no script, and whatever comes from a file is escaped.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from PIL import Image

from au_llava.au_datasets.folds import person_key
from au_llava.au_evaluation.report_data import METRICS, UNDEFINED, Readings, load_evaluation, worst_errors
from au_llava.au_evaluation.report_figures import (
    CSS_COLOURS,
    STYLE,
    Faces,
    Picture,
    bars,
    confusion_matrices,
    curve_panels,
    faces,
    reliability,
)

HEADLINE = ("f1", "accuracy", "roc_auc", "average_precision", "ece", "icc", "pcc", "mae")


class Cell(NamedTuple):
    text: str
    interval: str = ""
    note: str = ""  # a tooltip in the page


class Table(NamedTuple):
    header: list[Cell]
    rows: list[list[Cell]]
    caption: str = ""
    folded: str = ""  # what to click on to see it
    style: str = ""  # "facts": text, not numbers; "dense": many columns, and the last row is a mean
    kind: str = "table"


class Section(NamedTuple):
    anchor: str
    title: str
    intro: str
    blocks: list[tuple[str, Table | Picture | Faces]]  # heading or "", block


def _cells(*texts) -> list[Cell]:
    return [text if isinstance(text, Cell) else Cell(str(text)) for text in texts]


def _number(value: float | None, bounds: Sequence | None = None, undefined: str = "undefined") -> Cell:
    if value is None:
        return Cell(UNDEFINED, note=undefined)
    return Cell(f"{value:.3f}", f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds and None not in bounds else "")


def _metric(metric: str) -> Cell:
    name, meaning = METRICS.get(metric, (metric, ""))
    return Cell(name, note=meaning)


def _headline(formats: list[Readings]) -> Table:
    metrics = [metric for metric in HEADLINE if any(metric in each.scores["mean"] for each in formats)]
    rows = []
    for fmt, scores, images, *_ in formats:
        subjects = len({person_key(row["dataset"], row["subject"]) for row in images})
        unread = f"{scores['unparsed'] / scores['annotated']:.1%}" if scores["annotated"] else UNDEFINED
        rows.append(_cells(fmt.name, fmt.scale, f"{scores['n']:,}", f"{subjects:,}", unread))
        for metric in metrics:
            number = _number(scores["mean"].get(metric), scores["mean_interval"].get(metric), "undefined for every AU")
            rows[-1].append(number if metric in scores["mean"] else Cell(""))
    return Table(_cells("format", "scale", "images", "subjects", "unread", *map(_metric, metrics)), rows)


def _baselines(formats: list[Readings]) -> Table:
    """What `baselines.score_baselines` found, under the means of what was read."""
    metrics, rows, reasons = ("f1", "icc", "mae"), [], {}
    for fmt, scores, *_ in formats:
        for answer, each in {"what was read": scores, **scores["baselines"]}.items():
            if "left_out" in each:
                reasons.setdefault(f"{answer} left out: {each['left_out']}", []).append(fmt.name)
                continue
            numbers = (_number(each["mean"][m]) if m in each["mean"] else Cell("") for m in metrics)
            rows.append([*_cells(fmt.name, answer), *numbers])
    caption = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in reasons.items())
    return Table(_cells("format", "answer", *map(_metric, metrics)), rows, caption)


def _per_au(readings: Readings) -> Table:
    """Intervals are tooltips, since with them the table would not fit; reasons are listed below too, for print."""
    scores = readings.scores
    metrics, rows, undefined = list(scores["mean"]), [], {}
    for label, of_au in scores["per_au"].items():
        rows.append(_cells(label, of_au["support"], of_au["n"], of_au["unparsed"]))
        for metric in metrics:
            reason = of_au["undefined"].get(metric, "undefined")
            number = _number(of_au[metric], of_au["interval"].get(metric), reason)
            rows[-1].append(Cell(number.text, note=number.note or number.interval))
            if of_au[metric] is None:
                undefined.setdefault(reason, {}).setdefault(label, []).append(_metric(metric).text)
    rows.append(_cells("mean", "", "", scores["unparsed"]))
    for metric in metrics:
        note = f"over {scores['averaged'][metric]} of {len(readings.fmt.labels)} AUs"
        rows[-1].append(_number(scores["mean"][metric], undefined=note)._replace(note=note))
    reasons = [
        f"{reason} ({'; '.join(f'{label}: ' + ', '.join(names) for label, names in by_au.items())})"
        for reason, by_au in undefined.items()
    ]
    header = _cells("AU", "present", "scored", "unread", *map(_metric, metrics))
    return Table(header, rows, f"Undefined: {'; '.join(reasons)}." if reasons else "", style="dense")


def _groups(readings: Readings) -> list[tuple[str, Table]]:
    """What `audits.group_audit` found: per column the largest gaps between groups and, folded, the groups' scores."""
    audit, blocks = readings.scores.get("groups", {"columns": {}}), []
    for column, groups in audit["columns"].items():
        gaps = [
            [
                _metric(metric),
                _number(gap["difference"], gap["interval"]),
                *_cells(*gap["groups"]),
                _number(gap["p_holm"]),
            ]
            for metric, gap in audit["gaps"][column].items()
        ]
        few = ", ".join(f"{group} ({subjects})" for group, subjects in audit["too_small"][column].items())
        few = f"Not scored for too few subjects: {few}." if few else ""
        header = _cells("metric", "difference", "highest", "lowest", "p (Holm)")
        blocks.append((f"{readings.fmt.name}, by {column}", Table(header, gaps, few)))
        metrics = list(dict.fromkeys(metric for group in groups.values() for metric in group["mean"]))
        rows = [
            _cells(name, group["n"], group["subjects"], _number(group["rate"]))
            + [_number(group["mean"][metric], group["mean_interval"].get(metric)) for metric in metrics]
            for name, group in groups.items()
        ]
        header = _cells(column, "images", "subjects", "share present", *map(_metric, metrics))
        blocks.append(("", Table(header, rows, folded=f"Scores of the {len(rows)} groups")))
    return blocks


def _parsing(readings: Readings) -> list[tuple[str, Table]]:
    """What `audits.parse_audit` found, its shares per AU folded."""
    audit = dict(readings.scores.get("parse_audit", {}))
    coverage = _flat(audit.pop("coverage", {}))
    blocks = [(readings.fmt.name, Table(_cells("", ""), _flat(audit)))] if audit else []
    return blocks + ([("", Table(_cells("", ""), coverage, folded="Share read, per AU"))] if coverage else [])


def _contradictions(found: Mapping) -> Table:
    together, rows = found["asked_together"], list(found["per_pair"].items())
    rows = [("any", found["images"]), *rows] if rows else [("none", together)]
    rows = [_cells(pair, count, f"{count / together:.1%}") for pair, count in rows]
    return Table(_cells("contradiction", "images", f"of {together:,} read in several formats"), rows)


def _abstention(readings: Readings) -> Table:
    """What `audits.apply_abstention` found."""
    found = readings.scores["abstention"]
    keys = ("threshold", "coverage", "coverage_present", "risk", "error_rate")
    rows = [
        [Cell(label), *(_number(entry.get(key), undefined="no threshold or nothing kept") for key in keys)]
        for label, entry in [*found["per_au"].items(), ("mean", found.get("mean", {}))]
    ]
    header = ("AU", "withheld below confidence", "coverage", "coverage if present", "risk", "risk without")
    folded = f"Answers of {readings.fmt.name} withheld below a confidence"
    return Table(_cells(*header), rows, "The mean is over the AUs that have a threshold.", folded)


def _flat(entries: Mapping, prefix: str = "") -> list[list[Cell]]:
    """Rows of name and value, of nested dicts too."""
    rows = []
    for key, value in entries.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}: ")
        else:
            text = UNDEFINED if value is None else f"{value:.4g}" if isinstance(value, float) else value
            rows.append(_cells(f"{prefix}{key}", text))
    return rows


def _provenance(results: Mapping, formats: list[Readings]) -> list[tuple[str, Table]]:
    """What results.json says of it, and the decision thresholds as the predictions show them."""
    rows = _flat(results.get("provenance", {}))
    rows += [_cells(f"{fmt.name}: labels count as present from", f"{fmt.presence_threshold:g}") for fmt, *_ in formats]
    blocks = [("", Table(_cells("", ""), rows, style="facts"))]
    for readings in (each for each in formats if each.rated.any()):
        sides = [
            np.where(readings.rated & side, readings.probability, np.nan)
            for side in (~readings.present, readings.present)
        ]
        absent, present = np.fmax.reduce(sides[0], axis=0), np.fmin.reduce(sides[1], axis=0)  # (AUs,), NaN without any
        rows = [
            [Cell(label), *(_number(None if np.isnan(each) else each, undefined="none") for each in bounds)]
            for label, *bounds in zip(readings.fmt.labels, absent, present, strict=True)
        ]
        header = _cells("AU", "highest probability read as absent", "lowest read as present")
        blocks.append(("", Table(header, rows, folded=f"Decision thresholds of {readings.fmt.name}")))
    return blocks


_SECTIONS = """
scores | Scores | Means over AUs with 95 % bootstrap intervals over subjects. Unread: annotated cells without a readable answer, which are left out of the scores. The ECE has no interval: resampling inflates it. MAE is in units of the scale (5 for intensity, 1 for continuous).
baselines | Baselines | Answers that look at no picture, means over AUs: every AU absent; each AU's mean over the training labels; the labels of the nearest other frame of the clip, which shows how much a division by frames would leak.
bars | Scores per AU | Lines are 95 % intervals, dashed lines the mean over AUs.
table | All scores | Present: labels that count as present. Scored: images that are annotated and read.
ranking | ROC and precision-recall | How the probability of presence ranks the images. A thin line per AU, their mean thick, the AU with the smallest area dashed.
reliability | Reliability | How often an AU is present where it was given a probability, over all AUs of a format together (the ECE under Scores is the mean of the AUs' own). On the diagonal, probabilities mean what they say.
confusion | Intensity confusion | Labels in rows, what was read in columns, per cent of each row; the continuous scale in fifths.
risk | Risk and coverage | The error rate if only the surest decisions are kept, by the probability that the decision was given. A thin line per AU, their mean thick, the AU with the largest area dashed.
groups | Groups | The largest difference of a mean over AUs between groups of images, with its 95 % interval, which allows for its being the largest. A gap need not be caused by what the groups are named after; F1, MAE and Brier score differ where AUs are rarer.
worst | Surest errors | The wrong decisions that were given the highest probability. The faces are part of this report: the licence of the data set says with whom it may be shared.
parsing | Reading of answers | What the parser met in the written answers.
contradictions | Contradictions | Formats of the same image that say different things about an AU.
provenance | Provenance | What is needed to run the evaluation again.
"""  # noqa: E501
SECTIONS = [tuple(line.split(" | ")) for line in _SECTIONS.strip().splitlines()]  # anchor, title, introduction


def sections(results: Mapping, formats: list[Readings], image_of: Callable | None = None) -> list[Section]:
    """What the report consists of; arguments as `load_evaluation` returns them and `write_report` takes them."""
    name = lambda readings: readings.fmt.name
    rated = [each for each in formats if each.rated.any()]
    compared = [each for each in formats if "baselines" in each.scores]
    ranking = [("roc", "AUC", "lowest", min, "false positive rate", "recall")]
    ranking += [("pr", "AP", "lowest", min, "recall", "precision")]
    risk = [("risk", "area", "highest", max, "coverage: share of decisions kept", "risk: share of them wrong")]
    contradictions = results.get("contradictions") or {"asked_together": 0}
    blocks = {
        "scores": [("", _headline(formats))],
        "baselines": [("", _baselines(compared))] if compared else [],
        "bars": [(name(each), bars(each)) for each in formats],
        "table": [(name(each), _per_au(each)) for each in formats],
        "confusion": [(name(each), confusion_matrices(each)) for each in formats if each.fmt.scale != "occurrence"],
        "groups": [block for each in formats for block in _groups(each)],
        "parsing": [block for each in formats for block in _parsing(each)],
        "contradictions": [("", _contradictions(contradictions))] if contradictions["asked_together"] else [],
        "provenance": _provenance(results, formats),
    }
    if rated:
        alt = "ROC curves above, precision-recall curves below, one panel per format"
        blocks["ranking"] = [("", curve_panels("ranking", rated, ranking, alt))]
        blocks["reliability"] = [("", reliability(rated))]
        alt = "Risk against coverage of each AU, one panel per format"
        blocks["risk"] = [("", curve_panels("risk_coverage", rated, risk, alt))]
        blocks["risk"] += [("", _abstention(each)) for each in rated if "abstention" in each.scores]
        if image_of:
            blocks["worst"] = [(name(each), faces(each, image_of)) for each in rated if worst_errors(each)]
    return [Section(*words, blocks[words[0]]) for words in SECTIONS if blocks.get(words[0])]


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --paper: #fff; --wash: #f4f6f8;
  --grey: #8d99a6; --accent: #0b63a5; --second: #c4500a }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9ba5b0; --line: #343b44;
  --paper: #14171b; --wash: #1c2127; --grey: #7d8894; --accent: #58a6e8; --second: #f2914a } }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.25rem; margin: 2.5rem 0 .3rem } h3 { font-size: 1rem }
p { max-width: 48rem; margin: .3rem 0 .8rem } p, figcaption, caption, summary { color: var(--soft) }
nav { margin: 1rem 0; padding: .6rem 1rem; background: var(--wash); columns: 14rem }
a { color: var(--accent) } nav a { display: block; text-decoration: none }
.wide { overflow-x: auto; margin: .5rem 0 1rem }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
caption { caption-side: bottom; text-align: left; padding-top: .4rem }
th, td { padding: .2rem .5rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
th { vertical-align: bottom; font-weight: 600 } th:first-child, td:first-child, .facts td { text-align: left }
.dense { font-size: .77rem } .dense :is(th, td) { padding: .15rem .32rem } .dense tr:last-child td { font-weight: 600 }
td small { display: block; color: var(--soft); white-space: nowrap } td.none { cursor: help; color: var(--soft) }
figure { margin: .5rem 0 } figure svg { max-width: 100%; height: auto }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem }
.faces figure { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere } .faces b { color: var(--ink) }
@media print { body { padding: 0; max-width: none; font-size: 10pt } nav { display: none }
  table { font-size: 8pt } .dense { font-size: 6.4pt } .dense :is(th, td) { padding: .1rem .13rem }
  .wide { overflow: visible } h2, h3, section > p { break-after: avoid } figure, tr, p { break-inside: avoid }
  details::details-content { content-visibility: visible } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ subtitle }}</p>
<nav aria-label="Contents">{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% endfor %}</nav>
{% macro row(cells, tag) %}<tr>{% for cell in cells -%}
<{{ tag }}{% if cell.note %} title="{{ cell.note }}"{% endif %}{% if cell.text == undefined %} class="none"{% endif %}>
{{- cell.text }}{% if cell.interval %} <small>{{ cell.interval }}</small>{% endif %}</{{ tag }}>{% endfor %}</tr>
{% endmacro %}
{% for section in sections %}<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
<p>{{ section.intro }}</p>
{% for heading, block in section.blocks %}{% if heading %}<h3>{{ heading }}</h3>
{% endif %}{% if block.kind == "table" %}
{% if block.folded %}<details><summary>{{ block.folded }}</summary>{% endif %}
<div class="wide"><table class="{{ block.style }}">
{% if block.caption %}<caption>{{ block.caption }}</caption>{% endif %}
<thead>{{ row(block.header, "th") }}</thead>
<tbody>{% for cells in block.rows %}{{ row(cells, "td") }}{% endfor %}</tbody></table></div>
{% if block.folded %}</details>{% endif %}
{% elif block.kind == "picture" %}<figure>{{ block | svg }}</figure>
{% else %}<div class="faces">{% for image, error, where in block["items"] %}
<figure><img src="{{ image | jpeg }}" alt=""><figcaption><b>{{ error }}</b><br>{{ where }}</figcaption></figure>
{% endfor %}</div>
{% endif %}{% endfor %}</section>
{% endfor %}</body>
</html>
"""


def _markdown(title: str, subtitle: str, found: list[Section]) -> str:
    def row(cells: list[Cell]) -> str:
        return f"| {' | '.join(escape(text) + (f' ({interval})' if interval else '') for text, interval, _ in cells)} |"

    def escape(text: str) -> str:
        return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))

    lines = [f"# {escape(title)}", "", escape(subtitle), ""]
    for section in found:
        lines += [f"## {section.title}", "", section.intro, ""]
        for heading, block in section.blocks:
            lines += [f"### {escape(heading)}", ""] if heading else []
            if block.kind == "table":
                lines += [escape(block.folded) + ":", ""] if block.folded else []
                lines += [row(block.header), "|---|" + "---:|" * (len(block.header) - 1), *map(row, block.rows)]
                lines += ["", escape(block.caption)] if block.caption else []
            elif block.kind == "picture":
                lines.append(f"![{escape(block.alt)}](report_{block.name}.png)")
            else:
                lines += ["| face | error | image |", "|---|---|---|"]
                for number, (_, *texts) in enumerate(block.items, start=1):
                    lines.append(f"| ![](report_{block.name}_{number}.png) | {' | '.join(map(escape, texts))} |")
            lines.append("")
    return "\n".join(lines)


def _svg(picture: Picture) -> Markup:
    """The figure as an element of the page: no identifier twice, the page's colours and font."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": picture.name}):
        picture.figure.savefig(text, format="svg", transparent=True)
    picture.figure.set_layout_engine("none")  # laid out now: the PNG need not do it again
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(picture.alt)}"', 1)
    svg = re.sub(r'<g id="title:([^"]*)"([^>]*)>', r"<g\2><title>\1</title>", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return Markup(svg)


def _jpeg(image: Image.Image) -> str:
    """The image as a data URI."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def write_report(folder: Path, image_of: Callable[[dict], Image.Image] | None = None) -> Path:
    """Write report.html, and report.md with its report_*.png, from what eval_au.py wrote to `folder`.

    Args:
        folder: holds results.json and predictions.parquet.
        image_of: the image of a row of predictions.parquet (a dict), for the section of the surest errors. Without it,
            no face gets into the report.

    Returns:
        the path of report.html.

    Raises:
        FileNotFoundError, ValueError: as `load_evaluation`.
    """
    folder = Path(folder)
    results, formats = load_evaluation(folder)
    for face in folder.glob("report_worst_*.png"):  # of an earlier report, which may not be shared with this one
        face.unlink()
    origin = results.get("provenance", {})
    facts = {"model": origin.get("model"), "data": ", ".join(origin.get("data", {}))}
    facts |= {key: origin.get(key) for key in ("part", "decoding", "date")}
    title, subtitle = "Action unit evaluation", "; ".join(f"{key} {fact}" for key, fact in facts.items() if fact)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"svg": _svg, "jpeg": _jpeg}
    with matplotlib.rc_context(STYLE):
        found = sections(results, formats, image_of)
        page = environment.from_string(PAGE).render(title=title, subtitle=subtitle, sections=found, undefined=UNDEFINED)
        for block in (block for section in found for _, block in section.blocks):
            if block.kind == "picture":
                block.figure.savefig(folder / f"report_{block.name}.png", dpi=110, facecolor="white")
            elif block.kind == "faces":
                for number, (image, *_) in enumerate(block.items, start=1):
                    image.save(folder / f"report_{block.name}_{number}.png")
    (folder / "report.md").write_text(_markdown(title, subtitle, found), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"
