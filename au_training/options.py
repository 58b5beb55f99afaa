"""The options of train_sft.py that are AU-LLaVA's own, and which of all options a checkpoint keeps as its recipe."""

import math
from dataclasses import MISSING, dataclass, field, fields

from trl import SFTConfig

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
AVERAGE_DECAY = 0.995


@dataclass
class AUArguments:
    """What is trained on what: the arguments of AU-LLaVA's own."""

    data: list[str] = field(
        metadata={
            "help": "Datasets (folders made by prepare_data.py), each optionally with how often its images are seen "
            "per epoch: data/disfa=2 (twice), data/feafa=0.5 (a fixed random half). With more to say, a mapping: "
            "'{path: data/bp4d, weight: 2, protocol: bp4d-3fold, tested: P1, formats: [bp4d]}' (docs/training.md)."
        }
    )
    vision: str | None = field(
        default=None, metadata={"help": "Vision encoder to build a new model from: Hub id or folder. Goes with `text`."}
    )
    text: str | None = field(
        default=None, metadata={"help": "Language model to build a new model from: Hub id or folder."}
    )
    pixel_unshuffle: int = field(
        default=1, metadata={"help": "Of a new model: fold r x r image features into one token."}
    )
    vision_feature_layer: int | None = field(
        default=None,
        metadata={"help": "Of a new model: layer of the encoder to read, such as -2; default: last."},
    )
    unlabelled: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Datasets as of `data` whose labels are not used: their faces join the batches, and the model "
            "learns to read them varied as the average of its weights reads them plain (docs/training.md)."
        },
    )
    unlabelled_per_labelled: float = field(
        default=1.0, metadata={"help": "Unlabelled images in a slot batch for each labelled one."}
    )
    consistency_weight: float = field(
        default=0.5, metadata={"help": "Weight of the agreement with the averaged weights on unlabelled images."}
    )
    weak_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the agreement with the weak teacher, where unlabelled images have its estimates."},
    )
    average_decay: float | None = field(
        default=None,
        metadata={
            "help": "Save an exponential moving average of the weights; the share that it keeps at each step, below 1; "
            f"0: off. Default: {AVERAGE_DECAY} with `unlabelled`, else off."
        },
    )
    formats: list[str] | None = field(
        default=None, metadata={"help": "Formats to train, such as bp4d disfa feafa. Default: all in the data."}
    )
    train_part: str = field(default="train", metadata={"help": "Value of the records' `part` column to train on."})
    validation_part: str = field(default="validation", metadata={"help": "Part to evaluate on during training."})
    validation_images: int = field(
        default=1000, metadata={"help": "At most this many validation images are scored during training."}
    )
    causal_share: float = field(
        default=0.25,
        metadata={"help": "Share of batches laid out as ordinary text (for `generate`); the rest train the slots."},
    )
    causal_loss: str = field(
        default="answer",
        metadata={"help": "What of a text answer carries loss: the whole answer, or its values only."},
    )
    ordinal_width: float = field(
        default=0.0,
        metadata={
            "help": "Spread of a slot's target over neighbouring values, as a share of the scale; 0: cross-entropy."
        },
    )
    flip: float = field(default=0.0, metadata={"help": "Probability of a horizontal flip (sided AU labels swap)."})
    augment: bool = field(
        default=False, metadata={"help": "Vary crop, light and colours of each image a little; AUs stay as they are."}
    )
    oversample_below: float = field(
        default=0.0,
        metadata={"help": "Rate below which an AU is rare: its images are seen more often, of each person. 0: off."},
    )
    loss_weight_power: float = field(
        default=0.0,
        metadata={"help": "Weigh each slot's loss by (1 / rate of its AU) to this power; 1: inverse rate, 0: off."},
    )
    freeze: list[str] = field(
        default_factory=list, metadata={"help": f"Parts to keep as they are: any of {', '.join(PARTS)}."}
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Lay a convolutional vision tower out channels-last: faster on CPU and GPU."}
    )
    cache_features: str | None = field(
        default=None,
        metadata={"help": "Folder for what a frozen vision tower makes of each image: encoded once, kept, then read."},
    )

    def __post_init__(self):
        unknown = sorted(set(self.freeze) - set(PARTS))
        if unknown:
            raise ValueError(f"freeze names {', '.join(unknown)}; it takes any of {', '.join(PARTS)}.")
        for name in ("oversample_below", "loss_weight_power"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.cache_features:
            if "vision_tower" not in self.freeze:
                raise ValueError("cache_features needs a vision tower that stays as it is: freeze: [vision_tower].")
            if self.flip or self.augment:
                raise ValueError("cache_features keeps each image as it is: leave out flip and augment, or the cache.")
        self._check_unlabelled()
        if self.average_decay is None:
            self.average_decay = AVERAGE_DECAY if self.unlabelled else 0.0
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; it must lie between 0 (off) and 1, 1 excluded.")

    def _check_unlabelled(self):
        options = ("unlabelled_per_labelled", "consistency_weight", "weak_weight")
        if not self.unlabelled:
            idle = [
                each.name for each in fields(self) if each.name in options and getattr(self, each.name) != each.default
            ]
            if idle:
                raise ValueError(f"{idle[0]} has no effect without unlabelled: name such data, or leave it out.")
            return
        for name in options:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if not self.consistency_weight and not self.weak_weight:
            raise ValueError("consistency_weight and weak_weight are both 0: unlabelled data would teach nothing.")
        if self.causal_share == 1:
            raise ValueError("unlabelled images join slot batches, and causal_share 1 leaves none: lower it.")
        if self.cache_features:
            raise ValueError("cache_features keeps each image as it is, and unlabelled ones are varied: leave one out.")


@dataclass
class AUTrainingConfig(SFTConfig):
    """TRL's SFTConfig with defaults that fit AU-LLaVA.

    Differences: max_length None (an answer must never be cut), remove_unused_columns False and
    skip_prepare_dataset (the collator works on the raw records).

    Raises:
        ValueError: an option that would have no effect or a wrong one.
    """

    max_length: int | None = field(default=None, metadata={"help": "Not used: sequences are never cut."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the raw columns."})

    def __post_init__(self):
        if self.use_liger_kernel:  # would pass unnoticed: Liger looks its patches up by the model's name
            raise ValueError("use_liger_kernel has no kernels for AU-LLaVA: leave it out.")
        if self.train_sampling_strategy == "batch_rebalance":  # its order is not that of a resumed or weighted run
            raise ValueError("train_sampling_strategy: batch_rebalance is not supported: use group_by_length.")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()


def recipe_of(*groups) -> dict:
    """The options of dataclasses that differ from their defaults and say how training went: no paths, no secrets."""
    left_out = ("output_dir", "logging_dir", "run_name", "data", "resume_from_checkpoint", "disable_tqdm", "report_to")
    left_out += ("cache_features",)  # does not change what is learned
    recipe = {}
    for group in groups:
        for option in fields(group):
            default = option.default if option.default_factory is MISSING else option.default_factory()
            value = getattr(group, option.name)
            value = getattr(value, "value", value)  # of an enumeration
            telling = option.init and "hub" not in option.name and option.name not in left_out
            if telling and value != default and isinstance(value, (bool, int, float, str, list)) and value != []:
                recipe[option.name] = value
    return recipe
