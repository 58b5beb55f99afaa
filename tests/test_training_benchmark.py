"""benchmarks/training.py trains the same records in every variant and counts rightly."""

from importlib.metadata import version

import pytest
import training
from conftest import build_tiny
from datasets import Dataset

from au_llava.action_units import FORMATS, parse_answer
from au_llava.au_datasets.mixing import training_rows


@pytest.fixture(scope="module")
def rows(rendered_records) -> Dataset:
    return training_rows([str(rendered_records)], "train", None)


def test_plain_rows_ask_for_every_format_of_every_image(rows):
    _, processor = build_tiny("phrases")
    records = training.plain_rows(rows, processor)
    assert len(records) == 3 * len(rows)
    for number, record in enumerate(records):
        row, place = rows[number // 3], number % 3
        fmt = FORMATS[row["formats"][place]]
        known = dict(zip(fmt.labels, row["values"][place], strict=True))
        assert parse_answer(record["completion"][0]["content"][0]["text"], fmt).values == pytest.approx(
            known, abs=0.005
        )
        assert record["image"] == row["image"]
        assert [part["type"] for part in record["prompt"][0]["content"]] == ["image", "text"]


def test_mixed_rows_keep_every_third_whole(rows):
    mixed = training.mixed_rows(rows)
    assert [len(names) for names in mixed["formats"]] == [3, 1, 1] * 3 + [3]
    for own, whole in zip(mixed, rows, strict=True):
        assert own["values"] == whole["values"][: len(own["values"])]
        assert own["formats"] == whole["formats"][: len(own["formats"])]


def test_ratios_are_against_the_first_variant():
    table = training.comparison("title", {"a": (6.0, 0.5), "b": (1.5, 0.25)}, records=12)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [("a", "2", "1.00", "50.0%"), ("b", "8", "4.00", "25.0%")]


def test_stopwatch_leaves_out_what_was_skipped(monkeypatch):
    """Steps take 8, 4 and 2 seconds, 1 of them for the batch; the first step is not counted."""
    clock = iter([0, 0, 1, 8, 8, 9, 12, 13, 14])  # begin; before and after each fetch; ends of steps 1 and 3
    monkeypatch.setattr(training, "seconds", lambda: next(clock))

    class Trainer:
        def __init__(self):
            self.added = []

        def get_batch_samples(self, epoch):
            return [epoch]

        def add_callback(self, callback):
            self.added.append(callback)

        def remove_callback(self, callback):
            pass

    trainer = Trainer()
    watch = training.Stopwatch(trainer, skipped=1)
    assert trainer.added == [watch]
    state = type("State", (), {"global_step": 0, "max_steps": 3})
    watch.on_train_begin(None, state, None)
    for step in (1, 2, 3):
        assert trainer.get_batch_samples("batch") == ["batch"]
        state.global_step = step
        watch.on_step_end(None, state, None)
    assert (watch.took, watch.waited) == (6, 2)


def test_every_variant_is_measured(tiny_checkpoint, rendered_records, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--model", tiny_checkpoint, "--data", rendered_records, "--images", 2, "--steps", 1, "--turns", 1]
    assert training.run(list(map(str, words))) == 0
    shown = capsys.readouterr().out
    expected = ("plain TRL", "in one sequence", "cached features", "group_by_length", "ms per image")
    assert all(words in shown for words in (*expected, f"torch {version('torch')}")), shown
