"""Attention over a token tree on a CPU, without the work that the tree's mask throws away.

In the tree of several formats (slot_tree_au_llava.py) most pairs of tokens do not see each other. PyTorch's attention
computes them all and masks them; `TreeMask` is a mask that it honours block by block, each block of queries with the
keys that it needs alone. The values are the same.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 128  # queries: fewer mean less wasted work, more mean fewer calls (64 to 256 measured about equal)


class TreeMask(torch.Tensor):
    """A boolean mask, True = may attend, that `scaled_dot_product_attention` honours in blocks of queries."""

    @classmethod
    def of(cls, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`mask` (batch or 1, 1, N, N) for queries of `dtype`; a tree of one block stays what it is."""
        if mask.shape[-2] <= BLOCK:
            return mask
        tree = mask.as_subclass(cls)
        tree.blocks = []
        if mask.stride(0) == 0:  # one tree expanded over the batch
            mask = mask[:1]
        for start in range(0, mask.shape[-2], BLOCK):
            rows = mask[:, :, start : start + BLOCK]
            keys = rows.any(dim=(0, 1, 2)).nonzero().squeeze(1)
            hidden = ~rows[..., keys]
            additive = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
            tree.blocks.append((slice(start, start + BLOCK), keys, additive))
        return tree

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if function is scaled_dot_product_attention and isinstance(kwargs.get("attn_mask"), cls):
                query, key, value = args
                blocks = kwargs.pop("attn_mask").blocks
                outputs = [
                    function(
                        query[:, :, rows],
                        key.index_select(2, keys),
                        value.index_select(2, keys),
                        attn_mask=additive,
                        **kwargs,
                    )
                    for rows, keys, additive in blocks
                ]
                return torch.cat(outputs, dim=2)
            return function(*args, **kwargs)


__all__ = ["TreeMask"]
