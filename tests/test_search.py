"""How faces are looked for: coarse to fine, in pictures decoded no larger than needed, and from frame to frame."""

import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from test_recognize_au import write_video

from au_llava.au_faces import track
from au_llava.au_faces.crop import EYE_DISTANCE, crop_face
from au_llava.au_faces.detect import FINE, USUAL, YuNet
from au_llava.au_faces.media import Frame, video_frames
from au_llava.au_faces.photo import LEAST_SIDE, Photo
from au_llava.au_faces.track import Track
from au_llava.au_recognition import runner
from au_llava.au_rendering.pictures import render_face
from au_llava.au_rendering.view import View
from au_llava.au_runs.ahead import ahead
from au_llava.pictures_au_llava import load_face_image, load_reduced_image
from au_llava.recognize_au import run

EYES = np.array([[201, 103], [246, 103]]) / 512  # of the portrait, of its side, marked by hand
GROUND = (90, 120, 150)


def portrait(side):
    return Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS)


def head(side):
    """The portrait's head on a square; the face is half as high."""
    return Image.fromarray(data.astronaut()).crop((110, 0, 330, 220)).resize((side, side), Image.Resampling.LANCZOS)


def scene(size, *heads):
    """A picture of this size with heads, each as (side, left, top)."""
    picture = Image.new("RGB", size, GROUND)
    for side, left, top in heads:
        picture.paste(head(side), (left, top))
    return picture


@pytest.fixture
def detector(monkeypatch):
    """YuNet, which notes in `searched` the (height, width) of all that its network sees."""
    detector = YuNet()
    network = detector._network

    class Noting:
        def run(self, names, inputs):
            detector.searched.append(inputs["input"].shape[2:])
            return network.run(names, inputs)

    detector.searched = []
    monkeypatch.setattr(detector, "_network", Noting())
    return detector


def middles(faces):
    return sorted((round(face.box[0] + face.box[2] / 2), round(face.box[1] + face.box[3] / 2)) for face in faces)


# Pictures


def test_a_portrait_is_not_searched_finely(detector):
    (face,) = detector(portrait(1350))
    assert np.abs(np.array(face.eyes) / 1350 - EYES).max() < 0.012
    assert max(map(max, detector.searched)) <= USUAL


def test_small_faces_beside_a_large_one_are_found(detector):
    heads = [(700, 620, 150), (110, 60, 60), (80, 300, 500), (64, 150, 900)]
    faces = detector(scene((1350, 1000), *heads))
    assert len(faces) == 4
    for face, (side, left, top) in zip(faces, heads, strict=True):
        x, y = np.array(face.box[:2]) + np.array(face.box[2:]) / 2
        assert abs(x - left - 0.5 * side) < 0.15 * side
        assert abs(y - top - 0.5 * side) < 0.15 * side
    assert max(map(max, detector.searched)) == FINE


def test_a_suspected_small_face_is_looked_at_finely(detector):
    """Where the usual search is not sure of a face, only that place is searched again."""
    picture = scene((1350, 1000), (700, 620, 150), (64, 150, 900))
    assert len(detector(picture)) == 2
    (usual, *_, last) = detector.searched
    assert max(usual) <= USUAL
    assert max(last) < FINE / 2


def test_one_small_face_alone_is_found(detector):
    (face,) = detector(scene((2000, 1500), (100, 900, 700)))
    assert abs(face.box[0] + face.box[2] / 2 - 950) < 15


def test_pictures_without_a_face_are_searched_finely(detector):
    assert detector(Image.new("RGB", (1400, 900), GROUND)) == []
    assert max(map(max, detector.searched)) == FINE


# Reduced pictures


@pytest.fixture(params=[1, 3, 6, 8])
def turned(request, tmp_path):
    """A JPEG file of 12 megapixels, stored as EXIF's orientation says, and the upright picture."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    upright = Image.new("RGB", (4000, 3000), GROUND)
    upright.paste(portrait(2400), (1000, 300))
    stored = upright.transpose(undo[request.param]) if request.param in undo else upright
    exif = Image.Exif()
    exif[0x0112] = request.param
    stored.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    return tmp_path / "photo.jpg", upright


def test_a_large_photograph_is_decoded_small_and_measured_in_its_own_pixels(turned):
    path, upright = turned
    photo = Photo(path)
    (face,) = YuNet()(photo)
    image, factor = photo.at_least()
    assert (image.size, factor) == ((1000, 750), 4)
    eyes = EYES * 2400 + [1000, 300]
    distance = eyes[1, 0] - eyes[0, 0]
    assert np.abs(np.array(face.eyes) - eyes).max() < 0.15 * distance
    crop = photo.crop(face.eyes, 96)
    assert photo.at_least()[1] == 4  # it has enough pixels for the crop: nothing was opened again
    assert np.abs(np.asarray(crop, int) - np.asarray(crop_face(upright, face.eyes, 96), int)).mean() < 2
    photo.crop(face.eyes, 400)
    assert photo.at_least()[1] == 1  # of 640 pixels between them, 212 / (0.34 * 400) are too few for half the picture
    assert distance / (EYE_DISTANCE * 400) < 2


def test_only_jpeg_is_reduced_and_only_as_far_as_asked(tmp_path):
    picture = portrait(1400)
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.save(tmp_path / "a.png")
    for name, side, factor in (
        *(("a.jpg", 700, 2), ("a.jpg", 701, 1), ("a.jpg", 350, 4), ("a.jpg", 1, 8), ("a.jpg", 5000, 1)),
        ("a.png", 1, 1),
    ):
        image, found = load_reduced_image(tmp_path / name, side)
        assert (image.size, found) == ((1400 // factor,) * 2, factor), (name, side)
        expected = load_face_image(tmp_path / name).resize(image.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).mean() < 3
    assert Photo((tmp_path / "a.jpg").read_bytes(), "a.jpg").at_least()[0].size == (700, 700)
    assert LEAST_SIDE <= 700


def test_reduced_pictures_are_refused_as_whole_ones(tmp_path):
    Image.new("RGB", (3000, 15)).save(tmp_path / "narrow.jpg")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(ValueError, match=r"narrow.jpg is 3000 x 15 pixels; a face needs at least 16 x 16"):
        Photo(tmp_path / "narrow.jpg").at_least()
    with pytest.raises(ValueError, match=r"torn.jpg cannot be read as an image"):
        Photo(tmp_path / "torn.jpg").at_least()
    with pytest.raises(ValueError, match=r"row 3 cannot be read as an image"):
        Photo(b"not a picture", "row 3").at_least()
    with pytest.raises(FileNotFoundError, match="There is no image file"):
        Photo(tmp_path / "nothing.jpg").at_least()


# Videos


def watch(detector, pictures, fps=30):
    """What `Track` finds in each of the pictures."""
    tracked = Track(detector)
    frames = [Frame(Path("film"), number + 1, number / fps, picture) for number, picture in enumerate(pictures)]
    return [tracked(Photo(frame.image), frame) for frame in frames]


def wholes(detector, size):
    return sum(shape[1] >= size for shape in detector.searched)


def test_tracked_faces_are_those_of_whole_searches(detector):
    pictures = [scene((640, 480), (200, 40 + 5 * step, 60), (140, 420 - 3 * step, 300)) for step in range(24)]
    found = watch(detector, pictures)
    assert wholes(detector, 640) == 3  # of 24 frames, one of eight
    assert len(detector.searched) == 3
    searched = [detector(picture) for picture in pictures]
    for faces, expected in zip(found, searched, strict=True):
        assert len(faces) == len(expected) == 2
        np.testing.assert_allclose([face.eyes for face in faces], [face.eyes for face in expected], atol=1.5)
    moves = np.arange(24)[:, None, None] * [[5, 0, 0, 0], [-3, 0, 0, 0]]  # of the heads, from frame to frame
    boxes, others = (np.array([[face.box for face in faces] for faces in each]) - moves for each in (found, searched))
    place = others.mean(axis=0)  # the detector's boxes jump around it
    assert np.abs(boxes - place).max() < 0.7 * np.abs(others - place).max()
    assert np.abs(np.diff(boxes, axis=0)).mean() < 0.3 * np.abs(np.diff(others, axis=0)).mean()


def test_a_face_that_turns_and_grows_keeps_its_box_around_it(detector):
    still = scene((640, 480), (200, 220, 140))
    pictures = []
    for step in range(track.EVERY):
        angle, scale = 0.02 * step, 1 + 0.02 * step
        x, y = np.cos(angle) / scale, np.sin(angle) / scale  # of a step to the right, seen in the still
        matrix = (x, y, 320 - 320 * x - 240 * y, -y, x, 240 + 320 * y - 240 * x)
        pictures.append(still.transform(still.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
    found = watch(detector, pictures)
    assert wholes(detector, 640) == 1
    (first,), (followed,), (last,) = found[0], found[4], found[-1]
    assert followed.box[2] / first.box[2] == pytest.approx(1.08, abs=0.02)
    assert followed.confidence == first.confidence
    assert last.box[2] / first.box[2] == pytest.approx(1.14, abs=0.06)
    np.testing.assert_allclose(last.eyes, detector(pictures[-1])[0].eyes, atol=1.5)
    assert last.confidence != first.confidence  # by then the head has turned so far that it was searched


def test_the_box_of_a_head_that_turns_stays_around_it(detector):
    """A rendered head turns by 40 degrees in a second; its box moves as the detector's, and not with the nose."""
    pictures = [
        Image.fromarray(render_face({}, subject=1, seed=3, size=240, view=View(yaw=yaw, scale=0.6)))
        for yaw in np.linspace(-20, 20, 25)
    ]
    found = watch(detector, pictures)
    moved = []
    for (face,), picture in zip(found, pictures, strict=True):
        (expected,) = detector(picture)
        moved.append(np.abs(np.subtract(face.box, expected.box)).max() / expected.box[2])
    assert np.median(moved) < 0.05
    assert max(moved) < 0.1


def test_a_face_that_comes_in_is_searched_until_it_is_all_there(detector):
    """At the edge of the picture the detector's box covers what can be seen."""
    pictures = [scene((640, 480), (200, left, 100)) for left in range(-60, 61, 12)]
    found = watch(detector, pictures)
    assert found[0][0].box[0] < 3
    for (face,), picture in list(zip(found, pictures, strict=True))[1:]:
        (expected,) = detector(picture)
        at_edge = face.box[0] < track.EDGE * face.box[2]
        np.testing.assert_allclose(face.box, expected.box, atol=0.5 if at_edge else 8)


def test_a_face_that_jumps_is_searched(detector):
    pictures = [scene((640, 480), (200, left, 100)) for left in (100, 100, 160, 160)]
    found = watch(detector, pictures)
    for (face,), picture in zip(found, pictures, strict=True):
        np.testing.assert_allclose(face.eyes, detector(picture)[0].eyes, atol=1.5)
    np.testing.assert_allclose(found[2][0].box, detector(pictures[2])[0].box, atol=0.5)  # the detector's own


def test_a_face_that_leaves_and_comes_back(detector):
    here, away = scene((640, 480), (200, 200, 100)), scene((640, 480))
    found = watch(detector, [here] * 4 + [away] * 9 + [here] * 10)
    counts = [len(faces) for faces in found]
    assert counts[:13] == [1] * 4 + [0] * 9
    assert counts[13 + track.EVERY :] == [1] * (10 - track.EVERY)
    assert counts[13:] == sorted(counts[13:])  # once it is found, it is found in every frame


def test_after_a_cut_the_whole_frame_is_searched(detector):
    one = scene((640, 480), (200, 40, 100))
    other = Image.new("RGB", (640, 480), (250, 250, 250))
    other.paste(head(200), (40, 100))
    other.paste(head(150), (440, 200))
    assert [len(faces) for faces in watch(detector, [one] * 3 + [other] * 2)] == [1, 1, 1, 2, 2]


def test_frames_far_apart_are_searched_as_wholes(detector):
    one, two = scene((640, 480), (200, 40, 100)), scene((640, 480), (200, 40, 100), (150, 440, 200))
    assert [len(faces) for faces in watch(detector, [one, two, one, two], fps=4)] == [1, 2, 1, 2]
    assert wholes(detector, 640) == 4


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """48 frames of a face that sways, with a second one in the later half."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    seconds = [[(100, 200, 60)] if number >= 24 else [] for number in range(48)]
    write_video(path, [scene((320, 240), (140, 30 + n % 12, 50), *more) for n, more in enumerate(seconds)])
    return path


def test_few_frames_are_held_at_once(tiny_checkpoint, film, tmp_path, monkeypatch):
    alive, most, lock = 0, 0, threading.Lock()

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def counted(*words):
        nonlocal alive, most
        for frame in video_frames(*words):
            weakref.finalize(frame.image, gone)
            with lock:
                alive, most = alive + 1, max(most, alive + 1)
            yield frame

    monkeypatch.setattr(runner, "video_frames", counted)
    words = ["--batch_size", "16", "--formats", "disfa", "--out", str(tmp_path / "aus.csv")]
    assert run([str(film), "--model", str(tiny_checkpoint), *words]) == 0
    assert len((tmp_path / "aus.csv").read_text().splitlines()) == 1 + 48 + 24
    assert most <= 3


# Running ahead


def test_ahead_keeps_order_and_stays_close():
    made, taken = 0, 0
    furthest = 0

    def numbers():
        nonlocal made, furthest
        for number in range(50):
            made += 1
            furthest = max(furthest, made - taken)
            yield number

    for number in ahead(numbers(), 2):
        assert number == taken
        taken += 1
    assert taken == 50
    assert furthest <= 4  # two that wait, one that is being taken, one being made


def test_ahead_works_while_its_items_are_used():
    started = threading.Event()

    def two():
        yield 1
        started.set()
        yield 2

    items = ahead(two(), 1)
    assert next(items) == 1
    assert started.wait(10)  # nobody has asked for the second
    assert list(items) == [2]


def test_ahead_raises_in_place_and_stops_when_closed():
    def broken():
        yield 1
        raise ValueError("no more")

    items = ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)

    made = []
    endless = ahead((made.append(number) or number for number in iter(int, 1)), 2)
    next(endless)
    endless.close()
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count
