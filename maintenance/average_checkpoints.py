"""Average the weights of stages of one training, as a "model soup" (Wortsman et al. 2022, arXiv 2203.05482).

    python maintenance/average_checkpoints.py runs/second runs/third --out runs/mean

Weights of stages that continue from each other lie in one valley of the loss, so that their mean reads as well as the
better of them, or better. All else is that of the last checkpoint, which must have seen all people of the others.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.manifests import TRAINING_MANIFEST, read_training_manifest, seen_people
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Write a checkpoint with the mean of the weights of two or more into the folder `out`.

    Raises:
        ValueError: the weights have other names or shapes, or the last checkpoint has not seen people of the others.
    """
    last = checkpoints[-1]
    seen = seen_people(read_training_manifest(str(last)))
    for earlier in checkpoints[:-1]:
        for role, people in seen_people(read_training_manifest(str(earlier))).items():
            if not people <= seen[role]:
                raise ValueError(f"{last} does not continue from {earlier}: name the last stage of the training last.")
    models = [AuLlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32) for path in checkpoints]
    stages = [dict(model.named_parameters()) | dict(model.named_buffers()) for model in models]  # tied weights once
    for path, stage in zip(checkpoints, stages, strict=True):
        if {name: w.shape for name, w in stage.items()} != {name: w.shape for name, w in stages[-1].items()}:
            raise ValueError(f"{path} has weights of another architecture than {last}: average stages of one training.")
    with torch.no_grad():
        for name, weight in stages[-1].items():
            if weight.is_floating_point():
                weight.copy_(torch.stack([stage[name] for stage in stages]).mean(dim=0))
    models[-1].save_pretrained(out)
    AuLlavaProcessor.from_pretrained(last, trust_remote_code=True).save_pretrained(out)
    shutil.copy(last / TRAINING_MANIFEST, out)


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", help="folders that train_sft.py wrote, the last stage last"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    arguments = parser.parse_args(words)

    def main() -> None:
        if len(arguments.checkpoints) < 2:
            raise ValueError("Name two checkpoints or more: the mean of one is itself.")
        average(arguments.checkpoints, arguments.out)
        print(f"Written: {arguments.out}, the mean of {', '.join(map(str, arguments.checkpoints))}")

    return run_command("average_checkpoints.py", main)


if __name__ == "__main__":
    sys.exit(run())
