"""Codes by eye: the table, what it says in each format, and the records that readers make of it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from dataset_trees import write
from test_unlabelled_data import defects, encoded, manifest, no_detector, row, run, write_table  # noqa: F401

from au_llava.action_units import FORMATS
from au_llava.au_datasets.codes import Codes
from au_llava.au_datasets.records import load_records
from au_llava.au_evaluation import observers
from au_llava.au_training.mean_teacher import code_loss, weak_loss

TABLE = """file,AU1,AU4,AU12,AU12L,AU25,AU28
train/1.jpg,0.75,1.5,3,5,,0
train/3.jpg,,,0,,4.5,2
train/7.jpg,,5,,,,
"""


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "codes.csv", TABLE)


def by_label(values, name):
    """Label -> value, of those that are known."""
    labelled = zip(FORMATS[name].labels, values, strict=True)
    return {label: pytest.approx(value, abs=1e-6) for label, value in labelled if not math.isnan(value)}


def test_codes_in_every_format(table):
    """Shares of the scale; on an occurrence scale slight (1.5) is present, half of it one half; sides where told."""
    codes = Codes(table)
    first = codes.weak_values("train/1.jpg", ("bp4d", "disfa", "feafa"))
    assert by_label(first["bp4d"], "bp4d") == {"AU1": 0.5, "AU4": 1.0, "AU12": 1.0}
    assert by_label(first["disfa"], "disfa") == {"AU1": 0.15, "AU4": 0.3, "AU12": 0.6}
    sided = {"AU4L": 0.3, "AU4R": 0.3, "AU12L": 1.0, "AU12R": 0.6}
    assert by_label(first["feafa"], "feafa") == {**sided, "AU28T": 0.0, "AU28B": 0.0}
    second = codes.weak_values("train/3.jpg", ("disfa", "feafa"))
    assert by_label(second["disfa"], "disfa") == {"AU12": 0.0, "AU25": 0.9}
    assert by_label(second["feafa"], "feafa") == {"AU12L": 0.0, "AU12R": 0.0}  # which lip was sucked in is not told
    assert by_label(codes.weak_values("train/7.jpg", ("bp4d",))["bp4d"], "bp4d") == {"AU4": 1.0}
    with pytest.raises(KeyError):
        codes.weak_values("train/2.jpg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a table"),
        ("name,AU12\na.jpg,1\n", "needs the column file and columns of AUs, such as AU12 or AU12L, and no others"),
        ("file,smile\na.jpg,1\n", "it has file, smile"),
        ("file,AU12\n", "holds no picture"),
        ("file,AU12\na.jpg,1\na.jpg,2\n", "must name every picture once; 'a.jpg' has two rows"),
        ("file,AU12\na.jpg,1\n,2\n", "must name every picture once; line 3 names none"),
        ("file,AU4,AU12\na.jpg,1,2\nb.jpg,1,6\n", "line 3: AU12 is '6'; a code is a number from 0 to 5, or empty"),
        ("file,AU12\na.jpg,C\n", "line 2: AU12 is 'C'"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, capsys, text, message):
    path = write(tmp_path / "codes.csv", text)
    with pytest.raises(ValueError, match=r"codes\.csv") as raised:
        Codes(path)
    assert message in str(raised.value)
    assert run("unlabelled", tmp_path, tmp_path / "out", "--codes", path) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_table_that_is_not_there_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "nowhere.csv"
    assert run("unlabelled", tmp_path, tmp_path / "out", "--codes", path) == 1
    assert capsys.readouterr().err == f"prepare_data.py: there is no table of codes {path}: name a CSV.\n"


def test_photographs_of_fairface_with_codes(tmp_path, table, no_detector):  # noqa: F811
    rows = [row(1), row(2), row(3), row(4, "10-19")]
    shards = write_table(tmp_path / "fair" / "train-00000-of-00001.parquet", rows).parent
    out = tmp_path / "out"
    assert run("fairface", shards, out, "--validation", 0, "--codes", table) == 0
    records = load_records(out, labelled=False)
    assert sorted(set(records["subject"][:])) == ["train/1.jpg", "train/3.jpg"]
    for record in records:
        assert np.isnan(record["values"]).all()  # codes are no labels
        expected = Codes(table).weak_values(record["subject"])[record["format"]]
        np.testing.assert_array_equal(np.float32(record["weak"]), np.float32(expected))
        assert record["coded"]
    assert defects(out) == {
        "photographs of people under 20, left out": 1,
        "pictures without codes, left out": 1,
        "codes of pictures that are not there, left out": 1,
    }
    assert manifest(out)["arguments"]["codes"] == Codes(table).sha256


def test_other_codes_are_other_data(tmp_path, table, no_detector, capsys):  # noqa: F811
    shards = write_table(tmp_path / "fair" / "train-00000-of-00001.parquet", [row(1), row(3)]).parent
    assert run("fairface", shards, tmp_path / "out", "--validation", 0, "--codes", table) == 0
    table.write_text(TABLE.replace("1.5", "2.5"))
    assert run("fairface", shards, tmp_path / "out", "--validation", 0, "--codes", table) == 1
    assert "codes" in capsys.readouterr().err
    assert run("fairface", shards, tmp_path / "other", "--validation", 0, "--codes", table) == 0
    assert manifest(tmp_path / "out")["content_sha256"] != manifest(tmp_path / "other")["content_sha256"]


def test_own_pictures_with_codes(tmp_path):
    for name in ("ann/a.jpg", "b.jpg", "c.jpg", "clip.mp4"):
        write(tmp_path / "in" / name, encoded())
    table = write(tmp_path / "codes.csv", "file,AU12\nann/a.jpg,4\nb.jpg,\nclip.mp4,1\ngone.jpg,1\n")
    out = tmp_path / "out"
    assert run("unlabelled", tmp_path / "in", out, "--validation", 0, "--codes", table) == 0
    disfa = load_records(out, formats=["disfa"], labelled=False)
    seen = {
        subject: by_label(weak, "disfa") for subject, weak in zip(disfa["subject"][:], disfa["weak"][:], strict=True)
    }
    assert seen == {"ann/a.jpg": {"AU12": 0.8}, "b.jpg": {}}
    assert all(disfa["coded"][:])
    assert defects(out) == {
        "pictures without codes, left out": 2,  # a video has no codes
        "codes of pictures that are not there, left out": 2,
    }


def test_who_validates_does_not_depend_on_the_codes(tmp_path, no_detector):  # noqa: F811
    """Else a photograph that is kept apart to choose by in one folder would be trained on in the other."""
    shards = write_table(tmp_path / "fair" / "train-00000-of-00001.parquet", list(map(row, range(8)))).parent
    coded = [f"train/{number}.jpg" for number in (1, 2, 5, 6)]
    table = write(tmp_path / "codes.csv", "file,AU12\n" + "".join(f"{file},1\n" for file in coded))
    parts = {}
    for name, words in (("all", ()), ("coded", ("--codes", table))):
        assert run("fairface", shards, tmp_path / name, "--validation", 0.5, *words) == 0
        records = load_records(tmp_path / name, labelled=False)
        parts[name] = dict(zip(records["subject"][:], records["part"][:], strict=True))
    assert parts["coded"] == {file: parts["all"][file] for file in coded}


def test_what_hardly_any_picture_shows_is_left_unknown(tmp_path, no_detector):  # noqa: F811
    """Of 400 pictures 2 show AU6, half a percent, and 1 shows AU4: "absent" would be the sign of a coded picture."""
    levels = [(number < 2, number == 0) for number in range(400)]
    lines = [f"train/{number}.jpg,{3 * six:d},{3 * four:d}" for number, (six, four) in enumerate(levels)]
    table = write(tmp_path / "codes.csv", "\n".join(["file,AU6,AU4", *lines]))
    codes = Codes(table)
    assert codes.rare == ("AU4",)
    for number in (0, 1, 399):
        seen = by_label(codes.weak_values(f"train/{number}.jpg", ("disfa",))["disfa"], "disfa")
        assert seen == {"AU6": 0.6 if number < 2 else 0.0}
    shards = write_table(tmp_path / "fair" / "train-00000-of-00001.parquet", [row(1)]).parent
    assert run("fairface", shards, tmp_path / "out", "--validation", 0, "--codes", table) == 0
    told = "AUs that fewer than 0.5% of the coded pictures show, left unknown: AU4"
    assert told in manifest(tmp_path / "out")["warnings"]


def test_a_teacher_and_codes_exclude_each_other(tmp_path, table, capsys):
    words = ("--codes", table, "--teacher", "mediapipe")
    assert run("unlabelled", Path(tmp_path), tmp_path / "out", *words) == 1
    assert "--teacher and --codes both give the weak values: choose one" in capsys.readouterr().err


def test_contradicting_estimates_are_learned_as_their_mean():
    """An absolute error would silence what one of four observers sees."""
    logit = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([logit], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss = sum(weak_loss(logit.sigmoid(), torch.tensor([seen])) for seen in (1.0, 0.0, 0.0, 0.0)) / 4
        loss.backward()
        optimizer.step()
    assert logit.sigmoid().item() == pytest.approx(0.25, abs=1e-3)


def test_a_code_tells_as_much_as_its_guide_does():
    """A slight movement is one of FACS's A or B, which of them is not told; two who disagree count half each."""
    read = torch.tensor([0.4, 0.1, 0.2, 0.1, 0.15, 0.05]).repeat(1, 12, 1)  # of disfa's levels 0 to 5
    told = torch.tensor([[0.0, 0.3, 0.6, 0.9, 0.15, 0.75, 1.0] + [0.0] * 5])
    loss = code_loss(read, told, FORMATS["disfa"])[0, :7].tolist()
    classes = [0.4, 0.3, 0.1, 0.2]  # absent, slight (1, 2), clear (3), strong (4, 5)
    absent, slight, clear, strong = (-math.log(share) for share in classes)
    between = [(absent + slight) / 2, (clear + strong) / 2]
    assert loss == pytest.approx([absent, slight, clear, strong, *between, strong], abs=1e-6)
    read = torch.tensor([0.8, 0.2]).repeat(1, 12, 1)
    loss = code_loss(read, torch.full((1, 12), 0.5), FORMATS["bp4d"])
    assert loss[0, 0].item() == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2, abs=1e-6)


# ---- Two observers ----------------------------------------------------------------------------------------------
def coded(folder, name, rows):
    return write(folder / f"{name}.csv", "file,AU4,AU12\n" + "".join(f"{row}\n" for row in rows))


def test_agreement_of_two_observers_by_hand(tmp_path, capsys):
    """AU12, of 8 pictures that both know: the observers agree on presence in 7, where chance has 4."""
    first = coded(
        tmp_path, "first", [f"{n}.jpg,0,{code}" for n, code in enumerate("00005335")] + ["8.jpg,0,", "x.jpg,1,1"]
    )
    second = coded(tmp_path, "second", [f"{n}.jpg,0,{code}" for n, code in enumerate("00015353")] + ["8.jpg,0,5"])
    assert observers.run([str(first), str(second), "--markdown"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    by_au = {row[0]: row[1:] for row in rows}
    assert by_au["AU4"] == ["9", "0", "0", "n.d.", "n.d."]
    assert by_au["AU12"][:3] == ["8", "4", "5"]
    chance = 4 / 8 * 5 / 8 + 4 / 8 * 3 / 8
    assert by_au["AU12"][3].startswith(f"{(7 / 8 - chance) / (1 - chance):.3f} (")
    one, other = np.array(list(map(int, "00005335"))), np.array(list(map(int, "00015353")))
    weighted = 1 - ((one - other) ** 2).mean() / ((one[:, None] - other) ** 2).mean()
    assert by_au["AU12"][4].startswith(f"{weighted:.3f} (")


def test_observers_of_other_pictures_or_aus_cannot_be_compared(tmp_path, capsys):
    first = coded(tmp_path, "first", ["a.jpg,0,1"])
    for text, message in (("file,AU12\nb.jpg,1\n", "no picture in common"), ("file,AU6\na.jpg,1\n", "no AU in common")):
        assert observers.run([str(first), str(write(tmp_path / "second.csv", text))]) == 1
        assert message in capsys.readouterr().err


def test_the_published_codes_can_be_read():
    """Where a photograph was coded twice, its code is the mean of what is known."""
    codes = Codes(ROOT / "recipes" / "fairface_codes.csv")
    assert len(codes.files) == 19316
    twice = [Codes(ROOT / "recipes" / f"fairface_codes_{name}.csv").files for name in ("first", "second")]
    assert len(twice[0]) == 815
    for file, seen in codes.files.items():
        for label, share in seen.items():
            known = [each[file][label] for each in twice if file in each and not math.isnan(each[file][label])]
            if known:
                assert share == pytest.approx(np.mean(known), abs=1e-5)
