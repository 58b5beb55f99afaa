"""Put a trained checkpoint at the root of the repository, so that `from_pretrained(".")` loads it from a clone.

    python maintenance/install_checkpoint.py runs/rendered-tiny

The weights are stored in bfloat16 to keep the repository small; `config.json` asks for float32, in which CPUs are fast,
so loading converts them. The code is not copied: it is already here.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoProcessor

from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME
from au_llava.au_runs.manifests import read_training_manifest, write_training_manifest
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

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
        model.save_pretrained(folder)
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
        processor.tokenizer.init_kwargs["local_files_only"] = False  # how it was loaded here, not a trait of it
        processor.save_pretrained(folder)
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
        for name in FILES:
            shutil.copy(Path(folder) / name, root / name)
    write_training_manifest(root, manifest)


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder that train_sft.py wrote")
    arguments = parser.parse_args(words)

    def main() -> None:
        install(arguments.checkpoint, HOME)
        print(f"Installed: {', '.join(FILES)} ({(HOME / 'model.safetensors').stat().st_size / 1e6:.1f} MB of weights)")

    return run_command("install_checkpoint.py", main)


if __name__ == "__main__":
    sys.exit(run())
