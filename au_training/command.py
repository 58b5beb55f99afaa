r"""Fine-tune AU-LLaVA with TRL's SFTTrainer.

    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml
    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml --learning_rate 5e-4 --output_dir runs/trial
    accelerate launch train_sft.py --model_name_or_path runs/tiny-base --data data/rendered --output_dir runs/first
    accelerate launch train_sft.py --vision google/siglip2-base-patch16-224 --text HuggingFaceTB/SmolLM2-135M-Instruct \
        --data data/rendered --output_dir runs/first

A training starts from a checkpoint (--model_name_or_path), or builds a new model from a vision encoder and a language
model (--vision and --text), once, in OUTPUT_DIR/base.

--data takes folders made by prepare_data.py; several are mixed. --unlabelled takes more, whose labels are ignored: the
model learns from their faces too. A flag overrides the key of the same name in the recipe (--config); an unknown key or
flag is an error. All options of TRL's SFTConfig (batch size, learning rate, precision, report_to, ...) and ModelConfig
(LoRA, quantization, attention) work too.

Training state is saved every `save_steps`. The same command with --resume_from_checkpoint true continues exactly where
it stopped. Each evaluation scores the AUs on the validation part and logs eval_<format>_<metric>, so
`metric_for_best_model: eval_bp4d_f1` works. The result is a folder that `from_pretrained` loads with its code.
--push_to_hub true publishes it at the end, privately unless --hub_private_repo false (docs/publishing.md).
"""

import argparse
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import datasets
from trl import ModelConfig, get_peft_config

from au_llava.au_datasets.balance import loss_weights
from au_llava.au_publishing.release import check_training_target, publish_training
from au_llava.au_runs.commands import run_command
from au_llava.au_runs.files import only_run
from au_llava.au_runs.manifests import read_training_manifest
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.data import LearningData, read_data
from au_llava.au_training.features import use_cached_features
from au_llava.au_training.mean_teacher import UnlabelledFaces
from au_llava.au_training.options import AUArguments, AUTrainingConfig, RecipeParser, recipe_of
from au_llava.au_training.recovery import checkpoint_to_resume, ending_with_advice
from au_llava.au_training.start import (
    LORA_TARGETS,
    base_weights,
    check_start,
    fit_precision,
    start_model,
    starting_point,
)
from au_llava.au_training.trainer import AUTrainer

logger = logging.getLogger("au_llava.train")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Prints the description as it is written, and the default of every option."""


def make_parser() -> RecipeParser:
    groups = (AUArguments, AUTrainingConfig, ModelConfig)
    return RecipeParser(groups, description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter)


def main(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig) -> None:
    check_start(arguments, model_args)
    arguments.check_batch(training_args.per_device_train_batch_size)
    repo_id = check_training_target(training_args, model_args.use_peft)
    training_args.push_to_hub = False  # the Trainer would upload its whole folder
    with only_run(Path(training_args.output_dir), "output_dir") if training_args.process_index == 0 else nullcontext():
        train(arguments, training_args, model_args, repo_id)


def train(
    arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig, repo_id: str | None
) -> None:
    """Train, save, and publish as `repo_id` if there is one."""
    data = read_data(arguments, training_args)
    recipe = make_recipe(arguments, training_args, model_args, data)
    model_args.model_name_or_path = starting_point(arguments, training_args, model_args)
    manifest = make_manifest(recipe, training_args, model_args, data)
    trainer = make_trainer(arguments, training_args, model_args, data, manifest)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"Written: {training_args.output_dir}")
        print(f"To score it: python eval_au.py --model {training_args.output_dir} --data DIR --out runs/eval")
    if repo_id is not None and trainer.is_world_process_zero():
        logger.warning("Published: %s", publish_training(training_args, repo_id))


def make_recipe(arguments, training_args, model_args, data: LearningData) -> dict:
    """The options that affect what is learned, for the training manifest."""
    mixture = data.mixture()
    return recipe_of(arguments, training_args, model_args) | ({"mixture": mixture} if mixture else {})


def make_manifest(recipe: dict, training_args, model_args, data: LearningData) -> dict:
    """The training manifest, with the content of the base if adapters are trained on it."""
    seen = read_training_manifest(model_args.model_name_or_path, model_args.model_revision)
    manifest = data.manifest(recipe, seen)
    if model_args.use_peft and training_args.process_index == 0:
        manifest["base_weights"] = base_weights(model_args)
    return manifest


def make_trainer(arguments, training_args, model_args, data: LearningData, manifest: dict) -> AUTrainer:
    """A trainer of the model at its starting point."""
    model, processor = start_model(arguments, training_args, model_args)
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s training images, %s of %s parameters trained", len(data.train), trainable, model.num_parameters())
    unlabelled = data.unlabelled
    if unlabelled is not None:
        unlabelled = UnlabelledFaces(unlabelled, arguments.consistency_weight, arguments.weak_weight)
    trainer = AUTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train.cast_column("image", datasets.Image(decode=False)),  # SFTTrainer reads the first row
        eval_dataset=data.validation_rows,
        validation=data.validation,
        manifest=manifest,
        processing_class=processor,
        data_collator=make_collator(arguments, training_args.seed, processor, data.labels),
        row_weights=data.oversampling(arguments.oversample_below),
        peft_config=get_peft_config(model_args),
        unlabelled=unlabelled,
        average_decay=arguments.average_decay,
    )
    fit_precision(trainer.model, training_args, model_args)
    if arguments.cache_features:
        use_cached_features(trainer, arguments.cache_features)
    return trainer


def make_collator(arguments: AUArguments, seed: int, processor, labels) -> AUCollator:
    """The collator of the options. `labels`: `label_statistics` of the training rows."""
    power = arguments.loss_weight_power
    return AUCollator(
        processor,
        causal_share=arguments.causal_share,
        ordinal_width=arguments.ordinal_width,
        flip=arguments.flip,
        seed=seed,
        causal_loss=arguments.causal_loss,
        augment=arguments.augment,
        slot_weights=loss_weights(labels, power) if power else None,
        unlabelled_per_labelled=arguments.unlabelled_per_labelled,
    )


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""

    def advised() -> None:
        with ending_with_advice():
            main(*make_parser().parse_args_and_config(words, fail_with_unknown_args=True))

    return run_command("train_sft.py", advised)
