"""The tables of a report, one function each, from results.json."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from au_llava.au_datasets.folds import person_key
from au_llava.au_evaluation.baselines import SHOWN
from au_llava.au_evaluation.report_data import UNDEFINED, FormatEvaluation
from au_llava.au_evaluation.tables import METRICS, interval, number

HEADLINE = ("f1", "accuracy", "roc_auc", "average_precision", "ece", "icc", "pcc", "mae")


class Cell(NamedTuple):
    text: str
    interval: str = ""
    note: str = ""  # a tooltip in the page


class Table(NamedTuple):
    header: list[Cell]
    rows: list[list[Cell]]
    caption: str = ""
    folded: str = ""  # what to click on to see it
    style: str = ""  # "facts": text, not numbers; "dense": many columns, and the last row is a mean
    kind: str = "table"


Blocks = list[tuple[str, Table]]  # heading or "", table


def headline(formats: Sequence[FormatEvaluation]) -> Table:
    """A row per format: means over AUs with their intervals."""
    metrics = [metric for metric in HEADLINE if any(metric in evaluation.scores["mean"] for evaluation in formats)]
    rows = []
    for evaluation in formats:
        fmt, scores = evaluation.fmt, evaluation.scores
        subjects = len({person_key(row["dataset"], row["subject"]) for row in evaluation.rows})
        unread = f"{scores['unparsed'] / scores['annotated']:.1%}" if scores["annotated"] else UNDEFINED
        rows.append(
            [
                *_cells(fmt.name, fmt.scale, f"{scores['n']:,}", f"{subjects:,}", unread),
                *(
                    _number(scores["mean"][metric], scores["mean_interval"].get(metric), "undefined for every AU")
                    if metric in scores["mean"]
                    else Cell("")
                    for metric in metrics
                ),
            ]
        )
    return Table(_cells("format", "scale", "images", "subjects", "unread", *map(_metric, metrics)), rows)


def baselines(formats: Sequence[FormatEvaluation]) -> Table:
    """The means of what was read above those of the baselines, which look at no picture."""
    rows, reasons = [], {}
    for evaluation in formats:
        name, scores = evaluation.fmt.name, evaluation.scores
        for answer, scored in {"what was read": scores, **scores["baselines"]}.items():
            if "left_out" in scored:
                reasons.setdefault(f"{answer} left out: {scored['left_out']}", []).append(name)
                continue
            mean = scored["mean"]
            numbers = (_number(mean[metric]) if metric in mean else Cell("") for metric in SHOWN)
            rows.append([*_cells(name, answer), *numbers])
    caption = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in reasons.items())
    return Table(_cells("format", "answer", *map(_metric, SHOWN)), rows, caption)


def per_au(evaluation: FormatEvaluation) -> Table:
    """All metrics of each AU. Intervals are tooltips, since the table would be too wide with them; the caption repeats
    why a metric is undefined, for print."""
    scores = evaluation.scores
    metrics, rows, undefined = list(scores["mean"]), [], {}
    for label, of_au in scores["per_au"].items():
        rows.append(_cells(label, of_au["support"], of_au["n"], of_au["unparsed"]))
        for metric in metrics:
            reason = of_au["undefined"].get(metric, "undefined")
            cell = _number(of_au[metric], of_au["interval"].get(metric), reason)
            rows[-1].append(Cell(cell.text, note=cell.note or cell.interval))
            if of_au[metric] is None:
                undefined.setdefault(reason, {}).setdefault(label, []).append(METRICS[metric].name)
    rows.append(_cells("mean", "", "", scores["unparsed"]))
    for metric in metrics:
        note = f"over {scores['averaged'][metric]} of {len(evaluation.fmt.labels)} AUs"
        rows[-1].append(_number(scores["mean"][metric], undefined=note)._replace(note=note))
    reasons = [
        f"{reason} ({'; '.join(f'{label}: ' + ', '.join(names) for label, names in by_au.items())})"
        for reason, by_au in undefined.items()
    ]
    header = _cells("AU", "present", "scored", "unread", *map(_metric, metrics))
    return Table(header, rows, f"Undefined: {'; '.join(reasons)}." if reasons else "", style="dense")


def groups(evaluation: FormatEvaluation) -> Blocks:
    """The group audit: per column the largest gaps between groups and, folded, the scores of the groups."""
    audit, blocks = evaluation.scores.get("groups", {"columns": {}}), []
    for column, scored in audit["columns"].items():
        gaps = [
            [
                _metric(metric),
                _number(gap["difference"], gap["interval"]),
                *_cells(*gap["groups"]),
                _number(gap["p_holm"]),
            ]
            for metric, gap in audit["gaps"][column].items()
        ]
        few = ", ".join(f"{group} ({subjects})" for group, subjects in audit["too_small"][column].items())
        few = f"Not scored for too few subjects: {few}." if few else ""
        header = _cells("metric", "difference", "highest", "lowest", "p (Holm)")
        blocks.append((f"{evaluation.fmt.name}, by {column}", Table(header, gaps, few)))
        metrics = list(dict.fromkeys(metric for group in scored.values() for metric in group["mean"]))
        rows = [
            _cells(name, group["n"], group["subjects"], _number(group["rate"]))
            + [_number(group["mean"][metric], group["mean_interval"].get(metric)) for metric in metrics]
            for name, group in scored.items()
        ]
        header = _cells(column, "images", "subjects", "share present", *map(_metric, metrics))
        blocks.append(("", Table(header, rows, folded=f"Scores of the {len(rows)} groups")))
    return blocks


def parsing(evaluation: FormatEvaluation) -> Blocks:
    """The audit of written answers, its shares per AU folded."""
    audit = dict(evaluation.scores.get("parse_audit", {}))
    coverage = _flat(audit.pop("coverage", {}))
    blocks = [(evaluation.fmt.name, Table(_cells("", ""), _flat(audit)))] if audit else []
    return blocks + ([("", Table(_cells("", ""), coverage, folded="Share read, per AU"))] if coverage else [])


def contradictions(counts: Mapping) -> Table:
    together, rows = counts["asked_together"], list(counts["per_pair"].items())
    rows = [("any", counts["images"]), *rows] if rows else [("none", together)]
    rows = [_cells(pair, count, f"{count / together:.1%}") for pair, count in rows]
    return Table(_cells("contradiction", "images", f"of {together:,} read in several formats"), rows)


def abstention(evaluation: FormatEvaluation) -> Table:
    """What withholding unsure answers does, per AU."""
    scores = evaluation.scores["abstention"]
    keys = ("threshold", "coverage", "coverage_present", "risk", "error_rate")
    rows = [
        [Cell(label), *(_number(entry.get(key), undefined="no threshold or nothing kept") for key in keys)]
        for label, entry in [*scores["per_au"].items(), ("mean", scores.get("mean", {}))]
    ]
    header = _cells("AU", "withheld below confidence", "coverage", "coverage if present", "risk", "risk without")
    folded = f"Answers of {evaluation.fmt.name} withheld below a confidence"
    return Table(header, rows, "The mean is over the AUs that have a threshold.", folded)


def provenance(origin: Mapping, formats: Sequence[FormatEvaluation]) -> Blocks:
    """Where the numbers come from, and the decision thresholds as the predictions show them."""
    rows = _flat(origin)
    rows += [
        _cells(f"{evaluation.fmt.name}: labels count as present from", f"{evaluation.fmt.presence_threshold:g}")
        for evaluation in formats
    ]
    blocks = [("", Table(_cells("", ""), rows, style="facts"))]
    for evaluation in formats:
        if not evaluation.rated.any():
            continue
        absent, present = (
            np.where(evaluation.rated & side, evaluation.probability, np.nan)
            for side in (~evaluation.present, evaluation.present)
        )
        bounds = np.fmax.reduce(absent, axis=0), np.fmin.reduce(present, axis=0)  # (AUs,), NaN without any
        rows = [
            [Cell(label), *(_number(bound, undefined="none") for bound in of_au)]
            for label, *of_au in zip(evaluation.fmt.labels, *bounds, strict=True)
        ]
        header = _cells("AU", "highest probability read as absent", "lowest read as present")
        blocks.append(("", Table(header, rows, folded=f"Decision thresholds of {evaluation.fmt.name}")))
    return blocks


def _cells(*texts) -> list[Cell]:
    return [text if isinstance(text, Cell) else Cell(str(text)) for text in texts]


def _number(value: float | None, bounds: Sequence | None = None, undefined: str = "undefined") -> Cell:
    text = number(value, undefined=UNDEFINED)
    return Cell(text, interval(bounds), note=undefined if text == UNDEFINED else "")


def _metric(metric: str) -> Cell:
    return Cell(METRICS[metric].name, note=METRICS[metric].meaning) if metric in METRICS else Cell(metric)


def _flat(entries: Mapping, prefix: str = "") -> list[list[Cell]]:
    """Rows of name and value, of nested dicts too."""
    rows = []
    for key, value in entries.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}: ")
        else:
            text = UNDEFINED if value is None else f"{value:.4g}" if isinstance(value, float) else value
            rows.append(_cells(f"{prefix}{key}", text))
    return rows
