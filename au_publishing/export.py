"""The slots pass as one graph, from pixels to calibrated distributions, for runtimes without Transformers or PyTorch.

Owns what the graph computes (`SlotsGraph`), what it says about itself (`description`) and the ONNX file that holds both
(`save_onnx`). The formats, and with them the token tree, are fixed when it is made; only the number of images varies.
The prompts are constants: there is no tokenizer, and of the language model's vocabulary only the rows that spell values
are left. It gives what `recognize` gives, calibration included; thresholds are in the description.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from au_llava.action_units import AUFormat
from au_llava.calibration_au_llava import Calibration, calibrate
from au_llava.decoding_au_llava import mirror_mean, with_mirror_images
from au_llava.slot_tree_au_llava import compile_slots

METADATA_KEY = "au_llava"  # of the description in an ONNX file
INPUT_NAME = "pixel_values"


class SlotsGraph(nn.Module):
    """One forward pass over a token tree, as `torch.export` can follow it.

    Args:
        model: `AuLlavaForConditionalGeneration`, in evaluation mode.
        processor: its `AuLlavaProcessor`.
        formats: what is asked for, in this order.

    Raises:
        ValueError: some of the weights are not in memory.
    """

    def __init__(self, model, processor, formats: tuple[AUFormat, ...]):
        super().__init__()
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("A graph needs all weights, and some are offloaded: load the model without device_map.")
        self.formats = formats
        self.mirror = model.config.mirror_images
        self.image_layer = model.config.vision_feature_layer
        self.network = model.model
        crop = processor.image_processor.crop_size
        self.tree = compile_slots(processor, formats, processor.num_image_tokens(crop["height"], crop["width"]))
        places = (self.tree.input_ids == model.config.image_token_id).nonzero().flatten().tolist()
        embeddings = model.get_input_embeddings()(self.tree.input_ids).detach()
        hidden = torch.zeros(self.tree.mask.shape, dtype=model.dtype).masked_fill_(~self.tree.mask, -torch.inf)
        self.register_buffer("before", embeddings[None, : places[0]])  # the image's tokens follow each other: one path
        self.register_buffer("after", embeddings[None, places[-1] + 1 :])
        self.register_buffer("hidden", hidden[None, None])
        basis = torch.eye(model.config.text_config.hidden_size, dtype=model.dtype)
        self.register_buffer("head", model.token_logits(basis, self.tree.logit_tokens).T.detach())
        self.calibrations = [Calibration.of(model.config.calibration, fmt) for fmt in formats]

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`pixel_values` (images, 3, height, width) to format name -> (images, AUs, values) probabilities, float32."""
        if self.mirror:
            pixel_values = with_mirror_images(pixel_values)
        images = pixel_values.shape[0]
        _, seen = self.network.encode_images(pixel_values, self.image_layer)
        outputs = self.network.language_model(
            inputs_embeds=torch.cat([self.before.expand(images, -1, -1), seen, self.after.expand(images, -1, -1)], 1),
            attention_mask=self.hidden.expand(images, -1, -1, -1),
            position_ids=self.tree.positions.expand(images, -1),
            use_cache=False,
        )
        logits = nn.functional.linear(outputs.last_hidden_state[:, self.tree.decision_nodes], self.head)
        read = self.tree.by_format(self.tree.log_probabilities(logits))
        if self.mirror:
            read = [mirror_mean(each, fmt.labels) for fmt, each in zip(self.formats, read, strict=True)]
        return {
            fmt.name: calibration(each).float()
            for fmt, calibration, each in zip(self.formats, self.calibrations, read, strict=True)
        }


def export(model, processor, formats: tuple[AUFormat, ...]) -> torch.export.ExportedProgram:
    """The graph for any number of images of the processor's size."""
    crop = processor.image_processor.crop_size
    example = torch.zeros(2, 3, crop["height"], crop["width"], dtype=model.dtype)
    sizes = {INPUT_NAME: {0: torch.export.Dim("images")}}
    graph = SlotsGraph(model, processor, formats).eval()
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=sizes)


def description(model, processor, formats: tuple[AUFormat, ...]) -> dict:
    """What a caller must know of the graph, in JSON's types: how pixels are made, what the outputs mean.

    Returns:
        "input": {"name", "shape", "resize_shortest_edge", "resampling" (a filter of Pillow), "crop" (height, width, of
        the middle), "mean", "std" (per channel, of pixels scaled to 0..1)}; "outputs": per format, in order, {"name",
        "shape", "labels" (its rows), "scale", "values" (its columns, on the format's scale), "presence_threshold" (the
        value from which on an AU is present), "thresholds" (per AU: the probability from which on `recognize` says
        so)}.
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


__all__ = ["METADATA_KEY", "SlotsGraph", "description", "export", "save_onnx"]
