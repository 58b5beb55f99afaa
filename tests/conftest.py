"""Tiny models, processors and tokenizers, built in memory: nothing is downloaded."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Every process has caches of its own, in a folder that the first one removes.
if "AU_LLAVA_TESTS" not in os.environ:
    caches = tempfile.TemporaryDirectory(prefix="au-llava-tests-", ignore_cleanup_errors=True)
    os.environ["AU_LLAVA_TESTS"] = caches.name
os.environ["HF_HOME"] = tempfile.mkdtemp(dir=os.environ["AU_LLAVA_TESTS"])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core a worker, whatever it starts

import copy
import gc
import importlib.util
import io
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

# timm needs torchvision, whose wheel is compiled for one build of torch. Beside another, such as that for CPUs,
# its operators do not load, and it cannot be imported unless these two are declared. No test calls them.
if torchvision := importlib.util.find_spec("torchvision"):
    try:
        torch.ops.load_library(Path(torchvision.origin).with_name("_C.so"))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from datasets import List, Value
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RegNetConfig,
    ResNetConfig,
    SiglipVisionConfig,
)

from au_llava import prepare_data
from au_llava.action_units import FORMATS, MAIN_FORMATS, prompt, write_answer
from au_llava.au_datasets.records import NO_CLIP, finish_folder, record_features, shard_path, start_folder, write_shard
from au_llava.au_training.untrained import byte_pair_tokenizer, phrase_tokenizer, untrained
from au_llava.configuration_au_llava import add_image_token
from au_llava.processing_au_llava import CHATML_TEMPLATE, PLAIN_TEMPLATE

# A shell's background commands ignore Ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
IMAGE_SIZE = 32


def pytest_runtest_setup(item):
    if item.get_closest_marker("timm") and not importlib.util.find_spec("timm"):
        pytest.skip("timm is not installed here: `make test` runs the tests of timm by themselves, with it")


def pytest_collection_finish():
    """Keep what was imported out of garbage collection: every training collects once, which takes long."""
    gc.freeze()


@pytest.fixture
def any_size_in_4_bits(monkeypatch):
    """bitsandbytes computes as on CPUs without AVX512-BF16: slower, in layers of any size."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


SCRIPTS = ("tools", "maintenance", "benchmarks")


def load_tool(name: str):
    """A script of tools/, maintenance/ or benchmarks/ as a module (they are no packages)."""
    [path] = (ROOT / folder / f"{name}.py" for folder in SCRIPTS if (ROOT / folder / f"{name}.py").exists())
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+|\s+"


def _byte_pairs(number: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from our own prompts; the pattern `number` decides how digits are grouped."""
    feafa = FORMATS["feafa"]
    answers = [write_answer(dict.fromkeys(feafa.labels, step / 100), feafa) for step in range(101)]
    return byte_pair_tokenizer([*map(prompt, FORMATS.values()), *answers], WORDS.replace("NUMBER", number), 700)


def _single_digits() -> PreTrainedTokenizerFast:
    """Every digit a token, no ChatML markers of its own, as Llama-2 and Vicuna write numbers."""
    tokenizer = _byte_pairs(r"\p{N}")
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


TOKENIZERS = {
    "single digits": _single_digits,
    "grouped digits": lambda: _byte_pairs(r"\p{N}{1,3}"),  # as Llama-3 and GPT-4 group them
    "phrases": phrase_tokenizer,
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_tiny(tokenizer: str = "grouped digits", vision_config=None, text_config=None, seed: int = 0, **settings):
    """A random model of two layers a side and its processor: 32-pixel images, a 4 x 4 grid of features."""
    template = PLAIN_TEMPLATE if tokenizer == "single digits" else CHATML_TEMPLATE
    tokenizer = TOKENIZERS[tokenizer]()
    add_image_token(tokenizer)
    vision = copy.deepcopy(vision_config or TOWERS["siglip"][0])
    small = LlamaConfig(**TEXT, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=4096)
    model, processor = untrained(vision, text_config or small, tokenizer, IMAGE_SIZE, template, seed, **settings)
    for parameter in model.lm_head.parameters():  # so that predictions differ between images and AUs
        torch.nn.init.normal_(parameter, std=0.5)
    model.tie_weights()
    return model.eval(), processor


_VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# Name: a tiny vision configuration, its stride and the width of its features.
TOWERS = {
    "siglip": (SiglipVisionConfig(**_VIT), 8, 32),
    "clip": (CLIPVisionConfig(**_VIT), 8, 32),
    "dinov2": (Dinov2Config(**_VIT, mlp_ratio=2), 8, 32),
    "dinov2 with registers": (Dinov2WithRegistersConfig(**_VIT, mlp_ratio=2, num_register_tokens=4), 8, 32),
    "dinov3": (DINOv3ViTConfig(**_VIT, num_register_tokens=4), 8, 32),
    "resnet": (ResNetConfig(**_STAGES, embedding_size=8, layer_type="basic"), 8, 16),
    "regnet": (RegNetConfig(**_STAGES, embedding_size=8, groups_width=8), 8, 16),
    "convnextv2": (ConvNextV2Config(**_STAGES, num_stages=2), 8, 16),
    "dinov3 convnext": (DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]), 32, 16),
}


def random_faces(count: int, seed: int = 0, size: int = 48) -> list[np.ndarray]:
    """Arrays of smooth noise: different images, as a model sees them."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 6, 6, 3))
    return [np.kron(image, np.ones((size // 6, size // 6, 1))).astype(np.float32) for image in coarse]


@pytest.fixture(scope="session", params=list(TOKENIZERS))
def tiny_any_tokenizer(request):
    """(model, processor) once for every kind of tokenizer. Do not train it."""
    return build_tiny(request.param)


@pytest.fixture(scope="session")
def tiny():
    """(model, processor) shared by read-only tests. Do not train it: call `build_tiny` for a model of your own."""
    return build_tiny()


@pytest.fixture
def faces():
    return random_faces(5)


@pytest.fixture(scope="session")
def rendered_records(tmp_path_factory):
    """A folder of records: 10 rendered subjects, 2 images each, in three formats and three parts."""
    out = tmp_path_factory.mktemp("records") / "rendered"
    options = "--subjects 10 --images-per-subject 2 --size 32 --validation 0.2 --test 0.3 --workers 1"
    assert prepare_data.run(["rendered", *options.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def more_training_records(tmp_path_factory):
    """A folder that holds training people only: two rendered subjects, R5-000000 and R5-000001, one image each."""
    out = tmp_path_factory.mktemp("records") / "more"
    options = "--subjects 2 --images-per-subject 1 --seed 5 --size 32 --validation 0 --test 0 --workers 1"
    assert prepare_data.run(["rendered", *options.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def unlabelled_records(tmp_path_factory):
    """A folder of 12 faces without labels, with a margin; some AUs of every other one have weak values.

    The weak values of P03, P07 and P11 are codes by eye, the others a weak teacher's.
    """
    folder = tmp_path_factory.mktemp("records") / "unlabelled"
    rng = np.random.default_rng(0)
    faces = [Image.open(path).convert("RGB") for path in sorted((ROOT / "assets" / "faces").glob("*.png"))]
    believed = {"AU12", "AU12L", "AU12R", "AU25", "AU26", "AU43L"}
    records = []
    for person in range(12):
        file = io.BytesIO()
        faces[person % len(faces)].rotate(person).resize((48, 48)).save(file, "PNG")
        for name in MAIN_FORMATS:
            fmt = FORMATS[name]
            shares = [rng.random() if label in believed and person % 2 else math.nan for label in fmt.labels]
            records.append(
                {
                    "image": {"bytes": file.getvalue(), "path": None},
                    **{"dataset": "faces", "subject": f"P{person:02}", "clip": NO_CLIP, "frame": 0},
                    **{"format": name, "values": [math.nan] * len(fmt.labels), "part": "train"},
                    **{"margin": 0.25, "weak": shares, "coded": person % 4 == 3},
                }
            )
    start_folder(folder, {})
    features = record_features({"margin": Value("float32"), "weak": List(Value("float32")), "coded": Value("bool")})
    write_shard(records, features, shard_path(folder, "train", 0, 1))
    finish_folder(folder, {})
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A saved tiny checkpoint with a convolutional tower (it has batch-norm statistics) and the phrase tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tower = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    for part in build_tiny("phrases", vision_config=tower):
        part.save_pretrained(folder)
    return folder
