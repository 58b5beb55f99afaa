"""The JavaScript of the page that reads in the browser, piece by piece against the Python that it repeats."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from chromium import chromium, serving
from PIL import Image

from au_llava.action_units import MAIN_FORMATS, get_format
from au_llava.au_faces import points
from au_llava.au_faces.crop import Face, crop_face, cut_square
from au_llava.au_faces.detect import MIN_CONFIDENCE, YuNet
from au_llava.au_faces.photo import Photo
from au_llava.au_publishing import static_space
from au_llava.au_recognition.runner import reading_of
from au_llava.au_rendering.pictures import render_face
from au_llava.consistency_au_llava import contradictions
from au_llava.readings_au_llava import AUResult, slot_answers

pytestmark = pytest.mark.slow
FMTS = tuple(map(get_format, MAIN_FORMATS))


@pytest.fixture(scope="module")
def page():
    """A page beside the modules: `page.evaluate` may import them."""
    with chromium() as browser, serving(static_space.PAGE) as address:
        page = browser.new_page()
        page.goto(f"{address}THIRD_PARTY.txt")
        yield page


def call(page, module, function, *arguments):
    """What a function of a module returns for arguments in JSON's types; typed arrays come back as lists."""
    return page.evaluate(
        """async ([module, name, given]) => {
            const scope = await import(`/${module}`);
            const result = await scope[name](...given.map(prepared));
            return JSON.parse(JSON.stringify(result, (_, value) => ArrayBuffer.isView(value) ? [...value] : value));

            function prepared(value) {
                if (typeof value?.filter === "string") return scope.FILTERS[value.filter];
                if (value?.floats) return Float32Array.from(value.floats);
                if (value?.pixels) return {...value, pixels: Uint8Array.from(value.pixels)};
                if (value?.answers) {
                    const entries = Object.entries(value.answers);
                    return Object.fromEntries(entries.map(([key, list]) => [key, Float32Array.from(list)]));
                }
                return value;
            }
        }""",
        [module, function, list(arguments)],
    )


def sent(image):
    return {"width": image.width, "height": image.height, "pixels": np.asarray(image).ravel().tolist()}


def received(answer):
    return np.array(answer["pixels"], np.uint8).reshape(answer["height"], answer["width"], 3)


@pytest.fixture(scope="module")
def noise():
    """A picture whose pixels have nothing to do with each other: any other arithmetic shows."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8))


@pytest.mark.parametrize("size", [(40, 53), (90, 30), (17, 120), (200, 250), (90, 120)])
@pytest.mark.parametrize("name", ["box", "bicubic"])
def test_resizing_is_pillows(page, noise, name, size):
    shown = received(call(page, "resample.js", "resize", sent(noise), *size, {"filter": name}))
    assert (shown == np.asarray(noise.resize(size, Image.Resampling[name.upper()]))).all()


@pytest.mark.parametrize(
    "eyes",
    [
        ((30.2, 50.7), (63.1, 48.2)),  # as large as the crop
        ((40, 60), (48, 61)),  # enlarged
        ((5.5, 30), (84.4, 90.3)),  # shrunk, turned, beyond the picture
        ((60, 20), (30, 25)),  # upside down
    ],
)
def test_crops_are_those_of_python(page, noise, eyes):
    settings = {"size": 96, "eye_distance": static_space.crop.EYE_DISTANCE, "eye_height": static_space.crop.EYE_HEIGHT}
    crop = received(call(page, "crop.js", "cropFace", sent(noise), eyes, settings))
    assert (crop == np.asarray(crop_face(noise, eyes, 96))).all()


def test_eyes_in_one_place_are_refused(page, noise):
    with pytest.raises(Exception, match="less than a pixel apart"):
        call(page, "crop.js", "cropFace", sent(noise), ((5, 5), (5.2, 5)), {"size": 96})


@pytest.fixture(scope="module")
def crowd():
    """Four people of different sizes; sides that are not on YuNet's grid."""
    photograph = Image.new("RGB", (430, 330), (90, 120, 150))
    for subject, (size, place) in enumerate(
        [(96, (10, 20)), (160, (120, 10)), (140, (285, 20)), (110, (60, 200))], start=3
    ):
        photograph.paste(Image.fromarray(render_face({"AU12": 0.5}, subject=subject, size=size)), place)
    return photograph


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "yunet.onnx"
    static_space.save_detector(YuNet().path, path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def opencv_rows(image):
    cv2 = pytest.importorskip("cv2")
    detector = cv2.FaceDetectorYN.create(str(YuNet().path), "", image.size, MIN_CONFIDENCE)
    return detector.detect(np.ascontiguousarray(np.asarray(image)[..., ::-1]))[1]


def test_the_detector_is_read_as_opencv_reads_it(page, network, crowd):
    settings = static_space.detector_settings()
    put = call(page, "yunet.js", "networkInput", sent(crowd), settings["grid"])
    assert put["shape"] == [1, 3, 352, 448]
    answers = network.run(None, {"input": np.array(put["data"], np.float32).reshape(put["shape"])})
    named = {
        output.name: answer.ravel().tolist() for output, answer in zip(network.get_outputs(), answers, strict=True)
    }
    faces = call(page, "yunet.js", "facesOf", {"answers": named}, put["shape"][3], settings)
    rows = opencv_rows(crowd)
    faces = [face for face in faces if face["confidence"] >= MIN_CONFIDENCE]
    assert len(faces) == len(rows) == 4
    for face, row in zip(faces, rows, strict=True):
        assert face["confidence"] == pytest.approx(row[14], abs=1e-4)
        assert face["box"] == pytest.approx(row[:4], abs=0.02)
        assert np.ravel(face["points"]) == pytest.approx(row[4:14], abs=0.02)


def test_nothing_is_found_where_nothing_is(page):
    settings = static_space.detector_settings()
    empty = {
        f"{name}_{stride}": [0.0] * (width * (64 // stride) ** 2)
        for stride in settings["strides"]
        for name, width in {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}.items()
    }
    assert call(page, "yunet.js", "facesOf", {"answers": empty}, 64, settings) == []


def test_overlap_is_the_shared_area(page):
    assert call(page, "yunet.js", "overlap", [0, 0, 10, 10], [5, 0, 10, 10]) == pytest.approx(50 / 150)
    assert call(page, "yunet.js", "overlap", [0, 0, 10, 10], [20, 20, 5, 5]) == 0


@pytest.mark.parametrize("fmt", FMTS, ids=MAIN_FORMATS)
def test_answers_are_those_of_python(page, fmt):
    rng = np.random.default_rng(len(fmt.labels))
    shares = rng.dirichlet(np.full(len(fmt.value_numbers), 0.1), len(fmt.labels)).astype(np.float32)
    shares[0, :2] += 1 - shares[0].sum()
    thresholds = rng.random(len(fmt.labels)).round(4)
    calibration = {
        "formats": {
            fmt.name: {
                "scale": fmt.scale,
                "presence_threshold": fmt.presence_threshold,
                "aus": {
                    label: {"method": "none", "threshold": threshold}
                    for label, threshold in zip(fmt.labels, thresholds.tolist(), strict=True)
                },
            }
        }
    }
    read = {fmt.name: shares[None].astype(float)}
    expected = reading_of(AUResult({fmt.name: slot_answers(read, (fmt,), calibration)[0][0]}))["answers"][fmt.name]
    told = {
        "labels": fmt.labels,
        "scale": fmt.scale,
        "values": fmt.value_numbers,
        "presence_threshold": fmt.presence_threshold,
        "thresholds": thresholds.tolist(),
    }
    answer = call(page, "reading.js", "answerOf", {"floats": shares.ravel().tolist()}, told, static_space.BAND)
    assert answer.keys() == expected.keys()
    for kind in ("value", "present", "low", "high"):
        assert answer[kind] == expected[kind], kind
    for kind in ("expected", "probability"):
        assert answer[kind] == pytest.approx(expected[kind], abs=1.1e-4), kind


def test_contradictions_are_those_of_python(page):
    rng = np.random.default_rng(2)
    rules = static_space.contradiction_rules(FMTS)
    found = 0
    for _ in range(20):
        present = {fmt.name: (rng.random(len(fmt.labels)) < 0.3).tolist() for fmt in FMTS}
        value = {
            fmt.name: [int(there or rng.random() < 0.2) for there in present[fmt.name]] for fmt in FMTS
        }  # an absent one may be weak
        answers = {
            fmt.name: {
                label: SimpleNamespace(present=there, value=number)
                for label, there, number in zip(fmt.labels, present[fmt.name], value[fmt.name], strict=True)
            }
            for fmt in FMTS
        }
        expected = sorted(map(str, contradictions(answers)))
        given = {name: {"present": present[name], "value": value[name]} for name in present}
        assert sorted(call(page, "reading.js", "contradictions", given, rules)) == expected
        found += len(expected)
    assert found > 20


def test_pixels_are_those_of_the_image_processor(page, noise):
    from au_llava.image_processing_au_llava import AuLlavaImageProcessor

    square = noise.crop((0, 0, 90, 90))
    images = AuLlavaImageProcessor(
        size={"shortest_edge": 90},
        crop_size={"height": 90, "width": 90},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    expected = images(square, return_tensors="np")["pixel_values"].ravel()
    values = call(page, "reading.js", "pixelValues", sent(square), {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]})
    assert values == pytest.approx(expected, abs=1e-5)


def test_a_face_keeps_its_number_until_it_is_forgotten(page):
    numbers = page.evaluate(
        """async () => {
            const { Follower } = await import("/follow.js");
            const follower = new Follower();
            const [left, right] = [[0, 0, 50, 50], [100, 0, 50, 50]];
            const of = (...boxes) => follower.number(boxes.map((box) => ({ box }))).map(({ face_id }) => face_id);
            const seen = [of(left), of(right, [3, 2, 50, 50]), of(), of([98, 1, 50, 50]), of(left, right)];
            for (let frame = 0; frame < 30; frame++) of();
            return [...seen, of(right)];
        }"""
    )
    assert numbers == [[0], [1, 0], [], [1], [0, 1], [2]]


def frames_of(page, path):
    """How many frames of a file the page reads as a video, and the sentence with which it ends, if any."""
    return page.evaluate(
        """async ([name, bytes]) => {
            const { Frames } = await import("/sources.js");
            let count = 0;
            try {
                const frames = await Frames.ofVideo(new File([Uint8Array.from(bytes)], name));
                while (await frames.next()) count += 1;
                return [count, null];
            } catch (error) {
                return [count, error.message];
            }
        }""",
        [path.name, list(path.read_bytes())],
    )


def test_a_video_without_pictures_and_one_that_breaks_off_end_in_a_sentence(page, tmp_path):
    av = pytest.importorskip("av")
    sound, film = tmp_path / "sound.webm", tmp_path / "film.webm"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("libopus", rate=48000)
        for start in range(0, 2 * 48000, 960):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 64, 3), np.uint8))))
        container.mux(stream.encode())
    assert frames_of(page, sound) == [0, "sound.webm holds no moving pictures that this browser can show."]
    count, problem = frames_of(page, film)
    assert 1 <= count <= 10
    assert problem is None
    content = film.read_bytes()
    with av.open(str(film)) as container:
        for packet in map(bytes, list(container.demux(video=0))[5:10]):
            content = content.replace(packet, bytes([255]) * len(packet))
    film.write_bytes(content)
    count, problem = frames_of(page, film)
    assert count <= 6
    assert problem == "The video breaks off here: it is damaged, or this browser cannot read on."


def test_file_names_in_the_table_are_quoted(page):
    columns = {"face": ["file", "frame", "success"], "box": [], "eyes": [], "pose": [], "aus": {}}
    line = call(page, "table.js", "row", {"file": 'a "b", c.png', "frame": 3, "time": 0.5}, None, columns)
    assert line == '"a ""b"", c.png",3,0\r\n'


@pytest.mark.parametrize("looked", ["trusted", "not trusted", "outside"])
def test_points_are_placed_as_in_python(page, crowd, looked, monkeypatch):
    """With a network whose answer is known and depends on the crop."""
    guess = np.array([[40, 60], [75, 58], [57, 80], [45, 98], [74, 96]], dtype=float)
    moves = np.random.default_rng(3).normal(scale=5 if looked == "outside" else 0.02, size=15)
    moves[10:14] = 0.3, -0.2, 0.1, 0.9  # directions ahead and up
    moves[14] = -1 if looked == "not trusted" else 2

    def look(self, image, frames):
        [(edge, corner)] = frames
        cut = cut_square(image, points._xy(corner), points._xy(edge / abs(edge)), abs(edge) / points.SIDE, points.SIDE)
        crop = np.asarray(cut, float).transpose(2, 0, 1).ravel()
        row = moves.copy()
        row[0] += crop @ np.arange(len(crop)) / 1e11
        return row[None]

    monkeypatch.setattr(points.FacePoints, "_look", look)
    face = Face(tuple(map(tuple, guess[:2])), (30, 40, 60, 80), 0.9, points=tuple(map(tuple, guess)))
    [expected] = points.placed(Photo(crowd), [face])
    settings = {"side": points.SIDE, "template": points.TEMPLATE.tolist(), "trusted": points.TRUSTED}
    settings |= {"passes": points.PASSES, "digits": points.DIGITS, "above": points.ABOVE, "apart": points.APART}
    found = page.evaluate(
        """async ([image, guess, moves, settings]) => {
            const { placed } = await import("/points.js");
            image.pixels = Uint8Array.from(image.pixels);
            const run = (crop) => {
                const row = [...moves];
                row[0] += crop.reduce((sum, number, place) => sum + number * place, 0) / 1e11;
                return row;
            };
            return placed(image, guess, run, settings);
        }""",
        [sent(crowd), guess.tolist(), moves.tolist(), settings],
    )
    assert np.array(found["points"]) == pytest.approx(np.array(expected.points), abs=1e-9)
    assert (np.abs(np.array(found["points"]) - guess).max() > 0.1) == (looked == "trusted")
    assert found["pose"] == (expected.pose and pytest.approx(expected.pose, abs=1e-9))
    assert (expected.pose is None) == (looked != "trusted")
