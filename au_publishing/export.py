"""The slots pass as one graph, from pixels to calibrated distributions, for runtimes without Transformers or PyTorch.

The formats, and with them the token tree, are fixed when the graph is built; only the number of images varies. The
prompts are constants: there is no tokenizer, and the head keeps only the tokens that spell values. The output equals
that of `recognize`, calibration included.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache

from au_llava.action_units import AUFormat
from au_llava.calibration_au_llava import Calibration
from au_llava.decoding_au_llava import with_mirror_images
from au_llava.prefix_au_llava import shared_cache
from au_llava.slot_tree_au_llava import compile_slots

INPUT_NAME = "pixel_values"


class SlotsGraph(nn.Module):
    """One forward pass over a token tree that `torch.export` can trace.

    Args:
        model: `AuLlavaForConditionalGeneration`, in evaluation mode.
        processor: its `AuLlavaProcessor`.
        formats: of the outputs, in this order.
        whole: whether mirror images are read as the configuration says and the outputs are calibrated probabilities;
            otherwise, they are the log-probabilities of the given pixels alone, before calibration.

    Raises:
        ValueError: some of the weights are not in memory.
    """

    def __init__(self, model, processor, formats: tuple[AUFormat, ...], whole: bool = True):
        super().__init__()
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("A graph needs all weights, and some are offloaded: load the model without device_map.")
        self.formats = formats
        self.mirror = whole and model.config.mirror_images
        self.image_layer = model.config.vision_feature_layer
        self.network = model.model
        crop = processor.image_processor.crop_size
        tokens = processor.num_image_tokens(crop["height"], crop["width"])
        self.tree = compile_slots(processor, formats, tokens)
        embeddings = model.get_input_embeddings()(self.tree.input_ids).detach()
        is_image = self.tree.input_ids == model.config.image_token_id
        self.register_buffer("texts", embeddings[None, ~is_image])
        places = is_image.long().cumsum(0) - 1  # image tokens are consecutive, once or once for each format
        order = torch.where(is_image, places % tokens, tokens + (~is_image).long().cumsum(0) - 1)
        self.register_buffer("order", order)  # of the tree's tokens in the image's, then the texts'
        hidden = torch.zeros(self.tree.mask.shape, dtype=model.dtype).masked_fill_(~self.tree.mask, -torch.inf)
        self.register_buffer("hidden", hidden[None, None])
        prompts = list(zip(*self.network.prompt_states(self.tree.prefixes), strict=True)) if self.tree.prefixes else []
        for index, of_layer in enumerate(prompts):  # keys and values of each prompt
            keys, values = (torch.cat(parts, dim=-2) for parts in zip(*of_layer, strict=True))
            self.register_buffer(f"keys_{index}", keys)
            self.register_buffer(f"values_{index}", values)
        self.prompt_layers = len(prompts)
        basis = torch.eye(model.config.text_config.hidden_size, dtype=model.dtype)
        self.register_buffer("head", model.token_logits(basis, self.tree.logit_tokens).T.detach())
        self.calibrations = None
        if whole:
            self.calibrations = [Calibration.of(model.config.calibration, fmt, torch) for fmt in formats]

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`pixel_values` (images, 3, height, width) to format name -> (images, AUs, values) float32."""
        if self.mirror:
            pixel_values = with_mirror_images(pixel_values)
        images = pixel_values.shape[0]
        _, seen = self.network.encode_images(pixel_values, self.image_layer)
        outputs = self.network.language_model(
            inputs_embeds=torch.cat([seen, self.texts.expand(images, -1, -1)], 1)[:, self.order],
            attention_mask=self.hidden.expand(images, -1, -1, -1),
            position_ids=self.tree.positions[None],  # the same for all, so that their rotations are constants
            past_key_values=self._prompts(),
            use_cache=False,
        )
        logits = nn.functional.linear(outputs.last_hidden_state[:, self.tree.decision_nodes], self.head)
        read = self.tree.log_probabilities(logits)
        read = self.tree.by_format(self.tree.mirror_mean(read) if self.mirror else read)
        if self.calibrations is None:
            return {fmt.name: each.float() for fmt, each in zip(self.formats, read, strict=True)}
        return {
            fmt.name: calibration(each).float()
            for fmt, calibration, each in zip(self.formats, self.calibrations, read, strict=True)
        }

    def _prompts(self) -> Cache | None:
        """The keys and values of the texts before the image, if there are any."""
        layers = range(self.prompt_layers)
        states = [(self.get_buffer(f"keys_{index}"), self.get_buffer(f"values_{index}")) for index in layers]
        return shared_cache([states]) if states else None


def export(model, processor, formats: tuple[AUFormat, ...], whole: bool = True) -> torch.export.ExportedProgram:
    """The graph for any number of images of the processor's size; arguments as for `SlotsGraph`."""
    crop = processor.image_processor.crop_size
    example = torch.zeros(2, 3, crop["height"], crop["width"], dtype=model.dtype)
    sizes = {INPUT_NAME: {0: torch.export.Dim("images")}}
    graph = SlotsGraph(model, processor, formats, whole).eval()
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=sizes)
