"""Owner of cached image features: the output of a frozen vision tower for every image, computed once, kept on disk.

The cache holds the input of the projector, so that the projector can still be trained, in the precision of the
training. A folder has one sub-folder for each revision of tower and image processor (`tower_revision`), with
safetensors shards that are indexed by the hash of an image file's content: features of another tower or another image
are never used by mistake. Shards appear whole or not at all, so an interrupted run continues where it stopped.
"""

import hashlib
import json
import logging
import math
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
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling

from au_llava.au_runs.files import replacing
from au_llava.au_runs.progress import progress_bar
from au_llava.au_training.damaged_images import BLANK, decoded, missing_disk, name_images
from au_llava.au_training.trainer import AUTrainer
from au_llava.modeling_au_llava import AuLlavaModel

logger = logging.getLogger("au_llava.train")

SHARD_BYTES = 256 * 2**20  # kept in memory until they are written
ABANDONED = 3600  # age in seconds of an unfinished shard that no longer can be in work: writing one takes seconds
NO_IMAGE = ""  # replaces the hash of an image that cannot be read
# Settings that say where a configuration came from, not what a tower computes.
BOOKKEEPING = ("_name_or_path", "transformers_version", "auto_map", "processor_class")


class FeatureCache(Mapping):
    """Hash of an image's content -> its features (image tokens, width), read from the shards of a folder.

    The features of `NO_IMAGE` are zeros.

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
        raise ValueError(f"{path} cannot be read ({error}): delete it to encode its images again.") from None


def write_shard(folder: Path, features: Mapping[str, torch.Tensor]) -> None:
    """Write features by content hash as one shard, named after its images."""
    with replacing(folder / f"{hashlib.sha256(' '.join(features).encode()).hexdigest()[:16]}.safetensors") as path:
        save_file(dict(features), path)


def tower_revision(model: AuLlavaModel, image_processor, precision: str) -> str:
    """Hash of the weights and settings of tower and image processor: all that features depend on beside the image.

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
    """The input of the projector for `pixel_values` (images, 3, height, width): (images, image tokens, width)."""
    received = []
    hook = model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        model.get_image_features(pixel_values)
    finally:
        hook.remove()
    return received[0]


def accept_features(model: AuLlavaModel) -> None:
    """Let the forward pass of `model` take `image_features` (images, image tokens, width) instead of `pixel_values`.

    The projector runs inside the forward pass, where DDP and FSDP expect its parameters to be used.
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
    """Undecoded image files of rows: dicts of `bytes` (None for a missing file) and `path`."""

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
    """Collates image files into (content hashes, pixel values, whether each file can be read)."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __call__(self, files: Sequence[dict]) -> tuple[list[str], torch.Tensor, list[bool]]:
        images = list(map(decoded, files))
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return list(map(content_key, files)), pixels, [image is not BLANK for image in images]


def use_cached_features(trainer: AUTrainer, folder: str) -> None:
    """Make `trainer` read image features from `folder` instead of images; missing images are encoded first.

    The processes share the work, and each writes its own shards. Batches have the size of the training's: they fit into
    memory, and on a CPU the features are bit-equal to those of a training from images. As there, an image that cannot
    be read carries no loss and is counted.

    Args:
        trainer: with an `AUCollator` that does not vary images, and rows of `training_rows` to train and evaluate on.
        folder: created if needed; several machines must share it.

    Raises:
        ValueError: the tower is trained, is sharded, or differs between processes; the disk has too little space or is
            not shared; a shard or most of the images cannot be read.
    """
    model = next(module for module in trainer.model.modules() if isinstance(module, AuLlavaModel))
    if any(parameter.requires_grad for parameter in model.vision_tower.parameters()):
        raise ValueError("cache_features needs a frozen vision tower, but LoRA adapts this one.")
    if is_deepspeed_zero3_enabled():
        raise ValueError("cache_features cannot encode with a tower that ZeRO-3 shards: use ZeRO-2, DDP or FSDP.")
    revision = tower_revision(model, trainer.processing_class.image_processor, trainer.accelerator.mixed_precision)
    if len(set(gather_object([revision]))) > 1:
        raise ValueError(
            "cache_features needs the same vision tower in every process, but their weights differ: with FSDP, set "
            "fsdp_cpu_ram_efficient_loading to false."
        )
    cached = Path(folder) / revision
    cached.mkdir(parents=True, exist_ok=True)
    for unfinished in cached.glob(".*.safetensors.*"):
        if time.time() - unfinished.stat().st_mtime > ABANDONED:
            unfinished.unlink(missing_ok=True)

    parts = {name: getattr(trainer, name) for name in ("train_dataset", "eval_dataset")}
    parts = {name: rows for name, rows in parts.items() if rows is not None}
    files = ConcatDataset([_Files(rows) for rows in parts.values()])
    with progress_bar(shown=not trainer.args.disable_tqdm and trainer.is_local_process_zero()) as bar:
        keys = [content_key(files[row]) for row in bar.track(range(len(files)), description="hashing")]
        unreadable = _encode_missing(trainer, model, cached, files, keys, bar)
    features = FeatureCache(cached)
    absent = set(keys) - features.keys() - unreadable
    if absent:
        raise ValueError(f"{cached} lacks {len(absent)} images that another process encoded: put it on a shared disk.")
    for name, rows in parts.items():
        own, keys = keys[: len(rows)], keys[len(rows) :]
        own = [NO_IMAGE if key in unreadable else key for key in own]
        rows = rows.remove_columns("image").add_column("features", own)
        setattr(trainer, name, _without_labels(trainer, rows) if NO_IMAGE in own else rows)
    trainer.data_collator.collate.features = features
    accept_features(model)


def _without_labels(trainer: AUTrainer, rows: datasets.Dataset) -> datasets.Dataset:
    """Remove the labels of rows whose image cannot be read, and report these images to the trainer."""
    damaged = [key == NO_IMAGE for key in rows["features"]]
    names = name_images(rows, [index for index, is_damaged in zip(rows["index"], damaged, strict=True) if is_damaged])
    if len(names) > len(rows) / 2:
        raise ValueError(missing_disk(len(names), len(rows), names[0]))
    logger.warning("%s of %s images cannot be read: skipped, such as %s.", len(names), len(rows), names[0])
    trainer.damaged.names.update(names)
    values = [
        [[math.nan] * len(labels) for labels in lists] if is_damaged else lists
        for lists, is_damaged in zip(rows["values"], damaged, strict=True)
    ]
    return rows.remove_columns("values").add_column("values", values)


def _encode_missing(
    trainer: AUTrainer, model: AuLlavaModel, folder: Path, files: Dataset, keys: Sequence[str], bar
) -> set[str]:
    """Encode this process's share of the images that `folder` lacks; returns the hashes of all unreadable images."""
    known = FeatureCache(folder).keys()
    missing = list({key: row for row, key in enumerate(keys) if key not in known and key != NO_IMAGE}.values())
    trainer.accelerator.wait_for_everyone()  # no process writes before all have counted
    args, image_processor = trainer.args, trainer.processing_class.image_processor
    loader = DataLoader(
        Subset(files, missing[args.process_index :: args.world_size]),
        args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=_Pixels(image_processor),
    )
    homes = [(part, next(part.parameters()).device) for part in (model.vision_tower, model.multi_modal_projector)]
    for part, _ in homes:
        part.to(args.device)
    if missing:
        crop = image_processor.crop_size
        with trainer.accelerator.autocast():
            example = image_features(model, torch.zeros(1, 3, crop["height"], crop["width"], device=args.device))
        _check_space(folder, example, len(missing), announced=trainer.is_world_process_zero())
    shard, size, unreadable = {}, 0, [NO_IMAGE]
    task = bar.add_task("encoding", total=len(loader.dataset))
    for batch_keys, pixels, readable in loader:
        with trainer.accelerator.autocast():
            features = image_features(model, pixels.to(args.device)).cpu()
        batch = list(zip(batch_keys, features, readable, strict=True))
        shard |= {key: of_image.clone() for key, of_image, is_readable in batch if is_readable}
        unreadable += [key for key, _, is_readable in batch if not is_readable]
        size += features.nbytes
        if size >= SHARD_BYTES:
            write_shard(folder, shard)
            shard, size = {}, 0
        bar.advance(task, len(batch))
    if shard:
        write_shard(folder, shard)
    for part, device in homes:
        part.to(device)
    trainer.accelerator.wait_for_everyone()
    return set(gather_object(unreadable))


def _check_space(folder: Path, example: torch.Tensor, images: int, announced: bool) -> None:
    """Announce the size of the features of `images` images like `example`; ValueError if the disk lacks the space."""
    size, free = images * example.nbytes, shutil.disk_usage(folder).free
    shape = f"{' x '.join(map(str, (images, *example.shape[1:])))} {str(example.dtype)[6:]}"
    if size > free:
        raise ValueError(f"{folder} would take {size / 1e9:.1f} GB ({shape}); the disk has {free / 1e9:.1f} GB left.")
    if announced:
        logger.warning("%s: writing %.3g GB, %s", folder, size / 1e9, shape)
