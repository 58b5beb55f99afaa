"""Calibration: what makes the probabilities of the slots decoder mean what they say, and where "present" begins.

Owns the entries of `AuLlavaConfig.calibration` and how they are applied. `eval_au.py --calibrate` fits them on
validation subjects (au_evaluation/calibration.py). They travel in config.json, so that every way to load a checkpoint
applies them. Shape of the entry:

    {"formats": {"disfa": {"scale": "intensity", "presence_threshold": 2.0, "aus": {
         "AU12": {"method": "temperature", "temperature": 1.3, "threshold": 0.41},
         "AU15": {"method": "isotonic", "probability": [0.0, 0.2, 1], "calibrated": [0.0, 0.1, 0.9], "threshold": 0.3},
         "AU26": {"method": "none", "threshold": 0.5, "reject_below": 0.8}}}},
     "fitted_on": {...}}

- temperature: the distribution p becomes p^(1/T), normalised (Guo et al., On Calibration of Modern Neural Networks,
  2017): above 1 less certain, below 1 more.
- isotonic: the probability of presence is mapped by a rising piecewise linear function (Zadrozny and Elkan, 2002), and
  the values above and below the presence threshold are scaled to match, so that the distribution still sums to 1.
- threshold: an AU is read as present from this calibrated probability on.
- reject_below: advice, not applied: answers of less confidence (the probability that the decision is right) are wrong
  too often to be given; see au_evaluation/audits.py.
"""

from collections.abc import Mapping

import numpy as np

METHODS = ("none", "temperature", "isotonic")
DEFAULT_THRESHOLD = 0.5


def check_calibration(calibration: Mapping | None) -> None:
    """Raise ValueError, in one sentence, where `calibration` is not what the head of this file describes."""
    if calibration is None:
        return
    if not isinstance(calibration, Mapping) or "formats" not in calibration:
        raise ValueError('calibration must be None or {"formats": {...}}: fit it with eval_au.py --calibrate.')
    for name, of_format in calibration["formats"].items():
        for label, entry in of_format["aus"].items():
            where = f"calibration of {name} {label}"
            if entry.get("method") not in METHODS:
                raise ValueError(f"{where}: method is {entry.get('method')!r}; it must be one of {', '.join(METHODS)}.")
            if not 0 <= entry["threshold"] <= 1:
                raise ValueError(f"{where}: threshold is {entry['threshold']}; it is a probability, 0 to 1.")
            if entry["method"] == "temperature" and not entry["temperature"] > 0:
                raise ValueError(f"{where}: temperature is {entry['temperature']}; it must be above 0.")
            if entry["method"] == "isotonic":
                curve = np.array([entry["probability"], entry["calibrated"]])
                if (np.diff(curve) < 0).any() or curve.min() < 0 or curve.max() > 1:
                    raise ValueError(f"{where}: an isotonic curve must rise within 0 to 1.")


def entries_for(calibration: Mapping | None, fmt) -> dict[str, Mapping]:
    """The entries that apply to `fmt`: label -> entry. None for a format of the same name that means something else."""
    of_format = (calibration or {}).get("formats", {}).get(fmt.name)
    if of_format is None or (of_format["scale"], of_format["presence_threshold"]) != (
        fmt.scale,
        fmt.presence_threshold,
    ):
        return {}
    return {label: of_format["aus"][label] for label in fmt.labels if label in of_format["aus"]}


def apply_temperature(distributions: np.ndarray, temperature: float) -> np.ndarray:
    """(…, values) distributions with the exponent 1 / temperature."""
    with np.errstate(divide="ignore"):
        powers = np.log(distributions) / temperature
    powers = np.exp(powers - powers.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def apply_isotonic(distributions: np.ndarray, present: np.ndarray, entry: Mapping) -> np.ndarray:
    """(…, values) distributions whose mass on the `present` values (boolean, (values,)) follows the entry's curve."""
    mass = distributions[..., present].sum(axis=-1, keepdims=True).clip(1e-9, 1 - 1e-9)
    target = np.interp(mass, entry["probability"], entry["calibrated"])
    return distributions * np.where(present, target / mass, (1 - target) / (1 - mass))


def calibrate(distributions: np.ndarray, fmt, calibration: Mapping | None) -> tuple[np.ndarray, np.ndarray]:
    """Apply a checkpoint's calibration to what the slots decoder read in one format.

    Args:
        distributions: (images, AUs, values), over the scale of `fmt`, summing to 1.
        calibration: `AuLlavaConfig.calibration`.

    Returns:
        the calibrated distributions, and (AUs,) the probability from which on each AU counts as present.
    """
    thresholds = np.full(len(fmt.labels), DEFAULT_THRESHOLD)
    entries = entries_for(calibration, fmt)
    if not entries:
        return distributions, thresholds
    distributions = distributions.copy()
    present = np.array(fmt.value_numbers) >= fmt.presence_threshold
    for column, label in enumerate(fmt.labels):
        entry = entries.get(label, {"method": "none", "threshold": DEFAULT_THRESHOLD})
        thresholds[column] = entry["threshold"]
        if entry["method"] == "temperature":
            distributions[:, column] = apply_temperature(distributions[:, column], entry["temperature"])
        elif entry["method"] == "isotonic":
            distributions[:, column] = apply_isotonic(distributions[:, column], present, entry)
    return distributions, thresholds


__all__ = ["DEFAULT_THRESHOLD", "METHODS", "apply_isotonic", "apply_temperature", "calibrate", "check_calibration"]
