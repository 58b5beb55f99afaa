"""`eval_au.py report`: make a page of an evaluation."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation.report import write_report
from au_llava.au_evaluation.report_data import load_evaluation
from au_llava.au_evaluation.rows import KEYS, key_of
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.provenance import content_hashes

DESCRIPTION = """\
Make report.html (one self-contained page) and report.md of an evaluation.

    python eval_au.py report runs/eval

The page shows the faces of the surest errors if the records that were evaluated are still there, or --data says where.
"""


def make_parser() -> CommandParser:
    parser = CommandParser(DESCRIPTION, prog="eval_au.py report")
    parser.add_argument("folder", type=Path, help="folder that eval_au.py wrote")
    parser.add_argument("--data", nargs="+", metavar="DIR", help="its records, for thumbnails (default: as evaluated)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    results, _ = load_evaluation(arguments.folder)
    origin = results.get("provenance", {})
    image_of = None
    if arguments.data or origin.get("data"):
        try:
            image_of = _images(origin, arguments.data)
        except FileNotFoundError as error:
            print(f"Without thumbnails: {error}", file=sys.stderr)
    page = write_report(arguments.folder, image_of)
    print(f"Written: {page} and {page.with_suffix('.md')}")


def _images(origin: dict, data: list[str] | None) -> Callable:
    """What gives the image of a row of predictions.parquet. Raises FileNotFoundError where the records are not here."""
    if not data and content_hashes(origin["data"]) != origin["data"]:
        raise FileNotFoundError(f"{', '.join(origin['data'])} is not here as it was evaluated: say --data")
    records = load_records(data or list(origin["data"]), part=origin["part"])
    rows = {key_of(record): row for row, record in enumerate(records.select_columns(list(KEYS)))}
    return lambda row: records[rows[key_of(row)]]["image"]
