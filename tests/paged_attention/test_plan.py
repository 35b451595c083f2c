"""What the manager decides, case by case."""

import random

import pytest

from gpuedu.paged_attention.plan import (
    EVICTIONS,
    ROOT,
    BlockPool,
    BuddyAllocator,
    ContiguousManager,
    KVCacheManager,
    extend_hashes,
)

INDEXES = ("hash_chain", "radix")


def cached(num_blocks, block_size=4, **policy):
    return KVCacheManager(num_blocks, block_size, enable_prefix_caching=True, **policy)


def grow(manager, request, tokens=()):
    """Append tokens to a request and compute them."""
    request.token_ids += tokens
    new = manager.allocate_slots(request, request.num_tokens - request.num_computed_tokens)
    if new is not None:
        request.num_computed_tokens = request.num_tokens
    return new


# Slots


def test_a_block_is_taken_when_the_last_one_is_full(request_of):
    manager = KVCacheManager(8, 4)
    a = request_of("a", 4)
    assert manager.allocate_slots(a, 4) == [0]
    a.num_computed_tokens = 4
    assert manager.allocate_slots(a, 1) == [1]
    a.num_computed_tokens = 5
    assert manager.allocate_slots(a, 3) == []
    assert manager.block_table("a") == [0, 1] and manager.usage == 0.25


@pytest.mark.parametrize("index", INDEXES)
def test_a_refusal_changes_nothing(request_of, admit, index):
    manager = cached(4, prefix_index=index)
    a, b = request_of("a", range(8)), request_of("b", [*range(8), *range(20, 30)])
    admit(manager, a)
    manager.free(a)
    order, references = list(manager.pool.free_queue), list(manager.pool.references)
    found, tokens = manager.get_computed_blocks(b)
    assert tokens == 8
    # Two more are free, but three are needed: those found count as taken
    assert manager.allocate_slots(b, 10, found) is None
    assert list(manager.pool.free_queue) == order and manager.pool.references == references
    assert manager.get_computed_blocks(b) == (found, tokens)
    with pytest.raises(KeyError, match="'b'"):
        manager.block_table("b")


def test_the_watermark_is_for_newcomers_alone(request_of):
    manager = KVCacheManager(10, 4, watermark=0.2)
    a, b = request_of("a", 28), request_of("b", 8)
    assert manager.allocate_slots(a, 28) is not None  # alone it may have all, nobody can be preempted for it
    assert manager.allocate_slots(b, 8) is None
    a.num_computed_tokens = 28
    assert manager.allocate_slots(a, 12) == [7, 8, 9]


def test_a_request_that_holds_all_is_admitted_above_the_watermark(request_of):
    manager = KVCacheManager(4, 4, watermark=0.5)
    assert manager.allocate_slots(request_of("a", 16), 16) == [0, 1, 2, 3]


# Prefix caching


@pytest.mark.parametrize("index", INDEXES)
def test_salts_keep_tenants_apart(request_of, admit, index):
    manager = cached(32, prefix_index=index)
    for salt, hits in ((None, 0), ("x", 0), ("y", 0), ("x", 8), (None, 8), ("y", 8)):
        request = request_of(object(), range(9), cache_salt=salt)
        assert admit(manager, request) == hits


@pytest.mark.parametrize("index", INDEXES)
def test_output_is_found_too(request_of, admit, index):
    manager = cached(32, prefix_index=index)
    turn = request_of("turn 1", range(6))
    admit(manager, turn)
    for token in (50, 51, 52):
        grow(manager, turn, [token])
    manager.free(turn)
    follow_up = request_of("turn 2", [*range(6), 50, 51, 52, 60, 61])
    assert manager.get_computed_blocks(follow_up)[1] == 8


@pytest.mark.parametrize("index", INDEXES)
def test_tokens_that_are_not_known_hash_nothing(request_of, admit, index):
    manager = cached(32, prefix_index=index)
    assert admit(manager, request_of("a", 12)) == admit(manager, request_of("b", 12)) == 0


@pytest.mark.parametrize("index", INDEXES)
def test_the_whole_prompt_is_never_found(request_of, admit, index):
    # TRAPS 18: 16 equal tokens, block 4: 12 cached, the last token has to be computed for its logits
    manager = cached(32, prefix_index=index)
    assert admit(manager, request_of("a", [7] * 16)) == 0
    assert admit(manager, request_of("b", [7] * 16)) == 12
    assert admit(manager, request_of("c", [7] * 17)) == 16


@pytest.mark.parametrize("index", INDEXES)
def test_trap_18_a_block_is_named_by_its_prefix_too(request_of, admit, index):
    manager = cached(32, prefix_index=index)
    admit(manager, request_of("a", [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    assert admit(manager, request_of("b", [0, 2, 3, 4, 5, 6, 7, 8, 9])) == 0


@pytest.mark.parametrize("index", INDEXES)
def test_trap_18_partial_blocks_are_not_found(request_of, admit, index):
    manager = cached(32, prefix_index=index)
    admit(manager, request_of("a", range(7)))
    assert admit(manager, request_of("b", [*range(7), 99, 98])) == 4


@pytest.mark.parametrize("index", INDEXES)
def test_trap_18_hits_are_counted_in_tokens(request_of, admit, index):
    manager = cached(32, block_size=8, prefix_index=index)
    for name in "abc":
        admit(manager, request_of(name, range(20)))
    assert (manager.hit_tokens, manager.queried_tokens) == (32, 60)


def test_a_hash_depends_on_the_parent_the_salt_and_every_token():
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    names = extend_hashes([], tokens, ROOT, 4, 2)
    seen = {tuple(names)}
    for i in range(8):
        other = [*tokens[:i], tokens[i] + 1, *tokens[i + 1 :]]
        changed = extend_hashes([], other, ROOT, 4, 2)
        assert changed[1] != names[1] and (changed[0] == names[0]) == (i >= 4)
        seen.add(tuple(changed))
    salted = extend_hashes([], tokens, ROOT + 1, 4, 2)
    assert salted[0] != names[0] and salted[1] != names[1]
    assert len(seen) == 9
    assert extend_hashes(names[:1], tokens, ROOT, 4, 2) == names


PREFIX_CACHES = ({}, {"prefix_index": "radix"}, {"sliding_window": 6})


@pytest.mark.parametrize("cache", PREFIX_CACHES, ids=str)
@pytest.mark.parametrize(
    "salts", [(None, 0), (None, ROOT), (-1, -2), (0, 2**61 - 1), (1, "1"), ("a", ("a",)), (ROOT, ROOT + 1)]
)
def test_different_salts_never_find_each_other(request_of, admit, cache, salts):
    for one, other in (salts, salts[::-1]):
        manager = cached(16, **cache)
        admit(manager, request_of("a", range(8), cache_salt=one))
        assert manager.get_computed_blocks(request_of("b", range(9), cache_salt=other))[1] == 0
        assert manager.get_computed_blocks(request_of("c", range(9), cache_salt=one))[1] == 8


@pytest.mark.parametrize("cache", PREFIX_CACHES, ids=str)
def test_a_salt_is_no_token_of_a_block_of_one(request_of, admit, cache):
    manager = cached(32, block_size=1, **cache)
    text = [5, 7, 8, 9, 11, 13]
    admit(manager, request_of("a", text))
    for start in range(1, len(text)):  # the text from its middle on, the token before it as a salt
        rest = request_of(start, [*text[start:], 1], cache_salt=text[start - 1])
        assert manager.get_computed_blocks(rest)[1] == 0


def test_equal_blocks_both_stay_and_the_older_is_found(request_of):
    # Two requests computed in the same step cannot find each other; tables are never rewritten
    manager = cached(32)
    a, b = request_of("a", range(9)), request_of("b", range(9))
    for request in (a, b):
        assert manager.get_computed_blocks(request) == ((), 0)
        manager.allocate_slots(request, 3)  # nothing is full yet
        request.num_computed_tokens = 3
    for request in (a, b):
        grow(manager, request)
    assert manager.block_table("a") != manager.block_table("b")
    c = request_of("c", range(9))
    assert list(manager.get_computed_blocks(c)[0]) == manager.block_table("a")[:2]
    manager.free(a)
    filler = request_of("filler", 4 * manager.num_free_blocks)
    manager.allocate_slots(filler, filler.num_tokens)  # takes a's blocks; b's are still held
    assert list(manager.get_computed_blocks(c)[0]) == manager.block_table("b")[:2]


def test_trap_radix_nodes_in_use_are_not_evicted(request_of, admit):
    manager = cached(6, prefix_index="radix")
    a = request_of("a", range(12))
    admit(manager, a)
    b = request_of("b", 12)
    assert admit(manager, b) == 0
    assert manager.num_free_blocks == 0
    manager.free(b)
    c = request_of("c", 13)
    assert admit(manager, c) is None  # three are free, a's stay a's
    d = request_of("d", [*range(12), 1])
    assert manager.get_computed_blocks(d)[1] == 12


def test_a_radix_tree_splits_and_joins(request_of, admit):
    manager = cached(64, prefix_index="radix")
    admit(manager, request_of("a", range(16)))
    admit(manager, request_of("b", [*range(8), *range(100, 108)]))
    admit(manager, request_of("c", [*range(12), *range(200, 208)]))
    for tail, hits in (
        ([1] * 9, 8),
        (range(100, 109), 16),
        (range(8, 17), 16),
        ([*range(8, 12), 200, 201], 12),
    ):
        assert admit(manager, request_of(object(), [*range(8), *tail])) == hits


def test_both_indexes_find_the_same_when_nothing_is_evicted(request_of, admit):
    dice = random.Random(3)
    managers = [cached(20_000, prefix_index=index) for index in INDEXES]
    seen = []
    for name in range(300):
        tokens = [dice.randrange(2) for _ in range(dice.randrange(1, 60))]
        longest = max((shared(tokens, old) // 4 * 4 for old in seen), default=0)
        expected = min(longest, (len(tokens) - 1) // 4 * 4)
        assert [admit(m, request_of(name, tokens)) for m in managers] == [expected, expected]
        seen.append(tokens)


def shared(one, other):
    """Tokens that two lists begin with together."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


# Eviction


def test_lru_evicts_the_tail_of_a_prompt_first(request_of, admit):
    manager = cached(6)
    a = request_of("a", range(16))
    admit(manager, a)
    manager.free(a)
    for taken, hits in ((3, 12), (4, 8), (5, 4), (6, 0)):
        filler = request_of("filler", 4 * taken)
        manager.allocate_slots(filler, 4 * taken)
        manager.free(filler)
        assert manager.get_computed_blocks(request_of("b", range(17)))[1] == hits


@pytest.mark.parametrize(("free_queue", "survives"), [("split", True), ("append", False)])
def test_trap_18_the_two_generations_differ(request_of, admit, free_queue, survives):
    # A long cached prompt, then many short requests, whose only block is never full
    manager = cached(8, free_queue=free_queue)
    prompt = request_of("prompt", range(16))
    admit(manager, prompt)
    manager.free(prompt)
    for name in range(8):
        short = request_of(name, [100 + name])
        admit(manager, short)
        manager.free(short)
    hits = manager.get_computed_blocks(request_of("again", range(17)))[1]
    assert hits == (16 if survives else 0)


def test_lfu_keeps_what_is_used_often(request_of, admit):
    manager = cached(8, eviction="lfu")
    for name in range(3):
        often = request_of(name, range(8))
        admit(manager, often)
        manager.free(often)
    for name in range(20):
        once = request_of(100 + name, [1000 * name + i for i in range(12)])
        admit(manager, once)
        manager.free(once)
    assert manager.get_computed_blocks(request_of("again", range(9)))[1] == 8
    lru = cached(8)
    for tokens in [range(8)] * 3 + [[1000 * n + i for i in range(12)] for n in range(20)]:
        request = request_of(object(), tokens)
        admit(lru, request)
        lru.free(request)
    assert lru.get_computed_blocks(request_of("again", range(9)))[1] == 0


def test_priority_keeps_what_matters(request_of, admit):
    manager = cached(8, eviction="priority")
    for name, start, priority in (("system prompt", 0, 50), ("chat", 100, 0)):
        request = request_of(name, range(start, start + 8), retention_priority=priority)
        admit(manager, request)
        manager.free(request)
    filler = request_of("filler", 24)
    admit(manager, filler)
    assert manager.get_computed_blocks(request_of("s", range(9)))[1] == 8
    assert manager.get_computed_blocks(request_of("c", range(100, 109)))[1] == 0


def test_a_negative_priority_goes_before_none(request_of, admit):
    manager = cached(6, eviction="priority")
    requests = [request_of(p, range(100 * p, 100 * p + 4), retention_priority=p) for p in (0, -5, 3, -7)]
    for request in requests:
        admit(manager, request)
    blocks = {request.request_id: manager.block_table(request.request_id)[0] for request in requests}
    for request in requests:
        manager.free(request)
    assert list(manager.pool.free_queue)[2:] == [blocks[priority] for priority in (-7, -5, 0, 3)]


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_heap_of_stale_entries_does_not_grow(request_of, admit, eviction):
    manager = cached(16, eviction=eviction)
    for name in range(2000):
        request = request_of(name, range(33))
        admit(manager, request)
        manager.free(request)
    assert len(getattr(manager.pool.free_queue, "_heap", [])) < 2 * 16 + 65


# Copy on write


@pytest.mark.parametrize("sharers", [2, 3, 7])
def test_trap_19_n_sharers_make_n_minus_1_copies(request_of, sharers):
    manager = KVCacheManager(64, 4)
    root = request_of("root", list(range(6)))
    grow(manager, root)
    branches = [root]
    for name in range(sharers - 1):
        child = request_of(name, root.token_ids, num_computed_tokens=6)
        manager.fork(root, child)
        branches.append(child)
    for branch in branches:
        grow(manager, branch, [9])
    pairs = manager.copies()
    assert [source for source, _ in pairs] == [1] * (sharers - 1)
    assert manager.block_table(branches[-1].request_id) == [0, 1]  # the last owner copied nothing
    assert manager.copies() == []
    for branch in branches:
        manager.free(branch)
    assert manager.num_free_blocks == 64


def test_a_full_block_is_shared_for_good(request_of):
    manager = KVCacheManager(64, 4)
    root = request_of("root", list(range(8)))
    grow(manager, root)
    child = request_of("child", root.token_ids, num_computed_tokens=8)
    manager.fork(root, child)
    for branch in (root, child):
        grow(manager, branch, [9])
    assert manager.copies() == [] and manager.pool.references[:2] == [2, 2]


@pytest.mark.parametrize("index", INDEXES)
def test_no_fork_between_allocation_and_computation(request_of, index):
    manager = cached(16, prefix_index=index)
    parent = request_of("parent", range(7))
    grow(manager, parent)
    parent.token_ids.append(7)
    manager.allocate_slots(parent, 1)  # block 1 is full and known, its last token not yet computed
    child = request_of("child", [*range(7), 99], num_computed_tokens=7)
    with pytest.raises(ValueError, match="num_computed_tokens=7"):
        manager.fork(parent, child)
    assert manager.pool.references[:2] == [1, 1]
    parent.num_computed_tokens = child.num_computed_tokens = 8
    child.token_ids[7] = 7
    manager.fork(parent, child)
    assert manager.block_table("child") == manager.block_table("parent")


def test_without_an_index_a_fork_may_come_at_any_time(request_of):
    manager = KVCacheManager(16, 4)
    parent = request_of("parent", list(range(7)))
    grow(manager, parent)
    manager.allocate_slots(parent, 1)
    child = request_of("child", list(range(7)), num_computed_tokens=7)
    manager.fork(parent, child)
    grow(manager, child, [99])
    assert manager.copies() == [(1, 2)]  # the parent keeps the block that it is about to write


def test_no_room_to_copy_is_a_refusal(request_of):
    manager = KVCacheManager(2, 4)
    root = request_of("root", list(range(6)))
    grow(manager, root)
    child = request_of("child", root.token_ids, num_computed_tokens=6)
    manager.fork(root, child)
    assert grow(manager, child, [9]) is None
    assert manager.block_table("child") == [0, 1] and manager.copies() == []


# Sliding window


@pytest.mark.parametrize(("window", "held"), [(4, 2), (5, 2), (8, 3), (9, 3)])
def test_blocks_out_of_sight_are_released(request_of, window, held):
    manager = KVCacheManager(32, 4, sliding_window=window)
    a = request_of("a", [0])
    most = 0
    for _ in range(40):
        first_new = a.num_computed_tokens  # it sees itself and window - 1 before it
        grow(manager, a, [0])
        most = max(most, 31 - manager.num_free_blocks)
        oldest_seen = max(0, first_new - (window - 1)) // 4
        table = manager.block_table("a")
        assert [block == 0 for block in table] == [i < oldest_seen for i in range(len(table))]
    assert most == held
    manager.free(a)
    assert manager.num_free_blocks == 31


def test_a_window_makes_room_for_itself(request_of):
    manager = KVCacheManager(4, 4, sliding_window=4)  # three usable
    a = request_of("a", [0] * 12)
    grow(manager, a)
    assert manager.num_free_blocks == 0
    assert grow(manager, a, [0]) is not None


def test_a_prefix_is_found_where_its_window_is(request_of, admit):
    manager = cached(32, sliding_window=6)
    a = request_of("a", range(24))
    admit(manager, a)
    table = manager.block_table("a")
    found, tokens = manager.get_computed_blocks(request_of("b", [*range(24), 7]))
    assert tokens == 24 and found == (0, 0, 0, 0, *table[4:6])
    b = request_of("b", [*range(24), 7])
    assert manager.allocate_slots(b, 1, found) is not None
    assert manager.block_table("b")[:4] == [0] * 4
    manager.free(a)
    manager.free(b)
    assert manager.num_free_blocks == 31


# Swap


def test_swap_moves_everything_and_comes_back(request_of, admit):
    manager = cached(8, num_host_blocks=4)
    a, b = request_of("a", range(10)), request_of("b", range(50, 70))
    admit(manager, a)
    out = manager.swap_out(a)
    assert [device for device, _ in out] == [0, 1, 2] and len({host for _, host in out}) == 3
    assert manager.num_free_blocks == 8
    admit(manager, b)
    back = manager.swap_in(a)
    assert [host for host, _ in back] == [host for _, host in out]
    assert manager.block_table("a") == [device for _, device in back]
    manager.free(b)
    assert manager.get_computed_blocks(request_of("c", range(10)))[1] == 8  # known again
    assert grow(manager, a, [1, 2, 3]) is not None


def test_swap_refuses_what_does_not_fit(request_of):
    manager = KVCacheManager(4, 4, num_host_blocks=2)
    a, b = request_of("a", 12), request_of("b", 8)
    manager.allocate_slots(a, 12)
    assert manager.swap_out(a) is None and manager.block_table("a") == [0, 1, 2]
    manager.free(a)
    manager.allocate_slots(b, 8)
    manager.swap_out(b)
    manager.allocate_slots(a, 12)
    assert manager.swap_in(b) is None
    with pytest.raises(ValueError, match="swapped out"):
        manager.allocate_slots(b, 8)
    manager.free(b)
    manager.free(a)
    manager.allocate_slots(b, 8)
    assert manager.swap_out(b) is not None  # the host's room came back


# Bad input


def test_bad_sizes_and_names():
    for arguments, words in (
        (dict(num_blocks=0), "num_blocks=0"),
        (dict(num_blocks=4, block_size=0), "block_size=0"),
        (dict(num_blocks=1, sliding_window=4), "num_blocks=1"),
        (dict(num_blocks=4, sliding_window=0), "sliding_window=0"),
        (dict(num_blocks=4, watermark=1.5), "watermark=1.5"),
        (dict(num_blocks=4, num_host_blocks=-1), "num_host_blocks=-1"),
        (dict(num_blocks=4, eviction="mru"), "eviction='mru'"),
        (dict(num_blocks=4, free_queue="stack"), "free_queue='stack'"),
        (dict(num_blocks=4, enable_prefix_caching=True, prefix_index="trie"), "prefix_index='trie'"),
        (
            dict(num_blocks=4, enable_prefix_caching=True, prefix_index="radix", sliding_window=4),
            "prefix_index='radix'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            KVCacheManager(**arguments)
    with pytest.raises(TypeError, match=r"num_blocks=4\.0"):
        KVCacheManager(4.0)


def test_requests_that_contradict_what_is_held(request_of, admit):
    manager = cached(8)
    a, b = request_of("a", range(8)), request_of("b", range(8))
    with pytest.raises(KeyError, match="'a'"):
        manager.free(a)
    with pytest.raises(ValueError, match="num_new_tokens=0"):
        manager.allocate_slots(a, 0)
    with pytest.raises(ValueError, match="num_computed_tokens=4"):
        manager.allocate_slots(request_of("c", range(8), num_computed_tokens=4), 4)
    admit(manager, a)
    with pytest.raises(ValueError, match="'a'"):
        manager.get_computed_blocks(a)
    with pytest.raises(ValueError, match="computed_blocks"):
        manager.allocate_slots(a, 1, (0,))
    with pytest.raises(ValueError, match="just found"):
        manager.allocate_slots(b, 4, (5,))
    with pytest.raises(ValueError, match="num_computed_tokens=0 of the child"):
        manager.fork(a, b)
    with pytest.raises(ValueError, match="cache_salt='x' of the child"):
        manager.fork(a, request_of("d", range(8), num_computed_tokens=8, cache_salt="x"))
    with pytest.raises(ValueError, match="'a'"):
        manager.fork(a, a)
    with pytest.raises(KeyError, match="'b'"):
        manager.fork(b, request_of("e", range(8)))
    with pytest.raises(KeyError, match="'a'"):
        manager.swap_in(a)
    manager.free(a)
    with pytest.raises(KeyError, match="'a'"):
        manager.free(a)


def test_a_double_free_is_refused_and_undone():
    pool = BlockPool(4)
    a, b = pool.take(2)
    pool.share([a])
    pool.release([b])
    with pytest.raises(ValueError, match=f"block {b}"):
        pool.release([a, b])
    assert pool.references[a] == 2 and pool.num_free == 3
    with pytest.raises(ValueError, match="count=4"):
        pool.take(4)
    with pytest.raises(ValueError, match="count=-1"):
        pool.take(-1)
    assert pool.num_free == 3


@pytest.mark.parametrize("wrong", [[0, 1, 0], [0, 0], [2, 1, 3], [2, 2, 0, 2, 1]])
def test_a_block_named_too_often_releases_nothing(wrong):
    pool = BlockPool(4)
    pool.take(3)
    pool.share([2])
    references, order = list(pool.references), list(pool.free_queue)
    with pytest.raises(ValueError, match="freed more often"):
        pool.release(wrong)
    assert pool.references == references and list(pool.free_queue) == order


# The buddy allocator


def test_buddies_never_overlap_and_always_join_again():
    dice = random.Random(1)
    capacity = 1000
    memory = BuddyAllocator(capacity)
    whole = list(memory.holes())
    assert sum(length for _, length in whole) == capacity
    pieces = {}
    for _ in range(5000):
        if dice.random() < 0.55:
            wanted = dice.randint(1, 200)
            address = memory.allocate(wanted)
            fits = [size for _, size in memory.holes() if size >= wanted]
            if address is None:
                assert not fits
                continue
            size = memory.length(address)
            assert size >= wanted and size & (size - 1) == 0 and size < 2 * wanted and address % size == 0
            pieces[address] = size
        elif pieces:
            address = dice.choice(list(pieces))
            del pieces[address]
            memory.free(address)
        everything = sorted([*pieces.items(), *memory.holes()])
        ends = [address + size for address, size in everything]
        assert [address for address, _ in everything] == [0, *ends[:-1]] and ends[-1] == capacity
    for address in pieces:
        memory.free(address)
    assert list(memory.holes()) == whole


def test_the_buddy_allocator_keeps_no_more_than_its_holes():
    memory = BuddyAllocator(1024)
    for _ in range(100):
        memory.free(memory.allocate(8))
    dice = random.Random(2)
    pieces = []
    for _ in range(5000):
        address = memory.allocate(dice.randint(1, 100))
        if address is not None:
            pieces.append(address)
        while pieces and (address is None or dice.random() < 0.5):
            address = memory.free(pieces.pop(dice.randrange(len(pieces)))) or 0
        assert sum(map(len, memory._free.values())) == len(list(memory.holes()))


def test_reservations():
    for name, reserved in (("max", 2048), ("pow2", 100 + 64), ("oracle", 100 + 50)):
        piece = ContiguousManager(4096, name, 2048).admit("a", 100, 50)
        assert piece.reserved == reserved
        assert piece.given == 1 << (reserved - 1).bit_length()


def test_bad_reservations():
    manager = ContiguousManager(1024, "oracle", longest=512)
    with pytest.raises(ValueError, match="prompt=0"):
        manager.admit("a", 0, 5)
    with pytest.raises(ValueError, match="at most 512"):
        manager.admit("a", 500, 13)
    manager.admit("a", 5, 5)
    with pytest.raises(ValueError, match="'a'"):
        manager.admit("a", 5, 5)
    with pytest.raises(KeyError, match="'b'"):
        manager.free("b")
    with pytest.raises(ValueError, match="never fits"):
        ContiguousManager(1000, "max", longest=1000).admit("a", 5, 5)
    with pytest.raises(ValueError, match="reservation='half'"):
        ContiguousManager(1000, "half", longest=1000)
    with pytest.raises(ValueError, match="address=3"):
        manager.memory.free(3)


@pytest.mark.parametrize("prefix_index", INDEXES)
@pytest.mark.parametrize("leave", ["free", "swap_out"])
def test_blocks_that_were_never_filled_are_not_found(prefix_index, leave, request_of):
    """Taken back in the step that was to fill them: what a scheduler with priorities does to a victim."""
    manager = cached(16, prefix_index=prefix_index, num_host_blocks=16)
    victim = request_of("victim", range(12))
    manager.allocate_slots(victim, 4)
    victim.num_computed_tokens = 4
    manager.allocate_slots(victim, 8)  # full and known, and then nobody computes them
    getattr(manager, leave)(victim)
    assert manager.get_computed_blocks(request_of("next", range(12)))[1] == 4
