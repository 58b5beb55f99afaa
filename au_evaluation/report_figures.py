"""The figures of a report, one function each. A line or bar whose gid is "title:…" gets a tooltip in the page."""

from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from au_llava.au_evaluation.report_data import METRICS, UNDEFINED, Readings, shown, worst_errors
from au_llava.image_processing_au_llava import load_face_image
from au_llava.metrics_au import confusion, presence, reliability_curve, risk_coverage

THUMBNAIL = 96  # pixels of the longer side
INK, GREY, ACCENT, SECOND = "#1b1f24", "#8d99a6", "#0b63a5", "#c4500a"  # told apart in grey and by the colour-blind
HEAT = "#6fa8d6"  # a full cell, under ink of either theme
CSS_COLOURS = {INK: "var(--ink)", GREY: "var(--grey)", ACCENT: "var(--accent)", SECOND: "var(--second)"}
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
    items: list[tuple[Image.Image, str, str]]  # thumbnail, what went wrong, which image
    kind: str = "faces"


def bars(readings: Readings) -> Picture:
    """A bar per AU, its interval as a line, the mean over AUs dashed."""
    scores, labels = readings.scores, readings.fmt.labels
    metrics = [metric for metric in ("f1", "icc", "mae") if metric in scores["mean"]]
    figure = Figure(figsize=(0.9 + 3.4 * len(metrics), 0.7 + 0.19 * len(labels)), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0], metrics, strict=True):
        numbers = [of_au[metric] for of_au in scores["per_au"].values()]
        bounds = [of_au["interval"].get(metric) for of_au in scores["per_au"].values()]
        bounds = np.array([pair or (None, None) for pair in bounds], dtype=float)  # (AUs, 2)
        bars = axis.barh(range(len(labels)), np.array(numbers, dtype=float), 0.7, color=ACCENT, alpha=0.55)
        axis.hlines(range(len(labels)), *bounds.T, color=INK, linewidth=1)
        for y, (bar, label, number) in enumerate(zip(bars, labels, numbers, strict=True)):
            bar.set_gid(f"title:{label}: {shown(number)}")
            if number is None:
                axis.text(0, y, f" {UNDEFINED}", va="center")
        if scores["mean"][metric] is not None:
            axis.axvline(scores["mean"][metric], color=SECOND, linewidth=1, linestyle="--")
        axis.set_title(f"{METRICS[metric][0]}, mean {shown(scores['mean'][metric])}")
        axis.set_xlim(right=None if metric == "mae" else 1.02)
        axis.locator_params("x", nbins=6)
        axis.set_yticks(range(len(labels)), labels)
        axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    names = ", ".join(METRICS[metric][0] for metric in metrics)
    return Picture(f"bars_{readings.fmt.name}", figure, f"{names} of each AU of {readings.fmt.name}")


def curves(readings: Readings, which: str) -> dict[str, tuple[np.ndarray, float]]:
    """AU -> its curve "roc", "pr" or "risk" at `GRID` (201,) and the area under it, where it is defined."""
    curves = {}
    for column, (label, scores) in enumerate(readings.scores["per_au"].items()):
        known = readings.rated[:, column]
        truth, probability = readings.truth[known, column], readings.probability[known, column]
        if which == "roc" and truth.any() and not truth.all():
            false, true, _ = roc_curve(truth, probability)
            curves[label] = np.interp(GRID, false, true), scores["roc_auc"]
        elif which == "pr" and truth.any():
            precision, recall, _ = (each[-2::-1] for each in precision_recall_curve(truth, probability))
            curves[label] = precision[np.searchsorted(recall, GRID)], scores["average_precision"]
        elif which == "risk" and known.any():
            wrong = readings.present[known, column] != truth
            kept = risk_coverage(readings.confidence[known, column], wrong)
            curves[label] = kept["risk"][np.searchsorted(kept["coverage"], GRID)], kept["aurc"]
    return curves


def curve_panels(name: str, formats: list[Readings], rows: list[tuple], alt: str) -> Picture:
    """Per format a column of panels: thin lines per AU, their mean, and the AU with the worst area by name.

    Args:
        rows: per row of panels the curve, what its area is called, which is the worst and what finds it, the axes'
            labels.
    """
    figure = Figure(figsize=(0.3 + 3.6 * len(formats), 3.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(formats), squeeze=False, sharey="row")
    for row, (which, area, worst, find, x, y) in zip(axes, rows, strict=True):
        for axis, readings in zip(row, formats, strict=True):
            of_au = curves(readings, which)
            for label, (values, number) in of_au.items():
                axis.plot(GRID, values, color=GREY, linewidth=0.7, gid=f"title:{label}: {area} {number:.3f}")
            title = f"{readings.fmt.name}: {UNDEFINED}"
            if of_au:
                numbers = {label: number for label, (_, number) in of_au.items()}
                label = find(numbers, key=numbers.get)
                axis.plot(GRID, of_au[label][0], color=SECOND, linestyle="--", linewidth=1.3)
                axis.plot(GRID, np.mean([values for values, _ in of_au.values()], axis=0), color=ACCENT, linewidth=2)
                mean = np.mean(list(numbers.values()))
                title = f"{readings.fmt.name}: mean {area} {mean:.3f}\n{worst} {label}, {numbers[label]:.3f}"
            axis.set(title=title, xlabel=x, xlim=(0, 1))
        row[0].set_ylabel(y)
        row[0].set_ylim(0, None if which == "risk" else 1.02)
    return Picture(name, figure, alt)


def reliability(formats: list[Readings]) -> Picture:
    """Observed share against probability over all AUs, above how many cells have that probability."""
    figure = Figure(figsize=(0.3 + 3.6 * len(formats), 4.4), layout="constrained")
    axes = figure.subplots(2, len(formats), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (above, below), readings in zip(axes.T, formats, strict=True):
        probability, truth = readings.probability[readings.rated], readings.truth[readings.rated]
        curve, error = reliability_curve(probability, truth), presence(probability, truth)["ece"]
        above.plot([0, 1], [0, 1], color=GREY, linewidth=0.7, linestyle=":")
        above.plot(curve["probability"], curve["rate"], "o-", color=ACCENT, markersize=4)
        above.set(title=f"{readings.fmt.name}, ECE {error:.3f}", xlim=(0, 1), ylim=(0, 1.02))
        bins = len(curve["count"])
        below.bar((np.arange(bins) + 0.5) / bins, curve["count"], width=0.9 / bins, color=GREY)
        below.set(xlabel="probability of presence", yscale="log")
        below.minorticks_off()
    axes[0, 0].set_ylabel("share present")
    axes[1, 0].set_ylabel("readings")
    axes[1, 0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return Picture("reliability", figure, "Share of present labels against the probability given, per format")


def confusion_matrices(readings: Readings) -> Picture:
    """A square of levels per AU, all in one picture, so that hundreds of numbers are drawn in little time."""
    fmt, across = readings.fmt, min(6, len(readings.fmt.labels))
    counts = confusion(readings.values, readings.references, fmt)  # (AUs, levels, levels)
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
        axis.add_patch(Rectangle((x + 0.5, y + 0.5), levels, levels, fill=False, edgecolor=GREY, linewidth=0.5))
        for place, level in enumerate(np.linspace(0, fmt.value_numbers[-1], levels), start=1):
            write(x, y + place, f"{level:g}", fontsize=6, color=GREY)
            write(x + place, y + side - 1, f"{level:g}", fontsize=6, color=GREY)
    return Picture(f"confusion_{fmt.name}", figure, f"Confusion matrices of the AUs of {fmt.name}")


def faces(readings: Readings, image_of: Callable) -> Faces:
    items = []
    for row, column in worst_errors(readings):
        record, label = readings.rows[row], readings.fmt.labels[column]
        image = load_face_image(image_of(record))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        decision = "present" if readings.present[row, column] else "absent"
        probability, reference = readings.probability[row, column], readings.references[row, column]
        error = f"{label} read as {decision}, label {reference:g}, P={probability:.3f}"
        where = f"{record['dataset']} {record['subject']}, clip {record['clip']}, frame {record['frame']}"
        items.append((image, error, where))
    return Faces(f"worst_{readings.fmt.name}", items)
