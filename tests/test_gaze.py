"""Where the eyes look: geometry against hand-computed values, the shipped network on rendered heads, its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import load_tool
from PIL import Image
from scipy.spatial.transform import Rotation

from au_llava.au_faces import gaze
from au_llava.au_faces.crop import Face
from au_llava.au_faces.gaze import GAZE, HEIGHT, MODEL, UNIT, WIDTH, ahead_in_strip, aus_of_gaze, cut_strip, read_gaze
from au_llava.au_faces.network import open_network
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import eyeballs, head_pose
from au_llava.au_recognition.command import whole_picture
from au_llava.au_rendering.people import sample_subject
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.render import place_points
from au_llava.au_rendering.rig import expand_sides
from au_llava.au_rendering.view import View

SIZE = 240


def head(number: int, values: dict | None = None, **view) -> tuple[Photo, Face]:
    """A rendered head, and the face where it is."""
    subject, strengths, view = sample_subject(6, number), expand_sides(values or {}), View(scale=0.6, **view)
    pixels, _ = picture(subject, strengths, view, SIZE, np.random.default_rng(number))
    points, rotation = place_points(subject.identity, subject.movement(strengths), view, SIZE)
    eyes = tuple(map(tuple, eyeballs(*points[:2]).tolist()))
    return Photo(Image.fromarray(pixels)), Face(eyes, (0, 0, SIZE, SIZE), None, pose=head_pose(rotation))


def test_a_gaze_is_two_aus():
    assert aus_of_gaze(0.25, -0.5) == {"AU61": 0.25, "AU62": 0, "AU63": 0, "AU64": 0.5}
    assert aus_of_gaze(-1.5, 1.25) == {"AU61": 0, "AU62": 1, "AU63": 1, "AU64": 0}


@pytest.mark.parametrize("angle", [0, 30, -90])
def test_each_eye_is_in_the_middle_of_its_half(angle):
    """Two white dots, at any tilt."""
    middle, half = np.array([150.0, 130.0]), 40 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    eyes = np.stack([middle - half, middle + half])
    y, x = np.mgrid[:260, :300] + 0.5
    dots = [np.exp(-((x - eye[0]) ** 2 + (y - eye[1]) ** 2) / 18) for eye in eyes]
    image = Image.fromarray((255 * np.stack([dots[0], dots[1], 0 * x], 2)).astype(np.uint8))
    strip = cut_strip(image, eyes, UNIT, WIDTH, HEIGHT).astype(float)
    assert strip.shape == (32, 96, 3)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for channel, column in ((0, 24), (1, 72)):  # the person's right eye is on the left
        weights = strip[..., channel] / strip[..., channel].sum()
        assert (weights * columns).sum() == pytest.approx(column, abs=0.1)
        assert (weights * rows).sum() == pytest.approx(16, abs=0.1)


def test_ahead_is_told_in_the_strip():
    """A head that is turned to the picture's right, or up; and the same in a picture that is tilted."""
    right, up = Rotation.from_euler("y", 0.5).as_matrix(), Rotation.from_euler("x", -0.5).as_matrix()
    level = ((10, 20), (50, 20))
    assert ahead_in_strip(right, level) == pytest.approx([np.sin(0.5), 0])
    assert ahead_in_strip(up, level) == pytest.approx([0, np.sin(0.5)])
    tilt = Rotation.from_euler("z", -np.pi / 2).as_matrix()  # clockwise: the left eye is below the right one
    assert ahead_in_strip(tilt @ right, ((20, 10), (20, 50))) == pytest.approx([np.sin(0.5), 0])


@pytest.mark.parametrize(("way", "number"), [((1, 0), 0), ((-1, 0), 1), ((0, 1), 2), ((0, -1), 3)])
def test_the_shipped_network_reads_where_rendered_people_look(way, number):
    """People of a seed that no training has; a head that is turned does not count as a gaze."""
    values = []
    for person, yaw in ((0, 0), (1, 15), (2, -15), (3, 0)):
        for looks in (way, (0, 0)):
            values.append(read_gaze(*head(person, yaw=yaw, gaze=looks))[GAZE[number]])
    looking, straight = np.array(values).reshape(-1, 2).T
    assert (looking > straight + 0.05).all()
    assert looking.mean() > straight.mean() + 0.25
    assert straight.mean() < 0.3


def test_the_picture_is_opened_no_smaller_than_needed(tmp_path):
    """A file twice as large, whose eyes are read from half of it or less, looks the same way."""
    photo, face = head(0, gaze=(1, 0))
    large = photo.whole().resize((8 * SIZE, 8 * SIZE), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    eyes = tuple((8 * x, 8 * y) for x, y in face.eyes)
    read = read_gaze(Photo(tmp_path / "large.jpg"), replace(face, eyes=eyes))
    assert read["AU61"] == pytest.approx(read_gaze(photo, face)["AU61"], abs=0.15)


def test_what_cannot_be_seen_is_not_read():
    photo, face = head(2)
    assert read_gaze(photo, face) is not None
    assert read_gaze(*head(2, {"AU43": 1.0})) is None
    assert read_gaze(photo, replace(face, pose=None)) is None
    x, y = face.eyes[0]
    assert read_gaze(photo, replace(face, eyes=((x, y), (x + 15, y)))) is None


def test_a_face_crop_has_its_eyes_by_its_geometry():
    subject = sample_subject(6, 1)
    pixels, _ = picture(subject, {}, View(gaze=(1.0, 0.0)), 96, np.random.default_rng(0))
    photo = Photo(Image.fromarray(pixels))
    [face] = whole_picture(photo, None)
    assert read_gaze(photo, face) is None  # before it is known where the head is turned
    assert read_gaze(photo, replace(face, pose=(0.0, 0.0, 0.0)))["AU61"] > 0.2


def test_a_missing_network_is_told(tmp_path, monkeypatch):
    photo, face = head(0)
    monkeypatch.setattr(gaze, "MODEL", tmp_path / "none.onnx")
    gaze.gaze_network.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"no network of the gaze at .*none\.onnx: restore it"):
        read_gaze(photo, face)
    gaze.gaze_network.cache_clear()


def test_the_network_is_small():
    assert MODEL.stat().st_size < 1e6


@pytest.fixture(scope="module")
def fit():
    return load_tool("fit_gaze")


def eyes_of(fit, count: int):
    rng = np.random.default_rng(0)
    strips = torch.from_numpy(rng.integers(0, 256, (count, 3, fit.HIGH, fit.WIDE), np.uint8))
    ahead, gaze = (torch.from_numpy(rng.uniform(-0.5, 0.5, (count, 2))).float() for _ in range(2))
    return fit.Eyes(strips, ahead, gaze, torch.arange(count) % 3 > 0)


def test_a_drawn_head_is_seen_as_it_will_be_read(fit):
    """Training cuts the stored strip as recognition cuts the picture."""
    photo, face = head(1, gaze=(0.5, 0.0))
    stored = cut_strip(photo.whole(), face.eyes, fit.STORED, fit.WIDE, fit.HIGH)
    eyes = fit.Eyes(torch.tensor(stored).permute(2, 0, 1)[None], torch.zeros(1, 2), torch.zeros(1, 2), None)
    [seen], _ = fit.look(eyes, torch.ones(1), torch.zeros(1), torch.zeros(1, 2))
    direct = cut_strip(photo.whole(), face.eyes, UNIT, WIDTH, HEIGHT)
    assert np.abs(seen.permute(1, 2, 0).numpy() - direct).mean() < 6


def test_a_turned_look_turns_the_direction_ahead(fit):
    eyes = fit.Eyes(*(column[:1] for column in vars(eyes_of(fit, 1)).values()))
    eyes.ahead[:] = torch.tensor([0.4, 0.0])
    turn = torch.tensor([np.pi / 2])  # the crop is turned clockwise: what points right in the picture points up in it
    _, ahead = fit.look(eyes, torch.ones(1), turn, torch.zeros(1, 2))
    assert ahead.numpy() == pytest.approx(np.array([[0.0, 0.4]]), abs=1e-6)


def test_a_drawn_head_says_where_it_looks(fit):
    strip, ahead, looks, seen = fit.head(3, 4)
    assert strip.shape == (fit.HIGH, fit.WIDE, 3)
    assert np.hypot(*ahead) < 1
    assert np.abs(looks).max() <= 1
    assert isinstance(seen, bool)
    again = fit.head(3, 4)
    assert (again[0] == strip).all()
    assert any(not fit.head(3, number)[3] for number in range(40))  # some have their eyes closed


def test_a_mirrored_batch_looks_the_other_way(fit, monkeypatch):
    monkeypatch.setattr(fit, "vary", lambda strips: strips)
    monkeypatch.setattr(torch, "randn", lambda *size: torch.zeros(*size))
    eyes = eyes_of(fit, 1)
    torch.manual_seed(0)
    strips, ahead, looks, _ = fit.draw_batch(eyes, 64)
    plain, _ = fit.look(eyes, torch.ones(1), torch.zeros(1), torch.zeros(1, 2))
    mirrored = torch.tensor([torch.equal(strip, plain[0].flip(2)) for strip in strips])
    assert 10 < mirrored.sum() < 54
    assert torch.equal(strips[~mirrored][0], plain[0])
    for column, truth in ((ahead, eyes.ahead), (looks, eyes.gaze)):
        assert torch.equal(column[mirrored][:, 0], -truth[0, 0].expand(int(mirrored.sum())))
        assert torch.equal(column[~mirrored][:, 0], truth[0, 0].expand(int((~mirrored).sum())))
        assert (column[:, 1] == truth[0, 1]).all()


def test_the_written_file_answers_as_the_network(fit, tmp_path):
    torch.manual_seed(0)
    network = fit.GazeNetwork().eval()
    inputs = {"strips": 255 * torch.rand(3, 3, HEIGHT, WIDTH), "ahead": torch.rand(3, 2)}
    fit.export(network, {name: each[:1] for name, each in inputs.items()}, tmp_path / "gaze.onnx")
    [written] = open_network((tmp_path / "gaze.onnx").read_bytes()).run(
        None, {name: each.numpy() for name, each in inputs.items()}
    )
    np.testing.assert_allclose(written, network(*inputs.values()).detach().numpy(), atol=1e-5)


def test_too_few_heads_are_refused(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit, "HELD_OUT", 2)
    words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "gaze.onnx"), "--heads", "2"]
    assert fit.run(words) == 1
    assert "more than 2 heads are needed" in capsys.readouterr().err
    assert not (tmp_path / "gaze.onnx").exists()


@pytest.mark.slow
def test_the_script_trains_from_what_it_draws(fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit, "HELD_OUT", 20)
    words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "gaze.onnx"), "--heads", "60"]
    assert fit.run([*words, "--steps", "3", "--batch-size", "8"]) == 0
    assert "PCC to the left" in capsys.readouterr().out
    assert open_network((tmp_path / "gaze.onnx").read_bytes())
