"""Which files of a checkpoint go to the Hub.

A list names what is published; everything else stays behind, since the folder of a training also holds optimizer
states, pickles and the base that it started from.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import ADAPTER_CONFIG_NAME

from au_llava.au_runs.manifests import TRAINING_MANIFEST

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# File of a checkpoint, beside weights and code -> whether a checkpoint may lack it.
CHECKPOINT_FILES = {
    "config.json": False,
    "decision.json": True,
    "decision_template.jinja": True,
    "generation_config.json": True,
    "processor_config.json": False,
    "chat_template.jinja": True,
    "tokenizer_config.json": False,
    "slots.onnx": True,  # for reading with ONNX Runtime
    "slots.json": True,
    "handler.py": True,  # for Inference Endpoints
    "onnx_au_llava.py": True,  # for the handler with ONNX Runtime
    "LICENSE": True,
    "NOTICE": True,
    TRAINING_MANIFEST: True,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
STATE = "state of the training"
LEFT_OUT = {  # reason -> patterns of names
    STATE: (
        *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin", "trainer_state.json"),
        "trained_weights.safetensors",
        *("checkpoint-*", "base", "logs", "runs", "events.out.*"),
    ),
    "data": ("*.parquet", "*.arrow", "*.csv", "*.jsonl", "*.png", "*.jpg", "*.mp4", "*.avi", "data", "assets"),
}


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Name -> path of the files of the checkpoint in `folder`: settings, weights, tokenizer and code.

    Raises:
        ValueError: the folder is not a complete checkpoint, or holds pickled weights or LoRA adapters.
    """
    check_checkpoint(folder)
    names = [*CHECKPOINT_FILES, *TOKENIZER_FILES, *weight_files(folder), *code_files(folder)]
    return {name: folder / name for name in names if (folder / name).is_file()}


def names_in(folder: Path) -> list[str]:
    """The sorted names of what is in a folder; none if there is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def check_checkpoint(folder: Path) -> None:
    """Raise ValueError, saying what is wrong and what to do, unless `folder` holds a complete checkpoint."""
    names = names_in(folder)
    if ADAPTER_CONFIG_NAME in names:
        raise ValueError(
            f"{folder} holds LoRA adapters, which nobody can load without their base: merge them into a checkpoint "
            "first (tools/merge_adapter.py)."
        )
    pickled = [name for name in names if _matches(name, PICKLES) and not _matches(name, LEFT_OUT[STATE])]
    if pickled:
        raise ValueError(
            f"{folder} holds {', '.join(pickled)}: pickles run code when they are loaded and are never published. "
            "Save the weights as safetensors and move these files away."
        )
    lacking = [name for name, optional in CHECKPOINT_FILES.items() if not optional and name not in names]
    if not {WEIGHTS, WEIGHTS_INDEX} & set(names):
        lacking.insert(0, f"weights ({WEIGHTS})")
    if not set(TOKENIZER_FILES[:3]) & set(names):
        lacking.append("a tokenizer")
    if lacking:
        raise ValueError(
            f"{folder} lacks {', '.join(lacking)}: name a folder that train_sft.py or save_pretrained wrote, "
            "processor included."
        )


def weight_files(folder: Path) -> list[str]:
    """Names of the weights: one file, or an index and its shards. Raises ValueError if one is missing or truncated."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        shards = json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()
        names = sorted(set(shards))
    for name in names:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} is missing or not a complete safetensors file: {error}") from None
    return names if names == [WEIGHTS] else [WEIGHTS_INDEX, *names]


def code_files(folder: Path) -> list[str]:
    """Names of the Python files that configuration and processor load, and of the files that those import."""
    settings = [json.loads((folder / name).read_text()) for name in ("config.json", "processor_config.json")]
    modules = {reference.partition(".")[0] for of_file in settings for reference in _references(of_file)}
    files = {folder / f"{module}.py" for module in modules}
    try:
        files |= {Path(path) for file in files for path in get_relative_import_files(file)}
    except OSError as error:
        raise ValueError(f"{folder} lacks {Path(error.filename).name}, which its checkpoint loads.") from None
    return sorted(path.name for path in files)


def _references(settings) -> Iterator[str]:
    """Every "file.Class" under the keys where Transformers finds code: auto_map, and `impl` of a custom pipeline."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key == "auto_map":
                yield from value.values()
            elif key == "impl":
                yield value
            else:
                yield from _references(value)


def left_out(names: Iterable[str]) -> dict[str, list[str]]:
    """Reason -> names, for files that are not published."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        matching = (reason for reason, patterns in LEFT_OUT.items() if _matches(name, patterns))
        reasons.setdefault(next(matching, "not part of a checkpoint"), []).append(name)
    return reasons


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
