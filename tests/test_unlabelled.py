"""Unlabelled faces and averaged weights: losses, left and right, exact resumption, bad input."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import QUIET
from conftest import build_tiny
from datasets import Image as ImageFeature
from safetensors.torch import load_file
from test_recovery import damage

from au_llava.action_units import FORMATS, MAIN_FORMATS, mirrored_label
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.mixing import check_people, training_rows, unlabelled_rows
from au_llava.au_datasets.records import load_records
from au_llava.au_runs.commands import CommandEnded
from au_llava.au_runs.manifests import check_unseen, read_training_manifest, seen_people
from au_llava.au_training import trainer as trainer_module
from au_llava.au_training.averaging import TRAINED, AveragedWeights
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.command import main, make_parser
from au_llava.au_training.damaged_images import ReadableRows
from au_llava.au_training.mean_teacher import UnlabelledFaces
from au_llava.au_training.options import AUTrainingConfig
from au_llava.au_training.trainer import AUTrainer
from au_llava.decoding_au_llava import read_slots
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration

BUILT_IN = tuple(FORMATS[name] for name in MAIN_FORMATS)
LABELS = [(fmt.name, label) for fmt in BUILT_IN for label in fmt.labels]
MODEL = "model.safetensors"
ADAPTERS = "adapter_model.safetensors"


def train(checkpoint, records, out, *flags):
    """Run main() as the command line would."""
    words = ["--model_name_or_path", checkpoint, "--data", records, "--output_dir", out, *QUIET]
    words += [
        "--per_device_train_batch_size",
        2,
        "--max_steps",
        4,
        "--learning_rate",
        1e-2,
        "--logging_steps",
        1,
        *flags,
    ]
    main(*make_parser().parse_args_and_config([str(word) for word in words]))


def logged(folder, key) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


def encoded(rows):
    return rows.cast_column("image", ImageFeature(decode=False))


def same(one, two) -> bool:
    one, two = load_file(one), load_file(two)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ----------------------------------------------------------------------------------------------------------- the loss


@pytest.fixture
def setting(rendered_records, unlabelled_records, tmp_path):
    """A trainer whose weights differ from their average, with batches; one unlabelled face is damaged."""
    model, processor = build_tiny("phrases")
    rows, faces = (
        training_rows([str(rendered_records)], "train", None),
        unlabelled_rows([str(unlabelled_records)], "train", None),
    )
    collate = AUCollator(processor, causal_share=0, flip=0.5, unlabelled_per_labelled=6)
    arguments = AUTrainingConfig(tmp_path, use_cpu=True, bf16=False, report_to="none")
    trainer = AUTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=processor,
        data_collator=collate,
        unlabelled=UnlabelledFaces(faces, consistency_weight=0.7, weak_weight=0.3),
        average_decay=0.9,
    )
    trainer.average.start()
    average, _ = build_tiny("phrases")  # the same weights
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    listed = [encoded(faces)[row] for row in range(12)]
    listed[3]["image"] = {"bytes": b"no image", "path": None}

    class Faces(list):
        def __getitems__(self, places):
            return [self[place] for place in places]

    collated = ReadableRows(collate, Faces(listed))([encoded(rows)[row] for row in range(2)])
    labelled = ReadableRows(collate)([encoded(rows)[row] for row in range(2)])
    return trainer, average, processor, collated, labelled


@torch.no_grad()
def distributions(model, processor, pixel_values) -> list[list[np.ndarray]]:
    """(pictures, AUs of all formats) lists of probabilities that the decoder gives for unvaried pictures."""
    read = read_slots(model.eval(), processor, pixel_values, BUILT_IN)
    return [
        [row for name in MAIN_FORMATS for row in read[name][picture].numpy()] for picture in range(len(pixel_values))
    ]


CLASSES_OF_CODES = ((0, 0.5), (0.5, 2.5), (2.5, 3.5), (3.5, 6))  # absent, A to B, C, D to E


def coded_distance(read: np.ndarray, code: float, name: str) -> float:
    """Cross-entropy of a code by eye: what lies between two classes belongs to both."""
    if name == "bp4d":
        return -code * np.log(read[1]) - (1 - code) * np.log(read[0])
    numbers = [5 * number / FORMATS[name].value_numbers[-1] for number in FORMATS[name].value_numbers]
    letters = np.array([round(number, 9) for number in numbers])  # of FACS
    classes = [read[(letters >= least) & (letters < beyond)].sum() for least, beyond in CLASSES_OF_CODES]
    targets = [np.interp(5 * code, [0, 1.5, 3, 4.5], row) for row in np.eye(4)]
    return -sum(target * np.log(seen) for target, seen in zip(targets, classes, strict=True))


def test_loss_by_hand(setting):
    trainer, average, processor, batch, labelled = setting
    assert (len(batch["pixel_values"]), len(batch["plain_pixel_values"])) == (2 + 12, 12)
    assert batch["readable"].sum() == 11
    assert sorted(batch["unlabelled_rows"]) == list(range(12))
    student = distributions(trainer.model, processor, batch["pixel_values"][2:])
    straight = distributions(average, processor, batch["plain_pixel_values"])
    mirrored = distributions(average, processor, batch["plain_pixel_values"].flip(-1))
    divergences, distances = [], []
    for picture in range(12):
        if not batch["readable"][picture]:
            continue
        for column, (name, label) in enumerate(LABELS):
            other = (name, mirrored_label(label))
            teacher = straight[picture][column]
            if other in LABELS:
                teacher = (teacher + mirrored[picture][LABELS.index(other)]) / 2
            read = student[picture][column]
            divergences.append((teacher * np.log(teacher / read)).sum())
            numbers = np.array(FORMATS[name].value_numbers)
            estimate = batch["weak"][picture, column].item()
            if not math.isnan(estimate) and batch["coded"][picture]:
                distances.append(coded_distance(read, estimate, name))
            elif not math.isnan(estimate):
                expected = (read * numbers).sum() / numbers[-1]
                distances.append(-estimate * np.log(expected) - (1 - estimate) * np.log(1 - expected))
    assert batch["coded"].tolist() == [person in (3, 7, 11) for person in batch["unlabelled_rows"]]
    assert len(distances) == 5 * 8  # 8 AUs of every other face; a damaged one has none
    with torch.no_grad():
        on_labels = trainer.compute_loss(trainer.model.train(), dict(labelled)).item()
        loss = trainer.compute_loss(trainer.model.train(), dict(batch)).item()
    assert np.mean(divergences) > 0.01
    assert loss == pytest.approx(on_labels + 0.7 * np.mean(divergences) + 0.3 * np.mean(distances), rel=1e-4)
    parts = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    expected = {"labels": on_labels, "consistency": np.mean(divergences), "weak": np.mean(distances)}
    assert parts == pytest.approx({f"loss_{name}": value for name, value in expected.items()}, rel=1e-4)
    assert trainer.damaged.names == {"faces:P03 0 0"}


def test_the_teacher_is_the_average_in_evaluation_mode_and_the_student_is_not(setting, monkeypatch):
    trainer, average, _, batch, _ = setting
    own = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    seen = {}
    original = UnlabelledFaces.teach

    def teach(self, model, *arguments):
        seen["modes"] = {module.training for module in model.modules()}
        seen["weights"] = {name: each.clone() for name, each in model.state_dict().items()}
        read = original(self, model, *arguments)
        assert not read.requires_grad
        return read

    monkeypatch.setattr(UnlabelledFaces, "teach", teach)
    trainer.compute_loss(trainer.model.train(), dict(batch)).backward()
    assert seen["modes"] == {False}
    assert trainer.model.training
    for name, weight in average.state_dict().items():
        assert torch.equal(seen["weights"][name], weight)
        assert torch.equal(trainer.model.state_dict()[name], own[name])
    moved = [p for p in trainer.model.parameters() if p.grad is not None and p.grad.any()]
    assert len(moved) > 10


def test_in_16_bits_teacher_and_student_keep_their_own_weights(setting):
    """Autocast caches converted weights: the student must not get the teacher's."""
    trainer, _, _, batch, _ = setting
    losses, moved = [], []
    for enabled in (False, True):
        trainer.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        loss.backward()
        losses.append(loss.item())
        moved.append({name for name, p in trainer.model.named_parameters() if p.grad is not None and p.grad.any()})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert moved[0] == moved[1]


def test_damaged_pictures_alone_carry_no_loss(setting):
    trainer, _, _, batch, labelled = setting
    batch["readable"][:] = False
    with torch.no_grad():
        one, two = (trainer.compute_loss(trainer.model.train(), dict(each)).item() for each in (batch, labelled))
    assert one == pytest.approx(two, rel=1e-6)


def test_a_step_is_divided_by_what_all_its_batches_hold(setting):
    """The batches of a step share one divisor, whatever each holds; a causal one halves the slot batch's share."""
    trainer, _, _, batch, _ = setting
    blind = {**batch, "readable": torch.zeros(12, dtype=torch.bool)}
    slots, text, faces, weak = trainer._get_num_items_in_batch([batch, blind], "cpu")
    known = (~batch["weak"][batch["readable"]].isnan()).sum()
    assert (slots, text, faces, weak) == (2 * 2 * 48, 0, 11 * 48, known)
    causal = {"labels": torch.tensor([[-100, 5, 6]])}
    slots, text, faces, weak = trainer._get_num_items_in_batch([batch, causal], "cpu")
    assert (slots, text, faces, weak) == (2 * 2 * 48, 2 * 2, 2 * 11 * 48, 2 * known)


# -------------------------------------------------------------------------------------------------- pictures and sides


def collated(unlabelled_records, rows, **options):
    _, processor = build_tiny("phrases")
    faces = unlabelled_rows([str(unlabelled_records)], "train", None)
    return ReadableRows(AUCollator(processor, unlabelled_per_labelled=2, **options), encoded(faces))(rows)


def test_a_flip_swaps_the_sides_of_picture_target_and_estimate(rendered_records, unlabelled_records):
    rows = list(encoded(training_rows([str(rendered_records)], "train", None)).select(range(3)))
    plain = collated(unlabelled_records, rows, causal_share=0, flip=0.0)
    flipped = collated(unlabelled_records, rows, causal_share=0, flip=1.0)
    assert plain["unlabelled_rows"] == flipped["unlabelled_rows"]
    for key in ("pixel_values", "plain_pixel_values"):
        assert torch.equal(flipped[key], plain[key].flip(-1))
    other = [LABELS.index((name, mirrored_label(label))) for name, label in LABELS]
    assert torch.equal(flipped["weak"].nan_to_num(-1), plain["weak"][:, other].nan_to_num(-1))
    left, right = (LABELS.index(("feafa", label)) for label in ("AU43L", "AU43R"))  # believed on the left alone
    assert (~plain["weak"][:, left].isnan()).any()
    assert plain["weak"][:, right].isnan().all()
    model, processor = build_tiny("phrases")
    faces = UnlabelledFaces(unlabelled_rows([str(unlabelled_records)], "train", None), 1.0, 1.0)
    tree = faces.tree(processor, plain["pixel_values"])
    one, two = (faces.teach(model, tree, batch["plain_pixel_values"]).exp() for batch in (plain, flipped))
    split = [
        torch.split(read, [len(tree.value_targets[slot.values]) for slot in tree.slots], dim=1) for read in (one, two)
    ]
    for column, source in enumerate(other):
        torch.testing.assert_close(split[1][column], split[0][source])
    assert not torch.allclose(split[0][left], split[0][right], atol=1e-4)


def test_which_faces_join_depends_on_seed_and_rows(tiny):
    _, processor = tiny
    rows = [{"index": index} for index in (4, 7, 1, 9)]
    collate = AUCollator(processor, causal_share=0, unlabelled_per_labelled=1.5, seed=3)
    drawn = collate.joining(rows, 100)
    assert len(set(drawn)) == 6
    assert max(drawn) < 100
    assert drawn == collate.joining(rows, 100)
    assert drawn != collate.joining(rows[::-1], 100)
    assert drawn != AUCollator(processor, causal_share=0, unlabelled_per_labelled=1.5, seed=4).joining(rows, 100)
    assert len(collate.joining(rows, 2)) == 6  # more than there are
    assert AUCollator(processor, causal_share=1, unlabelled_per_labelled=1.5).joining(rows, 100) == []


def test_unlabelled_rows_do_not_change_labelled_ones(setting):
    *_, batch, labelled = setting
    assert torch.equal(batch["pixel_values"][:2], labelled["pixel_values"])
    assert torch.equal(batch["choice_targets"][:2], labelled["choice_targets"])
    assert batch["annotated"].tolist() == [*labelled["annotated"].tolist(), *[0] * 12]


def test_labels_of_unlabelled_folders_are_left_out(rendered_records, unlabelled_records):
    rows = unlabelled_rows([f"{rendered_records}=2"], "train", ["disfa"])
    assert len(rows) == 2 * len(load_records(rendered_records, part="train", formats=["disfa"]))
    assert all(math.isnan(value) for values in rows["values"][:] for value in values[0])
    assert set(rows["margin"][:]) == {0}
    assert not any(rows["coded"][:])
    rows = unlabelled_rows([str(unlabelled_records)], "train", None)
    weak = load_records(unlabelled_records, formats=["feafa"], labelled=False)["weak"][:]
    np.testing.assert_array_equal(np.array(rows["values"][5][2]), np.array(weak[5]))
    assert rows["formats"][5] == list(MAIN_FORMATS)
    assert rows["margin"][5] == 0.25
    assert rows["coded"][:].count(True) == 3


# ------------------------------------------------------------------------------------------------------- the average


@pytest.fixture
def steps(monkeypatch):
    """The weights after every step, and the averages that hold them, while a training runs in this process."""
    found = {"weights": [], "average": None}
    original = AveragedWeights.on_step_end

    def on_step_end(self, *arguments, **named):
        original(self, *arguments, **named)
        found["average"] = self
        found["weights"].append(
            {name: each.detach().clone().double() for name, each in self.model.state_dict().items()}
        )

    monkeypatch.setattr(AveragedWeights, "on_step_end", on_step_end)
    return found


def averaged(start: torch.Tensor, weights: list[torch.Tensor], decay: float) -> torch.Tensor:
    for step, weight in enumerate(weights, start=1):
        kept = min(decay, (1 + step) / (10 + step))
        start = kept * start + (1 - kept) * weight
    return start


def test_the_average_is_what_is_saved(tiny_checkpoint, rendered_records, tmp_path, steps):
    """Without unlabelled data too; weights, batch-norm statistics, checkpoints and result."""
    train(tiny_checkpoint, rendered_records, tmp_path, "--average_decay", 0.3, "--save_steps", 4)
    start, saved = load_file(tiny_checkpoint / MODEL), load_file(tmp_path / MODEL)
    assert any("running_var" in name for name in saved)
    for name, weight in saved.items():
        if not weight.is_floating_point():
            continue
        expected = averaged(start[name].double(), [each[name] for each in steps["weights"]], 0.3)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)
        if "projector" in name:
            assert not torch.allclose(weight.double(), steps["weights"][-1][name], atol=1e-4)
    assert same(tmp_path / MODEL, tmp_path / "checkpoint-4" / MODEL)
    trained = load_file(tmp_path / "checkpoint-4" / TRAINED)
    assert all(torch.equal(trained[name].double(), steps["weights"][-1][name]) for name in trained)
    model = AuLlavaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-4")
    weight = model.state_dict()["model.multi_modal_projector.weight"]
    assert torch.equal(weight, saved["model.multi_modal_projector.weight"])


def test_with_lora_only_adapters_are_averaged(tiny_checkpoint, rendered_records, unlabelled_records, tmp_path, steps):
    flags = ["--use_peft", "true", "--lora_r", 2, "--average_decay", 0.3, "--unlabelled", unlabelled_records]
    train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--causal_share", 0)
    average = steps["average"].average
    sizes = {name: each.numel() for name, each in average.items() if "lora" not in name}
    assert all("running" in name for name in sizes)  # of the tower's batch norm
    assert sum(sizes.values()) < 200
    for name, weight in load_file(tmp_path / ADAPTERS).items():
        name = name.replace(".weight", ".default.weight")
        history = [each[name] for each in steps["weights"]]
        if "lora_B" in name:  # zero at the start
            torch.testing.assert_close(weight.double(), averaged(torch.zeros_like(history[0]), history, 0.3))
            assert weight.any()
    before = load_file(tiny_checkpoint / MODEL)
    statistics = [name for name in before if "running" in name]
    for name in statistics:  # adapters are saved without them
        assert torch.equal(steps["weights"][-1][f"base_model.model.{name}"].float(), before[name])


@pytest.mark.parametrize("lora", [[], ["--use_peft", "true", "--lora_r", 2]])
def test_resumed_run_equals_the_uninterrupted_one(
    tiny_checkpoint, rendered_records, unlabelled_records, tmp_path, lora
):
    flags = ["--max_steps", 8, "--save_steps", 5, "--causal_share", 0.3, "--flip", 0.5, "--augment", "true", *lora]
    flags += ["--unlabelled", unlabelled_records]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny_checkpoint, rendered_records, whole, *flags)
    shutil.copytree(whole / "checkpoint-5", cut / "checkpoint-5")
    train(tiny_checkpoint, rendered_records, cut, *flags, "--resume_from_checkpoint", "true")
    name = ADAPTERS if lora else MODEL
    assert len(logged(whole, "loss_consistency")) >= 4
    for key in ("loss", "loss_consistency", "loss_weak"):
        assert logged(whole, key) == logged(cut, key)
    for file in (name, f"checkpoint-8/{name}", f"checkpoint-8/{TRAINED}"):
        assert same(whole / file, cut / file)
    assert not same(whole / "checkpoint-5" / name, whole / name)


def test_the_average_is_scored_and_the_best_of_them_kept(
    tiny_checkpoint, rendered_records, unlabelled_records, tmp_path, monkeypatch
):
    """The best is the one with the highest loss, so that it is not the last."""
    scored, taught = [], []
    original, teach = trainer_module.predict, UnlabelledFaces.teach

    def predict(engine, *arguments, **named):
        scored.append({name: each.clone() for name, each in engine.model.state_dict().items()})
        return original(engine, *arguments, **named)

    monkeypatch.setattr(trainer_module, "predict", predict)
    monkeypatch.setattr(UnlabelledFaces, "teach", lambda *arguments: taught.append(1) or teach(*arguments))
    flags = ["--eval_strategy", "steps", "--eval_steps", 2, "--save_steps", 2, "--max_steps", 6, "--causal_share", 0]
    flags += ["--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss", "--greater_is_better", "true"]
    train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--unlabelled", unlabelled_records)
    for step, weights in zip((2, 4, 6), scored, strict=True):
        saved = load_file(tmp_path / f"checkpoint-{step}" / MODEL)
        assert all(torch.equal(weights[name], saved[name]) for name in saved)
    evaluated = logged(tmp_path, "eval_loss")
    best = tmp_path / f"checkpoint-{2 * (1 + int(np.argmax(evaluated)))}"
    assert best.name != "checkpoint-6"
    assert same(tmp_path / MODEL, best / MODEL)
    assert len(taught) == 6  # evaluation takes no unlabelled faces


def test_resuming_with_or_without_an_average_must_match(tiny_checkpoint, rendered_records, tmp_path):
    for name, own, others, message in (
        ("with", 0.9, 0, "holds averaged weights: resume it with its average_decay"),
        ("without", 0, 0.9, "has no averaged weights: resume without average_decay"),
    ):
        flags = ["--save_steps", 2, "--max_steps", 2, "--average_decay"]
        train(tiny_checkpoint, rendered_records, tmp_path / name, *flags, own)
        flags = ["--resume_from_checkpoint", "true", "--average_decay", others]
        with pytest.raises(ValueError, match=message):
            train(tiny_checkpoint, rendered_records, tmp_path / name, *flags)


# ------------------------------------------------------------------------------------------------- when things go wrong


def test_a_nan_loss_stops(tiny_checkpoint, rendered_records, unlabelled_records, tmp_path):
    flags = ["--learning_rate", 1e38, "--max_grad_norm", 0, "--save_steps", 1, "--warmup_steps", 0, "--causal_share", 0]
    with pytest.raises(CommandEnded, match=r"at step 2, on the images rendered:.*faces:P\d\d 0 0.* weights were left"):
        train(tiny_checkpoint, rendered_records, tmp_path, *flags, "--unlabelled", unlabelled_records)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1"]
    assert not (tmp_path / MODEL).exists()


def test_damaged_faces_are_skipped_and_counted(tiny_checkpoint, rendered_records, unlabelled_records, tmp_path):
    names = damage(unlabelled_records, tmp_path / "records", 3)
    flags = ["--unlabelled", tmp_path / "records", "--unlabelled_per_labelled", 6, "--causal_share", 0]
    train(tiny_checkpoint, rendered_records, tmp_path / "out", *flags)
    assert read_training_manifest(str(tmp_path / "out"))["unreadable"] == sorted(names)
    assert np.isfinite(logged(tmp_path / "out", "loss")).all()
    assert len(logged(tmp_path / "out", "loss_consistency")) == 4


def test_checkpoints_record_unlabelled_people(tiny_checkpoint, rendered_records, unlabelled_records, tmp_path):
    train(tiny_checkpoint, rendered_records, tmp_path / "one", "--unlabelled", unlabelled_records, "--max_steps", 1)
    manifest = read_training_manifest(str(tmp_path / "one"))
    people = people_of(load_records(unlabelled_records, labelled=False))
    assert manifest["people"]["unlabelled"] == people
    assert not set(people) & set(manifest["people"]["train"])
    content = json.loads((unlabelled_records / "manifest.json").read_text())["content_sha256"]
    assert manifest["unlabelled"] == {str(unlabelled_records): content}
    assert manifest["recipe"]["average_decay"] == 0.995
    assert manifest["recipe"]["unlabelled"] == [str(unlabelled_records)]
    assert str(unlabelled_records) in (tmp_path / "one" / "README.md").read_text()
    with pytest.raises(ValueError, match="has seen 1 of these 2 people in its unlabelled part: faces:P03"):
        check_unseen(str(tmp_path / "one"), ["faces:P03", "faces:P99"])
    train(tmp_path / "one", rendered_records, tmp_path / "two", "--max_steps", 1)
    assert seen_people(read_training_manifest(str(tmp_path / "two")))["unlabelled"] == set(people)
    del manifest["people"]["unlabelled"]  # as older manifests are
    assert seen_people(manifest)["unlabelled"] == set()


def test_unlabelled_people_are_not_tested(unlabelled_records):
    rows = unlabelled_rows([str(unlabelled_records)], "train", None)
    with pytest.raises(ValueError, match="unlabelled"):
        check_people(rows, rows.select([0]), [], side="unlabelled")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weak_weight", 2], "weak_weight has no effect without unlabelled"),
        (["--unlabelled_per_labelled", 2], "unlabelled_per_labelled has no effect without unlabelled"),
        (["--average_decay", 1], "average_decay is 1.0"),
        (["--unlabelled", "FACES", "--consistency_weight", 0, "--weak_weight", 0], "would teach nothing"),
        (["--unlabelled", "FACES", "--weak_weight", "nan"], "weak_weight is nan"),
        (["--unlabelled", "FACES", "--causal_share", 1], "causal_share 1 leaves none"),
        (["--unlabelled", "FACES", "--unlabelled_per_labelled", 0.1], "rounds to no image"),
        (
            ["--unlabelled", "FACES", "--cache_features", "x", "--freeze", "vision_tower"],
            "cache_features cannot vary",
        ),
        (["--unlabelled", "nowhere"], "nowhere"),
        (["--unlabelled", "{path: FACES, convert_to: [gft]}"], "convert_to derives labels"),
        (["--unlabelled", "{path: FACES, formats: [bp4d]}", "FACES"], "records of the same formats"),
        (["--data", "FACES"], "holds no labels; give it as --unlabelled"),
    ],
)
def test_bad_input_is_named(tiny_checkpoint, rendered_records, unlabelled_records, tmp_path, flags, message):
    flags = [str(flag).replace("FACES", str(unlabelled_records)) for flag in flags]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tiny_checkpoint, rendered_records, tmp_path, *flags)


@pytest.mark.parametrize("options", [{"average_decay": 0.9}, {"unlabelled": object(), "average_decay": 0.0}])
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_sharded_weights_are_refused(monkeypatch, options, engine):
    """Unlabelled faces with `average_decay: 0` too, whose teacher is the sharded model itself."""

    def started(self, *_, **__):
        self.is_fsdp_enabled, self.is_deepspeed_enabled = engine == "fsdp", engine == "deepspeed"

    monkeypatch.setattr(trainer_module.SFTTrainer, "__init__", started)
    with pytest.raises(ValueError, match="average_decay and unlabelled need whole weights in every process"):
        AUTrainer(**options)


def test_unlabelled_data_alone_is_refused(tiny_checkpoint, unlabelled_records, tmp_path, capsys):
    words = [
        "--model_name_or_path",
        tiny_checkpoint,
        "--unlabelled",
        unlabelled_records,
        "--output_dir",
        tmp_path,
        *QUIET,
    ]
    with pytest.raises(SystemExit):
        make_parser().parse_args_and_config([str(word) for word in words])
    assert "--data" in capsys.readouterr().err


def test_a_folder_without_training_faces_is_refused(tiny_checkpoint, rendered_records, unlabelled_records, tmp_path):
    (shard,) = unlabelled_records.glob("data-*.parquet")
    table = pq.ParquetFile(shard).read()
    (tmp_path / "records").mkdir()
    shutil.copy(unlabelled_records / "manifest.json", tmp_path / "records")
    column = table.column_names.index("part")
    table = table.set_column(column, "part", pa.array(["test"] * len(table)))
    pq.write_table(table, tmp_path / "records" / shard.name.replace("train", "test"))
    with pytest.raises(ValueError, match=r"no record of part 'train'.*records"):
        train(tiny_checkpoint, rendered_records, tmp_path / "out", "--unlabelled", tmp_path / "records")
