"""Build a Space of the page: app.py, code, checkpoint, examples, card and requirements in one folder.

python tools/release_app.py runs/app-space
"""

import sys

from au_llava.au_runs.start import command

run = command("release_app.py", "au_publishing.app_space", "app")

if __name__ == "__main__":
    sys.exit(run())
