"""Fine-tune AU-LLaVA with TRL's SFTTrainer.

    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml
    accelerate launch train_sft.py --model_name_or_path runs/tiny-base --data data/rendered --output_dir runs/first

`--help` lists all options; docs/training.md explains them.
"""

import sys

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    from au_runs.start import command

run = command("train_sft.py", "au_training.command", "train")

if __name__ == "__main__":
    sys.exit(run())
