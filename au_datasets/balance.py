"""How often each AU occurs among training labels, and two remedies for rare AUs: showing their rows more often, and
weighting them more in the loss.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from au_llava.action_units import get_format

LEAST_RATE = 0.02  # rarer AUs get the weight of this rate: with few labels, a weight is noise


def label_statistics(formats: Iterable[str], values: Iterable[Sequence[float]]) -> dict[str, dict[str, dict]]:
    """Format -> AU -> {"mean": of the labels, "rate": share of them that are present, "n": how many are known}.

    Args:
        formats, values: the format name of each row, and its values in that format's order. NaN is unknown; an AU
            without a known label is left out.
    """
    rows = defaultdict(list)
    for name, row in zip(formats, values, strict=True):
        rows[name].append(row)
    statistics = {}
    for name in sorted(rows):
        fmt, labels = get_format(name), np.array(rows[name], float)
        statistics[name] = {}
        for label, column in zip(fmt.labels, labels.T, strict=True):
            if len(known := column[~np.isnan(column)]):
                rate = float((known >= fmt.presence_threshold).mean())
                statistics[name][label] = {"mean": float(known.mean()), "rate": rate, "n": len(known)}
    return statistics


def loss_weights(statistics: Mapping[str, Mapping[str, Mapping]], power: float) -> dict[str, dict[str, float]]:
    """Format -> AU -> weight of its loss: (1 / rate) ** power, divided by the mean over the format's AUs.

    Power 1 is w_i = (1 / r_i) / sum_j(1 / r_j) * AUs of ME-GraphAU (CVI-SZU/ME-GraphAU) and JAA-Net
    (ZhiwenShao/PyTorch-JAANet), except that no rate counts as less than `LEAST_RATE`; power 0.5 tempers it.

    Args:
        statistics: `label_statistics` of the training rows.
    """
    weights = {}
    for name, of_format in statistics.items():
        raw = {label: max(entry["rate"], LEAST_RATE) ** -power for label, entry in of_format.items()}
        mean = sum(raw.values()) / max(len(raw), 1)
        weights[name] = {label: weight / mean for label, weight in raw.items()}
    return weights


def row_weights(
    formats: Sequence[Sequence[str]],
    values: Sequence[Sequence[Sequence[float]]],
    people: Sequence,
    statistics: Mapping[str, Mapping[str, Mapping]],
    often: float,
) -> np.ndarray:
    """(rows,) weights that say how often each row is shown, on average once.

    A row counts max(1, sqrt(often / rate)) times, by the rarest AU that it shows: the repeat factor of Gupta, Dollar
    and Girshick (2019), "LVIS: a dataset for large vocabulary instance segmentation". Then the weights of each person
    are scaled to sum to the number of their rows, so that nobody is shown more often for having rare AUs.

    Args:
        formats, values: for each row, its format names and one list of labels for each of them.
        people: for each row, the person shown.
        statistics: `label_statistics` of these rows.
        often: rate from 0 to 1 below which an AU counts as rare.
    """
    factors = {}  # format -> factor of each AU; an AU that is never present has no effect
    for name, of_format in statistics.items():
        rates = (of_format.get(label, {}).get("rate") or math.inf for label in get_format(name).labels)
        factors[name] = [math.sqrt(often / rate) for rate in rates]
    weights = np.ones(len(formats))
    for row, (names, lists) in enumerate(zip(formats, values, strict=True)):
        for name, labels in zip(names, lists, strict=True):
            least = get_format(name).presence_threshold
            shown = (f for f, value in zip(factors[name], labels, strict=True) if value >= least)  # never for NaN
            weights[row] = max(weights[row], *shown, 1.0)
    _, who = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    return weights * (np.bincount(who) / np.bincount(who, weights))[who]
