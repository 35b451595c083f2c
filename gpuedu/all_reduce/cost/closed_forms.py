"""The formulas: what an algorithm takes when every rank has one link to all others.

n is ``world_size``, S the bytes of the array, alpha the link's latency, B its bandwidth in one direction,
gamma the seconds to add a byte. Each formula is the plan's price round by round
(:func:`~gpuedu.all_reduce.cost.round_times`) wherever the plan's chunks divide the array evenly; where
they do not, a round takes up to one element longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isqrt

from gpuedu.checks import check_amount, check_count
from gpuedu.hardware import Cluster, Link


@dataclass(frozen=True)
class Terms:
    """A price as alpha, beta and gamma see it: ``latencies`` alpha + ``sent`` S / B + ``added`` gamma S.

    Parameters
    ----------
    latencies : int
        Rounds, one latency each.
    sent : float
        Bytes one after the other on the way to the end, in arrays.
    added : float
        Bytes summed one after the other, in arrays.
    """

    latencies: int
    sent: float
    added: float

    def seconds(self, nbytes: float, link: Link, gamma: float = 0.0) -> float:
        """The price of an array of ``nbytes`` over ``link``."""
        return self.latencies * link.latency_s + nbytes * (self.sent / link.bandwidth + self.added * gamma)


def terms(algorithm: str, world_size: int) -> Terms:
    """The coefficients of an algorithm's price.

    Parameters
    ----------
    algorithm : str
        The name of a plan: ``ring``, ``tree``, ``double_binary_tree``, ``recursive_doubling``,
        ``recursive_halving_doubling``, ``parameter_server``, ``reduce_scatter``, ``all_gather``,
        ``broadcast``, ``reduce`` or ``all_to_all``.
    world_size : int
        Number of ranks n, at least 1.

    Returns
    -------
    Terms
        Without pieces.

    Raises
    ------
    TypeError, ValueError
        For another name, or if ``world_size`` is no int of at least 1.

    Notes
    -----
    With d = floor(log2 n), p = 2^d, f = 0 if n = p and else 1, and e = ceil(log2 n) = d + f:

    ==============================  =================  =========================  ==================
    algorithm                       latencies          sent                       added
    ==============================  =================  =========================  ==================
    ring                            2 (n - 1)          2 (n - 1) / n              (n - 1) / n
    recursive halving-doubling      2 d + 2 f          2 (p - 1) / p + 2 f        (p - 1) / p + f
    recursive doubling              d + 2 f            d + 2 f                    d + f
    tree (binomial)                 2 e                2 e                        e
    double binary tree, one piece   4 d - 2 (1 - f)    2 d - (1 - f)              d - (1 - f) / 2
    parameter server                2 (n - 1)          2 (n - 1)                  n - 1
    ==============================  =================  =========================  ==================

    The ring's and, where n is a power of two, halving-doubling's 2 (n - 1) / n is the least that the
    busiest rank of any algorithm can send.

    References
    ----------
    Thakur, Rabenseifner, Gropp. Optimization of collective communication operations in MPICH. 2005.
    Patarasuk, Yuan 2009 (the lower bound).

    Examples
    --------
    >>> terms("ring", 8)
    Terms(latencies=14, sent=1.75, added=0.875)
    >>> terms("recursive_halving_doubling", 8).latencies, terms("recursive_doubling", 8).sent
    (6, 3)
    """
    check_count("world_size", world_size)
    if algorithm not in _TERMS:
        raise ValueError(f"algorithm={algorithm!r}: must be one of {', '.join(_TERMS)}")
    return _TERMS[algorithm](world_size)


def collective_time(
    algorithm: str, world_size: int, nbytes: float, link: Link, *, pieces: int = 1, gamma: float = 0.0
) -> float:
    """What a collective takes by one algorithm, every rank having one ``link`` to all others.

    Parameters
    ----------
    algorithm : str
        The name of a plan, as for :func:`terms`.
    world_size : int
        Number of ranks n, at least 1.
    nbytes : float
        Bytes S of the total array (for all-gather and reduce-scatter too).
    link : Link
        Between any two ranks.
    pieces : int
        Pieces k of each chunk; more than 1 for the double binary tree alone.
    gamma : float
        Seconds to add one byte.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Notes
    -----
    :func:`terms` gives the formula for one piece. A double binary tree of R rounds with k pieces takes
    (R + c (k - 1)) (alpha + S / (2 k B)): every further piece keeps the busiest port for c = 4 messages
    (n = 2: 2, n = 3: 3). What adding takes is hidden behind the next piece but for the first one.
    :func:`~gpuedu.all_reduce.cost.simulate`, which does not find the best order of messages, is up to a
    third slower than this; where pieces are few, it can be a little faster.

    Examples
    --------
    >>> from gpuedu.hardware import LINKS
    >>> ndr = LINKS["InfiniBand-NDR"]
    >>> [round(1e3 * collective_time("ring", n, 13.5e9, ndr)) for n in (8, 1024)]  # milliseconds
    [473, 548]
    >>> [round(1e6 * collective_time(name, 64, 8192, ndr)) for name in ("ring", "recursive_doubling")]
    [504, 25]
    """
    price = terms(algorithm, world_size)
    check_amount("nbytes", nbytes)
    check_amount("gamma", gamma)
    check_count("pieces", pieces)
    if pieces == 1:
        return price.seconds(nbytes, link, gamma)
    if algorithm != "double_binary_tree":
        raise ValueError(
            f"pieces={pieces}: must be 1 for {algorithm}; there is a formula for the double binary tree"
        )
    message = link.transfer_time(nbytes / (2 * pieces))
    slots = price.latencies + _period(world_size) * (pieces - 1)
    return slots * message + price.added * gamma * nbytes / pieces


def best_pieces(world_size: int, nbytes: float, link: Link) -> int:
    """The number of pieces that makes :func:`collective_time` of the double binary tree least.

    Parameters
    ----------
    world_size : int
        Number of ranks n, at least 1.
    nbytes : float
        Bytes S of the array.
    link : Link
        Between any two ranks.

    Returns
    -------
    int
        At least 1: sqrt((R - c) S / (2 c alpha B)), or its neighbor, where R - c > 0. A piece has at
        least one byte.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Examples
    --------
    >>> from gpuedu.hardware import LINKS
    >>> [best_pieces(64, 2.0**e, LINKS["InfiniBand-NDR"]) for e in (10, 20, 30)]
    [1, 3, 110]
    """
    check_amount("nbytes", nbytes)
    rounds, period = terms("double_binary_tree", world_size).latencies, _period(world_size)
    most = max(1, int(nbytes // 2))
    if rounds <= period or most == 1:
        return 1
    if link.latency_s == 0:
        return most
    square = (rounds - period) * nbytes / (2 * period * link.latency_s * link.bandwidth)
    low = min(max(1, isqrt(int(square))), most)
    return min(
        (low, min(low + 1, most)),
        key=lambda pieces: collective_time("double_binary_tree", world_size, nbytes, link, pieces=pieces),
    )


def crossover(small: str, large: str, world_size: int, link: Link, *, gamma: float = 0.0) -> float:
    """From which size on one algorithm is faster than another one.

    Parameters
    ----------
    small, large : str
        Names of plans, as for :func:`terms`: the one with fewer rounds, and the one with fewer bytes.
    world_size : int
        Number of ranks n, at least 1.
    link : Link
        Between any two ranks.
    gamma : float
        Seconds to add one byte.

    Returns
    -------
    float
        Bytes above which ``large`` takes less time than ``small``; 0 if it always does and ``inf`` if it
        never does.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed, or ``large`` has fewer rounds and more bytes.

    Notes
    -----
    Both prices are straight lines over S, which meet at

        alpha (rounds of large - rounds of small) / ((bytes of small - bytes of large) / B).

    For halving-doubling against the ring the bytes are equal where n is a power of two, so that the ring
    never wins; elsewhere, with p the largest power of two below n, it does above
    2 alpha B (n - 2 - log2 p) / (2 / n + 2 - 2 / p).

    Examples
    --------
    >>> from gpuedu.hardware import LINKS
    >>> ndr = LINKS["InfiniBand-NDR"]
    >>> crossover("recursive_halving_doubling", "ring", 64, ndr)
    inf
    >>> round(crossover("recursive_halving_doubling", "ring", 48, ndr) / 1e6, 1)  # MB
    8.3
    >>> round(crossover("recursive_doubling", "recursive_halving_doubling", 64, ndr) / 1e3)  # kB
    298
    """
    check_amount("gamma", gamma)
    few, lean = terms(small, world_size), terms(large, world_size)
    rounds = (lean.latencies - few.latencies) * link.latency_s
    saved = (few.sent - lean.sent) / link.bandwidth + (few.added - lean.added) * gamma
    if saved < 0 and rounds < 0:
        raise ValueError(
            f"small={small!r}, large={large!r}: must be the other way round at {world_size} ranks"
        )
    if saved <= 0:
        return 0.0 if rounds < 0 else inf
    return max(0.0, rounds / saved)


def flat_ring_time(cluster: Cluster, nbytes: float, *, gamma: float = 0.0) -> float:
    """One ring through all GPUs of a cluster, node by node.

    Parameters
    ----------
    cluster : Cluster
        Of n GPUs.
    nbytes : float
        Bytes S of the array.
    gamma : float
        Seconds to add one byte.

    Returns
    -------
    float
        Seconds: 2 (n - 1) (t + ...), where t is the time of S / n bytes over the slowest link on the
        way. One hop between nodes makes every round wait for it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> pod = Cluster(GPUS["A100-80GB"], 8, 4, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    >>> round(1e3 * flat_ring_time(pod, 1e9), 1)  # milliseconds
    77.7
    """
    check_amount("nbytes", nbytes)
    check_amount("gamma", gamma)
    n = cluster.world_size
    links = [cluster.intra_node] * (cluster.gpus_per_node > 1) + [cluster.inter_node] * (cluster.nodes > 1)
    hop = max((link.transfer_time(nbytes / n) for link in links), default=0.0)
    return (n - 1) * (2 * hop + gamma * nbytes / n)


def hierarchical_time(cluster: Cluster, nbytes: float, *, gamma: float = 0.0) -> float:
    """Reduce-scatter in each node, rings across nodes, all-gather in each node.

    Parameters
    ----------
    cluster : Cluster
        Of m nodes with g GPUs each.
    nbytes : float
        Bytes S of the array.
    gamma : float
        Seconds to add one byte.

    Returns
    -------
    float
        Seconds: a ring all-reduce of S over g GPUs inside, and one of S / g over m nodes across.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> pod = Cluster(GPUS["A100-80GB"], 8, 4, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    >>> round(1e3 * hierarchical_time(pod, 1e9), 1)  # milliseconds
    13.4
    """
    inside = collective_time("ring", cluster.gpus_per_node, nbytes, cluster.intra_node, gamma=gamma)
    part = nbytes / cluster.gpus_per_node
    return inside + collective_time("ring", cluster.nodes, part, cluster.inter_node, gamma=gamma)


def _ring(n: int) -> Terms:
    return Terms(2 * (n - 1), 2 * (n - 1) / n, (n - 1) / n)


def _half_ring(n: int, adds: bool) -> Terms:
    return Terms(n - 1, (n - 1) / n, (n - 1) / n if adds else 0)


def _logarithm(n: int) -> tuple[int, int, int]:
    """floor(log2 n), the power of two of that, and 1 if n is more than that."""
    d = n.bit_length() - 1
    return d, 1 << d, int(n != 1 << d)


def _halving_doubling(n: int) -> Terms:
    d, p, folds = _logarithm(n)
    return Terms(2 * (d + folds), 2 * (p - 1) / p + 2 * folds, (p - 1) / p + folds)


def _doubling(n: int) -> Terms:
    d, _, folds = _logarithm(n)
    return Terms(d + 2 * folds, d + 2 * folds, d + folds)


def _tree(n: int, ways: int, adds: bool) -> Terms:
    levels = (n - 1).bit_length()
    return Terms(ways * levels, ways * levels, levels if adds else 0)


def _double_tree(n: int) -> Terms:
    d, _, folds = _logarithm(n)
    rounds = 4 * d - 2 * (1 - folds) if n > 1 else 0
    return Terms(rounds, rounds / 2, rounds / 4)


def _period(n: int) -> int:
    """Messages through a double binary tree's busiest port for each piece."""
    return min(n, 4)


_TERMS = {
    "ring": _ring,
    "recursive_halving_doubling": _halving_doubling,
    "recursive_doubling": _doubling,
    "tree": lambda n: _tree(n, 2, True),
    "double_binary_tree": _double_tree,
    "parameter_server": lambda n: Terms(2 * (n - 1), 2 * (n - 1), n - 1),
    "reduce_scatter": lambda n: _half_ring(n, True),
    "all_gather": lambda n: _half_ring(n, False),
    "reduce": lambda n: _tree(n, 1, True),
    "broadcast": lambda n: _tree(n, 1, False),
    "all_to_all": lambda n: Terms(n - 1, (n - 1) / n**2, 0),
}
