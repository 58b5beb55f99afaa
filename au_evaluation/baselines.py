"""What a score has to beat: three baselines that look at no picture.

- all-zero: every AU absent, at strength 0.
- training-mean: the AU's mean over the training labels, present at the rate at which it was present there.
- neighbour-copy: the labels of the nearest other frame of the same clip. It uses labels that no model sees, and so
  shows how much a split by frames instead of people would leak.

Each answers with rows like those of `predict`, so that the same code scores it. What a baseline cannot say is NaN
and counted as unparsed.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.records import NO_CLIP
from au_llava.au_evaluation.rows import by_format
from au_llava.au_evaluation.scoring import score_arguments
from au_llava.au_evaluation.tables import console_table, metric_names, number
from au_llava.au_evaluation.transfer import shared_labels, transfer_scores
from au_llava.metrics_au import decide, score

SHOWN = ("f1", "icc", "mae")


def nearest_frames(rows: Sequence[Mapping]) -> list[int | None]:
    """For each row of one format, the index of the nearest other frame of its clip; of two as near, the earlier.

    None where there is no other frame, and where `clip` says that the images are not a recording.
    """
    clips = defaultdict(list)
    for index, row in enumerate(rows):
        if row["clip"] != NO_CLIP:
            clips[row["dataset"], row["subject"], row["clip"]].append(index)
    nearest: list[int | None] = [None] * len(rows)
    for members in clips.values():
        members.sort(key=lambda index: rows[index]["frame"])
        for place, index in enumerate(members):
            around = members[max(place - 1, 0) : place] + members[place + 1 : place + 2]
            if around:
                nearest[index] = min(around, key=lambda other: abs(rows[other]["frame"] - rows[index]["frame"]))
    return nearest


def baseline_rows(rows: Sequence[dict], fmt: AUFormat, statistics: Mapping | None) -> dict[str, list[dict] | str]:
    """Name of each baseline -> its answers in place of the predictions `rows` of one format, or why it has none.

    Args:
        statistics: of the training labels, AU -> {"mean", "rate", …} (`balance.label_statistics`), or None.
    """
    nothing = [math.nan] * len(fmt.labels)

    def answer(values, decisions, probabilities=nothing):
        numbers = {"values": values, "expected": values, "median": nothing}
        return {**numbers, "present": decisions, "probability": probabilities}

    zeros = [0.0] * len(fmt.labels)
    baselines: dict[str, list[dict] | str] = {"all-zero": [{**row, **answer(zeros, zeros)} for row in rows]}
    if statistics:
        mean, rate = (
            [statistics.get(label, {}).get(key, math.nan) for label in fmt.labels] for key in ("mean", "rate")
        )
        decisions = [math.nan if math.isnan(share) else float(share >= 0.5) for share in rate]
        constant = answer(decisions if fmt.scale == "occurrence" else mean, decisions, rate)
        baselines["training-mean"] = [{**row, **constant} for row in rows]
    else:
        baselines["training-mean"] = "the training labels are not known"
    nearest = nearest_frames(rows)
    if any(index is not None for index in nearest):
        copies = [nothing if index is None else rows[index]["references"] for index in nearest]
        baselines["neighbour-copy"] = [
            {**row, **answer(copy, decide(np.array(copy, dtype=float), fmt).tolist())}
            for row, copy in zip(rows, copies, strict=True)
        ]
    else:
        baselines["neighbour-copy"] = "no two frames of one clip"
    return baselines


def score_baselines(predictions: Sequence[dict], statistics: Mapping[str, Mapping]) -> dict[str, dict[str, dict]]:
    """Format -> baseline -> {"mean", "averaged", "unparsed", "per_au": AU -> F1, ICC, MAE}, or {"left_out": reason}.

    Args:
        predictions: as `predict` returns them. statistics: as `balance.label_statistics` returns them; {} if unknown.
    """
    scored = {}
    for name, rows in by_format(predictions).items():
        scored[name] = {}
        for baseline, answered in baseline_rows(rows, get_format(name), statistics.get(name)).items():
            if isinstance(answered, str):
                scored[name][baseline] = {"left_out": answered}
                continue
            arguments, fmt = score_arguments(answered, get_format(name))
            result = score(fmt=fmt, **arguments)
            per_au = {
                label: {metric: of_au[metric] for metric in SHOWN if metric in of_au}
                for label, of_au in result["per_au"].items()
            }
            scored[name][baseline] = {key: result[key] for key in ("mean", "averaged", "unparsed")} | {"per_au": per_au}
    return scored


def transfer_baselines(
    predictions: Sequence[dict], asked: AUFormat, known: AUFormat, statistics: Mapping | None
) -> dict[str, dict]:
    """Baseline -> its `transfer_scores` on the AUs shared by `asked` and `known`, or {"left_out": reason}.

    Args:
        predictions: made in `asked`, with references in `known`. statistics: of the training labels in `asked`.
    """
    answered = {name: (rows, asked) for name, rows in baseline_rows(predictions, asked, statistics).items()}
    answered["neighbour-copy"] = (baseline_rows(predictions, known, None)["neighbour-copy"], known)
    labels = shared_labels(asked, known)
    return {
        name: {"left_out": rows} if isinstance(rows, str) else transfer_scores(rows, fmt, known, labels)
        for name, (rows, fmt) in answered.items()
    }


def baselines_table(scores: Mapping[str, Mapping]) -> Table:
    """The means over AUs of each format's scores beside those of its "baselines"."""
    title = "Baselines that look at no picture (means over AUs)"
    table = console_table(title, ("format", "answer", *metric_names(SHOWN)), "llrrr")
    reasons = {}
    for name, result in scores.items():
        for answer, scored in {"this model": result, **result["baselines"]}.items():
            if "left_out" in scored:
                reasons.setdefault(f"{answer} left out: {scored['left_out']}", []).append(name)
                continue
            means = scored["mean"]
            table.add_row(name, answer, *(number(means[metric]) if metric in means else "" for metric in SHOWN))
        table.add_section()
    if reasons:
        table.caption = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in reasons.items())
    return table
