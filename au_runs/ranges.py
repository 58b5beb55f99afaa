"""Long lists of names as a few lines, in the braces that shells know.

    rendered:R4-{000000..000123,000125}    R4-000000 to R4-000123, and R4-000125
    fairface:train/{1,10,100..102}.jpg     train/1.jpg, train/10.jpg, train/100.jpg to train/102.jpg

Numbers of a range have at least as many digits as its first one. Braces that belong to a name are doubled, so every
list of names comes back as it was, but for its order.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

NUMBER = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)", re.DOTALL)  # the last number of a name, and what is around it
TEXT = r"((?:[^{}]|\{\{|\}\})*)"
BRACES = re.compile(TEXT + r"\{([0-9.,]+)\}" + TEXT)
MOST_RUNS = 20  # in one entry, so that lines stay readable


def as_ranges(names: Iterable[str]) -> list[str]:
    """The distinct `names`, those that differ only in their last number in few entries."""
    entries, numbers = [], defaultdict(list)
    for name in sorted(set(names)):
        match = NUMBER.fullmatch(name)
        if match is None:
            entries.append(_doubled(name))
        else:
            numbers[_doubled(match[1]), _doubled(match[3])].append(match[2])
    for (before, after), digits in numbers.items():
        if len(digits) == 1:
            entries.append(f"{before}{digits[0]}{after}")
            continue
        runs = _runs(sorted(digits, key=lambda number: (len(number), number)))
        parts = [first if first == last else f"{first}..{last}" for first, last in runs]
        for start in range(0, len(parts), MOST_RUNS):
            entries.append(f"{before}{{{','.join(parts[start : start + MOST_RUNS])}}}{after}")
    return entries


def names_of(entries: Iterable[str]) -> list[str]:
    """The sorted names that `as_ranges` made `entries` of."""
    names = []
    for entry in entries:
        match = BRACES.fullmatch(entry)
        if match is None:
            names.append(_single(entry))
            continue
        before, after = _single(match[1]), _single(match[3])
        for run in match[2].split(","):
            first, _, last = run.partition("..")
            for number in range(int(first), int(last or first) + 1):
                names.append(f"{before}{number:0{len(first)}d}{after}")
    return sorted(names)


def _runs(digits: list[str]) -> list[tuple[str, str]]:
    """(first, last) of each run of consecutive numbers."""
    runs: list[tuple[str, str]] = []
    for number in digits:
        if runs and number == f"{int(runs[-1][1]) + 1:0{len(runs[-1][0])}d}":
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _single(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
