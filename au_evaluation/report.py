"""The report of an evaluation: one self-contained page, and the same as Markdown with its pictures beside it.

    from au_llava.au_evaluation.report import write_report

    write_report("runs/eval", image_of=lambda row: records[row["row"]]["image"])

It reads the results.json and predictions.parquet that eval_au.py wrote to the folder. Numbers are taken from
results.json; only curves and counts are computed here. A section without data is left out. Sections are made once and
written out by two templates, report.html.jinja and report.md.jinja. In the page, figures are inline SVG whose colors
are CSS variables, so that they follow the reader's light or dark theme; there is no script, and text from files is
escaped.
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
from markupsafe import Markup
from PIL import Image

from au_llava.au_evaluation import report_tables as tables
from au_llava.au_evaluation.report_data import UNDEFINED, FormatEvaluation, load_evaluation, worst_errors
from au_llava.au_evaluation.report_figures import (
    CSS_COLORS,
    STYLE,
    CurveRow,
    Faces,
    Picture,
    bars,
    confusion_matrices,
    curve_panels,
    faces,
    reliability,
)
from au_llava.au_evaluation.report_tables import Cell, Table
from au_llava.au_evaluation.tables import markdown_table
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_runs.files import replacing, save_figure, write_text

TEMPLATES = Path(__file__).parent
# Section -> title, introduction; in the order of the report.
SECTIONS = {
    "scores": (
        "Scores",
        "Means over AUs with 95 % bootstrap intervals over subjects. Unread: annotated cells without a readable "
        "answer, which are left out of the scores. The ECE has no interval: resampling inflates it. MAE is in units of "
        "the scale (5 for intensity, 1 for continuous).",
    ),
    "baselines": (
        "Baselines",
        "Answers that look at no picture, means over AUs: every AU absent; each AU's mean over the training labels; "
        "the labels of the nearest other frame of the clip, which shows how much a split by frames would leak.",
    ),
    "bars": ("Scores per AU", "Lines are 95 % intervals, dashed lines the mean over AUs."),
    "table": ("All scores", "Present: labels that count as present. Scored: images that are annotated and read."),
    "ranking": (
        "ROC and precision-recall",
        "How the probability of presence ranks the images. A thin line per AU, their mean thick, the AU with the "
        "smallest area dashed.",
    ),
    "reliability": (
        "Reliability",
        "How often an AU is present at each predicted probability, over all AUs of a format together (the ECE under "
        "Scores is the mean of the AUs' own). On the diagonal, probabilities mean what they say.",
    ),
    "confusion": (
        "Intensity confusion",
        "Labels in rows, readings in columns, percent of each row; the continuous scale in fifths.",
    ),
    "risk": (
        "Risk and coverage",
        "The error rate if only the surest decisions are kept, by the probability of the decision. A thin line per "
        "AU, their mean thick, the AU with the largest area dashed.",
    ),
    "groups": (
        "Groups",
        "The largest difference of a mean over AUs between groups of images, with its 95 % interval, which allows for "
        "its being the largest. A gap need not be caused by what the groups are named after; F1, MAE and Brier score "
        "differ where AUs are rarer.",
    ),
    "worst": (
        "Surest errors",
        "The wrong decisions with the highest probability. The faces are part of this report: the license of the "
        "dataset says who may see them.",
    ),
    "parsing": ("Reading of answers", "What the parser met in the written answers."),
    "contradictions": ("Contradictions", "Formats of the same image that say different things about an AU."),
    "provenance": ("Provenance", "What is needed to run the evaluation again."),
}


class Section(NamedTuple):
    anchor: str
    title: str
    intro: str
    blocks: list[tuple[str, Table | Picture | Faces]]  # heading or "", block


def sections(results: Mapping, formats: Sequence[FormatEvaluation], image_of: Callable | None = None) -> list[Section]:
    """The sections of the report; arguments as `load_evaluation` returns them and `write_report` takes them."""
    rated = [evaluation for evaluation in formats if evaluation.rated.any()]
    compared = [evaluation for evaluation in formats if "baselines" in evaluation.scores]
    contradictions = results.get("contradictions") or {"asked_together": 0}
    blocks = {
        "scores": [("", tables.headline(formats))],
        "baselines": [("", tables.baselines(compared))] if compared else [],
        "bars": [(evaluation.fmt.name, bars(evaluation)) for evaluation in formats],
        "table": [(evaluation.fmt.name, tables.per_au(evaluation)) for evaluation in formats],
        "confusion": [
            (evaluation.fmt.name, confusion_matrices(evaluation))
            for evaluation in formats
            if evaluation.fmt.scale != "occurrence"
        ],
        "groups": [block for evaluation in formats for block in tables.groups(evaluation)],
        "parsing": [block for evaluation in formats for block in tables.parsing(evaluation)],
        "contradictions": [("", tables.contradictions(contradictions))] if contradictions["asked_together"] else [],
        "provenance": tables.provenance(results.get("provenance", {}), formats),
    }
    if rated:
        blocks |= _probability_blocks(rated)
    if rated and image_of:
        blocks["worst"] = [
            (evaluation.fmt.name, faces(evaluation, image_of)) for evaluation in rated if worst_errors(evaluation)
        ]
    return [Section(name, *words, blocks[name]) for name, words in SECTIONS.items() if blocks.get(name)]


def _probability_blocks(rated: Sequence[FormatEvaluation]) -> dict[str, list]:
    """The blocks that show probabilities of presence."""
    ranking = [
        CurveRow("roc", "AUC", "lowest", min, "false positive rate", "recall"),
        CurveRow("pr", "AP", "lowest", min, "recall", "precision"),
    ]
    risk = [CurveRow("risk", "area", "highest", max, "coverage: share of decisions kept", "risk: share of them wrong")]
    alt = "ROC curves above, precision-recall curves below, one panel per format"
    risk_alt = "Risk against coverage of each AU, one panel per format"
    return {
        "ranking": [("", curve_panels("ranking", rated, ranking, alt))],
        "reliability": [("", reliability(rated))],
        "risk": [
            ("", curve_panels("risk_coverage", rated, risk, risk_alt)),
            *(("", tables.abstention(evaluation)) for evaluation in rated if "abstention" in evaluation.scores),
        ],
    }


def write_report(folder: Path, image_of: Callable[[dict], Image.Image] | None = None) -> Path:
    """Write report.html, and report.md with its report_*.png, from what eval_au.py wrote to `folder`.

    Args:
        folder: holds results.json and predictions.parquet.
        image_of: the image of a row of predictions.parquet (a dict), for the section of the surest errors. Without it,
            the report shows no face.

    Returns:
        the path of report.html.

    Raises:
        FileNotFoundError, ValueError: as `load_evaluation`.
    """
    folder = Path(folder)
    results, formats = load_evaluation(folder)
    for face in folder.glob("report_worst_*.png"):  # of an earlier report; this one may go to other people
        face.unlink()
    with matplotlib.rc_context(STYLE):
        content = sections(results, formats, image_of)
        words = {"title": "Action unit evaluation", "subtitle": _subtitle(results), "sections": content}
        write_text(folder / "report.html", _template("report.html.jinja").render(words))
        write_text(folder / "report.md", _template("report.md.jinja").render(words))
        for _, block in (block for section in content for block in section.blocks):
            if block.kind == "picture":
                save_figure(folder / f"report_{block.name}.png", block.figure, dpi=110, facecolor="white")
            elif block.kind == "faces":
                for index, (image, *_) in enumerate(block.items, start=1):
                    with replacing(folder / f"report_{block.name}_{index}.png") as unfinished:
                        image.save(unfinished, "PNG")
    return folder / "report.html"


def _subtitle(results: Mapping) -> str:
    origin = results.get("provenance", {})
    facts = {"model": origin.get("model"), "data": ", ".join(origin.get("data", {}))}
    facts |= {key: origin.get(key) for key in ("part", "decoding", "date")}
    return "; ".join(f"{key} {fact}" for key, fact in facts.items() if fact)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.jinja"], default_for_string=False),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["undefined"] = UNDEFINED
    environment.filters |= {"svg": _svg, "jpeg": _jpeg, "escaped": _escaped, "markdown_table": _markdown}
    return environment.get_template(name)


def _svg(picture: Picture) -> Markup:
    """The figure as an element of the page: no identifier twice, the page's colors and font."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": picture.name}):
        picture.figure.savefig(text, format="svg", transparent=True)
    picture.figure.set_layout_engine("none")  # laid out now: the PNG need not do it again
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(picture.alt)}"', 1)
    svg = re.sub(r'<g id="title:([^"]*)"([^>]*)>', r"<g\2><title>\1</title>", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    for color, variable in CSS_COLORS.items():
        svg = svg.replace(color, variable)
    return Markup(svg)


def _jpeg(image: Image.Image) -> str:
    """The image as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_bytes(image, 80)).decode()}"


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is; pipes are left to tables."""
    return re.sub(r"([\\`*\[\]~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _markdown(block: Table | Faces) -> str:
    """A table, or faces as one, in Markdown."""
    if block.kind == "faces":
        rows = [
            [f"![](report_{block.name}_{index}.png)", _escaped(error), _escaped(where)]
            for index, (_, error, where) in enumerate(block.items, start=1)
        ]
        return markdown_table(["face", "error", "image"], rows, "lll")

    def texts(cells: Sequence[Cell]) -> list[str]:
        return [_escaped(cell.text) + (f" ({cell.interval})" if cell.interval else "") for cell in cells]

    return markdown_table(texts(block.header), map(texts, block.rows), "l" + "r" * (len(block.header) - 1))
