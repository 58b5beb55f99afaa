"""Reading the AUs of every record, in any number of processes, with a journal to go on from after a kill.

The result for an image depends only on the image and its batch, and batches are formed before they are dealt to
processes. So any number of processes gives the same numbers, and so does a run that was killed and started again. It
reads pictures again that are no longer those that it had read, such as after another crop.
"""

import hashlib
import json
import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path

import datasets
import numpy as np

from au_llava.action_units import get_format
from au_llava.au_datasets.records import KEY, content_of, group_by_image
from au_llava.au_evaluation.rows import KEYS, READ, unread
from au_llava.au_runs.files import replacing
from au_llava.au_runs.formats import as_stored
from au_llava.au_runs.journal import Journal
from au_llava.au_runs.processes import gathered, processes
from au_llava.au_runs.progress import progress_bar
from au_llava.calibration_au_llava import with_prior

UNREADABLE = "image could not be read"
AHEAD = 4  # batches whose images are decoded, by as many threads, while the engine reads another
PICTURE = "picture"  # key of the journal's entries: the content of the picture that was read
NUMBERS = attrgetter("value", *READ[1:])  # of an AUReading, in the order of READ

Image = dict[str, int]  # an image of the records: format -> row
Batch = tuple[tuple[str, ...], list[Image]]  # the formats that its images are annotated in, its images


def predict(
    engine,
    records: datasets.Dataset,
    decoding: str = "slots",
    batch_size: int = 16,
    progress: bool = False,
    distributions: bool = False,
    keep: Path | None = None,
    timing: dict | None = None,
    formats: tuple[str, ...] | None = None,
) -> list[dict]:
    """Read every record's image in the record's format; formats of one image share one pass.

    With several accelerate processes each takes a share and all get the whole result.

    Args:
        engine: see au_runs/engines.py.
        records: see records.py.
        batch_size: images per forward pass.
        progress: whether to show a progress bar.
        distributions: whether to return them too; they take much memory.
        keep: a folder with the journal: finished batches are taken from it and added to it, if their pictures are
            still the same. Default: no journal.
        timing: gets "seconds", "images" and "waited_seconds" (for images to be decoded) of this process.
        formats: ask for these formats instead of the record's own, one row for each; `values` and so on then follow
            the asked format, and `asked` names it.

    Returns:
        one dict per record, in the order of `records`: the record's key (`dataset`, `subject`, `clip`, `frame`,
        `format`), `row` (its index in `records`), `asked` (the format asked for), `references`, `values`,
        `expected`, `median`, `probability`, `present` (lists in the format's label order, NaN where unread), `text`,
        `problems` (such as an image that could not be read), `contradictions` (those where this format finds an AU
        present) and, if asked for, `distribution` (AUs, values).

    Raises:
        ValueError: `keep` holds the journal of another evaluation.
    """
    state = processes()
    columns = records.select_columns([*KEYS, "values"])[:]
    batches = _batches(records, batch_size)
    journal = {}
    if keep is not None:
        identity = {
            "engine": engine.name,
            "checkpoint": engine.fingerprint(),
            "calibration": engine.calibration,
            "mirror_images": engine.mirror_images,
            "records": hashlib.sha256(json.dumps([columns[key] for key in (*KEYS, "values")]).encode()).hexdigest(),
            "decoding": decoding,
            "batch_size": batch_size,
            "asked": formats,
            "formats": [as_stored(get_format(name)) for name in formats or sorted(set(columns["format"]))],
        }
        journal = Journal(keep, identity, ("row", "asked", PICTURE))
    state.wait_for_everyone()  # all have read the journal before anyone writes
    stored = _stored_pictures(records)
    rows, unfinished, started = [], [], {row for row, *_ in journal}
    for batch in batches:
        keys = []
        if started.issuperset(map(_first_row, batch[1])):  # otherwise nothing is gained by hashing its pictures
            keys = _journal_keys(batch, formats, stored)
        if not (keys and all(key in journal for key in keys)):  # the result depends on the batch: read all of it again
            unfinished.append(batch)
        elif state.is_main_process:
            rows += [{name: value for name, value in journal[key].items() if name != PICTURE} for key in keys]
    waited, start = 0.0, time.perf_counter()
    share = unfinished[state.process_index :: state.num_processes]
    with (
        progress_bar(shown=progress and state.is_main_process) as bar,
        journal.writer(state.process_index) if keep is not None else nullcontext(lambda row: None) as write,
    ):
        total = sum(len(images) for _, images in share)
        task = bar.add_task("reading faces", total=total)
        decoded = _decoded(stored, [images for _, images in share], keep is not None)
        for own_formats, images in share:
            before = time.perf_counter()
            faces, pictures = next(decoded)
            waited += time.perf_counter() - before
            answers = _answers(engine, faces, formats or own_formats, decoding, batch_size)
            for image, face, picture, answer in zip(images, faces, pictures, answers, strict=True):
                for name, row in image.items():
                    for asked in formats or (name,):
                        read = _unreadable(asked, str(face)) if answer is None else _read(answer, asked, distributions)
                        key = {column: columns[column][row] for column in KEYS}
                        rows.append({**key, "row": row, "asked": asked, "references": columns["values"][row], **read})
                        if answer is not None:  # otherwise it may be there when the run is repeated
                            write({**rows[-1], PICTURE: picture})
            bar.advance(task, len(images))
    if timing is not None:
        timing |= {"seconds": time.perf_counter() - start, "images": total, "waited_seconds": waited}
    return sorted(gathered(rows), key=lambda row: row["row"])


def write_predictions(folder: Path, rows: Sequence[dict]) -> None:
    """Write what `predict` returned as predictions.parquet of the folder."""
    with replacing(folder / "predictions.parquet") as unfinished:
        datasets.Dataset.from_list(rows).to_parquet(unfinished)


def report_unreadable(rows: Sequence[dict]) -> None:
    """Say on stderr how many images `predict` could not read.

    Raises:
        ValueError: it could read none.
    """
    images = {tuple(row[key] for key in KEY): row["problems"] for row in rows}
    problems = [problem for of_image in images.values() for problem in of_image if problem.startswith(UNREADABLE)]
    if problems and len(problems) == len(images):
        raise ValueError(f"no image could be read, of {len(images)}; the first: {problems[0]}")
    if problems and processes().is_main_process:
        print(f"{len(problems)} of {len(images)} images could not be read; the first: {problems[0]}", file=sys.stderr)


def use_prior(engine, records: datasets.Dataset, prior: str | None = None) -> None:
    """Choose the prior with which `engine` reads `records` from now on, if its calibration has one.

    Args:
        prior: one of `PRIORS`; by default "rendered" for rendered faces only, else "photographs".

    Raises:
        ValueError: photographs are asked for, and its calibration has no prior of photographs.
    """
    if prior is None and (engine.calibration or {}).get("prior") is not None:
        prior = "rendered" if records.unique("dataset") == ["rendered"] else "photographs"
    if prior is not None:
        engine.calibration = with_prior(engine.calibration, prior)


def _batches(records: datasets.Dataset, batch_size: int) -> list[Batch]:
    """Batches of images that are annotated in the same formats."""
    by_formats = defaultdict(list)
    for image in group_by_image(records):
        by_formats[tuple(image)].append(image)
    return [
        (formats, images[start : start + batch_size])
        for formats, images in by_formats.items()
        for start in range(0, len(images), batch_size)
    ]


def _first_row(image: Image) -> int:
    return next(iter(image.values()))


def _journal_keys(batch: Batch, formats: tuple[str, ...] | None, stored: datasets.Dataset) -> list[tuple]:
    """(row, asked format, content of the picture) of every row that `predict` makes of a batch."""
    images = batch[1]
    pictures = map(content_of, stored[list(map(_first_row, images))]["image"])
    return [
        (row, asked, picture)
        for image, picture in zip(images, pictures, strict=True)
        for name, row in image.items()
        for asked in formats or (name,)
    ]


def _stored_pictures(records: datasets.Dataset) -> datasets.Dataset:
    """The pictures of records as they are stored, not decoded, and their margins."""
    columns = ["image", *({"margin"} & set(records.column_names))]
    return records.select_columns(columns).cast_column("image", datasets.Image(decode=False))


def _answers(engine, faces: Sequence, formats, decoding: str, batch_size: int) -> list:
    """Per face what `recognize` returns, None for one that could not be decoded."""
    readable = [index for index, face in enumerate(faces) if not isinstance(face, Exception)]
    answers = [None] * len(faces)
    if readable:
        images = [faces[index] for index in readable]
        formats = tuple(map(get_format, formats))  # a checkpoint's own code knows no format of the user's by name
        results = engine.recognize(images, formats, decoding, batch_size)
        for index, result in zip(readable, results, strict=True):
            answers[index] = result
    return answers


def _decoded(stored: datasets.Dataset, batches: list[list[Image]], named: bool) -> Iterator[tuple[list, list]]:
    """Per batch its images, decoded ahead of time, and if `named` the `content_of` each picture, otherwise None.

    In place of an image that cannot be read, there is an exception.
    """
    decoder = datasets.Image()

    def decode(images: list[Image]) -> tuple[list, list]:
        of_images = stored[list(map(_first_row, images))]
        files, faces = of_images["image"], []
        for file, margin in zip(files, of_images.get("margin", [0.0] * len(images)), strict=True):
            try:
                faces.append(without_margin(decoder.decode_example(file), margin))
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
                faces.append(ValueError(f"{UNREADABLE}: {error}"))
        read = [named and not isinstance(face, Exception) for face in faces]
        return faces, [content_of(file) if is_read else None for file, is_read in zip(files, read, strict=True)]

    with ThreadPoolExecutor(AHEAD) as pool:
        waiting, rest = deque(), iter(batches)
        for _ in batches:
            while len(waiting) <= AHEAD and (upcoming := next(rest, None)) is not None:
                waiting.append(pool.submit(decode, upcoming))
            yield waiting.popleft().result()


def without_margin(image, margin: float):
    """The middle of a PIL image that shows a crop and `margin` times the crop's side beyond it on every side."""
    width, height = (round(side / (1 + 2 * margin)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)) if margin else image


def _read(result, name: str, distributions: bool) -> dict:
    """The part of a row with what `recognize` read in a format."""
    answer = result[name]
    columns = zip(*map(NUMBERS, answer.values()), strict=True)
    numbers = {key: list(map(_number, column)) for key, column in zip(READ, columns, strict=True)}
    contradictions = [str(pair) for pair in result.contradictions if pair.present_in == name]
    row = {**numbers, "text": answer.text, "problems": list(answer.problems), "contradictions": contradictions}
    if distributions:
        row["distribution"] = np.array([reading.distribution for reading in answer.values()], np.float32)
    return row


def _unreadable(name: str, problem: str) -> dict:
    return {**unread(get_format(name)), "text": "", "problems": [problem], "contradictions": []}


def _number(value) -> float:
    return math.nan if value is None else float(value)
