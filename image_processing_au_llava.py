"""From pictures to the normalized pixels of one face: the image processor.

It always uses Pillow, so that a checkpoint gives the same numbers with and without torchvision. pictures_au_llava.py
opens pictures.
"""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend

from .pictures_au_llava import load_face_image


class AuLlavaImageProcessor(PilBackend):
    """Resizes the shorter side, crops the center, scales to 0..1 and normalizes.

    Args:
        size: `{"shortest_edge": pixels}`.
        crop_size: `{"height": pixels, "width": pixels}`.
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
        """Open and convert every image of a (nested) list; Transformers calls this first."""
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
        """An image processor with the size, mean and std of the vision encoder `source` (Hub id or folder).

        The settings come from its file, not from its class, which may need torchvision (DINOv3's does).
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

__all__ = ["AuLlavaImageProcessor"]
