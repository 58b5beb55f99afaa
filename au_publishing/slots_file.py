"""Write the graph that onnx_au_llava.py reads faces with: the slots pass without its weights.

    python tools/export.py --model . --beside

Weights that lie in the checkpoint's safetensors files, value for value, stay there, and the graph names them. Only what
is computed from weights (rows of the embeddings and of the head, for the tokens of the formats) is in it.
"""

import os
import tempfile
from collections.abc import Sequence
from logging import ERROR, getLogger
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from onnxscript import optimizer
from PIL import Image

from au_llava.action_units import AUFormat
from au_llava.au_publishing.export import INPUT_NAME, export
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.files import write_json
from au_llava.onnx_au_llava import (
    DESCRIPTION,
    GRAPH,
    OnnxEngine,
    as_float32,
    graph_key,
    image_settings,
    sha256_of,
    stored_tensors,
)

TOLERANCE = 1e-5  # of a probability, against PyTorch
ELSEWHERE = "weights"  # what the graph calls the file of its weights; OnnxEngine hands them over instead


def write_graph(checkpoint: Path, formats: Sequence[AUFormat], folder: Path) -> float:
    """Make the graph of a checkpoint and put it into `folder`, if its answers are those of PyTorch.

    Args:
        checkpoint: folder of a whole checkpoint (no adapters), with its weights in safetensors files.

    Returns:
        the largest difference of a probability from PyTorch's.

    Raises:
        ValueError: the network cannot be exported, pixels are prepared unusually, or the answers differ.
        OSError: there is no such checkpoint, or `folder` cannot be written.
    """
    image_settings(checkpoint)
    model, processor = load_checkpoint(checkpoint, dtype="float32", device="cpu")
    graph = _graph(model, processor, tuple(formats))
    weights = _take_out_weights(graph, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        written = Path(scratch)
        onnx_ir.save(graph, written / GRAPH)
        description = {
            "key": graph_key(checkpoint, formats),
            "sha256": sha256_of(written / GRAPH),
            "formats": [fmt.to_dict() for fmt in formats],
            "weights": weights,
        }
        write_json(written / DESCRIPTION, description)
        difference = _largest_difference(OnnxEngine(checkpoint, written), model, processor, formats)
        if not difference <= TOLERANCE:
            raise ValueError(f"The graph of {checkpoint} differs by {difference:.1e} from PyTorch: please report it.")
        for name in (GRAPH, DESCRIPTION):  # until the second is there, the first does not match it and is not used
            os.replace(written / name, folder / name)
    return difference


def _graph(model, processor, formats: tuple[AUFormat, ...]) -> onnx_ir.Model:
    """The slots pass of single views before calibration, with every weight under its own name."""
    getLogger("torch.onnx").setLevel(ERROR)  # it warns about torchvision's operators, which are not used
    try:
        program = torch.onnx.export(
            export(model, processor, formats, whole=False),
            input_names=[INPUT_NAME],
            output_names=[fmt.name for fmt in formats],
            dynamo=True,
            optimize=False,  # it would merge weights, and they would no longer be those in the file
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The network cannot be written as ONNX: use --engine torch. ({reason})") from error
    return program.model


def _take_out_weights(model: onnx_ir.Model, checkpoint: Path) -> dict[str, list[str]]:
    """Replace what lies in the checkpoint's files by its name: name in the graph -> [file, name in the file].

    The rest of the graph is simplified while the weights are away.
    """
    stored = {
        name: (path.name, tensor)
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in stored_tensors(path).items()
    }
    graph, taken = model.graph, {}
    for name, value in list(graph.initializers.items()):
        source = name.replace("network.", "model.", 1)  # as `SlotsGraph` calls the model's `model`
        if source in stored and _equal(as_float32(*stored[source][1]), value.const_value.numpy()):
            taken[name] = value, [stored[source][0], source]
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    optimizer.optimize(model)
    for name, (value, _) in taken.items():
        graph.inputs.remove(value)
        size = 4 * int(np.prod(value.shape.numpy()))
        value.const_value = onnx_ir.ExternalTensor(
            ELSEWHERE, 0, size, onnx_ir.DataType.FLOAT, shape=value.shape, name=name
        )
        graph.register_initializer(value)
    _drop_remarks(graph)
    return {name: source for name, (_, source) in taken.items()}


def _equal(stored: np.ndarray, weight: np.ndarray) -> bool:
    return stored.shape == weight.shape and weight.dtype == np.float32 and np.array_equal(stored, weight)


def _drop_remarks(graph: onnx_ir.Graph) -> None:
    """Drop where in PyTorch's code each node comes from, which takes four times the room of the graph."""
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph:
        values += node.outputs
        node.metadata_props.clear()
        node.doc_string = None
    for value in values:
        value.metadata_props.clear()
    graph.metadata_props.clear()


def _largest_difference(engine: OnnxEngine, model, processor, formats: Sequence[AUFormat]) -> float:
    """Of a probability, between the engine and PyTorch, on batches of one and of three pictures of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (3, engine.size, engine.size, 3), np.uint8)
    pictures = [Image.fromarray(picture) for picture in noise]
    shares = [
        np.concatenate([reading.distribution for result in results for reading in result[fmt.name].values()])
        for fmt in formats
        for results in (
            engine.recognize(pictures[:1], formats) + engine.recognize(pictures, formats),
            model.recognize(processor, pictures[:1], formats) + model.recognize(processor, pictures, formats),
        )
    ]
    return float(max(np.abs(ours - theirs).max() for ours, theirs in zip(shares[::2], shares[1::2], strict=True)))
