"""Recursive algorithms: in each round every rank exchanges with a partner twice as far, or half as far.

They need a power of two. Where the world is none, the first ranks fold in pairs beforehand: the even
one gives its whole array to the odd one, stays out, and is given the result at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpuedu.checks import check_count

from .collective import Collective, Plan, Rounds, Transfer


def recursive_doubling(world_size: int) -> Plan:
    """All-reduce in log2 n rounds: pairs, then pairs of pairs, exchange and add their whole arrays.

    The fewest rounds there are, each with the whole array: for small messages.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        floor(log2 n) rounds, 2 more where n is no power of two; 1 chunk.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    References
    ----------
    Thakur, Rabenseifner, Gropp. Optimization of collective communication operations in MPICH.
    International Journal of High Performance Computing Applications 19(1), 2005, section 4.5.

    Examples
    --------
    >>> [[(t.src, t.dst) for t in transfers] for transfers in recursive_doubling(4).rounds]
    [[(0, 1), (1, 0), (2, 3), (3, 2)], [(0, 2), (1, 3), (2, 0), (3, 1)]]
    >>> [[(t.src, t.dst) for t in transfers] for transfers in recursive_doubling(3).rounds]
    [[(0, 1)], [(1, 2), (2, 1)], [(1, 0)]]
    """
    check_count("world_size", world_size)
    rounds = tuple(
        _exchange(world_size, distance, lambda rank: (0, 1), reduce=True)
        for distance in _powers_below(world_size)
    )
    return _folded("recursive_doubling", world_size, 1, rounds)


def recursive_halving_doubling(world_size: int) -> Plan:
    """Rabenseifner's all-reduce: reduce-scatter by recursive halving, all-gather by recursive doubling.

    In each round of the first half a rank gives its partner the half of its chunks that the partner is
    to keep; the second half is the way back. As few bytes as the ring (where n is a power of two), in
    2 log2 n rounds. The large halves go to near ranks, the small ones far ("vector halving, distance
    doubling"), which spares the links between nodes.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        2 floor(log2 n) rounds, 2 more where n is no power of two; as many chunks as the largest power
        of two up to n.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    References
    ----------
    Rabenseifner. Optimization of collective reduction operations. International Conference on
    Computational Science, 2004. Thakur, Rabenseifner, Gropp 2005, section 4.5.

    Examples
    --------
    >>> plan = recursive_halving_doubling(8)
    >>> [transfers[0].stop - transfers[0].start for transfers in plan.rounds]
    [4, 2, 1, 1, 2, 4]
    >>> plan.bytes_sent(0, 8000)
    14000
    """
    check_count("world_size", world_size)
    powers, chunks = _powers_below(world_size), _power_of_two_up_to(world_size)

    def kept(member: int, distance: int) -> tuple[int, int]:
        """What ``member`` works on once it has halved with its partners less than ``distance`` away."""
        start, size = 0, chunks
        while chunks // size < distance:
            size //= 2
            start += size if member & (chunks // size // 2) else 0
        return start, start + size

    halving = tuple(
        _exchange(world_size, d, lambda member, d=d: kept(member ^ d, 2 * d), reduce=True) for d in powers
    )
    doubling = tuple(
        _exchange(world_size, d, lambda member, d=d: kept(member, 2 * d), reduce=False)
        for d in reversed(powers)
    )
    return _folded("recursive_halving_doubling", world_size, chunks, halving + doubling)


def _power_of_two_up_to(world_size: int) -> int:
    return 1 << (world_size.bit_length() - 1)


def _powers_below(world_size: int) -> list[int]:
    """1, 2, 4 ... below the largest power of two up to ``world_size``."""
    return [1 << k for k in range(world_size.bit_length() - 1)]


def _members(world_size: int) -> list[int]:
    """The ranks that take part in the exchanges, as many as a power of two: all but the folded ones."""
    folded = world_size - _power_of_two_up_to(world_size)
    return [*range(1, 2 * folded, 2), *range(2 * folded, world_size)]


def _exchange(
    world_size: int, distance: int, chunks: Callable[[int], Iterable[int]], *, reduce: bool
) -> tuple[Transfer, ...]:
    """Member i sends the ``chunks(i)`` to member i XOR ``distance``."""
    ranks = _members(world_size)
    return tuple(
        Transfer(rank, ranks[member ^ distance], *chunks(member), reduce) for member, rank in enumerate(ranks)
    )


def _folded(name: str, world_size: int, chunks: int, rounds: Rounds) -> Plan:
    """``rounds`` between a round that folds the even ranks of the first pairs in, and one back."""
    folded = range(0, 2 * (world_size - _power_of_two_up_to(world_size)), 2)
    if folded:
        before = tuple(Transfer(even, even + 1, 0, chunks, True) for even in folded)
        after = tuple(Transfer(even + 1, even, 0, chunks, False) for even in folded)
        rounds = (before, *rounds, after)
    return Plan(name, Collective.ALL_REDUCE, world_size, chunks, rounds)
