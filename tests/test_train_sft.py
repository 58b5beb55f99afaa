"""Training: which weights change, exact resumption, mixtures, LoRA, and bad input."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, build_tiny
from datasets import Dataset
from huggingface_hub.constants import HF_HUB_CACHE
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from au_llava import train_sft
from au_llava.action_units import FORMATS, write_answer
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.mixing import TrainingData, training_rows
from au_llava.au_datasets.records import load_records
from au_llava.au_runs.files import only_run
from au_llava.au_runs.manifests import (
    read_training_manifest,
    seen_people,
    training_manifest,
    write_training_manifest,
)
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.command import main, make_parser
from au_llava.au_training.options import AUTrainingConfig
from au_llava.au_training.start import load_model
from au_llava.au_training.trainer import AUTrainer
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor

QUIET = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]


def train(checkpoint, records, out, *flags):
    """Run main() as the command line would."""
    words = ["--model_name_or_path", checkpoint, "--data", records, "--output_dir", out, *QUIET]
    words += ["--per_device_train_batch_size", 2, "--max_steps", 4, "--learning_rate", 1e-2, *flags]
    main(*make_parser().parse_args_and_config([str(word) for word in words]))


def weights(folder):
    return load_file(folder / "model.safetensors")


def part_of(name):
    return next(part for part in ("vision_tower", "multi_modal_projector", "language_model", "lm_head") if part in name)


def moved_parts(before, after):
    """Parts of the model in which a tensor (parameters and batch-norm statistics) changed."""
    assert before.keys() == after.keys()
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def test_training_moves_everything_and_scores_the_aus(tiny_checkpoint, rendered_records, tmp_path):
    train(tiny_checkpoint, rendered_records, tmp_path, "--eval_strategy", "steps", "--eval_steps", 2, "--flip", 0.5)
    moved = moved_parts(weights(tiny_checkpoint), weights(tmp_path))
    assert moved == {"vision_tower", "multi_modal_projector", "language_model", "lm_head"}
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    scores = {key: value for entry in logged for key, value in entry.items()}
    assert 0 <= scores["eval_bp4d_accuracy"] <= 1
    assert {"eval_bp4d_f1", "eval_disfa_icc", "eval_feafa_mae", "eval_loss"} <= scores.keys()
    assert [entry["step"] for entry in logged if "eval_bp4d_f1" in entry] == [2, 4]


def test_grouped_rows_are_evaluated_too(tiny_checkpoint, rendered_records, tmp_path):
    flags = ("--train_sampling_strategy", "group_by_length", "--eval_strategy", "steps", "--eval_steps", 1)
    train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--max_steps", 1)
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry for entry in logged)
    assert any("eval_disfa_icc" in entry for entry in logged)


def test_a_folder_of_training_people_only_joins_in(tiny_checkpoint, rendered_records, more_training_records, tmp_path):
    flags = ("--eval_strategy", "steps", "--eval_steps", 1, "--max_steps", 1)
    train(tiny_checkpoint, rendered_records, tmp_path, "--data", rendered_records, more_training_records, *flags)
    people = read_training_manifest(tmp_path)["people"]
    own = {part: people_of(load_records(rendered_records, part=part)) for part in ("train", "validation")}
    assert people["train"] == sorted([*own["train"], "rendered:R5-000000", "rendered:R5-000001"])
    assert people["validation"] == own["validation"]


def test_checkpoint_carries_its_code(tiny_checkpoint, rendered_records, tmp_path, capsys):
    train(tiny_checkpoint, rendered_records, tmp_path, "--max_steps", 1, "--save_steps", 1)
    assert f"Written: {tmp_path}\nTo score it: python eval_au.py --model {tmp_path} " in capsys.readouterr().out
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert {"modeling_au_llava.py", "processing_au_llava.py", "action_units.py"} <= {
            f.name for f in folder.iterdir()
        }
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert "Trained on: " + str(rendered_records) in (tmp_path / "README.md").read_text()
        image = load_records(rendered_records)[0]["image"]
        assert tuple(model.recognize(processor, [image])[0]["disfa"]) == FORMATS["disfa"].labels


def test_an_old_checkpoint_does_not_bring_its_code_back(tiny_checkpoint, rendered_records, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, old)
    for name in ("configuration_au_llava.py", "processing_au_llava.py"):
        (old / name).write_text((old / name).read_text() + "\n# old\n")
    train(old, rendered_records, tmp_path / "new", "--max_steps", 1)
    for name in ("configuration_au_llava.py", "processing_au_llava.py", "modeling_au_llava.py"):
        assert (tmp_path / "new" / name).read_text() == (ROOT / name).read_text()


def test_checkpoints_say_who_was_seen(tiny_checkpoint, rendered_records, tmp_path):
    flags = ("--max_steps", 2, "--save_steps", 1, "--eval_strategy", "steps", "--eval_steps", 2)
    train(tiny_checkpoint, rendered_records, tmp_path / "one", *flags, "--learning_rate", 0.001)
    records = {part: people_of(load_records(rendered_records, part=part)) for part in ("train", "validation", "test")}
    for folder in (tmp_path / "one", tmp_path / "one" / "checkpoint-1"):
        manifest = read_training_manifest(str(folder))
        assert manifest["people"] == {
            "train": records["train"],
            "unlabelled": [],
            "validation": records["validation"],
            "calibration": [],
        }
        assert manifest["formats"] == ["bp4d", "disfa", "feafa"]
        assert manifest["recipe"]["learning_rate"] == 0.001
        assert "output_dir" not in manifest["recipe"]
        assert manifest["base"] is None
        values = load_records(rendered_records, part="train", formats=["bp4d"])["values"][:]
        assert [each["mean"] for each in manifest["labels"]["bp4d"].values()] == pytest.approx(np.mean(values, axis=0))
    train(tmp_path / "one", rendered_records, tmp_path / "two", "--max_steps", 1, "--train_part", "test")
    seen = seen_people(read_training_manifest(str(tmp_path / "two")))
    assert seen["train"] == set(records["train"]) | set(records["test"])


@pytest.mark.parametrize("frozen", [["vision_tower"], ["language_model", "multi_modal_projector"]])
def test_frozen_parts_stay(tiny_checkpoint, rendered_records, tmp_path, frozen):
    train(tiny_checkpoint, rendered_records, tmp_path, "--freeze", *frozen)
    parts = {"vision_tower", "multi_modal_projector", "language_model", "lm_head"}
    kept = {*frozen, "lm_head"} if "language_model" in frozen else {*frozen}
    assert moved_parts(weights(tiny_checkpoint), weights(tmp_path)) == parts - kept


@pytest.mark.parametrize("balance", [[], ["--oversample_below", 0.9, "--loss_weight_power", 0.5]])
def test_resumed_run_equals_the_uninterrupted_one(tiny_checkpoint, rendered_records, tmp_path, balance):
    flags = ["--max_steps", 12, "--save_steps", 8, "--causal_share", 0.4, "--flip", 0.5, *balance]  # 5 steps an epoch
    train(tiny_checkpoint, rendered_records, tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole" / "checkpoint-8", tmp_path / "cut" / "checkpoint-8")
    train(tiny_checkpoint, rendered_records, tmp_path / "cut", *flags, "--resume_from_checkpoint", "true")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_loss_falls(tiny_checkpoint, rendered_records, tmp_path):
    flags = ["--max_steps", 30, "--learning_rate", 5e-3, "--logging_steps", 1, "--per_device_train_batch_size", 8]
    train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--causal_share", 0)
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_lora_trains_adapters_of_the_language_model_only(tiny_checkpoint, rendered_records, tmp_path):
    train(tiny_checkpoint, rendered_records, tmp_path, "--use_peft", "true", "--lora_r", 2)
    adapters = load_file(tmp_path / "adapter_model.safetensors")
    assert adapters
    assert all("language_model" in name for name in adapters)
    assert any("q_proj" in name for name in adapters)
    assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name)


def test_adapters_are_no_starting_point(tiny_checkpoint, rendered_records, tmp_path):
    """Only they would be saved, unchanged, whatever was learned in their base."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    AutoProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter holds adapters, not a whole model: merge them"):
        train(tmp_path / "adapter", rendered_records, tmp_path / "out", "--max_steps", 1)


def test_recipe_is_overridden_by_flags(tiny_checkpoint, rendered_records, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"data": [str(rendered_records)], "output_dir": "x", "learning_rate": 0.5, "flip": 0.1})
    )
    ours, training, _ = make_parser().parse_args_and_config(
        ["--config", str(recipe), "--learning_rate", "0.25", "--output_dir", str(tmp_path), *QUIET]
    )
    assert (ours.flip, training.learning_rate, training.output_dir) == (0.1, 0.25, str(tmp_path))
    assert ours.data == [str(rendered_records)]


def test_datasets_can_be_mappings(tiny_checkpoint, rendered_records, tmp_path):
    """In a recipe and in a flag. The manifest records each dataset's options, and weights change what is learned."""
    recipe = tmp_path / "recipe.yaml"
    entry = {"path": str(rendered_records), "formats": ["disfa"], "convert_to": ["bp4d"], "weight": 2}
    recipe.write_text(yaml.safe_dump({"data": [entry], "output_dir": str(tmp_path)}))
    ours, *_ = make_parser().parse_args_and_config(["--config", str(recipe), *QUIET])
    assert ours.data == [entry]
    flag = f"{{path: {rendered_records}, formats: [disfa], convert_to: [bp4d], weight: 2}}"
    train(tiny_checkpoint, flag, tmp_path / "a", "--eval_strategy", "steps", "--eval_steps", 4)
    manifest = read_training_manifest(str(tmp_path / "a"))
    assert manifest["formats"] == ["bp4d", "disfa"]
    assert (manifest["recipe"]["mixture"][0]["weight"], list(manifest["data"])) == (2, [str(rendered_records)])
    logged = json.loads((tmp_path / "a" / "trainer_state.json").read_text())["log_history"]
    assert not any("eval_bp4d_f1" in entry for entry in logged)  # derived labels are learned, not scored
    for name, power in (("b", 0.0), ("c", 1.0)):
        train(tiny_checkpoint, flag, tmp_path / name, "--loss_weight_power", power, "--max_steps", 1)
    assert moved_parts(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_mixture_repeats_and_halves(rendered_records):
    once = training_rows([str(rendered_records)], "train", None)
    assert once["formats"][0] == ["bp4d", "disfa", "feafa"]
    records = load_records(rendered_records, part="train")
    assert len(once) == len(records) / 3
    for row in range(len(once)):
        for name, values in zip(once[row]["formats"], once[row]["values"], strict=True):
            same = records.filter(lambda r, name=name, row=row: r["format"] == name)[row]
            assert values == same["values"]
    mixed = training_rows([f"{rendered_records}=2", f"{rendered_records}=0.5"], "train", ["disfa"])
    assert len(mixed) == 2 * len(once) + round(0.5 * len(once))
    assert mixed["index"][:] == list(range(len(mixed)))
    assert all(formats == ["disfa"] for formats in mixed["formats"])


@pytest.mark.parametrize("weight", ["0", "-1", "x", "nan", "inf"])
def test_bad_weights_are_refused(rendered_records, weight):
    with pytest.raises(ValueError, match="must be positive"):
        training_rows([f"{rendered_records}={weight}"], "train", None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze", "eyes"], "freeze names eyes; it takes any of vision_tower"),
        (["--data", "nowhere"], "nowhere"),
        (["--train_part", "holiday"], "no record of part 'holiday'"),
        (["--causal_share", "2"], "between 0 and 1"),
        (["--oversample_below", "2"], "oversample_below is 2.0"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps is 0; it must be 1 or more"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; it must be 1 or more"),
        (["--per_device_eval_batch_size", "-1"], "per_device_eval_batch_size is -1; it must be 1 or more"),
        (["--eval_accumulation_steps", "0"], "eval_accumulation_steps is 0; it must be 1 or more"),
        (["--validation_images", "0"], "validation_images is 0; it must be 1 or more"),
        (["--max_steps", "0"], "max_steps is 0; it must be 1 or more"),
        (["--max_steps", "-5"], "max_steps is -5; it must be 1 or more"),
        (["--max_steps", "-1", "--num_train_epochs", "0"], "num_train_epochs is 0.0; it must be above 0"),
        (["--max_steps", "-1", "--num_train_epochs", "nan"], "num_train_epochs is nan; it must be above 0"),
        (["--ordinal_width", "nan"], "ordinal_width is nan"),
        (["--pixel_unshuffle", "2"], "pixel_unshuffle has no effect without a new model"),
        (["--model_name_or_path", "/nowhere/model"], "There is no folder /nowhere/model: name the folder"),
        (["--model_name_or_path", "runs/nowhere"], "There is no folder runs/nowhere, and the Hub"),
        (["--data", "{path: x, wieght: 1}"], "needs path; optional are"),
        (["--learning_rat", "1"], "--learning_rat"),
    ],
)
def test_bad_input_is_named(tiny_checkpoint, rendered_records, tmp_path, flags, message):
    with pytest.raises((ValueError, OSError), match=message):
        train(tiny_checkpoint, rendered_records, tmp_path, *flags)


@pytest.mark.parametrize("part", ["--vision", "--text"])
def test_a_missing_part_is_named(tiny_checkpoint, rendered_records, tmp_path, part):
    words = ["--vision", tiny_checkpoint, "--text", tiny_checkpoint, part, "runs/a/b", "--data", rendered_records]
    with pytest.raises(ValueError, match="There is no folder runs/a/b: name the folder"):
        main(*make_parser().parse_args_and_config([*map(str, words), "--output_dir", str(tmp_path), *QUIET]))


def parsed_recipe(tmp_path, text):
    """The three groups of options of a recipe with `text` besides what every recipe needs."""
    recipe = tmp_path / "recipe.yaml"
    needed = {"data": "[x]", "use_cpu": "true", "bf16": "false"}
    recipe.write_text(text + "".join(f"\n{key}: {value}" for key, value in needed.items() if f"{key}:" not in text))
    return make_parser().parse_args_and_config(["--config", str(recipe), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: {a: 1}", r"--learning_rate: {'a': 1} in the recipe; expected what the flag takes"),
        ("num_train_epochs: [1]", r"--num_train_epochs: \[1\] in the recipe"),
        ("max_steps: 1.5", "--max_steps.*invalid int value: '1.5'"),
        ("max_steps: true", "--max_steps.*invalid int value: 'True'"),
        ("flip: true", "--flip: invalid float value: 'True'"),
        ("flip: null", "--flip: None in the recipe"),
        ("bf16: maybe", "--bf16: Truthy value expected: got maybe"),
        ("augment: 3", "--augment: Truthy value expected: got 3"),
        ("freeze: [{a: 1}]", "--freeze: {'a': 1} in the recipe"),
        ("data: [[x]]", r"--data: \['x'\] in the recipe"),
        ("dtype: float33", "--dtype: invalid choice: 'float33'"),
        ("data: [", "--config: the recipe is not YAML .*line 1"),
        ("1: 2", "--config: a key of the recipe is a number"),
        ("lora_r: 8", "--lora_r: it has no effect without --use_peft"),
    ],
)
def test_recipe_values_of_another_type_are_named(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as ended:
        parsed_recipe(tmp_path, text)
    assert ended.value.code == 2
    assert re.search(f"error: argument {message}", capsys.readouterr().err)


def test_recipe_values_are_read_as_flags(tmp_path):
    text = "formats: disfa\nvision: 3\nlearning_rate: 1e-4\nnum_train_epochs: 2\nlr_scheduler_kwargs: {a: 1}\nseed: 5"
    text += "\neval_strategy: no"  # which YAML reads as false
    ours, training, _ = parsed_recipe(tmp_path, text)
    assert (ours.formats, ours.vision, ours.data) == (["disfa"], "3", ["x"])
    assert (training.learning_rate, training.num_train_epochs, training.seed) == (1e-4, 2, 5)
    assert (training.lr_scheduler_kwargs, training.eval_strategy) == ({"a": 1}, "no")
    with pytest.raises(ValueError, match="unknown format '3'"):
        parsed_recipe(tmp_path, "formats: 3")
    with pytest.raises(ValueError, match="data names no folder"):
        parsed_recipe(tmp_path, "data: []")


def test_options_of_adapters_want_adapters(tmp_path, capsys):
    words = ["--data", "x", "--output_dir", str(tmp_path), "--lora_r", "8", "--use_cpu", "true", "--bf16", "false"]
    with pytest.raises(SystemExit):
        make_parser().parse_args_and_config(words)
    assert "argument --lora_r: it has no effect without --use_peft" in capsys.readouterr().err
    for said in (["--use_peft"], ["--use_peft=true"]):
        assert make_parser().parse_args_and_config([*words, *said])[2].use_peft
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lora_r: 8\nuse_peft: true\n")
    whole = make_parser().parse_args_and_config(["--config", str(recipe), *words, "--use_peft", "false"])[2]
    assert not whole.use_peft  # a recipe's adapters, left out on purpose


def test_unknown_recipe_key_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: [x]\nuse_cpu: true\nbf16: false\nlearning_rte: 0.5\n")
    with pytest.raises(ValueError, match="learning_rte"):
        make_parser().parse_args_and_config(["--config", str(recipe)])


def test_two_trainings_do_not_share_a_folder(tiny_checkpoint, rendered_records, tmp_path):
    """One would put the other's half-written files in place."""
    with (
        only_run(tmp_path, "output_dir"),
        pytest.raises(ValueError, match=r"Another run is writing to .*: choose another output_dir"),
    ):
        train(tiny_checkpoint, rendered_records, tmp_path, "--max_steps", 1)
    assert not any(tmp_path.iterdir())
    train(tiny_checkpoint, rendered_records, tmp_path, "--max_steps", 1)


def test_command_line_ends_with_one_sentence(tmp_path, capsys):
    words = ["--model_name_or_path", tmp_path, "--data", "nowhere", "--output_dir", tmp_path / "out", *QUIET]
    assert train_sft.run(list(map(str, words))) == 1
    error = capsys.readouterr().err
    assert "train_sft.py: " in error.splitlines()[-1]
    assert "nowhere" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("backend", ["eager", "flex_attention"])
def test_backends_have_the_same_loss(tiny_checkpoint, rendered_records, tmp_path, backend):
    """Mask and positions of slot batches reach the language model through the trainer with every attention backend."""
    processor = AutoProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    rows = training_rows([str(rendered_records)], "train", None)
    batch = AUCollator(processor, causal_share=0)([rows[index] for index in range(4)])
    torch.compiler.reset()  # PyTorch's flex attention does not compile on a CPU once two lengths were seen
    losses = []
    for name in ("sdpa", backend):
        model = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
        model.set_attn_implementation({"text_config": name})
        arguments = AUTrainingConfig(tmp_path / name, use_cpu=True, bf16=False, report_to="none")
        trainer = AUTrainer(model, arguments, train_dataset=rows, processing_class=processor, data_collator=lambda _: 0)
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model.eval(), dict(batch)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_without_a_gpu_the_processor_trains_unasked(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert AUTrainingConfig(tmp_path, report_to="none").device.type == "cpu"
    assert "There is no GPU that PyTorch can use" in caplog.text
    caplog.clear()
    assert AUTrainingConfig(tmp_path, report_to="none", use_cpu=True).bf16
    assert not caplog.text


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_attention_is_chosen_for_a_tower_without_any(tiny_checkpoint, tmp_path, backend):
    flags = f"--model_name_or_path {tiny_checkpoint} --data x --output_dir {tmp_path} --use_cpu true --bf16 false"
    command = [*flags.split(), "--attn_implementation", backend]
    _, training_args, model_args = make_parser().parse_args_and_config(command, fail_with_unknown_args=True)
    model = load_model(model_args, training_args)
    assert model.model.language_model.config._attn_implementation == backend
    assert model.model.vision_tower.config._attn_implementation == "eager"


def test_flash_attention_is_refused_in_training(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint, trust_remote_code=True)
    rows = training_rows([str(rendered_records)], "train", None)
    model = AuLlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    arguments = AUTrainingConfig(tmp_path, use_cpu=True, bf16=False, report_to="none", max_steps=1)
    collate = AUCollator(processor, causal_share=0)
    trainer = AUTrainer(model, arguments, train_dataset=rows, processing_class=processor, data_collator=collate)
    monkeypatch.setattr(model.model.language_model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"cannot honor the tree mask.*sdpa"):
        trainer.train()


def test_compute_loss_leaves_causal_batches_to_trl(tiny_checkpoint, rendered_records, tmp_path, monkeypatch):
    """Both layouts are trained: slot batches by slot_loss, causal ones by SFTTrainer's own loss."""
    seen = []
    original = SFTTrainer.compute_loss
    monkeypatch.setattr(SFTTrainer, "compute_loss", lambda *a, **k: seen.append("causal") or original(*a, **k))
    ours = AUTrainer.compute_loss
    monkeypatch.setattr(AUTrainer, "compute_loss", lambda *a, **k: seen.append("any") or ours(*a, **k))
    train(tiny_checkpoint, rendered_records, tmp_path, "--max_steps", 6, "--causal_share", 0.5)
    assert seen.count("any") == 6
    assert 0 < seen.count("causal") < 6


def test_text_batches_with_shared_prompts_have_the_loss_of_whole_texts(rendered_records, tmp_path):
    """All training images in one batch, asked in one format; TRL counts the tokens that are computed."""
    model, processor = build_tiny("phrases", prompt_order="text_first")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "start")
    rows = training_rows([TrainingData(str(rendered_records))], "train", ["bp4d"], 0)
    flags = ("--causal_share", 1, "--formats", "bp4d", "--max_steps", 1, "--logging_steps", 1)
    out = tmp_path / "out"
    train(tmp_path / "start", rendered_records, out, *flags, "--per_device_train_batch_size", len(rows))

    prompt = processor.prompt_ids(FORMATS["bp4d"], 16)
    total = count = longest = 0
    for row in rows:
        values = dict(zip(FORMATS["bp4d"].labels, row["values"][0], strict=True))
        answer = processor.answer_ids(write_answer(values, FORMATS["bp4d"]))
        pixels = processor.image_processor([row["image"]], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model.train()(input_ids=torch.tensor([prompt + answer]), pixel_values=pixels).logits[0]
        learned = logits[len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(learned, torch.tensor(answer), reduction="sum").item()
        count, longest = count + len(answer), max(longest, len(answer))
    logged = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    assert logged["loss"] == pytest.approx(total / count, rel=1e-3)
    before = prompt.index(processor.image_token_id)
    assert logged["num_tokens"] == before + len(rows) * (len(prompt) - before + longest)


def test_plain_trl_trains_the_model_unpatched(tmp_path, rendered_records):
    """A plain SFTTrainer on prompt/completion records, with our model and processor only."""
    model, processor = build_tiny()
    image = load_records(rendered_records)[0]["image"]
    turns = processor.messages("bp4d", answer="AU1: 1, AU2: 0")
    rows = Dataset.from_list([{"images": [image], "prompt": turns[:1], "completion": turns[1:]}] * 4)
    arguments = SFTConfig(
        tmp_path, use_cpu=True, bf16=False, max_steps=2, max_length=None, report_to="none", learning_rate=1e-2
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    assert moved_parts(before, trainer.model.state_dict()) == {
        "vision_tower",
        "multi_modal_projector",
        "language_model",
        "lm_head",
    }


def test_a_revision_is_read_whole(tiny_checkpoint, rendered_records, tmp_path):
    """Processor and the people seen are those of the revision that the weights come from, not the main one's."""
    cached = Path(HF_HUB_CACHE, "models--someone--start")
    for revision, commit, seen, mean in (("main", "a" * 40, "bp4d:F001", 0.1), ("v2", "b" * 40, "bp4d:F002", 0.2)):
        folder = cached / "snapshots" / commit
        shutil.copytree(tiny_checkpoint, folder)
        processor = AuLlavaProcessor.from_pretrained(folder, trust_remote_code=True)
        processor.image_processor.image_mean = [mean] * 3
        processor.save_pretrained(folder)
        write_training_manifest(folder, training_manifest([seen], [], [], ["disfa"], {}))
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / revision).write_text(commit)
    train("someone/start", rendered_records, tmp_path / "out", "--model_revision", "v2", "--max_steps", 1)
    processor = AuLlavaProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert list(processor.image_processor.image_mean) == [0.2] * 3
    assert seen_people(read_training_manifest(str(tmp_path / "out")))["train"] >= {"bp4d:F002"}
    assert "bp4d:F001" not in seen_people(read_training_manifest(str(tmp_path / "out")))["train"]
