"""The processor: chat templates, image tokens, prompts, saving, and the contract that vLLM relies on."""

import base64
import sys

import numpy as np
import pytest
import torch
from conftest import TOWERS, build_tiny, random_faces
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from au_llava.action_units import FORMATS, prompt
from au_llava.configuration_au_llava import IMAGE_TOKEN
from au_llava.processing_au_llava import CHATML_TEMPLATE, PLAIN_TEMPLATE, AuLlavaProcessor

ANSWER = "AU1: 0, AU2: 1"


@pytest.fixture(scope="module", params=["grouped digits", "single digits"])
def processor(request):
    """Once with the ChatML template, once with the plain one (whose tokenizer has a beginning-of-text token)."""
    return build_tiny(request.param)[1]


def as_strings(messages: list[dict]) -> list[dict]:
    """The same conversation with string contents; the image as its token."""
    image = {"image": IMAGE_TOKEN, "text": ""}
    return [
        {**m, "content": "".join(image[part["type"]] + part.get("text", "") for part in m["content"])} for m in messages
    ]


def test_chatml_template_word_for_word(tiny):
    _, processor = tiny
    messages = processor.messages("bp4d", answer=ANSWER)
    question = f"<|im_start|>user\n<image>{prompt(FORMATS['bp4d'])}<|im_end|>\n<|im_start|>assistant\n"
    assert processor.apply_chat_template(messages[:1], add_generation_prompt=True) == question
    assert processor.apply_chat_template(messages) == f"{question}{ANSWER}<|im_end|>\n"
    assert processor.apply_chat_template(as_strings(messages)) == f"{question}{ANSWER}<|im_end|>\n"
    system = [{"role": "system", "content": "Be brief."}, *messages]
    assert processor.apply_chat_template(system).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_plain_template_word_for_word():
    _, processor = build_tiny("single digits")
    messages = processor.messages("bp4d", answer=ANSWER)
    question = f"<|endoftext|>USER: <image>\n{prompt(FORMATS['bp4d'])} "
    assert processor.apply_chat_template(messages[:1], add_generation_prompt=True) == f"{question}ASSISTANT:"
    assert processor.apply_chat_template(messages) == f"{question}ASSISTANT: {ANSWER}<|im_end|>"
    strings = as_strings(messages)
    strings[0]["content"] = strings[0]["content"].replace(IMAGE_TOKEN, f"{IMAGE_TOKEN}\n")
    assert processor.apply_chat_template(strings) == f"{question}ASSISTANT: {ANSWER}<|im_end|>"


@pytest.mark.parametrize("strings", [False, True])
def test_generation_marks_the_answer_and_its_end(processor, strings):
    turns = [*processor.messages("bp4d", answer="AU1: 0"), *processor.messages("disfa", answer=ANSWER)]
    turns[2]["content"] = turns[2]["content"][1:]  # one image only
    faces = random_faces(1)
    if strings:
        turns = [turns[0], *as_strings(turns[1:])]
    turns[0]["content"][0]["image"] = faces[0]
    encoded = processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    ids, mask = encoded["input_ids"][0], torch.as_tensor(encoded["assistant_masks"])[0].bool()
    starts = (mask.int().diff(prepend=torch.zeros(1, dtype=torch.int)) == 1).nonzero().flatten().tolist()
    assert len(starts) == 2
    said = processor.tokenizer.decode(ids[mask]).split("<|im_end|>")
    assert [part.lstrip() for part in said] == ["AU1: 0", ANSWER, ""]  # a token may hold the space before its word
    assert (ids == processor.image_token_id).sum() == 16
    assert not (mask & (ids == processor.image_token_id)).any()


def test_messages_with_paths_pil_images_and_base64(processor, tmp_path):
    image = Image.fromarray((random_faces(1)[0] * 255).astype(np.uint8))
    image.save(tmp_path / "face.png")
    path, written = str(tmp_path / "face.png"), base64.b64encode((tmp_path / "face.png").read_bytes()).decode()
    url = f"data:image/png;base64,{written}"
    encoded = []
    for part in (
        {"image": image},
        {"path": path},
        {"url": path},
        {"base64": written},
        {"url": url},
        {"type": "image_url", "image_url": {"url": url}},
    ):
        messages = processor.messages("bp4d")
        messages[0]["content"][0] |= part
        encoded.append(
            processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
            )
        )
    for other in encoded[1:]:
        assert torch.equal(other["pixel_values"], encoded[0]["pixel_values"])
        assert torch.equal(other["input_ids"], encoded[0]["input_ids"])
    assert encoded[0]["input_ids"][0].tolist() == processor.prompt_ids("bp4d", 16)


@pytest.mark.parametrize("fmt", FORMATS)
def test_prompt_ids_are_what_a_call_gives(processor, fmt):
    text = processor.apply_chat_template(processor.messages(fmt), add_generation_prompt=True)
    called = processor(images=random_faces(1), text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert processor.prompt_ids(fmt, processor.num_image_tokens(32, 32)) == called


def test_prompt_ids_with_a_tokenizer_that_adds_a_beginning_itself():
    """As Llama-2's does: the template writes the token already, it must not come twice."""
    _, processor = build_tiny("single digits")
    bos = processor.tokenizer.bos_token
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, processor.tokenizer.bos_token_id)]
    )
    assert processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    test_prompt_ids_are_what_a_call_gives(processor, "bp4d")
    assert processor.prompt_ids("bp4d", 16).count(processor.tokenizer.bos_token_id) == 1


def test_prompt_and_answer_ids_make_the_whole_conversation(tiny):
    _, processor = tiny
    text = processor.apply_chat_template(processor.messages("bp4d", answer=ANSWER)).removesuffix("\n")
    whole = processor(images=random_faces(1), text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert processor.prompt_ids("bp4d", 16) + processor.answer_ids(ANSWER) == whole
    assert processor.answer_ids(ANSWER)[-1] == processor.tokenizer.eos_token_id


def test_a_new_template_is_used_at_once(tiny):
    processor = build_tiny()[1]
    before = processor.prompt_ids("bp4d", 16)
    processor.chat_template = processor.chat_template.replace("assistant", "robot")
    assert processor.prompt_ids("bp4d", 16) != before
    test_prompt_ids_are_what_a_call_gives(processor, "bp4d")


@pytest.mark.parametrize(
    ("tower", "fold"), [("siglip", 1), ("siglip", 2), ("resnet", 1), ("resnet", 2), ("dinov3 convnext", 1)]
)
def test_image_tokens_are_as_many_as_features(tower, fold):
    model, processor = build_tiny(vision_config=TOWERS[tower][0], pixel_unshuffle=fold)
    batch = processor(images=random_faces(2), text=["a <image> b", "<image>"], padding=True, return_tensors="pt")
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    for ids, feature in zip(batch["input_ids"], features, strict=True):
        assert (ids == model.config.image_token_id).sum() == len(feature) == processor.num_image_tokens(32, 32)
    assert model(**batch).logits.isfinite().all()


def test_several_images_and_other_sizes(tiny):
    model, processor = tiny
    batch = processor(
        images=[random_faces(2), random_faces(1, seed=1)],
        text=["<image><image>", "<image>"],
        images_kwargs={"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 32}},
        padding=True,
        return_tensors="pt",
    )
    assert batch["pixel_values"].shape == (3, 3, 64, 32)
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [64, 32]
    assert model.get_image_features(batch["pixel_values"][:, :, :32]).pooler_output[0].shape == (16, 32)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (2, "<image>", "Found total 1 <image> tokens and 2 images"),
        (1, "<image><image>", "Found total 2 <image> tokens and 1 images"),
        (0, "<image>", "Found 1 <image> tokens in the text but no images"),
        (0, [3], "must be a string or list of strings"),
    ],
)
def test_images_and_their_tokens_must_match(tiny, images, text, message):
    _, processor = tiny
    with pytest.raises(ValueError, match=message):
        processor(images=random_faces(images) if images else None, text=text)


def test_truncation_through_an_image_is_refused(tiny):
    _, processor = tiny
    with pytest.raises(ValueError, match=r"[Mm]ismatch.*image"):
        processor(images=random_faces(1), text=["<image> a"], truncation=True, max_length=8, return_tensors="pt")


def test_saved_and_loaded_it_is_complete(processor, tmp_path):
    processor.vision_stride, processor.pixel_unshuffle = 4, 2
    processor.image_processor.image_mean = (0.1, 0.2, 0.3)
    try:
        processor.save_pretrained(tmp_path)
        loaded = AuLlavaProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    finally:
        expected = processor.to_dict(), processor.num_image_tokens(32, 32), processor.image_processor.to_dict()
        processor.vision_stride, processor.pixel_unshuffle = 8, 1
        processor.image_processor.image_mean = (0.5, 0.5, 0.5)
    assert (loaded.vision_stride, loaded.pixel_unshuffle) == (4, 2)
    assert loaded.num_image_tokens(32, 32) == expected[1] == 16
    assert loaded.chat_template == processor.chat_template
    assert (loaded.image_token, loaded.image_token_id) == (IMAGE_TOKEN, processor.image_token_id)
    assert tuple(loaded.image_processor.image_mean) == (0.1, 0.2, 0.3)
    assert loaded.image_processor.to_dict().keys() == expected[2].keys()
    assert loaded.tokenizer.padding_side == processor.tokenizer.padding_side == "left"
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert loaded.tokenizer.special_tokens_map == processor.tokenizer.special_tokens_map
    assert loaded.prompt_ids("feafa", 16) == processor.prompt_ids("feafa", 16)
    saved = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    templates = {"chat_template.jinja", "decision_template.jinja"}
    assert saved == templates | {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_without_the_image_token_is_refused(tiny):
    _, processor = tiny
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tiny()[1].tokenizer.backend_tokenizer)
    vocabulary = tokenizer.backend_tokenizer.to_str().replace(IMAGE_TOKEN, "<picture>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer.from_str(vocabulary))
    with pytest.raises(ValueError, match="does not know <image>: build the processor with"):
        AuLlavaProcessor(processor.image_processor, tokenizer)


def test_contract_of_vllm(tiny):
    """What vLLM's Transformers backend asks of a processor."""
    _, processor = tiny
    sizes = [(10000, 10000), (32, 48)]
    counts = processor._get_num_multimodal_tokens(image_sizes=sizes)
    assert (counts["num_image_tokens"], counts["num_image_patches"]) == ([16, 16], [1, 1])
    assert "num_image_tokens" not in processor._get_num_multimodal_tokens(image_sizes=None)
    batch = processor(
        images=random_faces(2),
        text=["ab<image>c", "<image>"],
        padding=True,
        return_mm_token_type_ids=True,
        return_text_replacement_offsets=True,
        return_tensors="pt",
    )
    assert torch.equal(batch["mm_token_type_ids"] == 1, batch["input_ids"] == processor.image_token_id)
    first = batch["text_replacement_offsets"][0][0]
    assert first["type"] == "image"
    assert tuple(first["span"]) == (2, 9)
    assert tuple(first["new_span"]) == (2, 2 + 16 * len(IMAGE_TOKEN))
    assert first["replacement"] == IMAGE_TOKEN * 16
    assert set(batch) - {"text_replacement_offsets", "mm_token_type_ids"} <= set(processor.model_input_names)
    assert (processor.image_token, processor.image_token_id) == (IMAGE_TOKEN, processor.tokenizer.vocab_size)


def test_torchvision_is_not_needed(tiny):
    _, processor = tiny
    assert "torchvision" not in sys.modules
    assert processor.image_processor.backend == "pil"


def test_generated_text_is_decoded(tiny):
    model, processor = tiny
    text = processor.apply_chat_template(processor.messages("bp4d"), add_generation_prompt=True)
    batch = processor(images=random_faces(1), text=text, return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=3, do_sample=False)
    decoded = processor.batch_decode(output, skip_special_tokens=True)[0]
    assert prompt(FORMATS["bp4d"]) in decoded
    assert IMAGE_TOKEN not in decoded


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, PLAIN_TEMPLATE])
def test_a_continued_answer_is_left_open(tiny, template):
    _, processor = tiny
    messages = processor.messages("bp4d", answer="AU1: 0, AU2:")
    text = processor.apply_chat_template(messages, chat_template=template, continue_final_message=True)
    assert text.endswith("AU1: 0, AU2:")
