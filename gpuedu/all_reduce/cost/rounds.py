"""A plan priced round by round: a round ends when its last message has arrived."""

from __future__ import annotations

from gpuedu.checks import check_amount
from gpuedu.hardware import GPU, Cluster

from ..plan import Plan, Transfer
from .checks import check_placed


def round_times(
    plan: Plan, nbytes: int, cluster: Cluster, *, gamma: float = 0.0, itemsize: int = 1
) -> tuple[float, ...]:
    """How long each round of ``plan`` takes, all ranks waiting for the last one after each.

    Parameters
    ----------
    plan : Plan
        A valid plan. Its ranks are the cluster's first GPUs, node by node.
    nbytes : int
        Bytes of the array.
    cluster : Cluster
        At least as many GPUs as the plan has ranks.
    gamma : float
        Seconds to add one byte that arrives to what is there; see :func:`reduction_gamma`.
    itemsize : int
        Bytes of one element; ``nbytes`` is a multiple of it.

    Returns
    -------
    tuple of float
        Seconds, one per round.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed or the cluster is too small.

    Notes
    -----
    The alpha-beta-gamma model. A GPU has four ports: out and in on the link inside its node, out and in
    on its link to other nodes, all of which work at once. A message keeps the port that it leaves by
    and the port that it comes in by busy for latency + bytes / bandwidth, so messages through the same
    port add up. That much time is necessary, and an order exists in which it suffices. What has arrived
    is then added, ``gamma`` a byte.

    Left out: switches and cables beyond the GPU's own port, the way between GPU and network card, and a
    rank that is late.

    References
    ----------
    Thakur, Rabenseifner, Gropp. Optimization of collective communication operations in MPICH. 2005,
    section 3. Hockney 1994.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import ring
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> node = Cluster(GPUS["H100-SXM"], 8, 1, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    >>> times = round_times(ring(8), 8 * 450_000, node)  # 1 us a chunk, after 1.9 us
    >>> len(times), round(times[0] * 1e6, 6)
    (14, 2.9)
    """
    check_placed(plan, cluster)
    check_amount("gamma", gamma)
    at = plan.byte_bounds(nbytes, itemsize)
    return tuple(_round_time(transfers, at, cluster, gamma) for transfers in plan.rounds)


def plan_time(plan: Plan, nbytes: int, cluster: Cluster, *, gamma: float = 0.0, itemsize: int = 1) -> float:
    """The sum of :func:`round_times`: what ``plan`` takes if all ranks wait after each round.

    Parameters
    ----------
    plan, nbytes, cluster, gamma, itemsize
        As for :func:`round_times`.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    TypeError, ValueError
        As :func:`round_times`.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import hierarchical, ring
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> pod = Cluster(GPUS["A100-80GB"], 8, 4, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    >>> [round(1e3 * plan_time(plan, 10**9, pod), 1) for plan in (ring(32), hierarchical(4, 8))]
    [77.7, 13.4]
    """
    return sum(round_times(plan, nbytes, cluster, gamma=gamma, itemsize=itemsize))


def reduction_gamma(gpu: GPU) -> float:
    """Seconds a GPU takes to add one byte that has arrived to one that is there.

    Parameters
    ----------
    gpu : GPU
        Which one.

    Returns
    -------
    float
        3 / memory bandwidth, in s/byte: both operands are read and the sum is written.

    Examples
    --------
    Beside what the byte took over InfiniBand NDR:

    >>> from gpuedu.hardware import GPUS
    >>> round(reduction_gamma(GPUS["H100-SXM"]) * 50e9, 3)
    0.045
    """
    return 3 / gpu.memory_bandwidth


def _round_time(
    transfers: tuple[Transfer, ...], at: tuple[int, ...], cluster: Cluster, gamma: float
) -> float:
    """The time of one round. A port is numbered 2 rank, or 2 rank + 1 for the one to other nodes."""
    per_node = cluster.gpus_per_node
    latency = cluster.intra_node.latency_s, cluster.inter_node.latency_s
    bandwidth = cluster.intra_node.bandwidth, cluster.inter_node.bandwidth
    leaving: dict[int, float] = {}
    entering: dict[int, float] = {}
    adding: dict[int, float] = {}
    for t in transfers:
        size = at[t.stop] - at[t.start]
        far = t.src // per_node != t.dst // per_node
        busy = latency[far] + size / bandwidth[far]
        out, into = 2 * t.src + far, 2 * t.dst + far
        leaving[out] = leaving.get(out, 0.0) + busy
        entering[into] = entering.get(into, 0.0) + busy
        if t.reduce:
            adding[t.dst] = adding.get(t.dst, 0.0) + gamma * size
    if gamma == 0:
        return max(max(leaving.values(), default=0.0), max(entering.values(), default=0.0))
    done = 0.0
    for t in transfers:
        far = t.src // per_node != t.dst // per_node
        arrived = max(leaving[2 * t.src + far], entering[2 * t.dst + far])
        done = max(done, arrived + adding.get(t.dst, 0.0))
    return done
