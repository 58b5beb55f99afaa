"""Subject-exclusive parts: which people a model trains on and which it is measured on."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations


def assign_parts(subjects: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The part of each distinct subject: shares as near to `fractions` as whole people allow.

    The draw depends on the set of names and the seed only, not on order or platform. A part whose share is above 0
    gets at least one subject. Raises ValueError for fractions that do not sum to 1 and for too few subjects.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"the parts' fractions must be at least 0 and sum to 1, got {dict(fractions)}")
    names = sorted(set(subjects), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    wanted = {part: share for part, share in fractions.items() if share > 0}
    if len(names) < len(wanted):
        raise ValueError(f"{len(names)} subjects cannot fill the {len(wanted)} parts {sorted(wanted)}: take more")
    largest = max(wanted, key=wanted.get)
    counts = {part: max(1, round(share * len(names))) for part, share in wanted.items() if part != largest}
    while sum(counts.values()) > len(names) - 1:  # only with very few subjects: leave one for the largest part
        counts[max(counts, key=counts.get)] -= 1
    counts[largest] = len(names) - sum(counts.values())
    order = [part for part in wanted for _ in range(counts[part])]
    return dict(zip(names, order, strict=True))


def check_disjoint(parts: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError, naming the people, where two parts share a subject."""
    for (one, first), (other, second) in combinations(((part, set(names)) for part, names in parts.items()), 2):
        shared = sorted(first & second)
        if shared:
            shown = ", ".join(shared[:5]) + (" …" if len(shared) > 5 else "")
            raise ValueError(f"{len(shared)} subjects are in both {one} and {other}: {shown}")
