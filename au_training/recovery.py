"""What a training does when something goes wrong: damaged images, losses that are no number, full disks, pre-emption.

A checkpoint is written beside the others under another name and renamed once it is complete, the final model file by
file: what an interrupted write leaves is never loaded, and what was there before is still whole. Everything that ends a
training early ends the command with one sentence and an exit code: 143 after SIGTERM and 130 after Ctrl-C, as shells
and clusters count signals, 1 otherwise.
"""

import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import TrainerCallback

from au_llava.action_units import get_format
from au_llava.au_datasets.records import KEY
from au_llava.au_runs.commands import sentence_of

logger = logging.getLogger("au_llava.train")

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
UNFINISHED = ".unfinished"  # folder in the output folder that holds what is being written
RESUME = "start the same command with --resume_from_checkpoint true to go on from the newest checkpoint"
BLANK = Image.new("RGB", (64, 64))


class TrainingEnded(Exception):
    """A training that ends early, told in one sentence.

    Args:
        code: exit status of the command.
    """

    def __init__(self, sentence: str, code: int = 1):
        super().__init__(sentence)
        self.code = code


class ReadableRows:
    """Collator in front of `AUCollator`: decodes images, and has what cannot be read carry no loss.

    An unreadable image becomes a blank one whose labels are unknown, so that a batch keeps its size and its random
    choices, and a batch without any readable image is still one that every process computes.

    The batch also holds two lists: `rows`, the rows' `index`, and `unreadable`, the `index` of those without an image.
    Of the unlabelled pictures that join it, `unlabelled_rows` is the list of their `index`, and `readable` a boolean
    tensor (pictures,).

    Args:
        collate: `AUCollator`.
        unlabelled: rows of `mixing.unlabelled_rows` that may join, images not decoded; or None.
    """

    def __init__(self, collate, unlabelled: datasets.Dataset | None = None):
        self.collate = collate
        self.unlabelled = unlabelled

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        read = [self._read(row) for row in rows]
        joining = [] if self.unlabelled is None else self.collate.joining(rows, len(self.unlabelled))
        if joining:
            unlabelled = [self._read(row) for row in self.unlabelled.__getitems__(joining)]
            batch = self.collate(read, unlabelled)
            batch["unlabelled_rows"] = joining
            batch["readable"] = torch.tensor([row["image"] is not BLANK for row in unlabelled])
        else:
            batch = self.collate(read)
        batch["rows"] = [row["index"] for row in rows]
        batch["unreadable"] = [row["index"] for row in read if row.get("image") is BLANK]
        return batch

    def _read(self, row: dict) -> dict:
        if "image" not in row:  # features of an image that was read before
            return row
        try:
            return {**row, "image": datasets.Image().decode_example(row["image"])}
        except Exception:  # Pillow's readers raise whatever a damaged file makes them stumble over
            unknown = [[float("nan")] * len(get_format(name).labels) for name in row["formats"]]
            return {**row, "image": BLANK, "values": unknown}


def name_images(table: datasets.Dataset, rows: Iterable[int]) -> list[str]:
    """What rows of `training_rows` show, given their `index`: "dataset:subject clip frame" each."""
    shown = table.select_columns(list(KEY)).select(np.flatnonzero(np.isin(table["index"][:], list(rows))))
    return ["{dataset}:{subject} {clip} {frame}".format(**row) for row in shown]


@contextmanager
def replacing(folder: Path, writer: bool, wait) -> Iterator[Path]:
    """A folder to write into; at the end its files take their places in `folder`, each as a whole.

    Args:
        writer: whether this process puts the files in place; the others only write.
        wait: waits for all processes.

    Raises:
        TrainingEnded: the disk is full, or anything else kept a file from being written. `folder` is as it was, but
            for files that had already taken their places.
    """
    unfinished = folder / UNFINISHED
    if writer:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a training that was killed
    wait()
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        yield unfinished
        wait()
        if writer:
            new = sorted(unfinished.iterdir())
            for path in new:
                place = folder / path.name
                if place.is_dir():  # a checkpoint of an earlier training
                    os.replace(place, unfinished / f"{path.name}-before")
                os.replace(path, place)
            names = {path.name for path in new}
            if any(WEIGHTS.fullmatch(name) for name in names):
                for path in folder.iterdir():  # a whole file would be read rather than the shards that replace it
                    if WEIGHTS.fullmatch(path.name) and path.name not in names:
                        path.unlink()
            shutil.rmtree(unfinished)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = str(error).splitlines()[0].rstrip(".")
        raise TrainingEnded(
            f"{folder} could not be written ({reason}): earlier checkpoints are untouched; make room, then {RESUME}."
        ) from error
    wait()


class TrainingComplete(Exception):
    """A resumed training has no step left to run; its weights and state are loaded."""


class EndIfComplete(TrainerCallback):
    """Raise TrainingComplete where Transformers would run one more step of a training that was at its end."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise TrainingComplete


class StopOnSIGTERM(TrainerCallback):
    """After SIGTERM, as clusters send it before they take a machine away: save a checkpoint and end with code 143.

    The step that runs is finished first. All processes stop after the same one, whichever got the signal.
    Transformers' own `enable_jit_checkpoint` saves in each process at a step of its own, and the training then seems
    to be complete.

    Args:
        accelerator: of the trainer.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.asked = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        asked = torch.tensor(float(self.asked), device=self.accelerator.device)
        self.asked = bool(self.accelerator.reduce(asked, "sum"))
        if self.asked:
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self.before)
        if self.asked and state.global_step < state.max_steps:
            raise TrainingEnded(f"stopped by SIGTERM after step {state.global_step}, which is saved: {RESUME}.", 143)


@contextmanager
def ending_with_a_sentence(command: str) -> Iterator[None]:
    """Turn what a user can act on into "COMMAND: sentence" and an exit code; other errors keep their traceback."""
    try:
        yield
    except TrainingEnded as end:
        sentence, code = str(end), end.code
    except (ValueError, OSError) as error:
        sentence, code = sentence_of(error), 1
    except KeyboardInterrupt:
        sentence, code = f"interrupted; {RESUME}.", 130
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "MemoryError"
        sentence, code = (
            f"out of memory ({reason}): lower per_device_train_batch_size and raise gradient_accumulation_steps by the "
            "same factor, train fewer formats, or see tools/plan.py for what a recipe takes.",
            1,
        )
    else:
        return
    if code == 1 or os.environ.get("RANK", "0") == "0":  # a signal ends all processes alike
        print(f"{command}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
