"""Pre-train the vision tower of a base on rendered faces, as published vision encoders are pre-trained.

    python tools/pretrain_tower.py --base runs/tiny-base --data DATA --image-size 64 --out runs/tiny-coarse
    python tools/pretrain_tower.py --base runs/tiny-coarse --data DATA --out runs/tiny-base-seen

A linear head predicts all values of all formats from the tower's feature map, and where the landmarks of the face are
and how far the expression moved them; the head is then discarded. Without this step the language model's slot loss
stays at the base rates for a long time, since it must learn where to look while the tower learns what to show
(docs/log.md has the experiments). The same command resumes a stopped run. The validation people are scored at the end,
and training_manifest.json in the output names everyone that the tower has seen.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from au_llava.action_units import get_format
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.mixing import TrainingData, check_people, training_rows, validating
from au_llava.au_runs.commands import CommandParser, positive, run_command
from au_llava.au_runs.engines import check_there
from au_llava.au_runs.formats import add_formats_option
from au_llava.au_runs.manifests import read_training_manifest, training_manifest, write_training_manifest
from au_llava.au_training.augmentation import mirrored_values, varied_image
from au_llava.metrics_au import score
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.pictures_au_llava import load_face_image
from au_llava.processing_au_llava import AuLlavaProcessor

PLACE_SCALE, MOVE_SCALE = 0.15, 0.02  # crop widths: typical spread of landmarks, and of how far AUs move them


class TowerWithHead(nn.Module):
    """The tower and a linear head that predicts every AU of every format, as a share of the scale, and landmarks.

    Args:
        tower: a convolutional tower whose output is (batch, width, rows, columns).
        features: width x rows x columns.
        values: number of predicted AU values.
        places: number of predicted coordinates.
        place_weight: weight of the loss of the coordinates, relative to that of the values.
    """

    def __init__(self, tower: nn.Module, features: int, values: int, places: int, place_weight: float):
        super().__init__()
        self.tower = tower
        self.values = nn.Linear(features, values)
        self.places = nn.Linear(features, places) if places else None
        self.place_weight = place_weight

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, places: torch.Tensor | None = None):
        """{"loss", "logits" (batch, values)} of a batch.

        Args:
            pixel_values: (batch, 3, height, width).
            labels: (batch, values), 0 to 1, NaN if unknown.
            places: (batch, P), NaN if unknown.
        """
        features = self.tower(pixel_values).last_hidden_state.flatten(1)
        logits = self.values(features)
        known = ~labels.isnan()
        loss = nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
        if self.places is not None and not places.isnan().all():
            known = ~places.isnan()
            loss = loss + self.place_weight * nn.functional.smooth_l1_loss(self.places(features)[known], places[known])
        return {"loss": loss, "logits": logits}


class TowerTrainer(Trainer):
    """Trainer that makes weights contiguous for saving: safetensors refuses channels-last ones."""

    def _save(self, output_dir=None, state_dict=None):
        weights = state_dict or self.model.state_dict()
        super()._save(output_dir, {name: weight.contiguous() for name, weight in weights.items()})


class SharesCollator:
    """Collates images, the values of all formats as shares of their scales, and landmarks; NaN if unknown.

    A flipped image has no landmarks: a mirrored landmark is another one.

    Args:
        processor: `AuLlavaProcessor`.
        formats: names.
        training: whether to vary the images (`varied_image`) and flip half of them.
    """

    def __init__(self, processor, formats: list[str], seed: int, training: bool = True):
        self.processor = processor
        self.formats = list(map(get_format, formats))
        self.seed = seed
        self.training = training

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, *(row["index"] for row in rows)])
        images, labels, places = [], [], []
        for row in rows:
            values = dict(zip(row["formats"], row["values"], strict=True))
            flip = self.training and rng.random() < 0.5
            image = varied_image(load_face_image(row["image"]), rng) if self.training else row["image"]
            images.append(ImageOps.mirror(image) if flip else image)
            shares = []
            for fmt in self.formats:
                known = values.get(fmt.name, [math.nan] * len(fmt.labels))
                known = mirrored_values(known, fmt) if flip else known
                shares += [value / fmt.value_numbers[-1] for value in known]
            labels.append(shares)
            if "landmarks" in row:
                now, at_rest = np.array(row["landmarks"], np.float32).reshape(2, -1)
                place = np.concatenate([(at_rest - 0.5) / PLACE_SCALE, (now - at_rest) / MOVE_SCALE])
                places.append(place * np.nan if flip else place)
        batch = {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
        batch["labels"] = torch.tensor(labels)
        if places:
            batch["places"] = torch.tensor(np.array(places))
        return batch


def validation_scores(formats: list[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Means over the AUs by "format_metric", from logits (n, values) and labels as shares of the scales.

    An AU counts as present from a share of 1/3: a rough choice, since nobody uses the head.
    """
    scores, start = {}, 0
    for fmt in map(get_format, formats):
        columns = slice(start, start + len(fmt.labels))
        start += len(fmt.labels)
        top = fmt.value_numbers[-1]
        shares = 1 / (1 + np.exp(-logits[:, columns].astype(float)))
        present = (shares > 1 / 3).astype(float)
        values = present if fmt.scale == "occurrence" else shares * top
        means = score(values, (labels[:, columns] * top).round(2), fmt, decisions=present)["mean"]
        scores |= {f"{fmt.name}_{metric}": means[metric] for metric in ("f1", "icc", "pcc", "mae") if metric in means}
    return scores


def read_rows(arguments):
    """(training rows, validation rows), with landmarks if they are learned. Raises ValueError if people are in both."""
    metadata = ["landmarks"] if arguments.place_weight else []
    train = training_rows(arguments.data, "train", arguments.formats, arguments.seed, metadata)
    tables = validating(arguments.data, "validation", arguments.formats)
    validation = training_rows(tables, "validation", arguments.formats, arguments.seed, metadata)
    check_people(train, validation, [])
    return train, validation


def make_manifest(arguments, train, validation) -> dict:
    """The training manifest of the base with the new tower."""
    options = {name: value for name, value in vars(arguments).items() if name not in ("base", "data", "out", "workers")}
    return training_manifest(
        train=people_of(train),
        validation=people_of(validation),
        data=[TrainingData.read(entry).path for entry in arguments.data],
        formats=arguments.formats,
        recipe=options,
        base=read_training_manifest(str(arguments.base)),
    )


def make_network(model, processor, arguments, places: int) -> TowerWithHead:
    """The model's tower with a new head. `places`: number of coordinates to learn."""
    tower = model.model.vision_tower.to(memory_format=torch.channels_last)
    crop = processor.image_processor.crop_size
    cells = processor.num_image_tokens(crop["height"], crop["width"]) * processor.pixel_unshuffle**2
    values = sum(len(get_format(name).labels) for name in arguments.formats)
    return TowerWithHead(tower, model.config.vision_width * cells, values, places, arguments.place_weight)


def make_trainer(network: TowerWithHead, processor, arguments, train, state: Path) -> TowerTrainer:
    """A trainer that keeps its checkpoints in the folder `state`."""
    options = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.05,
        max_grad_norm=2.0,
        logging_steps=50,
        save_steps=200,
        save_total_limit=2,
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=arguments.workers,
        label_names=["labels"],
        seed=arguments.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    return TowerTrainer(
        network,
        options,
        data_collator=SharesCollator(processor, arguments.formats, arguments.seed),
        train_dataset=train,
        compute_metrics=lambda outputs: validation_scores(arguments.formats, outputs.predictions, outputs.label_ids),
    )


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model whose tower is trained")
    parser.add_argument("--data", nargs="+", required=True, help="record folders, as in train_sft.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the base with the trained tower")
    add_formats_option(parser, "formats to learn from, ")
    parser.add_argument(
        "--place-weight", type=float, default=0.2, help="weight of the landmarks' loss; 0: none (default: 0.2)"
    )
    parser.add_argument(
        "--image-size", type=positive, help="side of the images, such as 64 for a fast first run (default: the model's)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default: 1)")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the images (default: 3)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per step (default: 64)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate (default: 3e-3)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    return parser


def main(arguments) -> None:
    check_there(str(arguments.base))
    train, validation = read_rows(arguments)
    model = AuLlavaForConditionalGeneration.from_pretrained(arguments.base, dtype="float32")
    processor = AuLlavaProcessor.from_pretrained(arguments.base, trust_remote_code=True)
    images = processor.image_processor
    model_size = images.size, images.crop_size
    if arguments.image_size:
        images.size = {"shortest_edge": arguments.image_size}
        images.crop_size = {"height": arguments.image_size, "width": arguments.image_size}
    manifest = make_manifest(arguments, train, validation)
    places = len(train[0]["landmarks"]) if arguments.place_weight else 0
    state = arguments.out / "training"
    network = make_network(model, processor, arguments, places)
    trainer = make_trainer(network, processor, arguments, train, state)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(state) if state.is_dir() else None)
    trainer.data_collator = SharesCollator(processor, arguments.formats, arguments.seed, training=False)
    scores = {name: round(value, 4) for name, value in trainer.evaluate(validation).items()}
    model.cpu().save_pretrained(arguments.out)
    images.size, images.crop_size = model_size
    processor.save_pretrained(arguments.out)
    write_training_manifest(arguments.out, manifest)
    shutil.rmtree(state, ignore_errors=True)
    images_seen = trainer.state.global_step * arguments.batch_size
    print(json.dumps({"written": str(arguments.out), "images_seen": images_seen} | scores))


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command("pretrain_tower.py", lambda: main(make_parser().parse_args(words)))
