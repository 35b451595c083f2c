"""Numbers in the verdicts on tensor parallelism."""

from __future__ import annotations

from math import isqrt

from gpuedu.hardware import GPUS, LINKS, Cluster
from gpuedu.tensor_parallel.cost import step_time, training_memory, weight_bytes
from gpuedu.tensor_parallel.plan import Sharding, shard
from gpuedu.transformer import MODELS

GPU = GPUS["H100-SXM"]  # an "80 GB" card
GB, MB = 1e9, 1e6
WEIGHT_AND_GRADIENT = 4  # bytes of a parameter, both in 16 bit


def layer_sent(plan: Sharding) -> float:
    """Bytes that one GPU sends in a layer of a training step."""
    return sum(c.bytes_sent for c in plan.layer)


def useful(plan: Sharding, gpus_per_node: int) -> float:
    """Useful share of the time of H100s in nodes of this size."""
    nodes = 8 // gpus_per_node
    return step_time(
        plan, Cluster(GPU, gpus_per_node, nodes, LINKS["NVLink4"], LINKS["InfiniBand-NDR"])
    ).useful_share


def c07() -> dict[str, object]:
    """What training GPT-3 holds on one GPU without model parallelism; what serving Llama 3 8B reads."""
    gpt3, llama, gpus, t = MODELS["gpt3-175b"], MODELS["llama-3-8b"], 64, 8
    plain = training_memory(gpt3, recompute="full", dropout=False)
    zero = training_memory(gpt3, data_parallel=gpus, zero=3, recompute="full", dropout=False)
    offload = training_memory(gpt3, offload="all", recompute="full", dropout=False)
    whole, part = (shard(llama, ranks, sequence=1, training=False) for ranks in (1, t))
    widest = isqrt(GPU.memory_bytes // (12 * WEIGHT_AND_GRADIENT))  # 12 h^2 parameters in a GPT's layer
    return {
        "states": f"{(plain.weights + plain.gradients + plain.optimizer) / GB:,.0f}",
        "memory": f"{GPU.memory_bytes / GB:.0f}",
        "gpus": gpus,
        "zero": f"{zero.total / GB:.0f}",
        "host": f"{offload.host / 1e12:.1f}",
        "offload": f"{offload.total / GB:.0f}",
        "layer": f"{WEIGHT_AND_GRADIENT * gpt3.layer_parameters() / GB:.1f}",
        "width": f"{round(widest, -3):,}",
        "hidden": f"{gpt3.hidden_size:,}",
        "t": t,
        "weights": f"{weight_bytes(whole) / GB:.0f}",
        "part": f"{weight_bytes(part) / GB:.0f}",
    }


def c09() -> dict[str, object]:
    """Collectives of a layer, what a GPU sends, and what is left of eight GPUs."""
    llama, few, many = MODELS["llama-3-70b"], 2, 64
    training, inference = (shard(llama, 8, training=training) for training in (True, False))
    return {
        "training": len(training.layer),
        "inference": len(inference.layer),
        "few": few,
        "few_mb": f"{layer_sent(shard(llama, few)) / MB:.0f}",
        "many": many,
        "many_mb": f"{layer_sent(shard(llama, many)) / MB:.0f}",
        "t": 8,
        "nvlink": f"{100 * useful(training, 8):.0f}",
        "network": f"{100 * useful(training, 1):.0f}",
    }
