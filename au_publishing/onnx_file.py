"""Write the slots pass of a checkpoint as an ONNX file, which ONNX Runtime runs without PyTorch and Transformers.

    pip install --constraint constraints.txt --editable ".[export]"
    python tools/export.py --model . --formats bp4d disfa feafa --out au_llava.onnx
    python tools/export.py --model runs/mine --beside

The file takes any number of face crops and returns the calibrated distribution of every AU in these formats. Its
metadata describe how to prepare pixels, what rows and columns mean, and the decision thresholds (docs/serving.md has a
reader in ten lines). The weights become float32. Before the command ends, it runs the file and the model side by side;
the file is kept only if both agree to 1e-4.

With --beside, the graph alone goes into the checkpoint's folder, as slots.onnx with slots.json: the commands, the page
and handler.py read with it and take the weights from the checkpoint (docs/recognize.md).
"""

import json
import tempfile
from collections.abc import Sequence
from logging import ERROR, getLogger
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from au_llava.action_units import AUFormat
from au_llava.au_publishing.export import INPUT_NAME, export
from au_llava.au_publishing.slots_file import write_graph
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, check_writable
from au_llava.au_runs.formats import add_formats_option
from au_llava.calibration_au_llava import calibrate
from au_llava.decoding_au_llava import read_slots
from au_llava.onnx_au_llava import GRAPH
from au_llava.readings_au_llava import chosen_formats, slot_answers

METADATA_KEY = "au_llava"  # of the description in an ONNX file
TOLERANCE = 1e-4  # of a probability


def description(model, processor, formats: tuple[AUFormat, ...]) -> dict:
    """What a caller must know about the graph, in JSON's types: how to prepare pixels, and what the outputs mean.

    Returns:
        "input": {"name", "shape", "resize_shortest_edge", "resampling" (a filter of Pillow), "crop" (height, width, of
        the middle), "mean", "std" (per channel, for pixels scaled to 0..1)}; "outputs": for each format, in order,
        {"name", "shape", "labels" (of its rows), "scale", "values" (of its columns, on the format's scale),
        "presence_threshold" (the lowest value that counts as present), "thresholds" (for each AU, the lowest
        probability that `recognize` calls present)}.
    """
    images = processor.image_processor
    crop = [images.crop_size["height"], images.crop_size["width"]]
    outputs = []
    for fmt in formats:
        rows, columns = len(fmt.labels), len(fmt.value_numbers)
        _, thresholds = calibrate(np.full((1, rows, columns), 1 / columns), fmt, model.config.calibration)
        outputs.append(
            {
                "name": fmt.name,
                "shape": ["images", rows, columns],
                "labels": list(fmt.labels),
                "scale": fmt.scale,
                "values": list(fmt.value_numbers),
                "presence_threshold": fmt.presence_threshold,
                "thresholds": thresholds.tolist(),
            }
        )
    return {
        "input": {
            "name": INPUT_NAME,
            "shape": ["images", 3, *crop],
            "resize_shortest_edge": images.size["shortest_edge"],
            "resampling": Image.Resampling(images.resample).name.lower(),
            "crop": crop,
            "mean": list(images.image_mean),
            "std": list(images.image_std),
        },
        "outputs": outputs,
    }


def save_onnx(model, processor, formats: tuple[AUFormat, ...], path: Path) -> None:
    """Write the graph and its description; weights of 2 GB and more go into a second file, PATH.data."""
    names = [fmt.name for fmt in formats]
    program = torch.onnx.export(
        export(model, processor, formats), input_names=[INPUT_NAME], output_names=names, dynamo=True, verbose=False
    )
    program.model.metadata_props[METADATA_KEY] = json.dumps(description(model, processor, formats))
    program.save(path)


def largest_difference(path: Path, model, processor, formats) -> float:
    """Largest difference between the probabilities of file and model, on batches of 1 and 3 images of noise."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    crop = processor.image_processor.crop_size
    differences = []
    for images in (1, 3):
        pixels = torch.randn(images, 3, crop["height"], crop["width"], generator=torch.Generator().manual_seed(images))
        with torch.no_grad():
            readings = read_slots(model, processor, pixels, formats)
        results = slot_answers(readings, formats, model.config.calibration)
        for index, output in enumerate(session.run(None, {INPUT_NAME: pixels.numpy()})):
            expected = [[reading.distribution for reading in answers[index].values()] for answers in results]
            differences.append(np.abs(output - np.array(expected)).max())
    return max(differences)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--model", default=str(HOME), help="checkpoint folder or Hub id (default: this repository)")
    add_formats_option(parser)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help="file to write; its name must end in .onnx")
    place.add_argument(
        "--beside", action="store_true", help="write slots.onnx and slots.json into the folder of --model"
    )
    return parser


def main(arguments) -> None:
    getLogger("torch.onnx").setLevel(ERROR)  # it warns about torchvision's operators, which are not used
    formats = chosen_formats(arguments.formats)
    if arguments.beside:
        difference = write_graph(Path(arguments.model), formats, Path(arguments.model))
        print(f"Written: {Path(arguments.model) / GRAPH}; differs by {difference:.1e} at most")
        return
    if arguments.out.suffix != ".onnx":
        raise ValueError(f"--out {arguments.out}: the name must end in .onnx.")
    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists: choose another --out.")
    check_writable(arguments.out)
    model, processor = load_checkpoint(arguments.model, dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as folder:
        written = Path(folder) / arguments.out.name
        save_onnx(model, processor, formats, written)
        difference = largest_difference(written, model, processor, formats)
        if not difference <= TOLERANCE:
            raise ValueError(f"The exported graph differs by {difference:.1e} from the model: please report it.")
        for file in Path(folder).iterdir():  # large weights are in a second one
            file.rename(arguments.out.with_name(file.name))
    print(
        f"Written: {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB); differs by {difference:.1e} at most"
    )


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("export.py", lambda: main(make_parser().parse_args(words)))
