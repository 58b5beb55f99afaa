"""Training batches: which tokens carry loss, and that both layouts train what the decoders read."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import build_tiny, random_faces
from PIL import Image

from au_llava.action_units import FORMATS, AUFormat, parse_answer, prompt, write_answer
from au_llava.au_training.augmentation import mirrored_values
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.loss import IGNORED, slot_loss, value_target
from au_llava.au_training.samplers import GroupedSampler, WeightedSampler, slot_lengths
from au_llava.slot_tree_au_llava import compile_slots

NAN = math.nan
BP4D = [1, 0, NAN, 1, 0, 0, 1, 0, 0, 1, NAN, 0]
FEAFA = [round(0.04 * step, 2) for step in range(24)]


def rows(count: int = 3) -> list[dict]:
    images = [Image.fromarray((face * 255).astype(np.uint8)) for face in random_faces(count)]
    return [
        {"image": image, "formats": ["bp4d", "feafa"], "values": [BP4D, FEAFA], "index": index}
        for index, image in enumerate(images)
    ]


def test_slot_targets_are_the_values_and_nothing_else(tiny_any_tokenizer):
    """The decisions with a target spell the AU's value after its label; NaN labels have none."""
    _, processor = tiny_any_tokenizer
    batch = AUCollator(processor, causal_share=0)(rows(1))
    tree = compile_slots(processor, (FORMATS["bp4d"], FORMATS["feafa"]), 16)
    target_of = {}  # decision -> the token that should follow
    for decision, (tokens, masses) in enumerate(zip(batch["choices"][0], batch["choice_targets"][0], strict=True)):
        assert masses.sum() in (0, 1)
        if masses.any():
            target_of[decision] = int(tokens[masses.argmax()])
    read = {}
    used = set()
    for slot in tree.slots:
        paths = tree.value_targets[slot.values]
        chosen = [v for v, path in enumerate(paths) if all(target_of.get(d) == token for d, token in path)]
        used |= {d for v in chosen for d, _ in paths[v]}
        name = ("bp4d", "feafa")[slot.format_index]
        numbers = [FORMATS[name].value_numbers[value] for value in chosen]
        read[name, slot.label] = numbers or None
    bp4d = zip(FORMATS["bp4d"].labels, BP4D, strict=True)
    expected = {("bp4d", label): None if math.isnan(value) else [value] for label, value in bp4d}
    digits = len(processor.tokenizer("0.37", add_special_tokens=False)["input_ids"]) == 4
    for label, value in zip(FORMATS["feafa"].labels, FEAFA, strict=True):
        tenth = int(100 * value + 0.5) // 10
        unread = digits and tenth  # of single digits, the last is read after "0.0" only
        expected["feafa", label] = [round(tenth / 10 + i / 100, 2) for i in range(10)] if unread else [value]
    assert read == expected
    assert used == set(target_of)
    assert batch["annotated"].tolist() == [10 + 24]


@pytest.mark.parametrize("width", [0.0, 0.1])
def test_slot_loss_is_cross_entropy_with_what_recognize_reports(width):
    model, processor = build_tiny("single digits")
    row = rows(1)
    batch = AUCollator(processor, causal_share=0, ordinal_width=width)(row)
    nodes, choices, targets, annotated = (
        batch.pop(key) for key in ("decision_nodes", "choices", "choice_targets", "annotated")
    )
    with torch.no_grad():
        loss = slot_loss(model(**batch).logits, nodes, choices, targets, annotated).item()
    answers = model.recognize(processor, [row[0]["image"]], formats=["bp4d", "feafa"])[0]
    expected = []
    for name, values in (("bp4d", BP4D), ("feafa", FEAFA)):
        fmt = FORMATS[name]
        for label, value in zip(fmt.labels, values, strict=True):
            if not math.isnan(value):
                predicted = np.array(answers[name][label].distribution)
                if name == "feafa":  # last digits that are not read carry no loss
                    predicted[10:100] *= 10
                expected.append(-(value_target(value, fmt, width).numpy() * np.log(predicted)).sum())
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_slot_weights_make_a_weighted_mean():
    """The loss is the weighted mean of the AUs' own losses; an AU or format without a weight has 1."""
    model, processor = build_tiny("phrases")
    row = rows(1)[0]

    def loss(values, weights=None):
        collate = AUCollator(processor, causal_share=0, slot_weights=weights)
        batch = collate([{**row, "formats": ["bp4d", "feafa"], "values": values}])
        parts = [batch.pop(key) for key in ("decision_nodes", "choices", "choice_targets", "annotated")]
        with torch.no_grad():
            return slot_loss(model(**batch).logits, *parts).item()

    labels = [[1.0, 0.0, *[NAN] * 10], [0.5, *[NAN] * 23]]
    alone = [[1.0, *[NAN] * 11], [NAN] * 24], [[NAN, 0.0, *[NAN] * 10], [NAN] * 24], [[NAN] * 12, labels[1]]
    first, second, third = map(loss, alone)
    weights = {"bp4d": {"AU1": 0.25, "AU2": 3.0}}
    assert loss(labels, weights) == pytest.approx((0.25 * first + 3 * second + third) / 4.25, rel=1e-4)
    assert loss(alone[0], weights) == pytest.approx(first, rel=1e-4)


def test_ordinal_target_by_hand():
    disfa = FORMATS["disfa"]
    weights = np.exp(-0.5 * (np.arange(1, 6) - 3.0) ** 2 / 0.5**2)  # width 0.1 of the scale of 5
    np.testing.assert_allclose(value_target(3.0, disfa, 0.1), [0, *(weights / weights.sum())], rtol=1e-6)
    assert value_target(0.0, disfa, 0.1).tolist() == [1, 0, 0, 0, 0, 0]  # absent stays absent
    assert value_target(3.0, disfa, 0.0).tolist() == [0, 0, 0, 1, 0, 0]


def test_unknown_labels_have_no_gradient():
    model, processor = build_tiny()
    face = rows(1)[0]["image"]
    collate = AUCollator(processor, causal_share=0)
    nothing = collate([{"image": face, "formats": ["bp4d"], "values": [[NAN] * 12], "index": 0}])
    nodes, choices, targets, annotated = (
        nothing.pop(key) for key in ("decision_nodes", "choices", "choice_targets", "annotated")
    )
    loss = slot_loss(model(**nothing).logits, nodes, choices, targets, annotated)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    first = collate([{"image": face, "formats": ["bp4d"], "values": [[1.0] + [NAN] * 11], "index": 0}])
    assert first["annotated"].item() == 1
    assert first["choice_targets"].sum() == 1


def test_causal_text_asks_only_for_what_is_annotated(tiny_any_tokenizer):
    _, processor = tiny_any_tokenizer
    batch = AUCollator(processor, causal_share=1, seed=1, causal_loss="answer")(rows(6))
    seen = set()
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        text = processor.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        answer = processor.tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True)
        name = "bp4d" if "present" in text else "feafa"
        seen.add(name)
        values = BP4D if name == "bp4d" else FEAFA
        known = {label: v for label, v in zip(FORMATS[name].labels, values, strict=True) if not math.isnan(v)}
        asked = AUFormat(name, tuple(known), FORMATS[name].scale)
        assert answer == write_answer(known, asked)
        assert prompt(asked) in text
        assert parse_answer(answer, asked).values == known
        last = labels[labels != IGNORED][-1].item()
        assert last == processor.tokenizer.eos_token_id
        assert (ids[labels != IGNORED] == labels[labels != IGNORED]).all()
    assert seen == {"bp4d", "feafa"}


def test_causal_loss_on_values_alone(tiny_any_tokenizer):
    """The tokens that carry loss spell the values, without the text between them and the end of the turn."""
    _, processor = tiny_any_tokenizer
    values = AUCollator(processor, causal_share=1, seed=1, causal_loss="values")(rows(6))
    answers = AUCollator(processor, causal_share=1, seed=1, causal_loss="answer")(rows(6))
    assert torch.equal(values["input_ids"], answers["input_ids"])
    for labels, whole in zip(values["labels"], answers["labels"], strict=True):
        learned = labels != IGNORED
        assert torch.equal(labels[learned], whole[learned])
        answer = processor.tokenizer.decode(whole[whole != IGNORED], skip_special_tokens=True)
        written = "".join(re.findall(r": ([\d.]+)", answer))
        assert re.sub(r"\s", "", processor.tokenizer.decode(labels[learned])) == written


def test_rows_with_different_formats_share_a_batch():
    """Padding a slot batch changes nothing: its loss is the mean over the AUs of its rows, each taken alone."""
    model, processor = build_tiny()
    pair = rows(2)
    pair[1]["formats"], pair[1]["values"] = ["disfa"], [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]]
    collate = AUCollator(processor, causal_share=0)

    def total(batch):
        nodes, choices, targets, annotated = (
            batch.pop(key) for key in ("decision_nodes", "choices", "choice_targets", "annotated")
        )
        with torch.no_grad():
            return slot_loss(model(**batch).logits, nodes, choices, targets, annotated) * annotated.sum()

    together = total(collate(pair))
    alone = sum(total(collate([row])) for row in pair)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_mirroring_swaps_sides():
    values = [float(step) for step in range(24)]
    mirrored = mirrored_values(values, FORMATS["feafa"])
    swapped = [1, 0, 3, 2, 5, 4, 7, 6, 8, 10, 9, 12, 11, 14, 13, *range(15, 24)]  # the pairs of the FEAFA manual
    assert mirrored == [float(step) for step in swapped]
    assert mirrored_values(BP4D, FORMATS["bp4d"]) == pytest.approx(BP4D, nan_ok=True)
    one_sided = AUFormat("mine", ("AU12L", "AU6"), "continuous")
    assert mirrored_values([0.4, 0.2], one_sided) == pytest.approx([NAN, 0.2], nan_ok=True)


def test_flip_mirrors_image_and_labels_together():
    _, processor = build_tiny()
    row = rows(1)
    plain = AUCollator(processor, causal_share=0, flip=0)(row)
    flipped = AUCollator(processor, causal_share=0, flip=1)(row)
    torch.testing.assert_close(flipped["pixel_values"], plain["pixel_values"].flip(-1))
    mirrored = [
        {
            **row[0],
            "values": [
                mirrored_values(v, FORMATS[n]) for n, v in zip(row[0]["formats"], row[0]["values"], strict=True)
            ],
        }
    ]
    expected = AUCollator(processor, causal_share=0, flip=0)(mirrored)["choice_targets"]
    assert torch.equal(flipped["choice_targets"], expected)
    assert not torch.equal(plain["choice_targets"], expected)


def test_variation_changes_the_picture_and_not_the_labels():
    _, processor = build_tiny("phrases")
    plain, varied = (AUCollator(processor, 0, augment=augment)(rows(1)) for augment in (False, True))
    assert torch.equal(plain["choice_targets"], varied["choice_targets"])
    assert not torch.equal(plain["pixel_values"], varied["pixel_values"])


def test_choices_depend_on_the_rows_alone():
    """The same rows give the same batch at any time: exact resumption depends on it."""
    _, processor = build_tiny("phrases")
    collate = AUCollator(processor, causal_share=0.5, flip=0.5, seed=3)
    batches = [rows(4)[i : i + 2] for i in (0, 1, 2)]
    first = [collate(batch) for batch in batches]
    second = [AUCollator(processor, causal_share=0.5, flip=0.5, seed=3)(batch) for batch in reversed(batches)]
    for one, other in zip(first, reversed(second), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_causal_share_is_a_share():
    _, processor = build_tiny("phrases")
    row = rows(1)[0]
    collate = AUCollator(processor, causal_share=0.3)
    causal = sum("labels" in collate([{**row, "index": index}]) for index in range(200))
    assert 40 <= causal <= 80


def test_unknown_causal_loss_is_refused(tiny):
    with pytest.raises(ValueError, match="answer, values"):
        AUCollator(tiny[1], causal_loss="everything")


@pytest.mark.parametrize("setting", [{"causal_share": 1.5}, {"flip": -0.1}])
def test_shares_outside_0_to_1_are_refused(tiny, setting):
    with pytest.raises(ValueError, match="between 0 and 1"):
        AUCollator(tiny[1], **setting)


# ---- Rows of a batch ------------------------------------------------------------------------------------------
def test_slot_lengths_are_those_of_the_batches(tiny_any_tokenizer):
    _, processor = tiny_any_tokenizer
    collate = AUCollator(processor, causal_share=0)
    formats = [["bp4d", "feafa"], ["bp4d"], ["feafa"], ["bp4d"]]
    values = {"bp4d": BP4D, "feafa": FEAFA}
    batches = [
        collate([{**row, "formats": names, "values": [values[name] for name in names]}])
        for row, names in zip(rows(4), formats, strict=True)
    ]
    assert slot_lengths(formats, processor) == [batch["input_ids"].shape[1] for batch in batches]


def padding(order, lengths, batch):
    """Number of padding tokens in batches of rows in this order."""
    groups = [[lengths[row] for row in order[i : i + batch]] for i in range(0, len(order), batch)]
    return sum(max(group) * len(group) - sum(group) for group in groups)


def test_grouped_rows_are_all_rows_with_little_padding():
    lengths = [100 if row % 3 else 400 for row in range(240)]
    sampler = GroupedSampler(lengths, batch_size=4, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(len(sampler))) == list(range(240))
    assert padding(order, lengths, 4) <= 4 * 3 * 300  # of four times fifteen batches, one each holds both lengths
    assert padding(range(240), lengths, 4) == 20 * (2 + 3 + 3) * 300  # twelve rows, three batches, four long rows
    assert list(GroupedSampler(lengths, 4, seed=0)) == order
    assert list(GroupedSampler(lengths, 4, seed=1)) != order
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(240))
    assert list(sampler) != order


def test_grouped_rows_are_those_that_weights_draw():
    lengths = [100 if row % 3 else 400 for row in range(240)]
    weights = np.linspace(0.1, 1.9, 240)
    sampler, alone = GroupedSampler(lengths, 4, 5, WeightedSampler(weights, 5)), WeightedSampler(weights, 5)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        alone.set_epoch(epoch)
        drawn = list(alone)
        assert sorted(sampler) == sorted(drawn) != list(range(240))
        assert padding(list(sampler), lengths, 4) < 0.2 * padding(drawn, lengths, 4)


# ---- Features instead of images -------------------------------------------------------------------------------
def test_rows_with_features_give_the_batch_of_their_images():
    """The same layout, labels and random choices, and the features in the rows' order."""
    _, processor = build_tiny("phrases")
    features = {name: torch.full((16, 8), float(number)) for number, name in enumerate("abc")}
    named = [{**row, "features": name} for row, name in zip(rows(3), "cab", strict=True)]
    for row in named:
        del row["image"]
    for seed in range(6):
        collate = AUCollator(processor, causal_share=0.5, seed=seed)
        collate.features = features
        found, expected = collate(named), collate(rows(3))
        assert found.pop("image_features")[:, 0, 0].tolist() == [2, 0, 1]
        expected.pop("pixel_values")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
