"""The two engines that read face crops, PyTorch and ONNX Runtime, and which of them a run takes.

ONNX Runtime starts and reads faster on a processor and needs neither PyTorch nor Transformers. It is taken where it is
installed, a graph for the checkpoint and the formats is there (onnx_au_llava.py), and nothing asks for PyTorch.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from au_llava.action_units import AUFormat
from au_llava.onnx_au_llava import UNRELATED, OnnxEngine, find_graph, graph_cache, graph_fits, graph_key, has_gpu
from au_llava.readings_au_llava import AUResult

ENGINES = ("torch", "onnx")
MISSING = "--engine onnx needs {}: pip install 'au-llava[{}]', or leave out --engine."


class TorchEngine:
    """Reads face crops with a loaded model and its processor; attributes as of `OnnxEngine`."""

    name = "torch"

    def __init__(self, model, processor, base_sha256: Mapping[str, str] | None = None):
        self.model, self.processor, self.base_sha256 = model, processor, dict(base_sha256 or {})
        self.size = processor.image_processor.crop_size["height"]
        self.device, self.dtype = str(model.device), str(model.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        return self.model.num_parameters()

    @property
    def calibration(self) -> Mapping | None:
        return self.model.config.calibration

    @calibration.setter
    def calibration(self, calibration: Mapping | None) -> None:
        self.model.config.calibration = calibration

    @property
    def mirror_images(self) -> bool:
        return self.model.config.mirror_images

    @mirror_images.setter
    def mirror_images(self, mirror_images: bool) -> None:
        self.model.config.mirror_images = mirror_images

    def recognize(
        self, images: Sequence, formats: Sequence[AUFormat], decoding: str = "slots", batch_size: int = 16
    ) -> list[AUResult]:
        """As `recognize` of the model, see decoding_au_llava.py."""
        return self.model.recognize(self.processor, images, formats=formats, decoding=decoding, batch_size=batch_size)

    def fingerprint(self) -> str:
        """A hash of the settings, and of the shapes and first 256 numbers of all weights: tells checkpoints apart.

        Statistics of batch normalization count as weights. Calibration and `mirror_images` are left out.
        """
        from accelerate.utils import align_module_device

        content, stored = hashlib.sha256(self._settings().encode()), self.model.state_dict().keys()
        buffers = ((name, buffer) for name, buffer in self.model.named_buffers() if name in stored)
        for name, tensor in chain(self.model.named_parameters(), buffers):
            if name in self.model.all_tied_weights_keys:  # PyTorch yields it only if offloading has split the two
                continue
            content.update(f"{name}{tuple(tensor.shape)}".encode())
            owner, _, own = name.rpartition(".")
            module = self.model.get_submodule(owner)
            with align_module_device(module) if tensor.is_meta else nullcontext():  # brings back offloaded weights
                # A copy: numpy would pin the storage, which FSDP frees after use.
                start = getattr(module, own).detach().flatten()[:256].clone()
            content.update(start.float().cpu().numpy().tobytes())
        return content.hexdigest()

    def _settings(self) -> str:
        """What numbers depend on besides weights, as JSON: of the network, its adapters and the processor."""
        model, processor = self.model, self.processor
        config, adapters = model.config.to_dict(), getattr(model, "peft_config", {})
        settings = {
            "config": {key: value for key, value in config.items() if key not in (*UNRELATED, "_name_or_path")},
            "generation": model.generation_config.to_dict(),
            "adapters": {name: adapter.to_dict() for name, adapter in adapters.items()},
            "processor": processor.to_dict(),
            "chat_template": processor.chat_template,
            "vocabulary": processor.tokenizer.get_vocab(),
        }
        plain = lambda value: sorted(value) if isinstance(value, set) else str(value)
        return json.dumps(settings, sort_keys=True, default=plain)


@dataclass(frozen=True)
class Wish:
    """What a run asks of its engine.

    Attributes:
        model: checkpoint folder or Hub id.
        engine: one of `ENGINES`, or None for the better one.
        explains: whether gradients are needed, as for evidence maps.
        mirror_images: whether mirror images are read too (slower, more accurate); None: as the checkpoint says.
    """

    model: str
    formats: tuple[AUFormat, ...]
    engine: str | None = None
    decoding: str = "slots"
    quantize: str | None = None
    explains: bool = False
    mirror_images: bool | None = None


def open_engine(wish: Wish) -> TorchEngine | OnnxEngine:
    """The engine for a run. With `engine="onnx"` a missing graph is made, once, and kept in the cache.

    Raises:
        ValueError: ONNX Runtime was asked for and cannot do it, or the checkpoint cannot be loaded.
        OSError: there is no such checkpoint.
    """
    check_name(wish.model)
    engine = _engine(wish)
    if wish.mirror_images is not None:
        engine.mirror_images = wish.mirror_images
    return engine


def _engine(wish: Wish) -> TorchEngine | OnnxEngine:
    obstacle = _obstacle(wish)
    if wish.engine == "onnx" and obstacle is not None:
        raise ValueError(obstacle)
    if wish.engine != "torch" and obstacle is None and (wish.engine == "onnx" or not has_gpu()):
        checkpoint = checkpoint_folder(wish.model)
        graph = find_graph(checkpoint, wish.formats)
        if graph is None and wish.engine == "onnx":
            graph = _made_graph(checkpoint, wish.formats)
        if graph is not None:
            return OnnxEngine(checkpoint, graph)
        _say_what_is_missing(checkpoint, wish.formats)
    from au_llava.au_runs.checkpoints import check_base, load_checkpoint

    base = check_base(wish.model)
    model, processor = load_checkpoint(wish.model, quantize=wish.quantize, checked=True)
    return TorchEngine(model, processor, base)


def _obstacle(wish: Wish) -> str | None:
    """Why ONNX Runtime cannot do it, in a sentence; None if it can."""
    if wish.decoding != "slots":
        return f"--engine onnx reads slots only: leave out --decoding {wish.decoding}, or take --engine torch."
    if wish.quantize is not None:
        return f"--engine onnx reads with whole weights: leave out --quantize {wish.quantize}, or take --engine torch."
    if wish.explains:
        return "--engine onnx has no gradients, which --explain needs: take --engine torch."
    if find_spec("onnxruntime") is None:
        return MISSING.format("ONNX Runtime", "recognize")
    if (Path(wish.model) / "adapter_config.json").is_file():
        return f"{wish.model} holds adapters, which --engine onnx cannot read: merge them with tools/merge_adapter.py."
    return None


def check_name(name: str) -> None:
    """Raise ValueError if a model's name is neither a folder nor may be a Hub id."""
    if Path(name).is_dir():
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"There is no folder {name}: name the folder of a checkpoint, or a Hub id.") from None


def check_there(name: str, revision: str | None = None) -> None:
    """Raise an error that names the model if there is no such folder, and the Hub does not have it or is out of reach.

    Raises:
        ValueError: as `check_name`. OSError: otherwise.
    """
    check_name(name)
    if not Path(name).is_dir():
        _fetched(name, ["*config.json"], revision)


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint; one on the Hub is fetched, without its code. Raises OSError if there is none."""
    return Path(name) if Path(name).is_dir() else _fetched(name, ["*.json", "*.jinja", "*.safetensors", "*.onnx"])


def _fetched(name: str, patterns: list[str], revision: str | None = None) -> Path:
    """The folder of the files of a Hub id that match `patterns`. Raises OSError if there are none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"There is no folder {name}, and the Hub, where {name} may be, is out of reach: name another folder, or "
            "connect."
        ) from error
    except GatedRepoError:  # it says what to do
        raise
    except RepositoryNotFoundError as error:
        raise OSError(
            f"There is no folder {name}, and the Hub has no {name} that you may read: check the name, or log in."
        ) from error


def _made_graph(checkpoint: Path, formats: Sequence[AUFormat]) -> Path:
    for module in ("torch", "transformers", "onnx", "onnxscript"):
        if find_spec(module) is None:
            raise ValueError(f"{checkpoint} has no ONNX file for these formats. " + MISSING.format(module, "export"))
    from au_llava.au_publishing.slots_file import write_graph

    print("writing the checkpoint's ONNX file, once", file=sys.stderr)
    folder = graph_cache(graph_key(checkpoint, formats))
    write_graph(checkpoint, formats, folder)
    return folder


def _say_what_is_missing(checkpoint: Path, formats: Sequence[AUFormat]) -> None:
    """Say on standard error why PyTorch is taken, if the graph beside the checkpoint fits, but lacks formats."""
    if graph_fits(checkpoint, checkpoint, ()):
        lacking = [fmt.name for fmt in formats if not graph_fits(checkpoint, checkpoint, [fmt])]
        print(
            f"{checkpoint}: its ONNX file lacks {', '.join(lacking)}, so PyTorch reads (--engine onnx would make one).",
            file=sys.stderr,
        )
