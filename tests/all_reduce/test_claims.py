"""The source's claims on all-reduce, each decided by a run."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from gpuedu.all_reduce.cost import (
    SWEEPS,
    collective_time,
    flat_ring_time,
    hierarchical_time,
    plan_time,
    terms,
)
from gpuedu.all_reduce.plan import ALL_REDUCES, hierarchical, ring
from gpuedu.all_reduce.run import run_local
from gpuedu.distributed import launch
from gpuedu.hardware import GPUS, LINKS, Cluster, Link
from gpuedu.transformer import MODELS

sys.path.append(str(Path(__file__).parent))  # for new processes too, which get these paths
import all_reduce_jobs as jobs

# C03: whether the GPUs add or average their gradients, the result is the gradient of the whole batch.

EQUAL, RAGGED = {2: (24, 24), 4: (12, 12, 12, 12)}, {2: (30, 18), 4: (21, 3, 9, 15)}


@cache
def summed(n):
    """What n processes get, by variant: shards, whether weighted by tokens, whether with batch norm."""
    variants = [(EQUAL[n], False, False), (RAGGED[n], False, False)]
    variants += [(RAGGED[n], True, False), (EQUAL[n], False, True)]
    by_rank = launch(n, jobs.summed_gradients, variants, timeout_s=100)
    for own in by_rank:
        assert all(torch.equal(mine, first) for mine, first in zip(own, by_rank[0], strict=True))
    return dict(zip(variants, by_rank[0], strict=True))


def off(shards, weigh, batch_norm, divisor):
    """How far the processes' result is from the whole batch's gradient, relative to its length."""
    whole = jobs.gradient(jobs.network(batch_norm), *jobs.batch(sum(shards)))
    result = summed(len(shards))[shards, weigh, batch_norm]
    return float((result / divisor - whole).norm() / whole.norm())


@pytest.mark.parametrize("n", [2, 4])
def test_c03_the_mean_over_equal_shards_is_the_gradient_of_the_batch(n):
    assert off(EQUAL[n], False, False, divisor=n) < 1e-14


@pytest.mark.parametrize("n", [2, 4])
def test_c03_the_sum_is_as_many_times_too_long(n):
    assert off(EQUAL[n], False, False, divisor=1) == pytest.approx(n - 1)


@pytest.mark.parametrize("n", [2, 4])
def test_c03_a_mean_of_means_over_unequal_shards_is_another_gradient(n):
    assert off(RAGGED[n], False, False, divisor=n) > 0.2
    assert off(RAGGED[n], True, False, divisor=1) < 1e-14  # weighted by their tokens


def test_c03_batch_statistics_are_those_of_the_shard():
    assert off(EQUAL[4], False, True, divisor=4) > 0.2


def test_c03_adam_hides_the_factor_and_sgd_does_not():
    def step(make, factor):
        weight = torch.nn.Parameter(torch.ones(50, dtype=torch.float64))
        weight.grad = factor * torch.linspace(-1, 1, 50, dtype=torch.float64)
        make([weight]).step()
        return (weight.detach() - 1).norm()

    sgd, adam = (lambda w: torch.optim.SGD(w, lr=1e-3)), (lambda w: torch.optim.Adam(w, lr=1e-3))
    assert float(step(sgd, 4) / step(sgd, 1)) == pytest.approx(4)
    assert float(step(adam, 4) / step(adam, 1)) == pytest.approx(1, abs=1e-6)


# C04: after an all-reduce, every GPU holds the same aggregate.

PLANS = [
    *(make(n) for make in ALL_REDUCES.values() for n in (2, 3, 4, 7, 8, 16)),
    *(hierarchical(m, g) for m, g in ((2, 4), (3, 2), (4, 4))),
]


def gradients(ranks, dtype, length=5000):
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        return [rng.integers(-(2**20), 2**20, length, dtype=dtype) for _ in range(ranks)]
    return [
        (rng.standard_normal(length) * 10 ** rng.uniform(-3, 3, length)).astype(dtype) for _ in range(ranks)
    ]


def bits(array):
    return array.tobytes()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{plan.world_size}")
def test_c04_integers_are_the_exact_sum_everywhere(plan):
    inputs = gradients(plan.world_size, np.int64)
    expected = bits(np.sum(inputs, axis=0))
    assert {bits(array) for array in run_local(plan, inputs)} == {expected}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.name}-{plan.world_size}")
def test_c04_floats_are_the_same_bits_on_every_rank(plan, dtype):
    inputs = gradients(plan.world_size, dtype)
    outputs = run_local(plan, inputs)
    assert len({bits(array) for array in outputs}) == 1
    exact = np.sum([array.astype(np.float64) for array in inputs], axis=0)
    size = np.sum([np.abs(array.astype(np.float64)) for array in inputs], axis=0)
    assert np.all(np.abs(outputs[0] - exact) <= plan.world_size * np.finfo(dtype).eps * size)


def test_c04_two_algorithms_agree_to_rounding_alone():
    inputs = gradients(8, np.float32)
    results = {name: run_local(make(8), inputs)[0] for name, make in ALL_REDUCES.items()}
    assert len({bits(array) for array in results.values()}) > 1
    turned = run_local(ring(8), inputs[::-1])[0]  # the same contributions on other ranks
    assert bits(turned) != bits(results["ring"])
    scale = np.sum(np.abs(inputs), axis=0)
    for array in (*results.values(), turned):
        assert np.all(np.abs(array - results["ring"]) <= 16 * np.finfo(np.float32).eps * scale)


def test_c04_ranks_that_each_add_in_their_own_order_would_not_agree():
    inputs = gradients(8, np.float32)
    sums = []
    for rank in range(8):
        total = inputs[rank].copy()
        for other in range(1, 8):
            total += inputs[(rank + other) % 8]
        sums.append(bits(total))
    assert len(set(sums)) == 8
    # Two numbers have no order, which is why ranks that exchange and both add stay together
    assert bits(inputs[0] + inputs[1]) == bits(inputs[1] + inputs[0])


# C06: InfiniBand or RoCE with RDMA, and NCCL, help because they push latency to a minimum.

NETWORK = Link("400 Gbit/s", 5e-6, 50e9, "claim C06")
GRADIENT = 2 * MODELS["llama-2-7b"].parameters()  # bytes, in 16 bits


def latency_share(n, nbytes):
    return terms("ring", n).latencies * NETWORK.latency_s / collective_time("ring", n, nbytes, NETWORK)


def flat(n):
    return Cluster(GPUS["A100-80GB"], 1, n, NETWORK, NETWORK)


def test_c06_latency_is_next_to_nothing_of_a_whole_gradient():
    assert abs(GRADIENT - 13.5e9) < 0.03e9
    assert latency_share(8, GRADIENT) == pytest.approx(0.0001, rel=0.5)
    assert latency_share(1024, GRADIENT) == pytest.approx(0.019, rel=0.03)
    for n in (8, 64):  # the same from the plan itself: its price without bytes over its price
        explicit = plan_time(ring(n), 0, flat(n)) / plan_time(ring(n), GRADIENT, flat(n))
        assert explicit == pytest.approx(latency_share(n, GRADIENT), rel=1e-6)


def test_c06_half_the_latency_saves_a_percent_and_twice_the_bandwidth_a_half():
    now = collective_time("ring", 1024, GRADIENT, NETWORK)
    quick = collective_time("ring", 1024, GRADIENT, Link("quick", 2.5e-6, 50e9, "test"))
    wide = collective_time("ring", 1024, GRADIENT, Link("wide", 5e-6, 100e9, "test"))
    assert 0.99 < quick / now < 1
    assert 0.5 < wide / now < 0.51


def test_c06_latency_counts_in_small_pieces():
    n, bucket = 64, 25e6
    buckets = GRADIENT / bucket
    latency = buckets * collective_time("ring", n, 0, NETWORK)
    whole = collective_time("ring", n, GRADIENT, NETWORK)
    assert latency == pytest.approx(0.34, abs=0.005)
    assert whole == pytest.approx(0.53, abs=0.005)
    assert latency_share(n, bucket) > 0.38  # beside 0.1 % of the whole gradient
    assert latency_share(n, GRADIENT) < 0.0013
    # and another algorithm, not another network, takes most of it away
    halving = collective_time("recursive_halving_doubling", n, 0, NETWORK)
    assert halving < 0.1 * collective_time("ring", n, 0, NETWORK)


@pytest.mark.parametrize("n", [2, 8, 64, 1000])
def test_c06_no_library_can_send_less_over_links(n):
    least = 2 * (n - 1) / n * GRADIENT / NETWORK.bandwidth
    assert all(collective_time(name, n, GRADIENT, NETWORK) >= least for name in ALL_REDUCES)


def test_c06_the_fabric_inside_the_node_is_left_out():
    # 1 GB over 4 nodes of 8 A100: NVLink 300 GB/s in one direction, HDR 25 GB/s for each GPU, no latency
    links = [Link(name, 0, LINKS[name].bandwidth, "test") for name in ("NVLink3", "InfiniBand-HDR")]
    pod = Cluster(GPUS["A100-80GB"], 8, 4, *links)
    nbytes = 10**9
    assert 1e3 * flat_ring_time(pod, nbytes) == pytest.approx(77.5, abs=0.05)
    assert 1e3 * hierarchical_time(pod, nbytes) == pytest.approx(13.3, abs=0.05)
    assert plan_time(ring(32), nbytes, pod) == pytest.approx(flat_ring_time(pod, nbytes))
    assert plan_time(hierarchical(4, 8), nbytes, pod) == pytest.approx(hierarchical_time(pod, nbytes))
    # With the links' latencies in, it is 0.3 ms and 0.1 ms more
    real = Cluster(GPUS["A100-80GB"], 8, 4, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    assert flat_ring_time(real, nbytes) - flat_ring_time(pod, nbytes) < 0.3e-3
    assert hierarchical_time(real, nbytes) - hierarchical_time(pod, nbytes) < 0.1e-3


def test_c06_measured_bandwidth_is_a_matter_of_size():
    for sweep in SWEEPS.values():
        small, large = sweep.points[0][1], sweep.points[-1][1]
        assert large > 90 * small  # 32 KiB to 16 GiB on the same network
