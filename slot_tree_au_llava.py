"""The token tree that the slots decoder reads and that slot training trains.

Everything that could be asked and answered about an image is a set of token sequences (a prompt, then "AU12: 3"), and
that set is a tree whose trunk is the image. `SlotTree` lays the tree out as one sequence: a token attends to its
ancestors and itself, and its position is its depth. Each token then has exactly the hidden state that ordinary causal
attention over its own path would give it, so one pass equals asking for each AU on its own. Formats share the image and
the purpose, values of several tokens (0.37) share their leading digits, and any tokenizer works, because nothing but
token sequences is looked at.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .action_units import AUFormat


@dataclass(frozen=True)
class Slot:
    """One AU of one format in a `SlotTree`."""

    format_index: int
    label: str
    decisions: slice  # its rows in SlotTree.decision_nodes
    values: slice  # its rows in SlotTree.value_paths


class SlotTree:
    """The token tree of some formats: layout, mask, and where to read every value.

    Args:
        prompts: token ids of one prompt per format, image tokens expanded, up to where the answer begins.
        answers: per format, per AU label, per value of the scale: the token ids of "label: value".

    Attributes (N tokens, D decisions, C = most choices at one decision, V = values of all slots together):
        input_ids: (N,) long. positions: (N,) long, depth in the tree. mask: (N, N) bool, True = may attend.
        slots: `Slot` per format and AU.
        decision_nodes: (D,) long, the token whose next-token logits decide between values.
        choices: (D, C) long, the token ids that may follow, -1 where there are fewer than C.
        logit_tokens: (K,) long, the distinct token ids among the choices: the only logits that are needed.
        choice_columns: (D, C) long, where each choice is in logit_tokens, 0 where there is none.
        value_paths: (V, longest path) long, for each value the flat indices decision * C + choice that lead to it,
            D * C where the path is shorter.
        value_targets: per value, the (decision, token id) pairs that lead to it: the training targets.

    Raises:
        ValueError: the tokenizer writes two values of a scale with the same tokens, or one value as the beginning of
            another.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], answers: Sequence[dict[str, Sequence[Sequence[int]]]]):
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self.slots: list[Slot] = []
        self.value_targets: list[list[tuple[int, int]]] = []
        nodes: list[int] = []
        choices: list[list[int]] = []
        for index, (prompt, labels) in enumerate(zip(prompts, answers, strict=True)):
            start = self._add_path(-1, prompt)
            for label, sequences in labels.items():
                first_decision, first_value = len(nodes), len(self.value_targets)
                targets = self._add_slot(start, label, sequences, nodes, choices)
                self.value_targets.extend(targets)
                self.slots.append(
                    Slot(index, label, slice(first_decision, len(nodes)), slice(first_value, len(self.value_targets)))
                )
        self._finish(nodes, choices)

    def __len__(self) -> int:
        return len(self.input_ids)

    def _add_path(self, node: int, tokens: Iterable[int]) -> int:
        for token in tokens:
            child = self._children.get((node, token))
            if child is None:
                child = len(self._tokens)
                self._children[node, token] = child
                self._tokens.append(token)
                self._parents.append(node)
            node = child
        return node

    def _add_slot(self, start, label, sequences, nodes, choices) -> list[list[tuple[int, int]]]:
        """Add the decisions of one AU; returns per value its (decision, token) pairs. Only tokens that lead to a
        decision become part of the tree: the last token of a value is never an input."""
        following: dict[tuple[int, ...], list[int]] = {}  # prefix of the answer -> tokens that may come next
        for sequence in sequences:
            for depth, token in enumerate(sequence):
                options = following.setdefault(tuple(sequence[:depth]), [])
                if token not in options:
                    options.append(token)
        if len(set(map(tuple, sequences))) < len(sequences) or any(tuple(s) in following for s in sequences):
            raise ValueError(
                f"The tokenizer does not tell the values of {label} apart: two of them share their tokens or one is "
                "the beginning of another. Use a tokenizer that keeps digits."
            )
        decisions = {}
        for prefix, options in following.items():
            if len(options) > 1:
                decisions[prefix] = len(nodes)
                nodes.append(self._add_path(start, prefix))
                choices.append(options)
        return [[(decisions[s[:d]], s[d]) for d in range(len(s)) if s[:d] in decisions] for s in map(tuple, sequences)]

    def _finish(self, nodes: list[int], choices: list[list[int]]):
        count, width = len(self._tokens), max(map(len, choices))
        self.input_ids = torch.tensor(self._tokens)
        self.positions = torch.zeros(count, dtype=torch.long)
        self.mask = torch.eye(count, dtype=torch.bool)
        for node, parent in enumerate(self._parents):  # parents come before their children
            if parent >= 0:
                self.positions[node] = self.positions[parent] + 1
                self.mask[node] |= self.mask[parent]
        self.decision_nodes = torch.tensor(nodes)
        self.choices = torch.tensor([row + [-1] * (width - len(row)) for row in choices])
        self.logit_tokens = self.choices[self.choices >= 0].unique()
        self.choice_columns = torch.searchsorted(self.logit_tokens, self.choices.clamp(min=self.logit_tokens[0]))
        flat = len(nodes) * width
        paths = [
            [decision * width + choices[decision].index(token) for decision, token in targets]
            for targets in self.value_targets
        ]
        longest = max(map(len, paths))
        self.value_paths = torch.tensor([path + [flat] * (longest - len(path)) for path in paths])

    def to(self, device) -> "SlotTree":
        """A copy whose tensors are on `device`."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """One forward pass over `pixel_values` (batch, 3, height, width) that gives the logits (batch, D, K) at
        `decision_nodes` of `logit_tokens`."""
        batch = pixel_values.shape[0]
        return {
            "input_ids": self.input_ids.expand(batch, -1),
            "attention_mask": self.mask.expand(batch, 1, -1, -1),
            "position_ids": self.positions.expand(batch, -1),
            "pixel_values": pixel_values,
            "logits_to_keep": self.decision_nodes,
            "logit_tokens": self.logit_tokens,
            "use_cache": False,
        }

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probability of every value of every slot.

        Args:
            logits: (batch, D, K) at `decision_nodes` of `logit_tokens`.

        Returns:
            (batch, V) float32; over the values of one slot the probabilities sum to 1.
        """
        absent = self.choices < 0
        chosen = logits.gather(2, self.choice_columns.expand(logits.shape[0], -1, -1)).float()
        steps = chosen.masked_fill(absent, -torch.inf).log_softmax(-1)  # (batch, D, C)
        steps = torch.nn.functional.pad(steps.flatten(1), (0, 1))  # one more column: 0, for shorter paths
        return steps[:, self.value_paths].sum(-1)

    def by_format(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Split something per value (batch, V) into one (batch, AUs, values of the scale) per format."""
        split = []
        for index in range(self.slots[-1].format_index + 1):
            slots = [slot.values for slot in self.slots if slot.format_index == index]
            split.append(values[:, slots[0].start : slots[-1].stop].unflatten(1, (len(slots), -1)))
        return split


def compile_slots(processor, formats: tuple[AUFormat, ...], image_tokens: int) -> SlotTree:
    """The `SlotTree` of `formats` for this processor's tokenizer; kept, since it is the same for every image."""
    return _compiled(processor, processor.chat_template, processor.tokenizer, formats, image_tokens)


@lru_cache(maxsize=16)
def _compiled(processor, _template, _tokenizer, formats, image_tokens) -> SlotTree:
    prompts = [processor.prompt_ids(fmt, image_tokens) for fmt in formats]
    answers = []
    for fmt in formats:
        texts = [f"{label}: {value}" for label in fmt.labels for value in fmt.value_strings]
        ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = len(fmt.value_strings)
        answers.append({label: ids[i * width : (i + 1) * width] for i, label in enumerate(fmt.labels)})
    return SlotTree(prompts, answers)


__all__ = ["Slot", "SlotTree", "compile_slots"]
