"""Where the model fails: one thing changed at a time, on the same rendered faces of people it has never seen.

    python benchmarks/robustness.py --out runs/robustness

Every face is drawn again and again, equal but for the angle, the light, the size of the picture, its blur, what covers
it, or the tone of the skin (the same person, in all ten tones of the Monk scale). Writes OUT/robustness.json (scores
with 95 % bootstrap intervals over people), OUT/robustness.png and OUT/failures.png (the worst read faces).
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from datasets import Dataset, Value
from page import origin
from PIL import Image
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor

from au_llava.action_units import get_format
from au_llava.au_datasets.records import record_features
from au_llava.au_evaluation.predictions import predict, use_prior
from au_llava.au_evaluation.scoring import jsonable, score_predictions
from au_llava.au_rendering.activations import label_values, sample_activations
from au_llava.au_rendering.people import FORMAT_NAMES, jpeg_bytes, picture, sample_subject, subject_name
from au_llava.au_rendering.render import View
from au_llava.au_runs.commands import sentence_of
from au_llava.au_runs.files import HOME

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEED = 1  # the people of the test part
SIZE = 96  # of the pictures, unless the size is what changes
HEADLINE = {"bp4d": "f1", "disfa": "icc", "feafa": "pcc"}
COLOURS = {"bp4d": "#0b63a5", "disfa": "#c4561c", "feafa": "#3d8b5f"}  # told apart by the colour-blind

LIGHTS = {
    "even": View(softness=1.0, ambient=0.8, key_strength=0.3),
    "window": View(),
    "hard, from one side": View(softness=0.05, key_azimuth=75, key_elevation=10, ambient=0.15, fill=0.05),
    "hard, from above": View(softness=0.05, key_azimuth=0, key_elevation=75, ambient=0.15, fill=0.05),
    "underexposed": View(exposure=0.25, noise=4),
    "overexposed": View(exposure=2.5),
}
LEVELS = {  # factor -> levels, the first of which is the plain picture
    "yaw (degrees)": (0, 15, 30, 45, 60),
    "light": tuple(LIGHTS),
    "size (pixels)": (96, 32, 48, 64, 128, 160, 224),
    "blur (pixels of 96)": (0, 0.5, 1, 2, 3),
    "covered (share)": (0, 0.03, 0.08, 0.15, 0.25),
    "skin tone (Monk)": tuple(range(1, 11)),
}


def draw(factor: str, level, number: int, index: int) -> tuple[dict, bytes]:
    """AU strengths of face `index` of person `number`, and its picture as JPEG with one factor at one level."""
    rng = np.random.default_rng([SEED, number, 1_000_000 + index])  # faces that no record shows
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
    """Three records a picture, of every level of every factor."""
    for factor, levels in LEVELS.items():
        for level in levels:
            for number in range(people):
                for index in range(images):
                    strengths, content = draw(factor, level, number, index)
                    for name in FORMAT_NAMES:
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


def summarise(predictions: list[dict]) -> dict:
    """factor -> level -> format -> {"metric", "value", "interval", "n"}."""
    found = {factor: {} for factor in LEVELS}
    for factor, levels in LEVELS.items():
        for level in track(levels, description=f"Scoring {factor}"):
            rows = [row for row in predictions if row["clip"] == f"{factor}: {level}"]
            found[factor][str(level)] = {
                name: {
                    "metric": HEADLINE[name],
                    "value": scores["mean"][HEADLINE[name]],
                    "interval": scores["mean_interval"][HEADLINE[name]],
                    "n": scores["n"],
                }
                for name, scores in score_predictions(rows).items()
            }
    return found


def draw_chart(found: dict) -> plt.Figure:
    """One panel per factor: the headline metric of each format with its interval."""
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), sharey=True, layout="constrained")
    for panel, (factor, levels) in zip(panels.flat, found.items(), strict=True):
        names = [str(level) for level in LEVELS[factor]]
        if not factor.startswith("light"):
            names.sort(key=float)
        for name, metric in HEADLINE.items():
            values = np.array([[levels[level][name]["value"], *levels[level][name]["interval"]] for level in names])
            panel.plot(names, values[:, 0], "o-", color=COLOURS[name], label=f"{name} {metric.upper()}", markersize=4)
            panel.fill_between(names, values[:, 1], values[:, 2], color=COLOURS[name], alpha=0.2, linewidth=0)
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


def draw_failures(records: Dataset, predictions: list[dict], count: int = 12) -> plt.Figure:
    """The faces with the largest mean error in the feafa format, one a level, with what is most wrong."""
    fmt = get_format("feafa")
    worst = {}
    for row in predictions:
        if row["format"] == "feafa":
            errors = np.array(row["expected"]) - np.array(row["references"])
            error = np.abs(errors).mean()
            if error > worst.get(row["clip"], (0,))[0]:
                worst[row["clip"]] = (error, row["row"], errors)
    chosen = sorted(worst.items(), key=lambda item: -item[1][0])[:count]
    figure, panels = plt.subplots(2, count // 2, figsize=(11, 5.2), layout="constrained")
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model", default=str(HOME), help="checkpoint: a folder or a Hub id (default: the shipped one)"
    )
    parser.add_argument("--people", type=int, default=100, help="people drawn (default: 100)")
    parser.add_argument("--images", type=int, default=2, help="faces of each (default: 2)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True, dtype="float32")
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    total = sum(map(len, LEVELS.values())) * arguments.people * arguments.images * len(FORMAT_NAMES)
    features = record_features({"factor": Value("string"), "level": Value("string")})
    rows = list(track(records_of(arguments.people, arguments.images), total=total, description="Drawing faces"))
    records = Dataset.from_list(rows, features=features)
    use_prior(model, records)
    predictions = predict(model.eval(), processor, records, batch_size=32, progress=True)
    found = summarise(predictions)

    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = {"people": arguments.people, "images": arguments.images, "seed": SEED}
    content = {"schema_version": 1, "provenance": origin(arguments.model, model), "setting": setting}
    content["factors"] = jsonable(found)
    (arguments.out / "robustness.json").write_text(json.dumps(content, indent=1))
    draw_chart(found).savefig(arguments.out / "robustness.png", dpi=110)
    draw_failures(Dataset.from_list(rows), predictions).savefig(arguments.out / "failures.png", dpi=110)
    print(f"Written: {arguments.out}/robustness.json, robustness.png, failures.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"robustness.py: {sentence_of(error)}")
