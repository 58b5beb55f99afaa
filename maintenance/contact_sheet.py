"""Draw `docs/images/contact_sheet.png`: some rendered people, each at rest, with every action unit, and with mixtures.

    python maintenance/contact_sheet.py --out docs/images/contact_sheet.png

Look at it after every change to the rig or the renderer: each column must show its AU and nothing else.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from au_llava.au_rendering.pictures import render_face
from au_llava.au_rendering.view import View
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import check_writable

SUBJECTS = (9, 3, 2, 12, 17)
COLUMNS: tuple[dict[str, float], ...] = (
    {},
    *(
        {label: 1.0}
        for label in (
            *("AU1", "AU2", "AU4", "AU5", "AU6", "AU7", "AU9", "AU10", "AU12", "AU14", "AU15", "AU16", "AU17"),
            *("AU18", "AU20", "AU23", "AU24", "AU25", "AU26", "AU28T", "AU28B", "AD29", "AD30L", "AD34", "AU43"),
        )
    ),
    {"AU12L": 1.0},
    {"AU43R": 1.0},
    {"AU6": 0.8, "AU12": 0.9, "AU25": 0.6},
    {"AU1": 0.9, "AU2": 0.9, "AU5": 0.8, "AU26": 0.7},
    {"AU1": 0.8, "AU4": 0.7, "AU15": 0.8, "AU17": 0.6},
    {"AU4": 0.9, "AU5": 0.5, "AU7": 0.6, "AU23": 0.8},
    {"AU4": 0.5, "AU9": 0.9, "AU10": 0.8},
)
CAPTION = 15  # pixels above each row of pictures


def caption(values: dict[str, float]) -> str:
    """The name of a column: "AU12L", "AU1+2+5+26", "at rest"."""
    labels = [label for label, value in values.items() if value]
    return "at rest" if not labels else labels[0] + "".join("+" + label.removeprefix("AU") for label in labels[1:])


def draw_sheet(size: int, per_band: int) -> Image.Image:
    """All columns for all subjects: bands of `per_band` columns, one below the other."""
    bands = [COLUMNS[start : start + per_band] for start in range(0, len(COLUMNS), per_band)]
    height = CAPTION + len(SUBJECTS) * size
    sheet = Image.new("RGB", (per_band * size, len(bands) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for band, columns in enumerate(bands):
        for column, values in enumerate(columns):
            pen.text((column * size + 3, band * height + 2), caption(values), fill="black")
            for row, subject in enumerate(SUBJECTS):
                view = View(yaw=(-10, 8, 0, 5, 12)[row], pitch=(2, -3, 0, 0, 3)[row])
                face = render_face(values, subject=subject, size=size, view=view)
                sheet.paste(Image.fromarray(face), (column * size, band * height + CAPTION + row * size))
    return sheet


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--size", type=int, default=112, help="side of one face (default: %(default)s)")
    parser.add_argument("--per-band", type=int, default=11, help="columns side by side (default: %(default)s)")
    arguments = parser.parse_args(words)

    def main() -> None:
        out = arguments.out
        check_writable(out)
        sheet = draw_sheet(arguments.size, arguments.per_band)
        # Levels in steps of 5 compress to a third and look the same.
        sheet.point(lambda level: min(255, 5 * round(level / 5))).save(out, optimize=True)
        print(f"{out}: {sheet.width}x{sheet.height}, {out.stat().st_size / 1e6:.2f} MB")

    return run_command("contact_sheet.py", main)


if __name__ == "__main__":
    sys.exit(run())
