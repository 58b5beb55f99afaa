"""The catalogue, the formats, the prompt and the writing of answers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from au_llava.action_units import (
    ACTION_UNITS,
    FORMATS,
    MAIN_FORMATS,
    PURPOSE,
    SCALES,
    AUFormat,
    definition_line,
    get_format,
    mirrored_label,
    prompt,
    prompt_parts,
    round_to_scale,
    write_answer,
)

# The AUs that each dataset codes.
BP4D_PLUS = (
    *(1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19),
    *(20, 22, 23, 24, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39),
)
AFF_WILD2 = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
EMOTIONET = (1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26, 43)
GFT = (1, 2, 4, 6, 10, 12, 14, 15, 23, 24)
CK_PLUS = (
    *(1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 23, 24, 25, 26, 27, 28, 29, 31, 34, 38, 39),
    *(43, 44, 45, 54, 61, 62, 63, 64),
)


def make(scale, *labels, **options):
    return AUFormat("mine", labels or ("AU6", "AU12"), scale, **options)


def test_catalogue_covers_the_public_datasets():
    coded = {*BP4D_PLUS, *AFF_WILD2, *EMOTIONET, *GFT, *CK_PLUS}
    assert coded - {unit.facs for unit in ACTION_UNITS.values() if unit.side is None} == set()


def test_bp4d_plus_codes_34_aus():
    assert len(set(BP4D_PLUS)) == 34


def test_every_entry_is_short_and_consistent():
    for label, unit in ACTION_UNITS.items():
        letter = {None: "", "left": "L", "right": "R", "top": "T", "bottom": "B"}[unit.side]
        assert label == unit.label == f"{label[:2]}{unit.facs}{letter}"
        assert unit.name
        assert unit.region
        assert unit.definition.startswith("the ")
        assert len(unit.definition.split()) <= 11, label
        if unit.side:
            assert unit.side in unit.definition, label
    # One FACS number never stands for both an AU and an AD, so a number alone tells which is meant.
    assert len({(unit.facs, unit.side) for unit in ACTION_UNITS.values()}) == len(ACTION_UNITS)


def test_sided_definitions_are_grammatical():
    definitions = {label: unit.definition for label, unit in ACTION_UNITS.items()}
    assert definitions["AU12"] == "the lip corners are pulled up and outward"
    assert definitions["AU12L"] == "the left lip corner is pulled up and outward"
    assert definitions["AU28B"] == "the bottom lip is sucked in over the teeth"
    assert definitions["AD30R"] == "the jaw is shifted to the right"
    assert definitions["AU10L"] == "the left upper lip is raised"


def test_flipping_an_image_swaps_sides_and_directions():
    assert [mirrored_label(label) for label in ("AU12L", "AD30R", "AU28T", "AU51", "AU62", "AU4")] == [
        *("AU12R", "AD30L", "AU28T", "AU52", "AU61", "AU4"),
    ]
    assert all(mirrored_label(mirrored_label(label)) == label for label in ACTION_UNITS)
    # FEAFA's swap table, from its documentation in the readers of others: channels (0,1) (2,3) … (13,14).
    feafa = FORMATS["feafa"].labels
    swapped = [feafa.index(mirrored_label(label)) for label in feafa]
    assert swapped == [1, 0, 3, 2, 5, 4, 7, 6, 8, 10, 9, 12, 11, 14, 13, *range(15, 24)]


def test_built_in_formats():
    sizes = {name: (len(fmt.labels), fmt.scale, fmt.presence_threshold) for name, fmt in FORMATS.items()}
    assert sizes == {
        "bp4d": (12, "occurrence", 1),
        "disfa": (12, "intensity", 2),
        "bp4d-intensity": (5, "intensity", 2),
        "feafa": (24, "continuous", 0.3),
        "gft": (10, "occurrence", 1),
        "aff-wild2": (12, "occurrence", 1),
        "ck-plus": (17, "occurrence", 1),
        "emotionet": (12, "occurrence", 1),
    }
    assert [len(FORMATS[name].value_strings) for name in MAIN_FORMATS] == [2, 6, 101]
    assert FORMATS["feafa"].value_numbers[37] == 0.37
    assert FORMATS["feafa"].value_strings[37] == "0.37"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", ("AU1",), "intensity"), "non-empty string"),
        (("x", (), "intensity"), "non-empty sequence"),
        (("x", "AU1", "intensity"), "non-empty sequence"),
        (("x", 5, "intensity"), "non-empty sequence"),
        (("x", ("AU1", "AU999"), "intensity"), r"unknown AUs \['AU999'\]"),
        (("x", ("AU1", "AU2", "AU1"), "intensity"), r"\['AU1'\] appear more than once"),
        (("x", ("AU1",), "binary"), "'occurrence', 'intensity', 'continuous'"),
        (("x", ("AU1",), "intensity", 2.5), "2.5 is not a value of the intensity scale"),
        (("x", ("AU1",), "occurrence", 0), "above 0"),
        (("x", ("AU1",), "continuous", 1.5), "from 0.01 to 1.00"),
    ],
)
def test_a_wrong_format_is_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        AUFormat(*arguments)


def test_formats_round_trip_through_json_and_are_hashable():
    fmt = make("intensity", presence_threshold=3)
    again = AUFormat.from_dict(json.loads(json.dumps(fmt.to_dict())))
    assert again == fmt
    assert len({fmt, again, FORMATS["disfa"]}) == 2
    assert AUFormat("x", ["AU1"], "occurrence").labels == ("AU1",)
    with pytest.raises(ValueError, match="needs name, labels, scale"):
        AUFormat.from_dict({"name": "x", "labels": ["AU1"]})
    with pytest.raises(ValueError, match="needs name, labels, scale"):
        AUFormat.from_dict({**fmt.to_dict(), "treshold": 1})


def test_get_format_takes_names_dicts_and_anything_shaped_like_a_format():
    class Lookalike:  # what the same class is when the file has been loaded twice
        labels, scale = ("AU1",), "occurrence"

    assert get_format("disfa") is FORMATS["disfa"]
    assert get_format(FORMATS["feafa"].to_dict()) == FORMATS["feafa"]
    lookalike = Lookalike()
    assert get_format(lookalike) is lookalike
    assert write_answer({"AU1": 1}, lookalike) == "AU1: 1"
    with pytest.raises(ValueError, match="unknown format 'bp5d'"):
        get_format("bp5d")
    with pytest.raises(ValueError, match="3 is not a format"):
        get_format(3)


def test_prompt_is_purpose_definitions_and_expected_output():
    for fmt in FORMATS.values():
        first, *definitions, last = prompt_parts(fmt)
        assert first == PURPOSE
        assert definitions == [definition_line(label) for label in fmt.labels]
        assert all(line.endswith(".\n") for line in definitions)
        assert fmt.value_strings[0] in last
        assert fmt.value_strings[-1] in last
        assert prompt(fmt) == "".join(prompt_parts(fmt))
    assert definition_line("AU1") == "AU1 (inner brow raiser): the inner brow ends are pulled up.\n"


def test_write_answer():
    assert write_answer({"AU12": 3, "AU6": 1}, make("intensity")) == "AU6: 1, AU12: 3"
    assert write_answer({"AU6": np.float32(0.285), "AU12": 1}, make("continuous")) == "AU6: 0.28, AU12: 1.00"
    assert write_answer({"AU6": float("nan"), "AU12": True}, make("occurrence")) == "AU12: 1"
    assert write_answer({"AU6": None}, make("occurrence")) == ""


@pytest.mark.parametrize(
    ("scale", "values", "message"),
    [
        ("intensity", {"AU6": 2.5}, "AU6 is 2.5, but intensity values are 0, 1, 2, 3, 4, 5"),
        ("intensity", {"AU6": 6}, "outside the intensity scale, 0 to 5"),
        ("occurrence", {"AU6": -1}, "outside the occurrence scale"),
        ("continuous", {"AU6": 1.001}, "outside the continuous scale"),
        ("continuous", {"AU6": float("inf")}, "outside the continuous scale"),
        ("occurrence", {"AU7": 1}, r"\['AU7'\] are not in the format"),
    ],
)
def test_write_answer_refuses_what_the_scale_cannot_say(scale, values, message):
    with pytest.raises(ValueError, match=message):
        write_answer(values, make(scale))


def test_halves_are_rounded_up():
    continuous, intensity = make("continuous"), make("intensity")
    values = (0.125, 0.285, 0.004, 0.995, 1)
    assert [round_to_scale(value, continuous) for value in values] == [0.13, 0.29, 0.0, 1.0, 1.0]
    assert [round_to_scale(value, intensity) for value in (0.5, 1.5, 2.5, 2.49)] == [1, 2, 3, 2]
    with pytest.raises(ValueError, match="outside"):
        round_to_scale(float("nan"), continuous)


@given(st.floats(0, 1))
def test_rounding_lands_on_the_nearest_value(value):
    fmt = make("continuous")
    result = round_to_scale(value, fmt)
    assert result in fmt.value_numbers
    assert abs(result - value) <= 0.005 + 1e-12
    assert f"{result:.2f}" in SCALES["continuous"]
