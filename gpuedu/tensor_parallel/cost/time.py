"""How long a step of one microbatch takes on t GPUs, and how much of it is useful."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real

from gpuedu.all_reduce.cost import hierarchical_time
from gpuedu.all_reduce.plan import Collective
from gpuedu.checks import check_count
from gpuedu.hardware import Cluster

from ..plan import LAYER_SITES, STEP, Communication, Sharding

PRODUCT_SITES = (*LAYER_SITES, "head")
BACKWARD_PER_FORWARD = 2  # a gradient for the input, one for the weight


@dataclass(frozen=True)
class StepTime:
    """Where the time of one microbatch goes on one GPU, in seconds.

    Parameters
    ----------
    compute_s : float
        Matrix products of this GPU.
    communication_s : float
        Collectives that it waits for.
    hidden_s : float
        Collectives that run beside a product; not part of :attr:`total_s`.
    useful_s : float
        What the whole model's products would take, over t: the part of ``compute_s`` that is not done
        twice, neither on a neighbor nor by recomputation.
    """

    compute_s: float
    communication_s: float
    hidden_s: float
    useful_s: float

    @property
    def total_s(self) -> float:
        """Seconds from beginning to end."""
        return self.compute_s + self.communication_s

    @property
    def communication_share(self) -> float:
        """Part of the time that goes by in waiting for collectives, 0 to 1."""
        return self.communication_s / self.total_s

    @property
    def useful_share(self) -> float:
        """Time of one GPU over t times the time of t: 1 if nothing is lost."""
        return self.useful_s / self.total_s


def rank_flops(sharding: Sharding, *, causal: bool = True) -> dict[str, float]:
    """FLOP of one rank in one forward pass of all layers and the head, by site.

    Parameters
    ----------
    sharding : Sharding
        Any.
    causal : bool
        As for :meth:`gpuedu.transformer.Transformer.forward_flops`, whose notes say what counts.

    Returns
    -------
    dict
        FLOP by site; ``"attention"`` are scores and weighted values. On one rank they add up to
        ``batch * forward_flops(sequence)``.

    Notes
    -----
    Each rank computes 1/t of everything, except for keys and values when there are more ranks than KV
    heads: then it computes one head, as its neighbors do.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> eight = rank_flops(shard(MODELS["llama-3-70b"], 8))
    >>> sum(eight.values()) == MODELS["llama-3-70b"].forward_flops(2048) / 8
    True
    """
    model, t = sharding.model, sharding.tensor_parallel
    whole = dict.fromkeys(PRODUCT_SITES, 0)
    local = dict.fromkeys(PRODUCT_SITES, 0)
    for w in sharding.weights:
        if w.site in PRODUCT_SITES and len(w.shape) == 2:
            whole[w.site] += w.count * w.elements
            local[w.site] += w.count * w.local_elements
    if model.tied_embeddings:
        whole["head"] = model.vocab_size * model.hidden_size
        local["head"] = whole["head"] // t
    core = model.forward_flops(sharding.sequence, causal=causal) - 2 * sharding.sequence * sum(whole.values())
    tokens = sharding.batch * sharding.sequence
    return {site: 2 * tokens * n for site, n in local.items()} | {"attention": sharding.batch * core / t}


def communication_seconds(communication: Communication, cluster: Cluster) -> float:
    """Seconds of one run of a collective of tensor parallelism.

    Parameters
    ----------
    communication : Communication
        Which, on how many ranks: the first GPUs of ``cluster``, node by node.
    cluster : Cluster
        At least as many GPUs.

    Returns
    -------
    float
        Seconds, in the alpha-beta model of :mod:`gpuedu.all_reduce.cost`.

    Raises
    ------
    ValueError
        If the ranks do not fit: more than the cluster has, or more than a node and no multiple of it.

    Notes
    -----
    Inside a node the ring; across nodes the hierarchical all-reduce (in the node, across, in the node),
    whose every GPU uses its own port to the network. A reduce-scatter is the first half of that, an
    all-gather the second, its mirror image.

    Examples
    --------
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> cluster = Cluster(GPUS["H100-SXM"], 8, 4, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    >>> in_node, across = (shard(MODELS["llama-3-70b"], t).layer[0] for t in (8, 16))
    >>> [round(communication_seconds(c, cluster) * 1e6) for c in (in_node, across)]
    [157, 249]
    """
    whole = hierarchical_time(_group(communication.ranks, cluster), communication.nbytes)
    return whole if communication.collective is Collective.ALL_REDUCE else whole / 2


def step_time(
    sharding: Sharding,
    cluster: Cluster,
    *,
    efficiency: float = 0.5,
    dtype: str = "bf16",
    causal: bool = True,
    overlap: bool = True,
) -> StepTime:
    """The time of one microbatch: forward and backward in training, else the forward.

    Parameters
    ----------
    sharding : Sharding
        What is cut how; t at most the GPUs of ``cluster``, and a multiple of those of a node if above.
    cluster : Cluster
        Where it runs, on the first GPUs.
    efficiency : float
        Share of the dense peak that matrix products reach, above 0 and at most 1.
    dtype : str
        Of the products: a key of the GPU's ``peak_flops``.
    causal : bool
        As for :func:`rank_flops`.
    overlap : bool
        Run beside a product what can (:attr:`~gpuedu.tensor_parallel.plan.Communication.overlaps`); False
        waits for every collective.

    Returns
    -------
    StepTime
        In seconds.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or out of range, or a GPU without ``dtype``.

    Notes
    -----
    Products take FLOP / (efficiency * peak), whatever their size: the small ones of a large t reach less
    in truth. A collective is hidden as long as the product beside it takes, and what is left is waited for,
    like all of one that cannot overlap; what runs beside a product does not slow it. Left out: what happens
    once a step (gradients of whole parameters, optimizer); norms, dropout and other work bound by memory
    (without sequence parallelism every rank does all of it, with it 1/t); overlap by cutting products into
    pieces.

    References
    ----------
    Korthikanti et al. 2022, sections 4.2.2 and 6.2 (what overlaps).

    Examples
    --------
    >>> from gpuedu.hardware import GPUS, LINKS
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> cluster = Cluster(GPUS["H100-SXM"], 8, 4, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    >>> for t in (1, 8, 32):
    ...     print(t, round(step_time(shard(MODELS["llama-3-70b"], t), cluster).useful_share, 2))
    1 1.0
    8 0.88
    32 0.38
    """
    if isinstance(efficiency, bool) or not isinstance(efficiency, Real):
        raise TypeError(f"efficiency={efficiency!r}: must be a number")
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency={efficiency}: must be above 0 and at most 1")
    rate = efficiency * cluster.gpu.peak(dtype)
    forward = rank_flops(sharding, causal=causal)
    passes = 1 + BACKWARD_PER_FORWARD if sharding.training else 1
    useful = passes * sharding.batch * sharding.model.forward_flops(sharding.sequence, causal=causal)
    compute = passes * sum(forward.values()) + _recomputed(sharding, forward)
    waited = hidden = 0.0
    for c in sharding.communications:
        if c.phase is STEP:
            continue
        seconds = communication_seconds(c, cluster)
        beside = forward[c.site] / c.count / rate if overlap and c.overlaps else 0.0
        hidden += c.count * min(seconds, beside)
        waited += c.count * max(0.0, seconds - beside)
    return StepTime(compute / rate, waited, hidden, useful / rate / sharding.tensor_parallel)


def bytes_sent(sharding: Sharding) -> float:
    """Bytes that one rank sends for one microbatch, with rings; what happens once a step not counted.

    Parameters
    ----------
    sharding : Sharding
        Any.

    Returns
    -------
    float
        Bytes.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> round(bytes_sent(shard(MODELS["llama-3-70b"], 8)) / 1e9, 1)
    18.9
    """
    return sum(c.count * c.bytes_sent for c in sharding.communications if c.phase is not STEP)


def weight_bytes(sharding: Sharding) -> float:
    """Bytes of weights that one rank holds.

    Parameters
    ----------
    sharding : Sharding
        Any.

    Returns
    -------
    float
        Bytes; somewhat more than 1/t of the model, because norms, some biases and learned positions are
        whole on each rank, and copies of KV heads where there are fewer than ranks.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import shard
    >>> from gpuedu.transformer import MODELS
    >>> [round(weight_bytes(shard(MODELS["llama-3-70b"], t)) / 1e9, 2) for t in (1, 8, 16)]
    [141.11, 17.64, 8.99]
    """
    return sum(w.local_bytes for w in sharding.weights)


def _recomputed(sharding: Sharding, forward: dict[str, float]) -> float:
    """FLOP that the backward does a second time."""
    if not sharding.training or sharding.recompute == "none":
        return 0.0
    if sharding.recompute == "selective":
        return forward["attention"]
    return sum(forward.values()) - forward["head"]


def _group(ranks: int, cluster: Cluster) -> Cluster:
    """The part of ``cluster`` that ``ranks`` neighbors take."""
    per_node = cluster.gpus_per_node
    check_count("ranks", ranks)
    if ranks > cluster.world_size:
        raise ValueError(f"ranks={ranks}: must be at most the cluster's {cluster.world_size} GPUs")
    if ranks <= per_node:
        return replace(cluster, gpus_per_node=ranks, nodes=1)
    if ranks % per_node:
        raise ValueError(f"ranks={ranks}: must be a multiple of gpus_per_node={per_node} where it is more")
    return replace(cluster, nodes=ranks // per_node)
