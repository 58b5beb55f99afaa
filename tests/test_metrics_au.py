"""Every score against an independent computation, on data with missing cells and degenerate AUs."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from au_llava.action_units import FORMATS, AUFormat
from au_llava.metrics_au import agreement, detection, icc, intervals, score

NAN = float("nan")
OCCURRENCE = AUFormat("o", ("AU1", "AU2"), "occurrence")
INTENSITY = AUFormat("i", ("AU1", "AU2"), "intensity")


def brute_force_icc(ratings):
    """ICC(3,1) from the two-way analysis of variance, cell by cell."""
    n, k = len(ratings), len(ratings[0])
    grand = sum(map(sum, ratings)) / (n * k)
    rows = [sum(row) / k for row in ratings]
    columns = [sum(row[j] for row in ratings) / n for j in range(k)]
    bms = k * sum((row - grand) ** 2 for row in rows) / (n - 1)
    residual = [(ratings[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(k)]
    ems = sum(residual) / ((n - 1) * (k - 1))
    return (bms - ems) / (bms + (k - 1) * ems)


def test_icc_on_the_published_example():
    # Table 2 of Shrout and Fleiss (1979): six targets, four judges; their ICC(3,1) is .71.
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    assert round(icc(ratings), 2) == 0.71
    assert icc(ratings) == pytest.approx(brute_force_icc(ratings.tolist()))


def test_icc_is_consistency_not_absolute_agreement():
    labels = np.array([0.0, 1, 3, 5])
    assert icc(np.stack([labels, labels + 1], axis=1)) == pytest.approx(1)
    assert icc(np.stack([labels, -labels], axis=1)) == pytest.approx(-1)
    assert icc(np.stack([labels, np.full(4, 2.0)], axis=1)) == pytest.approx(0)


@pytest.mark.parametrize("ratings", [[[1.0, 2.0]], [[0.1, 0.7]] * 3, np.zeros((0, 2))])
def test_icc_is_undefined_where_targets_cannot_be_told_apart(ratings):
    assert np.isnan(icc(np.array(ratings)))


@pytest.mark.parametrize("name", list(FORMATS))
def test_scores_equal_independent_computations(name):
    fmt = FORMATS[name]
    rng = np.random.default_rng(7)
    shape = (400, len(fmt.labels))
    references = rng.choice(fmt.value_numbers, size=shape)
    noisy = np.clip(references + rng.normal(0, 0.4 * fmt.value_numbers[-1], shape), 0, fmt.value_numbers[-1])
    predictions = np.round(noisy) if fmt.scale == "occurrence" else noisy
    references[rng.random(shape) < 0.2] = NAN
    predictions[rng.random(shape) < 0.1] = NAN

    result = score(predictions, references, fmt)
    for column, label in enumerate(fmt.labels):
        kept = ~np.isnan(references[:, column]) & ~np.isnan(predictions[:, column])
        guess, truth = predictions[kept, column], references[kept, column]
        present, positive = guess >= fmt.presence_threshold, truth >= fmt.presence_threshold
        of_au = result["per_au"][label]
        hits = np.sum(present & positive)
        assert of_au["f1"] == pytest.approx(2 * hits / (present.sum() + positive.sum()))
        assert of_au["precision"] == pytest.approx(hits / present.sum())
        assert of_au["recall"] == pytest.approx(hits / positive.sum())
        assert of_au["accuracy"] == pytest.approx(np.mean(present == positive))
        assert of_au["f1"] == pytest.approx(sklearn.metrics.f1_score(positive, present))
        assert (of_au["support"], of_au["n"]) == (positive.sum(), kept.sum())
        assert of_au["unparsed"] == np.sum(~np.isnan(references[:, column]) & np.isnan(predictions[:, column]))
        if fmt.scale != "occurrence":
            assert of_au["mae"] == pytest.approx(np.mean(np.abs(guess - truth)))
            assert of_au["mse"] == pytest.approx(np.mean((guess - truth) ** 2))
            assert of_au["pcc"] == pytest.approx(np.corrcoef(guess, truth)[0, 1])
            assert of_au["pcc"] == pytest.approx(scipy.stats.pearsonr(guess, truth).statistic)
            assert of_au["icc"] == pytest.approx(brute_force_icc(np.stack([guess, truth], 1).tolist()))
    assert result["n"] == 400
    assert result["annotated"] == np.sum(~np.isnan(references))
    assert result["unparsed"] == sum(of_au["unparsed"] for of_au in result["per_au"].values()) > 0
    for metric, mean in result["mean"].items():
        assert mean == pytest.approx(np.mean([of_au[metric] for of_au in result["per_au"].values()]))
        assert result["averaged"][metric] == len(fmt.labels)


def test_hand_worked_occurrence():
    predictions = [[1, 0], [1, NAN], [0, 1], [0, 0], [NAN, 0]]
    references = [[1, 0], [0, 1], [1, NAN], [0, 0], [1, 0]]
    result = score(predictions, references, OCCURRENCE)
    assert result["per_au"]["AU1"] == {
        **{"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.5},
        **{"support": 2, "n": 4, "unparsed": 1},
    }
    second = result["per_au"]["AU2"]  # three cells left, all absent and read as absent
    assert (second["accuracy"], second["support"], second["n"], second["unparsed"]) == (1, 0, 3, 1)
    assert np.isnan([second["f1"], second["precision"], second["recall"]]).all()
    assert result["mean"]["f1"] == 0.5
    assert result["averaged"] == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 2}
    assert (result["annotated"], result["unparsed"]) == (9, 2)


def test_false_alarms_without_a_positive_are_an_f1_of_zero():
    scores = detection(np.array([True, False]), np.array([False, False]))
    assert (scores["f1"], scores["precision"], scores["support"]) == (0, 0, 0)
    assert np.isnan(scores["recall"])


def test_constants_leave_correlation_undefined_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = agreement(np.array([2.0, 2, 2]), np.array([1.0, 2, 3]))
        alone = agreement(np.array([2.0]), np.array([1.0]))
    assert np.isnan(scores["pcc"])
    assert scores["icc"] == pytest.approx(0)
    assert scores["mae"] == pytest.approx(2 / 3)
    assert alone["mse"] == 1
    assert np.isnan([alone["pcc"], alone["icc"]]).all()


def test_intensity_counts_as_present_from_the_threshold_on():
    references = [[1, 5], [2, 5]]
    predictions = [[1.9, 5], [2.0, 5]]
    assert score(predictions, references, INTENSITY)["per_au"]["AU1"]["f1"] == 1
    strict = AUFormat("i", ("AU1", "AU2"), "intensity", presence_threshold=1)
    assert score(predictions, references, strict)["per_au"]["AU1"]["support"] == 2


@pytest.mark.parametrize("fmt", [OCCURRENCE, INTENSITY])
@pytest.mark.parametrize("empty", [[], np.zeros((0, 2)), [[NAN, NAN]]])
def test_nothing_to_score_is_nan_not_zero(empty, fmt):
    result = score(empty, empty, fmt)
    assert np.isnan(list(result["mean"].values())).all()
    assert set(result["averaged"].values()) == {0}
    assert (result["n"], result["annotated"], result["unparsed"]) == (len(empty), 0, 0)


@pytest.mark.parametrize(
    ("predictions", "references", "fmt", "message"),
    [
        ([[1, 0, 0]], [[1, 0]], OCCURRENCE, r"predictions have shape \(1, 3\)"),
        ([1, 0], [[1, 0]], OCCURRENCE, r"predictions have shape \(2,\)"),
        ([[1, 0]], [[1, 0], [1, 0]], OCCURRENCE, "1 predictions but 2 references"),
        ([[1, 0]], [[1, 9]], OCCURRENCE, "1 references of format 'o' are not 0 or 1"),
        ([[0.7, 0]], [[1, 0]], OCCURRENCE, "threshold probabilities"),
        ([[1, 0]], [[9, 0]], INTENSITY, "not from 0 to 5, such as 9"),
        ([[np.inf, 0]], [[1, 0]], INTENSITY, "not finite"),
        ([[1, 0], [1]], [[1, 0]], INTENSITY, "rows of equal length"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(predictions, references, fmt, message):
    with pytest.raises(ValueError, match=message):
        score(predictions, references, fmt)


@pytest.mark.parametrize("scale", ["occurrence", "intensity", "continuous"])
def test_intervals_equal_a_bootstrap_by_loop(scale):
    """The same resamples of subjects, each scored by `score` on the images put together one by one."""
    rng = np.random.default_rng(5)
    fmt = AUFormat("f", ("AU1", "AU2", "AU4"), scale)
    top = fmt.value_numbers[-1]
    references = rng.integers(0, 2, (60, 3)) * (1.0 if scale == "occurrence" else rng.uniform(0, top, (60, 3)).round(2))
    predictions = np.where(rng.random((60, 3)) < 0.7, references, rng.integers(0, 2, (60, 3)) * top)
    references[rng.random((60, 3)) < 0.1] = NAN
    predictions[rng.random((60, 3)) < 0.1] = NAN
    subjects = np.array([f"s{number}" for number in rng.integers(0, 8, 60)])
    ours = intervals(predictions, references, subjects, fmt, resamples=40, seed=3)

    people = np.unique(subjects)
    counts = np.random.default_rng(3).multinomial(len(people), np.full(len(people), 1 / len(people)), size=40)
    scores = []
    for row in counts:
        drawn = zip(people, row, strict=True)
        images = np.concatenate([np.flatnonzero(subjects == who).repeat(times) for who, times in drawn])
        scores.append(score(predictions[images], references[images], fmt))
    for metric, (low, high) in ours["mean"].items():
        values = [each["mean"][metric] for each in scores]
        np.testing.assert_allclose([low, high], np.nanpercentile(values, [2.5, 97.5]), rtol=1e-7)
        for label in fmt.labels:
            values = [each["per_au"][label][metric] for each in scores]
            np.testing.assert_allclose(
                ours["per_au"][label][metric], np.nanpercentile(values, [2.5, 97.5]), rtol=1e-6, atol=1e-9
            )


def test_interval_of_one_subject_is_a_point_and_of_nothing_is_nan():
    predictions = references = np.array([[1.0, 0.0], [0.0, NAN]])
    ours = intervals(predictions, references, ["a", "a"], OCCURRENCE, resamples=10)
    assert ours["per_au"]["AU1"]["f1"] == [1, 1]
    assert np.isnan(ours["per_au"]["AU2"]["f1"]).all()


def test_intervals_want_one_subject_per_image():
    with pytest.raises(ValueError, match="2 predictions, 2 references and 1 subjects"):
        intervals(np.zeros((2, 2)), np.zeros((2, 2)), ["a"], OCCURRENCE)
