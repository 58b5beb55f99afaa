"""A page that reads action units (AUs) off pictures, says why, and draws faces for the model to read back.

    python app.py
    python app.py --model runs/mine --port 7870

Then open the address that it prints. Needs the extra `app`: pip install "au-llava[app]". Nothing is fetched from or
sent to anyone else: no fonts, no statistics. Uploads are kept in a temporary folder and deleted within ten minutes, and
all of them when the program ends. `tools/release_app.py` makes a Hugging Face Space of the page; docs/app.md explains
the page.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from au_llava.au_page.page import build
from au_llava.au_page.reader import Reader
from au_llava.au_runs.commands import CommandParser, run_command
from au_llava.au_runs.files import HOME


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__, prog="app.py")
    add = parser.add_argument
    add("--model", default=str(HOME), help="checkpoint folder or Hub id (default: the checkpoint beside the code)")
    add("--host", help="address to serve on (default: GRADIO_SERVER_NAME, else 127.0.0.1: this computer only)")
    add("--port", type=int, help="port to serve on (default: GRADIO_SERVER_PORT, else the first free from 7860)")
    return parser


def serve(arguments: argparse.Namespace) -> None:
    """Serve the page until the program is stopped, then delete the uploads."""
    reader = Reader(arguments.model)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())  # so that the uploads are deleted then, too
    with tempfile.TemporaryDirectory(prefix="au-llava-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        build(reader).launch(server_name=arguments.host, server_port=arguments.port)


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` and return the exit status."""
    return run_command("app.py", lambda: serve(make_parser().parse_args(words)))
