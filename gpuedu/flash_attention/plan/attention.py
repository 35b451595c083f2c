"""What is to be computed: the shape of an attention and what each query sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpuedu.checks import check_count

Span = tuple[int, int]
"""``(start, stop)``, stop not included."""


@dataclass(frozen=True)
class AttentionShape:
    """One attention: softmax(scale Q K^T) V for each head of each sequence.

    Parameters
    ----------
    queries, keys : int
        Tokens N_q that ask and N_k that are asked, of each sequence; 0 or more.
    head_dim : int
        Width d of a head.
    heads, kv_heads : int
        Heads of Q, and of K and V; ``kv_heads`` None means as many. With fewer (grouped-query attention,
        GQA), query head h uses key head h // (heads // kv_heads).
    batch : int
        Sequences.
    causal : bool
        No query sees a key after its own position. Positions are aligned at the **bottom right**: the last
        query stands beside the last key, as with a KV cache. The same as ``window=(left, 0)``.
    window : tuple
        ``(left, right)``: a query sees that many keys before and after its own position; None: all.

    Raises
    ------
    TypeError, ValueError
        For a count that is no int or too small, heads that do not divide, or a window that is none.

    References
    ----------
    Dao-AILab/flash-attention, README, on ``causal`` and ``window_size`` since version 2.1.

    Examples
    --------
    Two new tokens after three cached ones:

    >>> new = AttentionShape(queries=2, keys=5, head_dim=64, causal=True)
    >>> new.visible(0), new.visible(1)
    ((0, 4), (0, 5))
    >>> AttentionShape(6, 6, 64, window=(1, 0)).visible(4)
    (3, 5)
    """

    queries: int
    keys: int
    head_dim: int
    heads: int = 1
    kv_heads: int | None = None
    batch: int = 1
    causal: bool = False
    window: tuple[int | None, int | None] = (None, None)

    def __post_init__(self) -> None:
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        check_count("queries", self.queries, 0)
        check_count("keys", self.keys, 0)
        for name in ("head_dim", "heads", "kv_heads", "batch"):
            check_count(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal={self.causal!r}: must be a bool")
        check_window(self.window)

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.kv_heads

    @property
    def units(self) -> int:
        """Key heads of all sequences: plans are of one such unit, and all units are alike."""
        return self.batch * self.kv_heads

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """``(left, right)``: how far a query sees to either side, ``causal`` included; None: to the end."""
        left, right = self.window
        return left, 0 if self.causal else right

    @property
    def masked(self) -> bool:
        """Whether anything is hidden from any query."""
        return self.visible_pairs < self.queries * self.keys

    @property
    def visible_pairs(self) -> int:
        """Pairs of a query and a key that it sees, of one head."""
        left, right = self.reach
        return _pairs(self.queries, self.keys, self.keys - self.queries, left, right)

    def position(self, query: int) -> int:
        """The key beside which ``query`` stands."""
        return query + self.keys - self.queries

    def visible(self, query: int) -> Span:
        """The keys that ``query`` sees, as ``(start, stop)``; ``start >= stop`` if none."""
        return self.visible_keys((query, query + 1))

    def visible_keys(self, queries: Span) -> Span:
        """The keys that at least one of ``queries`` sees: always one run."""
        left, right = self.reach
        start = 0 if left is None else max(0, self.position(queries[0]) - left)
        stop = self.keys if right is None else min(self.keys, self.position(queries[1]) + right)
        return start, stop

    def seeing_queries(self, keys: Span) -> Span:
        """The queries that see at least one of ``keys``: always one run."""
        return self.transposed().visible_keys(keys)

    def sees_all(self, queries: Span, keys: Span) -> bool:
        """Whether each of ``queries`` sees each of ``keys``: such a tile needs no mask."""
        first, last = self.visible(queries[0]), self.visible(queries[1] - 1)
        return max(first[0], last[0]) <= keys[0] and keys[1] <= min(first[1], last[1])

    def transposed(self) -> AttentionShape:
        """The same pairs with queries and keys in each other's place."""
        left, right = self.reach
        return AttentionShape(self.keys, self.queries, self.head_dim, window=(right, left))


def check_window(window: object) -> None:
    """Raise unless ``window`` is a pair of reaches, each None or an int of at least 0."""
    if not isinstance(window, tuple) or len(window) != 2:
        raise TypeError(f"window={window!r}: must be a tuple (left, right)")
    for name, reach in zip(("window[0]", "window[1]"), window, strict=True):
        if reach is not None:
            check_count(name, reach, 0)


def _pairs(queries: int, keys: int, offset: int, left: int | None, right: int | None) -> int:
    """Pairs (i, j) with i + offset - left <= j <= i + offset + right."""
    up_to = queries * keys if right is None else _below(queries, keys, offset + right)
    before = 0 if left is None else _below(queries, keys, offset - left - 1)
    return up_to - before


def _below(queries: int, keys: int, shift: int) -> int:
    """Pairs (i, j) with j <= i + shift: a trapezoid between no key and all keys."""
    start = min(max(-shift, 0), queries)  # the first query with a key
    full = min(max(keys - shift - 1, start), queries)  # the first one with all keys
    ramp = full - start
    return ramp * (start + shift + 1) + ramp * (ramp - 1) // 2 + (queries - full) * keys


def varlen(
    cu_seqlens_q: Sequence[int],
    cu_seqlens_k: Sequence[int],
    head_dim: int,
    heads: int = 1,
    kv_heads: int | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
) -> tuple[AttentionShape, ...]:
    """Sequences of different lengths packed one after the other, without padding.

    Parameters
    ----------
    cu_seqlens_q, cu_seqlens_k : sequence of int
        Where each sequence begins among the packed queries and keys, and at the end where the last one
        stops: B + 1 numbers that begin with 0 and never fall.
    head_dim, heads, kv_heads, causal, window
        As for :class:`AttentionShape`.

    Returns
    -------
    tuple of AttentionShape
        One for each of the B sequences. No query sees another sequence.

    Raises
    ------
    TypeError, ValueError
        If the two do not fit together, or one does not begin with 0 or falls.

    Examples
    --------
    >>> [(a.queries, a.keys) for a in varlen([0, 2, 5], [0, 4, 9], head_dim=64)]
    [(2, 4), (3, 5)]
    """
    lengths_q = sequence_lengths("cu_seqlens_q", cu_seqlens_q)
    lengths_k = sequence_lengths("cu_seqlens_k", cu_seqlens_k)
    if len(lengths_q) != len(lengths_k):
        raise ValueError(
            f"cu_seqlens_q has {len(lengths_q)} sequences, cu_seqlens_k {len(lengths_k)}: must be as many"
        )
    return tuple(
        AttentionShape(q, k, head_dim, heads, kv_heads, 1, causal, window)
        for q, k in zip(lengths_q, lengths_k, strict=True)
    )


def sequence_lengths(name: str, cu_seqlens: Sequence[int]) -> tuple[int, ...]:
    """Lengths of the sequences that ``cu_seqlens`` bounds.

    Parameters
    ----------
    name : str
        What to call it in an error.
    cu_seqlens : sequence of int
        B + 1 offsets.

    Returns
    -------
    tuple of int
        B lengths.

    Raises
    ------
    TypeError, ValueError
        If an offset is no int, the first is not 0, there are fewer than two, or they fall.

    Examples
    --------
    >>> sequence_lengths("cu_seqlens", [0, 3, 3, 7])
    (3, 0, 4)
    """
    offsets = list(cu_seqlens)
    for offset in offsets:
        check_count(name, offset, 0)
    if len(offsets) < 2 or offsets[0] != 0:
        raise ValueError(f"{name}={offsets}: must be at least two offsets, the first of them 0")
    lengths = tuple(stop - start for start, stop in pairwise(offsets))
    if min(lengths) < 0:
        at = next(i for i, length in enumerate(lengths) if length < 0)
        raise ValueError(f"{name}: {offsets[at]} is followed by {offsets[at + 1]}; must never fall")
    return lengths
