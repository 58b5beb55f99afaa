"""Published protocols: one checkpoint per tested part, scored together, in a table beside published results.

Two aggregates are in use and differ: the mean of the parts' F1, and F1 pooled over the images of all parts. Both are
computed and named; the table ranks by the first, as the literature does for detection.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from au_llava.action_units import AUFormat, get_format
from au_llava.au_datasets.folds import Protocol, protocol_parts
from au_llava.au_evaluation.scoring import score_arguments, score_with_intervals
from au_llava.au_evaluation.tables import METRICS, markdown_table, number
from au_llava.au_runs.files import HOME
from au_llava.metrics_au import fold_scores

PUBLISHED = HOME / "assets" / "published_results.json"


def tested_records(records, protocol: Protocol) -> dict[str, list[int]]:
    """Tested part -> the rows of `records`, of the protocol's dataset and format, that show its people.

    Raises:
        ValueError: a tested part has no record, or a name belongs to no part.
    """
    columns = {key: records[key][:] for key in ("dataset", "format", protocol.unit)}
    wanted = [
        row
        for row, (dataset, name) in enumerate(zip(columns["dataset"], columns["format"], strict=True))
        if (dataset, name) == (protocol.dataset, protocol.format)
    ]
    if not wanted:
        raise ValueError(
            f"{protocol.name} needs records of {protocol.dataset} in format {protocol.format!r}: none here."
        )
    names = columns[protocol.unit]
    parts = protocol_parts(protocol.name, {names[row] for row in wanted})
    rows = {part: [row for row in wanted if names[row] in set(parts[part])] for part in protocol.tested}
    empty = [part for part, of_part in rows.items() if not of_part]
    if empty:
        raise ValueError(
            f"{protocol.name} tests {', '.join(protocol.tested)}: there is no record of {', '.join(empty)}."
        )
    return rows


def missing_names(records, protocol: Protocol) -> dict[str, list[str]]:
    """Tested part -> its published people without a tested record; a score without them is not the protocol's."""
    if protocol.parts is None:  # dealt from the names that there are
        return {}
    names, rows = records[protocol.unit][:], tested_records(records, protocol)
    missing = {
        part: sorted(set(protocol.parts[part]).difference(names[row] for row in rows[part])) for part in protocol.tested
    }
    return {part: names for part, names in missing.items() if names}


def protocol_scores(predictions: Mapping[str, list[dict]], protocol: Protocol) -> dict:
    """Scores of a protocol.

    Args:
        predictions: tested part -> the predictions on it.

    Returns:
        "folds": tested part -> scores; "mean_of_folds"; "pooled": with intervals over all tested people.
    """
    fmt = get_format(protocol.format)
    arguments = {}
    for part, rows in predictions.items():
        arguments[part], scored = score_arguments(rows, fmt, protocol.labels)
    if protocol.presence is not None:
        scored = AUFormat(scored.name, scored.labels, scored.scale, protocol.presence)
    if any(fold["probabilities"] is None for fold in arguments.values()):
        arguments = {part: {**fold, "probabilities": None} for part, fold in arguments.items()}
    result = fold_scores(arguments, scored)
    pooled, _ = score_arguments([row for rows in predictions.values() for row in rows], fmt, protocol.labels)
    result["pooled"] = score_with_intervals(pooled, scored)
    return result


def published_rows(protocol: str, metric: str) -> list[dict]:
    """Published results for a protocol and metric, best first; see assets/published_results.json."""
    rows = json.loads(PUBLISHED.read_text())["rows"]
    rows = [row for row in rows if (row["protocol"], row["metric"]) == (protocol, metric)]
    return sorted(rows, key=lambda row: row["mean"], reverse=METRICS[metric].higher_is_better)


def protocol_table(name: str, scores: dict, protocol: Protocol) -> list[list[str]]:
    """Rows of text, the header first: ours per AU (mean of folds, pooled with interval), then the published ones."""
    metric = protocol.metrics[0]
    scale, digits = (100, 1) if metric == "f1" else (1, 3)
    pooled, folds = scores["pooled"], scores["mean_of_folds"]
    rows = [["method", *protocol.labels, "mean", "source"]]

    def show(value: float, bounds: Sequence[float] = ()) -> str:
        return number(value * scale, [bound * scale for bound in bounds], digits, undefined="")

    rows.append(
        [
            f"{name} (mean of folds)",
            *(show(folds["per_au"][label][metric]) for label in protocol.labels),
            show(folds["mean"][metric]),
            "measured here",
        ]
    )
    rows.append(
        [
            f"{name} (pooled)",
            *(show(pooled["per_au"][label][metric]) for label in protocol.labels),
            show(pooled["mean"][metric], pooled["mean_interval"][metric]),
            "measured here; 95 % interval over people",
        ]
    )
    for row in published_rows(protocol.name, metric):
        per_au = row.get("per_au") or {}
        numbers = ["" if label not in per_au else f"{per_au[label]:.{digits}f}" for label in protocol.labels]
        rows.append([row["method"], *numbers, f"{row['mean']:.{digits}f}", f"{row['source']} ({row['status']})"])
    return rows


def as_markdown(rows: list[list[str]]) -> str:
    """A table as Markdown."""
    header, *body = rows
    return markdown_table(header, body, "l" + "r" * (len(header) - 2) + "l") + "\n"


def as_latex(rows: list[list[str]], caption: str) -> str:
    """A table as LaTeX with booktabs; the source of each row becomes a comment."""
    escape = str.maketrans({"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"})
    lines = [f"% {caption}", r"\begin{tabular}{l" + "r" * (len(rows[0]) - 2) + "}", r"\toprule"]
    for index, row in enumerate(rows):
        lines.append(" & ".join(cell.translate(escape) for cell in row[:-1]) + r" \\" + f" % {row[-1]}")
        if index in (0, 2):
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(rows: list[list[str]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
