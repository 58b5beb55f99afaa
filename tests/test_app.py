"""The page: what it reads, draws, refuses and deletes; in a browser too, where one is installed."""

import base64
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from chromium import WEBCAM, chromium
from conftest import ROOT
from PIL import Image, ImageOps

pytest.importorskip("gradio", reason="the page needs the extra `app`")
import httpx
from gradio_client import Client, handle_file

from au_llava import app, recognize_au
from au_llava.action_units import FORMATS, MAIN_FORMATS, get_format
from au_llava.au_page import markup
from au_llava.au_page.drawing import draw, strengths_of
from au_llava.au_page.page import NOT_UPLOADED, build
from au_llava.au_page.reader import FORMATS as READ_FORMATS
from au_llava.au_page.reader import Reader
from au_llava.au_publishing import app_space
from au_llava.au_recognition.reasons import Explanation
from au_llava.au_recognition.runner import reading_of
from au_llava.au_rendering.activations import NAMES
from au_llava.au_rendering.pictures import render_face
from au_llava.onnx_au_llava import graph_fits

EXAMPLES = ROOT / "assets" / "faces"
# What a row of a table of the page holds: whether it is marked as present, its AU, its numbers.
ROW = re.compile(
    r'<tr( class="au-present")?><th scope="row"[^>]*>\s*(\w+) .*?</th>.*?((?:<td class="au-number">[^<]*</td>)+)</tr>',
    re.DOTALL,
)


@pytest.fixture(scope="module")
def reader(tiny_checkpoint):
    return Reader(tiny_checkpoint)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A photograph of two people, the second the larger."""
    photograph = Image.new("RGB", (420, 240), (90, 120, 150))
    photograph.paste(Image.fromarray(render_face({"AU12": 1}, subject=3, size=96)), (20, 60))
    photograph.paste(Image.fromarray(render_face({}, subject=5, size=160)), (220, 40))
    path = tmp_path_factory.mktemp("crowd") / "crowd.png"
    photograph.save(path)
    return path


@pytest.fixture(scope="module")
def not_pictures(tmp_path_factory):
    """A text under the name of a picture, and a picture without a face."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "note.png").write_text("This is a text.")
    Image.new("RGB", (200, 100), "gray").save(folder / "wall.png")
    return folder


@pytest.fixture(scope="module")
def launched(reader, tmp_path_factory):
    """The page, served with the tiny checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = build(reader)
        page.launch(prevent_thread_lock=True, quiet=True)
        yield page
        page.close()


@pytest.fixture(scope="module")
def served(launched):
    """Address of the page and the folder of its uploads."""
    return launched.local_url, Path(launched.GRADIO_CACHE)


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    return Client(served[0], verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def tables_of(html):
    """Format -> AU -> (present, numbers)."""
    sections = re.findall(r"<section><h3>([\w-]+) (.*?)</section>", html, re.DOTALL)
    return {
        name: {
            label: (bool(present), list(map(float, re.findall(r">([\d.]+)<", numbers))))
            for present, label, numbers in ROW.findall(section)
        }
        for name, section in sections
    }


def csv_of(html):
    content = base64.b64decode(re.search(r'href="data:text/csv;base64,([^"]+)"', html)[1]).decode()
    return list(csv.DictReader(io.StringIO(content, newline="")))


# Reading


def test_every_face_is_read_and_the_table_is_that_of_the_command(client, crowd, tiny_checkpoint, tmp_path):
    choice, seen, answer = client.predict(handle_file(crowd), api_name="/read")
    assert choice["choices"] == [["face 0", 0], ["face 1", 1]]
    assert choice["value"] == 0
    assert choice["visible"] is True
    assert "crowd.png: 2 faces" in seen
    words = [str(crowd), "--model", str(tiny_checkpoint), "--out", str(tmp_path / "aus.csv")]
    assert recognize_au.run(words) == 0
    with (tmp_path / "aus.csv").open(encoding="utf-8", newline="") as file:
        expected = [{**row, "file": "crowd.png"} for row in csv.DictReader(file)]
    assert csv_of(answer) == expected
    assert 'download="crowd-aus.csv"' in answer


def test_tables_show_the_numbers_of_the_first_face(client, crowd):
    _, _, answer = client.predict(handle_file(crowd), api_name="/read")
    first, tables = csv_of(answer)[0], tables_of(answer)
    assert {name: list(rows) for name, rows in tables.items()} == {
        name: list(FORMATS[name].labels) for name in MAIN_FORMATS
    }
    for label, (present, (probability,)) in tables["bp4d"].items():
        name = re.sub(r"\d+", lambda digits: f"{int(digits[0]):02d}", label)
        assert probability == pytest.approx(float(first[f"{name}_p"]), abs=0.00501)
        assert present == (first[f"{name}_c"] == "1.0")
    for label, (_, (mean, _)) in tables["disfa"].items():
        name = re.sub(r"\d+", lambda digits: f"{int(digits[0]):02d}", label)
        assert mean == pytest.approx(float(first[f"{name}_r"]), abs=0.0501)
    for label, (_, (mean, _)) in tables["feafa"].items():
        name = re.sub(r"\d+", lambda digits: f"{int(digits[0]):02d}", label)
        assert mean == pytest.approx(float(first[name]), abs=0.00501)


def test_bars_are_as_long_as_their_numbers_and_the_band_is_where_it_was_read():
    read = {"value": [0.0], "expected": [1.25], "probability": [0.3], "present": [False], "low": [1.0], "high": [3.0]}
    fmt = get_format({"name": "mine", "labels": ["AU12"], "scale": "intensity"})
    html = markup.tables({"mine": read}, [fmt], {"mine": [4.0]})
    assert 'class="au-bar" style="left:0;width:25.0%"' in html
    assert 'class="au-band" style="left:20.0%;right:40.0%"' in html
    assert 'class="au-mark" style="left:80.0%"' in html
    assert tables_of(html) == {"mine": {"AU12": (False, [4, 1.2, 0.3])}}


def test_a_bad_file_is_explained_in_a_sentence(client, not_pictures):
    for name, sentence in (
        ("note.png", "note.png cannot be read as an image: its format is unknown to Pillow"),
        ("wall.png", "wall.png shows no face whose two eyes can be seen."),
    ):
        choice, seen, answer = client.predict(handle_file(not_pictures / name), api_name="/read")
        assert choice["visible"] is False
        assert re.search('role="alert">(.*?)</p>', unescape(seen))[1] == sentence
        assert answer == ""


def test_an_upload_that_was_deleted_is_named(reader, not_pictures, tmp_path):
    functions = {fn.fn.__name__: fn.fn for fn in build(reader).fns.values() if fn.fn}
    gone = (str(tmp_path / "gone.png"), "me.png")
    sentence = "me.png was deleted, as every upload is after some minutes: choose it again."
    assert sentence in functions["read_largest"](gone)[1]
    assert sentence in functions["reason"](True, gone, 1, "bp4d")
    assert functions["reason"](True, (str(not_pictures / "wall.png"), "wall.png"), 0, "bp4d") == ""


def test_frames_of_a_webcam_are_read_one_by_one(reader, client, crowd, not_pictures):
    event = next(fn for fn in build(reader).fns.values() if fn.api_name == "watch")
    watch, webcam = event.fn, event.inputs[0]
    sent = f"data:image/png;base64,{base64.b64encode(crowd.read_bytes()).decode()}"  # as the browser does
    seen, answer = watch(webcam.preprocess(webcam.data_model(url=sent)))
    _, faces = reader.read(crowd, "crowd.png")
    expected = {name: [bool(present) for present in faces[0]["answers"][name]["present"]] for name in MAIN_FORMATS}
    assert {name: [row[0] for row in rows.values()] for name, rows in tables_of(answer).items()} == expected
    assert "webcam: 2 faces" in seen
    assert 'role="status"' not in seen  # which screen readers would read out five times a second
    assert "Download" not in answer
    program = io.BytesIO()
    Image.new("RGB", (64, 64)).save(program, "EPS")
    for content, sentence in (
        ((not_pictures / "wall.png").read_bytes(), "The webcam shows no face whose two eyes can be seen."),
        (program.getvalue(), "webcam cannot be read as an image: EPS is a program"),
    ):
        seen, answer = watch(content)
        assert sentence in seen
        assert answer == ""
    assert watch(None) == ("", "")  # a webcam that was switched off


def test_a_picture_of_too_many_pixels_is_refused(reader, tmp_path):
    Image.new("1", (10_000, 6_000)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"^wide\.png has 60 million pixels, more than 50: make it smaller\.$"):
        reader.read(tmp_path / "wide.png", "wide.png")


def test_file_names_are_text_not_markup(reader, crowd):
    image, faces = reader.read(crowd, "<b onload=x>.png")
    assert "<b onload" not in markup.picture(image, faces, 0)
    assert "<b onload" not in markup.tables(faces[0]["answers"], READ_FORMATS, file="<b onload=x>.csv", faces=faces)
    assert "<b onload" not in markup.part("problem", "<b onload=x> is bad")


def test_pytorch_is_imported_only_for_explanations():
    """The page starts and reads with ONNX Runtime alone."""
    program = """
import sys
from au_llava.au_page import page, reader as reading
reader = reading.Reader(page.HOME)
page.build(reader)
path = page.EXAMPLES / "smile.png"
_, faces = reader.read(path, path.name)
print(sorted({"torch", "transformers"} & sys.modules.keys()))
print(len(reader.explain(faces[0], reading.FORMATS[0])) > 0, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["[]", "True True"]


def test_reasons_name_every_au_that_is_present(reader, crowd):
    _, faces = reader.read(crowd, "crowd.png")
    fmt = FORMATS["feafa"]
    present = [label for label, there in zip(fmt.labels, faces[1]["answers"]["feafa"]["present"], strict=True) if there]
    assert present
    html = markup.reasons(reader.explain(faces[1], fmt), faces[1]["crop"])
    assert re.findall(r"<figcaption>(\w+) ", html) == present
    assert re.findall('alt="The face, tinted where the reading of (.*?) rests"', html) == present
    assert "No action unit of this format is read as present." in markup.reasons([], faces[1]["crop"])


def test_the_tint_is_where_the_evidence_is():
    evidence = np.zeros((96, 96), np.float32)
    evidence[:32, 64:] = 1
    explanation = Explanation(FORMATS["bp4d"], "AU1", 0.9, evidence, "AU1: a reason.")
    html = markup.reasons([explanation], Image.new("RGB", (96, 96), (100, 100, 100)))
    source = re.search('src="data:image/jpeg;base64,([^"]+)"', html)[1]
    tinted = np.float32(Image.open(io.BytesIO(base64.b64decode(source))))
    orange = 0.3 * 100 + 0.7 * np.array([0xD5, 0x5E, 0x00])
    assert tinted[20, 200] == pytest.approx(orange, abs=4)
    for row, column in ((20, 20), (200, 20), (200, 200)):
        assert tinted[row, column] == pytest.approx(100, abs=4)
    assert "AU1: a reason." in html


# Making


def test_sliders_make_strengths_as_training_labels_them():
    def strengths(side="both sides", **values):
        return strengths_of([values.get(name, 0) for name in NAMES], side)

    assert strengths() == {}
    assert strengths(AU12=0.5, AU1=0.2) == {"AU1": 0.2, "AU12L": 0.5, "AU12R": 0.5}
    assert strengths("the person's left", AU43=1, AD30=0.4) == {"AU43L": 1, "AD30L": 0.4}
    assert strengths("the person's right", AU43=1, AD30=0.4) == {"AU43R": 1, "AD30R": 0.4}
    assert strengths(AU26=0.7, AU10=0.3) == {"AU10": 0.3, "AU26": 0.7, "AU25": 0.7}
    assert strengths(AU25=0.9, AU26=0.7) == {"AU25": 0.9, "AU26": 0.7}


def test_a_made_face_is_drawn_and_read_back_beside_what_it_shows(client, reader):
    values = {"AU12": 0.5, "AU4": 1.0}
    sliders = [values.get(name, 0) for name in NAMES]
    drawn, back = client.predict(7, 20, "the person's left", *sliders, api_name="/make")
    picture = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', drawn)[1])))
    expected = draw(7, {"AU12L": 0.5, "AU4L": 1.0}, 20)
    assert picture.size == expected.size == (192, 192)
    assert np.abs(np.float32(picture) - np.float32(expected)).mean() < 3  # but for JPEG
    assert 'alt="AU4L 1, AU12L 0.5"' in drawn

    tables = tables_of(back)
    assert {label: row[1][0] for label, row in tables["bp4d"].items() if row[1][0]} == {"AU4": 1, "AU12": 1}
    # Five times 0.5, half rounded up, is intensity 3.
    assert {label: row[1][0] for label, row in tables["disfa"].items() if row[1][0]} == {"AU4": 5, "AU12": 3}
    assert {label: row[1][0] for label, row in tables["feafa"].items() if row[1][0]} == {"AU4L": 1, "AU12L": 0.5}
    [result] = reader.explaining.model.recognize(reader.explaining.processor, expected)
    read = reading_of(result)["answers"]["feafa"]["probability"]
    assert [row[1][2] for row in tables["feafa"].values()] == pytest.approx(read, abs=0.00501)


def test_people_differ_and_turn():
    faces = [draw(person, {}, turn) for person, turn in ((0, 0), (1, 0), (0, 30))]
    assert all(np.abs(np.float32(faces[0]) - np.float32(other)).mean() > 5 for other in faces[1:])


# Safety


def test_nothing_but_the_examples_is_served(served):
    address, _ = served
    assert httpx.get(f"{address}gradio_api/file={EXAMPLES / 'smile.png'}").status_code == 200
    for path in (ROOT / "pyproject.toml", ROOT / "model.safetensors", "/etc/passwd"):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403


def ask(address, name, *data):
    """What the page's API sends as the answer to a request."""
    event = httpx.post(f"{address}gradio_api/call/{name}", json={"data": data}).raise_for_status().json()["event_id"]
    return httpx.get(f"{address}gradio_api/call/{name}/{event}", timeout=120).text


def test_nothing_is_fetched_or_read_that_was_not_uploaded(served, crowd, monkeypatch):
    address, fetched = served[0], []

    async def fetch(place, **_):
        fetched.append(place)
        raise OSError("no network")

    for name in ("get", "async_validate_url"):  # by which Gradio fetches everything that a visitor names
        monkeypatch.setattr(f"safehttpx.{name}", fetch)
    elsewhere, meta = "http://example.com/a.png", {"meta": {"_type": "gradio.FileData"}}
    sliders = [0] * (len(NAMES) - 1)
    for name, data in (
        ("read", [{"path": elsewhere, **meta}]),
        ("watch", [{"path": elsewhere, **meta}]),
        ("make", [1, 0, "both sides", {"path": elsewhere, **meta}, *sliders]),
        ("read", [{"path": str(crowd), **meta}]),
        ("read", [{"path": str(crowd)}]),
        ("watch", [{"path": str(crowd)}]),
        ("read", [{"path": f"{EXAMPLES}/../../pyproject.toml"}]),
        ("read", [{"url": elsewhere, **meta}]),
    ):
        answer = ask(address, name, *data)
        assert answer.startswith("event: error"), (name, data)
        assert NOT_UPLOADED in answer, (name, data)
    for mark in "=/":
        answer = httpx.get(f"{address}gradio_api/file{mark}{elsewhere}")
        assert (answer.status_code, answer.text) == (403, NOT_UPLOADED)
    assert fetched == []


def test_nobody_skips_the_queue(served):
    for path in ("api", "run"):
        assert httpx.post(f"{served[0]}gradio_api/{path}/read", json={"data": [None]}).status_code == 404


def test_nothing_of_an_answer_is_kept(launched, client, crowd):
    _, seen, _ = client.predict(handle_file(crowd), api_name="/read")
    picture = re.search('base64,([^"]+)', seen)[1][-200:]  # all begin alike
    sessions = launched.app.state_holder.session_data
    assert client.session_hash in sessions
    assert [each for each in sessions.values() if picture in str(list(each.components))] == []


def test_large_uploads_are_refused(served):
    address, uploads = served
    before = sorted(uploads.rglob("*"))
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", bytes(21 * 10**6), "image/png")})
    assert answer.status_code == 413
    assert "exceeded" in answer.text
    assert [path for path in sorted(uploads.rglob("*")) if path.is_file() and path not in before] == []


def test_the_page_asks_for_nothing_from_elsewhere(served):
    config = httpx.get(f"{served[0]}config").json()
    assert config["analytics_enabled"] is False
    html = httpx.get(served[0]).text
    links = re.findall(r'(?:src|href)="(https?://[^"]+)"', html)
    assert [link for link in links if not link.startswith(served[0])] == []
    assert "fonts.googleapis" not in html + httpx.get(f"{served[0]}theme.css").text


@pytest.mark.slow
def test_uploads_are_deleted_and_the_page_stays(reader, crowd, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("au_llava.au_page.page.KEPT", 4)
    page = build(reader)
    try:
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
        own = {path for path in tmp_path.rglob("*") if path.is_file()}
        uploaded = send(address, crowd)
        assert uploaded.is_relative_to(tmp_path)
        deadline = time.monotonic() + 60
        while uploaded.exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not uploaded.exists()
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == own
        parts = httpx.get(f"{address}config").json()["components"]
        icons = [part["props"]["icon"] for part in parts if part["props"].get("icon")]
        assert len(icons) == len(list(EXAMPLES.iterdir()))
        assert {httpx.get(f"{address}gradio_api/file={icon['path']}").status_code for icon in icons} == {200}
    finally:
        page.close()


def send(address, path):
    """Upload a file; returns where the server keeps it."""
    files = {"files": (path.name, path.read_bytes(), "image/png")}
    (uploaded,) = httpx.post(f"{address}gradio_api/upload", files=files).raise_for_status().json()
    return Path(uploaded)


# Another process, in the folder of a Space: it cannot import the installed package, serves the page until it gets
# SIGINT, serves it again until SIGTERM, and then says where its code came from and which hosts it called.
SPACE = """
import json, os, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path.insert(0, os.getcwd())
called = set()

def watch(event, arguments):
    if event == "socket.getaddrinfo":
        called.add(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        called.add(arguments[1][0])

sys.addaudithook(watch)
import app

try:
    assert app.run([]) in (0, 130)
    app.run([])
except SystemExit:
    modules = [module.__file__ for name, module in sys.modules.items() if name.startswith("au_llava.")]
    print(json.dumps([[path for path in modules if not path.startswith(os.getcwd())], sorted(called)]))
"""


@pytest.mark.slow
def test_the_released_space_starts_alone_calls_nobody_and_deletes_uploads(crowd, tmp_path):
    app_space.release(tmp_path / "space")
    (tmp_path / "tmp").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "GRADIO"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SPACE], cwd=tmp_path / "space", env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for how in (signal.SIGINT, signal.SIGTERM):
            address = (
                next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)))[0] + "/"
            )
            uploaded = send(address, crowd)
            assert uploaded.is_relative_to(tmp_path)
            assert uploaded.exists()
            if how == signal.SIGINT:
                _, seen, answer = Client(address, verbose=False).predict(
                    handle_file(EXAMPLES / "smile.png"), api_name="/read"
                )
                assert "smile.png: 1 face" in seen
                assert tables_of(answer)["disfa"].keys() == set(FORMATS["disfa"].labels)
            process.send_signal(how)
        *_, last = process.stdout
    assert process.returncode == 0
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == []
    elsewhere, called = json.loads(last)
    assert elsewhere == []
    assert set(called) <= {"127.0.0.1", "localhost"}


# The command


def test_command_errors_are_sentences(tmp_path, capsys):
    assert app.run(["--model", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("app.py: ")
    assert str(tmp_path) in error
    with pytest.raises(SystemExit) as stopped:
        app.run(["--share"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --share" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        app.run(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--model", "--host", "--port", "python app.py", "this computer only"))


def test_a_port_that_is_taken_is_named(served, tiny_checkpoint, capsys, monkeypatch):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):  # which the command sets for its own process
        monkeypatch.setenv(name, "")
    before = signal.getsignal(signal.SIGTERM)
    port = served[0].rstrip("/").rpartition(":")[2]
    assert app.run(["--model", str(tiny_checkpoint), "--port", port]) == 1
    assert port in capsys.readouterr().err
    signal.signal(signal.SIGTERM, before)


# The Space's folder


def test_released_folder_holds_a_card_and_the_requirements_of_the_page(tmp_path, capsys):
    from huggingface_hub import RepoCard

    app_space.release(tmp_path / "space")
    card = RepoCard.load(tmp_path / "space" / "README.md")
    assert (card.data.sdk, card.data.to_dict()["app_file"]) == ("gradio", "app.py")
    assert f"gradio=={card.data.to_dict()['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert "learned AUs from rendered faces" in card.content
    code = tmp_path / "space" / "au_llava"
    assert graph_fits(code, code, READ_FORMATS)  # for ONNX Runtime, which the requirements name
    lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert "gradio>=6.31,<7" in lines
    assert "torch>=2.6" in lines
    assert any(line.startswith("onnxruntime") for line in lines)
    assert not [line for line in lines if "au-llava" in line or line.startswith(("pytest", "trl"))]
    with pytest.raises(FileExistsError):
        app_space.release(tmp_path / "space")


def test_a_released_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """Half of one would stop the next attempt, which asks for a new folder."""
    monkeypatch.setattr("shutil.copytree", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        app_space.release(tmp_path / "spaces" / "page")
    assert not list((tmp_path / "spaces").iterdir())


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium whose webcam shows a smile."""
    film = tmp_path_factory.mktemp("webcam") / "smile.mjpeg"
    frame = io.BytesIO()
    Image.open(EXAMPLES / "smile.png").convert("RGB").resize((640, 640)).save(frame, "JPEG")
    film.write_bytes(frame.getvalue() * 30)
    with chromium(*WEBCAM, f"--use-file-for-fake-video-capture={film}") as started:
        yield started


@pytest.fixture
def open_page(browser, served):
    """Opens the page in a window of some size; checks at the end that nothing was fetched from elsewhere."""
    contexts, fetched = [], []

    def go(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(served[0])
        page.get_by_text("Rendered examples").wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert fetched
    assert [url for url in fetched if not url.startswith((served[0], "data:", "blob:"))] == []


def upload(page, path):
    page.locator("input[type=file]").first.set_input_files(path)


def test_browser_reads_an_upload_and_refuses_a_text(open_page, crowd, not_pictures, tmp_path):
    page = open_page()
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    upload(page, crowd)
    page.get_by_text("crowd.png: 2 faces").wait_for()
    assert page.locator(".au-columns section").count() == 3
    boxes = [page.locator(".au-columns section").nth(number).bounding_box() for number in range(3)]
    assert boxes[0]["y"] == boxes[1]["y"] == boxes[2]["y"]  # side by side
    before = page.locator(".au-columns").first.inner_text()
    page.get_by_role("radio", name="face 1").check()
    page.get_by_alt_text("Face 1, leveled and cropped").wait_for()
    assert page.locator(".au-columns").first.inner_text() != before
    with page.expect_download() as download:
        page.get_by_role("link", name="Download crowd-aus.csv").click()
    assert len(download.value.path().read_text().splitlines()) == 3

    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    text = tmp_path / "note.txt"
    text.write_text("This is a text.")
    upload(page, text)
    page.get_by_text("Invalid file type").wait_for()
    upload(page, not_pictures / "note.png")
    page.get_by_role("alert").get_by_text("note.png cannot be read as an image").wait_for()
    assert page.get_by_role("link", name="Download").count() == 0


def test_browser_on_a_narrow_screen_makes_a_face_by_keyboard(open_page):
    page = open_page(390, 844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("tab", name="Make a face").click()
    drawn = page.locator(".au-drawn img")
    drawn.wait_for()
    smile = page.get_by_role("slider", name="AU12 lip corner puller")
    smile.focus()
    smile.press("End")
    page.get_by_alt_text("AU12L 1, AU12R 1").wait_for()
    assert drawn.bounding_box()["y"] >= 0  # in sight, however far down the slider lies
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="All at rest").click()
    page.get_by_alt_text("a face at rest").wait_for()
    assert smile.input_value() == "0"


@pytest.mark.slow
def test_browser_reads_an_example_and_the_webcam_and_says_why(open_page):
    page = open_page()
    page.get_by_role("button", name="wink").click()
    page.get_by_text("wink.png: 1 face").wait_for()
    page.get_by_role("button", name="Why: where").click()
    page.locator(".au-reasons figure, .au-reasons p").first.wait_for()
    page.get_by_role("button", name="Why: where").click()  # closed, it says nothing
    page.locator(".au-reasons").wait_for(state="detached")
    page.get_by_role("button", name="Why: where").click()
    page.get_by_role("radio", name="feafa").check()
    page.locator(".au-reasons figure, .au-reasons p").first.wait_for()
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_label("capture photo").click()
    page.get_by_text(re.compile(r"image\.\w+: 1 face")).wait_for()
    source = page.get_by_alt_text("The picture, a box around every face").get_attribute("src")
    taken = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    shown = Image.open(EXAMPLES / "smile.png").convert("RGB").resize(taken.size)
    as_it_is, mirrored = (
        np.abs(np.float32(taken) - np.float32(picture)).mean() for picture in (shown, ImageOps.mirror(shown))
    )
    assert as_it_is < 0.5 * mirrored  # left stays left


@pytest.mark.slow
def test_browser_watches_the_webcam(open_page):
    page = open_page()
    page.get_by_role("tab", name="Webcam").click()
    panel = page.get_by_role("tabpanel").locator("visible=true")
    panel.get_by_text("Click to Access Webcam").click()
    panel.get_by_title("start recording").click()
    panel.get_by_text("webcam: 1 face").wait_for()
    first = panel.get_by_alt_text("The picture, a box around every face").get_attribute("src")
    assert panel.locator(".au-columns section").count() == 3
    panel.get_by_title("stop recording").click()
    panel.get_by_title("start recording").wait_for()
    taken = Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2])))
    shown = Image.open(EXAMPLES / "smile.png").convert("RGB").resize(taken.size)
    as_it_is, mirrored = (
        np.abs(np.float32(taken) - np.float32(picture)).mean() for picture in (shown, ImageOps.mirror(shown))
    )
    assert as_it_is < 0.5 * mirrored


@pytest.mark.slow
def test_everything_has_a_name_for_a_screen_reader(open_page):
    page = open_page()
    for name, ready in (
        ("Read a picture", page.get_by_role("link", name="Download")),
        ("Webcam", page.get_by_text("Click to Access Webcam").locator("visible=true")),
        ("Make a face", page.locator(".au-drawn img")),
    ):
        page.get_by_role("tab", name=name).click()
        ready.wait_for()
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("input, button, img, select, a")].filter(each =>
                each.checkVisibility() && !(each.ariaLabel || each.alt || each.title || each.innerText?.trim()
                || each.labels?.length || each.closest("label, [aria-hidden=true]"))).map(each => each.outerHTML)"""
        )
        assert nameless == [], name
