"""Owner of the tables in docs/performance.md: each stands between markers and is what its benchmark last measured.

A benchmark makes a rich `Table`, prints it by `show` and with `--write NAME` also puts it into the page, between
`<!-- NAME -->` and `<!-- /NAME -->`, with the command, the machine and the versions it was measured with.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from au_llava.au_runs.commands import print_anything

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"


def machine() -> str:
    """What the numbers were measured on: processor or GPU, cores that may be used, threads, versions."""
    import torch  # here, after the measurement: 100 MB that would count as memory of a benchmark that needs no torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        found = (
            re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
        )
        name = found.group(1) if found else platform.processor()
        threads = torch.get_num_threads()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        device = f"{name}, {cores} core{'s' * (cores > 1)}, torch with {threads} thread{'s' * (threads > 1)}"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl")]
    return ", ".join([device, f"Python {platform.python_version()}", *versions])


def command() -> str:
    """The command that runs, as it can be typed again; threads are part of it."""
    script = Path(sys.argv[0]).resolve()
    words = [str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name, *sys.argv[1:]]
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"OMP_NUM_THREADS={threads} " * bool(threads) + shlex.join(["python", *words])


def origin(name: str, model, *packages: str) -> dict:
    """Where a measurement comes from: the command, the date, the code, the checkpoint by its content, the machine.

    Args:
        name: of the checkpoint, a folder or a Hub id, that `model` was loaded from. packages: further ones whose
            version matters.
    """
    from au_llava.au_recognition.sidecar import checkpoint_identity
    from au_llava.au_runs.provenance import code_commit  # here, as torch above

    checkpoint = checkpoint_identity(name, model)
    kept = ("name", "commit", "weights_sha256", "mirror_images")
    calibration = json.dumps(checkpoint["calibration"], sort_keys=True).encode()
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_commit": code_commit(),
        "checkpoint": {key: checkpoint[key] for key in kept}
        | {"calibration_sha256": hashlib.sha256(calibration).hexdigest()},
        "machine": machine(),
        "packages": {package: version(package) for package in ("numpy", "pillow", "scipy", *packages)},
    }


def as_markdown(table: Table) -> str:
    """A rich table in Markdown: title above, columns aligned alike, caption below."""
    columns = [[str(column.header).replace("\n", " "), *map(str, column.cells)] for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    lines = [" | ".join(row) for row in zip(*columns, strict=True)]
    rows = [f"| {line} |" for line in [lines[0], *lines[1:]]]
    rows.insert(1, "|" + "|".join(rules) + "|")
    return "\n".join(
        [*([f"{table.title}", ""] if table.title else []), *rows, *(["", str(table.caption)] if table.caption else [])]
    )


def sections(page: Path = PAGE) -> list[str]:
    """Names of the sections that benchmarks write."""
    return re.findall(r"<!-- (?!/)([\w-]+) -->", page.read_text())


def show(tables: list[Table], section: str | None = None, notes: str = "", page: Path = PAGE) -> None:
    """Print tables and notes, and put them into the section of the page if one is named.

    Raises:
        ValueError: if the page has no such section.
    """
    print_anything()
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
    page.write_text(between.sub(lambda found: found[1] + body + found[2], page.read_text()))


def add_write_option(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark whose table stands in the page."""
    parser.add_argument(
        "--write",
        metavar="SECTION",
        choices=sections(),
        help="also write the table into this section of docs/performance.md",
    )
