"""The token tree that the slots decoder reads and that slot training trains.

Each question about an image, with one possible answer, is a token sequence: a prompt, then "AU12: 3". Together these
sequences form a tree. `SlotTree` lays the tree out as one sequence in which a token attends to its ancestors and
itself, and its position is its depth. So each token has exactly the hidden state that ordinary causal attention over
its own path would give it, and one forward pass equals asking for each AU separately. Values of several tokens (0.37)
share their leading digits. Only token sequences matter, so any tokenizer works.

A tokenizer that makes every digit a token would need a branch for each first digit of a continuous scale, to read a
second digit whose place hardly matters. So of the last digits only those beside the lowest value are read (0.00 is
absence, 0.01 is not); elsewhere the values that differ in the last digit share the probability of what they have in
common equally. This changes neither the probability of being at or above 0.30 nor any other multiple of 0.10.

The order of prompts (`AuLlavaConfig.prompt_order`) decides what else is shared:

- "image_first": the trunk is the image, and formats share it and the purpose. All tokens are computed for every image.
- "text_first": the text of each format's prompt comes first and does not depend on the image. Its keys and values are
  computed once, for all images (prefix_au_llava.py), and only the rest is in the tree: for each format the image's
  tokens again, since they see its text, and the tokens that lead to its values.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .action_units import AUFormat, mirrored_label, value_texts


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
        shared: per format, how many tokens of its prompt are computed beforehand, and so not in the tree (default: 0).

    Attributes (N tokens, P tokens of all prefixes, D decisions, C = most choices at one decision, V = values of all
    slots together):
        prefixes: the distinct token sequences that are computed beforehand.
        input_ids: (N,) long.
        positions: (N,) long, depth in the tree, including the prefix.
        depth: number of tokens on the longest path.
        mask: (N, P + N) bool, True = may attend; the prefixes come first, in their order.
        slots: one `Slot` per format and AU.
        decision_nodes: (D,) long, the tokens whose next-token logits decide between values.
        choices: (D, C) long, the token ids that may follow, padded with -1.
        logit_tokens: (K,) long, the distinct token ids among the choices: the only logits needed.
        choice_columns: (D, C) long, the column of each choice in logit_tokens, 0 for padding.
        value_paths: (V, longest path) long, for each value the flat indices decision * C + choice that lead to it,
            padded with D * C.
        value_shares: (V,) float, log of the share of its path's probability that a value gets: 0, or below where values
            share a path because their last digits are not read.
        value_targets: per value, the (decision, token id) pairs that lead to it: the training targets.
        mirrored_values: (V,) long, for each value the index of what the mirror image says of it, in the values of the
            image and then of the mirror image. A sided AU whose other side is missing is read off the image alone.

    Raises:
        ValueError: the tokenizer writes two values of a scale with the same tokens, or one value as the beginning of
            another.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[dict[str, Sequence[Sequence[int]]]],
        shared: Sequence[int] | None = None,
    ):
        begins = [tuple(prompt[:length]) for prompt, length in zip(prompts, shared or [0] * len(prompts), strict=True)]
        self.prefixes: list[tuple[int, ...]] = [begin for begin in dict.fromkeys(begins) if begin]
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self.slots: list[Slot] = []
        self.value_targets: list[list[tuple[int, int]]] = []
        self._shares: list[float] = []
        nodes: list[int] = []
        choices: list[list[int]] = []
        for index, (prompt, begin, labels) in enumerate(zip(prompts, begins, answers, strict=True)):
            root = -2 - self.prefixes.index(begin) if begin else -1
            start = self._add_path(root, prompt[len(begin) :])
            for label, sequences in labels.items():
                first_decision, first_value = len(nodes), len(self.value_targets)
                self.value_targets.extend(self._add_slot(start, label, sequences, nodes, choices))
                self.slots.append(
                    Slot(index, label, slice(first_decision, len(nodes)), slice(first_value, len(self.value_targets)))
                )
        self._lay_out()
        self._index_decisions(nodes, choices)
        self._index_mirrored_values()

    def __len__(self) -> int:
        return len(self.input_ids)

    def _add_path(self, node: int, tokens: Iterable[int]) -> int:
        """Add tokens below `node`, reusing those already there; returns the last node.

        The root is node -1, and -2 - i is the end of prefix i.
        """
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
        """Add the decisions of one AU to `nodes` and `choices`; returns the (decision, token) pairs of each value.

        Only tokens that lead to a decision join the tree: the last token of a value is never an input. A decision
        between whole values is left out if others come before it and the lowest value is not among them.
        """
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
        sequences = list(map(tuple, sequences))
        forks = {prefix: options for prefix, options in following.items() if len(options) > 1}
        lowest = {sequences[0][:depth] for depth in range(len(sequences[0]))}
        decisions, shares = {}, {}
        for prefix, options in forks.items():
            later = any((*prefix, option) in following for option in options)
            earlier = any(prefix[:depth] in forks for depth in range(len(prefix)))
            if earlier and not later and prefix not in lowest:
                shares[prefix] = -math.log(len(options))
                continue
            decisions[prefix] = len(nodes)
            nodes.append(self._add_path(start, prefix))
            choices.append(options)
        self._shares += [sum(shares.get(s[:depth], 0.0) for depth in range(len(s))) for s in sequences]
        return [[(decisions[s[:d]], s[d]) for d in range(len(s)) if s[:d] in decisions] for s in sequences]

    def _lay_out(self):
        """Make input_ids, positions and mask of the tokens and their parents."""
        count, lengths = len(self._tokens), list(map(len, self.prefixes))
        self.input_ids = torch.tensor(self._tokens)
        self.positions = torch.zeros(count, dtype=torch.long)
        self.mask = torch.cat([torch.zeros(count, sum(lengths), dtype=torch.bool), torch.eye(count).bool()], dim=1)
        for node, parent in enumerate(self._parents):  # parents come before their children
            if parent >= 0:
                self.positions[node] = self.positions[parent] + 1
                self.mask[node] |= self.mask[parent]
            elif parent < -1:
                prefix = -2 - parent
                self.positions[node] = lengths[prefix]
                self.mask[node, sum(lengths[:prefix]) : sum(lengths[: prefix + 1])] = True
        self.depth = int(self.positions.max()) + 1

    def _index_decisions(self, nodes: list[int], choices: list[list[int]]):
        """Make the tensors by which logits become probabilities of values."""
        width = max(map(len, choices))
        self.decision_nodes = torch.tensor(nodes)
        self.choices = torch.tensor([row + [-1] * (width - len(row)) for row in choices])
        self.logit_tokens = self.choices[self.choices >= 0].unique()
        self.choice_columns = torch.searchsorted(self.logit_tokens, self.choices.clamp(min=self.logit_tokens[0]))
        paths = [
            [decision * width + choices[decision].index(token) for decision, token in targets]
            for targets in self.value_targets
        ]
        longest, padding = max(map(len, paths)), len(nodes) * width
        self.value_paths = torch.tensor([path + [padding] * (longest - len(path)) for path in paths])
        self.value_shares = torch.tensor(self._shares)

    def _index_mirrored_values(self):
        """Make `mirrored_values`."""
        known = {(slot.format_index, slot.label): slot.values for slot in self.slots}
        straight, mirrored = torch.arange(2 * len(self._shares)).chunk(2)
        parts = []
        for slot in self.slots:
            other = known.get((slot.format_index, mirrored_label(slot.label)))
            parts.append(straight[slot.values] if other is None else mirrored[other])
        self.mirrored_values = torch.cat(parts)

    def to(self, device) -> "SlotTree":
        """The tree, or a copy of it, with its tensors on `device`."""
        if self.input_ids.device == torch.device(device):
            return self
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arguments of one forward pass over `pixel_values` (batch, 3, height, width).

        The pass gives logits (batch, D, K): at `decision_nodes`, of `logit_tokens`.
        """
        batch = pixel_values.shape[0]
        return {
            "input_ids": self.input_ids.expand(batch, -1),
            "attention_mask": self.mask.expand(batch, 1, -1, -1),
            "position_ids": self.positions.expand(batch, -1),
            "pixel_values": pixel_values,
            "logits_to_keep": self.decision_nodes,
            "logit_tokens": self.logit_tokens,
            "use_cache": False,
            **({"prefixes": self.prefixes} if self.prefixes else {}),
        }

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probability of every value of every slot.

        Args:
            logits: (batch, D, K) at `decision_nodes`, of `logit_tokens`.

        Returns:
            (batch, V) float32; over the values of one slot the probabilities sum to 1.
        """
        chosen = logits.gather(2, self.choice_columns.expand(logits.shape[0], -1, -1)).float()
        steps = chosen.masked_fill(self.choices < 0, -torch.inf).log_softmax(-1)  # (batch, D, C)
        steps = torch.nn.functional.pad(steps.flatten(1), (0, 1))  # a last column of zeros, for the padding of paths
        return steps[:, self.value_paths].sum(-1) + self.value_shares

    def mirror_mean(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """The mean distribution of images and their mirror images, in which left and right are swapped back.

        Args:
            log_probabilities: (2 * images, V), of the images, then of their mirror images.

        Returns:
            (images, V) log-probabilities.
        """
        straight, mirrored = log_probabilities.unflatten(0, (2, -1)).unbind()
        other = torch.cat([straight, mirrored], dim=1).index_select(1, self.mirrored_values)
        return torch.logaddexp(straight, other) - math.log(2)

    def by_format(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Split something per value (batch, V) into one (batch, AUs, values of the scale) per format."""
        split = []
        for index in range(self.slots[-1].format_index + 1):
            slots = [slot.values for slot in self.slots if slot.format_index == index]
            split.append(values[:, slots[0].start : slots[-1].stop].unflatten(1, (len(slots), -1)))
        return split


def compile_slots(processor, formats: tuple[AUFormat, ...], image_tokens: int) -> SlotTree:
    """The `SlotTree` of `formats` for this processor's tokenizer; cached, as it is the same for every image."""
    made_of = (processor.chat_template, processor.prompt_order, processor.tokenizer)
    return _compiled(processor, made_of, formats, image_tokens)


@lru_cache(maxsize=16)
def _compiled(processor, _made_of, formats, image_tokens) -> SlotTree:
    with torch.inference_mode(False):  # the tree may be used with gradients later
        return slot_tree(processor, {fmt: fmt.labels for fmt in formats}, image_tokens)


def slot_tree(processor, labels: Mapping[AUFormat, Sequence[str]], image_tokens: int) -> SlotTree:
    """The `SlotTree` of some AUs of some formats."""
    prompts = [processor.prompt_ids(fmt, image_tokens) for fmt in labels]
    answers = [slot_ids(processor.tokenizer, fmt, wanted) for fmt, wanted in labels.items()]
    return SlotTree(prompts, answers, list(map(processor.shared_length, prompts)))


def slot_ids(tokenizer, fmt: AUFormat, labels: Iterable[str]) -> dict[str, list[list[int]]]:
    """Label -> per value of the scale, the token ids of "label: value": what `SlotTree` takes as the answers."""
    labels, count = tuple(labels), len(fmt.value_strings)
    texts = [text for label in labels for text in value_texts(label, fmt)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return {label: ids[i * count : (i + 1) * count] for i, label in enumerate(labels)}


__all__ = ["Slot", "SlotTree", "compile_slots", "slot_ids", "slot_tree"]
