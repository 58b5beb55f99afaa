"""Reading an upload: checks it, detects its faces and lets the engine read them."""

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import gradio as gr
from PIL import Image

from au_llava.action_units import MAIN_FORMATS, AUFormat, get_format
from au_llava.au_faces.detect import YuNet
from au_llava.au_faces.media import Frame
from au_llava.au_faces.track import Track
from au_llava.au_recognition.runner import Plan, read_frame, reading_of
from au_llava.au_runs.engines import TorchEngine, Wish, open_engine
from au_llava.pictures_au_llava import load_reduced_image, pictures_in

FORMATS = tuple(map(get_format, MAIN_FORMATS))
MOST_PIXELS = 50_000_000  # of an upload; a phone's picture has 12 to 50 million pixels


class Reader:
    """An engine and a face detector, ready to read pictures.

    Args:
        name: checkpoint folder or Hub id.
    """

    def __init__(self, name: str | Path):
        self.wish = Wish(str(name), FORMATS)
        self.engine = open_engine(self.wish)
        detector = YuNet()
        self.plan = Plan(
            parts=(),
            finder=lambda: Track(detector),
            size=self.engine.size,
            formats=FORMATS,
            decoding="slots",
            batch_size=16,
        )

    def read(self, path: Path, name: str) -> tuple[Image.Image, list[dict]]:
        """The picture in the file `path`, and its faces as `Readings` gives them, each with its `crop`; largest first.

        Args:
            name: what messages call the file.

        Raises:
            ValueError: the file is not a picture, is too large, was deleted, or shows no face.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{name} was deleted, as every upload is after some minutes: choose it again.") from error
        image = self.picture(io.BytesIO(content), name)
        faces = self.faces(image, name)
        if not faces:
            raise ValueError(f"{name} shows no face whose two eyes can be seen.")
        return image, faces

    def picture(self, file: io.BytesIO, name: str) -> Image.Image:
        """The picture in the content of a file, upright, as 8-bit sRGB.

        Raises:
            ValueError: the file is not a picture, or is too large.
        """
        pixels = pictures = 0
        with suppress(Exception), Image.open(file) as opened:  # `load_reduced_image` says what is wrong with the file
            pixels, pictures = opened.width * opened.height, pictures_in(opened)
        if pictures > 1:
            gr.Warning(f"{name} holds {pictures} pictures; only the first is read.")
        if pixels > MOST_PIXELS:
            most = MOST_PIXELS // 1_000_000
            raise ValueError(f"{name} has {pixels / 1e6:.0f} million pixels, more than {most}: make it smaller.")
        return load_reduced_image(file, math.inf, name)[0]

    def faces(self, image: Image.Image, name: str) -> list[dict]:
        """The faces of an RGB picture as `read` gives them; maybe none.

        Raises:
            ValueError: the picture is too small.
        """
        frame = read_frame(self.engine, self.plan, Frame(Path(name), image=image))
        if frame["problem"]:
            raise ValueError(frame["problem"])
        place = {"file": name, "frame": frame["frame"], "time": frame["time"]}
        return [{**place, **face, "face_id": number} for number, face in enumerate(frame["faces"])]

    def read_crop(self, image: Image.Image) -> dict:
        """What the model reads off a face crop, as `reading_of` gives it."""
        return reading_of(self.engine.recognize([image], FORMATS)[0])

    @cached_property
    def explaining(self) -> TorchEngine:
        """The engine for explanations, which need gradients; loaded when the first one is asked for."""
        return self.engine if self.engine.name == "torch" else open_engine(replace(self.wish, explains=True))

    def explain(self, face: dict, fmt: AUFormat) -> Sequence:
        """`Explanation`s of the AUs that are present according to `fmt`, in one of the faces that `read` gives."""
        from au_llava.au_recognition.reasons import explain

        engine = self.explaining
        return explain(engine.model, engine.processor, face["crop"], face["answers"], [fmt])
