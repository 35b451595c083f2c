"""Attention of one sequence over a paged cache: block by block, and gathered for a library's kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from gpuedu.checks import check_count

from .cache import PagedKVCache


def paged_attention(
    query: Tensor, cache: PagedKVCache, block_table: Sequence[int], tokens: int, window: int | None = None
) -> Tensor:
    """Attention of a sequence's last tokens over its blocks, one block at a time.

    Parameters
    ----------
    query : Tensor
        Shape (new tokens, heads, head_dim): the last of the sequence's ``tokens`` tokens; the heads are a
        multiple of the cache's.
    cache : PagedKVCache
        Holds the keys and values of all ``tokens``.
    block_table : Sequence[int]
        Of the sequence.
    tokens : int
        Length of the sequence, the new tokens included.
    window : int, optional
        Tokens that each looks back, itself included; blocks out of sight are not read.

    Returns
    -------
    Tensor
        Shape (new tokens, heads, head_dim).

    Raises
    ------
    ValueError
        If there are more new tokens than tokens, the heads are no multiple, the table is too short, or the
        window below 1.

    Notes
    -----
    What vLLM's kernel does in one pass: for each block, scores, a running maximum and a running sum, as
    in FlashAttention; no copy of the keys is ever made contiguous. Causal masks align at the end.
    """
    new, heads, head_dim = query.shape
    key_heads, size = cache.keys.shape[2], cache.block_size
    if not 0 < new <= tokens:
        raise ValueError(f"tokens={tokens}: must be at least the {new} new ones, and there must be one")
    if heads % key_heads:
        raise ValueError(f"heads={heads}: must be a multiple of the cache's {key_heads}")
    if tokens > len(block_table) * size:
        raise ValueError(f"tokens={tokens}: must fit the table's {len(block_table)} blocks of {size}")
    if window is not None:
        check_count("window", window)
    q = query.transpose(0, 1).unflatten(0, (key_heads, -1)) * head_dim**-0.5  # key head, query head of it
    position = torch.arange(tokens - new, tokens, device=query.device)
    m = torch.full((*q.shape[:3], 1), -torch.inf, dtype=query.dtype, device=query.device)
    total, out = torch.zeros_like(m), torch.zeros_like(q)
    first = 0 if window is None else max(0, tokens - new - window + 1) // size
    for i in range(first, -(-tokens // size)):
        filled = min(size, tokens - i * size)
        keys = cache.keys[block_table[i], :filled].transpose(0, 1).unsqueeze(1)
        values = cache.values[block_table[i], :filled].transpose(0, 1).unsqueeze(1)
        distance = position[:, None] - torch.arange(i * size, i * size + filled, device=query.device)
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        scores = (q @ keys.transpose(-1, -2)).masked_fill(~seen, -torch.inf)
        new_m = torch.maximum(m, scores.amax(-1, keepdim=True))
        stable = new_m.masked_fill(new_m == -torch.inf, 0.0)  # a row that has seen nothing yet
        weights, decay = torch.exp(scores - stable), torch.exp(m - stable)
        total = total * decay + weights.sum(-1, keepdim=True)
        out = out * decay + weights @ values
        m = new_m
    return (out / total).flatten(0, 1).transpose(0, 1)


def gathered_attention(query: Tensor, cache: PagedKVCache, block_table: Sequence[int], tokens: int) -> Tensor:
    """As :func:`paged_attention` without a window: gather the blocks, then one call of PyTorch's attention.

    Faster where there is no paged kernel, at the price of a contiguous copy that lives during the call.
    """
    keys, values = cache.read(block_table, tokens)
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=causal_lower_right(len(query), tokens),
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
