"""Build a Space of the metric: code, card, widget and requirements in one folder.

python tools/release_metric.py runs/space
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("release_metric.py", "au_publishing.metric_space", "eval")

if __name__ == "__main__":
    sys.exit(run())
