"""The trainer: slot batches, scores of every format during training, manifest and card of every checkpoint."""

import datasets
import numpy as np
from trl import SFTTrainer

from ..au_datasets.balance import WeightedSampler
from ..au_evaluation.prediction import predict
from ..au_evaluation.provenance import write_training_manifest
from ..au_evaluation.scoring import score_predictions
from ..card_au_llava import write_card
from ..collator_au_llava import GroupedSampler, slot_lengths, slot_loss
from ..publishing_au import base_models


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
