"""The pool: which blocks are free, and how many hold each of the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuedu.checks import check_count

from .free_queue import make_free_queue
from .hash_chain import HashChainIndex
from .radix_tree import RadixTreeIndex

PREFIX_INDEXES = {"hash_chain": HashChainIndex, "radix": RadixTreeIndex}
"""The prefix indexes by name: vLLM's and SGLang's."""


class BlockPool:
    """Blocks 0 to ``num_blocks - 1``, a reference count for each, and a queue of the free ones.

    Parameters
    ----------
    num_blocks : int
        Blocks of the KV cache, at least 1.
    block_size : int
        Tokens in a block, at least 1.
    prefix_index : str or None
        ``"hash_chain"`` or ``"radix"``: remember what full blocks hold after their release; None: do not.
    eviction, free_queue : str
        Order of the free blocks: see ``FREE_QUEUES`` and ``EVICTIONS``.

    Raises
    ------
    ValueError, TypeError
        For a size below 1 or a name that there is not.

    Examples
    --------
    >>> pool = BlockPool(4)
    >>> pool.take(3)
    [0, 1, 2]
    >>> pool.share([1])
    >>> pool.release([2, 1, 0])
    >>> list(pool.free_queue), pool.references[1]
    ([2, 0, 3], 1)
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        prefix_index: str | None = None,
        eviction: str = "lru",
        free_queue: str = "split",
    ) -> None:
        check_count("num_blocks", num_blocks)
        check_count("block_size", block_size)
        if prefix_index is not None and prefix_index not in PREFIX_INDEXES:
            raise ValueError(f"prefix_index={prefix_index!r}: must be one of {', '.join(PREFIX_INDEXES)}")
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self.free_queue = make_free_queue(num_blocks, eviction, free_queue)
        self.index = None if prefix_index is None else PREFIX_INDEXES[prefix_index](num_blocks, block_size)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self.free_queue)

    def take(self, count: int, priority: int = 0) -> list[int]:
        """Take the first ``count`` free blocks; what they held is forgotten.

        Raises
        ------
        ValueError
            If fewer are free, or for a count below 0; nothing has changed then.
        """
        if not 0 <= count <= len(self.free_queue):
            raise ValueError(f"count={count}: must be from 0 to the {len(self.free_queue)} free blocks")
        blocks = self.free_queue.take(count)
        if self.index is not None:
            self.index.discard(blocks)
        references = self.references
        for block in blocks:
            references[block] = 1
        if self.free_queue.ranked:
            self.free_queue.record(blocks, priority)
        return blocks

    def share(self, blocks: Iterable[int], priority: int = 0) -> None:
        """Hold ``blocks`` once more, each of them held already or free and still known."""
        references = self.references
        for block in blocks:
            if not references[block]:
                self.free_queue.remove(block)
            references[block] += 1
        if self.free_queue.ranked:
            self.free_queue.record(blocks, priority)

    def release(self, blocks: Sequence[int]) -> None:
        """Hold ``blocks`` once less, in the order in which those that fall free are to be taken.

        Raises
        ------
        ValueError
            For a block that is free already, or named more often than it is held; nothing has changed then.
        """
        references = self.references
        released = []
        coming = iter(blocks)
        for block in coming:
            count = references[block] - 1
            references[block] = count
            if not count:
                released.append(block)
            elif count < 0:
                visited = len(blocks) - len(list(coming))
                for undone in blocks[:visited]:
                    references[undone] += 1
                raise ValueError(f"block {block}: freed more often than it was taken")
        self.free_queue.put(released, None if self.index is None else self.index.place)
