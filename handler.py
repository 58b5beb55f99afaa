"""The request handler for Hugging Face Inference Endpoints: pictures in, the pipeline's readings out.

Owns what a request may hold; pipeline_au_llava.py owns the readings. The inference toolkit imports this file from the
folder of a checkpoint, by its path and not as part of a package. It calls `EndpointHandler(folder)` once and the
handler for every request, such as

    {"inputs": "<base64 of a picture file>", "parameters": {"formats": ["disfa"], "top_k": 5}}

A bad request raises a ValueError with one sentence. The toolkit (webservice_starlette.py of
huggingface/huggingface-inference-toolkit, 0f1a886) answers an exception with status 400 and {"error": "<sentence>"}; it
would send a returned {"error": ...} as a success, with status 200.

ONNX Runtime reads the formats of slots.onnx, with the same answers, where it is installed, no GPU is there, slots.onnx
fits the weights, and onnx_au_llava.py lies beside this file. PyTorch and Transformers are then imported only for other
formats.

The handler fetches nothing and reads no local files: a string is the picture itself, never a URL or path.
"""

import base64
import hashlib
import importlib.util
import sys
from functools import cached_property
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path

from PIL import Image

# The most that one request may hold: a photograph of 24 megapixels, or 32 face crops of 800 x 800.
MAX_IMAGES = 32
MAX_BYTES = 20 * 2**20  # of all files
MAX_PIXELS = 25_000_000  # of all pictures: a small file can hold a picture that fills the memory

# The picture types of the toolkit. Pillow opens more types, some of them (EPS) by running another program.
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

PARAMETERS = ("formats", "top_k", "threshold", "mirror_images")
BATCH_SIZE = 8  # images per forward pass


class EndpointHandler:
    """Answers requests with the checkpoint in a folder.

    Args:
        path: folder of the checkpoint (default: the folder of this file).

    Raises:
        OSError: the checkpoint cannot be loaded, or its code cannot be cached.
    """

    def __init__(self, path: str = ""):
        self.folder = Path(path or Path(__file__).parent)
        self.onnx = open_onnx(self.folder)
        if self.onnx is None:
            _ = self.pipeline  # now, not with the first request

    @cached_property
    def pipeline(self):
        """The pipeline with PyTorch."""
        from transformers import dynamic_module_utils, pipeline

        options = {"trust_remote_code": True, "batch_size": BATCH_SIZE}
        try:
            return pipeline("au-recognition", model=str(self.folder), **options)
        except OSError as error:
            place, cache = Path(error.filename or ""), Path(dynamic_module_utils.HF_MODULES_CACHE)
            if error.filename is None or not (place.is_relative_to(cache) or cache.is_relative_to(place)):
                raise
            raise OSError(
                f"{place} cannot be written ({error.strerror}), where Transformers keeps the code of checkpoints: set "
                "HF_HOME to a writable folder."
            ) from error

    def recognize(self, images: list[Image.Image], **parameters) -> list[list[dict]]:
        """The readings of each image, by the engine that has the formats."""
        if self.onnx is not None and self.onnx.holds(parameters.get("formats")):
            return self.onnx.rank(images, batch_size=BATCH_SIZE, **parameters)
        return self.pipeline(images, **parameters)

    def __call__(self, data: dict) -> list[dict] | list[list[dict]]:
        """Read the action units of the images in one request.

        Args:
            data: `inputs`: one image or a list of at most 32, each a base64 string, a data URL, the bytes of a picture
                file or a PIL image; optionally `parameters`: `formats` (a name or a list of names), `top_k`,
                `threshold` and `mirror_images` (false reads faster and less accurately), as in
                `AURecognitionPipeline.__call__`.

        Returns:
            the pipeline's result: a list of dicts for one image, a list of such lists for a list of images.

        Raises:
            ValueError: a malformed request, more than `MAX_IMAGES`, `MAX_BYTES` or `MAX_PIXELS`, or a file that is not
                a picture or is damaged.
        """
        if not isinstance(data, dict) or "inputs" not in data or not data.keys() <= {"inputs", "parameters"}:
            raise ValueError('A request must be {"inputs": ..., "parameters": {...}}; parameters may be left out.')
        inputs = data["inputs"]
        parameters = checked_parameters(data.get("parameters"))
        if not isinstance(inputs, (list, tuple)):
            return self.recognize(read_images({"inputs": inputs}), **parameters)[0]
        return self.recognize(read_images({f"inputs[{i}]": image for i, image in enumerate(inputs)}), **parameters)


def open_onnx(folder: Path):
    """The engine that reads with the graph of the checkpoint in `folder`, see `engine_beside`; None for PyTorch."""
    code = Path(__file__).parent
    if not (folder / "slots.onnx").is_file() or not (code / "onnx_au_llava.py").is_file():
        return None
    # The files import each other relatively, so this folder must be a package.
    name = "au_llava_" + hashlib.sha256(bytes(code)).hexdigest()[:16]
    if name not in sys.modules:
        package = ModuleSpec(name, None, is_package=True)
        package.submodule_search_locations = [str(code)]
        sys.modules[name] = importlib.util.module_from_spec(package)
    return importlib.import_module(f"{name}.onnx_au_llava").engine_beside(folder)


def checked_parameters(parameters: dict | None) -> dict:
    """The `parameters` of a request, checked; the pipeline itself checks those that are not formats.

    Formats must be names here: a format described by a stranger could have any size.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters is a {type(parameters).__name__}; it must be an object.")
    unknown = ", ".join(ascii(name) for name in parameters if name not in PARAMETERS)
    if unknown:
        raise ValueError(f"parameters holds {unknown[:80]}, which is unknown; known are {', '.join(PARAMETERS)}.")
    formats = parameters.get("formats")
    names = formats if isinstance(formats, list) else [formats]
    if formats is not None and not all(isinstance(name, str) for name in names):
        raise ValueError("formats must be the name of a format or a list of names.")
    return parameters


def read_images(contents: dict[str, object]) -> list[Image.Image]:
    """Decode the images of a request; requests that are too large are refused before anything is decoded.

    Args:
        contents: what messages call an image -> the image as it arrived.
    """
    if not 1 <= len(contents) <= MAX_IMAGES:
        raise ValueError(f"inputs holds {len(contents)} images; a request must hold 1 to {MAX_IMAGES}.")
    size = sum(bytes_of(name, content) for name, content in contents.items())
    if size > MAX_BYTES:
        raise ValueError(f"The images have {size:,} bytes; a request may have {MAX_BYTES:,}: make them smaller.")
    images = {
        name: content if isinstance(content, Image.Image) else open_picture(name, content)
        for name, content in contents.items()
    }
    pixels = sum(image.width * image.height for image in images.values())
    if pixels > MAX_PIXELS:
        raise ValueError(f"The images have {pixels:,} pixels; a request may have {MAX_PIXELS:,}: make them smaller.")
    for name, image in images.items():
        decode(name, image, single=not isinstance(contents[name], Image.Image))
    return list(images.values())


def bytes_of(name: str, content: object) -> int:
    """Bytes of a picture file, from its base64 or the file itself; 0 for a PIL image."""
    if isinstance(content, str):
        return len(content) * 3 // 4  # four characters of base64 are three bytes
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, Image.Image):
        return 0
    raise ValueError(f"{name} is a {type(content).__name__}; an image must be a base64 string, a data URL or bytes.")


def decode(name: str, image: Image.Image, single: bool) -> None:
    """Decode the pixels of an opened picture; with `single`, refuse files with several pictures."""
    try:
        pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: views of one scene
        image.load()
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if pictures > 1 and single:
        raise ValueError(f"{name} holds {pictures} pictures, an animation or pages: send each by itself.")
    image.filename = name  # what the pipeline's own messages call it


def open_picture(name: str, content: str | bytes) -> Image.Image:
    """Open a picture file, given as base64, as a data URL or as bytes, without decoding its pixels."""
    if isinstance(content, str):
        try:
            if content[:5].lower() == "data:":  # as in pictures_au_llava.py
                kind, _, content = content.partition(",")
                if not kind.lower().endswith(";base64"):
                    raise ValueError("a data URL without base64")
            content = base64.b64decode("".join(content.split()), validate=True)  # many tools insert line breaks
        except ValueError as error:
            raise ValueError(f"{name} is not base64: send the picture file itself, not its path or URL.") from error
    try:
        return Image.open(BytesIO(content), formats=PICTURES)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; a request may have {MAX_PIXELS:,}: make it smaller.") from error
    except Exception as error:
        raise ValueError(f"{name} is not a picture: send the content of a {', '.join(PICTURES)} file.") from error
