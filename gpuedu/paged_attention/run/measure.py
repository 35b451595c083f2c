"""What the detour through a block table costs: decode attention, timed three ways on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from gpuedu.checks import check_count

from .attention import gathered_attention, paged_attention
from .cache import PagedKVCache


@dataclass(frozen=True)
class AttentionTimes:
    """Median seconds of one token's attention over a context, and the largest difference in its result."""

    context: int
    contiguous_s: float
    gathered_s: float
    block_by_block_s: float
    difference: float


def attention_times(
    context: int,
    *,
    block_size: int = 16,
    heads: int = 8,
    key_heads: int = 8,
    head_dim: int = 64,
    repeats: int = 9,
    seed: int = 0,
) -> AttentionTimes:
    """Time decode attention over contiguous keys, over gathered blocks, and block by block.

    Parameters
    ----------
    context : int
        Tokens in the cache.
    block_size, heads, key_heads, head_dim : int
        Of the cache and the query.
    repeats : int
        Runs, after one that is not counted.
    seed : int
        Of the random tensors and of the order of the blocks.

    Returns
    -------
    AttentionTimes

    Raises
    ------
    ValueError, TypeError
        For a count below 1.
    """
    check_count("context", context)
    check_count("repeats", repeats)
    random = torch.Generator().manual_seed(seed)
    blocks = -(-context // block_size)
    cache = PagedKVCache(blocks, block_size, key_heads, head_dim)
    table = torch.randperm(blocks, generator=random).tolist()
    keys, values = (torch.randn(context, key_heads, head_dim, generator=random) for _ in range(2))
    query = torch.randn(1, heads, head_dim, generator=random)
    cache.write(table, 0, keys, values)

    def contiguous() -> torch.Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
        return scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)

    ways = (
        contiguous,
        lambda: gathered_attention(query, cache, table, context),
        lambda: paged_attention(query, cache, table, context),
    )
    results = [way() for way in ways]
    difference = max(float((result - results[0]).abs().max()) for result in results)
    return AttentionTimes(context, *(_median_seconds(way, repeats) for way in ways), difference)


def _median_seconds(way: Callable[[], torch.Tensor], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
