"""A zero-bubble schedule for given times and a given memory limit, by a heuristic search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import product
from math import inf
from numbers import Real

from gpuedu.checks import check_amount, check_count

from .execution import earliest_times, stage_durations
from .schedule import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    Action,
    Kind,
    Placement,
    Schedule,
)
from .zero_bubble import delayed_weights

Durations = Sequence[Mapping[Kind, Real]]


def zb_auto(
    stages: int,
    microbatches: int,
    memory_limit: float,
    forward: Real | Sequence[Real] = 1,
    backward_input: Real | Sequence[Real] = 1,
    backward_weight: Real | Sequence[Real] = 1,
    transfer: Real = 0,
) -> Schedule:
    """The best split-backward schedule that a heuristic search finds within a memory limit.

    Parameters
    ----------
    stages : int
        Number of ranks p, at least 1.
    microbatches : int
        Number of microbatches m, at least 1.
    memory_limit : float
        Most activations that any rank may hold, in units of one microbatch's activations of a stage;
        at least 1. ``stages`` is 1F1B's memory, ``2 * stages - 1`` that of ZB-H2; infinity is no limit.
    forward, backward_input, backward_weight : float or sequence
        Time of one microbatch on one stage; one number, or one per rank.
    transfer : float
        Time until another rank can use a result.

    Returns
    -------
    Schedule
        One chunk a rank, backwards split into input and weight gradients. Of all candidates the one
        with the smallest makespan; among equals, with the smallest span of a rank.

    Raises
    ------
    ValueError
        If a count or the memory limit is below 1, or a time is not allowed.

    Notes
    -----
    Two kinds of candidates. ZB-H1, ZB-H2, 1F1B with its backward split and orders between them, their
    warm-up cut to the limit. And list schedules played out in time, as in the paper: a rank runs an
    input gradient as soon as it is there, else a forward if memory allows, and puts weight gradients
    into the gaps; they differ in how large a gap must be and in how deep the ranks may warm up. So the
    result is at least as fast as 1F1B and ZB-H1 in the same memory, for any times. It is not proven to
    be optimal; the paper's integer program comes closer on small cases.

    References
    ----------
    Qi et al. 2024, "Zero Bubble Pipeline Parallelism", section 3.1.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.cost import peak_activations, timeline
    >>> schedule = zb_auto(4, 8, memory_limit=4)
    >>> timeline(schedule).makespan, max(peak_activations(schedule))
    (27, 4)
    """
    check_count("stages", stages)
    check_count("microbatches", microbatches)
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, Real):
        raise TypeError(f"memory_limit={memory_limit!r}: must be a number")
    if not memory_limit >= 1:
        raise ValueError(f"memory_limit={memory_limit}: must be at least 1, a rank holds what it works on")
    check_amount("transfer", transfer)
    durations = stage_durations(stages, 1, forward, backward_input, backward_weight)
    bound = _lower_bound(microbatches, durations, transfer)
    best, best_time = None, (inf, inf)
    for schedule in _candidates(stages, microbatches, memory_limit, durations, transfer):
        if (time := _time(schedule, durations, transfer)) < best_time:
            best, best_time = schedule, time
        if best_time <= bound:
            break
    return replace(best, name="zb_auto")


def _candidates(
    stages: int, microbatches: int, memory_limit: float, durations: Durations, transfer: Real
) -> Iterator[Schedule]:
    # Nobody can hold more than all microbatches; then the limit must not cut any warm-up either.
    room = int(memory_limit) if memory_limit < microbatches else 3 * (stages + microbatches)
    for slope in (1, 1.5, 2, 2.5, 3):  # forwards of warm-up per rank before the last; ZB-H1 is 1, ZB-H2 2
        warm_up = [min(room, 1 + int(slope * (stages - 1 - rank))) for rank in range(stages)]
        yield delayed_weights("even memory", microbatches, warm_up, [warm_up[0] - w for w in warm_up])
    warm_up = [min(room, stages - rank) for rank in range(stages)]
    yield delayed_weights("1F1B, backward split", microbatches, warm_up, [0] * stages)
    deep = [microbatches] * stages
    until_first_gradient = [2 * (stages - rank) - 1 for rank in range(stages)]
    for gap, warm_up in product((0, 0.5, 1), (deep, until_first_gradient)):
        yield _list_schedule(microbatches, room, durations, transfer, gap, warm_up)


def _time(schedule: Schedule, durations: Durations, transfer: Real) -> tuple[Real, Real]:
    """Makespan and longest span of a rank."""
    starts, ends = earliest_times(schedule, durations, transfer)
    return max(e[-1] for e in ends), max(e[-1] - s[0] for s, e in zip(starts, ends, strict=True))


def _lower_bound(microbatches: int, durations: Durations, transfer: Real) -> tuple[Real, Real]:
    """No schedule has a smaller makespan or span: every rank has its work to do, and it cannot start
    before the first forward has come down to it."""
    reached, makespan, span = 0, 0, 0
    for time in durations:
        work = microbatches * (time[FORWARD] + time[FULL_BACKWARD])
        makespan, span = max(makespan, reached + work), max(span, work)
        reached += time[FORWARD] + transfer
    return makespan, span


def _list_schedule(
    microbatches: int,
    room: int,
    durations: Durations,
    transfer: Real,
    gap: float,
    warm_up: Sequence[int],
) -> Schedule:
    """What ranks do that decide as time passes: I before F, and W where nothing else can run.

    A rank starts W only if its next I or F is not known to arrive within ``gap`` times W's duration.
    It runs at most ``warm_up`` forwards before its first I and never holds more than ``room``
    microbatches.
    """
    stages = len(durations)
    last = stages - 1
    log: list[list[Action]] = [[] for _ in range(stages)]
    done = [dict.fromkeys((FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT), 0) for _ in range(stages)]
    forward_ends: list[list[Real]] = [[] for _ in range(stages)]
    input_ends: list[list[Real]] = [[] for _ in range(stages)]
    free_at: list[Real] = [0] * stages

    def forward_at(rank: int) -> Real:
        j = done[rank][FORWARD]
        full = j - done[rank][BACKWARD_WEIGHT] >= room
        if full or (done[rank][BACKWARD_INPUT] == 0 and j >= warm_up[rank]):
            return inf
        if rank == 0:
            return 0 if j < microbatches else inf
        return forward_ends[rank - 1][j] + transfer if j < len(forward_ends[rank - 1]) else inf

    def input_at(rank: int) -> Real:
        j = done[rank][BACKWARD_INPUT]
        source, lag = (forward_ends[last], 0) if rank == last else (input_ends[rank + 1], transfer)
        return source[j] + lag if j < len(source) else inf

    events: list[tuple[Real, int]] = [(0, rank) for rank in range(stages)]
    while events:
        now, rank = heappop(events)
        if now < free_at[rank]:
            continue
        time, counts = durations[rank], done[rank]
        gradient, activation = input_at(rank), forward_at(rank)
        arrival = min(gradient, activation)
        owed = counts[BACKWARD_INPUT] - counts[BACKWARD_WEIGHT]
        if gradient <= now:
            kind = BACKWARD_INPUT
        elif activation <= now:
            kind = FORWARD
        elif owed and now + gap * time[BACKWARD_WEIGHT] <= arrival:
            kind = BACKWARD_WEIGHT
        else:
            if arrival < inf:
                heappush(events, (arrival, rank))
            continue
        log[rank].append(Action(rank, kind, counts[kind]))
        counts[kind] += 1
        free_at[rank] = end = now + time[kind]
        heappush(events, (end, rank))
        if kind is FORWARD:
            forward_ends[rank].append(end)
            if rank < last:
                heappush(events, (end + transfer, rank + 1))
        elif kind is BACKWARD_INPUT:
            input_ends[rank].append(end)
            if rank > 0:
                heappush(events, (end + transfer, rank - 1))
    return Schedule("list schedule", stages, microbatches, 1, Placement.LOOP, tuple(map(tuple, log)))
