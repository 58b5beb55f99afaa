"""Which of several processes this one is; accelerate, which imports PyTorch, only where there are several."""

import os
from dataclasses import dataclass

# Where launchers say how many processes they started, as accelerate reads them (PartialState).
LAUNCHERS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class OneProcess:
    """A process by itself, with what this project uses of accelerate's `PartialState`."""

    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


def processes():
    """accelerate's `PartialState` if a launcher started several processes, otherwise a `OneProcess`."""
    return accelerate_state() if launched_several() else OneProcess()


def launched_several() -> bool:
    """Whether a launcher started several processes."""
    return any(os.environ.get(name, "1") != "1" for name in LAUNCHERS)


def accelerate_state():
    """accelerate's `PartialState`. Where there are only CPUs, it takes each process for the only one if not told so."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def gathered(items: list) -> list:
    """The items of all processes, those of one process after those of another."""
    if processes().num_processes == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)
