"""Fine-tune AU-LLaVA with TRL's SFTTrainer.

    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml
    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml --learning_rate 5e-4 --output_dir runs/trial
    accelerate launch train_sft.py --model_name_or_path runs/tiny-base --data data/rendered --output_dir runs/first
    accelerate launch train_sft.py --vision google/siglip2-base-patch16-224 --text HuggingFaceTB/SmolLM2-135M-Instruct \
        --data data/rendered --output_dir runs/first

A training starts from a checkpoint (`--model_name_or_path`), or from a vision encoder and a language model (`--vision`
and `--text`), which are put together once, in OUTPUT_DIR/base.

`--data` takes record tables made by prepare_data.py; several are mixed. A row of the recipe is overridden by the flag
of the same name; an unknown key or flag is an error. Any option of TRL's SFTConfig (batch size, learning rate,
precision, report_to, ...) and ModelConfig (LoRA, quantisation, attention) may be given too.

Training state is saved every `save_steps`; start the same command with `--resume_from_checkpoint true` to go on exactly
where it stopped. Evaluation scores the AUs on the validation part and logs eval_<format>_<metric>, so that
`metric_for_best_model: eval_bp4d_f1` works. The result is a folder that `from_pretrained` loads with its code;
`--push_to_hub true` publishes it at the end, privately unless `--hub_private_repo false` (docs/publishing.md).
"""

import json
import logging
import os
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from au_llava.au_datasets.balance import WeightedSampler, label_statistics, loss_weights, row_weights
from au_llava.au_datasets.folds import person_key
from au_llava.au_datasets.mixing import TrainingData, check_people, training_rows
from au_llava.au_datasets.records import group_by_image, record_features
from au_llava.au_evaluation.prediction import predict
from au_llava.au_evaluation.provenance import (
    people_of,
    read_training_manifest,
    training_manifest,
    write_training_manifest,
)
from au_llava.au_evaluation.scoring import score_predictions
from au_llava.card_au_llava import write_card
from au_llava.collator_au_llava import AUCollator, slot_loss
from au_llava.modeling_au_llava import AuLlavaForConditionalGeneration
from au_llava.processing_au_llava import AuLlavaProcessor
from au_llava.publishing_au import base_models, check_target, gather, upload

logger = logging.getLogger("au_llava.train")

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PARTS_FILE = "parts.json"  # in OUTPUT_DIR/base: what it was put together of
UNQUANTISED = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]


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

    def __post_init__(self):
        unknown = sorted(set(self.freeze) - set(PARTS))
        if unknown:
            raise ValueError(f"freeze names {', '.join(unknown)}; it takes any of {', '.join(PARTS)}.")
        for name in ("oversample_below", "loss_weight_power"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")


@dataclass
class AUTrainingConfig(SFTConfig):
    """TRL's SFTConfig with defaults that fit AU-LLaVA.

    Differences: max_length None (an answer must never be cut), remove_unused_columns False and
    skip_prepare_dataset (the collator works on the raw records).
    """

    max_length: int | None = field(default=None, metadata={"help": "Not used: sequences are never cut."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the raw columns."})

    def __post_init__(self):
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()


class AUTrainer(SFTTrainer):
    """SFTTrainer that trains slot batches by `slot_loss` and whose evaluation also scores the AUs.

    Causal batches go SFTTrainer's own way. Slot batches project the decisions onto the values' tokens only, not the
    whole sequence onto the whole vocabulary.

    Args:
        validation: records to score, or None.
        manifest: who and what is trained on (see provenance.py), saved with every checkpoint; or None.
        row_weights: (rows,) how often each training row is seen, relative to the others; None: once an epoch.
    """

    def __init__(
        self,
        *args,
        validation: datasets.Dataset | None = None,
        manifest: dict | None = None,
        row_weights: np.ndarray | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.row_weights = row_weights
        self.validation = validation
        self.manifest = manifest

    def _get_train_sampler(self, train_dataset=None):
        if self.row_weights is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return WeightedSampler(self.row_weights, seed)

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.manifest is not None:
            write_training_manifest(output_dir or self.args.output_dir, self.manifest)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "choice_targets" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        nodes, choices, targets, annotated = map(
            inputs.pop, ("decision_nodes", "choices", "choice_targets", "annotated")
        )
        kept, rows = nodes.unique(return_inverse=True)  # the images of a batch may have different trees
        tokens, columns = choices.clamp(min=0).unique(return_inverse=True)
        outputs = model(**inputs, logits_to_keep=kept, logit_tokens=tokens, use_cache=False)
        loss = slot_loss(outputs.logits, rows, columns.masked_fill(choices < 0, -1), targets, annotated)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():  # in the precision of the training
            predictions = predict(
                model, self.processing_class, self.validation, batch_size=self.args.per_device_eval_batch_size
            )
        scores = score_predictions(predictions)
        flat = {
            f"{metric_key_prefix}_{name}_{metric}": value
            for name, result in scores.items()
            for metric, value in result["mean"].items()
        }
        self.log(flat)
        return {**metrics, **flat}

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write the README.md of a checkpoint; TRL's own describes a text-only model."""
        if not self.is_world_process_zero():
            return
        scores = [
            (entry["step"], key.removeprefix("eval_"), f"{value:.3f}")
            for entry in self.state.log_history[-2:]
            for key, value in entry.items()
            if key.endswith(("_f1", "_icc", "_pcc", "_mae"))
        ]
        write_card(
            self.args.output_dir,
            base=" and ".join(base_models(self.manifest)) or self.model.config.name_or_path or "a new model",
            data=", ".join(self.manifest["data"]) if self.manifest else "records in memory",
            images=len(self.train_dataset),
            steps=self.state.global_step,
            scores=scores,
        )


def check_start(arguments: AUArguments, model_args: ModelConfig) -> None:
    """Raise ValueError unless either a checkpoint or both parts of a new model are named."""
    named, parts = model_args.model_name_or_path, (arguments.vision, arguments.text)
    if bool(named) == any(parts) or not (named or all(parts)):
        raise ValueError(
            "Say what to start from: --model_name_or_path (a folder or a Hub id), or --vision and --text together."
        )


def starting_point(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig) -> str:
    """The checkpoint to start from: the one that is named, or OUTPUT_DIR/base, put together where it is not there yet.

    On disk, since sharded and quantised models and LoRA's adapters need a folder that they can be loaded from.
    """
    if model_args.model_name_or_path:
        return model_args.model_name_or_path
    parts = arguments.vision, arguments.text
    base = Path(training_args.output_dir) / "base"
    options = {"pixel_unshuffle": arguments.pixel_unshuffle, "trust_remote_code": training_args.trust_remote_code}
    layer = {"vision_feature_layer": arguments.vision_feature_layer, "dtype": model_args.dtype}
    made_of = {"vision": parts[0], "text": parts[1], **options, **layer}
    with training_args.main_process_first(local=training_args.save_on_each_node, desc="building the base"):
        if not base.is_dir():
            unfinished = base.with_name(f".base.{os.getpid()}")
            set_seed(training_args.seed)  # of the projector
            model = AuLlavaForConditionalGeneration.from_vision_text_pretrained(*parts, **options, **layer)
            model.save_pretrained(unfinished)
            AuLlavaProcessor.from_vision_text_pretrained(*parts, **options).save_pretrained(unfinished)
            (unfinished / PARTS_FILE).write_text(json.dumps(made_of, indent=1) + "\n")
            unfinished.rename(base)
    found = json.loads((base / PARTS_FILE).read_text())
    if found != made_of:
        raise ValueError(f"{base} was made of {found}, not of {made_of}: delete it or choose another output_dir.")
    return str(base)


def load_model(model_args: ModelConfig, training_args: SFTConfig):
    """The model to train, in float32 unless `--dtype` says otherwise (of what is frozen); quantised if asked for."""
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        quantization.llm_int8_skip_modules = UNQUANTISED
    model = AuLlavaForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype if model_args.dtype not in (None, "auto") else "float32",
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
        device_map={"": training_args.device} if quantization is not None else None,
    )
    # FSDP wraps these classes and stops at one that the model lacks, such as the tower's unused pooling head.
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = sorted(present & set(model._no_split_modules))
    return model


def freeze_parts(model: AuLlavaForConditionalGeneration, parts: list[str]) -> None:
    """Take parts of the model out of training: no gradients, and evaluation mode (batch-norm statistics stay too).

    Only the layers themselves, not what is in them, know that training is on: else gradients that pass through a frozen
    language model would not be checkpointed.
    """

    def train(part, mode=True):
        for module in part.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = mode
        return part

    for name in parts:
        part = getattr(model.model, name).eval().requires_grad_(False)
        part.train = partial(train, part)
        if name == "language_model":
            model.lm_head.requires_grad_(False)


def recipe_of(*groups) -> dict:
    """The options of dataclasses that differ from their defaults and say how training went: no paths, no secrets."""
    left_out = ("output_dir", "logging_dir", "run_name", "data", "resume_from_checkpoint", "disable_tqdm", "report_to")
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


def main(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig):
    check_start(arguments, model_args)
    repo_id = None
    if training_args.push_to_hub:  # found out before the training whether it can be published after it
        if model_args.use_peft:
            raise ValueError(
                "push_to_hub publishes whole checkpoints: merge the adapters after training, then tools/release.py."
            )
        name = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
        repo_id = check_target(name, training_args.hub_token)
        training_args.push_to_hub = False  # the Trainer would send its whole folder
    tables = [TrainingData.read(entry) for entry in arguments.data]
    paths = list(dict.fromkeys(table.path for table in tables))
    train = training_rows(tables, arguments.train_part, arguments.formats, training_args.seed)
    evaluating = training_args.eval_strategy != "no"
    validation = validation_rows = None
    if evaluating:
        as_annotated = {
            (table.path, *(table.formats or ())): replace(table, weight=1, convert_to=(), frames=1) for table in tables
        }.values()
        validation_rows = training_rows(list(as_annotated), arguments.validation_part, arguments.formats)
        validation_rows = validation_rows.select(range(min(arguments.validation_images, len(validation_rows))))
        columns = list(record_features({}))
        validation = datasets.concatenate_datasets(
            [t.load(arguments.validation_part, arguments.formats).select_columns(columns) for t in as_annotated]
        )
    used = (arguments.train_part, arguments.validation_part if evaluating else None)
    check_people(train, validation, [] if "test" in used else tables)
    if evaluating:
        kept = [row for group in group_by_image(validation)[: arguments.validation_images] for row in group.values()]
        validation = validation.select(sorted(kept))

    formats, values = train["formats"][:], train["values"][:]
    labels = label_statistics(*([each for row in column for each in row] for column in (formats, values)))
    people = list(map(person_key, train["dataset"][:], train["subject"][:]))
    mixture = [table for table in map(asdict, tables) if table != asdict(TrainingData(table["path"]))]
    recipe = recipe_of(arguments, training_args, model_args) | ({"mixture": mixture} if mixture else {})
    model_args.model_name_or_path = starting_point(arguments, training_args, model_args)
    manifest = training_manifest(
        train=people_of(train),
        validation=[] if validation is None else people_of(validation),
        data=paths,
        formats=labels,
        recipe=recipe,
        base=read_training_manifest(model_args.model_name_or_path),
        labels=labels,
    )
    model = load_model(model_args, training_args)
    model.config.calibration = None  # of the weights that training is about to change
    freeze_parts(model, arguments.freeze)
    if arguments.channels_last:
        model.model.vision_tower.to(memory_format=torch.channels_last)
    # This class, as for the model: an older checkpoint's code must not be saved with the new weights.
    processor = AuLlavaProcessor.from_pretrained(model_args.model_name_or_path, trust_remote_code=True)
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s training images, %s of %s parameters trained", len(train), trainable, model.num_parameters())

    trainer = AUTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=validation_rows,
        validation=validation,
        manifest=manifest,
        processing_class=processor,
        data_collator=AUCollator(
            processor,
            arguments.causal_share,
            arguments.ordinal_width,
            arguments.flip,
            training_args.seed,
            arguments.causal_loss,
            arguments.augment,
            loss_weights(labels, arguments.loss_weight_power) if arguments.loss_weight_power else None,
        ),
        row_weights=row_weights(formats, values, people, labels, arguments.oversample_below)
        if arguments.oversample_below
        else None,
        peft_config=get_peft_config(model_args),
    )
    if (training_args.bf16 or training_args.fp16) and not (model_args.load_in_4bit or model_args.load_in_8bit):
        for parameter in trainer.model.parameters():  # 16 bits are too few for the small steps of an optimizer
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    resume = training_args.resume_from_checkpoint
    if str(resume).lower() in ("true", "1"):
        resume = get_last_checkpoint(training_args.output_dir) if Path(training_args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    if repo_id is not None and trainer.is_world_process_zero():
        release = gather(training_args.output_dir, repo_id)
        private = training_args.hub_private_repo is not False
        url = upload(repo_id, release.files, "AU-LLaVA checkpoint", token=training_args.hub_token, private=private)
        logger.warning("Published: %s", "\n".join([url, *release.notes]))


def make_parser() -> TrlParser:
    return TrlParser((AUArguments, AUTrainingConfig, ModelConfig), description=__doc__, allow_abbrev=False)


if __name__ == "__main__":
    try:
        main(*make_parser().parse_args_and_config(fail_with_unknown_args=True))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_sft.py: {error}")
