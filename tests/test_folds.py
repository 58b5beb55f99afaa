"""Subject-exclusive parts."""

import pytest

from au_llava.au_datasets.folds import assign_parts, check_disjoint

FRACTIONS = {"train": 0.85, "validation": 0.05, "test": 0.10}
SUBJECTS = [f"S{number}" for number in range(200)]


def test_shares_are_met_and_everyone_has_one_part():
    parts = assign_parts(SUBJECTS, FRACTIONS, seed=0)
    assert parts.keys() == set(SUBJECTS)
    counts = {part: list(parts.values()).count(part) for part in FRACTIONS}
    assert counts == {"train": 170, "validation": 10, "test": 20}


def test_order_and_repetition_do_not_matter_but_the_seed_does():
    parts = assign_parts(SUBJECTS, FRACTIONS, seed=0)
    assert assign_parts([*reversed(SUBJECTS), *SUBJECTS], FRACTIONS, seed=0) == parts
    assert assign_parts(SUBJECTS, FRACTIONS, seed=1) != parts


@pytest.mark.parametrize("count", [3, 4, 7])
def test_few_subjects_still_fill_every_part(count):
    assert set(assign_parts(SUBJECTS[:count], FRACTIONS, seed=0).values()) == set(FRACTIONS)


def test_a_part_without_a_share_stays_empty():
    parts = assign_parts(SUBJECTS, {"train": 0.5, "validation": 0.0, "test": 0.5}, seed=0)
    assert set(parts.values()) == {"train", "test"}


def test_impossible_requests():
    with pytest.raises(ValueError, match="sum to 1"):
        assign_parts(SUBJECTS, {"train": 0.9, "test": 0.3}, seed=0)
    with pytest.raises(ValueError, match="2 subjects cannot fill"):
        assign_parts(SUBJECTS[:2], FRACTIONS, seed=0)


def test_check_disjoint_names_the_shared():
    check_disjoint({"train": ["a", "b"], "test": ["c"]})
    with pytest.raises(ValueError, match="both train and test: b, c"):
        check_disjoint({"train": ["a", "b", "c"], "validation": ["d"], "test": ["c", "b"]})
