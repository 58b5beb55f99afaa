"""The benchmarks run and count rightly; how fast the machine is, is their own business."""

import json
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, build_tiny, load_tool
from datasets import Dataset
from PIL import Image

from au_llava.action_units import FORMATS
from au_llava.au_faces.media import video_frames

decoding_benchmark = load_tool("decoding")
engines = load_tool("engines")
following = load_tool("following")
parsing = load_tool("parsing")
same_answers = load_tool("same_answers")
same_faces = load_tool("same_faces")
throughput = load_tool("throughput")
versions = load_tool("versions")


# ---- decoding.py ----------------------------------------------------------------------------------------------
def test_every_decoder_is_measured_beside_its_prefill():
    times = decoding_benchmark.measure(*build_tiny("phrases"), batch=2, repeats=1)
    assert list(times) == [
        "prefill, feafa",
        "prefill, all",
        "slots, bp4d",
        "slots, disfa",
        "slots, feafa",
        "slots, all",
        "constrained, all",
        "free, all",
    ]
    assert all(seconds > 0 for seconds in times.values())


def test_ratios_compare_like_with_like():
    times = {
        "prefill, feafa": 1,
        "prefill, all": 2,
        "slots, bp4d": 3,
        "slots, feafa": 2,
        "slots, all": 3,
        "free, all": 9,
    }
    rows = {name: decoding_benchmark.table_row(name, times, batch=6)[4:] for name in times}
    assert rows == {
        "prefill, feafa": ("", "", ""),
        "prefill, all": ("", "", ""),
        "slots, bp4d": ("", "", ""),
        "slots, feafa": ("", "2.00", ""),
        "slots, all": ("3.0 x", "1.50", "1.50"),
        "free, all": ("1.0 x", "4.50", ""),
    }


def test_runs_take_turns_and_the_first_turn_does_not_count():
    calls = []
    times = decoding_benchmark.best_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert all(seconds > 0 for seconds in times.values())


def test_operations_hold_every_matrix_of_the_language_model():
    """A token of the tree multiplies with every weight once; attention, vision tower and head come on top."""
    model, processor = build_tiny("phrases")
    tree = decoding_benchmark.compile_slots(processor, tuple(FORMATS.values()), 16)
    weights = sum(weight.numel() for weight in model.model.language_model.layers.parameters() if weight.ndim == 2)
    least = 2 * len(tree) * weights
    assert least < decoding_benchmark.slots_operations(model, processor) < 3 * least


def test_operations_leave_out_prompts_that_are_computed_once():
    model, processor = build_tiny("phrases", prompt_order="text_first")
    tree = decoding_benchmark.compile_slots(processor, decoding_benchmark.ALL, 16)
    first = decoding_benchmark.slots_operations(model, processor)
    assert model.model.prompts.states.keys() == set(tree.prefixes)
    assert decoding_benchmark.slots_operations(model, processor) == first


def test_matrix_rate_is_positive():
    assert decoding_benchmark.matrix_rate(torch.float32, 64, repeats=2) > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_growth_of_the_peak_forgets_what_was_before():
    mebibyte = 2**20

    def fill(mebibytes):  # past the allocator, which may still hold what other tests have freed
        with mmap.mmap(-1, mebibytes * mebibyte) as memory:
            for _ in range(mebibytes):
                memory.write(bytes(mebibyte))

    fill(300)  # a higher peak, gone again
    assert 90 * mebibyte < decoding_benchmark.peak_growth(lambda: fill(100)) < 120 * mebibyte


@pytest.mark.parametrize(
    ("shape", "parameters", "image_tokens"), [("siglip2-smollm2", 222e6, 49), ("clip-vicuna-7b", 7.05e9, 576)]
)
def test_shapes_have_the_size_of_their_namesakes(shape, parameters, image_tokens):
    model, processor = decoding_benchmark.build(shape, torch.bfloat16, device="meta")
    assert model.num_parameters() == pytest.approx(parameters, rel=0.01)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert decoding_benchmark.image_tokens(processor) == image_tokens


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_large_shape_needs_a_gpu():
    arguments = decoding_benchmark.make_parser().parse_args(["--shape", "clip-vicuna-7b"])
    with pytest.raises(ValueError, match="needs a GPU"):
        decoding_benchmark.main(arguments)


def test_table_names_the_share_of_the_matrix_rate(tiny_checkpoint, capsys):
    words = ["--model", str(tiny_checkpoint), "--batch_sizes", "2", "--repeats", "1"]
    assert decoding_benchmark.run(words) == 0
    shown = capsys.readouterr().out
    assert "constrained, all" in shown
    assert "of the measured matrix rate" in shown


@pytest.mark.slow
def test_memory_of_every_decoder(tiny_checkpoint):
    words = ["benchmarks/decoding.py", "--model", str(tiny_checkpoint), "--memory", "--batch_sizes", "4"]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    cells = next(line for line in run.stdout.splitlines() if line.startswith("│")).split("│")[1:-1]
    assert float(cells[0]) == 4
    assert all(0 < float(cell) < 500 for cell in cells[1:])


# ---- parsing.py -----------------------------------------------------------------------------------------------
@pytest.fixture
def face_images():
    return [Image.effect_noise((48, 48), sigma).convert("RGB") for sigma in (20, 60)]


def pixels(mix):
    return [(kind, image.size, image.tobytes()) for kind, image in mix]


def test_mix_is_half_faces_and_equal_shares_of_all_else(face_images):
    kinds = [kind for kind, _ in parsing.image_mix(face_images, 64, seed=0)]
    assert {kind: kinds.count(kind) for kind in parsing.KINDS} == {
        "face": 32,
        "noise": 8,
        "one color": 8,
        "no face": 8,
        "destroyed": 8,
    }


def test_mix_is_the_same_for_the_same_seed(face_images):
    mix = pixels(parsing.image_mix(face_images, 64, seed=0))
    assert mix == pixels(parsing.image_mix(face_images, 64, seed=0))
    assert mix[:16] == pixels(parsing.image_mix(face_images, 16, seed=0))
    assert mix != pixels(parsing.image_mix(face_images, 64, seed=1))
    assert len(set(mix)) > 30  # two faces, black, white: everything else differs


def test_faces_are_drawn_once_each_by_seed(rendered_records):
    def drawn(seed):
        return [face.tobytes() for face in parsing.load_faces(rendered_records, 8, seed)]

    assert len(set(drawn(0))) == 8
    assert drawn(0) == drawn(0) != drawn(1)
    assert len(parsing.load_faces(rendered_records, 100, 0)) == 20


def run_parsing(monkeypatch, records, model, processor):
    monkeypatch.setattr(parsing, "load_checkpoint", lambda name: (model, processor))
    return parsing.run(["--faces", str(records), "--images", "10"])


def test_untrained_model_keeps_the_promise(rendered_records, monkeypatch, capsys):
    """Random weights: free decoding cannot be read, slots and constrained decoding can."""
    assert run_parsing(monkeypatch, rendered_records, *build_tiny()) == 0
    shown = capsys.readouterr().out
    assert "slots: 0 of 30 answers" in shown
    assert "constrained: 0 of 30 answers" in shown
    assert "free: 30 of 30 answers" in shown
    assert all(kind in shown for kind in parsing.KINDS)


def cut_text(answer):
    answer.text = answer.text.rpartition(",")[0]


def change_reading(label, **numbers):
    def change(answer):
        answer[label] = replace(answer[label], **numbers)

    return change


@pytest.mark.parametrize("broken", parsing.GUARANTEED)
@pytest.mark.parametrize(
    "break_answer",
    [
        cut_text,
        change_reading("AU6", value=7.0),
        change_reading("AU6", value=None),
        change_reading("AU6", distribution=(0.5, 0.1)),
        change_reading("AU6", distribution=(float("nan"), 0.5)),
        change_reading("AU6", distribution=(1.0,)),
        change_reading("AU6", probability=1.5),
    ],
)
def test_one_broken_answer_fails_the_command(rendered_records, monkeypatch, capsys, broken, break_answer):
    model, processor = build_tiny("phrases")

    def recognize(processor, images, decoding, **options):
        results = model.recognize(processor, images, decoding="slots", **options)
        if decoding == broken:
            break_answer(results[-1]["bp4d"])
        return results

    assert run_parsing(monkeypatch, rendered_records, SimpleNamespace(recognize=recognize), processor) == 1
    assert "broke its guarantee" in capsys.readouterr().err


# ---- end_to_end.py --------------------------------------------------------------------------------------------
end_to_end = load_tool("end_to_end")


def test_pictures_and_videos_differ_from_one_to_the_next(tmp_path):
    pictures = end_to_end.make_pictures(tmp_path, 960, 640, 2)
    first, second = (Image.open(path).convert("L") for path in pictures)
    assert first.size == (960, 640)
    assert first.tobytes() != second.tobytes()
    video = end_to_end.make_video(tmp_path, 64, 64, 8)
    frames = [frame.image.tobytes() for frame in video_frames(video)]
    assert len(frames) == 8
    assert len(set(frames)) > 1


def test_processes_are_measured(tmp_path):
    busy = tmp_path / "busy.py"
    busy.write_text("import time\nblock = bytearray(100 << 20)\nwhile time.process_time() < 0.3:\n    pass\n")
    measured = end_to_end.measure([busy], core=min(os.sched_getaffinity(0)))
    assert measured.seconds >= 0.3
    assert measured.megabytes >= 100
    busy.write_text("raise SystemExit('no such picture')")
    with pytest.raises(ValueError, match=r"busy\.py.* failed: no such picture"):
        end_to_end.measure([busy], core=min(os.sched_getaffinity(0)))


def test_further_pictures_cost_the_difference(monkeypatch):
    seconds = iter([2.0, 5.0, 1.0, 1.5, 3.0, 5.5, 1.2, 1.4])  # ours short, long, MediaPipe short, long, twice
    monkeypatch.setattr(end_to_end, "measure", lambda words, core: end_to_end.Run(next(seconds), 100.0))
    arguments = SimpleNamespace(repeats=2, core=0, options=[])
    costs = end_to_end.compare(["a"], ["a", "b", "c"], 2, arguments)
    assert costs == {"ours": (2.0, pytest.approx(1.5), 100.0), "MediaPipe": (1.0, pytest.approx(0.2), 100.0)}


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(end_to_end, "find_spec", lambda module: None if module == "mediapipe" else module)
    assert end_to_end.run([]) == 1
    assert "mediapipe must be installed: pip install mediapipe" in capsys.readouterr().err


# ---- following.py -----------------------------------------------------------------------------------------------
def test_a_box_goes_as_the_photograph_is_shown():
    """A bright spot of the photograph is shown where its place is said to go, and the way there is undone."""
    photo = Image.new("RGB", (400, 400))
    photo.paste((255, 255, 255), (290, 130, 310, 150))  # its middle is 100 right of the photograph's and 60 above it
    motion = following.Motion(x=300.0, y=220.0, zoom=0.8, roll=0.4)
    box = motion.back(np.array([100.0, -60.0, 20.0, 20.0]))
    rows, columns = np.nonzero(np.asarray(motion.show(photo))[..., 0] > 200)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(
        (box[0] + box[2] / 2, box[1] + box[3] / 2), abs=0.5
    )
    assert tuple(box[2:]) == (16.0, 16.0)
    np.testing.assert_allclose(motion.there(box), [100, -60, 20, 20])


def test_boxes_off_their_place_and_jumps_are_counted():
    expected = np.tile([10.0, 20.0, 50.0, 60.0], (4, 1)) + np.arange(4)[:, None] * [5, 0, 0, 0]
    apart = np.array([[0, 0, 0, 0], [3, 0, 0, 0], [0, 0, -1, 0], [0, 5, 0, 0]])  # at most 0, 3, 1, 5; steps 3, 3, 5
    searched = expected + apart
    cells = following.row_of("one", [(np.stack([searched, expected + 1]), expected)])
    assert cells == ["one", "4", "50", "2.0", "4.7", "5.0", "100 %", "1.0", "1.0", "1.0", "0 %"]
    searched[2] = np.nan
    with pytest.raises(ValueError, match="one: the face is missing in 12 % of the frames"):
        following.row_of("one", [(np.stack([searched, expected]), expected)])


def test_following_says_what_it_needs(tmp_path, capsys):
    assert following.run(["--photographs", str(tmp_path)]) == 1
    assert "holds no .jpg files" in capsys.readouterr().err
    assert following.run(["--frames", "5"]) == 1
    assert "--frames 13 or more" in capsys.readouterr().err


# ---- same_faces.py ----------------------------------------------------------------------------------------------
def face_row(file, left, present=(True, False), eyes=(20, 30, 60, 30), **changes):
    box = {"FaceRectX": left, "FaceRectY": 10, "FaceRectWidth": 80, "FaceRectHeight": 100}
    places = dict(zip(("eye_right_x", "eye_right_y", "eye_left_x", "eye_left_y"), eyes, strict=True))
    answers = {"disfa": {f"AU{number}": {"present": one} for number, one in enumerate(present)}}
    return {"file": file, "frame": 1, "success": 1, "confidence": 0.9, **box, **places, "answers": answers, **changes}


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_faces_of_two_tables_are_compared(tmp_path):
    none = {"file": "c.png", "frame": 1, "success": 0}
    before = write_rows(
        tmp_path / "before.jsonl", face_row("a.png", 0), face_row("a.png", 300), face_row("b.png", 0), none
    )
    moved = face_row("a.png", 303, (True, True), (20, 34, 60, 34))
    after = write_rows(tmp_path / "after.jsonl", moved, face_row("a.png", 0), face_row("b.png", 90), none)
    comparison = same_faces.compare(*map(same_faces.faces_of, (before, after)))
    assert [pair[1]["FaceRectX"] for pair in comparison.pairs] == [0, 303]
    assert [face["file"] for face in comparison.lost] == [face["file"] for face in comparison.new] == ["b.png"]
    assert comparison.boxes().tolist() == [0, 3]
    assert comparison.eyes().tolist() == pytest.approx([0, 0.1])  # 4 pixels of 40
    assert comparison.decisions() == {"disfa": (3, 4)}
    assert same_faces.run([str(before), str(after)]) == 1
    assert same_faces.run([str(before), str(before)]) == 0


def test_tables_that_cannot_be_compared(tmp_path, capsys):
    before = write_rows(tmp_path / "before.jsonl", face_row("a.png", 0))
    other = write_rows(tmp_path / "other.jsonl", face_row("b.png", 0))
    (tmp_path / "table.csv").write_text("file,frame\na.png,1\n")
    for after, message in ((other, "not of the same pictures"), (tmp_path / "table.csv", "line 1 is not a row")):
        assert same_faces.run([str(before), str(after)]) == 1
        assert message in capsys.readouterr().err


# ---- same_answers.py --------------------------------------------------------------------------------------------
def read_row(frame, present, probability, **changes):
    key = {"dataset": "rendered", "subject": "1", "clip": "0", "frame": frame, "format": "bp4d-intensity"}
    expected = [5 * each for each in probability]
    return {**key, "present": present, "values": present, "median": present, "probability": probability} | {
        "expected": expected,
        **changes,
    }


def write_evaluation(folder, *rows):
    folder.mkdir()
    Dataset.from_list(rows).to_parquet(folder / "predictions.parquet")
    return folder


def test_answers_of_two_evaluations_are_compared(tmp_path):
    unread = [float("nan")] * 5
    rows = [
        read_row(1, [1.0, 0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3, 0.4]),
        read_row(2, [0.0, 0, 0, 0, 0], [0.1, 0.1, 0.2, 0.3, 0.4]),
        read_row(3, unread, unread),
    ]
    changed = read_row(1, [1.0, 0, 0, 0, 1], [0.9, 0.1, 0.2, 0.3, 0.65], median=[1.0, 1, 1, 0, 0])
    before = write_evaluation(tmp_path / "before", *rows)
    after = write_evaluation(tmp_path / "after", *rows[2:0:-1], changed)  # the order does not matter
    found = same_answers.compare(*map(same_answers.rows_of, (before, after)))["bp4d-intensity"]
    assert {name: found[name] for name in ("images", "cells", "decisions", "values", "medians")} == {
        "images": 3,
        "cells": 15,
        "decisions": 14,
        "values": 14,
        "medians": 13,
    }
    assert (found["probability"], found["expected"]) == pytest.approx((0.25, 1.25))
    assert same_answers.run([str(before), str(after)]) == 1
    assert same_answers.run([str(before), str(before)]) == 0


def test_evaluations_that_cannot_be_compared(tmp_path, capsys):
    before = write_evaluation(tmp_path / "before", read_row(1, [1.0] * 5, [0.9] * 5))
    after = write_evaluation(tmp_path / "after", read_row(2, [1.0] * 5, [0.9] * 5))
    for other, message in ((after, "not of the same images and formats"), (tmp_path / "none", "make it with eval_au")):
        assert same_answers.run([str(before), str(other)]) == 1
        assert message in capsys.readouterr().err


# ---- throughput.py ----------------------------------------------------------------------------------------------
def test_throughput_counts_every_image_once():
    model, processor = build_tiny("phrases")
    batches = [torch.randn(count, 3, 32, 32) for count in (2, 3)]
    with torch.inference_mode():
        assert [task() for task in throughput.ways(model, processor, batches).values()] == [5, 5]


def test_throughput_is_measured_on_a_processor_too(tiny_checkpoint, capsys, monkeypatch):
    words = ["--model", str(tiny_checkpoint), "--device"]
    assert throughput.run([*words, "cpu", "--batch-size", "2", "--batches", "2", "--repeats", "1"]) == 0
    assert "with answers" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert throughput.run([*words, "cuda"]) == 1
    assert "There is no GPU" in capsys.readouterr().err
    assert throughput.run([*words, "cpu", "--batches", "0"]) == 1
    assert "must be positive" in capsys.readouterr().err


# ---- engines.py -------------------------------------------------------------------------------------------------
def test_engines_take_turns_with_one_picture_and_with_all(monkeypatch, capsys):
    """The first answer is the least of the short runs; a further picture costs the difference between the leasts."""
    seconds = iter([0.9, 1.5, 6.0, 7.0, 0.5, 1.3, 5.0, 7.5])  # onnx and torch below in the order of their turns
    calls = []

    def measured(words, core):
        files = [word for word in words if str(word).endswith(".jpg")]
        calls.append((words[words.index("--engine") + 1], len(files), core))
        return engines.Run(next(seconds), 100.0 + len(calls))

    monkeypatch.setattr(engines, "measure", measured)
    monkeypatch.setattr(engines, "ENGINES", ("onnx", "torch"))
    monkeypatch.setattr(engines, "reading_alone", lambda repeats: {"onnx": dict.fromkeys(engines.KINDS, 7.49)})
    assert engines.run(["--pictures", "4", "--repeats", "2", "--core", "1"]) == 0
    turn = [("onnx", 1, 1), ("onnx", 5, 1), ("torch", 1, 1), ("torch", 5, 1)]
    assert calls == turn * 2
    said = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["onnx", "0.50", "200.0", "105", "106"] in said
    assert ["torch", "5.00", "500.0", "107", "108"] in said
    assert ["onnx", "7.5", "7.5", "7.5", "7.5"] in said


def test_both_engines_read_every_kind(monkeypatch):
    kinds = {"one face": (1, ("bp4d",), 1), "two faces": (2, ("bp4d", "disfa"), 1)}
    monkeypatch.setattr(engines, "KINDS", kinds)
    read = engines.reading_alone(1)
    assert {name: list(times) for name, times in read.items()} == {name: list(kinds) for name in engines.ENGINES}
    assert all(time > 0 for times in read.values() for time in times.values())


def test_engines_need_pictures(capsys):
    assert engines.run(["--pictures", "0"]) == 1
    assert "must be positive" in capsys.readouterr().err


# ---- versions.py ------------------------------------------------------------------------------------------------
def test_both_versions_run_their_own_code_in_turns(tmp_path, monkeypatch):
    """Each folder is the package of its own run, `.` is its own checkpoint, and the best turn counts."""
    folders = {name: tmp_path / f"code-{name}" for name in ("before", "now")}
    seconds, calls = iter([8.0, 3.0, 7.0, 2.0]), []

    def measured(words, core, environment):
        [place] = environment.values()
        calls.append(((tmp_path / place / "au_llava").resolve(), words, core))
        return versions.Run(next(seconds), 100.0 + len(calls))

    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setattr(versions, "measure", measured)
    words = ["eval_au.py", "--model", ".", "--data", "records"]
    found = versions.in_turns(words, folders, tmp_path, SimpleNamespace(repeats=2, core=1))
    assert found == {"before": versions.Run(7.0, 103.0), "now": versions.Run(2.0, 104.0)}
    assert [place for place, _, _ in calls] == [*folders.values()] * 2
    for (_, used, core), folder in zip(calls, [*folders.values()] * 2, strict=True):
        assert used[:-2] == [folder / "eval_au.py", "--model", folder, "--data", "records"]
        assert (used[-2], core) == ("--out", 1)


def test_versions_need_a_clone(tmp_path, capsys):
    assert versions.run(["--before", str(tmp_path), "--data", "x"]) == 1
    assert "is not a clone of this project: git worktree add" in capsys.readouterr().err
