"""A saved checkpoint is complete: a process that cannot import this package loads it and gives the same answers."""

import json
import os
import subprocess
import sys

import numpy as np
import torch
from conftest import build_tiny, random_faces
from PIL import Image

from au_llava.action_units import FORMATS

CODE = {
    "action_units.py",
    "answers_au_llava.py",
    "calibration_au_llava.py",
    "card_au_llava.py",
    "configuration_au_llava.py",
    "consistency_au_llava.py",
    "decision_au_llava.py",
    "decision_template_au_llava.py",
    "decoding_au_llava.py",
    "slot_tree_au_llava.py",
    "image_processing_au_llava.py",
    "modeling_au_llava.py",
    "parts_au_llava.py",
    "pictures_au_llava.py",
    "pipeline_au_llava.py",
    "prefix_au_llava.py",
    "processing_au_llava.py",
    "readings_au_llava.py",
    "quantization_au_llava.py",
    "tree_attention_au_llava.py",
}
MODEL_FILES = {"README.md", "config.json", "decision.json", "generation_config.json", "model.safetensors"}
PROCESSOR_FILES = {
    "chat_template.jinja",
    "decision_template.jinja",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

# What the other process runs: the checkpoint's folder is its first argument, the folder for its results the second.
FORMAT_LABELS = {name: FORMATS[name].labels for name in ("bp4d", "disfa")}
STRANGER = (
    f"FORMATS = {FORMAT_LABELS}"
    + '''
import importlib.abc, sys
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    """Makes the installed package, and any bare import of one of its files, fail."""
    def find_spec(self, name, path=None, target=None):
        package = name.split(".")[0]
        if package == "au_llava" or package in ("action_units", "train_sft") or package.endswith("_au_llava"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import au_llava.action_units
except ImportError:
    pass
else:
    raise AssertionError("the package can be imported: this check would prove nothing")
import torch
from PIL import Image
import transformers
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline
)

checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
expected = torch.load(checkpoint.parent / "expected.pt", weights_only=True)
images = [str(path) for path in sorted(checkpoint.parent.glob("*.png"))]

for loader in (AutoConfig, AutoProcessor, AutoImageProcessor, AutoModel, AutoModelForImageTextToText):
    try:
        loader.from_pretrained(checkpoint, trust_remote_code=False)
    except (ValueError, OSError) as error:
        assert "trust_remote_code" in str(error), (loader, error)
    else:
        raise AssertionError(f"{loader.__name__} ran remote code without being trusted to")

def same(actual, expected):
    """Equal but for the last bits, in which two processes may differ (threads, alignment)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)

def check(folder):
    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    assert type(config).__name__ == "AuLlavaConfig"
    assert type(config).__module__.startswith("transformers_modules.")
    assert len(AutoTokenizer.from_pretrained(folder, **trust)) == expected["vocabulary"]
    pixels = AutoImageProcessor.from_pretrained(folder, **trust)(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected["pixel_values"])
    processor = AutoProcessor.from_pretrained(folder, **trust)
    assert type(processor).__name__ == "AuLlavaProcessor"
    question = processor.apply_chat_template(processor.messages("disfa"), add_generation_prompt=True)
    inputs = processor(images=images, text=[question] * len(images), return_tensors="pt")
    for loader in (AutoModel, AutoModelForImageTextToText):
        model = loader.from_pretrained(folder, **trust)
        assert type(model).__name__ == "AuLlavaForConditionalGeneration"
        with torch.no_grad():
            same(model(**inputs).logits, expected["logits"])
        for decoding in ("slots", "constrained", "free"):
            results = model.recognize(processor, images, formats=["bp4d", "disfa"], decoding=decoding)
            answers = [answer for result in results for answer in result.values()]
            texts, probabilities = expected[decoding]
            assert [answer.text for answer in answers] == texts, (loader, decoding)
            read = [reading.probability for answer in answers for reading in answer.values()]
            if decoding != "free":
                same(torch.tensor(read), probabilities)
    ask = pipeline("image-text-to-text", model=str(folder), max_new_tokens=12, do_sample=False, **trust)
    messages = processor.messages("disfa")
    messages[0]["content"][0]["image"] = Image.open(images[0])
    said = ask(text=messages, return_full_text=False)[0]["generated_text"]
    assert said == expected["said"], (said, expected["said"])
    said = ask(images=images[0], text=question, return_full_text=False)[0]["generated_text"]
    assert said == expected["said"], (said, expected["said"])
    decide = pipeline("decision", model=str(folder), **trust)
    questions = {f"{name} {label}": {"type": "noul"} for name in ("bp4d", "disfa") for label in FORMATS[name]}
    for index, image in enumerate(images):
        answers = decide({"state": "face", "assets": {"face": Path(image)}, "questions": questions})
        read = [answer["noul"] for answer in answers.values()]
        same(torch.tensor(read), expected["slots"][1].unflatten(0, (len(images), -1))[index])
    return model, processor

model, processor = check(checkpoint)
model.save_pretrained(out)
processor.save_pretrained(out)
for name in ("au_llava", "torchvision", "trl", "datasets", "peft"):
    assert name not in sys.modules, f"{name} was imported"
check(out)
'''
)


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_exactly_these_files_travel(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "processor")
    processor.image_processor.save_pretrained(tmp_path / "images")
    model.config.save_pretrained(tmp_path / "config")
    assert files(tmp_path / "model") == MODEL_FILES | CODE - {
        "decision_template_au_llava.py",
        "image_processing_au_llava.py",
        "processing_au_llava.py",
    }
    processor_code = CODE - {
        "card_au_llava.py",
        "consistency_au_llava.py",
        "decision_au_llava.py",
        "decoding_au_llava.py",
        "modeling_au_llava.py",
        "pipeline_au_llava.py",
        "prefix_au_llava.py",
        "quantization_au_llava.py",
        "readings_au_llava.py",
        "slot_tree_au_llava.py",
        "tree_attention_au_llava.py",
    }
    assert files(tmp_path / "processor") == PROCESSOR_FILES | processor_code
    assert files(tmp_path / "config") == {
        "calibration_au_llava.py",
        "config.json",
        "configuration_au_llava.py",
    }
    assert files(tmp_path / "images") == {
        "preprocessor_config.json",
        "image_processing_au_llava.py",
        "pictures_au_llava.py",
    }


def test_auto_maps_name_classes_that_travel(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    auto_map = {
        **json.loads((tmp_path / "config.json").read_text())["auto_map"],
        **settings["auto_map"],
        **settings["image_processor"]["auto_map"],
    }
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor"} <= {
        *auto_map
    }
    for reference in auto_map.values():
        module, _, name = reference.rpartition(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


def test_saving_twice_into_one_folder_works(tiny, tmp_path):
    model, processor = tiny
    for _ in range(2):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    assert files(tmp_path) == MODEL_FILES | PROCESSOR_FILES | CODE


def test_a_stranger_loads_it_and_gets_the_same(tmp_path):
    model, processor = build_tiny()
    checkpoint, out, home = tmp_path / "checkpoint", tmp_path / "again", tmp_path / "home"
    home.mkdir()
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    assert files(checkpoint) == MODEL_FILES | PROCESSOR_FILES | CODE
    images = []
    for index, face in enumerate(random_faces(2)):
        images.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(np.round(face * 255).astype(np.uint8)).save(images[-1])
    question = processor.apply_chat_template(processor.messages("disfa"), add_generation_prompt=True)
    inputs = processor(images=images, text=[question] * 2, return_tensors="pt")
    with torch.no_grad():
        expected = {"logits": model(**inputs).logits, "pixel_values": inputs["pixel_values"]}
    for decoding in ("slots", "constrained", "free"):
        results = model.recognize(processor, images, formats=["bp4d", "disfa"], decoding=decoding)
        answers = [answer for result in results for answer in result.values()]
        read = [reading.probability for answer in answers for reading in answer.values()]
        expected[decoding] = ([answer.text for answer in answers], torch.tensor(read) if decoding != "free" else None)
    expected["vocabulary"] = len(processor.tokenizer)
    one = processor(images=images[:1], text=[question], return_tensors="pt")
    output = model.generate(**one, max_new_tokens=12, do_sample=False)
    expected["said"] = processor.tokenizer.decode(output[0, one["input_ids"].shape[1] :], skip_special_tokens=True)
    torch.save(expected, tmp_path / "expected.pt")

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules")}
    # -I: neither the current folder nor PYTHONPATH nor the user's packages can supply what the checkpoint lacks.
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(checkpoint), str(out)],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert files(out) == files(checkpoint)
    for name in CODE:
        assert (out / name).read_text() == (checkpoint / name).read_text()
    first, again = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, out))
    assert again["auto_map"] == first["auto_map"]
    assert again.keys() == first.keys()
