"""Reading: runs the model over pictures and videos, writes a journal, and resumes where a run stopped.

Pictures are read in chunks of one batch, videos in chunks of as many frames. The numbers of a chunk depend on nothing
else (faces are followed within it), and chunks are formed before they are dealt out to processes. So any number of
processes gives the same numbers, and so does a run that was killed and goes on.

A thread decodes, finds faces and crops them while another reads; of a video, one frame at a time is held in memory.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from au_llava.action_units import AUFormat
from au_llava.au_faces.crop import Face
from au_llava.au_faces.follow import look_of
from au_llava.au_faces.gaze import read_gaze
from au_llava.au_faces.media import DamagedVideo, Frame, count_frames, is_video, video_frames
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import with_pose
from au_llava.au_runs.ahead import ahead
from au_llava.au_runs.journal import Journal
from au_llava.au_runs.processes import processes
from au_llava.au_runs.progress import progress_bar
from au_llava.onnx_au_llava import usable_cores

AHEAD = 2  # chunks whose faces are found while the model reads another
MOST_WORKERS = 4  # threads that find faces in pictures, one per core
BAND = (0.1, 0.9)  # quantiles of the distribution that bound the band of a reading: 80 % of the probability
KEY = ("part", "chunk", "last")  # of the entries in the journal

Find = Callable[[Photo, Frame], list[Face]]  # of a picture, or of a video's next frame


@dataclass(frozen=True)
class Plan:
    """What a run reads and how; equal plans give equal numbers.

    Attributes:
        parts: groups of pictures, one batch each, and videos, in the order of the output.
        finder: gives what finds the faces, anew for each picture and each chunk of a video.
        size: side of a face crop in pixels.
        every, fps: of a video, take one frame of `every`, or `fps` frames per second.
        distributions: whether to store whole distributions.
        gaze: whether to read where the eyes look.
        max_yaw: degrees; faces turned further to a side, or by an unknown angle, are left out.
    """

    parts: tuple[tuple[Path, ...] | Path, ...]
    finder: Callable[[], Find]
    size: int
    formats: tuple[AUFormat, ...]
    decoding: str
    batch_size: int
    every: int = 1
    fps: float | None = None
    distributions: bool = False
    max_yaw: float | None = None
    gaze: bool = False

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
    done = {(part, chunk) for part, chunk, _ in journal}

    def is_wanted(part: int, chunk: int) -> bool:
        return is_mine(part, chunk) and (part, chunk) not in done

    with progress_bar(shown=state.is_main_process) as bar, journal.writer(state.process_index) as write:
        total = sum(map(plan.count, parts)) / (1 if by_part else state.num_processes)
        task = bar.add_task("reading faces", total=round(total))
        with closing(ahead(with_faces(plan, parts, is_wanted), AHEAD)) as chunks:
            for entry, frames in chunks:
                _add_readings(engine, plan, frames)
                for face in (face for frame in frames for face in frame["faces"]):
                    del face["crop"]
                write({**entry, "frames": frames})
                bar.advance(task, len(frames))
    state.wait_for_everyone()


def with_faces(
    plan: Plan, parts: Sequence[int], is_wanted: Callable[[int, int], bool]
) -> Iterator[tuple[dict, list[dict]]]:
    """The wanted chunks, each as the head of its entry in the journal and its frames (see `_detected`)."""
    with ThreadPoolExecutor(min(MOST_WORKERS, usable_cores())) as pool:
        for part in parts:
            if plan.is_video(part):
                yield from _chunks(plan, part, is_wanted)
            elif is_wanted(part, 0):
                frames = pool.map(lambda frame: _detected(plan, frame, plan.finder()), plan.frames(part))
                yield _head(part, 0, last=True), list(frames)


def _chunks(plan: Plan, part: int, is_wanted: Callable[[int, int], bool]) -> Iterator[tuple[dict, list[dict]]]:
    """The wanted chunks of a video."""
    chunk, count, frames, find, problem = 0, 0, [], plan.finder(), None
    try:
        for frame in plan.frames(part):
            if count == plan.batch_size:
                if is_wanted(part, chunk):
                    yield _head(part, chunk, last=False), frames
                chunk, count, frames, find = chunk + 1, 0, [], plan.finder()
            count += 1
            if is_wanted(part, chunk):
                frames.append(_detected(plan, frame, find))
    except DamagedVideo as error:
        problem = str(error)
    if is_wanted(part, chunk):
        yield _head(part, chunk, last=True, problem=problem), frames


def _head(part: int, chunk: int, last: bool, problem: str | None = None) -> dict:
    return {"part": part, "chunk": chunk, "last": last, "problem": problem}


def _detected(plan: Plan, frame: Frame, find: Find) -> dict:
    """A frame as the journal holds it, before the model reads it; each face has its `crop` besides."""
    entry = {"file": str(frame.file), "frame": frame.number, "time": round(frame.time, 4), "faces": [], "problem": None}
    entry["turned"] = 0  # faces that were left out
    try:
        photo = Photo(frame.file if frame.image is None else frame.image)
        for face in find(photo, frame):
            if face.points is None:  # no detector found it
                face = with_pose(photo, face)
            if not _is_read(face, plan.max_yaw):
                entry["turned"] += 1
                continue
            gaze = read_gaze(photo, face) if plan.gaze else None
            crop = photo.whole() if face.eyes is None else photo.crop(face.eyes, plan.size)
            entry["faces"].append(
                {
                    "eyes": None if face.eyes is None else np.round(face.eyes, 2).tolist(),
                    "box": np.round(face.box, 2).tolist(),
                    "confidence": face.confidence and round(face.confidence, 4),
                    "face_id": face.face_id,
                    "pose": None if face.pose is None else np.round(face.pose, 4).tolist(),
                    "gaze": gaze and {label: round(value, 4) for label, value in gaze.items()},
                    "look": base64.b64encode(look_of(crop).tobytes()).decode(),
                    "crop": crop,
                }
            )
    except (ValueError, OSError) as error:
        entry["problem"] = str(error)
    return entry


def _is_read(face: Face, max_yaw: float | None) -> bool:
    return max_yaw is None or (face.pose is not None and abs(np.degrees(face.pose[1])) <= max_yaw)


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
    entry = _detected(plan, frame, plan.finder())
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
