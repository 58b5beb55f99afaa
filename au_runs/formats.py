"""Formats of one's own on command lines: a YAML file wherever a format's name can stand.

    name: mine                 # what records, tables and results call it
    labels: [AU6, AU12]        # in the order of answers
    scale: intensity           # occurrence, intensity or continuous
    presence_threshold: 3      # may be left out

The file's format is known by its name from then on, in this process. Records, evaluations and checkpoints keep it, as
one of the `own_formats` of manifest.json, results.json and training_manifest.json.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import yaml

from au_llava.action_units import BUILT_IN, FORMATS, MAIN_FORMATS, AUFormat, add_format, get_format

SUFFIXES = (".yaml", ".yml")
EXAMPLE = "{name: mine, labels: [AU6, AU12], scale: intensity}"


def read_format(path: str | Path) -> AUFormat:
    """The format in a YAML file.

    Raises:
        ValueError: the file cannot be read, is no such mapping, or its format cannot be.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"format {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path} is not YAML: write a format such as {EXAMPLE}.") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds no mapping: write a format such as {EXAMPLE}.")
    try:
        return AUFormat.from_dict(entries)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def known_format(word: str) -> AUFormat:
    """The format that `word` names: a known name, or a YAML file, whose format is known by its name from then on.

    Raises:
        ValueError: neither, or the name of the file's format has another meaning already.
    """
    if not word.lower().endswith(SUFFIXES):
        return get_format(word)
    fmt = read_format(word)
    try:
        return add_format(fmt)
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from None


def know_formats(stored: Mapping) -> None:
    """Make the `own_formats` of a stored file known in this process.

    Raises:
        ValueError: one is no format, or its name has another meaning already.
    """
    for entries in stored.get("own_formats", ()):
        add_format(AUFormat.from_dict(entries))


class FormatNames(argparse.Action):
    """The action of an option that takes formats: stores their names. Raises ValueError as `known_format` does."""

    def __call__(self, parser, namespace, values, option_string=None):
        names = [known_format(word).name for word in ([values] if isinstance(values, str) else values)]
        setattr(namespace, self.dest, names[0] if isinstance(values, str) else names)


def add_formats_option(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """The option --formats of a command; by default the main formats.

    Args:
        purpose: what the formats are for, before the choices in its help.
    """
    parser.add_argument(
        "--formats",
        nargs="+",
        action=FormatNames,
        default=list(MAIN_FORMATS),
        metavar="FORMAT",
        help=f"{purpose}{choices()} (default: {' '.join(MAIN_FORMATS)})",
    )


def as_stored(fmt: AUFormat) -> str | dict:
    """How files name a format that `get_format` reads back: a built-in one by its name, others in full."""
    return fmt.name if fmt in BUILT_IN else fmt.to_dict()


def choices() -> str:
    """The formats that an option takes, in words, for its help."""
    return f"any of {', '.join(FORMATS)}, or a YAML file with one of your own (docs/answers.md)"
