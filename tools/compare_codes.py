"""How well two observers agree who coded the same pictures by eye.

python tools/compare_codes.py mine.csv yours.csv
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("compare_codes.py", "au_evaluation.observers", "eval")

if __name__ == "__main__":
    sys.exit(run())
