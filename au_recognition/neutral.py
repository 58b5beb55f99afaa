"""The change of a face against the neutral face of its person."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_recognition.tables import measure


class Neutral:
    """The neutral face of every person, and the change against it: measure - neutral measure, AU by AU.

    The measure is the expected strength (intensity and continuous formats) or the probability of presence (occurrence).
    The neutral measure depends on `neutral`:

    - "median": the person's median over all frames of the video. As in OpenFace's dynamic models, this takes a face to
      be at rest most of the time.
    - a number: the person's value in that frame of the video; unknown for a person who is not in that frame.
    - the answers of a neutral picture: its values, for everyone.

    `unknown` holds the files that show faces, but none with a neutral measure; their changes are unknown.

    The change is not clipped: below zero, an AU is weaker than at rest.

    Args:
        faces: as `Readings` gives them.
        neutral: as above.
    """

    def __init__(self, faces: Iterable[dict], formats: Sequence[AUFormat], neutral: str | int | Mapping):
        self.formats = formats
        self.everyone = self._measures(neutral) if isinstance(neutral, Mapping) else {}
        measures, shown = defaultdict(list), {}
        if not self.everyone:
            for face in faces:
                if face["face_id"] is None:
                    continue
                shown[face["file"]] = None
                if neutral in ("median", face["frame"]):
                    measures[face["file"], face["face_id"]].append(self._measures(face["answers"]))
        known = {file for file, _ in measures}
        self.unknown = [file for file in shown if file not in known]
        self.by_person = {
            person: {fmt.name: np.median([frame[fmt.name] for frame in frames], axis=0) for fmt in formats}
            for person, frames in measures.items()
        }

    def add_change(self, face: dict) -> None:
        """Add a list `change` to each format's answer of a face; None where the change is unknown."""
        if face["face_id"] is None:
            return
        rest = self.by_person.get((face["file"], face["face_id"]), self.everyone)
        for name, values in self._measures(face["answers"]).items():
            change = values - rest.get(name, np.nan)
            face["answers"][name]["change"] = [None if np.isnan(value) else round(float(value), 4) for value in change]

    def _measures(self, answers: Mapping) -> dict[str, np.ndarray]:
        """Format name -> (AUs,), NaN where unread."""
        return {fmt.name: np.array(answers[fmt.name][measure(fmt)], float) for fmt in self.formats}
