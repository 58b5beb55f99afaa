"""Write the shipped checkpoint's scores into README.md and model_card.md, from its evaluation JSON.

    python tools/write_scores.py

assets/evaluation/DECODER.json are the results.json files that eval_au.py wrote for each decoder on the same images. The
tables stand between markers, and a test checks that they are what this script writes: no number is typed by hand.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVALUATIONS = ROOT / "assets" / "evaluation"
METRICS = {"f1": "F1", "roc_auc": "ROC AUC", "ece": "ECE", "icc": "ICC(3,1)", "pcc": "PCC", "mae": "MAE"}


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
        for name, result in json.loads(path.read_text())["formats"].items():
            cells = [
                number(result["mean"][key], result["mean_interval"].get(key)) if key in result["mean"] else ""
                for key in METRICS
            ]
            unread = f"{result['unparsed'] / result['annotated']:.1%}"
            lines.append(f"| {path.stem} | {name} | {' | '.join(cells)} | {unread} |")
    note = (
        "Means over AUs; in brackets 95 % bootstrap intervals over people (none for the expected calibration error, ECE, "
        "which resampling inflates). MAE is in the units of the scale (5 or 1)."
    )
    return "\n".join([*lines, "", note])


def per_au_table() -> str:
    """One row per AU and format, slots decoder."""
    lines = [f"| format | AU | present | {' | '.join(METRICS.values())} |", "|---|---|---:|" + "---:|" * len(METRICS)]
    for name, result in json.loads((EVALUATIONS / "slots.json").read_text())["formats"].items():
        for label, scores in result["per_au"].items():
            cells = [number(scores[key]) if key in scores else "" for key in METRICS]
            lines.append(f"| {name} | {label} | {scores['support']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """`text` with the tables between its markers."""
    for marker, table in (("scores", mean_table), ("per-au", per_au_table)):
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    for name in ("README.md", "model_card.md"):
        (ROOT / name).write_text(filled((ROOT / name).read_text()))
        print(f"Written: {name}")
