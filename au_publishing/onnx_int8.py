"""Stores the weights of an ONNX file in 8 bits: a quarter of the size, the same speed, almost the same answers.

Only the weights are rounded, each output channel with a scale of its own; everything is computed in 32 bits. So the
convolutions, which hold most weights, lose little. ONNX Runtime's own tools round activations too
(`quantize_dynamic`), or leave convolutions as they are (`MatMulNBits`).
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 127
FEWEST = 1024  # numbers; smaller tensors stay as they are


def save_int8(source: Path, path: Path) -> None:
    """Write `source` to `path` with the weights of its matrix products and convolutions in 8 bits.

    They are multiplied out by Cast and Mul when a session starts, not in every run: ONNX Runtime folds these, but not
    DequantizeLinear.
    """
    model = onnx.load(source)
    graph = model.graph
    channel_axis = {}  # name of a weight -> axis of its output channels
    for node in graph.node:
        if node.op_type in ("MatMul", "Conv"):
            channel_axis[node.input[1]] = -1 if node.op_type == "MatMul" else 0
    nodes, scales = [], []
    for weight in graph.initializer:
        if weight.name in channel_axis and weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= FEWEST:
            name, numbers = weight.name, numpy_helper.to_array(weight)
            rounded, scale = _rounded(numbers, channel_axis[name])
            weight.CopyFrom(numpy_helper.from_array(rounded, f"{name}_int8"))
            scales.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes.append(helper.make_node("Cast", [f"{name}_int8"], [f"{name}_steps"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}_steps", f"{name}_scale"], [name]))
    graph.initializer.extend(scales)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _rounded(numbers: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 steps, and the scale of each channel, in a shape that multiplies them."""
    others = tuple(each for each in range(numbers.ndim) if each != axis % numbers.ndim)
    scale = np.abs(numbers).max(axis=others, keepdims=True) / LARGEST
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.round(numbers / scale).astype(np.int8), scale
