"""Can a language model read what it was never asked: AUs hidden from a format, and AUs under other names?

    python benchmarks/unseen_formats.py --test data/rendered-test --out runs/language-models

Takes the arms of benchmarks/language_models.py, which never had the labels of `HIDDEN` AUs in that format, though the
prompt named and defined them there. First table: their ROC AUC beside that of the same AUs, on the same images, in the
other format, where they were taught. Second table: mean ROC AUC over the taught AUs of bp4d, asked under other words:
the English name in place of "AU12", a meaningless code, German names and definitions, and, to see whether definitions
are read at all, each AU's label with another AU's definition. As a control, each AU's labels are also scored with what
was read for the next AU: a model that only sees how much a face moves does as well there. Writes
OUT/unseen_formats.json, with 95 % bootstrap intervals over people.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from language_models import DOCUMENT, HIDDEN, add_run_options, load_arm, read, test_records
from page import command, make_table, runner, show, told, write_results
from rich.table import Table

from au_llava.action_units import ACTION_UNITS, FORMATS, ActionUnit, AUFormat
from au_llava.au_evaluation.scoring import score_arguments, score_with_intervals
from au_llava.au_runs.commands import CommandParser

ASKED = FORMATS["bp4d"]
GERMAN = {  # label: (name, definition)
    "AU1": ("Heber der inneren Braue", "die inneren Enden der Brauen werden hochgezogen"),
    "AU2": ("Heber der äußeren Braue", "die äußeren Enden der Brauen werden hochgezogen"),
    "AU4": ("Brauensenker", "die Brauen werden nach unten und zusammen gezogen"),
    "AU6": ("Wangenheber", "die Wangen werden gehoben, Falten neben den Augen"),
    "AU7": ("Lidspanner", "die Augenlider werden angespannt, das Auge wird schmaler"),
    "AU10": ("Oberlippenheber", "die Oberlippe wird gehoben"),
    "AU12": ("Mundwinkelheber", "die Mundwinkel werden nach oben und außen gezogen"),
    "AU14": ("Grübchenmacher", "die Mundwinkel werden angespannt und eingezogen"),
    "AU15": ("Mundwinkelsenker", "die Mundwinkel werden herabgezogen"),
    "AU17": ("Kinnheber", "das Kinn wird hochgeschoben und hebt die Unterlippe"),
    "AU23": ("Lippenspanner", "die Lippen werden angespannt und schmaler"),
    "AU24": ("Lippenpresser", "die Lippen werden aufeinander gepresst"),
}


def _named(number: int, unit: ActionUnit) -> ActionUnit:
    return replace(unit, label=unit.name)


def _coded(number: int, unit: ActionUnit) -> ActionUnit:
    return replace(unit, label=f"M{number + 1}")


def _german(number: int, unit: ActionUnit) -> ActionUnit:
    name, definition = GERMAN[unit.label]
    return replace(unit, label=name, name=name, definition=definition)


def _redefined(number: int, unit: ActionUnit) -> ActionUnit:
    other = ACTION_UNITS[ASKED.labels[number - 1]]
    return replace(unit, name=other.name, definition=other.definition)


WORDINGS = {"names": _named, "codes": _coded, "German": _german, "others' definitions": _redefined}
CONTROL = "the next AU's answer"


@contextmanager
def asked_in(wording: str) -> Iterator[str]:
    """Context in which a format, whose name it gives, is bp4d in one of the `WORDINGS`."""
    before = dict(ACTION_UNITS)
    units = [WORDINGS[wording](number, before[label]) for number, label in enumerate(ASKED.labels)]
    try:
        ACTION_UNITS.update((unit.label, unit) for unit in units)
        FORMATS[wording] = AUFormat(wording, tuple(unit.label for unit in units), ASKED.scale)
        yield wording
    finally:
        ACTION_UNITS.clear()
        ACTION_UNITS.update(before)
        FORMATS.pop(wording, None)


def roc_auc(rows: list[dict], fmt: AUFormat, labels: tuple[str, ...]) -> dict:
    """{"value", "interval"} of the mean ROC AUC over these AUs of the format."""
    arguments, shown = score_arguments(rows, fmt, labels)
    result = score_with_intervals(arguments, shown)
    return {"value": result["mean"]["roc_auc"], "interval": result["mean_interval"]["roc_auc"]}


def read_as_next(row: dict, labels: tuple[str, ...]) -> dict:
    """A row of `ASKED` in which each of these AUs has what was read for the next one, the last what the first has."""
    places = [ASKED.labels.index(label) for label in labels]
    probability = list(row["probability"])
    for place, following in zip(places, [*places[1:], places[0]], strict=True):
        probability[place] = row["probability"][following]
    return {**row, "probability": probability}


def other_format(name: str) -> str:
    """The format in which the AUs hidden from `name` were taught."""
    return next(other for other in HIDDEN if other != name)


def score_arm(arm: str, arguments: argparse.Namespace) -> dict:
    run = arguments.out / arm
    model, processor = load_arm(run)
    records = test_records(arguments.test, arguments.test_images)
    taught = tuple(label for label in ASKED.labels if label not in HIDDEN[ASKED.name])
    rows = {}
    for row in read(model, processor, records, run, "slots"):
        rows.setdefault(row["format"], []).append(row)
    hidden = {}
    for name, labels in HIDDEN.items():
        for label in labels:
            there = other_format(name)
            pair = {"format": name, "taught in": there}
            pair |= {"hidden": roc_auc(rows[name], FORMATS[name], (label,))}
            hidden[label] = pair | {"taught": roc_auc(rows[there], FORMATS[there], (label,))}
    own = records.select([index for index, name in enumerate(records["format"]) if name == ASKED.name])
    renamed = {"as taught": roc_auc(rows[ASKED.name], ASKED, taught)}
    renamed[CONTROL] = roc_auc([read_as_next(row, taught) for row in rows[ASKED.name]], ASKED, taught)
    for wording in WORDINGS:
        with asked_in(wording) as name:
            renamed[wording] = roc_auc(read(model, processor, own, run, name, formats=(name,)), ASKED, taught)
    return {"hidden": hidden, "renamed": renamed}


def hidden_table(results: dict[str, dict]) -> Table:
    table = make_table("arm", "AU", "hidden in", "ROC AUC there", "where taught", text=("arm", "AU", "hidden in"))
    for arm, result in results.items():
        for label, pair in result["hidden"].items():
            where = f"{pair['format']} (taught in {pair['taught in']})"
            table.add_row(arm, label, where, told(pair["hidden"]), told(pair["taught"]))
    return table


def renamed_table(results: dict[str, dict]) -> Table:
    table = make_table("arm", "as taught", CONTROL, *WORDINGS, text=("arm",))
    for arm, result in results.items():
        table.add_row(arm, *map(told, result["renamed"].values()))
    return table


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_run_options(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    results = {arm: score_arm(arm, arguments) for arm in arguments.arms}
    write_results(arguments.out / "unseen_formats.json", {"arms": results, "command": command()})
    section = "unseen-formats" if arguments.write else None
    show([hidden_table(results), renamed_table(results)], section, page=DOCUMENT)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
