"""Every plan does what its collective promises, and the validator knows when one does not."""

import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, log2

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpuedu.all_reduce.plan import (
    ALL_REDUCES,
    Collective,
    Plan,
    Transfer,
    all_gather,
    all_to_all,
    broadcast,
    contributions,
    double_binary_tree,
    double_tree_links,
    hierarchical,
    parameter_server,
    recursive_doubling,
    recursive_halving_doubling,
    reduce,
    reduce_scatter,
    ring,
    tree,
    validate,
)

WORLD_SIZES = [*range(1, 34), 100, 101]


def all_plans(n):
    """Every plan over n ranks."""
    made = [make(n) for make in (*ALL_REDUCES.values(), reduce_scatter, all_gather)]
    made += [make(n, root) for make in (reduce, broadcast) for root in {0, n // 2, n - 1}]
    made += [hierarchical(n // g, g) for g in range(1, n + 1) if n % g == 0]
    return made + ([all_to_all(n)] if n <= 33 else [])


def run(plan, arrays):
    """The plan on lists of numbers: an executor that knows nothing of the validator's."""
    arrays = [list(array) for array in arrays]
    at = plan.bounds(len(arrays[0]))
    for transfers in plan.rounds:
        sent = [(t, arrays[t.src][at[t.start] : at[t.stop]]) for t in transfers]
        for t, data in sent:
            here = slice(at[t.start], at[t.stop])
            old = arrays[t.dst][here]
            arrays[t.dst][here] = [a + b for a, b in zip(old, data, strict=True)] if t.reduce else data
    return arrays


@pytest.mark.parametrize("n", WORLD_SIZES)
def test_every_plan_is_valid(n):
    for plan in all_plans(n):
        validate(plan)


@pytest.mark.parametrize("length", [0, 1, 5, 37])
@pytest.mark.parametrize("n", [*range(1, 14), 16, 17])
def test_every_plan_computes_its_collective(n, length):
    rng = random.Random(length)
    full = [[rng.randrange(10**6) for _ in range(length)] for _ in range(n)]
    total = [sum(column) for column in zip(*full, strict=True)]
    for plan in all_plans(n):
        at = plan.bounds(length)
        chunks = [slice(*pair) for pair in pairwise(at)]
        start = full
        if plan.collective in (Collective.ALL_GATHER, Collective.ALL_TO_ALL):
            of = (lambda c: c) if plan.collective is Collective.ALL_GATHER else (lambda c: c // n)
            start = [[None] * length for _ in range(n)]
            for c, chunk in enumerate(chunks):
                start[of(c)][chunk] = full[of(c)][chunk]
        end = run(plan, start)
        match plan.collective:
            case Collective.ALL_REDUCE:
                assert end == [total] * n, plan.name
            case Collective.REDUCE:
                assert end[plan.root] == total
            case Collective.BROADCAST:
                assert end == [full[plan.root]] * n
            case Collective.REDUCE_SCATTER:
                assert [end[r][chunks[r]] for r in range(n)] == [total[chunks[r]] for r in range(n)]
            case Collective.ALL_GATHER:
                gathered = [value for r in range(n) for value in full[r][chunks[r]]]
                assert end == [gathered] * n
            case Collective.ALL_TO_ALL:
                for src in range(n):
                    for dst in range(n):
                        assert end[dst][chunks[src * n + dst]] == full[src][chunks[src * n + dst]]


@pytest.mark.parametrize("n", WORLD_SIZES)
def test_rounds_are_as_many_as_the_papers_say(n):
    def rounds(plan):
        return len(plan.rounds)

    folds = 2 * (n != 1 << floor(log2(n)))
    assert rounds(ring(n)) == 2 * (n - 1)
    assert rounds(reduce_scatter(n)) == rounds(all_gather(n)) == n - 1
    assert rounds(tree(n)) == 2 * ceil(log2(n))
    assert rounds(reduce(n)) == rounds(broadcast(n, n - 1)) == ceil(log2(n))
    assert rounds(recursive_doubling(n)) == floor(log2(n)) + folds
    assert rounds(recursive_halving_doubling(n)) == 2 * floor(log2(n)) + folds
    assert rounds(parameter_server(n)) == 2 * (n - 1)


@pytest.mark.parametrize("n", WORLD_SIZES)
def test_no_plan_of_this_package_needs_a_port_twice_in_a_round(n):
    for plan in all_plans(n):
        for transfers in plan.rounds:
            assert len({t.src for t in transfers}) == len({t.dst for t in transfers}) == len(transfers)


def test_first_names_are_the_functions_names():
    for name, make in ALL_REDUCES.items():
        assert make(3).name == name
        assert make(3).collective is Collective.ALL_REDUCE


# Bytes --------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(0, 500), st.sampled_from([1, 2, 4]), st.data())
def test_bytes_are_conserved_and_never_below_the_least(n, length, itemsize, data):
    plan = data.draw(st.sampled_from(all_plans(n)))
    nbytes = length * itemsize
    sent = [plan.bytes_sent(r, nbytes, itemsize) for r in range(n)]
    received = [plan.bytes_received(r, nbytes, itemsize) for r in range(n)]
    links = plan.link_bytes(nbytes, itemsize)
    assert sum(sent) == sum(received) == sum(links.values())
    for r in range(n):
        assert sent[r] == sum(size for (src, _), size in links.items() if src == r)
        assert received[r] == sum(size for (_, dst), size in links.items() if dst == r)
    if plan.collective is Collective.ALL_REDUCE:  # Patarasuk and Yuan 2009
        assert sum(sent) >= 2 * (n - 1) * nbytes


@pytest.mark.parametrize("n", range(1, 18))
def test_a_rank_of_a_ring_sends_no_more_than_it_must(n):
    for rank in range(n):
        assert Fraction(ring(n).bytes_sent(rank, 840 * n), 840 * n) == Fraction(2 * (n - 1), n)
        assert Fraction(reduce_scatter(n).bytes_sent(rank, 840 * n), 840 * n) == Fraction(n - 1, n)
    if n & (n - 1) == 0:
        plan = recursive_halving_doubling(n)
        assert {plan.bytes_sent(r, 840 * n) for r in range(n)} == {2 * (n - 1) * 840}


@pytest.mark.parametrize("n", range(1, 5))
def test_no_all_reduce_of_an_element_takes_fewer_messages(n):
    """By trying all: whoever gets a message knows what its sender knew, which is kinder than a sum."""
    start, everything = tuple(1 << rank for rank in range(n)), ((1 << n) - 1,) * n
    known, messages = {start}, 0
    while everything not in known:
        known = {
            (*state[:dst], state[dst] | state[src], *state[dst + 1 :])
            for state in known
            for src in range(n)
            for dst in range(n)
        }
        messages += 1
    assert messages == 2 * (n - 1)


def test_across_nodes_a_hierarchical_rank_sends_its_part_alone():
    nodes, gpus, size = 4, 8, 32_000
    links = hierarchical(nodes, gpus).link_bytes(size)
    between = {pair: sent for pair, sent in links.items() if pair[0] // gpus != pair[1] // gpus}
    assert set(between.values()) == {size // gpus * 2 * (nodes - 1) // nodes}
    assert len(between) == nodes * gpus  # all GPUs talk to other nodes at the same time
    flat = ring(nodes * gpus).link_bytes(size)
    crossing = {pair: sent for pair, sent in flat.items() if pair[0] // gpus != pair[1] // gpus}
    assert len(crossing) == nodes and set(crossing.values()) == {size * 2 * 31 // 32}


def test_halving_doubling_sends_its_small_chunks_far():
    plan, size = recursive_halving_doubling(32), 32_000
    links = plan.link_bytes(size)
    far = sum(sent for (src, dst), sent in links.items() if src == 0 and dst >= 8)
    assert far == hierarchical(4, 8).link_bytes(size)[0, 8]


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_bounds_cut_evenly_and_lose_nothing(n, length):
    at = ring(n).bounds(length)
    sizes = [b - a for a, b in pairwise(at)]
    assert at[0] == 0 and at[-1] == length
    assert max(sizes) - min(sizes) <= 1


# The double binary tree -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(2, 34), 100, 101])
def test_a_leaf_of_one_tree_is_an_inner_node_of_the_other(n):
    trees = double_tree_links(n)
    inner = [{parent for parent in parents if parent is not None} for parents in trees]
    same = [rank for rank in range(n) if (rank in inner[0]) == (rank in inner[1])]
    assert len(same) == n % 2  # exactly one rank where n is odd
    for parents in trees:
        assert parents.count(None) == 1
        assert max(parents.count(rank) for rank in range(n)) <= 2
        assert max(map(len, (ancestors(parents, rank) for rank in range(n)))) <= ceil(log2(n))


def ancestors(parents, rank):
    found = []
    while (rank := parents[rank]) is not None:
        found.append(rank)
    return found


def test_trees_are_those_drawn_in_nccl():
    """The illustrations in NCCL's trees.cc: 14 ranks; 12 and mirrored; 13 and shifted."""
    first = {1: 2, 2: 4, 3: 2, 4: 8, 5: 6, 6: 4, 7: 6, 8: 0, 9: 10, 10: 12, 11: 10, 12: 8, 13: 12}
    assert dict(enumerate(double_tree_links(14)[0])) == {0: None} | first
    mirror = {3: 11, 11: None, 7: 3, 1: 3, 5: 7, 9: 7, 0: 1, 2: 1, 4: 5, 6: 5, 8: 9, 10: 9}
    assert dict(enumerate(double_tree_links(12)[1])) == mirror
    shifted = {1: None, 9: 1, 5: 9, 0: 9, 3: 5, 7: 5, 11: 0, 2: 3, 4: 3, 6: 7, 8: 7, 10: 11, 12: 11}
    assert dict(enumerate(double_tree_links(13)[1])) == shifted


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 33, 100])
def test_each_half_goes_through_its_own_tree(n):
    plan = double_binary_tree(n)
    for chunk, parents in enumerate(double_tree_links(n)):
        edges = {(rank, parent) for rank, parent in enumerate(parents) if parent is not None}
        mine = [t for t in plan.transfers if t.start == chunk]
        assert {(t.src, t.dst) for t in mine if t.reduce} == edges
        assert {(t.dst, t.src) for t in mine if not t.reduce} == edges
        assert len(mine) == 2 * len(edges)


# The validator ----------------------------------------------------------------------------------


def honest(plan, length=24):
    """Whether the plan computes its all-reduce on random numbers, whatever the order within a round."""
    rng = random.Random(1)
    arrays = [[rng.randrange(1, 10**12) for _ in range(length)] for _ in range(plan.world_size)]
    total = [sum(column) for column in zip(*arrays, strict=True)]
    return run(plan, arrays) == [total] * plan.world_size


@given(st.sampled_from(sorted(ALL_REDUCES)), st.integers(2, 9), st.data())
def test_a_mutated_plan_is_caught(name, n, data):
    plan = ALL_REDUCES[name](n)
    number = data.draw(st.integers(0, len(plan.rounds) - 1), label="round")
    transfers = list(plan.rounds[number])
    i = data.draw(st.integers(0, len(transfers) - 1), label="transfer")
    t = transfers[i]
    rank, chunk = st.integers(0, n - 1), st.integers(0, plan.chunks - 1)
    match data.draw(st.sampled_from(["drop", "twice", "flip", "src", "dst", "chunk", "early"])):
        case "drop":
            del transfers[i]
        case "twice":
            transfers.insert(i, t)
        case "flip":
            transfers[i] = replace(t, reduce=not t.reduce)
        case "src":
            transfers[i] = replace(t, src=data.draw(rank))
        case "dst":
            transfers[i] = replace(t, dst=data.draw(rank))
        case "chunk":
            start = data.draw(chunk)
            transfers[i] = replace(t, start=start, stop=start + 1)
        case "early":
            number, transfers = 0, [*plan.rounds[0], t]
    assume(tuple(transfers) != plan.rounds[number])
    mutant = replace(plan, rounds=(*plan.rounds[:number], tuple(transfers), *plan.rounds[number + 1 :]))
    try:
        validate(mutant)
    except ValueError as error:
        assert str(error).startswith(f"{name}: ")
    else:  # the change did no harm, as a partner that has the same sum
        assert honest(mutant)


def by_hand(*rounds, world_size=3, chunks=1, collective=Collective.ALL_REDUCE, root=0):
    return Plan("mine", collective, world_size, chunks, rounds, root)


def add(src, dst, start=0, stop=1):
    return Transfer(src, dst, start, stop, True)


def copy(src, dst, start=0, stop=1):
    return Transfer(src, dst, start, stop, False)


@pytest.mark.parametrize(
    "plan, message",
    [
        (by_hand((add(1, 0),), (add(1, 0),)),
         "round 1: rank 1 to rank 0 adds the contribution of rank 1 to chunk 0 a second time"),
        (by_hand((add(1, 0),), (add(0, 1),)),
         "round 1: rank 0 to rank 1 adds the contribution of rank 1 to chunk 0 a second time"),
        (by_hand((add(1, 0),), (copy(2, 0),)),
         "round 1: rank 2 to rank 0 copies over chunk 0, where the contribution of ranks 0, 1 is lost"),
        (by_hand((copy(1, 0),)), "copies over chunk 0, where the contribution of rank 0 is lost"),
        (by_hand((add(1, 0), add(2, 0))),
         "round 0: rank 2 to rank 0 writes to chunk 0, as another transfer of this round does"),
        (by_hand((add(1, 0),), (add(2, 0),)),
         "at the end chunk 0 on rank 1 lacks the contribution of ranks 0, 2"),
        (by_hand((add(1, 0),), collective=Collective.REDUCE),
         "at the end chunk 0 on rank 0 lacks the contribution of rank 2"),
        (by_hand((copy(1, 2),), collective=Collective.BROADCAST),
         "rank 1 to rank 2 sends chunk 0, which it does not have"),
        (by_hand((add(0, 1),), collective=Collective.BROADCAST),
         "adds to chunk 0, which rank 1 does not have"),
        (by_hand(collective=Collective.ALL_GATHER), "chunks=1: all_gather over 3 ranks has 3"),
        (by_hand(chunks=3, collective=Collective.ALL_TO_ALL), "chunks=3: all_to_all over 3 ranks has 9"),
        (by_hand((add(3, 0),)), "src and dst must be from 0 to 2"),
        (by_hand((add(-1, 0),)), "src and dst must be from 0 to 2"),
        (by_hand((add(1, 1),)), "src and dst must be two different ranks"),
        (by_hand((add(1, 0, 0, 2),)), "must have 0 <= start < stop <= 1"),
        (by_hand((add(1, 0, 0, 0),)), "must have 0 <= start < stop <= 1"),
        (by_hand((Transfer(1, 0, 0, 1, 1),)), "must be a Transfer whose reduce is True or False"),
        (by_hand(((1, 0, 0, 1, True),)), "must be a Transfer"),
    ],
)  # fmt: skip
def test_the_validator_says_what_is_wrong(plan, message):
    with pytest.raises(ValueError) as error:
        validate(plan)
    assert str(error.value).startswith("mine: ")
    assert message in str(error.value)


def test_rounds_read_what_was_held_before_them():
    swap = by_hand((add(0, 1), add(1, 0)), world_size=2)  # sends are no later than receives
    validate(swap)
    assert honest(swap)


def test_contributions_are_those_of_the_rounds():
    *_, end = contributions(ring(5))
    assert end == ((0b11111,) * 5,) * 5
    counts = [[chunk.bit_count() for chunk in rank] for rank in list(contributions(ring(4)))[1]]
    assert counts == [[1, 1, 2, 1], [1, 1, 1, 2], [2, 1, 1, 1], [1, 2, 1, 1]]


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [*ALL_REDUCES.values(), reduce_scatter, all_gather, reduce, broadcast, all_to_all, double_tree_links],
)
def test_world_sizes_are_checked(make):
    with pytest.raises(ValueError, match="world_size=0: must be at least 1"):
        make(0)
    with pytest.raises(TypeError, match=r"world_size=2\.0: must be an int"):
        make(2.0)
    with pytest.raises(TypeError, match="world_size=True: must be an int"):
        make(True)


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="root=3: must be from 0 to 2"):
        broadcast(3, 3)
    with pytest.raises(ValueError, match="root=-1: must be at least 0"):
        reduce(3, -1)
    with pytest.raises(ValueError, match="nodes=0: must be at least 1"):
        hierarchical(0, 8)
    with pytest.raises(TypeError, match="gpus_per_node='8': must be an int"):
        hierarchical(2, "8")
    with pytest.raises(ValueError, match="rank=4: must be from 0 to 3"):
        ring(4).bytes_sent(4, 100)
    with pytest.raises(ValueError, match="nbytes=10: must be a multiple of itemsize=4"):
        ring(4).bytes_received(0, 10, itemsize=4)
    with pytest.raises(ValueError, match="length=-1: must be at least 0"):
        ring(4).bounds(-1)
    with pytest.raises(TypeError, match=r"nbytes=1\.5: must be an int"):
        ring(4).link_bytes(1.5)
    with pytest.raises(TypeError, match="collective='all_reduce': must be a Collective"):
        Plan("mine", "all_reduce", 2, 1, ())
