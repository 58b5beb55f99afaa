r"""What users' tables and names hold besides plain text, and how anything is printed on any console.

A file's name is a string of bytes. Python holds those that are no UTF-8 as lone surrogates, which no table and no
console takes. They are written as `\xe9`, which `unescaped` undoes.
"""

import io
import re
import sys

UNKNOWN = ("", "nan", "na", "n/a", "none", "null", "<na>", "#n/a")  # of a number, as R, pandas and spreadsheets say it

_ESCAPED = re.compile(r"\\x(5c|[89a-f][0-9a-f])|\\u(d[89ab][0-9a-f]{2})")
_TO_ESCAPE = re.compile(f"[\ud800-\udfff]|{_ESCAPED.pattern}")


def escaped(name: str) -> str:
    r"""A name as text that UTF-8 can hold: "Jos\xe9.png" for the byte 0xE9. Other names stay as they are."""

    def escape(found: re.Match) -> str:
        code = ord(found[0][0])
        if len(found[0]) > 1:  # looks like an escape already
            return r"\x5c" + found[0][1:]
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _TO_ESCAPE.sub(escape, name)


def unescaped(text: str) -> str:
    """The name that `escaped` made `text` of."""

    def name(found: re.Match) -> str:
        if found[1] is None:
            return chr(int(found[2], 16))
        code = int(found[1], 16)
        return "\\" if code == 0x5C else chr(0xDC00 + code)

    return _ESCAPED.sub(name, text)


def print_anything() -> None:
    r"""From now on this program prints a character that the console lacks as \u2026 instead of ending with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
