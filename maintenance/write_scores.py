"""Write the shipped checkpoint's scores into the documents, from the JSON files in assets/evaluation.

    python maintenance/write_scores.py
    python maintenance/write_scores.py slots=runs/eval-slots free=runs/eval-free constrained=runs/eval-constrained
    python maintenance/write_scores.py held-out=runs/held-out.json robustness=runs/robustness/robustness.json
    python maintenance/write_scores.py comparison=runs/comparison/comparison.json
    python maintenance/write_scores.py photographs=runs/photographs.json agreement=runs/agreement.json
    python maintenance/write_scores.py priors=runs/calibration/calibration.json animation=runs/animation.json

slots.json, free.json and constrained.json are the results.json of eval_au.py for each decoder on the same images, the
others come from benchmarks/held_out.py, robustness.py, comparison.py, photographs.py, agreement.py (also codes and
codes-london) and animation.py and from `eval_au.py calibrate`. NAME=FILE takes over a new one, without the scores per
subject. NAME-before is that of the last checkpoint trained on rendered faces only (commit 4957c54). The tables stand
between markers; a test checks that the documents hold what this script writes, so nobody types a number by hand.
"""

import json
import re
import sys
from collections.abc import Sequence
from functools import partial, reduce
from operator import getitem
from pathlib import Path

from au_llava.au_evaluation.tables import HEADLINE, METRICS, markdown_table, metric_names, number
from au_llava.au_runs.commands import CommandParser, run_command

ROOT = Path(__file__).resolve().parent.parent
EVALUATIONS = ROOT / "assets" / "evaluation"
DECODERS = ("slots", "free", "constrained")


def take_over(name: str, path: Path) -> None:
    """Copy an evaluation (the folder of a decoder's, the JSON file of a benchmark's) into assets/evaluation.

    Raises ValueError for an unknown name, or results of another decoder.
    """
    known = sorted(file.stem for file in EVALUATIONS.glob("*.json"))
    if name not in known:
        raise ValueError(f"There is no evaluation {name!r}: write NAME=PATH with a name of {', '.join(known)}.")
    results = json.loads((path / "results.json" if name in DECODERS else path).read_text())
    if name in DECODERS:
        if results["provenance"]["decoding"] != name:
            raise ValueError(f"{path} was read by {results['provenance']['decoding']}, not by {name}.")
        for scores in results["formats"].values():
            del scores["per_subject"]
    text = json.dumps(results).replace(f'"{ROOT}"', '"."')  # the checkpoint here, wherever that is
    (EVALUATIONS / f"{name}.json").write_text(text + "\n")


def evaluation(name: str) -> dict:
    return json.loads((EVALUATIONS / f"{name}.json").read_text())


def scored(score: dict) -> str:
    """{"value", "interval"} as text."""
    return number(score["value"], score["interval"])


def difference(score: dict) -> str:
    """{"difference", "interval"} as text."""
    return number(score["difference"], score["interval"])


def mean_table() -> str:
    """One row per decoder and format: means over AUs with their intervals."""
    rows = []
    for decoder in DECODERS:
        for name, result in evaluation(decoder)["formats"].items():
            means, bounds = result["mean"], result["mean_interval"]
            cells = [number(means[metric], bounds.get(metric)) if metric in means else "" for metric in HEADLINE]
            rows.append([decoder, name, *cells, f"{result['unparsed'] / result['annotated']:.1%}"])
    header = ["decoder", "format", *metric_names(), "unread"]
    note = (
        "Means over AUs; in brackets 95 % bootstrap intervals over people (none for the expected calibration error, "
        "ECE, which resampling inflates). MAE, in units of the scale (5 or 1), is of the distribution's median, ICC "
        "and PCC of its mean."
    )
    return f"{markdown_table(header, rows, 'll' + 'r' * (len(header) - 2))}\n\n{note}"


def per_au_table() -> str:
    """One row per AU and format, slots decoder."""
    rows = [
        [name, label, str(scores["support"]), *(number(scores[key]) if key in scores else "" for key in HEADLINE)]
        for name, result in evaluation("slots")["formats"].items()
        for label, scores in result["per_au"].items()
    ]
    return markdown_table(["format", "AU", "present", *metric_names()], rows, "llr" + "r" * len(HEADLINE))


def group_table() -> str:
    """One row per metadata column and format: the largest gap in ROC AUC between its groups, slots decoder."""
    rows = []
    for name, result in evaluation("slots")["formats"].items():
        audit = result["groups"]
        for column, gaps in audit["gaps"].items():
            gap, groups = gaps["roc_auc"], audit["columns"][column]
            extremes = [f"{group}: {number(groups[group]['mean']['roc_auc'])}" for group in gap["groups"]]
            rows.append([column, name, *extremes, difference(gap), number(gap["p_holm"])])
    return markdown_table(["groups of", "format", "best", "worst", "gap in ROC AUC", "p (Holm)"], rows, "llllrr")


def abstention_table() -> str:
    """One row per format: what withholding unsure answers does, slots decoder."""
    keys = ("error_rate", "risk", "coverage", "coverage_present")
    rows = [
        [name, *(f"{result['abstention']['mean'][key]:.1%}" for key in keys)]
        for name, result in evaluation("slots")["formats"].items()
    ]
    header = ["format", "wrong decisions", "wrong among kept", "kept", "kept where present"]
    return markdown_table(header, rows, "lrrrr")


def contradiction_line() -> str:
    """How often formats contradict each other, slots decoder."""
    counts = evaluation("slots")["contradictions"]
    pairs = "; ".join(f"{pair} ({count})" for pair, count in list(counts["per_pair"].items())[:3])
    share = counts["images"] / counts["asked_together"]
    return f"{counts['images']} of {counts['asked_together']:,} images ({share:.0%}); most often: {pairs}."


def held_out_table() -> str:
    """One row per family of looks and format: the same faces in usual looks and in it, slots decoder."""
    rows = []
    for family, formats in evaluation("held-out")["families"].items():
        for name, metrics in formats.items():
            metric = next(key for key in ("icc", "pcc", "f1") if key in metrics)
            scores = metrics[metric]
            cells = [number(scores["usual"]), number(scores["held_out"]), difference(scores)]
            rows.append([family, name, METRICS[metric].name, *cells])
    header = ["look never shown", "format", "metric", "usual looks", "this look", "difference"]
    return markdown_table(header, rows, "lllrrr")


def robustness_table() -> str:
    """One row per factor and level: the headline metric of each format, slots decoder."""
    factors = evaluation("robustness")["factors"]
    first = next(iter(next(iter(factors.values())).values()))
    heads = [f"{name} {METRICS[score['metric']].name}" for name, score in first.items()]
    rows = [
        [factor, level, *map(scored, formats.values())]
        for factor, levels in factors.items()
        for level, formats in levels.items()
    ]
    return markdown_table(["changed", "level", *heads], rows, "ll" + "r" * len(heads))


def comparison_table() -> str:
    """One row per format and metric: the four systems, and slots minus each of the others.

    Means are over the AUs for which the metric is defined, differences over those for which it is in both systems.
    """
    comparison = evaluation("comparison")
    systems, differences = comparison["systems"], comparison["slots_minus"]
    heads = [*systems, *(f"slots minus {name}" for name in differences)]
    rows = []
    for name, metrics in systems["slots"].items():
        for metric in metrics:
            means = [system[name].get(metric, {"value": None, "averaged": 0}) for system in systems.values()]
            most = max(mean["averaged"] for mean in means)
            cells = [
                number(mean["value"]) + (f" ({mean['averaged']} of {most} AUs)" if 0 < mean["averaged"] < most else "")
                for mean in means
            ]
            minus = [of_other[name].get(metric) for of_other in differences.values()]
            rows.append([name, METRICS[metric].name, *cells, *(difference(each) if each else "" for each in minus)])
    return markdown_table(["format", "metric", *heads], rows, "ll" + "r" * len(heads))


def photographs_table() -> str:
    """The London set: smile against neutral, and AU12 read into neutral faces; before, now and MediaPipe."""
    before, now = evaluation("photographs-before"), evaluation("photographs")
    rows = []

    def add(*words: str, path: tuple[str, ...], beside: str = "") -> None:
        rows.append([*words, *(scored(reduce(getitem, path, results)) for results in (before, now)), beside])

    smile = {
        "expected": "smile against neutral, AUC of the expected value",
        "probability": "the same, of the probability",
        "found": "share of smiling faces whose AU is found",
    }
    for key, words in smile.items():
        for name, aus in now["smile"].items():
            for label in aus:
                shape = now.get("mediapipe", {}).get(label) if key == "expected" else None
                beside = f"{scored(shape)}, {shape['blendshape']}" if shape else ""
                add(words, name, label, path=("smile", name, label, key), beside=beside)
    for key, how in (("half", "probability above one half"), ("decided", "shipped threshold")):
        words = f"share of neutral faces read as present, {how}"
        for name in ("bp4d", "disfa"):
            add(words, name, "AU12", path=("neutral", "formats", name, "AU12", key))
        add(words, "all", "mean of all", path=("neutral", "mean", key))
    header = ["measure", "format", "AU", "rendered faces only", "shipped", "MediaPipe's blendshapes"]
    faces = now["faces"]
    note = (
        f"{faces['neutral']} neutral and {faces['smiling']} smiling faces of {faces['people']} people; "
        f"{len(faces['skipped'])} pictures skipped. In brackets 95 % bootstrap intervals over people. Where a format "
        "codes the sides of an AU, the stronger one counts."
    )
    return f"{markdown_table(header, rows, 'lllrrr')}\n\n{note}"


def photographs_summary() -> str:
    """The London set in a few rows, for the README."""
    before, now = evaluation("photographs-before"), evaluation("photographs")
    measures = [
        (f"{label}: told to smile against neutral, ROC AUC (disfa)", ("smile", "disfa", label, "expected"))
        for label in ("AU12", "AU6", "AU25")
    ]
    measures.append(("AU12 read into neutral faces, share (disfa)", ("neutral", "formats", "disfa", "AU12", "decided")))
    measures.append(("any AU of any format read into neutral faces, mean share", ("neutral", "mean", "decided")))
    rows = []
    for words, path in measures:
        shape = now.get("mediapipe", {}).get(path[2]) if path[0] == "smile" else None
        cells = [scored(reduce(getitem, path, results)) for results in (before, now)]
        rows.append([words, *cells, scored(shape) if shape else ""])
    for place, (name, label) in enumerate((("bp4d", "AU12"), ("bp4d", "AU6"), ("disfa", "AU25"))):
        of_au = (evaluation(each)["agreement"][name][label] for each in ("codes-london-before", "codes-london"))
        cells = [scored(each["roc_auc"]) for each in of_au]
        rows.insert(place, [f"{label}: seen by eye against not seen, ROC AUC ({name})", *cells, ""])
    return markdown_table(["", "rendered faces only", "shipped", "MediaPipe's blendshape"], rows, "lrrr")


def neutral_table() -> str:
    """The London set's neutral faces: one row per AU and format, those read into most faces first."""
    before, now = (evaluation(name)["neutral"]["formats"] for name in ("photographs-before", "photographs"))
    heads = [
        f"{which}, {what}" for which in ("rendered only", "shipped") for what in ("above one half", "by threshold")
    ]
    columns = [(name, label) for name, aus in now.items() for label in aus]
    columns.sort(key=lambda column: -now[column[0]][column[1]]["decided"]["value"])
    rows = [
        [name, label, *(scored(shares[name][label][key]) for shares in (before, now) for key in ("half", "decided"))]
        for name, label in columns
    ]
    return markdown_table(["format", "AU", *heads], rows, "ll" + "r" * len(heads))


SHOWN_PRIORS = {
    "bp4d": ("AU1", "AU4", "AU6", "AU12", "AU14", "AU17"),
    "disfa": ("AU5", "AU25", "AU26"),
    "feafa": ("AU43L", "AU16"),
}


def priors_table() -> str:
    """How frequent some AUs are among rendered people and in photographs, in percent; how many shifts are bounded."""
    priors = evaluation("priors")["priors"]
    rows = [
        [
            f"{name} {label}",
            *(f"{100 * priors[name][label][key]:.1f}" for key in ("labelled", "estimated", "used")),
            "codes" if priors[name][label]["coded"] else "likelihood",
        ]
        for name, labels in SHOWN_PRIORS.items()
        for label in labels
    ]
    shifts = [prior["shift"] for of_format in priors.values() for prior in of_format.values()]
    coded = sum(prior["coded"] for of_format in priors.values() for prior in of_format.values())
    note = (
        f"{coded} of the {len(shifts)} shifts are by codes; {shifts.count(min(shifts))} are at the lower bound, "
        f"{shifts.count(0)} at 0."
    )
    return f"{markdown_table(['', 'rendered', 'estimated', 'used', 'by'], rows, 'lrrrl')}\n\n{note}"


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
    rows = [[words, scored(before["summary"][key]), scored(now["summary"][key])] for key, words in AGREEMENT.items()]
    note = (
        f"{now['faces']['images']:,} photographs; {now['neutral']['images']:,} that the teacher finds neutral. In "
        "brackets 95 % bootstrap intervals over people."
    )
    return f"{markdown_table(['mean over AUs', 'rendered faces only', 'shipped'], rows, 'lrr')}\n\n{note}"


def agreement_per_au_table(of: str = "agreement") -> str:
    """One row per AU and format on which the teacher is believed, or that was coded by eye: ranks before and now."""
    before, now = (evaluation(name)["agreement"] for name in (f"{of}-before", of))
    heads = [f"{metric}, {which}" for metric in ("Spearman", "ROC AUC") for which in ("rendered only", "shipped")]
    heads += ["F1, shipped", "found where strong", "found where near zero"]
    rows = []
    for name, aus in now.items():
        for label, scores in aus.items():
            cells = [scored(each[name][label][key]) for key in ("spearman", "roc_auc") for each in (before, now)]
            cells += [scored(scores[key]) for key in ("f1", "found_strong", "found_near_zero")]
            rows.append([name, label, str(scores["found_strong"]["n"]), *cells])
    return markdown_table(["format", "AU", "strong", *heads], rows, "llr" + "r" * len(heads))


def codes_table() -> str:
    """How far the checkpoint agrees with codes by eye, before and now."""
    before, now = evaluation("codes-before"), evaluation("codes")
    words = {
        "roc_auc": "ROC AUC",
        "f1": "F1",
        "found_strong": "share of AUs found where they are strong",
        "found_near_zero": "share of AUs found where they are near zero",
        "spearman": "Spearman's correlation",
        "pearson": "Pearson's correlation",
    }
    rows = [[word, scored(before["summary"][key]), scored(now["summary"][key])] for key, word in words.items()]
    note = f"{now['faces']['images']:,} photographs. In brackets 95 % bootstrap intervals over people."
    return f"{markdown_table(['mean over AUs', 'rendered faces only', 'shipped'], rows, 'lrr')}\n\n{note}"


def found_table() -> str:
    """In which share of the photographs each AU is found, before and now, the most frequent first."""
    before, now = (evaluation(name)["found"] for name in ("agreement-before", "agreement"))
    columns = [(name, label) for name, aus in now.items() for label in aus]
    columns.sort(key=lambda column: -now[column[0]][column[1]]["present"]["value"])
    rows = [
        [name, label, *(scored(shares[name][label]["present"]) for shares in (before, now))] for name, label in columns
    ]
    return markdown_table(["format", "AU", "rendered faces only", "shipped"], rows, "llrr")


def photograph_groups_table() -> str:
    """One row per AU and group of people, with the largest gap between groups below."""
    rows, gaps, too_small = [], [], []
    for label, audit in evaluation("agreement")["groups"].items():
        for column, groups in audit["columns"].items():
            for name, group in groups.items():
                cells = [scored(group[key]) for key in ("present", "roc_auc", "bias")]
                rows.append([label, column, name, str(group["n"]), *cells])
            gap = audit["gaps"][column].get("roc_auc")
            if gap:
                extremes = [f"{name}: {number(groups[name]['roc_auc']['value'])}" for name in gap["groups"]]
                gaps.append([label, column, *extremes, difference(gap), number(gap["p_holm"])])
        too_small += [f"{label}, {column}: {', '.join(few)}" for column, few in audit["too_small"].items() if few]
    header = ["AU", "groups of", "group", "images", "read as present", "agreement: ROC AUC", "bias"]
    tables = [
        markdown_table(header, rows, "lllrrrr"),
        markdown_table(["AU", "groups of", "best", "worst", "gap in ROC AUC", "p (Holm)"], gaps, "llllrr"),
    ]
    note = [f"Too few clear faces to compare: {'; '.join(too_small)}."] if too_small else []
    return "\n\n".join(tables + note)


def animation_table() -> str:
    """One row per AU of the format for animators, with the shapes that it gives."""
    results = evaluation("animation")
    rendered, photographs = results["rendered"], results["photographs"]
    rows = []
    for label, exact in rendered["per_au"].items():
        shapes = [shape for shape, source in results["sources"].items() if source == label]
        beside = [photographs[shape] for shape in shapes if shape in photographs]
        cells = [number(exact[metric], exact["interval"][metric]) for metric in ("pcc", "icc")]
        cells += ["; ".join(map(scored, beside)), "; ".join(f"{each['spread']:.2f}" for each in beside)]
        rows.append([label, ", ".join(f"`{shape}`" for shape in shapes), *cells])
    header = ["AU", "shapes", "PCC, rendered", "ICC(3,1), rendered", "correlation, photographs", "95th percentile"]
    means = [number(rendered["mean"][metric], rendered["mean_interval"][metric]) for metric in ("pcc", "icc")]
    note = (
        f"{rendered['n']:,} rendered images, mean over AUs: PCC {means[0]}, ICC {means[1]}. "
        f"{results['faces']['images']:,} photographs. In brackets 95 % bootstrap intervals over people."
    )
    return markdown_table(header, rows, "llrrrr") + "\n\n" + note


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
    "codes": codes_table,
    "codes-per-au": partial(agreement_per_au_table, "codes"),
    "codes-london": partial(agreement_per_au_table, "codes-london"),
    "photographs-found": found_table,
    "photograph-groups": photograph_groups_table,
    "priors": priors_table,
    "animation": animation_table,
}


MARKED = re.compile(rf"(<!-- ({'|'.join(TABLES)}) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def documents() -> dict[str, str]:
    """Name -> text of the documents that hold one of the tables."""
    paths = [ROOT / "README.md", ROOT / "model_card.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {name: text for name, text in texts.items() if MARKED.search(text)}


def filled(text: str) -> str:
    """`text` with the tables between its markers."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = CommandParser(__doc__)
    parser.add_argument("evaluations", nargs="*", metavar="NAME=PATH", help="evaluations to take over first")
    arguments = parser.parse_args(words)

    def main() -> None:
        for argument in arguments.evaluations:
            name, _, path = argument.partition("=")
            take_over(name, Path(path))
        for name, text in documents().items():
            (ROOT / name).write_text(filled(text), encoding="utf-8")
            print(f"Written: {name}")

    return run_command("write_scores.py", main)


if __name__ == "__main__":
    sys.exit(run())
