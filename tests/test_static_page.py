"""The page that reads in the browser itself, in a Chromium: the numbers, the webcam, and what can go wrong.

Needs ONNX Runtime Web: ONNXRUNTIME_WEB names the file that `npm pack onnxruntime-web@1.30.0` writes.
"""

import csv
import io
import os
import re

import numpy as np
import pytest
from chromium import CHROMIUM, WEBCAM, chromium, serving
from conftest import ROOT
from PIL import Image

from au_llava import recognize_au
from au_llava.au_publishing import app_space, static_space
from au_llava.au_recognition.tables import au_columns
from au_llava.au_rendering.pictures import render_face

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "assets" / "faces"
READY = "Ready: use the camera, or open a picture or a video."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page with the shipped checkpoint, as the command builds it."""
    package = os.environ.get("ONNXRUNTIME_WEB")
    if package is None:
        pytest.skip("ONNXRUNTIME_WEB does not name the file that `npm pack onnxruntime-web@1.30.0` writes")
    out = tmp_path_factory.mktemp("static") / "page"
    assert app_space.run([str(out), "--static", "--onnxruntime-web", package]) == 0
    return out


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A webcam's picture: one person who smiles, on the left of a wall."""
    picture = Image.new("RGB", (640, 480), (120, 130, 140))
    picture.paste(Image.open(EXAMPLES / "smile.png").convert("RGB").resize((300, 300)), (40, 90))
    frame = io.BytesIO()
    picture.save(frame, "JPEG", quality=95)
    path = tmp_path_factory.mktemp("webcam") / "smile.mjpeg"
    path.write_bytes(frame.getvalue() * 30)
    return path


@pytest.fixture(scope="module")
def browser(film):
    with chromium(*WEBCAM, f"--use-file-for-fake-video-capture={film}") as started:
        yield started


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder) as served:
        yield served


@pytest.fixture
def open_page(browser, address):
    """Opens the page; checks at the end that nothing but its folder was asked for, and that no script failed."""
    contexts, fetched, errors = [], [], []

    def go(query="", width=1280, height=900, prepare=lambda page: None, wait_for=READY, started=browser, **options):
        context = started.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: fetched.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        prepare(page)
        page.goto(address + query)
        page.get_by_text(wait_for).wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert fetched
    assert [url for url in fetched if not url.startswith((address, "blob:", "data:"))] == []
    assert errors == []


def upload(page, path):
    page.locator("#file").set_input_files(path)


def saved_table(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the table").click()
    with download.value.path().open(encoding="utf-8", newline="") as file:
        return download.value.suggested_filename, list(csv.DictReader(file))


def numbers_of(rows, columns):
    return np.array([[float(row[column]) for column in columns] for row in rows])


def read_by_python(path, tmp_path):
    out = tmp_path / f"{path.stem}-python.csv"
    assert recognize_au.run([str(path), "--out", str(out)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of every kind: faces that are small, large, several, transparent, turned upright by EXIF."""
    folder = tmp_path_factory.mktemp("pictures")
    smile = Image.open(EXAMPLES / "smile.png").convert("RGB")
    crowd = Image.new("RGB", (420, 240), (90, 120, 150))
    crowd.paste(Image.fromarray(render_face({"AU12": 1}, subject=3, size=96)), (20, 60))
    crowd.paste(Image.fromarray(render_face({}, subject=5, size=160)), (220, 40))
    crowd.save(folder / "crowd.png")
    large = Image.new("RGB", (1400, 1100), (40, 40, 40))
    large.paste(smile.resize((900, 900), Image.Resampling.BICUBIC), (300, 100))
    large.save(folder / "large.png")
    see_through = smile.resize((300, 300)).convert("RGBA")
    see_through.putalpha(200)
    see_through.save(folder / "see-through.png")
    lying = smile.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    lying.save(folder / "lying.jpg", quality=95, exif=exif)
    astronaut = pytest.importorskip("skimage.data").astronaut()
    Image.fromarray(astronaut).save(folder / "astronaut.png")
    (folder / "note.png").write_text("This is a text.")
    Image.new("RGB", (200, 100), "gray").save(folder / "wall.png")
    return folder


# The numbers


@pytest.mark.parametrize("query", ["", "?weights=int8"], ids=["float32", "int8"])
def test_numbers_are_those_of_python(open_page, pictures, tmp_path, query):
    page = open_page(query)
    paths = [*sorted(EXAMPLES.glob("*.png")), *(pictures / f"{name}.png" for name in ("crowd", "large", "astronaut"))]
    paths += [pictures / "see-through.png", pictures / "lying.jpg"]
    columns = list(au_columns(static_space.FORMATS))
    decisions = [column for column in columns if column.endswith("_c")]
    others = [column for column in columns if column not in decisions]
    differences, agreement = [], []
    for path in paths:
        upload(page, path)
        page.get_by_text(re.compile(rf"^{re.escape(path.name)}: \d face")).wait_for()
        name, rows = saved_table(page)
        expected = read_by_python(path, tmp_path)
        assert name == f"{path.stem}-aus.csv"
        assert list(rows[0]) == list(expected[0])
        assert len(rows) == len(expected)
        assert [row["face_id"] for row in rows] == [row["face_id"] for row in expected]
        eyes = numbers_of(rows, static_space.EYES) - numbers_of(expected, static_space.EYES)
        assert np.abs(eyes).max() <= 0.0101, path.name  # of a pixel, to whose hundredths they are rounded
        pose = numbers_of(rows, static_space.POSE) - numbers_of(expected, static_space.POSE)
        assert np.abs(pose).max() <= 1e-3, path.name
        differences.append(np.abs(numbers_of(rows, others) - numbers_of(expected, others)).max())
        agreement.append((numbers_of(rows, decisions) == numbers_of(expected, decisions)).mean())
    if query:
        assert max(differences) < 0.2
        assert np.mean(agreement) >= 0.99
    else:
        assert np.round(differences, 4).max() <= 1e-3
        assert min(agreement) == 1


def test_several_threads_give_the_same_numbers(browser, folder):
    with serving(folder, static_space.HEADERS.items()) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text(READY).wait_for(timeout=60_000)
        if page.evaluate("navigator.hardwareConcurrency") > 1:
            assert re.search(r"WebAssembly, \d threads", page.locator("#engine").text_content())
        page.close()


def test_the_graphics_card_gives_the_same_numbers(browser, open_page, folder, pictures, tmp_path):
    """WebGPU in software, which the page itself does not take for a graphics card."""
    options = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    script = (folder / "engine.js").read_text()
    taken = re.sub("const software = .*;", "const software = !adapter;", script)
    assert taken != script

    def prepare(page):
        page.set_default_timeout(240_000)
        page.route("**/engine.js", lambda route: route.fulfill(body=taken, content_type="text/javascript"))

    columns = list(au_columns(static_space.FORMATS))
    started = browser.browser_type.launch(executable_path=CHROMIUM, args=options)
    try:
        page = open_page(prepare=prepare, started=started)
        if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
            pytest.skip("this Chromium has no WebGPU in software")
        assert "WebGPU" in page.locator("#engine").text_content()
        for path in (EXAMPLES / "surprise.png", pictures / "astronaut.png"):
            upload(page, path)
            page.get_by_text(re.compile(rf"^{re.escape(path.name)}: 1 face")).wait_for()
            _, rows = saved_table(page)
            differences = numbers_of(rows, columns) - numbers_of(read_by_python(path, tmp_path), columns)
            assert np.abs(np.round(differences, 4)).max() <= 1e-3, path.name
        page.context.close()
    finally:
        started.close()


def test_tables_and_crop_show_what_was_read(open_page, tmp_path):
    page = open_page()
    page.get_by_role("button", name="smile").click()
    page.get_by_text("smile.png: 1 face").wait_for()
    [expected] = read_by_python(EXAMPLES / "smile.png", tmp_path)
    sections = page.locator("#tables section")
    assert sections.count() == 3
    row = sections.nth(0).get_by_role("row").filter(has_text="AU12")
    assert float(row.locator(".number").inner_text()) == pytest.approx(float(expected["AU12_p"]), abs=0.0061)
    assert "present" in row.get_attribute("class")
    assert row.get_by_role("rowheader").text_content().endswith(", present")
    width = float(row.locator(".bar").evaluate("bar => parseFloat(bar.style.width)"))
    assert width == pytest.approx(100 * float(expected["AU12_p"]), abs=0.2)
    absent = sections.nth(0).get_by_role("row").filter(has_text="AU15")
    assert absent.get_attribute("class") == ""
    assert page.locator("#crop").evaluate("canvas => [canvas.width, canvas.height]") == [96, 96]


def test_the_face_can_be_chosen(open_page, pictures):
    page = open_page()
    upload(page, pictures / "crowd.png")
    page.get_by_text("crowd.png: 2 faces").wait_for()
    before = page.locator("#tables").inner_text()
    page.get_by_role("radio", name="face 1").check()
    assert page.locator("#tables").inner_text() != before
    page.get_by_role("radio", name="face 0").check()
    assert page.locator("#tables").inner_text() == before
    assert len(saved_table(page)[1]) == 2


# The webcam and videos


def test_the_webcam_is_read_live(open_page, tmp_path):
    page = open_page()
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_text("frames a second").wait_for()
    row = page.locator("#tables section").nth(0).get_by_role("row").filter(has_text="AU12")
    assert "present" in row.get_attribute("class")
    colors = page.locator("#timeline").evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    )
    assert colors > 3
    page.get_by_label("Format").select_option("feafa")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile(r"Stopped after \d+ frames\.")).wait_for()
    name, rows = saved_table(page)
    assert name == "camera-aus.csv"
    assert len(rows) == int(re.search(r"\d+", page.locator("#status").inner_text())[0]) >= 20
    times = [float(row["timestamp"]) for row in rows]
    assert times[0] == 0
    assert times == sorted(times)
    assert [int(row["frame"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["face_id"] for row in rows} == {"0"}
    box = [float(rows[-1][column]) for column in static_space.BOX]
    assert 40 < box[0] + box[2] / 2 < 340  # not mirrored
    page.get_by_role("button", name="Start a new table").click()
    assert page.get_by_role("button", name="Save the table").is_hidden()


def test_a_video_is_read_to_its_end(open_page, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 320, "yuv420p"
        picture = Image.open(EXAMPLES / "surprise.png").convert("RGB").resize((320, 320))
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    page = open_page()
    upload(page, path)
    page.get_by_text(re.compile(r"Stopped after \d+ frames?\.")).wait_for()
    _, rows = saved_table(page)
    assert 1 <= len(rows) <= 21
    assert float(rows[-1]["timestamp"]) <= 2.1
    assert float(rows[0]["AU26_r"]) > 1


def test_another_file_stops_the_webcam(open_page):
    page = open_page()
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="wink").click()
    page.get_by_text("wink.png: 1 face").wait_for()
    assert page.get_by_role("button", name="Stop").is_hidden()
    assert len(saved_table(page)[1]) == 1


# What can go wrong


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("note.png", "note.png is not a picture or video that this browser can read."),
        ("wall.png", "wall.png shows no face whose two eyes can be seen."),
    ],
)
def test_a_bad_file_is_explained_in_a_sentence(open_page, pictures, name, sentence):
    page = open_page()
    upload(page, pictures / name)
    page.get_by_role("alert").get_by_text(sentence).wait_for()
    page.get_by_role("button", name="rest").click()  # and the page goes on
    page.get_by_text("rest.png: 1 face").wait_for()
    assert page.get_by_role("alert").inner_text() == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "No camera was found: connect one, or open a picture or a video."),
        (WEBCAM[1:], "The camera is not allowed: allow it for this page in the browser, or open a picture or a video."),
    ],
    ids=["no camera", "not allowed"],
)
def test_without_a_camera(browser, open_page, options, sentence):
    started = browser.browser_type.launch(executable_path=CHROMIUM, args=list(options))
    permissions = {} if options else {"permissions": ["camera"]}
    page = open_page(started=started, **permissions)
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("alert").get_by_text(sentence).wait_for()
    assert page.get_by_role("button", name="Stop").is_hidden()
    upload(page, EXAMPLES / "rest.png")
    page.get_by_text("rest.png: 1 face").wait_for()
    started.close()


@pytest.mark.parametrize(
    ("file", "body", "sentence"),
    [
        ("onnx/model.onnx", None, "onnx/model.onnx could not be loaded (404): reload the page."),
        ("onnx/model.onnx", b"nothing", "The model could not be started"),
        ("settings.json", None, "settings.json could not be loaded"),
        ("worker.js", None, "The model could not be started: reload the page, or use another browser."),
        ("onnxruntime/ort.wasm.bundle.min.mjs", None, "The model could not be started"),
    ],
)
def test_files_that_do_not_load(open_page, file, body, sentence):
    def spoil(page):
        answer = {"status": 404} if body is None else {"body": body}
        page.context.route(f"**/{file}", lambda route: route.fulfill(**answer))

    page = open_page(prepare=spoil, wait_for=sentence)
    assert page.get_by_role("button", name="Use the camera").is_disabled()


def test_without_webassembly(open_page):
    worker = (static_space.PAGE / "worker.js").read_text()

    def without(page):
        body = f"delete self.WebAssembly;\n{worker}"
        page.context.route("**/worker.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))

    open_page(prepare=without, wait_for="This browser has no WebAssembly, which the page needs")


def test_an_engine_that_computes_wrongly_is_not_used(open_page, folder):
    told = (folder / "settings.json").read_text()
    [first] = re.findall(r'"check": \{\s*"bp4d": \[\s*([\d.]+)', told)[:1]
    wrong = told.replace(first, str(1 - float(first)), 1)
    open_page(
        prepare=lambda page: page.context.route("**/settings.json", lambda route: route.fulfill(body=wrong)),
        wait_for="The model could not be started: answers differ from those of Python by",
    )


def test_unknown_weights_are_named(open_page):
    open_page("?weights=int4", wait_for="There are no weights int4: choose float32 or int8.")


# Privacy, small screens, keyboards, screen readers


def test_nothing_is_fetched_once_the_page_is_ready_and_nothing_may_be(open_page):
    page = open_page()
    later = []
    page.on("request", lambda request: later.append(request.url))
    page.context.set_offline(True)
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_text("frames a second").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped after").wait_for()
    assert [url for url in later if not url.startswith("blob:")] == []
    page.context.set_offline(False)
    for elsewhere in ("https://example.org/", "http://127.0.0.1:1/"):  # the browser refuses, before any connection
        refused = page.evaluate(
            """async (url) => {
                const refusal = new Promise((resolve) => document.addEventListener("securitypolicyviolation",
                    (event) => resolve(event.violatedDirective), {once: true}));
                await fetch(url).catch(() => {});
                return refusal;
            }""",
            elsewhere,
        )
        assert refused == "connect-src"


def test_a_narrow_screen_by_keyboard(open_page):
    page = open_page(width=360, height=740)
    page.on("filechooser", lambda chooser: chooser.set_files(EXAMPLES / "frown.png"))
    page.get_by_role("button", name="Use the camera").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "open"
    page.keyboard.press("Enter")
    page.get_by_text("frown.png: 1 face").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="smile").press("Enter")
    page.get_by_text("smile.png: 1 face").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(open_page, pictures, scheme):
    page = open_page(color_scheme=scheme)
    upload(page, pictures / "crowd.png")
    page.get_by_text("crowd.png: 2 faces").wait_for()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, button, canvas, select, a, img")].filter(each =>
            each.checkVisibility() && !(each.ariaLabel || each.alt || each.innerText?.trim() || each.labels?.length
            || each.closest("label, button, [aria-hidden=true]"))).map(each => each.outerHTML)"""
    )
    assert nameless == []
    pairs = [("ink", "paper"), ("quiet", "paper"), ("ink", "ground"), ("on-present", "present")]
    colors = page.evaluate(
        """names => names.map(name => {
            const probe = document.body.appendChild(document.createElement("i"));
            probe.style.color = `var(--${name})`;
            const color = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
            probe.remove();
            return color;
        })""",
        [name for pair in pairs for name in pair],
    )
    for pair, one, other in zip(pairs, colors[::2], colors[1::2], strict=True):
        assert contrast(one, other) >= 4.5, pair  # WCAG 2, level AA


def contrast(one, other):
    """WCAG's ratio of two sRGB colors."""

    def luminance(color):
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in np.array(color) / 255
        ]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)
