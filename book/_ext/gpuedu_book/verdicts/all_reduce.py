"""Numbers in the verdicts on all-reduce."""

from __future__ import annotations

import numpy as np

from gpuedu.all_reduce.cost import collective_time, flat_ring_time, hierarchical_time
from gpuedu.all_reduce.plan import ALL_REDUCES, recursive_halving_doubling, ring
from gpuedu.all_reduce.run import run_local
from gpuedu.hardware import GPUS, LINKS, Cluster, Link
from gpuedu.transformer import MODELS

RANKS = 8
NETWORK = Link("400 Gbit/s", 5e-6, 50e9, "round figures")


def c04() -> dict[str, object]:
    """How many sums of single-precision numbers depend on the algorithm, and what ranks apart would get."""
    elements = 10_000
    arrays = [
        np.random.default_rng(rank).standard_normal(elements, dtype=np.float32) for rank in range(RANKS)
    ]
    first, second = (run_local(make(RANKS), arrays)[0] for make in (ring, recursive_halving_doubling))
    own_order = {sum(np.roll(np.stack(arrays), -rank, axis=0)).tobytes() for rank in range(RANKS)}
    return {
        "algorithms": len(ALL_REDUCES),
        "n": RANKS,
        "differ": f"{100 * np.mean(first != second):.0f}",
        "apart": len(own_order),
    }


def c06() -> dict[str, object]:
    """Latency and bytes of a ring, whole and in buckets, and what the link inside a node is worth."""
    gradient = 2 * MODELS["llama-2-7b"].parameters()  # 16 bits
    few, middle, many, bucket = 8, 64, 1024, 25e6

    def seconds(n: int, nbytes: float, algorithm: str = "ring") -> float:
        return collective_time(algorithm, n, nbytes, NETWORK)

    def latency_percent(n: int) -> str:
        return f"{100 * seconds(n, 0) / seconds(n, gradient):.2g}"

    buckets = gradient / bucket
    pod = Cluster(GPUS["A100-80GB"], 8, 4, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    return {
        "gradient": f"{gradient / 1e9:.1f}",
        "gigabytes": f"{NETWORK.bandwidth / 1e9:.0f}",
        "alpha": f"{NETWORK.latency_s * 1e6:.0f}",
        "few": few,
        "many": f"{many:,}",
        "whole": f"{seconds(many, gradient):.2f}",
        "share_few": latency_percent(few),
        "share_many": latency_percent(many),
        "middle": middle,
        "bucket": f"{bucket / 1e6:.0f}",
        "latency": f"{buckets * seconds(middle, 0):.2f}",
        "bytes": f"{buckets * (seconds(middle, bucket) - seconds(middle, 0)):.2f}",
        "halving": f"{buckets * seconds(middle, 0, 'recursive_halving_doubling'):.2f}",
        "nodes": pod.nodes,
        "gpus": pod.gpus_per_node,
        "flat": f"{1e3 * flat_ring_time(pod, 1e9):.0f}",
        "levels": f"{1e3 * hierarchical_time(pod, 1e9):.0f}",
    }
