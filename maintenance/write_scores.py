"""Write the shipped checkpoint's scores into the documents, from its evaluation JSON.

    python maintenance/write_scores.py
    python maintenance/write_scores.py slots=runs/eval-slots free=runs/eval-free constrained=runs/eval-constrained
    python maintenance/write_scores.py held-out=runs/held-out.json robustness=runs/robustness/robustness.json
    python maintenance/write_scores.py comparison=runs/comparison/comparison.json
    python maintenance/write_scores.py photographs=runs/photographs.json agreement=runs/agreement.json
    python maintenance/write_scores.py priors=runs/calibration/calibration.json

assets/evaluation/DECODER.json are the results.json files that eval_au.py wrote for each decoder on the same images, the
others what benchmarks/held_out.py, robustness.py, comparison.py, photographs.py and agreement.py wrote; the other
commands take over new ones (without the scores per subject). photographs-before and agreement-before are those of the
last checkpoint that was trained on rendered faces only (commit 4957c54). The tables stand between markers, and a test
checks that they are what this script writes: nobody types a number by hand.
"""

import json
import re
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVALUATIONS = ROOT / "assets" / "evaluation"
DOCUMENTS = ("README.md", "model_card.md", "docs/evaluation.md", "docs/photographs.md", "docs/results.md")
DECODERS = ("slots", "free", "constrained")
METRICS = {"f1": "F1", "roc_auc": "ROC AUC", "ece": "ECE", "icc": "ICC(3,1)", "pcc": "PCC", "mae": "MAE"}


def take_over(name: str, path: Path) -> None:
    """Copy an evaluation, the folder of a decoder's or the JSON file of a benchmark's, into assets/evaluation."""
    results = json.loads((path / "results.json" if name in DECODERS else path).read_text())
    if name in DECODERS:
        if results["provenance"]["decoding"] != name:
            raise ValueError(f"{path} was read by {results['provenance']['decoding']}, not by {name}.")
        for scores in results["formats"].values():
            del scores["per_subject"]
    told = json.dumps(results).replace(f'"{ROOT}"', '"."')  # the checkpoint here, wherever that is
    (EVALUATIONS / f"{name}.json").write_text(told + "\n")


def evaluation(name: str) -> dict:
    return json.loads((EVALUATIONS / f"{name}.json").read_text())


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
    for decoder in DECODERS:
        for name, result in evaluation(decoder)["formats"].items():
            cells = [
                number(result["mean"][key], result["mean_interval"].get(key)) if key in result["mean"] else ""
                for key in METRICS
            ]
            unread = f"{result['unparsed'] / result['annotated']:.1%}"
            lines.append(f"| {decoder} | {name} | {' | '.join(cells)} | {unread} |")
    note = (
        "Means over AUs; in brackets 95 % bootstrap intervals over people (none for the expected calibration error, "
        "ECE, which resampling inflates). MAE, in units of the scale (5 or 1), is of the distribution's median, ICC "
        "and PCC of its mean."
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


def held_out_table() -> str:
    """One row per family of looks and format: the same faces in usual looks and in it, slots decoder."""
    lines = [
        "| look never shown | format | metric | usual looks | this look | difference |",
        "|---|---|---|---:|---:|---:|",
    ]
    for family, formats in evaluation("held-out")["families"].items():
        for name, metrics in formats.items():
            metric = next(key for key in ("icc", "pcc", "f1") if key in metrics)
            each = metrics[metric]
            difference = number(each["difference"], each["interval"])
            scores = f"{number(each['usual'])} | {number(each['held_out'])}"
            lines.append(f"| {family} | {name} | {METRICS[metric]} | {scores} | {difference} |")
    return "\n".join(lines)


def robustness_table() -> str:
    """One row per factor and level: the headline metric of each format, slots decoder."""
    factors = evaluation("robustness")["factors"]
    first = next(iter(next(iter(factors.values())).values()))
    heads = [f"{name} {METRICS[each['metric']]}" for name, each in first.items()]
    lines = [f"| changed | level | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for factor, levels in factors.items():
        for level, formats in levels.items():
            cells = [number(each["value"], each["interval"]) for each in formats.values()]
            lines.append(f"| {factor} | {level} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_table() -> str:
    """One row per format and metric: the four systems and by how much slots differ from the others.

    Means are over the AUs for which the metric is defined, differences over those for which both are.
    """
    found = evaluation("comparison")
    others = list(found["slots_minus"])
    heads = [*found["systems"], *(f"slots minus {name}" for name in others)]
    lines = [f"| format | metric | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for name, metrics in found["systems"]["slots"].items():
        for metric in metrics:
            means = [system[name].get(metric, {"value": None, "averaged": 0}) for system in found["systems"].values()]
            most = max(mean["averaged"] for mean in means)
            cells = [
                number(mean["value"]) + (f" ({mean['averaged']} of {most} AUs)" if 0 < mean["averaged"] < most else "")
                for mean in means
            ]
            for other in others:
                each = found["slots_minus"][other][name].get(metric)
                cells.append(number(each["difference"], each["interval"]) if each else "")
            lines.append(f"| {name} | {METRICS[metric]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def result(each: dict) -> str:
    return number(each["value"], each["interval"])


def photographs_table() -> str:
    """The London set: smile against neutral, and AU12 read into neutral faces; before, now and MediaPipe."""
    before, now = evaluation("photographs-before"), evaluation("photographs")
    heads = ["measure", "format", "AU", "rendered faces only", "shipped", "MediaPipe's blendshapes"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---:|---:|---:|"]

    def row(*words: str, path: tuple[str, ...], beside: str = "") -> None:
        cells = [result(reduce(getitem, path, each)) for each in (before, now)]
        lines.append(f"| {' | '.join([*words, *cells, beside])} |")

    smile = {
        "expected": "smile against neutral, AUC of the expected value",
        "probability": "the same, of the probability",
        "found": "share of smiling faces whose AU is found",
    }
    for key, words in smile.items():
        for name, aus in now["smile"].items():
            for label in aus:
                shape = now.get("mediapipe", {}).get(label) if key == "expected" else None
                beside = f"{result(shape)}, {shape['blendshape']}" if shape else ""
                row(words, name, label, path=("smile", name, label, key), beside=beside)
    for key, how in (("half", "probability above one half"), ("decided", "shipped threshold")):
        words = f"share of neutral faces read as present, {how}"
        for name in ("bp4d", "disfa"):
            row(words, name, "AU12", path=("neutral", "formats", name, "AU12", key))
        row(words, "all", "mean of all", path=("neutral", "mean", key))
    faces = now["faces"]
    note = (
        f"{faces['neutral']} neutral and {faces['smiling']} smiling faces of {faces['people']} people; "
        f"{len(faces['skipped'])} pictures skipped. In brackets 95 % bootstrap intervals over people. Where a format "
        "codes the sides of an AU, the stronger one counts."
    )
    return "\n".join([*lines, "", note])


def photographs_summary() -> str:
    """The London set in five rows, for the README."""
    before, now = evaluation("photographs-before"), evaluation("photographs")
    rows = [
        (f"{label}: smile against neutral, ROC AUC", ("smile", "disfa", label, "expected"))
        for label in ("AU12", "AU6", "AU25")
    ]
    rows.append(("AU12 read into neutral faces, share", ("neutral", "formats", "disfa", "AU12", "decided")))
    rows.append(("any AU of any format read into neutral faces, mean share", ("neutral", "mean", "decided")))
    lines = ["| disfa | rendered faces only | shipped | MediaPipe's blendshape |", "|---|---:|---:|---:|"]
    for words, path in rows:
        shape = now.get("mediapipe", {}).get(path[2]) if path[0] == "smile" else None
        cells = [result(reduce(getitem, path, each)) for each in (before, now)] + [result(shape) if shape else ""]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def neutral_table() -> str:
    """The London set's neutral faces: one row per AU and format, those first that are read into most faces."""
    before, now = (evaluation(name)["neutral"]["formats"] for name in ("photographs-before", "photographs"))
    heads = [
        f"{which}, {what}" for which in ("rendered only", "shipped") for what in ("above one half", "by threshold")
    ]
    lines = [f"| format | AU | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    rows = [(name, label) for name, aus in now.items() for label in aus]
    for name, label in sorted(rows, key=lambda row: -now[row[0]][row[1]]["decided"]["value"]):
        cells = [result(each[name][label][key]) for each in (before, now) for key in ("half", "decided")]
        lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


SHOWN_PRIORS = {
    "bp4d": ("AU1", "AU4", "AU6", "AU12", "AU17"),
    "disfa": ("AU5", "AU25", "AU26"),
    "feafa": ("AU43L", "AU16"),
}


def priors_table() -> str:
    """How frequent some AUs are among rendered people and on photographs, in per cent; how many shifts are bounded."""
    found = evaluation("priors")["priors"]
    lines = ["| | rendered | estimated | used |", "|---|---:|---:|---:|"]
    for name, labels in SHOWN_PRIORS.items():
        for label in labels:
            rates = (f"{100 * found[name][label][key]:.1f}" for key in ("labelled", "estimated", "used"))
            lines.append(f"| {name} {label} | {' | '.join(rates)} |")
    each = [of_au for of_format in found.values() for of_au in of_format.values()]
    least = sum(of_au["shift"] == min(other["shift"] for other in each) for of_au in each)
    still = sum(of_au["shift"] == 0 for of_au in each)
    return "\n".join([*lines, "", f"{least} of the {len(each)} shifts are at the lower bound, {still} at 0."])


AGREEMENT = {
    "pearson": "agreement: Pearson's correlation",
    "spearman": "agreement: Spearman's correlation",
    "roc_auc": "agreement: ROC AUC, teacher at least 0.5 against at most 0.1",
    "difference": "change of the expected value, share of the scale",
    "changed": "share of decisions that change",
    "neutral_present": "share of AUs read into faces that the teacher finds neutral",
}


def agreement_table() -> str:
    """Photographs without labels: the summary, before and now."""
    before, now = evaluation("agreement-before"), evaluation("agreement")
    lines = ["| mean over AUs | rendered faces only | shipped |", "|---|---:|---:|"]
    for key, words in AGREEMENT.items():
        lines.append(f"| {words} | {result(before['summary'][key])} | {result(now['summary'][key])} |")
    note = (
        f"{now['faces']['images']:,} photographs; {now['neutral']['images']:,} that the teacher finds neutral. In "
        "brackets 95 % bootstrap intervals over people."
    )
    return "\n".join([*lines, "", note])


def agreement_per_au_table() -> str:
    """One row per AU and format that the teacher is believed on, before and now."""
    before, now = (evaluation(name)["agreement"] for name in ("agreement-before", "agreement"))
    heads = [f"{metric}, {which}" for metric in ("Spearman", "ROC AUC") for which in ("rendered only", "shipped")]
    lines = [f"| format | AU | clear and strong | {' | '.join(heads)} |", "|---|---|---:|" + "---:|" * len(heads)]
    for name, aus in now.items():
        for label, each in aus.items():
            cells = [result(of[name][label][key]) for key in ("spearman", "roc_auc") for of in (before, now)]
            lines.append(f"| {name} | {label} | {each['roc_auc']['positives']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def photograph_groups_table() -> str:
    """One row per AU and group of people, with the largest gap between groups below."""
    lines = [
        "| AU | groups of | group | images | read as present | agreement: ROC AUC | bias |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    gaps = ["| AU | groups of | best | worst | gap in ROC AUC | p (Holm) |", "|---|---|---|---|---:|---:|"]
    for label, each in evaluation("agreement")["groups"].items():
        for column, groups in each["columns"].items():
            for group, of_group in groups.items():
                cells = [result(of_group[key]) for key in ("present", "roc_auc", "bias")]
                lines.append(f"| {label} | {column} | {group} | {of_group['n']} | {' | '.join(cells)} |")
            gap = each["gaps"][column].get("roc_auc")
            if gap:
                best, worst = (f"{name}: {groups[name]['roc_auc']['value']:.3f}" for name in gap["groups"])
                difference = number(gap["difference"], gap["interval"])
                gaps.append(f"| {label} | {column} | {best} | {worst} | {difference} | {gap['p_holm']:.3f} |")
    few = [
        f"{label}, {column}: {', '.join(groups)}"
        for label, each in evaluation("agreement")["groups"].items()
        for column, groups in each["too_small"].items()
        if groups
    ]
    note = f"Too few clear faces to compare: {'; '.join(few)}." if few else ""
    return "\n".join([*lines, "", *gaps, *(["", note] if note else [])])


TABLES = {
    "scores": mean_table,
    "per-au": per_au_table,
    "groups": group_table,
    "abstention": abstention_table,
    "contradictions": contradiction_line,
    "held-out": held_out_table,
    "robustness": robustness_table,
    "comparison": comparison_table,
    "photographs": photographs_table,
    "photographs-summary": photographs_summary,
    "photographs-neutral": neutral_table,
    "agreement": agreement_table,
    "agreement-per-au": agreement_per_au_table,
    "photograph-groups": photograph_groups_table,
    "priors": priors_table,
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
