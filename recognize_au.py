"""Read the action units of faces in pictures and videos: a table to compute with, a picture to show.

    python recognize_au.py photo.jpg
    python recognize_au.py interview.mp4 --fps 5 --out aus.csv --timeline aus.png

See au_recognition/command.py for the options and docs/recognize.md for examples.
"""

import sys

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    from au_runs.start import command

run = command("recognize_au.py", "au_recognition.command", "recognize")

if __name__ == "__main__":
    sys.exit(run())
