"""Scores of AU values, as pure functions of arrays.

The rules, stated here because published evaluations differ in them:

- A NaN label means "not annotated": that (image, AU) cell is left out, and only that cell.
- A NaN prediction or decision means "the answer could not be read": its cell is left out of the scores and counted as
  `unparsed`. Quote that count beside the scores: leaving cells out flatters a model that fails on hard images.
- An undefined score is NaN and comes with a reason, never 0. A mean over AUs leaves it out, and `averaged` says how
  many AUs the mean covers.
- An AU's scores pool all its images; labels and values from `fmt.presence_threshold` on are present.

Each metric is written once, as a function of counts, moments or histograms of the images (`metrics_of_…`). Summed over
all images they give a score; summed per subject, the scores of subjects; weighted, the resamples of
`au_evaluation/intervals.py`. The tests check every metric against scikit-learn, SciPy or a plain loop.

This file travels with the metric script `au_metric.py`, so it needs only NumPy and imports nothing of the package.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

ECE_BINS = 15  # Guo et al. (2017), "On calibration of modern neural networks"
PER_SUBJECT = ("f1", "accuracy", "icc", "mae")


def detection(predictions: np.ndarray, references: np.ndarray) -> dict:
    """Scores of one AU's decisions, from its counts tp, fp, fn, tn.

    All are 0 to 1 except MCC, -1 to 1. `f1_skew_normalised` is F1 after the negatives are weighted by
    (tp + fn) / (fp + tn), so that they weigh as much as the positives: 2 TPR / (1 + TPR + FPR). It does not depend on
    how rare the AU is in the images at hand (Jeni, Cohn and De la Torre 2013, "Facing imbalanced data").

    Args:
        predictions, references: (n,) booleans, True for present.

    Returns:
        f1, precision, recall, accuracy, balanced_accuracy, mcc, f1_skew_normalised; "support": how many labels are
        present; "undefined": metric -> why it is NaN.
    """
    tp, fp, fn, tn = _totals(count_terms(predictions, references))
    scores = _floats(metrics_of_counts(tp, fp, fn, tn))
    mixed = tp + fn > 0 and fp + tn > 0
    reasons = _reasons(
        scores,
        len(references),
        f1="no positive label and none predicted",
        precision="none predicted",
        recall="no positive label",
        balanced_accuracy="one class only",
        mcc="one class predicted only" if mixed else "one class only",
        f1_skew_normalised="one class only",
    )
    return {**scores, "support": int(tp + fn), "undefined": reasons}


def presence(probabilities: np.ndarray, references: np.ndarray) -> dict:
    """Scores of one AU's probabilities of presence: how well they rank the images and how well they are calibrated.

    `average_precision` is the mean, over positives, of the precision at their score, without interpolation.
    `ece`, the expected calibration error, is that of Guo et al. (2017) for the event "present" instead of "the
    prediction is right": with the images in 15 equal bins of probability, sum over bins of n_bin / n |mean probability
    - rate of presence|. `brier` is the mean of (probability - label)². All are 0 to 1.

    Args:
        probabilities: (n,) numbers from 0 to 1. references: (n,) booleans, True for present.

    Returns:
        roc_auc, average_precision, ece, brier; "undefined": metric -> why it is NaN.
    """
    _, ranks = np.unique(-probabilities, return_inverse=True)  # 0 for the highest
    histograms = [np.bincount(ranks[of_class], minlength=len(ranks)) for of_class in (references, ~references)]
    gaps = _totals(gap_terms(probabilities, references))
    scores = _floats(metrics_of_ranks(*histograms) | metrics_of_gaps(*gaps))
    reasons = _reasons(scores, len(references), roc_auc="one class only", average_precision="no positive label")
    return {**scores, "undefined": reasons}


def agreement(predictions: np.ndarray, references: np.ndarray, medians: np.ndarray | None = None) -> dict:
    """Agreement of one AU's values with its labels; `icc` and `icc_1_1` treat them as two raters.

    The best point forecast under a squared error, and so for ICC and PCC, is the mean of the predictive distribution;
    under an absolute error it is the median (Gneiting 2011, "Making and evaluating point forecasts"). A system that
    predicts distributions can give both.

    Args:
        predictions, references: (n,) finite numbers. medians: (n,) numbers from which mae and mae_nonzero are taken
            instead of the predictions, or None.

    Returns:
        icc, icc_1_1, pcc (Pearson), -1 to 1; mae, mse, and mae_nonzero (over the labels above 0), in units of the
        scale and its square; "undefined": metric -> why it is NaN.
    """
    scores = _floats(metrics_of_moments(*_totals(moment_terms(predictions, references, medians))))
    alone = len(references) == 1
    constant = "one image only" if alone else "labels and predictions constant"
    one_constant = "labels constant" if len(references) and not np.ptp(references) else "predictions constant"
    reasons = _reasons(
        scores,
        len(references),
        icc=constant,
        icc_1_1=constant,
        pcc=constant if alone else one_constant,
        mae_nonzero="no label above 0",
    )
    return {**scores, "undefined": reasons}


def icc(ratings: np.ndarray) -> float:
    """ICC(3,1) of Shrout and Fleiss (1979): consistency of single ratings by fixed raters, at most 1.

    (BMS - EMS) / (BMS + (k - 1) EMS), with BMS the mean square between targets and EMS the residual mean square. NaN
    for fewer than two targets, and where every rater gives all targets the same rating.

    Args:
        ratings: (targets, k raters), complete, k at least 2.
    """
    targets, raters = ratings.shape
    if targets < 2 or not np.ptp(ratings, axis=0).any():
        return float("nan")
    centered = ratings - ratings.mean(axis=0)  # removes the raters' effect and the grand mean
    target_means = centered.mean(axis=1, keepdims=True)
    between = raters * np.sum(target_means**2) / (targets - 1)
    error = np.sum((centered - target_means) ** 2) / ((targets - 1) * (raters - 1))
    return float((between - error) / (between + (raters - 1) * error))


def icc_1_1(ratings: np.ndarray) -> float:
    """ICC(1,1) of Shrout and Fleiss (1979): absolute agreement of single ratings by interchangeable raters, at most 1.

    (BMS - WMS) / (BMS + (k - 1) WMS), with WMS the mean square within targets; unlike in ICC(3,1), a rater's bias
    counts. NaN for fewer than two targets and where all ratings are equal.

    Args:
        ratings: (targets, k raters), complete, k at least 2.
    """
    targets, raters = ratings.shape
    if targets < 2 or not np.ptp(ratings):
        return float("nan")
    between = raters * np.var(ratings.mean(axis=1), ddof=1)
    within = np.mean(np.var(ratings, axis=1, ddof=1))
    return float((between - within) / (between + (raters - 1) * within))


def score(
    predictions, references, fmt, probabilities=None, decisions=None, subjects: Sequence | None = None, medians=None
) -> dict:
    """Score predictions in a format against labels.

    Args:
        predictions: (n images, AUs) values in the order of `fmt.labels`, NaN where the answer could not be read. 0 or
            1 on the occurrence scale; on the others any finite number, such as the mean of a distribution.
        references: (n images, AUs) values of the format's scale, NaN where not annotated.
        fmt: the AUFormat.
        probabilities: (n images, AUs) probabilities of presence, 0 to 1, NaN where there is none; adds `presence`.
        decisions: (n images, AUs) 1 for present, 0 for absent, NaN where the answer could not be read; `detection`
            scores them. Default: predictions >= fmt.presence_threshold.
        subjects: (n images) who is shown; adds icc_within and "per_subject".
        medians: (n images, AUs) medians of the predicted distributions, from which mae and mae_nonzero are taken (see
            `agreement`). Where one is missing or NaN, the prediction is taken.

    Returns:
        "mean": metric -> mean over the AUs for which it is defined, of the metrics of `detection`; unless the format
            codes occurrence, also of `agreement` and, with subjects, icc_within; with probabilities, of `presence`;
        "averaged": metric -> how many AUs that mean covers;
        "per_au": label -> the same metrics, "support" (present labels), "n" (scored images), "unparsed", with
            probabilities "n_probability" (images scored by `presence`), and "undefined": metric -> why it is NaN;
        "per_subject": subject -> f1, accuracy and, unless the format codes occurrence, icc and mae: means over AUs;
        "n": images; "annotated": annotated (image, AU) cells; "unparsed": those of them without a prediction.

        icc_within is `icc` of each subject's images alone, averaged over the subjects for which it is defined, so
        telling faces apart earns nothing. A subject with constant labels counts as 0; with constant predictions too,
        or with one image, it is undefined.

    Raises:
        ValueError: shapes that do not fit, or values off the scale, such as a dataset's code for a missing label.
    """
    columns = divide_by_au(predictions, references, fmt, probabilities, decisions, medians)
    people, who = name_subjects(subjects, columns) if subjects is not None else (None, None)
    per_au, by_subject = {}, []
    for label, column in zip(fmt.labels, columns, strict=True):
        groups = [detection(column.decision, column.present)]
        if fmt.scale != "occurrence":
            groups.append(agreement(column.value, column.label, column.median))
        if probabilities is not None:
            groups.append(presence(column.probability, column.truth))
            groups.append({"n_probability": len(column.truth)})
        if subjects is not None:
            by_subject.append(_metrics_by_subject(column, who, len(people), fmt))
            if fmt.scale != "occurrence":
                within = {"icc_within": float(mean_of_defined(by_subject[-1]["icc"]))}
                reasons = _reasons(within, len(column.label), icc_within="icc undefined within every subject")
                groups.append({**within, "undefined": reasons})
        groups.append({"n": len(column.label), "unparsed": column.annotated - len(column.label)})
        undefined = {metric: why for group in groups for metric, why in group.pop("undefined", {}).items()}
        per_au[label] = {key: value for group in groups for key, value in group.items()} | {"undefined": undefined}

    metrics = [key for key in per_au[fmt.labels[0]] if key not in _NO_METRICS]
    table = np.array([[scores[metric] for metric in metrics] for scores in per_au.values()])  # (AUs, metrics)
    result = {
        "mean": dict(zip(metrics, mean_of_defined(table).tolist(), strict=True)),
        "averaged": dict(zip(metrics, np.sum(~np.isnan(table), axis=0).tolist(), strict=True)),
        "per_au": per_au,
        "n": len(columns[0].read),
        "annotated": sum(column.annotated for column in columns),
        "unparsed": sum(scores["unparsed"] for scores in per_au.values()),
    }
    if subjects is not None:
        means = {
            metric: mean_of_defined(np.stack([of_au[metric] for of_au in by_subject])).tolist()  # (subjects,)
            for metric in PER_SUBJECT
            if metric in by_subject[0]
        }
        result["per_subject"] = {
            person: {metric: values[row] for metric, values in means.items()} for row, person in enumerate(people)
        }
    return result


def fold_scores(folds: Mapping[str, Mapping], fmt) -> dict:
    """The two aggregates of cross-validation in use. They differ: say which one you quote.

    Args:
        folds: name -> the arguments of `score` for the images of that fold, the same ones in every fold:
            {"predictions": …, "references": …} and optionally probabilities, decisions, medians and subjects.
        fmt: the AUFormat.

    Returns:
        "folds": name -> what `score` returns;
        "mean_of_folds": {"mean": metric -> mean over folds, "per_au": label -> metric -> mean over folds}, each over
            the folds where it is defined;
        "pooled": what `score` returns for the images of all folds together.

    Raises:
        ValueError: as `score`, no fold, a fold with other arguments, or folds with different ones.
    """
    for name, fold in folds.items():
        require_arguments(f"fold {name!r}", fold, ("predictions", "references"), (*OPTIONAL, "subjects"))
    folds = {name: {key: value for key, value in fold.items() if value is not None} for name, fold in folds.items()}
    arguments = sorted({tuple(sorted(fold)) for fold in folds.values()})
    if len(arguments) != 1:
        raise ValueError(
            f"{len(folds)} folds were given, with the arguments {arguments}; give at least one fold, and the same "
            "arguments in every fold"
        )
    scores = {name: score(fmt=fmt, **fold) for name, fold in folds.items()}

    def mean(scores: list[Mapping]) -> dict[str, float]:
        return {metric: float(mean_of_defined(np.array([fold[metric] for fold in scores]))) for metric in metrics}

    def pool(argument: str):
        parts = [fold[argument] for fold in folds.values()]
        if argument == "subjects":
            return [subject for part in parts for subject in part]
        return np.concatenate([_checked(argument, part, fmt) for part in parts])

    metrics = next(iter(scores.values()))["mean"]
    return {
        "folds": scores,
        "mean_of_folds": {
            "mean": mean([fold["mean"] for fold in scores.values()]),
            "per_au": {label: mean([fold["per_au"][label] for fold in scores.values()]) for label in fmt.labels},
        },
        "pooled": score(fmt=fmt, **{argument: pool(argument) for argument in arguments[0]}),
    }


def reliability_curve(probabilities, references, bins: int = ECE_BINS) -> dict[str, np.ndarray]:
    """How often an AU is present at each predicted probability; `presence` sums this curve up as ece.

    Args:
        probabilities: (n,) probabilities of presence, 0 to 1. references: (n,) 1 or 0. NaN in either is left out.
        bins: how many bins of equal width; each includes its upper end.

    Returns:
        "probability": mean probability, "rate": share of present labels (both NaN in an empty bin), "count": images;
        each (bins,).

    Raises:
        ValueError: arrays of different lengths, or numbers out of range.
    """
    probabilities, references = _known_pair("probabilities", probabilities, "references", references)
    _require("probabilities", probabilities, "from 0 to 1", (probabilities >= 0) & (probabilities <= 1))
    of_bin = _bin(probabilities, bins)
    count, probability, present = (
        np.bincount(of_bin, weights=term, minlength=bins) for term in (np.ones(len(of_bin)), probabilities, references)
    )
    with np.errstate(invalid="ignore"):
        return {"probability": probability / count, "rate": present / count, "count": count.astype(int)}


def risk_coverage(confidence, errors) -> dict:
    """The error rate among an AU's most confident answers, for every share of answers that could be kept.

    Args:
        confidence: (n,) numbers, higher is surer. errors: (n,) 1 where the answer is wrong, 0 where it is right. NaN in
            either is left out. Answers of equal confidence are kept or withheld together.

    Returns:
        "coverage": share kept, rising to 1, and "risk": error rate among the kept, both (distinct confidences,);
        "aurc": area under the curve, the mean over answers of the risk at their confidence (Geifman, Uziel and
        El-Yaniv 2019, "Bias-reduced uncertainty estimation for deep neural classifiers"), NaN without answers.

    Raises:
        ValueError: arrays of different lengths, or errors that are not 0 or 1.
    """
    confidence, errors = _known_pair("confidence", confidence, "errors", errors)
    _, tied = np.unique(-confidence, return_inverse=True)
    kept, wrong = np.bincount(tied), np.bincount(tied, weights=errors)
    coverage = np.cumsum(kept) / max(len(errors), 1)
    risk = np.cumsum(wrong) / np.cumsum(kept)
    aurc = float(kept @ risk / len(errors)) if len(errors) else float("nan")
    return {"coverage": coverage, "risk": risk, "aurc": aurc}


def confusion(predictions, references, fmt) -> np.ndarray:
    """How often each level of intensity was read as each other level.

    Levels are the values of the scale; on the continuous scale, the fifths 0, 0.2, … 1. Numbers count as the nearest
    level (ties go up), predictions beyond the scale as its ends.

    Args:
        predictions, references, fmt: as in `score`.

    Returns:
        (AUs, levels, levels) counts, labels in rows, predictions in columns.

    Raises:
        ValueError: as `score`.
    """
    highest = 1 if fmt.scale == "occurrence" else 5
    table = np.zeros((len(fmt.labels), highest + 1, highest + 1), dtype=int)
    for counts, column in zip(table, divide_by_au(predictions, references, fmt), strict=True):
        scaled = (numbers * (highest / fmt.value_numbers[-1]) for numbers in (column.label, column.value))
        levels = tuple(np.floor(numbers + 0.5).clip(0, highest).astype(int) for numbers in scaled)
        np.add.at(counts, levels, 1)
    return table


# The arguments, checked and divided by AU.

OPTIONAL = ("probabilities", "decisions", "medians")  # what `score` takes of a system besides its predictions
_NO_METRICS = ("support", "n", "unparsed", "n_probability", "undefined")


class Column(NamedTuple):
    """The cells of one AU that can be scored: the annotated ones that are read, and those with a probability."""

    annotated: int
    read: np.ndarray  # (n,) booleans: which of all images are annotated and read
    value: np.ndarray  # (read,) numbers, as are median and label
    median: np.ndarray
    label: np.ndarray
    decision: np.ndarray  # (read,) booleans, as is present
    present: np.ndarray
    rated: np.ndarray  # (n,) booleans: which of all images are annotated and have a probability
    probability: np.ndarray | None  # (rated,), None if no probabilities were given
    truth: np.ndarray  # (rated,) booleans: whether the label says present


def decide(values: np.ndarray, fmt) -> np.ndarray:
    """Values or labels of a format as presence: 1 from `fmt.presence_threshold` on, 0 below, NaN where NaN."""
    return np.where(np.isnan(values), np.nan, values >= fmt.presence_threshold)


def divide_by_au(predictions, references, fmt, probabilities=None, decisions=None, medians=None) -> list[Column]:
    """Check the arguments of `score` and divide them by AU."""
    optional = {"probabilities": probabilities, "decisions": decisions, "medians": medians}
    given = {"predictions": predictions, "references": references}
    given |= {name: values for name, values in optional.items() if values is not None}
    given = {name: _checked(name, values, fmt) for name, values in given.items()}
    for name, values in given.items():
        _require_length(len(given["predictions"]), "predictions", len(values), name)
    predictions, references = given["predictions"], given["references"]
    decisions = given.get("decisions", decide(predictions, fmt))
    medians = given.get("medians", predictions)
    medians = np.where(np.isnan(medians), predictions, medians)

    annotated = ~np.isnan(references)
    read = annotated & ~np.isnan(predictions) & ~np.isnan(decisions)
    rated = annotated & ~np.isnan(given.get("probabilities", np.nan))
    present = decide(references, fmt) == 1
    return [
        Column(
            annotated=int(annotated[:, au].sum()),
            read=read[:, au],
            value=predictions[read[:, au], au],
            median=medians[read[:, au], au],
            label=references[read[:, au], au],
            decision=decisions[read[:, au], au] == 1,
            present=present[read[:, au], au],
            rated=rated[:, au],
            probability=given["probabilities"][rated[:, au], au] if "probabilities" in given else None,
            truth=present[rated[:, au], au],
        )
        for au in range(len(fmt.labels))
    ]


def require_arguments(whose: str, arguments: Mapping, needed: Sequence[str], optional: Sequence[str]):
    """Raise a ValueError unless `arguments` is a dict with all needed keys and otherwise only optional ones."""
    keys = list(arguments) if isinstance(arguments, Mapping) else None
    if keys is None or not set(needed) <= set(keys) <= {*needed, *optional}:
        raise ValueError(
            f"{whose} must be a dict with {' and '.join(needed)} and optionally {', '.join(optional)}; it is "
            + (f"one with {keys}" if keys is not None else f"of type {type(arguments).__name__}")
        )


def _checked(name: str, values, fmt) -> np.ndarray:
    """The values as an (n, AUs) array of float64. Raises ValueError with what is wrong."""
    values = _numbers(name, values)
    if not values.size:
        values = values.reshape(0, len(fmt.labels))
    if values.ndim != 2 or values.shape[1] != len(fmt.labels):
        raise ValueError(
            f"{name} have shape {values.shape}, but format {fmt.name!r} needs (images, {len(fmt.labels)}), one column "
            "per AU"
        )
    source, highest = f"{name} of format {fmt.name!r}", fmt.value_numbers[-1]
    if name == "probabilities":
        _require(source, values, "from 0 to 1", (values >= 0) & (values <= 1))
    elif name == "decisions" or fmt.scale == "occurrence":
        _require(source, values, "0 or 1 (threshold probabilities first)", (values == 0) | (values == 1))
    elif name == "references":
        _require(source, values, f"from 0 to {highest:g}", (values >= 0) & (values <= highest))
    else:
        _require(source, values, "finite", np.isfinite(values))
    return values


def _known_pair(name: str, numbers, mark_name: str, marks) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n,) and marks of 0 or 1 (n,), without the positions where either is NaN."""
    numbers, marks = _numbers(name, numbers), _numbers(mark_name, marks)
    for what, array in ((name, numbers), (mark_name, marks)):
        if array.ndim != 1:
            raise ValueError(f"{what} have shape {array.shape}; give one number per image, of one AU")
    _require_length(len(numbers), name, len(marks), mark_name)
    _require(mark_name, marks, "0 or 1", (marks == 0) | (marks == 1))
    known = ~np.isnan(numbers) & ~np.isnan(marks)
    return numbers[known], marks[known]


def _numbers(name: str, values) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except ValueError:
        raise ValueError(f"{name} must be numbers in rows of equal length, one row per image") from None


def _require(name: str, values: np.ndarray, expected: str, right: np.ndarray):
    wrong = values[~right & ~np.isnan(values)]
    if wrong.size:
        raise ValueError(
            f"{wrong.size} {name} are not {expected}, such as {wrong[0]:g}; write NaN where a cell is not annotated or "
            "not read"
        )


def _require_length(expected: int, of: str, length: int, name: str):
    if length != expected:
        raise ValueError(f"there are {expected} {of} but {length} {name}; give one of each per image")


def name_subjects(subjects: Sequence, columns: list[Column]) -> tuple[list, np.ndarray]:
    """The distinct subjects, and for every image (n,) the index of the one it shows."""
    subjects = np.asarray(subjects)
    if subjects.ndim != 1:
        raise ValueError(f"subjects have shape {subjects.shape}; give one name or number per image")
    _require_length(len(columns[0].read), "predictions", len(subjects), "subjects")
    unknown = sum(subject is None or subject != subject for subject in subjects.tolist())
    if unknown:
        raise ValueError(f"{unknown} images have no subject (None or NaN); leave them out or name the person shown")
    people, who = np.unique(subjects, return_inverse=True)
    return people.tolist(), who


def _metrics_by_subject(column: Column, who: np.ndarray, people: int, fmt) -> dict[str, np.ndarray]:
    """The metrics of each subject's images of one AU: metric -> (people,)."""
    whose = who[column.read]
    metrics = metrics_of_counts(*sum_by_subject(count_terms(column.decision, column.present), whose, people))
    if fmt.scale != "occurrence":
        terms = moment_terms(column.value, column.label, column.median)
        metrics |= metrics_of_moments(*sum_by_subject(terms, whose, people))
    return metrics


def sum_by_subject(terms, who: np.ndarray, people: int) -> np.ndarray:
    """Terms, each (n,) images, summed over the images of each subject: (terms, people)."""
    return np.stack([np.bincount(who, weights=term, minlength=people) for term in terms])


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where all are."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=0)
    total = np.where(defined, values, 0).sum(axis=0)
    return np.divide(total, counts, out=np.full(np.shape(total), np.nan), where=counts > 0)


# The metrics. `…_terms` gives what each image of an AU adds, `metrics_of_…` turns the sums, of any shape, into scores.


def count_terms(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, ...]:
    """tp, fp, fn, tn of booleans (n,)."""
    return predictions & references, predictions & ~references, ~predictions & references, ~predictions & ~references


def metrics_of_counts(tp, fp, fn, tn) -> dict[str, np.ndarray]:
    """The metrics of `detection`, from the sums of `count_terms`."""
    with np.errstate(divide="ignore", invalid="ignore"):  # an undefined score is 0 / 0, hence NaN
        recall, specificity = tp / (tp + fn), tn / (fp + tn)
        return {
            "f1": 2 * tp / (2 * tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": recall,
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "balanced_accuracy": (recall + specificity) / 2,
            "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
            "f1_skew_normalised": 2 * recall / (1 + recall + 1 - specificity),
        }


def moment_terms(predictions: np.ndarray, references: np.ndarray, medians: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Moments of numbers (n,), and errors: absolute ones of `medians` if there are any.

    The moments are taken about the numbers' median, which is within a standard deviation of the mean. So the sums of
    squares hardly cancel, and those of a constant are exactly 0.
    """
    p, t = (values - np.median(values) if len(values) else values for values in (predictions, references))
    absolute = np.abs((predictions if medians is None else medians) - references)
    squared, positive = (predictions - references) ** 2, references > 0
    return np.ones(len(p)), p, t, p * p, t * t, p * t, absolute, squared, positive, positive * absolute


def metrics_of_moments(n, p, t, pp, tt, pt, absolute, squared, positive, absolute_positive) -> dict[str, np.ndarray]:
    """The metrics of `agreement`, from the sums of `moment_terms`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # Sums of squares about the mean. In a resample, rounding can leave that of a constant a hair off 0.
        spp, stt, spt = pp - p * p / n, tt - t * t / n, pt - p * t / n
        spp, stt = (np.where(square > 1e-10 * total, square, 0.0) for square, total in ((spp, pp), (stt, tt)))
        spt = np.where((spp > 0) & (stt > 0), spt, 0.0)
        between, within = (spp + stt + 2 * spt) / 2 / (n - 1), squared / 2 / n  # mean squares of two raters
        return {
            "icc": 2 * spt / (spp + stt),  # as in `icc`, with the mean squares of two raters
            "icc_1_1": (between - within) / (between + within),
            "pcc": spt / np.sqrt(spp * stt),
            "mae": absolute / n,
            "mse": squared / n,
            "mae_nonzero": absolute_positive / positive,
        }


def _bin(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """The index of the bin of each probability; a bin includes its upper end."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)


def gap_terms(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, ...]:
    """1, squared error, and per bin probability - label if the probability is in it: 2 + ECE_BINS terms (n,)."""
    gap = probabilities - references
    of_bin = _bin(probabilities, ECE_BINS)
    return np.ones(len(gap)), gap**2, *(gap * (of_bin == bin_) for bin_ in range(ECE_BINS))


def metrics_of_gaps(n, squared, *gaps) -> dict[str, np.ndarray]:
    """ECE and Brier score, from the sums of `gap_terms`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"ece": np.sum(np.abs(gaps), axis=0) / n, "brier": squared / n}


def metrics_of_ranks(positives, negatives) -> dict[str, np.ndarray]:
    """ROC AUC and average precision, from counts (ranks, …) of positives and negatives, highest probability first."""
    tp = np.cumsum(positives, axis=0)  # with the threshold at each rank
    every = tp + np.cumsum(negatives, axis=0)
    total, total_negative = positives.sum(axis=0), negatives.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            # A negative loses to the positives above it and to half of the ones it ties with.
            "roc_auc": np.sum(negatives * (tp - positives / 2), axis=0) / (total * total_negative),
            "average_precision": np.sum(positives * tp / np.maximum(every, 1), axis=0) / total,
        }


def _totals(terms) -> list[np.float64]:
    return [np.sum(term, dtype=np.float64) for term in terms]


def _floats(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {metric: float(value) for metric, value in scores.items()}


def _reasons(scores: Mapping[str, float], count: int, **reasons: str) -> dict[str, str]:
    """Why metrics are NaN: metric -> reason, for those that are."""
    return {
        metric: reasons[metric] if count else "no image scored" for metric, value in scores.items() if np.isnan(value)
    }
