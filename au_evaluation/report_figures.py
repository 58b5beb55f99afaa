"""The figures of a report, one function each. A line or bar with the gid "title:…" gets a tooltip in the page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from au_llava.au_evaluation.report_data import UNDEFINED, FormatEvaluation, worst_errors
from au_llava.au_evaluation.tables import METRICS, number
from au_llava.metrics_au import confusion, presence, reliability_curve, risk_coverage
from au_llava.pictures_au_llava import load_face_image

THUMBNAIL = 96  # pixels of the longer side
INK, GRAY, ACCENT, SECOND = "#1b1f24", "#8d99a6", "#0b63a5", "#c4500a"  # distinct in gray and to the color-blind
HEAT = "#6fa8d6"  # a full cell, under ink of either theme
CSS_COLORS = {INK: "var(--ink)", GRAY: "var(--gray)", ACCENT: "var(--accent)", SECOND: "var(--second)"}
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "axes.titlesize": 9}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
GRID = np.linspace(0, 1, 201)  # where curves are drawn, so that they can be averaged and stay small


class Picture(NamedTuple):
    name: str  # of its file: report_NAME.png
    figure: Figure
    alt: str
    kind: str = "picture"


class Faces(NamedTuple):
    name: str
    items: list[tuple[Image.Image, str, str]]  # thumbnail, the error, which image
    kind: str = "faces"


def bars(evaluation: FormatEvaluation) -> Picture:
    """A bar per AU, its interval as a line, the mean over AUs dashed."""
    scores, labels = evaluation.scores, evaluation.fmt.labels
    metrics = [metric for metric in ("f1", "icc", "mae") if metric in scores["mean"]]
    figure = Figure(figsize=(0.9 + 3.4 * len(metrics), 0.7 + 0.19 * len(labels)), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0], metrics, strict=True):
        values = [of_au[metric] for of_au in scores["per_au"].values()]
        bounds = [of_au["interval"].get(metric) for of_au in scores["per_au"].values()]
        bounds = np.array([pair or (None, None) for pair in bounds], dtype=float)  # (AUs, 2)
        bars = axis.barh(range(len(labels)), np.array(values, dtype=float), 0.7, color=ACCENT, alpha=0.55)
        axis.hlines(range(len(labels)), *bounds.T, color=INK, linewidth=1)
        for y, (bar, label, value) in enumerate(zip(bars, labels, values, strict=True)):
            bar.set_gid(f"title:{label}: {number(value, undefined=UNDEFINED)}")
            if value is None:
                axis.text(0, y, f" {UNDEFINED}", va="center")
        if scores["mean"][metric] is not None:
            axis.axvline(scores["mean"][metric], color=SECOND, linewidth=1, linestyle="--")
        axis.set_title(f"{METRICS[metric].name}, mean {number(scores['mean'][metric], undefined=UNDEFINED)}")
        axis.set_xlim(right=None if metric == "mae" else 1.02)
        axis.locator_params("x", nbins=6)
        axis.set_yticks(range(len(labels)), labels)
        axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    names = ", ".join(METRICS[metric].name for metric in metrics)
    return Picture(f"bars_{evaluation.fmt.name}", figure, f"{names} of each AU of {evaluation.fmt.name}")


def curves(evaluation: FormatEvaluation, which: str) -> dict[str, tuple[np.ndarray, float]]:
    """AU -> its curve "roc", "pr" or "risk" at `GRID` (201,) and the area under it, where it is defined."""
    curves = {}
    for column, (label, scores) in enumerate(evaluation.scores["per_au"].items()):
        known = evaluation.rated[:, column]
        truth, probability = evaluation.truth[known, column], evaluation.probability[known, column]
        if which == "roc" and truth.any() and not truth.all():
            false, true, _ = roc_curve(truth, probability)
            curves[label] = np.interp(GRID, false, true), scores["roc_auc"]
        elif which == "pr" and truth.any():
            precision, recall, _ = (curve[-2::-1] for curve in precision_recall_curve(truth, probability))
            curves[label] = precision[np.searchsorted(recall, GRID)], scores["average_precision"]
        elif which == "risk" and known.any():
            wrong = evaluation.present[known, column] != truth
            curve = risk_coverage(evaluation.confidence[known, column], wrong)
            curves[label] = curve["risk"][np.searchsorted(curve["coverage"], GRID)], curve["aurc"]
    return curves


class CurveRow(NamedTuple):
    """A row of panels with one kind of curve."""

    curve: str  # as in `curves`
    area: str  # what the area under it is called
    worst: str  # "lowest" or "highest"
    pick: Callable  # min or max: finds the worst area
    x: str
    y: str


def curve_panels(name: str, formats: Sequence[FormatEvaluation], rows: Sequence[CurveRow], alt: str) -> Picture:
    """Per format a column of panels: thin lines per AU, their mean, and the AU with the worst area by name."""
    figure = Figure(figsize=(0.3 + 3.6 * len(formats), 3.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(formats), squeeze=False, sharey="row")
    for panels, row in zip(axes, rows, strict=True):
        for axis, evaluation in zip(panels, formats, strict=True):
            title = _draw_curves(axis, curves(evaluation, row.curve), row)
            axis.set(title=f"{evaluation.fmt.name}: {title}", xlabel=row.x, xlim=(0, 1))
        panels[0].set_ylabel(row.y)
        panels[0].set_ylim(0, None if row.curve == "risk" else 1.02)
    return Picture(name, figure, alt)


def _draw_curves(axis, of_au: dict[str, tuple[np.ndarray, float]], row: CurveRow) -> str:
    """Draw the curves of one panel; returns what its title says of them."""
    if not of_au:
        return UNDEFINED
    areas = {label: area for label, (_, area) in of_au.items()}
    for label, (values, area) in of_au.items():
        axis.plot(GRID, values, color=GRAY, linewidth=0.7, gid=f"title:{label}: {row.area} {number(area)}")
    worst = row.pick(areas, key=areas.get)
    axis.plot(GRID, of_au[worst][0], color=SECOND, linestyle="--", linewidth=1.3)
    axis.plot(GRID, np.mean([values for values, _ in of_au.values()], axis=0), color=ACCENT, linewidth=2)
    mean = np.mean(list(areas.values()))
    return f"mean {row.area} {mean:.3f}\n{row.worst} {worst}, {areas[worst]:.3f}"


def reliability(formats: Sequence[FormatEvaluation]) -> Picture:
    """Observed share against probability over all AUs; below, how many cells have that probability."""
    figure = Figure(figsize=(0.3 + 3.6 * len(formats), 4.4), layout="constrained")
    axes = figure.subplots(2, len(formats), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (above, below), evaluation in zip(axes.T, formats, strict=True):
        probability, truth = evaluation.probability[evaluation.rated], evaluation.truth[evaluation.rated]
        curve, error = reliability_curve(probability, truth), presence(probability, truth)["ece"]
        above.plot([0, 1], [0, 1], color=GRAY, linewidth=0.7, linestyle=":")
        above.plot(curve["probability"], curve["rate"], "o-", color=ACCENT, markersize=4)
        above.set(title=f"{evaluation.fmt.name}, ECE {error:.3f}", xlim=(0, 1), ylim=(0, 1.02))
        bins = len(curve["count"])
        below.bar((np.arange(bins) + 0.5) / bins, curve["count"], width=0.9 / bins, color=GRAY)
        below.set(xlabel="probability of presence", yscale="log")
        below.minorticks_off()
    axes[0, 0].set_ylabel("share present")
    axes[1, 0].set_ylabel("readings")
    axes[1, 0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return Picture("reliability", figure, "Share of present labels against the probability given, per format")


def confusion_matrices(evaluation: FormatEvaluation) -> Picture:
    """A square of levels per AU, all in one picture: drawing hundreds of axes would take long."""
    fmt, across = evaluation.fmt, min(6, len(evaluation.fmt.labels))
    counts = confusion(evaluation.values, evaluation.references, fmt)  # (AUs, levels, levels)
    shares = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    levels = counts.shape[1]
    side, down = levels + 2, -(-len(counts) // across)  # a square with its margin
    tiles = np.zeros((down * across, side, side))
    tiles[: len(counts), 1:-1, 1:-1] = shares
    tiles = tiles.reshape(down, across, side, side).swapaxes(1, 2).reshape(down * side, across * side)
    figure = Figure(figsize=(0.23 * tiles.shape[1], 0.23 * tiles.shape[0]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(np.dstack([np.full((*tiles.shape, 3), matplotlib.colors.to_rgb(HEAT)), tiles]), interpolation="none")
    write = lambda x, y, text, **style: axis.text(x, y, text, ha="center", va="center", **style)
    for y, x in np.argwhere(tiles >= 0.005):
        write(x, y, f"{100 * tiles[y, x]:.0f}", fontsize=6)
    for au, label in enumerate(fmt.labels):
        y, x = (side * place for place in divmod(au, across))
        write(x + (side - 1) / 2, y, label, fontsize=9)
        axis.add_patch(Rectangle((x + 0.5, y + 0.5), levels, levels, fill=False, edgecolor=GRAY, linewidth=0.5))
        for place, level in enumerate(np.linspace(0, fmt.value_numbers[-1], levels), start=1):
            write(x, y + place, f"{level:g}", fontsize=6, color=GRAY)
            write(x + place, y + side - 1, f"{level:g}", fontsize=6, color=GRAY)
    return Picture(f"confusion_{fmt.name}", figure, f"Confusion matrices of the AUs of {fmt.name}")


def faces(evaluation: FormatEvaluation, image_of: Callable) -> Faces:
    """Thumbnails of the `worst_errors`."""
    items = []
    for row, column in worst_errors(evaluation):
        record, label = evaluation.rows[row], evaluation.fmt.labels[column]
        image = load_face_image(image_of(record))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        decision = "present" if evaluation.present[row, column] else "absent"
        probability, reference = evaluation.probability[row, column], evaluation.references[row, column]
        error = f"{label} read as {decision}, label {reference:g}, P={probability:.3f}"
        where = f"{record['dataset']} {record['subject']}, clip {record['clip']}, frame {record['frame']}"
        items.append((image, error, where))
    return Faces(f"worst_{evaluation.fmt.name}", items)
