"""Plans without a shape: everybody talks to one rank, or everybody to everybody."""

from __future__ import annotations

from gpuedu.checks import check_count

from .collective import Collective, Plan, Transfer
from .trees import and_back


def parameter_server(world_size: int) -> Plan:
    """All-reduce through one rank: every other sends it its array, and gets the sum back.

    Rank 0 is the server, and a worker too. All its partners' bytes go through its own link.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        2 (n - 1) rounds of one transfer of the whole array; 1 chunk.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    Examples
    --------
    >>> plan = parameter_server(8)
    >>> plan.bytes_sent(0, 1000), plan.bytes_sent(1, 1000)
    (7000, 1000)
    """
    check_count("world_size", world_size)
    to_server = tuple((Transfer(rank, 0, 0, 1, True),) for rank in range(1, world_size))
    rounds = to_server + and_back(to_server)
    return Plan("parameter_server", Collective.ALL_REDUCE, world_size, 1, rounds)


def all_to_all(world_size: int) -> Plan:
    """Pairwise all-to-all: in round k every rank sends to the one k places further.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        n - 1 rounds of n transfers of one chunk; n * n chunks, of which chunk s n + d goes from rank s
        to rank d. An array of the plan is the n arrays of the ranks one after the other.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    Examples
    --------
    >>> [[(t.src, t.dst) for t in transfers] for transfers in all_to_all(3).rounds]
    [[(0, 1), (1, 2), (2, 0)], [(0, 2), (1, 0), (2, 1)]]
    """
    check_count("world_size", world_size)
    rounds = tuple(
        tuple(
            Transfer(src, dst, src * world_size + dst, src * world_size + dst + 1, False)
            for src in range(world_size)
            for dst in [(src + further) % world_size]
        )
        for further in range(1, world_size)
    )
    return Plan("all_to_all", Collective.ALL_TO_ALL, world_size, world_size**2, rounds)
