"""What a recipe takes, before it is started: parameters, memory, tokens and steps. Nothing is downloaded or trained.

    python tools/plan.py --config recipes/small.yaml
    python tools/plan.py --config recipes/base.yaml --accelerate recipes/accelerate/fsdp2.yaml --text Qwen/Qwen3-1.7B

Takes every option of train_sft.py.
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("plan.py", "au_training.plan", "train")

if __name__ == "__main__":
    sys.exit(run())
