"""tools/merge_adapter.py: the merged checkpoint gives the answers of base and adapters, alone, in a fresh process."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import build_tiny, load_tool, random_faces
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from test_train_sft import train
from torch.testing import assert_close
from transformers import AutoProcessor, BitsAndBytesConfig

from au_llava.au_publishing import merging
from au_llava.au_runs import checkpoints
from au_llava.au_runs.checkpoints import check_base, load_checkpoint
from au_llava.au_runs.manifests import read_training_manifest
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

PROJECTIONS = r".*language_model.*\.(q_proj|v_proj|down_proj)"


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, rendered_records, tmp_path_factory):
    """Adapters and a full projector, trained by train_sft.py on a base with a calibration."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copytree(tiny_checkpoint, folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    config["calibration"] = {"formats": {}, "fitted_on": {}}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    flags = ["--use_peft", "true", "--lora_r", 2, "--lora_modules_to_save", "multi_modal_projector", "--max_steps", 2]
    train(folder / "base", rendered_records, folder / "adapter", *flags, "--save_steps", 1)
    return folder


def distributions(model, folder) -> torch.Tensor:
    """(AUs of three formats, values of disfa) of two faces."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    results = model.recognize(processor, random_faces(2), formats=["disfa"])
    return torch.tensor([reading.distribution for result in results for reading in result["disfa"].values()])


def adapt(base, out, **settings):
    """Random adapters on `base`, saved; returns base and adapters together."""
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=PROJECTIONS, **settings)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(out)
    return model


def test_the_command_makes_a_checkpoint_of_its_own(trained, tmp_path, capsys):
    base = AuLlavaForConditionalGeneration.from_pretrained(trained / "base")
    base.config.calibration = None
    untrained = distributions(base, trained / "base")
    expected = distributions(PeftModel.from_pretrained(base, trained / "adapter").eval(), trained / "base")
    assert (expected - untrained).abs().max() > 1e-4  # else equality would prove nothing
    assert load_tool("merge_adapter").run([str(trained / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    assert "Merged: " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"merged"}
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "modeling_au_llava.py", "processor_config.json", "training_manifest.json"} <= names
    assert not any(name.startswith("adapter_") for name in names)
    assert read_training_manifest(str(tmp_path / "merged")) == read_training_manifest(str(trained / "adapter"))
    assert "Trained on: " in (tmp_path / "merged" / "README.md").read_text()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["calibration"] is None
    projector = load_file(trained / "adapter" / "adapter_model.safetensors")[
        "base_model.model.model.multi_modal_projector.weight"
    ]
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(weights["model.multi_modal_projector.weight"], projector)
    assert weights.keys() == load_file(trained / "base" / "model.safetensors").keys()

    for index, face in enumerate(random_faces(2)):
        Image.fromarray((face * 255).round().astype("uint8")).save(tmp_path / f"{index}.png")
    shutil.move(trained / "base", trained / "moved")  # the merged checkpoint needs neither base nor PEFT
    code = f"""
import json, sys
sys.modules["peft"] = sys.modules["au_llava"] = None
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(r"{tmp_path}/merged", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(r"{tmp_path}/merged", trust_remote_code=True)
results = model.recognize(processor, [r"{tmp_path}/0.png", r"{tmp_path}/1.png"], formats=["disfa"])
print(json.dumps([reading.distribution for result in results for reading in result["disfa"].values()]))
"""
    stranger = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    shutil.move(trained / "moved", trained / "base")
    assert stranger.returncode == 0, stranger.stderr[-2000:]
    assert_close(torch.tensor(json.loads(stranger.stdout)), expected, atol=2e-3, rtol=0)  # pictures are 8 bits deep


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_merged_logits_are_those_of_base_and_adapters(tiny_checkpoint, tmp_path, settings):
    base = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    untrained = distributions(base, tiny_checkpoint)
    expected = distributions(adapt(base, tmp_path / "adapter", **settings), tiny_checkpoint)
    assert (expected - untrained).abs().max() > 1e-2
    merged = merging.merge(tmp_path / "adapter", str(tiny_checkpoint))
    assert_close(distributions(merged, tiny_checkpoint), expected, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert_close(distributions(again, tiny_checkpoint), expected, atol=1e-5, rtol=0)


def test_a_head_that_was_trained_is_no_longer_tied(tiny_checkpoint, tmp_path):
    base = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    base.config.tie_word_embeddings = base.config.text_config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    base = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert base.lm_head.weight is base.get_input_embeddings().weight
    adapted = adapt(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    expected = distributions(adapted, tiny_checkpoint)
    merged = merging.merge(tmp_path / "adapter", str(tmp_path / "base"))
    merged.save_pretrained(tmp_path / "merged")
    again = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert_close(distributions(again, tiny_checkpoint), expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("any_size_in_4_bits")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_of_a_quantized_base_are_merged_into_the_full_one(tiny_checkpoint, tmp_path, dtype):
    quantized = AuLlavaForConditionalGeneration.from_pretrained(
        tiny_checkpoint, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    adapt(quantized, tmp_path / "adapter")
    full = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    expected = distributions(PeftModel.from_pretrained(full, tmp_path / "adapter").eval(), tiny_checkpoint)
    assert merging.run([str(tmp_path / "adapter"), "--out", str(tmp_path / "out"), "--dtype", dtype]) == 0
    merged = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "processor_config.json").is_file()  # the base's: PEFT alone saves none
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()  # not PEFT's card
    assert {str(p.dtype) for p in merged.parameters()} == {f"torch.{dtype}"}
    assert not hasattr(merged.config, "quantization_config")
    tolerance = {"float32": 1e-5, "bfloat16": 5e-2}[dtype]
    assert_close(distributions(merged, tiny_checkpoint), expected, atol=tolerance, rtol=0)


def test_the_base_is_found_from_anywhere_and_is_the_one(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    """Trained from ".", merged elsewhere; every command that loads refuses another base under the same name."""
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    monkeypatch.chdir(tmp_path / "base")
    train(".", rendered_records, tmp_path / "adapter", "--use_peft", "true", "--lora_r", 2, "--max_steps", 1)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "adapter" / "adapter_config.json"
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    weights = hashlib.sha256((tmp_path / "base" / "model.safetensors").read_bytes()).hexdigest()
    known = read_training_manifest(str(tmp_path / "adapter"))["base_weights"]
    assert known == check_base(str(tmp_path / "adapter")) == {"model.safetensors": weights}
    merging.merge(tmp_path / "adapter")
    merging.merge(tmp_path / "adapter", str(shutil.copytree(tmp_path / "base", tmp_path / "moved")))

    other, _ = build_tiny("phrases", vision_config=AuLlavaConfig.from_pretrained(tiny_checkpoint).vision_config, seed=1)
    other.save_pretrained(tmp_path / "base")
    wrong = r"is not the base that the adapters in .*adapter were trained on \(other model\.safetensors\)"
    for load in (
        lambda: merging.merge(tmp_path / "adapter"),
        lambda: merging.merge(tmp_path / "adapter", str(tmp_path / "base")),
        lambda: load_checkpoint(str(tmp_path / "adapter")),
    ):
        with pytest.raises(ValueError, match=wrong):
            load()
    shutil.move(tmp_path / "base", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"The base .*base of the adapters in .* is not there: merge the two with"):
        check_base(str(tmp_path / "adapter"))


def test_old_adapters_name_their_base_relative_to_a_folder(tiny_checkpoint, tmp_path, monkeypatch):
    adapt(AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "."}))
    monkeypatch.chdir(tiny_checkpoint)
    with pytest.raises(ValueError, match=r"name their base '\.', which may mean another folder here: .* --base FOLDER"):
        check_base(str(tmp_path / "adapter"))
    merging.merge(tmp_path / "adapter", str(tiny_checkpoint))
    assert check_base(str(tiny_checkpoint)) == {}  # no adapters


def test_the_base_that_is_checked_is_the_one_that_is_loaded(trained, tmp_path, monkeypatch):
    """Transformers loads the main revision of a base, whichever the adapters name."""
    adapter = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "lab/base", "revision": "v1"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    contents = {"main": {"model.safetensors": "another"}, "v1": read_training_manifest(str(adapter))["base_weights"]}
    monkeypatch.setattr(checkpoints, "weights_sha256", lambda name, revision=None: contents[revision or "main"])
    with pytest.raises(ValueError, match=r"lab/base is not the base .* --base FOLDER"):
        check_base(str(adapter))
    (adapter / "training_manifest.json").unlink()
    with pytest.raises(ValueError, match=r"name the revision 'v1' of lab/base, but its main one is loaded"):
        check_base(str(adapter))


def test_what_cannot_be_merged_is_one_sentence(trained, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"

    def refusal(*words):
        assert merging.run(list(map(str, words))) == 1
        [sentence] = capsys.readouterr().err.splitlines()
        return sentence

    assert refusal(tmp_path, "--out", out).startswith(f"merge_adapter.py: {tmp_path} holds no adapters")
    assert "holds no adapters (adapter_config.json, " in refusal(tiny_checkpoint, "--out", out)
    assert f"{trained} exists" in refusal(trained / "adapter", "--out", trained)
    nowhere = "The base nowhere cannot be loaded: say where it is with --base"
    assert nowhere in refusal(trained / "adapter", "--out", out, "--base", "nowhere")
    assert not list(tmp_path.iterdir())


def test_bases_that_do_not_fit(trained, tiny_checkpoint, tmp_path):
    stored = AuLlavaForConditionalGeneration.from_pretrained(
        tiny_checkpoint, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    stored.save_pretrained(tmp_path / "quantized")
    with pytest.raises(ValueError, match="is stored quantized"):
        merging.merge(trained / "adapter", str(tmp_path / "quantized"))
    shutil.copytree(trained / "adapter", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(ValueError, match="do not fit the base"):
        merging.merge(tmp_path / "other", str(trained / "base"))
    (tmp_path / "other" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 32, "num_layers": 2})
    )
    with pytest.raises(ValueError, match="only LoRA can be merged"):
        merging.merge(tmp_path / "other", str(trained / "base"))


def test_nothing_is_left_of_an_interrupted_save(trained, tmp_path, monkeypatch):
    model = merging.merge(trained / "adapter", str(trained / "base"))
    monkeypatch.setattr(
        merging.AuLlavaProcessor, "from_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        merging.save(model, trained / "adapter", tmp_path / "out")
    assert not list(tmp_path.iterdir())
