"""What is on the page: a tab that reads pictures, one for the webcam, one that makes faces, and how they are served."""

import io
from pathlib import Path

import gradio as gr
import numpy as np
from gradio_client.utils import traverse
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from au_llava.action_units import ACTION_UNITS, get_format
from au_llava.au_page import markup
from au_llava.au_page.drawing import FARTHEST_TURN, PEOPLE, SIDES, draw, strengths_of
from au_llava.au_page.reader import FORMATS, Reader
from au_llava.au_rendering.activations import NAMES, label_values, sample_activations, strength_of
from au_llava.au_runs.files import HOME
from au_llava.pictures_au_llava import from_base64

EXAMPLES = HOME / "assets" / "faces"
KEPT = 600  # seconds that an upload is kept at most
MOST_BYTES = "20mb"  # of an upload
EVERY = 0.2  # seconds between the frames of a webcam
LONGEST_STREAM = 300  # seconds; then the next person's webcam is read
WAITING = 32  # requests that may wait for the model; further ones are refused
NOT_UPLOADED = "A picture must be uploaded: nothing is fetched from an address or read from a path of the server."

GROUPS = {  # of sliders: title -> regions of the face
    "Brows and eyes": ("brow", "eye"),
    "Nose, cheeks, mouth corners": ("nose", "cheek", "upper lip", "lip corner"),
    "Lips, chin, jaw": ("lips", "lower lip", "chin", "jaw"),
}
BARS = (
    "Dark bar, bold: read as present. Line on a bar: holds 80 % of the probability. prob.: probability of presence. "
    "Left and right are the person's own."
)
WHY = (
    "Orange: where small changes of the face would change the reading most; the line encloses what is above half of "
    "the highest. This shows what the reading rests on, not whether it is right."
)
LIVE = "Frames are read about five times a second; of several faces, the largest is read."
MADE = (
    "set, and the orange mark: what the sliders make the face show. An opened jaw and a raised upper lip part the lips "
    "(AU25). AUs that hide each other, such as shut and wide eyes, can be combined, though training never showed them "
    "together."
)
LAUNCH = {  # how the page is served: only to whoever opens it, with nothing from elsewhere
    "share": False,
    "max_file_size": MOST_BYTES,
    "theme": gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ),
    "css": markup.STYLE,
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "mcp_server": False,
    "enable_monitoring": False,
}


class NoAddresses:
    """Refuses to pass on what lies at another address, which Gradio's route of files would fetch."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        elsewhere = scope["type"] == "http" and any(f"/file{mark}http" in scope["path"] for mark in "=/")
        answer = PlainTextResponse(NOT_UPLOADED, 403) if elsewhere else self.app
        await answer(scope, receive, send)


class Page(gr.Blocks):
    """A page that takes files only if they were uploaded or are examples, and forgets what it has answered."""

    def launch(self, **options):
        return super().launch(**LAUNCH, **options, app_kwargs={"middleware": [Middleware(NoAddresses)]})

    async def process_api(self, block_fn, inputs, state=None, **options):
        traverse(inputs, self._check_uploaded, lambda one: isinstance(one, dict) and isinstance(one.get("path"), str))
        try:
            return await super().process_api(block_fn, inputs, state=state, **options)
        finally:
            if state:  # Gradio would keep what the visitor last saw, pictures included
                state.config_values.clear()

    def _check_uploaded(self, file: dict) -> None:
        """Raise an error unless the file that an input names was uploaded or is an example.

        Gradio would fetch an address, and in an input without `meta` read any path.
        """
        path = Path(file["path"]).resolve()
        if not any(path.is_relative_to(Path(folder).resolve()) for folder in (self.GRADIO_CACHE, EXAMPLES)):
            raise gr.Error(NOT_UPLOADED, print_exception=False)


def slider(label: str, lowest: float, highest: float, step: float, value: float) -> gr.Slider:
    """A slider on one line, see page.css."""
    return gr.Slider(lowest, highest, value, step=step, label=label, elem_classes="au-slider")


def read_tab(reader: Reader) -> None:
    """Fill the tab that reads pictures."""

    def uploaded(file):
        """-> path and name of the file, unprocessed: `Reader.read` says in one sentence what is wrong with it"""
        if file is None:
            return None
        if not file.path:
            raise gr.Error(NOT_UPLOADED, print_exception=False)
        return file.path, file.orig_name or Path(file.path).name

    def read(file, number):
        """-> the choice of a face, the picture, the tables of that face"""
        if file is None:
            return gr.update(visible=False), "", ""
        path, name = file
        try:
            image, faces = reader.read(Path(path), name)
        except ValueError as error:
            return gr.update(visible=False), markup.part("problem", str(error)), ""
        choices = [(f"face {face['face_id']}", face["face_id"]) for face in faces]
        table = {"file": f"{Path(name).stem}-aus.csv", "faces": faces}
        return (
            gr.update(choices=choices, value=number, visible=len(faces) > 1),
            markup.picture(image, faces, number),
            markup.tables(faces[number]["answers"], FORMATS, contradictions=faces[number]["contradictions"], **table),
        )

    def read_largest(file):
        return read(file, 0)

    def reason(is_open, file, number, name):
        """-> why AUs are present according to one format; nothing for a file that `read` has refused

        Explanations need PyTorch, so none is made while the panel is closed.
        """
        if file is None or not is_open:
            return ""
        try:
            _, faces = reader.read(Path(file[0]), file[1])
        except ValueError as error:
            return "" if Path(file[0]).exists() else markup.part("problem", str(error))
        face = faces[number or 0]
        return markup.reasons(reader.explain(face, get_format(name)), face["crop"])

    examples = sorted(EXAMPLES.glob("*.png"))
    first = (str(examples[0]), examples[0].name) if examples else None
    _, first_seen, first_answer = read_largest(first)
    with gr.Row():
        with gr.Column(scale=1, min_width=290):
            upload = gr.Image(
                first and first[0],
                label="Picture",
                sources=["upload", "webcam", "clipboard"],
                height=280,
                buttons=[],
                alt_text="The picture to read",
                webcam_options=gr.WebcamOptions(mirror=False),  # left must stay left
            )
            upload.preprocess = uploaded
            gr.HTML(markup.part("note", "Rendered examples"))
            with gr.Row(elem_classes="au-examples"):
                buttons = [gr.Button(path.stem, icon=path, size="sm", min_width=0) for path in examples]
        with gr.Column(scale=2, min_width=290):
            number = gr.Radio([], label="Face", visible=False)
            seen = gr.HTML(first_seen)
    answer = gr.HTML(first_answer)
    gr.HTML(markup.part("note", BARS))
    is_open = gr.State(False)
    with gr.Accordion("Why: where on the face each reading rests", open=False) as panel:
        name = gr.Radio([fmt.name for fmt in FORMATS], value=FORMATS[0].name, label="Format")
        gr.HTML(markup.part("note", WHY))
        why = gr.HTML("")

    event = {"concurrency_id": "model", "show_progress": "minimal"}
    outputs = [number, seen, answer]
    asked = [is_open, upload, number, name]
    explained = {"fn": reason, "inputs": asked, "outputs": why, "api_visibility": "private", **event}
    for changed, now in ((panel.expand, True), (panel.collapse, False)):
        changed(lambda now=now: now, None, is_open, queue=False, api_visibility="private").then(**explained)
    upload.change(read_largest, upload, outputs, api_name="read", **event).then(**explained)
    number.input(read, [upload, number], outputs, api_visibility="private", **event).then(**explained)
    name.input(**explained)
    for button, path in zip(buttons, examples, strict=True):
        button.click(lambda path=path: path, None, upload, queue=False, api_visibility="private")


def live_tab(reader: Reader) -> None:
    """Fill the tab that reads the webcam as it runs."""

    def read(frame):
        """-> the frame, the tables of its largest face"""
        if frame is None:
            return "", ""
        try:
            image = reader.picture(io.BytesIO(frame), "webcam")
            faces = reader.faces(image, "webcam")
        except ValueError as error:
            return markup.part("problem", str(error)), ""
        if not faces:
            return markup.part("note", "The webcam shows no face whose two eyes can be seen."), ""
        face = faces[0]
        seen = markup.picture(image, faces, 0, live=True)
        return seen, markup.tables(face["answers"], FORMATS, contradictions=face["contradictions"])

    def content(frame):
        """-> the content of a frame, unprocessed: a browser sends it in base64"""
        return frame and (Path(frame.path).read_bytes() if frame.path else from_base64(frame.url or ""))

    with gr.Row():
        with gr.Column(scale=1, min_width=290):
            webcam = gr.Image(
                label="Webcam",
                sources=["webcam"],
                streaming=True,
                height=280,
                buttons=[],
                webcam_options=gr.WebcamOptions(mirror=False),
            )
            webcam.preprocess = content
            gr.HTML(markup.part("note", LIVE))
        with gr.Column(scale=2, min_width=290):
            seen = gr.HTML()
    answer = gr.HTML()
    gr.HTML(markup.part("note", BARS))
    webcam.stream(
        read,
        webcam,
        [seen, answer],
        stream_every=EVERY,
        time_limit=LONGEST_STREAM,
        concurrency_id="webcam",  # a stream would keep all others waiting
        show_progress="hidden",
        api_name="watch",
    )


def make_tab(reader: Reader) -> dict:
    """Fill the tab in which faces are made. Returns the event that makes a face, to be used when the page opens."""

    def make(number, turn, side, *values):
        """-> the face; tables of what it shows and what the model reads off it"""
        strengths = strengths_of(values, side)
        face = draw(int(number), strengths, turn)
        shown = {fmt.name: label_values(strengths, fmt.name) for fmt in FORMATS}
        alt = ", ".join(f"{label} {value:g}" for label, value in strengths.items()) or "a face at rest"
        answers = reader.read_crop(face)["answers"]
        return markup.part("face", face, alt, f"person {int(number)}"), markup.tables(answers, FORMATS, shown)

    def at_rest():
        return [0.0] * len(NAMES)

    def at_random():
        generator = np.random.default_rng()
        while not (strengths := sample_activations(generator)):
            pass
        return [strength_of(name, strengths) for name in NAMES]

    with gr.Row():
        with gr.Column(scale=1, min_width=280, elem_classes="au-maker"):
            drawn = gr.HTML(elem_classes="au-drawn")
            with gr.Row():
                rest = gr.Button("All at rest", size="sm", min_width=0)
                chance = gr.Button("Random face", size="sm", min_width=0)
            who = slider("Person", 0, PEOPLE - 1, 1, 1)
            turn = slider("Head turn, degrees", -FARTHEST_TURN, FARTHEST_TURN, 1, 0)
        with gr.Column(scale=3, min_width=280):
            slider_of = {}
            with gr.Row():
                for title, regions in GROUPS.items():
                    with gr.Column(min_width=250):
                        gr.HTML(markup.part("title", title))
                        for label in NAMES:
                            if ACTION_UNITS[label].region in regions:
                                slider_of[label] = slider(f"{label} {ACTION_UNITS[label].name}", 0, 1, 0.01, 0)
            side = gr.Radio(list(SIDES), value=next(iter(SIDES)), label="Sided AUs move on")
    read_back = gr.HTML()
    gr.HTML(markup.part("note", MADE))

    sliders = [slider_of[name] for name in NAMES]
    settings = [who, turn, side, *sliders]
    made = {"fn": make, "inputs": settings, "outputs": [drawn, read_back], "concurrency_id": "model"}
    made["show_progress"] = "hidden"  # a face follows the slider as it is dragged
    gr.on([setting.input for setting in settings], **made, trigger_mode="always_last", api_name="make")
    made["api_visibility"] = "private"
    for button, values in ((rest, at_rest), (chance, at_random)):
        button.click(values, None, sliders, queue=False, api_visibility="private").then(**made)
    return made


def build(reader: Reader) -> Page:
    """The page."""
    gr.set_static_paths([EXAMPLES])  # served in place: copies would be deleted with the uploads
    with Page(title="AU-LLaVA", analytics_enabled=False, delete_cache=(KEPT // 2, KEPT // 2)) as page:
        gr.HTML(markup.part("welcome", KEPT // 60))
        with gr.Tab("Read a picture"):
            read_tab(reader)
        with gr.Tab("Webcam"):
            live_tab(reader)
        with gr.Tab("Make a face"):
            page.load(**make_tab(reader))
    return page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)  # nobody skips the queue
