"""Carries the box of a face along with its head, from one frame of a video to the next.

The eyes and the tip of the nose move with the head, whatever the face expresses. With the head's pose they say how far
away it is, and where its middle lies: a head that turns moves these points to a side and brings them closer together,
but its box hardly moves.

Written with numbers instead of arrays: for three points NumPy takes five times as long.
"""

import math

from au_llava.au_faces.crop import Face

# The person's right and left eye and the tip of the nose of a mean head, and how far behind the eyes' corners the
# middle of the box lies, in distances between the eyes; x to the left of the head, y up, z ahead. The mean of 60
# rendered heads (`place_points`; the eyes as `eyeballs` shifts them). Of depths from 0 to 1.2, boxes are carried best
# with this one: a head that turns by 30 degrees in a third of a second is followed with an error of 3.5 % instead of
# 6.3 % (median of five rendered heads, over three frames, of the box's width).
SHAPE = ((-0.52, 0.617, -0.2), (0.52, 0.617, -0.2), (0.0, -0.053, 0.403))
DEPTH = 0.75


def carried(before: Face, after: Face) -> tuple[float, float, float, float]:
    """Where the box of `before` has gone with the head: left, top, width, height.

    Args:
        before, after: one face in two frames, both with points and a pose.
    """
    rotation, scale, origin = _frame(before)
    rotation_after, scale_after, origin_after = _frame(after)
    left, top, width, height = before.box
    middle = (complex(left + width / 2, top + height / 2) - origin) / scale
    # The middle of the box in the head, (x, y, -DEPTH): what the rotation, whose first rows are (a, b, c) and
    # (d, e, f), takes to `middle`, by Cramer's rule. A picture's y points down, a head's up.
    (a, b, c), (d, e, f), _ = rotation
    across, up = middle.real + c * DEPTH, -middle.imag + f * DEPTH
    inside = (across * e - b * up) / (a * e - b * d), (a * up - across * d) / (a * e - b * d), -DEPTH
    middle = origin_after + scale_after * _seen(rotation_after, inside)
    width, height = scale_after / scale * width, scale_after / scale * height
    return middle.real - width / 2, middle.imag - height / 2, width, height


def _frame(face: Face) -> tuple[tuple, float, complex]:
    """The rotation of a head, pixels per distance of its eyes, and its origin in the picture.

    The least squares of `SHAPE`, seen from afar, for the pose that is known.
    """
    rotation = rotation_of(face.pose)
    shape, points = [_seen(rotation, place) for place in SHAPE], [complex(*point) for point in face.points[:3]]
    middle, center = sum(shape) / 3, sum(points) / 3
    fitted = sum(((one - middle).conjugate() * (other - center)).real for one, other in zip(shape, points, strict=True))
    scale = fitted / sum(abs(one - middle) ** 2 for one in shape)
    return rotation, scale, center - scale * middle


def _seen(rotation: tuple, place: tuple[float, float, float]) -> complex:
    """Where a place of a head is seen: to the right, and down."""
    across, up, _ = (sum(one * other for one, other in zip(row, place, strict=True)) for row in rotation)
    return complex(across, -up)


def rotation_of(pose: tuple[float, float, float]) -> tuple[tuple[float, float, float], ...]:
    """The rotation whose angles `head_pose` gives, row by row; x right, y up, z to the viewer."""
    (s1, c1), (s2, c2), (s3, c3) = ((math.sin(angle), math.cos(angle)) for angle in pose)
    return (  # Rx Ry Rz of OpenFace's axes, whose y and z point the other way
        (c2 * c3, c2 * s3, -s2),
        (-c1 * s3 - c3 * s1 * s2, c1 * c3 - s1 * s2 * s3, -c2 * s1),
        (-s1 * s3 + c1 * c3 * s2, c3 * s1 + c1 * s2 * s3, c1 * c2),
    )
