"""The token tree that the slots decoder reads and that slot training trains, and attention over it on a CPU.

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

In the tree of several formats most pairs of tokens do not see each other. PyTorch's attention computes all pairs and
masks them; on a CPU, `TreeMask` makes it work block by block, each block of queries with only the keys that it needs.
Where rows continue the same prompts, their queries meet the prompts' keys in one matrix product for all rows. The
values are the same.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .action_units import AUFormat, value_texts

BLOCK = 128  # queries in a block of `TreeMask`: fewer waste less work, more need fewer calls (64 to 256 about equal)
SHARED_BLOCK = 256  # queries of all rows together, where they share prompts; 8 to 32 of a row


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
        forks = {prefix for prefix, options in following.items() if len(options) > 1}
        lowest = {sequences[0][:depth] for depth in range(len(sequences[0]))}
        decisions, shares = {}, {}
        for prefix in (prefix for prefix in following if prefix in forks):
            options = following[prefix]
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


def _range(keys: torch.Tensor) -> torch.Tensor | slice:
    """Ascending indices, as a slice if none is missing between the first and the last: it takes no copy."""
    if len(keys) and int(keys[-1] - keys[0]) + 1 == len(keys):
        return slice(int(keys[0]), int(keys[-1]) + 1)
    return keys


def _taken(states: torch.Tensor, keys: torch.Tensor | slice) -> torch.Tensor:
    return states[..., keys, :] if isinstance(keys, slice) else states.index_select(-2, keys)


def _attention(query, keys, values, own_keys, own_values, shared, own, mask, dropout: float) -> torch.Tensor:
    """Attention over keys that all rows share, in one product for all rows, and keys of their own.

    Args:
        query: (heads, rows, N, width), scaled. keys, values: (heads or a divisor of them, keys, width); as many heads
            of the query as the quotient, one after the other, share a head. own_keys, own_values: (heads, rows, keys,
            width). shared, own: which of the keys are seen at all.
        mask: (rows or 1, N, seen keys), additive; the shared ones come first.
        dropout: share of the weights that is dropped.
    """
    keys, values = (_taken(each, shared) for each in (keys, values))
    own_keys, own_values = (_taken(each, own) for each in (own_keys, own_values))
    heads, seen = keys.shape[:2]
    common = (query.reshape(heads, -1, query.shape[-1]) @ keys.mT).view(*query.shape[:3], seen)
    scores = torch.cat([common, query @ own_keys.mT], dim=-1)
    weights = torch.nn.functional.dropout(scores.add_(mask.to(scores)).softmax(-1), dropout)
    common, single = weights.split([seen, own_keys.shape[2]], dim=-1)
    return (common.reshape(heads, -1, seen) @ values).view(*query.shape[:3], -1) + single @ own_values


class TreeMask(torch.Tensor):
    """A boolean mask, True = may attend, that `scaled_dot_product_attention` honors in blocks of queries."""

    @classmethod
    def of(cls, mask: torch.Tensor, dtype: torch.dtype, before: int = 0, prompts: int = 0) -> torch.Tensor:
        """The `TreeMask` of `mask` (batch or 1, 1, N, keys) for queries of `dtype`.

        A mask of one block, without prompts, stays as it is.

        Args:
            before: how many keys come first that are of prompts.
            prompts: how many rows come first that hold these prompts, see `with_prompt_rows`. If there are none, the
                prompts' keys and values are known, see `KnownLayer`.
        """
        if mask.shape[-2] <= BLOCK and not before:
            return mask
        tree = mask.as_subclass(cls)
        tree.before, tree.prompts, tree.known = before, prompts, None
        if prompts:
            tree.texts = cls._blocks(mask[:prompts, 0, :, :before].flatten(0, 1)[None, None], dtype, BLOCK)
            tree.texts = [(block, _range(keys), slice(0), additive[0]) for block, keys, additive in tree.texts]
            mask = mask[prompts:]
        size = min(max(SHARED_BLOCK // len(mask), 8), 32) if before else BLOCK
        if mask.stride(0) == 0:  # one tree expanded over the batch
            mask = mask[:1]
        tree.blocks = cls._blocks(mask, dtype, size)
        if before:
            tree.blocks = [
                (block, _range(keys[keys < before]), _range(keys[keys >= before] - before), additive[:, 0])
                for block, keys, additive in tree.blocks
            ]
        return tree

    @staticmethod
    def _blocks(mask: torch.Tensor, dtype: torch.dtype, size: int) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """(queries, keys, additive mask) of each block of `size` queries."""
        blocks = []
        for start in range(0, mask.shape[-2], size):
            rows = mask[:, :, start : start + size]
            keys = rows.any(dim=(0, 1, 2)).nonzero().squeeze(1)
            hidden = ~rows[..., keys]
            additive = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
            blocks.append((slice(start, start + size), keys, additive))
        return blocks

    def attend(self, query, key, value, **kwargs) -> torch.Tensor:
        """Attention (batch, heads, N, width), block by block."""
        if self.before:
            return self._attend_prompts(query, key, value, **kwargs)
        outputs = [
            scaled_dot_product_attention(
                query[:, :, block],
                *(each.index_select(2, keys) for each in (key, value)),
                attn_mask=additive,
                **kwargs,
            )
            for block, keys, additive in self.blocks
        ]
        return torch.cat(outputs, dim=2)

    def _attend_prompts(self, query, key, value, dropout_p: float = 0.0, scale: float | None = None, **_):
        """The same over prompts and the N tokens of each row.

        The prompts' keys and values are `known`, (heads, tokens, width), or those of the first rows. Like PyTorch's
        own kernels, it computes the weights again for the backward pass and does not keep them.
        """
        query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
        query, key, value = (each.transpose(0, 1) for each in (query, key, value))  # (heads, rows, N, width)
        texts = self.known or [each[:, : self.prompts].flatten(1, 2) for each in (key, value)]
        parts = [(*(each[:, self.prompts :] for each in (query, key, value)), self.blocks)]
        if self.prompts:
            none = [each[:, None, :0] for each in texts]
            parts.insert(0, (query[:, : self.prompts].flatten(1, 2)[:, None], *none, self.texts))
        outputs = [
            torch.cat(
                [
                    checkpoint(
                        _attention,
                        *(queries[:, :, block], *texts, *states, shared, mine, additive, dropout_p),
                        use_reentrant=False,
                        preserve_rng_state=dropout_p > 0,
                    )
                    for block, shared, mine, additive in blocks
                ],
                dim=2,
            )
            for queries, *states, blocks in parts
        ]
        outputs = [output.reshape(output.shape[0], -1, *query.shape[2:3], output.shape[-1]) for output in outputs]
        return torch.cat(outputs, dim=1).transpose(0, 1)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if function is scaled_dot_product_attention and isinstance(kwargs.get("attn_mask"), cls):
                return kwargs.pop("attn_mask").attend(*args, **kwargs)
            return function(*args, **kwargs)


__all__ = ["BLOCK", "Slot", "SlotTree", "TreeMask", "compile_slots", "slot_ids", "slot_tree"]
