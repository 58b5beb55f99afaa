"""Runs an iterator ahead of the one who takes its items, in a thread of its own."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
END = object()


def ahead(items: Iterator[Item], most: int) -> Iterator[Item]:
    """The items in their order, up to `most` of them made before they are asked for.

    What `items` raises is raised here, in its place. If the iterator is closed, `items` stops after the item that it is
    making.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, END) for _ in range(most))
        try:
            while (item := waiting.popleft().result()) is not END:
                waiting.append(pool.submit(next, items, END))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
