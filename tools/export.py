"""Write the slots pass of a checkpoint as an ONNX file, which ONNX Runtime runs without PyTorch and Transformers.

python tools/export.py --model . --formats bp4d disfa feafa --out au_llava.onnx
"""

import sys
from pathlib import Path

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from au_runs.start import command

run = command("export.py", "au_publishing.onnx_file", "export")

if __name__ == "__main__":
    sys.exit(run())
