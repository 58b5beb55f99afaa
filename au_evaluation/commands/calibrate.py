"""`eval_au.py calibrate`: fit a checkpoint's calibration on validation people and store it in its config.json."""

import argparse
import json
from pathlib import Path

from rich.markup import escape

from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.mixing import part_records
from au_llava.au_evaluation.calibration import calibrate_checkpoint, coded_records, unlabeled_records
from au_llava.au_evaluation.calibration_report import calibration_report, calibration_table, draw_reliability
from au_llava.au_evaluation.commands.common import (
    add_options,
    engine_for,
    one_model,
    refuse_without_effect,
    show,
    write_json,
)
from au_llava.au_evaluation.priors import priors_table
from au_llava.au_runs import files
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.manifests import (
    LEARNED_FROM,
    check_unseen,
    read_training_manifest,
    training_manifest,
    write_training_manifest,
)
from au_llava.au_runs.processes import processes

DESCRIPTION = """\
Fit temperatures, isotonic curves and decision thresholds on validation people, and store them in the checkpoint.

    python eval_au.py calibrate --model runs/mine --data data/rendered --out runs/calibration
    python eval_au.py calibrate --model runs/mine --data data/rendered --unlabelled data/photos --out runs/calibration
    python eval_au.py calibrate --model runs/p1 --data '{path: data/b, protocol: bp4d-3fold, tested: P1}' --out runs/c

--model must be a folder: the calibration goes into its config.json, and `recognize` applies it from then on.
Writes to --out: calibration.json (per AU: method, threshold, ECE, log loss and Brier score before and after,
cross-validated) and reliability.png.

With --mirror, `recognize` averages the readings of an image and its mirror image, and the calibration fits that.
With --unlabelled it also estimates how frequent AUs are among the faces of the train part of these folders, without
looking at labels. `recognize` then gives probabilities for such faces; rendered people are still scored as rendered
people (see `run --prior`). With --coded too, codes by eye (of the --part of its folders) tell it for the AUs that they
know.

`--calibrate DIR` is an older spelling of `calibrate --data DIR`.
"""
ADVICE = (
    "calibrate on others; those that a training by a protocol validated on are --data '{path: DIR, protocol: NAME, "
    "tested: PART}'"
)
WITHOUT_EFFECT = ("--protocol", "--formats", "--groups", "--prior", "--uncalibrated", "--max-images", "--name")
WITHOUT_EFFECT += ("--decoding",)


def make_parser() -> CommandParser:
    parser = CommandParser(DESCRIPTION, prog="eval_au.py calibrate")
    add_options(parser, "--model", model={"help": "checkpoint folder (default: this repository)"})
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        nargs="+",
        metavar="DIR",
        help="folders made by prepare_data.py, to fit on; or a mapping as train_sft.py --data takes it, whose protocol "
        "says who validates",
    )
    source.add_argument("--calibrate", nargs="+", metavar="DIR", dest="data", help=argparse.SUPPRESS)
    add_options(
        parser,
        *("--out", "--part", "--unlabelled", "--coded", "--mirror", "--batch-size", "--engine", "--quantize"),
        part={"help": "value of the records' `part` column to fit on (default: validation)"},
        without_effect=WITHOUT_EFFECT,
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    refuse_without_effect(arguments, WITHOUT_EFFECT, "eval_au.py calibrate")
    if arguments.coded and not arguments.unlabelled:
        raise ValueError("--coded needs --unlabelled too, for the AUs that are not coded.")
    files.check_writable(arguments.out / "calibration.json")
    name, part = one_model(arguments, "calibrate takes one."), arguments.part or "validation"
    config_file = Path(name) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"calibrate stores its result in config.json: {name} is no folder that holds one.")
    records, folders = part_records(arguments.data, part)
    people = people_of(records)
    # A model is surer of the people it learned from than of others.
    check_unseen(name, people, LEARNED_FROM, ADVICE)
    if arguments.unlabelled:
        people = sorted({*people, *people_of(unlabeled_records(arguments.unlabelled))})
    if arguments.coded:
        coded = people_of(coded_records(arguments.coded, part))
        check_unseen(name, coded, LEARNED_FROM, "take codes of others")
        people = sorted({*people, *coded})
    engine = engine_for(arguments, name, records["format"][:], mirror_images=arguments.mirror)
    photographs = {"unlabeled": arguments.unlabelled, "coded": arguments.coded}
    fitted = calibrate_checkpoint(engine, records, folders, part, arguments.batch_size, **photographs)
    if not processes().is_main_process:
        return
    report = calibration_report(fitted.fits, fitted.references)
    written = {"fitted_on": fitted.calibration["fitted_on"], "formats": report}
    write_json(arguments.out / "calibration.json", written | ({"priors": fitted.priors} if fitted.priors else {}))
    files.save_figure(arguments.out / "reliability.png", draw_reliability(fitted.fits, fitted.references), dpi=110)
    manifest = read_training_manifest(name) or training_manifest([], [], [], [], {})
    manifest["people"]["calibration"] = people
    write_training_manifest(name, manifest)
    stored = {"calibration": fitted.calibration, "mirror_images": engine.mirror_images}
    files.write_json(config_file, json.loads(config_file.read_text()) | stored, indent=2, sort_keys=True)
    show(calibration_table(report, escape(f"{name}, {part} part of {' '.join(arguments.data)}")))
    if fitted.priors:
        show(priors_table(fitted.priors, escape(" ".join([*arguments.unlabelled, *arguments.coded]))))
    print(f"Stored in {config_file}; report: {arguments.out / 'calibration.json'}, {arguments.out / 'reliability.png'}")
