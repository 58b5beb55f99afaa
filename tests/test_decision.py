"""The decision model: Transformers' interface for typed questions answers what `recognize` reads."""

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, build_tiny, random_faces
from huggingface_hub import ModelCard
from PIL import Image
from transformers import (
    AutoModelForDecision,
    AutoModelForMultimodalLM,
    AutoProcessor,
    DecisionConfig,
    DecisionPipeline,
    pipeline,
)
from transformers.utils.import_utils import is_serve_available

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import CHATML_TEMPLATE

LEVELS = ["absent", "trace", "slight", "marked", "severe", "maximum"]
TENTHS = [f"{level / 10:.1f}" for level in range(11)]
HUNDREDTHS = [f"{level / 100:.2f}" for level in range(101)]
CALIBRATION = {
    "formats": {
        name: {
            "scale": FORMATS[name].scale,
            "presence_threshold": FORMATS[name].presence_threshold,
            "aus": {
                label: {
                    "method": "temperature",
                    "temperature": 1.7,
                    "threshold": 0.4,
                    "photographs": {"shift": -1.1, "threshold": 0.5},
                }
                for label in FORMATS[name].labels
            },
        }
        for name in MAIN_FORMATS
    },
    "prior": "photographs",
}


def face(seed: int = 0) -> Image.Image:
    return Image.fromarray((random_faces(1, seed)[0] * 255).astype("uint8"))


def as_file(image: Image.Image, kind: str = "PNG", **options) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def asset(image: Image.Image) -> dict:
    return {"type": "image", "format": "png", "data_base64": as_file(image)}


def request(questions: dict, image: Image.Image | None = None) -> dict:
    return {"state": "face", "assets": {"face": asset(image or face())}, "questions": questions}


def all_questions() -> dict:
    """Every AU of the main formats, the continuous ones in tenths, and each of them as a yes or no."""
    scores = {f"{name} {label}": name for name in ("disfa", "feafa") for label in FORMATS[name].labels}
    criteria = {"disfa": LEVELS, "feafa": TENTHS}
    questions = {f"is {name} {label}": None for name in MAIN_FORMATS for label in FORMATS[name].labels}
    return {name: {"type": "noul", "instructions": name.removeprefix("is ")} for name in questions} | {
        name: {"type": "score", "criteria": criteria[fmt]} for name, fmt in scores.items()
    }


def check_answers(answers: dict, result: dict, tolerance: float = 1e-7):
    """`answers` to `all_questions` say what `result` of `recognize` says."""
    assert answers.keys() == all_questions().keys()
    for name, answer in answers.items():
        *_, fmt, label = name.split()
        reading = result[fmt][label]
        if answer["type"] == "noul":
            assert answer["noul"] == pytest.approx(reading.probability, abs=tolerance), name
            continue
        probabilities = list(answer["probabilities"].values())
        if fmt == "disfa":
            assert probabilities == pytest.approx(reading.distribution, abs=tolerance), name
            assert answer["score"] == pytest.approx(reading.expected, abs=10 * tolerance), name
            assert answer["legend"] == dict(zip("012345", LEVELS, strict=True))
        else:
            nearest = np.floor(np.arange(101) / 10 + 0.5).astype(int)
            shares = np.bincount(nearest, weights=reading.distribution)
            assert probabilities == pytest.approx(shares, abs=tolerance), name
            assert answer["score"] / 10 == pytest.approx(reading.expected, abs=0.05), name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved checkpoint that reads mirror images and is calibrated."""
    folder = tmp_path_factory.mktemp("decision") / "checkpoint"
    for part in build_tiny(mirror_images=True, calibration=CALIBRATION):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decide(checkpoint):
    return pipeline("decision", model=str(checkpoint), trust_remote_code=True)


@pytest.fixture(scope="module")
def expected(decide):
    return decide.model.recognize(decide.processor, face())[0]


def test_every_question_of_a_request_is_answered_as_by_recognize(decide, expected):
    check_answers(decide(request(all_questions())), expected)
    check_answers(decide(json.dumps(request(all_questions()))), expected)


def test_calibration_and_mirror_images_matter_here(decide, expected):
    """Otherwise the test above would prove less than it says."""
    config = decide.model.config
    plain, config.calibration, config.mirror_images = (config.calibration, config.mirror_images), None, False
    try:
        raw = decide.model.recognize(decide.processor, face())[0]
    finally:
        config.calibration, config.mirror_images = plain
    assert abs(raw["bp4d"]["AU12"].probability - expected["bp4d"]["AU12"].probability) > 1e-3


def test_one_forward_pass_answers_all(decide):
    passes = []
    handle = decide.model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        decide(request(all_questions()))
    finally:
        handle.remove()
    assert len(passes) == 1


def test_a_continuous_au_can_be_asked_value_by_value(decide, expected):
    questions = {"AU26": {"type": "score", "instructions": "feafa AU26", "criteria": HUNDREDTHS}} | all_questions()
    answer = decide(request(questions))["AU26"]
    reading = expected["feafa"]["AU26"]
    assert list(answer["probabilities"].values()) == pytest.approx(reading.distribution, abs=1e-7)
    assert answer["score"] / 100 == pytest.approx(reading.expected, abs=1e-7)


def test_ways_to_name_an_au_and_defaults(decide, expected):
    """By words in either order, in a dict, by the question's name; the default is the first fitting main format."""
    wanted = expected["disfa"]["AU25"].probability
    ways = {
        "words": {"type": "noul", "instructions": "disfa AU25"},
        "other order": {"type": "noul", "instructions": " au25  DISFA"},
        "dict": {"type": "noul", "instructions": {"au": "AU25", "format": "disfa"}},
        "default": {"type": "noul", "instructions": "AU25"},
        "AU25": {"type": "noul"},
        "disfa AU25": {"type": "noul", "instructions": None},
    }
    answers = decide(request(ways))
    assert {name: answer["noul"] for name, answer in answers.items()} == pytest.approx(
        dict.fromkeys(ways, wanted), abs=1e-6
    )
    questions = {"noul": {"type": "noul", "instructions": "AU12"}} | {
        "score": {"type": "score", "instructions": "AU12", "criteria": LEVELS},
        "continuous": {"type": "score", "instructions": "AU12L", "criteria": ["0.00", "0.50", "1.00"]},
    }
    answers = decide(request(questions))
    assert answers["noul"]["noul"] == pytest.approx(expected["bp4d"]["AU12"].probability, abs=1e-6)
    assert answers["score"]["score"] == pytest.approx(expected["disfa"]["AU12"].expected, abs=1e-5)
    shares = np.add.reduceat(expected["feafa"]["AU12L"].distribution, [0, 25, 75])  # halves go up
    assert list(answers["continuous"]["probabilities"].values()) == pytest.approx(shares, abs=1e-6)


def test_images_come_as_files_and_in_python_as_objects(decide, tmp_path):
    picture, questions = face(3), {"AU12": {"type": "noul"}}
    picture.save(tmp_path / "face.png")
    wanted = decide.model.recognize(decide.processor, picture, ["bp4d"])[0]["bp4d"]["AU12"].probability
    assets = {
        "file": asset(picture),
        "data URL": {"data_base64": f"data:image/png;base64,{as_file(picture)}"},
        "data URL in capitals": {"data_base64": f"DATA:image/png;BASE64,{as_file(picture)}"},
        "lines": {"data_base64": "\n".join(as_file(picture)[i : i + 60] for i in range(0, len(as_file(picture)), 60))},
        "PIL": picture,
        "array": np.asarray(picture),
        "path": tmp_path / "face.png",
    }
    for name, each in assets.items():
        for state in ("img-1", {"photo": "img-1"}, [" img-1 "]):
            answer = decide({"state": state, "assets": {"img-1": each}, "questions": questions})
            assert answer["AU12"]["noul"] == pytest.approx(wanted, abs=1e-7), name


BAD_QUESTIONS = {
    "there is no such AU": ({"type": "noul", "instructions": "AU99"}, "'AU99' is neither an AU nor a format (bp4d, "),
    "no format has it": ({"type": "noul", "instructions": "AU51"}, "no format has AU51"),
    "no such format": (
        {"type": "noul", "instructions": {"au": "AU12", "format": "openface"}},
        "'openface' is not a format; choose one of bp4d,",
    ),
    "not in the format": (
        {"type": "noul", "instructions": "bp4d AU25"},
        "format bp4d has no AU25; its AUs are AU1, AU2",
    ),
    "which format": ({"type": "noul", "instructions": "AU27"}, 'such as "ck-plus AU27": ck-plus have this AU'),
    "free text": (
        {"type": "noul", "instructions": "Is the person angry?"},
        "no other text; 'Is the person angry?' arrived",
    ),
    "two AUs": ({"type": "noul", "instructions": "AU6 AU12"}, "instructions name one AU"),
    "two formats": ({"type": "noul", "instructions": "bp4d disfa AU12"}, "instructions name one AU"),
    "another key": ({"type": "noul", "instructions": {"au": "AU12", "scale": "disfa"}}, "instructions name one AU"),
    "a number": ({"type": "noul", "instructions": {"au": 12}}, "instructions name one AU"),
    "a list": ({"type": "noul", "instructions": ["AU12"]}, "instructions name one AU"),
    "nothing": ({"type": "noul", "instructions": ""}, "no other text; '' arrived"),
    "a name": ({"type": "noul"}, "no other text; 'a name' arrived"),
    "criteria": ({"type": "noul", "instructions": "AU12", "criteria": {"true": "absent"}}, "reads no criteria"),
    "choice": (
        {"type": "choice", "instructions": "AU12", "criteria": {"0": None, "1": None}},
        "ask a noul for each AU",
    ),
    "no levels": ({"type": "score", "instructions": "disfa AU12", "criteria": []}, "needs `criteria`"),
    "too few levels": (
        {"type": "score", "instructions": "disfa AU12", "criteria": LEVELS[1:]},
        "a score in format disfa has 6 levels, from 0 to 5; 5 arrived",
    ),
    "one level": (
        {"type": "score", "instructions": "feafa AU26", "criteria": ["any"]},
        "a score in format feafa has 2 to 101 levels, from 0.00 to 1.00; 1 arrived",
    ),
    "downward": (
        {"type": "score", "instructions": "disfa AU12", "criteria": list("543210")},
        "level '5' stands where 0.00 belongs",
    ),
    "another value": (
        {"type": "score", "instructions": "disfa AU12", "criteria": list("012346")},
        "level '6' stands where 5.00 belongs",
    ),
    "not a number": (
        {"type": "score", "instructions": "disfa AU12", "criteria": [*list("01234"), "nan"]},
        "level 'nan' stands where 5.00 belongs",
    ),
    "no text": (
        {"type": "score", "instructions": "disfa AU12", "criteria": [{"a": 1}] * 6},
        "names and levels must be Unicode text",
    ),
    "no Unicode": (
        {"type": "score", "instructions": "disfa AU12", "criteria": ["\ud800"] * 6},
        "names and levels must be Unicode text; '\\ud800' arrived",
    ),
    "no such type": ({"type": "yes/no", "instructions": "AU12"}, "`type` must be one of noul, choice, score, got"),
    "no question": ("AU12", "`type` must be one of"),
    "no type at all": ({"type": [], "instructions": "AU12"}, "questions map names to questions"),
}


def refusal(decide, request) -> str:
    """What the pipeline says about a request; empty if it answers."""
    try:
        decide(request)
    except ValueError as error:
        return str(error)
    return ""


def test_bad_questions_are_refused_in_a_sentence_each(decide):
    said = {name: refusal(decide, request({name: question})) for name, (question, _) in BAD_QUESTIONS.items()}
    assert {name: said[name] for name, (_, wanted) in BAD_QUESTIONS.items() if wanted not in said[name]} == {}
    together = refusal(decide, request({name: BAD_QUESTIONS[name][0] for name in ("nothing", "choice", "two AUs")}))
    assert [line.split(":")[0] for line in together.splitlines()] == [
        "Question 'nothing'",
        "Question 'choice'",
        "Question 'two AUs'",
    ]


def test_names_that_json_would_turn_into_text_are_refused(decide):
    """1 and "1" would be one question, and one answer would be missing."""
    questions = {1: {"type": "noul", "instructions": "AU12"}, "1": {"type": "noul", "instructions": "AU6"}}
    assert refusal(decide, request(questions)) == "names of questions must be text; 1 arrived."
    assert refusal(decide, request({None: {"type": "noul", "instructions": "AU12"}})).endswith("; None arrived.")


def bad_images(folder: Path) -> dict[str, tuple[dict, str]]:
    """Assets that are refused -> what is said."""
    face().save(folder / "face.png")
    large = Image.new("L", (6000, 5000))
    wrong = {
        "no base64": ("not base64!", "asset 'face' is not base64"),
        "an address": ("https://example.org/face.png", "asset 'face' is not base64: send the content of the file"),
        "a path": (str(folder / "face.png"), "asset 'face' is not base64: send the content of the file"),
        "no image": (base64.b64encode(b"a text").decode(), "asset 'face' cannot be read as an image"),
        "empty": ("", "asset 'face' cannot be read as an image"),
        "cut off": (as_file(face())[:400], "asset 'face' cannot be read as an image"),
        "too many pixels": (as_file(large), "asset 'face' has 30,000,000 pixels; 25,000,000 are allowed"),
        "too many bytes": ("A" * 29_000_000, "asset 'face' has more than 20,971,520 bytes"),
        "an animation": (
            as_file(face(), "GIF", save_all=True, append_images=[face(1)]),
            "asset 'face' contains 2 images, an animation or pages",
        ),
        "too small": (as_file(Image.new("RGB", (8, 8))), "asset 'face' is 8 x 8 pixels"),
        "no string": (None, "asset 'face' must be an image, as in"),
        "a program": (as_file(face(), "EPS"), "asset 'face' cannot be read as an image"),
    }
    return {name: ({"face": {"type": "image", "data_base64": data}}, said) for name, (data, said) in wrong.items()} | {
        "a string": ({"face": str(folder / "face.png")}, "asset 'face' is a string; nothing is fetched or read"),
        "an http string": ({"face": "http://localhost:9/face.png"}, "asset 'face' is a string; nothing is fetched"),
        "another type": ({"face": {"type": "audio", "data_base64": as_file(face())}}, "asset 'face' must be an image"),
        "several": ({"face": [face(), face()]}, "asset 'face' must be one image; a list arrived"),
        "no such file": ({"face": folder / "nobody.png"}, "There is no image file"),
        "a number": ({"face": 7}, "An image must be a path"),
        "two images": (
            {"face": asset(face()), "other": asset(face(1))},
            "2 images arrived; a request is about one face",
        ),
        "none": ({}, "There is no image: put one into assets"),
        "null": (None, "There is no image: put one into assets"),
        "no object": ([asset(face())], "assets must be an object"),
    }


def test_bad_images_are_refused_in_a_sentence(decide, tmp_path):
    questions, cases = {"AU12": {"type": "noul"}}, bad_images(tmp_path)
    said = {
        name: refusal(decide, {"state": "face", "assets": assets, "questions": questions})
        for name, (assets, _) in cases.items()
    }
    assert {name: said[name] for name, (_, wanted) in cases.items() if wanted not in said[name]} == {}
    assert [name for name, sentence in said.items() if "\n" in sentence or "0x" in sentence] == []


def test_bad_requests_are_refused_in_a_sentence(decide):
    good = request({"AU12": {"type": "noul"}})
    deep = []
    for _ in range(5000):
        deep = [deep]
    cases = {
        "no JSON": ("{", "The request is not JSON"),
        "a list": ("[]", "A request is {"),
        "no state": ({"questions": good["questions"]}, "A request is {"),
        "no question": ({**good, "questions": {}}, "`questions` maps names to questions"),
        "questions in a list": ({**good, "questions": [1]}, "`questions` maps names to questions"),
        "text beside the image": ({**good, "state": "face of a happy person"}, "the model reads no text"),
        "a note": ({**good, "state": {"photo": "face", "note": "happy"}}, "'note': 'happy'} arrived"),
        "no name": ({**good, "state": ""}, "state must be the name of the image, 'face', and nothing else"),
        "another name": ({**good, "state": "photo"}, "'photo' arrived"),
        "nothing": ({**good, "state": None}, "state must be the name of the image"),
        "deep": ({**good, "state": deep}, "state must be the name of the image"),
        "a lone surrogate": (request({"\ud800": {"type": "noul", "instructions": "AU12"}}), "must be Unicode text"),
    }
    said = {name: refusal(decide, bad) for name, (bad, _) in cases.items()}
    assert {name: said[name] for name, (_, wanted) in cases.items() if wanted not in said[name]} == {}


def test_decide_refuses_what_another_config_prepared(decide, checkpoint):
    other = DecisionPipeline(
        model=decide.model,
        processor=decide.processor,
        tokenizer=decide.tokenizer,
        decision_config=DecisionConfig.from_pretrained(checkpoint),
    )
    assert "not made by the model's own decision config" in refusal(other, request({"bp4d AU12": {"type": "noul"}}))
    alone = DecisionPipeline(model=decide.model, tokenizer=decide.tokenizer)
    assert "the model's processor" in refusal(alone, request({"bp4d AU12": {"type": "noul"}}))


@pytest.fixture(params=["grouped digits", "single digits", "shipped"])
def without_calibration(request, tmp_path):
    """(model, processor, folder) that read neither mirror images nor calibrate."""
    if request.param == "shipped":
        model = AutoModelForDecision.from_pretrained(str(ROOT), trust_remote_code=True)
        model.config.calibration, model.config.mirror_images = None, False
        return model, AutoProcessor.from_pretrained(str(ROOT), trust_remote_code=True), ROOT
    model, processor = build_tiny(request.param)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    return model, processor, tmp_path


def test_the_two_files_hold_for_transformers_own_route(without_calibration, monkeypatch):
    """One pass per question by the label tokens: what `recognize` reads without mirror images and calibration."""
    model, processor, folder = without_calibration
    config = DecisionConfig.from_pretrained(folder)
    assert type(config) is DecisionConfig
    monkeypatch.setattr("transformers.pipelines.decision.DecisionMixin", type("NotOurs", (), {}))
    by_tokens = DecisionPipeline(
        model=model, processor=processor, tokenizer=processor.tokenizer, decision_config=config
    )
    answers = by_tokens(
        request(
            {
                "bp4d AU12": {"type": "noul"},
                "AU7": {"type": "noul"},
                "disfa AU25": {"type": "score", "criteria": LEVELS},
                "named": {
                    "type": "score",
                    "instructions": {"au": "AU6", "format": "bp4d-intensity"},
                    "criteria": LEVELS,
                },
            }
        )
    )
    wanted = model.recognize(processor, face(), ["bp4d", "disfa", "bp4d-intensity"])[0]
    assert answers["bp4d AU12"]["noul"] == pytest.approx(wanted["bp4d"]["AU12"].probability, abs=2e-5)
    assert answers["AU7"]["noul"] == pytest.approx(wanted["bp4d"]["AU7"].probability, abs=2e-5)
    for name, fmt, label in (("disfa AU25", "disfa", "AU25"), ("named", "bp4d-intensity", "AU6")):
        read = list(answers[name]["probabilities"].values())
        assert read == pytest.approx(wanted[fmt][label].distribution, abs=2e-5)


def test_decision_config_is_loaded_and_saved_with_the_model(checkpoint, tmp_path):
    model, processor = AutoModelForDecision.from_pretrained(checkpoint, trust_remote_code=True), None
    model.decision_config.temperature = {"noul": 2.0}
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    processor.save_pretrained(tmp_path)
    for name in ("decision.json", "decision_template.jinja"):
        assert (tmp_path / name).exists()
    assert (tmp_path / "decision_template.jinja").read_text() == (checkpoint / "decision_template.jinja").read_text()
    softer = pipeline("decision", model=str(tmp_path), trust_remote_code=True)
    assert softer.model.decision_config.temperature == {"noul": 2.0}
    answer = softer(request({"AU12": {"type": "noul"}}))["AU12"]["noul"]
    probability = model.recognize(processor, face(), ["bp4d"])[0]["bp4d"]["AU12"].probability
    odds = (probability / (1 - probability)) ** 0.5
    assert answer == pytest.approx(odds / (1 + odds), abs=1e-6)


def test_older_checkpoints_become_decision_models(checkpoint, tmp_path):
    """Without the two files, and with an auto_map that does not know of them."""
    model, _ = build_tiny()
    model.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "decision.json").unlink()
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    for name in ("AutoModelForDecision", "AutoModelForMultimodalLM"):
        del config["auto_map"][name]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    loaded, info = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "old", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.decision_config == model.decision_config
    loaded.save_pretrained(tmp_path / "new")
    assert "AutoModelForDecision" in json.loads((tmp_path / "new" / "config.json").read_text())["auto_map"]
    assert (tmp_path / "new" / "decision.json").exists()


def test_shipped_files_are_those_that_the_code_writes(tmp_path):
    processor = AutoProcessor.from_pretrained(str(ROOT), trust_remote_code=True)
    model, _ = build_tiny()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("decision.json", "decision_template.jinja"):
        assert (ROOT / name).read_text() == (tmp_path / name).read_text(), name


def test_card_has_the_tags_of_decision_models(checkpoint):
    tags = ModelCard.load(checkpoint / "README.md").data.tags
    assert {"decision-model", "system-one", "calibrated-probabilities"} <= set(tags)


def test_text_comes_by_every_pipeline_of_images_and_text(checkpoint, monkeypatch):
    """AutoModelForMultimodalLM, any-to-any, image-text-to-text and the chat template give the same answer in text."""
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    messages = processor.messages("disfa")
    messages[0]["content"][0]["image"] = face()
    options = {"max_new_tokens": 8, "do_sample": False}
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["input_ids"][0].tolist() == processor.prompt_ids("disfa", 16)
    output = model.generate(**inputs, **options)
    wanted = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)  # torchvision: videos
    for task in ("any-to-any", "image-text-to-text"):
        ask = pipeline(task, model=str(checkpoint), trust_remote_code=True)
        [said] = ask(text=messages, return_full_text=False, generate_kwargs=options)
        assert said["generated_text"] == wanted, task


def test_one_token_requests_give_the_probabilities(without_calibration):
    """What docs/serving.md sends to vLLM and SGLang: the chat up to the value, log-probabilities of chosen tokens."""
    model, processor, _ = without_calibration
    digits = [processor.tokenizer.convert_tokens_to_ids(digit) for digit in "012345"]
    messages = [*processor.messages("disfa"), {"role": "assistant", "content": "AU25: "}]
    text = processor.apply_chat_template(messages[:1], add_generation_prompt=True) + "AU25: "
    if processor.chat_template == CHATML_TEMPLATE:  # vLLM writes the text; the plain template puts a space before it
        assert processor.apply_chat_template(messages, continue_final_message=True) == text
    inputs = processor(text=text, images=face(), return_tensors="pt")
    with torch.no_grad():
        logs = model(**inputs, logits_to_keep=1).logits[0, -1].log_softmax(-1)[digits]
    wanted = model.recognize(processor, face(), ["disfa"])[0]["disfa"]["AU25"].distribution
    assert logs.softmax(-1).tolist() == pytest.approx(wanted, abs=2e-5)


def post(address: str, body: dict) -> tuple[int, dict]:
    """(status, JSON) of a request."""
    data = json.dumps(body).encode()
    call = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def server(checkpoint, tmp_path):
    """The address of a running `transformers serve CHECKPOINT --trust-remote-code`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = f"serve {checkpoint} --trust-remote-code --host 127.0.0.1 --port {port} --device cpu".split()
    start = "from transformers.cli.transformers import main; main()"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", start, *words], cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail((tmp_path / "log").read_text()[-3000:])
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="needs the packages of transformers[serving]")
def test_transformers_serve_answers_as_recognize(server, checkpoint, expected, tmp_path):
    address = f"{server}/v1/systemone"
    questions = all_questions()  # 48 yes or no and 36 scores; a request takes 64
    answers = {}
    for names in (list(questions)[:60], list(questions)[60:]):
        body = {"model": str(checkpoint), **request({name: questions[name] for name in names})}
        status, answer = post(address, body)
        assert status == 200, answer
        assert answer["usage"]["output_tokens"] == 0 < answer["usage"]["input_tokens"]
        answers |= answer["answers"]
    check_answers(answers, expected, 1e-6)

    statuses = {}
    good = {"model": str(checkpoint), **request({"AU12": {"type": "noul"}})}
    for name, (assets, wanted) in bad_images(tmp_path).items():
        try:
            status, answer = post(address, {**good, "assets": assets})
        except TypeError:  # objects of Python, which JSON cannot carry
            continue
        if status >= 500 or (status == 400 and wanted not in answer["detail"]):
            statuses[name] = (status, answer)
    for name, (question, wanted) in BAD_QUESTIONS.items():
        if name == "no type at all":  # Transformers fails before our code is asked
            continue
        status, answer = post(address, {**good, "questions": {name: question}})
        if status not in (400, 422) or (status == 400 and wanted not in answer["detail"]):
            statuses[name] = (status, answer)
    for name, state in {"text": "a face", "note": ["face", "happy"], "nothing": ""}.items():
        status, answer = post(address, {**good, "state": state})
        if status != 400 or "state must be the name of the image" not in answer["detail"]:
            statuses[name] = (status, answer)
    assert statuses == {}
    assert post(address, good)[0] == 200
