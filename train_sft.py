"""Fine-tune AU-LLaVA with TRL's SFTTrainer.

    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml
    accelerate launch train_sft.py --config recipes/rendered_tiny.yaml --learning_rate 5e-4 --output_dir runs/trial
    accelerate launch train_sft.py --model_name_or_path runs/tiny-base --data data/rendered --output_dir runs/first
    accelerate launch train_sft.py --vision google/siglip2-base-patch16-224 --text HuggingFaceTB/SmolLM2-135M-Instruct \
        --data data/rendered --output_dir runs/first

A training starts from a checkpoint (`--model_name_or_path`), or from a vision encoder and a language model (`--vision`
and `--text`), which are put together once, in OUTPUT_DIR/base.

`--data` takes record tables made by prepare_data.py; several are mixed. `--unlabelled` takes more, whose labels are not
used: the model learns from their faces too. A row of the recipe is overridden by the flag
of the same name; an unknown key or flag is an error. Any option of TRL's SFTConfig (batch size, learning rate,
precision, report_to, ...) and ModelConfig (LoRA, quantisation, attention) may be given too.

Training state is saved every `save_steps`; start the same command with `--resume_from_checkpoint true` to go on exactly
where it stopped. Evaluation scores the AUs on the validation part and logs eval_<format>_<metric>, so that
`metric_for_best_model: eval_bp4d_f1` works. The result is a folder that `from_pretrained` loads with its code;
`--push_to_hub true` publishes it at the end, privately unless `--hub_private_repo false` (docs/publishing.md).
"""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import torch
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config

from au_llava.au_datasets.balance import label_statistics, loss_weights, row_weights
from au_llava.au_datasets.folds import person_key
from au_llava.au_datasets.mixing import TrainingData, check_people, training_rows, unlabelled_rows, validating
from au_llava.au_datasets.records import group_by_image, record_features
from au_llava.au_publishing.hub import check_target, gather, upload
from au_llava.au_runs.commands import print_anything
from au_llava.au_runs.manifests import people_of, read_training_manifest, training_manifest
from au_llava.au_training.collator import AUCollator
from au_llava.au_training.features import use_cached_features
from au_llava.au_training.mean_teacher import UnlabelledFaces
from au_llava.au_training.options import AUArguments, AUTrainingConfig, recipe_of
from au_llava.au_training.recovery import ending_with_a_sentence
from au_llava.au_training.start import (
    LORA_TARGETS,
    base_weights,
    check_start,
    freeze_parts,
    keep_statistics,
    load_model,
    starting_point,
)
from au_llava.au_training.trainer import AUTrainer
from au_llava.processing_au_llava import AuLlavaProcessor

logger = logging.getLogger("au_llava.train")


def main(arguments: AUArguments, training_args: AUTrainingConfig, model_args: ModelConfig):
    check_start(arguments, model_args)
    repo_id = None
    if training_args.push_to_hub:  # found out before the training whether it can be published after it
        if model_args.use_peft:
            raise ValueError(
                "push_to_hub publishes whole checkpoints: merge the adapters after training (tools/merge_adapter.py), "
                "then tools/release.py."
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
            (table.path, *(table.formats or ())): replace(table, weight=1, convert_to=(), frames=1)
            for table in validating(tables, arguments.validation_part, arguments.formats)
        }.values()
        validation_rows = training_rows(list(as_annotated), arguments.validation_part, arguments.formats)
        validation_rows = validation_rows.select(range(min(arguments.validation_images, len(validation_rows))))
        columns = list(record_features({}))
        validation = datasets.concatenate_datasets(
            [t.load(arguments.validation_part, arguments.formats).select_columns(columns) for t in as_annotated]
        )
    used = (arguments.train_part, arguments.validation_part if evaluating else None)
    faces = [TrainingData.read(entry) for entry in arguments.unlabelled]
    unlabelled = unlabelled_rows(faces, arguments.train_part, arguments.formats, training_args.seed) if faces else None
    tested = [] if "test" in used else [*tables, *faces]
    check_people(train, validation, tested)
    if unlabelled is not None:
        check_people(unlabelled, validation, tested, side="unlabelled")
        if not round(arguments.unlabelled_per_labelled * training_args.per_device_train_batch_size):
            raise ValueError(
                f"unlabelled_per_labelled {arguments.unlabelled_per_labelled} of a batch of "
                f"{training_args.per_device_train_batch_size} is no image: raise either."
            )
    if evaluating:
        kept = [row for group in group_by_image(validation)[: arguments.validation_images] for row in group.values()]
        validation = validation.select(sorted(kept))

    formats, values = train["formats"][:], train["values"][:]
    labels = label_statistics(*([each for row in column for each in row] for column in (formats, values)))
    if not any(labels.values()):
        raise ValueError(
            f"No image of {', '.join(paths)} has a label: data needs labels, `unlabelled` takes the others."
        )
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
        unlabelled=[] if unlabelled is None else people_of(unlabelled),
        unlabelled_data=list(dict.fromkeys(table.path for table in faces)),
    )
    if model_args.use_peft and training_args.process_index == 0:
        manifest["base_weights"] = base_weights(model_args)
    model = load_model(model_args, training_args)
    model.config.calibration = None  # of the weights that training is about to change
    freeze_parts(model, arguments.freeze)
    if model_args.use_peft:
        keep_statistics(model)
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
        train_dataset=train.cast_column("image", datasets.Image(decode=False)),  # SFTTrainer looks at the first row
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
            arguments.unlabelled_per_labelled,
        ),
        row_weights=row_weights(formats, values, people, labels, arguments.oversample_below)
        if arguments.oversample_below
        else None,
        peft_config=get_peft_config(model_args),
        unlabelled=None
        if unlabelled is None
        else UnlabelledFaces(unlabelled, arguments.consistency_weight, arguments.weak_weight),
        average_decay=arguments.average_decay,
    )
    mixed = training_args.bf16 or training_args.fp16
    quantised = model_args.load_in_4bit or model_args.load_in_8bit  # TRL puts what is trained into bfloat16
    if mixed != quantised:  # 16 bits are too few for the small steps of an optimizer, and do not fit without autocast
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if arguments.cache_features:
        use_cached_features(trainer, arguments.cache_features)
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
    print_anything()
    with ending_with_a_sentence("train_sft.py"):
        main(*make_parser().parse_args_and_config(fail_with_unknown_args=True))
