"""Publish a trained checkpoint on the Hugging Face Hub.

python tools/release.py runs/mine --repo-id USER/NAME --dry-run
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("release.py", "au_publishing.release")

if __name__ == "__main__":
    sys.exit(run())
