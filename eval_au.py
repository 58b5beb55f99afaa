"""Evaluate AU-LLaVA checkpoints on records made by prepare_data.py; the body is in au_evaluation/command.py.

python eval_au.py --model . --data data/rendered --out runs/eval
python eval_au.py report runs/eval
python eval_au.py --help
"""

import sys

try:
    from au_llava.au_runs.start import command
except ModuleNotFoundError:  # not installed, which the command then says
    from au_runs.start import command

run = command("eval_au.py", "au_evaluation.command", "eval")

if __name__ == "__main__":
    sys.exit(run())
