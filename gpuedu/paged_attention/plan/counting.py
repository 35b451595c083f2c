"""Blocks counted, not named: what a simulator needs of a KV cache, in closed form."""

from __future__ import annotations

from collections.abc import Sequence as Blocks
from typing import Protocol

from gpuedu.checks import check_count


class CountedSequence(Protocol):
    """What the counter reads of a sequence."""

    request_id: object
    num_computed_tokens: int


class BlockCounter:
    """A paged KV cache that knows how many blocks each sequence has, but not which.

    The methods are those of :class:`~gpuedu.paged_attention.plan.KVCacheManager` with prefix caching
    off, so that a scheduler drives either. Besides, sequences that all compute one token an iteration
    can *join* a group, for which any number of iterations costs one calculation.

    Parameters
    ----------
    num_blocks : int
        Blocks that sequences can have. (Of vLLM's ``num_gpu_blocks`` one, the null block, is never
        given out: pass one less to imitate it.)
    block_size : int
        Tokens in a block.
    num_host_blocks : int
        Blocks of host memory to swap to.

    Raises
    ------
    TypeError, ValueError
        If one of them is no int, or too small.

    Notes
    -----
    A sequence whose first ``n`` tokens are computed has ``ceil(n / block_size)`` blocks. A member of the
    group takes a block in the iteration that begins with ``n`` a multiple of the block size. All members
    advance together, so the group is a histogram of ``n`` modulo the block size against the number of
    iterations gone by: each ``block_size`` iterations take one block for each member.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> kv = BlockCounter(10, block_size=4)
    >>> prompt = SimpleNamespace(request_id="a", num_computed_tokens=0)
    >>> kv.allocate_slots(prompt, 6), kv.num_free_blocks
    (2, 8)
    >>> prompt.num_computed_tokens = 6
    >>> kv.join(prompt)
    >>> kv.iterations_that_fit(1000)  # 8 free blocks of 4, and 2 slots left in the last one
    34
    """

    def __init__(self, num_blocks: int, block_size: int = 16, *, num_host_blocks: int = 0) -> None:
        check_count("num_blocks", num_blocks)
        check_count("block_size", block_size)
        check_count("num_host_blocks", num_host_blocks, 0)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free_blocks = num_blocks
        self._free_host_blocks = num_host_blocks
        self._blocks: dict[object, int] = {}
        self._swapped: dict[object, int] = {}
        self._residues = [0] * block_size  # members by (computed tokens - iterations) modulo block_size
        self._members = 0
        self._iterations = 0

    @property
    def usage(self) -> float:
        """Share of the blocks that some sequence has."""
        return 1 - self.num_free_blocks / self.num_blocks

    def get_computed_blocks(self, sequence: CountedSequence) -> tuple[tuple[int, ...], int]:
        """Cached blocks and tokens of a sequence's beginning: always none."""
        return (), 0

    def blocks_to_allocate(self, sequence: CountedSequence, num_new_tokens: int) -> int:
        """Blocks that a sequence lacks for its next tokens."""
        slots = sequence.num_computed_tokens + num_new_tokens
        return -(-slots // self.block_size) - self._blocks.get(sequence.request_id, 0)

    def allocate_slots(
        self, sequence: CountedSequence, num_new_tokens: int, computed_blocks: Blocks[int] = ()
    ) -> int | None:
        """Take the blocks for a sequence's next tokens.

        Parameters
        ----------
        sequence : CountedSequence
            Not a member of the group.
        num_new_tokens : int
            Tokens beyond those computed.
        computed_blocks : sequence of int
            What :meth:`get_computed_blocks` returned: empty.

        Returns
        -------
        int or None
            Blocks taken; None if they are not there, and then nothing has changed.
        """
        needed = self.blocks_to_allocate(sequence, num_new_tokens)
        if needed > self.num_free_blocks:
            return None
        self.num_free_blocks -= needed
        self._blocks[sequence.request_id] = self._blocks.get(sequence.request_id, 0) + needed
        return needed

    def free(self, sequence: CountedSequence) -> None:
        """Take back what a sequence has, on the device or swapped out; KeyError if it has nothing."""
        if sequence.request_id in self._swapped:
            self._free_host_blocks += self._swapped.pop(sequence.request_id)
        else:
            self.num_free_blocks += self._take_from(sequence)

    def _take_from(self, sequence: CountedSequence) -> int:
        try:
            return self._blocks.pop(sequence.request_id)
        except KeyError:
            raise KeyError(f"request_id={sequence.request_id!r}: has no blocks") from None

    def swap_out(self, sequence: CountedSequence) -> int | None:
        """Move a sequence's blocks to the host; returns how many, None if the host has too little room."""
        blocks = self._take_from(sequence)
        if blocks > self._free_host_blocks:
            self._blocks[sequence.request_id] = blocks
            return None
        self._swapped[sequence.request_id] = blocks
        self._free_host_blocks -= blocks
        self.num_free_blocks += blocks
        return blocks

    def swap_in(self, sequence: CountedSequence) -> int | None:
        """Move a sequence's blocks back; returns how many, or None if they do not fit."""
        if sequence.request_id not in self._swapped:
            raise KeyError(f"request_id={sequence.request_id!r}: is not swapped out")
        blocks = self._swapped[sequence.request_id]
        if blocks > self.num_free_blocks:
            return None
        del self._swapped[sequence.request_id]
        self._blocks[sequence.request_id] = blocks
        self._free_host_blocks += blocks
        self.num_free_blocks -= blocks
        return blocks

    def join(self, sequence: CountedSequence) -> None:
        """From now on the sequence computes one token in every iteration of the group."""
        self._residues[(sequence.num_computed_tokens - self._iterations) % self.block_size] += 1
        self._members += 1

    def leave(self, sequence: CountedSequence) -> None:
        """The sequence, its ``num_computed_tokens`` up to date, leaves the group and keeps its blocks."""
        computed = sequence.num_computed_tokens
        self._residues[(computed - self._iterations) % self.block_size] -= 1
        self._members -= 1
        self._blocks[sequence.request_id] = -(-computed // self.block_size)

    def blocks_for_iterations(self, iterations: int) -> int:
        """Blocks that the group takes over its next iterations."""
        if iterations == 1:
            return self._residues[-self._iterations % self.block_size]
        cycles, rest = divmod(iterations, self.block_size)
        residues, now = self._residues, self._iterations
        partial = sum(residues[-(now + later) % self.block_size] for later in range(rest))
        return cycles * self._members + partial

    def iterations_that_fit(self, limit: int) -> int:
        """For how many iterations, at most ``limit``, the free blocks last the group."""
        members, size = self._members, self.block_size
        if members * (limit // size + 1) <= self.num_free_blocks:
            return limit
        cycles, free = divmod(self.num_free_blocks, members)
        residues, now, later = self._residues, self._iterations, 0
        while (free := free - residues[-(now + later) % size]) >= 0:
            later += 1
        return min(limit, cycles * size + later)

    def advance(self, iterations: int) -> None:
        """Take the blocks of the group's next iterations; ValueError if they are not there."""
        needed = self.blocks_for_iterations(iterations)
        if needed > self.num_free_blocks:
            raise ValueError(
                f"iterations={iterations}: need {needed} blocks, and {self.num_free_blocks} are free"
            )
        self.num_free_blocks -= needed
        self._iterations += iterations
