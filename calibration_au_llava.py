"""Calibration: what makes the probabilities of the slots decoder mean what they say, and where "present" begins.

Owns the entries of `AuLlavaConfig.calibration` and how they are applied. `eval_au.py --calibrate` fits them on
validation subjects (au_evaluation/calibration.py). They travel in config.json, so that every way to load a checkpoint
applies them. Shape of the entry:

    {"formats": {"disfa": {"scale": "intensity", "presence_threshold": 2.0, "aus": {
         "AU12": {"method": "temperature", "temperature": 1.3, "threshold": 0.41},
         "AU15": {"method": "isotonic", "probability": [0.0, 0.2, 1], "calibrated": [0.0, 0.1, 0.9], "threshold": 0.3},
         "AU26": {"method": "none", "threshold": 0.5, "reject_below": 0.8,
                  "photographs": {"shift": -2.1, "threshold": 0.5}}}}},
     "prior": "photographs",
     "fitted_on": {...}}

- temperature: the distribution p becomes p^(1/T), normalised (Guo et al., On Calibration of Modern Neural Networks,
  2017): above 1 less certain, below 1 more.
- isotonic: the probability of presence is mapped by a rising piecewise linear function (Zadrozny and Elkan, 2002), and
  the values above and below the presence threshold are scaled to match, so that the distribution still sums to 1.
- threshold: an AU is read as present from this calibrated probability on.
- reject_below: advice, not applied: answers of less confidence (the probability that the decision is right) are wrong
  too often to be given; see au_evaluation/audits.py.
- prior: how frequent AUs are among the faces to be read. "rendered": as among the people that all of the above was
  fitted to. "photographs": as among unlabelled photographs; then every AU has an entry "photographs", whose shift is
  added to the calibrated log-odds of presence (Saerens, Latinne and Decaestecker, 2002; au_evaluation/priors.py
  estimates it) and whose threshold takes the place of the other. Without this key, as in older checkpoints, "rendered"
  is all there is.
"""

from collections.abc import Mapping

import numpy as np

METHODS = ("none", "temperature", "isotonic")
PRIORS = ("photographs", "rendered")
DEFAULT_THRESHOLD = 0.5


def check_calibration(calibration: Mapping | None) -> None:
    """Raise ValueError, in one sentence, where `calibration` is not what the head of this file describes."""
    if calibration is None:
        return
    if not isinstance(calibration, Mapping) or "formats" not in calibration:
        raise ValueError('calibration must be None or {"formats": {...}}: fit it with eval_au.py --calibrate.')
    prior = calibration.get("prior")
    if prior not in (None, *PRIORS):
        raise ValueError(f"calibration: prior is {prior!r}; it must be one of {', '.join(PRIORS)}.")
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
            if prior is not None:
                _check_photographs(entry.get("photographs"), where)


def _check_photographs(entry: Mapping | None, where: str) -> None:
    if not isinstance(entry, Mapping) or set(entry) != {"shift", "threshold"}:
        raise ValueError(f'{where}: photographs is {entry!r}; with a prior it must be {{"shift": …, "threshold": …}}.')
    if not -10 <= entry["shift"] <= 10:
        raise ValueError(f"{where}: shift is {entry['shift']}; it is a difference of log-odds, -10 to 10.")
    if not 0 <= entry["threshold"] <= 1:
        raise ValueError(f"{where}: threshold on photographs is {entry['threshold']}; it is a probability, 0 to 1.")


def with_prior(calibration: Mapping | None, prior: str) -> Mapping | None:
    """The calibration for faces among which AUs are as frequent as `prior`, one of `PRIORS`, says.

    Raises:
        ValueError: another prior, or photographs where the calibration knows nothing of them.
    """
    if prior not in PRIORS:
        raise ValueError(f"prior is {prior!r}; it must be one of {', '.join(PRIORS)}.")
    if (calibration or {}).get("prior") is None:
        if prior == "photographs":
            raise ValueError("this checkpoint has no prior of photographs: fit it with --calibrate and --unlabelled.")
        return calibration
    return {**calibration, "prior": prior}


def entries_for(calibration: Mapping | None, fmt) -> dict[str, Mapping]:
    """The entries that apply to `fmt`, by the calibration's prior: label -> entry, where "shift" and "threshold" are
    those of photographs if it says so. None for a format of the same name that means something else."""
    of_format = (calibration or {}).get("formats", {}).get(fmt.name)
    if of_format is None or (of_format["scale"], of_format["presence_threshold"]) != (
        fmt.scale,
        fmt.presence_threshold,
    ):
        return {}
    entries = {label: of_format["aus"][label] for label in fmt.labels if label in of_format["aus"]}
    if calibration.get("prior") == "photographs":
        return {label: {**entry, **entry["photographs"]} for label, entry in entries.items()}
    return entries


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


def apply_shift(distributions: np.ndarray, present: np.ndarray, shift: float) -> np.ndarray:
    """(…, values) distributions whose log-odds of the `present` values (boolean, (values,)) are `shift` higher.

    The values of one side keep their proportions.
    """
    weighted = distributions * np.where(present, np.exp(shift), 1.0)
    return weighted / weighted.sum(axis=-1, keepdims=True)


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
        if "shift" in entry:
            distributions[:, column] = apply_shift(distributions[:, column], present, entry["shift"])
    return distributions, thresholds


__all__ = [
    "DEFAULT_THRESHOLD",
    "METHODS",
    "PRIORS",
    "apply_isotonic",
    "apply_shift",
    "apply_temperature",
    "calibrate",
    "check_calibration",
    "entries_for",
    "with_prior",
]
