"""The three decoders: slots against a brute-force loop, constrained against greedy generation, free against text."""

import json

import numpy as np
import pytest
import torch
from conftest import build_tiny, random_faces
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TextIteratorStreamer

from au_llava.action_units import ACTION_UNITS, FORMATS, SCALES, AUFormat, parse_answer
from au_llava.decoding_au_llava import compile_template
from au_llava.readings_au_llava import slot_answers
from au_llava.slot_tree_au_llava import SlotTree, compile_slots
from au_llava.tree_attention_au_llava import BLOCK, TreeMask

ALL = ("bp4d", "disfa", "feafa")


def brute_force(model, processor, image, fmt, label) -> np.ndarray:
    """P(value) of one AU by ordinary causal attention: one sequence per value, conditional step by step."""
    pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    prompt = processor.prompt_ids(fmt, processor.num_image_tokens(*pixel_values.shape[-2:]))
    answers = [
        tuple(processor.tokenizer(f"{label}: {value}", add_special_tokens=False)["input_ids"])
        for value in fmt.value_strings
    ]
    longest = max(map(len, answers))
    ids = torch.tensor([prompt + list(answer) + [0] * (longest - len(answer)) for answer in answers])
    with torch.no_grad():  # ordinary causal attention: what stands to the right changes nothing
        logits = model(input_ids=ids, pixel_values=pixel_values.expand(len(ids), -1, -1, -1)).logits.double()
    probabilities = []
    for row, answer in enumerate(answers):
        probability = 1.0
        for depth, token in enumerate(answer):
            options = sorted({other[depth] for other in answers if other[:depth] == answer[:depth]})
            step = logits[row, len(prompt) + depth - 1, options].softmax(-1)
            probability *= step[options.index(token)].item()
        probabilities.append(probability)
    return np.array(probabilities)


def as_slots_read(processor, fmt, exact: np.ndarray) -> np.ndarray:
    """An exact distribution with equal shares where single digits are not read: 0.10 to 0.19, ..., 0.90 to 0.99."""
    if fmt.scale != "continuous" or len(processor.tokenizer("0.37", add_special_tokens=False)["input_ids"]) < 4:
        return exact
    tenths = np.repeat(exact[10:100].reshape(9, 10).mean(axis=1), 10)
    return np.concatenate([exact[:10], tenths, exact[100:]])


def test_slots_equal_one_au_at_a_time(tiny_any_tokenizer):
    model, processor = tiny_any_tokenizer
    image = random_faces(1)[0]
    result = model.recognize(processor, [image], formats=ALL)[0]
    for name, label in (("bp4d", "AU4"), ("bp4d", "AU24"), ("disfa", "AU1"), ("disfa", "AU12"), ("feafa", "AU28B")):
        expected = brute_force(model, processor, image, FORMATS[name], label)
        read = as_slots_read(processor, FORMATS[name], expected)
        np.testing.assert_allclose(result[name][label].distribution, read, atol=1e-4)
        assert expected.sum() == pytest.approx(1, abs=1e-6)


def test_reading_is_consistent(tiny, faces):
    model, processor = tiny
    for answers in model.recognize(processor, faces, formats=ALL):
        for name in ALL:
            fmt = FORMATS[name]
            assert tuple(answers[name]) == fmt.labels
            parsed = parse_answer(answers[name].text, fmt)
            assert parsed.ok
            for label, reading in answers[name].items():
                distribution = np.array(reading.distribution)
                numbers = np.array(fmt.value_numbers)
                assert reading.value == numbers[distribution.argmax()] == parsed.values[label]
                assert reading.expected == pytest.approx(distribution @ numbers, abs=1e-5)
                assert distribution[numbers <= reading.median].sum() >= 0.5 - 1e-6
                assert distribution[numbers < reading.median].sum() < 0.5 + 1e-6
                present = distribution[numbers >= fmt.presence_threshold].sum()
                assert reading.probability == pytest.approx(present, abs=1e-5)


def test_mirror_is_the_mean_with_the_mirror_image(tiny, faces):
    """Against two readings without it, the mirror image's sided AUs having changed places; a mirrored face gets the
    mirrored answer. An AU whose other side is not asked for is read off the image alone."""
    model, processor = tiny
    formats = [FORMATS["disfa"], FORMATS["feafa"], AUFormat("one-sided", ("AU12L", "AU4"), "continuous")]
    there = [face[:, ::-1].copy() for face in faces]
    straight, mirrored = (model.recognize(processor, each, formats) for each in (faces, there))
    model.config.mirror_images = True
    try:
        both, swapped = (model.recognize(processor, each, formats, batch_size=1) for each in (faces, there))
    finally:
        model.config.mirror_images = False
    other = {"L": "R", "R": "L"}
    for one, two, mean, turned in zip(straight, mirrored, both, swapped, strict=True):
        for name in one:
            for label, reading in one[name].items():
                side = label[:-1] + other.get(label[-1], label[-1])
                if (name, label) == ("one-sided", "AU12L"):
                    assert mean[name][label].distribution == pytest.approx(reading.distribution, abs=1e-6)
                    continue
                expected = np.mean([reading.distribution, two[name][side].distribution], axis=0)
                assert mean[name][label].distribution == pytest.approx(expected, abs=1e-6)
                assert turned[name][side].distribution == pytest.approx(expected, abs=1e-6)
        assert one["feafa"]["AU12L"].distribution != pytest.approx(two["feafa"]["AU12R"].distribution, abs=1e-4)


def test_value_mean_and_median_of_a_distribution_by_hand():
    """The three single numbers that a distribution gives, where they differ; exactly half is enough for the median."""
    fmt = AUFormat("i", ("AU1", "AU2", "AU4"), "intensity")
    read = [[0.4, 0.2, 0.0, 0.0, 0.1, 0.3], [0.5, 0.0, 0.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]]
    answer = slot_answers({"i": torch.tensor([read])}, (fmt,), None)[0][0]
    assert [each.value for each in answer.values()] == [0, 0, 5]
    assert [each.median for each in answer.values()] == [1, 0, 4]
    assert [each.expected for each in answer.values()] == pytest.approx([2.1, 2.5, 3.5])


@pytest.mark.parametrize(("decoding", "formats"), [("slots", ALL), ("constrained", ALL[:2]), ("free", ALL[:1])])
def test_batch_size_does_not_matter(tiny, faces, decoding, formats):
    model, processor = tiny
    batched = model.recognize(processor, faces, formats=formats, decoding=decoding, batch_size=5)
    single = model.recognize(processor, faces, formats=formats, decoding=decoding, batch_size=1)
    for one, other in zip(batched, single, strict=True):
        for name in formats:
            assert one[name].text == other[name].text
            for label, reading in one[name].items():
                if decoding != "free":
                    np.testing.assert_allclose(reading.distribution, other[name][label].distribution, atol=1e-4)


def test_formats_do_not_influence_each_other(tiny, faces):
    model, processor = tiny
    together = model.recognize(processor, faces[:2], formats=ALL)
    for name in ALL:
        alone = model.recognize(processor, faces[:2], formats=[name])
        for one, other in zip(together, alone, strict=True):
            for label, reading in one[name].items():
                np.testing.assert_allclose(reading.distribution, other[name][label].distribution, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "flex_attention"])
def test_attention_backends_agree(tiny, faces, backend):
    model, processor = tiny
    expected = model.recognize(processor, faces, formats=["disfa"])
    torch.compiler.reset()  # PyTorch's flex attention does not compile on a CPU once two lengths were seen
    model.set_attn_implementation({"text_config": backend})
    try:
        actual = model.recognize(processor, faces, formats=["disfa"])
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
    for one, other in zip(actual, expected, strict=True):
        for label in one["disfa"]:
            np.testing.assert_allclose(one["disfa"][label].distribution, other["disfa"][label].distribution, atol=1e-4)


def test_flash_attention_is_refused_with_a_way_out(tiny, faces, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(model.model.language_model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"cannot honor the tree mask.*sdpa"):
        model.recognize(processor, faces)


def forced_greedy(model, processor, faces, fmt) -> list[str]:
    """What `generate` writes when only tokens that keep the answer valid may follow."""
    segments = compile_template(processor.tokenizer, fmt)
    pixel_values = processor.image_processor(faces, return_tensors="pt")["pixel_values"]
    prompt = processor.prompt_ids(fmt, processor.num_image_tokens(*pixel_values.shape[-2:]))

    def allowed(_, ids):
        done = ids[len(prompt) :].tolist()
        position = 0
        for fixed, values in segments:
            for token in fixed:
                if position == len(done):
                    return [token]
                position += 1
            rest = tuple(done[position:])
            inside = [v for v in values if v[: len(rest)] == rest and len(v) > len(rest)]
            if inside:
                return sorted({v[len(rest)] for v in inside})
            position += len(next(v for v in values if rest[: len(v)] == v))
        return [processor.tokenizer.eos_token_id]

    ids = torch.tensor([prompt] * len(faces))
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixel_values,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        max_new_tokens=400,
    )
    return processor.tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)


def test_constrained_is_greedy_with_invalid_tokens_forbidden(tiny_any_tokenizer, faces):
    model, processor = tiny_any_tokenizer
    greedy = forced_greedy(model, processor, faces[:3], FORMATS["disfa"])
    constrained = model.recognize(processor, faces[:3], formats=["disfa"], decoding="constrained")
    assert [answers["disfa"].text for answers in constrained] == greedy


def test_constrained_always_parses(tiny_any_tokenizer, faces):
    model, processor = tiny_any_tokenizer
    for answers in model.recognize(processor, faces, formats=ALL, decoding="constrained"):
        for name in ALL:
            assert parse_answer(answers[name].text, FORMATS[name]).ok


def test_free_reports_what_it_could_not_read(tiny, faces):
    model, processor = tiny
    answer = model.recognize(processor, faces[:1], formats=["bp4d"], decoding="free")[0]["bp4d"]
    parsed = parse_answer(answer.text, FORMATS["bp4d"])
    assert {label: reading.value for label, reading in answer.items()} == parsed.values
    assert list(answer.problems) == parsed.problems
    assert all(reading.distribution is None for reading in answer.values())


def test_free_passes_options_to_generate(tiny, faces, monkeypatch):
    model, processor = tiny
    calls = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **options: calls.append(options) or generate(**options))
    torch.manual_seed(0)
    model.recognize(processor, faces[:1], formats=ALL, decoding="free", do_sample=True, max_new_tokens=3)
    assert [(call["do_sample"], call["max_new_tokens"]) for call in calls] == [(True, 3)] * 3


def test_free_streams(tiny, faces):
    """A streamer sees the tokens of the answer as they come."""
    model, processor = tiny
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = model.recognize(processor, faces[:1], formats=["bp4d"], decoding="free", streamer=streamer)[0]["bp4d"]
    assert "".join(streamer).strip() == answer.text


def test_free_samples_whole_batches(tiny, faces):
    model, processor = tiny
    texts = []
    for _ in range(2):
        torch.manual_seed(0)
        options = {"decoding": "free", "do_sample": True, "temperature": 2.0, "max_new_tokens": 30}
        texts.append([a["bp4d"].text for a in model.recognize(processor, faces, formats=["bp4d"], **options)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == len(faces)


def test_images_may_be_stacked(tiny, faces):
    model, processor = tiny
    stacked = model.recognize(processor, np.stack(faces), formats=["bp4d"])
    listed = model.recognize(processor, faces, formats=["bp4d"])
    assert [answers["bp4d"].text for answers in stacked] == [answers["bp4d"].text for answers in listed]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoding": "magic"}, "slots, constrained, free"),
        ({"formats": ["bp5d"]}, "bp5d"),
        ({"formats": []}, "at least one format"),
        ({"formats": ["bp4d", "bp4d"]}, "none twice"),
        ({"batch_size": 0}, "at least 1"),
        ({"images": []}, "no image"),
        ({"num_beams": 3}, "only apply to decoding='free'"),
        ({"decoding": "free", "max_new_tokens": 1, "return_dict_in_generate": True}, "one text for each image"),
        ({"decoding": "free", "num_beams": 2, "num_return_sequences": 2}, "one text for each image"),
    ],
)
def test_bad_arguments_fail_in_one_sentence(tiny, faces, arguments, message):
    model, processor = tiny
    with pytest.raises(ValueError, match=message):
        model.recognize(processor, **{"images": faces, **arguments})


def test_training_mode_is_restored(faces):
    model, processor = build_tiny()
    model.train()
    model.recognize(processor, faces[:1], formats=["bp4d"])
    assert model.training
    assert next(model.parameters()).requires_grad


def test_a_part_in_training_mode_is_read_in_evaluation_mode_and_stays_as_it_was(faces):
    """Dropout of a single layer, while the model as a whole is in evaluation mode, as when only adapters learn."""
    model, processor = build_tiny()
    expected = model.recognize(processor, faces[:1], formats=["disfa"])[0].to_dict()
    layer = model.model.language_model.layers[0]
    layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.9))
    model.eval()
    layer.mlp[1].train()
    assert model.recognize(processor, faces[:1], formats=["disfa"])[0].to_dict() == expected
    assert [name for name, module in model.named_modules() if module.training] == [
        "model.language_model.layers.0.mlp.1"
    ]


@pytest.mark.parametrize("change", ["bfloat16", "float64", "eager", "autocast"])
def test_the_mask_follows_the_type_and_the_attention_of_the_model(faces, change):
    """The model is read, changed and read again: nothing of the first reading remains that would not fit."""
    model, processor = build_tiny(mirror_images=True)
    before = model.recognize(processor, faces[:1], formats=["disfa"])[0]["disfa"]
    if change == "eager":
        model.set_attn_implementation(change)
    elif change != "autocast":
        model.to(getattr(torch, change))
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        after = model.recognize(processor, faces[:1], formats=["disfa"])[0]["disfa"]
    tolerance = 0.02 if change in ("bfloat16", "autocast") else 1e-5
    for label, reading in before.items():
        assert after[label].distribution == pytest.approx(reading.distribution, abs=tolerance)


@settings(max_examples=15, deadline=None)
@given(
    labels=st.lists(st.sampled_from(sorted(ACTION_UNITS)), min_size=1, max_size=8, unique=True),
    scale=st.sampled_from(sorted(SCALES)),
)
def test_any_format_of_a_user_is_answered(tiny, labels, scale):
    model, processor = tiny
    fmt = AUFormat("mine", tuple(labels), scale)
    answer = model.recognize(processor, random_faces(1), formats=[fmt])[0]["mine"]
    assert parse_answer(answer.text, fmt).ok
    assert tuple(answer) == tuple(labels)


def test_tree_by_hand():
    """Two formats over one trunk: tokens shared, positions by depth, attention to ancestors only."""
    tree = SlotTree([[1, 2], [1, 3]], [{"AU1": [[7, 8], [7, 9]]}, {"AU1": [[7, 9, 5], [7, 9, 6], [7, 8]]}])
    assert tree.input_ids.tolist() == [1, 2, 7, 3, 7, 9]
    assert tree.positions.tolist() == [0, 1, 2, 1, 2, 3]
    assert [row.nonzero().flatten().tolist() for row in tree.mask] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 3],
        [0, 3, 4],
        [0, 3, 4, 5],
    ]
    assert tree.decision_nodes.tolist() == [2, 4, 5]
    assert tree.choices.tolist() == [[8, 9], [9, 8], [5, 6]]
    assert tree.value_targets == [[(0, 8)], [(0, 9)], [(1, 9), (2, 5)], [(1, 9), (2, 6)], [(1, 8)]]
    assert tree.logit_tokens.tolist() == [5, 6, 8, 9]
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 3] = np.log(3)  # P(9) = 3/4 at the second decision
    logits[0, 2, 1] = np.log(4)  # P(6) = 4/5 at the third
    probabilities = tree.log_probabilities(logits).exp()[0]
    np.testing.assert_allclose(probabilities, [0.5, 0.5, 0.75 * 0.2, 0.75 * 0.8, 0.25], rtol=1e-6)


def test_mirror_mean_by_hand():
    """AU12L, AU12R and AU4 of one format, and AU12R alone in another; two images, then their mirror images."""
    both = {
        label: [[label_token, 8], [label_token, 9]] for label, label_token in (("AU12L", 5), ("AU12R", 6), ("AU4", 7))
    }
    tree = SlotTree([[1, 2], [1, 3]], [both, {"AU12R": [[6, 8], [6, 9]]}])
    of_one = torch.tensor([[0.1, 0.5, 0.7, 0.3], [0.2, 0.6, 0.8, 0.4], [0.3, 0.9, 0.1, 0.8], [0.4, 1.0, 0.0, 0.7]])
    values = torch.stack([of_one, 1 - of_one], dim=2).flatten(1)  # (images, AUs * 2)
    mean = tree.mirror_mean(values.log()).exp()
    first = [0.1 + 0.9, 0.5 + 0.3, 0.7 + 0.1, 0.3 + 0.3]
    second = [0.2 + 1.0, 0.6 + 0.4, 0.8 + 0.0, 0.4 + 0.4]
    np.testing.assert_allclose(mean[:, ::2], np.array([first, second]) / 2, rtol=1e-6)
    np.testing.assert_allclose(mean[:, 1::2], 1 - np.array([first, second]) / 2, rtol=1e-6)


def test_last_digits_are_read_beside_the_lowest_value_only():
    """0.00, 0.01, 0.10, 0.11, 1.00: after "0.1" no digit is read, and 0.10 and 0.11 share its probability."""
    zero, dot, one = 10, 11, 12
    values = [[7, zero, dot, zero, zero], [7, zero, dot, zero, one]]
    values += [[7, zero, dot, one, zero], [7, zero, dot, one, one], [7, one, dot, zero, zero]]
    tree = SlotTree([[1]], [{"AU1": values}])
    assert tree.input_ids.tolist() == [1, 7, zero, dot, zero]
    assert tree.decision_nodes.tolist() == [1, 3, 4]
    assert tree.value_targets == [
        [(0, zero), (1, zero), (2, zero)],
        [(0, zero), (1, zero), (2, one)],
        [(0, zero), (1, one)],
        [(0, zero), (1, one)],
        [(0, one)],
    ]
    logits = torch.zeros(1, 3, 2)
    logits[0, 0, 1] = np.log(4)  # P(1.00) = 4/5
    logits[0, 1, 1] = np.log(3)  # P(0.1x below 1) = 3/4
    probabilities = tree.log_probabilities(logits).exp()[0]
    np.testing.assert_allclose(probabilities, [0.025, 0.025, 0.075, 0.075, 0.8], rtol=1e-6)
    [read] = tree.by_format(probabilities[None])
    assert read.shape == (1, 1, 5)


def test_probabilities_of_tenths_do_not_depend_on_the_digits_read():
    """At every multiple of 0.10, against the exact distribution, digit by digit."""
    model, processor = build_tiny("single digits")
    image, fmt = random_faces(1)[0], FORMATS["feafa"]
    answer = model.recognize(processor, [image], formats=["feafa"])[0]["feafa"]
    assert len(compile_slots(processor, (fmt,), 16).decision_nodes) == 3 * len(fmt.labels)
    for label in ("AU26", "AU12L"):
        exact = brute_force(model, processor, image, fmt, label)
        read = np.array(answer[label].distribution)
        assert read.sum() == pytest.approx(1)
        for value in range(0, 101, 10):
            assert read[value:].sum() == pytest.approx(exact[value:].sum(), abs=1e-5)
        assert answer[label].probability == pytest.approx(exact[30:].sum(), abs=1e-5)


def test_most_probable_of_equal_neighbors_is_the_middle():
    fmt = AUFormat("c", ("AU1", "AU2", "AU4"), "continuous")
    read = np.full((3, 101), 1e-3)
    read[0, 30:40] = 0.05  # ten equal values: 0.30 to 0.39
    read[1, 0] = 0.5
    read[2, [20, 21, 80]] = 0.3  # not neighbors: the first run
    read /= read.sum(axis=1, keepdims=True)
    answer = slot_answers({"c": torch.tensor(read[None])}, (fmt,), None)[0][0]
    assert [reading.value for reading in answer.values()] == [0.34, 0.0, 0.2]


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("length", [BLOCK, 3 * BLOCK + 5])
def test_tree_mask_gives_what_the_whole_mask_gives(length, expanded):
    """Two different trees in a batch or one for both, one block or several, gradients too."""
    torch.manual_seed(0)
    mask = torch.rand(1 if expanded else 2, 1, length, length) < 0.05
    mask |= torch.eye(length, dtype=torch.bool)
    mask = mask.expand(2, -1, -1, -1)
    tensors = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
    results = []
    for each in (mask, TreeMask.of(mask, torch.float32)):
        output = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=each)
        results.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(whole, blocks, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("expanded", [False, True])
def test_tree_mask_attends_to_known_prompts_as_to_copies(rows, expanded):
    """Two heads of keys for six of queries; every row's mask its own, or one for all; gradients too."""
    torch.manual_seed(0)
    length, before = 45, 70
    mask = torch.rand(1 if expanded else rows, 1, length, before + length) < 0.1
    mask[..., before:] |= torch.eye(length, dtype=torch.bool)
    mask = mask.expand(rows, -1, -1, -1)
    known = [torch.randn(2, before, 8) for _ in range(2)]
    query, *own = (torch.randn(rows, heads, length, 8, requires_grad=True) for heads in (6, 2, 2))
    copies = [torch.cat([each.expand(rows, -1, -1, -1), new], dim=2) for each, new in zip(known, own, strict=True)]
    tree = TreeMask.of(mask, torch.float32, before)
    tree.known = known
    results = []
    for states, each in ((copies, mask), (own, tree)):
        keys, values = (state.repeat_interleave(3, dim=1) for state in states)
        output = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=each, scale=0.3)
        results.append((output, *torch.autograd.grad(output.square().sum(), [query, *own])))
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(whole, blocks, atol=1e-5, rtol=1e-4)


def test_logits_of_some_tokens_are_those_of_all(tiny, faces):
    model, processor = tiny
    tree = compile_slots(processor, (FORMATS["disfa"],), 16)
    pixels = processor.image_processor(faces[:2], return_tensors="pt")["pixel_values"]
    inputs = tree.model_inputs(pixels)
    with torch.no_grad():
        some = model(**inputs).logits
        del inputs["logit_tokens"]
        every = model(**inputs).logits
    assert some.shape == (2, len(tree.decision_nodes), len(tree.logit_tokens))
    torch.testing.assert_close(some, every[..., tree.logit_tokens])
    inputs |= {"logit_tokens": tree.logit_tokens, "logits_to_keep": 1}
    model.lm_head = torch.nn.Sequential(model.lm_head)  # as an adapter or a quantizer would wrap it
    try:
        with torch.no_grad():
            wrapped = model(**inputs).logits
    finally:
        model.lm_head = model.lm_head[0]
    assert wrapped.shape == (2, 1, len(tree.logit_tokens))


def test_tokenizer_that_cannot_tell_values_apart_is_refused():
    with pytest.raises(ValueError, match="values of AU1 apart"):
        SlotTree([[1]], [{"AU1": [[7, 8], [7, 8]]}])
    with pytest.raises(ValueError, match="values of AU1 apart"):
        SlotTree([[1]], [{"AU1": [[7], [7, 8]]}])


def test_slots_are_compiled_once(tiny):
    _, processor = tiny
    formats = (FORMATS["bp4d"],)
    assert compile_slots(processor, formats, 16) is compile_slots(processor, formats, 16)


def test_a_changed_processor_asks_anew(tiny):
    """A tree belongs to the template and the tokenizer that it was made of."""
    _, processor = build_tiny()
    formats = (FORMATS["disfa"],)
    before = compile_slots(processor, formats, 16)
    processor.chat_template = processor.chat_template.replace("assistant", "reader")
    assert compile_slots(processor, formats, 16).input_ids.tolist() != before.input_ids.tolist()
    processor.tokenizer = build_tiny("single digits")[1].tokenizer
    expected = compile_slots(build_tiny("single digits")[1], formats, 16)
    assert compile_slots(processor, formats, 16).logit_tokens.tolist() == expected.logit_tokens.tolist()


@pytest.mark.parametrize("decoding", ["slots", "constrained", "free"])
def test_results_in_json(tiny, faces, decoding):
    model, processor = tiny
    [result] = model.recognize(processor, tuple(faces[:1]), formats=["disfa", "feafa"], decoding=decoding)
    content = result.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert list(content) == ["disfa", "feafa"]
    for name, answer in result.items():
        assert content[name] == answer.to_dict()
        assert list(content[name]) == list(answer)
        for label, reading in answer.items():
            for field, value in content[name][label].items():
                expected = getattr(reading, field)
                assert value == (list(expected) if isinstance(expected, tuple) else expected)
