"""How often each AU occurs among training labels, and two cures for rare ones: which rows are seen more often, and
which AUs weigh more in the loss.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from au_llava.action_units import get_format

LEAST_RATE = 0.02  # an AU that is rarer weighs as much as one of this rate: of few labels, a weight is noise


def label_statistics(formats: Iterable[str], values: Iterable[Sequence[float]]) -> dict[str, dict[str, dict]]:
    """Format -> AU -> {"mean": of the labels, "rate": share of them that are present, "n": how many are known}.

    Args:
        formats, values: of each row, the name of its format and its values in that format's order. NaN is unknown; an
            AU without a known label is left out.
    """
    rows = defaultdict(list)
    for name, each in zip(formats, values, strict=True):
        rows[name].append(each)
    found = {}
    for name, each in sorted(rows.items()):
        fmt, labels = get_format(name), np.array(each, float)
        found[name] = {}
        for label, column in zip(fmt.labels, labels.T, strict=True):
            if len(known := column[~np.isnan(column)]):
                present = known >= fmt.presence_threshold
                found[name][label] = {"mean": float(known.mean()), "rate": float(present.mean()), "n": len(known)}
    return found


def loss_weights(statistics: Mapping[str, Mapping[str, Mapping]], power: float) -> dict[str, dict[str, float]]:
    """Format -> AU -> weight of its loss: (1 / rate) ** power, divided by the mean over the format's AUs.

    Power 1 is w_i = (1 / r_i) / sum_j(1 / r_j) * AUs of ME-GraphAU (CVI-SZU/ME-GraphAU) and JAA-Net
    (ZhiwenShao/PyTorch-JAANet), except that no rate counts as less than `LEAST_RATE`; power 0.5 tempers it.

    Args:
        statistics: `label_statistics` of the training rows.
    """
    weights = {}
    for name, of_format in statistics.items():
        raw = {label: max(each["rate"], LEAST_RATE) ** -power for label, each in of_format.items()}
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
    """How often each row is to be seen, on average once: (rows,).

    A row counts max(1, sqrt(often / rate)) times, by the rarest AU that it shows: the repeat factor of Gupta, Dollar
    and Girshick (2019), "LVIS: a dataset for large vocabulary instance segmentation". Then each person's rows are
    scaled to their number, so that nobody is seen more for showing rare AUs.

    Args:
        formats, values: of each row, names and one list of labels each. people: of each row, who is shown.
        statistics: `label_statistics` of these rows. often: rate from 0 to 1 below which an AU counts as rare.
    """
    factors = {}  # format -> of each AU; one that is never present makes no row count more
    for name, of_format in statistics.items():
        rates = (of_format.get(label, {}).get("rate") or math.inf for label in get_format(name).labels)
        factors[name] = [math.sqrt(often / rate) for rate in rates]
    weights = np.ones(len(formats))
    for row, (names, lists) in enumerate(zip(formats, values, strict=True)):
        for name, labels in zip(names, lists, strict=True):
            least = get_format(name).presence_threshold
            shown = (f for f, value in zip(factors[name], labels, strict=True) if value >= least)  # NaN is not
            weights[row] = max(weights[row], *shown, 1.0)
    _, who = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    return weights * (np.bincount(who) / np.bincount(who, weights))[who]
