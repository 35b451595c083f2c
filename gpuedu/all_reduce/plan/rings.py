"""Rings: every rank sends to the next one only, and all of them do so in every round."""

from __future__ import annotations

from gpuedu.checks import check_count

from .collective import Collective, Plan, Rounds, Transfer


def reduce_scatter(world_size: int) -> Plan:
    """Ring reduce-scatter: partial sums travel once around, and each ends complete on one rank.

    Chunk c sets out from rank c + 1, each rank on its way adds its own, and rank c is the last.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        n - 1 rounds of n transfers of one chunk; n chunks.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    Examples
    --------
    >>> [[t.start for t in transfers] for transfers in reduce_scatter(3).rounds]  # of ranks 0, 1, 2
    [[2, 0, 1], [1, 2, 0]]
    """
    check_count("world_size", world_size)
    rounds = _around([range(world_size)], 1, reduce=True)
    return Plan("reduce_scatter", Collective.REDUCE_SCATTER, world_size, world_size, rounds)


def all_gather(world_size: int) -> Plan:
    """Ring all-gather: each rank's chunk travels once around, and every rank keeps a copy.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        n - 1 rounds of n transfers of one chunk; n chunks.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    Examples
    --------
    >>> [[t.start for t in transfers] for transfers in all_gather(3).rounds]  # of ranks 0, 1, 2
    [[0, 1, 2], [2, 0, 1]]
    """
    check_count("world_size", world_size)
    rounds = _around([range(world_size)], 1, reduce=False)
    return Plan("all_gather", Collective.ALL_GATHER, world_size, world_size, rounds)


def ring(world_size: int) -> Plan:
    """Ring all-reduce: a ring reduce-scatter, then a ring all-gather.

    Every rank sends 2 (n - 1) / n of the array; in no all-reduce does the busiest rank send less. But the
    number of rounds grows with n.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        2 (n - 1) rounds of n transfers of one chunk; n chunks.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    References
    ----------
    Patarasuk, Yuan. Bandwidth optimal all-reduce algorithms for clusters of workstations. Journal of
    Parallel and Distributed Computing 69(2), 2009.

    Examples
    --------
    >>> len(ring(8).rounds), ring(8).bytes_sent(3, 8000)
    (14, 14000)
    """
    check_count("world_size", world_size)
    rounds = reduce_scatter(world_size).rounds + all_gather(world_size).rounds
    return Plan("ring", Collective.ALL_REDUCE, world_size, world_size, rounds)


def hierarchical(nodes: int, gpus_per_node: int) -> Plan:
    """Reduce-scatter in each node, all-reduce across nodes, all-gather in each node; all by rings.

    Ranks are counted node by node. After the first phase GPU i of each node holds part i of the node's
    sum; the GPUs i of all nodes then form a ring of their own. Across nodes each GPU sends only
    1 / ``gpus_per_node`` of what a flat ring's GPUs at the ends of a node do.

    Parameters
    ----------
    nodes : int
        Nodes m, at least 1.
    gpus_per_node : int
        GPUs g of a node, at least 1.

    Returns
    -------
    Plan
        2 (g - 1) + 2 (m - 1) rounds; m g chunks.

    Raises
    ------
    TypeError, ValueError
        If a count is no int of at least 1.

    Examples
    --------
    >>> plan = hierarchical(nodes=4, gpus_per_node=8)
    >>> len(plan.rounds)
    20
    >>> plan.link_bytes(32_000)[0, 8]  # from a GPU to its peer in the next node: 2 (m - 1) / m of an eighth
    6000
    """
    check_count("nodes", nodes)
    check_count("gpus_per_node", gpus_per_node)
    inside = [range(node * gpus_per_node, (node + 1) * gpus_per_node) for node in range(nodes)]
    across = [range(gpu, nodes * gpus_per_node, gpus_per_node) for gpu in range(gpus_per_node)]
    offsets = [gpu * nodes for gpu in range(gpus_per_node)]
    rounds = (
        _around(inside, nodes, reduce=True)
        + _around(across, 1, reduce=True, offsets=offsets)
        + _around(across, 1, reduce=False, offsets=offsets)
        + _around(inside, nodes, reduce=False)
    )
    size = nodes * gpus_per_node
    return Plan("hierarchical", Collective.ALL_REDUCE, size, size, rounds)


def _around(
    rings: list[range],
    width: int,
    *,
    reduce: bool,
    offsets: list[int] | None = None,
) -> Rounds:
    """Rings of n ranks side by side: n parts of ``width`` chunks go around each.

    Part p of ring i begins at chunk ``offsets[i] + p * width``. With ``reduce`` it
    ends on the ring's rank p, without it it starts there.
    """
    size = len(rings[0])
    ahead = 1 if reduce else 0
    return tuple(
        tuple(
            Transfer(ring[i], ring[i + 1 - size], start, start + width, reduce)
            for ring, offset in zip(rings, offsets or [0] * len(rings), strict=True)
            for i in range(size)
            for start in [offset + (i - step - ahead) % size * width]
        )
        for step in range(size - 1)
    )
