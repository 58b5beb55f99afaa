"""Runs jobs in worker processes that end when they are stopped, and that do not outlive their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from au_llava.action_units import AUFormat, add_format, own_formats


def in_processes(function: Callable, jobs: Sequence, workers: int) -> Iterator:
    """Yield the result of `function` for each job as it is done, from up to `workers` new processes.

    Raises:
        OSError: a worker was killed.
    """
    if not jobs:
        return
    # One thread per worker: the work is many small arrays, and sums must not depend on the number of threads.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    context = multiprocessing.get_context("spawn")
    start = {"initializer": _start_worker, "initargs": (own_formats(),)}
    with ProcessPoolExecutor(min(workers, len(jobs)), context, **start) as pool:
        try:
            for done in as_completed([pool.submit(function, job) for job in jobs]):
                yield done.result()
        except BaseException as error:
            for worker in multiprocessing.active_children():  # do not wait for their current jobs
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise OSError(
                    "a worker process was killed, perhaps because memory ran out: run the same command again to "
                    "resume, with fewer --workers to use less memory"
                ) from None
            raise


def _start_worker(formats: Sequence[AUFormat]) -> None:
    """Leave Ctrl+C to the parent process, and exit as soon as the parent is gone, even if it was killed.

    Args:
        formats: of the user's own, which the parent knows.
    """
    for fmt in formats:
        add_format(fmt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def exit_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
