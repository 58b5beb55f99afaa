"""The audit of written answers: what parsing lost of them, and how much the scores depend on it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from au_llava.action_units import AUFormat, ParsedAnswer, parse_answer, write_answer
from au_llava.au_evaluation.rows import check_rows, stacked
from au_llava.metrics_au import mean_of_defined, score

_DENIALS = re.compile(
    r"\b(?:no|not|never|without|neither|nor|none|absent|inactive|invisible|undetected)\b|n['\u2019]t\b", re.IGNORECASE
)


def parse_audit(rows: Sequence[Mapping], fmt: AUFormat) -> dict:
    """What was lost between the text of answers and their scores.

    Two readings. *Lenient* is `parse_answer`, AU by AU: `eval_au.py` scores by it. *Strict* takes an answer only if
    `parse_answer` finds no fault with it (every AU of the format read, no other named), else no AU of it is read.
    Neither minds the spelling: `verbatim_rate` is the share of answers exactly as `write_answer` writes them.

    Two conventions for an annotated cell that is not read. *left_out*: it is not scored, which flatters a model that
    fails on hard images. *absent*: it counts as the value 0, as public evaluations of language models do without
    saying so; where AUs are rare, that turns most failures into correct answers.

    Args:
        rows: predictions with "format", "text" and "references".
        fmt: the AUFormat of all rows.

    Returns:
        "n": answers; "annotated": annotated (image, AU) cells; "failed", "failure_rate": answers that strict reading
        refuses; "verbatim_rate"; "status": word of `ParsedAnswer.status` -> annotated cells; "conflicting": answers
        that give one AU different values; "unknown_aus": AU named but not in the format -> answers, most frequent
        first; "denied_in_words": "answers" and "cells" read as absent because of words such as "not" or "without",
        which an evaluation that takes every named AU as present gets wrong;
        "unread_rate": reading -> share of annotated cells; "coverage": reading -> label -> share of its annotated
        cells that are read;
        "scores": reading -> convention -> {"mean": metric -> mean over AUs, "averaged": metric -> AUs in that mean},
        with the metrics f1 and, unless the format codes occurrence, icc and mae. Where few cells are read, "averaged"
        may differ; means over different AUs cannot be compared.

    Raises:
        ValueError: no rows, rows of another format, rows without a text, or labels that are not on the scale.
    """
    check_rows(rows, fmt, ["references"], "text")
    references = stacked(rows, "references")
    texts = [row["text"] for row in rows]
    answers = [parse_answer(text, fmt) for text in texts]
    annotated = ~np.isnan(references)
    ok = np.array([answer.ok for answer in answers])
    lenient = np.array([list(answer.values.values()) for answer in answers], dtype=float)  # None becomes NaN
    readings = {"lenient": lenient, "strict": np.where(ok[:, None], lenient, np.nan)}
    is_read = {reading: np.where(annotated, ~np.isnan(values), np.nan) for reading, values in readings.items()}
    status = np.array([list(answer.status.values()) for answer in answers])
    denied = np.array([_denied_in_words(text, answer, fmt) for text, answer in zip(texts, answers, strict=True)])
    verbatim = [a.ok and text == write_answer(a.values, fmt) for text, a in zip(texts, answers, strict=True)]

    def scores(values: np.ndarray) -> dict:
        result = score(values, references, fmt)
        metrics = [metric for metric in ("f1", "icc", "mae") if metric in result["mean"]]
        return {kind: {metric: result[kind][metric] for metric in metrics} for kind in ("mean", "averaged")}

    return {
        "n": len(rows),
        "annotated": int(annotated.sum()),
        "failed": int(np.sum(~ok)),
        "failure_rate": float(np.mean(~ok)),
        "verbatim_rate": float(np.mean(verbatim)),
        "status": dict(Counter(status[annotated].tolist()).most_common()),
        "conflicting": int(np.sum(np.any(status == "conflict", axis=1))),
        "unknown_aus": dict(Counter(label for answer in answers for label in answer.foreign).most_common()),
        "denied_in_words": {"answers": int(denied.any(axis=1).sum()), "cells": int(denied.sum())},
        "unread_rate": {reading: 1 - float(mean_of_defined(cells.ravel())) for reading, cells in is_read.items()},
        "coverage": {
            reading: dict(zip(fmt.labels, mean_of_defined(cells).tolist(), strict=True))
            for reading, cells in is_read.items()
        },
        "scores": {
            reading: {"left_out": scores(values), "absent": scores(np.nan_to_num(values))}
            for reading, values in readings.items()
        },
    }


def _denied_in_words(text: str, answer: ParsedAnswer, fmt: AUFormat) -> list[bool]:
    """Which AUs are read as 0 only because of words of denial in the text."""
    if 0 not in answer.values.values():  # also where the answer is too long to be read
        return [False] * len(fmt.labels)
    without = _DENIALS.sub("", text)
    again = answer if without == text else parse_answer(without, fmt)
    return [answer.values[label] == 0 and again.values[label] != 0 for label in fmt.labels]
