"""Put a trained checkpoint at the repository root, so that `from_pretrained(".")` loads it from a clone.

    python maintenance/install_checkpoint.py runs/rendered-tiny

Weights are stored in bfloat16 to keep the repository small; `config.json` asks for float32, in which CPUs are fast, and
loading converts. The code is not copied: it is already here.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoProcessor

from au_llava.au_runs.manifests import TRAINING_MANIFEST
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
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
    """Write the weights, configuration and processor files of `checkpoint` into `root`."""
    with tempfile.TemporaryDirectory() as folder:
        model = AuLlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
        processor.tokenizer.init_kwargs["local_files_only"] = False  # how it was loaded here is no trait of it
        processor.save_pretrained(folder)
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
        for name in FILES:
            shutil.copy(Path(folder) / name, root / name)
    shutil.copy(checkpoint / TRAINING_MANIFEST, root / TRAINING_MANIFEST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", type=Path, help="folder that train_sft.py wrote")
    install(parser.parse_args().checkpoint, ROOT)
    print(f"Installed: {', '.join(FILES)} ({(ROOT / 'model.safetensors').stat().st_size / 1e6:.1f} MB of weights)")
