"""Divides people into those a model trains on and those it is tested on: drawn parts, published parts, shared people.

- `assign_parts` and `kfold` draw subject-exclusive parts from any names, the same on every platform.
- `PROTOCOLS` holds the published parts of BP4D and DISFA, those of FERA-2015, and a clip-exclusive protocol for FEAFA;
  `protocol_split` gives train, validation and test of a protocol.
- `person_key` and `check_disjoint` keep training and tested people apart, across data sets too.

Unusual choices: parts have fixed names, and a run is named after the part it tests, because published lists number
their runs differently (see `PROTOCOLS`). Validation people always come from the training people; many published scores
chose their epoch or threshold on the tested part.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from au_llava.action_units import FORMATS
from au_llava.au_runs.names import composed, escaped, listed


def assign_parts(subjects: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The part of each distinct subject, with shares as close to `fractions` as whole people allow.

    The draw depends only on the set of names and the seed, not on order or platform. A part with a share above 0 gets
    at least one subject. Raises ValueError for fractions that do not sum to 1 and for too few subjects.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"the parts' fractions must be at least 0 and sum to 1, got {dict(fractions)}")
    names = _drawn(subjects, seed)
    wanted = {part: share for part, share in fractions.items() if share > 0}
    if len(names) < len(wanted):
        raise ValueError(
            f"{len(names)} subjects cannot fill the {len(wanted)} parts {sorted(wanted)}: take more, or a share of 0"
        )
    largest = max(wanted, key=wanted.get)
    counts = {part: max(1, round(share * len(names))) for part, share in wanted.items() if part != largest}
    while sum(counts.values()) > len(names) - 1:  # only with very few subjects: leave one for the largest part
        counts[max(counts, key=counts.get)] -= 1
    counts[largest] = len(names) - sum(counts.values())
    order = [part for part in wanted for _ in range(counts[part])]
    return dict(zip(names, order, strict=True))


def kfold(names: Iterable[str], folds: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Deal the distinct names to parts "K1", "K2", … whose sizes differ by at most one.

    Give subjects for subject-exclusive parts, clips for clip-exclusive ones. The result depends only on the set of
    names and the seed, not on order or platform. Raises ValueError for fewer than 2 folds and for fewer names than
    folds.
    """
    drawn = _drawn(names, seed)
    if not 2 <= folds <= len(drawn):
        raise ValueError(f"{len(drawn)} names cannot be dealt to {folds} folds: take from 2 folds to one a name")
    return {f"K{number + 1}": tuple(sorted(drawn[number::folds])) for number in range(folds)}


def _drawn(names: Iterable[str], seed: int) -> list[str]:
    """The distinct names in an order that the seed decides."""
    return sorted(set(names), key=lambda name: hashlib.sha256(escaped(f"{seed}:{name}").encode()).digest())


@dataclass(frozen=True)
class Protocol:
    """How a data set is divided and scored, so that results can be compared with published ones.

    Args:
        name: its name in tables and in `assets/published_results.json`.
        dataset: the records' `dataset`.
        format: the name of the records' format in `FORMATS`.
        labels: the AUs that are scored, in the order of the format.
        metrics: the metrics that published results report, first the one that ranks them.
        tested: the parts that are tested, each in a run that trains on all other parts.
        parts: the names in each part; None if nothing is published, and `kfold` deals the names that there are.
        source: where the parts were published.
        unit: the records' column that holds the names, "subject" or "clip".
        presence: the lowest label value that counts as present, if F1 is scored.
    """

    name: str
    dataset: str
    format: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    tested: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]] | None
    source: str
    unit: str = "subject"
    presence: float | None = None


def _parts(**names: str) -> dict[str, tuple[str, ...]]:
    return {part: tuple(text.split()) for part, text in names.items()}


_BP4D = _parts(
    P1="F001 F002 F008 F009 F010 F016 F018 F023 M001 M004 M007 M008 M012 M014",
    P2="F003 F005 F011 F013 F020 F022 M002 M005 M010 M011 M013 M016 M017 M018",
    P3="F004 F006 F007 F012 F014 F015 F017 F019 F021 M003 M006 M009 M015",
)
_DISFA = _parts(
    P1="SN001 SN002 SN009 SN010 SN016 SN026 SN027 SN030 SN032",
    P2="SN006 SN011 SN012 SN013 SN018 SN021 SN024 SN028 SN031",
    P3="SN003 SN004 SN005 SN007 SN008 SN017 SN023 SN025 SN029",
)
_FERA_2015 = _parts(
    train="F001 F003 F005 F007 F009 F011 F013 F015 F017 F019 F021 F023 M001 M003 M005 M007 M009 M011 M013 M015 M017",
    development="F002 F004 F006 F008 F010 F012 F014 F016 F018 F020 F022 M002 M004 M006 M008 M010 M012 M014 M016 M018",
)
_INTENSITY_METRICS = ("icc", "pcc", "mae", "mse")

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="bp4d-3fold",
            dataset="bp4d",
            format="bp4d",
            labels=FORMATS["bp4d"].labels,
            metrics=("f1",),
            tested=("P1", "P2", "P3"),
            parts=_BP4D,
            source="CVI-SZU/ME-GraphAU, tool/BP4D_image_label_process.py; the same in ZhiwenShao/PyTorch-JAANet, "
            "data/list/BP4D_part*_path.txt",
            presence=1.0,
        ),
        Protocol(
            name="disfa-3fold",
            dataset="disfa",
            format="disfa",
            labels=("AU1", "AU2", "AU4", "AU6", "AU9", "AU12", "AU25", "AU26"),
            metrics=("f1",),
            tested=("P1", "P2", "P3"),
            parts=_DISFA,
            source="CVI-SZU/ME-GraphAU, tool/DISFA_image_label_process.py; the same in ZhiwenShao/PyTorch-JAANet, "
            "data/list/DISFA_part*_path.txt",
            presence=2.0,
        ),
        Protocol(
            name="disfa-intensity-3fold",
            dataset="disfa",
            format="disfa",
            labels=FORMATS["disfa"].labels,
            metrics=_INTENSITY_METRICS,
            tested=("P1", "P2", "P3"),
            parts=_DISFA,
            source="ShuangquanFeng/CSN, config/datasets.py (DISFA_3FOLDS, DISFA_AUS_IE)",
        ),
        Protocol(
            name="fera2015-intensity",
            dataset="bp4d",
            format="bp4d-intensity",
            labels=("AU6", "AU10", "AU12", "AU14", "AU17"),
            metrics=_INTENSITY_METRICS,
            tested=("development",),
            parts=_FERA_2015,
            source="TadasBaltrusaitis/FERA-2015, BP4D_baseline/shared_defs.m (train_recs, devel_recs, all_aus_int)",
        ),
        Protocol(
            name="feafa-clip",
            dataset="feafa",
            format="feafa",
            labels=FORMATS["feafa"].labels,
            metrics=("mae", "pcc", "icc"),
            tested=("K1", "K2", "K3"),
            parts=None,
            source="ours: no official division of FEAFA is public, and the public test list holds single frames",
            unit="clip",
        ),
    )
}
"""Protocols by name.

**The numbering trap.** ME-GraphAU, PyTorch-JAANet, AUNCE and (for DISFA) CSN share the three parts of BP4D and DISFA
but number their runs differently: ME-GraphAU's fold 1 tests P3 and its fold 3 tests P1 (comments in its
tool/*_image_label_process.py), CSN's fold 1 tests P1 (ShuangquanFeng/CSN, config/datasets.py and its scripts named
*_threefold_*). Here P1, P2 and P3 are part1, part2 and part3 of both ME-GraphAU and PyTorch-JAANet, and a run is named
after the part it tests. Not every publication uses these parts: see EAC-Net issue 6.

**Known:** 41 people in BP4D and 27 in DISFA, each in one part. FERA-2015 trains on BP4D's odd numbers and develops on
the even ones. **Not known:** FERA-2015's test people (the public lists only hold training and development, so we test
on development); an official division of FEAFA; which of FEAFA's part-A clips PV001 to PV127 show the same person (there
are 122 people), so "feafa-clip" separates clips but perhaps not people.
"""


def get_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises ValueError for a name that is not in `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose one of {list(PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_parts(name: str, names: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The names in each part of a protocol.

    Args:
        name: of the protocol.
        names: the subjects (or clips, if that is the protocol's unit) that there are. Required if no parts are
            published: `kfold` then deals them, always with seed 0, so that parts do not change between runs.
            Otherwise they are only checked.

    Raises:
        ValueError: the protocol is unknown, names are missing, or names are in no published part.
    """
    protocol = get_protocol(name)
    if protocol.parts is None:
        if names is None:
            raise ValueError(f"the parts of {name!r} are dealt from the {protocol.unit}s that there are: pass `names`")
        return kfold(names, len(protocol.tested), seed=0)
    strangers = sorted(set(names or ()).difference(*protocol.parts.values()))
    if strangers:
        raise ValueError(f"{listed(strangers)} are in no part of {name!r}, which divides {protocol.dataset}")
    return dict(protocol.parts)


def protocol_split(
    name: str, tested: str, seed: int, validation: float, names: Iterable[str] | None = None
) -> dict[str, list[str]]:
    """The people to train on, to validate on and to test on in the run that tests the part `tested`.

    Args:
        name: of the protocol.
        tested: one of its `tested` parts; the other parts train.
        seed: draws the validation people, and affects nothing else.
        validation: share of the training people who validate instead, at least 0 and below 1. Tested people never do.
        names: as in `protocol_parts`.

    Returns:
        {"train": [...], "validation": [...], "test": [...]}, sorted names of the protocol's unit.

    Raises:
        ValueError: the protocol is unknown, does not test this part, the share is out of range, or names are wrong.
    """
    protocol = get_protocol(name)
    if tested not in protocol.tested:
        raise ValueError(f"protocol {name!r} tests {', '.join(protocol.tested)}, not {tested!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"the validation share must be from 0 to below 1, got {validation}")
    return split_parts(protocol_parts(name, names), tested, seed, validation)


def split_parts(parts: Mapping[str, Iterable[str]], tested: str, seed: int, validation: float) -> dict[str, list[str]]:
    """`protocol_split` for any parts, such as those of `kfold`. Raises ValueError if there is no part `tested`."""
    if tested not in parts:
        raise ValueError(f"there is no part {tested!r} to test; choose one of {', '.join(parts)}")
    training = [name for part, members in parts.items() if part != tested for name in members]
    drawn = assign_parts(training, {"train": 1 - validation, "validation": validation}, seed) if training else {}
    split = {role: sorted(name for name in drawn if drawn[name] == role) for role in ("train", "validation")}
    return {**split, "test": sorted(parts[tested])}


# Data sets that number people as another does: data set -> the other.
_NUMBERED_AS = {
    "fera2015": "bp4d",
    "bp4d+": "bp4d-plus",
    "disfa+": "disfa",
    "feafa+": "feafa",
    "feafa-a": "feafa",
    "feafa-b": "feafa",
}


def person_key(dataset: str, subject: str) -> str:
    """One name per person across data sets, such as "disfa:SN001". No two parts may share it.

    **Known to be shared.** FEAFA+'s part B has DISFA's 27 videos with new labels, so FEAFA's SN001 is DISFA's SN001
    (layout read by youknowitskyle/farapy-data-tools, FEAFA+/*.py). FERA-2015's copy of BP4D shows BP4D's people under
    BP4D's numbers (TadasBaltrusaitis/FERA-2015).

    **Assumed to be shared,** to be safe: DISFA+ uses nine of DISFA's numbers (ShuangquanFeng/CSN, config/datasets.py).

    **Known to be different.** BP4D's F001 to F023 and M001 to M018 and BP4D+'s F001 to F082 and M001 to M058 are
    numbered separately: the same number does not mean the same person.

    **Unknown.** Whether anyone took part in both BP4D and BP4D+ under two numbers; which of FEAFA's part-A clips PV001
    to PV127 show the same person (122 people; here each clip counts as a person); whether any other two data sets share
    people. None of these can be detected.

    Raises ValueError for a subject of DISFA or FEAFA that is not numbered like SN001 or PV001, such as the bare numbers
    in some copies of FEAFA's part B: the documents do not say who they are.
    """
    dataset = dataset.lower()
    dataset = _NUMBERED_AS.get(dataset, dataset)
    if dataset in ("bp4d", "bp4d-plus", "disfa", "feafa"):
        subject = subject.upper()
    if dataset == "feafa" and re.fullmatch(r"SN\d{3}", subject):
        dataset = "disfa"
    form = {"disfa": "SN001", "feafa": "PV001 or SN001"}.get(dataset)
    if form and not re.fullmatch(r"SN\d{3}" if dataset == "disfa" else r"PV\d{3}", subject):
        raise ValueError(f"cannot tell who {subject!r} of {dataset} is: name the subject like {form}")
    return composed(f"{dataset}:{subject}")


def people_of(records) -> list[str]:
    """The people of a record table (anything with columns `dataset` and `subject`): sorted `person_key`s."""
    return sorted({person_key(*pair) for pair in {*zip(records["dataset"][:], records["subject"][:], strict=True)}})


def check_disjoint(parts: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError, which names the people, if two parts share a person.

    Give `person_key`s if there is more than one data set; otherwise people that they share go unnoticed.
    """
    for (one, first), (other, second) in combinations(parts.items(), 2):
        shared = sorted(set(first) & set(second))
        if shared:
            raise ValueError(f"{len(shared)} subjects are in both {one} and {other}: {listed(shared)}")
