"""Render the sample faces in assets/faces: people that no training seed draws, each showing known AUs.

python maintenance/sample_faces.py --out assets/faces
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from au_llava.au_rendering.pictures import render_face
from au_llava.au_rendering.view import View
from au_llava.au_runs.commands import CommandParser, run_command

SEED = 9  # the recipes train on people of other seeds
FACES = {  # file name -> (AU strengths, view)
    "smile": ({"AU6": 0.7, "AU12": 0.9, "AU25": 0.4}, View(yaw=-8)),
    "surprise": ({"AU1": 0.9, "AU2": 0.9, "AU5": 0.8, "AU25": 0.6, "AU26": 0.7}, View(yaw=5)),
    "frown": ({"AU4": 0.9, "AU7": 0.6}, View(pitch=-5)),
    "wink": ({"AU43L": 1.0}, View(yaw=10)),
    "lips-down": ({"AU1": 0.6, "AU15": 0.9, "AU17": 0.7}, View(softness=0.9)),
    "rest": ({}, View(yaw=-4)),
}


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    parser.add_argument("--size", type=int, default=192, help="side in pixels (default: 192)")
    arguments = parser.parse_args(words)

    def main() -> None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for subject, (name, (strengths, view)) in enumerate(FACES.items()):
            face = render_face(strengths, subject=subject, seed=SEED, size=arguments.size, view=view)
            Image.fromarray(face).save(arguments.out / f"{name}.png")
        print(f"Written: {len(FACES)} faces to {arguments.out}")

    return run_command("sample_faces.py", main)


if __name__ == "__main__":
    sys.exit(run())
