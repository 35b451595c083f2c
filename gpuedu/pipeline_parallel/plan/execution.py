"""A schedule played out: every rank runs its actions in order, each as early as its inputs allow.

Without real times this answers whether a schedule can run at all, which is what
:func:`gpuedu.pipeline_parallel.plan.validate` asks; with them it is what
:func:`gpuedu.pipeline_parallel.cost.timeline` prices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from numbers import Real

from gpuedu.checks import check_amount

from .schedule import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD, Kind, Schedule

Times = list[list]  # [rank][position in the rank's order]


def earliest_times(
    schedule: Schedule, durations: Sequence[Mapping[Kind, Real]], transfer: Real
) -> tuple[Times, Times]:
    """Start and end of every action, each rank as early as its order and its inputs allow.

    ``durations[rank][kind]`` is the time of one action; what crosses from one rank to another arrives
    ``transfer`` later. A rank whose next action can never start ends early: its lists are shorter
    than its actions.
    """
    links = _links(schedule, transfer)
    neighbors = [_neighbors(schedule, rank) for rank in range(schedule.stages)]
    starts: Times = [[] for _ in links]
    ends: Times = [[] for _ in links]
    queue = deque(range(schedule.stages))
    queued = [True] * schedule.stages
    while queue:
        rank = queue.popleft()
        queued[rank] = False
        before = len(ends[rank])
        _advance(schedule.actions[rank], links[rank], durations[rank], starts[rank], ends[rank])
        if len(ends[rank]) > before:
            for other in neighbors[rank]:
                if not queued[other]:
                    queued[other] = True
                    queue.append(other)
    return starts, ends


def stage_durations(
    stages: int,
    chunks: int,
    forward: Real | Sequence[Real],
    backward_input: Real | Sequence[Real],
    backward_weight: Real | Sequence[Real],
) -> list[dict[Kind, Real]]:
    """Per rank, the time of one action of each kind on one chunk, from those of whole stages."""
    f = _per_rank("forward", forward, stages)
    i = _per_rank("backward_input", backward_input, stages)
    w = _per_rank("backward_weight", backward_weight, stages)
    if min(f) == 0:
        raise ValueError("forward=0: must be above 0")
    return [
        {
            FORWARD: share(f[rank], chunks),
            BACKWARD_INPUT: share(i[rank], chunks),
            BACKWARD_WEIGHT: share(w[rank], chunks),
            FULL_BACKWARD: share(i[rank] + w[rank], chunks),
        }
        for rank in range(stages)
    ]


def share(whole: Real, parts: int) -> Real:
    """``whole / parts``, still an int where that is exact."""
    return whole // parts if isinstance(whole, int) and whole % parts == 0 else whole / parts


def _per_rank(name: str, value: Real | Sequence[Real], stages: int) -> list[Real]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != stages:
            raise ValueError(f"{name} has {len(value)} times: must be one number or {stages}, one per rank")
        times = list(value)
    else:
        times = [value] * stages
    for time in times:
        check_amount(name, time)
    return times


def _advance(actions, links, durations, starts, ends) -> None:
    """Run one rank's ``actions`` on from where it stands until the next input is missing."""
    clock = ends[-1] if ends else 0
    for position in range(len(ends), len(actions)):
        _, kind, microbatch, chunk = actions[position]
        forward_in, forward_lag, forward_out, backward_in, backward_lag, backward_out = links[chunk]
        if kind is FORWARD:
            arrived, lag, out = forward_in[microbatch], forward_lag, forward_out
        elif kind is BACKWARD_WEIGHT:
            arrived, lag, out = backward_out[microbatch], 0, None
        else:  # what comes back has been forward here before
            arrived, lag, out = backward_in[microbatch], backward_lag, backward_out
        if arrived is None:
            return
        if arrived + lag > clock:
            clock = arrived + lag
        starts.append(clock)
        clock = clock + durations[kind]
        ends.append(clock)
        if out is not None:
            out[microbatch] = clock


def _links(schedule: Schedule, transfer: Real) -> list[list[tuple]]:
    """Per rank and chunk: where its inputs appear, how much later, and where its outputs go.

    Each place is a list over microbatches that holds the time of arrival, None until then.
    """
    m, last = schedule.microbatches, schedule.depth - 1
    forward = [[None] * m for _ in range(schedule.depth)]
    backward = [[None] * m for _ in range(schedule.depth)]
    at_hand = [0] * m

    def of(rank: int, chunk: int) -> tuple:
        part = schedule.part(rank, chunk)

        def lag(other: int) -> Real:
            return 0 if schedule.home(other)[0] == rank else transfer

        return (
            forward[part - 1] if part > 0 else at_hand,
            lag(part - 1) if part > 0 else 0,
            forward[part],
            backward[part + 1] if part < last else forward[part],
            lag(part + 1) if part < last else 0,
            backward[part],
        )

    return [[of(rank, chunk) for chunk in range(schedule.chunks)] for rank in range(schedule.stages)]


def _neighbors(schedule: Schedule, rank: int) -> set[int]:
    """The ranks that wait for what ``rank`` computes."""
    parts = [schedule.part(rank, chunk) for chunk in range(schedule.chunks)]
    near = {part + step for part in parts for step in (-1, 1)} & set(range(schedule.depth))
    return {schedule.home(part)[0] for part in near} - {rank}
