"""The trainer: slot batches, scores of every format during training, manifest and card of every checkpoint."""

from contextlib import contextmanager
from unittest.mock import patch

import datasets
import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..au_datasets.balance import WeightedSampler
from ..au_evaluation.prediction import predict
from ..au_evaluation.provenance import write_training_manifest
from ..au_evaluation.scoring import score_predictions
from ..card_au_llava import write_card
from ..collator_au_llava import IGNORED, GroupedSampler, slot_lengths, slot_loss
from ..publishing_au import base_models


class AUTrainer(SFTTrainer):
    """SFTTrainer that trains slot batches by `slot_loss` and whose evaluation also scores the AUs.

    Causal batches go SFTTrainer's own way. Slot batches project the decisions onto the values' tokens only, not the
    whole sequence onto the whole vocabulary.

    The loss of an optimizer step is a function of its batches alone, however they are divided among processes and
    accumulated: of each layout the mean over all its annotated AUs (by weight) or tokens, the two weighted by their
    numbers of batches. TRL's entropy and token accuracy are those of the main process.

    Args:
        validation: records to score, or None.
        manifest: who and what is trained on (see provenance.py), saved with every checkpoint; or None.
        row_weights: (rows,) how often each training row is seen, relative to the others; None: once an epoch.
    """

    loss_is_scaled_for_ga = True  # divided by what a whole step holds: see _get_num_items_in_batch

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

    def _get_num_items_in_batch(self, batch_samples, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Divisors of the summed losses of (slot, causal) batches: scalars, the same in every process."""
        counts = torch.zeros(2, 2, device=device)  # (layout, items and batches)
        for batch in batch_samples:
            causal = "labels" in batch
            items = batch["labels"].ne(IGNORED).sum() if causal else batch["annotated"].sum()
            counts[int(causal)] += torch.stack([items.float(), torch.ones(())]).to(device)
        if self.args.average_tokens_across_devices:
            counts = self.accelerator.reduce(counts, "sum")
        items, batches = counts.unbind(1)
        slots, causal = items * batches.sum() / batches.clamp(min=1)
        return slots, causal

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        slot_items, tokens = num_items_in_batch or (None, None)
        if "choice_targets" not in inputs:
            # TRL gathers its metrics from all processes, but those with a slot batch would never answer.
            with patch.object(self.accelerator, "gather_for_metrics", lambda metric: metric):
                return super().compute_loss(model, inputs, return_outputs, tokens)
        inputs = dict(inputs)
        nodes, choices, targets, annotated = map(
            inputs.pop, ("decision_nodes", "choices", "choice_targets", "annotated")
        )
        kept, rows = nodes.unique(return_inverse=True)  # the images of a batch may have different trees
        tokens, columns = choices.clamp(min=0).unique(return_inverse=True)
        outputs = model(**inputs, logits_to_keep=kept, logit_tokens=tokens, use_cache=False)
        items = annotated if slot_items is None else slot_items
        loss = slot_loss(outputs.logits, rows, columns.masked_fill(choices < 0, -1), targets, items)
        if slot_items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _whole_weights(self):
        """The weights that FSDP2 divides, whole in every process, each of which may then read as many images as it has.

        Otherwise a layer would wait for processes that have read all of theirs.
        """
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False)
            unit.unshard()
        yield
        for unit in units:
            unit.set_reshard_after_forward(self.accelerator.state.fsdp_plugin.reshard_after_forward)
            unit.reshard()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        unwrapped = unwrap_model_for_generation(self.model_wrapped, self.accelerator)
        with unwrapped as model, self._whole_weights(), self.accelerator.autocast():  # in the precision of the training
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
