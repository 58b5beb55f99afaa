"""Finds the faces of a video: searches a whole frame now and then, and between follows the points of the faces."""

import numpy as np
from PIL import Image

from au_llava.au_faces.crop import Face
from au_llava.au_faces.detect import Found, YuNet
from au_llava.au_faces.media import Frame
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import followed, placed

EVERY = 8  # frames; one of them is searched whole, so a face that enters is found a quarter of a second later at most
LONGEST_GAP = 0.2  # seconds between frames; after a longer one, a face may be anywhere
CUT = 30  # mean difference of two frames' colors, 0 to 255, from which a frame is another picture
SAMPLES = (32, 32)  # pixels of a frame that are compared


class Track:
    """Finds the faces of successive frames.

    The whole frame is searched at the start, every `EVERY` frames, after a gap or a cut, and when a face is not found
    again. Between, the network of face points follows each face, and its box and the detector's confidence come from
    the last search. Where that network is in doubt, the detector searches the surroundings of the faces.
    """

    def __init__(self, detector: YuNet):
        self._detector = detector
        self._frames = 0  # since the last search of a whole frame
        self._found: list[Found] = []
        self._faces: list[Face] = []
        self._time = -np.inf
        self._colors = np.zeros((*SAMPLES[::-1], 3))

    def __call__(self, photo: Photo, frame: Frame) -> list[Face]:
        """The faces of the next frame, the largest first.

        Args:
            photo: the picture of `frame`.
        """
        image, _ = photo.at_least()
        colors = np.asarray(image.resize(SAMPLES, Image.Resampling.NEAREST), dtype=float)
        near = 0 <= frame.time - self._time <= LONGEST_GAP and np.abs(colors - self._colors).mean() < CUT
        self._time, self._colors = frame.time, colors
        self._frames = (self._frames + 1) % EVERY if near else 0
        faces = followed(image, self._faces) if self._frames else None
        if faces is None:
            self._found = self._searched(photo, image)
            faces = placed(photo, [each.face for each in self._found])
        self._found = [each._replace(face=face) for each, face in zip(self._found, faces, strict=True)]
        self._faces = faces
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _searched(self, photo: Photo, image: Image.Image) -> list[Found]:
        """The faces that the detector finds near those of the last frame, or, if it must be, anywhere."""
        found = self._detector.again(image, self._found) if self._frames else []
        if not self._frames or len(found) < len(self._found):
            found, self._frames = self._detector.survey(photo), 0
        return found
