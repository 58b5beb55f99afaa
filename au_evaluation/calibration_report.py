"""What a calibration gained on validation people: errors before and after, as JSON, a table and a figure."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.metrics import log_loss

from au_llava.action_units import get_format
from au_llava.au_evaluation.tables import console_table, number
from au_llava.metrics_au import decide, presence, reliability_curve


def calibration_report(fits: Mapping[str, Mapping], references: Mapping[str, np.ndarray]) -> dict:
    """Per format, and per AU in it, how good probabilities are before and after calibration (cross-validated).

    Args:
        fits: format name -> what `fit_format` returned. references: format name -> (images, AUs) labels.

    Returns:
        format name -> {"all": errors over all AUs, "per_au": label -> {"method", "threshold"} and, where it is
        annotated, its errors}; the errors are ece, brier and log_loss, each `…_before` and `…_after`.
    """
    report = {}
    for name, fit in fits.items():
        fmt = get_format(name)
        truth = decide(references[name], fmt)
        known = ~np.isnan(truth)
        per_au = {}
        for column, label in enumerate(fmt.labels):
            entry = fit["entry"]["aus"][label]
            per_au[label] = {"method": entry["method"], "threshold": entry["threshold"]}
            if known[:, column].any():
                per_au[label] |= _errors(fit, truth, (known[:, column], column))
        report[name] = {"all": _errors(fit, truth, known), "per_au": per_au}
    return report


def _errors(fit: Mapping, truth: np.ndarray, cells) -> dict[str, float]:
    """Errors of the probabilities in some cells of (images, AUs) tables, before and after."""
    errors, truth = {}, truth[cells] == 1
    for when in ("before", "after"):
        probability = fit[when][cells]
        scores = presence(probability, truth)
        errors |= {f"{metric}_{when}": scores[metric] for metric in ("ece", "brier")}
        errors[f"log_loss_{when}"] = log_loss(truth, probability.clip(1e-6, 1 - 1e-6), labels=[False, True])
    return errors


def calibration_table(report: Mapping[str, Mapping], title: str) -> Table:
    """Before and after, per format."""
    header = ("format", "ECE\nbefore", "ECE\nafter", "log loss\nbefore", "log loss\nafter", "AUs changed")
    caption = "over all AUs; each subject by a calibration fitted without that subject's fold"
    table = console_table(title, header, "lrrrrl", caption)
    for name, result in report.items():
        cells = [result["all"][f"{metric}_{when}"] for metric in ("ece", "log_loss") for when in ("before", "after")]
        changed = sum(entry["method"] != "none" for entry in result["per_au"].values())
        table.add_row(name, *(number(value, digits=4) for value in cells), f"{changed} of {len(result['per_au'])}")
    return table


def draw_reliability(fits: Mapping[str, Mapping], references: Mapping[str, np.ndarray]) -> Figure:
    """A panel per format: observed share of present against predicted probability, over all AUs.

    Args:
        fits, references: as in `calibration_report`.
    """
    figure = Figure(figsize=(3.4 * len(fits), 3.6))
    axes = figure.subplots(1, len(fits), squeeze=False)[0]
    for axis, (name, fit) in zip(axes, fits.items(), strict=True):
        truth = decide(references[name], get_format(name))
        known = ~np.isnan(truth)
        truth = truth[known] == 1
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for when, style in (("before", "o--"), ("after", "s-")):
            probability = fit[when][known]
            curve, error = reliability_curve(probability, truth), presence(probability, truth)["ece"]
            axis.plot(curve["probability"], curve["rate"], style, markersize=4, label=f"{when}: ECE {error:.3f}")
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=name, xlabel="predicted probability of presence")
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("observed share")
    figure.tight_layout()
    return figure
