"""What the subcommands that read faces share: options, calibration, provenance and output."""

import argparse
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from au_llava.action_units import get_format
from au_llava.au_datasets.balance import label_statistics
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.predictions import use_prior
from au_llava.au_evaluation.scoring import jsonable
from au_llava.au_runs import files
from au_llava.au_runs.commands import QUANTIZATIONS, CommandParser, positive
from au_llava.au_runs.engines import ENGINES, Wish, open_engine
from au_llava.au_runs.formats import FormatNames, choices
from au_llava.au_runs.manifests import read_training_manifest
from au_llava.au_runs.provenance import code_commit, content_hashes, versions_of
from au_llava.calibration_au_llava import PRIORS
from au_llava.readings_au_llava import DECODERS

SCHEMA_VERSION = 2  # of results.json and matrix.json
PACKAGES = ("au-llava", "torch", "transformers", "onnxruntime", "datasets", "numpy", "scikit-learn")

OPTIONS = {
    "--model": {
        "nargs": "+",
        "default": [str(files.HOME)],
        "help": "checkpoint folder or Hub id (default: this repository)",
    },
    "--data": {"nargs": "+", "metavar": "DIR", "required": True, "help": "folders made by prepare_data.py"},
    "--out": {"type": Path, "required": True, "help": "folder for the results"},
    "--part": {"help": "value of the records' `part` column (default: test)"},
    "--decoding": {"choices": DECODERS, "default": "slots", "help": "how answers are read (default: slots)"},
    "--engine": {
        "choices": ENGINES,
        "help": "what reads: PyTorch or ONNX Runtime (default: onnx where it is installed, slots.onnx fits and no GPU "
        "is there, else torch)",
    },
    "--batch-size": {"type": positive, "default": 32, "help": "images per forward pass (default: 32)"},
    "--quantize": {
        "choices": QUANTIZATIONS,
        "help": "load the language model with this many bits per weight (needs bitsandbytes)",
    },
    "--formats": {
        "nargs": "+",
        "action": FormatNames,
        "metavar": "FORMAT",
        "help": f"formats to score, {choices()} (default: all in the data)",
    },
    "--groups": {
        "nargs": "+",
        "default": [],
        "metavar": "COLUMN",
        "help": "audit score gaps between groups of these columns",
    },
    "--prior": {
        "choices": PRIORS,
        "help": "how frequent AUs are: as on such faces (default: rendered for rendered faces, else photographs)",
    },
    "--uncalibrated": {"action": "store_true", "help": "ignore the checkpoint's calibration"},
    "--max-images": {"type": positive, "help": "score at most this many images"},
    "--unlabelled": {
        "nargs": "+",
        "default": [],
        "metavar": "DIR",
        "help": "folders of faces without labels, to estimate on them how frequent AUs are",
    },
    "--coded": {
        "nargs": "+",
        "default": [],
        "metavar": "DIR",
        "help": "folders of faces with codes by eye, which tell how frequent AUs are",
    },
    "--mirror": {
        "action": argparse.BooleanOptionalAction,
        "help": "from now on read the mirror image too, or no longer (default: as the checkpoint says)",
    },
    "--name": {"default": "AU-LLaVA", "help": "of the method in the table (default: AU-LLaVA)"},
    "--protocol": {},
}
ALSO_SPELLED = {"--quantize": "--quantise", "--unlabelled": "--unlabeled"}


def add_options(parser: CommandParser, *names: str, without_effect: Sequence[str] = (), **changed: Mapping) -> None:
    """Add options of `OPTIONS` to a parser.

    Args:
        without_effect: options of other subcommands, hidden, for `refuse_without_effect`.
        changed: settings of an option that differ, by its destination.
    """
    for name in (*names, *without_effect):
        settings = OPTIONS[name] | changed.get(name.removeprefix("--").replace("-", "_"), {})
        if name in without_effect:
            settings |= {"help": argparse.SUPPRESS}
        spellings = [name, ALSO_SPELLED[name]] if name in ALSO_SPELLED else [name]
        parser.add_argument(*spellings, **settings)


def refuse_without_effect(
    arguments: argparse.Namespace, options: Sequence[str], mode: str | None = None, needed: Mapping | None = None
) -> None:
    """Raise ValueError if one of `options` was given (another value than its default).

    Args:
        mode: with what they have no effect. needed: option -> without what it has none.
    """
    given = []
    for option in options:
        settings = OPTIONS[option]
        value = getattr(arguments, option.removeprefix("--").replace("-", "_"))
        if value != settings.get("default", False if settings.get("action") == "store_true" else None):
            given.append(option)
    if given and mode:
        raise ValueError(f"{', '.join(given)} has no effect with {mode}.")
    if given:
        raise ValueError(" ".join(f"{option} has no effect without {needed[option]}." for option in given))


def refuse_prior_without_calibration(arguments: argparse.Namespace) -> None:
    if arguments.uncalibrated and arguments.prior:
        raise ValueError("--prior has no effect with --uncalibrated.")


def one_model(arguments: argparse.Namespace, sentence: str) -> str:
    """The name of the only model. Raises ValueError, with `sentence`, if there are several."""
    if len(arguments.model) != 1:
        raise ValueError(f"{len(arguments.model)} models were given: {sentence}")
    return arguments.model[0]


def engine_for(arguments: argparse.Namespace, name: str, formats: Iterable[str], **wishes):
    """The engine that reads with the checkpoint `name`, in formats named `formats`; `wishes` as in `Wish`."""
    wishes = {"engine": arguments.engine, "quantize": arguments.quantize} | wishes
    return open_engine(Wish(name, tuple(map(get_format, sorted(set(formats)))), **wishes))


def choose_calibration(engine, records, arguments: argparse.Namespace) -> None:
    """Make `engine` calibrate its readings of `records` as --uncalibrated and --prior say."""
    if arguments.uncalibrated:
        engine.calibration = None
    else:
        use_prior(engine, records, arguments.prior)


def provenance(arguments: argparse.Namespace, engine, name: str, people: str, part: str | None = None) -> dict:
    """What a reader needs to run the evaluation again.

    Args:
        people: what `check_unseen` returned. part: of the records that was read.
    """
    return {
        "model": name,
        "parameters": engine.parameters,
        "engine": engine.name,
        "dtype": engine.dtype,
        "quantised": arguments.quantize,
        "device": engine.device,
        "trained_people": people,
        "data": content_hashes(arguments.data),
        "part": part,
        "decoding": arguments.decoding,
        "mirror_images": engine.mirror_images,
        "prior": (engine.calibration or {}).get("prior"),
        "batch_size": arguments.batch_size,
        "commit": code_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": versions_of(PACKAGES),
    }


def training_statistics(model: str, data: list[str]) -> tuple[dict, str]:
    """How the labels that a checkpoint was trained on are distributed, and where that is known from.

    Its manifest says so, or else the train part of the evaluated folders; {} and "unknown" if neither does.
    """
    manifest = read_training_manifest(model) or {}
    if manifest.get("labels"):  # older checkpoints do not have it
        return manifest["labels"], "training manifest"
    try:
        records = load_records(data, part="train")
    except ValueError:  # no such part
        return {}, "unknown"
    return label_statistics(records["format"][:], records["values"][:]), "train part of the evaluated folders"


def write_json(path: Path, content) -> None:
    """Write a JSON file; undefined numbers become null."""
    files.write_json(path, jsonable(content))


def show(*tables) -> None:
    """Print tables to the terminal."""
    for table in tables:
        Console().print(table)
