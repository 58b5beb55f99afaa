"""A picture that is decoded no larger than it must be."""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from au_llava.au_faces.crop import EYE_DISTANCE, Point, crop_face
from au_llava.pictures_au_llava import load_reduced_image

LEAST_SIDE = 640  # pixels that the longer side of an opened picture keeps: enough for the usual search for faces


class Photo:
    """A picture that is opened when it is needed, and no larger than it is needed. Places are in pixels of the whole.

    Args:
        source: an upright RGB picture, a path, or the content of a file.
        name: what errors call the picture, if it is the content of a file.
    """

    def __init__(self, source: Image.Image | str | os.PathLike | bytes, name: str = ""):
        self._source, self._name = source, name
        self._opened = (source, 1) if isinstance(source, Image.Image) else None

    def at_least(self, side: float = LEAST_SIDE) -> tuple[Image.Image, int]:
        """The picture, its longer side at least `side` pixels if it has as many, and how many times it was shrunk.

        Args:
            side: `LEAST_SIDE` or more; less counts as that.

        Raises:
            ValueError: it cannot be read.
            FileNotFoundError: no such file.
        """
        if self._opened is None or (self._opened[1] > 1 and max(self._opened[0].size) < side):
            file = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
            self._opened = load_reduced_image(file, max(side, LEAST_SIDE), self._name)
        return self._opened

    def whole(self) -> Image.Image:
        """The picture as it is. Raises as `at_least`."""
        return self.at_least(np.inf)[0]

    def showing(self, eyes: Sequence[Point], size: int) -> tuple[Image.Image, int]:
        """As `at_least`, with as many pixels of the face with these eyes as a crop of `size` has, if there are."""
        image, factor = self.at_least()
        shrunk = np.hypot(*np.subtract(*eyes)) / (EYE_DISTANCE * size)  # pixels of the whole per pixel of the crop
        return self.at_least(factor * max(image.size) / max(1.0, shrunk))

    def crop(self, eyes: Sequence[Point], size: int, margin: float = 0.0) -> Image.Image:
        """The face with these eyes, as `crop_face` cuts it. Raises as that."""
        image, factor = self.showing(eyes, size)
        return crop_face(image, np.asarray(eyes) / factor, size, margin)
