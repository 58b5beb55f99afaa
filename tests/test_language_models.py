"""The comparison of language models: what its arms are trained on and asked, and one run at a tiny size."""

import json
import math
from argparse import Namespace

import language_models as comparison
import pytest
import torch
import unseen_formats as unseen
from test_parts import write_gguf
from transformers import AutoModelForCausalLM, LlamaConfig

from au_llava.action_units import ACTION_UNITS, FORMATS, prompt
from au_llava.au_datasets.records import load_records
from au_llava.au_training.untrained import phrase_tokenizer


def test_each_image_is_asked_in_one_format_without_its_hidden_aus(rendered_records, tmp_path):
    comparison.train_folder(str(rendered_records), tmp_path / "data", 7)
    records = load_records(tmp_path / "data")
    formats = records["format"][:]
    assert formats == ["bp4d", "disfa", "bp4d", "disfa", "feafa", "bp4d", "disfa"]
    source = load_records(rendered_records, part="train")
    for record in records:
        labels, hidden = FORMATS[record["format"]].labels, comparison.HIDDEN.get(record["format"], ())
        [before] = [
            row["values"]
            for row in source.select_columns(["subject", "frame", "format", "values"])
            if all(row[key] == record[key] for key in ("subject", "frame", "format"))
        ]
        for label, value, known in zip(labels, record["values"], before, strict=True):
            assert math.isnan(value) if label in hidden else value == known
    comparison.train_folder(str(rendered_records), tmp_path / "data", 7)  # goes on
    with pytest.raises(ValueError, match="images 7 \\(now 8\\)"):
        comparison.train_folder(str(rendered_records), tmp_path / "data", 8)


def test_random_language_models_are_the_same_for_a_seed(tmp_path):
    weights = []
    for name in ("a", "b"):
        comparison.small_text(tmp_path / name)
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / name))
    assert all(torch.equal(one, other) for one, other in zip(*(model.parameters() for model in weights), strict=True))
    config = weights[0].config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (128, 4, len(phrase_tokenizer()))


@pytest.mark.timm
def test_imagenet_weights_become_a_tower(tmp_path):
    """Weights in the order and shapes of the published file, under its names."""
    import timm
    from transformers import AutoModel

    torch.manual_seed(0)
    source = timm.create_model("tf_efficientnet_lite0").eval()
    stored = {f"_{number}": weight for number, weight in enumerate(source.state_dict().values())}
    torch.save(stored, tmp_path / "weights.pth")
    comparison.imagenet_tower(tmp_path / "weights.pth", tmp_path / "tower")
    tower = AutoModel.from_pretrained(tmp_path / "tower").eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels).last_hidden_state, source.forward_features(pixels))
    assert [path.name for path in (tmp_path / "tower").glob("model*")] == ["model.safetensors"]


def test_other_words_for_the_same_aus():
    catalog, formats = dict(ACTION_UNITS), dict(FORMATS)
    texts = {}
    for wording in unseen.WORDINGS:
        with unseen.asked_in(wording) as name:
            assert len(FORMATS[name].labels) == 12
            assert FORMATS[name].scale == "occurrence"
            texts[wording] = prompt(FORMATS[name])
        assert catalog == ACTION_UNITS
        assert formats == FORMATS
    assert "lip corner puller (lip corner puller): the lip corners are pulled up and outward." in texts["names"]
    assert "M7 (lip corner puller): the lip corners are pulled up and outward." in texts["codes"]
    assert "Mundwinkelheber (Mundwinkelheber): die Mundwinkel werden" in texts["German"]
    assert "AU12 (upper lip raiser): the upper lip is raised." in texts["others' definitions"]
    assert "AU" not in texts["codes"].split("\n", 1)[1].replace('"AU: value"', "").replace("each AU", "")


def test_hidden_aus_are_taught_in_the_other_format():
    for name, labels in comparison.HIDDEN.items():
        assert set(labels) <= set(FORMATS[name].labels) & set(FORMATS[unseen.other_format(name)].labels)
        assert not set(labels) & set(comparison.HIDDEN[unseen.other_format(name)])


def test_the_control_gives_each_au_the_answer_of_the_next():
    labels = FORMATS["bp4d"].labels
    row = {"probability": [float(number) for number in range(12)], "text": "kept"}
    found = unseen.read_as_next(row, ("AU2", "AU6", "AU24"))
    expected = {**dict(zip(labels, range(12), strict=True)), "AU2": 3, "AU6": 11, "AU24": 1}
    assert found["probability"] == list(expected.values())
    assert found["text"] == "kept"
    assert row["probability"][1] == 1


@pytest.mark.slow
def test_runs_at_a_tiny_size(tiny_checkpoint, rendered_records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "HOME", tiny_checkpoint)
    monkeypatch.setattr(comparison, "BATCH", 4)
    text = tmp_path / "text"
    text.mkdir()
    write_gguf(text / "tiny.gguf")
    out = tmp_path / "out"
    words = ["--test", rendered_records, "--out", out, "--test-images", 3, "--arms", "smollm2", "scratch"]
    further = ["--data", rendered_records, "--text", text, "--steps", 1, "--scratch-steps", 1, "--long-steps", 1]
    assert comparison.run([str(word) for word in (*words, *further, "--free-images", 1)]) == 0
    arms = json.loads((out / "language_models.json").read_text())["arms"]
    assert [arm["steps"] for arm in arms.values()] == [1, 1]
    assert set(arms["smollm2"]["slots"]) == {"bp4d", "disfa", "feafa"}
    assert arms["smollm2"]["slots"]["disfa"]["icc"]["value"] is not None
    assert (out / "smollm2" / "adapter_config.json").is_file()
    assert not (out / "scratch" / "adapter_config.json").is_file()

    assert unseen.run([str(word) for word in words]) == 0
    arm = json.loads((out / "unseen_formats.json").read_text())["arms"]["scratch"]
    assert set(arm["hidden"]) == {"AU4", "AU12", "AU1", "AU6"}
    assert list(arm["renamed"]) == ["as taught", unseen.CONTROL, *unseen.WORDINGS]


def test_the_random_architecture_is_that_of_the_gguf_file(tmp_path):
    (tmp_path / "text").mkdir()
    language, _ = write_gguf(tmp_path / "text" / "tiny.gguf")
    arguments = Namespace(out=tmp_path / "out", text=str(tmp_path / "text"), imagenet=None)
    folders = comparison.make_parts(arguments)
    scratch = AutoModelForCausalLM.from_pretrained(folders["scratch"])
    assert isinstance(scratch.config, LlamaConfig)
    for name, weight in language.state_dict().items():
        assert scratch.state_dict()[name].shape == weight.shape
    assert not torch.equal(scratch.model.embed_tokens.weight, language.model.embed_tokens.weight)
