"""Every score against an independent computation, on data with missing cells and degenerate AUs."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics

from au_llava.action_units import FORMATS, AUFormat
from au_llava.metrics_au import (
    agreement,
    confusion,
    detection,
    fold_scores,
    icc,
    icc_1_1,
    presence,
    reliability_curve,
    risk_coverage,
    score,
)

NAN = float("nan")
OCCURRENCE = AUFormat("o", ("AU1", "AU2"), "occurrence")
INTENSITY = AUFormat("i", ("AU1", "AU2"), "intensity")
DETECTION = ("f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc", "f1_skew_normalised")
AGREEMENT = ("icc", "icc_1_1", "pcc", "mae", "mse", "mae_nonzero")
PRESENCE = ("roc_auc", "average_precision", "ece", "brier")
SCALES = ("occurrence", "intensity", "continuous")


def simulate(fmt, images, seed, missing=0.1, subjects=8):
    """Labels, who is shown, and a system's predictions, probabilities with ties, and decisions; each with gaps."""
    rng = np.random.default_rng(seed)
    shape, top = (images, len(fmt.labels)), fmt.value_numbers[-1]
    references = rng.integers(0, 2, shape) * rng.choice(fmt.value_numbers, shape)
    noisy = np.clip(references + rng.normal(0, 0.4 * top, shape), 0, top)
    system = {
        "predictions": np.round(noisy) if fmt.scale == "occurrence" else noisy,
        "probabilities": np.round(np.clip(noisy / top + rng.normal(0, 0.1, shape), 0, 1), 2),
        "decisions": (noisy >= 0.6 * top).astype(float),
    }
    for values in (references, *system.values()):
        values[rng.random(shape) < missing] = NAN
    return references, np.array([f"s{number}" for number in rng.integers(0, subjects, images)]), system


def brute_force_mean_squares(ratings):
    """(between targets, within targets, residual) of the analysis of variance, cell by cell."""
    n, k = len(ratings), len(ratings[0])
    grand = sum(map(sum, ratings)) / (n * k)
    rows = [sum(row) / k for row in ratings]
    columns = [sum(row[j] for row in ratings) / n for j in range(k)]
    cells = list(itertools.product(range(n), range(k)))
    bms = k * sum((row - grand) ** 2 for row in rows) / (n - 1)
    wms = sum((ratings[i][j] - rows[i]) ** 2 for i, j in cells) / (n * (k - 1))
    ems = sum((ratings[i][j] - rows[i] - columns[j] + grand) ** 2 for i, j in cells) / ((n - 1) * (k - 1))
    return bms, wms, ems


def brute_force_icc(ratings):
    bms, _, ems = brute_force_mean_squares(ratings)
    return (bms - ems) / (bms + (len(ratings[0]) - 1) * ems)


def brute_force_icc_1_1(ratings):
    bms, wms, _ = brute_force_mean_squares(ratings)
    return (bms - wms) / (bms + (len(ratings[0]) - 1) * wms)


def brute_force_ece(probabilities, labels):
    total = 0
    for number in range(15):
        inside = (probabilities > number / 15) & (probabilities <= (number + 1) / 15)
        inside |= (probabilities == 0) & (number == 0)
        if inside.any():
            total += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    return total


# Table 2 of Shrout and Fleiss (1979): six targets, four judges.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])


def test_icc_on_the_published_example():
    assert round(icc(SHROUT_FLEISS), 2) == 0.71
    assert round(icc_1_1(SHROUT_FLEISS), 2) == 0.17
    assert icc(SHROUT_FLEISS) == pytest.approx(brute_force_icc(SHROUT_FLEISS.tolist()))
    assert icc_1_1(SHROUT_FLEISS) == pytest.approx(brute_force_icc_1_1(SHROUT_FLEISS.tolist()))


def test_icc_is_consistency_and_icc_1_1_absolute_agreement():
    labels = np.array([0.0, 1, 3, 5])
    assert icc(np.stack([labels, labels + 1], axis=1)) == pytest.approx(1)
    assert icc(np.stack([labels, -labels], axis=1)) == pytest.approx(-1)
    assert icc(np.stack([labels, np.full(4, 2.0)], axis=1)) == pytest.approx(0)
    assert icc_1_1(np.stack([labels, labels], axis=1)) == pytest.approx(1)
    assert icc_1_1(np.stack([labels, labels + 1], axis=1)) < 0.95
    assert icc_1_1(np.array([[0.0, 1.0], [0.0, 1.0]])) == pytest.approx(-1)


@pytest.mark.parametrize("ratings", [[[1.0, 2.0]], [[0.1, 0.7]] * 3, np.zeros((0, 2))])
def test_icc_is_undefined_where_targets_cannot_be_told_apart(ratings):
    assert np.isnan(icc(np.array(ratings)))


@pytest.mark.parametrize("ratings", [[[1.0, 2.0]], [[0.7, 0.7]] * 3, np.zeros((0, 2))])
def test_icc_1_1_is_undefined_where_all_is_equal(ratings):
    assert np.isnan(icc_1_1(np.array(ratings)))


@pytest.mark.parametrize(("name", "decided"), [("bp4d", False), ("bp4d", True), ("disfa", True), ("feafa", False)])
def test_scores_equal_independent_computations(name, decided):
    fmt = FORMATS[name]
    references, subjects, system = simulate(fmt, 240, seed=7, missing=0.15)
    if not decided:
        del system["decisions"]
    result = score(references=references, fmt=fmt, subjects=subjects, **system)
    predictions = system["predictions"]
    decisions = system.get("decisions", predictions)

    for column, label in enumerate(fmt.labels):
        annotated = ~np.isnan(references[:, column])
        kept = annotated & ~np.isnan(predictions[:, column]) & ~np.isnan(decisions[:, column])
        guess, truth, whose = predictions[kept, column], references[kept, column], subjects[kept]
        present = decisions[kept, column] >= (1 if decided else fmt.presence_threshold)
        positive = truth >= fmt.presence_threshold
        balance = np.where(positive, 1, positive.sum() / (~positive).sum())
        expected = {
            "f1": sklearn.metrics.f1_score(positive, present),
            "precision": np.sum(present & positive) / present.sum(),
            "recall": sklearn.metrics.recall_score(positive, present),
            "accuracy": np.mean(present == positive),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(positive, present),
            "mcc": sklearn.metrics.matthews_corrcoef(positive, present),
            "f1_skew_normalised": sklearn.metrics.f1_score(positive, present, sample_weight=balance),
        }
        if fmt.scale != "occurrence":
            pairs = np.stack([guess, truth], axis=1)
            expected |= {
                "icc": brute_force_icc(pairs.tolist()),
                "icc_1_1": brute_force_icc_1_1(pairs.tolist()),
                "pcc": scipy.stats.pearsonr(guess, truth).statistic,
                "mae": sklearn.metrics.mean_absolute_error(truth, guess),
                "mse": sklearn.metrics.mean_squared_error(truth, guess),
                "mae_nonzero": np.mean([abs(p - t) for p, t in pairs if t > 0]),
                "icc_within": np.mean([brute_force_icc(pairs[whose == who].tolist()) for who in np.unique(whose)]),
            }
            assert expected["icc"] == pytest.approx(icc(pairs))
            assert expected["icc_1_1"] == pytest.approx(icc_1_1(pairs))
        rated = annotated & ~np.isnan(system["probabilities"][:, column])
        probability = system["probabilities"][rated, column]
        positive = references[rated, column] >= fmt.presence_threshold
        expected |= {
            "roc_auc": sklearn.metrics.roc_auc_score(positive, probability),
            "average_precision": sklearn.metrics.average_precision_score(positive, probability),
            "ece": brute_force_ece(probability, positive),
            "brier": sklearn.metrics.brier_score_loss(positive, probability),
        }
        counts = {"support": np.sum(truth >= fmt.presence_threshold), "n": kept.sum(), "n_probability": rated.sum()}
        counts |= {"unparsed": np.sum(annotated & ~kept), "undefined": {}}
        of_au = result["per_au"][label]
        assert {key: of_au[key] for key in counts} == counts
        assert {key: of_au[key] for key in expected} == pytest.approx(expected, rel=1e-9)
        assert set(of_au) == set(counts) | set(expected)

    assert set(result["mean"]) == set(expected)
    for metric, mean in result["mean"].items():
        assert mean == pytest.approx(np.mean([of_au[metric] for of_au in result["per_au"].values()]))
        assert result["averaged"][metric] == len(fmt.labels)
    assert result["n"] == 240
    assert result["annotated"] == np.sum(~np.isnan(references))
    assert result["unparsed"] == sum(of_au["unparsed"] for of_au in result["per_au"].values()) > 0

    assert list(result["per_subject"]) == sorted(set(subjects))
    for who, ours in result["per_subject"].items():
        theirs = {key: values[subjects == who] for key, values in system.items()}
        theirs = score(references=references[subjects == who], fmt=fmt, **theirs)["mean"]
        assert set(ours) == {"f1", "accuracy"} | ({"icc", "mae"} if fmt.scale != "occurrence" else set())
        assert ours == pytest.approx({metric: theirs[metric] for metric in ours}, nan_ok=True)


def test_hand_worked_occurrence():
    predictions = [[1, 0], [1, NAN], [0, 1], [0, 0], [NAN, 0]]
    references = [[1, 0], [0, 1], [1, NAN], [0, 0], [1, 0]]
    result = score(predictions, references, OCCURRENCE)
    assert result["per_au"]["AU1"] == {
        **{"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.5},
        **{"balanced_accuracy": 0.5, "mcc": 0, "f1_skew_normalised": 0.5},
        **{"support": 2, "n": 4, "unparsed": 1, "undefined": {}},
    }
    second = result["per_au"]["AU2"]  # three cells left, all absent and read as absent
    assert (second["accuracy"], second["support"], second["n"], second["unparsed"]) == (1, 0, 3, 1)
    assert np.isnan([second["f1"], second["precision"], second["recall"]]).all()
    assert result["mean"]["f1"] == 0.5
    assert result["averaged"] == {**dict.fromkeys(DETECTION, 1), "accuracy": 2}
    assert (result["annotated"], result["unparsed"]) == (9, 2)


def test_skew_normalised_f1_does_not_depend_on_how_rare_an_au_is():
    predictions = np.array([True, True, False, True, False, False])
    references = np.array([True, True, True, False, False, False])
    frames = np.array([0, 1, 2] + [3, 4, 5] * 10)
    scores, rare = detection(predictions, references), detection(predictions[frames], references[frames])
    assert scores["f1_skew_normalised"] == rare["f1_skew_normalised"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert rare["f1"] == pytest.approx(4 / 15)


YES, NO = True, False


@pytest.mark.parametrize(
    ("predictions", "references", "undefined"),
    [
        ([], [], dict.fromkeys(DETECTION, "no image scored")),
        (
            [NO, NO],
            [NO, NO],
            {
                "f1": "no positive label and none predicted",
                "precision": "none predicted",
                "recall": "no positive label",
                **dict.fromkeys(("balanced_accuracy", "mcc", "f1_skew_normalised"), "one class only"),
            },
        ),
        (  # false alarms without a positive label are an F1 of 0
            [YES, NO],
            [NO, NO],
            {
                "recall": "no positive label",
                **dict.fromkeys(("balanced_accuracy", "mcc", "f1_skew_normalised"), "one class only"),
            },
        ),
        (
            [YES, NO],
            [YES, YES],
            dict.fromkeys(("balanced_accuracy", "mcc", "f1_skew_normalised"), "one class only"),
        ),
        ([NO, NO], [YES, NO], {"precision": "none predicted", "mcc": "one class predicted only"}),
        ([YES, YES], [YES, NO], {"mcc": "one class predicted only"}),
    ],
)
def test_undefined_detection_is_nan_with_the_reason(predictions, references, undefined):
    scores = detection(np.array(predictions, dtype=bool), np.array(references, dtype=bool))
    assert scores["undefined"] == undefined
    assert {metric for metric in DETECTION if np.isnan(scores[metric])} == set(undefined)
    if predictions == [YES, NO] and references == [NO, NO]:
        assert (scores["f1"], scores["precision"]) == (0, 0)


@pytest.mark.parametrize(
    ("predictions", "references", "undefined"),
    [
        ([], [], dict.fromkeys(AGREEMENT, "no image scored")),
        ([2.0], [1.0], dict.fromkeys(("icc", "icc_1_1", "pcc"), "one image only")),
        ([2.0, 2, 2], [1.0, 2, 3], {"pcc": "predictions constant"}),
        ([0.1, 0.2, 0.7], [0.3] * 3, {"pcc": "labels constant"}),
        ([0.1] * 3, [0.7] * 3, {"icc": "labels and predictions constant", "pcc": "labels constant"}),
        (
            [0.0] * 3,
            [0.0] * 3,
            {
                **dict.fromkeys(("icc", "icc_1_1"), "labels and predictions constant"),
                "pcc": "labels constant",
                "mae_nonzero": "no label above 0",
            },
        ),
    ],
)
def test_undefined_agreement_is_nan_with_the_reason(predictions, references, undefined):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = agreement(np.array(predictions), np.array(references))
    assert scores["undefined"] == undefined
    assert {metric for metric in AGREEMENT if np.isnan(scores[metric])} == set(undefined)


@pytest.mark.parametrize(
    ("references", "undefined"),
    [
        ([], dict.fromkeys(PRESENCE, "no image scored")),
        ([NO, NO], {"roc_auc": "one class only", "average_precision": "no positive label"}),
        ([YES, YES], {"roc_auc": "one class only"}),
    ],
)
def test_undefined_presence_is_nan_with_the_reason(references, undefined):
    scores = presence(np.linspace(0, 1, len(references)), np.array(references, dtype=bool))
    assert scores["undefined"] == undefined
    assert {metric for metric in PRESENCE if np.isnan(scores[metric])} == set(undefined)


def test_hand_worked_presence():
    scores = presence(np.array([0.9, 0.9, 0.2, 0.0]), np.array([True, False, True, False]))
    # Of four pairs one is won, one tied, one lost (0.9 against 0.2) and one won.
    assert scores["roc_auc"] == 2.5 / 4
    assert scores["average_precision"] == pytest.approx(1 / 2 * 1 / 2 + 1 / 2 * 2 / 3)
    assert scores["brier"] == pytest.approx((0.01 + 0.81 + 0.64 + 0) / 4)
    assert scores["ece"] == pytest.approx((2 * abs(0.9 - 0.5) + 0.8 + 0) / 4)


def test_agreement_is_exact_far_from_zero_and_for_close_values():
    rng = np.random.default_rng(0)
    predictions, references = 1e4 + rng.normal(0, 1e-3, (2, 1000))
    scores = agreement(predictions, references)
    assert scores["icc"] == pytest.approx(icc(np.stack([predictions, references], axis=1)), rel=1e-6)
    assert scores["pcc"] == pytest.approx(scipy.stats.pearsonr(predictions, references).statistic, rel=1e-6)


def test_intensity_counts_as_present_from_the_threshold_on():
    references = [[1, 5], [2, 5]]
    predictions = [[1.9, 5], [2.0, 5]]
    assert score(predictions, references, INTENSITY)["per_au"]["AU1"]["f1"] == 1
    strict = AUFormat("i", ("AU1", "AU2"), "intensity", presence_threshold=1)
    assert score(predictions, references, strict)["per_au"]["AU1"]["support"] == 2


def test_decisions_replace_the_threshold_on_predictions():
    references, predictions = [[0, 5], [2, 5]], [[5, 5], [0, 5]]
    result = score(predictions, references, INTENSITY, decisions=[[0, 1], [1, NAN]])
    assert result["per_au"]["AU1"]["f1"] == 1
    assert result["per_au"]["AU1"]["mae"] == 3.5
    assert (result["per_au"]["AU2"]["n"], result["per_au"]["AU2"]["unparsed"], result["unparsed"]) == (1, 1, 1)


def test_absolute_errors_are_of_the_median_where_there_is_one_and_nothing_else_is():
    references, predictions = [[0, 5], [2, 5], [0, 1]], [[1, 4], [3, 4], [1, 2]]
    plain = score(predictions, references, INTENSITY, subjects=list("aab"))
    result = score(predictions, references, INTENSITY, subjects=list("aab"), medians=[[0, 5], [NAN, 5], [0, 3]])
    first, second = result["per_au"].values()
    assert (first["mae"], first["mae_nonzero"]) == (pytest.approx(1 / 3), 1)  # errors 0, 1 (no median), 0
    assert second["mae"] == pytest.approx(2 / 3)
    assert result["per_subject"]["a"]["mae"] == pytest.approx((0.5 + 0) / 2)
    for metric in set(first) - {"mae", "mae_nonzero", "undefined"}:
        assert first[metric] == plain["per_au"]["AU1"][metric], metric


def test_within_subject_icc_gives_nothing_for_telling_faces_apart():
    """Each subject's label is its own constant; the prediction knows the subject and adds noise."""
    references = np.repeat([0.0, 5.0], 4)[:, None]
    predictions = references + np.array([0.0, 0.5, 0.0, 0.5] * 2)[:, None]
    fmt = AUFormat("i", ("AU1",), "intensity")
    scores = score(predictions, references, fmt, subjects=["a"] * 4 + ["b"] * 4)["per_au"]["AU1"]
    assert scores["icc"] > 0.9
    assert scores["icc_within"] == 0
    alone = score(predictions, references, fmt, subjects=list("abcdefgh"))["per_au"]["AU1"]
    assert alone["undefined"] == {"icc_within": "icc undefined within every subject"}


@pytest.mark.parametrize("fmt", [OCCURRENCE, INTENSITY])
@pytest.mark.parametrize("empty", [[], np.zeros((0, 2)), [[NAN, NAN]]])
def test_nothing_to_score_is_nan_not_zero(empty, fmt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subjects = ["a"] * len(empty)
        result = score(empty, empty, fmt, probabilities=empty, decisions=empty, subjects=subjects)
    assert np.isnan(list(result["mean"].values())).all()
    assert set(result["averaged"].values()) == {0}
    assert (result["n"], result["annotated"], result["unparsed"]) == (len(empty), 0, 0)
    for of_au in result["per_au"].values():
        assert of_au["undefined"] == dict.fromkeys(result["mean"], "no image scored")


ONES = [[1, 1]]


@pytest.mark.parametrize(
    ("predictions", "references", "fmt", "more", "message"),
    [
        ([[1, 0, 0]], [[1, 0]], OCCURRENCE, {}, r"predictions have shape \(1, 3\)"),
        ([1, 0], [[1, 0]], OCCURRENCE, {}, r"predictions have shape \(2,\)"),
        ([[1, 0]], [[1, 0], [1, 0]], OCCURRENCE, {}, "1 predictions but 2 references"),
        ([[1, 0]], [[1, 9]], OCCURRENCE, {}, "1 references of format 'o' are not 0 or 1"),
        ([[0.7, 0]], [[1, 0]], OCCURRENCE, {}, "threshold probabilities"),
        ([[1, 0]], [[9, 0]], INTENSITY, {}, "not from 0 to 5, such as 9"),
        ([[np.inf, 0]], [[1, 0]], INTENSITY, {}, "not finite"),
        ([[1, 0], [1]], [[1, 0]], INTENSITY, {}, "rows of equal length"),
        (ONES, ONES, INTENSITY, {"probabilities": [[1.2, 0]]}, "1 probabilities of format 'i' are not from 0 to 1"),
        (ONES, ONES, INTENSITY, {"probabilities": [[1, 0], [1, 0]]}, "1 predictions but 2 probabilities"),
        (ONES, ONES, INTENSITY, {"decisions": [[0.5, 0]]}, "1 decisions of format 'i' are not 0 or 1"),
        (ONES, ONES, INTENSITY, {"decisions": [[0, 0, 0]]}, r"decisions have shape \(1, 3\)"),
        (ONES, ONES, INTENSITY, {"subjects": ["a", "b"]}, "1 predictions but 2 subjects"),
        (ONES, ONES, INTENSITY, {"subjects": [["a"]]}, r"subjects have shape \(1, 1\)"),
        (ONES, ONES, INTENSITY, {"subjects": [None]}, "1 images have no subject"),
        (ONES, ONES, INTENSITY, {"subjects": [NAN]}, "1 images have no subject"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(predictions, references, fmt, more, message):
    with pytest.raises(ValueError, match=message):
        score(predictions, references, fmt, **more)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fold_scores({}, INTENSITY), "0 folds were given"),
        (lambda: fold_scores({1: {"predictions": ONES}}, INTENSITY), r"fold 1 must .* one with \['predictions'\]"),
        (
            lambda: fold_scores({"b": {"predictions": ONES, "references": ONES, "subject": ["a"]}}, INTENSITY),
            r"fold 'b' must be a dict with predictions and references .* one with .*'subject'\]",
        ),
        (lambda: fold_scores({1: ONES}, INTENSITY), "fold 1 must be a dict with .* it is of type list"),
        (
            lambda: fold_scores(
                {
                    "1": {"predictions": ONES, "references": ONES},
                    "2": {"predictions": ONES, "references": ONES, "subjects": ["a"]},
                },
                INTENSITY,
            ),
            "the same arguments in every fold",
        ),
        (lambda: reliability_curve([0.1, 1.1], [0, 1]), "1 probabilities are not from 0 to 1, such as 1.1"),
        (lambda: reliability_curve([0.1], [0, 1]), "1 probabilities but 2 references"),
        (lambda: reliability_curve([[0.1]], [[1]]), r"probabilities have shape \(1, 1\)"),
        (lambda: risk_coverage([0.1, 0.2], [0, 3]), "1 errors are not 0 or 1, such as 3"),
        (lambda: confusion(ONES, [[1, 7]], INTENSITY), "not from 0 to 5, such as 7"),
    ],
)
def test_wrong_calls_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_folds_are_averaged_and_pooled():
    references, subjects, system = simulate(INTENSITY, 90, seed=3)
    given = {"references": references, "subjects": subjects, **system}
    bounds = {"first": (0, 20), "second": (20, 90), "empty": (90, 90)}
    folds = {name: {key: values[low:high] for key, values in given.items()} for name, (low, high) in bounds.items()}
    folds["empty"] = {key: [] for key in given}
    result = fold_scores(folds, INTENSITY)
    assert str(result["pooled"]) == str(score(fmt=INTENSITY, **given))
    assert {name: str(scores) for name, scores in result["folds"].items()} == {
        name: str(score(fmt=INTENSITY, **fold)) for name, fold in folds.items()
    }
    for metric, mean in result["mean_of_folds"]["mean"].items():
        first, second = (result["folds"][name] for name in ("first", "second"))
        assert mean == pytest.approx((first["mean"][metric] + second["mean"][metric]) / 2)
        for label, of_au in result["mean_of_folds"]["per_au"].items():
            assert of_au[metric] == pytest.approx(
                (first["per_au"][label][metric] + second["per_au"][label][metric]) / 2
            )
    assert result["mean_of_folds"]["mean"]["f1"] != pytest.approx(result["pooled"]["mean"]["f1"])


def test_an_au_that_a_fold_lacks_is_averaged_over_the_others():
    there = {"predictions": [[1, 1], [0, 0]], "references": [[1, 1], [0, 0]], "probabilities": None}
    lacking = {"predictions": [[0, 1]], "references": [[0, NAN]]}
    result = fold_scores({1: there, 2: lacking}, OCCURRENCE)
    assert result["mean_of_folds"]["per_au"]["AU2"]["f1"] == 1
    assert np.isnan(result["folds"][2]["mean"]["f1"])
    assert result["mean_of_folds"]["mean"]["f1"] == 1


def test_reliability_curve_is_what_ece_sums_up():
    references, _, system = simulate(INTENSITY, 300, seed=1)
    probabilities, labels = system["probabilities"][:, 0], (references[:, 0] >= 2).astype(float)
    labels[np.isnan(references[:, 0])] = NAN
    known = ~np.isnan(probabilities) & ~np.isnan(labels)
    curve = reliability_curve(probabilities, labels)
    rate, mean = sklearn.calibration.calibration_curve(labels[known], probabilities[known], n_bins=15)
    np.testing.assert_allclose(curve["rate"][curve["count"] > 0], rate)
    np.testing.assert_allclose(curve["probability"][curve["count"] > 0], mean)
    assert curve["count"].sum() == known.sum()
    ece = np.nansum(curve["count"] * np.abs(curve["probability"] - curve["rate"])) / known.sum()
    assert ece == pytest.approx(score(references=references, fmt=INTENSITY, **system)["per_au"]["AU1"]["ece"])
    none = reliability_curve([], [], bins=4)
    assert none["count"].tolist() == [0] * 4
    assert np.isnan([none["rate"], none["probability"]]).all()


def test_risk_coverage_by_hand_and_by_loop():
    curve = risk_coverage([0.9, 0.5, 0.5, 0.1, NAN, 1.0], [0, 1, 0, 1, 1, NAN])
    np.testing.assert_allclose(curve["coverage"], [0.25, 0.75, 1])
    np.testing.assert_allclose(curve["risk"], [0, 1 / 3, 1 / 2])
    assert curve["aurc"] == pytest.approx((0 + 1 / 3 + 1 / 3 + 1 / 2) / 4)

    rng = np.random.default_rng(0)
    confidence, errors = rng.random(200).round(2), rng.integers(0, 2, 200)
    risks = [errors[confidence >= each].mean() for each in confidence]
    assert risk_coverage(confidence, errors)["aurc"] == pytest.approx(np.mean(risks))
    nothing = risk_coverage([], [])
    assert np.isnan(nothing["aurc"])
    assert len(nothing["risk"]) == len(nothing["coverage"]) == 0


@pytest.mark.parametrize("scale", SCALES)
def test_confusion_equals_scikit_learn(scale):
    fmt = AUFormat("f", ("AU1", "AU2"), scale)
    references, _, system = simulate(fmt, 200, seed=6)
    ours = confusion(system["predictions"], references, fmt)
    step = 5 if scale == "continuous" else 1
    levels = 2 if scale == "occurrence" else 6
    for table, predicted, labels in zip(ours, system["predictions"].T, references.T, strict=True):
        known = ~np.isnan(predicted) & ~np.isnan(labels)
        predicted, labels = (np.floor(each[known] * step + 0.5).astype(int) for each in (predicted, labels))
        expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(levels))
        np.testing.assert_array_equal(table, expected)


def test_confusion_rounds_ties_up_and_clips():
    table = confusion([[2.5, -3.0], [2.4, 9.0]], [[2, 0], [2, 5]], INTENSITY)
    assert table.shape == (2, 6, 6)
    assert (table[0, 2, 3], table[0, 2, 2], table[1, 0, 0], table[1, 5, 5]) == (1, 1, 1, 1)
    assert confusion([], [], INTENSITY).sum() == 0
    fifths = confusion([[0.1], [0.3], [0.95]], [[0.0], [0.29], [1.0]], AUFormat("c", ("AU1",), "continuous"))[0]
    assert (fifths[0, 1], fifths[1, 2], fifths[5, 5]) == (1, 1, 1)
