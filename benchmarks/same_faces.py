"""Whether two versions of this package find the same faces in the same files and decide the same about them.

    python recognize_au.py photos --formats bp4d disfa feafa --out before.jsonl   # with the one version
    python recognize_au.py photos --formats bp4d disfa feafa --out after.jsonl    # with the other
    python benchmarks/same_faces.py before.jsonl after.jsonl

Two faces of a picture or frame are the same if their boxes overlap by half of what they cover together. Prints how many
were found by both and by one alone, how far boxes and eyes moved, and the decisions that changed; `--list` names the
files. The exit status is 1 if a face was lost.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from page import make_table, runner, show
from scipy.optimize import linear_sum_assignment

from au_llava.au_faces.crop import overlap
from au_llava.au_recognition.tables import BOX, EYES
from au_llava.au_runs.commands import CommandParser

SAME = 0.5  # intersection over union


@dataclass
class Comparison:
    """What two tables have in common. Faces are rows of the tables."""

    pairs: list[tuple[Mapping, Mapping]] = field(default_factory=list)
    lost: list[Mapping] = field(default_factory=list)
    new: list[Mapping] = field(default_factory=list)

    def boxes(self) -> np.ndarray:
        """(pairs,) how far the sides of the boxes moved, at most, in pixels."""
        return np.array([max(abs(one[name] - other[name]) for name in BOX) for one, other in self.pairs])

    def eyes(self) -> np.ndarray:
        """(pairs,) how far the eyes moved, on average, of their distance before."""
        before, after = (np.array([[pair[side][name] for name in EYES] for pair in self.pairs]) for side in (0, 1))
        moved = np.hypot(*(after - before).reshape(-1, 2, 2).transpose(2, 0, 1)).mean(axis=1)
        return moved / np.hypot(*(before[:, 2:] - before[:, :2]).T)

    def decisions(self) -> dict[str, tuple[int, int]]:
        """Format -> (decisions that are the same, all)."""
        counts = defaultdict(lambda: np.zeros(2, int))
        for one, other in self.pairs:
            for name, answers in one["answers"].items():
                same = [answers[label]["present"] == other["answers"][name][label]["present"] for label in answers]
                counts[name] += (sum(same), len(same))
        return {name: tuple(map(int, count)) for name, count in counts.items()}


def faces_of(path: Path) -> dict[tuple[str, int], list[Mapping]]:
    """(file, frame) -> its faces, from a table of `recognize_au.py --out *.jsonl`.

    Raises:
        ValueError: a line is not a row of such a table.
    """
    faces = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            faces[row["file"], row["frame"]] += [row] if row["success"] else []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a row of recognize_au.py's .jsonl table.") from error
    return dict(faces)


def compare(before: Mapping, after: Mapping) -> Comparison:
    """Compare two tables as `faces_of` gives them.

    Raises:
        ValueError: they are not of the same files and frames.
    """
    if before.keys() != after.keys():
        missing = sorted(map(str, before.keys() ^ after.keys()))
        raise ValueError(f"the tables are not of the same pictures: {missing[0]} is in one of them only.")
    found = Comparison()
    for place, faces in before.items():
        others = after[place]
        shared = np.zeros((len(faces), len(others)))
        for row, face in enumerate(faces):
            for column, other in enumerate(others):
                shared[row, column] = overlap([face[name] for name in BOX], [other[name] for name in BOX])
        matched = [pair for pair in zip(*linear_sum_assignment(-shared), strict=True) if shared[pair] >= SAME]
        rows, columns = ({pair[side] for pair in matched} for side in (0, 1))
        found.pairs += [(faces[row], others[column]) for row, column in matched]
        found.lost += [face for row, face in enumerate(faces) if row not in rows]
        found.new += [other for column, other in enumerate(others) if column not in columns]
    return found


def lines_of(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What is said about a comparison, as (what, how much)."""
    yield "faces found by both", str(len(comparison.pairs))
    yield "lost", str(len(comparison.lost))
    yield "new", str(len(comparison.new))
    if not comparison.pairs:
        return
    boxes, eyes = comparison.boxes(), comparison.eyes()
    yield "boxes moved by more than 2 pixels", f"{100 * (boxes > 2).mean():.1f} %"
    for name, values, unit, scale in (
        ("box moved", boxes, "pixels", 1),
        ("eyes moved", eyes, "% of their distance", 100),
    ):
        median, most, worst = scale * np.percentile(values, [50, 95, 100])
        yield f"{name}: median, 95 %, worst", f"{median:.1f}, {most:.1f}, {worst:.1f} {unit}"
    for name, (same, of_all) in comparison.decisions().items():
        yield f"decisions that are the same, {name}", f"{100 * same / of_all:.2f} % of {of_all}"


def main(arguments: argparse.Namespace) -> int:
    comparison = compare(*map(faces_of, (arguments.before, arguments.after)))
    table = make_table("what", "how much", text=["what"])
    for words in lines_of(comparison):
        table.add_row(*words)
    show([table])
    if arguments.list:
        for kind, faces in (("lost", comparison.lost), ("new", comparison.new)):
            for face in faces:
                place = ", ".join(f"{face[name]:.0f}" for name in BOX)
                print(f"{kind}: {face['file']} frame {face['frame']} at {place}, confidence {face['confidence']:.2f}")
    return int(bool(comparison.lost))


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--list", action="store_true", help="name the faces that were lost or are new")
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
