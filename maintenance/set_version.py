"""Give the project a new version: in pyproject.toml, which owns it, in CITATION.cff, and as a heading of CHANGELOG.md.

    python maintenance/set_version.py 0.2.0 --date 2027-01-15

What the changelog has under "Unreleased" becomes that version; a test compares the three files.
"""

import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from packaging.version import InvalidVersion, Version

from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME, replacing

HEADING = "## Unreleased\n"


def set_version(root: Path, version: str, day: date) -> None:
    """Write `version`, released on `day`, into the three files of the repository `root`.

    Raises:
        ValueError: it is no version or not above the present one, or nothing is unreleased; no file is changed then.
    """
    texts = {name: (root / name).read_text() for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")}
    [present] = re.findall(r'^version = "(.+)"$', texts["pyproject.toml"], re.MULTILINE)
    published = any(each == present for each, _ in released(texts["CHANGELOG.md"]))
    try:
        above = Version(version) > Version(present) or (version == present and not published)
    except InvalidVersion:
        raise ValueError(f"{version!r} is no version: give one such as 0.2.0.") from None
    if not above:
        raise ValueError(f"{version} is not above {present}, the present version.")
    if HEADING not in texts["CHANGELOG.md"]:
        raise ValueError('CHANGELOG.md has no "## Unreleased": say there what changed.')
    texts["pyproject.toml"] = re.sub(
        r'^version = ".+"$', f'version = "{version}"', texts["pyproject.toml"], flags=re.MULTILINE
    )
    cited = re.sub(r"^date-released: .*\n", "", texts["CITATION.cff"], flags=re.MULTILINE)
    texts["CITATION.cff"] = re.sub(
        r"^version: .*$", f"version: {version}\ndate-released: {day}", cited, flags=re.MULTILINE
    )
    texts["CHANGELOG.md"] = texts["CHANGELOG.md"].replace(HEADING, f"{HEADING}\n## {version} ({day})\n", 1)
    for name, text in texts.items():
        with replacing(root / name) as unfinished:
            unfinished.write_text(text)


def released(changelog: str) -> list[tuple[str, str]]:
    """(version, day) of the changelog's headings, newest first."""
    return re.findall(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)


def run(words: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    parser.add_argument("version", help="the new version, such as 0.2.0")
    parser.add_argument("--date", type=date.fromisoformat, default=date.today(), help="of the release (default: today)")
    arguments = parser.parse_args(words)

    def main() -> None:
        set_version(HOME, arguments.version, arguments.date)
        print(f"Version {arguments.version}. Commit, then `git tag v{arguments.version}`.")

    return run_command("set_version.py", main)


if __name__ == "__main__":
    sys.exit(run())
