"""The summary on the terminal: per face, the AUs that are present and how strong, or how often, they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from au_llava.action_units import AUFormat
from au_llava.au_recognition.tables import heading, measure
from au_llava.au_runs.folders import short_names
from au_llava.au_runs.names import escaped

MOST_ROWS = 30


@dataclass
class _Person:
    """What was read of a face of a picture, or of a person of a video over all frames."""

    sums: dict[str, list[list]]  # format name -> per AU, the frames that show it and the sum of its strengths there
    frames: int = 0
    unread: int = 0  # AUs without a value


class Summary:
    """Adds up faces as they are written; `faces` and `frames_without` count faces and frames without one.

    Args:
        blinks: of people in videos, see `Derived`.
    """

    def __init__(self, formats: Sequence[AUFormat], blinks: Mapping[tuple[str, int], tuple[int, float]]):
        self.formats, self.blinks = formats, blinks
        self.people: dict[tuple[str, int], _Person] = {}
        self.faces = self.frames_without = 0

    def add(self, face: dict) -> None:
        if face["face_id"] is None:
            self.frames_without += 1
            return
        self.faces += 1
        empty = _Person({fmt.name: [[0, 0.0] for _ in fmt.labels] for fmt in self.formats})
        person = self.people.setdefault((face["file"], face["face_id"]), empty)
        person.frames += 1
        for fmt in self.formats:
            answer = face["answers"][fmt.name]
            of_aus = zip(person.sums[fmt.name], answer["present"], answer[measure(fmt)], strict=True)
            for sums, present, strength in of_aus:
                sums[0] += bool(present)
                sums[1] += strength if present and strength is not None else 0
            person.unread += sum(value is None for value in answer["value"])

    def table(self) -> Table:
        """A row per face of a picture or person of a video; for a video, how many of the frames show each AU."""
        table = Table(
            title="Action units that are present", title_justify="left", caption_justify="left", show_lines=True
        )
        table.caption = self._caption()
        table.add_column("face")
        for fmt in self.formats:
            table.add_column(f"{fmt.name} ({fmt.scale})")
        names = short_names([Path(file) for file, _ in self.people])
        several = {file for file, number in self.people if number > 0}
        for (file, number), person in list(self.people.items())[:MOST_ROWS]:
            name = escaped(str(names[Path(file)])) + (f" #{number}" if file in several else "")
            cells = [self._cell(fmt, person) for fmt in self.formats]
            told = (f"\n{person.frames} frames" if person.frames > 1 else "") + self._blinks(file, number)
            table.add_row(Text(name + told), *cells)
        if len(self.people) > MOST_ROWS:
            table.add_row(f"… {len(self.people) - MOST_ROWS} more", *[""] * len(self.formats))
        return table

    def _caption(self) -> str:
        """What the numbers of the cells are."""
        said = []
        if any(person.frames == 1 for person in self.people.values()):
            said.append("; ".join(f"{fmt.name}: {heading(fmt)}" for fmt in self.formats))
        if any(person.frames > 1 for person in self.people.values()):
            said.append("video: share of the frames in which the AU is present")
        return "\n".join(said)

    def _blinks(self, file: str, number: int) -> str:
        if (file, number) not in self.blinks:
            return ""
        count, seconds = self.blinks[file, number]
        noun, rate = "blink" if count == 1 else "blinks", 60 * count / seconds
        return f"\n{count} {noun} in {seconds:.0f} s\n({rate:.1f} a minute)"

    def _cell(self, fmt: AUFormat, person: _Person) -> str:
        """The AUs that are present: with their strength in a picture, or the share of a video's frames, most first."""
        cells = []
        for label, (present, strength) in zip(fmt.labels, person.sums[fmt.name], strict=True):
            if present and person.frames > 1:
                cells.append((present / person.frames, f"{label} {present / person.frames:.0%}"))
            elif present:
                form = {"occurrence": ".0%", "intensity": ".1f"}.get(fmt.scale, ".2f")
                cells.append((0, f"{label}={strength:{form}}"))
        text = ", ".join(words for _, words in sorted(cells, key=lambda pair: -pair[0])) or "none"
        return text + (f"  ({person.unread} unread)" if person.unread and fmt is self.formats[-1] else "")
