"""Mistakes that others have made on collectives, each guarded by a test."""

import pytest

from gpuedu.all_reduce.cost import (
    SWEEPS,
    algorithm_bandwidth,
    bus_bandwidth,
    flat_ring_time,
    hierarchical_time,
    plan_time,
)
from gpuedu.all_reduce.plan import (
    Collective,
    all_gather,
    all_to_all,
    broadcast,
    double_binary_tree,
    reduce,
    reduce_scatter,
    ring,
    tree,
)
from gpuedu.hardware import GPUS, LINKS, Cluster, Link

N, BANDWIDTH = 8, 450e9
SIZE = N * N * 1_000_000
NODE = Cluster(GPUS["H100-SXM"], N, 1, Link("no latency", 0, BANDWIDTH, "test"), LINKS["InfiniBand-NDR"])


@pytest.mark.parametrize("plan", [ring(N), reduce_scatter(N), all_gather(N)], ids=lambda plan: plan.name)
def test_trap_06_bus_bandwidth_of_a_perfect_algorithm_is_the_links(plan):
    # SIZE is the total array, for all-gather and reduce-scatter too
    seconds = plan_time(plan, SIZE, NODE)
    assert bus_bandwidth(plan.collective, N, SIZE, seconds) == pytest.approx(BANDWIDTH)
    if plan.collective is not Collective.ALL_REDUCE:
        one_ranks_part = SIZE / N
        assert bus_bandwidth(plan.collective, N, one_ranks_part, seconds) == pytest.approx(BANDWIDTH / N)


def test_trap_06_all_to_all_counts_what_one_rank_sends():
    seconds = plan_time(all_to_all(N), N * SIZE, NODE)  # the plan's array is that of all n ranks
    assert bus_bandwidth(Collective.ALL_TO_ALL, N, SIZE, seconds) == pytest.approx(BANDWIDTH)


@pytest.mark.parametrize("make", [broadcast, reduce])
def test_trap_06_broadcast_and_reduce_have_factor_one(make):
    # Between two ranks nothing can be faster than the link, and bus bandwidth says just that
    pair = plan_time(make(2), SIZE, NODE)
    assert bus_bandwidth(make(2).collective, 2, SIZE, pair) == algorithm_bandwidth(SIZE, pair)
    assert algorithm_bandwidth(SIZE, pair) == pytest.approx(BANDWIDTH)


def test_trap_06_algorithm_bandwidth_falls_where_bus_bandwidth_does_not():
    def measured(n):
        cluster = Cluster(GPUS["H100-SXM"], n, 1, NODE.intra_node, NODE.inter_node)
        seconds = plan_time(ring(n), 960_000, cluster)
        return algorithm_bandwidth(960_000, seconds), bus_bandwidth(
            Collective.ALL_REDUCE, n, 960_000, seconds
        )

    algorithm, bus = zip(*map(measured, (2, 4, 8, 16, 32)), strict=True)
    assert list(algorithm) == sorted(algorithm, reverse=True) and algorithm[-1] < 0.52 * algorithm[0]
    assert bus == pytest.approx([BANDWIDTH] * 5)


def test_trap_07_a_ring_sees_one_direction_of_nvlink():
    sold = {"NVLink3": 600e9, "NVLink4": 900e9, "NVLink5": 1800e9}  # both directions together
    for name, both in sold.items():
        node = Cluster(GPUS["H100-SXM"], 8, 1, LINKS[name], LINKS["InfiniBand-NDR"])
        seconds = plan_time(ring(8), 8 * 10**9, node)
        reached = bus_bandwidth(Collective.ALL_REDUCE, 8, 8 * 10**9, seconds)
        assert 0.98 * both / 2 < reached < both / 2


def test_trap_07_both_directions_taken_for_one_make_a_hierarchy_too_fast():
    right = Cluster(GPUS["A100-80GB"], 8, 4, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    wrong = Cluster(GPUS["A100-80GB"], 8, 4, Link("as sold", 0, 600e9, "test"), LINKS["InfiniBand-HDR"])
    assert hierarchical_time(wrong, 1e9) < 0.8 * hierarchical_time(right, 1e9)
    assert flat_ring_time(wrong, 1e9) == flat_ring_time(right, 1e9)  # bound by the network either way


def test_trap_07_a_sum_in_the_switch_exceeds_the_link():
    peak = max(busbw for _, busbw in SWEEPS["8 x H200, by PyTorch"].points)
    assert peak > LINKS["NVLink4"].bandwidth  # measured; no plan of sends and receives can
    for plan in (ring(8), tree(8), double_binary_tree(8)):
        seconds = plan_time(plan, SIZE, NODE)
        assert bus_bandwidth(Collective.ALL_REDUCE, 8, SIZE, seconds) < 1.000001 * NODE.intra_node.bandwidth


def test_both_directions_of_a_link_work_at_once():
    # An exchange of two ranks takes as long as one message, and its bytes count once for each direction
    exchange = ring(2)
    assert plan_time(exchange, SIZE, NODE) == pytest.approx(SIZE / BANDWIDTH)
    assert exchange.link_bytes(SIZE) == {(0, 1): SIZE, (1, 0): SIZE}
