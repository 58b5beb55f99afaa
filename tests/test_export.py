"""The exported slots pass: equal to `recognize` in any batch, with its calibration, and usable without PyTorch."""

import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, TOWERS, build_tiny, random_faces
from PIL import Image
from transformers import AutoProcessor

from au_llava.action_units import FORMATS, AUFormat
from au_llava.au_publishing import onnx_file
from au_llava.au_publishing.export import INPUT_NAME, SlotsGraph, export
from au_llava.au_publishing.onnx_file import METADATA_KEY
from au_llava.calibration_au_llava import Calibration, calibrate
from au_llava.decoding_au_llava import read_slots
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

FMTS = (FORMATS["disfa"], FORMATS["bp4d"])
CURVE = {
    "method": "isotonic",
    "probability": [0.0, 0.2, 0.2, 1.0],
    "calibrated": [0.1, 0.2, 0.6, 0.9],
    "threshold": 0.3,
}
CALIBRATION = {
    "fitted_on": {},
    "formats": {
        "disfa": {
            "scale": "intensity",
            "presence_threshold": 2.0,
            "aus": {
                "AU12": {"method": "temperature", "temperature": 1.7, "threshold": 0.4},
                "AU4": CURVE,
                "AU9": CURVE | {"probability": [0.0, 1.0], "calibrated": [0.0, 0.5]},
            },
        },
        "bp4d": {
            "scale": "occurrence",
            "presence_threshold": 1.0,
            "aus": {"AU6": {"method": "temperature", "temperature": 0.6, "threshold": 0.7}},
        },
    },
}
PHOTOGRAPHS = {"photographs": {"shift": -1.4, "threshold": 0.5}}
SHIFTED = {
    "fitted_on": {},
    "prior": "photographs",
    "formats": {
        name: {**of_format, "aus": {label: entry | PHOTOGRAPHS for label, entry in of_format["aus"].items()}}
        for name, of_format in CALIBRATION["formats"].items()
    },
}


@pytest.fixture(scope="module")
def exported(tiny_checkpoint, tmp_path_factory):
    """(model, processor, ONNX file) of a calibrated checkpoint, the file made by the command."""
    folder = tmp_path_factory.mktemp("export")
    model = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model.config.calibration = CALIBRATION
    model.config.mirror_images = True
    model.save_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    processor.save_pretrained(folder / "model")
    words = ["--model", folder / "model", "--formats", "disfa", "bp4d", "--out", folder / "au_llava.onnx"]
    assert onnx_file.run(list(map(str, words))) == 0
    assert {path.name for path in folder.iterdir()} == {"model", "au_llava.onnx"}
    return model.eval(), processor, folder / "au_llava.onnx"


def distributions(results, name: str) -> np.ndarray:
    return np.array([[reading.distribution for reading in result[name].values()] for result in results])


@pytest.mark.parametrize("images", [1, 2, 5])
def test_onnx_equals_recognize(exported, images):
    model, processor, path = exported
    faces = random_faces(images, seed=images)
    session = onnxruntime.InferenceSession(path)
    pixels = processor.image_processor(faces, return_tensors="pt")["pixel_values"]
    found = session.run(["disfa", "bp4d"], {INPUT_NAME: pixels.numpy()})
    results = model.recognize(processor, faces, formats=["disfa", "bp4d"])
    for name, read in zip(("disfa", "bp4d"), found, strict=True):
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, distributions(results, name), atol=1e-4, rtol=0)
        np.testing.assert_allclose(read.sum(-1), 1, atol=1e-5)
    with torch.no_grad():
        raw = read_slots(model, processor, pixels, FMTS)["disfa"].numpy()
    assert np.abs(raw - found[0]).max() > 1e-2  # the calibration is in it


def test_metadata_say_what_is_what(exported):
    *_, path = exported
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert [(each.name, each.shape[1:]) for each in session.get_outputs()] == [("disfa", [12, 6]), ("bp4d", [12, 2])]
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:]) == (about["input"]["name"], about["input"]["shape"][1:])
    assert about["input"]["crop"] == [32, 32]
    assert about["input"]["resampling"] == "bicubic"
    disfa, bp4d = about["outputs"]
    assert (disfa["values"], disfa["presence_threshold"], disfa["scale"]) == ([0, 1, 2, 3, 4, 5], 2, "intensity")
    assert tuple(disfa["labels"]) == FORMATS["disfa"].labels
    assert dict(zip(disfa["labels"], disfa["thresholds"], strict=True)) == dict.fromkeys(disfa["labels"], 0.5) | {
        "AU12": 0.4,
        "AU4": 0.3,
        "AU9": 0.3,
    }
    assert bp4d["thresholds"][bp4d["labels"].index("AU6")] == 0.7


def test_the_reader_in_the_document_needs_neither_torch_nor_transformers(exported, tmp_path):
    """docs/serving.md, run on a square picture where neither can be imported, gives the numbers of `recognize`."""
    model, processor, path = exported
    document = (ROOT / "docs" / "serving.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "onnxruntime" in block)
    picture = tmp_path / "assets" / "faces" / "smile.png"
    picture.parent.mkdir(parents=True)
    Image.fromarray((random_faces(1, seed=9)[0] * 255).astype(np.uint8)).save(picture)
    (tmp_path / "au_llava.onnx").write_bytes(path.read_bytes())
    blocked = "import sys\nfor name in ('torch', 'transformers', 'au_llava'):\n    sys.modules[name] = None\n"
    run = subprocess.run([sys.executable, "-c", blocked + code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split() for line in run.stdout.splitlines()]
    (result,) = model.recognize(processor, picture, formats=["disfa", "bp4d"])
    wanted = [(name, label, reading) for name, answer in result.items() for label, reading in answer.items()]
    assert len(rows) == len(wanted) == 24
    for (name, label, expected, probability, present), (fmt, au, reading) in zip(rows, wanted, strict=True):
        assert (name, label) == (fmt, au)
        assert float(expected) == pytest.approx(reading.expected, abs=2e-3)
        assert float(probability) == pytest.approx(reading.probability, abs=2e-3)
        assert present == str(reading.present)


@pytest.mark.parametrize("name", ["disfa", "bp4d", "feafa"])
@pytest.mark.parametrize("calibration", [None, CALIBRATION, SHIFTED, SHIFTED | {"prior": "rendered"}])
def test_calibration_is_that_of_recognize(name, calibration):
    """Against `calibrate`, on distributions: even, uneven, nearly certain, and on both sides of a curve's step."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(0)
    rows = len(fmt.labels)
    logits = torch.tensor(rng.normal(scale=[[[0.1]], [[3]], [[30]]], size=(3, rows, len(fmt.value_numbers))))
    present = torch.tensor(fmt.value_numbers) >= fmt.presence_threshold
    masses = torch.tensor([0.05, 0.19, 0.199, 0.201, 0.21, 0.8], dtype=torch.float64)[:, None, None]
    of_mass = torch.where(present, masses / present.sum(), (1 - masses) / (~present).sum()).expand(-1, rows, -1)
    exact = torch.cat([logits.log_softmax(-1), of_mass.log()])
    expected, _ = calibrate(exact.exp().numpy(), fmt, calibration)
    found = Calibration.of(calibration, fmt, torch)(exact.float())
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    if calibration is not None and name == "disfa":
        assert np.abs(expected - exact.exp().numpy()).max() > 0.1


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("tower", TOWERS)
def test_graph_of_every_tower(tower, mirror):
    vision, *_ = TOWERS[tower]
    fmts = (*FMTS, AUFormat("sides", ("AU12L", "AU2R", "AU12R"), "intensity"))
    layer = [-1, -2] if tower == "clip" else None  # two layers side by side, as LLaVA variants have it
    model, processor = build_tiny("single digits", vision, vision_feature_layer=layer, mirror_images=mirror)
    pixels = processor.image_processor(random_faces(3), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = SlotsGraph(model, processor, fmts)(pixels)
        expected = read_slots(model, processor, pixels, fmts)
    for fmt in fmts:
        torch.testing.assert_close(found[fmt.name].double(), expected[fmt.name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mirror", [False, True])
def test_program_of_a_vit_takes_any_number_of_images(mirror):
    """With grouped digits, the values of FEAFA take several decisions."""
    model, processor = build_tiny("grouped digits", mirror_images=mirror)
    formats = (FORMATS["feafa"],)
    program = export(model, processor, formats).module()
    for images in (1, 4):
        pixels = processor.image_processor(random_faces(images), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = read_slots(model, processor, pixels, formats)["feafa"]
            torch.testing.assert_close(program(pixels)["feafa"].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "model.pt"], "must end in .onnx"),
        (["--out", "{exists}"], "exists: choose another --out"),
        (["--out", "new.onnx", "--formats", "emotions"], "emotions"),
        (["--out", "new.onnx", "--formats", "bp4d", "bp4d"], "none twice"),
    ],
)
def test_bad_input_is_named(tmp_path, words, message, capsys):
    (tmp_path / "there.onnx").touch()
    words = [word.format(exists=tmp_path / "there.onnx") for word in words]
    assert onnx_file.run(words) == 1
    assert message in capsys.readouterr().err


def test_a_graph_that_differs_is_not_kept(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_file, "save_onnx", lambda model, processor, formats, path: path.touch())
    monkeypatch.setattr(onnx_file, "largest_difference", lambda *_: float("nan"))
    words = ["--model", str(tiny_checkpoint), "--out", str(tmp_path / "x.onnx")]
    assert onnx_file.run(words) == 1
    assert "differs by nan" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
