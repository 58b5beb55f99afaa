"""Contradictions between formats, by hand."""

import itertools

import pytest

from au_llava.action_units import AUFormat
from au_llava.consistency_au_llava import contradictions
from au_llava.readings_au_llava import AUAnswer, AUReading, AUResult


def answer(name, scale, **values):
    fmt = AUFormat(name, tuple(values), scale)
    readings = {
        label: AUReading(value, value, value, None, None if value is None else value >= fmt.presence_threshold, None)
        for label, value in values.items()
    }
    return AUAnswer(fmt, readings, "")


def found(*answers):
    return [str(each) for each in contradictions({each.format.name: each for each in answers})]


@pytest.mark.parametrize(
    ("occurrence", "intensity", "contradicts"),
    [(0, 0, False), (0, 1, False), (0, 2, True), (0, 5, True), (1, 0, True), (1, 1, False), (1, 3, False)],
)
def test_presence_against_complete_absence(occurrence, intensity, contradicts):
    pair = answer("o", "occurrence", AU12=occurrence), answer("i", "intensity", AU12=intensity)
    assert bool(found(*pair)) == contradicts
    assert bool(found(*reversed(pair))) == contradicts


def test_both_sides_must_be_absent():
    whole = answer("o", "occurrence", AU12=1, AU28=1, AU4=0)
    one = answer("c", "continuous", AU12L=0.0, AU12R=0.4, AU28T=0.0, AU28B=0.0, AU4L=0.5)
    assert found(whole, one) == [
        "AU28 is present in o, but AU28T, AU28B 0 in c",
        "AU4L is present in c, but AU4 0 in o",
    ]
    assert found(whole, answer("c", "continuous", AU12L=0.0)) == []  # the right side may have moved


def test_same_side_and_other_side():
    left = answer("a", "continuous", AU12L=0.8)
    assert found(left, answer("b", "intensity", AU12R=0)) == []
    assert found(left, answer("b", "intensity", AU12L=0)) == ["AU12L is present in a, but AU12L 0 in b"]


def test_what_was_not_read_contradicts_nothing():
    for first, second in itertools.product([None, 0, 1], repeat=2):
        pair = answer("a", "occurrence", AU1=first), answer("b", "occurrence", AU1=second)
        assert bool(found(*pair)) == (None not in (first, second) and first != second)


def test_a_likely_but_not_most_probable_presence_is_no_absence():
    """Most probable value 0, yet present by its threshold: not absent altogether."""
    fmt = AUFormat("i", ("AU1",), "intensity")
    torn = AUAnswer(fmt, {"AU1": AUReading(0.0, 1.4, 1.0, 0.45, True, None)}, "")
    assert found(torn, answer("o", "occurrence", AU1=1)) == []


def test_result_of_an_image_carries_them():
    answers = {"o": answer("o", "occurrence", AU6=1, AU12=1), "i": answer("i", "intensity", AU6=0, AU12=0)}
    result = AUResult(answers)
    assert [(each.present, each.present_in, each.absent_in) for each in result.contradictions] == [
        ("AU6", "o", "i"),
        ("AU12", "o", "i"),
    ]
    assert dict(result) == answers
