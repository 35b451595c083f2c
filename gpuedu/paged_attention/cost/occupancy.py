"""A KV cache over time: requests come and go, and what each allocator makes of the same memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpuedu.checks import check_count
from gpuedu.paged_attention.plan import RESERVATIONS, ContiguousManager, KVCacheManager
from gpuedu.serving.workload import Request

from .waste import MemoryUse

SCHEMES = (*RESERVATIONS, "paged")
"""The allocators by name: three reservations in one piece on a buddy allocator, and blocks."""


class _Memory(Protocol):
    """What the loop below asks of an allocator."""

    def admit(self, running: _Running) -> bool:
        """Room for a request's prompt and the token that it makes, if there is any."""

    def grow(self, running: _Running) -> bool:
        """Room for one token more, if there is any."""

    def leave(self, running: _Running) -> None:
        """A request ends, or makes room."""

    def use(self, running: Sequence[_Running]) -> MemoryUse:
        """Who holds what now."""


@dataclass(slots=True)
class _Running:
    """A request with ``made`` tokens of its output; also what the cache manager calls a sequence.

    Its ``num_computed_tokens`` are those that have a slot, the last one made among them.
    """

    request_id: int
    prompt: int
    output: int
    made: int = 0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    token_ids: None = None
    cache_salt: None = None


class _Contiguous:
    def __init__(self, capacity: int, reservation: str, longest: int) -> None:
        self._manager = ContiguousManager(capacity, reservation, longest)
        self._reserved = 0

    def admit(self, running: _Running) -> bool:
        piece = self._manager.admit(running.request_id, running.prompt, running.output)
        if piece is None:
            return False
        self._reserved += piece.reserved
        running.num_computed_tokens = running.prompt + 1
        return True

    def grow(self, running: _Running) -> bool:
        running.num_computed_tokens += 1
        return True

    def leave(self, running: _Running) -> None:
        self._reserved -= self._manager.pieces[running.request_id].reserved
        self._manager.free(running.request_id)

    def use(self, running: Sequence[_Running]) -> MemoryUse:
        tokens = sum(r.num_computed_tokens for r in running)
        coming = sum(r.prompt + r.output for r in running) - tokens
        capacity = self._manager.memory.capacity
        return MemoryUse(capacity, tokens, coming, self._reserved - tokens - coming, len(running))


class _Paged:
    def __init__(self, capacity: int, block_size: int, watermark: float) -> None:
        self._manager = KVCacheManager(capacity // block_size, block_size, watermark=watermark)
        self._capacity = capacity

    def admit(self, running: _Running) -> bool:
        running.num_tokens = running.prompt + running.made + 1
        running.num_computed_tokens = 0
        manager = self._manager
        if -(-(running.prompt + running.output) // manager.block_size) > manager.num_blocks:
            raise ValueError(f"request {running.request_id}: longer than the cache of {self._capacity} slots")
        if manager.allocate_slots(running, running.num_tokens) is None:
            return False
        running.num_computed_tokens = running.num_tokens
        return True

    def grow(self, running: _Running) -> bool:
        if self._manager.allocate_slots(running, 1) is None:
            return False
        running.num_computed_tokens += 1
        running.num_tokens += 1
        return True

    def leave(self, running: _Running) -> None:
        self._manager.free(running)

    def use(self, running: Sequence[_Running]) -> MemoryUse:
        tokens = sum(r.num_computed_tokens for r in running)
        manager = self._manager
        held = (manager.num_blocks - manager.num_free_blocks) * manager.block_size
        return MemoryUse(self._capacity, tokens, 0, held - tokens, len(running))


@dataclass(frozen=True)
class Occupancy:
    """What the memory held, step by step.

    Attributes
    ----------
    uses : tuple of MemoryUse
        After each step; a step makes one token for every request that holds memory.
    full : tuple of bool
        Whether a request waited for memory after that step.
    preemptions : int
        Requests that had to give back their memory and start over.
    """

    uses: tuple[MemoryUse, ...]
    full: tuple[bool, ...]
    preemptions: int

    @property
    def while_full(self) -> tuple[MemoryUse, ...]:
        """The uses while a request waited: what an allocator could not use."""
        return tuple(use for use, full in zip(self.uses, self.full, strict=True) if full)


def occupancy(
    requests: Iterable[Request],
    scheme: str,
    *,
    capacity: int,
    longest: int = 2048,
    block_size: int = 16,
    watermark: float = 0.01,
    steps_per_s: float | None = None,
) -> Occupancy:
    """Run a workload through a KV cache.

    Parameters
    ----------
    requests : iterable
        Of ``gpuedu.serving.workload.Request``, in order of arrival.
    scheme : str
        One of ``SCHEMES``.
    capacity : int
        Token slots of the cache.
    longest : int
        Most tokens of a request (prompt and output), for the reservations.
    block_size, watermark : int, float
        For ``"paged"``: see :class:`~gpuedu.paged_attention.plan.KVCacheManager`.
    steps_per_s : float, optional
        How many steps a second of the arrival times has; None: all requests wait from the start.

    Returns
    -------
    Occupancy

    Raises
    ------
    ValueError
        For a scheme that there is not, or a request that never fits.

    Notes
    -----
    First come, first served, the first that does not fit holds up the rest. A prompt is computed in the step
    that admits it. A request that finds no block makes the last one admitted start over (vLLM's
    preemption by recomputation), and nobody is admitted in that step. A token has its slot from the step
    that makes it, so that a request holds p + 1 to p + o, as in :func:`reserved_to_the_maximum`; an engine
    writes it one step later, and never the last. Time is counted in steps, whatever they cost.

    Examples
    --------
    >>> from gpuedu.serving.workload import Request
    >>> chats = [Request(0, 0.0, 3, 2), Request(1, 0.0, 5, 2)]
    >>> [(use.tokens, use.internal) for use in occupancy(chats, "paged", capacity=16, block_size=4).uses]
    [(10, 2), (12, 4)]
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r}: must be one of {', '.join(SCHEMES)}")
    check_count("capacity", capacity)
    if scheme == "paged":
        memory: _Memory = _Paged(capacity, block_size, watermark)
    else:
        memory = _Contiguous(capacity, scheme, longest)
    return _run(_arrivals(requests, steps_per_s), memory)


def _arrivals(requests: Iterable[Request], steps_per_s: float | None) -> list[tuple[int, _Running]]:
    return [
        (
            0 if steps_per_s is None else int(request.arrival_s * steps_per_s),
            _Running(i, request.prompt_tokens, request.output_tokens),
        )
        for i, request in enumerate(requests)
    ]


def _run(arrivals: list[tuple[int, _Running]], memory: _Memory) -> Occupancy:
    coming = deque(arrivals)
    waiting: deque[_Running] = deque()
    running: list[_Running] = []
    uses: list[MemoryUse] = []
    full: list[bool] = []
    preemptions = step = 0
    while coming or waiting or running:
        if not waiting and not running:
            step = max(step, coming[0][0])  # nothing happens until the next arrival
        while coming and coming[0][0] <= step:
            waiting.append(coming.popleft()[1])
        preempted = _grow(running, waiting, memory)
        preemptions += preempted
        while waiting and not preempted and memory.admit(waiting[0]):
            running.append(waiting.popleft())
            running[-1].made += 1
        uses.append(memory.use(running))
        full.append(bool(waiting))
        for request in [r for r in running if r.made == r.output]:
            memory.leave(request)
            running.remove(request)
        step += 1
    return Occupancy(tuple(uses), tuple(full), preemptions)


def _grow(running: list[_Running], waiting: deque[_Running], memory: _Memory) -> int:
    """One token more for each, in the order of admission; the last make room where there is none."""
    preempted = 0
    i = 0
    while i < len(running):
        if memory.grow(running[i]):
            running[i].made += 1
            i += 1
            continue
        last = running.pop()
        memory.leave(last)
        waiting.appendleft(last)
        preempted += 1
    return preempted
