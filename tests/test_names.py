"""Names of files that are not UTF-8, as text."""

import os

from hypothesis import given
from hypothesis import strategies as st

from au_llava.au_runs.names import escaped, listed, unescaped


def test_a_long_list_of_names_is_cut():
    assert listed([]) == ""
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c, d, e …"


def test_names_are_escaped_where_they_must():
    for name, text in {
        os.fsdecode(b"Jos\xe9.png"): r"Jos\xe9.png",
        "José.png": "José.png",
        r"C:\study\smile.png": r"C:\study\smile.png",
        r"Jos\xe9.png": r"Jos\x5cxe9.png",  # not the first one
        "half \ud83d.png": r"half \ud83d.png",  # as Windows allows
        "50 %.png": "50 %.png",
    }.items():
        assert escaped(name) == text
        assert unescaped(text) == name


@given(st.text(st.sampled_from(["\\", "x", "u", "d", "8", "9", "5", "c", "e", "\udce9", "\udc80", "\ud812", "é"])))
def test_every_name_comes_back(name):
    escaped(name).encode()
    assert unescaped(escaped(name)) == name
