"""Building the page that reads in the browser itself: what the folder holds, and what is refused."""

import hashlib
import io
import json
import tarfile

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, build_tiny, load_tool
from huggingface_hub import RepoCard

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_publishing import app_space, onnx_int8, static_space
from au_llava.au_recognition.tables import FACE_COLUMNS, au_columns


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A stand-in for npm's package: the right names, and contents that are pinned for these tests."""
    path = tmp_path_factory.mktemp("npm") / "onnxruntime-web.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in static_space.RUNTIME_FILES:
            content = f"// {name}".encode()
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    pins = {name: hashlib.sha256(f"// {name}".encode()).hexdigest() for name in static_space.RUNTIME_FILES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_space, "RUNTIME_FILES", pins)
        yield path


@pytest.fixture(scope="module")
def built(package, tiny_checkpoint, tmp_path_factory):
    """The folder with the tiny checkpoint, as the command builds it."""
    out = tmp_path_factory.mktemp("static") / "page"
    assert app_space.run(words(out, package, "--model", tiny_checkpoint)) == 0
    return out


def words(out, package, *more):
    return [str(out), "--static", "--onnxruntime-web", str(package), *map(str, more)]


def test_the_folder_is_complete(built, package, capsys):
    out = built
    told = json.loads((out / "settings.json").read_text())
    files = [weights["file"] for weights in told["weights"].values()]
    files += [told["detector"]["file"], told["points"]["file"]]
    files += [example["file"] for example in told["examples"]]
    files += [f"onnxruntime/{name}" for name in static_space.RUNTIME_FILES]
    assert [file for file in files if not (out / file).is_file()] == []
    assert {path.name for path in static_space.PAGE.iterdir()} <= {path.name for path in out.iterdir()}
    assert files[:2] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]
    assert len(told["examples"]) == len(list((ROOT / "assets" / "faces").glob("*.png")))

    card = RepoCard.load(out / "README.md")
    assert card.data.to_dict()["sdk"] == "static"
    assert (out / card.data.to_dict()["app_file"]).is_file()
    assert card.data.to_dict()["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    assert len(card.data.to_dict()["short_description"]) <= 60  # the Hub refuses longer ones
    assert "learned AUs from rendered faces" in card.content
    assert "Microsoft" in (out / "THIRD_PARTY.txt").read_text()

    assert app_space.run(words(out, package)) == 1
    assert f"{out} exists: name a new folder." in capsys.readouterr().err


def test_settings_are_those_of_python(built):
    told = json.loads((built / "settings.json").read_text())
    assert [fmt["name"] for fmt in told["formats"]] == list(MAIN_FORMATS)
    for fmt in told["formats"]:
        known = FORMATS[fmt["name"]]
        assert fmt["labels"] == list(known.labels)
        assert fmt["values"] == list(known.value_numbers)
        assert len(fmt["names"]) == len(fmt["definitions"]) == len(fmt["thresholds"]) == len(known.labels)
    assert told["columns"]["face"] == list(FACE_COLUMNS)
    assert list(told["columns"]["aus"]) == list(au_columns(static_space.FORMATS))
    assert told["crop"] == {"size": 32, "eye_distance": 0.34, "eye_height": 0.35}
    # The answers by which the page checks its engine: of the file, to the input of the formula in engine.js.
    known = np.float32([place * 7919 % 255 / 127.5 - 1 for place in range(3 * 32 * 32)]).reshape(1, 3, 32, 32)
    for weights in told["weights"].values():
        session = onnxruntime.InferenceSession(built / weights["file"])
        for name, answer in zip(MAIN_FORMATS, session.run(None, {"pixel_values": known}), strict=True):
            assert weights["check"][name] == pytest.approx(answer.ravel(), abs=1e-5)


def test_rules_hold_every_contradiction():
    rules = static_space.contradiction_rules(static_space.FORMATS)
    assert {
        "present_in": "bp4d",
        "present": FORMATS["bp4d"].labels.index("AU12"),
        "absent_in": "feafa",
        "absent": [FORMATS["feafa"].labels.index(label) for label in ("AU12L", "AU12R")],
        "text": "AU12 is present in bp4d, but AU12L, AU12R 0 in feafa",
    } in rules
    assert len({rule["text"] for rule in rules}) == len(rules)


def test_bad_packages_are_refused(package, tmp_path, capsys, monkeypatch):
    out = tmp_path / "page"
    text = tmp_path / "text.tgz"
    text.write_text("no package")
    assert app_space.run(words(out, text)) == 1
    assert "is not onnxruntime-web-1.30.0.tgz, which `npm pack" in capsys.readouterr().err
    monkeypatch.setitem(static_space.RUNTIME_FILES, "ort.wasm.bundle.min.mjs", "0" * 64)
    assert app_space.run(words(out, package)) == 1
    assert f"ort.wasm.bundle.min.mjs in {package} is not the one of" in capsys.readouterr().err
    assert app_space.run(words(out, tmp_path / "absent.tgz")) == 1
    assert "absent.tgz: `npm pack onnxruntime-web@1.30.0` writes it." in capsys.readouterr().err
    assert not out.exists()


def test_options_that_do_not_fit_are_named(tmp_path, capsys):
    out = str(tmp_path / "page")
    assert app_space.run([out, "--static"]) == 1
    assert "--static needs --onnxruntime-web FILE" in capsys.readouterr().err
    assert app_space.run([out, "--model", "x"]) == 1
    assert "belong to --static" in capsys.readouterr().err


def test_models_that_resize_crops_are_refused(package, tmp_path):
    model, processor = build_tiny("phrases")
    processor.image_processor.size = {"shortest_edge": 40}
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="square crops that are not resized"):
        static_space.release(tmp_path / "page", package, str(tmp_path / "model"))
    assert not (tmp_path / "page").exists()


def test_eight_bits_round_every_channel_by_its_own_scale(tmp_path):
    rng = np.random.default_rng(0)
    product = rng.normal(size=(40, 50)).astype(np.float32) * np.geomspace(0.001, 10, 50, dtype=np.float32)
    convolution = rng.normal(size=(8, 50, 3, 3)).astype(np.float32)
    few = rng.normal(size=(50, 2)).astype(np.float32)
    make = onnx.helper.make_node
    shaped = lambda name, *shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(
        [make("MatMul", ["x", "product"], ["y"]), make("MatMul", ["y", "few"], ["z"]), make("Conv", ["i", "c"], ["o"])],
        "graph",
        [shaped("x", 3, 40), shaped("i", 1, 50, 5, 5)],
        [shaped("y", 3, 50), shaped("z", 3, 2), shaped("o", 1, 8, 3, 3)],
        [
            onnx.numpy_helper.from_array(each, name)
            for name, each in (("product", product), ("few", few), ("c", convolution))
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    onnx_int8.save_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    stored = {each.name: each for each in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert stored["product_int8"].data_type == stored["c_int8"].data_type == onnx.TensorProto.INT8
    assert stored["few"].data_type == onnx.TensorProto.FLOAT  # too few to matter
    identity = np.eye(40, dtype=np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    images = np.zeros((1, 50, 5, 5), np.float32)
    rows = [session.run(["y"], {"x": identity[start : start + 3], "i": images})[0] for start in range(0, 39, 3)]
    steps = np.abs(product).max(axis=0) / 127  # a channel's weights are off by half of its step at most
    assert (np.abs(np.concatenate(rows) - product[:39]) <= 0.5001 * steps + 1e-7).all()
    images[0, :, 2, 2] = rng.normal(size=50)
    outputs = session.run(["o"], {"x": identity[:3], "i": images})[0]
    exact = np.einsum("oikl,i->okl", convolution[:, :, ::-1, ::-1], images[0, :, 2, 2])
    assert np.abs(outputs[0] - exact).max() < 0.02 * np.abs(exact).max()


def graph_in_double(path):
    """Write and return a graph as calibration makes it: from 32 bits to 64 and back."""
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["x"], ["wide"], to=onnx.TensorProto.DOUBLE),
        make("Div", ["wide", "temperature"], ["soft"]),
        make("Exp", ["soft"], ["odds"]),
        make("Cast", ["odds"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    shaped = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2])
    temperature = onnx.numpy_helper.from_array(np.array([1.7, 0.5]), "temperature")
    graph = onnx.helper.make_graph(nodes, "graph", [shaped("x")], [shaped("y")], [temperature])
    graph.value_info.append(onnx.helper.make_tensor_value_info("soft", onnx.TensorProto.DOUBLE, [2]))
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)


def types_in(path) -> set[int]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.type.tensor_type.elem_type for value in values} | {each.data_type for each in graph.initializer}


def test_graphics_cards_need_32_bits_throughout(tmp_path):
    path = tmp_path / "model.onnx"
    graph_in_double(path)
    assert onnx.TensorProto.DOUBLE in types_in(path)
    static_space.save_single(path)
    assert types_in(path) == {onnx.TensorProto.FLOAT}
    [found] = onnxruntime.InferenceSession(path).run(None, {"x": np.float32([-1, 2])})
    assert found == pytest.approx(np.exp([-1 / 1.7, 4]), rel=1e-6)


def test_the_page_computes_in_32_bits_unless_calibration_has_curves(built, tmp_path):
    for name in ("model", "model_quantized"):
        assert onnx.TensorProto.DOUBLE not in types_in(built / "onnx" / f"{name}.onnx")
    entry = {"method": "isotonic", "probability": [0, 1], "calibrated": [0, 1], "threshold": 0.5}
    of_format = {"scale": "occurrence", "presence_threshold": 1.0, "aus": {"AU12": entry}}
    model, processor = build_tiny(calibration={"formats": {"bp4d": of_format}})
    (tmp_path / "onnx").mkdir()
    static_space.save_models(model.eval(), processor, tmp_path)
    assert onnx.TensorProto.DOUBLE in types_in(tmp_path / "onnx" / "model.onnx")


def test_decisions_are_compared_by_each_thresholds():
    fmt = {"values": [0, 1, 2], "presence_threshold": 1, "thresholds": [0.5, 0.9]}
    exact = np.array([[[0.6, 0.4, 0.0], [0.05, 0.95, 0.0]], [[0.4, 0.6, 0.0], [0.2, 0.8, 0.0]]])
    other = exact.copy()
    other[0, 0] = [0.45, 0.55, 0.0]  # now present
    other[1, 1] = [0.15, 0.65, 0.2]  # still below 0.9; the mean moves from 0.8 to 1.05
    equal, worst, average, largest = load_tool("eight_bits").compared(exact, other, fmt)
    assert (equal, worst) == (0.75, 0.5)
    assert average == pytest.approx((0.15 + 0.25) / 4)
    assert largest == pytest.approx(0.25)
