"""Faces: the crop has the renderer's geometry; detection, tracking and the user's own faces."""

import numpy as np
import pytest
from PIL import Image

from au_llava.au_datasets import render
from au_llava.au_datasets.rendered import render_face
from au_llava.faces_au import EYE_DISTANCE, EYE_HEIGHT, crop_face

SIDE = 128


def scene(angle=0.0, zoom=1.0, seed=0):
    """A rendered face pasted into a larger picture, turned and enlarged; the picture, the true eyes and the face."""
    face = Image.fromarray(render_face({"AU12": 0.8}, subject=seed, size=SIDE))
    picture = Image.new("RGB", (400, 300), (90, 120, 150))
    picture.paste(face, (140, 90))
    eyes = np.array([[0.5 - EYE_DISTANCE / 2, EYE_HEIGHT], [0.5 + EYE_DISTANCE / 2, EYE_HEIGHT]]) * SIDE + [140, 90]
    size = (round(400 * zoom), round(300 * zoom))
    picture, eyes = picture.resize(size, Image.Resampling.BICUBIC), eyes * zoom
    turn = np.deg2rad(angle)
    middle = np.array(size) / 2
    eyes = (eyes - middle) @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) + middle
    return picture.rotate(angle, Image.Resampling.BICUBIC), eyes, face


def difference(one, other):
    """Mean absolute difference of two pictures, of 255, but for their border."""
    return np.abs(np.asarray(one, float) - np.asarray(other, float))[8:-8, 8:-8].mean()


def test_geometry_is_the_renderers():
    assert (EYE_DISTANCE, EYE_HEIGHT) == (render.EYE_DISTANCE, render.EYE_HEIGHT)


def test_an_aligned_crop_comes_back_unchanged():
    picture, eyes, face = scene()
    np.testing.assert_allclose(np.asarray(crop_face(picture, eyes, SIDE), int), np.asarray(face, int), atol=1)


@pytest.mark.parametrize(("angle", "zoom"), [(25, 1), (-40, 1), (0, 3), (15, 2.5), (180, 1), (10, 0.75)])
def test_turned_and_scaled_faces_come_back(angle, zoom):
    picture, eyes, face = scene(angle, zoom)
    assert difference(crop_face(picture, eyes, SIDE), face) < 3
    assert difference(crop_face(picture, eyes + np.array([0.05 * SIDE * zoom, 0]), SIDE), face) > 5  # it would be seen


def test_beyond_the_picture_its_border_is_repeated():
    picture, eyes, _ = scene()
    cut = picture.crop((140 + 20, 90, 268, 218))  # the face's right side is missing
    crop = np.asarray(crop_face(cut, eyes - [160, 90], SIDE), int)
    np.testing.assert_allclose(crop[40:120, :20], np.repeat(crop[40:120, 20:21], 20, axis=1), atol=1)


def test_shrinking_averages():
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[::2] = 255
    crop = np.asarray(crop_face(Image.fromarray(stripes), [(400, 350), (600, 350)], 32))
    assert crop.min() > 110
    assert crop.max() < 145


@pytest.mark.parametrize("eyes", [[(50, 50), (50.2, 50)], [(-4, 50), (60, 50)], [(40, 50), (float("nan"), 50)]])
def test_eyes_that_cannot_be(eyes):
    with pytest.raises(ValueError, match="cannot be those of a face in a picture of 100 x 100"):
        crop_face(Image.new("RGB", (100, 100)), eyes, 32)
