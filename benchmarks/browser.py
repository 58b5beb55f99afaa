"""The speed of the page that reads in the browser, in a headless Chromium.

    python tools/release_app.py runs/static --static --onnxruntime-web onnxruntime-web-1.30.0.tgz
    python benchmarks/browser.py runs/static --write

The page is shown a webcam of 640 x 480 pixels and 30 frames a second with one face, for some seconds in turns; the best
turn of each kind of weights counts. The times of a frame are those that the page shows, on one thread; processor time
is that of the process of the page alone, without Chromium's drawing and video.
"""

import argparse
import io
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from page import make_table, runner, show
from PIL import Image

from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.files import HOME

PAGE = HOME / "docs" / "browser.md"


def webcam(path: Path) -> None:
    """Write a film of one face that fills half of the height."""
    picture = Image.new("RGB", (640, 480), (120, 130, 140))
    face = Image.open(HOME / "assets" / "faces" / "smile.png").convert("RGB").resize((300, 300))
    picture.paste(face, (170, 90))
    frame = io.BytesIO()
    picture.save(frame, "JPEG", quality=95)
    path.write_bytes(frame.getvalue() * 30)


def turn(browser, address: str, weights: str, seconds: float) -> tuple[float, float, float, float]:
    """Frames a second, milliseconds to find and to read the face, milliseconds of processor time a frame."""
    session = browser.new_browser_cdp_session()

    def spent() -> float:
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(each["cpuTime"] for each in processes if each["type"] == "renderer")

    def frames() -> int:
        return int(re.match(r"\d*", page.locator("#rows").text_content())[0] or 0)

    page = browser.new_page()
    page.goto(f"{address}?weights={weights}")
    page.get_by_role("button", name="Use the camera").click(timeout=60_000)
    page.get_by_text("frames a second").wait_for(timeout=60_000)
    begun, cpu, first = time.monotonic(), spent(), frames()
    page.wait_for_timeout(1000 * seconds)
    passed, cpu, read = time.monotonic() - begun, spent() - cpu, frames() - first
    found = re.search(r"(\d+) ms to find the face, (\d+) ms to read", page.locator("#speed").inner_text())
    page.close()
    return read / passed, *map(float, found.groups()), 1000 * cpu / read


def main(arguments: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    chromium = arguments.chromium or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        raise ValueError("No Chromium was found: name it with --chromium.")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=arguments.folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    kinds = list(json.loads((arguments.folder / "settings.json").read_text())["weights"])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        film = Path(folder) / "face.mjpeg"
        webcam(film)
        options = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        options += [f"--use-file-for-fake-video-capture={film}"]
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        turns = {kind: [] for kind in kinds}
        for _ in range(arguments.turns):
            for kind in kinds:
                turns[kind].append(turn(browser, address, kind, arguments.seconds))
        name = f"Chromium {browser.version}, headless, WebAssembly on one thread"
        browser.close()
    table = make_table("weights", "frames a second", "find, ms", "read, ms", "processor, ms a frame", text=("weights",))
    for kind, measured in turns.items():
        rate, find, read, processor = max(measured)
        table.add_row(kind, f"{rate:.1f}", f"{find:.0f}", f"{read:.0f}", f"{processor:.0f}")
    show([table], "browser-speed" if arguments.write else None, f"{name}.", PAGE)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("folder", type=Path, help="the page, as tools/release_app.py --static builds it")
    parser.add_argument("--seconds", type=float, default=10, help="of a turn (default: 10)")
    parser.add_argument("--turns", type=int, default=3, help="of each kind of weights (default: 3)")
    parser.add_argument("--chromium", help="the browser (default: the one that is installed)")
    parser.add_argument("--write", action="store_true", help="also write the table into docs/browser.md")
    return parser


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
