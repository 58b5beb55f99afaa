"""Opening pictures: from a path, base64, a PIL image, an array or a tensor to upright 8-bit sRGB.

Needs Pillow and NumPy only; tensors are recognized without importing PyTorch. image_processing_au_llava.py goes on from
here to the pixels that the network takes.
"""

import base64
import io
import math
import os
import sys
import urllib.request
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

try:  # HEIC, if the plugin is installed
    from pillow_heif import register_heif_opener

    register_heif_opener()
except ImportError:
    pass

GROUND = "white"  # the background of transparent pictures and videos
TOPS = (1.0, 255.0, 65535.0)  # white in pictures of more than 8 bits: in floats, in floats or integers, in 16 bits
OVERSHOOT = 0.05  # share of white by which floats may exceed their range, as after sharpening and resizing
MIN_SIDE = 16  # pixels; no action unit is visible below
MAX_RATIO = 100  # of the sides; the shorter one is scaled to the network's, and the longer one would fill the memory
HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1")  # kinds of photographs of iPhones, in bytes 8 to 12 of the file
REDUCTIONS = (8, 4, 2)  # by which JPEG's blocks of 8 x 8 can be decoded smaller
SHRINKING = ("JPEG", "MPO")  # the drafts of others, such as HEIC's thumbnails, may have any size
MAX_DOWNLOAD = 50 * 2**20  # bytes from a URL


def load_face_image(image, allow_urls: bool = False) -> Image.Image:
    """Open `image` and return it upright, as 8-bit sRGB.

    Handles EXIF's eight orientations, transparency (over white), palettes, CMYK, embedded color profiles (converted to
    sRGB) and 16 or 32 bits of gray. If a file holds several pictures, the first is read, with a warning.

    Args:
        image: a path; the content of a file in base64 or as a data URL, as chat messages hold it; a PIL image of any
            mode; a NumPy array or tensor of (height, width), (height, width, 1, 3 or 4) or (3, height, width), with
            integers 0 to 255 (uint16: 0 to 65535) or floats 0 to 1; or, with `allow_urls`, an http(s) URL.
        allow_urls: whether URLs are fetched (default: no, nothing is loaded from the network unasked).

    Raises:
        ValueError: not an image, a URL without `allow_urls`, another shape or range, a side shorter than 16 pixels,
            or one more than 100 times as long as the other.
        FileNotFoundError: no such file.
    """
    name = getattr(image, "filename", "") or "The image"  # PIL images remember their file
    if isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        content = _written_out(name)
        name = name if content is None else "The image"
        image, _ = _open(_file(name, allow_urls) if content is None else content, name)
        return _upright(image, name, image.size, in_place=True)
    if isinstance(image, np.ndarray) or _is_tensor(image):
        image = _from_array(image)
    elif not isinstance(image, Image.Image):
        raise ValueError(
            f"An image must be a path, a PIL image, a NumPy array or a tensor; a {type(image).__name__} arrived."
        )
    return _upright(image, name, image.size)


def load_reduced_image(file: str | os.PathLike | io.BytesIO, side: float, name: str = "") -> tuple[Image.Image, int]:
    """As `load_face_image`, but of a JPEG file perhaps a half, a quarter or an eighth, which is decoded faster.

    Args:
        side: pixels that the longer side must keep.
        name: what errors call the picture, if `file` is not a path.

    Returns:
        the picture, and how many times its sides are smaller than those of the file: 1, 2, 4 or 8.

    Raises:
        ValueError, FileNotFoundError: as `load_face_image`.
    """
    name = name or os.fsdecode(file)
    image, whole = _open(file if isinstance(file, io.BytesIO) else _file(name, allow_urls=False), name, side)
    return _upright(image, name, whole, in_place=True), round(max(whole) / max(image.size))


def _upright(image: Image.Image, name: str, whole: tuple[int, int], in_place: bool = False) -> Image.Image:
    """The opened picture, whose file holds `whole` pixels, as `load_face_image` returns it.

    Args:
        in_place: whether `image` may be changed and returned, which saves a copy.
    """
    if min(whole) < MIN_SIDE:
        raise ValueError(f"{name} is {whole[0]} x {whole[1]} pixels; a face needs at least {MIN_SIDE} x {MIN_SIDE}.")
    if max(whole) > MAX_RATIO * min(whole):
        raise ValueError(
            f"{name} is {whole[0]} x {whole[1]} pixels; one side may be at most {MAX_RATIO} times the other: cut it."
        )
    try:
        if in_place:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except Exception as error:  # a damaged file that was opened lazily, a broken EXIF block, an exotic mode
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def from_base64(text: str) -> bytes:
    """The content of a file given in base64, in lines or not, or as a data URL; raises ValueError if it is neither."""
    if text[:5].lower() == "data:":
        kind, _, text = text.partition(",")
        if not kind.lower().endswith(";base64"):
            raise ValueError(f"a data URL without base64: {kind[:40]!r}")
    return base64.b64decode("".join(text.split()), validate=True)


def _written_out(text: str) -> io.BytesIO | None:
    """The content of a picture file that is given in base64 or as a data URL; None for a path or another URL."""
    is_data = text[:5].lower() == "data:"
    if not is_data and os.path.isfile(text):
        return None
    try:
        content = io.BytesIO(from_base64(text))
    except ValueError as error:
        if is_data:
            raise ValueError(f"The image is a data URL without base64: {text[:40]!r} arrived.") from error
        return None
    if not is_data:
        try:  # a missing file's path may look like base64
            Image.open(content)
        except UnidentifiedImageError:
            return None
        except Exception:  # a damaged picture or a huge one: `_open` says what is wrong
            pass
    return content


def _file(name: str, allow_urls: bool) -> str | io.BytesIO:
    """The file at a path, or the bytes at a URL, for Pillow to open."""
    is_url = name.lower().startswith(("http://", "https://"))
    if is_url and not allow_urls:
        raise ValueError(
            f"{name} is a URL and URLs are not fetched unless asked for: download it, or set "
            "processor.image_processor.allow_urls = True."
        )
    if os.path.isdir(name):
        raise ValueError(f"{name} is a folder, not an image file.")
    if not is_url and not os.path.isfile(name):
        raise FileNotFoundError(f"There is no image file {name[:200]!r}.")
    return _download(name) if is_url else name


def _download(url: str) -> io.BytesIO:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read(MAX_DOWNLOAD + 1)
        if len(content) > MAX_DOWNLOAD:
            raise ValueError(f"more than {MAX_DOWNLOAD // 2**20} MiB; download it and make it smaller")
    except Exception as error:  # networks fail in many ways
        raise ValueError(f"{url} cannot be read as an image: {error}") from error
    return io.BytesIO(content)


def _open(file: str | io.BytesIO, name: str, side: float = math.inf) -> tuple[Image.Image, tuple[int, int]]:
    """The first picture in a file, as stored or reduced if its longer side keeps `side` pixels; the size of the whole.

    Args:
        name: what errors call the picture.

    Raises:
        ValueError: not a picture, or an incomplete one.
    """
    try:
        image = Image.open(file)
        if image.format == "EPS":
            raise ValueError("EPS is a program that Pillow would run; convert it to PNG")
        pictures = pictures_in(image)
        whole = image.size
        factor = next((factor for factor in REDUCTIONS if max(whole) >= factor * side), 1)
        if image.format in SHRINKING:
            image.draft(None, tuple(max(1, length // factor) for length in whole))
        image.load()
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        problem, unknown = error, isinstance(error, UnidentifiedImageError)
        if unknown and "HEIF" not in Image.OPEN and _is_heic(file):
            problem = "HEIC needs a plugin (pip install pillow-heif); or convert it to JPEG"
        elif unknown and file is not name:  # its message is a memory address
            problem = "its format is unknown to Pillow"
        raise ValueError(f"{name} cannot be read as an image: {problem}") from error
    image.filename = name
    if pictures > 1:
        warnings.warn(f"{name} holds {pictures} pictures; only the first is read.", stacklevel=3)
    return image, whole


def _is_heic(file: str | io.BytesIO) -> bool:
    """Whether a file is HEIC by its content, whatever its name."""
    with io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else open(file, "rb") as opened:
        start = opened.read(12)
    return start[4:8] == b"ftyp" and start[8:] in HEIC


def pictures_in(image: Image.Image) -> int:
    """Number of pictures in an opened file: frames of an animation, pages, views. Layers (PSD) are one picture."""
    return 1 if image.format == "PSD" else getattr(image, "n_frames", 1)


def _is_tensor(image) -> bool:
    """Whether an object is a tensor of PyTorch, which has been imported if there is one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _from_array(array) -> Image.Image:
    if _is_tensor(array):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # NumPy has no bfloat16
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(
            f"An image array of shape {tuple(array.shape)} arrived; expected (height, width), "
            "(height, width, channels) with 1, 3 or 4 channels, or (3, height, width)."
        )
    top = {"f": 1, "u": 65535 if array.dtype.itemsize == 2 else 255, "i": 255}.get(array.dtype.kind)
    if top is None:
        raise ValueError(f"An image array must hold integers or floats; {array.dtype} arrived.")
    if not (array.min() >= 0 and array.max() <= top):  # also catches NaN
        raise ValueError(
            f"An image array of {array.dtype} must hold values from 0 to {top}; {array.min()} to {array.max()} arrived."
        )
    return Image.fromarray(np.round(array * (255.0 / top)).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of gray
        image = _eight_bits(image)
    alpha = None
    if image.mode == "LA":
        image, alpha = image.split()
    elif image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = _to_srgb(image, profile) if profile else image
    image = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None:
        return image
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, GROUND), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray integers or floats as mode L, or as LA where a value stands for transparency, as in 16-bit PNG."""
    gray = np.asarray(image, dtype=np.float64)
    lowest, highest = gray.min(), gray.max()
    tops = TOPS[2:] if "16" in image.mode else TOPS[1:] if image.mode == "I" else TOPS
    top = next((top for top in tops if highest <= (1 + OVERSHOOT) * top), None)
    if top is None or lowest < -OVERSHOOT * top:
        raise ValueError(f"its gray values go from {lowest:g} to {highest:g}; expected 0 to 1, to 255 or to 65535")
    eight = Image.fromarray(np.round(gray.clip(0, top) / top * 255).astype(np.uint8))
    if "transparency" in image.info:
        eight.putalpha(Image.fromarray(np.where(gray == image.info["transparency"], 0, 255).astype(np.uint8)))
    return eight


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colors converted by the ICC profile; unchanged if the profile is damaged or for another kind of pixels."""
    kind = "GRAY" if image.mode in ("1", "L") else "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != kind and (kind, space) != ("GRAY", "RGB"):  # gray pictures often carry a color profile
            return image
        return ImageCms.profileToProfile(
            image.convert({"GRAY": "L"}.get(space, space)),
            source,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return image


__all__ = ["load_face_image", "load_reduced_image", "pictures_in"]
