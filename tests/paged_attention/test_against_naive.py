"""100,000 random operations a policy, each answer held against a model that is slow and plain."""

import random
from dataclasses import dataclass, field

import pytest

from gpuedu.paged_attention.plan import KVCacheManager

OPERATIONS = 100_000
BLOCK, BLOCKS = 3, 26


@dataclass
class Request:
    request_id: int
    token_ids: list
    cache_salt: object
    retention_priority: int
    num_computed_tokens: int = 0
    block_hashes: list = field(default_factory=list)

    @property
    def num_tokens(self):
        return len(self.token_ids)


class Naive:
    """Whole prefixes instead of hashes, lists instead of links, sorting instead of heaps."""

    def __init__(self, index, eviction, free_queue):
        self.tree, self.caching = index == "radix", index is not None
        self.eviction, self.split = eviction, free_queue == "split"
        # What has no history goes first: those that no index knows stand in `bare`, the others in `kept`
        self.bare, self.kept = list(range(BLOCKS)), []
        self.holds, self.known, self.tables = {}, {}, {}
        self.rank, self.references = [0] * BLOCKS, [0] * BLOCKS
        self.copies = []
        self.learned = {}  # how many blocks of a request have been offered to the index

    def free_order(self):
        if self.eviction == "lru":
            return self.bare + self.kept
        return self.bare + sorted(self.kept, key=lambda b: self.rank[b])  # stable: by release within a rank

    def prefix(self, request, i):
        return (request.cache_salt, tuple(request.token_ids[: (i + 1) * BLOCK]))

    def lookup(self, request):
        found = []
        while self.caching and (len(found) + 1) * BLOCK <= request.num_tokens - 1:
            block = next(iter(self.known.get(self.prefix(request, len(found)), [])), None)
            if block is None:
                break
            found.append(block)
        return found

    def forget(self, block):
        prefix = self.holds.pop(block, None)
        if prefix is None:
            return
        self.known[prefix].remove(block)
        if not self.known[prefix]:
            del self.known[prefix]
        if self.tree:
            salt, tokens = prefix
            below = [p for p in self.known if p[0] == salt and p[1][: len(tokens)] == tokens]
            for each in below:
                for b in self.known.pop(each):
                    del self.holds[b]

    def take(self, count, priority):
        blocks = self.free_order()[:count]
        for b in blocks:
            self.leave(b)
            self.forget(b)
            self.references[b] = 1
            self.rank[b] = 0
            self.used(b, priority)
        return blocks

    def leave(self, block):
        (self.bare if block in self.bare else self.kept).remove(block)

    def used(self, block, priority):
        before = self.rank[block]
        self.rank[block] = before + 1 if self.eviction == "lfu" else max(before, priority)

    def hold(self, block, priority):
        if self.references[block] == 0:
            self.leave(block)
        self.references[block] += 1
        self.used(block, priority)

    def release(self, blocks):
        gone = []
        for b in blocks:
            self.references[b] -= 1
            if self.references[b] == 0:
                gone.append(b)
        if self.eviction == "lru" and not self.split:
            self.kept += gone
            return
        self.bare[:0] = [b for b in gone if b not in self.holds]
        self.kept += [b for b in gone if b in self.holds]

    def grow(self, request, count, computed_blocks=()):
        table = self.tables.get(request.request_id)
        new_request = table is None
        table = list(computed_blocks) if new_request else list(table)
        start = len(computed_blocks) * BLOCK if new_request else request.num_computed_tokens
        need = -(-(start + count) // BLOCK) - len(table)
        to_copy = [] if new_request else [
            i for i in range(start // BLOCK, len(table)) if self.references[table[i]] > 1
        ]  # fmt: skip
        free = len(self.free_order()) - sum(self.references[b] == 0 for b in computed_blocks)
        if max(need, 0) + len(to_copy) > free:
            return None
        for b in computed_blocks:
            self.hold(b, request.retention_priority)
        fresh = self.take(len(to_copy), request.retention_priority)
        for i, b in zip(to_copy, fresh, strict=True):
            if i * BLOCK < start:
                self.copies.append((table[i], b))
            self.release([table[i]])
            table[i] = b
        new = self.take(need, request.retention_priority) if need > 0 else []
        table += new
        self.tables[request.request_id] = table
        self.learn(request, min(start + count, request.num_tokens) // BLOCK)
        return new

    def learn(self, request, full):
        table = self.tables[request.request_id]
        first = self.learned.get(request.request_id, 0)
        if not self.caching or full <= first:
            self.learned[request.request_id] = max(full, first)
            return
        start = 0 if self.tree and first and table[first - 1] not in self.holds else first
        for i in range(start, full):
            prefix = self.prefix(request, i)
            if self.tree and prefix in self.known:
                continue
            self.known.setdefault(prefix, []).append(table[i])
            self.holds[table[i]] = prefix
        self.learned[request.request_id] = full


def drive(seed, index, eviction, free_queue, operations=OPERATIONS, prompts=6):
    """Random requests over a small alphabet, so that prefixes meet; every answer compared."""
    dice = random.Random(seed)
    manager = KVCacheManager(
        BLOCKS,
        BLOCK,
        enable_prefix_caching=index is not None,
        prefix_index=index or "hash_chain",
        eviction=eviction,
        free_queue=free_queue,
    )
    naive = Naive(index, eviction, free_queue)
    texts = [[dice.randrange(3) for _ in range(dice.randint(4, 24))] for _ in range(prompts)]
    live, done, hits, copied, refused, name = [], 0, 0, 0, 0, 0
    while done < operations:
        kind = dice.choices(("admit", "grow", "fork", "free"), (3, 6, 1, 2))[0]
        if kind != "admit" and not live:
            continue
        done += 1
        if kind == "admit":
            name += 1
            text = dice.choice(texts)[: dice.randint(1, 24)] + [
                dice.randrange(2) for _ in range(dice.randrange(5))
            ]
            request = Request(name, text, dice.choice((None, None, "salt")), dice.randrange(3))
            found, tokens = manager.get_computed_blocks(request)
            assert list(found) == naive.lookup(request)
            assert tokens == len(found) * BLOCK < request.num_tokens
            count = dice.randint(1, request.num_tokens - tokens)
            learned = len(found)
            naive.learned[name] = learned
            new = manager.allocate_slots(request, count, found)
            assert new == naive.grow(request, count, found)
            if new is None:
                refused += 1
                del naive.learned[name]
            else:
                hits += tokens
                request.num_computed_tokens = tokens + count
                live.append(request)
        elif kind == "grow":
            request = dice.choice(live)
            ahead = request.num_tokens - request.num_computed_tokens
            if not ahead:
                request.token_ids.append(dice.randrange(2))
                ahead = 1
            count = dice.randint(1, ahead)
            new = manager.allocate_slots(request, count)
            assert new == naive.grow(request, count)
            refused += new is None
            if new is not None:
                request.num_computed_tokens += count
        elif kind == "fork":
            parent = dice.choice(live)
            name += 1
            child = Request(name, list(parent.token_ids), parent.cache_salt, dice.randrange(3))
            child.num_computed_tokens = parent.num_computed_tokens
            manager.fork(parent, child)
            naive.tables[name] = list(naive.tables[parent.request_id])
            naive.learned[name] = naive.learned[parent.request_id]
            for b in naive.tables[name]:
                naive.hold(b, child.retention_priority)
            live.append(child)
        else:
            request = live.pop(dice.randrange(len(live)))
            manager.free(request)
            naive.release(naive.tables.pop(request.request_id)[::-1])
            del naive.learned[request.request_id]
        pairs = manager.copies()
        assert pairs == naive.copies
        copied += len(pairs)
        naive.copies = []
        assert manager.num_free_blocks == len(naive.bare) + len(naive.kept)
        if done % 50 == 0:
            same_state(manager, naive, live)
    for request in live:
        manager.free(request)
    assert sorted(manager.pool.free_queue) == list(range(BLOCKS))
    return hits, copied, refused


def same_state(manager, naive, live):
    """Nothing leaked, nothing freed twice, no block in two hands that do not share it."""
    tables = {r.request_id: manager.block_table(r.request_id) for r in live}
    assert tables == naive.tables
    held = [block for table in tables.values() for block in table]
    free = list(manager.pool.free_queue)
    assert free == naive.free_order()
    assert set(held) | set(free) == set(range(BLOCKS)) and not set(held) & set(free)
    assert manager.pool.references == [held.count(b) for b in range(BLOCKS)]
    for request in live:
        for i, block in enumerate(tables[request.request_id]):
            if held.count(block) > 1:  # shared: the other holders have the same tokens up to here
                end = min((i + 1) * BLOCK, request.num_computed_tokens)
                for other in live:
                    if tables[other.request_id][i : i + 1] == [block]:
                        both = min(end, other.num_computed_tokens)
                        assert other.token_ids[:both] == request.token_ids[:both]


POLICIES = [
    (None, "lru", "split"),
    (None, "lru", "append"),
    ("hash_chain", "lru", "split"),
    ("hash_chain", "lru", "append"),
    ("hash_chain", "lfu", "split"),
    ("hash_chain", "priority", "split"),
    ("radix", "lru", "split"),
    ("radix", "lfu", "split"),
    ("radix", "priority", "split"),
]


@pytest.mark.parametrize(("index", "eviction", "free_queue"), POLICIES)
def test_every_answer_is_the_naive_models(index, eviction, free_queue):
    hits, copied, refused = drive(7, index, eviction, free_queue)
    assert copied > 1000 and refused > 1000
    assert hits > 10_000 if index else hits == 0


@pytest.mark.parametrize("window", [None, 1, 5, 9])
@pytest.mark.parametrize("caching", [False, True])
def test_windows_and_swaps_leak_nothing(window, caching):
    dice = random.Random(f"{window} {caching}")
    manager = KVCacheManager(
        BLOCKS, BLOCK, enable_prefix_caching=caching, sliding_window=window, num_host_blocks=12
    )
    reserved = window is not None
    running, swapped, moved, refused, name = [], [], 0, 0, 0
    for number in range(10_000):
        kind = dice.choices(("admit", "grow", "fork", "out", "in", "free"), (2, 8, 1, 1, 2, 1))[0]
        if kind == "admit":
            name += 1
            request = Request(name, [dice.randrange(2) for _ in range(dice.randint(1, 20))], None, 0)
            found, tokens = manager.get_computed_blocks(request)
            if manager.allocate_slots(request, request.num_tokens - tokens, found) is not None:
                request.num_computed_tokens = request.num_tokens
                running.append(request)
        elif kind == "in" and swapped:
            request = dice.choice(swapped)
            if manager.swap_in(request) is not None:
                swapped.remove(request)
                running.append(request)
        elif kind == "free" and swapped and dice.random() < 0.5:
            manager.free(swapped.pop(dice.randrange(len(swapped))))
        elif running and kind != "in":
            request = dice.choice(running)
            if kind == "grow":
                request.token_ids.append(dice.randrange(2))
                if manager.allocate_slots(request, 1) is None:
                    request.token_ids.pop()
                    refused += 1
                else:
                    request.num_computed_tokens += 1
            elif kind == "fork":
                name += 1
                child = Request(name, list(request.token_ids), None, 0, request.num_computed_tokens)
                manager.fork(request, child)
                running.append(child)
            elif kind == "out":
                if manager.swap_out(request) is not None:
                    moved += 1
                    running.remove(request)
                    swapped.append(request)
            else:
                manager.free(request)
                running.remove(request)
        if number % 10 == 0:
            tables = [manager.block_table(r.request_id) for r in running]
            held = [b for table in tables for b in table if not (reserved and b == 0)]
            expected = [held.count(b) for b in range(BLOCKS)]
            expected[0] += reserved
            assert manager.pool.references == expected
            free = list(manager.pool.free_queue)
            assert len(set(free)) == len(free)
            assert set(free) == {b for b in range(BLOCKS) if not expected[b]}
            for request, table in zip(running, tables, strict=True):
                assert len(table) == -(-request.num_computed_tokens // BLOCK)
    assert moved > 50 and (refused > 50 or reserved)
    for request in running + swapped:
        manager.free(request)
    assert manager.num_free_blocks == BLOCKS - reserved
    assert sorted(manager._free_host_blocks) == list(range(12))
