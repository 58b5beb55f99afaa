"""The journal of a long run: what is finished is written down at once, so that a killed run resumes where it stopped.

A journal is a folder of JSON Lines files, one per process, `process-00000.jsonl` and so on. The first line of each file
holds the run's identity: everything its numbers depend on. Any number of processes may go on with a journal, and each
of them sees what all of them had finished.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class Journal(Mapping):
    """The finished entries of a run: key -> entry (dict), in the order in which they were first written.

    Only the keys are held in memory; entries are read from the files. A line that a kill cut off is left out. Where
    entries have the same key, the last one counts.

    Args:
        folder: may be missing, the journal is then empty.
        identity: what the numbers of the run depend on, as JSON holds it.
        key: the fields of an entry that make up its key, a tuple in this order; None for one that it lacks.

    Raises:
        ValueError: the folder holds the journal of a run with another identity.
    """

    def __init__(self, folder: Path, identity: Mapping, key: Sequence[str]):
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))
        self.key = tuple(key)
        self._places: dict[tuple, tuple[Path, int]] = {}  # key -> file, offset in it
        for path in sorted(folder.glob("process-*.jsonl")):
            self._index(path)

    def _index(self, path: Path) -> None:
        with path.open("rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return
            self._check(json.loads(first)["identity"])
            place = file.tell()
            while (line := file.readline()).endswith(b"\n"):
                entry = json.loads(line)
                self._places[tuple(map(entry.get, self.key))] = (path, place)
                place = file.tell()

    def _check(self, identity: Mapping) -> None:
        if identity != self.identity:
            names = dict.fromkeys((*self.identity, *identity))
            differing = ", ".join(name for name in names if identity.get(name) != self.identity.get(name))
            raise ValueError(
                f"{self.folder} holds the unfinished work of another run (other {differing}): repeat that command, "
                "choose another --out, or delete the folder."
            )

    def __getitem__(self, key: tuple) -> dict:
        path, place = self._places[key]
        with path.open("rb") as file:
            file.seek(place)
            return json.loads(file.readline())

    def __iter__(self) -> Iterator[tuple]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key) -> bool:  # Mapping's would read the entry
        return key in self._places

    @contextmanager
    def writer(self, process: int = 0) -> Iterator[Callable[[Mapping], None]]:
        """A function that writes down one entry. The journal itself does not show what is added: open it again.

        Args:
            process: the number of this process; no other may write under it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"process-{process:05d}.jsonl"
        _drop_cut_off_line(path)
        with path.open("ab") as file:

            def write(entry: Mapping) -> None:
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()

            if file.tell() == 0:
                write({"identity": self.identity})
            yield write


def _drop_cut_off_line(path: Path) -> None:
    """Shorten a file to its last whole line."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
