"""The command for one's own images: table, CSV, picture, and files that cannot be read."""

import csv
import shutil

import pytest
from PIL import Image

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import load_records
from au_llava.recognize_au import main, make_parser, openface_label


@pytest.fixture(scope="module")
def pictures(rendered_records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    records = load_records(rendered_records)
    for number in range(3):
        records[3 * number]["image"].save(folder / f"face{number}.png")
    return folder


def recognize(checkpoint, *words):
    return main(make_parser().parse_args([*map(str, words), "--model", str(checkpoint)]))


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_folder_gives_table_csv_and_picture(tiny_checkpoint, pictures, tmp_path, capsys):
    out, picture = tmp_path / "aus.csv", tmp_path / "aus.png"
    assert recognize(tiny_checkpoint, pictures, "--out", out, "--picture", picture) == 0
    rows = read_csv(out)
    assert [row["file"] for row in rows] == [str(pictures / f"face{number}.png") for number in range(3)]
    for row in rows:
        for label in FORMATS["bp4d"].labels:
            name = openface_label(label)
            assert row[f"{name}_c"] in ("0.0", "1.0")
            assert (float(row[f"{name}_p"]) >= 0.5) == (row[f"{name}_c"] == "1.0")
        assert all(0 <= float(row[f"{openface_label(label)}_r"]) <= 5 for label in FORMATS["disfa"].labels)
        assert all(0 <= float(row[openface_label(label)]) <= 1 for label in FORMATS["feafa"].labels)
    assert len(rows[0]) == 1 + 2 * 12 + 12 + 24
    assert Image.open(picture).size[0] > 500
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*MAIN_FORMATS, "face2.png"))


def test_batches_do_not_matter(tiny_checkpoint, pictures, tmp_path):
    recognize(tiny_checkpoint, pictures, "--out", tmp_path / "one.csv", "--batch_size", 1)
    recognize(tiny_checkpoint, pictures, "--out", tmp_path / "all.csv", "--batch_size", 8)
    for one, other in zip(read_csv(tmp_path / "one.csv"), read_csv(tmp_path / "all.csv"), strict=True):
        numbers = [name for name in one if name != "file"]
        assert [float(one[n]) for n in numbers] == pytest.approx([float(other[n]) for n in numbers], abs=2e-4)


def test_unreadable_files_are_named_counted_and_skipped(tiny_checkpoint, pictures, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(pictures, folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    assert recognize(tiny_checkpoint, folder, "--out", tmp_path / "aus.csv", "--formats", "bp4d") == 1
    errors = capsys.readouterr().err
    assert all(name in errors for name in ("broken.jpg", "empty.png", "1 x 1"))
    assert "3 of 6 files could not be read" in errors
    assert len(read_csv(tmp_path / "aus.csv")) == 3


def test_free_decoding_leaves_unread_cells_empty(tiny_checkpoint, pictures, tmp_path):
    words = [
        "--decoding",
        "free",
        "--formats",
        "bp4d",
        "--out",
        tmp_path / "aus.csv",
        "--picture",
        tmp_path / "aus.png",
    ]
    assert recognize(tiny_checkpoint, pictures / "face0.png", *words) == 0
    assert read_csv(tmp_path / "aus.csv")[0]["AU01_p"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere.png"], "no file or folder nowhere.png"), (["--formats", "bp5d"], "bp5d")],
)
def test_bad_input_is_named(tiny_checkpoint, pictures, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recognize(tiny_checkpoint, pictures, *words)


def test_folder_without_images(tiny_checkpoint, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="no image in the folder"):
        recognize(tiny_checkpoint, tmp_path)


def test_openface_labels():
    assert [openface_label(label) for label in ("AU1", "AU12", "AU5L", "AU43R", "AD30L")] == [
        "AU01",
        "AU12",
        "AU05L",
        "AU43R",
        "AD30L",
    ]
