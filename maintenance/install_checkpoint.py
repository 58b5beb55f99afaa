"""Put a trained checkpoint at the root of the repository, so that `from_pretrained(".")` loads it from a clone.

    python maintenance/install_checkpoint.py runs/rendered-tiny
    python maintenance/install_checkpoint.py runs/arkit-tiny --adapters checkpoints/arkit

The weights are stored in bfloat16 to keep the repository small; `config.json` asks for float32, in which CPUs are fast,
so loading converts them. The code is not copied: it is already here. Labels that action_units.py has gained since the
tokenizer was made get tokens of their own, which adapters can then be trained for.

Adapters of the checkpoint at the root go into a folder of their own, which takes code and processor from there. They
name their base ".", so they load where commands are run from the root, and only with the weights that they were trained
on.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, write_json
from au_llava.au_runs.manifests import read_training_manifest, write_training_manifest
from au_llava.au_runs.provenance import weights_sha256
from au_llava.au_training.untrained import add_phrases
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor

FILES = (
    "chat_template.jinja",
    "config.json",
    "decision.json",
    "decision_template.jinja",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
ADAPTER_FILES = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME)


def install(checkpoint: Path, root: Path) -> None:
    """Write the weights, configuration, processor files and training manifest of `checkpoint` into `root`.

    Raises:
        ValueError: the checkpoint does not say who it was trained on.
    """
    manifest = read_training_manifest(str(checkpoint))
    if manifest is None:
        raise ValueError(f"{checkpoint} has no training_manifest.json: install what train_sft.py wrote.")
    with tempfile.TemporaryDirectory() as folder:
        model = AuLlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
        # This class, as for the model: older code than this may lie beside the weights.
        processor = AuLlavaProcessor.from_pretrained(checkpoint, trust_remote_code=True)
        add_phrases(model, processor.tokenizer)
        model.save_pretrained(folder)
        processor.tokenizer.init_kwargs["local_files_only"] = False  # how it was loaded here, not a trait of it
        processor.save_pretrained(folder)
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
        for name in FILES:
            shutil.copy(Path(folder) / name, root / name)
    write_training_manifest(root, manifest)


def install_adapters(checkpoint: Path, folder: Path, root: Path) -> None:
    """Write the adapters and training manifest of `checkpoint`, trained on the checkpoint in `root`, into `folder`.

    Raises:
        ValueError: `checkpoint` holds no adapters, or they were trained on other weights than those in `root`.
    """
    lacking = [name for name in ADAPTER_FILES if not (checkpoint / name).is_file()]
    if lacking:
        raise ValueError(f"{checkpoint} holds no adapters ({', '.join(lacking)}): train with use_peft: true.")
    manifest = read_training_manifest(str(checkpoint))
    if manifest is None or manifest.get("base_weights") != weights_sha256(str(root)):
        raise ValueError(f"{checkpoint} was not trained on the weights in {root}: train it again.")
    settings, weights = ADAPTER_FILES
    folder.mkdir(parents=True, exist_ok=True)
    entries = json.loads((checkpoint / settings).read_text(encoding="utf-8"))
    write_json(folder / settings, entries | {"base_model_name_or_path": "."})
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(checkpoint / weights).items()}
    save_file(stored, folder / weights, metadata={"format": "pt"})
    write_training_manifest(folder, manifest)


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder that train_sft.py wrote")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="where to put it if it holds adapters")
    arguments = parser.parse_args(words)

    def main() -> None:
        if arguments.adapters is not None:
            install_adapters(arguments.checkpoint, arguments.adapters, HOME)
            size = sum(path.stat().st_size for path in arguments.adapters.iterdir())
            print(f"Installed: {arguments.adapters} ({size / 1e6:.1f} MB)")
            return
        install(arguments.checkpoint, HOME)
        print(f"Installed: {', '.join(FILES)} ({(HOME / 'model.safetensors').stat().st_size / 1e6:.1f} MB of weights)")

    return run_command("install_checkpoint.py", main)


if __name__ == "__main__":
    sys.exit(run())
