"""Columns that follow from the formats' readings by a rule: blinks, the rest of OpenFace's AUs, ARKit's blendshapes.

The gaze comes from the eyes (au_faces/gaze.py) unless a format has it. What does not follow stays empty. As in
au_datasets/conversion.py, an unsided AU is its stronger side, presence follows from any scale, and an intensity never
from a strength between 0 and 1, or the reverse.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_datasets.conversion import sources
from au_llava.au_faces.gaze import GAZE
from au_llava.au_faces.media import is_video
from au_llava.au_recognition.tables import au_columns, openface_label

SETS = ("blink", "openface", "arkit")
BLINK = "AU45_c"
# "If bilateral, the eyes cannot be closed more than 1/2 second in the blink, or it is scored eyes closed (AU 43E)":
# Ekman, Friesen and Hager, Facial Action Coding System (2002), Action Unit 45.
LONGEST_BLINK = 0.5  # seconds
# Our choice: blinks last from 0.1 s, in which 20 frames a second have two frames.
LOWEST_RATE = 20  # frames per second

# https://github.com/TadasBaltrusaitis/OpenFace/wiki/Action-Units; its tables have no AU28_r.
OPENFACE = tuple(f"AU{number}" for number in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45))

# Shape -> the AU of the same movement; {} is Left and Right, the person's own as in ARKit. Names:
# https://developer.apple.com/documentation/arkit/arfaceanchor/blendshapelocation. AUs: ICT-FaceKit's published FACS
# table, as for the face rig (au_rendering/rig.py). FACS codes the gaze of both eyes together (AU61 to AU64).
_ARKIT = {
    **{"eyeBlink{}": "AU43", "eyeLookDown{}": "AU64", "eyeLookUp{}": "AU63"},
    **{"eyeLookInLeft": "AU62", "eyeLookInRight": "AU61", "eyeLookOutLeft": "AU61", "eyeLookOutRight": "AU62"},
    **{"eyeSquint{}": "AU7", "eyeWide{}": "AU5", "jawForward": "AD29", "jawLeft": "AD30L", "jawRight": "AD30R"},
    **{"jawOpen": "AU26", "mouthClose": "AU8", "mouthFunnel": "AU22", "mouthPucker": "AU18", "mouthLeft": "AD101L"},
    **{"mouthRight": "AD101R", "mouthSmile{}": "AU12", "mouthFrown{}": "AU15", "mouthDimple{}": "AU14"},
    **{"mouthStretch{}": "AU20", "mouthRollLower": "AU28B", "mouthRollUpper": "AU28T", "mouthShrugLower": "AU17"},
    **{"mouthShrugUpper": "AD102", "mouthPress{}": "AU24", "mouthLowerDown{}": "AU16", "mouthUpperUp{}": "AU10"},
    **{"browDown{}": "AU4", "browInnerUp": "AU1", "browOuterUp{}": "AU2", "cheekPuff": "AD34", "cheekSquint{}": "AU6"},
    **{"noseSneer{}": "AU9", "tongueOut": "AD19"},
}
ARKIT = {  # the 52 shapes -> the AUs that give them, the first that is read
    shape.format(side): (label + side[:1], label) if side else (label,)
    for shape, label in _ARKIT.items()
    for side in (("Left", "Right") if "{}" in shape else ("",))
}


def check_derivable(formats: Sequence[AUFormat], chosen: Iterable[str]) -> None:
    """Raise ValueError for "blink" without a format that has AU43, and for "arkit" without a continuous one."""
    if "blink" in chosen and not any(sources("AU43", fmt) for fmt in formats):
        raise ValueError("--derive blink needs a format with AU43, such as feafa.")
    if "arkit" in chosen and all(fmt.scale != "continuous" for fmt in formats):
        raise ValueError("--derive arkit needs a continuous format, such as feafa.")


Cell = Callable[[Mapping], float | int | None]  # of a face, as `Readings` gives it


class Derived:
    """The derived columns of a run.

    Args:
        readings: faces as `Readings` gives them; iterated once for blinks.
        formats: that the faces were read in.
        chosen: any of `SETS`.

    Attributes:
        columns: their names, without those that the formats give already.
        blinks: (file, face_id) -> (number of blinks, seconds in which they were counted), for people in videos whose
            blinks can be told.
    """

    def __init__(self, readings: Iterable[Mapping], formats: Sequence[AUFormat], chosen: Iterable[str]):
        self.formats, chosen = formats, set(chosen)
        self.blinks: dict[tuple[str, int], tuple[int, float]] = {}
        self.frames: dict[tuple[str, int, int], int | None] = {}  # (file, face_id, frame) -> whether it is in a blink
        closed = self._presence("AU43", every=True)
        if closed is not None and chosen & {"blink", "openface"}:
            self._find_blinks(readings, closed)
        cells: dict[str, Cell] = {}
        if "blink" in chosen:
            cells[BLINK] = self._blink
        if "openface" in chosen:
            cells |= self._openface()
        if "arkit" in chosen:
            cells |= {shape: self._strength(labels) for shape, labels in ARKIT.items()}
        taken = au_columns(formats)
        self.cells = {name: cell for name, cell in cells.items() if name not in taken}
        self.columns = tuple(self.cells)

    def add(self, face: dict) -> None:
        """Add `derived`, column -> value or None, to a face."""
        if self.cells and face["face_id"] is not None:
            face["derived"] = {name: cell(face) for name, cell in self.cells.items()}

    def _openface(self) -> dict[str, Cell]:
        cells = {}
        for label in OPENFACE:
            name = openface_label(label)
            cells[f"{name}_c"] = self._blink if label == "AU45" else self._presence(label) or _unknown
            if label != "AU28":
                cells[f"{name}_r"] = self._value([label], "intensity") or _unknown
        return cells

    def _read(self, label: str, scales: Sequence[str]) -> tuple[str, list[int]] | None:
        """The first format that determines an AU, and the numbers of the AUs there that do."""
        for scale, fmt in product(scales, self.formats):
            if fmt.scale == scale and (parts := sources(label, fmt)):
                return fmt.name, [fmt.labels.index(part) for part in parts]
        return None

    def _presence(self, label: str, every: bool = False) -> Cell | None:
        """Whether an AU is present, on either side or on `every` side; None if no format has it."""
        found = self._read(label, ("occurrence", "intensity", "continuous"))
        if found is None:
            return None
        name, numbers = found

        def cell(face: Mapping) -> int | None:
            sides = [face["answers"][name]["present"][number] for number in numbers]
            return None if None in sides else int((all if every else any)(sides))

        return cell

    def _value(self, labels: Sequence[str], scale: str) -> Cell | None:
        """The expected value of the first of `labels` that a format of this scale has: of its stronger side."""
        found = next(filter(None, (self._read(label, (scale,)) for label in labels)), None)
        if found is None:
            return None
        name, numbers = found

        def cell(face: Mapping) -> float | None:
            sides = [face["answers"][name]["expected"][number] for number in numbers]
            return None if None in sides else max(sides)

        return cell

    def _strength(self, labels: Sequence[str]) -> Cell:
        """An AU's strength; that of a gaze without a format as the eyes show it, if this face shows them."""
        gaze = next((label for label in labels if label in GAZE), None)
        seen = _unknown if gaze is None else lambda face: face["gaze"] and face["gaze"][gaze]
        return self._value(labels, "continuous") or seen

    def _blink(self, face: Mapping) -> int | None:
        return self.frames.get((face["file"], face["face_id"], face["frame"]))

    def _find_blinks(self, readings: Iterable[Mapping], closed: Cell) -> None:
        tracks: dict[tuple[str, int], list[tuple]] = {}
        for face in readings:
            if face["face_id"] is not None and is_video(Path(face["file"])):
                track = tracks.setdefault((face["file"], face["face_id"]), [])
                track.append((face["frame"], face["time"], closed(face)))
        for person, track in tracks.items():
            frames, times, states = zip(*track, strict=True)
            blinks, count, seconds = find_blinks(times, states)
            self.frames |= {(*person, frame): blink for frame, blink in zip(frames, blinks, strict=True)}
            if seconds:
                self.blinks[person] = (count, seconds)


def _unknown(face: Mapping) -> None:
    return None


def find_blinks(times: Sequence[float], closed: Sequence[int | None]) -> tuple[list[int | None], int, float]:
    """Where a person's eyes blink.

    A blink is a time of at most `LONGEST_BLINK` with both eyes closed, between frames in which they are open. Unknown
    are frames of a closure whose beginning or end is not seen, and all frames below `LOWEST_RATE`.

    Args:
        times: (T,) seconds, rising, of the frames that show the person.
        closed: (T,) whether both eyes are closed; None where that is unknown.

    Returns:
        (T,) 1 in a blink, 0 elsewhere, None where unknown; the number of blinks; the seconds of the known frames.
    """
    gaps = np.diff(times) if len(times) > 1 else np.array([np.inf])
    usual = np.median(gaps)
    step = float(gaps[gaps <= 1.5 * usual].mean())  # more exact than the median of rounded times
    if step * LOWEST_RATE > 1.01:
        return [None] * len(times), 0, 0.0
    blinks: list[int | None] = []
    count = 0
    for segment in _unbroken(times, 2.1 * usual):
        runs = [list(run) for _, run in groupby(segment, key=lambda frame: closed[frame])]
        for number, run in enumerate(runs):
            state = closed[run[0]]
            if state:
                seen = 0 < number < len(runs) - 1 and closed[run[0] - 1] == closed[run[-1] + 1] == 0
                lasts = times[run[-1]] - times[run[0]] + step
                state = int(lasts <= LONGEST_BLINK + 1e-3) if seen else None
                count += bool(state)
            blinks += [state] * len(run)
    return blinks, count, step * sum(blink is not None for blink in blinks)


def _unbroken(times: Sequence[float], longest: float) -> Iterator[range]:
    """The frames in stretches without a gap above `longest` seconds."""
    ends = [frame for frame in range(1, len(times)) if times[frame] - times[frame - 1] > longest]
    for start, end in zip([0, *ends], [*ends, len(times)], strict=True):
        yield range(start, end)
