"""Pre-train the vision tower of a base on rendered faces.

python tools/pretrain_tower.py --base runs/tiny-coarse --data DATA --out runs/tiny-base-seen
"""

import sys

from au_llava.au_runs.start import command

run = command("pretrain_tower.py", "au_training.tower", "train")

if __name__ == "__main__":
    sys.exit(run())
