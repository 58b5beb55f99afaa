"""Build the page that reads faces in the browser itself: a folder of files, for any web server or a static Space.

The page (au_page/static) is plain HTML and JavaScript. Everything that it must know of the model, the formats and the
geometry of faces is written into settings.json from where Python has it. ONNX Runtime Web is copied from its npm
package, whose files are pinned by content, so that the folder needs no network.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from huggingface_hub import SpaceCardData
from onnx import numpy_helper
from onnxruntime import InferenceSession

from au_llava.action_units import ACTION_UNITS, MAIN_FORMATS, AUFormat, get_format
from au_llava.au_faces import crop, detect, points
from au_llava.au_publishing.onnx_file import description, save_onnx
from au_llava.au_publishing.onnx_int8 import save_int8
from au_llava.au_publishing.spaces import render
from au_llava.au_recognition.runner import BAND
from au_llava.au_recognition.tables import BOX, EYES, FACE_COLUMNS, POSE, au_columns, heading, measure
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.files import HOME, replacing, write_json
from au_llava.calibration_au_llava import Calibration
from au_llava.consistency_au_llava import contradictions

FORMATS = tuple(map(get_format, MAIN_FORMATS))
PAGE = HOME / "au_page" / "static"
EXAMPLES = HOME / "assets" / "faces"
RUNTIME = "onnxruntime-web-1.30.0.tgz"  # as `npm pack onnxruntime-web@1.30.0` writes it
RUNTIME_FILES = {  # name in its folder dist -> SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.bundle.min.mjs": "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
WEIGHTS = {"float32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}  # the layout of Transformers.js
NOTES = {"float32": "the numbers of Python", "int8": "a quarter of the size, numbers differ a little"}
DETECTOR = "onnx/yunet.onnx"
POINTS = "onnx/face_points.onnx"
HEADERS = {  # with which browsers let a page use several threads
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def release(out: Path, runtime: Path, model: str) -> None:
    """Write the folder `out`.

    Args:
        runtime: npm's package of ONNX Runtime Web, `RUNTIME`.
        model: checkpoint folder or Hub id.

    Raises:
        FileExistsError: the folder exists.
        ValueError: another package, or a model that the page cannot run.
        OSError: no package there.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: name a new folder.")
    files = runtime_files(runtime)
    detector = detect.YuNet()
    model, processor = load_checkpoint(model, dtype="float32", device="cpu")
    check_crop(processor.image_processor)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as folder:
        shutil.copytree(PAGE, folder)
        for name in ("LICENSE", "NOTICE"):
            shutil.copy(HOME / name, folder / name)
        (folder / "README.md").write_text(card(), encoding="utf-8")
        shutil.copytree(EXAMPLES, folder / "examples")
        (folder / "onnxruntime").mkdir()
        for name, content in files.items():
            (folder / "onnxruntime" / name).write_bytes(content)
        (folder / "onnx").mkdir()
        save_detector(detector.path, folder / DETECTOR)
        shutil.copy(points.MODEL, folder / POINTS)
        save_models(model, processor, folder)
        write_json(folder / "settings.json", settings(model, processor, folder), indent=0)


def runtime_files(package: Path) -> dict[str, bytes]:
    """The pinned files of npm's package of ONNX Runtime Web.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is not this package.
    """
    files = {}
    try:
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                files[name] = archive.extractfile(f"package/dist/{name}").read()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {package}: `npm pack onnxruntime-web@1.30.0` writes it.") from None
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise ValueError(f"{package} is not {RUNTIME}, which `npm pack onnxruntime-web@1.30.0` writes.") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != RUNTIME_FILES[name]:
            raise ValueError(f"{name} in {package} is not the one of {RUNTIME}.")
    return files


def check_crop(images) -> None:
    """Raise ValueError if an image processor changes a face crop of its own size."""
    side, size = images.size["shortest_edge"], images.crop_size
    if not side == size["height"] == size["width"]:
        raise ValueError(f"The page needs a model of square crops that are not resized; {size} of {side} arrived.")


def save_detector(source: Path, path: Path) -> None:
    """Write YuNet for pictures of any size; its file declares 640 x 640, which the network does not need."""
    network = onnx.load(source)
    sides = network.graph.input[0].type.tensor_type.shape.dim[2:]
    for side, name in zip(sides, ("height", "width"), strict=True):
        side.dim_param = name
    for output in network.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = f"places_{output.name}"
    del network.graph.value_info[:]  # sizes for 640 x 640
    onnx.save(network, path)


def save_models(model, processor, folder: Path) -> None:
    exact, small = (folder / WEIGHTS[name] for name in ("float32", "int8"))
    save_onnx(model, processor, FORMATS, exact)
    if exact.with_name(f"{exact.name}.data").exists():
        raise ValueError("The model is larger than 2 GB, more than a browser holds: train a smaller one.")
    if all(Calibration.of(model.config.calibration, fmt).curves is None for fmt in FORMATS):
        save_single(exact)  # curves divide by shares that 32 bits round to 0
    save_int8(exact, small)


def save_single(path: Path) -> None:
    """Rewrite an ONNX file so that it computes in 32 bits throughout: WebGPU knows no 64, which calibration uses."""
    network = onnx.load(path)
    for number, constant in enumerate(network.graph.initializer):
        if constant.data_type == onnx.TensorProto.DOUBLE:
            single = numpy_helper.to_array(constant).astype(np.float32)
            network.graph.initializer[number].CopyFrom(numpy_helper.from_array(single, constant.name))
    for node in network.graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", onnx.TensorProto.DOUBLE):
                attribute.i = onnx.TensorProto.FLOAT
    del network.graph.value_info[:]  # whose types have changed
    onnx.checker.check_model(network, full_check=True)
    onnx.save(network, path)


def settings(model, processor, folder: Path) -> dict:
    """What the page must know, in JSON's types."""
    told = description(model, processor, FORMATS)
    return {
        "weights": {name: weights_entry(name, folder / file, told["input"]) for name, file in WEIGHTS.items()},
        "input": told["input"],
        "formats": [format_entry(fmt, output) for fmt, output in zip(FORMATS, told["outputs"], strict=True)],
        "band": BAND,
        "contradictions": contradiction_rules(FORMATS),
        "crop": {"size": told["input"]["crop"][0], "eye_distance": crop.EYE_DISTANCE, "eye_height": crop.EYE_HEIGHT},
        "detector": detector_settings(),
        "points": {
            "file": POINTS,
            "side": points.SIDE,
            "template": points.TEMPLATE.tolist(),
            "trusted": points.TRUSTED,
            "passes": points.PASSES,
            "digits": points.DIGITS,
            "above": points.ABOVE,
            "apart": points.APART,
        },
        "columns": {"face": FACE_COLUMNS, "box": BOX, "eyes": EYES, "pose": POSE, "aus": au_columns(FORMATS)},
        "examples": [{"file": f"examples/{path.name}", "name": path.stem} for path in sorted(EXAMPLES.glob("*.png"))],
    }


def weights_entry(name: str, path: Path, told: Mapping) -> dict:
    """A file of weights, and its answers to the input that the page checks an engine with (`Engine.check`)."""
    size = path.stat().st_size / 1e6
    known = (np.arange(np.prod(told["shape"][1:])) * 7919 % 255 / 127.5 - 1).astype(np.float32)
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = session.run(None, {told["name"]: known.reshape(1, *told["shape"][1:])})
    check = {
        fmt.name: answer.ravel().astype(float).round(5).tolist() for fmt, answer in zip(FORMATS, answers, strict=True)
    }
    return {"file": WEIGHTS[name], "note": f"{size:.0f} MB, {NOTES[name]}", "check": check}


def format_entry(fmt: AUFormat, output: Mapping) -> dict:
    """A format as the page shows it: what its ONNX output means, and its words."""
    units = [ACTION_UNITS[label] for label in fmt.labels]
    words = {"names": [unit.name for unit in units], "definitions": [unit.definition for unit in units]}
    return {**output, "heading": heading(fmt), "measure": measure(fmt), **words}


def contradiction_rules(formats: Sequence[AUFormat]) -> list[dict]:
    """Every contradiction that can be: a format that finds an AU present, another that finds some others absent.

    Returns:
        {"present_in", "present" (number of the AU in that format), "absent_in", "absent" (numbers), "text"}.
    """
    labels = {fmt.name: fmt.labels for fmt in formats}
    absent, present = SimpleNamespace(value=0, present=False), SimpleNamespace(value=1, present=True)
    rules = []
    for name, label in ((fmt.name, label) for fmt in formats for label in fmt.labels):
        answers = {each: dict.fromkeys(labels[each], absent) for each in labels}
        answers[name] = {**answers[name], label: present}
        for found in contradictions(answers):
            places = [labels[found.absent_in].index(other) for other in found.absent]
            where = {"present_in": name, "present": labels[name].index(label), "absent_in": found.absent_in}
            rules.append({**where, "absent": places, "text": str(found)})
    return rules


def detector_settings() -> dict:
    return {
        "file": DETECTOR,
        "usual": detect.USUAL,
        "near": detect.NEAR,
        "fine": detect.FINE,
        "suspected": detect.SUSPECTED,
        "small_face": detect.SMALL_FACE,
        "large_face": detect.LARGE_FACE,
        "shortest_side": detect.SHORTEST_SIDE,
        "largest_face": detect.LARGEST_FACE,
        "min_confidence": detect.MIN_CONFIDENCE,
        "min_face": detect.MIN_FACE,
        "max_overlap": detect.MAX_OVERLAP,
        "strides": detect.STRIDES,
        "grid": detect.GRID,
    }


def card() -> str:
    """README.md of the Space."""
    metadata = SpaceCardData(
        title="AU-LLaVA in the browser",
        sdk="static",
        app_file="index.html",
        license="apache-2.0",
        short_description="Facial action units, live; nothing leaves the computer",
        tags=["facial-action-units", "facs", "onnxruntime-web"],
        custom_headers=HEADERS,
    )
    return render("static_space.md.jinja", metadata=metadata.to_yaml())
