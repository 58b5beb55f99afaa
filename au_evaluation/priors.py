"""How frequent AUs are among unlabeled faces, and the shift of log-odds that follows from it.

The method is that of Saerens, Latinne and Decaestecker (Adjusting the outputs of a classifier to new a priori
probabilities, 2002): the new prior is the one under which the classifier's probabilities on the unlabeled faces are
most likely. It assumes label shift: a present AU looks the same on both kinds of faces, and so does an absent one.

Between rendered people and photographs that holds only roughly, so the shift is bounded. Where neutral photographs
read a little higher than neutral rendered faces, likelihood can only explain it by more AUs; where present AUs read
less surely, only by nobody showing them. The prior would rise, or fall to 0. So

- it never rises: the shift corrects for rendered people showing more than people do, not for errors of the readings;
- the odds fall threefold at most (`LEAST_ODDS`, a judgment): what reads 0.75 among rendered people is still found.

Where photographs were coded by eye, nothing has to be estimated: the shift is the one under which as many of them are
read to show the AU as were coded with it, threefold odds more or less at most, since codes are few.

An AU counts as present in a photograph from one half on ("more likely than not"), or from the threshold of rendered
people if that is higher. Thresholds with the highest F1 lie below one half where AUs are rare (Lipton, Elkan and
Naryanaswamy, 2014) and find more AUs at the price of finding some in neutral faces. So, unless codes raise an AU,
whatever is found in a photograph would also be found in a rendered face with the same reading.
"""

import math
from collections.abc import Mapping

import numpy as np
from rich.table import Table
from scipy.optimize import brentq
from scipy.special import expit, logit

from au_llava.action_units import AUFormat, get_format
from au_llava.au_evaluation.tables import console_table
from au_llava.calibration_au_llava import DEFAULT_THRESHOLD, calibrate, probability_of_presence

LEAST_ODDS = 1 / 3  # of the unlabeled faces, as a share of the labeled ones'
FEWEST_UNLABELED = 100  # unlabeled faces; a rate of 1 in 10 is then known to 0.06 (two standard errors)
ENOUGH = 4000  # unlabeled faces: known to 0.01; more only take time
ALIKE = 1e-6  # probabilities that differ by less count as the same


def estimate_prior(probabilities: np.ndarray, prior: float) -> float:
    """The most likely prior of presence among unlabeled faces.

    The likelihood of a prior q is that of a mixture, the product over faces of q p / prior + (1 - q) (1 - p) /
    (1 - prior). Its logarithm is concave in q, so the zero of its derivative is the maximum that expectation
    maximization would converge to.

    Args:
        probabilities: (faces,) of presence, above 0 and below 1.
        prior: the share of faces with the AU that `probabilities` are calibrated for, above 0 and below 1.

    Returns:
        0 to 1; NaN if all faces read alike, since nothing then tells how many of them show the AU.
    """
    if np.ptp(probabilities) < ALIKE:
        return math.nan
    present, absent = probabilities / prior, (1 - probabilities) / (1 - prior)

    def slope(q: float) -> float:
        return float(np.mean((present - absent) / (q * present + (1 - q) * absent)))

    if slope(0.0) <= 0:
        return 0.0
    return 1.0 if slope(1.0) >= 0 else float(brentq(slope, 0.0, 1.0))


def coded_shift(probabilities: np.ndarray, share: float) -> float:
    """The shift of log-odds under which the mean of `probabilities`, (faces,), is `share`, within threefold odds."""
    odds, bound = logit(probabilities), -math.log(LEAST_ODDS)

    def excess(shift: float) -> float:
        return float(expit(odds + shift).mean()) - share

    if excess(-bound) >= 0:
        return -bound
    return bound if excess(bound) <= 0 else float(brentq(excess, -bound, bound))


def fit_photographs(
    entry: dict,
    labeled: np.ndarray,
    unlabeled: np.ndarray,
    fmt: AUFormat,
    coded: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, dict]:
    """Add to every AU of a format's entry what photographs need, see calibration_au_llava.py.

    Args:
        entry: the format's entry of `AuLlavaConfig.calibration`, as fitted to labeled people.
        labeled, unlabeled: (images, AUs, values) as the slots decoder reads them, uncalibrated. The prior of the
            labeled faces is the mean of their calibrated probabilities, so the same faces give no shift.
        coded: the same of faces with codes by eye, and (images, AUs) how surely each AU was seen in them, 0 to 1, NaN
            where unknown.

    Returns:
        label -> {"labelled": the prior of the labeled faces, "estimated": the most likely one of the unlabeled faces,
        NaN if all of them read alike, or with "coded" True the share that was coded, "used": the nearest to it within
        the bounds, for codes the prior that the shift stands for (without an estimate, that of the labeled faces),
        "shift": of log-odds, "threshold"}.

    Raises:
        ValueError: all unlabeled faces read alike in every AU.
    """

    def presence(read: np.ndarray) -> np.ndarray:
        calibrated, _ = calibrate(read, fmt, {"formats": {fmt.name: entry}})
        return probability_of_presence(calibrated, fmt).clip(1e-9, 1 - 1e-9)

    of_labeled, of_unlabeled = presence(labeled), presence(unlabeled)
    of_coded, seen = (None, None) if coded is None else (presence(coded[0]), coded[1])
    priors = {}
    for column, label in enumerate(fmt.labels):
        prior = float(of_labeled[:, column].mean())
        known = np.zeros(0, bool) if coded is None else ~np.isnan(seen[:, column])
        by_codes = bool(known.sum() >= FEWEST_UNLABELED)
        if by_codes:
            estimated = float(seen[known, column].mean())
            shift = coded_shift(of_coded[known, column], estimated)
        else:
            estimated = estimate_prior(of_unlabeled[:, column], prior)
            bounded = np.clip(logit(estimated) - logit(prior), math.log(LEAST_ODDS), 0)
            shift = 0.0 if math.isnan(estimated) else float(bounded)
        shift = round(shift, 4)
        photographs = {"shift": shift, "threshold": max(DEFAULT_THRESHOLD, entry["aus"][label]["threshold"])}
        entry["aus"][label]["photographs"] = photographs
        used = float(expit(logit(prior) + shift))
        priors[label] = {"labelled": prior, "estimated": estimated, "coded": by_codes, "used": used, **photographs}
    if all(math.isnan(of_au["estimated"]) for of_au in priors.values()):
        raise ValueError(f"all unlabeled faces read alike in {fmt.name}: are they pictures of different faces?")
    return priors


def priors_table(priors: Mapping[str, Mapping], title: str) -> Table:
    """Per format and AU what `fit_photographs` returned."""
    caption = "how frequent AUs are; estimated: most likely among the unlabeled faces, * coded; used: within bounds"
    table = console_table(title, ("format", "AU", "labeled", "estimated", "used", "shift"), "llrrrr", caption)
    for name, of_format in priors.items():
        for label in get_format(name).labels:
            of_au = of_format[label]
            rates = [f"{100 * of_au[key]:.1f} %" for key in ("labelled", "estimated", "used")]  # nan % where unknown
            rates[1] += "*" * of_au["coded"]
            table.add_row(name, label, *rates, f"{of_au['shift']:+.2f}")
        table.add_section()
    return table
