"""The options that train_sft.py adds to TRL's, how recipes give them, and which of them a checkpoint records."""

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import get_type_hints

import torch
import yaml
from huggingface_hub.dataclasses import type_validator
from trl import ModelConfig, SFTConfig, TrlParser

from au_llava.au_runs.formats import known_format
from au_llava.au_runs.processes import launched_several

logger = logging.getLogger("au_llava.train")

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
AVERAGE_DECAY = 0.995
UNLABELLED_OPTIONS = ("unlabelled_per_labelled", "consistency_weight", "weak_weight")
WITH_MAPPINGS = ("data", "unlabelled")  # lists whose entries may be mappings
OF_ADAPTERS = [name for name in ModelConfig.__dataclass_fields__ if name.startswith(("lora_", "use_rs", "use_dora"))]


def refuse_without_effect(options, names: Sequence[str], needed: str) -> None:
    """Raise ValueError if one of `names` in a dataclass of options, which has no effect without `needed`, is given."""
    defaults = {option.name: option.default for option in fields(options)}
    for name in names:
        if getattr(options, name) != defaults[name]:
            raise ValueError(f"{name} has no effect without {needed}: add that, or leave {name} out.")


@dataclass
class AUArguments:
    """AU-LLaVA's own options: what is trained, and on which data."""

    data: list[str] = field(
        metadata={
            "help": "Datasets (folders made by prepare_data.py), each optionally with how often its images are seen "
            "per epoch: data/disfa=2 (twice), data/feafa=0.5 (a fixed random half). A mapping can say more: "
            "'{path: data/bp4d, weight: 2, protocol: bp4d-3fold, tested: P1, formats: [bp4d]}' (docs/training.md)."
        }
    )
    vision: str | None = field(
        default=None,
        metadata={
            "help": "Vision encoder to build a new model from: Hub id or folder, also of an AU-LLaVA checkpoint, whose "
            "tower is used. Needs `text`."
        },
    )
    text: str | None = field(
        default=None,
        metadata={
            "help": "Language model to build a new model from: Hub id or folder, also of an AU-LLaVA checkpoint or "
            "with a GGUF file. Needs `vision`."
        },
    )
    pixel_unshuffle: int = field(
        default=1, metadata={"help": "New model: fold r x r image features into one token; 1 folds none."}
    )
    prompt_order: str = field(
        default="image_first",
        metadata={
            "help": "New model: `image_first`, or `text_first`: what is asked comes before the image, computed once "
            "for all images (docs/training.md)."
        },
    )
    vision_feature_layer: int | None = field(
        default=None, metadata={"help": "New model: layer of the encoder to read, such as -2; default: the last."}
    )
    unlabelled: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Datasets, written as in `data`, whose labels are ignored: their faces join the batches, and the "
            "model learns to read a varied face as the average of its weights reads the plain one (docs/training.md)."
        },
    )
    unlabelled_per_labelled: float = field(
        default=1.0, metadata={"help": "Number of unlabelled images for each labelled one in a slot batch."}
    )
    consistency_weight: float = field(
        default=0.5, metadata={"help": "Weight of the agreement with the averaged weights on unlabelled images."}
    )
    weak_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the agreement with the weak teacher, for unlabelled images with its estimates."},
    )
    average_decay: float | None = field(
        default=None,
        metadata={
            "help": "Save an exponential moving average of the weights, which keeps this share at each step (below 1); "
            f"0: off. Default: {AVERAGE_DECAY} with `unlabelled`, otherwise off."
        },
    )
    formats: list[str] | None = field(
        default=None, metadata={"help": "Formats to train, such as bp4d disfa feafa my.yaml. Default: all in the data."}
    )
    train_part: str = field(default="train", metadata={"help": "Value of the records' `part` column to train on."})
    validation_part: str = field(default="validation", metadata={"help": "Part to evaluate on during training."})
    validation_images: int = field(
        default=1000, metadata={"help": "Score at most this many validation images during training."}
    )
    causal_share: float = field(
        default=0.25,
        metadata={"help": "Share of batches written as ordinary text (for `generate`); the rest train the slots."},
    )
    causal_loss: str = field(
        default="answer",
        metadata={"help": "Which part of a text answer carries loss: `answer` (all of it) or `values`."},
    )
    ordinal_width: float = field(
        default=0.0,
        metadata={
            "help": "Spread of a slot's target over neighboring values, as a share of the scale; 0: cross-entropy."
        },
    )
    flip: float = field(default=0.0, metadata={"help": "Probability of a horizontal flip (sided AU labels swap)."})
    augment: bool = field(
        default=False, metadata={"help": "Vary crop, light and colors of each image a little, but never its AUs."}
    )
    oversample_below: float = field(
        default=0.0,
        metadata={"help": "Show each person's images of AUs below this rate more often. 0: off."},
    )
    loss_weight_power: float = field(
        default=0.0,
        metadata={"help": "Weight each slot's loss by (1 / rate of its AU) to this power; 1: inverse rate, 0: off."},
    )
    freeze: list[str] = field(
        default_factory=list, metadata={"help": f"Parts that are not trained: any of {', '.join(PARTS)}."}
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Use channels-last memory in a convolutional vision tower: faster."}
    )
    cache_features: str | None = field(
        default=None,
        metadata={"help": "Folder for the image features of a frozen vision tower: computed once, then read."},
    )

    def __post_init__(self):
        if not self.data:
            raise ValueError("data names no folder: give one or more that prepare_data.py made.")
        if self.formats is not None:
            self.formats = [known_format(word).name for word in self.formats]
        unknown = sorted(set(self.freeze) - set(PARTS))
        if unknown:
            raise ValueError(f"freeze names {', '.join(unknown)}; it takes any of {', '.join(PARTS)}.")
        for name in ("oversample_below", "loss_weight_power"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.validation_images < 1:
            raise ValueError(f"validation_images is {self.validation_images}; it must be 1 or more.")
        if self.cache_features:
            if "vision_tower" not in self.freeze:
                raise ValueError("cache_features needs a frozen vision tower: freeze: [vision_tower].")
            if self.flip or self.augment:
                raise ValueError("cache_features cannot vary images: leave out flip and augment, or the cache.")
        self._check_unlabelled()
        if self.average_decay is None:
            self.average_decay = AVERAGE_DECAY if self.unlabelled else 0.0
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; it must be at least 0 (off) and below 1.")

    def _check_unlabelled(self):
        if not self.unlabelled:
            refuse_without_effect(self, UNLABELLED_OPTIONS, "unlabelled data")
            return
        for name in UNLABELLED_OPTIONS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if not self.consistency_weight and not self.weak_weight:
            raise ValueError("consistency_weight and weak_weight are both 0: unlabelled data would teach nothing.")
        if self.causal_share == 1:
            raise ValueError("unlabelled images join slot batches, and causal_share 1 leaves none: lower it.")
        if self.cache_features:
            raise ValueError("cache_features cannot vary images, as unlabelled ones are: leave one of the two out.")

    def check_batch(self, size: int) -> None:
        """Raise ValueError if no unlabelled image would join a batch of `size` images."""
        if self.unlabelled and not round(self.unlabelled_per_labelled * size):
            raise ValueError(
                f"unlabelled_per_labelled {self.unlabelled_per_labelled} of a batch of {size} rounds to no image: "
                "raise unlabelled_per_labelled or per_device_train_batch_size."
            )


COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_accumulation_steps",
)


@dataclass
class AUTrainingConfig(SFTConfig):
    """TRL's SFTConfig with defaults that fit AU-LLaVA.

    Differences: max_length is None (answers must not be truncated), remove_unused_columns is False and
    skip_prepare_dataset is True (the collator works on the raw records); use_cpu is True where there is nothing else.

    Raises:
        ValueError: an option that would have no effect or a wrong one.
    """

    max_length: int | None = field(default=None, metadata={"help": "Not used: sequences are never truncated."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the raw columns."})

    def __post_init__(self):
        if self.use_liger_kernel:  # it would be ignored: Liger finds its patches by the model's name
            raise ValueError("use_liger_kernel has no kernels for AU-LLaVA: leave it out.")
        if self.train_sampling_strategy == "batch_rebalance":  # it orders rows unlike a resumed or weighted run
            raise ValueError("train_sampling_strategy: batch_rebalance is not supported: use group_by_length.")
        for name in COUNTS:  # the Trainer would divide by some of them
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}; it must be 1 or more.")
        if self.max_steps < 1 and self.max_steps != -1:  # it would save an untrained model, or train by epochs
            raise ValueError(f"max_steps is {self.max_steps}; it must be 1 or more, or -1 to train by epochs.")
        if self.max_steps == -1 and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0.")
        if not torch.accelerator.is_available():
            if not self.use_cpu:
                logger.warning("There is no GPU that PyTorch can use: training on the processor.")
            self.use_cpu = True  # or bf16, which is TRL's default, would be refused
            if launched_several():
                # As `accelerate launch --cpu` does. Otherwise each process takes itself for the only one.
                os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()


class RecipeParser(TrlParser):
    """TrlParser that reads a recipe's values as it reads flags: TRL takes all but text as it is, whatever its type."""

    def parse_args_and_config(self, args: Sequence[str] | None = None, **options) -> tuple:
        """As TrlParser's. A recipe that is no YAML, or has a value of another type, ends the program in a sentence."""
        args = list(sys.argv[1:] if args is None else args)
        if args[-1:] == ["--config"]:
            self.error("argument --config: expected a recipe (a YAML file)")
        self._given = {word[2:].partition("=")[0] for word in args if word.startswith("--")}
        try:
            groups = super().parse_args_and_config(args, **options)
        except yaml.YAMLError as error:
            self.error(f"argument --config: the recipe is not YAML ({' '.join(str(error).split())})")
        except TypeError as error:
            if "keywords must be strings" not in str(error):
                raise
            self.error("argument --config: a key of the recipe is a number, yes, no or null; expected names of options")
        adapters = sorted(self._given & set(OF_ADAPTERS))
        if adapters and "use_peft" not in self._given:
            self.error(f"argument --{adapters[0]}: it has no effect without --use_peft: add that, or leave it out")
        return groups

    def set_defaults_with_config(self, **recipe) -> list[str]:
        self._given |= recipe.keys()
        hints = {name: hint for group in self.dataclass_types for name, hint in get_type_hints(group).items()}
        for action in self._actions:
            if action.dest in recipe and action.dest in hints:
                recipe[action.dest] = self._as_flag(action, hints[action.dest], recipe[action.dest])
        return super().set_defaults_with_config(**recipe)

    def _as_flag(self, action: argparse.Action, hint, value):
        """`value` as the option takes it; ends the program with a sentence if it does not."""
        without_value = action.nargs == "?" and value is action.const  # the flag alone, as `fsdp: true`
        if not isinstance(value, str) and (without_value or _fits(action.dest, value, hint)):
            return value
        if value is False and "no" in (action.choices or ()):  # how YAML reads a bare no
            return "no"
        if action.nargs == "+":
            return [self._one(action, item) for item in (value if isinstance(value, list) else [value])]
        return self._one(action, value)

    def _one(self, action: argparse.Action, value):
        if isinstance(value, dict) and action.dest in WITH_MAPPINGS:
            return value
        if value is None or isinstance(value, (dict, list)):
            self.error(f"argument --{action.dest}: {value!r} in the recipe; expected what the flag takes (see --help)")
        try:
            value = self._get_value(action, str(value))
            self._check_value(action, value)
        except argparse.ArgumentError as error:
            self.error(str(error))
        return value


def _fits(name: str, value, hint) -> bool:
    """Whether a recipe's value has the type of its option; 3 is a number with a point too, true is not 1."""
    if isinstance(value, bool) and hint is int:
        return False
    try:
        type_validator(name, float(value) if type(value) is int and hint in (float, float | None) else value, hint)
    except TypeError:
        return False
    return True


# Options that differ from run to run without changing what is learned.
NOT_RECORDED = (
    "output_dir",
    "logging_dir",
    "run_name",
    "data",
    "resume_from_checkpoint",
    "disable_tqdm",
    "report_to",
    "cache_features",
)


def recipe_of(*groups) -> dict:
    """The options that differ from their defaults and affect what is learned; no paths, no secrets.

    Args:
        groups: dataclasses of options.
    """
    recipe = {}
    for group in groups:
        for option in fields(group):
            default = option.default if option.default_factory is MISSING else option.default_factory()
            value = getattr(group, option.name)
            value = getattr(value, "value", value)  # of an enumeration
            recorded = option.init and "hub" not in option.name and option.name not in NOT_RECORDED
            if recorded and value != default and isinstance(value, (bool, int, float, str, list)) and value != []:
                recipe[option.name] = value
    return recipe
