"""Turn a data set into a folder of records to train on and to evaluate: see `python prepare_data.py --help`."""

import sys

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    from au_runs.start import command

run = command("prepare_data.py", "au_readers.command", "faces")

if __name__ == "__main__":
    sys.exit(run())
