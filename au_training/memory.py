"""What a training keeps in memory and what it computes, counted on the network's shape.

Memory per GPU, by what autograd and the optimizer keep:

- weights: 4 bytes each (2 if they are frozen and `dtype` is a 16-bit type; NF4 takes 0.5 and its scales); gradients: 4
  bytes, and the optimizer's state (`OPTIMIZER_BYTES`), per trained parameter; divided by the number of GPUs as ZeRO and
  FSDP divide them;
- half-precision copies of float32 weights, which autocast makes and keeps until the backward pass;
- activations: bytes per token and layer (`KEPT`), counted on Transformers' layers in the manner of Korthikanti et al.
  2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198). With gradient checkpointing,
  only each layer's input and the inside of one layer (Chen et al. 2016, arXiv 1604.06174).

Left out: the CUDA context, fragmentation, and communication buffers. Compute is 2 operations per parameter and token
forward, as many again for the gradient of the input and for the gradient of each trained weight (Kaplan et al. 2020,
arXiv 2001.08361), and one more forward pass with checkpointing.
"""

import re
from dataclasses import dataclass

from torch import nn
from trl import ModelConfig

from au_llava.au_training.options import AUTrainingConfig

MEMORY = ("weights", "gradients", "optimizer", "copies", "activations")

# State in bytes per trained parameter: Adam keeps two numbers, 8-bit Adam two of one byte, Adafactor a row and a column
# per matrix, which is next to nothing.
OPTIMIZER_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "paged_adamw", "paged_adamw_32bit"), 8),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("adafactor", "sgd"), 0),
}
ADDED = re.compile(r"\.lora_|\.original_module\.")  # by PEFT: adapters, and modules_to_save as they were
# Double quantization (QLoRA) -> bytes per weight, scales included.
NF4_BYTES = {False: 0.5 + 4 / 64, True: 0.5 + 0.127 / 8}

# Kept for the backward pass, per token and layer: (float32 numbers, half-precision numbers), given the width h, the
# attention's width q and the MLP's width f. Float32: the residual stream that each norm reads, and the normalized
# output of an RMSNorm. Half: the inputs of all linear layers; queries, keys, values and the result of the attention; in
# a gated MLP gate, up, activation and product. With frozen weights, only what the gradient passes through. LoRA keeps
# what a trained layer keeps, within a few percent.
KEPT = {
    ("gated", True): lambda h, q, f: (4 * h, 5 * h + 4 * q + 4 * f),
    ("gated", False): lambda h, q, f: (2 * h, 4 * q + 3 * f),
    ("plain", True): lambda h, q, f: (2 * h, 4 * h + 4 * q + 2 * f),
    ("plain", False): lambda h, q, f: (2 * h, 4 * q + f),
}


@dataclass(frozen=True)
class Sizes:
    """Parameters of a training, and its bytes per GPU."""

    parameters: int
    trained: int
    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float

    @property
    def memory(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations


def layers_of(model, part: str) -> tuple[int, int, int, int, str] | None:
    """(layers, width h, attention's width q, MLP's width f, "gated" or "plain") of a tower or a language model.

    None if its layers are not transformers like those of Llama, Qwen, CLIP, SigLIP and DINOv2.
    """
    shapes = {name.replace(".base_layer", ""): tuple(p.shape) for name, p in model.named_parameters() if part in name}
    queries = [shape for name, shape in shapes.items() if name.endswith("q_proj.weight")]
    mlps = [shape for name, shape in shapes.items() if name.endswith(("up_proj.weight", "fc1.weight"))]
    if not queries or not mlps:
        return None
    kind = "gated" if any(name.endswith("gate_proj.weight") for name in shapes) else "plain"
    return len(queries), queries[0][1], queries[0][0], mlps[0][0], kind


def kept_bytes(
    shape, trained: bool, half: int, length: int, checkpointed: bool, stream: int = 4, before: int = 0
) -> int:
    """Bytes that the backward pass needs for one sequence of `length` tokens, see `KEPT`.

    Args:
        shape: see `layers_of`.
        half: bytes of a half-precision number, 4 without mixed precision.
        stream: bytes of a number of the residual stream: as many as the weights have.
        before: tokens of other rows that the sequence attends to; attention keeps a copy of their keys and values.
    """
    layers, width, attention, mlp, kind = shape
    single, other = KEPT[kind, trained](width, attention, mlp)
    mask = length + before if kind == "gated" else 0  # the tree's, in the language model
    inside = length * (4 * single + half * (other + mask)) + 2 * half * attention * before
    return layers * length * stream * width + inside if checkpointed else layers * inside


def sizes(
    model,
    training_args: AUTrainingConfig,
    model_args: ModelConfig,
    tokens: int,
    features: int,
    cluster,
    prompt_rows: int = 0,
) -> Sizes:
    """Parameters and bytes per GPU.

    Args:
        model: on the meta device, frozen and adapted.
        tokens: of the longest sequence.
        features: of one image in the tower.
        cluster: accelerate's configuration; None for one GPU.
        prompt_rows: how many rows as long as the longest sequence the prompts add to a batch.

    Raises:
        ValueError: an optimizer that is not in `OPTIMIZER_BYTES`.
    """
    mixed = training_args.bf16 or training_args.fp16
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    linear = {
        module.weight
        for name, module in model.named_modules()
        if "language_model" in name and type(module) is nn.Linear
    }
    bytes_quantized = NF4_BYTES[model_args.use_bnb_nested_quant] if model_args.load_in_4bit else 1
    weights = trained_bytes = copies = trained = 0
    for weight in model.parameters():
        each = weight.element_size()
        if weight.requires_grad:
            each = (2 if quantized else 4) if mixed else each
            trained, trained_bytes = trained + weight.numel(), trained_bytes + each * weight.numel()
            copies += 2 * weight.numel() if mixed and each == 4 else 0
        elif quantized and weight in linear:
            each = bytes_quantized
        weights += each * weight.numel()
    optimizer = str(getattr(training_args.optim, "value", training_args.optim))
    if optimizer not in OPTIMIZER_BYTES:
        raise ValueError(f"The memory of the optimizer {optimizer} is not known; known: {', '.join(OPTIMIZER_BYTES)}.")
    processes, engine = processes_of(cluster)
    share_weights = processes if engine in ("FSDP", "ZeRO-3") else 1  # GPUs, each with its part of them
    share_states = processes if engine in ("FSDP", "ZeRO-2", "ZeRO-3") else 1
    return Sizes(
        parameters=sum(weight.numel() for name, weight in model.named_parameters() if not ADDED.search(name)),
        trained=trained,
        weights=weights / share_weights,
        gradients=trained_bytes / share_states,
        optimizer=OPTIMIZER_BYTES[optimizer] * trained / share_states,
        copies=copies / share_weights,
        activations=_activations(model, training_args, 2 if mixed else 4, tokens, features, prompt_rows),
    )


def _activations(
    model, training_args: AUTrainingConfig, half: int, tokens: int, features: int, prompt_rows: int
) -> float:
    """Bytes that the backward pass of a batch needs. `half`: as in `kept_bytes`; the rest: as in `sizes`."""
    batch, checkpointing = training_args.per_device_train_batch_size, training_args.activation_checkpointing
    total = 0
    for part, length in (("vision_tower", features), ("language_model", tokens)):
        learns = any(weight.requires_grad for name, weight in model.named_parameters() if part in name)
        shape = layers_of(model, part)
        stream = max(p.element_size() for name, p in model.named_parameters() if part in name and "lora_" not in name)
        if shape is not None and (learns or part == "language_model"):  # behind it lies the projector
            added = prompt_rows if part == "language_model" else 0
            of_row = kept_bytes(shape, learns, half, length, checkpointing, stream, before=added * length)
            total += (batch + added) * of_row
    return total


def processes_of(cluster) -> tuple[int, str]:
    """(number of processes, "DDP", "FSDP", "ZeRO-3", …) of an accelerate configuration."""
    if cluster is None:
        return 1, "DDP"
    if cluster.distributed_type == "DEEPSPEED":
        return cluster.num_processes, f"ZeRO-{cluster.deepspeed_config['zero_stage']}"
    return cluster.num_processes, "FSDP" if cluster.distributed_type == "FSDP" else "DDP"


def operations(model, tokens: float, features: float, checkpointed: bool) -> float:
    """Floating-point operations of one image, forward and backward; `tokens` and `features` on average."""
    total = 0.0
    for part, length in (("vision_tower", features), ("language_model", tokens)):
        weights = [p for name, p in model.named_parameters() if part in name and p.ndim > 1 and "embed" not in name]
        count, learned = (sum(p.numel() for p in ps) for ps in (weights, [p for p in weights if p.requires_grad]))
        passed = part == "language_model" or learned
        total += 2 * length * (count + (count * (1 + checkpointed) + learned if passed else 0))
    return total
