"""Build a Space of the page: app.py, code, checkpoint, examples, card and requirements in one folder.

python tools/release_app.py runs/app-space
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("release_app.py", "au_publishing.app_space", "app")

if __name__ == "__main__":
    sys.exit(run())
