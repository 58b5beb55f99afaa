"""Loading a checkpoint to read faces with it, and refusing adapters on a base that they were not trained on."""

import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import PROCESSOR_NAME, logging
from transformers.utils.peft_utils import find_adapter_config_file

from au_llava.au_runs.engines import check_there
from au_llava.au_runs.files import HOME
from au_llava.au_runs.manifests import read_training_manifest
from au_llava.au_runs.processes import accelerate_state
from au_llava.au_runs.provenance import weights_sha256
from au_llava.quantization_au_llava import loading_options


def load_checkpoint(
    name: str | Path,
    quantize: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    checked: bool = False,
):
    """Load a checkpoint: (model in evaluation mode, processor). Adapters without a processor get that of their base.

    Args:
        name: folder or Hub id.
        quantize: "8bit" or "4bit", with bitsandbytes.
        dtype: of the weights (default: as they are stored).
        device: where to compute (default: the device of this process).
        checked: whether `check_base` has been called before; it reads all weights of an adapter's base.

    Raises:
        ValueError: adapters whose base is missing or another one, or bitsandbytes is not installed.
        OSError: there is no such checkpoint.
    """
    if not checked:
        check_base(str(name))
    logging.disable_progress_bar()  # of loading weights
    options = loading_options(quantize) | ({} if dtype is None else {"dtype": dtype})
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, **options)
    processor = AutoProcessor.from_pretrained(processor_place(name), trust_remote_code=True)
    return model.to(accelerate_state().device if device is None else device).eval(), processor


def processor_place(name: str | Path) -> str | Path:
    """The folder or Hub id that holds the processor: of adapters in a folder without one, their base."""
    named = base_of(str(name))
    return named[0] if named and Path(name).is_dir() and not (Path(name) / PROCESSOR_NAME).is_file() else name


def base_of(model: str) -> tuple[str, str | None] | None:
    """The base that adapters name (folder or Hub id) and its revision; None if they name none, or `model` is a whole
    checkpoint."""
    path = find_adapter_config_file(model)
    if path is None:
        return None
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    named = settings.get("base_model_name_or_path")
    return named and (named, settings.get("revision"))


def check_base(model: str, base: str | None = None) -> dict[str, str]:
    """Refuse adapters on a base that they were not trained on; returns the base's `weights_sha256`.

    A whole checkpoint has no base: nothing is checked, and {} returned. What is checked is what gets loaded: the base's
    main revision, since Transformers ignores the one that adapters name.

    Args:
        model: folder or Hub id.
        base: the base to use instead of the one that the adapters name.

    Raises:
        ValueError: the base is missing or another one, its name is relative to where the training was started, or only
            its revision says which one it is; or `model` is the checkpoint beside the code, which only a clone has.
        ValueError, OSError: there is no `model`.
    """
    if model == str(HOME) and not (HOME / "config.json").is_file():
        raise ValueError("The installed package brings no checkpoint: name one with --model, a folder or a Hub id.")
    check_there(model)
    named = base_of(model)
    if named is None:
        return {}
    name, revision = (base, None) if base else named
    remedy = f"merge the two with tools/merge_adapter.py {model} --base FOLDER."
    expected = (read_training_manifest(model) or {}).get("base_weights")
    if os.path.isabs(name) and not Path(name).is_dir():
        raise ValueError(f"The base {name} of the adapters in {model} is not there: {remedy}")
    if base is None and Path(name).is_dir() and not os.path.isabs(name) and not expected:
        raise ValueError(
            f"The adapters in {model} name their base {name!r}, which may mean another folder here: {remedy}"
        )
    if revision and not expected:
        raise ValueError(
            f"The adapters in {model} name the revision {revision!r} of {name}, but its main one is loaded: {remedy}"
        )
    try:
        weights = weights_sha256(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The base {name} of the adapters in {model} is not there ({reason}): {remedy}") from None
    if expected and weights != expected:
        differing = ", ".join(sorted({file for file, _ in expected.items() ^ weights.items()}))
        raise ValueError(
            f"{name} is not the base that the adapters in {model} were trained on (other {differing}): {remedy}"
        )
    return weights
