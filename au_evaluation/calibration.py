"""Fitting on validation subjects the calibration that calibration_au_llava.py applies.

Everything is chosen per format and AU: the method by cross-validation over subjects, its parameters on all validation
subjects, then the decision threshold with the highest F1 on the calibrated probabilities. A method is used only if it
lowers the log loss of presence on held-out subjects by more than one standard error (over subjects) of the gain;
otherwise the AU is left as it is. priors.py fits the prior of photographs on unlabeled faces.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import precision_recall_curve

from au_llava.action_units import AUFormat, get_format, round_to_scale
from au_llava.au_datasets.folds import kfold, people_of, person_key
from au_llava.au_datasets.records import KEY, group_by_image, keys_of, load_records
from au_llava.au_datasets.weak_teacher import presence
from au_llava.au_evaluation.abstention import abstention_thresholds
from au_llava.au_evaluation.predictions import predict, report_unreadable
from au_llava.au_evaluation.priors import ENOUGH, FEWEST_UNLABELED, fit_photographs
from au_llava.au_evaluation.rows import by_format
from au_llava.au_runs.provenance import content_hashes
from au_llava.calibration_au_llava import (
    DEFAULT_THRESHOLD,
    METHODS,
    Calibration,
    apply_entries,
    calibrate,
    present_values,
    probability_of_presence,
)

FOLDS = 5
FEWEST = 10  # positives and negatives that an AU needs on validation; with fewer, it is left as it is
UNLABELED_PART = "train"  # estimating a prior is fitting: not on faces that anything is tested on
KNOTS = 15  # of an isotonic curve: bins of equal counts, so that it stays small and does not follow single images


class Fitted(NamedTuple):
    """What `calibrate_checkpoint` returns.

    Attributes:
        calibration: the value for `AuLlavaConfig.calibration`.
        fits, references: format name -> what `fit_format` returned; its labels (images, AUs).
        priors: format name -> what `fit_photographs` returned; {} without unlabeled faces.
    """

    calibration: dict
    fits: dict[str, dict]
    references: dict[str, np.ndarray]
    priors: dict[str, dict]


def calibrate_checkpoint(
    engine,
    records: datasets.Dataset,
    folders: Sequence[str],
    part: str,
    batch_size: int,
    unlabeled: Sequence[str] = (),
    coded: Sequence[str] = (),
) -> Fitted:
    """Fit the calibration of a checkpoint on the validation subjects.

    Args:
        engine: which reads with the checkpoint, see au_runs/engines.py.
        records: of the validation subjects. folders: which hold them. part: what they are called there.
        unlabeled: folders of records, whose labels are not looked at: the prior of photographs is estimated on their
            `unlabeled_records`. Without them there is no such prior.
        coded: folders of faces with codes by eye, whose part `part` gives the prior of the AUs that are coded.

    Raises:
        ValueError: too few subjects or unlabeled faces, or unlabeled faces that all read alike.
    """
    of_format = np.array(records["format"][:])
    for name in np.unique(of_format):  # before anything is read, which takes long
        _require_people(people_of(records.select(np.flatnonzero(of_format == name))))
    more = unlabeled_records(unlabeled) if unlabeled else None
    seen = coded_records(coded, part) if coded else None
    before, engine.calibration = engine.calibration, None
    try:
        predictions = by_format(_read(engine, records, batch_size))
        names = tuple(predictions)
        unlabeled_rows = _read(engine, more, batch_size, names) if unlabeled else []
        coded_rows = _read(engine, one_record_each(seen), batch_size, names) if coded else []
    finally:
        engine.calibration = before
    fits, references, priors = {}, {}, {}
    for name, rows in predictions.items():
        fmt, distributions = get_format(name), _distributions(rows)
        references[name] = np.array([row["references"] for row in rows], float)
        people = [person_key(row["dataset"], row["subject"]) for row in rows]
        fits[name] = fit_format(distributions, references[name], people, fmt)
        _add_rejection(fits[name]["entry"], distributions, rows, fmt)
        if unlabeled:
            of_unlabeled, of_coded = (
                [row for row in rows if row["asked"] == name] for rows in (unlabeled_rows, coded_rows)
            )
            codes = (_distributions(of_coded), coded_presence(seen, of_coded, fmt)) if coded else None
            faces = _distributions(of_unlabeled)
            priors[name] = fit_photographs(fits[name]["entry"], distributions, faces, fmt, codes)
    fitted_on = {
        "data": content_hashes(folders),
        "part": part,
        "images": len(group_by_image(records)),
        "subjects": len(people_of(records)),
    }
    calibration = {"formats": {name: fit["entry"] for name, fit in fits.items()}, "fitted_on": fitted_on}
    if unlabeled:
        calibration["prior"] = "photographs"
        fitted_on["unlabelled"] = {"data": content_hashes(unlabeled), "part": UNLABELED_PART, "images": len(more)}
    if coded:
        fitted_on["coded"] = {"data": content_hashes(coded), "part": part, "images": len(group_by_image(seen))}
    return Fitted(calibration, fits, references, priors)


def _require_people(people: Collection[str]) -> None:
    """Raise ValueError if there are fewer people than folds."""
    if len(people) < FOLDS:
        raise ValueError(
            f"The validation part has {len(people)} of the {FOLDS} subjects that are needed, too few to calibrate on: "
            "let a larger share of the people validate (--validation of prepare_data.py)."
        )


def fit_format(distributions: np.ndarray, references: np.ndarray, subjects: Sequence[str], fmt: AUFormat) -> dict:
    """Calibrate one format.

    Args:
        distributions: (images, AUs, values) as the slots decoder reads them, uncalibrated.
        references: (images, AUs) labels, NaN where not annotated.
        subjects: (images,) who is shown.

    Returns:
        "entry": the format's entry of `AuLlavaConfig.calibration`;
        "before", "after": (images, AUs) probabilities of presence, NaN where not annotated; "after" is computed for
            each subject by a calibration fitted without that subject's fold.

    Raises:
        ValueError: fewer subjects than folds.
    """
    subjects = np.asarray(subjects)
    _require_people(set(subjects))
    before = np.where(np.isnan(references), np.nan, probability_of_presence(distributions, fmt))
    after = before.copy()
    entries = {}
    for column, label in enumerate(fmt.labels):
        known = ~np.isnan(references[:, column])
        au = _AU(distributions[known, column], references[known, column], fmt)
        who = subjects[known]  # in a union of data sets perhaps few of all
        if len(set(who)) < FOLDS or min(au.truth.sum(), (~au.truth).sum()) < FEWEST:
            entries[label] = {"method": "none", "threshold": DEFAULT_THRESHOLD}
            continue
        held_out = {method: np.empty(len(au.truth)) for method in METHODS}
        for part in kfold(set(who), FOLDS, seed=0).values():
            fold = np.isin(who, part)
            for method, probabilities in held_out.items():
                probabilities[fold] = au.presence(au.fit(method, ~fold), fold)
        method = _best_method(held_out, au.truth, who)
        entry = au.fit(method)
        after[known, column] = held_out[method]
        entries[label] = {
            "method": method,
            **entry,
            "threshold": round(best_threshold(au.presence(entry), au.truth), 4),
        }
    entry = {"scale": fmt.scale, "presence_threshold": fmt.presence_threshold, "aus": entries}
    return {"entry": entry, "before": before, "after": after}


class _AU:
    """One AU in the images where it is annotated: distributions (n, values) and whether it is present (n,)."""

    def __init__(self, distributions: np.ndarray, labels: np.ndarray, fmt: AUFormat):
        self.distributions = distributions
        self.truth = labels >= fmt.presence_threshold
        self.present = present_values(fmt)
        self.indices = np.array([fmt.value_numbers.index(round_to_scale(label, fmt)) for label in labels], dtype=int)

    def presence(self, entry: Mapping, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Calibrated probabilities of presence."""
        calibrated = apply_entries(self.distributions[rows, None], [entry], self.present)
        return calibrated[:, 0, self.present].sum(axis=1).clip(0, 1)

    def fit(self, method: str, rows: np.ndarray | slice = slice(None)) -> dict:
        """The parameters of `method`."""
        if method == "temperature":
            return self._fit_temperature(rows)
        if method == "isotonic":
            return self._fit_isotonic(rows)
        return {}

    def _fit_temperature(self, rows: np.ndarray | slice) -> dict:
        """The temperature with the smallest negative log-likelihood of the labels."""
        logs = np.log(self.distributions[rows, None].clip(1e-12))
        indices = self.indices[rows]
        places = np.arange(len(indices))

        def negative_log_likelihood(log_temperature: float) -> float:
            calibration = Calibration([{"temperature": math.exp(log_temperature)}], self.present)
            return float(-np.log(calibration(logs)[places, 0, indices]).mean())

        best = minimize_scalar(negative_log_likelihood, bounds=(-2, 2), method="bounded")
        return {"temperature": round(math.exp(best.x), 4)}

    def _fit_isotonic(self, rows: np.ndarray | slice) -> dict:
        """A rising curve through the rates of presence in bins of probability."""
        truth = self.truth[rows]
        probabilities = self.distributions[rows][:, self.present].sum(axis=1).clip(0, 1)
        bins = [part for part in np.array_split(np.argsort(probabilities, kind="stable"), KNOTS) if len(part)]
        middles = np.array([probabilities[part].mean() for part in bins])
        rates = np.array([(truth[part].sum() + 0.5) / (len(part) + 1) for part in bins])  # never quite 0 or 1
        weights = [len(part) for part in bins]
        rising = IsotonicRegression(increasing=True).fit(middles, rates, sample_weight=weights).predict(middles)
        middles, first = np.unique(middles.round(4), return_index=True)
        return {"probability": middles.tolist(), "calibrated": rising[first].round(4).tolist()}


def _best_method(probabilities: Mapping[str, np.ndarray], truth: np.ndarray, subjects: np.ndarray) -> str:
    """The method with the largest gain in log loss among those that gain more than its standard error, or "none"."""
    losses = {
        method: -np.log(np.where(truth, presence, 1 - presence).clip(1e-12))
        for method, presence in probabilities.items()
    }
    _, who = np.unique(subjects, return_inverse=True)
    best, largest = "none", 0.0
    for method, loss in losses.items():
        gains = np.bincount(who, weights=losses["none"] - loss)  # per subject
        error = gains.std(ddof=1) * math.sqrt(len(gains))
        if gains.sum() > max(error, largest):
            best, largest = method, gains.sum()
    return best


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The threshold on (n,) probabilities with the highest F1, halfway between two observed probabilities."""
    precision, recall, candidates = precision_recall_curve(truth, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))
    below = candidates[best - 1] if best else 0.0
    return float(below + candidates[best]) / 2


def unlabeled_records(tables: Sequence[str]) -> datasets.Dataset:
    """One record of each training image, to estimate priors on; if there are more than `ENOUGH`, an even selection.

    Raises:
        ValueError: fewer than `FEWEST_UNLABELED` images; and as `load_records`.
    """
    records = one_record_each(load_records(tables, part=UNLABELED_PART, labelled=False))
    if len(records) < FEWEST_UNLABELED:
        where = ", ".join(map(str, tables))
        raise ValueError(
            f"the {UNLABELED_PART} part of {where} has {len(records)} images, too few to estimate priors on: "
            f"{FEWEST_UNLABELED} are needed."
        )
    if len(records) > ENOUGH:
        records = records.select(np.linspace(0, len(records) - 1, ENOUGH).astype(int))
    return records


def coded_records(tables: Sequence[str], part: str) -> datasets.Dataset:
    """All records of a part of faces with codes by eye.

    Raises:
        ValueError: fewer than `FEWEST_UNLABELED` images, or records without weak values; and as `load_records`.
    """
    records = load_records(tables, part=part, labelled=False)
    where, images = ", ".join(map(str, tables)), len(group_by_image(records))
    if "weak" not in records.column_names:
        raise ValueError(f"{where} holds no codes: make it with prepare_data.py fairface --codes CSV.")
    if images < FEWEST_UNLABELED:
        raise ValueError(f"the {part} part of {where} has {images} images, too few: {FEWEST_UNLABELED} are needed.")
    return records


def one_record_each(records: datasets.Dataset) -> datasets.Dataset:
    """The first record of each image."""
    return records.select([next(iter(image.values())) for image in group_by_image(records)])


def coded_presence(records: datasets.Dataset, rows: Sequence[Mapping], fmt: AUFormat) -> np.ndarray:
    """How surely each AU of a format was seen in the images of `rows`, (images, AUs), 0 to 1, NaN where unknown."""
    columns = zip(keys_of(records), records["format"][:], records["weak"][:], strict=True)
    weak = {key: seen for key, name, seen in columns if name == fmt.name}
    unknown = [math.nan] * len(fmt.labels)
    shares = np.array([weak.get(tuple(row[name] for name in KEY), unknown) for row in rows], float)
    return shares if fmt.scale == "occurrence" else presence(shares)


def _read(engine, records: datasets.Dataset, batch_size: int, formats: tuple[str, ...] | None = None) -> list[dict]:
    """What `predict` reads by slots, with distributions; images that cannot be read are left out and reported."""
    rows = predict(engine, records, "slots", batch_size, progress=True, distributions=True, formats=formats)
    report_unreadable(rows)
    return [row for row in rows if "distribution" in row]


def _distributions(rows: Sequence[Mapping]) -> np.ndarray:
    """(images, AUs, values)."""
    return np.array([row["distribution"] for row in rows], float)


def _add_rejection(entry: dict, distributions: np.ndarray, rows: Sequence[Mapping], fmt: AUFormat) -> None:
    """Add "reject_below" to each AU's entry: the confidence below which an answer is better withheld."""
    calibrated, thresholds = calibrate(distributions, fmt, {"formats": {fmt.name: entry}})
    decided = [
        {**row, "probability": probability.tolist(), "present": (probability >= thresholds).astype(float).tolist()}
        for row, probability in zip(rows, probability_of_presence(calibrated, fmt), strict=True)
    ]
    for label, threshold in abstention_thresholds(decided, fmt).items():
        entry["aus"][label]["reject_below"] = None if threshold is None else math.floor(1e4 * threshold) / 1e4
