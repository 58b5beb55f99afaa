"""Attention over the tree of the slots decoder (slot_tree_au_llava.py), as PyTorch computes it on a CPU.

In the tree of several formats most pairs of tokens do not see each other. PyTorch's attention computes all pairs and
masks them; on a CPU, `TreeMask` makes it work block by block, each block of queries with only the keys that it needs.
Where rows continue the same prompts, their queries meet the prompts' keys in one matrix product for all rows. The
values are the same.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

BLOCK = 128  # queries in a block of `TreeMask`: fewer waste less work, more need fewer calls (64 to 256 about equal)
SHARED_BLOCK = 256  # queries of all rows together, where they share prompts; 8 to 32 of a row


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


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask, True = may attend, as what is added to the scores."""
    return torch.where(mask, 0.0, -torch.inf).to(dtype)


class TreeMask(torch.Tensor):
    """A boolean mask, True = may attend, that `scaled_dot_product_attention` honors in blocks of queries."""

    @classmethod
    def of(cls, mask: torch.Tensor, dtype: torch.dtype, before: int = 0, prompts: int = 0) -> torch.Tensor:
        """The `TreeMask` of `mask` (batch or 1, 1, N, keys) for queries of `dtype`.

        A mask of one block, without prompts, becomes additive: PyTorch would make it so anew in every layer.

        Args:
            before: how many keys come first that are of prompts.
            prompts: how many rows come first that hold these prompts, see `with_prompt_rows`. If there are none, the
                prompts' keys and values are known, see `KnownLayer`.
        """
        if mask.shape[-2] <= BLOCK and not before:
            return _additive(mask[:1] if mask.stride(0) == 0 else mask, dtype)
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
            blocks.append((slice(start, start + size), keys, _additive(rows[..., keys], dtype)))
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


__all__ = ["BLOCK", "TreeMask"]
