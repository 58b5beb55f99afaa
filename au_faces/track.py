"""Finds the faces of a video: searches now and then, and between follows the points of the faces."""

from dataclasses import replace

import numpy as np
from PIL import Image

from au_llava.au_faces.box import carried
from au_llava.au_faces.crop import Face, overlap
from au_llava.au_faces.detect import Found, YuNet
from au_llava.au_faces.media import Frame
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import followed, placed

EVERY = 8  # frames; one of them is searched whole, so a face that enters is found a quarter of a second later at most
TURNED = 0.1  # radians; a face that has turned this far since the last search is searched
# How much a search moves a box that was carried to its frame. The detector's own boxes of one face differ by 2 % of its
# width (median) from frame to frame; a mean of several searches is nearer to where the face is.
WEIGHT = 0.5
SAME = 0.5  # overlap (intersection over union) from which a face that was searched is one of the last frame
ANOTHER = 0.25  # of a box's longer side; if carried and found box are further apart, the found one is right
EDGE = 0.02  # of a box's width: a face nearer to the edge of the picture is partly beyond it
LONGEST_GAP = 0.2  # seconds between frames; after a longer one, a face may be anywhere
CUT = 30  # mean difference of two frames' colors, 0 to 255, from which a frame is another picture
SAMPLES = (32, 32)  # pixels of a frame that are compared


class Track:
    """Finds the faces of successive frames.

    The whole frame is searched at the start, every `EVERY` frames, after a gap or a cut, and when a face is not found
    again. Between, the network of face points follows each face, its box goes with its head, and the confidence is the
    detector's at its last search. Where that network is in doubt, a head has turned since, or a face is at the edge of
    the picture, where the detector's box covers what can be seen of it, the detector searches the surroundings of the
    faces at once.
    """

    def __init__(self, detector: YuNet):
        self._detector = detector
        self._frames = 0  # since the last search of a whole frame
        self._found: list[Found] = []
        self._faces: list[Face] = []
        self._searched: list[Face] = []  # the same faces when they were last searched
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
        due = self._frames == 0 or any(map(_turned, self._searched, self._faces))
        due = due or any(_at_edge(face, image.size) for face in self._faces)
        faces = None if due else followed(image, self._faces)
        if faces is None:
            self._found = self._search(photo, image)
            faces = placed(photo, [each.face for each in self._found])
            faces = self._searched = [self._steadied(face, image.size) for face in faces] if near else faces
        self._found = [each._replace(face=face) for each, face in zip(self._found, faces, strict=True)]
        self._faces = faces
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _search(self, photo: Photo, image: Image.Image) -> list[Found]:
        """The faces that the detector finds near those of the last frame, or, if it must be, anywhere."""
        found = self._detector.again(image, self._found) if self._frames else []
        if not self._frames or len(found) < len(self._found):
            found, self._frames = self._detector.survey(photo), 0
        return found

    def _steadied(self, face: Face, size: tuple[int, int]) -> Face:
        """A face that was searched, its box a mean with where the last frame's has gone."""
        before = [
            each
            for each in self._faces
            if each.pose and overlap(each.box, face.box) >= SAME and not _at_edge(each, size)
        ]
        if not before or not face.pose or _at_edge(face, size):
            return face
        expected = np.array(carried(max(before, key=lambda each: overlap(each.box, face.box)), face))
        found = np.array(face.box)
        if np.abs(found - expected).max() > ANOTHER * max(face.box[2:]):
            return face
        return replace(face, box=tuple((expected + WEIGHT * (found - expected)).tolist()))


def _turned(before: Face, after: Face) -> bool:
    if not before.pose or not after.pose:
        return False
    return any(abs(one - other) > TURNED for one, other in zip(before.pose, after.pose, strict=True))


def _at_edge(face: Face, size: tuple[int, int]) -> bool:
    left, top, width, height = face.box
    return min(left, top, size[0] - left - width, size[1] - top - height) < EDGE * width
