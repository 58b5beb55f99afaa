"""benchmarks/page.py: tables in Markdown, between markers, with the command and the machine they were measured with."""

import sys

import page
import pytest
from conftest import ROOT
from rich.table import Table


def small_table() -> Table:
    table = Table(title="Two sizes", caption="lower is better")
    table.add_column("what")
    table.add_column("seconds\na batch", justify="right")
    table.add_row("one", "0.5")
    table.add_section()
    table.add_row("two", "1.25")
    return table


def test_markdown_of_a_table():
    assert page.as_markdown(small_table()).splitlines() == [
        "Two sizes",
        "",
        "| what | seconds a batch |",
        "|---|---:|",
        "| one | 0.5 |",
        "| two | 1.25 |",
        "",
        "lower is better",
    ]


def test_section_is_replaced_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "performance.md"
    path.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "x.py"), "--model", "a b"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for _ in range(2):  # the second time replaces the first
        page.show([small_table()], "a", notes="A note.", page=path)
    text = path.read_text()
    assert text.startswith("before\n<!-- a -->\n    OMP_NUM_THREADS=1 python benchmarks/x.py --model 'a b'\n\n")
    assert text.count("| one | 0.5 |") == 1
    assert "old" not in text
    assert "torch " in text
    assert text.endswith("A note.\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n")


def test_unknown_section_is_named(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text("<!-- a -->\n<!-- /a -->\n")
    with pytest.raises(ValueError, match=r"performance\.md has no section 'c'; it has a\."):
        page.show([small_table()], "c", page=path)
