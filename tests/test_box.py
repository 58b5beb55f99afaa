"""A face's box goes with its head: against hand-computed moves, and a rigid head that SciPy turns."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from au_llava.au_faces.box import SHAPE, carried, rotation_of
from au_llava.au_faces.crop import Face
from au_llava.au_faces.points import head_pose

BOX = (70.0, 60.0, 90.0, 120.0)
BEHIND = 0.75  # how far the middle of a box lies behind the eyes, in distances between them


def face(points, rotation=None, box=BOX):
    """A face; its mouth, which the box does not depend on, lies anywhere."""
    points = [*map(tuple, np.asarray(points, dtype=float).tolist()), (0.0, 0.0), (1.0, 0.0)]
    return Face(
        tuple(points[:2]), box, 0.9, points=tuple(points), pose=head_pose(np.eye(3) if rotation is None else rotation)
    )


def seen(rotation, scale=50.0, place=(120.0, 110.0)):
    """The mean head and the middle of its box in the picture, from far away."""
    flat = np.concatenate([np.array(SHAPE), [[0, -0.1, -BEHIND]]]) @ rotation.T
    flat = np.array(place) + scale * flat[:, :2] * [1, -1]
    return flat[:3], flat[3]


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.5, 0.2), (-0.4, 0.9, -0.6)])
def test_rotation_is_the_one_that_the_pose_was_made_of(angles):
    rotation = Rotation.from_euler("xyz", angles).as_matrix()
    np.testing.assert_allclose(rotation_of(head_pose(rotation)), rotation, atol=1e-12)


def test_a_box_moves_and_grows_with_the_points():
    points, _ = seen(np.eye(3))
    middle = points.mean(axis=0)
    assert carried(face(points), face(points + np.array([7, -3]))) == pytest.approx((77, 57, 90, 120))
    # Twice as far from `middle`: so is the box's middle (115, 120), and its sides are twice as long.
    left, top = middle + 2 * ([115, 120] - middle) - [90, 120]
    assert carried(face(points), face(middle + 2 * (points - middle))) == pytest.approx((left, top, 180, 240))


@pytest.mark.parametrize("angles", [(0, 0.5, 0), (0.3, 0, 0), (0, 0, 0.4), (-0.2, -0.6, 0.3)])
def test_the_box_of_a_head_that_turns_stays_around_its_middle(angles):
    """The head is turned, enlarged and moved; the box keeps its place in it."""
    rotation = Rotation.from_euler("xyz", angles).as_matrix()
    (points, middle), (turned, middle_after) = seen(np.eye(3)), seen(rotation, 60.0, (150.0, 100.0))
    box = (*(middle - [45, 60]), 90, 120)
    expected = (*(middle_after - [54, 72]), 108, 144)
    assert carried(face(points, box=box), face(turned, rotation)) == pytest.approx(expected)
    # and back
    after = face(turned, rotation, carried(face(points, box=box), face(turned, rotation)))
    assert carried(after, face(points)) == pytest.approx(box)


def test_what_the_mouth_does_moves_no_box():
    points, _ = seen(np.eye(3))
    one = face(points)
    other = Face(one.eyes, BOX, 0.9, points=(*one.points[:3], (90.0, 150.0), (160.0, 155.0)), pose=one.pose)
    assert carried(one, other) == pytest.approx(BOX)
