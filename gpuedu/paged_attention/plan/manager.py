"""The cache manager: a block table for each request, over one pool."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from gpuedu.checks import check_amount, check_count

from .block_pool import BlockPool
from .sequence import SequenceLike

NULL_BLOCK = 0
"""Stands in a block table for what a sliding window has left behind; never free and never written."""


class _Table:
    """What one request holds. ``known``: how many of its blocks have been offered to the prefix index."""

    __slots__ = ("blocks", "hashes", "known", "left_behind", "priority")

    def __init__(self, blocks: list[int], hashes: list[int], known: int, priority: int) -> None:
        self.blocks = blocks
        self.hashes = hashes
        self.known = known
        self.left_behind = 0
        self.priority = priority


class KVCacheManager:
    """Gives requests blocks, shares equal prefixes, copies on write; vLLM's v1 interface.

    Parameters
    ----------
    num_blocks : int
        Blocks of the KV cache, at least 1 (2 with a null block).
    block_size : int
        Tokens in a block.
    enable_prefix_caching : bool
        Whether full blocks can be found by later requests that begin with the same tokens.
    prefix_index : str
        How: ``"hash_chain"`` (vLLM) or ``"radix"`` (SGLang).
    eviction : str
        Which free block is taken first: ``"lru"``, ``"lfu"`` or ``"priority"``.
    free_queue : str
        For ``"lru"``, where released blocks go: ``"split"`` or ``"append"`` (``FREE_QUEUES``).
    watermark : float
        Share of the blocks, 0 to 1, that must stay free when a request is admitted while others hold
        blocks; requests that hold a table already may use them.
    sliding_window : int, optional
        Tokens that attention looks back, itself included; blocks that fall behind it are released.
    null_block : bool
        Reserve block 0, as vLLM does; always so with a sliding window.
    num_host_blocks : int
        Blocks of host memory to swap to.

    Raises
    ------
    ValueError, TypeError
        For a size, share or name that cannot be.

    Notes
    -----
    Nothing here holds keys or values: it decides which block is whose. :mod:`gpuedu.paged_attention.run`
    and the engine carry the decisions out.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> def request(name, tokens):
    ...     return SimpleNamespace(request_id=name, token_ids=tokens, num_tokens=len(tokens),
    ...                            num_computed_tokens=0, cache_salt=None)
    >>> manager = KVCacheManager(8, block_size=4, enable_prefix_caching=True)
    >>> first = request("first", list(range(10)))
    >>> manager.allocate_slots(first, 10)
    [0, 1, 2]
    >>> second = request("second", [*range(8), 99, 98])
    >>> found, tokens = manager.get_computed_blocks(second)
    >>> found, tokens
    ((0, 1), 8)
    >>> manager.allocate_slots(second, 2, found), manager.block_table("second")
    ([3], [0, 1, 3])
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        enable_prefix_caching: bool = False,
        prefix_index: str = "hash_chain",
        eviction: str = "lru",
        free_queue: str = "split",
        watermark: float = 0.0,
        sliding_window: int | None = None,
        null_block: bool = False,
        num_host_blocks: int = 0,
    ) -> None:
        null_block = null_block or sliding_window is not None
        check_count("num_blocks", num_blocks, minimum=1 + null_block)
        check_amount("watermark", watermark)
        if watermark > 1:
            raise ValueError(f"watermark={watermark}: must be from 0 to 1")
        if sliding_window is not None:
            check_count("sliding_window", sliding_window)
            if enable_prefix_caching and prefix_index != "hash_chain":
                # A tree reaches a block only through those before it, which the window has left behind
                raise ValueError(f"prefix_index={prefix_index!r}: must be 'hash_chain' with a sliding window")
        check_count("num_host_blocks", num_host_blocks, minimum=0)
        self.pool = BlockPool(
            num_blocks,
            block_size,
            prefix_index=prefix_index if enable_prefix_caching else None,
            eviction=eviction,
            free_queue=free_queue,
        )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.sliding_window = sliding_window
        self.enable_prefix_caching = enable_prefix_caching
        self.queried_tokens = 0
        """Tokens of the requests admitted so far."""
        self.hit_tokens = 0
        """Those among them that were found in the cache."""
        self._watermark_blocks = int(watermark * num_blocks)
        self._reserved = self.pool.take(1) if null_block else []
        self._tables: dict[Hashable, _Table] = {}
        self._copies: list[tuple[int, int]] = []
        self._has_forked = False  # until then no block that is written has a second holder
        self._free_host_blocks = list(range(num_host_blocks - 1, -1, -1))
        self._swapped: dict[Hashable, tuple[_Table, list[int | None]]] = {}

    # What there is

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request holds."""
        return len(self.pool.free_queue)

    @property
    def usage(self) -> float:
        """Share of the blocks that are held, 0 to 1."""
        usable = self.num_blocks - len(self._reserved)
        return 1 - self.num_free_blocks / usable

    def block_table(self, request_id: Hashable) -> list[int]:
        """The blocks of a request in the order of its tokens; KeyError if it holds none."""
        return list(self._table(request_id).blocks)

    def _table(self, request_id: Hashable) -> _Table:
        try:
            return self._tables[request_id]
        except KeyError:
            raise KeyError(f"request_id={request_id!r}: holds no blocks") from None

    # Admission

    def get_computed_blocks(self, sequence: SequenceLike) -> tuple[tuple[int, ...], int]:
        """The longest prefix of a new request that the cache holds; changes nothing.

        Parameters
        ----------
        sequence : SequenceLike
            A request that holds no blocks.

        Returns
        -------
        tuple of int
            The blocks to hand to :meth:`allocate_slots`.
        int
            The tokens in them: a multiple of the block size and at most ``num_tokens - 1``, because the last
            token has to be computed for its logits.

        Raises
        ------
        ValueError
            If the request holds blocks already.
        """
        if sequence.request_id in self._tables:
            raise ValueError(f"request_id={sequence.request_id!r}: holds blocks already")
        index = self.pool.index
        if index is None or sequence.token_ids is None:
            return (), 0
        limit = (sequence.num_tokens - 1) // self.block_size
        hashes = getattr(sequence, "block_hashes", None)
        hashes = [] if hashes is None else hashes
        asked = (sequence.token_ids, sequence.cache_salt, limit, hashes)
        if self.sliding_window is None:
            found = index.match(*asked)
        else:
            window_blocks = max(1, -(-(self.sliding_window - 1) // self.block_size))
            found = index.match_window(*asked, window_blocks)
            found = tuple(NULL_BLOCK if block is None else block for block in found)
        return found, len(found) * self.block_size

    def allocate_slots(
        self, sequence: SequenceLike, num_new_tokens: int, computed_blocks: Sequence[int] = ()
    ) -> list[int] | None:
        """Make room for the next ``num_new_tokens`` tokens of a request.

        Parameters
        ----------
        sequence : SequenceLike
            The request; its ``num_computed_tokens`` does not count ``computed_blocks`` yet.
        num_new_tokens : int
            Tokens about to be computed, at least 1.
        computed_blocks : Sequence[int]
            What :meth:`get_computed_blocks` just found, for a request that is admitted.

        Returns
        -------
        list of int or None
            Blocks appended to its table, maybe none; None if they do not fit, and then nothing has changed.

        Raises
        ------
        ValueError
            For fewer than 1 token, ``computed_blocks`` for a request that holds a table, or a request
            without one that says it has computed tokens.

        Notes
        -----
        A block into which the new tokens go and that others hold too is replaced by a new one: see
        :meth:`copies`. Blocks that the new tokens fill are known to the prefix index from now on, so they
        must be computed before a request admitted later reads them: in the same step or an earlier one.
        """
        if num_new_tokens < 1:
            raise ValueError(f"num_new_tokens={num_new_tokens}: must be at least 1")
        size = self.block_size
        table = self._tables.get(sequence.request_id)
        if table is None:
            return self._admit(sequence, num_new_tokens, computed_blocks)
        if computed_blocks:
            raise ValueError(f"computed_blocks={computed_blocks!r}: must be empty, the request holds blocks")
        computed = sequence.num_computed_tokens
        end = computed + num_new_tokens
        blocks, pool = table.blocks, self.pool
        written = computed // size
        new_count = -(-end // size) - len(blocks)
        copied = self._shared(blocks, written) if self._has_forked else ()
        left = [] if self.sliding_window is None else self._left_behind(table, computed)
        if new_count > 0 or copied:
            needed = max(0, new_count) + len(copied)
            available = len(pool.free_queue)
            if needed > available:
                available += sum(pool.references[block] == 1 for _, block in left)
                if needed > available:
                    return None
        if left:
            self._leave_behind(table, left)
        if copied:
            self._copy_on_write(table, copied, computed)
        new = pool.take(new_count, table.priority) if new_count > 0 else []
        blocks += new
        full = min(end, sequence.num_tokens) // size
        if full > table.known:
            self._make_known(sequence, table, full)
        return new

    def _admit(
        self, sequence: SequenceLike, num_new_tokens: int, computed_blocks: Sequence[int]
    ) -> list[int] | None:
        """Slots for a request that holds nothing yet."""
        if sequence.num_computed_tokens:
            raise ValueError(
                f"num_computed_tokens={sequence.num_computed_tokens}: must be 0, "
                f"{sequence.request_id!r} holds no blocks"
            )
        if sequence.request_id in self._swapped:
            raise ValueError(f"request_id={sequence.request_id!r}: is swapped out")
        size, pool = self.block_size, self.pool
        computed = len(computed_blocks) * size
        end = computed + num_new_tokens
        new_count = -(-end // size) - len(computed_blocks)
        real = [b for b in computed_blocks if b != NULL_BLOCK] if self._reserved else computed_blocks
        if any(pool.index is None or pool.index.place[block] is None for block in real):
            raise ValueError(f"computed_blocks={computed_blocks!r}: must be just found, these are not known")
        from_free = sum(not pool.references[block] for block in real)
        spare = self._watermark_blocks if self._tables else 0
        if new_count + from_free + spare > len(pool.free_queue):
            return None
        priority = getattr(sequence, "retention_priority", 0)
        pool.share(real, priority)  # before anything is taken, or it could be these
        new = pool.take(new_count, priority)
        hashes = getattr(sequence, "block_hashes", None)
        table = _Table(
            [*computed_blocks, *new], [] if hashes is None else hashes, len(computed_blocks), priority
        )
        if self.sliding_window is not None:
            table.left_behind = sum(block == NULL_BLOCK for block in computed_blocks)
        self._tables[sequence.request_id] = table
        self.queried_tokens += sequence.num_tokens
        self.hit_tokens += computed
        full = min(end, sequence.num_tokens) // size
        if full > table.known:
            self._make_known(sequence, table, full)
        return new

    def _make_known(self, sequence: SequenceLike, table: _Table, full: int) -> None:
        """Offer the blocks that became full to the prefix index."""
        index = self.pool.index
        if index is not None and sequence.token_ids is not None:
            start = max(table.known, table.left_behind)
            index.insert(sequence.token_ids, sequence.cache_salt, table.blocks, start, full, table.hashes)
        table.known = full

    # Copy on write

    def _shared(self, blocks: list[int], written: int) -> list[int]:
        """Numbers of the blocks from ``written`` on that others hold too."""
        references = self.pool.references
        return [i for i in range(written, len(blocks)) if references[blocks[i]] > 1]

    def _copy_on_write(self, table: _Table, numbers: list[int], computed: int) -> None:
        """Replace shared blocks; only one that holds computed tokens has anything to copy."""
        fresh = self.pool.take(len(numbers), table.priority)
        for i, block in zip(numbers, fresh, strict=True):
            shared = table.blocks[i]
            table.blocks[i] = block
            self.pool.release([shared])
            if i * self.block_size < computed:
                self._copies.append((shared, block))

    def copies(self) -> list[tuple[int, int]]:
        """Block copies (from, to) decided since the last call.

        To be carried out in this order, before anything of the same step is written.
        """
        copies, self._copies = self._copies, []
        return copies

    def fork(self, parent: SequenceLike, child: SequenceLike) -> None:
        """Let ``child`` hold the same blocks as ``parent``: a new branch of the same text.

        Parameters
        ----------
        parent : SequenceLike
            Holds a table.
        child : SequenceLike
            Holds none; as many computed tokens as the parent.

        Raises
        ------
        KeyError
            If the parent holds no blocks.
        ValueError
            If the child does, or differs in its number of computed tokens or its salt; or if the prefix
            index knows blocks of the parent that have yet to be computed: fork before
            :meth:`allocate_slots`, or after the step.
        """
        table = self._table(parent.request_id)
        if child.request_id in self._tables or child.request_id in self._swapped:
            raise ValueError(f"request_id={child.request_id!r}: holds blocks already")
        for name in ("num_computed_tokens", "cache_salt"):
            mine, parents = getattr(child, name), getattr(parent, name)
            if mine != parents:
                raise ValueError(f"{name}={mine!r} of the child: must be the parent's, {parents!r}")
        computed = child.num_computed_tokens // self.block_size
        if self.pool.index is not None and table.known > computed:
            # The child would write its own tokens under the name of the parent's
            raise ValueError(
                f"num_computed_tokens={child.num_computed_tokens}: must cover the {table.known} full blocks "
                f"of {parent.request_id!r} that the prefix index knows"
            )
        priority = getattr(child, "retention_priority", 0)
        known = min(table.known, computed)
        hashes = getattr(child, "block_hashes", None)
        forked = _Table(list(table.blocks), [] if hashes is None else hashes, known, priority)
        forked.left_behind = table.left_behind
        self.pool.share(table.blocks[table.left_behind :], priority)
        self._has_forked = True
        self._tables[child.request_id] = forked

    # Release

    def free(self, sequence: SequenceLike) -> None:
        """Release what a request holds, on the device or swapped out, tail first; KeyError if nothing.

        Blocks past ``num_computed_tokens`` were never filled: the prefix index forgets them.
        """
        if sequence.request_id in self._swapped:
            _, host = self._swapped.pop(sequence.request_id)
            self._free_host_blocks += [block for block in reversed(host) if block is not None]
            return
        table = self._table(sequence.request_id)
        del self._tables[sequence.request_id]
        self._forget_uncomputed(sequence, table)
        self._release(table)

    def _forget_uncomputed(self, sequence: SequenceLike, table: _Table) -> None:
        """Take blocks out of the prefix index that were to be filled in a step and are taken back before it.

        A scheduler with priorities does so: the victim may stand before the request that needs its blocks.
        """
        computed = sequence.num_computed_tokens // self.block_size
        if self.pool.index is not None and table.known > computed:
            self.pool.index.discard(table.blocks[computed : table.known])
            table.known = computed

    def _release(self, table: _Table) -> None:
        blocks = table.blocks[table.left_behind :]
        blocks.reverse()
        self.pool.release(blocks)

    # Sliding window

    def _left_behind(self, table: _Table, computed: int) -> list[tuple[int, int]]:
        """Numbers and blocks that no token from now on looks at, the latest first."""
        seen_from = max(0, computed - self.sliding_window + 1) // self.block_size
        stop = min(seen_from, len(table.blocks))
        return [(i, table.blocks[i]) for i in range(stop - 1, table.left_behind - 1, -1)]

    def _leave_behind(self, table: _Table, left: list[tuple[int, int]]) -> None:
        for i, _ in left:
            table.blocks[i] = NULL_BLOCK
        table.left_behind = left[0][0] + 1
        self.pool.release([block for _, block in left])

    # Swap

    def swap_out(self, sequence: SequenceLike) -> list[tuple[int, int]] | None:
        """Move a request's blocks to the host.

        Parameters
        ----------
        sequence : SequenceLike
            Holds a table.

        Returns
        -------
        list of (int, int) or None
            Copies (device block, host block), to be carried out before anything else is written; None if
            the host has too little room, and then nothing has changed.

        Raises
        ------
        KeyError
            If the request holds no blocks.

        Notes
        -----
        Blocks that others hold too are copied as well and stay where they are.
        """
        table = self._table(sequence.request_id)
        moved = table.blocks[table.left_behind :]
        if len(moved) > len(self._free_host_blocks):
            return None
        host = [self._free_host_blocks.pop() for _ in moved]
        del self._tables[sequence.request_id]
        self._forget_uncomputed(sequence, table)
        self._release(table)
        self._swapped[sequence.request_id] = (table, host)
        return list(zip(moved, host, strict=True))

    def swap_in(self, sequence: SequenceLike) -> list[tuple[int, int]] | None:
        """Bring a request's blocks back.

        Parameters
        ----------
        sequence : SequenceLike
            Was swapped out.

        Returns
        -------
        list of (int, int) or None
            Copies (host block, device block), to be carried out before anything else is written; None if
            too few blocks are free, and then nothing has changed.

        Raises
        ------
        KeyError
            If the request is not swapped out.
        """
        if sequence.request_id not in self._swapped:
            raise KeyError(f"request_id={sequence.request_id!r}: is not swapped out")
        table, host = self._swapped[sequence.request_id]
        spare = self._watermark_blocks if self._tables else 0
        if len(host) + spare > self.num_free_blocks:
            return None
        del self._swapped[sequence.request_id]
        new = self.pool.take(len(host), table.priority)
        table.blocks[table.left_behind :] = new
        self._tables[sequence.request_id] = table
        self._free_host_blocks += reversed(host)
        full, table.known = table.known, 0
        if full:
            self._make_known(sequence, table, full)
        return list(zip(host, new, strict=True))
