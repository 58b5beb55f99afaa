"""Runs train_sft.py as a command, in any number of processes, without the half minute that its imports take.

Children of a server process that has imported everything; each runs the script from its first line, with its own
arguments, environment, exit code and output.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
from pathlib import Path

from conftest import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["au_llava.au_training.command", "torch.distributed.fsdp"])
QUIET = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]


def _run(script: Path, words: list[str], environment: dict[str, str], log: Path, file_limit: int | None):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background commands ignore
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    os.environ |= environment
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)
    sys.argv, sys.path[0] = [str(script), *words], str(script.parent)  # as `python script` does
    runpy.run_path(str(script), run_name="__main__")


def start(
    words,
    log: Path,
    processes: int = 1,
    script: Path = ROOT / "train_sft.py",
    file_limit: int | None = None,
    **environment,
) -> list:
    """Processes that run `script` with `words`, as torchrun would start them; their output goes to `log`.

    Files cannot grow beyond `file_limit` bytes: writing more fails as on a full disk.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {"OMP_NUM_THREADS": "1", **(place if processes > 1 else {}), **environment}
        arguments = (
            script,
            list(map(str, words)),
            {key: str(value) for key, value in variables.items()},
            log,
            file_limit,
        )
        started.append(CONTEXT.Process(target=_run, args=arguments))
        started[-1].start()
    return started


def run(words, log: Path, **options) -> tuple[int, str]:
    """Exit code (the first that is not 0) and output of `start`, at its end."""
    started = start(words, log, **options)
    for process in started:
        process.join()
    return next((process.exitcode for process in started if process.exitcode), 0), log.read_text()
