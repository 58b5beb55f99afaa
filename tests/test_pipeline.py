"""The pipeline: what it returns is what `recognize` reads, batch by batch, and a stranger gets it from a checkpoint."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT, TOWERS, build_tiny, random_faces
from PIL import Image
from transformers import AutoConfig, pipeline

from au_llava.action_units import ACTION_UNITS, FORMATS, MAIN_FORMATS, AUFormat
from au_llava.configuration_au_llava import CUSTOM_PIPELINES
from au_llava.pipeline_au_llava import AURecognitionPipeline

# AU1 of bp4d counts as present from 0.999 on, AU2 from 0.001 on; every other AU from 0.5 on.
CALIBRATION = {
    "formats": {
        "bp4d": {
            "scale": "occurrence",
            "presence_threshold": 1.0,
            "aus": {"AU1": {"method": "none", "threshold": 0.999}, "AU2": {"method": "none", "threshold": 0.001}},
        }
    }
}


@pytest.fixture(scope="module")
def recognizer():
    model, processor = build_tiny(calibration=CALIBRATION)
    return AURecognitionPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five picture files."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, face in enumerate(random_faces(5)):
        Image.fromarray((face * 255).astype("uint8")).save(folder / f"{index}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def by_au(found) -> dict:
    """(format, label) -> what the pipeline says of it."""
    return {(au["format"], au["label"]): au for au in found}


def scores(results) -> torch.Tensor:
    """(images, AUs) scores, in the order of format and label."""
    return torch.tensor([[au["score"] for _, au in sorted(by_au(found).items())] for found in results])


def test_it_says_what_recognize_reads(recognizer, pictures):
    found = recognizer(pictures[0])
    expected = recognizer.model.recognize(recognizer.processor, pictures[0])[0]
    keys = {"label", "score", "name", "format", "value", "expected", "median", "present"}
    assert all(au.keys() == keys for au in found)
    assert len(found) == 12 + 12 + 24
    assert by_au(found).keys() == {(name, label) for name in MAIN_FORMATS for label in FORMATS[name].labels}
    for (name, label), au in by_au(found).items():
        reading = expected[name][label]
        assert (au["value"], au["median"], au["present"]) == (reading.value, reading.median, reading.present)
        assert au["score"] == pytest.approx(reading.probability, abs=1e-6)
        assert au["expected"] == pytest.approx(reading.expected, abs=1e-5)
        assert au["name"] == ACTION_UNITS[label].name
    assert json.loads(json.dumps(found)) == found  # plain numbers only


def test_the_highest_score_comes_first_and_top_k_is_of_the_whole_list(recognizer, pictures):
    every = recognizer(pictures[0])
    assert [au["score"] for au in every] == sorted((au["score"] for au in every), reverse=True)
    assert recognizer(pictures[0], top_k=3) == every[:3]
    assert recognizer(pictures[0], top_k=1000) == every
    disfa = recognizer(pictures[0], formats="disfa", top_k=2)
    best = [(au["format"], au["label"]) for au in every if au["format"] == "disfa"][:2]
    assert [(au["format"], au["label"]) for au in disfa] == best


def test_presence_is_decided_by_the_calibrated_thresholds_or_by_one(recognizer, pictures):
    calibrated = by_au(recognizer(pictures[0]))
    assert not calibrated["bp4d", "AU1"]["present"]
    assert calibrated["bp4d", "AU2"]["present"]
    assert 0.001 < calibrated["bp4d", "AU1"]["score"] < 0.999
    for key, au in calibrated.items():
        if key not in (("bp4d", "AU1"), ("bp4d", "AU2")):
            assert au["present"] == (au["score"] >= 0.5)
    threshold = sorted(au["score"] for au in calibrated.values())[24]  # half of the AUs have it
    decided = by_au(recognizer(pictures[0], threshold=threshold))
    assert decided.keys() == calibrated.keys()
    assert 0 < sum(au["present"] for au in decided.values()) < len(decided)
    for key, au in decided.items():
        assert au["present"] == (au["score"] >= threshold)
        assert au["value"] == (float(au["present"]) if key[0] == "bp4d" else calibrated[key]["value"])


def test_a_format_of_ones_own(recognizer, pictures):
    mine = AUFormat(name="mine", labels=("AU6", "AU12"), scale="intensity")
    found = recognizer(pictures[0], formats=mine)
    assert sorted((au["label"], au["format"]) for au in found) == [("AU12", "mine"), ("AU6", "mine")]
    assert by_au(recognizer(pictures[0], formats=mine.to_dict())) == by_au(found)


def test_arguments_of_pipeline_hold_for_every_call_and_a_call_overrides_them(recognizer, pictures):
    settings = {"model": recognizer.model, "processor": recognizer.processor, "device": "cpu"}
    one = AURecognitionPipeline(formats=["disfa"], top_k=2, batch_size=2, **settings)
    assert [len(found) for found in one(pictures)] == [2] * 5
    assert {au["format"] for au in one(pictures[0])} == {"disfa"}
    assert len(one(pictures[0], formats="bp4d", top_k=4)) == 4


def test_a_batch_is_one_forward_pass_and_an_image_is_encoded_once(recognizer, pictures):
    encoded, passes = [], []
    model = recognizer.model
    tower = model.model.vision_tower
    hooks = [
        tower.register_forward_pre_hook(
            lambda _, args, kwargs: encoded.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
        ),
        model.model.language_model.register_forward_hook(lambda *_: passes.append(1)),
    ]
    try:
        batched = recognizer([*pictures, *pictures[:3]], batch_size=8)
        assert (encoded, len(passes)) == ([8], 1)
        encoded.clear()
        uneven = recognizer(pictures, batch_size=2)
        assert encoded == [2, 2, 1]
        encoded.clear()
        single = recognizer(pictures)
        assert encoded == [1] * 5
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(scores(batched[:5]), scores(single), rtol=0, atol=1e-4)
    torch.testing.assert_close(scores(uneven), scores(single), rtol=0, atol=1e-4)
    assert scores(single).std(0).max() > 1e-3  # the images differ, so that mixing them up would show


def test_paths_pictures_generators_and_datasets_give_the_same(recognizer, pictures):
    expected = recognizer(pictures, formats="bp4d")
    opened = [Image.open(path) for path in pictures]
    assert recognizer(opened[0], formats="bp4d") == expected[0]
    assert recognizer(opened, formats="bp4d") == expected
    assert list(recognizer((image for image in opened), formats="bp4d")) == expected

    class Folder(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            return pictures[index]

    assert list(recognizer(Folder(), formats="bp4d")) == expected


def test_a_url_is_fetched_here_and_nowhere_else(recognizer, pictures):
    folder = os.path.dirname(pictures[0])
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/0.png"
            assert recognizer(url, formats="bp4d") == recognizer(pictures[0], formats="bp4d")
            with pytest.raises(ValueError, match=r"missing\.png cannot be read as an image"):
                recognizer(url.replace("0.png", "missing.png"))
            with pytest.raises(ValueError, match="URLs are not fetched unless asked for"):
                recognizer.model.recognize(recognizer.processor, url)
        finally:
            server.shutdown()


def test_half_precision_is_that_of_the_model(pictures):
    model, processor = build_tiny()
    model.bfloat16()
    found = AURecognitionPipeline(model=model, processor=processor, device="cpu")(pictures[0], formats="bp4d")
    expected = model.recognize(processor, pictures[0], formats="bp4d")[0]["bp4d"]
    assert {au["label"]: au["score"] for au in found} == {label: au.probability for label, au in expected.items()}


def test_a_model_in_training_is_read_in_evaluation_mode(pictures):
    model, processor = build_tiny(vision_config=TOWERS["resnet"][0])  # batch norm: it would show
    recognizer = AURecognitionPipeline(model=model, processor=processor, device="cpu")
    expected = scores(recognizer(pictures))
    model.train()
    torch.testing.assert_close(scores(recognizer(pictures)), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, r"^top_k is 0; it must be a whole number, 1 or more, or None for all AUs\.$"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_k": "3"}, "top_k is '3'"),
        ({"threshold": 1.01}, r"^threshold is 1.01; it must be a number from 0 to 1, or None for the checkpoint's own"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "0.5"}, "threshold is '0.5'"),
        ({"formats": "bp5d"}, "unknown format 'bp5d'; choose one of"),
        ({"formats": ["bp4d", "bp4d"]}, "none twice"),
        ({"formats": []}, "at least one format"),
        ({"formats": 4}, "4 is not a format"),
    ],
)
def test_settings_that_cannot_work_end_in_one_sentence(recognizer, pictures, settings, message):
    with pytest.raises(ValueError, match=message):
        recognizer(pictures[0], **settings)
    with pytest.raises(ValueError, match=message):
        AURecognitionPipeline(model=recognizer.model, processor=recognizer.processor, **settings)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("notes.txt", ValueError, "notes.txt cannot be read as an image"),
        ("gone.png", FileNotFoundError, "There is no image file '.*gone.png'"),
        (".", ValueError, "is a folder, not an image file"),
    ],
)
def test_files_that_cannot_be_read_end_in_one_sentence(recognizer, tmp_path, inputs, error, message):
    (tmp_path / "notes.txt").write_text("AU12: 5")
    with pytest.raises(error, match=message):
        recognizer(str(tmp_path / inputs))
    with pytest.raises(error, match=message):
        recognizer([str(tmp_path / inputs)], batch_size=2)


@pytest.mark.parametrize(("inputs", "message"), [([], "an empty list"), ((), "an empty list"), (7, "a int arrived")])
def test_what_is_no_image_ends_in_one_sentence(recognizer, inputs, message):
    with pytest.raises(ValueError, match=message):
        recognizer(inputs)


def test_a_model_without_its_processor_is_refused(tiny):
    with pytest.raises(ValueError, match="There is no processor"):
        AURecognitionPipeline(model=tiny[0])


def test_every_saved_checkpoint_registers_the_pipeline_and_holds_its_code(tiny, tmp_path):
    tiny[0].save_pretrained(tmp_path)
    registered = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert registered == CUSTOM_PIPELINES == json.loads((ROOT / "config.json").read_text())["custom_pipelines"]
    module, _, name = registered["au-recognition"]["impl"].rpartition(".")
    assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


@pytest.mark.parametrize("task", ["au-recognition", None])
def test_the_repository_is_a_pipeline(monkeypatch, task):
    monkeypatch.chdir(ROOT)
    recognizer = pipeline(task, model=".", trust_remote_code=True, device="cpu")
    assert type(recognizer).__name__ == "AURecognitionPipeline"
    assert recognizer.task == "au-recognition"
    found = recognizer("assets/faces/smile.png", formats="bp4d")
    expected = recognizer.model.recognize(recognizer.processor, "assets/faces/smile.png", formats="bp4d")[0]["bp4d"]
    assert {au["label"]: au["present"] for au in found} == {label: au.present for label, au in expected.items()}
    configured = AutoConfig.from_pretrained(".", trust_remote_code=True).custom_pipelines
    assert recognizer.model.config.custom_pipelines == configured == CUSTOM_PIPELINES  # `pipeline` wrote into neither


# What a process without this package runs, in an empty folder: checkpoint, folder to save to, pictures.
STRANGER = """
import json, sys

sys.modules["au_llava"] = None  # importing it fails
from transformers import pipeline

folder, out, *pictures = sys.argv[1:]
try:
    pipeline("au-recognition", model=folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("remote code ran without being trusted to")

recognizer = pipeline("au-recognition", model=folder, trust_remote_code=True, device="cpu")
first = recognizer(pictures, batch_size=2)
half = pipeline(model=folder, trust_remote_code=True, device="cpu", dtype="bfloat16")
assert (half.task, str(half.dtype), half.model.dtype) == ("au-recognition", "torch.bfloat16", half.dtype)
assert len(half(pictures[0], top_k=5)) == 5
recognizer.save_pretrained(out)
again = pipeline("au-recognition", model=out, trust_remote_code=True, device="cpu")(pictures, batch_size=2)
print(json.dumps([first, again]))
"""


def test_a_stranger_gets_it_from_a_copied_checkpoint(recognizer, pictures, tmp_path):
    for part in (recognizer.model, recognizer.processor):
        part.save_pretrained(tmp_path / "saved")
    checkpoint = shutil.copytree(tmp_path / "saved", tmp_path / "elsewhere" / "a checkpoint")
    shutil.rmtree(tmp_path / "saved")
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(checkpoint), str(tmp_path / "again"), *pictures],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    first, again = json.loads(process.stdout)
    expected = recognizer(pictures, batch_size=2)
    assert [[au["label"] for au in found[:3]] for found in first] == [
        [au["label"] for au in found[:3]] for found in expected
    ]
    torch.testing.assert_close(scores(first), scores(expected), rtol=0, atol=1e-6)
    assert again == first
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {path.name for path in checkpoint.iterdir()}
