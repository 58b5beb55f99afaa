"""Who a checkpoint has seen: stored as ranges, read in the old form too, and nobody lost."""

import json

import pytest
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

from au_llava.au_datasets.folds import person_key
from au_llava.au_runs.manifests import (
    TRAINING_MANIFEST,
    check_unseen,
    read_training_manifest,
    seen_people,
    stored_manifest,
    training_manifest,
    write_training_manifest,
)
from au_llava.au_runs.ranges import MOST_RUNS, as_ranges, names_of


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        ([f"rendered:R4-{number:06}" for number in range(15200)], ["rendered:R4-{000000..015199}"]),
        (["disfa:SN001", "disfa:SN003", "disfa:SN002"], ["disfa:SN{001..003}"]),
        ([f"fairface:train/{number}.jpg" for number in (9, 10, 11, 100)], ["fairface:train/{9..11,100}.jpg"]),
        (["a1", "a01", "a2", "a02"], ["a{1..2,01..02}"]),
        (["a98", "a99", "a100", "a101"], ["a{98..101}"]),
        (["a099", "a100", "a1000"], ["a{099..100,1000}"]),
        (["mine:anna", "mine:anna7", "mine:{1..3}"], ["mine:anna", "mine:anna7", "mine:{{1..3}}"]),
        (["mine:{4}", "mine:{5}"], ["mine:{{{4..5}}}"]),
        ([], []),
    ],
)
def test_names_become_ranges(names, entries):
    assert as_ranges(names) == entries
    assert names_of(entries) == sorted(names)


LIKE_A_RANGE = st.text(st.sampled_from("{}.,019aR-٣\n"), max_size=9)


@given(st.sets(LIKE_A_RANGE))
@example({"{1}", "{{1}}", "{1..3}", "1..3", "{}", "{1,2", "1,2}", "{{2..3}"})
@example({"9" * 30, "9" * 29 + "8"})
@example({"", "0", "00"})
def test_every_list_of_names_comes_back(names):
    assert names_of(as_ranges(names)) == sorted(names)


def test_entries_stay_short():
    entries = as_ranges(f"R{number:06}" for number in range(0, 1000, 2))
    assert len(entries) == 500 / MOST_RUNS
    assert max(map(len, entries)) < 8 * MOST_RUNS


def manifest(train, base=None):
    return training_manifest(train, ["rendered:R1-{1..2}"], [], ["bp4d"], {}, base)


def test_a_manifest_comes_back_whole(tmp_path):
    first = manifest(["rendered:R0-000001", "rendered:R0-000002", "bp4d:F001"])
    second = manifest(["rendered:R0-000003", "rendered:R0-000002"], base=first)
    write_training_manifest(tmp_path, second)
    assert read_training_manifest(str(tmp_path)) == second
    stored = json.loads((tmp_path / TRAINING_MANIFEST).read_text())
    assert stored == stored_manifest(second)
    assert stored["people"]["train"] == ["rendered:R0-{000002..000003}"]
    assert stored["people"]["validation"] == ["rendered:R1-{{1..2}}"]
    assert stored["base"]["people"]["train"] == ["bp4d:F001", "rendered:R0-000001"]


def test_the_first_schema_is_read(tmp_path):
    """It listed every name, also in the bases of a manifest of now."""
    old = {**manifest(["rendered:R0-{1..2}", "bp4d:F001"]), "schema_version": 1}
    (tmp_path / TRAINING_MANIFEST).write_text(json.dumps(old))
    read = read_training_manifest(str(tmp_path))
    assert read["people"] == old["people"]
    new = manifest(["bp4d:F002"], base=read)
    write_training_manifest(tmp_path, new)
    assert read_training_manifest(str(tmp_path)) == new
    people = {"bp4d:F001", "bp4d:F002", "rendered:R0-{1..2}"}
    assert seen_people(read_training_manifest(str(tmp_path)))["train"] == people


def test_another_schema_is_refused(tmp_path):
    (tmp_path / TRAINING_MANIFEST).write_text(json.dumps({**manifest([]), "schema_version": 3}))
    with pytest.raises(ValueError, match="follows schema 3, this code reads up to 2: update the code"):
        read_training_manifest(str(tmp_path))


def test_tested_people_are_refused_from_a_range(tmp_path):
    write_training_manifest(tmp_path, manifest([f"rendered:R0-{number:06}" for number in range(100)]))
    with pytest.raises(ValueError, match="1 of these 2 people in its train part: rendered:R0-000050"):
        check_unseen(str(tmp_path), ["rendered:R0-000050", "rendered:R7-000050"])
    assert check_unseen(str(tmp_path), ["rendered:R0-000100", "rendered:R0-0000"]) == "checked"


def test_the_shipped_manifest_is_short():
    path = ROOT / TRAINING_MANIFEST
    assert path.stat().st_size < 400_000
    assert len(seen_people(read_training_manifest(str(ROOT)))["train"]) > 50_000


def test_accented_names_of_older_manifests_are_the_same_people(tmp_path):
    """They may hold an accented letter as two characters."""
    write_training_manifest(tmp_path, training_manifest(["mine:Jose\u0301"], [], [], ["bp4d"], {}))
    with pytest.raises(ValueError, match="has seen 1 of these 1 people in its train part: mine:Jos\u00e9"):
        check_unseen(str(tmp_path), [person_key("mine", "Jos\u00e9")])
