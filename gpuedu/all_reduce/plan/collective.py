"""What a plan is: rounds of transfers of chunks between ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from gpuedu.checks import check_count


class Collective(Enum):
    """What is to be true at the end, given what the ranks hold at the start.

    ==================  =============================  =======================================
    collective          every rank starts with         ends with
    ==================  =============================  =======================================
    ``ALL_REDUCE``      its own array                  the sum of all arrays, on every rank
    ``REDUCE_SCATTER``  its own array                  chunk r of the sum, on rank r
    ``ALL_GATHER``      chunk r, on rank r             all chunks, on every rank
    ``BROADCAST``       the array, on the root         the root's array, on every rank
    ``REDUCE``          its own array                  the sum of all arrays, on the root
    ``ALL_TO_ALL``      chunks s n to s n + n - 1,     chunk s n + d of every s, on rank d
                        on rank s of n
    ==================  =============================  =======================================
    """

    ALL_REDUCE = "all_reduce"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    BROADCAST = "broadcast"
    REDUCE = "reduce"
    ALL_TO_ALL = "all_to_all"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message: the chunks ``start`` to ``stop - 1`` go from rank ``src`` to rank ``dst``.

    With ``reduce`` the receiver adds what arrives to what it has, else what arrives takes its place.
    """

    src: int
    dst: int
    start: int
    stop: int
    reduce: bool


Rounds = tuple[tuple[Transfer, ...], ...]


@dataclass(frozen=True)
class Plan:
    """A collective as rounds of transfers.

    Within a round, all transfers send what the ranks held before the round.

    Parameters
    ----------
    name : str
        What the algorithm is called.
    collective : Collective
        What it does.
    world_size : int
        Number of ranks n.
    chunks : int
        Number of chunks that the array is cut into, as equal as it allows.
    rounds : tuple
        ``rounds[i]`` is a tuple of :class:`Transfer`.
    root : int
        The rank that a broadcast starts from and a reduce ends on; 0 for the others.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` or ``chunks`` is no int of at least 1, or ``root`` is no rank.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import ring
    >>> plan = ring(2)
    >>> plan.rounds[0][0]
    Transfer(src=0, dst=1, start=1, stop=2, reduce=True)
    >>> [[(t.src, t.dst, t.reduce) for t in transfers] for transfers in plan.rounds]
    [[(0, 1, True), (1, 0, True)], [(0, 1, False), (1, 0, False)]]
    """

    name: str
    collective: Collective
    world_size: int
    chunks: int
    rounds: Rounds
    root: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.collective, Collective):
            raise TypeError(f"collective={self.collective!r}: must be a Collective")
        check_count("world_size", self.world_size)
        check_count("chunks", self.chunks)
        check_rank("root", self.root, self.world_size)

    @property
    def transfers(self) -> Iterator[Transfer]:
        """Every transfer, round by round."""
        return (transfer for transfers in self.rounds for transfer in transfers)

    def bounds(self, length: int) -> tuple[int, ...]:
        """Where an array is cut.

        Parameters
        ----------
        length : int
            Elements in the array, 0 or more.

        Returns
        -------
        tuple of int
            ``chunks + 1`` offsets: chunk c is ``array[bounds[c]:bounds[c + 1]]``. Sizes differ by one
            element at most, and none is lost.

        Raises
        ------
        TypeError, ValueError
            If ``length`` is no int or negative.

        Examples
        --------
        >>> from gpuedu.all_reduce.plan import ring
        >>> ring(4).bounds(10)
        (0, 2, 5, 7, 10)
        """
        check_count("length", length, 0)
        return tuple(chunk * length // self.chunks for chunk in range(self.chunks + 1))

    def byte_bounds(self, nbytes: int, itemsize: int = 1) -> tuple[int, ...]:
        """:meth:`bounds` in bytes.

        Parameters
        ----------
        nbytes : int
            Bytes of the whole array, a multiple of ``itemsize``.
        itemsize : int
            Bytes of one element: an element is never cut.

        Returns
        -------
        tuple of int
            ``chunks + 1`` offsets in bytes.

        Raises
        ------
        TypeError, ValueError
            If an argument is no int or not allowed.

        Examples
        --------
        >>> from gpuedu.all_reduce.plan import ring
        >>> ring(4).byte_bounds(40, itemsize=4)
        (0, 8, 20, 28, 40)
        """
        check_count("nbytes", nbytes, 0)
        check_count("itemsize", itemsize)
        if nbytes % itemsize:
            raise ValueError(f"nbytes={nbytes}: must be a multiple of itemsize={itemsize}")
        return tuple(itemsize * offset for offset in self.bounds(nbytes // itemsize))

    def bytes_sent(self, rank: int, nbytes: int, itemsize: int = 1) -> int:
        """Bytes that one rank sends.

        Parameters
        ----------
        rank : int
            Which one.
        nbytes, itemsize : int
            As for :meth:`byte_bounds`.

        Returns
        -------
        int
            Bytes, exact for sizes that the chunks do not divide too.

        Raises
        ------
        TypeError, ValueError
            If an argument is no int or not allowed.

        Examples
        --------
        >>> from gpuedu.all_reduce.plan import ring
        >>> ring(4).bytes_sent(0, 1000)  # 2 (n - 1) / n of the array
        1500
        """
        check_rank("rank", rank, self.world_size)
        at = self.byte_bounds(nbytes, itemsize)
        return sum(at[t.stop] - at[t.start] for t in self.transfers if t.src == rank)

    def bytes_received(self, rank: int, nbytes: int, itemsize: int = 1) -> int:
        """Bytes that one rank receives; arguments and errors as for :meth:`bytes_sent`.

        Examples
        --------
        >>> from gpuedu.all_reduce.plan import parameter_server
        >>> [parameter_server(4).bytes_received(rank, 1000) for rank in range(4)]
        [3000, 1000, 1000, 1000]
        """
        check_rank("rank", rank, self.world_size)
        at = self.byte_bounds(nbytes, itemsize)
        return sum(at[t.stop] - at[t.start] for t in self.transfers if t.dst == rank)

    def link_bytes(self, nbytes: int, itemsize: int = 1) -> dict[tuple[int, int], int]:
        """Bytes from each rank to each other, one direction at a time.

        Parameters
        ----------
        nbytes, itemsize : int
            As for :meth:`byte_bounds`.

        Returns
        -------
        dict
            ``{(src, dst): bytes}`` for the pairs that talk, in order.

        Raises
        ------
        TypeError, ValueError
            If an argument is no int or not allowed.

        Examples
        --------
        >>> from gpuedu.all_reduce.plan import tree
        >>> tree(3).link_bytes(100)
        {(0, 1): 100, (0, 2): 100, (1, 0): 100, (2, 0): 100}
        """
        at = self.byte_bounds(nbytes, itemsize)
        total: Counter[tuple[int, int]] = Counter()
        for t in self.transfers:
            total[t.src, t.dst] += at[t.stop] - at[t.start]
        return dict(sorted(total.items()))


def check_rank(name: str, value: int, world_size: int) -> None:
    """Raise unless ``value`` is a rank of ``world_size``."""
    check_count(name, value, 0)
    if value >= world_size:
        raise ValueError(f"{name}={value}: must be from 0 to {world_size - 1}")
