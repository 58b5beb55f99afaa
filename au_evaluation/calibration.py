"""Fitting the calibration that calibration_au_llava.py applies, on validation subjects (and the prior of photographs on
unlabelled faces, by priors.py).

Everything is chosen per format and AU: the method by cross-validation over subjects, its parameters on all validation
subjects, then the decision threshold that gives the highest F1 on the calibrated probabilities. A method has to lower
the log loss of presence, held-out subjects against untouched, by more than one standard error (over subjects) of what
it gains: otherwise the AU is left as it is.
"""

import math
import sys
from collections.abc import Sequence

import datasets
import matplotlib
import numpy as np
from accelerate import PartialState
from rich.table import Table
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss, precision_recall_curve

from au_llava.action_units import AUFormat, get_format, quantise
from au_llava.au_datasets.folds import kfold, person_key
from au_llava.au_datasets.records import KEY, group_by_image, load_records
from au_llava.au_evaluation.audits import abstention
from au_llava.au_evaluation.predictions import predict
from au_llava.au_evaluation.priors import ENOUGH, FEWEST_UNLABELLED, fit_photographs
from au_llava.au_evaluation.scoring import by_format
from au_llava.au_runs.manifests import people_of
from au_llava.au_runs.provenance import content_hashes
from au_llava.calibration_au_llava import DEFAULT_THRESHOLD, METHODS, apply_isotonic, apply_temperature, calibrate
from au_llava.metrics_au import presence, reliability_curve

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDS = 5
FEWEST = 10  # positives and negatives that an AU needs on validation; below, it is left as it is
UNLABELLED_PART = "train"  # estimating a prior is fitting: not on faces that anything is tested on
KNOTS = 15  # of an isotonic curve: bins of equal counts, so that it stays small and does not follow single images


def fit_format(distributions: np.ndarray, references: np.ndarray, subjects: Sequence[str], fmt: AUFormat) -> dict:
    """Calibrate one format.

    Args:
        distributions: (images, AUs, values) as the slots decoder reads them, uncalibrated.
        references: (images, AUs) labels, NaN where not annotated.
        subjects: (images) who is shown.

    Returns:
        "entry": the format's entry of `AuLlavaConfig.calibration`;
        "before", "after": (images, AUs) probabilities of presence, NaN where not annotated; `after` was computed for
            each subject by a calibration fitted without that subject's fold.

    Raises:
        ValueError: fewer subjects than folds.
    """
    subjects = np.asarray(subjects)
    if len(set(subjects)) < FOLDS:
        raise ValueError(f"{len(set(subjects))} validation subjects are too few to calibrate on; {FOLDS} are needed.")
    parts = kfold(set(subjects), FOLDS, seed=0)
    held_out = [np.isin(subjects, part) for part in parts.values()]
    present = np.array(fmt.value_numbers) >= fmt.presence_threshold
    before = np.where(np.isnan(references), np.nan, distributions[..., present].sum(axis=-1).clip(0, 1))
    after = before.copy()
    entries = {}
    for column, label in enumerate(fmt.labels):
        known = ~np.isnan(references[:, column])
        read, labels = distributions[known, column], references[known, column]
        truth = labels >= fmt.presence_threshold
        if min(truth.sum(), (~truth).sum()) < FEWEST:
            entries[label] = {"method": "none", "threshold": DEFAULT_THRESHOLD}
            continue
        indices = np.array([fmt.value_numbers.index(quantise(value, fmt)) for value in labels])
        outside = {method: np.empty(len(read)) for method in METHODS}
        for fold in held_out:
            fold = fold[known]
            if fold.any():
                for method, probabilities in outside.items():
                    entry = _fit(method, read[~fold], indices[~fold], truth[~fold], present)
                    probabilities[fold] = _presence(method, read[fold], entry, present)
        method = _best_method(outside, truth, subjects[known])
        entry = _fit(method, read, indices, truth, present)
        after[known, column] = outside[method]
        threshold = best_threshold(_presence(method, read, entry, present), truth)
        entries[label] = {"method": method, **entry, "threshold": round(threshold, 4)}
    entry = {"scale": fmt.scale, "presence_threshold": fmt.presence_threshold, "aus": entries}
    return {"entry": entry, "before": before, "after": after}


def _best_method(probabilities: dict[str, np.ndarray], truth: np.ndarray, subjects: np.ndarray) -> str:
    """The method with the largest gain in log loss among those that gain more than its standard error, or "none"."""
    losses = {method: -np.log(np.where(truth, each, 1 - each).clip(1e-12)) for method, each in probabilities.items()}
    _, who = np.unique(subjects, return_inverse=True)
    best, largest = "none", 0.0
    for method, loss in losses.items():
        gains = np.bincount(who, weights=losses["none"] - loss)  # per subject
        error = gains.std(ddof=1) * math.sqrt(len(gains))
        if gains.sum() > max(error, largest):
            best, largest = method, gains.sum()
    return best


def _fit(method: str, distributions, indices, truth, present) -> dict:
    """The parameters of `method` for one AU: distributions (n, values), indices of the labels, presence (n,)."""
    if method == "temperature":
        logs = np.log(distributions.clip(1e-12))
        rows = np.arange(len(logs))

        def negative_log_likelihood(log_temperature):
            scaled = logs / math.exp(log_temperature)
            return np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[rows, indices])

        best = minimize_scalar(negative_log_likelihood, bounds=(-2, 2), method="bounded")
        return {"temperature": round(math.exp(best.x), 4)}
    if method == "isotonic":
        probabilities = distributions[:, present].sum(axis=1).clip(0, 1)
        order = np.argsort(probabilities, kind="stable")
        bins = [rows for rows in np.array_split(order, KNOTS) if len(rows)]
        middles = np.array([probabilities[rows].mean() for rows in bins])
        rates = np.array([(truth[rows].sum() + 0.5) / (len(rows) + 1) for rows in bins])  # never quite 0 or 1
        weights = [len(rows) for rows in bins]
        rising = IsotonicRegression(increasing=True).fit(middles, rates, sample_weight=weights).predict(middles)
        middles, first = np.unique(middles.round(4), return_index=True)
        return {"probability": middles.tolist(), "calibrated": rising[first].round(4).tolist()}
    return {}


def _presence(method: str, distributions, entry, present) -> np.ndarray:
    """Calibrated probability of presence (n,)."""
    if method == "temperature":
        distributions = apply_temperature(distributions, entry["temperature"])
    elif method == "isotonic":
        distributions = apply_isotonic(distributions, present, entry)
    return distributions[:, present].sum(axis=1).clip(0, 1)


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The threshold on (n,) probabilities with the highest F1, in the middle between two observed probabilities."""
    precision, recall, candidates = precision_recall_curve(truth, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))
    below = candidates[best - 1] if best else 0.0
    return float(below + candidates[best]) / 2


def draw_reliability(fits: dict[str, dict], references: dict[str, np.ndarray], thresholds: dict[str, float]):
    """A figure, one panel per format: observed share of present against predicted probability, over all AUs.

    Args:
        fits: format name -> what `fit_format` returned. references: format name -> (images, AUs) labels.
        thresholds: format name -> the format's presence_threshold.
    """
    figure, axes = plt.subplots(1, len(fits), figsize=(3.4 * len(fits), 3.6), squeeze=False)
    for axis, (name, fit) in zip(axes[0], fits.items(), strict=True):
        known = ~np.isnan(references[name])
        truth = references[name][known] >= thresholds[name]
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for when, style in (("before", "o--"), ("after", "s-")):
            curve = reliability_curve(fit[when][known], truth)
            error = presence(fit[when][known], truth)["ece"]
            axis.plot(curve["probability"], curve["rate"], style, markersize=4, label=f"{when}: ECE {error:.3f}")
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=name, xlabel="predicted probability of presence")
        axis.legend(fontsize=8, frameon=False)
    axes[0][0].set_ylabel("observed share")
    figure.tight_layout()
    return figure


def calibrate_checkpoint(
    model,
    processor,
    tables: list[str],
    part: str,
    batch_size: int,
    progress: bool = False,
    unlabelled: Sequence[str] = (),
):
    """Fit the calibration of `model` on the validation subjects of `tables`.

    Args:
        unlabelled: folders of records whose labels are not looked at: the prior of photographs is estimated on their
            `unlabelled_records`. Without them there is none.

    Returns:
        what belongs into `AuLlavaConfig.calibration`; per format what `fit_format` returned; its labels (images, AUs);
        per format what `fit_photographs` returned, {} without unlabelled records.

    Raises:
        ValueError: too few subjects or unlabelled faces, or unlabelled faces that all read alike.
    """
    records = load_records(tables, part=part)
    more = unlabelled_records(unlabelled) if unlabelled else None
    raw, model.config.calibration = model.config.calibration, None
    try:
        predictions = _read(model, processor, records, batch_size, progress)
        names = tuple(by_format(predictions))
        unlabelled_rows = _read(model, processor, more, batch_size, progress, names) if unlabelled else []
    finally:
        model.config.calibration = raw
    fits, references, priors = {}, {}, {}
    for name, rows in by_format(predictions).items():
        read, references[name] = (np.array([row[key] for row in rows], float) for key in ("distribution", "references"))
        people = [person_key(row["dataset"], row["subject"]) for row in rows]
        fmt = get_format(name)
        fits[name] = fit_format(read, references[name], people, fmt)
        _add_rejection(fits[name]["entry"], read, rows, fmt)
        if unlabelled:
            of_format = np.array([row["distribution"] for row in unlabelled_rows if row["asked"] == name], float)
            priors[name] = fit_photographs(fits[name]["entry"], read, of_format, fmt)
    fitted_on = {
        "data": content_hashes(tables),
        "part": part,
        "images": len(group_by_image(records)),
        "subjects": len(people_of(records)),
    }
    calibration = {"formats": {n: fit["entry"] for n, fit in fits.items()}, "fitted_on": fitted_on}
    if unlabelled:
        calibration["prior"] = "photographs"
        fitted_on["unlabelled"] = {"data": content_hashes(unlabelled), "part": UNLABELLED_PART, "images": len(more)}
    return calibration, fits, references, priors


def unlabelled_records(tables: Sequence[str]) -> datasets.Dataset:
    """One record of each training image, to estimate priors on; of more than `ENOUGH`, evenly many from all over.

    Raises:
        ValueError: fewer than `FEWEST_UNLABELLED` images; and as `load_records`.
    """
    records = load_records(tables, part=UNLABELLED_PART, labelled=False)
    rows = [next(iter(group.values())) for group in group_by_image(records)]
    if len(rows) < FEWEST_UNLABELLED:
        where = ", ".join(map(str, tables))
        raise ValueError(
            f"the {UNLABELLED_PART} part of {where} has {len(rows)} images, too few to estimate priors on: "
            f"{FEWEST_UNLABELLED} are needed."
        )
    if len(rows) > ENOUGH:
        rows = [rows[index] for index in np.linspace(0, len(rows) - 1, ENOUGH).astype(int)]
    return records.select(rows)


def _read(model, processor, records, batch_size: int, progress: bool, formats: tuple[str, ...] | None = None):
    """What `predict` reads by slots, with distributions; images that cannot be read are left out and counted."""
    rows = predict(model, processor, records, "slots", batch_size, progress, distributions=True, formats=formats)
    readable = [row for row in rows if "distribution" in row]
    left_out = {tuple(row[key] for key in KEY): row["problems"][0] for row in rows if "distribution" not in row}
    if left_out and PartialState().is_main_process:
        problem = next(iter(left_out.values()))
        print(f"left out of the calibration: {len(left_out)} images ({problem})", file=sys.stderr)
    return readable


def _add_rejection(entry: dict, read: np.ndarray, rows: list[dict], fmt: AUFormat) -> None:
    """Add to each AU's entry "reject_below": the confidence below which an answer is better withheld, see audits.py."""
    distributions, thresholds = calibrate(read, fmt, {"formats": {fmt.name: entry}})
    probability = distributions[..., np.array(fmt.value_numbers) >= fmt.presence_threshold].sum(axis=-1).clip(0, 1)
    decided = [
        {**row, "probability": each.tolist(), "present": (each >= thresholds).astype(float).tolist()}
        for row, each in zip(rows, probability, strict=True)
    ]
    for label, advice in abstention(decided, fmt)["per_au"].items():
        threshold = advice["threshold"]
        entry["aus"][label]["reject_below"] = None if threshold is None else math.floor(1e4 * threshold) / 1e4


def calibration_report(fits: dict[str, dict], references: dict[str, np.ndarray]) -> dict:
    """Per format, and per AU in it, how far probabilities can be believed before and after (cross-validated)."""
    report = {}
    for name, fit in fits.items():
        fmt = get_format(name)
        known = ~np.isnan(references[name])
        truth = references[name] >= fmt.presence_threshold

        def judge(rows, fit=fit, truth=truth) -> dict:
            scores = {}
            for when in ("before", "after"):
                probability = fit[when][rows]
                errors = presence(probability, truth[rows])
                scores |= {f"{metric}_{when}": errors[metric] for metric in ("ece", "brier")}
                clipped = probability.clip(1e-6, 1 - 1e-6)
                scores[f"log_loss_{when}"] = log_loss(truth[rows], clipped, labels=[False, True])
            return scores

        per_au = {}
        for column, label in enumerate(fmt.labels):
            rows = np.nonzero(known[:, column])[0]
            entry = fit["entry"]["aus"][label]
            per_au[label] = {"method": entry["method"], "threshold": entry["threshold"]}
            per_au[label] |= judge((rows, column)) if len(rows) else {}
        report[name] = {"all": judge(known), "per_au": per_au}
    return report


def calibration_table(report: dict, title: str) -> Table:
    """Before and after, per format."""
    caption = "over all AUs; each subject by a calibration fitted without that subject's fold"
    table = Table(title=title, title_justify="left", caption=caption)
    for column in ("format", "ECE\nbefore", "ECE\nafter", "log loss\nbefore", "log loss\nafter", "AUs changed"):
        table.add_column(column, justify="left" if column in ("format", "AUs changed") else "right")
    for name, result in report.items():
        cells = [f"{result['all'][f'{m}_{when}']:.4f}" for m in ("ece", "log_loss") for when in ("before", "after")]
        untouched = sum(values["method"] == "none" for values in result["per_au"].values())
        table.add_row(name, *cells, f"{len(result['per_au']) - untouched} of {len(result['per_au'])}")
    return table
