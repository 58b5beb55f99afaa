"""The audits against plain loops and answers worked out by hand."""

import json
import math
from collections import defaultdict

import numpy as np
import pytest

from au_llava.action_units import AUFormat
from au_llava.au_evaluation.abstention import abstention_thresholds, apply_abstention
from au_llava.au_evaluation.group_audit import bands, group_audit
from au_llava.au_evaluation.parse_audit import parse_audit
from au_llava.metrics_au import score

NAN = float("nan")
OCCURRENCE = AUFormat("o", ("AU6", "AU12"), "occurrence")
INTENSITY = AUFormat("i", ("AU6", "AU12"), "intensity")


# Parsing.


def written(fmt, *answers):
    return [{"format": fmt.name, "text": text, "references": list(labels)} for text, *labels in answers]


MIXED = written(
    OCCURRENCE,
    ("AU6: 1, AU12: 0", 1, 0),  # as asked
    ("AU06=1; AU 12 is absent", 1, 1),  # fine, in other words
    ("AU12 is not visible", 1, 0),  # says nothing of AU6
    ("AU6: 1, AU12: 1, AU99: 1", 0, 1),  # an AU that nobody asked for, nor knows
    ("AU6: 1, AU6: 0, AU12: 1, AU40: 0", 0, 1),  # contradicts itself
    ("", 1, NAN),
)


def test_parse_audit_by_hand():
    audit = parse_audit(MIXED, OCCURRENCE)
    assert (audit["n"], audit["annotated"], audit["failed"], audit["conflicting"]) == (6, 11, 4, 1)
    assert audit["failure_rate"] == pytest.approx(4 / 6)
    assert audit["verbatim_rate"] == pytest.approx(1 / 6)
    assert audit["unknown_aus"] == {"AU99": 1, "AU40": 1}
    # AU6: read, read, missing, read, conflict, missing; AU12: read five times, then not annotated.
    assert audit["status"] == {"read": 8, "missing": 2, "conflict": 1}
    assert audit["unread_rate"] == {"lenient": pytest.approx(3 / 11), "strict": pytest.approx(7 / 11)}
    assert audit["coverage"] == {
        "lenient": {"AU6": pytest.approx(3 / 6), "AU12": 1},
        "strict": {"AU6": pytest.approx(2 / 6), "AU12": pytest.approx(2 / 5)},
    }
    assert audit["denied_in_words"] == {"answers": 2, "cells": 2}  # AU12 in the second and third
    assert json.loads(json.dumps(audit)) == audit


@pytest.mark.parametrize(
    ("reading", "convention", "au6", "au12"),  # tp, fp, fn of each
    [
        ("lenient", "left_out", (2, 1, 0), (2, 0, 1)),
        ("lenient", "absent", (2, 1, 2), (2, 0, 1)),
        ("strict", "left_out", (2, 0, 0), (0, 0, 1)),
        ("strict", "absent", (2, 0, 2), (0, 0, 3)),
    ],
)
def test_what_is_unread_counts_as_stated(reading, convention, au6, au12):
    f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in (au6, au12)]
    assert parse_audit(MIXED, OCCURRENCE)["scores"][reading][convention] == {
        "mean": {"f1": pytest.approx(sum(f1) / 2)},
        "averaged": {"f1": 2},
    }


def test_absent_flatters_where_aus_are_rare():
    rows = written(OCCURRENCE, *[("I cannot tell", 0, 0)] * 9, ("AU6: 1, AU12: 1", 1, 1))
    scores = parse_audit(rows, OCCURRENCE)["scores"]
    assert scores["lenient"]["absent"]["mean"]["f1"] == 1
    values = [[0, 0]] * 9 + [[1, 1]]
    assert score(values, values, OCCURRENCE)["mean"]["accuracy"] == 1  # nine failures in ten answers, and no trace


def test_intensity_has_icc_and_mae():
    rows = written(
        INTENSITY, ("AU6: 0, AU12: 3", 0, 4), ("AU6: 2, AU12: 7", 2, 5), ("AU6: 4", 5, 1), ("AU6: 1, AU12: 1", 1, 1)
    )
    audit = parse_audit(rows, INTENSITY)
    assert audit["status"] == {"read": 6, "out of range": 1, "missing": 1}
    lenient, strict = (audit["scores"][reading] for reading in ("lenient", "strict"))
    assert lenient["left_out"]["mean"]["mae"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert lenient["absent"]["mean"]["mae"] == pytest.approx((1 / 4 + (1 + 5 + 1 + 0) / 4) / 2)
    assert strict["left_out"]["mean"]["mae"] == pytest.approx((0 + 1 / 2) / 2)
    assert strict["absent"]["mean"]["mae"] == pytest.approx(((2 + 5) / 4 + (1 + 5 + 1 + 0) / 4) / 2)
    values = np.array([[0, 3], [2, 0], [4, 0], [1, 1]])
    references = np.array([row["references"] for row in rows])
    assert lenient["absent"]["mean"]["icc"] == score(values, references, INTENSITY)["mean"]["icc"]


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("AU6: 0, AU12: 0", 0),
        ("AU6: 1, AU12: absent", 1),
        ("AU6 is visible, AU12 isn't visible", 1),
        ("neither AU6 nor AU12", 2),
        ("AU12", 0),  # a list: AU6 is absent because it is left out
        ("AU6: 0 (not visible), AU12: 1", 0),  # the number says it as well
    ],
)
def test_denials_in_words_are_counted(text, cells):
    assert parse_audit(written(OCCURRENCE, (text, 0, 0)), OCCURRENCE)["denied_in_words"]["cells"] == cells


def test_nothing_annotated_is_undefined():
    audit = parse_audit(written(OCCURRENCE, ("AU6: 1, AU12: 0", NAN, NAN)), OCCURRENCE)
    assert math.isnan(audit["unread_rate"]["lenient"])
    assert math.isnan(audit["coverage"]["strict"]["AU6"])
    assert math.isnan(audit["scores"]["lenient"]["absent"]["mean"]["f1"])


# Bands.


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (range(1, 11), ["1 to 4"] * 4 + ["5 to 7"] * 3 + ["8 to 10"] * 3),
        ([-30, -5.4, -4.6, 5.2, 5.3, 30], ["-30 to -5"] * 2 + ["-5 to 5"] * 2 + ["5 to 30"] * 2),
        ([0.1, 0.2, 0.4, 0.6], ["0.1 to 0.2", "0.1 to 0.2", "0.4", "0.6"]),
        ([0.11, 0.12, -0.004, 0.13], ["0.00 to 0.11", "0.12", "0.00 to 0.11", "0.13"]),
        ([7, 3, 7, None, NAN], ["7", "3", "7", None, None]),
        ([0] * 9 + [1, 2, 3], ["0"] * 9 + ["1 to 3"] * 3),
        ([5, 5, 5], ["5"] * 3),
        ([], []),
    ],
)
def test_bands(values, names):
    assert bands(values) == names


def test_bands_are_of_about_equal_size():
    values = np.random.default_rng(0).normal(size=1000)
    names = bands(values)
    assert sorted(names.count(name) for name in set(names)) == [333, 333, 334]
    assert len({name for name, value in zip(names, values, strict=True) if value < -0.8}) == 1


# Groups.


def predicted(fmt, people=12, images=6, seed=0, missing=0.1):
    """Rows of made-up predictions, with cells missing and people of different quality."""
    rng, rows = np.random.default_rng(seed), []
    top, aus = fmt.value_numbers[-1], len(fmt.labels)
    for person in range(people):
        noise = rng.uniform(0.1, 0.6)
        for _ in range(images):
            labels = rng.integers(0, 2, aus) * rng.choice(fmt.value_numbers, aus)
            expected = np.clip(labels + rng.normal(0, noise * top, aus), 0, top)
            probability = np.clip(expected / top + rng.normal(0, 0.1, aus), 0, 1).round(2)
            values = np.round(expected)
            labels, values, expected = (np.where(rng.random(aus) < missing, NAN, e) for e in (labels, values, expected))
            row = {"format": fmt.name, "dataset": "d", "subject": f"s{person:02d}", "references": labels}
            row |= {"values": values, "expected": expected, "probability": probability, "present": probability >= 0.4}
            rows.append({key: each.tolist() if isinstance(each, np.ndarray) else each for key, each in row.items()})
    return rows


def brute_force_means(rows, fmt):
    """metric -> (AUs,) of some rows, by `score` and a loop."""
    column = lambda key: np.array([row[key] for row in rows], float).reshape(len(rows), len(fmt.labels))
    result = score(
        column("values" if fmt.scale == "occurrence" else "expected"),
        column("references"),
        fmt,
        column("probability"),
        column("present"),
    )
    metrics = ["f1", "f1_skew_normalised", "roc_auc", "brier"] + ["icc", "mae"] * (fmt.scale != "occurrence")
    table = {metric: [of_au[metric] for of_au in result["per_au"].values()] for metric in metrics}
    table["bias"] = []
    for au in range(len(fmt.labels)):
        gaps = [
            row["probability"][au] - (row["references"][au] >= fmt.presence_threshold)
            for row in rows
            if not math.isnan(row["references"][au])
        ]
        table["bias"].append(sum(gaps) / len(gaps) if gaps else NAN)
    return {metric: np.array(values) for metric, values in table.items()}


@pytest.mark.parametrize("fmt", [OCCURRENCE, INTENSITY], ids=lambda fmt: fmt.scale)
def test_gaps_equal_a_plain_bootstrap_with_the_same_draws(fmt):
    rows = predicted(fmt)
    rng = np.random.default_rng(1)
    groups = {
        "tone": [("dark", "light", "mid")[int(row["subject"][1:]) % 3] for row in rows],  # one for each person
        "lamp": rng.choice(["hard", "soft"], len(rows)).tolist(),  # both for each person
    }
    resamples, seed = 25, 5
    audit = group_audit(rows, fmt, groups, fewest=3, resamples=resamples, level=0.8, seed=seed)
    people = sorted({row["subject"] for row in rows})
    draws = np.random.default_rng(seed).multinomial(len(people), [1 / len(people)] * len(people), size=resamples)
    for column, of_row in groups.items():
        members = defaultdict(list)
        for row, group in zip(rows, of_row, strict=True):
            members[group].append(row)
        points = {group: brute_force_means(of_group, fmt) for group, of_group in members.items()}
        resampled = []
        for draw in draws:
            times = dict(zip(people, draw, strict=True))
            again = {g: [r for r in of_group for _ in range(times[r["subject"]])] for g, of_group in members.items()}
            resampled.append({group: brute_force_means(of_group, fmt) for group, of_group in again.items()})
        for metric, gap in audit["gaps"][column].items():
            means = {group: np.mean(each[metric]) for group, each in points.items()}
            changes = defaultdict(list)
            for each in resampled:
                defined = ~np.isnan([of_group[metric] for of_group in each.values()]).any(axis=0)
                for group in members if defined.any() else ():
                    changes[group].append(np.mean((each[group][metric] - points[group][metric])[defined]))
            ranges = [max(each) - min(each) for each in zip(*changes.values(), strict=True)]
            difference = max(means.values()) - min(means.values())
            assert gap["difference"] == pytest.approx(difference)
            assert gap["groups"] == [max(means, key=means.get), min(means, key=means.get)]
            assert gap["p"] == pytest.approx((sum(each >= difference for each in ranges) + 1) / (len(ranges) + 1))
            margin = np.quantile(ranges, 0.8)
            assert gap["interval"] == pytest.approx([difference - margin, difference + margin])
            assert gap["averaged"] == 2
            for group, scores in audit["columns"][column].items():
                assert scores["mean"][metric] == pytest.approx(means[group])
                bounds = np.percentile(means[group] + np.array(changes[group]), [10, 90])
                assert scores["mean_interval"][metric] == pytest.approx(bounds.tolist())
        for group, scores in audit["columns"][column].items():
            labels = np.array([row["references"] for row in members[group]])
            assert scores["n"] == len(members[group])
            assert scores["subjects"] == len({row["subject"] for row in members[group]})
            assert scores["rate"] == pytest.approx(np.mean(labels[~np.isnan(labels)] >= fmt.presence_threshold))
    assert json.loads(json.dumps(audit)) == audit


def test_a_known_gap_is_found_and_its_p_values_corrected():
    """Tone decides whether an answer is right and lamp does nothing; the lamp changes within people."""
    rows, tones, lamps = [], [], []
    for person in range(24):
        for image in range(8):
            truth = image % 2
            tone = "dark" if person % 2 else "light"
            wrong = tone == "dark" and image in (person // 2 % 8, (person // 2 + 3) % 8)  # two in eight
            read = float(truth != wrong)
            row = {"format": "o", "dataset": "d", "subject": f"{person}", "references": [truth] * 2}
            row |= dict.fromkeys(("values", "expected", "probability", "present"), [read] * 2)
            rows.append(row)
            tones.append(tone)
            lamps.append("hard" if image < 4 else "soft")
    audit = group_audit(rows, OCCURRENCE, {"tone": tones, "lamp": lamps}, resamples=300)
    light, dark = audit["columns"]["tone"]["light"], audit["columns"]["tone"]["dark"]
    assert list(audit["columns"]["tone"]) == ["dark", "light"]
    assert (light["n"], light["subjects"], light["rate"], light["unparsed"]) == (96, 12, 0.5, 0)
    assert light["mean"]["f1"] == 1
    assert light["mean_interval"]["f1"] == [1, 1]
    assert dark["mean"]["ece"] == pytest.approx(0.25)
    assert "ece" not in audit["gaps"]["tone"]
    assert "ece" not in dark["mean_interval"]
    tone, lamp = audit["gaps"]["tone"]["f1"], audit["gaps"]["lamp"]["f1"]
    assert tone["groups"] == ["light", "dark"]
    assert tone["difference"] == pytest.approx(light["mean"]["f1"] - dark["mean"]["f1"])
    assert tone["interval"][0] > 0
    assert tone["p"] == pytest.approx(1 / 301)
    assert tone["p_holm"] == pytest.approx(2 / 301)
    assert lamp["interval"][0] < 0
    assert lamp["p"] == lamp["p_holm"] > 0.05


def test_groups_of_other_base_rates_differ_in_f1_alone():
    """A reader with recall 0.8 and false alarms at 0.2 everywhere: where the AU is rarer, F1 is lower."""
    rows, group = [], []
    for name, present, absent in (("common", 5, 5), ("rare", 5, 45)):
        for person in range(10):
            for truth, images in ((1, present), (0, absent)):
                for image in range(images):
                    read = float(truth if image % 5 else not truth)
                    row = {"format": "o", "dataset": "d", "subject": f"{name}{person}", "references": [truth] * 2}
                    row |= dict.fromkeys(("values", "expected", "probability", "present"), [read] * 2)
                    rows.append(row)
                    group.append(name)
    gaps = group_audit(rows, OCCURRENCE, {"group": group}, resamples=50)["gaps"]["group"]
    assert gaps["f1"]["difference"] == pytest.approx(0.8 - 2 * 0.8 / (0.8 + 1 + 1.8))  # 2 tp / (2 tp + fp + fn)
    assert gaps["f1"]["p"] < 0.05
    assert gaps["f1_skew_normalised"]["difference"] == pytest.approx(0)
    assert gaps["roc_auc"]["difference"] == pytest.approx(0)
    assert gaps["roc_auc"]["p"] == 1


def test_groups_are_compared_on_the_aus_that_are_defined_in_all():
    rows = predicted(OCCURRENCE, missing=0)
    groups = ["a" if int(row["subject"][1:]) < 6 else "b" for row in rows]
    for row, group in zip(rows, groups, strict=True):
        if group == "b":
            row["references"][1] = NAN
    audit = group_audit(rows, OCCURRENCE, {"g": groups}, fewest=2, resamples=20)
    assert {gap["averaged"] for gap in audit["gaps"]["g"].values()} == {1}
    alone = score(
        [row["values"] for row, group in zip(rows, groups, strict=True) if group == "a"],
        [row["references"] for row, group in zip(rows, groups, strict=True) if group == "a"],
        OCCURRENCE,
        decisions=[row["present"] for row, group in zip(rows, groups, strict=True) if group == "a"],
    )
    assert audit["columns"]["g"]["a"]["mean"]["f1"] == pytest.approx(alone["per_au"]["AU6"]["f1"])
    for row, group in zip(rows, groups, strict=True):
        if group == "b":
            row["references"] = [NAN, NAN]
    audit = group_audit(rows, OCCURRENCE, {"g": groups}, fewest=2, resamples=20)
    assert audit["gaps"]["g"] == {}
    assert math.isnan(audit["columns"]["g"]["b"]["mean"]["f1"])


def test_small_groups_and_unknown_entries_are_left_out_and_numbers_banded():
    rows = predicted(INTENSITY, people=20, images=3)
    person = [int(row["subject"][1:]) for row in rows]
    columns = {
        "number": [float(each) for each in person],
        "name": ["few" if each < 3 else None if each == 3 else "many" for each in person],
        "empty": [None] * len(rows),
    }
    audit = group_audit(rows, INTENSITY, columns, fewest=6, resamples=20)
    assert list(audit["columns"]["number"]) == ["0 to 6", "7 to 13", "14 to 19"]
    assert audit["too_small"] == {"number": {}, "name": {"few": 3}, "empty": {}}
    assert audit["columns"]["name"].keys() == {"many"}
    assert audit["columns"]["name"]["many"]["subjects"] == 16
    assert audit["gaps"]["name"] == audit["gaps"]["empty"] == {}
    assert audit["columns"]["empty"] == {}


def test_one_person_under_two_dataset_names_is_drawn_once():
    rows = [dict(row, dataset=name, subject="SN001") for row in predicted(OCCURRENCE, 2) for name in ("disfa", "feafa")]
    groups = [row["dataset"] for row in rows]
    audit = group_audit(rows, OCCURRENCE, {"dataset": groups}, fewest=1, resamples=20)
    gap = audit["gaps"]["dataset"]["f1"]
    assert gap["interval"] == [0, 0]
    assert gap["p"] == 1


def test_free_answers_are_audited_without_probabilities():
    rows = [dict(row, probability=[NAN, NAN]) for row in predicted(INTENSITY)]
    groups = {"half": ["a" if int(row["subject"][1:]) < 6 else "b" for row in rows]}
    gaps = group_audit(rows, INTENSITY, groups, fewest=2, resamples=20)["gaps"]["half"]
    assert gaps.keys() == {"f1", "f1_skew_normalised", "icc", "mae"}


# Abstention.


def brute_force_threshold(cells):
    """(threshold, coverage, risk) of (probability, present, truth) of one AU: the least confidence that will do."""
    sure = [(p if present else 1 - p, present != truth) for p, present, truth in cells]
    target = sum(wrong for _, wrong in sure) / len(sure) / 2
    for threshold in sorted({confidence for confidence, _ in sure}):
        kept = [wrong for confidence, wrong in sure if confidence >= threshold]
        if sum(kept) / len(kept) <= target:
            return threshold, len(kept) / len(sure), sum(kept) / len(kept)
    return None, 1, 2 * target


@pytest.mark.parametrize("seed", range(3))
def test_abstention_equals_a_plain_search(seed):
    rows = predicted(INTENSITY, seed=seed)
    chosen = abstention_thresholds(rows, INTENSITY)
    judged = apply_abstention(rows, INTENSITY, chosen)["per_au"]
    for au, label in enumerate(INTENSITY.labels):
        cells = [
            (row["probability"][au], row["present"][au], row["references"][au] >= 2)
            for row in rows
            if not math.isnan(row["references"][au])
        ]
        threshold, coverage, risk = brute_force_threshold(cells)
        assert chosen[label] == (None if threshold is None else pytest.approx(threshold))
        assert (judged[label]["coverage"], judged[label]["risk"]) == pytest.approx((coverage, risk))
        assert judged[label]["n"] == len(cells)
        wrong = sum(present != truth for _, present, truth in cells)
        assert judged[label]["error_rate"] == pytest.approx(wrong / len(cells))


ONE = AUFormat("one", ("AU12",), "occurrence")


def read(*cells):
    """Rows of (probability, decision, label)."""
    return [
        {"format": "one", "probability": [p], "present": [decision], "references": [label]}
        for p, decision, label in cells
    ]


def test_abstention_by_hand_with_a_threshold_below_one_half():
    """With the threshold 0.2, the presence found at 0.25 is the least sure answer of all, and wrong."""
    rows = read((0.9, 1, 1), (0.6, 1, 1), (0.4, 1, 0), (0.25, 1, 0), (0.15, 0, 0), (0.1, 0, 1), (0.05, 0, 0))
    rows += read((NAN, NAN, 1), (0.3, 1, NAN))
    # Confidences: 0.95 right, 0.9 right, 0.9 wrong, 0.85 right, 0.6 right, 0.4 wrong, 0.25 wrong; half of 3/7 is 0.214.
    assert abstention_thresholds(rows, ONE) == {"AU12": 0.6}
    found = apply_abstention(rows, ONE, {"AU12": 0.6})["per_au"]["AU12"]
    assert (found["coverage"], found["risk"]) == pytest.approx((5 / 7, 1 / 5))
    assert found["coverage_present"] == 1
    assert (found["error_rate"], found["n"]) == (pytest.approx(3 / 7), 7)

    assert abstention_thresholds(read((0.9, 1, 0), (0.2, 0, 0)), ONE) == {"AU12": None}  # the surest answer is wrong
    assert abstention_thresholds(read((0.9, 1, 1), (0.2, 0, 0)), ONE) == {"AU12": 0.8}  # no error at all


def test_thresholds_are_judged_on_other_rows():
    fmt = AUFormat("o", ("AU6", "AU12", "AU17"), "occurrence")
    test = [
        {"format": "o", "probability": [p, p, NAN], "present": [1, 1, NAN], "references": [a, b, 1]}
        for p, a, b in ((0.9, 1, 0), (0.8, 0, 0), (0.7, 1, 1), (0.6, 0, NAN))
    ]
    judged = apply_abstention(test, fmt, {"AU6": 0.75, "AU12": None, "AU17": 0.9})
    au6 = {"threshold": 0.75, "coverage": 0.5, "coverage_present": 0.5, "risk": 0.5, "error_rate": 0.5, "n": 4}
    assert judged["per_au"]["AU6"] == au6
    assert judged["per_au"]["AU12"]["coverage"] == 1
    assert judged["per_au"]["AU12"]["risk"] == judged["per_au"]["AU12"]["error_rate"] == pytest.approx(2 / 3)
    assert judged["per_au"]["AU17"]["n"] == 0
    assert math.isnan(judged["per_au"]["AU17"]["risk"])
    assert judged["mean"] == {"coverage": 0.5, "coverage_present": 0.5, "risk": 0.5, "error_rate": 0.5}
    assert judged["averaged"] == 2


def test_on_the_rows_it_was_chosen_on_abstention_halves_the_errors():
    rows = predicted(INTENSITY, people=30)
    judged = apply_abstention(rows, INTENSITY, abstention_thresholds(rows, INTENSITY))
    assert judged["averaged"] == len(INTENSITY.labels)
    assert all(each["risk"] <= each["error_rate"] / 2 for each in judged["per_au"].values())


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_audit([], OCCURRENCE), "no predictions to audit"),
        (lambda: parse_audit(MIXED, INTENSITY), "rows of o are among those of i"),
        (lambda: parse_audit([{"format": "o", "references": [1, 0]}], OCCURRENCE), "1 rows have no 'text'"),
        (lambda: parse_audit(written(OCCURRENCE, ("", 1)), OCCURRENCE), "'references' has 1 numbers in a row"),
        (lambda: parse_audit(written(OCCURRENCE, ("", 9, 0)), OCCURRENCE), "such as 9"),
        (lambda: bands([1, math.inf]), "finite"),
        (lambda: bands(["a", "b"]), "not from values such as 'a'"),
        (lambda: group_audit(predicted(OCCURRENCE, 1), OCCURRENCE, {"light": ["a"]}), "'light' has 1 entries for 6"),
        (lambda: group_audit(predicted(OCCURRENCE, 1), OCCURRENCE, {}, resamples=0), "resamples must be at least 1"),
        (lambda: group_audit(MIXED, OCCURRENCE, {}), "6 rows have no 'values'"),
        (lambda: abstention_thresholds(read((NAN, 1, 1)), ONE), "needs probabilities"),
        (lambda: abstention_thresholds(read((1.5, 1, 1)), ONE), "1 probabilities of format 'one' are not from 0 to 1"),
        (lambda: apply_abstention(read((0.5, 1, 1)), ONE, {"AU1": 0.5}), "threshold 0.5 of AU1"),
        (lambda: apply_abstention(read((0.5, 1, 1)), ONE, {"AU12": 5}), "threshold 5 of AU12"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
