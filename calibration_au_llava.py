"""Calibration: makes the slots decoder's probabilities mean what they say, and sets from where an AU is "present".

Owns the entries of `AuLlavaConfig.calibration` and how they are applied, to NumPy arrays as to tensors in a graph, and
needs NumPy only. au_evaluation/calibration.py fits the entries on validation subjects (`eval_au.py calibrate`). They
are stored in config.json, so that every way to load a checkpoint applies them. An example:

    {"formats": {"disfa": {"scale": "intensity", "presence_threshold": 2.0, "aus": {
         "AU12": {"method": "temperature", "temperature": 1.3, "threshold": 0.41},
         "AU15": {"method": "isotonic", "probability": [0.0, 0.2, 1], "calibrated": [0.0, 0.1, 0.9], "threshold": 0.3},
         "AU26": {"method": "none", "threshold": 0.5, "reject_below": 0.8,
                  "photographs": {"shift": -2.1, "threshold": 0.5}}}}},
     "prior": "photographs",
     "fitted_on": {...}}

- temperature: the distribution p becomes p^(1/T), normalized (Guo et al., On Calibration of Modern Neural Networks,
  2017): less certain with T above 1, more certain below 1.
- isotonic: a rising piecewise linear function maps the probability of presence (Zadrozny and Elkan, 2002); the values
  above and below the presence threshold are scaled to match, so that the distribution still sums to 1.
- threshold: the least calibrated probability at which an AU counts as present.
- reject_below: advice, not applied: answers with less confidence (the probability that the decision is right) are wrong
  too often to give; see au_evaluation/abstention.py.
- prior: how frequent AUs are among the faces to be read. "rendered": as among the people of the fit. "photographs": as
  among unlabeled photographs; then every AU has an entry "photographs", whose shift is added to the calibrated log-odds
  of presence (Saerens, Latinne and Decaestecker, 2002; estimated by au_evaluation/priors.py) and whose threshold
  replaces the other. Without this key, as in older checkpoints, only "rendered" exists.
"""

import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from types import ModuleType

import numpy as np

PARAMETERS = {"none": (), "temperature": ("temperature",), "isotonic": ("probability", "calibrated")}  # by method
METHODS = tuple(PARAMETERS)
PRIORS = ("photographs", "rendered")
DEFAULT_THRESHOLD = 0.5
LEAST_MASS = 1e-9  # of presence and of absence, before a curve divides by them


def check_calibration(calibration: Mapping | None) -> None:
    """Check `calibration` against the description at the head of this file.

    Raises:
        ValueError: it differs; the message says where.
    """
    if calibration is None:
        return
    if not isinstance(calibration, Mapping) or not isinstance(calibration.get("formats"), Mapping):
        raise ValueError('calibration must be None or {"formats": {...}}: fit it with eval_au.py calibrate.')
    prior = calibration.get("prior")
    if prior not in (None, *PRIORS):
        raise ValueError(f"calibration: prior is {prior!r}; it must be one of {', '.join(PRIORS)}.")
    for name, of_format in calibration["formats"].items():
        _check_keys(of_format, ("scale", "presence_threshold", "aus"), f"calibration of {name}")
        if not _is_number(of_format["presence_threshold"]):
            told = f"presence_threshold is {of_format['presence_threshold']!r}; it must be a number"
            raise ValueError(f"calibration of {name}: {told}.")
        if not isinstance(of_format["aus"], Mapping):
            raise ValueError(f"calibration of {name}: aus is {of_format['aus']!r}; it must be {{label: entry}}.")
        for label, entry in of_format["aus"].items():
            where = f"calibration of {name} {label}"
            _check_entry(entry, where)
            if prior is not None:
                _check_photographs(entry.get("photographs"), where)


def _check_keys(entry: Mapping, needed: Sequence[str], where: str) -> None:
    lacking = [key for key in needed if not isinstance(entry, Mapping) or key not in entry]
    if lacking:
        raise ValueError(f"{where} lacks {', '.join(lacking)}: fit it with eval_au.py calibrate.")


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_probability(value) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _check_entry(entry: Mapping, where: str) -> None:
    _check_keys(entry, ("method", "threshold"), where)
    method = entry["method"]
    if method not in METHODS:
        raise ValueError(f"{where}: method is {method!r}; it must be one of {', '.join(METHODS)}.")
    _check_keys(entry, PARAMETERS[method], where)
    if not _is_probability(entry["threshold"]):
        raise ValueError(f"{where}: threshold is {entry['threshold']!r}; it is a probability, 0 to 1.")
    if entry.get("reject_below") is not None and not _is_probability(entry["reject_below"]):
        raise ValueError(f"{where}: reject_below is {entry['reject_below']!r}; it is a probability, 0 to 1, or null.")
    if method == "temperature" and not (
        _is_number(entry["temperature"]) and 0 < entry["temperature"] <= sys.float_info.max
    ):
        raise ValueError(f"{where}: temperature is {entry['temperature']!r}; it must be a number above 0.")
    if method == "isotonic":
        curve = [entry[key] for key in PARAMETERS[method]]
        lists = all(isinstance(axis, list | tuple) and axis and all(map(_is_probability, axis)) for axis in curve)
        if not lists or len(curve[0]) != len(curve[1]) or not (np.diff(curve) >= 0).all():
            raise ValueError(f"{where}: an isotonic curve must rise within 0 to 1, by as many numbers on both axes.")


def _check_photographs(entry: Mapping | None, where: str) -> None:
    if not isinstance(entry, Mapping) or set(entry) != {"shift", "threshold"}:
        raise ValueError(f'{where}: photographs is {entry!r}; with a prior it must be {{"shift": …, "threshold": …}}.')
    if not (_is_number(entry["shift"]) and -10 <= entry["shift"] <= 10):
        raise ValueError(f"{where}: shift is {entry['shift']!r}; it is a difference of log-odds, -10 to 10.")
    if not _is_probability(entry["threshold"]):
        raise ValueError(f"{where}: threshold on photographs is {entry['threshold']!r}; it is a probability, 0 to 1.")


def with_prior(calibration: Mapping | None, prior: str) -> Mapping | None:
    """The calibration with its prior set to one of `PRIORS`.

    Raises:
        ValueError: an unknown prior, or "photographs" for a calibration without entries for photographs.
    """
    if prior not in PRIORS:
        raise ValueError(f"prior is {prior!r}; it must be one of {', '.join(PRIORS)}.")
    if (calibration or {}).get("prior") is None:
        if prior == "photographs":
            raise ValueError(
                "this checkpoint has no prior of photographs: fit it with eval_au.py calibrate --unlabelled."
            )
        return calibration
    return {**calibration, "prior": prior}


def entries_for(calibration: Mapping | None, fmt) -> dict[str, Mapping]:
    """The entries that apply to `fmt`: label -> entry, with the calibration's prior taken into account.

    With the prior "photographs", "shift" and "threshold" of an entry are those of its "photographs". The dict is empty
    if the calibration has no such format, or if its format of that name has another scale or presence threshold.
    """
    of_format = (calibration or {}).get("formats", {}).get(fmt.name)
    if of_format is None:
        return {}
    if (of_format["scale"], of_format["presence_threshold"]) != (fmt.scale, fmt.presence_threshold):
        return {}
    entries = {label: of_format["aus"][label] for label in fmt.labels if label in of_format["aus"]}
    if calibration.get("prior") == "photographs":
        return {label: {**entry, **entry["photographs"]} for label, entry in entries.items()}
    return entries


def present_values(fmt) -> np.ndarray:
    """(values,) booleans: which values of the format's scale count as present."""
    return np.array(fmt.value_numbers) >= fmt.presence_threshold


def probability_of_presence(distributions: np.ndarray, fmt) -> np.ndarray:
    """(…, values) distributions over the scale of `fmt` to (…) probabilities of presence, 0 to 1."""
    return distributions[..., present_values(fmt)].sum(axis=-1).clip(0, 1)


class Calibration:
    """What calibration does to the distributions of some AUs.

    Args:
        entries: one per AU, as `entries_for` gives them; {} changes nothing.
        present: (values,) booleans, which values count as present.
        arrays: `numpy`, or `torch` for tensors and for a graph that `torch.export` can follow. Only what both have
            under the same name is used.
    """

    def __init__(self, entries: Sequence[Mapping], present: np.ndarray, arrays: ModuleType = np):
        column = lambda key, default: np.array([[entry.get(key, default)] for entry in entries], dtype=np.float64)
        self.arrays = arrays
        self.present = arrays.asarray(present)
        self.temperatures = arrays.asarray(column("temperature", 1.0))  # (AUs, 1)
        self.odds = arrays.asarray(np.exp(np.where(present, column("shift", 0.0), 0.0)))  # (AUs, values), factors
        self.curves = None
        if any("calibrated" in entry for entry in entries):
            keys = ("probability", "calibrated")
            self.curves = tuple(_padded([entry.get(key, (0.0, 1.0)) for entry in entries]) for key in keys)

    @classmethod
    def of(cls, calibration: Mapping | None, fmt, arrays: ModuleType = np) -> "Calibration":
        """What `calibration`, an `AuLlavaConfig.calibration`, does in the format `fmt`."""
        entries = entries_for(calibration, fmt)
        return cls([entries.get(label, {}) for label in fmt.labels], present_values(fmt), arrays)

    def __call__(self, log_probabilities):
        """(…, AUs, values) log-probabilities to (…, AUs, values) calibrated probabilities, float64, that sum to 1."""
        scaled = log_probabilities / self.temperatures
        weights = self.arrays.exp(scaled - self.arrays.amax(scaled, axis=-1, keepdims=True))
        if self.curves is not None:
            shares = weights / weights.sum(axis=-1, keepdims=True)
            mass = (shares * self.present).sum(axis=-1, keepdims=True)
            mass = self.arrays.clip(mass, LEAST_MASS, 1 - LEAST_MASS)
            target = self._on_curve(mass)
            weights = shares * self.arrays.where(self.present, target / mass, (1 - target) / (1 - mass))
        weights = weights * self.odds
        return weights / weights.sum(axis=-1, keepdims=True)

    def _on_curve(self, mass):
        """(…, AUs, 1) probabilities of presence to what the curves make of them, as `np.interp` does."""
        probability, calibrated = self.curves  # (AUs, points) each
        width = np.diff(probability)
        start, rise, steps = map(self.arrays.asarray, (probability[:, :-1], np.diff(calibrated), width == 0))
        share = self.arrays.clip((mass - start) / self.arrays.asarray(np.maximum(width, 1e-300)), 0, 1)
        share = self.arrays.where(steps & (mass >= start), 1.0, share)  # a step has no width
        return self.arrays.asarray(calibrated[:, :1]) + (share * rise).sum(axis=-1, keepdims=True)


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """(rows, longest row) float64; shorter rows repeat their last number."""
    longest = max(map(len, rows))
    return np.array([[*row, *row[-1:] * (longest - len(row))] for row in rows], dtype=np.float64)


def apply_entries(distributions: np.ndarray, entries: Sequence[Mapping], present: np.ndarray) -> np.ndarray:
    """(…, AUs, values) distributions to calibrated ones; `entries` and `present` as in `Calibration`."""
    return Calibration(entries, present)(_logs(distributions))


def _logs(distributions: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # the logarithm of 0 is minus infinity
        return np.log(np.asarray(distributions, dtype=np.float64))


def calibrate(distributions: np.ndarray, fmt, calibration: Mapping | None) -> tuple[np.ndarray, np.ndarray]:
    """Apply a checkpoint's calibration to what the slots decoder read in one format.

    Args:
        distributions: (images, AUs, values), over the scale of `fmt`, summing to 1.
        calibration: `AuLlavaConfig.calibration`.

    Returns:
        the calibrated distributions, and (AUs,) the probability from which each AU counts as present.
    """
    entries = entries_for(calibration, fmt)
    rows = [entries.get(label, {}) for label in fmt.labels]
    thresholds = np.array([entry.get("threshold", DEFAULT_THRESHOLD) for entry in rows], dtype=np.float64)
    return apply_entries(distributions, rows, present_values(fmt)) if entries else distributions, thresholds


__all__ = [
    "DEFAULT_THRESHOLD",
    "METHODS",
    "PRIORS",
    "Calibration",
    "apply_entries",
    "calibrate",
    "check_calibration",
    "entries_for",
    "present_values",
    "probability_of_presence",
    "with_prior",
]
