"""Answers as text, such as `AU1: 0, AU2: 0, AU4: 3`: the values of each scale, writing answers, parsing them.

The functions take any object with `.labels` and `.scale` as the format. This file imports nothing from the package;
`action_units.py` builds on it and re-exports its functions.

The parser is lenient about spelling and strict about meaning: an AU whose value the text leaves in doubt stays unread.
`parse_answer` describes the grammar.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import NamedTuple

# The values that an AU can take, as they are written.
SCALES: dict[str, tuple[str, ...]] = {
    "occurrence": ("0", "1"),  # absent, present
    "intensity": ("0", "1", "2", "3", "4", "5"),  # 0 absent; 1-5 are FACS A-E
    "continuous": tuple(f"{step / 100:.2f}" for step in range(101)),  # "0.00" absent … "1.00" maximum
}


def round_to_scale(value: float, fmt) -> float:
    """The value of `fmt`'s scale nearest to `value`; ties go up (2.5 -> 3, 0.125 -> 0.13).

    Ties are judged by the shortest decimal that denotes the number: 0.285 becomes 0.29 although its binary form is
    slightly smaller.

    Raises:
        ValueError: `value` is NaN or outside the scale.
    """
    number, strings = float(value), SCALES[fmt.scale]
    if not float(strings[0]) <= number <= float(strings[-1]):
        raise ValueError(
            f"{number} is outside the {fmt.scale} scale, {strings[0]} to {strings[-1]}: clip or rescale it"
        )
    return _nearest(number, fmt.scale)


@lru_cache(maxsize=1024)
def _nearest(number: float, scale: str) -> float:
    return float(Decimal(repr(number)).quantize(Decimal(SCALES[scale][1]), rounding=ROUND_HALF_UP))


SEPARATOR = ", "  # between the AUs of an answer


def value_prefix(label: str) -> str:
    """What an answer writes before an AU's value: "AU12: "."""
    return f"{label}: "


def value_texts(label: str, fmt) -> list[str]:
    """An AU with each value of `fmt`'s scale, as answers write it: ["AU12: 0", "AU12: 1", ...]."""
    return [value_prefix(label) + value for value in SCALES[fmt.scale]]


def write_answer(values: Mapping[str, float | None], fmt) -> str:
    """Write AU values as the answer text that `fmt` asks for, in the order of `fmt.labels`.

    Args:
        values: label -> value on the format's scale. AUs that are missing, None or NaN are unknown and left out:
            unknown is not absent. Without any known value the answer is the empty string.
        fmt: the format. Continuous values are rounded to two decimals, ties up; values on the other scales must already
            be whole numbers.

    Raises:
        ValueError: a label outside the format, or a value off the scale.
    """
    foreign = [label for label in values if label not in fmt.labels]
    if foreign:
        raise ValueError(f"{foreign} are not in the format, which has {list(fmt.labels)}: leave them out")
    items = []
    for label in fmt.labels:
        value = values.get(label)
        if value is None or math.isnan(value):
            continue
        number = round_to_scale(value, fmt)
        if fmt.scale != "continuous" and number != value:
            raise ValueError(
                f"{label} is {value}, but {fmt.scale} values are {', '.join(SCALES[fmt.scale])}: round first"
            )
        items.append(value_prefix(label) + f"{number:.{2 if fmt.scale == 'continuous' else 0}f}")
    return SEPARATOR.join(items)


@dataclass(frozen=True)
class ParsedAnswer:
    """What a text says about the AUs of a format.

    `status` holds one word per AU: "read"; "missing" (never named); "unclear" (named, but its value is in doubt);
    "out of range"; "off grid" (a number between two values of the scale); "conflict" (given different values); "too
    long" (the answer has more than `LONGEST` characters). `values` is None for all but "read".
    """

    values: dict[str, float | None]
    status: dict[str, str]
    foreign: tuple[str, ...]  # AUs named in the text that are not in the format, in order of appearance
    problems: list[str]  # one line per unread or foreign AU, or one about the whole answer

    @property
    def ok(self) -> bool:
        """Every AU of the format was read, and no other was named."""
        return not self.problems


# ---- Vocabulary -----------------------------------------------------------------------------------------------
_ADVERBS = "clearly|visibly|slightly|weakly|mildly|moderately|strongly|highly|very|fully|partially|also|both|all|any"
_PRESENT = "present|active|activated|visible|detected|observed|evident|noticeable|apparent|seen|shown|found|yes|true"
_ABSENT = "absent|inactive|invisible|undetected|unobserved|false"
_NOT = r"(?:(?:is|are|was|were|do|does|did) ?n'?t|not|never|no longer)"
_MEASURES = "value|intensity|level|score|strength|grade|state|status|presence|occurrence"
_COPULAS = "is|are|was|were"
_FILLERS = "be|do|does|has|have|with|an|the|at|of|as|appears to be|seems to be|rated|scored|coded"
_DOUBT = re.compile(
    r"\?|n/a|\b(?:may|might|maybe|perhaps|possibl[ey]|probabl[ey]|likely|unlikely|unclear|unsure|uncertain\w*|unknown|"
    r"cannot|can't|could|if|whether|hard|difficult|undetermined|ambiguous|occluded|hidden|barely|hardly|scarcely|"
    r"either|unable|would|should|none|null|nan|nowhere|false|untrue|except)\b"
)
_NEGATION = re.compile(r"\b(?:no|not|never|without|neither|nor|lack(?:s|ing)?|absence|fails?)\b|n't\b")
_OTHER_KEYS = re.compile(r"\b(?:confidence|certainty|probability|frames?|time|index|id|age)\b")  # no AU's number
_LIST_WORDS = (
    f"{_COPULAS}|{_PRESENT}|the|a|this|these|following|in|on|and|of|only|face|person|image|photo|subject|i|see|shows?|"
    "showing|displays|exhibits|aus?|action|units?|facial|answer|list|includes?"
)

# ---- Grammar --------------------------------------------------------------------------------------------------
# "au6", "AU 06", "AU-6", "action unit 6", "AU12L", "AU12 (left)", "left AU12", "AUL12", and FACS's graded "AU12C"
_MENTION = re.compile(
    r"(?:\b(?P<before>left|right|top|bottom) )?\b(?P<kind>a[ud]s?|action (?:units?|descriptors?))[ .-]{0,3}"
    r"(?P<prefix>[lrtb])?(?P<number>\d{1,3})"
    r"(?: ?[(-]?(?P<after>left|right|top|bottom)\b\)?|(?P<grade>[acde])| ?(?P<suffix>[lrtb])(?!'))?(?![a-z0-9])"
)
_GLOSS = r" ?\([^()\n\d]{0,80}\)"  # "AU12 (lip corner puller)"; a number in it might be meant as a value
_GLOSSES = (
    re.compile(""),
    re.compile(_GLOSS),
    # "AU12 lip corner puller: ", "AU12 - lip corner puller - ", "| AU12 | lip corner puller |"
    re.compile(r"(?: ?[-|] ?| )(?!(?:and|or|nor|but|with|to|plus)\b)[a-z][a-z '-]{0,60}(?= ?[:=|>]| - )"),
)
_LINK = re.compile(
    rf"(?: ?, ?(?=(?:{_MEASURES}|present|active|visible) ?[:=]))?[)\]]?"
    rf"(?:[:=|;>(\[{{\n ]|-+>|-(?= )|a(?= [a-z])|(?:present|active|visible)(?= ?[:=])|"
    rf"(?<![a-z])(?:{_COPULAS}|{_FILLERS}|{_ADVERBS}|{_MEASURES})\b)*"
)
_FIRM = re.compile(r"[:=|>]")  # punctuation that can only introduce a value
_STATED = re.compile(rf"[:=|>]|\b(?:{_COPULAS}|{_MEASURES})\b")
_PLURAL = re.compile(r"\b(?:are|were|aren'?t|weren'?t|do|don'?t|have|both|all)\b")
_VALUE = re.compile(
    rf"(?P<number>[+-]?(?:\d+(?:[.,]\d+)?|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?\b)(?P<percent> ?%)?"
    rf"|(?P<grade>[a-e])(?= ?(?:[,;|)\]}}\n.]|$))"
    rf"|(?P<not>{_NOT} )?(?:(?P<present>{_PRESENT}|(?:occur|appear|exist)(?! to))|(?P<absent>{_ABSENT}))\b(?! ?[:=])"
    rf"|(?P<no>no)(?= ?(?:[,;|)\]}}\n.(]|$)| (?:(?:visible|active) )?(?:activation|activity|movement|action|sign)\b)"
)
_FRACTION = re.compile(r" ?(?:/|(?:out )?of) ?(\d+(?:\.0+)?)(?![\d.,]*\d)")  # "3/5", "3 out of 5"
_NUMBER_SPOILT = re.compile(  # what, after a number, makes it something else: a range, a list, a unit, a confidence
    r"[a-z0-9'_]|[.,:]\d| ?\?| ?(?:-|to|or|and|/|of|out of|[,;|&+])? ?(?!\d{1,2}[.)] ?$)\d"
    r"| ?(?:confiden|certain|sure|likel|probab|chance)"
)
_VALUE_CLOSED = re.compile(r" ?(?:[,;|)\]}\n.!(]|(?:and|&) ?$|$)")
_CLAUSE_END = r"[.,;!\n|)\]}]|\b(?:and|but|while|whereas|though|although|yet|however|because)\b"
_CLAUSE = re.compile(rf"(?:(?!{_CLAUSE_END}|\bnor\b).)*", re.DOTALL)
_EARLIER_CLAUSES = re.compile(rf"(?:.*(?:{_CLAUSE_END}|[?:]))?", re.DOTALL)
_LIST_GAP = re.compile(rf"(?:{_GLOSS})?(?:[ ,/+&|\n(\[-]|\d{{1,2}}[.)]|and\b)*")
_LIST = re.compile(  # "@" stands for an AU
    rf"(?:[\s,;|/&.:()\[\]{{}}]|(?:^|(?<=\n))-|\+(?= ?@)|@(?! ?[:=])|\b(?:{_LIST_WORDS})\b)*"
)
_RUN_GAP = re.compile(rf"(?:{_GLOSS})? ?(?P<join>[,/+&| ]|,? ?(?:and|or|nor)) ?")
_HEADING = re.compile(r"(?P<phrase>[^.,;!?\n|:\]}]{1,80})[:=][ \n(\[{-]*(?:\d{1,2}[.)] ?)?$")
_DENIAL = re.compile(
    rf"\b(?:no|without|lacks?|lacking|absence of|lack of|neither|nor|absent|inactive|"
    rf"{_NOT}(?: (?:show|see|display|exhibit|have|contain|observe|detect))?)"
    r"(?: (?:any|visible|active|clear|noticeable|the|of|(?:sign|evidence|trace|indication)s? of))* ?[(\[]?$"
)
_NOTHING = re.compile(
    r"(?:(?:the|there are|i see|(?:active |present |facial )?(?:aus?|action units?)(?: present)?:|answer:) ?)*"
    rf"(?:none|no (?:(?:{_PRESENT}|facial) )?(?:aus?|action units?)(?: (?:are|is|were))?(?: (?:{_PRESENT}))?)[.! ]*"
)
LONGEST = 100_000  # characters of an answer that is parsed: a hundred times what the longest format takes
_TAIL, _HEAD = 200, 120  # characters after and before an AU's name that can say something about it

# Spelling that carries no meaning: full-width forms, typographic signs and markup.
_SPELLING = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SPELLING |= str.maketrans({"\u2019": "'", "\u2212": "-", "\u2013": "-", "\u2014": " - ", "→": ">", "⇒": ">", "…": "."})
_SPELLING |= str.maketrans(dict.fromkeys('*`"“”„«»•_#\\$', " "))
_QUOTE = re.compile(r"(?<![a-z])'|'(?![a-z])")
_SIDE_LETTERS = {"left": "L", "right": "R", "top": "T", "bottom": "B"}


class _Reading(NamedTuple):
    """What the text after an AU's name says about it."""

    value: float | str | None  # a number; "present", "absent"; "unclear", "out of range", "off grid"; None: nothing
    end: int = 0  # characters consumed
    firm: bool = False  # introduced by punctuation such as ":", so that a doubt before the name does not apply
    plural: bool = False  # about a whole list: "AU1 and AU2 are present"


class _Lead(NamedTuple):
    """What the text before an AU's name says about it."""

    join: str | None  # what joins it to the AU before it: "," "and" "or" "nor" …, or None
    in_list: bool  # only list punctuation separates it from the AU before it
    heading: str | None  # "present", "absent" or "unclear", from a heading such as "Not visible:"
    denied: bool  # "no AU4"
    doubted: bool  # "I cannot tell whether AU4"


def parse_answer(text: str, fmt) -> ParsedAnswer:
    """Parse the AU values that a text states. Never raises on a string; takes time linear in its length.

    - A value follows its AU's name after ":", "=", "->", "|", ";", " - ", "is", "has intensity", a bracket, a space
      or a line break; a gloss may come between ("AU12 (lip corner puller): 3"). JSON and Markdown fit the same rules.
      Words count ("present", "not visible", "yes" …): "absent" is 0 on every scale; "present" is 1 on the occurrence
      scale and unclear on the others, as it gives no strength. FACS letters A-E are 1-5 on the intensity scale.
    - "AU12 is not visible", "no AU4", "without AU4", "neither AU1 nor AU2", "Absent: AU1, AU2" mean absence. A plural
      applies to its whole list ("AU1 and AU2 are absent"); "no AU1 or AU2" denies both, "no AU1 and AU2" only AU1.
    - Hedges, refusals, questions, ranges ("2 or 3"), "AU1 or AU2 is present", "null" and numbers in prose are unclear.
      A draft inside <think>…</think> does not count.
    - A plain list ("AU1, AU4", "Present: AU1, AU4", "The face shows AU1 and AU4.") is a full answer in an occurrence
      format: the AUs that it leaves out are absent. A plain list holds only AUs without values, list words and glosses
      in brackets. Elsewhere an AU without a value is unclear, and one that is not named is missing, never absent.
      "None" or "No AUs are present" as the whole answer is 0 for all AUs.
    - If an AU is named twice, the values must agree. The FACS number identifies an AU ("AU29" is AD29), but a side is
      never dropped: AU12L does not answer AU12.
    - The continuous scale also takes percent (37%), a decimal comma (0,37) and more than two decimals.
    - Answers of more than `LONGEST` characters are not parsed.
    """
    answer = text.rpartition("</think>")[2].partition("<think>")[0]
    if len(answer) > LONGEST:
        problem = f"the answer has {len(answer):,} characters; at most {LONGEST:,} are read"
        return ParsedAnswer(dict.fromkeys(fmt.labels), dict.fromkeys(fmt.labels, "too long"), (), [problem])
    folded = _fold(answer)
    labels = {_key(label): label for label in fmt.labels}
    said: dict[str, set[float | str]] = {}  # label -> everything that the text says about it
    foreign: dict[str, None] = {}
    plain = fmt.scale == "occurrence"
    for label, value in _statements(folded, labels, fmt.scale):
        plain = plain and value in ("named", "listed")
        if label in fmt.labels:
            said.setdefault(label, set()).add(value)
        else:
            foreign[label] = None

    if plain and said and _is_plain_list(folded):
        said = {label: {float(label in said)} for label in fmt.labels}
    elif not said and not foreign and len(folded) < _TAIL and _NOTHING.fullmatch(folded):
        said = {label: {0.0} for label in fmt.labels}

    values: dict[str, float | None] = {}
    status: dict[str, str] = {}
    for label in fmt.labels:
        values[label], status[label] = _settle(said.get(label, set()))
    problems = [f"{label}: {word}" for label, word in status.items() if word != "read"]
    problems += [f"{label}: not in the format" for label in foreign]
    return ParsedAnswer(values, status, tuple(foreign), problems)


def _fold(answer: str) -> str:
    """The answer in lower case and plain signs, with single spaces and no blank lines."""
    answer = _QUOTE.sub(" ", answer.translate(_SPELLING).lower())
    return "\n".join(line for line in (" ".join(line.split()) for line in answer.splitlines()) if line)


def _key(label: str) -> tuple[int, str]:
    """FACS number and side letter of a label: (12, "") for "AU12", (43, "L") for "AU43L"."""
    digits = label[2:].rstrip("LRTB")
    return int(digits), label[2 + len(digits) :]


def _statements(folded: str, labels: Mapping[tuple[int, str], str], scale: str) -> Iterator[tuple[str, float | str]]:
    """The label of every AU named in the text, with what the text says about it at that place.

    That is a value of the scale, "listed" (under a heading such as "Present:"), "named" (nothing), or one of the
    statuses "unclear", "out of range" and "off grid".
    """
    run: list[tuple[str, _Reading, _Lead, str | None]] = []  # AUs joined by commas and conjunctions
    meanings: dict[str, tuple[str, str | None]] = {}
    heading, before = None, 0
    mentions = _MENTION.finditer(folded)
    mention = next(mentions, None)
    while mention:
        following = next(mentions, None)
        stop = min(following.start() if following else len(folded), mention.end() + _TAIL)
        lead = _read_lead(folded[max(before, mention.start() - _HEAD) : mention.start()])
        heading = lead.heading or (heading if lead.in_list else None)
        if mention[0] not in meanings:
            meanings[mention[0]] = _label_and_grade(mention, labels)
        label, grade = meanings[mention[0]]
        reading = _read_tail(folded[mention.end() : stop], scale)
        if grade:
            reading = _read_grade(grade, scale) if reading.value is None else _Reading("unclear")
        if run and not (lead.join and run[-1][1].value is None):
            yield from _settle_run(run, scale)
            run = []
        run.append((label, reading, lead, heading))
        before, mention = mention.end() + reading.end, following
    if run:
        yield from _settle_run(run, scale)


def _label_and_grade(mention: re.Match, labels: Mapping[tuple[int, str], str]) -> tuple[str, str | None]:
    """The label that a mention stands for (the format's if number and side match), and its FACS letter or None."""
    number, grade, suffix = int(mention["number"]), mention["grade"], mention["suffix"]
    side = _SIDE_LETTERS.get(mention["after"] or mention["before"], (suffix or mention["prefix"] or "").upper())
    attached = mention.end("number") == mention.start("suffix")
    if suffix == "b" and attached and (number, "B") not in labels and (number, "") in labels:
        side, grade = "", "b"  # "AU12B" is slight intensity where the format has no bottom lip of that number
    kind = "AD" if mention["kind"].startswith("ad") else "AU"
    return labels.get((number, side), f"{kind}{number}{side}"), grade


@lru_cache(maxsize=4096)
def _read_lead(head: str) -> _Lead:
    run_gap = _RUN_GAP.fullmatch(head)
    phrase = _HEADING.search(head)
    clause = head[_EARLIER_CLAUSES.match(head).end() :]
    denied = bool(_DENIAL.search(clause)) and not _DOUBT.search(clause)
    return _Lead(
        join=run_gap["join"].strip(" ,") or "," if run_gap else None,
        in_list=bool(_LIST_GAP.fullmatch(head)),
        heading=_polarity(phrase["phrase"]) if phrase else None,
        denied=denied,
        doubted=not denied and bool(_DOUBT.search(clause) or _NEGATION.search(clause)),
    )


def _polarity(phrase: str) -> str | None:
    """Whether the AUs under a heading are "present", "absent" or "unclear"; None for a heading about something else."""
    present, absent = re.search(rf"\b(?:{_PRESENT})\b", phrase), re.search(rf"\b(?:{_ABSENT})\b", phrase)
    denied = _NEGATION.search(phrase)
    if _DOUBT.search(phrase) or (denied and not present) or (absent and present):
        return "unclear"
    return "absent" if absent or denied else "present" if present else None


def _read_grade(grade: str, scale: str) -> _Reading:
    value = float("_abcde".index(grade)) if scale == "intensity" else "unclear"
    return _Reading(value, firm=True)


@lru_cache(maxsize=4096)
def _read_tail(tail: str, scale: str) -> _Reading:
    for pattern in _GLOSSES:
        gloss = pattern.match(tail)
        if not gloss or any(words.search(gloss[0]) for words in (_DOUBT, _NEGATION, _OTHER_KEYS)):
            continue
        link = _LINK.match(tail, gloss.end())
        value = _VALUE.match(tail, link.end())
        if link[0] and value:
            return _read_value(link[0], value, tail[value.end() :], scale)
    clause = _CLAUSE.match(tail)[0]
    return _Reading("unclear" if _DOUBT.search(clause) or _NEGATION.search(clause) else None)


def _read_value(link: str, value: re.Match, rest: str, scale: str) -> _Reading:
    firm, stated = bool(_FIRM.search(link)), bool(_STATED.search(link))
    plural = bool(_PLURAL.search(link + (value["not"] or "")))
    if value["grade"]:
        return _read_grade(value["grade"], scale)._replace(end=value.end()) if stated else _Reading(None)
    if value["number"]:
        if not stated and not re.search(r"[(\[{]", link) and re.fullmatch(r"[.)] ", rest):
            return _Reading(None)  # the number of the next item in a list
        return _Reading(_read_number(value, rest, stated, "\n" in link, scale), value.end(), firm, plural)
    present = bool(value["present"]) != bool(value["not"])
    clause = _CLAUSE.match(rest)[0]
    if _DOUBT.search(clause) or (present and _NEGATION.search(clause)):
        return _Reading("unclear")
    if value["no"] and not stated and rest.isspace():  # "AU1 no AU4": the word may belong to the next AU
        return _Reading("unclear")
    if "\n" in link and not stated:  # the word may be the next list's heading
        return _Reading(None)
    return _Reading("present" if present else "absent", value.end(), firm, plural)


def _read_number(value: re.Match, rest: str, stated: bool, next_line: bool, scale: str) -> float | str:
    """The value of the scale that a number in the text stands for, or the status that says why there is none."""
    text, highest = value["number"], float(SCALES[scale][-1])
    fraction = _FRACTION.match(rest)
    if fraction and float(fraction[1]) == highest:
        rest = rest[fraction.end() :]
    if rest == "." and scale == "continuous" and "." not in text:  # "0." may be "0.37" cut short
        return "unclear"
    if value.end() == _TAIL or _NUMBER_SPOILT.match(rest) or not (stated or _VALUE_CLOSED.match(rest)):
        return "unclear"
    if ("," in text or value["percent"]) and (scale != "continuous" or next_line):
        return "unclear"
    number = float(text.replace(",", ".")) / (100 if value["percent"] else 1)
    if not 0 <= number <= highest:
        return "out of range"
    nearest = _nearest(number, scale)
    return nearest if scale == "continuous" or nearest == number else "off grid"


def _settle_run(run: list[tuple[str, _Reading, _Lead, str | None]], scale: str) -> Iterator[tuple[str, float | str]]:
    """What a run such as "no AU1, AU2 or AU4" or "AU6 and AU12 are visible" says about each of its AUs."""
    last, first = run[-1][1], run[0][2]
    choice = any(lead.join == "or" for _, _, lead, _ in run[1:])  # "AU1 or AU2"
    all_denied = first.denied and len(run) > 1 and run[-1][2].join in ("or", "nor")
    for position, (label, reading, lead, heading) in enumerate(run):
        value, later = reading.value, position > 0
        if value is None and last.plural:
            value = last.value
        if value is None:
            value = heading
        if lead.denied or all_denied:
            value = "absent" if value in (None, "present") else "unclear"
        elif (
            ((lead.doubted or first.doubted) and not reading.firm)
            or (later and first.denied)
            or choice
            or (later and isinstance(value, float) and not (reading.firm or last.plural))  # "AU1, AU2 1": a table?
        ):
            value = "unclear"
        if value == "absent":
            value = 0.0
        elif value == "present":
            listed = reading.value is None and not last.plural
            value = "unclear" if scale != "occurrence" else "listed" if listed else 1.0
        yield label, "named" if value is None else value


def _is_plain_list(folded: str) -> bool:
    """Whether the text holds only AUs, list words, glosses in brackets and list numbers."""
    if _DOUBT.search(folded) or _NEGATION.search(folded) or re.search(r"\d ?(?:-|to|through) ?a[ud]", folded):
        return False
    rest = re.sub(_GLOSS, " ", _MENTION.sub("@", folded))
    rest = re.sub(r"(?:^|[\n ])\d{1,2}[.)] ?@", "@", rest)
    return _LIST.match(rest).end() == len(rest)


def _settle(said: set[float | str]) -> tuple[float | None, str]:
    """Value and status of one AU, from everything said about it; mentions without a value do not count."""
    readings = {1.0 if word == "listed" else word for word in said} - {"named", "unclear"}
    if len(readings) > 1:
        return None, "conflict"
    if not readings:
        return None, "unclear" if said else "missing"
    (reading,) = readings
    return (reading, "read") if isinstance(reading, float) else (None, reading)
