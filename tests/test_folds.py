"""Subject-exclusive parts: drawn, published, and kept apart across datasets."""

import pytest

from au_llava.action_units import FORMATS
from au_llava.au_datasets.folds import (
    PROTOCOLS,
    assign_parts,
    check_disjoint,
    kfold,
    person_key,
    protocol_parts,
    protocol_split,
    split_parts,
)

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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("disfa", "SN001"), ("feafa", "SN001"), True),  # FEAFA+'s part B is DISFA's video
        (("DISFA", "sn001"), ("feafa-b", "SN001"), True),
        (("disfa+", "SN001"), ("disfa", "SN001"), True),
        (("fera2015", "M001"), ("bp4d", "M001"), True),
        (("bp4d", "F001"), ("bp4d+", "F001"), False),  # numbered separately
        (("bp4d-plus", "f001"), ("bp4d+", "F001"), True),
        (("feafa", "PV001"), ("disfa", "SN001"), False),
        (("mine", "Jos\u00e9"), ("mine", "Jose\u0301"), True),  # as macOS writes it in names of files
        (("rendered", "a"), ("rendered", "A"), False),  # names of other datasets stay as they are
    ],
)
def test_person_key(one, other, same):
    assert (person_key(*one) == person_key(*other)) is same


@pytest.mark.parametrize(("dataset", "subject"), [("feafa", "2"), ("feafa", "PV1"), ("disfa", "PV001"), ("disfa", "1")])
def test_a_subject_that_could_be_anyone_is_refused(dataset, subject):
    with pytest.raises(ValueError, match=f"cannot tell who '{subject}' of {dataset} is: name the subject like"):
        person_key(dataset, subject)


def test_kfold_deals_every_name_once_and_evenly():
    folds = kfold(SUBJECTS, 3, seed=0)
    assert list(folds) == ["K1", "K2", "K3"]
    assert sorted(name for names in folds.values() for name in names) == sorted(SUBJECTS)
    assert [len(names) for names in folds.values()] == [67, 67, 66]
    check_disjoint(folds)


def test_kfold_depends_on_names_and_seed_only():
    folds = kfold(SUBJECTS, 5, seed=0)
    assert kfold([*reversed(SUBJECTS), *SUBJECTS], 5, seed=0) == folds
    assert kfold(SUBJECTS, 5, seed=1) != folds
    # Known values: the deal must not change between platforms or versions.
    assert kfold("abcdefg", 3, seed=0) == {"K1": ("a", "e", "f"), "K2": ("c", "g"), "K3": ("b", "d")}


def test_drawn_parts_split_as_published_ones_do():
    folds = kfold("abcdefg", 3, seed=0)  # K1: a e f, K2: c g, K3: b d
    split = split_parts(folds, "K2", seed=0, validation=0.2)
    assert split["test"] == ["c", "g"]
    assert len(split["validation"]) == 1
    assert sorted(split["train"] + split["validation"]) == ["a", "b", "d", "e", "f"]
    with pytest.raises(ValueError, match="no part 'K4' to test; choose one of K1, K2, K3"):
        split_parts(folds, "K4", seed=0, validation=0.2)


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_kfold_refuses_impossible_numbers_of_folds(folds):
    with pytest.raises(ValueError, match=f"3 names cannot be dealt to {folds} folds"):
        kfold(["a", "b", "c"], folds, seed=0)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bp4d-3fold", {"P1": 14, "P2": 14, "P3": 13}),
        ("disfa-3fold", {"P1": 9, "P2": 9, "P3": 9}),
        ("disfa-intensity-3fold", {"P1": 9, "P2": 9, "P3": 9}),
        ("fera2015-intensity", {"train": 21, "development": 20}),
    ],
)
def test_published_parts_hold_everyone_once(name, sizes):
    parts = protocol_parts(name)
    assert {part: len(names) for part, names in parts.items()} == sizes
    check_disjoint(parts)
    people = {each for names in parts.values() for each in names}
    if PROTOCOLS[name].dataset == "bp4d":
        assert people == {f"F{n:03d}" for n in range(1, 24)} | {f"M{n:03d}" for n in range(1, 19)}
    else:
        assert people == {f"SN{n:03d}" for n in range(1, 33) if n not in (14, 15, 19, 20, 22)}


def test_runs_are_named_after_the_part_they_test():
    """Each is the last subject of PyTorch-JAANet's part file and of ME-GraphAU's part of that number."""
    assert "F014" in protocol_split("bp4d-3fold", "P3", seed=0, validation=0.1)["test"]
    assert "M008" in protocol_split("bp4d-3fold", "P1", seed=0, validation=0.1)["test"]
    assert "SN004" in protocol_split("disfa-3fold", "P3", seed=0, validation=0.1)["test"]
    assert "SN016" in protocol_split("disfa-3fold", "P1", seed=0, validation=0.1)["test"]


def test_fera_trains_on_odd_and_tests_even_numbers():
    split = protocol_split("fera2015-intensity", "development", seed=0, validation=0.2)
    assert {int(name[1:]) % 2 for name in split["train"] + split["validation"]} == {1}
    assert {int(name[1:]) % 2 for name in split["test"]} == {0}
    assert [len(split[role]) for role in ("train", "validation", "test")] == [17, 4, 20]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_validation_is_drawn_from_the_training_people_only(name, seed):
    clips = [f"PV{n:03d}" for n in range(1, 128)] if PROTOCOLS[name].parts is None else None
    tested = []
    for part in PROTOCOLS[name].tested:
        split = protocol_split(name, part, seed, validation=0.15, names=clips)
        check_disjoint(split)
        assert list(split) == ["train", "validation", "test"]
        assert split["test"] == sorted(protocol_parts(name, clips)[part])
        assert split["validation"]
        everyone = {each for names in protocol_parts(name, clips).values() for each in names}
        assert {each for names in split.values() for each in names} == everyone
        assert split == protocol_split(name, part, seed, validation=0.15, names=clips and clips[::-1])
        tested += split["test"]
    assert len(tested) == len(set(tested))  # the runs test nobody twice, whatever the seed


def test_the_seed_moves_validation_and_nothing_else():
    first, second = (protocol_split("bp4d-3fold", "P2", seed, validation=0.2) for seed in (0, 1))
    assert first["test"] == second["test"]
    assert first["validation"] != second["validation"]
    assert protocol_split("bp4d-3fold", "P2", 0, validation=0)["validation"] == []


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_score_aus_that_their_format_holds(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    fmt = FORMATS[protocol.format]
    assert protocol.labels == tuple(label for label in fmt.labels if label in protocol.labels)
    assert (protocol.presence is not None) == ("f1" in protocol.metrics)
    assert protocol.presence in (None, *fmt.value_numbers[1:])
    assert set(protocol.tested) <= set(protocol.parts or protocol.tested)


def test_disfa_detection_is_eight_aus_from_intensity_two():
    assert PROTOCOLS["disfa-3fold"].labels == ("AU1", "AU2", "AU4", "AU6", "AU9", "AU12", "AU25", "AU26")
    assert PROTOCOLS["disfa-3fold"].presence == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bp4d", "P1", 0, 0.1), "unknown protocol 'bp4d'; choose one of"),
        (("bp4d-3fold", "P4", 0, 0.1), "protocol 'bp4d-3fold' tests P1, P2, P3, not 'P4'"),
        (("fera2015-intensity", "train", 0, 0.1), "tests development, not 'train'"),
        (("disfa-3fold", "P1", 0, 1.0), "the validation share must be from 0 to below 1, got 1.0"),
        (("feafa-clip", "K1", 0, 0.1), "dealt from the clips that there are: pass `names`"),
        (("bp4d-3fold", "P1", 0, 0.1, ["F001", "F099"]), "F099 are in no part of 'bp4d-3fold'"),
    ],
)
def test_wrong_requests_are_answered_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        protocol_split(*arguments)
    assert "\n" not in str(error.value)
