"""What vLLM's Transformers backend asks of a model and its processor, and that the snippets of docs/serving.md run.

vLLM itself needs a GPU and is not installed here. Each test states one requirement as vLLM 0.33.0 has it in
vllm/model_executor/models/transformers/ (base.py, multimodal.py, fusers/attention.py) and checks it on what vLLM would
load: configuration, processor and base model by the Auto classes, with the `--hf-overrides` of docs/serving.md.
"""

import ast
import inspect
import io
import json
import math
import re

import pytest
import torch
from conftest import ROOT, build_tiny, random_faces
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from au_llava.action_units import FORMATS, get_format, parse_answer, prompt

DOCUMENT = (ROOT / "docs" / "serving.md").read_text()
OVERRIDES = json.loads(re.search(r"--hf-overrides '(.+?)'", DOCUMENT)[1])
CALLS = []  # of the attention interface: (module, keyword arguments)


def recording_attention(module, query, key, value, attention_mask, **kwargs):
    """Stands where vLLM registers its attention: causal, one sequence, returns what the interface must."""
    CALLS.append((module, {"attention_mask": attention_mask, **kwargs}))
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    read = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=kwargs["scaling"])
    return read.transpose(1, 2).contiguous(), None


@pytest.fixture(scope="module", autouse=True)
def fresh_process():
    """vLLM's process has loaded no model by AutoModel before, which would stay registered for its configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModel._model_mapping, "_extra_content", {})
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "checkpoint"
    for part in build_tiny(pixel_unshuffle=2):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(checkpoint):
    """As vLLM makes it (config/model.py: a dict override of what is no configuration replaces it)."""
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    for key, value in OVERRIDES.items():
        setattr(config, key, value)
    ALL_ATTENTION_FUNCTIONS.register("recording", recording_attention)
    config.get_text_config()._attn_implementation = "recording"  # Base._patch_config
    config.dtype = torch.float32
    return config


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)


@pytest.fixture(scope="module")
def base(checkpoint, config):
    """The model that vLLM wraps, with the checkpoint's weights under vLLM's names."""
    model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=True).eval()
    weights = load_file(checkpoint / "model.safetensors")
    inner = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    model.load_state_dict(inner)
    return model


@pytest.fixture(scope="module")
def whole(checkpoint):
    return AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True).eval()


def picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray((random_faces(1, seed)[0] * 255).astype("uint8")).resize((width, height))


def processed(processor, images):
    """As MultiModalProcessor._apply_hf_processor_main calls it: bare placeholders, no chat template."""
    text = processor.image_token * len(images)
    return processor(text=text, images=images, return_text_replacement_offsets=True, return_tensors="pt")


def test_config_is_nested(config):
    """ModelConfig._get_transformers_backend_cls: multimodal is what has a text configuration of its own."""
    assert config.get_text_config() is not config
    assert config.architectures == ["AuLlavaForConditionalGeneration"]


def test_the_class_is_found_by_auto_map_and_is_compatible(checkpoint, config):
    """registry._try_resolve_transformers: AutoModel's class is imported and must say that it takes any attention."""
    for name in ("AutoConfig", "AutoModel"):
        found = get_class_from_dynamic_module(config.auto_map[name], str(checkpoint))
    assert found.__name__ == "AuLlavaModel"
    assert found.is_backend_compatible()


def test_base_model_is_made_on_meta(config):
    """Base.__init__: AutoModel.from_config makes the model without its head, on the meta device."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16, trust_remote_code=True)
    assert type(model).__name__ == "AuLlavaModel"
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_parts_are_where_vllm_looks(base):
    """get_mm_mapping, _find_encoder_classes, Base._pre_trained_model_classes, embed_input_ids."""
    assert base.get_decoder() is base.language_model
    assert base.get_encoder(modality="image") is base.vision_tower
    assert type(base.get_encoder(modality="image")) is not type(base)
    assert base.get_input_embeddings() is base.language_model.get_input_embeddings()
    assert base.base_model_prefix == "model"


def test_weights_have_the_names_that_are_expected(checkpoint, base):
    """_create_hf_to_vllm_mapper: "model." and a child of the base model, or the head."""
    children = {name for name, _ in base.named_children()}
    for name in load_file(checkpoint / "model.safetensors"):
        first, child, *_ = name.split(".")
        assert first == "lm_head" or (first == "model" and child in children), name


def test_plans_of_parallelism_are_there(base):
    """recursive_replace and pipeline_parallel: the language model's own plans, under its prefix."""
    assert base.tp_plan["language_model.layers.*.self_attn.q_proj"] == "colwise"
    assert base.supports_pp_plan
    assert base.config.get_text_config().base_model_pp_plan.keys() >= {"embed_tokens", "layers", "norm"}


def test_every_layer_attends_once_through_the_interface(base):
    """_create_attention_instances and AttentionFuser: one call a layer, with `scaling`, an index of its own and no
    mask to honor; the tower does not take part."""
    CALLS.clear()
    with torch.no_grad():
        base(
            inputs_embeds=torch.randn(1, 5, 32), position_ids=torch.arange(5)[None], use_cache=False, return_dict=False
        )
    layers = base.config.get_text_config().num_hidden_layers
    assert [module.layer_idx for module, _ in CALLS] == list(range(layers))
    assert all(kwargs["scaling"] == 8**-0.5 and kwargs["attention_mask"] is None for _, kwargs in CALLS)
    for module, _ in CALLS:
        source = inspect.getsource(type(module).forward)
        assert source.count("attention_interface(") == 1
        assert "scaling=self.scaling" in source


def test_hidden_states_equal_those_of_the_whole_model(base, whole, processor):
    """Base.forward: embeddings with the images merged in and positions go in, a tuple whose first is hidden states
    comes out; with the head they give the logits of Transformers."""
    question = processor.apply_chat_template(processor.messages("bp4d"), add_generation_prompt=True)
    inputs = processor(text=question, images=[picture(0)], return_tensors="pt")
    embeds = base.get_input_embeddings()(inputs["input_ids"])
    seen = base.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    embeds[inputs["input_ids"] == base.config.image_token_id] = torch.cat(seen)
    positions = torch.arange(embeds.shape[1])[None]
    with torch.no_grad():
        outputs = base(input_ids=None, inputs_embeds=embeds, position_ids=positions, use_cache=False, return_dict=False)
        logits = torch.nn.functional.linear(outputs[0], whole.lm_head.weight)
        expected = whole(**inputs).logits
    assert isinstance(outputs, tuple)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_image_features_come_one_tensor_an_image(base, processor):
    """_process_vision_input: as many entries as images, each of as many rows as the prompt has placeholders."""
    pixels = processed(processor, [picture(0), picture(1), picture(2)])["pixel_values"]
    with torch.no_grad():
        features = base.get_image_features(pixels, return_dict=True).pooler_output
        alone = base.get_image_features(pixels[1:2], return_dict=True).pooler_output
    assert [tuple(each.shape) for each in features] == [(4, 32)] * 3
    torch.testing.assert_close(alone[0], features[1], atol=1e-5, rtol=1e-5)


def test_replacements_are_reported(processor):
    """_apply_hf_processor_main: an entry per image whose text encodes to what the placeholder becomes."""
    output = processed(processor, [picture(0), picture(1)])
    entries = output["text_replacement_offsets"][0]
    assert [entry["type"] for entry in entries] == ["image", "image"]
    for entry in entries:
        ids = processor.tokenizer.encode(entry["replacement"], add_special_tokens=False)
        assert ids == [processor.image_token_id] * 4
    assert processor.tokenizer.encode(processor.image_token, add_special_tokens=False) == [processor.image_token_id]
    assert output["input_ids"].tolist() == [[processor.image_token_id] * 8]


def test_prompt_of_the_chat_template_has_one_placeholder(processor):
    """_get_prompt_updates: vLLM replaces the placeholder's token in the encoded chat."""
    text = processor.apply_chat_template(processor.messages("disfa"), add_generation_prompt=True)
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(processor.image_token_id) == 1


def test_only_pixels_remain_for_the_model(processor):
    """_get_mm_fields_config: every other output would be passed to get_image_features."""
    dropped = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "text_replacement_offsets"}
    assert processed(processor, [picture(0)]).keys() - dropped == {"pixel_values"}


def test_tokens_are_counted_without_an_image(processor):
    """get_image_size_with_most_features asks with 10000 x 10000 pixels, _get_num_patches_per_image with each size."""
    for sizes in ([[10_000, 10_000]], [[224, 224]], [[40, 50], [300, 20]]):
        counted = processor._get_num_multimodal_tokens(image_sizes=sizes)
        assert counted["num_image_tokens"] == [4] * len(sizes)
        assert counted["num_image_patches"] == [1] * len(sizes)
    large = processor._get_num_multimodal_tokens(image_sizes=[[64, 64]], crop_size={"height": 64, "width": 64})
    assert large["num_image_tokens"] == [16]


def test_an_image_is_processed_alike_alone_and_beside_others(processor):
    """The cache of vLLM keeps what an image became, whatever stood beside it."""
    together = processed(processor, [picture(0, 90, 30), picture(1)])["pixel_values"]
    assert torch.equal(together[1:], processed(processor, [picture(1)])["pixel_values"])


def snippet(word: str) -> str:
    """The Python block of docs/serving.md that contains `word`."""
    return next(block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if word in block)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a snippet at the repository root, with names of its own; returns these names and what it printed."""

    def run_there(code: str) -> tuple[dict, str]:
        monkeypatch.chdir(ROOT)
        names = {"__name__": "__main__"}
        capsys.readouterr()
        exec(compile(code, "docs/serving.md", "exec"), names)
        return names, capsys.readouterr().out

    return run_there


def test_batch_script_runs(run, tmp_path):
    run(snippet("csv.writer").replace('"aus.csv"', repr(str(tmp_path / "aus.csv"))))
    lines = (tmp_path / "aus.csv").read_text().splitlines()
    faces = list((ROOT / "assets" / "faces").glob("*.png"))
    assert len(lines) == 1 + len(faces) * (12 + 12 + 24)
    assert lines[0] == "file,format,au,expected,probability,present"
    assert all(0 <= float(line.split(",")[4]) <= 1 for line in lines[1:])


def test_plain_logits_and_text(run):
    names, printed = run(snippet("logits = "))
    assert names["logits"].shape[:2] == names["inputs"]["input_ids"].shape
    for answer in ast.literal_eval(printed):
        assert parse_answer(answer, FORMATS["disfa"]).ok


@pytest.mark.usefixtures("any_size_in_4_bits")
def test_quantised_loading_runs(run):
    names, _ = run(snippet("load_in_4bit"))
    model = names["model"]
    quantized = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(quantized) == 7 * model.config.text_config.num_hidden_layers


@pytest.fixture
def run_with_server(run, monkeypatch):
    """Runs a client's snippet whose server gives `reply`; returns what it sent, the address and what it printed."""

    def run_there(code: str, reply: dict) -> tuple[dict, str, str]:
        requests = []
        answered = lambda request: requests.append(request) or io.StringIO(json.dumps(reply))
        monkeypatch.setattr("urllib.request.urlopen", answered)
        _, printed = run(code)
        [request] = requests
        return json.loads(request.data), request.full_url, printed

    return run_there


def test_answers_of_a_server_are_parsed(run_with_server):
    """The client's snippet: its prompt is the one that was trained, its reading that of free decoding."""
    reply = {"choices": [{"message": {"content": "AU1: 2, AU2: 0"}}]}
    sent, _, printed = run_with_server(snippet("chat/completions"), reply)
    image, text = sent["messages"][0]["content"]
    assert (image["type"], text["type"]) == ("image_url", "text")
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] == prompt(get_format("disfa"))
    assert sent["temperature"] == 0
    assert "'AU1': 2" in printed


def test_probabilities_of_one_token_requests_are_read(run_with_server):
    """The clients' snippets for vLLM and SGLang; tests/test_decision.py compares such logits with the slots decoder."""
    shares = [0.1, 0.2, 0.05, 0.05, 0.05, 0.05]  # of the six values; other tokens have the rest
    logs = [math.log(share) for share in shares]
    ids = AutoProcessor.from_pretrained(str(ROOT), trust_remote_code=True).tokenizer.convert_tokens_to_ids(
        list("012345")
    )
    tokens = [{"token": f"token_id:{i}", "logprob": log} for i, log in zip(ids, logs, strict=True)]
    first = {"token": "token_id:7", "logprob": -1.0, "top_logprobs": [*tokens[::-1], tokens[0]]}
    reply = {"choices": [{"logprobs": {"content": [first]}}]}
    sent, _, printed = run_with_server(snippet("logprob_token_ids"), reply)
    assert sent["logprob_token_ids"] == ids
    assert sent["messages"][-1]["content"] == "AU12: "
    assert printed == "AU12 [0.2, 0.4, 0.1, 0.1, 0.1, 0.1]\n"
    entries = [[log, i, None] for log, i in zip(logs, ids, strict=True)][::-1]
    reply = {"meta_info": {"output_token_ids_logprobs": [entries]}}
    sent, _, printed = run_with_server(snippet("token_ids_logprob"), reply)
    assert sent["token_ids_logprob"] == ids
    assert sent["text"].endswith("AU12: ")
    assert "<image>" in sent["text"]
    assert printed == "AU12 [0.2, 0.4, 0.1, 0.1, 0.1, 0.1]\n"


def test_decision_snippets_run(run, run_with_server):
    _, printed = run(snippet('pipeline("decision"'))
    assert printed.startswith("0.99")
    answers = {"smile": {"type": "noul", "noul": 0.9}}
    sent, address, printed = run_with_server(snippet("v1/systemone"), {"answers": answers})
    assert address.endswith("/v1/systemone")
    assert sent.keys() == {"model", "state", "assets", "questions"}
    assert printed == f"{answers}\n"
