"""The proof that a schedule can run and does the whole training step."""

from __future__ import annotations

from collections import Counter
from itertools import product

from gpuedu.checks import check_count

from .execution import earliest_times
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

_NOUN = {
    FORWARD: "the forward",
    BACKWARD_INPUT: "the input gradient",
    BACKWARD_WEIGHT: "the weight gradient",
    FULL_BACKWARD: "the full backward",
}


def validate(schedule: Schedule) -> None:
    """Prove that ``schedule`` does a whole training step and can run to its end.

    Every microbatch must pass every chunk of every rank exactly once forward and exactly once
    backward (either one full backward, or an input and a weight gradient), each on its own rank; and
    no rank may wait for something that never comes.

    Parameters
    ----------
    schedule : Schedule
        Any schedule, for example one written by hand.

    Raises
    ------
    ValueError
        If it cannot run; the message says what is wrong and where.

    Notes
    -----
    F of part k needs F of part k - 1. I (or B) of part k needs F of part k and I (or B) of part
    k + 1. W of part k needs I of part k, and nothing needs W. Together with each rank's own order
    these edges must have no cycle, which is what running the schedule once shows.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import FORWARD, FULL_BACKWARD, Action, Placement, Schedule
    >>> backward_first = ((Action(0, FULL_BACKWARD, 0), Action(0, FORWARD, 0)),)
    >>> validate(Schedule("mine", 1, 1, 1, Placement.LOOP, backward_first))
    Traceback (most recent call last):
        ...
    ValueError: mine: rank 0 runs the full backward of microbatch 0 before its forward
    """
    check_complete(schedule)
    no_time = dict.fromkeys(Kind, 0)
    _, ends = earliest_times(schedule, [no_time] * schedule.stages, 0)
    if any(len(done) < len(actions) for done, actions in zip(ends, schedule.actions, strict=True)):
        raise ValueError(f"{schedule.name}: {_why_stuck(schedule, [len(done) for done in ends])}")


def check_complete(schedule: Schedule) -> None:
    """Raise ValueError unless each action is there exactly once, on its own rank."""
    _check_shape(schedule)
    microbatches, chunks = range(schedule.microbatches), range(schedule.chunks)
    for rank, actions in enumerate(schedule.actions):
        passes = {kind: set() for kind in Kind}
        for stage, kind, microbatch, chunk in actions:
            if stage == rank and kind in passes and microbatch in microbatches and chunk in chunks:
                passes[kind].add(microbatch * schedule.chunks + chunk)
        once = sum(map(len, passes.values())) == len(actions)
        full, split = passes[FULL_BACKWARD], passes[BACKWARD_INPUT]
        all_there = len(passes[FORWARD]) == len(full) + len(split) == len(microbatches) * len(chunks)
        if not (once and all_there and split == passes[BACKWARD_WEIGHT] and full.isdisjoint(split)):
            raise ValueError(f"{schedule.name}: {_what_is_wrong(schedule, rank)}")


def _check_shape(schedule: Schedule) -> None:
    for name in ("stages", "microbatches", "chunks"):
        check_count(name, getattr(schedule, name))
    if schedule.placement is Placement.V and schedule.chunks != 2:
        raise ValueError(f"{schedule.name}: V placement needs chunks=2, not {schedule.chunks}")
    if len(schedule.actions) != schedule.stages:
        raise ValueError(
            f"{schedule.name}: actions for {len(schedule.actions)} ranks, but stages={schedule.stages}"
        )


def _what_is_wrong(schedule: Schedule, rank: int) -> str:
    """The first fault in what ``rank`` runs, in words."""
    m, chunks = schedule.microbatches, schedule.chunks
    count = Counter(schedule.actions[rank])
    for action in count:
        stage, kind, microbatch, chunk = action
        if not isinstance(kind, Kind):
            return f"rank {rank} lists {action}: its kind must be one of {', '.join(k.name for k in Kind)}"
        if stage != rank:
            return f"rank {rank} lists an action of rank {stage}: {_words(schedule, action)}"
        if not (microbatch in range(m) and chunk in range(chunks)):
            return (
                f"rank {rank} runs {_NOUN[kind]} of microbatch {microbatch}, chunk {chunk}; there are only "
                f"microbatches 0 to {m - 1} and chunks 0 to {chunks - 1}"
            )
        if count[action] > 1:
            return f"rank {rank} runs {_words(schedule, action)} {count[action]} times"
    for microbatch, chunk in product(range(m), range(chunks)):
        one = {kind: Action(rank, kind, microbatch, chunk) for kind in Kind}
        backward = {kind for kind in Kind if one[kind] in count} - {FORWARD}
        if one[FORWARD] not in count:
            return f"rank {rank} never runs {_words(schedule, one[FORWARD])}"
        if not backward:
            return f"rank {rank} never runs the backward of {_place(schedule, one[FORWARD])}"
        if FULL_BACKWARD in backward and len(backward) > 1:
            return f"rank {rank} runs {_words(schedule, one[FULL_BACKWARD])} and a part of it once more"
        if len(backward) == 1 and FULL_BACKWARD not in backward:
            (missing,) = {BACKWARD_INPUT, BACKWARD_WEIGHT} - backward
            return f"rank {rank} never runs {_words(schedule, one[missing])}"
    raise AssertionError("a complete rank was called incomplete")


def _words(schedule: Schedule, action: Action) -> str:
    return f"{_NOUN[action.kind]} of {_place(schedule, action)}"


def _place(schedule: Schedule, action: Action) -> str:
    return f"microbatch {action.microbatch}" + (f", chunk {action.chunk}" if schedule.chunks > 1 else "")


def _why_stuck(schedule: Schedule, position: list[int]) -> str:
    """The wait that never ends, given how far each rank gets."""
    rank = next(r for r, actions in enumerate(schedule.actions) if position[r] < len(actions))
    waits: dict[int, str] = {}
    while rank not in waits:
        at = schedule.actions[rank][position[rank]]
        missing = _missing_input(schedule, at, schedule.actions[rank][: position[rank]])
        if missing.stage == rank:
            needed = (
                f"its {_NOUN[missing.kind][4:]}" if missing.chunk == at.chunk else _words(schedule, missing)
            )
            return f"rank {rank} runs {_words(schedule, at)} before {needed}"
        waits[rank] = (
            f"rank {rank} cannot run {_words(schedule, at)} before rank {missing.stage} has run "
            f"{_words(schedule, missing)}"
        )
        rank = missing.stage
    ranks = list(waits)
    cycle = [waits[r] for r in ranks[ranks.index(rank) :]]
    return "deadlock: " + "; ".join(cycle) + ", which stands later in its order"


def _missing_input(schedule: Schedule, action: Action, done: tuple[Action, ...]) -> Action:
    """What ``action`` waits for, where ``done`` is all that its rank has run."""
    rank, kind, microbatch, chunk = action
    forward = Action(rank, FORWARD, microbatch, chunk)
    part = schedule.part(rank, chunk)
    if kind is BACKWARD_WEIGHT:
        return Action(rank, BACKWARD_INPUT, microbatch, chunk)
    if kind is FORWARD:
        stage, chunk = schedule.home(part - 1)
        return Action(stage, FORWARD, microbatch, chunk)
    if forward not in done:
        return forward
    stage, chunk = schedule.home(part + 1)
    full = Action(stage, FULL_BACKWARD, microbatch, chunk)
    return full if full in schedule.actions[stage] else full._replace(kind=BACKWARD_INPUT)
