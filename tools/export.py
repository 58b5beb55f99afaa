"""Write the slots pass of a checkpoint as an ONNX file, which ONNX Runtime runs without PyTorch and Transformers.

    pip install --constraint constraints.txt --editable ".[export]"
    python tools/export.py --model . --formats bp4d disfa feafa --out au_llava.onnx

The file takes any number of face crops and gives the calibrated distribution of every AU of these formats; its metadata
say how pixels are made, what rows and columns mean, and the decision thresholds (docs/serving.md has a reader in ten
lines). The weights become float32. Before the command ends, the file is run beside the model; it is left only where
both agree to 1e-4.
"""

import argparse
import sys
import tempfile
from logging import ERROR, getLogger
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_publishing.export import INPUT_NAME, save_onnx
from au_llava.au_runs.checkpoints import check_base
from au_llava.au_runs.commands import print_anything, sentence_of
from au_llava.au_runs.files import HOME, check_writable
from au_llava.decoding_au_llava import chosen_formats, read_slots, slot_answers

TOLERANCE = 1e-4  # of a probability


def largest_difference(path: Path, model, processor, formats) -> float:
    """Between the probabilities that the file and the model give for noise, in batches of 1 and 3 images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    crop = processor.image_processor.crop_size
    differences = []
    for images in (1, 3):
        pixels = torch.randn(images, 3, crop["height"], crop["width"], generator=torch.Generator().manual_seed(images))
        with torch.no_grad():
            read = read_slots(model, processor, pixels, formats)
        expected = slot_answers(read, formats, model.config.calibration)
        for index, found in enumerate(session.run(None, {INPUT_NAME: pixels.numpy()})):
            exact = [[each.distribution for each in answers[index].values()] for answers in expected]
            differences.append(np.abs(found - np.array(exact)).max())
    return max(differences)


def main(arguments: argparse.Namespace) -> None:
    logging.disable_progress_bar()  # of loading weights
    getLogger("torch.onnx").setLevel(ERROR)  # it tells of torchvision's operators, which are not used
    formats = chosen_formats(arguments.formats)
    if arguments.out.suffix != ".onnx":
        raise ValueError(f"--out {arguments.out}: the name must end in .onnx.")
    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists: choose another --out.")
    check_writable(arguments.out)
    check_base(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as folder:
        written = Path(folder) / arguments.out.name
        save_onnx(model, processor, formats, written)
        difference = largest_difference(written, model, processor, formats)
        if not difference <= TOLERANCE:
            raise ValueError(f"The exported graph differs by {difference:.1e} from the model: please report it.")
        for file in Path(folder).iterdir():  # with large weights there is a second one
            file.rename(arguments.out.with_name(file.name))
    print(
        f"Written: {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB); differs by {difference:.1e} at most"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default=str(HOME), help="checkpoint folder or Hub id (default: this repository)")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=list(MAIN_FORMATS),
        help=f"any of {', '.join(FORMATS)} (default: {' '.join(MAIN_FORMATS)})",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write: a name that ends in .onnx")
    return parser


if __name__ == "__main__":
    print_anything()
    try:
        main(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"export.py: {sentence_of(error)}")
