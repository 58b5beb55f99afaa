"""Pre-train the vision tower of a base on rendered faces.

python tools/pretrain_tower.py --base runs/tiny-coarse --data DATA --out runs/tiny-base-seen
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("pretrain_tower.py", "au_training.tower", "train")

if __name__ == "__main__":
    sys.exit(run())
