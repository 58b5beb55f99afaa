"""What a run has read, face by face, from its journal: who is who in a video, and what went wrong."""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from au_llava.au_faces.follow import follow
from au_llava.au_faces.media import is_video
from au_llava.au_recognition.runner import Plan
from au_llava.au_runs.journal import Journal


class Readings:
    """The faces of a finished run, in the order of its plan.

    Iterating gives one dict per face: `file`, `frame`, `time`, `face_id`, where the face is (`eyes`, `box`,
    `confidence`) and its `answers`, `contradictions` and `problems` (see `reading_of`). A frame of a video without a
    face gives one dict too, with `face_id` None, so that the time axis stays whole; a picture without a face gives
    none.
    """

    def __init__(self, journal: Journal, plan: Plan):
        self.journal, self.plan = journal, plan
        self.face_ids = self._face_ids()

    def entries(self) -> Iterator[dict]:
        """The entries of the journal, in the order of the plan."""
        return (self.journal[key] for key in sorted(self.journal))

    def __iter__(self) -> Iterator[dict]:
        for entry in self.entries():
            for frame, ids in zip(entry["frames"], self.face_ids[entry["part"], entry["chunk"]], strict=True):
                place = {"file": frame["file"], "frame": frame["frame"], "time": frame["time"]}
                for face, face_id in sorted(zip(frame["faces"], ids, strict=True), key=lambda pair: pair[1]):
                    yield {**place, **face, "face_id": face_id}
                if self.plan.is_video(entry["part"]) and not frame["faces"]:
                    yield {**place, "face_id": None}

    def _face_ids(self) -> dict[tuple[int, int], list[list[int]]]:
        """(part, chunk) -> per frame the `face_id` of its faces: their order in a picture, `follow`ed in a video."""
        face_ids = {}
        for part, entries in groupby(self.entries(), itemgetter("part")):
            if self.plan.is_video(part):
                lengths: dict[int, int] = {}  # chunk -> its number of frames
                numbers = iter(list(follow(_looks(entries, lengths))))
                face_ids |= {(part, chunk): list(islice(numbers, length)) for chunk, length in lengths.items()}
            else:
                face_ids |= {(part, entry["chunk"]): list(map(_ordered, entry["frames"])) for entry in entries}
        return face_ids

    def problems(self) -> dict[str, str]:
        """File -> what is wrong with it: damaged, no face in it, or no row in the table of faces."""
        problems, with_face, files, count = {}, set(), [], Counter()
        for entry in self.entries():
            frames = entry["frames"]
            source = str(self.plan.parts[entry["part"]])  # of a video
            files += [source] if self.plan.is_video(entry["part"]) else [frame["file"] for frame in frames]
            with_face |= {frame["file"] for frame in frames if frame["faces"]}
            said = [*((frame["file"], frame["problem"]) for frame in frames), (source, entry["problem"])]
            problems |= {file: problem for file, problem in said if problem and file not in problems}
            count.update(frame["file"] for frame in frames if frame["problem"])
        problems |= {file: f"{problems[file]} ({frames} such frames)" for file, frames in count.items() if frames > 1}
        without_face = [file for file in files if file not in with_face and file not in problems]
        turned = "" if self.plan.max_yaw is None else f" turned by at most {self.plan.max_yaw:g} degrees to a side"
        return problems | {file: f"{file} shows no face{turned}." for file in without_face}

    def turned(self) -> int:
        """How many faces were left out, since they are turned too far to a side."""
        return sum(frame["turned"] for entry in self.entries() for frame in entry["frames"])


def first_faces(faces: Iterable[dict], most: int) -> list[dict]:
    """The faces that are drawn: the first `most` of those in pictures, not videos."""
    return list(islice((face for face in faces if not is_video(Path(face["file"]))), most))


def _looks(entries: Iterable[dict], lengths: dict[int, int]) -> Iterator[tuple[float, list[tuple]]]:
    """The frames of a video's chunks, as `follow` takes them; `lengths` gets how many each chunk has."""
    for entry in entries:
        lengths[entry["chunk"]] = len(entry["frames"])
        for frame in entry["frames"]:
            yield frame["time"], list(map(_look, frame["faces"]))


def _ordered(frame: dict) -> list[int]:
    """The numbers of the faces in a picture: their order, where the user gave none."""
    return [order if face["face_id"] is None else face["face_id"] for order, face in enumerate(frame["faces"])]


def _look(face: dict) -> tuple:
    """(box, look, number given by the user or None), as `follow` takes them."""
    return face["box"], np.frombuffer(base64.b64decode(face["look"]), np.uint8), face["face_id"]
