"""Tracking by `report_to`: losses and the AU scores of every format reach the trackers, as the trainer logged them."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_sft import train

FLAGS = ("--eval_strategy", "steps", "--eval_steps", 2, "--logging_steps", 1)
TRACKED = ("bp4d_f1", "disfa_icc", "feafa_pcc", "feafa_mae")


def logged_scores(folder) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) in the trainer's own state."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {name: [(e["step"], e[f"eval_{name}"]) for e in history if f"eval_{name}" in e] for name in TRACKED}


def test_tensorboard_has_the_scores_of_every_format(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    train(tiny_checkpoint, rendered_records, tmp_path / "run", *FLAGS, "--report_to", "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, expected in logged_scores(tmp_path / "run").items():
        assert [(e.step, e.value) for e in events.Scalars(f"eval/{name}")] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in expected
        ]
        assert len(expected) == 2
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_trackio_has_the_scores_of_every_format(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported, which training does
    words = ("--report_to", "trackio", "--project", "aus", "--run_name", "first")
    train(tiny_checkpoint, rendered_records, tmp_path / "run", *FLAGS, *words)
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("aus", "first")
    for name, expected in logged_scores(tmp_path / "run").items():
        found = [(e["train/global_step"], e[f"eval/{name}"]) for e in logs if f"eval/{name}" in e]
        assert found == [(step, pytest.approx(value)) for step, value in expected]
        assert len(expected) == 2
