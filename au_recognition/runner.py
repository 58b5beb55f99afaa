"""Runs the model over pictures and videos, keeps what was read, and goes on where a run stopped.

Pictures are read in chunks of a batch, videos in chunks of so many frames. What is read of a chunk depends on the chunk
alone, and chunks are formed before they are dealt to processes: any number of processes gives the same numbers, and so
does a run that was killed and goes on. What is finished is kept chunk by chunk in a folder of JSON Lines files, one per
process; who is who in a video (`face_id`) is worked out from them afterwards.
"""

import base64
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from au_llava.au_faces.crop import Face, crop_face
from au_llava.au_faces.follow import follow, look_of
from au_llava.au_faces.media import DamagedVideo, Frame, count_frames, is_video, video_frames
from au_llava.image_processing_au_llava import load_face_image

AHEAD = 2  # chunks whose faces are found while the model reads another
WORKERS = 4  # threads that do it
BAND = (0.1, 0.9)  # quantiles of the distribution that bound the band of a reading: 80 % of the probability


@dataclass(frozen=True)
class Plan:
    """What a run reads and how; equal plans give equal numbers.

    Attributes:
        parts: lists of pictures, one batch each, and videos, in the order of the output.
        find: (image, file, number of the video's frame or None) -> faces, see au_faces/detect.py.
        size: side of a face crop in pixels. formats: names or `AUFormat`s. distributions: whether to keep them whole.
    """

    parts: tuple[tuple[Path, ...] | Path, ...]
    find: Callable[[Image.Image, Path, int | None], list[Face]]
    size: int
    formats: tuple
    decoding: str
    batch_size: int
    every: int = 1
    fps: float | None = None
    distributions: bool = False

    def frames_of(self, part: tuple[Path, ...] | Path) -> Iterator[Frame]:
        if isinstance(part, Path):
            return video_frames(part, self.every, self.fps)
        return map(Frame, part)

    def count(self, part: tuple[Path, ...] | Path) -> int:
        return count_frames(part, self.every, self.fps) if isinstance(part, Path) else len(part)


def parts_of(files: Sequence[Path], batch_size: int) -> tuple[tuple[Path, ...] | Path, ...]:
    """Files in their order: videos one by one, the pictures between them in groups of a batch."""
    parts: list = []
    for file in files:
        if is_video(file):
            parts.append(file)
        elif parts and isinstance(parts[-1], list) and len(parts[-1]) < batch_size:
            parts[-1].append(file)
        else:
            parts.append([file])
    return tuple(tuple(part) if isinstance(part, list) else part for part in parts)


def read(model, processor, plan: Plan, keep: Path, identity: Mapping, progress: bool = True) -> None:
    """Read everything that is planned and not yet kept. With several accelerate processes each takes a share.

    Args:
        keep: the folder where finished chunks are kept; all processes must see the same one.
        identity: what the numbers depend on; a folder kept for another is refused.

    Raises:
        ValueError: `keep` belongs to another run.
        OSError: `keep` cannot be written.
    """
    state = PartialState()
    keep.mkdir(parents=True, exist_ok=True)
    kept = Journal(keep, identity)
    state.wait_for_everyone()  # all have read what is kept before anyone writes
    processes = state.num_processes
    by_part = len(plan.parts) >= processes  # else a video is shared frame by frame, decoded by everyone

    def is_mine(part, chunk):
        return (part if by_part else part + chunk) % processes == state.process_index

    open_parts = [part for part in range(len(plan.parts)) if not kept.is_complete(part)]
    open_parts = [part for part in open_parts if not by_part or is_mine(part, 0)]
    pool = ThreadPoolExecutor(WORKERS)
    with (
        _progress(progress and state.is_main_process) as bar,
        _Writer(keep / f"process-{state.process_index:05d}.jsonl", identity) as write,
    ):
        total = sum(plan.count(plan.parts[part]) for part in open_parts) / (1 if by_part else processes)
        task = bar.add_task("reading faces", total=round(total))
        try:
            for line, frames in _prepared(plan, open_parts, kept, is_mine, pool):
                _add_readings(model, processor, plan, frames)
                for face in (face for frame in frames for face in frame["faces"]):
                    del face["crop"]
                write({**line, "frames": frames})
                bar.advance(task, len(frames))
        finally:
            pool.shutdown(cancel_futures=True)
    state.wait_for_everyone()


def _prepared(plan: Plan, open_parts, kept, is_mine, pool) -> Iterator[tuple[dict, list[dict]]]:
    """Own unfinished chunks with their faces cropped, a few ahead of the model: (key of the line, frames)."""
    waiting = deque()
    for part in open_parts:
        for chunk, (frames, last, problem) in enumerate(_grouped(plan.frames_of(plan.parts[part]), plan.batch_size)):
            if not is_mine(part, chunk) or (part, chunk) in kept.places:
                continue
            line = {"part": part, "chunk": chunk, "last": last, "problem": problem}
            waiting.append((line, [pool.submit(_faces_of, plan, frame) for frame in frames]))
            if len(waiting) > AHEAD:
                line, futures = waiting.popleft()
                yield line, [future.result() for future in futures]
    for line, futures in waiting:
        yield line, [future.result() for future in futures]


def _grouped(frames: Iterator[Frame], size: int) -> Iterator[tuple[list[Frame], bool, str | None]]:
    """Chunks of `size` frames, whether it is the last, and what is wrong with the video."""
    chunk, problem = [], None
    try:
        for frame in frames:
            if len(chunk) == size:
                yield chunk, False, None
                chunk = []
            chunk.append(frame)
    except DamagedVideo as error:
        problem = str(error)
    yield chunk, True, problem


def _faces_of(plan: Plan, frame: Frame) -> dict:
    """A frame as it is kept, but for what the model reads."""
    kept = {"file": str(frame.file), "frame": frame.number, "time": round(frame.time, 4), "faces": [], "problem": None}
    try:
        image = load_face_image(frame.file) if frame.image is None else frame.image
        for face in plan.find(image, frame.file, None if frame.image is None else frame.number):
            crop = image if face.eyes is None else crop_face(image, face.eyes, plan.size)
            kept["faces"].append(
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
        kept["problem"] = str(error)
    return kept


def read_frame(model, processor, plan: Plan, frame: Frame) -> dict:
    """One picture and what is read of it, as it is kept; every face has its `crop` besides."""
    kept = _faces_of(plan, frame)
    _add_readings(model, processor, plan, [kept])
    return kept


def _add_readings(model, processor, plan: Plan, frames: Sequence[dict]) -> None:
    """Put beside the faces of `frames` what the model reads off their crops, in one batch."""
    faces = [face for frame in frames for face in frame["faces"]]
    if faces:
        crops = [face["crop"] for face in faces]
        words = {"formats": plan.formats, "decoding": plan.decoding, "batch_size": plan.batch_size}
        for face, result in zip(faces, model.recognize(processor, crops, **words), strict=True):
            face |= reading_of(result, plan.distributions)


def read_picture(model, processor, plan: Plan, path: Path) -> dict:
    """The answers for the largest face of one picture, as `reading_of` gives them.

    Raises:
        ValueError: it cannot be read, or shows no face.
    """
    frame = read_frame(model, processor, plan, Frame(path))
    if frame["problem"] or not frame["faces"]:
        raise ValueError(frame["problem"] or f"{path} shows no face.")
    return frame["faces"][0]["answers"]


def reading_of(result, distributions: bool = False) -> dict:
    """An `AUResult` as it is kept: per format lists in the order of its labels."""
    answers = {}
    for name, answer in result.items():
        readings = list(answer.values())
        kept = {
            key: [_rounded(getattr(reading, key)) for reading in readings]
            for key in ("value", "expected", "probability", "present")
        }
        if all(reading.distribution is not None for reading in readings):
            shares = np.array([reading.distribution for reading in readings])  # (AUs, values)
            numbers = np.array(answer.format.value_numbers)
            for key, quantile in zip(("low", "high"), BAND, strict=True):
                kept[key] = numbers[(shares.cumsum(axis=1) >= quantile - 1e-6).argmax(axis=1)].tolist()
            if distributions:
                kept["distribution"] = shares.round(4).tolist()
        answers[name] = kept
    problems = [problem for answer in result.values() for problem in answer.problems]
    return {"answers": answers, "contradictions": [str(each) for each in result.contradictions], "problems": problems}


def _rounded(value):
    return round(value, 4) if isinstance(value, float) else value


class Journal:
    """What is kept of a run, in the order of its plan. A line that a kill cut off is left out.

    Iterating gives one dict per chunk: `part`, `chunk`, `last`, `problem` and its `frames`.

    Raises:
        ValueError: the folder belongs to another run.
    """

    def __init__(self, keep: Path, identity: Mapping):
        self.places: dict[tuple[int, int], tuple[Path, int]] = {}
        self.lengths: dict[int, int] = {}  # part -> chunks, once its end is known
        identity = json.loads(json.dumps(identity))
        for path in sorted(keep.glob("process-*.jsonl")):
            with path.open("rb") as file:
                first = file.readline()
                if not first.endswith(b"\n"):
                    continue
                before = json.loads(first)["identity"]
                if before != identity:
                    differing = ", ".join(key for key in identity if before.get(key) != identity[key])
                    raise ValueError(
                        f"{keep} holds what another run has read (other {differing}): repeat that command, choose "
                        "another --out, or delete the folder."
                    )
                place = file.tell()
                while (line := file.readline()).endswith(b"\n"):
                    read = json.loads(line)
                    self.places[read["part"], read["chunk"]] = (path, place)
                    if read["last"]:
                        self.lengths[read["part"]] = read["chunk"] + 1
                    place = file.tell()

    def is_complete(self, part: int) -> bool:
        return part in self.lengths and all((part, chunk) in self.places for chunk in range(self.lengths[part]))

    def __iter__(self) -> Iterator[dict]:
        for key in sorted(self.places):
            path, place = self.places[key]
            with path.open("rb") as file:
                file.seek(place)
                yield json.loads(file.readline())


def face_ids(journal: Journal, plan: Plan) -> dict[tuple[int, int], list[list[int]]]:
    """(part, chunk) -> per frame the `face_id` of its faces: their order in a picture, `follow`ed in a video."""
    ids, videos = {}, {}
    for line in journal:
        key = (line["part"], line["chunk"])
        if isinstance(plan.parts[line["part"]], Path):
            frames = [
                (
                    frame["time"],
                    [
                        (face["box"], np.frombuffer(base64.b64decode(face["look"]), np.uint8), face["face_id"])
                        for face in frame["faces"]
                    ],
                )
                for frame in line["frames"]
            ]
            videos.setdefault(line["part"], []).append((key, frames))
        else:
            ids[key] = [
                [number if face["face_id"] is None else face["face_id"] for number, face in enumerate(frame["faces"])]
                for frame in line["frames"]
            ]
    for chunks in videos.values():
        followed = iter(follow([frame for _, frames in chunks for frame in frames]))
        ids |= {key: [next(followed) for _ in frames] for key, frames in chunks}
    return ids


class _Writer:
    """Appends lines to this process's file, each whole or, if a kill or a full disk cuts it off, to be left out."""

    def __init__(self, path: Path, identity: Mapping):
        self.path, self.identity = path, identity

    def __enter__(self):
        if self.path.exists():  # take away a line that was cut off
            content = self.path.read_bytes()
            if not content.endswith(b"\n"):
                with self.path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)
        self.file = self.path.open("ab")
        if self.file.tell() == 0:
            self({"identity": self.identity})
        return self

    def __call__(self, line: Mapping) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()

    def __exit__(self, *_):
        self.file.close()


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.completed / task.elapsed:.1f} images/s" if task.elapsed else "")


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
