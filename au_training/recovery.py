"""Training that survives failures: full disks, out of memory, SIGTERM and Ctrl-C end it without losing a checkpoint.

A checkpoint is written to a hidden folder and renamed once it is complete; the final model is put in place file by
file. An interrupted write is never loaded and leaves the previous checkpoint whole. Whatever ends a training early ends
the command with one sentence and an exit status: 143 after SIGTERM and 130 after Ctrl-C, as shells and clusters count
signals, 1 otherwise.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from au_llava.au_runs.commands import CommandEnded

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
UNFINISHED = ".unfinished"  # folder in the output folder for files that are being written
RESUME = "start the same command with --resume_from_checkpoint true to continue from the newest checkpoint"


def checkpoint_to_resume(training_args) -> str | None:
    """The checkpoint that `resume_from_checkpoint` asks for: its folder, or with "true" the newest, if there is one."""
    resume = training_args.resume_from_checkpoint
    if str(resume).lower() not in ("true", "1"):
        return resume
    return get_last_checkpoint(training_args.output_dir) if Path(training_args.output_dir).is_dir() else None


@contextmanager
def replacing_contents(folder: Path, writer: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """A hidden folder to write into; at the end, its files and folders replace those of the same name in `folder`.

    Args:
        writer: whether this process puts the files in place; the others only write theirs.
        wait: waits for all processes.

    Raises:
        CommandEnded: a file could not be written, for instance because the disk is full. `folder` is unchanged, except
            for files that were already in place.
    """
    unfinished = folder / UNFINISHED
    if writer:
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a training that was killed
    wait()
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        yield unfinished
        wait()
        if writer:
            _put_in_place(unfinished, folder)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = str(error).splitlines()[0].rstrip(".")
        raise CommandEnded(
            f"{folder} could not be written ({reason}): earlier checkpoints are untouched; make room, then {RESUME}."
        ) from error
    wait()


def _put_in_place(unfinished: Path, folder: Path) -> None:
    new = sorted(unfinished.iterdir())
    for path in new:
        place = folder / path.name
        if place.is_dir():  # a checkpoint of an earlier training
            os.replace(place, unfinished / f"{path.name}-before")
        os.replace(path, place)
    names = {path.name for path in new}
    if any(WEIGHTS.fullmatch(name) for name in names):
        for path in folder.iterdir():  # an old whole file would be loaded instead of new shards
            if WEIGHTS.fullmatch(path.name) and path.name not in names:
                path.unlink()
    shutil.rmtree(unfinished)


class TrainingComplete(Exception):
    """A resumed training has no steps left; its weights and state are loaded."""


class EndIfComplete(TrainerCallback):
    """Raises TrainingComplete if no steps are left: Transformers would run one more."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise TrainingComplete


class StopOnSIGTERM(TrainerCallback):
    """On SIGTERM, which clusters send before they take a machine away: saves a checkpoint and ends with status 143.

    The current step is finished first. All processes stop after the same step, whichever received the signal.
    Transformers' own `enable_jit_checkpoint` saves each process at its own step, and the training then looks complete.

    Args:
        accelerator: of the trainer.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.asked = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.handler_before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        asked = torch.tensor(float(self.asked), device=self.accelerator.device)
        self.asked = bool(self.accelerator.reduce(asked, "sum"))
        if self.asked:
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self.handler_before)
        if self.asked and state.global_step < state.max_steps:
            raise CommandEnded(f"stopped by SIGTERM after step {state.global_step}, which is saved: {RESUME}.", 143)


@contextmanager
def ending_with_advice() -> Iterator[None]:
    """Turn Ctrl-C and running out of memory into a CommandEnded that says what to do; other errors pass through."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandEnded(f"interrupted; {RESUME}.", 130) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "MemoryError"
        raise CommandEnded(
            f"out of memory ({reason}): lower per_device_train_batch_size and raise gradient_accumulation_steps by the "
            "same factor, train fewer formats, or see tools/plan.py for what a recipe takes."
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
