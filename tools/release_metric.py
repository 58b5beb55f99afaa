"""Build a Space of the metric: code, card, widget and requirements in one folder.

python tools/release_metric.py runs/space
"""

import sys

from au_llava.au_runs.start import command

run = command("release_metric.py", "au_publishing.metric_space", "eval")

if __name__ == "__main__":
    sys.exit(run())
