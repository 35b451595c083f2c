"""Slots by iterations: who sits where, from when to when, under any scheduler."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from heapq import heappop, heappush

from gpuedu.continuous_batching.plan import Scheduler, Sequence


@dataclass(frozen=True, slots=True)
class SlotSpan:
    """A request in its slot: iterations ``start`` to ``end``; until ``prefilled`` it computes its prompt."""

    slot: int
    request_id: Hashable
    start: int
    prefilled: int
    end: int


@dataclass(frozen=True)
class SlotChart:
    """What a scheduler made of a backlog, by iterations.

    Parameters
    ----------
    slots : int
        How many there are.
    spans : tuple of SlotSpan
        In order of admission.
    iterations : int
        Until the last request is finished.
    """

    slots: int
    spans: tuple[SlotSpan, ...]
    iterations: int

    @property
    def occupancy(self) -> float:
        """Share of slots and iterations in which somebody's request computed, 0 to 1."""
        return sum(span.end - span.start for span in self.spans) / (self.slots * self.iterations)

    def occupancy_until(self, iteration: int) -> float:
        """The same up to an iteration; 1 at the beginning."""
        if iteration < 1:
            return 1.0
        used = sum(min(span.end, iteration) - min(span.start, iteration) for span in self.spans)
        return used / (self.slots * iteration)


def slot_chart(scheduler: Scheduler, requests: Items[Sequence], slots: int) -> SlotChart:
    """Let a scheduler work off a backlog, and see who sits in which slot.

    Parameters
    ----------
    scheduler : Scheduler
        Empty; it may preempt nobody, and lets go of who is finished at once (a static batch:
        ``respond_early=True``).
    requests : sequence of Sequence
        All there at once.
    slots : int
        Sequences that run at once, at most.

    Returns
    -------
    SlotChart
        Everybody takes the lowest slot that is free.

    Examples
    --------
    >>> from gpuedu.continuous_batching.plan import StaticBatching
    >>> requests = [Sequence(name, 1, tokens) for name, tokens in (("a", 2), ("b", 6))]
    >>> chart = slot_chart(StaticBatching(2, respond_early=True), requests, 2)
    >>> chart.iterations, round(chart.occupancy, 3)
    (6, 0.667)
    """
    for request in requests:
        scheduler.add(request)
    free = list(range(slots))
    seated: dict[Hashable, tuple[int, int]] = {}
    prefilled: dict[Hashable, int] = {}
    spans: dict[Hashable, SlotSpan] = {}
    iteration = 0
    while scheduler.has_work():
        decision = scheduler.schedule()
        for sequence in decision.admitted:
            seated[sequence.request_id] = heappop(free), iteration
            spans[sequence.request_id] = None  # keeps the order of admission
        finished = scheduler.update(decision, decision.steps)
        iteration += decision.steps
        for sequence, _ in decision.chunks:
            if sequence.decoding:
                prefilled[sequence.request_id] = iteration
        for sequence in finished:
            name = sequence.request_id
            slot, start = seated.pop(name)
            heappush(free, slot)
            spans[name] = SlotSpan(slot, name, start, prefilled[name], iteration)
    return SlotChart(slots, tuple(spans.values()), iteration)
