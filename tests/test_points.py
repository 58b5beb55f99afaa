"""The points of faces: geometry against hand-computed values, the shipped network on rendered heads."""

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from au_llava.au_faces import points
from au_llava.au_faces.crop import Face, crop_face
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import TEMPLATE, FacePoints, face_points, fit_frame, head_pose, placed, with_pose
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import place_points
from au_llava.au_rendering.view import View

SIZE = 240


def head(number: int, **view) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A rendered head, its true points and its rotation."""
    subject, view = sample_subject(5, number), View(scale=0.6, **view)
    pixels, _ = picture(subject, {}, view, SIZE, np.random.default_rng(number))
    return Image.fromarray(pixels), *place_points(subject.identity, subject.movement({}), view, SIZE)


def eye_errors(points: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:2] - truth[:2], axis=1) / np.linalg.norm(truth[1] - truth[0])


def test_frame_of_a_turned_and_enlarged_template_is_that_turn():
    turn = 200 * np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    edge, corner = fit_frame(TEMPLATE @ turn + [7, 9])
    assert edge == pytest.approx(200 * np.exp(0.3j))
    assert corner == pytest.approx(7 + 9j)


def test_frame_is_the_least_squares_fit():
    points = TEMPLATE * 100 + np.random.default_rng(0).normal(0, 4, (5, 2))
    edge, corner = fit_frame(points)
    # The similarity as a linear least-squares problem: x' = a x - b y + c, y' = b x + a y + d.
    x, y = TEMPLATE.T
    one, zero = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, points.T.ravel(), rcond=None)[0]
    assert (edge, corner) == (pytest.approx(a + 1j * b), pytest.approx(c + 1j * d))


@pytest.mark.parametrize(
    ("axis", "angle", "expected"),
    [  # axes x right, y up, z to the viewer; from the subject's view
        ("x", -0.3, (-0.3, 0, 0)),  # looks up
        ("y", -0.4, (0, 0.4, 0)),  # turns to the own right
        ("z", 0.2, (0, 0, -0.2)),  # counterclockwise in the picture
    ],
)
def test_pose_has_openfaces_signs(axis, angle, expected):
    rotation = Rotation.from_euler(axis, angle).as_matrix()
    assert head_pose(rotation) == pytest.approx(expected)


def test_pose_composes_as_in_openface():
    """R = Rx Ry Rz in OpenFace's axes (x right, y down, z away), written out as in its RotationHelpers.h."""
    (s1, s2, s3), (c1, c2, c3) = np.sin([0.2, -0.5, 0.1]), np.cos([0.2, -0.5, 0.1])
    openface = np.array(
        [
            [c2 * c3, -c2 * s3, s2],
            [c1 * s3 + c3 * s1 * s2, c1 * c3 - s1 * s2 * s3, -c2 * s1],
            [s1 * s3 - c1 * c3 * s2, c3 * s1 + c1 * s2 * s3, c1 * c2],
        ]
    )
    flip = np.diag([1, -1, -1])
    assert head_pose(flip @ openface @ flip) == pytest.approx((0.2, -0.5, 0.1))


def test_places_eyes_of_rendered_heads_from_rough_guesses():
    noise = np.random.default_rng(1)
    for number in range(6):
        image, truth, rotation = head(number, yaw=(-25, -10, 0, 5, 15, 30)[number], roll=(0, 10, -12, 4, -6, 0)[number])
        guess = truth + noise.normal(0, 0.1, (5, 2)) * np.linalg.norm(truth[1] - truth[0])
        (answer,) = face_points()(image, [guess])
        assert answer.confidence > 0.9
        assert eye_errors(answer.points, truth).max() < 0.12
        assert np.degrees(np.abs(np.subtract(head_pose(answer.rotation), head_pose(rotation)))).max() < 12


def test_pose_follows_the_head():
    def pose(**view):
        image, truth, _ = head(2, **view)
        return np.degrees(head_pose(face_points()(image, [truth])[0].rotation))

    assert pose(yaw=30)[1] - pose(yaw=-30)[1] < -40  # `View` counts to the subject's left, OpenFace to the right
    assert pose(pitch=20)[0] - pose(pitch=-20)[0] < -20  # up is negative
    assert pose(roll=20)[2] - pose(roll=-20)[2] > 30


def test_scale_and_place_of_the_picture_do_not_matter():
    image, truth, _ = head(3)
    large = Image.new("RGB", (900, 700), (90, 120, 80))
    large.paste(image.resize((480, 480), Image.Resampling.BICUBIC), (300, 100))
    alone, pasted = face_points()(image, [truth])[0], face_points()(large, [2 * truth + [300, 100]])[0]
    assert (pasted.points - [300, 100]) / 2 == pytest.approx(alone.points, abs=0.03 * SIZE * 0.2)


def test_faces_of_a_picture_are_placed_as_each_alone():
    image, truth, _ = head(4)
    guesses = [truth + 3, truth - 2]
    together = face_points()(image, guesses)
    for guess, answer in zip(guesses, together, strict=True):
        assert answer.points == pytest.approx(face_points()(image, [guess])[0].points, abs=1e-3)
    assert face_points()(image, []) == []


@pytest.mark.parametrize("picture", [Image.new("L", (200, 200), 128), Image.linear_gradient("L")])
def test_what_shows_no_face_keeps_its_points_and_has_no_pose(picture):
    points = tuple(map(tuple, (TEMPLATE * 80 + 50).tolist()))
    face = Face(points[:2], (50, 50, 80, 80), 0.9, points=points)
    assert placed(Photo(picture.convert("RGB")), [face]) == [face]


def test_the_eyes_to_crop_by_lie_above_the_corners():
    """By hand: eyes 100 pixels apart, level, and then one above the other."""
    np.testing.assert_allclose(points.eyeballs(np.array([0, 50]), np.array([100, 50])), [[-2, 45], [102, 45]])
    np.testing.assert_allclose(points.eyeballs(np.array([50, 0]), np.array([50, 100])), [[55, -2], [55, 102]])
    corners = np.array([[31.0, 47.0], [88.0, 62.0]])
    np.testing.assert_allclose(points._eye_corners(*points.eyeballs(*corners)), corners)  # the way back


def test_a_face_gets_better_eyes_and_a_pose():
    image, truth, _ = head(5)
    guess = tuple(map(tuple, (truth + np.array([6, -4])).tolist()))
    (face,) = placed(Photo(image), [Face(guess[:2], (50, 50, 80, 80), 0.9, points=guess)])
    assert eye_errors(np.array(face.eyes), truth).max() < eye_errors(np.array(guess), truth).max()
    assert len(face.pose) == 3


def test_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model of face points at .*points\.onnx"):
        FacePoints(tmp_path / "points.onnx")


def test_a_given_face_gets_a_pose_and_keeps_its_eyes():
    image, truth, rotation = head(2, yaw=25)
    eyes = tuple(map(tuple, truth[:2].tolist()))
    face = with_pose(Photo(image), Face(eyes, (0, 0, SIZE, SIZE), None))
    assert face.eyes == eyes
    assert np.degrees(np.abs(np.subtract(face.pose, head_pose(rotation)))).max() < 12


def test_a_face_crop_gets_a_pose():
    image, truth, rotation = head(2, yaw=-20)
    crop = crop_face(image, truth[:2], 96)
    face = with_pose(Photo(crop), Face(None, (0, 0, 96, 96), None))
    assert face.eyes is None
    assert np.degrees(np.abs(np.subtract(face.pose, head_pose(rotation))))[1] < 12


def test_angles_are_those_of_scipy():
    from scipy.spatial.transform import Rotation

    axes = np.diag([1.0, -1.0, -1.0])
    for angles in ((0, 0, 0), (0.3, -0.5, 0.2), (-1.2, 1.4, 3.0), (0.1, -1.57, 0)):
        rotation = axes @ Rotation.from_euler("XYZ", angles).as_matrix() @ axes
        assert head_pose(rotation) == pytest.approx(angles, abs=1e-6)
