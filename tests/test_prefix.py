"""Text first: prompts are computed once, and every answer and gradient is that of whole sequences without a cache."""

import copy
import math

import numpy as np
import onnxruntime
import pytest
import torch
from accelerate import cpu_offload
from conftest import build_tiny, random_faces
from peft import LoraConfig, get_peft_model
from PIL import Image
from test_decoding import ALL, as_slots_read, brute_force, forced_greedy
from transformers import AutoModel, AutoProcessor

from au_llava.action_units import FORMATS, AUFormat, prompt
from au_llava.au_publishing.onnx_file import largest_difference, save_onnx
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.loss import IGNORED, slot_loss
from au_llava.configuration_au_llava import AuLlavaConfig
from au_llava.prefix_au_llava import MOST_PROMPTS
from au_llava.processing_au_llava import AuLlavaProcessor
from au_llava.slot_tree_au_llava import SlotTree, compile_slots, slot_ids

TOKENIZERS = ["single digits", "grouped digits", "phrases"]


def build(tokenizer: str = "grouped digits", **settings):
    return build_tiny(tokenizer, prompt_order="text_first", **settings)


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request):
    return build(request.param)


@pytest.fixture(scope="module")
def text_first():
    """Shared by tests that do not change it."""
    return build()


def answers(model, processor, formats=("disfa",), **options) -> np.ndarray:
    """The distributions of all AUs of all formats for two faces, in a row."""
    results = model.recognize(processor, random_faces(2), formats=formats, **options)
    return np.concatenate([np.ravel(r.distribution) for each in results for a in each.values() for r in a.values()])


def uncached(model, processor, formats=("disfa",)) -> np.ndarray:
    """The same from whole sequences: each format alone, with its prompt in the tree."""
    images = processor.image_processor(random_faces(2), return_tensors="pt")["pixel_values"].to(model.dtype)
    read = []
    for fmt in map(FORMATS.get, formats):
        tree = SlotTree([processor.prompt_ids(fmt, 16)], [slot_ids(processor.tokenizer, fmt, fmt.labels)])
        assert not tree.prefixes
        with torch.no_grad():
            logs = tree.log_probabilities(model(**tree.model_inputs(images)).logits)
        read.append(logs.double().exp().numpy())
    return np.concatenate(read, axis=1).ravel()


def count_tokens(model, ask) -> list[tuple[int, int]]:
    """(rows, tokens) of every pass through the language model while `ask` runs."""
    passes = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda _, x: passes.append(x[0].shape[:2]))
    try:
        ask()
    finally:
        hook.remove()
    return [tuple(each) for each in passes]


# ---- Answers ----------------------------------------------------------------------------------------------------


def test_the_text_comes_first(any_tokenizer):
    _, processor = any_tokenizer
    for fmt in map(FORMATS.get, ALL):
        ids = processor.prompt_ids(fmt, 16)
        shared = processor.shared_length(ids)
        assert ids[shared : shared + 16] == [processor.image_token_id] * 16
        assert prompt(fmt) in processor.tokenizer.decode(ids[:shared])
        assert compile_slots(processor, (fmt,), 16).prefixes == [tuple(ids[:shared])]


def test_slots_equal_one_au_at_a_time_without_cache(any_tokenizer):
    model, processor = any_tokenizer
    image = random_faces(1)[0]
    result = model.recognize(processor, [image], formats=ALL)[0]
    for name, label in (("bp4d", "AU4"), ("bp4d", "AU24"), ("disfa", "AU1"), ("disfa", "AU12"), ("feafa", "AU28B")):
        exact = brute_force(model, processor, image, FORMATS[name], label)
        expected = as_slots_read(processor, FORMATS[name], exact)
        np.testing.assert_allclose(result[name][label].distribution, expected, atol=1e-5)


def test_formats_are_answered_alike_alone_and_together(text_first):
    model, processor = text_first
    together = answers(model, processor, ALL)
    np.testing.assert_allclose(together, answers(model, processor, ALL, batch_size=1), atol=1e-6)
    sizes = [len(FORMATS[name].labels) * len(FORMATS[name].value_strings) for name in ALL]
    parts = np.split(together.reshape(2, -1), np.cumsum(sizes)[:-1], axis=1)
    for name, part in zip(ALL, parts, strict=True):
        np.testing.assert_allclose(part.ravel(), answers(model, processor, [name]), atol=1e-6)


def test_formats_with_the_same_prompt_share_it(text_first):
    """Two names for one question: one prompt, one copy of the image tokens, the same answers."""
    model, processor = text_first
    twin = AUFormat("twin", FORMATS["disfa"].labels, "intensity")
    tree = compile_slots(processor, (FORMATS["disfa"], twin), 16)
    assert len(tree.prefixes) == 1
    assert len(tree) == len(compile_slots(processor, (twin,), 16))
    disfa, other = np.split(answers(model, processor, (FORMATS["disfa"], twin)).reshape(2, 2, -1), 2, axis=1)
    np.testing.assert_array_equal(disfa, other)


def test_constrained_is_greedy_without_cache(any_tokenizer):
    model, processor = any_tokenizer
    faces = random_faces(3)
    constrained = model.recognize(processor, faces, formats=["disfa"], decoding="constrained")
    assert [each["disfa"].text for each in constrained] == forced_greedy(model, processor, faces, FORMATS["disfa"])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 1}])
def test_free_is_generate_without_cache(any_tokenizer, options):
    model, processor = any_tokenizer
    faces = random_faces(2)
    options |= {"decoding": "free", "max_new_tokens": 12, "suppress_tokens": [processor.image_token_id]}
    cached = model.recognize(processor, faces, formats=["bp4d"], **options)
    plain = model.recognize(processor, faces, formats=["bp4d"], use_cache=False, **options)
    assert [each["bp4d"].text for each in cached] == [each["bp4d"].text for each in plain]


@pytest.mark.parametrize("backend", ["eager", "flex_attention"])
def test_attention_backends_agree(backend):
    model, processor = build()
    expected = answers(model, processor)
    torch.compiler.reset()
    model.set_attn_implementation({"text_config": backend})
    np.testing.assert_allclose(answers(model, processor), expected, atol=1e-5)
    if backend == "flex_attention":  # PyTorch's does not compile on a CPU for a second length
        return
    model.model.prompts.clear()
    np.testing.assert_allclose(answers(model, processor), expected, atol=1e-5)
    constrained = model.recognize(processor, random_faces(2), ["disfa"], "constrained")
    assert [each["disfa"].text for each in constrained] == forced_greedy(
        model, processor, random_faces(2), FORMATS["disfa"]
    )


def test_mirror_images_share_the_prompt_too():
    model, processor = build()
    model.config.mirror_images = True
    answers(model, processor)
    tree = compile_slots(processor, (FORMATS["disfa"],), 16)
    assert count_tokens(model, lambda: answers(model, processor)) == [(4, len(tree))]


# ---- What is computed, and when again -----------------------------------------------------------------------------


def test_a_prompt_is_computed_once_for_all_images_batches_and_decoders():
    model, processor = build()
    tree = compile_slots(processor, (FORMATS["bp4d"], FORMATS["disfa"]), 16)
    lengths = list(map(len, tree.prefixes))
    first = count_tokens(model, lambda: answers(model, processor, ("bp4d", "disfa"), batch_size=1))
    assert first == [*((1, length) for length in sorted(lengths, reverse=True)), (1, len(tree)), (1, len(tree))]
    assert count_tokens(model, lambda: answers(model, processor, ("bp4d", "disfa"))) == [(2, len(tree))]
    rest = len(processor.prompt_ids("bp4d", 16)) - lengths[0]
    for how in ("constrained", "free"):
        passes = count_tokens(model, lambda how=how: model.recognize(processor, random_faces(2), ["bp4d"], how))
        assert passes[0][0] == 2
        assert passes[0][1] in (rest, rest + 3, rest + 4, rest + 5)  # constrained adds the first AU's name
        assert max(tokens for _, tokens in passes) < lengths[0]


def test_few_prompts_are_kept():
    model, processor = build()
    labels = FORMATS["bp4d"].labels
    for label in labels:
        model.recognize(processor, random_faces(1), formats=[AUFormat(label, (label,), "occurrence")])
    kept = list(model.model.prompts.states)
    assert kept == [
        compile_slots(processor, (AUFormat(label, (label,), "occurrence"),), 16).prefixes[0]
        for label in labels[-MOST_PROMPTS:]
    ]


def move(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()


def reload(model):
    model.load_state_dict({name: weight * 0.9 for name, weight in model.state_dict().items()})


def replace(model):
    layer = model.model.language_model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight * 2)


def swap(model):  # as the average of the weights is put in place
    for weight in model.parameters():
        weight.data = weight.data * 0.9


def there_and_back(model):
    model.to(torch.bfloat16).to(torch.float32)


def behind_its_back(model):  # PyTorch does not count this, but nobody trains in evaluation mode
    model.train()
    for weight in model.parameters():
        weight.data.mul_(0.9)
    model.eval()


@pytest.mark.parametrize("change", [move, reload, replace, swap, there_and_back, behind_its_back])
def test_changed_weights_compute_prompts_anew(change):
    model, processor = build()
    before = answers(model, processor)
    change(model)
    after = answers(model, processor)
    np.testing.assert_allclose(after, uncached(model, processor), atol=1e-5)
    assert np.abs(after - before).max() > 1e-4


def test_another_type_computes_prompts_anew():
    model, processor = build()
    answers(model, processor)
    model.to(torch.float64)
    np.testing.assert_allclose(answers(model, processor), uncached(model, processor), atol=1e-6)
    assert {state.dtype for [(state, _), _] in model.model.prompts.states.values()} == {torch.float64}


def test_autocast_has_its_own_prompts():
    model, processor = build()
    exact = answers(model, processor)
    with torch.autocast("cpu", torch.bfloat16):
        rough = answers(model, processor)
        np.testing.assert_allclose(rough, uncached(model, processor), atol=0.05)
    assert not np.array_equal(rough, exact)
    np.testing.assert_array_equal(answers(model, processor), exact)


def test_switched_adapters_compute_prompts_anew():
    model, processor = build()
    base = answers(model, processor)
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.add_adapter("other", config)

    def check():
        found = answers(adapted, processor)
        np.testing.assert_allclose(found, uncached(model, processor), atol=1e-5)
        return found

    first = check()
    adapted.set_adapter("other")
    second = check()
    with adapted.disable_adapter():
        np.testing.assert_allclose(check(), base, atol=1e-5)
    adapted.set_adapter("default")
    np.testing.assert_array_equal(check(), first)
    adapted.merge_adapter()
    np.testing.assert_allclose(check(), first, atol=1e-5)
    adapted.unmerge_adapter()
    np.testing.assert_allclose(adapted.unload().eval().recognize and answers(model, processor), base, atol=1e-5)
    assert np.abs(first - second).max() > 1e-4
    assert np.abs(first - base).max() > 1e-4


def test_gradients_are_not_cut_off_in_evaluation_mode():
    """Prompts that are kept have none, so they are not used where a weight could want one."""
    model, processor = build()
    answers(model, processor)
    images = processor.image_processor(random_faces(2), return_tensors="pt")["pixel_values"]
    fmt = FORMATS["disfa"]
    whole = SlotTree([processor.prompt_ids(fmt, 16)], [slot_ids(processor.tokenizer, fmt, fmt.labels)])
    gradients = []
    for tree in (compile_slots(processor, (fmt,), 16), whole):
        model.zero_grad()
        tree.log_probabilities(model(**tree.model_inputs(images)).logits).square().mean().backward()
        gradients.append(model.get_input_embeddings().weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_prompts_of_inference_mode_serve_gradients_later():
    model, processor = build()
    with torch.inference_mode():
        answers(model, processor)
    model.requires_grad_(False)
    tree = compile_slots(processor, (FORMATS["disfa"],), 16)
    images = processor.image_processor(random_faces(2), return_tensors="pt")["pixel_values"].requires_grad_()
    passes = count_tokens(model, lambda: model(**tree.model_inputs(images)).logits.sum().backward())
    assert passes == [(2, len(tree))]
    assert images.grad.abs().sum() > 0


def test_an_offloaded_model_answers_alike():
    model, processor = build()
    expected = answers(model, processor)
    offloaded = cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    for _ in range(2):
        np.testing.assert_allclose(answers(offloaded, processor), expected, atol=1e-6)


# ---- Training -------------------------------------------------------------------------------------------------------


def rows(mixed: bool) -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for index, face in enumerate(random_faces(4)):
        names = [("bp4d", "feafa"), ("disfa",), ("feafa",), ("bp4d", "disfa", "feafa")][index if mixed else 3]
        values = [rng.integers(0, len(FORMATS[n].value_strings), len(FORMATS[n].labels)) for n in names]
        found.append(
            {
                "image": Image.fromarray((face * 255).astype(np.uint8)),
                "formats": list(names),
                "values": [
                    [FORMATS[n].value_numbers[step] for step in steps] for n, steps in zip(names, values, strict=True)
                ],
                "index": index,
            }
        )
    return found


def loss_of(model, batch: dict) -> torch.Tensor:
    """Summed, not averaged, cross-entropy of a slot batch."""
    inputs = dict(batch)
    nodes, choices, targets, annotated = map(inputs.pop, ("decision_nodes", "choices", "choice_targets", "annotated"))
    logits = model(**inputs, use_cache=False).logits
    return slot_loss(logits, nodes, choices, targets, annotated) * annotated.sum()


def summed_without_cache(model, processor, records) -> torch.Tensor:
    """The same loss from one whole sequence per image and format."""
    total = 0
    for row in records:
        for name, values in zip(row["formats"], row["values"], strict=True):
            fmt = FORMATS[name]
            tree = SlotTree([processor.prompt_ids(fmt, 16)], [slot_ids(processor.tokenizer, fmt, fmt.labels)])
            pixels = processor.image_processor([row["image"]], return_tensors="pt")["pixel_values"]
            logs = tree.log_probabilities(model(**tree.model_inputs(pixels)).logits)[0]
            for slot, value in zip(tree.slots, values, strict=True):
                total = total - logs[slot.values][fmt.value_numbers.index(value)]
    return total


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_loss_and_gradients_are_those_without_cache(mixed, checkpointing):
    model, processor = build("phrases")
    model.train()
    expected = summed_without_cache(model, processor, rows(mixed))
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
    batch = AUCollator(processor, causal_share=0)(rows(mixed))
    assert len(batch["prefixes"]) == 3
    losses = []
    passes = count_tokens(model, lambda: losses.append(loss_of(model, batch)))
    length = batch["input_ids"].shape[1]
    assert passes == [(4 + math.ceil(sum(map(len, batch["prefixes"])) / length), length)]
    torch.testing.assert_close(losses[0], expected)
    losses[0].backward()
    assert gradients.keys() == {name for name, weight in model.named_parameters() if weight.grad is not None}
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)
    assert not model.model.prompts.states


def whole_texts(processor, batch: dict) -> list[tuple[list[int], list[int]]]:
    """(token ids, label ids) of each row of a text batch, its prompt from the tokens that its mask lets it see."""
    prompts = [token for prefix in batch["prefixes"] for token in prefix]
    texts = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"][:, 0], strict=True):
        end = int(labels.ne(IGNORED).nonzero()[-1]) + 1
        seen = mask[end - 1, : len(prompts)].nonzero().flatten().tolist()
        before = [prompts[place] for place in seen]
        texts.append((before + ids[:end].tolist(), [IGNORED] * len(before) + labels[:end].tolist()))
    return texts


@pytest.mark.parametrize("mixed", [False, True])
def test_text_batches_share_their_prompts(mixed):
    """Two of the rows ask alike; loss and gradients are those of each whole text alone."""
    model, processor = build("phrases")
    model.train()
    records = rows(mixed)
    records[0]["values"][0][0] = math.nan  # asked without it
    batch = AUCollator(processor, causal_share=1, seed=2)(records)
    texts = whole_texts(processor, batch)
    assert len(batch["prefixes"]) == len({tuple(ids[: ids.index(processor.image_token_id)]) for ids, _ in texts}) < 4
    assert batch["input_ids"].shape[1] < max(len(ids) for ids, _ in texts)
    apart = copy.copy(processor)
    apart.shared_length = lambda prompt: 0
    expected = AUCollator(apart, causal_share=1, seed=2)(records)
    for (ids, labels), row, mask, learned in zip(
        texts, expected["input_ids"], expected["attention_mask"], expected["labels"], strict=True
    ):
        assert ids == row[mask.bool()].tolist()
        assert labels == learned[mask.bool()].tolist()

    def summed(inputs: dict) -> torch.Tensor:
        labels = inputs["labels"][:, 1:]
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")

    loss = summed(expected)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    shared = summed(batch)
    torch.testing.assert_close(shared, loss)
    shared.backward()
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-4, msg=name)


# ---- The option -----------------------------------------------------------------------------------------------------


def test_old_configurations_keep_the_image_first(tiny):
    model, processor = tiny
    older = {key: value for key, value in model.config.to_dict().items() if key != "prompt_order"}
    assert AuLlavaConfig.from_dict(older).prompt_order == processor.prompt_order == "image_first"
    tree = compile_slots(processor, tuple(map(FORMATS.get, ALL)), 16)
    assert not tree.prefixes
    assert tree.mask.shape == (len(tree), len(tree))
    assert (tree.input_ids == processor.image_token_id).sum() == 16


def test_unknown_orders_are_refused(tiny):
    _, processor = tiny
    with pytest.raises(ValueError, match="'last'; it must be image_first or text_first"):
        build_tiny(prompt_order="last")
    with pytest.raises(ValueError, match="'last'; it must be image_first or text_first"):
        AuLlavaProcessor(processor.image_processor, processor.tokenizer, prompt_order="last")


def test_the_order_is_saved(tmp_path):
    model, processor = build("phrases")
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    asking = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.config.prompt_order == asking.prompt_order == "text_first"
    np.testing.assert_array_equal(answers(loaded, asking, ALL), answers(model, processor, ALL))


@pytest.mark.parametrize("decoding", ["slots", "constrained", "free"])
def test_a_processor_of_the_other_order_is_refused(tiny, text_first, decoding):
    with pytest.raises(ValueError, match=r"writes prompts image_first.*made for text_first"):
        text_first[0].recognize(tiny[1], random_faces(1), decoding=decoding)
    with pytest.raises(ValueError, match=r"writes prompts text_first.*made for image_first"):
        tiny[0].recognize(text_first[1], random_faces(1), decoding=decoding)


@pytest.mark.parametrize("order", ["image_first", "text_first"])
@pytest.mark.parametrize("decoding", ["slots", "constrained", "free"])
def test_a_prompt_longer_than_the_context_is_refused(order, decoding):
    model, processor = build_tiny(prompt_order=order)
    model.config.text_config.max_position_embeddings = 100
    with pytest.raises(ValueError, match=r"A question in .*bp4d.* tokens, and the language model's context holds 100:"):
        model.recognize(processor, random_faces(1), formats=["bp4d"], decoding=decoding)


@pytest.mark.parametrize("mirror", [False, True])
def test_onnx_has_the_prompts_in_it(tmp_path, mirror):
    model, processor = build("phrases")
    model.config.mirror_images = mirror
    formats = (FORMATS["disfa"], FORMATS["bp4d"])
    save_onnx(model, processor, formats, tmp_path / "au.onnx")
    assert largest_difference(tmp_path / "au.onnx", model, processor, formats) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "au.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["pixel_values"]
