"""benchmarks/animation.py and the adapters in checkpoints/arkit: ARKit's shapes."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, load_tool
from transformers import AutoModel, AutoProcessor

from au_llava import recognize_au
from au_llava.action_units import FORMATS
from au_llava.au_evaluation.photographs import Readings
from au_llava.au_faces.landmarks import BLENDSHAPES
from au_llava.au_readers import fairface
from au_llava.au_recognition.derived import ARKIT
from au_llava.au_rendering.pictures import render_face
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.formats import read_format

animation = load_tool("animation")
FORMAT = read_format(ROOT / "recipes" / "formats" / "arkit.yaml")


def test_every_shape_but_the_gaze_has_a_source():
    chosen = animation.sources_of(FORMAT)
    assert {*ARKIT} - {*chosen} == {shape for shape in ARKIT if "Look" in shape}
    assert len(chosen) == 44
    assert {*chosen.values()} == {*FORMAT.labels}
    assert (chosen["mouthSmileLeft"], chosen["noseSneerLeft"], chosen["mouthClose"]) == ("AU12L", "AU9", "AU8")
    assert len(animation.sources_of(FORMATS["feafa"])) == 27


def test_a_reading_is_compared_with_the_shape_of_its_name():
    rng = np.random.default_rng(0)
    columns = tuple((FORMAT.name, label) for label in FORMAT.labels)
    expected, blendshapes = rng.random((60, len(columns))), np.full((60, 52), 0.5)
    smiles = expected[:, FORMAT.labels.index("AU12R")]
    blendshapes[:, BLENDSHAPES.index("mouthSmileRight")] = 0.25 + 0.5 * smiles
    blendshapes[:, BLENDSHAPES.index("jawLeft")] = 1 - expected[:, FORMAT.labels.index("AD30L")]
    blendshapes[5] = np.nan  # no face found
    agreed = animation.agreement(Readings(columns, expected, expected, expected), FORMAT, blendshapes, list(range(60)))
    assert agreed.keys() == {shape for shape in ARKIT if "Look" not in shape} - {"tongueOut"}
    assert agreed["mouthSmileRight"]["value"] == pytest.approx(1)
    assert agreed["mouthSmileRight"]["n"] == 59
    assert agreed["mouthSmileRight"]["spread"] == pytest.approx(
        0.25 + 0.5 * np.percentile(np.delete(smiles, 5), 95), abs=1e-3
    )
    assert agreed["jawLeft"]["value"] == pytest.approx(-1)
    assert np.isnan(agreed["jawOpen"]["value"])  # MediaPipe's never changes


def test_blendshapes_are_found_by_the_file(tmp_path):
    fairface.rows_of.cache_clear()
    with pytest.raises(ValueError, match=r"no Parquet file in .* has blendshapes of these photographs"):
        animation.measured_blendshapes(tmp_path, ["train/1.jpg"])
    values = [np.linspace(0, 1, 52).tolist(), np.linspace(1, 0, 52).tolist(), None]
    rows = {"file": ["train/1.jpg", "train/2.jpg", "train/3.jpg"], "age": ["20-29"] * 3, "blendshapes": values}
    table = pa.table({"image": [{"bytes": b"", "path": None}] * 3, **rows})
    names = " ".join(reversed(BLENDSHAPES))
    pq.write_table(
        table.replace_schema_metadata({"blendshape_names": names}), tmp_path / "train-00000-of-00001.parquet"
    )
    found = animation.measured_blendshapes(tmp_path, ["train/2.jpg", "train/3.jpg", "train/1.jpg"])
    np.testing.assert_allclose(found[0], np.linspace(0, 1, 52))  # in our order, the file's reversed
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[2], np.linspace(1, 0, 52))


@pytest.fixture(scope="module")
def shipped():
    """The adapters in checkpoints/arkit on the checkpoint at the root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield load_checkpoint("checkpoints/arkit")


def test_the_shipped_adapters_are_small():
    folder = ROOT / "checkpoints" / "arkit"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "."


def test_the_shipped_adapters_see_what_the_three_formats_lack(shipped):
    """A rendered person of a seed that no training has: each movement reads higher than on the face at rest."""
    model, processor = shipped

    def read(strengths):
        pictures = [render_face(strengths, subject, seed=9) for subject in range(4)]
        answers = model.recognize(processor, pictures, formats=[FORMAT])
        values = np.array([[reading.expected for reading in each["arkit"].values()] for each in answers])
        return dict(zip(FORMAT.labels, values.mean(axis=0), strict=True))

    rest = read({})
    assert read({"AU22": 1.0, "AU25": 1.0})["AU22"] > rest["AU22"] + 0.3
    assert read({"AD19": 1.0, "AU25": 0.6})["AD19"] > rest["AD19"] + 0.05
    left, right = read({"AD101L": 1.0}), read({"AD101R": 1.0})
    assert left["AD101L"] > max(rest["AD101L"], left["AD101R"]) + 0.05
    assert right["AD101R"] > max(rest["AD101R"], right["AD101L"]) + 0.05
    assert read({"AD102": 1.0, "AU17": 1.0})["AD102"] > rest["AD102"] + 0.2


def test_the_auto_classes_load_them_too(shipped, monkeypatch):
    monkeypatch.chdir(ROOT)
    model = AutoModel.from_pretrained("checkpoints/arkit", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
    smile = "assets/faces/smile.png"
    [read], [expected] = (
        each.recognize(reader, smile, formats=[FORMAT]) for each, reader in ((model, processor), shipped)
    )
    assert read["arkit"].text == expected["arkit"].text
    assert read["arkit"]["AU12L"].expected == pytest.approx(expected["arkit"]["AU12L"].expected, abs=1e-5)


def test_the_command_fills_the_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(FORMATS, FORMAT.name, FORMAT)  # unknown again to the tests that follow
    table = tmp_path / "shapes.csv"
    words = ["assets/faces/smile.png", "assets/faces/surprise.png", "--no-detect", "--model", "checkpoints/arkit"]
    words += ["--formats", "recipes/formats/arkit.yaml", "--derive", "arkit", "--out", str(table)]
    assert recognize_au.run(words) == 0
    smile, surprise = csv.DictReader(table.open())
    for row in (smile, surprise):
        assert all(0 <= float(row[shape]) <= 1 for shape in ARKIT)
    assert float(smile["mouthSmileLeft"]) > 0.3 > float(surprise["mouthSmileLeft"])
    assert float(surprise["jawOpen"]) > 0.3 > float(smile["jawOpen"])
