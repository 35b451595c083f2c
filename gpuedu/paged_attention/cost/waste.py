"""Where the slots of a KV cache go: tokens, and the three kinds of waste."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuedu.checks import check_amount, check_count


@dataclass(frozen=True)
class MemoryUse:
    """Token slots of a KV cache at one time, by what they are for.

    Attributes
    ----------
    capacity : int
        All slots.
    tokens : int
        Slots that hold a token.
    reserved : int
        Held for tokens that the same requests will still produce: used later, to nobody's use now.
    internal : int
        Held beyond that: a reservation's end that is never reached, a last block's empty slots.
    requests : int
        Requests that hold slots.
    """

    capacity: int
    tokens: int
    reserved: int
    internal: int
    requests: int

    @property
    def external(self) -> int:
        """Held by nobody: what the allocator rounds up, and holes that the next request does not fit into."""
        return self.capacity - self.tokens - self.reserved - self.internal

    @property
    def shares(self) -> dict[str, float]:
        """The four parts as shares of the capacity; they add up to 1."""
        parts = ("tokens", "reserved", "internal", "external")
        return {part: getattr(self, part) / self.capacity for part in parts}


def average(uses: Sequence[MemoryUse]) -> dict[str, float]:
    """Mean shares over time.

    Parameters
    ----------
    uses : Sequence[MemoryUse]
        At equal distances in time.

    Returns
    -------
    dict
        As :attr:`MemoryUse.shares`.

    Raises
    ------
    ValueError
        If there are none.

    Examples
    --------
    >>> average([MemoryUse(8, 2, 1, 3, 1), MemoryUse(8, 4, 1, 3, 1)])["tokens"]
    0.375
    """
    if not uses:
        raise ValueError("uses: must be at least one; did the memory ever fill up?")
    total = {part: 0.0 for part in uses[0].shares}
    for use in uses:
        for part, share in use.shares.items():
            total[part] += share
    return {part: share / len(uses) for part, share in total.items()}


def tail_slots(tokens: int, block_size: int) -> int:
    """Empty slots in the last block of a sequence.

    Parameters
    ----------
    tokens : int
        Length of the sequence, at least 1.
    block_size : int
        Tokens in a block.

    Returns
    -------
    int
        0 to ``block_size - 1``.

    Examples
    --------
    >>> tail_slots(17, 16), tail_slots(32, 16)
    (15, 0)
    """
    check_count("tokens", tokens)
    check_count("block_size", block_size)
    return -tokens % block_size


def tail_share(tokens: float, block_size: int) -> float:
    """Share of a sequence's slots that its last block wastes, for a length known roughly.

    Parameters
    ----------
    tokens : float
        Length of the sequence, above 0.
    block_size : int
        Tokens in a block.

    Returns
    -------
    float
        ``w / (tokens + w)`` with ``w = (block_size - 1) / 2``: every remainder equally likely.

    Examples
    --------
    >>> [round(100 * tail_share(n, b), 1) for n, b in ((60, 16), (1366, 16), (1366, 256))]
    [11.1, 0.5, 8.5]
    """
    check_amount("tokens", tokens, positive=True)
    check_count("block_size", block_size)
    empty = (block_size - 1) / 2
    return empty / (tokens + empty)


def table_bytes(tokens: int, block_size: int, entry_bytes: int = 4) -> int:
    """Bytes of the block table of a sequence: one entry a block.

    Parameters
    ----------
    tokens : int
        Length of the sequence, at least 1.
    block_size : int
        Tokens in a block.
    entry_bytes : int
        Bytes of an entry; vLLM's are 32-bit numbers.

    Returns
    -------
    int

    Examples
    --------
    >>> table_bytes(1366, 16)
    344
    """
    check_count("tokens", tokens)
    check_count("block_size", block_size)
    check_count("entry_bytes", entry_bytes)
    return -(-tokens // block_size) * entry_bytes


def reserved_to_the_maximum(
    lengths: Iterable[tuple[int, int]], capacity: int, longest: int
) -> dict[str, Fraction]:
    """What becomes of the memory when every request gets ``longest`` slots, in closed form.

    Parameters
    ----------
    lengths : iterable of (int, int)
        Prompt and output tokens of the requests.
    capacity : int
        Slots of the cache.
    longest : int
        Slots of a request.

    Returns
    -------
    dict
        Mean shares over time, with a backlog: ``tokens``, ``reserved``, ``internal``, ``external``.

    Raises
    ------
    ValueError, TypeError
        If there are no requests, one has less than a token of prompt or of output or more than ``longest``
        of both, or the cache holds less than ``longest``.

    Notes
    -----
    A request is seen once for each token that it produces, so long outputs weigh more: with prompt p and
    output o, each time-averaged mean is E[o x] / E[o]. A token has its slot from the step that makes it, the
    last one too: over the o steps of a request p + 1 to p + o are held, p + (o + 1) / 2 on average, and
    (o - 1) / 2 are to come. Only whole pieces of ``longest`` fit, the rest is external.

    Examples
    --------
    >>> shares = reserved_to_the_maximum([(160, 599)], 15_728, 2_048)
    >>> {part: round(100 * float(share), 1) for part, share in shares.items()}
    {'tokens': 20.5, 'reserved': 13.3, 'internal': 57.4, 'external': 8.9}
    """
    check_count("longest", longest)
    check_count("capacity", capacity, minimum=longest)
    lengths = list(lengths)
    if not lengths:
        raise ValueError("lengths: must be at least one request's")
    for prompt, output in lengths:
        check_count("prompt", prompt)
        check_count("output", output)
        if prompt + output > longest:
            raise ValueError(f"prompt + output = {prompt + output}: must be at most longest={longest}")
    weight = sum(output for _, output in lengths)
    held = Fraction(sum(o * (2 * p + o + 1) for p, o in lengths), 2 * weight)
    coming = Fraction(sum(o * (o - 1) for _, o in lengths), 2 * weight)
    pieces = capacity // longest
    tokens, reserved = held * pieces / capacity, coming * pieces / capacity
    filled = Fraction(pieces * longest, capacity)
    return {
        "tokens": tokens,
        "reserved": reserved,
        "internal": filled - tokens - reserved,
        "external": 1 - filled,
    }
