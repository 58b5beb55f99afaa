"""Facts about action units: the catalogue, the formats and the wording of prompts.

Standard library only, independent of the model: data sets, training, decoding, evaluation and the processor take their
AU facts from here. `answers_au_llava.py` writes and parses answers; its functions can be imported from either file.

Code recognizes a format by its attributes (`.labels`, `.scale`), never by its class: Transformers' remote code can load
this file twice in one process, and then the class exists twice.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .answers_au_llava import (
    SCALES,
    SEPARATOR,
    ParsedAnswer,
    parse_answer,
    round_to_scale,
    value_prefix,
    value_texts,
    write_answer,
)

__all__ = [
    "ACTION_UNITS",
    "BUILT_IN",
    "FORMATS",
    "MAIN_FORMATS",
    "PURPOSE",
    "SCALES",
    "SEPARATOR",
    "AUFormat",
    "ActionUnit",
    "ParsedAnswer",
    "add_format",
    "definition_line",
    "get_format",
    "mirrored_label",
    "own_formats",
    "parse_answer",
    "prompt",
    "prompt_parts",
    "round_to_scale",
    "value_prefix",
    "value_texts",
    "write_answer",
]


@dataclass(frozen=True)
class ActionUnit:
    """One action unit (AU) or action descriptor (AD, a movement that FACS defines without naming muscles).

    Left and right are the subject's own sides, as in FACS. FEAFA does not document whether its files do the same: check
    an asymmetric frame of the real data.
    """

    label: str  # as in answers: "AU12", "AU43L", "AU28T", "AD30R"
    facs: int  # FACS number, the same for sided and unsided labels; above 100 one of our own
    side: str | None  # "left", "right", "top" (upper lip), "bottom" (lower lip), or None for the whole AU
    name: str
    muscles: str  # empty for action descriptors
    definition: str  # one short clause; part of the prompt, so every word costs compute
    region: str  # "brow", "eye", "gaze", "cheek", "nose", "upper lip", "lip corner", "lips", "lower lip", …


# label | sides that can be scored | name | muscles | definition | region
# Numbers, names and muscles: Ekman, Friesen and Hager, Facial Action Coding System (2002). The definitions are ours.
# AD101 and AD102 are ours: ARKit's mouthLeft, mouthRight and mouthShrugUpper, which FACS does not number.
_CATALOGUE = """
AU1  |LR| inner brow raiser       | frontalis, medial part | the inner brow ends are pulled up | brow
AU2  |LR| outer brow raiser       | frontalis, lateral part | the outer brow ends are pulled up | brow
AU4  |LR| brow lowerer            | corrugator supercilii, depressor supercilii, procerus | the brows are pulled down and inward | brow
AU5  |LR| upper lid raiser        | levator palpebrae superioris | the upper lids are raised, showing more of the eye | eye
AU6  |LR| cheek raiser            | orbicularis oculi, orbital part | the cheeks are lifted, wrinkling skin beside the eye | cheek
AU7  |LR| lid tightener           | orbicularis oculi, palpebral part | the eyelids are tightened, narrowing the eye | eye
AU8  |  | lips toward each other  | orbicularis oris | the lips are brought together over an open jaw | lips
AU9  |LR| nose wrinkler           | levator labii superioris alaeque nasi | the nose sides are wrinkled and pulled up | nose
AU10 |LR| upper lip raiser        | levator labii superioris | the upper lip is raised | upper lip
AU11 |LR| nasolabial deepener     | zygomaticus minor | the upper nose-to-mouth folds are deepened | cheek
AU12 |LR| lip corner puller       | zygomaticus major | the lip corners are pulled up and outward | lip corner
AU13 |LR| sharp lip puller        | levator anguli oris | the lip corners are pulled sharply up, puffing the cheek | lip corner
AU14 |LR| dimpler                 | buccinator | the lip corners are tightened and drawn in | lip corner
AU15 |LR| lip corner depressor    | depressor anguli oris | the lip corners are pulled down | lip corner
AU16 |LR| lower lip depressor     | depressor labii inferioris | the lower lip is pulled down | lower lip
AU17 |  | chin raiser             | mentalis | the chin is pushed up, lifting the lower lip | chin
AU18 |TB| lip pucker              | incisivii labii | the lips are puckered forward | lips
AD19 |  | tongue show             | | the tongue is shown between the lips | tongue
AU20 |LR| lip stretcher           | risorius, platysma | the lip corners are stretched straight sideways | lip corner
AU21 |LR| neck tightener          | platysma | the neck skin is tightened into bands | neck
AU22 |TB| lip funneler            | orbicularis oris | the lips are funneled outward | lips
AU23 |TB| lip tightener           | orbicularis oris | the lips are tightened and narrowed | lips
AU24 |  | lip pressor             | orbicularis oris | the lips are pressed together | lips
AU25 |  | lips part               | depressor labii inferioris, or relaxed mentalis or orbicularis oris | the lips are parted | lips
AU26 |  | jaw drop                | relaxed masseter, temporalis and internal pterygoid | the jaw is lowered, parting the teeth | jaw
AU27 |  | mouth stretch           | pterygoids, digastric | the jaw is pulled down, stretching the mouth wide open | jaw
AU28 |TB| lip suck                | orbicularis oris | the lips are sucked in over the teeth | lips
AD29 |  | jaw thrust              | | the jaw is pushed forward | jaw
AD30 |LR| jaw sideways            | | the jaw is shifted to one side | jaw
AU31 |  | jaw clencher            | masseter | the jaw is clenched, bulging its corners | jaw
AD32 |TB| lip bite                | | the lips are bitten | lips
AD33 |LR| cheek blow              | | the cheeks are blown out while air escapes | cheek
AD34 |LR| cheek puff              | | the cheeks are puffed out behind closed lips | cheek
AD35 |LR| cheek suck              | | the cheeks are sucked in | cheek
AD36 |  | tongue bulge            | | the tongue pushes out a cheek or lip from inside | tongue
AD37 |  | lip wipe                | | the tongue wipes the lips | tongue
AU38 |LR| nostril dilator         | nasalis, alar part | the nostrils are widened | nose
AU39 |LR| nostril compressor      | nasalis, transverse part, depressor septi nasi | the nostrils are narrowed | nose
AU41 |LR| lid droop               | relaxed levator palpebrae superioris | the upper lids are drooping | eye
AU42 |LR| slit                    | orbicularis oculi, palpebral part | the eyes are narrowed to a slit | eye
AU43 |LR| eye closure             | relaxed levator palpebrae superioris | the eyes are closed | eye
AU44 |LR| squint                  | orbicularis oculi, palpebral part | the eyes are squinted by tense lids | eye
AU45 |LR| blink                   | relaxed levator palpebrae superioris, orbicularis oculi | the eyes are closed and reopened quickly | eye
AU46 |LR| wink                    | relaxed levator palpebrae superioris, orbicularis oculi | the eye on one side is winked | eye
AU51 |  | head turn left          | | the head is turned to the left | head
AU52 |  | head turn right         | | the head is turned to the right | head
AU53 |  | head up                 | | the head is tipped up | head
AU54 |  | head down               | | the head is tipped down | head
AU55 |  | head tilt left          | | the head is tilted to the left shoulder | head
AU56 |  | head tilt right         | | the head is tilted to the right shoulder | head
AU57 |  | head forward            | | the head is pushed forward | head
AU58 |  | head back               | | the head is drawn back | head
AU61 |  | eyes turn left          | | the gaze is turned to the left | gaze
AU62 |  | eyes turn right         | | the gaze is turned to the right | gaze
AU63 |  | eyes up                 | | the gaze is turned up | gaze
AU64 |  | eyes down               | | the gaze is turned down | gaze
AU65 |  | walleye                 | | the eyes point away from each other | gaze
AU66 |  | crossed eyes            | | the eyes point toward the nose | gaze
AD101|LR| mouth sideways          | | the lips are drawn to one side | lips
AD102|  | upper lip shrug         | | the upper lip is pushed up by the lower lip | upper lip
"""  # noqa: E501
_SIDES = {"L": "left", "R": "right", "T": "top", "B": "bottom"}


def _read_catalogue(table: str) -> dict[str, ActionUnit]:
    """Label -> AU, for every row of the table and each side that the row lists."""
    units = {}
    for row in table.strip().splitlines():
        label, letters, name, muscles, definition, region = (cell.strip() for cell in row.split("|"))
        facs = int(re.sub(r"\D", "", label))
        units[label] = ActionUnit(label, facs, None, name, muscles, definition, region)
        for letter in letters:
            side = _SIDES[letter]
            if "one side" in definition:  # "the jaw is shifted to one side" -> "… to the left"
                sided = definition.replace("one side", f"the {side}")
            else:  # "the lip corners are pulled down" -> "the left lip corner is pulled down"
                sided = definition.replace("the ", f"the {side} ", 1).replace("s are ", " is ", 1)
            units[label + letter] = ActionUnit(label + letter, facs, side, f"{side} {name}", muscles, sided, region)
    return units


ACTION_UNITS: dict[str, ActionUnit] = _read_catalogue(_CATALOGUE)

# Unsided AUs that name a direction: they swap when an image is flipped.
_MIRROR = {"AU51": "AU52", "AU55": "AU56", "AU61": "AU62"}
_MIRROR |= {right: left for left, right in _MIRROR.items()}


def mirrored_label(label: str) -> str:
    """The label that `label` becomes in the horizontally flipped image: AU12L -> AU12R, AU51 -> AU52, AU4 -> AU4."""
    unit = ACTION_UNITS[label]
    if unit.side in ("left", "right"):
        return label[:-1] + ("R" if unit.side == "left" else "L")
    return _MIRROR.get(label, label)


# The least value that counts as present, by scale.
_PRESENCE_THRESHOLDS = {
    "occurrence": 1.0,
    "intensity": 2.0,  # usual for DISFA: tool/DISFA_image_label_process.py of CVI-SZU/ME-GraphAU
    "continuous": 0.30,  # our choice: 0.30 of 5 is 1.5, which rounds to intensity 2
}

_NUMBERS = {scale: tuple(map(float, strings)) for scale, strings in SCALES.items()}


@dataclass(frozen=True)
class AUFormat:
    """What an answer must hold: which AUs, and on which scale.

    Args:
        name: the format's name in records, results and tables.
        labels: keys of `ACTION_UNITS`, in the order of the answer and of a record's `values`.
        scale: a key of `SCALES`: "occurrence" (0 or 1), "intensity" (0 to 5) or "continuous" (0.00 to 1.00).
        presence_threshold: the least value that counts as present, one of the scale's values above 0. By default
            1, 2 and 0.30 on the three scales.

    Raises:
        ValueError: an empty name, no labels, an unknown or repeated label, an unknown scale, or a threshold off it.
    """

    name: str
    labels: tuple[str, ...]
    scale: str
    presence_threshold: float | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a format's name must be a non-empty string, not {self.name!r}")
        if not isinstance(self.labels, (tuple, list)) or not self.labels:
            raise ValueError(f"format {self.name!r}: labels must be a non-empty sequence of AUs, not {self.labels!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        unknown = [label for label in self.labels if label not in ACTION_UNITS]
        if unknown:
            raise ValueError(
                f"format {self.name!r}: unknown AUs {unknown}; use keys of ACTION_UNITS, such as AU12 or AU43L"
            )
        duplicates = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if duplicates:
            raise ValueError(f"format {self.name!r}: {duplicates} appear more than once; list every AU once")
        if self.scale not in SCALES:
            raise ValueError(f"format {self.name!r}: unknown scale {self.scale!r}; choose one of {list(SCALES)}")
        threshold = self.presence_threshold
        if threshold is None:
            threshold = _PRESENCE_THRESHOLDS[self.scale]
        if threshold not in self.value_numbers[1:]:
            lowest, highest = self.value_strings[1], self.value_strings[-1]
            raise ValueError(
                f"format {self.name!r}: presence_threshold {threshold!r} is not a value of the {self.scale} scale "
                f"above 0; choose one from {lowest} to {highest}"
            )
        object.__setattr__(self, "presence_threshold", float(threshold))

    @property
    def value_strings(self) -> tuple[str, ...]:
        """The values that an AU can take, as answers write them: 2, 6 or 101 strings in rising order."""
        return SCALES[self.scale]

    @property
    def value_numbers(self) -> tuple[float, ...]:
        """The same values as numbers."""
        return _NUMBERS[self.scale]

    def to_dict(self) -> dict:
        """The format in JSON's types, for a config or a manifest; `from_dict` reads it back."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, entries: Mapping) -> "AUFormat":
        """The format of a dict from `to_dict`; `presence_threshold` may be left out."""
        needed, allowed = {"name", "labels", "scale"}, {"name", "labels", "scale", "presence_threshold"}
        if not needed <= set(entries) <= allowed:
            raise ValueError(f"a format's dict needs name, labels, scale (and presence_threshold), not {list(entries)}")
        return cls(**entries)


def _built_in(name: str, labels: str, scale: str) -> AUFormat:
    return AUFormat(name, tuple(labels.split()), scale)


BUILT_IN = (
    # The 12 AUs of the BP4D benchmark, coded present or absent.
    _built_in("bp4d", "AU1 AU2 AU4 AU6 AU7 AU10 AU12 AU14 AU15 AU17 AU23 AU24", "occurrence"),
    # The 12 AUs that DISFA codes from 0 to 5.
    _built_in("disfa", "AU1 AU2 AU4 AU5 AU6 AU9 AU12 AU15 AU17 AU20 AU25 AU26", "intensity"),
    # The five AUs whose intensity BP4D codes (AU_INT), as in FERA 2015's intensity challenge.
    _built_in("bp4d-intensity", "AU6 AU10 AU12 AU14 AU17", "intensity"),
    # FEAFA's 24 channels in the order of its files, with the FACS numbers of sccnlab/E-DFE
    # (facial_animation/makehuman_face.py). AU26 is mouth opening by the jaw, AU26 and AU27 of FACS.
    _built_in(
        "feafa",
        "AU43L AU43R AU5L AU5R AU4L AU4R AU2L AU2R AU26 AD30L AD30R AU12L AU12R AU20L AU20R AU28T AU28B "
        "AD29 AU10 AU16 AU17 AU18 AD34 AU9",
        "continuous",
    ),
    # The ten AUs of GFT that JackYFL/EmoLA evaluates.
    _built_in("gft", "AU1 AU2 AU4 AU6 AU10 AU12 AU14 AU15 AU23 AU24", "occurrence"),
    # The 12 AUs of Aff-Wild2's challenges since 2021.
    _built_in("aff-wild2", "AU1 AU2 AU4 AU6 AU7 AU10 AU12 AU15 AU23 AU24 AU25 AU26", "occurrence"),
    # The 17 AUs that CK+'s authors score (Lucey et al. 2010; from memory, not verified).
    _built_in("ck-plus", "AU1 AU2 AU4 AU5 AU6 AU7 AU9 AU11 AU12 AU15 AU17 AU20 AU23 AU24 AU25 AU26 AU27", "occurrence"),
    # The 12 AUs of EmotioNet that lkq52110/au-recognition and others use.
    _built_in("emotionet", "AU1 AU2 AU4 AU5 AU6 AU9 AU12 AU17 AU20 AU25 AU26 AU43", "occurrence"),
)
FORMATS: dict[str, AUFormat] = {fmt.name: fmt for fmt in BUILT_IN}  # and those that `add_format` was given
MAIN_FORMATS = ("bp4d", "disfa", "feafa")  # one per scale: the default everywhere


def add_format(fmt: AUFormat) -> AUFormat:
    """Make a format of one's own known by its name, as the built-in ones are, in this process; returns it.

    Raises:
        ValueError: the name means another format already.
    """
    known = FORMATS.setdefault(fmt.name, fmt)
    if known != fmt:
        raise ValueError(
            f"the format {fmt.name!r} means another one already ({known.scale}: {', '.join(known.labels)}): "
            "choose another name."
        )
    return fmt


def own_formats() -> list[AUFormat]:
    """The formats that `add_format` was given, for other processes to add."""
    return [fmt for fmt in FORMATS.values() if fmt not in BUILT_IN]


def shown(value: object) -> str:
    """What arrived, as an error message shows it: short, and encodable whatever it contains."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def get_format(format_or_name) -> AUFormat:
    """The format for a name in `FORMATS` or a dict from `AUFormat.to_dict`.

    A format, which is any object with `.labels` and `.scale`, is returned unchanged.

    Raises:
        ValueError: an unknown name, or anything else.
    """
    if isinstance(format_or_name, str):
        if format_or_name not in FORMATS:
            given = shown(format_or_name)
            raise ValueError(f"unknown format {given}; choose one of {list(FORMATS)} or pass an AUFormat")
        return FORMATS[format_or_name]
    if isinstance(format_or_name, Mapping):
        return AUFormat.from_dict(format_or_name)
    if not (hasattr(format_or_name, "labels") and hasattr(format_or_name, "scale")):
        given = shown(format_or_name)
        raise ValueError(f"{given} is not a format; pass one of {list(FORMATS)}, an AUFormat or its dict")
    return format_or_name


# A prompt has three parts, as in "Towards Unified Facial Action Unit Recognition Framework by Large Language Models"
# (arXiv 2409.08444): purpose, AU definitions, expected output. The wording is ours.
PURPOSE = "Read the facial action units (AUs) in this face image. Left and right are the person's own.\n"

_VALUE_WORDING = {
    "occurrence": "0 (absent) or 1 (present)",
    "intensity": "a whole number from 0 (absent) to 5 (maximum)",
    "continuous": "a number with two decimals from 0.00 (absent) to 1.00 (maximum)",
}


def definition_line(label: str) -> str:
    """The line that tells the model what an AU is, with its newline."""
    unit = ACTION_UNITS[label]
    return f"{label} ({unit.name}): {unit.definition}.\n"


def prompt_parts(fmt: AUFormat) -> tuple[str, ...]:
    """The prompt in pieces: the purpose, one line per AU, the expected output.

    The purpose is the same for every format, and a definition line depends only on its AU, so that formats share them.
    """
    expected_output = f'Answer "AU: value" for each AU, separated by commas; value is {_VALUE_WORDING[fmt.scale]}.'
    return (PURPOSE, *map(definition_line, fmt.labels), expected_output)


def prompt(fmt: AUFormat) -> str:
    """The prompt that asks for `fmt`."""
    return "".join(prompt_parts(fmt))
