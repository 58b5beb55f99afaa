"""Owner of cached image features: what a frozen vision tower makes of every image, computed once and kept on disk.

Kept is what the projector receives, so that the projector still trains, in the precision that training computes it in.
A folder holds one sub-folder for each revision of tower and image processor (`tower_revision`), with safetensors
shards in which an image is found by the hash of its file's content: another tower, or other images, can never be
mistaken for the cached ones. A shard is written as a whole or not at all, so an interrupted run is taken up again.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import datasets
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling

from au_llava.au_training.recovery import BLANK, name_images
from au_llava.au_training.trainer import AUTrainer
from au_llava.modeling_au_llava import AuLlavaModel

logger = logging.getLogger("au_llava.train")

SHARD_BYTES = 256 * 2**20  # held in memory until they are written
ABANDONED = 3600  # seconds after which an unfinished shard, which takes seconds to write, belongs to a killed run
NO_IMAGE = ""  # in place of the hash of an image that cannot be read
# Of a configuration: where it came from and who wrote it, not what a tower computes.
BOOKKEEPING = ("_name_or_path", "transformers_version", "auto_map", "processor_class")


class FeatureCache(Mapping):
    """Hash of an image's content -> its features (image tokens, width), read from the shards of a folder.

    Of `NO_IMAGE` they are zeros.

    Raises:
        ValueError: a shard that cannot be read.
    """

    def __init__(self, folder: Path):
        self.shards = {key: path for path in sorted(folder.glob("*.safetensors")) for key in _opened(path).keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> torch.Tensor:
        if key == NO_IMAGE:
            return torch.zeros_like(self[next(iter(self))])
        return _opened(self.shards[key]).get_tensor(key)

    def __contains__(self, key) -> bool:
        return key in self.shards

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards)

    def __len__(self) -> int:
        return len(self.shards)


@cache
def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, and its images are encoded again.") from None


def write_shard(folder: Path, features: Mapping[str, torch.Tensor]) -> None:
    """Write features by content hash as one shard, named after its images, that exists completely or not at all."""
    path = folder / f"{hashlib.sha256(' '.join(features).encode()).hexdigest()[:16]}.safetensors"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(features), unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def tower_revision(model: AuLlavaModel, image_processor, precision: str) -> str:
    """Hash of all that image features depend on but the image: weights and settings of tower and image processor.

    Args:
        precision: of mixed-precision training: "no", "bf16" or "fp16".
    """
    config = model.config
    settings = {
        "tower": config.vision_config.to_dict(),
        "read": [config.vision_feature_layer, config.vision_stride, config.pixel_unshuffle],
        "images": image_processor.to_dict(),
        "precision": precision,
    }
    for name in BOOKKEEPING:
        settings["tower"].pop(name, None)
        settings["images"].pop(name, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.vision_tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@torch.no_grad()
def image_features(model: AuLlavaModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the projector receives for `pixel_values` (images, 3, height, width): (images, image tokens, width)."""
    received = []
    hook = model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        model.get_image_features(pixel_values)
    finally:
        hook.remove()
    return received[0]


def accept_features(model: AuLlavaModel) -> None:
    """Let the forward of `model` take `image_features` (images, image tokens, width) in place of `pixel_values`.

    They are projected inside the forward, where DDP and FSDP expect the projector's parameters to be used.
    """

    def project(module, positional, named):
        named = dict(named)
        features = named.pop("image_features", None)
        if features is not None:
            embeddings = list(module.multi_modal_projector(features))
            named["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=embeddings)}
        return positional, named

    model.register_forward_pre_hook(project, with_kwargs=True)


class _Files(Dataset):
    """Image files of rows, as `datasets` reads them before it decodes: `bytes` (None where there are none), `path`."""

    def __init__(self, rows: datasets.Dataset):
        self.images = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        image = self.images[row]["image"]
        if image["bytes"] is None:
            with suppress(OSError):
                image["bytes"] = Path(image["path"]).read_bytes()
        return image


def content_key(image: Mapping) -> str:
    """Hash of an image file's content."""
    return NO_IMAGE if image["bytes"] is None else hashlib.sha256(image["bytes"]).hexdigest()


class _Pixels:
    """Collates image files into (content hashes, pixel values, whether each can be read)."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __call__(self, files: Sequence[dict]) -> tuple[list[str], torch.Tensor, list[bool]]:
        images, readable = [], []
        for file in files:
            try:
                images.append(datasets.Image().decode_example(file))
            except Exception:  # as in ReadableRows
                images.append(BLANK)
            readable.append(images[-1] is not BLANK)
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return list(map(content_key, files)), pixels, readable


def use_cached_features(trainer: AUTrainer, folder: str) -> None:
    """Make `trainer` read image features from `folder` in place of images; encode first what the folder lacks.

    The processes share the work, each writing shards of its own. Images are encoded in batches of the training's size:
    it fits into memory, and on a CPU the features are bit for bit those that training would compute. An image that
    cannot be read carries no loss and is counted, as in training from images.

    Args:
        trainer: with an `AUCollator` that changes no image, and rows of `training_rows` to train and evaluate on.
        folder: made where it does not exist; of several machines, one that they share.

    Raises:
        ValueError: the tower is trained, is divided among the processes, or is not the same in all of them; the disk
            has too little room, or is not shared; a shard, or most of the images, cannot be read.
    """
    model = next(module for module in trainer.model.modules() if isinstance(module, AuLlavaModel))
    if any(parameter.requires_grad for parameter in model.vision_tower.parameters()):
        raise ValueError("cache_features needs a vision tower that stays as it is, but LoRA adapts this one.")
    if is_deepspeed_zero3_enabled():
        raise ValueError("cache_features cannot encode with a tower that ZeRO-3 divides: use ZeRO-2, DDP or FSDP.")
    revision = tower_revision(model, trainer.processing_class.image_processor, trainer.accelerator.mixed_precision)
    if len(set(gather_object([revision]))) > 1:
        raise ValueError(
            "cache_features needs the same vision tower in every process, and they hold different weights: with FSDP "
            "set fsdp_cpu_ram_efficient_loading to false."
        )
    cached = Path(folder) / revision
    cached.mkdir(parents=True, exist_ok=True)
    for unfinished in cached.glob(".*.safetensors.*"):
        if time.time() - unfinished.stat().st_mtime > ABANDONED:
            unfinished.unlink(missing_ok=True)

    parts = {name: getattr(trainer, name) for name in ("train_dataset", "eval_dataset")}
    parts = {name: rows for name, rows in parts.items() if rows is not None}
    files = ConcatDataset([_Files(rows) for rows in parts.values()])
    quiet = trainer.args.disable_tqdm or not trainer.is_local_process_zero()
    keys = [content_key(files[row]) for row in tqdm(range(len(files)), "hashing images", disable=quiet)]
    unreadable = _encode_missing(trainer, model, cached, files, keys, quiet)
    found = FeatureCache(cached)
    absent = set(keys) - found.keys() - unreadable
    if absent:
        raise ValueError(f"{cached} lacks {len(absent)} images that another process encoded: put it on a shared disk.")
    for name, rows in parts.items():
        own, keys = keys[: len(rows)], keys[len(rows) :]
        own = [NO_IMAGE if key in unreadable else key for key in own]
        rows = rows.remove_columns("image").add_column("features", own)
        setattr(trainer, name, _without_labels(trainer, rows) if NO_IMAGE in own else rows)
    trainer.data_collator.collate.features = found
    accept_features(model)


def _without_labels(trainer: AUTrainer, rows: datasets.Dataset) -> datasets.Dataset:
    """Take the labels from rows whose image cannot be read, and note them where the trainer does."""
    blind = [key == NO_IMAGE for key in rows["features"]]
    names = name_images(rows, [index for index, each in zip(rows["index"], blind, strict=True) if each])
    if len(names) > len(rows) / 2:
        raise ValueError(
            f"{len(names)} of {len(rows)} images cannot be read, such as {names[0]}: is a disk or folder missing that "
            "the data was prepared from?"
        )
    logger.warning("%s of %s images cannot be read: skipped, such as %s.", len(names), len(rows), names[0])
    trainer.unreadable.update(names)
    values = [
        [[math.nan] * len(labels) for labels in each] if unlabelled else each
        for each, unlabelled in zip(rows["values"], blind, strict=True)
    ]
    return rows.remove_columns("values").add_column("values", values)


def _encode_missing(
    trainer: AUTrainer, model: AuLlavaModel, folder: Path, files: Dataset, keys: Sequence[str], quiet: bool
) -> set[str]:
    """Encode the images that `folder` lacks, this process its share; returns the hashes of all that cannot be read."""
    known = FeatureCache(folder).keys()
    missing = list({key: row for row, key in enumerate(keys) if key not in known and key != NO_IMAGE}.values())
    trainer.accelerator.wait_for_everyone()  # nobody writes before all have counted
    args, image_processor = trainer.args, trainer.processing_class.image_processor
    loader = DataLoader(
        Subset(files, missing[args.process_index :: args.world_size]),
        args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=_Pixels(image_processor),
    )
    places = [(part, next(part.parameters()).device) for part in (model.vision_tower, model.multi_modal_projector)]
    for part, _ in places:
        part.to(args.device)
    if missing:
        crop = image_processor.crop_size
        with trainer.accelerator.autocast():
            example = image_features(model, torch.zeros(1, 3, crop["height"], crop["width"], device=args.device))
        _state_size(folder, example, len(missing), trainer.is_world_process_zero())
    shard, held, unreadable = {}, 0, [NO_IMAGE]
    bar = tqdm(total=len(loader.dataset), desc="encoding images", disable=quiet)
    for names, pixels, readable in loader:
        with trainer.accelerator.autocast():
            features = image_features(model, pixels.to(args.device)).cpu()
        shard |= {name: each.clone() for name, each, known in zip(names, features, readable, strict=True) if known}
        unreadable += [name for name, known in zip(names, readable, strict=True) if not known]
        held += features.nbytes
        if held >= SHARD_BYTES:
            write_shard(folder, shard)
            shard, held = {}, 0
        bar.update(len(names))
    bar.close()
    if shard:
        write_shard(folder, shard)
    for part, device in places:
        part.to(device)
    trainer.accelerator.wait_for_everyone()
    return set(gather_object(unreadable))


def _state_size(folder: Path, example: torch.Tensor, images: int, aloud: bool) -> None:
    """Say what `images` features like `example` take, before any is written; ValueError where there is no room."""
    size, free = images * example.nbytes, shutil.disk_usage(folder).free
    shape = f"{' x '.join(map(str, (images, *example.shape[1:])))} {str(example.dtype)[6:]}"
    if size > free:
        raise ValueError(f"{folder} would take {size / 1e9:.1f} GB ({shape}); the disk has {free / 1e9:.1f} GB left.")
    if aloud:
        logger.warning("%s: writing %.3g GB, %s", folder, size / 1e9, shape)
