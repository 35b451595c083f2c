"""The free blocks of a pool, in the order in which they will be taken: vLLM's two rules, LFU, priority.

A block that a prefix index still knows is free and useful at once: it can be taken for new tokens, or
found again by a prompt that begins with the old ones. Which free block goes first is the eviction policy.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class FreeQueue(Protocol):
    """Free blocks, first to be taken first."""

    ranked: bool
    """Whether the order depends on who used a block: then ``record`` wants to be told."""

    def __len__(self) -> int:
        """How many blocks are free."""

    def __iter__(self) -> Iterable[int]:
        """The blocks in the order in which they will be taken."""

    def take(self, count: int) -> list[int]:
        """Remove and return the first ``count`` blocks; the caller has seen that there are as many."""

    def put(self, blocks: Sequence[int], place: Sequence[Any] | None) -> None:
        """Add ``blocks``, the least useful first; ``place[b]`` is None where no index knows block b."""

    def remove(self, block: int) -> None:
        """Take ``block`` from wherever it stands: a prompt has found it again."""

    def record(self, blocks: Iterable[int], priority: int) -> None:
        """A request with this retention priority takes hold of ``blocks``."""


class LinkedQueue:
    """A doubly linked list in two arrays: any block leaves in constant time, wherever it stands.

    Parameters
    ----------
    num_blocks : int
        Blocks 0 to ``num_blocks - 1``, all free, lowest first.
    split : bool
        Whether blocks that no index knows go to the front (taken next) instead of the back.

    Notes
    -----
    ``following[b]`` and ``previous[b]`` are the neighbors of block b; the entry after the last is the list's
    two ends. The two entries of a block and the ints that they point to take 80 bytes; no object is made or
    lost when a block moves.
    """

    ranked = False

    def __init__(self, num_blocks: int, *, split: bool) -> None:
        self._end = num_blocks
        self._following = [*range(1, num_blocks + 1), 0]
        self._previous = [num_blocks, *range(num_blocks)]
        self._split = split
        self._count = num_blocks

    def __len__(self) -> int:
        return self._count

    def __iter__(self):
        block = self._following[self._end]
        while block != self._end:
            yield block
            block = self._following[block]

    def take(self, count: int) -> list[int]:
        """Remove and return the first ``count`` blocks."""
        following, end = self._following, self._end
        block = following[end]
        if count == 1:
            blocks = [block]
            block = following[block]
        else:
            blocks = []
            for _ in range(count):
                blocks.append(block)
                block = following[block]
        following[end] = block
        self._previous[block] = end
        self._count -= count
        return blocks

    def put(self, blocks: Sequence[int], place: Sequence[Any] | None) -> None:
        """Add released blocks, the least useful first."""
        if not self._split:
            self._insert_after(self._previous[self._end], blocks)
        elif place is None:
            self._insert_after(self._end, blocks)
        else:
            known = [b for b in blocks if place[b] is not None]
            if len(known) < len(blocks):
                self._insert_after(self._end, [b for b in blocks if place[b] is None])
            self._insert_after(self._previous[self._end], known)

    def _insert_after(self, block: int, blocks: Sequence[int]) -> None:
        following, previous = self._following, self._previous
        after = following[block]
        for b in blocks:
            following[block] = b
            previous[b] = block
            block = b
        following[block] = after
        previous[after] = block
        self._count += len(blocks)

    def remove(self, block: int) -> None:
        """Take ``block`` out from where it stands."""
        before, after = self._previous[block], self._following[block]
        self._following[before] = after
        self._previous[after] = before
        self._count -= 1

    def record(self, blocks: Iterable[int], priority: int) -> None:
        """Nothing: the order is that of release alone."""


class RankedQueue:
    """Blocks that no index knows first, then the others by rank, and by release within a rank.

    Parameters
    ----------
    num_blocks : int
        Blocks 0 to ``num_blocks - 1``, all free, lowest first.
    frequency : bool
        Rank is how often a block has been taken hold of (LFU); if not, the highest retention priority
        among the requests that did.

    Notes
    -----
    A heap with lazy deletion: a block found again leaves its entry behind, recognized later by its stamp.
    Taking and adding cost O(log n); the heap is rebuilt when half of it is stale.
    """

    ranked = True

    def __init__(self, num_blocks: int, *, frequency: bool) -> None:
        self._frequency = frequency
        self._bare: dict[int, None] = dict.fromkeys(range(num_blocks - 1, -1, -1))  # a stack, last is next
        self._heap: list[tuple[float, int, int]] = []
        self._stamp = [0] * num_blocks  # of the entry that counts; 0: none does
        # What a block has whose content nobody has used: any priority, a negative one too, is above it
        self._unused = 0 if frequency else -math.inf
        self._rank: list[float] = [self._unused] * num_blocks
        self._clock = 0
        self._ranked_count = 0

    def __len__(self) -> int:
        return len(self._bare) + self._ranked_count

    def __iter__(self):
        yield from reversed(self._bare)
        yield from (block for _, stamp, block in sorted(self._heap) if self._stamp[block] == stamp)

    def take(self, count: int) -> list[int]:
        """Remove and return the first ``count`` blocks."""
        blocks = []
        bare, heap, stamps, ranks, unused = self._bare, self._heap, self._stamp, self._rank, self._unused
        while bare and len(blocks) < count:
            blocks.append(bare.popitem()[0])
        while len(blocks) < count:
            _, stamp, block = heapq.heappop(heap)
            if stamps[block] == stamp:
                stamps[block] = 0
                self._ranked_count -= 1
                blocks.append(block)
        for block in blocks:  # what they will hold has no history
            ranks[block] = unused
        return blocks

    def put(self, blocks: Sequence[int], place: Sequence[Any] | None) -> None:
        """Add released blocks, the least useful first."""
        if place is None:
            self._bare.update(dict.fromkeys(reversed(blocks)))
            return
        self._bare.update(dict.fromkeys(b for b in reversed(blocks) if place[b] is None))
        for block in blocks:
            if place[block] is not None:
                self._clock += 1
                self._stamp[block] = self._clock
                self._ranked_count += 1
                heapq.heappush(self._heap, (self._rank[block], self._clock, block))
        if len(self._heap) > 2 * self._ranked_count + 64:
            self._heap = [entry for entry in self._heap if self._stamp[entry[2]] == entry[1]]
            heapq.heapify(self._heap)

    def remove(self, block: int) -> None:
        """Take ``block`` out from where it stands."""
        if self._stamp[block]:
            self._stamp[block] = 0
            self._ranked_count -= 1
        else:
            del self._bare[block]

    def record(self, blocks: Iterable[int], priority: int) -> None:
        """Count a use of ``blocks``, or remember the priority of who uses them."""
        ranks = self._rank
        if self._frequency:
            for block in blocks:
                ranks[block] += 1
        else:
            for block in blocks:
                ranks[block] = max(ranks[block], priority)


FREE_QUEUES = {"split": True, "append": False}
"""vLLM's rules for where a released block goes, and whether they split by hash.

``append``: to the back, tail of the sequence first (vLLM's v1 engine from PR 9972, November 2024).
``split``: only if it has a hash; blocks without one go to the front and are taken next (from PR 42656, 2026;
vLLM 0.33.0 does it). Without prefix caching no block has one: the last one released is taken first.
"""

EVICTIONS = ("lru", "lfu", "priority")


def make_free_queue(num_blocks: int, eviction: str, free_queue: str) -> FreeQueue:
    """The queue for a policy.

    Parameters
    ----------
    num_blocks : int
        Blocks of the pool.
    eviction : str
        One of ``EVICTIONS``.
    free_queue : str
        One of ``FREE_QUEUES``; it matters to ``"lru"`` alone.

    Returns
    -------
    FreeQueue
        With all blocks in it.

    Raises
    ------
    ValueError
        For a name that there is not.

    Examples
    --------
    >>> queue = make_free_queue(4, "lru", "append")
    >>> queue.take(2)
    [0, 1]
    >>> queue.put([1, 0], None)
    >>> list(queue)
    [2, 3, 1, 0]
    """
    if eviction not in EVICTIONS:
        raise ValueError(f"eviction={eviction!r}: must be one of {', '.join(EVICTIONS)}")
    if free_queue not in FREE_QUEUES:
        raise ValueError(f"free_queue={free_queue!r}: must be one of {', '.join(FREE_QUEUES)}")
    if eviction == "lru":
        return LinkedQueue(num_blocks, split=FREE_QUEUES[free_queue])
    return RankedQueue(num_blocks, frequency=eviction == "lfu")
