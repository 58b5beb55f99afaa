"""A page that reads action units (AUs) off pictures, says why, and draws faces for the model to read back.

    python app.py
    python app.py --model runs/mine --port 7870

Then open the address that it prints. Needs the extra: pip install "au-llava[app]". Neither the page nor the program
calls anybody: no fonts, no statistics. Uploads lie in a temporary folder and are deleted within ten minutes, and all
when the program ends.
`tools/release_app.py` makes a Hugging Face Space of it; docs/app.md explains the page.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from accelerate import PartialState
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from au_llava.action_units import ACTION_UNITS, MAIN_FORMATS, get_format
from au_llava.au_faces.faces import YuNet
from au_llava.au_faces.media import Frame
from au_llava.au_recognition import markup
from au_llava.au_recognition.reasons import explain
from au_llava.au_recognition.runner import Plan, read_frame, reading_of
from au_llava.au_rendering.activations import NAMES, PARTS_LIPS, SIDED, label_values, sample_activations, strength_of
from au_llava.au_rendering.people import picture, sample_subject
from au_llava.au_rendering.render import View
from au_llava.au_runs.checkpoints import check_base
from au_llava.au_runs.commands import print_anything, sentence_of
from au_llava.au_runs.files import HOME
from au_llava.image_processing_au_llava import load_face_image, pictures_in

try:
    import gradio as gr
except ImportError as error:
    raise SystemExit("app.py needs Gradio: pip install 'au-llava[app]'.") from error

EXAMPLES = HOME / "assets" / "faces"
FORMATS = tuple(map(get_format, MAIN_FORMATS))
MOST_BYTES, MOST_PIXELS = "20mb", 50_000_000  # of an upload; a phone's picture has 12 to 50 million pixels
KEPT = 600  # seconds that an upload is kept at most
WAITING = 32  # most requests that wait for the model; further ones are refused

SEED = 9  # people whom no recipe trains or tests on: those use the seeds 0 to 2
PEOPLE = 100
DRAWN_SIDE = 192  # pixels of a drawn face: twice what the shipped checkpoint sees
FARTHEST_TURN = 40  # degrees; the farthest of training's rendered faces
SIDES = {"both sides": "LR", "the person's left": "L", "the person's right": "R"}
GROUPS = {
    "Brows and eyes": ("brow", "eye"),
    "Nose, cheeks, mouth corners": ("nose", "cheek", "upper lip", "lip corner"),
    "Lips, chin, jaw": ("lips", "lower lip", "chin", "jaw"),
}

WELCOME = f"""
<div class="au-page"><h1>AU-LLaVA</h1>
<p>Facial action units (AUs), the movements of a face, read off a picture in three formats at once: whether each is
there (bp4d), how strong from 0 to 5 (disfa), how strong from 0 to 1 (feafa).</p>
<ul class="au-notice">
<li>The shipped checkpoint <b>learned AUs from rendered faces</b> and got used to photographs that nobody
coded: how accurate it is on them is not known.
<li>AUs are <b>movements, not emotions</b>, intentions or truthfulness.
<li><b>Pictures are not kept</b>: yours is deleted within {KEPT // 60} minutes and used for nothing but the answer.
</ul></div>
"""
BARS = """
<div class="au-page"><p class="au-quiet">Dark bar, bold: read as present. Line on a bar: holds 80 % of the probability.
prob.: probability of presence. Left and right are the person's own.</p></div>
"""
WHY = """
<div class="au-page"><p class="au-quiet">Orange: where small changes of the face would change the reading most; the line
encloses what is above half of the highest. This shows what the reading rests on, not whether it is right.</p></div>
"""
MADE = """
<div class="au-page"><p class="au-quiet">set, and the orange mark: what the sliders make the face show. An opened jaw
and a raised upper lip part the lips (AU25). What hides each other, such as shut and wide eyes, is not refused, though
training never showed it together.</p></div>
"""


class Reader:
    """A model and a face detector, ready to read pictures.

    Args:
        name: checkpoint folder or Hub id.
    """

    def __init__(self, name: str | Path):
        check_base(str(name))
        device, detector = PartialState().device, YuNet()
        self.model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        self.plan = Plan(
            parts=(),
            find=lambda image, file, number: detector(image),
            size=self.processor.image_processor.crop_size["height"],
            formats=FORMATS,
            decoding="slots",
            batch_size=16,
        )

    def read(self, path: Path, name: str) -> tuple[Image.Image, list[dict]]:
        """An upload as a picture, and its faces as `faces_read` gives them, each with its `crop`; the largest first.

        Raises:
            ValueError: it is no picture, too large, or shows no face.
        """
        pixels = pictures = 0
        with suppress(Exception), Image.open(path) as opened:  # what is wrong with it, `load_face_image` says
            pixels, pictures = opened.width * opened.height, pictures_in(opened)
        if pictures > 1:
            gr.Warning(f"{name} holds {pictures} pictures; only the first is read.")
        if pixels > MOST_PIXELS:
            most = MOST_PIXELS // 1_000_000
            raise ValueError(f"{name} has {pixels / 1e6:.0f} million pixels, more than {most}: make it smaller.")
        try:
            image = load_face_image(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
        frame = read_frame(self.model, self.processor, self.plan, Frame(Path(name), image=image))
        if frame["problem"] or not frame["faces"]:
            raise ValueError(frame["problem"] or f"{name} shows no face whose two eyes can be seen.")
        where = {"file": name, "frame": frame["frame"], "time": frame["time"]}
        return image, [{**where, **face, "face_id": number} for number, face in enumerate(frame["faces"])]

    def read_crop(self, image: Image.Image) -> dict:
        """What is read of a picture that is a face crop already, as `reading_of` keeps it."""
        return reading_of(self.model.recognize(self.processor, image, formats=FORMATS)[0])

    def explain(self, face: dict, fmt) -> list:
        """The `Explanation`s of the AUs that `fmt` finds present in one of the faces that `read` gives."""
        return explain(self.model, self.processor, face["crop"], face["answers"], [fmt])


@lru_cache(maxsize=PEOPLE)
def person(number: int):
    return sample_subject(SEED, number)


def strengths_of(values: Sequence[float], side: str) -> dict[str, float]:
    """Strengths by sided label of sliders in the order of `NAMES`, as a rendered training face would be labelled."""
    strengths = {}
    for name, value in zip(NAMES, values, strict=True):
        letters = SIDES[side] if name in SIDED else SIDES[side][0] if name == "AD30" else ("",)
        if value:
            strengths |= {name + letter: float(value) for letter in letters}
    parted = max(strengths.get(name, 0.0) for name in (*PARTS_LIPS, "AU25"))
    return strengths | ({"AU25": parted} if parted else {})


def draw(number: int, strengths: dict[str, float], turn: float) -> Image.Image:
    """A face of person `number` that shows `strengths`, turned by so many degrees to its own left."""
    drawn, _ = picture(person(number), strengths, View(yaw=turn), DRAWN_SIDE, np.random.default_rng([SEED, number]))
    return Image.fromarray(drawn)


def slider(label: str, lowest: float, highest: float, step: float, value: float) -> gr.Slider:
    """A slider in one line, see `LAYOUT`."""
    return gr.Slider(lowest, highest, value, step=step, label=label, elem_classes="au-slider")


def read_tab(reader: Reader) -> None:
    """Fill the tab in which pictures are read."""

    def read(file, number):
        """-> the choice of a face, the picture, the tables of that face"""
        if file is None:
            return gr.update(visible=False), "", ""
        path, name = file
        try:
            image, faces = reader.read(Path(path), name)
        except ValueError as error:
            return gr.update(visible=False), markup.problem(str(error)), ""
        choices = [(f"face {each['face_id']}", each["face_id"]) for each in faces]
        table = {"file": f"{Path(name).stem}-aus.csv", "faces": faces}
        return (
            gr.update(choices=choices, value=number, visible=len(faces) > 1),
            markup.seen(image, faces, number),
            markup.tables(faces[number]["answers"], FORMATS, contradictions=faces[number]["contradictions"], **table),
        )

    def read_largest(file):
        return read(file, 0)

    def reason(file, number, name):
        """-> why one format finds what it finds; nothing for a file that `read` could not read"""
        if file is None:
            return ""
        try:
            _, faces = reader.read(Path(file[0]), file[1])
        except ValueError:
            return ""
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
                webcam_options=gr.WebcamOptions(mirror=False),  # left has to stay left
            )
            # As it came: what is wrong with a file is told in one sentence, by `Reader.read`.
            upload.preprocess = lambda file: file and (file.path, file.orig_name or Path(file.path).name)
            gr.HTML('<div class="au-page"><span class="au-quiet">Rendered examples</span></div>')
            with gr.Row(elem_classes="au-examples"):
                buttons = [gr.Button(path.stem, icon=path, size="sm", min_width=0) for path in examples]
        with gr.Column(scale=2, min_width=290):
            number = gr.Radio([], label="Face", visible=False)
            seen = gr.HTML(first_seen)
    answer = gr.HTML(first_answer)
    gr.HTML(BARS)
    with gr.Accordion("Why: where on the face each reading rests", open=True):
        name = gr.Radio([fmt.name for fmt in FORMATS], value=FORMATS[0].name, label="Format")
        gr.HTML(WHY)
        why = gr.HTML(reason(first, 0, FORMATS[0].name))

    event = {"concurrency_id": "model", "show_progress": "minimal"}
    outputs = [number, seen, answer]
    explained = {"fn": reason, "inputs": [upload, number, name], "outputs": why, "api_visibility": "private", **event}
    upload.change(read_largest, upload, outputs, api_name="read", **event).then(**explained)
    number.input(read, [upload, number], outputs, api_visibility="private", **event).then(**explained)
    name.input(**explained)
    for button, path in zip(buttons, examples, strict=True):
        button.click(lambda path=path: path, None, upload, queue=False, api_visibility="private")


def make_tab(reader: Reader) -> dict:
    """Fill the tab in which faces are made. Returns the event that makes one, for when the page opens."""

    def make(number, turn, side, *values):
        """-> the face, the tables of what it shows and what is read of it"""
        strengths = strengths_of(values, side)
        face = draw(int(number), strengths, turn)
        shown = {fmt.name: label_values(strengths, fmt.name) for fmt in FORMATS}
        alt = ", ".join(f"{label} {value:g}" for label, value in strengths.items()) or "a face at rest"
        answers = reader.read_crop(face)["answers"]
        return markup.drawn_face(face, alt, f"person {int(number)}"), markup.tables(answers, FORMATS, shown)

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
            of_unit = {}
            with gr.Row():
                for title, regions in GROUPS.items():
                    with gr.Column(min_width=250):
                        gr.HTML(f'<div class="au-page"><h3>{title}</h3></div>')
                        for label in NAMES:
                            if ACTION_UNITS[label].region in regions:
                                of_unit[label] = slider(f"{label} {ACTION_UNITS[label].name}", 0, 1, 0.01, 0)
            side = gr.Radio(list(SIDES), value=next(iter(SIDES)), label="Sided AUs move on")
    read_back = gr.HTML()
    gr.HTML(MADE)

    sliders = [of_unit[name] for name in NAMES]
    settings = [who, turn, side, *sliders]
    made = {"fn": make, "inputs": settings, "outputs": [drawn, read_back], "concurrency_id": "model"}
    made["show_progress"] = "hidden"  # it comes as fast as one drags
    gr.on([each.input for each in settings], **made, trigger_mode="always_last", api_name="make")
    made["api_visibility"] = "private"
    for button, values in ((rest, at_rest), (chance, at_random)):
        button.click(values, None, sliders, queue=False, api_visibility="private").then(**made)
    return made


def build(reader: Reader) -> gr.Blocks:
    """The page."""
    gr.set_static_paths([EXAMPLES])  # served from where they lie: copies would be deleted with the uploads
    with gr.Blocks(title="AU-LLaVA", analytics_enabled=False, delete_cache=(KEPT // 2, KEPT // 2)) as page:
        gr.HTML(WELCOME)
        with gr.Tab("Read a picture"):
            read_tab(reader)
        with gr.Tab("Make a face"):
            page.load(**make_tab(reader))
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


LAYOUT = """
.gradio-container { overflow: clip !important; }
.html-container { padding: 0 !important; }
.au-examples { display: grid; grid-template-columns: repeat(6, 1fr); gap: .3rem; }
.au-examples button { flex-direction: column; gap: .1rem; padding: .2rem; font-size: .7rem; font-weight: normal; }
.au-examples button img { width: 100%; height: auto; margin: 0; border-radius: 4px; }
.au-slider { padding: .1rem .3rem !important; border: 0 !important; }
.au-slider > .wrap:not(.default) { display: grid; grid-template-columns: 1fr 5rem 3rem; align-items: center;
  gap: .4rem; }
.au-slider .wrap .head { display: contents; }
.au-slider .wrap .head .tab-like-container { order: 3; margin: 0; }
.au-slider .wrap input { width: 100%; min-width: 0; }
.au-slider .wrap .tab-like-container input { padding: .1rem .2rem; text-align: right; }
.au-slider .wrap :is(.reset-button, .min_value, .max_value) { display: none; }
.au-slider .wrap label > span { margin: 0; font-size: .8rem; line-height: 1.15; }
.au-drawn img { width: 14rem; }
@media (max-width: 640px) {
  .au-slider > .wrap:not(.default) { grid-template-columns: 1fr 7rem 3rem; }
  .au-maker { display: contents; }
  .au-drawn { position: sticky; top: 0; z-index: 100; background: var(--body-background-fill); }
  .au-drawn img { width: 8rem; }
}
"""
LAUNCH = {  # how the page is served: to nobody but the one who opens it, with nothing from elsewhere
    "share": False,
    "max_file_size": MOST_BYTES,
    "theme": gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ),
    "css": markup.STYLE + LAYOUT,
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "mcp_server": False,
    "enable_monitoring": False,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", default=HOME, help="checkpoint folder or Hub id (default: the one beside the code)")
    add("--host", help="address to serve on (default: GRADIO_SERVER_NAME, else 127.0.0.1: this computer only)")
    add("--port", type=int, help="port to serve on (default: GRADIO_SERVER_PORT, else the first free from 7860)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    logging.disable_progress_bar()  # of loading weights
    reader = Reader(arguments.model)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())  # so that the folder is deleted then too
    with tempfile.TemporaryDirectory(prefix="au-llava-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        build(reader).launch(server_name=arguments.host, server_port=arguments.port, **LAUNCH)


def run(words: list[str] | None = None) -> int:
    """The command, errors told in one sentence."""
    print_anything()
    arguments = make_parser().parse_args(words)
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        print(f"app.py: {sentence_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it starts; Gradio takes later ones
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
