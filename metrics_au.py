"""Scores of AU values, as pure functions of arrays.

The rules, which differ between published evaluations and so are stated here:

- A NaN label means "not annotated": that (image, AU) cell is left out, and only that cell.
- A NaN prediction means "the answer could not be read": its cell is left out of the scores and counted as
  `unparsed`. Quote that count beside the scores, since leaving cells out flatters a model that fails on hard images.
- What is undefined is NaN, never 0: F1 without a positive in labels and predictions, a correlation with a constant,
  anything of no cells. A mean over AUs leaves these out, and `averaged` says how many AUs it covers.
- A format's F1 pools all images of an AU and takes values from `presence_threshold` on as present.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr
from sklearn.metrics import accuracy_score, mean_absolute_error, mean_squared_error, precision_recall_fscore_support


def detection(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """F1, precision, recall and accuracy of one AU, and its positives.

    Args:
        predictions, references: (n,) booleans, True for present.
    """
    if not len(references):
        return {**dict.fromkeys(("f1", "precision", "recall", "accuracy"), np.nan), "support": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(
        references, predictions, average="binary", zero_division=np.nan
    )
    return {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "accuracy": float(accuracy_score(references, predictions)),
        "support": int(np.sum(references)),
    }


def icc(ratings: np.ndarray) -> float:
    """ICC(3,1) of Shrout and Fleiss (1979): consistency of single ratings by fixed raters, at most 1.

    (BMS - EMS) / (BMS + (k - 1) EMS), with BMS the mean square between targets and EMS the residual mean square. NaN
    for fewer than two targets and where no rater tells the targets apart.

    Args:
        ratings: (targets, k raters), complete, k at least 2; here the columns are prediction and label.
    """
    targets, raters = ratings.shape
    if targets < 2 or not np.ptp(ratings, axis=0).any():
        return float("nan")
    centred = ratings - ratings.mean(axis=0)  # removes the raters' effect and the grand mean
    target_means = centred.mean(axis=1, keepdims=True)
    between = raters * np.sum(target_means**2) / (targets - 1)
    error = np.sum((centred - target_means) ** 2) / ((targets - 1) * (raters - 1))
    return float((between - error) / (between + (raters - 1) * error))


def agreement(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """ICC(3,1), Pearson correlation, mean absolute and mean squared error of one AU, in the units of its scale.

    Args:
        predictions, references: (n,) numbers.
    """
    scores = dict.fromkeys(("icc", "pcc", "mae", "mse"), float("nan"))
    if len(references):
        scores["mae"] = float(mean_absolute_error(references, predictions))
        scores["mse"] = float(mean_squared_error(references, predictions))
    if len(references) > 1:
        scores["icc"] = icc(np.stack([predictions, references], axis=1))
        with warnings.catch_warnings():  # a constant gives NaN, which says it
            warnings.simplefilter("ignore", ConstantInputWarning)
            warnings.simplefilter("ignore", NearConstantInputWarning)
            scores["pcc"] = float(pearsonr(predictions, references).statistic)
    return scores


def score(predictions, references, fmt) -> dict:
    """Score predictions in a format against labels.

    Args:
        predictions: (n images, AUs) values in the order of `fmt.labels`, NaN where the answer could not be read. 0 or
            1 on the occurrence scale; on the others any finite number, such as the mean of a distribution.
        references: (n images, AUs) values of the format's scale, NaN where not annotated.
        fmt: the AUFormat.

    Returns:
        "mean": metric -> mean over the AUs for which it is defined: f1, precision, recall, accuracy and, unless the
            format codes occurrence, icc, pcc, mae, mse;
        "averaged": metric -> how many AUs that mean covers;
        "per_au": label -> the same metrics, "support" (present labels), "n" (scored images) and "unparsed";
        "n": images; "annotated": annotated (image, AU) cells; "unparsed": those of them without a prediction.

    Raises:
        ValueError: shapes that do not fit, or values that are not on the scale, such as a dataset's code for missing.
    """
    predictions, references = (
        _checked(name, values, fmt) for name, values in (("predictions", predictions), ("references", references))
    )
    if len(predictions) != len(references):
        raise ValueError(f"there are {len(predictions)} predictions but {len(references)} references; pair them up")

    annotated, parsed = ~np.isnan(references), ~np.isnan(predictions)
    per_au = {}
    for column, label in enumerate(fmt.labels):
        scored = annotated[:, column] & parsed[:, column]
        guess, truth = predictions[scored, column], references[scored, column]
        scores = detection(guess >= fmt.presence_threshold, truth >= fmt.presence_threshold)
        if fmt.scale != "occurrence":
            scores |= agreement(guess, truth)
        unparsed = int(np.sum(annotated[:, column] & ~parsed[:, column]))
        per_au[label] = {**scores, "n": int(scored.sum()), "unparsed": unparsed}

    metrics = [metric for metric in per_au[fmt.labels[0]] if metric not in ("support", "n", "unparsed")]
    table = np.array([[scores[metric] for metric in metrics] for scores in per_au.values()])  # (AUs, metrics)
    defined = ~np.isnan(table)
    counts = defined.sum(axis=0)
    means = np.divide(
        np.where(defined, table, 0).sum(axis=0), counts, out=np.full(len(metrics), np.nan), where=counts > 0
    )
    return {
        "mean": dict(zip(metrics, means.tolist(), strict=True)),
        "averaged": dict(zip(metrics, counts.tolist(), strict=True)),
        "per_au": per_au,
        "n": len(references),
        "annotated": int(annotated.sum()),
        "unparsed": int(np.sum(annotated & ~parsed)),
    }


def _checked(name: str, values, fmt) -> np.ndarray:
    """The values as a (n, AUs) array of float64, or a ValueError that says what is wrong with them."""
    try:
        values = np.asarray(values, dtype=np.float64)
    except ValueError:
        raise ValueError(f"{name} must be numbers in rows of equal length, one row per image") from None
    if not values.size:
        values = values.reshape(0, len(fmt.labels))
    if values.ndim != 2 or values.shape[1] != len(fmt.labels):
        raise ValueError(
            f"{name} have shape {values.shape}, but format {fmt.name!r} needs (images, {len(fmt.labels)}), one column "
            "per AU"
        )
    known = values[~np.isnan(values)]
    highest = float(fmt.value_strings[-1])
    if fmt.scale == "occurrence":
        wrong, expected = known[(known != 0) & (known != 1)], "0 or 1 (threshold probabilities first)"
    elif name == "references":
        wrong, expected = known[(known < 0) | (known > highest)], f"from 0 to {highest:g}"
    else:
        wrong, expected = known[np.isinf(known)], "finite"
    if wrong.size:
        raise ValueError(
            f"{wrong.size} {name} of format {fmt.name!r} are not {expected}, such as {wrong[0]:g}; write NaN for what "
            "is not annotated or not read"
        )
    return values


def intervals(
    predictions, references, subjects: Sequence[str], fmt, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict:
    """Percentile bootstrap intervals of `score`, drawing subjects (images of one person are no independent samples).

    Every metric is a function of sums over images, so each subject is reduced to its sums once and a resample is a
    weighted sum of subjects. Metrics that are undefined in a resample are left out of it.

    Args:
        predictions, references, fmt: as in `score`.
        subjects: (n images) who is shown.
        resamples: bootstrap resamples. level: coverage, 0 to 1. seed: of the resampling.

    Returns:
        "mean": metric -> [low, high] of the mean over AUs; "per_au": label -> metric -> [low, high].

    Raises:
        ValueError: as `score`, or a number of subjects that is not the number of images.
    """
    predictions, references = (
        _checked(name, values, fmt) for name, values in (("predictions", predictions), ("references", references))
    )
    if not len(predictions) == len(references) == len(subjects):
        raise ValueError(
            f"there are {len(predictions)} predictions, {len(references)} references and {len(subjects)} subjects; "
            "give one of each per image"
        )
    people, who = np.unique(np.asarray(subjects), return_inverse=True)
    sums = np.zeros((len(people), *predictions.shape[1:], len(_SUMS)))  # (subjects, AUs, sums)
    np.add.at(sums, who, _image_sums(predictions, references, fmt))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=resamples)
    drawn = (counts @ sums.reshape(len(people), -1)).reshape(resamples, *sums.shape[1:])
    metrics = _metrics_of_sums(drawn, fmt)  # metric -> (resamples, AUs)
    tails = [50 * (1 - level), 50 * (1 + level)]
    with warnings.catch_warnings():  # all-NaN: the interval is NaN, which says it
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = {name: np.nanpercentile(np.nanmean(each, axis=1), tails).tolist() for name, each in metrics.items()}
        bounds = {name: np.nanpercentile(each, tails, axis=0) for name, each in metrics.items()}
    per_au = {
        label: {name: bound[:, column].tolist() for name, bound in bounds.items()}
        for column, label in enumerate(fmt.labels)
    }
    return {"mean": mean, "per_au": per_au}


_SUMS = ("n", "tp", "fp", "fn", "p", "t", "pp", "tt", "pt", "absolute")


def _image_sums(predictions: np.ndarray, references: np.ndarray, fmt) -> np.ndarray:
    """What each (image, AU) cell adds to the sums that metrics are made of: (n, AUs, sums), 0 where not scored."""
    scored = ~np.isnan(predictions) & ~np.isnan(references)
    p, t = np.where(scored, predictions, 0), np.where(scored, references, 0)
    guess = scored & (p >= fmt.presence_threshold)
    truth = scored & (t >= fmt.presence_threshold)
    terms = (scored, guess & truth, guess & ~truth, truth & ~guess, p, t, p * p, t * t, p * t, abs(p - t))
    return np.stack([term.astype(np.float64) for term in terms], axis=-1)


def _metrics_of_sums(sums: np.ndarray, fmt) -> dict[str, np.ndarray]:
    """The metrics of `score` from their sums (…, AUs, sums): metric -> (…, AUs)."""
    n, tp, fp, fn, p, t, pp, tt, pt, absolute = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # undefined is NaN
        metrics = {
            "f1": 2 * tp / (2 * tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "accuracy": 1 - (fp + fn) / n,
        }
        if fmt.scale != "occurrence":
            # Sums of squares about the mean; rounding leaves a constant column a hair off 0.
            spp, stt, spt = pp - p * p / n, tt - t * t / n, pt - p * t / n
            spp, stt = (np.where(square > 1e-9 * (1 + total), square, 0) for square, total in ((spp, pp), (stt, tt)))
            metrics["icc"] = 2 * spt / (spp + stt)  # ICC(3,1) of two raters, simplified
            metrics["pcc"] = spt / np.sqrt(spp * stt)
            metrics["mae"] = absolute / n
            metrics["mse"] = (pp + tt - 2 * pt) / n
    return {name: np.where(np.isinf(value), np.nan, value) for name, value in metrics.items()}
