"""From whatever a user has (a path, a PIL image, an array, a tensor) to normalised pixels of one face.

Owns how pictures are opened and made 8-bit sRGB, everywhere in this project, and the image processor. The processor
works on Pillow everywhere, so that a checkpoint gives the same numbers with and without torchvision installed.
"""

import io
import os
import urllib.request
import warnings

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend

try:  # photographs of iPhones, for those who have the plugin
    from pillow_heif import register_heif_opener

    register_heif_opener()
except ImportError:
    pass

GROUND = "white"  # what transparent pictures and videos are laid over
TOPS = (1.0, 255.0, 65535.0)  # white in pictures of more than 8 bits: of floats, of either, of 16 bits
OVERSHOOT = 0.05  # share of white by which floats may leave their range, as sharpening and resizing make them
MIN_SIDE = 16  # pixels; below this no action unit can be seen
MAX_DOWNLOAD = 50 * 2**20  # bytes that a URL may send


def load_face_image(image, allow_urls: bool = False) -> Image.Image:
    """Open `image` and return it upright, as 8-bit sRGB.

    Whatever way the file stores it: any of EXIF's eight orientations, transparency (laid over white), a palette, CMYK,
    an embedded colour profile (converted to sRGB), grey of 16 or 32 bits. Of a file that holds several pictures the
    first is read, with a warning.

    Args:
        image: a path; a PIL image of any mode; a NumPy array or tensor of (height, width), (height, width, 1, 3 or 4),
            or (3, height, width), holding integers 0 to 255 (uint16: 0 to 65535) or floats 0 to 1; or, with
            `allow_urls`, an http(s) URL.
        allow_urls: whether a URL may be fetched. Off by default: nothing is loaded from the network unasked.

    Raises:
        ValueError: not an image, a URL that was not allowed, a shape or range other than the above, or a side shorter
            than 16 pixels.
        FileNotFoundError: no such file.
    """
    name = getattr(image, "filename", "") or "The image"  # a PIL image knows the file it was opened from
    if isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        image = open_image(_file(name, allow_urls), name)
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        image = _from_array(image)
    elif not isinstance(image, Image.Image):
        raise ValueError(
            f"An image must be a path, a PIL image, a NumPy array or a tensor; a {type(image).__name__} arrived."
        )
    if min(image.size) < MIN_SIDE:
        raise ValueError(
            f"{name} is {image.size[0]} x {image.size[1]} pixels; a face needs at least {MIN_SIDE} x {MIN_SIDE}."
        )
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a lazily opened file that is damaged, a broken EXIF block, an exotic mode
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def _file(name: str, allow_urls: bool) -> str | io.BytesIO:
    """What a path or URL leads to, for Pillow to open."""
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
    if not is_url:
        return name
    try:
        with urllib.request.urlopen(name, timeout=30) as response:
            content = response.read(MAX_DOWNLOAD + 1)
        if len(content) > MAX_DOWNLOAD:
            raise ValueError(f"more than {MAX_DOWNLOAD // 2**20} MiB; download it and make it smaller")
    except Exception as error:  # of the network, in many ways
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    return io.BytesIO(content)


def open_image(file: str | io.BytesIO, name: str) -> Image.Image:
    """The first picture in a file or the bytes of one, as it is stored; `load_face_image` sets it upright.

    Args:
        name: what errors call it.

    Raises:
        ValueError: no whole picture.
    """
    try:
        image = Image.open(file)
        if image.format == "EPS":
            raise ValueError("EPS is a program, which Pillow would run; convert it to PNG")
        pictures = pictures_in(image)
        image.load()
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        unknown = isinstance(error, UnidentifiedImageError) and file is not name  # tells where in memory it lies
        problem = "it is of no kind that Pillow knows" if unknown else error
        raise ValueError(f"{name} cannot be read as an image: {problem}") from error
    image.filename = name
    if pictures > 1:
        warnings.warn(f"{name} holds {pictures} pictures; only the first is read.", stacklevel=3)
    return image


def pictures_in(image: Image.Image) -> int:
    """How many pictures an opened file holds: frames of an animation, pages, views. Layers (PSD) are one picture."""
    return 1 if image.format == "PSD" else getattr(image, "n_frames", 1)


def _from_array(array) -> Image.Image:
    if isinstance(array, torch.Tensor):
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
    top = {"f": 1, "u": 65535 if array.dtype == np.uint16 else 255, "i": 255}.get(array.dtype.kind)
    if top is None:
        raise ValueError(f"An image array must hold integers or floats; {array.dtype} arrived.")
    if not (array.min() >= 0 and array.max() <= top):  # also catches NaN
        raise ValueError(
            f"An image array of {array.dtype} must hold values from 0 to {top}; {array.min()} to {array.max()} arrived."
        )
    return Image.fromarray(np.round(array * (255.0 / top)).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey
        image = _eight_bits(image)
    alpha = None
    if image.mode == "LA":
        image, alpha = image.split()
    elif image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = (_to_srgb(image, profile) if profile else image).convert("RGB")
    if alpha is None:
        return image
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, GROUND), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey integers or floats as mode L; LA where a value stands for transparency, as in 16-bit PNG."""
    grey = np.asarray(image, dtype=np.float64)
    lowest, highest = grey.min(), grey.max()
    tops = TOPS[2:] if "16" in image.mode else TOPS[1:] if image.mode == "I" else TOPS
    top = next((top for top in tops if highest <= (1 + OVERSHOOT) * top), None)
    if top is None or lowest < -OVERSHOOT * top:
        raise ValueError(f"its grey values go from {lowest:g} to {highest:g}; expected 0 to 1, to 255 or to 65535")
    eight = Image.fromarray(np.round(grey.clip(0, top) / top * 255).astype(np.uint8))
    if "transparency" in image.info:
        eight.putalpha(Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8)))
    return eight


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours as the ICC profile means them; unchanged where it is damaged or made for pixels of another kind."""
    kind = "GRAY" if image.mode in ("1", "L") else "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != kind and (kind, space) != ("GRAY", "RGB"):  # grey is often saved with the profile of colours
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


class AuLlavaImageProcessor(PilBackend):
    """Resize the shorter side, cut the centre square, scale and normalise.

    Args:
        size: `{"shortest_edge": pixels}`. crop_size: `{"height": pixels, "width": pixels}`.
        image_mean, image_std: per channel, for pixels scaled to 0..1.
        allow_urls: see `load_face_image`; not saved with the checkpoint.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - Transformers' own declaration style
    resample = Image.Resampling.BICUBIC
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    size = {"shortest_edge": 224}  # noqa: RUF012
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    allow_urls = False

    def fetch_images(self, images):
        """Open and convert every image of a (nested) list; Transformers calls this before anything else."""
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        return load_face_image(images, allow_urls=self.allow_urls)

    def preprocess(self, images, *args, **kwargs):
        if isinstance(images, (list, tuple)) and not images:
            raise ValueError("There is no image: an empty list arrived.")
        return super().preprocess(images, *args, **kwargs)

    def to_dict(self) -> dict:
        return {key: value for key, value in super().to_dict().items() if key != "allow_urls"}

    @classmethod
    def like(cls, source: str, **kwargs) -> "AuLlavaImageProcessor":
        """The image processor that feeds the vision encoder of `source` (Hub id or folder): its size, mean and std.

        Its settings are read from its file, not from its class, which may need torchvision (DINOv3's does).
        """
        settings, _ = cls.get_image_processor_dict(source, **kwargs)
        size = settings["size"]
        if settings.get("do_center_crop") and settings.get("crop_size"):
            size = settings["crop_size"]
        side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
        return cls(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=settings["image_mean"],
            image_std=settings["image_std"],
            resample=settings.get("resample", cls.resample),
        )


AuLlavaImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["AuLlavaImageProcessor", "load_face_image", "open_image", "pictures_in"]
