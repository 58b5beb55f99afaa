"""Encodes pictures as JPEG."""

import io

import numpy as np
from PIL import Image

RECORD_JPEG_QUALITY = 95  # of pictures that records hold


def jpeg_bytes(image: Image.Image | np.ndarray, quality: int = RECORD_JPEG_QUALITY) -> bytes:
    """A picture, or (height, width, 3) uint8 RGB, as JPEG."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
