"""How frequent AUs are among unlabelled faces, and the shift of log-odds that follows from it.

The method is that of Saerens, Latinne and Decaestecker (Adjusting the outputs of a classifier to new a priori
probabilities, 2002): the new prior is the one under which the classifier's probabilities on the unlabelled faces are
most likely. It rests on label shift: that a present AU, and an absent one, look the same on both kinds of faces.

Between rendered people and photographs that holds only roughly, so the shift is kept within bounds. Where neutral
photographs read a little higher than neutral rendered faces, likelihood knows no explanation but more AUs, and where
present AUs read less surely, none but that nobody shows them: the prior would rise, or fall to 0. So

- it never rises: correction is for rendered people showing more than people do, not for what readings are off by;
- the odds fall threefold at most (`LEAST_ODDS`, a judgement): what reads 0.75 among rendered people is still found.

An AU is present on a photograph from one half on ("more likely than not"), or from the threshold of rendered people
if that is higher. Thresholds with the highest F1 lie below one half where AUs are rare (Lipton, Elkan and Naryanaswamy,
2014) and buy present AUs with AUs that are read into neutral faces. It follows that nothing is found on a photograph
that would not be found on a rendered face that reads the same.
"""

import math

import numpy as np
from rich.table import Table
from scipy.optimize import brentq
from scipy.special import expit, logit

from au_llava.action_units import AUFormat, get_format
from au_llava.calibration_au_llava import DEFAULT_THRESHOLD, calibrate, probability_of_presence

LEAST_ODDS = 1 / 3  # of the unlabelled faces, as a share of the labelled ones'
FEWEST_UNLABELLED = 100  # unlabelled faces; a rate of 1 in 10 is then known to 0.06 (two standard errors)
ENOUGH = 4000  # unlabelled faces: known to 0.01; more only take time
ALIKE = 1e-6  # probabilities that differ by less say nothing


def estimate_prior(probabilities: np.ndarray, prior: float) -> float:
    """The most likely prior of presence among unlabelled faces.

    The likelihood of a prior q is that of a mixture, the product over faces of q p / prior + (1 - q) (1 - p) /
    (1 - prior). Its logarithm is concave in q, so that the zero of its derivative is the maximum to which expectation
    maximisation would climb, step by step.

    Args:
        probabilities: (faces,) of presence, above 0 and below 1, right among faces where the share `prior` shows
            the AU. prior: above 0 and below 1.

    Returns:
        0 to 1; NaN where all faces read alike: then nothing tells how many of them show the AU.
    """
    if np.ptp(probabilities) < ALIKE:
        return math.nan
    present, absent = probabilities / prior, (1 - probabilities) / (1 - prior)

    def slope(q: float) -> float:
        return float(np.mean((present - absent) / (q * present + (1 - q) * absent)))

    if slope(0.0) <= 0:
        return 0.0
    return 1.0 if slope(1.0) >= 0 else float(brentq(slope, 0.0, 1.0))


def fit_photographs(entry: dict, labelled: np.ndarray, unlabelled: np.ndarray, fmt: AUFormat) -> dict[str, dict]:
    """Add to every AU of a format's entry what photographs need, see calibration_au_llava.py.

    Args:
        entry: the format's entry of `AuLlavaConfig.calibration`, as fitted to labelled people.
        labelled, unlabelled: (images, AUs, values) as the slots decoder reads them, uncalibrated. The prior of the
            labelled faces is the mean of their calibrated probabilities, so that the same faces give no shift.

    Returns:
        label -> {"labelled": the prior of the labelled faces, "estimated": the most likely one of the unlabelled
        faces, NaN where all of them read alike, "used": the nearest to it that the bounds allow (without an estimate,
        that of the labelled faces), "shift": of log-odds, "threshold"}.

    Raises:
        ValueError: all unlabelled faces read alike in every AU.
    """
    calibrated = (calibrate(read, fmt, {"formats": {fmt.name: entry}})[0] for read in (labelled, unlabelled))
    probabilities = [probability_of_presence(read, fmt).clip(1e-9, 1 - 1e-9) for read in calibrated]
    found = {}
    for label, of_labelled, of_unlabelled in zip(fmt.labels, *(each.T for each in probabilities), strict=True):
        prior = float(of_labelled.mean())
        estimated = estimate_prior(of_unlabelled, prior)
        bounded = np.clip(logit(estimated) - logit(prior), math.log(LEAST_ODDS), 0)
        shift = 0.0 if math.isnan(estimated) else round(float(bounded), 4)
        threshold = max(DEFAULT_THRESHOLD, entry["aus"][label]["threshold"])
        entry["aus"][label]["photographs"] = {"shift": shift, "threshold": threshold}
        used = float(expit(logit(prior) + shift))
        found[label] = {"labelled": prior, "estimated": estimated, "used": used, "shift": shift, "threshold": threshold}
    if all(math.isnan(each["estimated"]) for each in found.values()):
        raise ValueError(f"all unlabelled faces read alike in {fmt.name}: are they pictures of different faces?")
    return found


def priors_table(found: dict[str, dict], title: str) -> Table:
    """Per format and AU what `fit_photographs` returned."""
    caption = "how frequent AUs are; estimated: most likely among the unlabelled faces; used: nearest within bounds"
    table = Table(title=title, title_justify="left", caption=caption)
    for column in ("format", "AU", "labelled", "estimated", "used", "shift"):
        table.add_column(column, justify="left" if column in ("format", "AU") else "right")
    for name, of_format in found.items():
        for label in get_format(name).labels:
            each = of_format[label]
            rates = (f"{100 * each[key]:.1f} %" for key in ("labelled", "estimated", "used"))  # nan % where unknown
            table.add_row(name, label, *rates, f"{each['shift']:+.2f}")
        table.add_section()
    return table
