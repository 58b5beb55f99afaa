"""Reading answers: what counts as a value, what as absence, and what is left unread."""

import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from au_llava import answers_au_llava
from au_llava.action_units import ACTION_UNITS, FORMATS, SCALES, AUFormat, parse_answer, prompt, write_answer
from au_llava.answers_au_llava import LONGEST

LABELS = ("AU1", "AU2", "AU4", "AU12")
OCCURRENCE = AUFormat("occurrence", LABELS, "occurrence")
INTENSITY = AUFormat("intensity", LABELS, "intensity")
CONTINUOUS = AUFormat("continuous", ("AU1", "AU2", "AU12L", "AU12R", "AU28B", "AD29"), "continuous")


def read(text, fmt=OCCURRENCE):
    """The AUs that were read: {"AU1": 1.0}."""
    return {label: value for label, value in parse_answer(text, fmt).values.items() if value is not None}


SPELLINGS = (  # of AU1: 0, AU2: 1, AU4: 0, AU12: 1
    "AU1: 0, AU2: 1, AU4: 0, AU12: 1",
    "The answer is AU1: 0, AU2: 1, AU4: 0, AU12: 1.",
    "AU01 = 0; au 2 -> 1 | AU_4: 0\nAU-12 is 1",
    "**AU1**: 0\n- `AU2`: 1\n* AU4: **0**\n• AU12 \u2013 1",
    '```json\n{"AU1": 0, "AU2": 1, "AU4": false, "AU12": true}\n```',
    "{'AU1': 0, 'AU2': 1, 'AU4': 0, 'AU12': 1}",
    '[{"au": "AU1", "value": 0}, {"au": "AU2", "present": true}, {"AU4": {"present": false}}, {"AU12": [1]}]',
    '{"present": ["AU2", "AU12"], "absent": ["AU1", "AU4"]}',
    "| AU | value |\n|---|---|\n| AU1 | 0 |\n| AU2 | 1 |\n| AU4 | 0 |\n| AU12 | 1 |",
    "| AU1 | inner brow raiser | 0 |\n| AU2 | outer brow raiser | 1 |\n| AU4 | brow lowerer | 0 |\n| AU12 | | 1 |",
    "AU1\t0\nAU2\t1\nAU4\t0\nAU12\t1",
    "AU1\n0\nAU2\n1\nAU4\n0\nAU12\n1",
    "AU1;0;AU2;1;AU4;0;AU12;1",
    "AU1 0 AU2 1 AU4 0 AU12 1",
    "AU1:0,AU2:1,AU4:0,AU12:1",
    "AU 1: No. AU 2: Yes. AU 4: No. AU 12: Yes.",
    "AU1 (inner brow raiser): 0, AU2 (outer brow raiser) is present, AU4 - brow lowerer - 0, AU12 lip corner: 1",
    "1. AU1: 0\n2. AU2: 1\n3. AU4: 0\n4. AU12: 1\n",
    "AU1 and AU4 are not visible, while AU2 and AU12 are clearly present.",
    "Present:\n- AU2\n- AU12\nNot visible:\n- AU1\n- AU4\n",
    "Neither AU1 nor AU4 is visible. AU2 is active and AU12 is active too.",
    "AU1: 0.0, AU2: 1e0, AU4: -0, AU12: +1.00",
    "ＡＵ１：０，ＡＵ２：１，AU4: ０, AU12: １",  # noqa: RUF001
    "<think>AU1: 1? AU2: 0, AU4: 1</think>AU1: 0, AU2: 1, AU4: 0, AU12: 1",
    "Action Unit 1 is absent. Action unit 2 is present. AU4 isn't present; AU12 is seen.",
    "AU1: 0/1, AU2: 1 (strong), AU4: 0 - none, AU12: 1 because the lip corners rise",
    "AU2, AU12",
    "AU02 and au12.",
    "Active AUs: AU2, AU12",
    "The face shows AU2 and AU12.",
    "1. AU2 (outer brow raiser)\n2. AU12 (lip corner puller)",
    "AU2+AU12",
    '["AU2", "AU12"]',
)


def test_spellings_of_one_answer():
    expected = dict(zip(LABELS, (0, 1, 0, 1), strict=True))
    parsed = {text: parse_answer(text, OCCURRENCE) for text in SPELLINGS}
    assert {text: answer for text, answer in parsed.items() if answer.values != expected or not answer.ok} == {}
    assert {status for answer in parsed.values() for status in answer.status.values()} == {"read"}


DENIALS = (
    "AU4 is not visible",
    "AU4 isn't visible",
    "AU4 isn’t present",  # noqa: RUF001
    "AU4 is absent",
    "AU4: not detected",
    "AU4: no activation",
    "AU4: absent (no brow lowering)",
    "AU4 does not appear",
    "AU4 appears to be absent",
    "no AU4",
    "There is no AU4.",
    "without AU4",
    "without any sign of AU4",
    "lack of AU4",
    "The face does not show AU4.",
    "I see a smile, not AU4",
    "Absent: AU4",
    "no AU4 is visible",
)


def test_denial_is_absence():
    answers = {(text, fmt.name): read(text, fmt) for text in DENIALS for fmt in (OCCURRENCE, INTENSITY)}
    assert {case: values for case, values in answers.items() if values != {"AU4": 0}} == {}


SENTENCES = {
    "neither AU1 nor AU2": {"AU1": 0, "AU2": 0},
    "no AU1, AU2 or AU4": {"AU1": 0, "AU2": 0, "AU4": 0},
    "no AU1 and AU2": {"AU1": 0},  # AU2 might be meant either way
    "no AU1 and AU2 are present": {"AU1": 0},
    "AU1 and AU2 are absent": {"AU1": 0, "AU2": 0},
    "AU1, AU2 absent": {"AU2": 0},
    "AU1 and AU2 are not both present": {},
    "AU1 or AU2 is present": {},
    "either AU1 or AU2": {},
    "not only AU1 but also AU2": {},
    "AU1 is absent but AU2 is not": {"AU1": 0},
    "AU1, AU4, no AU2": {"AU2": 0},
    "AU1, AU4: 1": {"AU4": 1},
    "AU1 is present and AU2 is present": {"AU1": 1, "AU2": 1},
    "I see AU1, not AU4": {"AU4": 0},
}


def test_what_a_sentence_says_about_several_aus():
    assert {text: read(text) for text in SENTENCES} == SENTENCES


DOUBTFUL = (
    "",
    "I cannot tell.",
    "I'm sorry, I can't identify AU1, AU2 or AU4.",
    "I cannot tell whether AU4 is present",
    "AU4 unclear",
    "AU4: unknown",
    "AU4: ?",
    "AU4: 1?",
    "Is AU4 present?",
    "AU4 may be present",
    "AU4 is probably present",
    "AU4 is hardly visible",
    "AU4 is visible nowhere",
    "AU4 is not fully visible",
    "It is false that AU4 is present",
    "all AUs except AU4",
    "AU1 and AU4 (not sure)",
    "AU4: null",
    "AU4: none",
    "AU4:",
    "AU4: 0 or 1",
    "AU4: 0-1",
    "AU4-1",
    "AU1-AU4",
    "AU1 to AU4",
    "AU1, 2, 4",
    "AUs 1, 2 and 4",
    "AU1 | AU2 | AU4\n0 | 1 | 1",
    "AU1,AU2\n0,1",
    '{"aus": ["AU1", "AU2"], "values": [0, 1]}',
    "AU4: 95% confidence",
    "AU4 confidence: 1",
    "AU4 (see Figure 1)",
    "AU4 1 people",
    "The woman, aged 1, shows AU4 in 1 of 3 frames",
    "AU4.1",
    "AU4: 1st",
    "AU4: 0.1.1",
    "AU4 +, AU2 -",
    "AU1, ~AU4",
    "AU4C",
    "AU4L: 1",
    "AU41: 1",
    "<think>AU4: 1",
    "AU1: AU2: AU4: AU12:",
    "AU99",
)


def test_what_is_in_doubt_stays_unread():
    parsed = {text: parse_answer(text, OCCURRENCE) for text in DOUBTFUL}
    unread = dict.fromkeys(LABELS)
    assert {text: answer for text, answer in parsed.items() if answer.values != unread or answer.ok} == {}
    assert "read" not in {status for answer in parsed.values() for status in answer.status.values()}


def test_a_list_answers_only_an_occurrence_format():
    assert read("AU1, AU4", INTENSITY) == {}
    assert parse_answer("AU1, AU4", INTENSITY).status == {
        "AU1": "unclear",
        "AU2": "missing",
        "AU4": "unclear",
        "AU12": "missing",
    }


def test_an_answer_with_values_is_no_list():
    assert read("AU1: 1, AU4: 1") == {"AU1": 1, "AU4": 1}
    assert read("AU1 and AU4 are present") == {"AU1": 1, "AU4": 1}
    assert read("He frowns, which suggests AU1, AU4") == {}


def test_an_empty_list_is_all_absent():
    for text in ("None.", "No AUs are present", "no action units", "Active AUs: none"):
        for fmt in (OCCURRENCE, INTENSITY):
            assert read(text, fmt) == dict.fromkeys(LABELS, 0), text


def test_status_says_why_an_au_was_not_read():
    parsed = parse_answer("AU1: 6, AU2: 2.5, AU4: 1, AU4: 2, AU9: 1, AU12: hm, AU12L: 3", INTENSITY)
    assert parsed.status == {"AU1": "out of range", "AU2": "off grid", "AU4": "conflict", "AU12": "unclear"}
    assert parsed.foreign == ("AU9", "AU12L")
    assert parsed.problems == [
        "AU1: out of range",
        "AU2: off grid",
        "AU4: conflict",
        "AU12: unclear",
        "AU9: not in the format",
        "AU12L: not in the format",
    ]


def test_naming_an_au_twice():
    assert read("AU4: 1. Again, AU4: 1.0. AU4 is the brow lowerer.") == {"AU4": 1}
    assert parse_answer("AU4: 1, AU4: 7", INTENSITY).status["AU4"] == "conflict"


def test_intensity():
    assert read("AU1A, AU2B, AU4C, AU12E", INTENSITY) == {"AU1": 1, "AU2": 2, "AU4": 3, "AU12": 5}
    assert read("AU1: a, AU2: D; AU4 present. AU12B: 3", INTENSITY) == {"AU1": 1, "AU2": 4}
    assert read("AU1: 3/5, AU2: 4 out of 5, AU4: 3/10, AU12: 2-3", INTENSITY) == {"AU1": 3, "AU2": 4}
    text = "AU12 has intensity 3; AU4 with an intensity of 2, AU1 at level 1 and AU2 absent"
    assert read(text, INTENSITY) == {"AU1": 1, "AU2": 0, "AU4": 2, "AU12": 3}
    assert read("AU1 (3), AU2 (intensity 2), AU4: intensity 1", INTENSITY) == {"AU1": 3, "AU2": 2, "AU4": 1}
    assert read("1) AU1 2) AU4 3) AU2", INTENSITY) == {}


def test_continuous_and_sides():
    text = "AU1: 0,37; AU2: 37%; AU12L: .5, AU12 (right): 0.375, AU28 bottom 0.1, AU29: 1"
    assert read(text, CONTINUOUS) == {"AU1": 0.37, "AU2": 0.37, "AU12L": 0.5, "AU12R": 0.38, "AU28B": 0.1, "AD29": 1}
    assert read("left AU12: 0.2, AU12_R: 0.25", CONTINUOUS) == {"AU12L": 0.2, "AU12R": 0.25}
    assert parse_answer("AU12: 0.4, AU28T: 0.1", CONTINUOUS).foreign == ("AU12", "AU28T")
    assert parse_answer("AU1: 1.01, AU2: -0.1", CONTINUOUS).status["AU2"] == "out of range"
    assert parse_answer("AU1: inf", CONTINUOUS).status["AU1"] == "out of range"
    assert read("AU1: nan, AU2: 0.", CONTINUOUS) == {}  # "0." may be "0.37" cut short


def test_the_prompt_itself_is_no_answer():
    for fmt in FORMATS.values():
        assert read(prompt(fmt), fmt) == {}


@st.composite
def formats_and_values(draw):
    scale = draw(st.sampled_from(sorted(SCALES)))
    labels = draw(st.lists(st.sampled_from(sorted(ACTION_UNITS)), min_size=1, max_size=30, unique=True))
    fmt = AUFormat("any", labels, scale)
    return fmt, {label: draw(st.sampled_from((None, *fmt.value_numbers))) for label in labels}


@given(formats_and_values())
@settings(max_examples=100)
def test_parsing_undoes_writing(drawn):
    fmt, values = drawn
    parsed = parse_answer(write_answer(values, fmt), fmt)
    assert parsed.values == values
    assert parsed.ok == (None not in values.values())


WORDS = ("no ", "not ", "neither ", " nor ", " or ", " and ", " is ", " are ", "present", "absent", "</think>")
SIGNS = (": ", ", ", "1", "0.5", "?", "\n", "(", ")", "|", "- ", "L", "%", '"', "/5", "e9", "\ud800")
FRAGMENTS = st.sampled_from(("AU1", "AU2", "AU12L", "AU", *WORDS, *SIGNS))


@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=40).map("".join)), st.sampled_from(sorted(FORMATS)))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_values_of_the_scale_and_a_status(text, name):
    fmt = FORMATS[name]
    parsed = parse_answer(text, fmt)
    assert tuple(parsed.values) == tuple(parsed.status) == fmt.labels
    for label in fmt.labels:
        assert (parsed.values[label] is not None) == (parsed.status[label] == "read")
        assert parsed.values[label] is None or parsed.values[label] in fmt.value_numbers


def test_what_is_longer_than_any_answer_is_refused():
    for junk in ("AU" * 5_000_000, "AU1: " + "9" * 10_000_000, "AU1:" * 2_000_000, "AU1: 1, " * 12_501):
        for fmt in (OCCURRENCE, INTENSITY, CONTINUOUS):
            parsed = parse_answer(junk, fmt)
            assert set(parsed.status.values()) == {"too long"}
            assert set(parsed.values.values()) == {None}
            assert parsed.problems == [f"the answer has {len(junk):,} characters; at most 100,000 are read"]
            assert not parsed.ok


def test_the_longest_answer_that_is_read():
    answer = "AU1: 0, AU2: 1, AU4: 0, AU12: 1"
    padded = answer.ljust(LONGEST)
    assert parse_answer(padded, OCCURRENCE).ok
    assert parse_answer(f"<think>{'AU1: 1, ' * 20_000}</think>{padded}", OCCURRENCE).ok  # a draft is not the answer
    assert not parse_answer(padded + " ", OCCURRENCE).ok


class _CountedPattern:
    """A compiled pattern that adds up the characters it was asked to look at."""

    seen = 0

    def __init__(self, pattern):
        self.pattern = pattern

    def __getattr__(self, name):
        def call(*arguments):
            _CountedPattern.seen += sum(len(text) for text in arguments if isinstance(text, str))
            return getattr(self.pattern, name)(*arguments)

        return call


UNITS = ("AU1: 1, ", "AU1 (", "AU1, ", "no AU1 or ", "AU1:", "AU1 is not ", "{'AU2': [", "1. AU4\n", "AU1 a: ")
UNITS += ("left AU1 ", "(AU1 ", "and ", "AU1 the ", "AU1 no: ", "AU1 = present? ", "* AU1 - lip - ")


def test_work_grows_in_proportion_to_the_text(monkeypatch):
    for name, value in vars(answers_au_llava).items():
        if isinstance(value, re.Pattern):
            monkeypatch.setattr(answers_au_llava, name, _CountedPattern(value))

    def work(unit, numbers):
        _CountedPattern.seen = 0
        text = "".join(f"{unit}x{number} " for number in numbers)  # all different, so that no result is cached
        parse_answer(text, OCCURRENCE)
        return _CountedPattern.seen / len(text)

    growth = {unit: work(unit, range(20_000, 22_000)) / work(unit, range(10_000, 11_000)) for unit in UNITS}
    assert {unit: factor for unit, factor in growth.items() if factor >= 1.2} == {}


def test_noise_between_answers_does_not_hide_them():
    noise = "".join(random.Random(0).choices("abcdefghij \n", k=30_000))
    assert read(f"{noise}\nAU1: 0, AU2: 1\n{noise}\nAU4: 0\n{noise}") == {"AU1": 0, "AU2": 1, "AU4": 0}
