"""A page that reads action units off pictures and draws faces for the model to read back.

    python app.py

See au_page/command.py for the options and docs/app.md for the page.
"""

import sys

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    from au_runs.start import command

run = command("app.py", "au_page.command", "app")

if __name__ == "__main__":
    sys.exit(run())
