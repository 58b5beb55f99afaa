r"""Words of users: cells of tables that say "unknown", the names of files, and lists of names in messages.

A file's name is a string of bytes. Python holds bytes that are not UTF-8 as lone surrogates, which no table and no
console takes. They are written as `\xe9`, which `unescaped` undoes.
"""

import re
import unicodedata
from collections.abc import Sequence

UNKNOWN = ("", "nan", "na", "n/a", "none", "null", "<na>", "#n/a")  # instead of a number: R, pandas and spreadsheets

_ESCAPED = re.compile(r"\\x(5c|[89a-f][0-9a-f])|\\u(d[89ab][0-9a-f]{2})")
_TO_ESCAPE = re.compile(f"[\ud800-\udfff]|{_ESCAPED.pattern}")


def composed(name: str) -> str:
    """A name with each accented letter as one character (Unicode NFC): file names of macOS write it as two."""
    return unicodedata.normalize("NFC", name)


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first five if there are more: "SN001, SN002, SN003, SN004, SN005 …"."""
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def escaped(name: str) -> str:
    r"""A name as text that UTF-8 can hold: "Jos\xe9.png" for the byte 0xE9. Other names stay as they are."""

    def escape(match: re.Match) -> str:
        code = ord(match[0][0])
        if len(match[0]) > 1:  # looks like an escape already
            return r"\x5c" + match[0][1:]
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _TO_ESCAPE.sub(escape, name)


def unescaped(text: str) -> str:
    """The name that `escaped` turned into `text`."""

    def character(match: re.Match) -> str:
        if match[1] is None:
            return chr(int(match[2], 16))
        code = int(match[1], 16)
        return "\\" if code == 0x5C else chr(0xDC00 + code)

    return _ESCAPED.sub(character, text)
