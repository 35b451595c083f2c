"""Trees: sums travel up to a root, the result down again. A root's tree is as deep as log2 of the world."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gpuedu.checks import check_count

from .collective import Collective, Plan, Rounds, Transfer, check_rank


def reduce(world_size: int, root: int = 0) -> Plan:
    """Binomial-tree reduce: in each round every second rank that is left gives its sum away.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.
    root : int
        The rank that ends with the sum.

    Returns
    -------
    Plan
        ceil(log2 n) rounds of the whole array; 1 chunk.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1 or ``root`` is no rank.

    Examples
    --------
    >>> [[(t.src, t.dst) for t in transfers] for transfers in reduce(5).rounds]
    [[(1, 0), (3, 2)], [(2, 0)], [(4, 0)]]
    """
    check_count("world_size", world_size)
    check_rank("root", root, world_size)
    rounds = []
    distance = 1
    while distance < world_size:
        givers = range(distance, world_size, 2 * distance)
        rounds.append(
            tuple(
                Transfer((giver + root) % world_size, (giver - distance + root) % world_size, 0, 1, True)
                for giver in givers
            )
        )
        distance *= 2
    return Plan("reduce", Collective.REDUCE, world_size, 1, tuple(rounds), root)


def broadcast(world_size: int, root: int = 0) -> Plan:
    """Binomial-tree broadcast: :func:`reduce` backward.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.
    root : int
        The rank whose array it is.

    Returns
    -------
    Plan
        ceil(log2 n) rounds of the whole array; 1 chunk.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1 or ``root`` is no rank.

    Examples
    --------
    >>> [[(t.src, t.dst) for t in transfers] for transfers in broadcast(5).rounds]
    [[(0, 4)], [(0, 2)], [(0, 1), (2, 3)]]
    """
    rounds = and_back(reduce(world_size, root).rounds)
    return Plan("broadcast", Collective.BROADCAST, world_size, 1, rounds, root)


def tree(world_size: int) -> Plan:
    """All-reduce by a binomial tree: reduce to rank 0, then broadcast from it.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        2 ceil(log2 n) rounds of the whole array; 1 chunk.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    Examples
    --------
    >>> len(tree(8).rounds), len(tree(9).rounds)
    (6, 8)
    """
    up = reduce(world_size).rounds
    return Plan("tree", Collective.ALL_REDUCE, world_size, 1, up + and_back(up))


def double_binary_tree(world_size: int) -> Plan:
    """NCCL's all-reduce over two binary trees at once, half of the array through each.

    In one tree half of the ranks are leaves, which would leave half of their bandwidth idle. In the
    other one they are the inner nodes, so that all ranks send and receive about twice the array in all,
    as in a ring, over paths of log2 n hops instead of n.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Plan
        2 chunks, one per tree. In a round each rank sends at most one message and receives at most one,
        so that a rank with two children listens to them in turn.

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    Notes
    -----
    Every rank is a leaf of one tree and an inner node of the other, except one where n is odd (a leaf
    of both). NCCL sends the array in many pieces, which follow one
    another through the tree: see ``pieces`` in :func:`gpuedu.all_reduce.cost.simulate`.

    References
    ----------
    NVIDIA NCCL, ``src/graph/trees.cc``. Sanders, Speck, Träff. Two-tree algorithms for full bandwidth
    broadcast, reduction and scan. Parallel Computing 35(12), 2009.

    Examples
    --------
    >>> plan = double_binary_tree(64)
    >>> max(plan.bytes_sent(rank, 1000) for rank in range(64))
    2000
    """
    check_count("world_size", world_size)
    up = _one_message_at_a_time(double_tree_links(world_size), world_size)
    return Plan("double_binary_tree", Collective.ALL_REDUCE, world_size, 2, up + and_back(up))


def double_tree_links(world_size: int) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """The parent of every rank in NCCL's two trees.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    tuple
        Two tuples of n ranks, None at the root. The second tree is the first one seen from the other
        end (n even), or moved on by one rank (n odd).

    Raises
    ------
    TypeError, ValueError
        If ``world_size`` is no int of at least 1.

    References
    ----------
    NVIDIA NCCL, ``src/graph/trees.cc``, ``ncclGetBtree`` and ``ncclGetDtree``.

    Examples
    --------
    >>> first, second = double_tree_links(8)
    >>> first
    (None, 2, 4, 2, 0, 6, 4, 6)
    >>> second
    (1, 3, 1, 7, 5, 3, 5, None)
    """
    check_count("world_size", world_size)
    first = tuple(_parent(rank, world_size) for rank in range(world_size))

    def moved(rank: int) -> int:
        return (rank + 1) % world_size if world_size % 2 else world_size - 1 - rank

    second: list[int | None] = [None] * world_size
    for rank, parent in enumerate(first):
        second[moved(rank)] = None if parent is None else moved(parent)
    return first, tuple(second)


def _parent(rank: int, world_size: int) -> int | None:
    """The parent in a binary tree of root 0 in which odd ranks are the leaves.

    A rank's lowest bit is its height. Its parent is one bit higher: that bit is set instead, or, where
    there is no such rank, just cleared.
    """
    if rank == 0:
        return None
    lowest = rank & -rank
    parent = (rank ^ lowest) | (lowest << 1)
    return parent if parent < world_size else rank ^ lowest


def _one_message_at_a_time(trees: tuple[tuple[int | None, ...], ...], world_size: int) -> Rounds:
    """Up all trees, chunk i through tree i: the longest way first, one send and one receive a rank."""
    waits = [Counter(parents) for parents in trees]  # children that a rank has not heard yet
    edges = [
        (-_depth(parents, rank), chunk, rank)
        for chunk, parents in enumerate(trees)
        for rank in range(world_size)
    ]
    left = sorted(edge for edge in edges if edge[0])
    rounds = []
    while left:
        senders: set[int] = set()
        receivers: set[int] = set()
        now, later = [], []
        for edge in left:
            _, chunk, rank = edge
            parent = trees[chunk][rank]
            if waits[chunk][rank] == 0 and rank not in senders and parent not in receivers:
                senders.add(rank)
                receivers.add(parent)
                now.append(Transfer(rank, parent, chunk, chunk + 1, True))
            else:
                later.append(edge)
        for transfer in now:
            waits[transfer.start][transfer.dst] -= 1
        rounds.append(tuple(now))
        left = later
    return tuple(rounds)


def _depth(parents: tuple[int | None, ...], rank: int | None) -> int:
    """Hops from ``rank`` to the root."""
    hops = 0
    while (rank := parents[rank]) is not None:
        hops += 1
    return hops


def and_back(rounds: Rounds) -> Rounds:
    """The way back of ``rounds``: last round first, from receiver to sender, copies for sums."""
    return tuple(
        tuple(replace(t, src=t.dst, dst=t.src, reduce=False) for t in transfers)
        for transfers in reversed(rounds)
    )
