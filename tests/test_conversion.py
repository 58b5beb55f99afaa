"""Labels in one format as labels in another: three states, by hand."""

import math

import numpy as np
import pytest

from au_llava.action_units import FORMATS, SCALES, AUFormat
from au_llava.au_datasets.conversion import convert_values, sides_of, sources

NAN = math.nan


def test_sides():
    assert [sides_of(label) for label in ("AU12", "AU28", "AU17", "AU12L")] == [
        ("AU12L", "AU12R"),
        ("AU28T", "AU28B"),
        (),
        (),
    ]
    assert sources("AU12", FORMATS["feafa"]) == ("AU12L", "AU12R")
    assert sources("AU12", FORMATS["disfa"]) == ("AU12",)
    assert sources("AU12L", FORMATS["disfa"]) == ()


@pytest.mark.parametrize("scale", SCALES)
def test_sides_to_whole(scale):
    """The stronger side; an unknown side leaves the whole unknown unless the other is at the top."""
    top = float(SCALES[scale][-1])
    source, target = AUFormat("sided", ("AU12L", "AU12R"), scale), AUFormat("whole", ("AU12",), scale)
    below = 0.0 if scale == "occurrence" else top * 0.2
    values = [[0, below], [below, top], [top, NAN], [NAN, below], [NAN, NAN]]
    expected = [[below], [top], [top], [NAN], [NAN]]
    np.testing.assert_array_equal(convert_values(values, source, target), expected)


def test_feafa_to_occurrence_by_its_threshold():
    values = dict.fromkeys(FORMATS["feafa"].labels, 0.0)
    values |= {"AU12L": 0.3, "AU12R": NAN, "AU2L": 0.29, "AU2R": 0.0, "AU4L": 0.1, "AU4R": NAN, "AU10": 1.0}
    found = convert_values(np.float32(list(values.values())), FORMATS["feafa"], FORMATS["bp4d"])
    expected = dict.fromkeys(FORMATS["bp4d"].labels, NAN)  # FEAFA codes no AU1, AU6, AU7, AU14, AU15, AU23, AU24
    expected |= {"AU2": 0.0, "AU4": NAN, "AU10": 1.0, "AU12": 1.0, "AU17": 0.0}
    assert dict(zip(FORMATS["bp4d"].labels, found.tolist(), strict=True)) == pytest.approx(expected, nan_ok=True)


def test_disfa_to_occurrence_by_its_threshold():
    disfa, bp4d = FORMATS["disfa"], FORMATS["bp4d"]
    found = convert_values([[1, 2, NAN, 5, 5, 5, 0, 1, 2, 5, 5, 5]], disfa, bp4d)[0]
    known = {label: value for label, value in zip(bp4d.labels, found, strict=True) if not math.isnan(value)}
    assert known == {"AU1": 0, "AU2": 1, "AU6": 1, "AU12": 0, "AU15": 0, "AU17": 1}  # AU4 is unknown


def test_a_side_is_never_invented():
    source, target = AUFormat("whole", ("AU12",), "occurrence"), AUFormat("sided", ("AU12L", "AU12R"), "occurrence")
    np.testing.assert_array_equal(convert_values([[0], [1], [NAN]], source, target), [[0, 0], [NAN, NAN], [NAN, NAN]])


@pytest.mark.parametrize(("source", "target"), [("bp4d", "disfa"), ("bp4d", "feafa"), ("disfa", "feafa")])
def test_strength_is_never_invented(source, target):
    for one, other in ((source, target), *(((target, source),) if source == "disfa" else ())):
        with pytest.raises(ValueError, match="do not follow from"):
            convert_values([[0.0] * len(FORMATS[one].labels)], FORMATS[one], FORMATS[other])


def test_same_format_is_the_same():
    values = np.array([0, 1, NAN, 1, 0, 0, 1, 0, 0, 1, NAN, 0])
    np.testing.assert_array_equal(convert_values(values, FORMATS["bp4d"], FORMATS["bp4d"]), values)
