"""Reading by ONNX Runtime, without PyTorch and Transformers: a graph of a few hundred kB, and the checkpoint's weights.

A graph is two files, `slots.onnx` and `slots.json`, which au_publishing/slots_file.py writes. The graph leads from
pixels to log-probabilities before calibration and holds no large weights: it takes them from the safetensors files of
its checkpoint. The description beside it says

- `key`: what the graph was made of (`graph_key`), so that it is never used with another checkpoint;
- `sha256`: of the graph, so that a damaged one is not used;
- `formats`: of its outputs, as `AUFormat.to_dict` gives them;
- `weights`: name of a weight in the graph -> [safetensors file, name in it].

Mirror images are made here; calibration, decisions and texts by readings_au_llava.py, as for PyTorch. The commands find
this file in the package, handler.py beside itself.
"""

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from .action_units import MAIN_FORMATS, AUFormat, get_format, mirrored_label, prompt
from .pictures_au_llava import load_face_image
from .readings_au_llava import AUResult, check_choice, chosen_formats, ranked, slot_answers

GRAPH, DESCRIPTION = "slots.onnx", "slots.json"
AT_ONCE = 8  # images, with their mirror images; of more, the caches of a core hold too little
VERSION = 2  # of graph and description; raise it when graphs of older code must not be used any longer
# Files that a graph depends on, besides weights and config.json.
SETTINGS = ("processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
# Keys of config.json that a graph does not depend on.
UNRELATED = ("calibration", "mirror_images", "transformers_version")
STATISTICS = ("running_mean", "running_var")  # ends of the names of what is measured, not learned
CUDA = ("libcuda.so.1", "nvcuda.dll")  # NVIDIA's driver on Linux and on Windows
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # of weights; NumPy has no bfloat16


class OnnxEngine:
    """Reads face crops with the graph in a folder.

    Args:
        checkpoint: folder of the checkpoint.
        folder: of the graph, see `graph_fits`.

    Attributes:
        name: of the engine.
        device, dtype: where it computes, and in which numbers.
        size: side of a face crop in pixels.
        mirror_images: whether the mirror image is read too; may be changed.
        parameters: how many numbers the checkpoint has learned.
        calibration: as in the checkpoint's configuration; may be replaced.
        base_sha256: of the base of adapters, see `check_base`; empty.

    Raises:
        ValueError: the pixels of this checkpoint are prepared in another way than usual.
    """

    name, device, dtype = "onnx", "cpu", "float32"
    base_sha256: ClassVar[dict[str, str]] = {}

    def __init__(self, checkpoint: Path, folder: Path):
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.calibration, self.mirror_images = config.get("calibration"), config["mirror_images"]
        self._images = image_settings(checkpoint)
        self.size = self._images["crop_size"]["height"]
        self._checkpoint = checkpoint
        description = _description(folder)
        self._key = description["key"]
        self.formats = tuple(get_format(fmt) for fmt in description["formats"])
        self._session = _session(folder / GRAPH, _weights(checkpoint, description["weights"]))

    def recognize(
        self, images: Sequence, formats: Sequence[AUFormat], decoding: str = "slots", batch_size: int = 16
    ) -> list[AUResult]:
        """As `recognize` of the model (decoding_au_llava.py), for formats of the graph and the slots decoder.

        Args:
            images: face crops, as `load_face_image` takes them.
            batch_size: of images; more than `AT_ONCE` are read in turns.
        """
        formats = tuple(formats)
        return [
            AUResult({fmt.name: answer for fmt, answer in zip(formats, answers, strict=True)})
            for answers in self._answers(images, formats, batch_size)
        ]

    def rank(
        self,
        images: Sequence,
        formats: str | AUFormat | Sequence[str | AUFormat] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        mirror_images: bool | None = None,
        batch_size: int = 16,
    ) -> list[list[dict]]:
        """As the pipeline answers a list of images (pipeline_au_llava.py), for formats of the graph."""
        check_choice(top_k, threshold, mirror_images)
        answers = self._answers(images, _asked(formats), batch_size, threshold, mirror_images)
        return [ranked(of_image, top_k) for of_image in answers]

    def holds(self, formats: str | AUFormat | Sequence[str | AUFormat] | None = None) -> bool:
        """Whether `rank` can give these formats. Raises ValueError as `chosen_formats`."""
        return all(fmt in self.formats for fmt in _asked(formats))

    def _answers(
        self, images: Sequence, formats: tuple[AUFormat, ...], batch_size: int, threshold=None, mirror_images=None
    ) -> Iterator:
        """For each image its answers, as `slot_answers` gives them."""
        mirror_images = self.mirror_images if mirror_images is None else mirror_images
        size = min(batch_size, AT_ONCE)
        for start in range(0, len(images), size):
            batch = np.stack([self._pixels(load_face_image(image)) for image in images[start : start + size]])
            views = np.concatenate([batch, batch[..., ::-1]]) if mirror_images else batch
            read = self._session.run([fmt.name for fmt in formats], {self._session.get_inputs()[0].name: views})
            shares = {fmt.name: _softmax(logs.astype(np.float64)) for fmt, logs in zip(formats, read, strict=True)}
            if mirror_images:
                shares = {fmt.name: mirror_mean(shares[fmt.name], fmt.labels) for fmt in formats}
            yield from slot_answers(shares, formats, self.calibration, threshold)

    @property
    def parameters(self) -> int:
        return _parameters(self._checkpoint)

    def fingerprint(self) -> str:
        """A hash of weights and architecture: tells checkpoints apart."""
        return self._key

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """(3, height, width) float32: what the image processor makes of an RGB picture."""
        settings = self._images
        shortest, crop = settings["size"]["shortest_edge"], settings["crop_size"]
        size = tuple(shortest * side // min(image.size) for side in image.size)
        image = image if size == image.size else image.resize(size, settings["resample"])
        left, top = (size[0] - crop["width"]) // 2, (size[1] - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))  # black beyond the picture
        pixels = (np.asarray(image, dtype=np.float64) * settings["rescale_factor"]).astype(np.float32)
        mean, std = (np.array(settings[key], dtype=np.float32) for key in ("image_mean", "image_std"))
        return ((pixels - mean) / std).transpose(2, 0, 1)


def _asked(formats: str | AUFormat | Sequence[str | AUFormat] | None) -> tuple[AUFormat, ...]:
    """The `chosen_formats`, by default those of the pipeline."""
    return chosen_formats(MAIN_FORMATS if formats is None else formats)


def _softmax(logs: np.ndarray) -> np.ndarray:
    """Probabilities from log-probabilities in float32, whose sum is off by 1e-7: too much for calibration."""
    shares = np.exp(logs)
    return shares / shares.sum(axis=-1, keepdims=True)


def mirror_mean(shares: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """As `SlotTree.mirror_mean` (slot_tree_au_llava.py), for probabilities.

    Args:
        shares: (2 * images, AUs, values): of the images, then of their mirror images.
        labels: of the AUs. A sided AU whose other side is missing keeps the distribution of the image itself.

    Returns:
        (images, AUs, values).
    """
    straight, mirrored = np.split(shares, 2)
    mean = straight.copy()
    for column, source in enumerate(map(mirrored_label, labels)):
        if source in labels:
            mean[:, column] = (straight[:, column] + mirrored[:, labels.index(source)]) / 2
    return mean


def image_settings(checkpoint: Path) -> dict:
    """How the checkpoint prepares pixels: the image processor's part of processor_config.json.

    Raises:
        ValueError: it is not resize, crop, rescale and normalize.
    """
    settings = json.loads((checkpoint / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    if not all(settings[step] for step in steps) or set(settings["size"]) != {"shortest_edge"}:
        raise ValueError(f"{checkpoint} prepares pixels in a way that needs --engine torch.")
    return settings


# ---- Graphs ---------------------------------------------------------------------------------------------------
def graph_key(checkpoint: Path, formats: Sequence[AUFormat]) -> str:
    """The content hash of everything that a graph of these formats depends on, calibration left out.

    Raises:
        OSError: the folder lacks config.json.
    """
    made_of = {
        "version": VERSION,
        "weights": {path.name: sha256_of(path) for path in sorted(checkpoint.glob("*.safetensors"))},
        "config": related_config(checkpoint),
        "files": {name: sha256_of(checkpoint / name) for name in SETTINGS if (checkpoint / name).is_file()},
        "formats": [[fmt.to_dict(), fmt.value_strings, prompt(fmt)] for fmt in formats],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def related_config(checkpoint: Path) -> dict:
    """config.json without `UNRELATED`. Raises OSError if the folder lacks it."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in UNRELATED}


def graph_cache(key: str) -> Path:
    """The folder, in the cache of Hugging Face's libraries, of the graph with this key."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "au_llava" / key


def sha256_of(path: Path) -> str:
    """The content hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _description(folder: Path) -> dict:
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))


def graph_fits(checkpoint: Path, folder: Path, formats: Sequence[AUFormat]) -> bool:
    """Whether `folder` holds a whole graph that was made of this checkpoint and has these formats."""
    try:
        description = _description(folder)
        held = [get_format(fmt) for fmt in description["formats"]]
        return (
            all(fmt in held for fmt in formats)
            and description["key"] == graph_key(checkpoint, held)
            and description["sha256"] == sha256_of(folder / GRAPH)
        )
    except (OSError, ValueError, KeyError, TypeError):  # missing, damaged, or of another version
        return False


def find_graph(checkpoint: Path, formats: Sequence[AUFormat]) -> Path | None:
    """The folder of a graph for these formats: the checkpoint itself, or the cache."""
    try:
        folders = (checkpoint, graph_cache(graph_key(checkpoint, formats)))
    except OSError:
        return None
    return next((folder for folder in folders if graph_fits(checkpoint, folder, formats)), None)


def engine_beside(checkpoint: Path) -> OnnxEngine | None:
    """The engine with the graph in the folder of a checkpoint, for its formats.

    None where it is not the better one: ONNX Runtime is not installed, a GPU is there for PyTorch, or no graph fits.
    """
    if find_spec("onnxruntime") is None or has_gpu() or not graph_fits(checkpoint, checkpoint, ()):
        return None
    return OnnxEngine(checkpoint, checkpoint)


def has_gpu() -> bool:
    """Whether NVIDIA's driver shows a GPU to this process; asked without importing PyTorch."""
    for name in CUDA:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


# ---- ONNX Runtime ---------------------------------------------------------------------------------------------
def _session(path: Path, weights: Mapping[str, np.ndarray]):
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as __init__.py, which handler.py does not load
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    """As PyTorch counts them: OMP_NUM_THREADS, or the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else usable_cores()


def _weights(checkpoint: Path, named: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Name in the graph -> float32 array, read off the checkpoint's safetensors files."""
    files = {file: stored_tensors(checkpoint / file) for file in {file for file, _ in named.values()}}
    return {name: as_float32(*files[file][tensor]) for name, (file, tensor) in named.items()}


def _parameters(checkpoint: Path) -> int:
    """How many numbers the safetensors files hold, without the statistics of batch normalization."""
    tensors = {name: each for file in checkpoint.glob("*.safetensors") for name, each in stored_tensors(file).items()}
    return sum(array.size for name, (array, _) in tensors.items() if not name.endswith(STATISTICS))


def stored_tensors(path: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Name -> (array on disk, its type in the file) of the floating-point tensors in a safetensors file.

    safetensors' own reader for NumPy knows no bfloat16; the format is described at
    https://github.com/huggingface/safetensors#format.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    content = np.memmap(path, np.uint8, "r", offset=8 + length)
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] in TYPES:
            start, end = about["data_offsets"]
            tensors[name] = content[start:end].view(TYPES[about["dtype"]]).reshape(about["shape"]), about["dtype"]
    return tensors


def as_float32(stored: np.ndarray, kind: str) -> np.ndarray:
    """The tensor in float32; a bfloat16 is the upper half of one."""
    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored, dtype=np.float32)
