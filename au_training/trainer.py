"""The trainer: slot batches, scores of every format during training, manifest and card of every checkpoint."""

import logging
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from au_llava.au_datasets.balance import WeightedSampler
from au_llava.au_evaluation.predictions import predict
from au_llava.au_evaluation.scoring import score_predictions
from au_llava.au_publishing.hub import base_models
from au_llava.au_runs.manifests import write_training_manifest
from au_llava.au_training.averaging import TRAINED, AveragedWeights
from au_llava.au_training.collator import IGNORED, GroupedSampler, slot_lengths, slot_loss
from au_llava.au_training.mean_teacher import UnlabelledFaces, items
from au_llava.au_training.recovery import (
    EndIfComplete,
    ReadableRows,
    StopOnSIGTERM,
    TrainingComplete,
    TrainingEnded,
    name_images,
    replacing,
)
from au_llava.card_au_llava import write_card

logger = logging.getLogger("au_llava.train")

BLIND = 100  # images of which over half cannot be read before a training stops: a disk is missing, not a file damaged


class AUTrainer(SFTTrainer):
    """SFTTrainer that trains slot batches by `slot_loss` and whose evaluation also scores the AUs.

    Causal batches go SFTTrainer's own way. Slot batches project the decisions onto the values' tokens only, not the
    whole sequence onto the whole vocabulary.

    The loss of an optimizer step is a function of its batches alone, however they are divided among processes and
    accumulated: of each layout the mean over all its annotated AUs (by weight) or tokens, the two weighted by their
    numbers of batches. Slot batches add the two losses on unlabelled pictures, each of them a mean of its own.
    TRL's entropy and token accuracy are those of the main process, and so are the logged parts of the loss.

    With `average_decay` whatever evaluates, is saved or teaches is the average of the weights (averaging.py).

    Args:
        validation: records to score, or None.
        manifest: who and what is trained on (see provenance.py), saved with every checkpoint; or None.
        row_weights: (rows,) how often each training row is seen, relative to the others; None: once an epoch.
        unlabelled: faces to learn from without labels, or None.
        average_decay: of `AveragedWeights`; 0: no average.

    Raises:
        ValueError: an average under FSDP or DeepSpeed, which divide the weights or keep copies of their own.
    """

    loss_is_scaled_for_ga = True  # divided by what a whole step holds: see _get_num_items_in_batch

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
        if average_decay:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("average_decay and unlabelled need whole weights in every process: train with DDP.")
            self.average = AveragedWeights(self.model, average_decay)
            self.add_callback(self.average)
        self.data_collator = ReadableRows(self.data_collator)
        self.unfinished: Path | None = None  # where a checkpoint is being written, before it takes its place
        self.row_weights = row_weights
        self.validation = validation
        self.manifest = manifest
        self.unreadable: set[str] = set()  # images that this process came across, training and validation
        self.images_asked = self.images_failed = 0
        self.add_callback(EndIfComplete())
        self.add_callback(StopOnSIGTERM(self.accelerator))

    def train(self, *args, **kwargs):
        if self.average is not None:
            self.average.start()
        with suppress(TrainingComplete):
            return super().train(*args, **kwargs)

    def _averaged(self):
        """The model holds the average of the weights meanwhile, if there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with self._averaged():  # which the model file of a checkpoint is
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load_trained(Path(resume_from_checkpoint))
        elif (Path(resume_from_checkpoint) / TRAINED).is_file():
            raise ValueError(f"{resume_from_checkpoint} holds averaged weights: resume it with its average_decay.")

    def _load_best_model(self):
        with self._averaged():
            super()._load_best_model()

    def _get_train_sampler(self, train_dataset=None):
        strategy = self.args.train_sampling_strategy
        if self.row_weights is not None and strategy == "sequential":
            raise ValueError("oversample_below draws rows in an order of its own: leave train_sampling_strategy out.")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        weighted = None if self.row_weights is None else WeightedSampler(self.row_weights, seed)
        if strategy == "group_by_length":
            lengths = slot_lengths(self.train_dataset["formats"][:], self.processing_class)
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return GroupedSampler(lengths, batch, seed, weighted)
        return weighted or super()._get_train_sampler(train_dataset)

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

    def _count_unreadable(self, table: datasets.Dataset, rows: list[int], unreadable: list[int]) -> None:
        self.images_asked += len(rows)
        self.images_failed += len(unreadable)
        if not unreadable:
            return
        found = name_images(table, unreadable)
        for name in set(found) - self.unreadable:
            logger.warning("The image of %s cannot be read: skipped.", name)
        self.unreadable.update(found)
        if self.images_asked >= BLIND and self.images_failed > self.images_asked / 2:
            raise TrainingEnded(
                f"{self.images_failed} of {self.images_asked} images cannot be read, such as {found[0]}: is a disk or "
                "folder missing that the data was prepared from?"
            )

    def save_model(self, output_dir=None, _internal_call=False):
        unreadable = sorted(set(gather_object(sorted(self.unreadable))))
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
        return replacing(folder, self.args.should_save, self.accelerator.wait_for_everyone)

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
        sharded = type(self.model)
        if isinstance(self.model, FSDPModule):
            for tied in self.model.all_tied_weights_keys:  # gathered twice
                state_dict.pop(tied, None)
            self.model.__class__ = sharded.__bases__[1]  # FSDP2 made this class: PyTorch's code would be saved with it
        super()._save(output_dir, state_dict)
        self.model.__class__ = sharded
        if self.manifest is not None and self.args.should_save:  # under FSDP all processes come here
            write_training_manifest(output_dir or self.args.output_dir, self.manifest)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.reduce((~loss.isfinite()).float(), "sum"):  # all stop before their weights move
            where = f"loss is {loss.item()} at step {self.state.global_step + 1}"
            if loss.isfinite():
                raise TrainingEnded(f"{where} here, but no number in another process, which names the images.")
            images = name_images(self.train_dataset, inputs["rows"])
            if "unlabelled_rows" in inputs:
                images += name_images(self.unlabelled.rows, inputs["unlabelled_rows"])
            images = ", ".join(images)
            raise TrainingEnded(
                f"{where}, on the images {images}: the weights were left as they are and nothing was saved; lower "
                "learning_rate, raise warmup_steps, train in bf16 rather than fp16, or look at these images."
            )
        return loss

    def _get_num_items_in_batch(self, batch_samples, device) -> tuple[torch.Tensor, ...]:
        """Divisors of the summed losses of slot batches, causal ones, and in slot batches of the consistency and weak
        losses: scalars, the same in every process."""
        counted, batches = torch.zeros(4, device=device), torch.zeros(2, device=device)
        for batch in batch_samples:
            causal = "labels" in batch
            counted[int(causal)] += (batch["labels"].ne(IGNORED).sum() if causal else batch["annotated"].sum()).to(
                device
            )
            batches[int(causal)] += 1
            if "weak" in batch:
                counted[2:] += torch.stack(items(batch["weak"], batch["readable"])).to(device)
        if self.args.average_tokens_across_devices:
            counted, batches = self.accelerator.reduce((counted, batches), "sum")
        return tuple(counted * batches.sum() / batches.clamp(min=1)[[0, 1, 0, 0]])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "rows" in inputs:
            table = self.train_dataset if self.model.training else self.eval_dataset
            self._count_unreadable(table, inputs.pop("rows"), inputs.pop("unreadable"))
        slot_items, text_items, *unlabelled_items = num_items_in_batch or (None, None)
        head = self.model.get_output_embeddings()
        if isinstance(head, FSDPModule):  # whose weight both layouts read without calling it
            head.unshard()
        if "choice_targets" not in inputs:
            # TRL gathers its metrics from all processes, but those with a slot batch would never answer.
            gather, self.accelerator.gather_for_metrics = self.accelerator.gather_for_metrics, lambda metric: metric
            try:
                return super().compute_loss(model, inputs, return_outputs, text_items)
            finally:
                self.accelerator.gather_for_metrics = gather
        inputs = dict(inputs)
        taught = self._teach(inputs) if "weak" in inputs else None
        nodes, choices, targets, annotated = map(
            inputs.pop, ("decision_nodes", "choices", "choice_targets", "annotated")
        )
        kept, rows = nodes.unique(return_inverse=True)  # the images of a batch may have different trees
        tokens, columns = choices.clamp(min=0).unique(return_inverse=True)
        outputs = model(**inputs, logits_to_keep=kept, logit_tokens=tokens, use_cache=False)
        items = annotated if slot_items is None else slot_items
        loss = slot_loss(outputs.logits, rows, columns.masked_fill(choices < 0, -1), targets, items)
        if taught is not None:
            self._log_part("labels", loss * items.sum(), annotated.sum())
            loss = loss + self._unlabelled_loss(outputs.logits, kept, tokens, taught, unlabelled_items)
        if slot_items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def _teach(self, inputs: dict) -> dict:
        """What the averaged weights read off a batch's unlabelled pictures, and what else their losses need."""
        names = ("plain_pixel_values", "weak", "readable", "unlabelled_rows")
        plain, weak, readable, rows = map(inputs.pop, names)
        failed = [row for row, read in zip(rows, readable.tolist(), strict=True) if not read]
        self._count_unreadable(self.unlabelled.rows, rows, failed)
        tree = self.unlabelled.tree(self.processing_class, plain)
        with self._averaged():
            teacher = self.unlabelled.teach(self.model.eval(), tree, plain)
        self.model.train()
        return {"tree": tree, "teacher": teacher, "weak": weak, "readable": readable}

    def _unlabelled_loss(self, logits, nodes, tokens, taught: dict, divisors) -> torch.Tensor:
        """Weighted loss of the unlabelled pictures, which come last in a batch, given its logits (batch, `nodes`,
        `tokens`)."""
        tree, pictures = taught["tree"], len(taught["weak"])
        places = torch.searchsorted(nodes, tree.decision_nodes)
        columns = torch.searchsorted(tokens, tree.logit_tokens)
        student = tree.log_probabilities(logits[-pictures:, places][..., columns])
        losses, counts = self.unlabelled.losses(student=student, **taught), items(taught["weak"], taught["readable"])
        for name, loss, count in zip(("consistency", "weak"), losses, counts, strict=True):
            self._log_part(name, loss, count)
        consistency, weak = (loss / count.clamp(min=1) for loss, count in zip(losses, divisors or counts, strict=True))
        return self.unlabelled.consistency_weight * consistency + self.unlabelled.weak_weight * weak

    def _log_part(self, name: str, loss: torch.Tensor, count: torch.Tensor) -> None:
        """Log the mean of a part of the loss over the `count` AUs of this batch that have it."""
        if count:
            self._metrics["train"][f"loss_{name}"].append((loss.detach() / count).item())

    @contextmanager
    def _whole_model(self):
        """The model with whole weights in every process, each of which may then read as many images as it has.

        Of divided weights, a layer would wait for processes that have read all of theirs.
        """
        if self.is_deepspeed_enabled:
            kept = self.args.activation_checkpointing_kwargs
            with unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=kept
            ) as model:
                yield model
            return
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False)
            unit.unshard()
        yield self.accelerator.unwrap_model(self.model)
        for unit in units:
            unit.set_reshard_after_forward(self.accelerator.state.fsdp_plugin.reshard_after_forward)
            unit.reshard()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        with self._averaged():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            with self._whole_model() as model, self.accelerator.autocast():  # in the precision of the training
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
            data=", ".join([*self.manifest["data"], *self.manifest["unlabelled"]])
            if self.manifest
            else "records in memory",
            images=len(self.train_dataset),
            steps=self.state.global_step,
            scores=scores,
        )
