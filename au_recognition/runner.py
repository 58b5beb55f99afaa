"""Reading: runs the model over pictures and videos, writes a journal, and resumes where a run stopped.

Pictures are read in chunks of one batch, videos in chunks of as many frames. The numbers of a chunk depend on nothing
else, and chunks are formed before they are dealt out to processes. So any number of processes gives the same numbers,
and so does a run that was killed and goes on.
"""

import base64
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from au_llava.action_units import AUFormat
from au_llava.au_faces.crop import Face, crop_face
from au_llava.au_faces.follow import look_of
from au_llava.au_faces.media import DamagedVideo, Frame, count_frames, is_video, video_frames
from au_llava.au_runs.journal import Journal
from au_llava.au_runs.processes import processes
from au_llava.au_runs.progress import progress_bar
from au_llava.pictures_au_llava import load_face_image

AHEAD = 2  # chunks whose faces are detected while the model reads another
WORKERS = 4  # threads that detect faces
BAND = (0.1, 0.9)  # quantiles of the distribution that bound the band of a reading: 80 % of the probability
KEY = ("part", "chunk", "last")  # of the entries in the journal


@dataclass(frozen=True)
class Plan:
    """What a run reads and how; equal plans give equal numbers.

    Attributes:
        parts: groups of pictures, one batch each, and videos, in the order of the output.
        find: (image, file, number of the video's frame or None) -> faces, see au_faces/detect.py.
        size: side of a face crop in pixels.
        every, fps: of a video, take one frame of `every`, or `fps` frames per second.
        distributions: whether to store whole distributions.
    """

    parts: tuple[tuple[Path, ...] | Path, ...]
    find: Callable[[Image.Image, Path, int | None], list[Face]]
    size: int
    formats: tuple[AUFormat, ...]
    decoding: str
    batch_size: int
    every: int = 1
    fps: float | None = None
    distributions: bool = False

    def is_video(self, part: int) -> bool:
        return isinstance(self.parts[part], Path)

    def files(self) -> list[Path]:
        return [file for part in self.parts for file in ([part] if isinstance(part, Path) else part)]

    def frames(self, part: int) -> Iterator[Frame]:
        if self.is_video(part):
            return video_frames(self.parts[part], self.every, self.fps)
        return map(Frame, self.parts[part])

    def count(self, part: int) -> int:
        """About how many frames the part has."""
        files = self.parts[part]
        return count_frames(files, self.every, self.fps) if self.is_video(part) else len(files)


def parts_of(files: Sequence[Path], batch_size: int) -> tuple[tuple[Path, ...] | Path, ...]:
    """Files in their order: each video by itself, the pictures between videos in groups of a batch."""
    parts: list = []
    for file in files:
        if is_video(file):
            parts.append(file)
        elif parts and isinstance(parts[-1], list) and len(parts[-1]) < batch_size:
            parts[-1].append(file)
        else:
            parts.append([file])
    return tuple(tuple(part) if isinstance(part, list) else part for part in parts)


def open_journal(folder: Path, identity: Mapping) -> Journal:
    """The journal of a run: an entry per chunk with its `part`, `chunk`, `last`, `problem` and `frames`."""
    return Journal(folder, identity, KEY)


def unfinished_parts(journal: Journal, plan: Plan) -> list[int]:
    """The parts that lack a chunk."""
    lengths = {part: chunk + 1 for part, chunk, last in journal if last}
    chunks = {(part, chunk) for part, chunk, _ in journal}
    return [
        part
        for part in range(len(plan.parts))
        if part not in lengths or any((part, chunk) not in chunks for chunk in range(lengths[part]))
    ]


def read_faces(engine, plan: Plan, folder: Path, identity: Mapping) -> None:
    """Read whatever is planned and not yet in the journal. Several accelerate processes each take a share.

    Args:
        engine: see engines.py.
        folder: of the journal; all processes must see the same one.
        identity: what the numbers depend on; the journal of a run with another one is refused.

    Raises:
        ValueError: `folder` holds another run's journal.
        OSError: `folder` cannot be written.
    """
    state = processes()
    journal = open_journal(folder, identity)
    state.wait_for_everyone()  # all processes have read the journal before one writes
    # With fewer parts than processes, every process decodes a video and takes a share of its frames.
    by_part = len(plan.parts) >= state.num_processes

    def is_mine(part: int, chunk: int) -> bool:
        return (part if by_part else part + chunk) % state.num_processes == state.process_index

    parts = [part for part in unfinished_parts(journal, plan) if not by_part or is_mine(part, 0)]
    chunks = (
        (entry, frames)
        for part in parts
        for entry, frames in _chunks(plan, part)
        if is_mine(part, entry["chunk"]) and tuple(entry[field] for field in KEY) not in journal
    )
    with progress_bar(shown=state.is_main_process) as bar, journal.writer(state.process_index) as write:
        total = sum(map(plan.count, parts)) / (1 if by_part else state.num_processes)
        task = bar.add_task("reading faces", total=round(total))
        with closing(_with_faces(plan, chunks)) as prepared:
            for entry, frames in prepared:
                _add_readings(engine, plan, frames)
                for face in (face for frame in frames for face in frame["faces"]):
                    del face["crop"]
                write({**entry, "frames": frames})
                bar.advance(task, len(frames))
    state.wait_for_everyone()


def _chunks(plan: Plan, part: int) -> Iterator[tuple[dict, list[Frame]]]:
    """The chunks of a part, each with the head of its entry in the journal."""

    def entry(last: bool, problem: str | None = None) -> dict:
        return {"part": part, "chunk": chunk, "last": last, "problem": problem}

    chunk, frames, problem = 0, [], None
    try:
        for frame in plan.frames(part):
            if len(frames) == plan.batch_size:
                yield entry(last=False), frames
                chunk, frames = chunk + 1, []
            frames.append(frame)
    except DamagedVideo as error:
        problem = str(error)
    yield entry(last=True, problem=problem), frames


def _with_faces(plan: Plan, chunks: Iterator[tuple[dict, list[Frame]]]) -> Iterator[tuple[dict, list[dict]]]:
    """Chunks with their faces detected and cropped, a few chunks ahead of the model."""
    pool = ThreadPoolExecutor(WORKERS)
    waiting = deque()
    try:
        for entry, frames in chunks:
            waiting.append((entry, [pool.submit(_detected, plan, frame) for frame in frames]))
            if len(waiting) > AHEAD:
                entry, futures = waiting.popleft()
                yield entry, [future.result() for future in futures]
        for entry, futures in waiting:
            yield entry, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _detected(plan: Plan, frame: Frame) -> dict:
    """A frame as the journal holds it, before the model reads it; each face has its `crop` besides."""
    entry = {"file": str(frame.file), "frame": frame.number, "time": round(frame.time, 4), "faces": [], "problem": None}
    try:
        image = load_face_image(frame.file) if frame.image is None else frame.image
        for face in plan.find(image, frame.file, None if frame.image is None else frame.number):
            crop = image if face.eyes is None else crop_face(image, face.eyes, plan.size)
            entry["faces"].append(
                {
                    "eyes": None if face.eyes is None else np.round(face.eyes, 2).tolist(),
                    "box": np.round(face.box, 2).tolist(),
                    "confidence": face.confidence and round(face.confidence, 4),
                    "face_id": face.face_id,
                    "look": base64.b64encode(look_of(crop).tobytes()).decode(),
                    "crop": crop,
                }
            )
    except (ValueError, OSError) as error:
        entry["problem"] = str(error)
    return entry


def _add_readings(engine, plan: Plan, frames: Sequence[dict]) -> None:
    """Let the engine read the faces of `frames` in one batch, and add the answers to them."""
    faces = [face for frame in frames for face in frame["faces"]]
    if faces:
        crops = [face["crop"] for face in faces]
        results = engine.recognize(crops, plan.formats, plan.decoding, plan.batch_size)
        for face, result in zip(faces, results, strict=True):
            face |= reading_of(result, plan.distributions)


def read_frame(engine, plan: Plan, frame: Frame) -> dict:
    """One picture as the journal holds it; each face has its `crop` besides."""
    entry = _detected(plan, frame)
    _add_readings(engine, plan, [entry])
    return entry


def read_picture(engine, plan: Plan, path: Path) -> dict:
    """The answers for the largest face of one picture, as `reading_of` gives them.

    Raises:
        ValueError: the picture cannot be read, or shows no face.
    """
    frame = read_frame(engine, plan, Frame(path))
    if frame["problem"] or not frame["faces"]:
        raise ValueError(frame["problem"] or f"{path} shows no face.")
    return frame["faces"][0]["answers"]


def reading_of(result, distributions: bool = False) -> dict:
    """An `AUResult` as the journal holds it: `answers` (per format lists in the order of its labels), `contradictions`
    and `problems`."""
    answers = {}
    for name, answer in result.items():
        readings = list(answer.values())
        lists = {
            key: [_rounded(getattr(reading, key)) for reading in readings]
            for key in ("value", "expected", "probability", "present")
        }
        if all(reading.distribution is not None for reading in readings):
            shares = np.array([reading.distribution for reading in readings])  # (AUs, values)
            numbers = np.array(answer.format.value_numbers)
            for key, quantile in zip(("low", "high"), BAND, strict=True):
                lists[key] = numbers[(shares.cumsum(axis=1) >= quantile - 1e-6).argmax(axis=1)].tolist()
            if distributions:
                lists["distribution"] = shares.round(4).tolist()
        answers[name] = lists
    problems = [problem for answer in result.values() for problem in answer.problems]
    return {"answers": answers, "contradictions": list(map(str, result.contradictions)), "problems": problems}


def _rounded(value):
    return round(value, 4) if isinstance(value, float) else value
