"""Progress of long loops, on standard error so that standard output stays clean."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

Item = TypeVar("Item")


class Rate(progress.ProgressColumn):
    """Finished units per second since the start."""

    def render(self, task: progress.Task) -> Text:
        return Text(f"{task.completed / task.elapsed:.1f}/s" if task.elapsed else "")


def progress_bar(unit: str = "images", shown: bool = True) -> progress.Progress:
    """A progress bar with count, rate and time left; use it as a context manager.

    Args:
        shown: False where another process shows it.
    """
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        Rate(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True), disable=not shown)


def track(items: Iterable[Item], description: str, total: float | None = None) -> Iterator[Item]:
    """Loop over `items` and show how far the loop is."""
    return progress.track(items, description, total=total, console=Console(stderr=True))
