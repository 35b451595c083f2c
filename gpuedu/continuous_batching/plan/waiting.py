"""The queue, in four orders: as they came, by priority, fair between clients, shortest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from heapq import heappop, heappush

from .decision import SchedulerConfig
from .sequence import Sequence


class FirstComeFirstServed:
    """As they came; who was preempted stands in front.

    Every queue here has these methods. ``order_is_fixed`` says whether the order changes only when
    somebody comes or goes; ``counts_service`` whether it wants to be told what clients were given.
    """

    order_is_fixed = True
    counts_service = False

    def __init__(self) -> None:
        self._queue: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def push(self, sequence: Sequence) -> None:
        """Somebody has come."""
        self._queue.append(sequence)

    def push_back_preempted(self, sequence: Sequence) -> None:
        """Somebody who ran must wait again."""
        self._queue.appendleft(sequence)

    def peek(self) -> Sequence:
        """Who is next."""
        return self._queue[0]

    def pop(self) -> Sequence:
        """Who is next, and goes."""
        return self._queue.popleft()

    def remove(self, sequence: Sequence) -> None:
        """Somebody gives up."""
        self._queue.remove(sequence)

    def charge(self, client: Hashable, prompt_tokens: int, output_tokens: int) -> None:
        """A client was given service; here nobody counts it."""


class _Heap(FirstComeFirstServed):
    """A queue ordered by a key; ties as they came."""

    def __init__(self, key: Callable[[Sequence], int | tuple]) -> None:
        self._key = key
        self._heap: list[tuple] = []
        self._entries: dict[Hashable, tuple] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[-1] for entry in sorted(self._entries.values(), key=lambda entry: entry[:-1]))

    def push(self, sequence: Sequence) -> None:
        """Somebody has come."""
        self._came += 1
        entry = (self._key(sequence), self._came, sequence)
        self._entries[sequence.request_id] = entry
        heappush(self._heap, entry)

    def push_back_preempted(self, sequence: Sequence) -> None:
        """Somebody who ran must wait again."""
        self.push(sequence)

    def peek(self) -> Sequence:
        """Who is next."""
        while self._entries.get(self._heap[0][-1].request_id) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        """Who is next, and goes."""
        sequence = self.peek()
        self.remove(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Somebody gives up."""
        del self._entries[sequence.request_id]


class ByPriority(_Heap):
    """By priority, then by arrival, as vLLM's priority policy: who was preempted has no right of way."""

    def __init__(self) -> None:
        super().__init__(lambda sequence: (sequence.priority, sequence.arrival))


class ShortestPredicted(_Heap):
    """Shortest predicted remainder first, and nobody starves.

    Who was preempted stands in front. A request that has seen ``starvation_limit`` admissions goes next
    whatever its length, so that a long one waits for a bounded number of others.
    """

    def __init__(self, starvation_limit: int) -> None:
        super().__init__(lambda sequence: sequence.predicted_tokens - sequence.num_output_tokens)
        self.starvation_limit = starvation_limit
        self._admissions = 0
        self._by_age: deque[tuple[int, tuple]] = deque()
        self._preempted: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._entries) + len(self._preempted)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        yield from super().__iter__()

    def push(self, sequence: Sequence) -> None:
        """Somebody has come."""
        super().push(sequence)
        self._by_age.append((self._admissions, self._entries[sequence.request_id]))

    def push_back_preempted(self, sequence: Sequence) -> None:
        """Somebody who ran must wait again."""
        self._preempted.appendleft(sequence)

    def peek(self) -> Sequence:
        """Who is next."""
        if self._preempted:
            return self._preempted[0]
        oldest = self._by_age
        while oldest and self._entries.get(oldest[0][1][-1].request_id) is not oldest[0][1]:
            oldest.popleft()
        if oldest and self._admissions - oldest[0][0] >= self.starvation_limit:
            return oldest[0][1][-1]
        return super().peek()

    def pop(self) -> Sequence:
        """Who is next, and goes."""
        sequence = self.peek()
        self.remove(sequence)
        self._admissions += 1
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Somebody gives up."""
        if sequence in self._preempted:
            self._preempted.remove(sequence)
        else:
            super().remove(sequence)


class VirtualTokenCounter(FirstComeFirstServed):
    """The client that was given least goes next: VTC, fair scheduling between clients.

    Notes
    -----
    Each client has a counter of tokens it was given, a prompt's at weight 1 when it is admitted, an
    output token's at weight 2 when it is produced. A client who comes while none of its requests waits is
    lifted to the smallest counter among those that wait (or, if nobody waits, to that of the client whose
    last waiting request went): nobody saves up credit by staying away.

    References
    ----------
    Sheng et al. Fairness in serving large language models. OSDI 2024, algorithm 2.
    """

    order_is_fixed = False
    counts_service = True
    PROMPT_WEIGHT = 1
    OUTPUT_WEIGHT = 2

    def __init__(self) -> None:
        self.counters: dict[Hashable, int] = {}
        self._queues: dict[Hashable, deque[Sequence]] = {}
        self._last_gone: Hashable = None
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for queue in self._queues.values() for sequence in queue)

    def push(self, sequence: Sequence) -> None:
        """Somebody has come."""
        client = sequence.client
        if client not in self._queues:
            counters = self.counters
            floor = min((counters[other] for other in self._queues), default=counters.get(self._last_gone, 0))
            counters[client] = max(counters.get(client, 0), floor)
            self._queues[client] = deque()
        self._queues[client].append(sequence)
        self._waiting += 1

    def push_back_preempted(self, sequence: Sequence) -> None:
        """Somebody who ran must wait again."""
        self._queues.setdefault(sequence.client, deque()).appendleft(sequence)
        self._waiting += 1

    def peek(self) -> Sequence:
        """Who is next."""
        client = min(self._queues, key=self.counters.__getitem__)
        return self._queues[client][0]

    def pop(self) -> Sequence:
        """Who is next, and goes."""
        sequence = self.peek()
        self.remove(sequence)
        if not sequence.num_preemptions:
            self.charge(sequence.client, sequence.prompt_tokens, 0)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Somebody gives up."""
        queue = self._queues[sequence.client]
        queue.remove(sequence)
        self._waiting -= 1
        if not queue:
            del self._queues[sequence.client]
            self._last_gone = sequence.client

    def charge(self, client: Hashable, prompt_tokens: int, output_tokens: int) -> None:
        """A client was given service: its counter rises."""
        given = self.PROMPT_WEIGHT * prompt_tokens + self.OUTPUT_WEIGHT * output_tokens
        self.counters[client] += given


def waiting_queue(config: SchedulerConfig) -> FirstComeFirstServed:
    """The queue that a configuration's policy asks for, empty.

    Parameters
    ----------
    config : SchedulerConfig
        Names the policy.

    Returns
    -------
    FirstComeFirstServed
        Or one of its kind.

    Examples
    --------
    >>> type(waiting_queue(SchedulerConfig(policy="vtc"))).__name__
    'VirtualTokenCounter'
    """
    if config.policy == "priority":
        return ByPriority()
    if config.policy == "vtc":
        return VirtualTokenCounter()
    if config.policy == "shortest_predicted":
        return ShortestPredicted(config.starvation_limit)
    return FirstComeFirstServed()
