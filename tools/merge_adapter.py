"""Merge LoRA adapters into their base: a complete checkpoint that can be evaluated, served and published.

python tools/merge_adapter.py runs/paper-7b-stage2 --out runs/paper-7b
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("merge_adapter.py", "au_publishing.merging", "train")

if __name__ == "__main__":
    sys.exit(run())
