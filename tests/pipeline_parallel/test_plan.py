"""Every schedule is a whole training step that can run, and the validator knows when one is not."""

import graphlib
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.pipeline_parallel.cost import peak_activations, timeline
from gpuedu.pipeline_parallel.plan import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    SCHEDULES,
    Action,
    Placement,
    Schedule,
    dualpipe_v,
    from_text,
    gpipe,
    interleaved_1f1b,
    naive,
    one_f_one_b,
    validate,
    zb_auto,
    zb_h1,
    zb_h2,
    zb_v,
)

SIZES = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 5, 8, 16, 17)]

SHAPES = [(1, Placement.LOOP), (2, Placement.LOOP), (3, Placement.LOOP), (2, Placement.V)]


def all_schedules(p, m):
    """Every schedule that p and m allow."""
    made = [f(p, m) for f in (naive, gpipe, one_f_one_b, zb_h1, zb_h2, zb_v)]
    made += [interleaved_1f1b(p, m, v) for v in (1, 2, 3) if m % p == 0]
    made += [dualpipe_v(p, m)] if m >= 2 * p else []
    return made + [zb_auto(p, m, memory_limit) for memory_limit in (1, p, 2 * p)]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_every_schedule_is_complete_and_runs(p, m, inputs_of):
    for schedule in all_schedules(p, m):
        validate(schedule)
        assert not has_cycle(schedule, inputs_of)
        for rank, actions in enumerate(schedule.actions):
            for chunk in range(schedule.chunks):
                forwards = [a.microbatch for a in actions if a.kind is FORWARD and a.chunk == chunk]
                assert forwards == list(range(m)), f"{schedule.name}, rank {rank}"


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_only_zero_bubble_schedules_split_the_backward(p, m):
    for schedule in all_schedules(p, m):
        kinds = {action.kind for actions in schedule.actions for action in actions}
        if schedule.name in ("naive", "gpipe", "one_f_one_b", "interleaved_1f1b"):
            assert kinds == {FORWARD, FULL_BACKWARD}
        elif schedule.name == "dualpipe_v":
            assert kinds == {FORWARD, FULL_BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT}
        else:
            assert kinds == {FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT}


def test_naive_keeps_one_microbatch_in_flight():
    spans = sorted(timeline(naive(4, 3)).spans, key=lambda span: span.start)
    assert [span.action.microbatch for span in spans] == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("p", [1, 2, 5])
def test_home_is_the_inverse_of_part(placement, p):
    schedule = Schedule("any", p, 1, 2, placement, ((),) * p)
    homes = [schedule.home(part) for part in range(schedule.depth)]
    assert sorted(homes) == [(rank, chunk) for rank in range(p) for chunk in range(2)]
    assert [schedule.part(*home) for home in homes] == list(range(schedule.depth))


def test_a_v_brings_the_model_back_to_its_first_rank():
    schedule = zb_v(4, 8)
    assert [schedule.home(part)[0] for part in range(8)] == [0, 1, 2, 3, 3, 2, 1, 0]


def test_names_are_the_functions_names():
    for name, make in SCHEDULES.items():
        chunks = (2,) if name == "interleaved_1f1b" else ()
        assert make(2, 4, *chunks).name == name
    assert zb_auto(2, 4, 2).name == "zb_auto"


# The validator ------------------------------------------------------------------------------------


def has_cycle(schedule, inputs_of):
    """Whether data flow and the ranks' orders contradict each other."""
    graph = inputs_of(schedule)
    for actions in schedule.actions:
        for before, action in pairwise(actions):
            graph[action].add(before)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        return True
    return False


def with_swaps(schedule, seed, swaps):
    """``schedule`` with two actions of a rank exchanged, ``swaps`` times."""
    dice = random.Random(seed)
    ranks = [list(actions) for actions in schedule.actions]
    for _ in range(swaps):
        actions = dice.choice(ranks)
        i, k = dice.randrange(len(actions)), dice.randrange(len(actions))
        actions[i], actions[k] = actions[k], actions[i]
    return replace(schedule, actions=tuple(map(tuple, ranks)))


@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.sampled_from(SHAPES), st.integers(0, 2)
)
def test_validate_accepts_exactly_the_orders_without_a_cycle(
    inputs_of, random_order, seed, p, m, shape, swaps
):
    schedule = with_swaps(random_order(seed, p, m, *shape), seed, swaps)
    if has_cycle(schedule, inputs_of):
        with pytest.raises(ValueError, match="before"):
            validate(schedule)
        with pytest.raises(ValueError, match="before"):
            timeline(schedule)
    else:
        validate(schedule)


F, B, I, W = FORWARD, FULL_BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT  # noqa: E741
GOOD = [(F, 0), (F, 1), (B, 0), (B, 1)]


def by_hand(*ranks, microbatches=2, chunks=1, placement=Placement.LOOP):
    actions = tuple(tuple(Action(rank, *a) for a in listed) for rank, listed in enumerate(ranks))
    return Schedule("mine", len(ranks), microbatches, chunks, placement, actions)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (by_hand(GOOD, [(F, 0), (F, 1), (B, 1)]), "rank 1 never runs the backward of microbatch 0"),
        (by_hand(GOOD, [(F, 0), (B, 0), (B, 1)]), "rank 1 never runs the forward of microbatch 1"),
        (by_hand(GOOD, [*GOOD, (F, 0)]), "rank 1 runs the forward of microbatch 0 2 times"),
        (by_hand([*GOOD[:3], (I, 1)]), "rank 0 never runs the weight gradient of microbatch 1"),
        (by_hand([*GOOD[:3], (W, 1)]), "rank 0 never runs the input gradient of microbatch 1"),
        (
            by_hand([*GOOD, (W, 1)]),
            "rank 0 runs the full backward of microbatch 1 and a part of it once more",
        ),
        (
            by_hand([*GOOD[:3], (I, 0), (W, 0)]),
            "rank 0 runs the full backward of microbatch 0 and a part of it once more",
        ),
        (by_hand([*GOOD[:3], (B, 2)]), "there are only microbatches 0 to 1 and chunks 0 to 0"),
        (by_hand([*GOOD[:3], (B, -1)]), "there are only microbatches 0 to 1"),
        (by_hand([*GOOD[:3], (B, 0.5)]), "there are only microbatches 0 to 1"),
        (by_hand([*GOOD[:3], (B, 1, 1)]), "there are only microbatches 0 to 1 and chunks 0 to 0"),
        (by_hand([*GOOD[:3], ("B", 1)]), "its kind must be one of FORWARD, BACKWARD_INPUT"),
        (
            Schedule("mine", 1, 1, 1, Placement.LOOP, ((Action(0, F, 0), Action(1, B, 0)),)),
            "rank 0 lists an action of rank 1: the full backward of microbatch 0",
        ),
        (
            by_hand([(B, 0), (F, 0)], microbatches=1),
            "rank 0 runs the full backward of microbatch 0 before its forward",
        ),
        (
            by_hand([(F, 0), (W, 0), (I, 0)], microbatches=1),
            "rank 0 runs the weight gradient of microbatch 0 before its input gradient",
        ),
        (
            by_hand([(F, 0, 1), (F, 0, 0), (B, 0, 1), (B, 0, 0)], microbatches=1, chunks=2),
            "rank 0 runs the forward of microbatch 0, chunk 1 before the forward of microbatch 0, chunk 0",
        ),
        (
            by_hand([(F, 0), (B, 0), (F, 1), (B, 1)], [(F, 1), (B, 1), (F, 0), (B, 0)]),
            "deadlock: rank 0 cannot run the full backward of microbatch 0 before rank 1 has run the full "
            "backward of microbatch 0; rank 1 cannot run the forward of microbatch 1 before rank 0 has run "
            "the forward of microbatch 1",
        ),
        (by_hand(GOOD, chunks=3, placement=Placement.V), "V placement needs chunks=2, not 3"),
        (Schedule("mine", 2, 1, 1, Placement.LOOP, ()), "actions for 0 ranks, but stages=2"),
        (Schedule("mine", 1, 0, 1, Placement.LOOP, ((),)), "microbatches=0: must be at least 1"),
    ],
)
def test_the_validator_says_what_is_wrong(schedule, message):
    with pytest.raises(ValueError) as error:
        validate(schedule)
    assert message in str(error.value)
    with pytest.raises(ValueError) as error:
        timeline(schedule)
    assert message in str(error.value)


# The search ---------------------------------------------------------------------------------------

times = st.integers(1, 8)


@given(st.integers(1, 6), st.integers(1, 14), st.floats(1, 16), times, times, times, st.integers(0, 4))
def test_zb_auto_keeps_to_its_memory_limit(p, m, limit, forward, backward_input, backward_weight, transfer):
    schedule = zb_auto(p, m, limit, forward, backward_input, backward_weight, transfer)
    validate(schedule)
    assert max(peak_activations(schedule)) <= limit


@given(st.integers(1, 6), st.integers(1, 14), times, times, times, st.integers(0, 4))
def test_zb_auto_is_no_slower_than_fixed_orders_in_the_same_memory(p, m, forward, i, w, transfer):
    price = {"forward": forward, "backward_input": i, "backward_weight": w, "transfer": transfer}
    for rival in (one_f_one_b(p, m), zb_h1(p, m), zb_h2(p, m)):
        found = zb_auto(p, m, max(peak_activations(rival)), **price)
        assert timeline(found, **price).makespan <= timeline(rival, **price).makespan


@given(st.lists(times, min_size=3, max_size=3), st.lists(times, min_size=3, max_size=3), st.integers(0, 3))
def test_zb_auto_takes_one_time_per_rank(forward, backward, transfer):
    price = dict(forward=forward, backward_input=backward, backward_weight=forward, transfer=transfer)
    found = zb_auto(3, 7, 3, **price)
    assert timeline(found, **price).makespan <= timeline(zb_h1(3, 7), **price).makespan


@pytest.mark.parametrize(("p", "m"), [(2, 6), (4, 8), (4, 16), (8, 32)])
def test_zb_auto_reaches_what_is_possible_at_equal_times(p, m):
    # With p microbatches of memory rank 0 must wait from its p-th forward to its first gradient; with
    # 2p - 1 no rank ever waits within its span. The last rank cannot begin before p - 1.
    tight, roomy = timeline(zb_auto(p, m, p)), timeline(zb_auto(p, m, 2 * p))
    assert tight.makespan == roomy.makespan == 3 * m + p - 1
    assert tight.span_bubble_time == p - 1
    assert roomy.span_bubble_time == 0


@pytest.mark.parametrize("memory_limit", [1, 2, 3, 4, 6, 8, math.inf])
@pytest.mark.parametrize("price", [(1, 1, 1, 0), (2, 3, 1, 0), (2, 3, 1, 1), (3, 2, 4, 1)])
def test_zb_auto_stays_near_the_memory_bound(price, memory_limit):
    p, m = 4, 12
    f, i, w, c = price
    held = min(m, memory_limit)
    # A forward on rank 0 waits for the weight gradient of the microbatch `held` before it, and between
    # the two lies the way down and up.
    rounds = math.ceil(m / held)
    bound = max(m * (f + i + w) + (p - 1) * (f + c), rounds * (p * (f + i) + 2 * (p - 1) * c + w))
    found = timeline(
        zb_auto(p, m, memory_limit, *price), forward=f, backward_input=i, backward_weight=w, transfer=c
    )
    assert bound <= found.makespan <= 1.25 * bound


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [naive, gpipe, one_f_one_b, zb_h1, zb_h2, zb_v, dualpipe_v])
def test_counts_are_checked(make):
    with pytest.raises(ValueError, match="stages=0: must be at least 1"):
        make(0, 4)
    with pytest.raises(ValueError, match="microbatches=0: must be at least"):
        make(2, 0)
    with pytest.raises(TypeError, match=r"stages=2\.0: must be an int"):
        make(2.0, 4)
    with pytest.raises(TypeError, match="microbatches=True: must be an int"):
        make(1, True)


def test_what_a_definition_does_not_allow_is_an_error():
    with pytest.raises(ValueError, match=r"microbatches=6.*must be a multiple of 4"):
        interleaved_1f1b(4, 6, 2)
    with pytest.raises(ValueError, match="chunks=0: must be at least 1"):
        interleaved_1f1b(4, 8, 0)
    with pytest.raises(ValueError, match="microbatches=7: must be at least 8"):
        dualpipe_v(4, 7)
    with pytest.raises(ValueError, match=r"memory_limit=0\.5: must be at least 1"):
        zb_auto(4, 8, 0.5)
    with pytest.raises(ValueError, match="memory_limit=nan: must be at least 1"):
        zb_auto(4, 8, math.nan)
    with pytest.raises(TypeError, match="memory_limit='4': must be a number"):
        zb_auto(4, 8, "4")
    with pytest.raises(ValueError, match="transfer=-1: must be finite and not negative"):
        zb_auto(4, 8, 4, transfer=-1)
    with pytest.raises(ValueError, match="forward has 3 times: must be one number or 4"):
        zb_auto(4, 8, 4, forward=(1, 2, 3))


# Schedules written by hand


@pytest.mark.parametrize("schedule", [gpipe(3, 4), one_f_one_b(4, 6), zb_h1(3, 5), interleaved_1f1b(2, 4, 3)])
def test_from_text_reads_what_is_written(schedule):
    lines = [" ".join(f"{a.kind.value}{a.microbatch}.{a.chunk}" for a in rank) for rank in schedule.actions]
    assert from_text(lines).actions == schedule.actions


@pytest.mark.parametrize(
    "ranks, error, message",
    [
        (["F0 G1"], ValueError, "'G1' on rank 0: must be F, B, I or W"),
        (["F0", "F"], ValueError, "'F' on rank 1"),
        ([""], ValueError, "at least one pass"),
        ("F0 B0", TypeError, "a list of lines"),
        ([1, 2], TypeError, "a list of lines"),
    ],
)
def test_from_text_says_what_it_cannot_read(ranks, error, message):
    with pytest.raises(error, match=message):
        from_text(ranks)
