"""What all benchmarks share: the command line, tables and JSON files, and the sections of docs/performance.md.

A benchmark makes rich tables and prints them with `show`. With `--write NAME` they also go into the page, between
`<!-- NAME -->` and `<!-- /NAME -->`, with the command, the machine and the versions of the measurement.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from au_llava.au_evaluation.tables import markdown_table, number
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, write_json, write_text

PAGE = HOME / "docs" / "performance.md"


# ---- Command line -----------------------------------------------------------------------------------------------
def runner(make_parser: Callable[[], CommandParser], main: Callable[[argparse.Namespace], int | None]) -> Callable:
    """The `run(words) -> exit status` of a benchmark, from its parser and its body."""

    def run(words: Sequence[str] | None = None) -> int:
        """Run the benchmark with the command line `words` (default: the program's own)."""
        program = Path(main.__code__.co_filename).name
        return run_command(program, partial(main, make_parser().parse_args(words)))

    return run


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=str(HOME), help="checkpoint: folder or Hub id (default: the shipped one)")


def add_write_option(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark whose tables are in the page."""
    parser.add_argument(
        "--write",
        metavar="SECTION",
        choices=sections(),
        help="also write the tables into this section of docs/performance.md",
    )


def run_script(script: str, *words) -> None:
    """Run a script of this repository, such as "eval_au.py", with these words.

    Raises:
        ChildProcessError: it fails, and has said why.
    """
    done = subprocess.run([sys.executable, str(HOME / script), *map(str, words)])
    if done.returncode:
        raise ChildProcessError(f"{script} failed, see above; run the same command again to continue from there")


def start_run(out: Path, settings: Mapping) -> None:
    """Write OUT/settings.json, or check that what OUT holds was made with the same settings.

    Raises:
        ValueError: it was made with others.
    """
    path, settings = out / "settings.json", json.loads(json.dumps(settings, default=str))
    if path.is_file() and (before := json.loads(path.read_text())) != settings:
        differing = [key for key in settings if before.get(key) != settings[key]]
        raise ValueError(f"{out} was made with another {', '.join(differing)}: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


# ---- Where numbers come from ------------------------------------------------------------------------------------
def machine() -> str:
    """The machine and the versions of a measurement: processor or GPU, usable cores, threads."""
    import torch  # not at the head: it would add 100 MB to the memory of a benchmark that needs no torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        processors = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*:\s*(.+)", processors.read_text()) if processors.exists() else None
        name = model.group(1) if model else platform.processor()
        threads = torch.get_num_threads()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        device = f"{name}, {cores} core{'s' * (cores > 1)}, torch with {threads} thread{'s' * (threads > 1)}"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl")]
    return ", ".join([device, f"Python {platform.python_version()}", *versions])


def command() -> str:
    """The running command as it can be typed again, with the number of threads."""
    script = Path(sys.argv[0]).resolve()
    words = [str(script.relative_to(HOME)) if script.is_relative_to(HOME) else script.name, *sys.argv[1:]]
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"OMP_NUM_THREADS={threads} " * bool(threads) + shlex.join(["python", *words])


def origin(name: str, model, *packages: str) -> dict:
    """The provenance of a measurement: command, date, commit, checkpoint (by content), machine.

    Args:
        name: of the checkpoint, the folder or Hub id that `model` was loaded from.
        packages: more packages whose versions matter.
    """
    from au_llava.au_recognition.sidecar import checkpoint_identity  # not at the head, as torch above
    from au_llava.au_runs.provenance import code_commit

    checkpoint = checkpoint_identity(name, model.config)
    calibration = json.dumps(checkpoint["calibration"], sort_keys=True).encode()
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_commit": code_commit(),
        "checkpoint": {
            **{key: checkpoint[key] for key in ("name", "weights_sha256", "mirror_images")},
            "calibration_sha256": hashlib.sha256(calibration).hexdigest(),
        },
        "machine": machine(),
        "packages": {package: version(package) for package in ("numpy", "pillow", "scipy", *packages)},
    }


# ---- Results ----------------------------------------------------------------------------------------------------
def write_results(path: Path, results: Mapping) -> None:
    """Write a benchmark's results as JSON (NaN becomes null) and print where."""
    from au_llava.au_evaluation.scoring import jsonable  # not at the head, as torch above

    write_json(path, jsonable({"schema_version": 1, **results}))
    print(f"Written: {path}")


def told(result: Mapping, key: str = "value", sign: str = "") -> str:
    """A number with its 95 % interval, of {key: …, "interval": …}: "0.512 (0.498 to 0.530)"; "n.d." if undefined."""
    return number(result[key], result["interval"], sign=sign)


def say_skipped(skipped: Mapping[str, str], total: int) -> None:
    """Print to standard error which of `total` pictures were skipped, and why."""
    for name, problem in skipped.items():
        print(f"skipped: {name}: {problem}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} of {total} pictures were skipped.", file=sys.stderr)


def make_table(*columns: str, text: Sequence[str] = (), **options) -> Table:
    """An empty table; the columns named in `text` hold words, aligned left, the others numbers, aligned right."""
    table = Table(title_justify="left", **options)
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right")
    return table


def as_markdown(table: Table) -> str:
    """A rich table in Markdown: title above, caption below, columns aligned as they are."""
    header = [str(column.header).replace("\n", " ") for column in table.columns]
    rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    align = "".join("r" if column.justify == "right" else "l" for column in table.columns)
    parts = (table.title, markdown_table(header, rows, align), table.caption)
    return "\n\n".join(str(part) for part in parts if part)


def sections(page: Path = PAGE) -> list[str]:
    """Names of the sections that benchmarks write."""
    return re.findall(r"<!-- (?!/)([\w-]+) -->", page.read_text(encoding="utf-8"))


def show(tables: list[Table], section: str | None = None, notes: str = "", page: Path = PAGE) -> None:
    """Print tables and notes, and write them into a section of the page if one is named.

    Raises:
        ValueError: the page has no such section.
    """
    console = Console()
    for table in tables:
        console.print(table)
    console.print(machine(), style="dim")
    if notes:
        console.print(notes)
    if section is None:
        return
    if section not in sections(page):
        raise ValueError(f"{page.name} has no section {section!r}; it has {', '.join(sections(page))}.")
    between = re.compile(rf"(<!-- {section} -->\n).*?(<!-- /{section} -->)", re.DOTALL)
    parts = [f"    {command()}", machine() + ".", *map(as_markdown, tables), *([notes] if notes else [])]
    body = "\n\n".join(parts) + "\n"
    text = between.sub(lambda section: section[1] + body + section[2], page.read_text(encoding="utf-8"))
    write_text(page, text)
