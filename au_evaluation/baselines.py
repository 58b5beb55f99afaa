"""What a score has to beat: three answers that look at no picture.

- all-zero: every AU absent, at strength 0.
- training-mean: the AU's mean over the training labels, present at the rate at which it was present there.
- neighbour-copy: the labels of the nearest other frame of the same clip. It knows labels that no model is shown, and so
  tells how much a division by frames instead of people would leak.

Each is given as rows like those of `predict`, so that it is scored by the same code. What a baseline cannot say is NaN
and counted as unparsed.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.table import Table

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.records import NO_CLIP
from au_llava.au_evaluation.scoring import by_format, score_arguments
from au_llava.au_evaluation.transfer import shared_labels, transfer_scores
from au_llava.metrics_au import score

SHOWN = ("f1", "icc", "mae")


def nearest_frames(rows: Sequence[Mapping]) -> list[int | None]:
    """For each row of one format, the row of the nearest other frame of its clip, the earlier of two as near.

    None where there is no other frame, and where `clip` says that the images are no recording.
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
    """Name of each baseline -> what it answers instead of the predictions `rows` of one format, or why it cannot.

    Args:
        statistics: of the training labels, AU -> {"mean", "rate", …} (`balance.label_statistics`), or None.
    """
    width = len(fmt.labels)
    nothing = [math.nan] * width

    def answers(values, decisions, probabilities=nothing):
        read = {"values": values, "expected": values, "median": nothing}
        return {**read, "present": decisions, "probability": probabilities}

    zero = answers([0.0] * width, [0.0] * width)
    found: dict[str, list[dict] | str] = {"all-zero": [{**row, **zero} for row in rows]}
    if statistics:
        mean, rate = (
            [statistics.get(label, {}).get(key, math.nan) for label in fmt.labels] for key in ("mean", "rate")
        )
        decided = [math.nan if math.isnan(each) else float(each >= 0.5) for each in rate]
        constant = answers(decided if fmt.scale == "occurrence" else mean, decided, rate)
        found["training-mean"] = [{**row, **constant} for row in rows]
    else:
        found["training-mean"] = "the training labels are not known"
    nearest = nearest_frames(rows)
    if any(index is not None for index in nearest):
        copies = [nothing if index is None else rows[index]["references"] for index in nearest]
        decide = lambda value: math.nan if math.isnan(value) else float(value >= fmt.presence_threshold)
        found["neighbour-copy"] = [
            {**row, **answers(copy, [decide(value) for value in copy])} for row, copy in zip(rows, copies, strict=True)
        ]
    else:
        found["neighbour-copy"] = "no two frames of one clip"
    return found


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
                label: {metric: each[metric] for metric in SHOWN if metric in each}
                for label, each in result["per_au"].items()
            }
            scored[name][baseline] = {key: result[key] for key in ("mean", "averaged", "unparsed")} | {"per_au": per_au}
    return scored


def transfer_baselines(
    predictions: Sequence[dict], asked: AUFormat, known: AUFormat, statistics: Mapping | None
) -> dict[str, dict]:
    """Baseline -> its `transfer_scores` on the AUs that `asked` and `known` share, or {"left_out": reason}.

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
    table = Table(title="Beside answers that look at no picture (means over AUs)", title_justify="left")
    for column in ("format", "answer", "F1", "ICC", "MAE"):
        table.add_column(column, justify="left" if column in ("format", "answer") else "right", no_wrap=True)
    reasons = {}
    for name, result in scores.items():
        for answer, each in {"this model": result, **result["baselines"]}.items():
            if "left_out" in each:
                reasons.setdefault(f"{answer} left out: {each['left_out']}", []).append(name)
                continue
            means = (each["mean"].get(metric) for metric in SHOWN)
            shown = ("" if mean is None else "n.d." if math.isnan(mean) else f"{mean:.3f}" for mean in means)
            table.add_row(name, answer, *shown)
        table.add_section()
    if reasons:
        table.caption = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in reasons.items())
    return table
