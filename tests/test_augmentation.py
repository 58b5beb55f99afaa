"""Variation of training pictures: it stays within its bounds, keeps the face in place, and depends only on the seed."""

import math

import numpy as np
import pytest
from PIL import Image

from au_llava.au_training import augmentation as augmentation
from au_llava.au_training.augmentation import (
    SHIFT,
    SQUARE_SIDES,
    STRONG_SHIFT,
    STRONG_ZOOM,
    TURN,
    ZOOM,
    plain_crop,
    strongly_varied_image,
    varied_image,
)


def spot(size: int = 96, at: tuple[int, int] = (60, 40)) -> Image.Image:
    """A gray picture with a white square of 8 x 8 pixels, centered at `at` (right, down)."""
    pixels = np.full((size, size, 3), 60, np.uint8)
    pixels[at[1] - 4 : at[1] + 4, at[0] - 4 : at[0] + 4] = 255
    return Image.fromarray(pixels)


def test_what_is_in_the_picture_moves_by_a_few_per_cent_at_most():
    size, at = 96, np.array([60, 40])
    moves = []
    for seed in range(60):
        gray = np.asarray(varied_image(spot(), np.random.default_rng(seed)), float).mean(axis=2)
        bright = gray > (gray.min() + gray.max()) / 2
        down, right = (axis.mean() + 0.5 for axis in np.nonzero(bright))
        moves.append(np.array([right, down]) - at)
    moves = np.array(moves)
    farthest = SHIFT * size + ZOOM * np.abs(at - size / 2).max() + 1  # a shift, a zoom about the middle, half pixels
    assert np.abs(moves).max() < 1.1 * farthest
    assert moves.std(axis=0).min() > 1


def test_size_and_mode_stay_and_the_seed_decides():
    image = spot().resize((80, 112))
    first, again, other = (varied_image(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.size, first.mode) == ((80, 112), "RGB")
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(first), np.asarray(other))


def test_brightness_and_colors_change_without_bias():
    flat = Image.new("RGB", (32, 32), (128, 128, 128))
    means = np.array([np.asarray(varied_image(flat, np.random.default_rng(seed))).mean((0, 1)) for seed in range(200)])
    assert abs(means.mean() - 128) < 8
    assert 15 < means.mean(axis=1).std() < 45  # 0.12 of 255 is 31


def only(monkeypatch, *kept: str):
    """Keep only the geometry of strong variation, and the kinds in `kept` for every picture."""
    for name in ("GRAY", "SQUARE", "COARSE", "STRONG_BLURRED", "NOISE", "JPEG"):
        monkeypatch.setattr(augmentation, name, 1.0 if name in kept else 0.0)
    monkeypatch.setattr(augmentation, "STRONG_LEVELS", 0.0)


def test_the_plain_crop_is_the_middle_of_the_stored_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (144, 144, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(plain_crop(Image.fromarray(pixels), 0.25)), pixels[24:120, 24:120])
    np.testing.assert_array_equal(np.asarray(plain_crop(Image.fromarray(pixels), 0.0)), pixels)
    np.testing.assert_array_equal(np.asarray(plain_crop(Image.fromarray(pixels[:96]), 0.0)), pixels[:96, 24:120])


@pytest.mark.parametrize(("size", "margin"), [((144, 144), 0.25), ((160, 144), 0.25), ((96, 96), 0.0)])
def test_strong_variation_is_one_similarity_transform(monkeypatch, size, margin):
    """Three marks keep the shape of their triangle: it is rotated, scaled and moved, each within its bounds."""
    only(monkeypatch)
    middle = np.array(size) / 2
    offsets = np.array([[-18.0, -14.0], [18.0, -14.0], [0.0, 20.0]])  # as eyes and mouth
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for channel, (right, down) in enumerate((middle + offsets).astype(int)):
        pixels[down - 3 : down + 3, right - 3 : right + 3, channel] = 255
    before = np.subtract.outer(offsets @ [1, 1j], offsets @ [1, 1j])[[0, 1, 2], [1, 2, 0]]  # sides as complex numbers
    turns, scales, moves = [], [], []
    for seed in range(40):
        varied = strongly_varied_image(Image.fromarray(pixels), np.random.default_rng(seed), margin)
        assert (varied.size, varied.mode) == ((96, 96), "RGB")
        image = np.asarray(varied, float)
        down, right = np.mgrid[:96, :96] + 0.5
        found = np.array([((right + 1j * down) * image[..., c]).sum() / image[..., c].sum() for c in range(3)])
        after = np.subtract.outer(found, found)[[0, 1, 2], [1, 2, 0]]
        ratios = after / before
        assert np.abs(ratios / ratios.mean() - 1).max() < 0.02  # one turn and one scale for all sides, no mirror image
        turns.append(math.degrees(np.angle(ratios.mean())))
        scales.append(1 / np.abs(ratios.mean()))
        moves.append(np.abs(found.mean() - (48 + 48j)))
    assert 0.8 * TURN < np.abs(turns).max() < TURN + 0.5
    assert min(turns) < 0 < max(turns)
    assert 1 - STRONG_ZOOM - 0.01 < min(scales) < 1 < max(scales) < 1 + STRONG_ZOOM + 0.01
    farthest = math.sqrt(2) * STRONG_SHIFT * 96 + np.abs(offsets.mean(axis=0)).max()
    assert 1 < max(moves) < (farthest + 0.5) / (1 - STRONG_ZOOM)


def test_strong_variation_reaches_into_the_margin_and_repeats_the_border(monkeypatch):
    only(monkeypatch)
    stored = Image.new("RGB", (144, 144), (10, 20, 30))
    stored.paste((200, 100, 50), (24, 24, 120, 120))
    shown = [np.asarray(strongly_varied_image(stored, np.random.default_rng(seed), 0.25)) for seed in range(10)]
    assert any((image == (10, 20, 30)).all(axis=2).any() for image in shown)
    flat = Image.new("RGB", (96, 96), (200, 100, 50))
    for seed in range(10):
        assert (np.asarray(strongly_varied_image(flat, np.random.default_rng(seed))) == (200, 100, 50)).all()


def test_little_is_painted_over(monkeypatch):
    only(monkeypatch, "SQUARE")
    flat = Image.new("RGB", (96, 96), (200, 100, 50))
    hidden = []
    for seed in range(60):
        image = np.asarray(strongly_varied_image(flat, np.random.default_rng(seed)))
        hidden.append((image != (200, 100, 50)).any(axis=2).mean() ** 0.5)
    assert SQUARE_SIDES[0] - 0.01 < min(hidden)
    assert 0.15 < max(hidden) < SQUARE_SIDES[1] + 0.01


@pytest.mark.parametrize("kind", ["COARSE", "STRONG_BLURRED", "NOISE", "JPEG", "GRAY"])
def test_every_kind_of_strong_variation_changes_the_picture(monkeypatch, kind):
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    only(monkeypatch)
    before = np.asarray(strongly_varied_image(face, np.random.default_rng(5)), float)
    only(monkeypatch, kind)
    after = np.asarray(strongly_varied_image(face, np.random.default_rng(5)), float)
    assert after.shape == before.shape
    assert np.abs(after - before).mean() > 1
    if kind == "GRAY":
        assert np.ptp(after, axis=2).max() == 0


def test_strong_variation_depends_on_the_seed():
    first, again, other = (strongly_varied_image(spot(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
    assert not np.array_equal(np.asarray(first), np.asarray(other))
