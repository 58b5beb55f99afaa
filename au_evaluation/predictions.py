"""Reading the AUs of every record, and keeping what was read.

What is read of an image depends on the image and on its batch alone, and batches are formed before they are dealt to
processes: any number of processes gives the same numbers, and so does a run that was killed and goes on. What is
finished is kept batch by batch in a folder of JSON Lines files, one per process.
"""

import hashlib
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState
from accelerate.utils import align_module_device, gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from au_llava.action_units import get_format
from au_llava.au_datasets.records import group_by_image
from au_llava.calibration_au_llava import with_prior

KEYS = ("dataset", "subject", "clip", "frame", "format")
AHEAD = 4  # batches whose images are decoded, by as many threads, while the model reads another


def predict(
    model,
    processor,
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
        records: see records.py.
        batch_size: images per forward pass.
        distributions: whether to return them too; they take much memory.
        keep: a folder where finished batches are kept and, if it holds any, taken from; without it nothing is kept.
        timing: gets "seconds", "images" and "waited_seconds" (for images to be decoded) of this process.
        formats: ask for these formats instead of the record's own (`values` and so on then follow the asked format;
            `asked` names it), one row for each.

    Returns:
        one dict per record, in the order of `records`: the record's key (`dataset`, `subject`, `clip`, `frame`,
        `format`), `row` (its index in `records`), `asked` (the format that was asked for), `references`, `values`,
        `expected`, `median`, `probability`, `present` (lists in the format's label order, NaN where unread), `text`,
        `problems` (also an image that could not be read), `contradictions` (those where this format finds an AU
        present) and, if asked for, `distribution` (AUs, values).

    Raises:
        ValueError: `keep` holds the predictions of another evaluation.
    """
    state = PartialState()
    batches = _batches(records, batch_size)
    identity = {
        "weights": weights_fingerprint(model),
        "calibration": model.config.calibration,
        "mirror_images": model.config.mirror_images,
        "records": _records_fingerprint(records),
        "decoding": decoding,
        "batch_size": batch_size,
        "formats": formats,
    }
    kept = _kept(keep, identity) if keep is not None else {}
    state.wait_for_everyone()  # all have read what is kept before anyone writes
    rows, wanted = [], []
    for batch in batches:
        of_batch = [row for group in batch[1] for row in group.values()]
        if all(row in kept for row in of_batch):
            if state.is_main_process:
                rows.extend(each for row in of_batch for each in kept[row])
        else:  # a batch is read whole: what is read depends on it
            wanted.append(batch)
    keys = records.select_columns([*KEYS, "values"])
    waited, start = 0.0, time.perf_counter()
    with (
        state.split_between_processes(wanted) as share,
        _progress(progress and state.is_main_process) as bar,
        _writer(keep, state.process_index, identity) as write,
    ):
        task = bar.add_task("reading faces", total=sum(len(groups) for _, groups in share))
        images = _decoded(records, [groups for _, groups in share])
        for own, groups in share:
            before = time.perf_counter()
            faces = next(images)
            waited += time.perf_counter() - before
            readable = [index for index, face in enumerate(faces) if not isinstance(face, Exception)]
            asked = formats or own
            answers = {}
            if readable:
                read = [faces[index] for index in readable]
                found = model.recognize(processor, read, formats=asked, decoding=decoding, batch_size=batch_size)
                answers = dict(zip(readable, found, strict=True))
            batch_rows = []
            for index, group in enumerate(groups):
                for name, row in group.items():
                    for ask in formats or (name,):
                        if index in answers:
                            read = _prediction(answers[index], ask, distributions)
                        else:
                            read = _unreadable(ask, str(faces[index]))
                        record = keys[row]
                        key = {each: record[each] for each in KEYS}
                        batch_rows.append({**key, "row": row, "asked": ask, "references": record["values"], **read})
            write(batch_rows)
            rows.extend(batch_rows)
            bar.advance(task, len(groups))
    if timing is not None:
        seconds = time.perf_counter() - start
        timing |= {"seconds": seconds, "images": sum(len(g) for _, g in share), "waited_seconds": waited}
    return sorted(gather_object(rows), key=lambda row: row["row"])


def use_prior(model, records: datasets.Dataset, prior: str | None = None) -> None:
    """Choose the prior with which `model` reads `records` from now on, where its calibration has one.

    Args:
        prior: one of `PRIORS`; by default "rendered" for rendered faces only, else "photographs".

    Raises:
        ValueError: photographs are asked for, and its calibration knows nothing of them.
    """
    if prior is None and (model.config.calibration or {}).get("prior") is not None:
        prior = "rendered" if records.unique("dataset") == ["rendered"] else "photographs"
    if prior is not None:
        model.config.calibration = with_prior(model.config.calibration, prior)


def weights_fingerprint(model) -> str:
    """A hash of the shapes and the first 256 numbers of every parameter: tells checkpoints apart quickly."""
    content = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if name in model.all_tied_weights_keys:  # PyTorch leaves it out itself, unless offloading has parted the two
            continue
        content.update(f"{name}{tuple(parameter.shape)}".encode())
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        with align_module_device(module) if parameter.is_meta else nullcontext():  # brings back what is offloaded
            # A copy: numpy would pin the storage, which FSDP gives up after use.
            start = getattr(module, own).detach().flatten()[:256].clone()
        content.update(start.float().cpu().numpy().tobytes())
    return content.hexdigest()


def _records_fingerprint(records: datasets.Dataset) -> str:
    columns = records.select_columns([*KEYS, "values"])[:]
    return hashlib.sha256(json.dumps([columns[key] for key in (*KEYS, "values")]).encode()).hexdigest()


def _batches(records: datasets.Dataset, batch_size: int) -> list[tuple[tuple[str, ...], list[dict[str, int]]]]:
    """(formats, images as {format: row}) per batch: images of a batch are annotated in the same formats."""
    by_formats = defaultdict(list)
    for group in group_by_image(records):
        by_formats[tuple(group)].append(group)
    return [
        (formats, groups[start : start + batch_size])
        for formats, groups in by_formats.items()
        for start in range(0, len(groups), batch_size)
    ]


def _decoded(records: datasets.Dataset, batches: list[list[dict[str, int]]]) -> Iterator[list]:
    """Per batch its images, decoded ahead of time; an exception in place of an image that cannot be read."""
    columns = ["image", *({"margin"} & set(records.column_names))]
    raw = records.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    decoder = datasets.Image()

    def decode(groups):
        stored = raw[[next(iter(group.values())) for group in groups]]
        faces = []
        for each, margin in zip(stored["image"], stored.get("margin", [0.0] * len(groups)), strict=True):
            try:
                faces.append(without_margin(decoder.decode_example(each), margin))
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
                faces.append(ValueError(f"image could not be read: {error}"))
        return faces

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


def _prediction(result, name: str, distributions: bool) -> dict:
    answer = result[name]
    readings = list(answer.values())
    column = lambda key: [_number(getattr(reading, key)) for reading in readings]
    row = {"values": column("value"), **{key: column(key) for key in ("expected", "median", "probability", "present")}}
    row |= {"text": answer.text, "problems": list(answer.problems)}
    row["contradictions"] = [str(each) for each in result.contradictions if each.present_in == name]
    if distributions:
        row["distribution"] = np.array([reading.distribution for reading in readings], np.float32)
    return row


def _unreadable(name: str, problem: str) -> dict:
    nothing = [math.nan] * len(get_format(name).labels)
    read = dict.fromkeys(("values", "expected", "median", "probability", "present"), nothing)
    return {**read, "text": "", "problems": [problem], "contradictions": []}


def _number(value) -> float:
    return math.nan if value is None else float(value)


class _writer:
    """Appends rows to this process's file in `keep`; does nothing without a folder."""

    def __init__(self, keep: Path | None, process: int, identity: Mapping):
        self.path = keep / f"process-{process:05d}.jsonl" if keep is not None else None
        self.identity = identity

    def __enter__(self):
        if self.path is None:
            return lambda rows: None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a", encoding="utf-8")
        if self.file.tell() == 0:
            self.file.write(json.dumps({"identity": self.identity}) + "\n")

        def write(rows):
            self.file.writelines(json.dumps(row) + "\n" for row in rows)
            self.file.flush()

        return write

    def __exit__(self, *_):
        if self.path is not None:
            self.file.close()


def _kept(keep: Path, identity: Mapping) -> dict[int, list[dict]]:
    """Row -> what is kept of it. A line that a kill cut off is left out."""
    kept = defaultdict(list)
    identity = json.loads(json.dumps(identity))
    for path in sorted(keep.glob("process-*.jsonl")):
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            path.write_text(text := text[: text.rfind("\n") + 1], encoding="utf-8")
        lines = list(map(json.loads, text.splitlines()))
        if not lines:
            continue
        before = lines[0]["identity"]
        if before != identity:
            differing = ", ".join(key for key in identity if before.get(key) != identity[key])
            raise ValueError(
                f"{keep} holds the unfinished predictions of another evaluation (other {differing}): repeat that "
                "command, choose another --out, or delete the folder."
            )
        for row in lines[1:]:
            kept[row["row"]].append(row)
    return {row: list({each["asked"]: each for each in rows}.values()) for row, rows in kept.items()}


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.completed / task.elapsed:.1f}/s" if task.elapsed else "")


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), _Rate())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)
