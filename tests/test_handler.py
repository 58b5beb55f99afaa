"""The handler of Inference Endpoints: every kind of picture gives what the pipeline gives, everything else an error."""

import base64
import importlib.util
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, build_tiny, random_faces
from PIL import Image, ImageOps

from au_llava import decision_au_llava
from au_llava.au_publishing import onnx_file
from au_llava.onnx_au_llava import DESCRIPTION, GRAPH

FACES = [Image.fromarray((face * 255).astype("uint8")) for face in random_faces(3)]


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def hollow_png(width: int, height: int) -> bytes:
    """A PNG of this size whose pixels are missing: opening it costs nothing, decoding fails."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def imported(folder: Path):
    """The folder's handler.py as the inference toolkit imports it: by its path, under a name of the toolkit's."""
    spec = importlib.util.spec_from_file_location("custom_handler", folder / "handler.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def module():
    return imported(ROOT)


@pytest.fixture(scope="module")
def handler(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for part in build_tiny():
        part.save_pretrained(folder)
    return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def expected(handler):
    """What the pipeline says of `FACES` in one format."""
    return handler.pipeline(FACES, formats="bp4d")


def ask(handler, inputs, **parameters):
    return handler({"inputs": inputs, "parameters": {"formats": "bp4d", **parameters}})


@pytest.mark.parametrize(
    "content",
    [
        base64_of(file_of(FACES[0])),
        base64.encodebytes(file_of(FACES[0])).decode(),  # with line breaks
        f"data:image/png;base64,{base64_of(file_of(FACES[0]))}",
        f"DATA:Image/PNG;Base64,{base64_of(file_of(FACES[0]))}",
        file_of(FACES[0]),
        file_of(FACES[0], "BMP"),
        file_of(FACES[0], "TIFF"),
        file_of(FACES[0], "WEBP", lossless=True),
        FACES[0],
    ],
    ids=["base64", "base64 in lines", "data URL", "DATA URL", "bytes", "BMP", "TIFF", "WEBP", "PIL"],
)
def test_every_kind_of_picture_gives_what_the_pipeline_gives(handler, expected, content):
    assert ask(handler, content) == expected[0]


def test_a_list_gives_a_list_in_its_order(handler, expected):
    several = ask(handler, [base64_of(file_of(FACES[2])), file_of(FACES[0]), FACES[1]])
    assert [[au["label"] for au in found] for found in several] == [
        [au["label"] for au in expected[index]] for index in (2, 0, 1)
    ]
    for found, index in zip(several, (2, 0, 1), strict=True):
        np.testing.assert_allclose(
            [au["score"] for au in found], [au["score"] for au in expected[index]], rtol=0, atol=1e-5
        )
    assert ask(handler, [FACES[0]]) == [expected[0]]
    assert json.loads(json.dumps(several)) == several


def test_parameters_are_those_of_the_pipeline_and_may_be_left_out(handler):
    image = base64_of(file_of(FACES[0]))
    assert handler({"inputs": image}) == handler({"inputs": image, "parameters": None}) == handler.pipeline(FACES[0])
    found = handler({"inputs": image, "parameters": {"formats": ["disfa", "bp4d"], "top_k": 3, "threshold": 0.0}})
    assert found == handler.pipeline(FACES[0], formats=["disfa", "bp4d"], top_k=3, threshold=0.0)
    assert [au["present"] for au in found] == [True] * 3


def test_with_mirror_images_it_is_the_mean_of_both(handler):
    def scores(image, **parameters):
        return {au["label"]: au["score"] for au in ask(handler, base64_of(file_of(image)), **parameters)}

    alone, mirrored = (scores(image, mirror_images=False) for image in (FACES[0], ImageOps.mirror(FACES[0])))
    expected = {label: (alone[label] + mirrored[label]) / 2 for label in alone}
    assert scores(FACES[0], mirror_images=True) == pytest.approx(expected, abs=1e-5)
    assert scores(FACES[0]) == alone  # as the checkpoint says
    assert alone != pytest.approx(expected, abs=1e-5)


def test_one_request_is_one_batch_up_to_its_size(handler, module):
    sizes = []
    hook = handler.pipeline.model.model.vision_tower.register_forward_hook(
        lambda *arguments: sizes.append(len(arguments[2].last_hidden_state))
    )
    try:
        ask(handler, [FACES[0]] * (module.BATCH_SIZE + 1))
    finally:
        hook.remove()
    assert sizes == [module.BATCH_SIZE, 1]


def test_the_default_checkpoint_is_that_of_its_own_folder(module, monkeypatch):
    asked = {}
    monkeypatch.setattr("transformers.pipeline", lambda task, **settings: asked.update(settings, task=task))
    monkeypatch.setattr(module, "open_onnx", lambda folder: asked.update(folder=folder))
    module.EndpointHandler()
    assert asked["folder"] == ROOT
    assert (asked["task"], asked["model"]) == ("au-recognition", str(ROOT))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "A request must be"),
        ([], "A request must be"),
        ({"parameters": {}}, "A request must be"),
        ({"inputs": "", "top_k": 3}, "A request must be"),
        ({"inputs": FACES[0], "parameters": [1]}, "parameters is a list; it must be an object"),
        ({"inputs": FACES[0], "parameters": {"topk": 3}}, r"holds 'topk', which is unknown; known are .*, top_k"),
        ({"inputs": FACES[0], "parameters": {"batch_size": 999}}, "holds 'batch_size', which is unknown"),
        ({"inputs": FACES[0], "parameters": {"images": "secret.png"}}, "holds 'images', which is unknown"),
        ({"inputs": FACES[0], "parameters": {"formats": "bp5d"}}, "unknown format 'bp5d'"),
        ({"inputs": FACES[0], "parameters": {"formats": []}}, "must name at least one format"),
        ({"inputs": FACES[0], "parameters": {"formats": [{"name": "mine"}]}}, "name of a format or a list of names"),
        ({"inputs": FACES[0], "parameters": {"formats": 3}}, "name of a format or a list of names"),
        ({"inputs": FACES[0], "parameters": {"top_k": 0}}, "top_k is 0"),
        ({"inputs": FACES[0], "parameters": {"top_k": True}}, "top_k is True"),
        ({"inputs": FACES[0], "parameters": {"top_k": [1] * 999}}, "top_k is .{80}; it must"),
        ({"inputs": FACES[0], "parameters": {"threshold": "0.5"}}, "threshold is '0.5'"),
        ({"inputs": FACES[0], "parameters": {"threshold": True}}, "threshold is True"),
        ({"inputs": FACES[0], "parameters": {"formats": "x" * 999}}, "unknown format .{80}; choose"),
        ({"inputs": FACES[0], "parameters": {"\ud800" * 999: 1}}, "which is unknown"),
        ({"inputs": FACES[0], "parameters": {"mirror_images": "no"}}, "mirror_images is 'no'; it must be true"),
        ({"inputs": FACES[0], "parameters": {"mirror_images": 0}}, "mirror_images is 0"),
    ],
)
def test_requests_of_another_shape_are_refused(handler, data, message):
    with pytest.raises(ValueError, match=message) as refused:
        handler(data)
    assert len(str(refused.value).encode()) < 300  # nothing of any length is sent back


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs holds 0 images; a request must hold 1 to 32"),
        ([FACES[0]] * 33, "inputs holds 33 images"),
        (None, "inputs is a NoneType; an image must be a base64 string"),
        ({"image": "x"}, "inputs is a dict"),
        ([FACES[0], 5], r"^inputs\[1\] is a int"),
        ([[FACES[0]]], r"^inputs\[0\] is a list"),
        ("https://example.org/face.png", "inputs is not base64: send the picture file itself, not its path or URL"),
        ("assets/faces/smile.png", "inputs is not base64"),
        ("assets/faces/smile", "inputs is not base64"),
        ("/etc/hostname", "inputs is no"),
        ("abcd", "inputs is not a picture: send the content of a BMP, GIF, JPEG, PNG, TIFF, WEBP file"),
        ("", "inputs is not a picture"),
        ("data:text/plain,hello", "inputs is not base64"),
        ("ä", "inputs is not base64"),
        (b"", "inputs is not a picture"),
        (b"import os", "inputs is not a picture"),
        (file_of(FACES[0], "EPS"), "inputs is not a picture"),
        (file_of(FACES[0].resize((15, 40))), "^inputs is 15 x 40 pixels; a face needs at least 16 x 16"),
        (file_of(Image.new("1", (16, 1601))), "^inputs is 16 x 1601 pixels; one side may be at most 100 times"),
        ([FACES[0], file_of(FACES[0])[:-40]], r"^inputs\[1\] cannot be read as an image: .*truncated"),
        (base64_of(file_of(FACES[0])[:-40]), "^inputs cannot be read as an image"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(handler, monkeypatch, inputs, message):
    monkeypatch.chdir(ROOT)  # where the paths above exist
    with pytest.raises(ValueError, match=message) as refused:
        ask(handler, inputs)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("side", [5001, 9000, 20000, 60000])  # Pillow warns from 9460 on and refuses from 13378 on
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(handler, side):
    bomb = hollow_png(side, side)
    assert len(bomb) < 100
    with pytest.raises(ValueError, match="pixels; a request may have 25,000,000: make"):
        ask(handler, base64_of(bomb))
    with pytest.raises(ValueError, match="cannot be read as an image"):  # decoded, it would have failed so
        ask(handler, base64_of(hollow_png(100, 100)))


def test_the_limits_are_of_a_whole_request(handler, module, monkeypatch):
    small = file_of(FACES[0], "BMP")
    monkeypatch.setattr(module, "MAX_PIXELS", 3 * 48 * 48)
    assert len(ask(handler, [small] * 3)) == 3
    with pytest.raises(ValueError, match="The images have 9,216 pixels; a request may have 6,912: make them smaller"):
        ask(handler, [small] * 4)
    with pytest.raises(ValueError, match="The images have 9,216 pixels"):
        ask(handler, FACES[0].resize((96, 96)))
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    padded = small + bytes(2**19)
    assert len(ask(handler, [padded])) == 1
    for several in ([padded] * 2, [base64_of(padded)] * 2):
        with pytest.raises(ValueError, match=r"The images have 1,06\d,\d{3} bytes; a request may have 1,048,576: make"):
            ask(handler, several)


def test_a_typed_question_has_the_same_limits(module):
    limits = (module.MAX_BYTES, module.MAX_PIXELS, module.PICTURES)
    assert limits == (decision_au_llava.MAX_BYTES, decision_au_llava.MAX_PIXELS, decision_au_llava.IMAGE_FORMATS)


def test_a_request_is_left_as_it_was(handler):
    data = {"inputs": base64_of(file_of(FACES[0])), "parameters": {"formats": ["bp4d"]}}
    before = json.dumps(data)
    handler(data)
    assert json.dumps(data) == before


# ---- With ONNX Runtime ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def repository(tiny_checkpoint, tmp_path_factory):
    """A model repository as on the Hub: checkpoint with its code, graph of two formats, handler, and no package."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("onnx") / "repository")
    assert onnx_file.run(["--model", str(folder), "--formats", "disfa", "bp4d", "--beside"]) == 0
    for name in ("handler.py", "onnx_au_llava.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def at_endpoint(repository: Path, requests: list[dict], blocked=()) -> tuple[list, list[str]]:
    """Answers of the repository's own handler in a process where neither this package nor `blocked` can be imported,
    a string for a ValueError; and which of torch and transformers that process has loaded."""
    program = f"""
import importlib.util, json, sys
sys.modules |= dict.fromkeys({("au_llava", *blocked)!r})
spec = importlib.util.spec_from_file_location("custom_handler", "handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler({str(repository)!r})
answers = []
for request in json.load(sys.stdin):
    try:
        answers.append(handler(request))
    except ValueError as error:
        answers.append(str(error))
print(json.dumps([answers, [name for name in ("torch", "transformers") if sys.modules.get(name)]]))
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, input=json.dumps(requests), capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_alike(found: list[dict], expected: list[dict]) -> None:
    """The same AUs with the same values, scores equal to 1e-5; AUs whose scores are closer may change places."""
    by_au = lambda rows: {(row["format"], row["label"]): row for row in rows}
    found, expected = by_au(found), by_au(expected)
    assert found.keys() == expected.keys()
    for au, row in found.items():
        assert row == pytest.approx(expected[au], abs=1e-5)


def test_onnx_runtime_reads_without_pytorch(repository, module):
    """What it says equals PyTorch's; a request that it must refuse is refused alike."""
    images = [base64_of(file_of(face)) for face in FACES]
    requests = [
        {"inputs": images, "parameters": {"formats": ["disfa", "bp4d"]}},
        {"inputs": images[0], "parameters": {"formats": "bp4d", "top_k": 3, "threshold": 0.0}},
        {"inputs": images[0], "parameters": {"formats": "bp4d", "mirror_images": True}},
        {"inputs": images[0], "parameters": {"formats": "bp4d", "threshold": 1.5}},
        {"inputs": images[0], "parameters": {"formats": "bp4d", "mirror_images": 1}},
        {"inputs": images[0], "parameters": {"formats": "bp4d", "top_k": 0}},
        {"inputs": images[0], "parameters": {"formats": "bp5d"}},
        {"inputs": images[0], "parameters": {"formats": []}},
        {"inputs": images[0], "parameters": {"formats": ""}},
    ]
    found, loaded = at_endpoint(repository, requests, blocked=("torch", "transformers"))
    assert loaded == []
    pytorch = module.EndpointHandler(str(repository))
    pytorch.onnx = None
    for ours, theirs in zip(found[0], pytorch(requests[0]), strict=True):
        assert_alike(ours, theirs)
    assert len(found[1]) == 3
    assert_alike(found[1], pytorch(requests[1]))
    assert_alike(found[2], pytorch(requests[2]))
    for sentence, request in zip(found[3:], requests[3:], strict=True):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            pytorch(request)


def test_pytorch_reads_what_the_graph_lacks(repository):
    image = base64_of(file_of(FACES[0]))
    requests = [{"inputs": image, "parameters": {"formats": formats}} for formats in ("bp4d", ["bp4d", "gft"])]
    (first, second), loaded = at_endpoint(repository, requests)
    assert loaded == ["torch", "transformers"]
    assert_alike(first, [row for row in second if row["format"] == "bp4d"])


@pytest.mark.parametrize("missing", [GRAPH, DESCRIPTION, "onnxruntime", "code"])
def test_pytorch_reads_where_onnx_runtime_cannot(repository, tmp_path, monkeypatch, missing):
    folder = shutil.copytree(repository, tmp_path / "repository")
    if missing in (GRAPH, DESCRIPTION):
        (folder / missing).write_bytes((folder / missing).read_bytes()[:-100])  # damaged
    if missing == "code":
        (folder / "onnx_au_llava.py").unlink()
    whole = imported(repository).EndpointHandler(str(repository))
    if missing == "onnxruntime":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    damaged = imported(folder).EndpointHandler(str(folder))
    assert (whole.onnx is None, damaged.onnx is None) == (False, True)
    assert_alike(ask(damaged, FACES[0]), ask(whole, FACES[0]))
