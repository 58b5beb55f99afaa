"""Where the model fails: one thing changed at a time, on the same rendered faces of people not seen in training.

    python benchmarks/robustness.py --out runs/robustness

Every face is drawn repeatedly and differs only in one factor: its angle, the light, the size of the picture, its blur,
how much is covered, or the skin tone (the same person in all ten tones of the Monk scale). Writes OUT/robustness.json
(scores with 95 % bootstrap intervals over people), OUT/robustness.png and OUT/failures.png (the faces with the largest
errors).
"""

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, Value
from matplotlib.figure import Figure
from page import add_model_option, origin, runner, write_results
from PIL import Image

from au_llava.action_units import MAIN_FORMATS, get_format
from au_llava.au_datasets.records import record_features
from au_llava.au_evaluation.predictions import predict, use_prior
from au_llava.au_evaluation.scoring import score_predictions
from au_llava.au_faces.jpeg import jpeg_bytes
from au_llava.au_rendering.activations import label_values, sample_activations
from au_llava.au_rendering.people import sample_subject, subject_name
from au_llava.au_rendering.pictures import picture
from au_llava.au_rendering.view import View
from au_llava.au_runs.checkpoints import load_checkpoint
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.engines import TorchEngine
from au_llava.au_runs.files import check_writable, save_figure
from au_llava.au_runs.progress import track

SEED = 1  # the people of the test part
SIZE = 96  # side of the pictures in pixels, unless that is the factor
HEADLINE = {"bp4d": "f1", "disfa": "icc", "feafa": "pcc"}
COLORS = {"bp4d": "#0b63a5", "disfa": "#c4561c", "feafa": "#3d8b5f"}  # distinct for color-blind readers

LIGHTS = {
    "even": View(softness=1.0, ambient=0.8, key_strength=0.3),
    "window": View(),
    "hard, from one side": View(softness=0.05, key_azimuth=75, key_elevation=10, ambient=0.15, fill=0.05),
    "hard, from above": View(softness=0.05, key_azimuth=0, key_elevation=75, ambient=0.15, fill=0.05),
    "underexposed": View(exposure=0.25, noise=4),
    "overexposed": View(exposure=2.5),
}
LEVELS = {  # factor -> levels; the first level is the plain picture
    "yaw (degrees)": (0, 15, 30, 45, 60),
    "light": tuple(LIGHTS),
    "size (pixels)": (96, 32, 48, 64, 128, 160, 224),
    "blur (pixels of 96)": (0, 0.5, 1, 2, 3),
    "covered (share)": (0, 0.03, 0.08, 0.15, 0.25),
    "skin tone (Monk)": tuple(range(1, 11)),
}


def draw(factor: str, level, number: int, index: int) -> tuple[dict, bytes]:
    """The AU strengths of face `index` of person `number`, and its picture as JPEG with one factor at one level."""
    rng = np.random.default_rng([SEED, number, 1_000_000 + index])  # faces that are in no record
    strengths = sample_activations(rng)
    view, size, tone = View(yaw=float(rng.normal(0, 5)), pitch=float(rng.normal(0, 4))), SIZE, None
    side, place = rng.choice([-1, 1]), rng.uniform(0.25, 0.75, 2)
    if factor.startswith("yaw"):
        view = replace(view, yaw=float(side * level))
    elif factor == "light":
        view = replace(LIGHTS[level], yaw=view.yaw, pitch=view.pitch)
    elif factor.startswith("size"):
        size = level
    elif factor.startswith("blur"):
        view = replace(view, blur=float(level))
    elif factor.startswith("covered") and level:
        radius = float(np.sqrt(level / np.pi))
        view = replace(view, occluder=(*place, radius, radius, 0.0))
    elif factor.startswith("skin"):
        tone = level
    pixels, _ = picture(sample_subject(SEED, number, skin_tone=tone), strengths, view, size, rng)
    return strengths, jpeg_bytes(pixels)


def records_of(people: int, images: int) -> Iterator[dict]:
    """Three records per picture, for every level of every factor."""
    for factor, levels in LEVELS.items():
        for level in levels:
            for number in range(people):
                for index in range(images):
                    strengths, content = draw(factor, level, number, index)
                    for name in MAIN_FORMATS:
                        yield {
                            "image": {"bytes": content, "path": None},
                            "dataset": "rendered",
                            "subject": subject_name(SEED, number),
                            "clip": f"{factor}: {level}",
                            "frame": index,
                            "format": name,
                            "values": label_values(strengths, name),
                            "part": "test",
                            "factor": factor,
                            "level": str(level),
                        }


def summarize(predictions: list[dict]) -> dict:
    """factor -> level -> format -> {"metric", "value", "interval", "n"}."""
    summary = {factor: {} for factor in LEVELS}
    for factor, levels in LEVELS.items():
        for level in track(levels, description=f"Scoring {factor}"):
            rows = [row for row in predictions if row["clip"] == f"{factor}: {level}"]
            summary[factor][str(level)] = {
                name: {
                    "metric": HEADLINE[name],
                    "value": scores["mean"][HEADLINE[name]],
                    "interval": scores["mean_interval"][HEADLINE[name]],
                    "n": scores["n"],
                }
                for name, scores in score_predictions(rows).items()
            }
    return summary


def draw_chart(summary: dict) -> Figure:
    """One panel per factor: the headline metric of each format with its interval."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for panel, (factor, levels) in zip(panels.flat, summary.items(), strict=True):
        names = [str(level) for level in LEVELS[factor]]
        if not factor.startswith("light"):
            names.sort(key=float)
        for name, metric in HEADLINE.items():
            values = np.array([[levels[level][name]["value"], *levels[level][name]["interval"]] for level in names])
            panel.plot(names, values[:, 0], "o-", color=COLORS[name], label=f"{name} {metric.upper()}", markersize=4)
            panel.fill_between(names, values[:, 1], values[:, 2], color=COLORS[name], alpha=0.2, linewidth=0)
        panel.set_title(factor, loc="left", fontsize=10)
        panel.set_ylim(0, 1)
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
        if factor == "light":
            panel.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], rotation=30, fontsize=7)
    panels.flat[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(
        "One thing changed at a time; rendered faces of unseen people; bands: 95 % over people", fontsize=11
    )
    return figure


def draw_failures(records: Dataset, predictions: list[dict], count: int = 12) -> Figure:
    """The faces with the largest mean error in the feafa format, one per level, each with its three largest errors."""
    fmt = get_format("feafa")
    worst = {}
    for row in predictions:
        if row["format"] == "feafa":
            errors = np.array(row["expected"]) - np.array(row["references"])
            error = np.abs(errors).mean()
            if error > worst.get(row["clip"], (0,))[0]:
                worst[row["clip"]] = (error, row["row"], errors)
    chosen = sorted(worst.items(), key=lambda item: -item[1][0])[:count]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(2, count // 2)
    for panel, (clip, (_, row, errors)) in zip(panels.flat, chosen, strict=True):
        panel.imshow(Image.open(io.BytesIO(records[row]["image"]["bytes"])))
        panel.axis("off")
        truth = records[row]["values"]
        lines = [
            f"{fmt.labels[k]}: {truth[k]:.2f}, read {truth[k] + errors[k]:.2f}" for k in np.argsort(-np.abs(errors))[:3]
        ]
        panel.set_title(clip, fontsize=8)
        panel.text(0.5, -0.03, "\n".join(lines), fontsize=7, ha="center", va="top", transform=panel.transAxes)
    return figure


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_model_option(parser)
    parser.add_argument("--people", type=int, default=100, help="number of people (default: 100)")
    parser.add_argument("--images", type=int, default=2, help="faces per person (default: 2)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out / "robustness.json")
    model, processor = load_checkpoint(arguments.model, dtype="float32")
    total = sum(map(len, LEVELS.values())) * arguments.people * arguments.images * len(MAIN_FORMATS)
    features = record_features({"factor": Value("string"), "level": Value("string")})
    rows = list(track(records_of(arguments.people, arguments.images), total=total, description="Drawing faces"))
    records = Dataset.from_list(rows, features=features)
    engine = TorchEngine(model, processor)
    use_prior(engine, records)
    predictions = predict(engine, records, batch_size=32, progress=True)
    summary = summarize(predictions)
    setting = {"people": arguments.people, "images": arguments.images, "seed": SEED}
    results = {"provenance": origin(arguments.model, model), "setting": setting, "factors": summary}
    write_results(arguments.out / "robustness.json", results)
    save_figure(arguments.out / "robustness.png", draw_chart(summary), dpi=110)
    save_figure(arguments.out / "failures.png", draw_failures(Dataset.from_list(rows), predictions), dpi=110)
    print(f"Written: {arguments.out / 'robustness.png'}, {arguments.out / 'failures.png'}")


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
