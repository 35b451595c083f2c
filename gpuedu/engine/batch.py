"""A scheduler's decision as tensors: which tokens, where they are written, what they look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gpuedu.continuous_batching.plan import Decision, Sequence
from gpuedu.paged_attention.plan import KVCacheManager

MAX_PADDING = 0.125
"""Decoding requests share an attention call while padding adds at most this share to their blocks."""


@dataclass(frozen=True)
class AttentionCall:
    """Rows of the batch whose attention is computed together.

    Parameters
    ----------
    rows : slice
        Tokens of the batch: of several requests one each, or of one request several.
    blocks : Tensor or None
        (requests * blocks of each,): block tables, padded to one length. None: a whole prompt, whose keys
        and values are all in the batch.
    requests : int
        How many.
    mask : Tensor or None
        What to add to the scores: (requests, 1, 1, context) where each has one token, or (tokens, context).
        None: causal, from the first token on.
    """

    rows: slice
    blocks: torch.Tensor | None
    requests: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Batch:
    """One iteration: the tokens of all requests in one row, those that decode first.

    Parameters
    ----------
    ids, positions, slots : Tensor
        (tokens,), int64: each token, its position in its request, its place in the cache.
    begun : Tensor
        (n,), int64: blocks whose first slot is written and whose last is not.
    calls : list of AttentionCall
        Cover all rows, in order.
    sampled : list of Sequence
        Requests that produce a token.
    sampled_rows : Tensor
        (len(sampled),), int64: the rows whose logits say which.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    begun: torch.Tensor
    calls: list[AttentionCall]
    sampled: list[Sequence]
    sampled_rows: torch.Tensor


def make_batch(
    decision: Decision, kv: KVCacheManager, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Batch:
    """Lay out a decision.

    Parameters
    ----------
    decision : Decision
        Just made, and not empty.
    kv : KVCacheManager
        Has the block tables.
    dtype : torch.dtype
        Of the model: masks are added to scores.
    device : torch.device or str
        Where the tensors go.

    Returns
    -------
    Batch
    """
    decodes = sorted(decision.decodes, key=lambda sequence: sequence.num_computed_tokens)
    parts = [(sequence, 1) for sequence in decodes] + list(decision.chunks)
    tables = [_blocks_in_use(kv, sequence, tokens) for sequence, tokens in parts]
    ids, positions, slots, begun, sampled, sampled_rows = [], [], [], [], [], []
    for (sequence, tokens), table in zip(parts, tables, strict=True):
        first = sequence.num_computed_tokens
        places = range(first, first + tokens)
        ids += sequence.token_ids[first : first + tokens]
        positions += places
        slots += _slots(table, places, kv.block_size)
        filled = (first + tokens) % kv.block_size
        if 0 < filled <= tokens:
            begun.append(table[-1])
        if first + tokens == sequence.num_tokens:
            sampled.append(sequence)
            sampled_rows.append(len(ids) - 1)
    calls = [*_decode_calls(decodes, tables, kv.block_size, dtype)]
    calls += _chunk_calls(decision.chunks, tables[len(decodes) :], len(decodes), kv.block_size, dtype)
    return Batch(
        *(torch.tensor(values, dtype=torch.int64).to(device) for values in (ids, positions, slots, begun)),
        [_to_device(call, device) for call in calls],
        sampled,
        torch.tensor(sampled_rows, dtype=torch.int64).to(device),
    )


def _blocks_in_use(kv: KVCacheManager, sequence: Sequence, tokens: int) -> list[int]:
    """The blocks up to the last token of this iteration; more may be reserved."""
    width = -(-(sequence.num_computed_tokens + tokens) // kv.block_size)
    return kv.block_table(sequence.request_id)[:width]


def _slots(table: list[int], places: range, block_size: int) -> Iterable[int]:
    return [table[place // block_size] * block_size + place % block_size for place in places]


def _to_device(call: AttentionCall, device: torch.device | str) -> AttentionCall:
    blocks, mask = (None if tensor is None else tensor.to(device) for tensor in (call.blocks, call.mask))
    return AttentionCall(call.rows, blocks, call.requests, mask)


def _decode_calls(
    decodes: list[Sequence], tables: list[list[int]], block_size: int, dtype: torch.dtype
) -> Iterable[AttentionCall]:
    """Requests of one token each, shortest first, in groups that padding does not make too dear."""
    start = 0
    while start < len(decodes):
        end, held = start, 0
        while end < len(decodes):
            width = len(tables[end])
            if width * (end + 1 - start) > (1 + MAX_PADDING) * (held + width):
                break
            held += width
            end += 1
        width = len(tables[end - 1])
        blocks = [[*table, *([table[0]] * (width - len(table)))] for table in tables[start:end]]
        last = torch.tensor([sequence.num_computed_tokens for sequence in decodes[start:end]])
        unseen = torch.arange(width * block_size) > last[:, None]
        mask = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))
        yield AttentionCall(
            slice(start, end), torch.tensor(blocks).flatten(), end - start, mask[:, None, None]
        )
        start = end


def _chunk_calls(
    chunks: list[tuple[Sequence, int]],
    tables: list[list[int]],
    start: int,
    block_size: int,
    dtype: torch.dtype,
) -> Iterable[AttentionCall]:
    """Each request that computes several tokens on its own; query i sees the keys up to its place."""
    for (sequence, tokens), table in zip(chunks, tables, strict=True):
        rows = slice(start, start + tokens)
        start += tokens
        first = sequence.num_computed_tokens
        if first == 0:
            yield AttentionCall(rows, None, 1, None)
            continue
        unseen = torch.arange(len(table) * block_size) > torch.arange(first, first + tokens)[:, None]
        mask = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))
        yield AttentionCall(rows, torch.tensor(table), 1, mask)
