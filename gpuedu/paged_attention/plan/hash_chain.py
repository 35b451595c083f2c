"""The prefix index that vLLM uses: a block's name is a hash of its tokens and of its parent's name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

ROOT = 0x9E3779B9
"""Parent of every first block without a salt; those with one have a parent of their salt's own."""


def extend_hashes(
    hashes: list[int], token_ids: Sequence[int], root: int, block_size: int, stop: int
) -> list[int]:
    """Extend ``hashes``, in place, to the first ``stop`` blocks of ``token_ids``.

    Parameters
    ----------
    hashes : list of int
        Hashes of the first full blocks, maybe empty.
    token_ids : Sequence[int]
        At least ``stop * block_size`` tokens, each at least 0.
    root : int
        The first block's parent, one for each salt: it goes into all hashes that follow from it.
    block_size : int
        Tokens in a block.
    stop : int
        How many blocks.

    Returns
    -------
    list of int
        The same list.

    Notes
    -----
    H_i = hash(H_{i-1}, tokens of block i). Equal blocks after different prefixes get different names, which
    they need: keys and values depend on all tokens before. Python's hash of a tuple has 64 bits and spreads
    well, but is no protection against prompts made to collide; vLLM uses SHA-256 for that.

    Examples
    --------
    >>> one, other = ([1, 2, 7, 8], [3, 4, 7, 8])
    >>> a, b = (extend_hashes([], tokens, ROOT, 2, 2) for tokens in (one, other))
    >>> a[1] == b[1]
    False
    """
    name = hashes[-1] if hashes else root
    start = len(hashes) * block_size
    for end in range(start + block_size, stop * block_size + 1, block_size):
        name = hash((name, *token_ids[start:end]))
        hashes.append(name)
        start = end
    return hashes


class HashChainIndex:
    """Full blocks by the hash of everything up to their end.

    Two blocks can hold the same tokens (two requests computed them at the same time): both stay, because
    a block table is never rewritten, and the older one is found.

    A salt is not hashed into a root, because different salts can have one hash, as -1 and -2 do: each gets a
    root of its own when it first comes, and keeps it.

    Parameters
    ----------
    num_blocks : int
        Blocks of the pool.
    block_size : int
        Tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.place: list[int | None] = [None] * num_blocks  # hash of what a block holds, while it is known
        self._roots: dict[Hashable | None, int] = {None: ROOT}
        self._first: dict[int, int] = {}
        self._more: dict[int, OrderedDict[int, None]] = {}  # further blocks of the same content, oldest first

    def _root(self, cache_salt: Hashable | None) -> int:
        """Parent of the first block under a salt."""
        return self._roots.setdefault(cache_salt, ROOT + len(self._roots))

    def match(
        self, token_ids: Sequence[int], cache_salt: Hashable | None, limit: int, hashes: list[int]
    ) -> tuple[int, ...]:
        """Blocks that hold the longest known prefix, at most ``limit``; ``hashes`` is extended as needed."""
        first, root = self._first, self._root(cache_salt)
        found: list[int] = []
        step = max(8, len(hashes))  # a miss at the start must not cost the hashes of a long prompt
        while len(found) < limit:
            stop = min(limit, len(found) + step)
            if len(hashes) < stop:
                extend_hashes(hashes, token_ids, root, self.block_size, stop)
            for name in hashes[len(found) : stop]:
                block = first.get(name)
                if block is None:
                    return tuple(found)
                found.append(block)
            step *= 2
        return tuple(found)

    def match_window(
        self,
        token_ids: Sequence[int],
        cache_salt: Hashable | None,
        limit: int,
        hashes: list[int],
        window_blocks: int,
    ) -> tuple[int | None, ...]:
        """As :meth:`match` where attention sees the last ``window_blocks`` blocks alone.

        The longest prefix whose last ``window_blocks`` blocks are known; None stands for those before.
        """
        extend_hashes(hashes, token_ids, self._root(cache_salt), self.block_size, limit)
        return longest_window([self._first.get(name) for name in hashes[:limit]], window_blocks)

    def insert(
        self,
        token_ids: Sequence[int],
        cache_salt: Hashable | None,
        table: Sequence[int],
        start: int,
        stop: int,
        hashes: list[int],
    ) -> None:
        """Make blocks ``start`` to ``stop - 1`` of ``table`` known; ``hashes`` is extended as needed."""
        if len(hashes) < stop:
            extend_hashes(hashes, token_ids, self._root(cache_salt), self.block_size, stop)
        first, place = self._first, self.place
        for i in range(start, stop):
            name, block = hashes[i], table[i]
            place[block] = name
            if first.setdefault(name, block) != block:
                self._more.setdefault(name, OrderedDict())[block] = None

    def discard(self, blocks: Sequence[int]) -> None:
        """Forget ``blocks``: they are about to hold something else."""
        first, place, more = self._first, self.place, self._more
        for block in blocks:
            name = place[block]
            if name is not None:
                place[block] = None
                if name not in more:
                    del first[name]
                else:
                    self._discard_double(name, block)

    def _discard_double(self, name: int, block: int) -> None:
        rest = self._more[name]
        if self._first[name] == block:
            self._first[name] = rest.popitem(last=False)[0]
        else:
            del rest[block]
        if not rest:
            del self._more[name]

    def __len__(self) -> int:
        """How many blocks are known."""
        return len(self._first) + sum(map(len, self._more.values()))


def longest_window(blocks: Sequence[int | None], window_blocks: int) -> tuple[int | None, ...]:
    """The longest prefix of ``blocks`` that ends in ``window_blocks`` known ones, or starts known.

    Examples
    --------
    >>> longest_window([None, 4, 5, None, 7], 2)
    (None, 4, 5)
    >>> longest_window([3, None, 5], 2)
    (3,)
    """
    run = 0
    for end in range(len(blocks) - 1, -1, -1):
        run = run + 1 if blocks[end] is not None else 0
        if run == window_blocks:
            return (None,) * end + tuple(blocks[end : end + run])
    return tuple(blocks[:run])
