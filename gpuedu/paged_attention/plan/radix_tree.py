"""The prefix index that SGLang uses: a radix tree over tokens, in steps of whole blocks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


class _Node:
    """A run of blocks without a fork: their tokens, the blocks that hold them, and what may follow."""

    __slots__ = ("blocks", "children", "parent", "tokens")

    def __init__(self, parent: _Node | None, tokens: list[tuple], blocks: list[int]) -> None:
        self.parent = parent
        self.tokens = tokens
        self.blocks = blocks
        self.children: dict[tuple, _Node] = {}


class RadixTreeIndex:
    """Full blocks by the tokens on the way to them from the root, one root a salt.

    It compares tokens, not hashes, so that nothing can collide. Of two blocks with the same tokens after
    the same prefix it knows the first alone. When a block inside the tree goes, all that follow from it
    are forgotten too: no prompt can reach them any more.

    Parameters
    ----------
    num_blocks : int
        Blocks of the pool.
    block_size : int
        Tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.place: list[_Node | None] = [None] * num_blocks  # the node that a block is in
        self._roots: dict[Hashable, _Node] = {}
        self._count = 0

    def match(
        self,
        token_ids: Sequence[int],
        cache_salt: Hashable | None,
        limit: int,
        hashes: list[int],
    ) -> tuple[int, ...]:
        """As :meth:`HashChainIndex.match`; ``hashes`` is left alone."""
        found: list[int] = []
        node = self._roots.get(cache_salt)
        while node is not None and len(found) < limit:
            node = node.children.get(self._tokens(token_ids, len(found)))
            if node is not None:
                same = self._common(node, token_ids, len(found), limit)
                found += node.blocks[:same]
                if same < len(node.blocks):
                    break
        return tuple(found)

    def _tokens(self, token_ids: Sequence[int], i: int) -> tuple:
        return tuple(token_ids[i * self.block_size : (i + 1) * self.block_size])

    def _common(self, node: _Node, token_ids: Sequence[int], start: int, stop: int) -> int:
        """How many of a node's blocks hold the tokens of blocks ``start`` to ``stop - 1``."""
        most = min(len(node.tokens), stop - start)
        return next((i for i in range(most) if node.tokens[i] != self._tokens(token_ids, start + i)), most)

    def insert(
        self,
        token_ids: Sequence[int],
        cache_salt: Hashable | None,
        table: Sequence[int],
        start: int,
        stop: int,
        hashes: list[int],
    ) -> None:
        """Make blocks ``start`` to ``stop - 1`` of ``table`` known, where their tokens are not known yet."""
        node, at, i = self._end_of(token_ids, cache_salt, table, start)
        while node is not None and i < stop:
            if at < len(node.blocks):
                same = 0
                while i < stop and at < len(node.blocks) and node.tokens[at] == self._tokens(token_ids, i):
                    same, at, i = same + 1, at + 1, i + 1
                if at == len(node.blocks) or i == stop:
                    continue
                self._split(node, at)
            key = self._tokens(token_ids, i)
            child = node.children.get(key)
            if child is not None:
                node, at = child, 0
                continue
            self._append(node, [self._tokens(token_ids, j) for j in range(i, stop)], table[i:stop])
            break

    def _end_of(
        self, token_ids: Sequence[int], cache_salt: Hashable | None, table: Sequence[int], start: int
    ) -> tuple[_Node | None, int, int]:
        """Where to go on: a node, how many of its blocks lie behind, and the number of the next block."""
        before = self.place[table[start - 1]] if start else None
        if before is not None:  # the usual case: this request's last full block is in the tree
            return before, before.blocks.index(table[start - 1]) + 1, start
        root = self._roots.get(cache_salt)
        if root is None:
            root = self._roots[cache_salt] = _Node(None, [], [])
        return root, 0, 0

    def _append(self, node: _Node, tokens: list[tuple], blocks: Sequence[int]) -> None:
        """Let ``blocks`` follow on ``node``: in it if nothing else does, or as a child."""
        if node.parent is not None and not node.children:
            node.tokens += tokens
            node.blocks += blocks
        else:
            child = _Node(node, tokens, list(blocks))
            node.children[tokens[0]] = child
            node = child
        for block in blocks:
            self.place[block] = node
        self._count += len(blocks)

    def _split(self, node: _Node, at: int) -> None:
        """Cut a run in two; ``node`` keeps the first ``at`` blocks."""
        tail = _Node(node, node.tokens[at:], node.blocks[at:])
        tail.children = node.children
        for child in tail.children.values():
            child.parent = tail
        del node.tokens[at:], node.blocks[at:]
        node.children = {tail.tokens[0]: tail}
        for block in tail.blocks:
            self.place[block] = tail

    def discard(self, blocks: Sequence[int]) -> None:
        """Forget ``blocks`` and all that follow from them: they are about to hold something else."""
        for block in blocks:
            node = self.place[block]
            if node is not None:
                at = len(node.blocks) - 1 if node.blocks[-1] == block else node.blocks.index(block)
                self._cut(node, at)

    def _cut(self, node: _Node, at: int) -> None:
        """Forget a node's blocks from ``at`` on, and all below it."""
        first, gone = node.tokens[0], node.blocks[at:]
        below = list(node.children.values())
        while below:
            each = below.pop()
            gone += each.blocks
            below += each.children.values()
        for block in gone:
            self.place[block] = None
        self._count -= len(gone)
        node.children = {}
        del node.tokens[at:], node.blocks[at:]
        while node.parent is not None and not node.blocks and not node.children:
            parent = node.parent
            del parent.children[first]
            first, node = (parent.tokens or [()])[0], parent
        if node.parent is None and not node.children:
            self._roots = {salt: root for salt, root in self._roots.items() if root is not node}

    def __len__(self) -> int:
        """How many blocks are known."""
        return self._count
