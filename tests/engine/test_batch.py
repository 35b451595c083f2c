"""Keys and values in blocks: written where the tables say, read as if they lay in a row."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuedu.continuous_batching.plan import Decision, Sequence
from gpuedu.engine import ModelRunner, PagedKVCache, make_batch
from gpuedu.llama import KVCache
from gpuedu.paged_attention.plan import KVCacheManager


def fresh(model, num_blocks: int, block_size: int) -> tuple[KVCacheManager, ModelRunner]:
    cache = PagedKVCache(model.config, num_blocks, block_size, dtype=torch.float64)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)  # whoever sees what was never written shows it, masked or not
    return KVCacheManager(num_blocks, block_size), ModelRunner(model, cache)


def run(kv, runner, sequences, new_tokens) -> dict[Sequence, torch.Tensor]:
    """One iteration in which each sequence computes so many of its tokens; logits by sequence."""
    chunks, decodes = [], []
    for sequence, tokens in zip(sequences, new_tokens, strict=True):
        assert kv.allocate_slots(sequence, tokens) is not None
        if sequence.decoding:
            decodes.append(sequence)
        else:
            chunks.append((sequence, tokens))
    batch = make_batch(Decision(chunks, decodes), kv, torch.float64)
    logits = runner.execute(batch)
    for sequence, tokens in zip(sequences, new_tokens, strict=True):
        sequence.num_computed_tokens += tokens
        sequence.decoding = sequence.num_computed_tokens == sequence.num_tokens
    return dict(zip(batch.sampled, logits, strict=True))


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    block_size=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_logits_are_those_of_the_model(model, lengths, block_size, seed):
    """Prompts in chunks of any size, then three tokens each, beside one another in every mixture."""
    choose = random.Random(seed)
    kv, runner = fresh(model, sum(-(-(n + 3) // block_size) for n in lengths), block_size)
    sequences = [
        Sequence(number, length, 4, token_ids=[choose.randrange(40) for _ in range(length)])
        for number, length in enumerate(lengths)
    ]
    caches = {s: KVCache(model.config, capacity=40, dtype=torch.float64) for s in sequences}
    while live := [s for s in sequences if s.num_computed_tokens < s.prompt_tokens + 3]:
        some = choose.sample(live, choose.randint(1, len(live)))
        new = [choose.randint(1, s.num_tokens - s.num_computed_tokens) for s in some]
        starts = [s.num_computed_tokens for s in some]
        logits = run(kv, runner, some, new)
        for sequence, start, tokens in zip(some, starts, new, strict=True):
            ids = torch.tensor([sequence.token_ids[start : start + tokens]])
            expected = model(ids, caches[sequence], last_only=True)[0, 0]
            assert (sequence in logits) == (start + tokens == sequence.num_tokens)
            if sequence in logits:
                torch.testing.assert_close(logits[sequence], expected, rtol=0, atol=1e-9)
                sequence.token_ids.append(choose.randrange(40))
                sequence.num_tokens += 1


def test_decoding_requests_of_like_lengths_share_a_call(model):
    kv, runner = fresh(model, 200, 4)
    lengths = [3, 4, 5, 120, 118, 40]
    sequences = [Sequence(n, length, 4, token_ids=[1] * length) for n, length in enumerate(lengths)]
    run(kv, runner, sequences, lengths)
    for sequence in sequences:
        sequence.token_ids.append(2)
        sequence.num_tokens += 1
        kv.allocate_slots(sequence, 1)
    batch = make_batch(Decision([], sequences), kv, torch.float64)
    assert [s.request_id for s in batch.sampled] == [0, 1, 2, 5, 4, 3]  # the shortest first
    widths = [1, 2, 2, 11, 30, 31]  # blocks up to the new token
    assert [call.requests for call in batch.calls] == [1, 2, 1, 2]
    assert [call.rows for call in batch.calls] == [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 6)]
    for call in batch.calls:
        width = widths[call.rows.stop - 1]
        assert call.blocks.shape == (call.requests * width,)
        assert call.mask.shape == (call.requests, 1, 1, width * 4)
        seen = (call.mask == 0).sum(-1).flatten().tolist()
        assert seen == [length + 1 for length in sorted(lengths)[call.rows]]


def test_slots(model):
    kv, _ = fresh(model, 10, 4)
    kv.allocate_slots(Sequence("other", 9, 1, token_ids=[0] * 9), 9)
    sequence = Sequence("a", 6, 1, token_ids=[7, 8, 9, 10, 11, 12])
    kv.allocate_slots(sequence, 6)
    first, second = kv.block_table("a")
    batch = make_batch(Decision([(sequence, 6)], []), kv, torch.float64)
    assert batch.ids.tolist() == sequence.token_ids and batch.positions.tolist() == list(range(6))
    assert batch.slots.tolist() == [4 * first + i for i in range(4)] + [4 * second, 4 * second + 1]
    assert batch.sampled == [sequence] and batch.sampled_rows.tolist() == [5]


def test_blocks_begun_and_not_filled(model):
    kv, runner = fresh(model, 12, 4)
    lengths = {"short": 3, "full": 8, "half": 6}
    sequences = [Sequence(name, length, 4, token_ids=[1] * length) for name, length in lengths.items()]
    for sequence in sequences:
        kv.allocate_slots(sequence, sequence.num_tokens)
    last = {name: kv.block_table(name)[-1] for name in lengths}
    batch = make_batch(Decision([(s, s.num_tokens) for s in sequences], []), kv, torch.float64)
    assert batch.begun.tolist() == [last["short"], last["half"]]
    runner.execute(batch)
    for sequence in sequences:
        sequence.num_computed_tokens = sequence.num_tokens
        sequence.token_ids.append(2)
        sequence.num_tokens += 1
        kv.allocate_slots(sequence, 1)
    batch = make_batch(Decision([], sequences), kv, torch.float64)
    assert batch.begun.tolist() == [kv.block_table("full")[-1]]  # the others go on in theirs
    runner.execute(batch)
    used = [block for name in lengths for block in kv.block_table(name)]
    cache = runner.cache
    for tensor in (*cache.keys, *cache.values):
        assert not tensor[used].isnan().any()
        assert not tensor[last["half"], 3:].any() and tensor[last["half"], :3].all()
    assert cache.keys[0].isnan().any()  # and nobody touched the blocks of nobody


def test_write_and_gather(model):
    cache = PagedKVCache(model.config, num_blocks=6, block_size=3, dtype=torch.float64)
    shape = model.config.shape
    k, v = torch.randn(2, 5, shape.kv_heads, shape.head_dim, dtype=torch.float64)
    cache.write(1, torch.tensor([12, 13, 14, 3, 4]), k, v)  # blocks 4 and 1
    keys, values = cache.gather(1, torch.tensor([4, 1]), 1)
    assert keys.shape == (1, shape.kv_heads, 6, shape.head_dim)
    assert torch.equal(keys[0, :, :5], k.transpose(0, 1)) and torch.equal(values[0, :, :5], v.transpose(0, 1))
    assert not cache.keys[0].any() and not cache.keys[1][[0, 2, 3, 5]].any()
    two, _ = cache.gather(1, torch.tensor([4, 1, 1, 4]), 2)
    assert torch.equal(two[1, :, :3], two[0, :, 3:])


def test_copy_on_write(model):
    """A parent's half-full block, forked and written by the child, stays as it was for the parent."""
    kv, runner = fresh(model, 8, 4)
    parent = Sequence("parent", 6, 3, token_ids=[3, 1, 4, 1, 5, 9])
    run(kv, runner, [parent], [6])
    child = Sequence("child", 6, 3, token_ids=list(parent.token_ids))
    child.num_computed_tokens = 6
    kv.fork(parent, child)
    for sequence, token in (parent, 2), (child, 7):
        sequence.token_ids.append(token)
        sequence.num_tokens += 1
        sequence.decoding = True
        kv.allocate_slots(sequence, 1)
    pairs = kv.copies()
    assert len(pairs) == 1
    runner.cache.copy(pairs)
    batch = make_batch(Decision([], [parent, child]), kv, torch.float64)
    logits = runner.execute(batch)
    for sequence, row in zip(batch.sampled, logits, strict=True):
        expected = model(torch.tensor([sequence.token_ids]), last_only=True)[0, 0]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("arguments", [{"num_blocks": 0}, {"num_blocks": 2, "block_size": 0}])
def test_bad_sizes(model, arguments):
    with pytest.raises(ValueError, match="=0"):
        PagedKVCache(model.config, **arguments)
