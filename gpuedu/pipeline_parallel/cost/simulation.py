"""A schedule priced by running it on a clock: time, bubble and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Real
from typing import NamedTuple

from gpuedu.checks import check_amount

from ..plan import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD, Action, Schedule, validate
from ..plan.execution import earliest_times, share, stage_durations
from ..plan.validation import check_complete


class Span(NamedTuple):
    """One action in time."""

    rank: int
    action: Action
    start: Real
    end: Real


@dataclass(frozen=True)
class Timeline:
    """A schedule in time; all times in the unit of the durations it was computed from.

    Parameters
    ----------
    schedule : Schedule
        What was timed.
    starts, ends : tuple
        ``starts[rank][i]`` and ``ends[rank][i]`` belong to ``schedule.actions[rank][i]``.
    busy : tuple
        Per rank, the time it computes.
    """

    schedule: Schedule
    starts: tuple[tuple[Real, ...], ...]
    ends: tuple[tuple[Real, ...], ...]
    busy: tuple[Real, ...]

    @property
    def spans(self) -> Iterator[Span]:
        """Every action with its start and end, rank by rank in the order of execution."""
        for rank, actions in enumerate(self.schedule.actions):
            for action, start, end in zip(actions, self.starts[rank], self.ends[rank], strict=True):
                yield Span(rank, action, start, end)

    @cached_property
    def makespan(self) -> Real:
        """From the start of the step to the end of the last action of any rank."""
        return max(ends[-1] for ends in self.ends)

    @cached_property
    def stage_span(self) -> tuple[Real, ...]:
        """Per rank, from the start of its first action to the end of its last."""
        return tuple(ends[-1] - starts[0] for starts, ends in zip(self.starts, self.ends, strict=True))

    @property
    def bubble_time(self) -> Real:
        """Makespan minus the busiest rank's busy time."""
        return self.makespan - max(self.busy)

    @property
    def bubble_ratio(self) -> Real:
        """:attr:`bubble_time` over the busiest rank's busy time: what the bubble adds to the ideal."""
        return self.bubble_time / max(self.busy)

    @property
    def bubble_share(self) -> Real:
        """:attr:`bubble_time` over the makespan: which part of the step is bubble."""
        return self.bubble_time / self.makespan

    @property
    def span_bubble_time(self) -> Real:
        """Longest :attr:`stage_span` minus the busiest rank's busy time: the zero-bubble papers' bubble.

        It does not count what a rank waits before its first action or after its last, as if the next
        step could begin there.
        """
        return max(self.stage_span) - max(self.busy)

    @property
    def span_bubble_ratio(self) -> Real:
        """:attr:`span_bubble_time` over the busiest rank's busy time."""
        return self.span_bubble_time / max(self.busy)


def timeline(
    schedule: Schedule,
    *,
    forward: Real | Sequence[Real] = 1,
    backward_input: Real | Sequence[Real] = 1,
    backward_weight: Real | Sequence[Real] = 1,
    transfer: Real = 0,
) -> Timeline:
    """Run ``schedule`` on a clock: every action as early as its rank's order and its inputs allow.

    Parameters
    ----------
    schedule : Schedule
        Any valid schedule.
    forward, backward_input, backward_weight : float or sequence
        Time one microbatch takes through one rank's *whole stage*, in any unit (all the same): a
        scalar, or one per rank for uneven stages. With v chunks an action on one chunk takes a v-th
        of it, so that schedules with different chunks are compared at the same model. A full
        backward takes ``backward_input + backward_weight``.
    transfer : float
        Time from the end of an action to when another rank can use its result. It delays the
        consumer and keeps neither rank busy. Between two chunks of one rank it is 0.

    Returns
    -------
    Timeline
        In the unit of the durations. Ints and Fractions stay exact (an int that v does not divide
        becomes a float).

    Raises
    ------
    ValueError
        If the schedule is not valid, a time is negative or not finite, ``forward`` is 0, or a
        sequence has not one time per rank.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import one_f_one_b
    >>> t = timeline(one_f_one_b(8, 32), forward=1, backward_input=1, backward_weight=1)
    >>> t.makespan, t.bubble_time, round(t.bubble_share, 3)
    (117, 21, 0.179)
    """
    check_complete(schedule)
    durations = stage_durations(schedule.stages, schedule.chunks, forward, backward_input, backward_weight)
    check_amount("transfer", transfer)
    starts, ends = earliest_times(schedule, durations, transfer)
    if [len(done) for done in ends] != [len(actions) for actions in schedule.actions]:
        validate(schedule)
    passes = schedule.microbatches * schedule.chunks
    busy = tuple(passes * (time[FORWARD] + time[FULL_BACKWARD]) for time in durations)
    return Timeline(schedule, tuple(map(tuple, starts)), tuple(map(tuple, ends)), busy)


def peak_activations(schedule: Schedule) -> tuple[Real, ...]:
    """Most activations that each rank holds at any time.

    Parameters
    ----------
    schedule : Schedule
        Any valid schedule.

    Returns
    -------
    tuple
        Per rank, in units of one microbatch's activations of one whole stage; one chunk of v counts
        1/v. Held from the start of the forward until the weight gradient (W, or the full backward)
        is done.

    Notes
    -----
    The order on a rank decides this alone; no time is needed. What the optimizer, the weights or a
    recomputed activation take is not in it.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import gpipe, one_f_one_b
    >>> peak_activations(gpipe(4, 8)), peak_activations(one_f_one_b(4, 8))
    ((8, 8, 8, 8), (4, 3, 2, 1))
    """
    return tuple(share(max(accumulate(_held(actions))), schedule.chunks) for actions in schedule.actions)


def memory_over_time(timeline: Timeline) -> tuple[tuple[tuple[Real, Real], ...], ...]:
    """Activations that each rank holds, as a step function of time.

    Parameters
    ----------
    timeline : Timeline
        A schedule in time.

    Returns
    -------
    tuple
        Per rank, ``(time, held)`` pairs: from ``time`` to the next pair's the rank holds ``held``, in
        the unit of :func:`peak_activations`, which is the largest of them. Where one is freed at the
        very time another is taken, only the outcome is listed.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import one_f_one_b
    >>> memory_over_time(timeline(one_f_one_b(2, 2)))[1]
    ((1, 1), (4, 1), (7, 0))
    """
    curves = []
    for rank, actions in enumerate(timeline.schedule.actions):
        held, curve = 0, {}
        for change, start, end in zip(
            _held(actions), timeline.starts[rank], timeline.ends[rank], strict=True
        ):
            if change:
                held += change
                curve[start if change > 0 else end] = share(held, timeline.schedule.chunks)
        curves.append(tuple(curve.items()))
    return tuple(curves)


_HELD = {FORWARD: 1, BACKWARD_INPUT: 0, BACKWARD_WEIGHT: -1, FULL_BACKWARD: -1}


def _held(actions: Sequence[Action]) -> list[int]:
    """By how many chunks' activations each action changes what its rank holds."""
    return [_HELD[action.kind] for action in actions]
