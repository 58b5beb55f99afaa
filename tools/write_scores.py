"""Write the shipped checkpoint's scores into the documents, from its evaluation JSON.

    python tools/write_scores.py
    python tools/write_scores.py slots=runs/eval-slots free=runs/eval-free constrained=runs/eval-constrained

assets/evaluation/DECODER.json are the results.json files that eval_au.py wrote for each decoder on the same images; the
second command takes over new ones (without the scores per subject). The tables stand between markers, and a test checks
that they are what this script writes: no number is typed by hand.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVALUATIONS = ROOT / "assets" / "evaluation"
DOCUMENTS = ("README.md", "model_card.md", "docs/evaluation.md")
METRICS = {"f1": "F1", "roc_auc": "ROC AUC", "ece": "ECE", "icc": "ICC(3,1)", "pcc": "PCC", "mae": "MAE"}


def take_over(decoder: str, folder: Path) -> None:
    """Copy an evaluation into assets/evaluation."""
    results = json.loads((folder / "results.json").read_text())
    if results["provenance"]["decoding"] != decoder:
        raise ValueError(f"{folder} was read by {results['provenance']['decoding']}, not by {decoder}.")
    for scores in results["formats"].values():
        del scores["per_subject"]
    (EVALUATIONS / f"{decoder}.json").write_text(json.dumps(results) + "\n")


def evaluation(decoder: str) -> dict:
    return json.loads((EVALUATIONS / f"{decoder}.json").read_text())


def number(value: float | None, bounds: list[float | None] | None = None) -> str:
    if value is None:
        return "n.d."
    return f"{value:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def mean_table() -> str:
    """One row per decoder and format: means over AUs with their intervals."""
    lines = [
        f"| decoder | format | {' | '.join(METRICS.values())} | unread |",
        "|---|---|" + "---:|" * (len(METRICS) + 1),
    ]
    for path in sorted(EVALUATIONS.glob("*.json"), key=lambda path: path.stem != "slots"):
        for name, result in evaluation(path.stem)["formats"].items():
            cells = [
                number(result["mean"][key], result["mean_interval"].get(key)) if key in result["mean"] else ""
                for key in METRICS
            ]
            unread = f"{result['unparsed'] / result['annotated']:.1%}"
            lines.append(f"| {path.stem} | {name} | {' | '.join(cells)} | {unread} |")
    note = (
        "Means over AUs; in brackets 95 % bootstrap intervals over people (none for the expected calibration error, "
        "ECE, which resampling inflates). MAE is in the units of the scale (5 or 1)."
    )
    return "\n".join([*lines, "", note])


def per_au_table() -> str:
    """One row per AU and format, slots decoder."""
    lines = [f"| format | AU | present | {' | '.join(METRICS.values())} |", "|---|---|---:|" + "---:|" * len(METRICS)]
    for name, result in evaluation("slots")["formats"].items():
        for label, scores in result["per_au"].items():
            cells = [number(scores[key]) if key in scores else "" for key in METRICS]
            lines.append(f"| {name} | {label} | {scores['support']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def group_table() -> str:
    """One row per metadata column and format: the largest gap in ROC AUC between its groups, slots decoder."""
    lines = ["| groups of | format | best | worst | gap in ROC AUC | p (Holm) |", "|---|---|---|---|---:|---:|"]
    for name, result in evaluation("slots")["formats"].items():
        audit = result["groups"]
        for column, gaps in audit["gaps"].items():
            gap, groups = gaps["roc_auc"], audit["columns"][column]
            cells = [f"{group}: {groups[group]['mean']['roc_auc']:.3f}" for group in gap["groups"]]
            difference = number(gap["difference"], gap["interval"])
            lines.append(f"| {column} | {name} | {' | '.join(cells)} | {difference} | {gap['p_holm']:.3f} |")
    return "\n".join(lines)


def abstention_table() -> str:
    """One row per format: what withholding unsure answers does, slots decoder."""
    lines = ["| format | wrong decisions | wrong among kept | kept | kept where present |", "|---|---:|---:|---:|---:|"]
    for name, result in evaluation("slots")["formats"].items():
        mean = result["abstention"]["mean"]
        cells = [f"{mean[key]:.1%}" for key in ("error_rate", "risk", "coverage", "coverage_present")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def contradiction_line() -> str:
    """How often formats contradict each other, slots decoder."""
    found = evaluation("slots")["contradictions"]
    pairs = "; ".join(f"{pair} ({count})" for pair, count in list(found["per_pair"].items())[:3])
    share = found["images"] / found["asked_together"]
    return f"{found['images']} of {found['asked_together']:,} images ({share:.0%}); most often: {pairs}."


TABLES = {
    "scores": mean_table,
    "per-au": per_au_table,
    "groups": group_table,
    "abstention": abstention_table,
    "contradictions": contradiction_line,
}


def filled(text: str) -> str:
    """`text` with the tables between its markers."""
    for marker, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        decoder, _, folder = argument.partition("=")
        take_over(decoder, Path(folder))
    for name in DOCUMENTS:
        (ROOT / name).write_text(filled((ROOT / name).read_text()))
        print(f"Written: {name}")
