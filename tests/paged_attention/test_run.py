"""The tables on real tensors, against the same attention over contiguous ones."""

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.paged_attention.run import PagedKVCache, attention_times, gathered_attention, paged_attention

HEADS, KEY_HEADS, DIM = 4, 2, 8


@dataclass
class Sequence:
    request_id: str
    num_tokens: int = 0
    num_computed_tokens: int = 0
    token_ids: list | None = None
    cache_salt: str | None = None
    keys: list = field(default_factory=list)  # what a contiguous cache would hold
    values: list = field(default_factory=list)


class Engine:
    """Writes random keys and values through the manager's tables, and keeps a contiguous copy."""

    def __init__(self, manager, seed=0):
        self.manager = manager
        self.random = torch.Generator().manual_seed(seed)
        self.cache = PagedKVCache(manager.num_blocks, manager.block_size, KEY_HEADS, DIM, dtype=torch.float64)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def compute(self, sequence, count, computed_blocks=()):
        start = sequence.num_computed_tokens + len(computed_blocks) * self.manager.block_size
        new = self.manager.allocate_slots(sequence, count, computed_blocks)
        assert new is not None
        self.cache.copy(self.manager.copies())
        keys, values = self.randn(count, KEY_HEADS, DIM), self.randn(count, KEY_HEADS, DIM)
        self.cache.write(self.manager.block_table(sequence.request_id), start, keys, values)
        sequence.keys += keys
        sequence.values += values
        sequence.num_computed_tokens = start + count
        sequence.num_tokens = max(sequence.num_tokens, sequence.num_computed_tokens)

    def check(self, sequence, window=None):
        tokens = sequence.num_computed_tokens
        table = self.manager.block_table(sequence.request_id)
        query = self.randn(min(3, tokens), HEADS, DIM)
        expected = reference(query, torch.stack(sequence.keys), torch.stack(sequence.values), window)
        torch.testing.assert_close(paged_attention(query, self.cache, table, tokens, window), expected)
        if window is None:
            torch.testing.assert_close(gathered_attention(query, self.cache, table, tokens), expected)


def reference(query, keys, values, window):
    new, tokens = len(query), len(keys)
    distance = torch.arange(tokens - new, tokens)[:, None] - torch.arange(tokens)
    mask = (distance >= 0) & (distance < (tokens if window is None else window))
    q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


def test_attention_through_scattered_blocks_equals_sdpa():
    engine = Engine(KVCacheManager(40, 4))
    a, b = Sequence("a"), Sequence("b")
    for count in (5, 1, 3, 1, 1, 9, 1):  # chunks that end inside blocks, two sequences in turns
        for sequence in (a, b):
            engine.compute(sequence, count)
            engine.check(sequence)
    assert engine.manager.block_table("a") != sorted(range(len(engine.manager.block_table("a"))))
    engine.check(a)


def test_copy_on_write_keeps_the_branches_apart():
    engine = Engine(KVCacheManager(40, 4))
    root = Sequence("root")
    engine.compute(root, 10)  # two full blocks and half a block
    branches = [root]
    for name in ("x", "y"):
        child = Sequence(name, 10, 10, keys=list(root.keys), values=list(root.values))
        engine.manager.fork(root, child)
        branches.append(child)
    used = engine.manager.num_blocks - engine.manager.num_free_blocks
    assert used == 3
    for _ in range(6):
        for branch in branches:
            engine.compute(branch, 1)
    for branch in branches:
        engine.check(branch)
    tables = [engine.manager.block_table(branch.request_id) for branch in branches]
    assert len({tuple(table[:2]) for table in tables}) == 1
    assert len({table[2] for table in tables}) == 3


def test_without_the_copy_the_branches_would_mix():
    engine = Engine(KVCacheManager(40, 4))
    root = Sequence("root")
    engine.compute(root, 10)
    child = Sequence("child", 10, 10, keys=list(root.keys), values=list(root.values))
    engine.manager.fork(root, child)
    engine.cache.copy = lambda pairs: None
    engine.compute(root, 1)
    with pytest.raises(AssertionError):
        engine.check(root)


def test_a_found_prefix_is_attended_to_without_being_computed():
    engine = Engine(KVCacheManager(40, 4, enable_prefix_caching=True))
    tokens = list(range(11))
    first = Sequence("first", 11, token_ids=tokens)
    engine.compute(first, 11)
    second = Sequence("second", 12, token_ids=[*tokens[:8], 50, 51, 52, 53])
    found, count = engine.manager.get_computed_blocks(second)
    assert count == 8
    second.keys, second.values = first.keys[:8], first.values[:8]
    engine.compute(second, 4, found)
    engine.check(second)
    engine.check(first)


def test_swapped_out_and_in_is_the_same():
    manager = KVCacheManager(8, 4, num_host_blocks=8)
    engine = Engine(manager)
    host = PagedKVCache(8, 4, KEY_HEADS, DIM, dtype=torch.float64)
    a, b = Sequence("a"), Sequence("b")
    engine.compute(a, 14)
    before = manager.block_table("a")
    engine.cache.copy_blocks_to(host, manager.swap_out(a))
    engine.compute(b, 6)  # writes over what a has left
    host.copy_blocks_to(engine.cache, manager.swap_in(a))
    assert manager.block_table("a") != before
    engine.check(a)
    engine.compute(a, 3)
    engine.check(a)


@pytest.mark.parametrize("window", [1, 3, 4, 6, 9])
def test_a_sliding_window_reads_what_it_still_holds(window):
    engine = Engine(KVCacheManager(12, 4, sliding_window=window))
    a = Sequence("a")
    engine.compute(a, 5)
    for _ in range(40):  # 45 tokens through 11 blocks of 4
        engine.compute(a, 1)
        tokens = a.num_computed_tokens
        query = engine.randn(1, HEADS, DIM)
        expected = reference(query, torch.stack(a.keys), torch.stack(a.values), window)
        table = engine.manager.block_table("a")
        torch.testing.assert_close(paged_attention(query, engine.cache, table, tokens, window), expected)
    assert engine.manager.num_blocks - 1 - engine.manager.num_free_blocks <= window // 4 + 2


def test_bad_input():
    cache = PagedKVCache(4, 4, KEY_HEADS, DIM)
    with pytest.raises(ValueError, match="block_size=0"):
        PagedKVCache(4, 0, KEY_HEADS, DIM)
    with pytest.raises(ValueError, match="8 slots"):
        cache.write([0, 1], 6, torch.zeros(3, KEY_HEADS, DIM), torch.zeros(3, KEY_HEADS, DIM))
    with pytest.raises(ValueError, match="keys"):
        cache.write([0, 1], 0, torch.zeros(3, 1, DIM), torch.zeros(3, 1, DIM))
    with pytest.raises(ValueError, match="heads=3"):
        paged_attention(torch.zeros(1, 3, DIM), cache, [0], 1)
    with pytest.raises(ValueError, match="tokens=5"):
        paged_attention(torch.zeros(1, 2, DIM), cache, [0], 5)
    with pytest.raises(ValueError, match="tokens=0"):
        paged_attention(torch.zeros(1, 2, DIM), cache, [0], 0)
    for window in (0, -3):
        with pytest.raises(ValueError, match=f"window={window}"):
            paged_attention(torch.zeros(1, 2, DIM), cache, [0], 1, window=window)


def test_three_ways_agree_when_timed():
    times = attention_times(100, repeats=1)
    assert times.difference < 1e-5
    assert min(times.contiguous_s, times.gathered_s, times.block_by_block_s) > 0
