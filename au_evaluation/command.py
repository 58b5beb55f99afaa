"""The command line of eval_au.py: finds the subcommand, also in its older spelling as an option."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from au_llava.au_runs.commands import CommandParser, run_command

DESCRIPTION = """\
Evaluate AU-LLaVA checkpoints on records made by prepare_data.py.

    python eval_au.py run --model . --data data/rendered --out runs/eval
    python eval_au.py report runs/eval

The first command reads every face and scores what was read, the second makes a page of the scores. `run` may be left
out. `python eval_au.py COMMAND --help` explains a command and all of its options.
"""
COMMANDS = {
    "run": "score a checkpoint, beside baselines and with intervals (default)",
    "calibrate": "fit probabilities and thresholds on validation people, and store them in the checkpoint",
    "protocol": "score by a published protocol, in a table beside published results",
    "compare": "test the difference between two evaluations of the same images",
    "matrix": "score several checkpoints on several datasets",
    "report": "make report.html and report.md of an evaluation",
}


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` (default: the program's own) and return the exit status."""
    return run_command("eval_au.py", lambda: main(words))


def main(words: Sequence[str] | None = None) -> None:
    """As `run`, but errors are raised: ValueError or OSError with one sentence."""
    command, arguments = parse(sys.argv[1:] if words is None else words)
    command.main(arguments)


def parse(words: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The module of the subcommand that `words` call, and its arguments."""
    words = list(words)
    parser = CommandParser(DESCRIPTION, prog="eval_au.py")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparsers.add_parser(name, help=summary)
    if words in (["-h"], ["--help"]) or (words and not words[0].startswith("-") and words[0] not in COMMANDS):
        parser.parse_args(words[:1])  # prints help, or names the commands, and ends
    name, words = subcommand(words)
    command = importlib.import_module(f"au_llava.au_evaluation.commands.{name}")  # only the one that runs
    return command, command.make_parser().parse_args(words)


def subcommand(words: Sequence[str]) -> tuple[str, list[str]]:
    """The subcommand that `words` call, and its own words: `--calibrate DIR` calls `calibrate --data DIR`, `--protocol
    NAME` calls `protocol NAME`, and without either it is `run`."""
    if words and words[0] in COMMANDS:
        return words[0], list(words[1:])
    options = [word.partition("=")[0] for word in words]
    if "--calibrate" in options:
        return "calibrate", list(words)
    if "--protocol" in options:
        place = options.index("--protocol")
        _, equals, value = words[place].partition("=")
        end = place + (1 if equals else 2)
        return "protocol", [*([value] if equals else words[place + 1 : end]), *words[:place], *words[end:]]
    return "run", list(words)
