"""Variation of training pictures: it stays within its bounds, keeps the face in place, and is a matter of the seed."""

import numpy as np
from PIL import Image

from au_llava.augmentation_au_llava import SHIFT, ZOOM, varied_image


def spot(size: int = 96, at: tuple[int, int] = (60, 40)) -> Image.Image:
    """A grey picture with a white square of 8 x 8 pixels, centred at `at` (right, down)."""
    pixels = np.full((size, size, 3), 60, np.uint8)
    pixels[at[1] - 4 : at[1] + 4, at[0] - 4 : at[0] + 4] = 255
    return Image.fromarray(pixels)


def test_what_is_in_the_picture_moves_by_a_few_per_cent_at_most():
    size, at = 96, np.array([60, 40])
    moves = []
    for seed in range(60):
        grey = np.asarray(varied_image(spot(), np.random.default_rng(seed)), float).mean(axis=2)
        bright = grey > (grey.min() + grey.max()) / 2
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


def test_brightness_and_colours_change_without_bias():
    flat = Image.new("RGB", (32, 32), (128, 128, 128))
    means = np.array([np.asarray(varied_image(flat, np.random.default_rng(seed))).mean((0, 1)) for seed in range(200)])
    assert abs(means.mean() - 128) < 8
    assert 15 < means.mean(axis=1).std() < 45  # 0.12 of 255 is 31
