"""The trainer: slot batches, scores of every format during training, manifest and card of every checkpoint."""

import logging
from contextlib import nullcontext, suppress
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from au_llava.action_units import get_format
from au_llava.au_evaluation.predictions import predict
from au_llava.au_evaluation.scoring import score_predictions
from au_llava.au_publishing.card import base_models
from au_llava.au_runs.commands import CommandEnded
from au_llava.au_runs.engines import TorchEngine
from au_llava.au_runs.manifests import write_training_manifest
from au_llava.au_training.averaging import TRAINED, AveragedWeights
from au_llava.au_training.damaged_images import DamagedImages, ReadableRows, name_images
from au_llava.au_training.engines import gather_weight, plain_class, whole_model
from au_llava.au_training.loss import IGNORED, slot_loss
from au_llava.au_training.mean_teacher import UnlabelledFaces, loss_counts
from au_llava.au_training.recovery import EndIfComplete, StopOnSIGTERM, TrainingComplete, replacing_contents
from au_llava.au_training.samplers import GroupedSampler, WeightedSampler, slot_lengths, slot_trees
from au_llava.card_au_llava import write_card
from au_llava.decoding_au_llava import check_fit

logger = logging.getLogger("au_llava.train")


class AUTrainer(SFTTrainer):
    """SFTTrainer that trains slot batches with `slot_loss` and scores the AUs in every evaluation.

    SFTTrainer handles causal batches itself. Slot batches project only the decisions onto only the tokens of values,
    not the whole sequence onto the whole vocabulary.

    The loss of an optimizer step depends only on its batches, however they are divided among processes and accumulated:
    the mean over all annotated AUs (by weight) of the slot batches and the mean over all tokens of the causal batches,
    weighted by their numbers of batches. Slot batches add the two losses on unlabelled pictures, each its own mean.
    TRL's entropy and token accuracy cover the main process only, and so do the logged parts of the loss.

    With `average_decay`, the average of the weights (averaging.py) is evaluated, saved and used as the teacher.

    Args:
        validation: records to score, or None.
        manifest: who and what the model is trained on (manifests.py), saved with every checkpoint; or None.
        row_weights: (rows,) how often each training row is seen, relative to the others; None: once an epoch.
        unlabelled: faces to learn from without labels, or None.
        average_decay: of `AveragedWeights`; 0: no average.

    Raises:
        ValueError: `average_decay` or `unlabelled` with FSDP or DeepSpeed, which shard the weights or copy them.
    """

    loss_is_scaled_for_ga = True  # by _get_num_items_in_batch, which counts the whole step

    def __init__(
        self,
        *args,
        validation: datasets.Dataset | None = None,
        manifest: dict | None = None,
        row_weights: np.ndarray | None = None,
        unlabelled: UnlabelledFaces | None = None,
        average_decay: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.unlabelled = unlabelled
        self.average = None
        if (average_decay or unlabelled is not None) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("average_decay and unlabelled need whole weights in every process: train with DDP.")
        if average_decay:
            self.average = AveragedWeights(self.model, average_decay)
            self.add_callback(self.average)
        self.data_collator = ReadableRows(self.data_collator)
        self.unfinished: Path | None = None  # holds a checkpoint while it is being written
        self.row_weights = row_weights
        self.validation = validation
        self.manifest = manifest
        self.damaged = DamagedImages()
        self.add_callback(EndIfComplete())
        self.add_callback(StopOnSIGTERM(self.accelerator))

    def train(self, *args, **kwargs):
        for formats, tree in slot_trees(self.train_dataset["formats"][:], self.processing_class).items():
            check_fit(self.model, self.processing_class, tree.depth, tuple(map(get_format, formats)))
        if self.average is not None:
            self.average.start()
        with suppress(TrainingComplete):
            return super().train(*args, **kwargs)

    def _averaged(self):
        """Context in which the model holds the averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place()

    # ---- Rows and batches

    def _get_train_sampler(self, train_dataset=None):
        strategy = self.args.train_sampling_strategy
        if self.row_weights is not None and strategy == "sequential":
            raise ValueError("oversample_below draws rows in its own order: leave train_sampling_strategy out.")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        weighted = None if self.row_weights is None else WeightedSampler(self.row_weights, seed)
        if strategy == "group_by_length":
            lengths = slot_lengths(self.train_dataset["formats"][:], self.processing_class)
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return GroupedSampler(lengths, batch, seed, weighted)
        return weighted or super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        """In order: Transformers would group evaluation rows by a length that they do not have."""
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def get_train_dataloader(self):
        evaluating = self.data_collator
        if self.unlabelled is not None:
            rows = self.unlabelled.rows.cast_column("image", datasets.Image(decode=False))
            self.data_collator = ReadableRows(evaluating.collate, rows)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluating

    def _get_dataloader(self, dataset, *args, **kwargs):
        if "image" in dataset.column_names:
            dataset = dataset.cast_column("image", datasets.Image(decode=False))
        return super()._get_dataloader(dataset, *args, **kwargs)

    # ---- Loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.reduce((~loss.isfinite()).float(), "sum"):  # all processes stop before the weights change
            where = f"loss is {loss.item()} at step {self.state.global_step + 1}"
            if loss.isfinite():
                raise CommandEnded(f"{where} here, but NaN or infinite in another process, which names the images.")
            images = name_images(self.train_dataset, inputs["rows"])
            if "unlabelled_rows" in inputs:
                images += name_images(self.unlabelled.rows, inputs["unlabelled_rows"])
            raise CommandEnded(
                f"{where}, on the images {', '.join(images)}: the weights were left as they are and nothing was saved; "
                "lower learning_rate, raise warmup_steps, train in bf16 rather than fp16, or look at these images."
            )
        return loss

    def _get_num_items_in_batch(self, batch_samples, device) -> tuple[torch.Tensor, ...]:
        """Divisors of the summed losses: of slot batches, of causal batches, of consistency and of the weak teacher.

        All are scalars and the same in every process.
        """
        counts, batches = torch.zeros(4, device=device), torch.zeros(2, device=device)
        for batch in batch_samples:
            causal = "labels" in batch
            items = batch["labels"].ne(IGNORED).sum() if causal else batch["annotated"].sum()
            counts[int(causal)] += items.to(device)
            batches[int(causal)] += 1
            if "weak" in batch:
                counts[2:] += torch.stack(loss_counts(batch["weak"], batch["readable"])).to(device)
        if self.args.average_tokens_across_devices:
            counts, batches = self.accelerator.reduce((counts, batches), "sum")
        return tuple(counts * batches.sum() / batches.clamp(min=1)[[0, 1, 0, 0]])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "rows" in inputs:
            table = self.train_dataset if self.model.training else self.eval_dataset
            self.damaged.count(table, inputs.pop("rows"), inputs.pop("unreadable"))
        slot_items, text_items, *unlabelled_items = num_items_in_batch or (None, None)
        gather_weight(self.model.get_output_embeddings())  # both layouts read it without calling the layer
        if "choice_targets" not in inputs:
            return self._causal_loss(model, inputs, return_outputs, text_items)
        inputs = dict(inputs)
        lesson = self._ask_teacher(inputs) if "weak" in inputs else None
        nodes, choices, targets, annotated = map(
            inputs.pop, ("decision_nodes", "choices", "choice_targets", "annotated")
        )
        positions, rows = nodes.unique(return_inverse=True)  # the images of a batch may have different trees
        tokens, columns = choices.clamp(min=0).unique(return_inverse=True)
        outputs = model(**inputs, logits_to_keep=positions, logit_tokens=tokens, use_cache=False)
        items = annotated if slot_items is None else slot_items
        loss = slot_loss(outputs.logits, rows, columns.masked_fill(choices < 0, -1), targets, items)
        if lesson is not None:
            self._log_part("labels", loss * items.sum(), annotated.sum())
            loss = loss + self._unlabelled_loss(outputs.logits, positions, tokens, lesson, unlabelled_items)
        if slot_items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # since the gradients are averaged over them
        return (loss, outputs) if return_outputs else loss

    def _causal_loss(self, model, inputs, return_outputs, items):
        """SFTTrainer's loss, without gathering its metrics: processes with a slot batch would never answer."""
        gather, self.accelerator.gather_for_metrics = self.accelerator.gather_for_metrics, lambda metric: metric
        seen = self._total_train_tokens
        try:
            return super().compute_loss(model, inputs, return_outputs, items)
        finally:
            self.accelerator.gather_for_metrics = gather
            if "prefixes" in inputs and self.model.training:  # TRL counted the pairs that a 4-D mask allows
                self._total_train_tokens = seen + sum(map(len, inputs["prefixes"])) + inputs["input_ids"].numel()
                self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def _ask_teacher(self, inputs: dict) -> dict:
        """Take the unlabelled pictures' own entries out of `inputs` and add how the averaged weights read them."""
        names = ("plain_pixel_values", "weak", "coded", "readable", "unlabelled_rows")
        plain, weak, coded, readable, rows = map(inputs.pop, names)
        failed = [row for row, decoded in zip(rows, readable.tolist(), strict=True) if not decoded]
        self.damaged.count(self.unlabelled.rows, rows, failed)
        tree = self.unlabelled.tree(self.processing_class, plain)
        with self._averaged():
            teacher = self.unlabelled.teach(self.model.eval(), tree, plain)
        self.model.train()
        return {"tree": tree, "teacher": teacher, "weak": weak, "coded": coded, "readable": readable}

    def _unlabelled_loss(self, logits, nodes, tokens, lesson: dict, divisors) -> torch.Tensor:
        """Weighted loss of the unlabelled pictures, which come last in the batch.

        Args:
            logits: (batch, nodes, tokens) at the positions `nodes`, of the vocabulary's `tokens`.
            lesson: from `_ask_teacher`.
            divisors: of the summed losses (consistency, weak); empty to take those of this batch.
        """
        tree, pictures = lesson["tree"], len(lesson["weak"])
        places = torch.searchsorted(nodes, tree.decision_nodes)
        columns = torch.searchsorted(tokens, tree.logit_tokens)
        student = tree.log_probabilities(logits[-pictures:, places][..., columns])
        losses = self.unlabelled.losses(student=student, **lesson)
        counts = loss_counts(lesson["weak"], lesson["readable"])
        for name, loss, count in zip(("consistency", "weak"), losses, counts, strict=True):
            self._log_part(name, loss, count)
        consistency, weak = (loss / count.clamp(min=1) for loss, count in zip(losses, divisors or counts, strict=True))
        return self.unlabelled.consistency_weight * consistency + self.unlabelled.weak_weight * weak

    def _log_part(self, name: str, loss: torch.Tensor, count: torch.Tensor) -> None:
        """Log the mean of a part of the loss over the `count` AUs of this batch that it covers."""
        if count:
            self._metrics["train"][f"loss_{name}"].append((loss.detach() / count).item())

    # ---- Scores

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        with self._averaged():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            with whole_model(self) as model, self.accelerator.autocast():  # in the precision of training
                engine = TorchEngine(model, self.processing_class)
                predictions = predict(engine, self.validation, batch_size=self.args.per_device_eval_batch_size)
        scores = {
            f"{metric_key_prefix}_{name}_{metric}": value
            for name, result in score_predictions(predictions).items()
            for metric, value in result["mean"].items()
        }
        self.log(scores)
        return {**metrics, **scores}

    # ---- Saving

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with self._averaged():  # the model file of a checkpoint is the average
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load_trained(Path(resume_from_checkpoint))
        elif (Path(resume_from_checkpoint) / TRAINED).is_file():
            raise ValueError(f"{resume_from_checkpoint} holds averaged weights: resume it with its average_decay.")

    def _load_best_model(self):
        with self._averaged():
            super()._load_best_model()

    def save_model(self, output_dir=None, _internal_call=False):
        unreadable = sorted(set(gather_object(sorted(self.damaged.names))))
        if self.manifest is not None and unreadable:
            self.manifest["unreadable"] = unreadable
        if output_dir is not None:
            with self._averaged():
                super().save_model(output_dir, _internal_call)
            return
        with self._replacing(Path(self.args.output_dir)) as folder, self._averaged():
            super().save_model(str(folder), _internal_call)
        if unreadable and self.is_world_process_zero():
            logger.warning("%s images could not be read and were skipped: %s", len(unreadable), ", ".join(unreadable))

    def _replacing(self, folder: Path):
        return replacing_contents(folder, self.args.should_save, self.accelerator.wait_for_everyone)

    def _get_output_dir(self, trial):
        return str(self.unfinished) if self.unfinished else super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        folder = self._get_output_dir(trial)
        with self._replacing(Path(folder)) as unfinished:
            self.unfinished = unfinished
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.unfinished = None
            name = f"checkpoint-{self.state.global_step}"
            if self.average is not None and self.args.should_save and not self.args.save_only_model:
                self.average.save_trained(unfinished / name)
            if self.state.best_model_checkpoint == str(unfinished / name):
                self.state.best_model_checkpoint = str(Path(folder) / name)
                if self.args.should_save:
                    self.state.save_to_json(unfinished / name / TRAINER_STATE_NAME)
        if self.args.should_save:
            rotate_checkpoints(folder, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict=None):
        with plain_class(self.model, state_dict):
            super()._save(output_dir, state_dict)
        if self.manifest is not None and self.args.should_save:  # with FSDP, all processes come here
            write_training_manifest(output_dir or self.args.output_dir, self.manifest)

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
        data = [*self.manifest["data"], *self.manifest["unlabelled"]] if self.manifest else ["records in memory"]
        write_card(
            self.args.output_dir,
            base=" and ".join(base_models(self.manifest)) or self.model.config.name_or_path or "a new model",
            data=", ".join(data),
            images=len(self.train_dataset),
            steps=self.state.global_step,
            scores=scores,
        )
