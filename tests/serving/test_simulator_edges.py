"""Corners of the simulator: occupancy of the cache, late answers, ties, tables that fall."""

from __future__ import annotations

import pytest

from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    OrcaScheduler,
    SchedulerConfig,
    StaticBatching,
)
from gpuedu.hardware import GPUS
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.metrics import SLO, RequestLog, RequestRecord, require_steady_state, slo_attainment
from gpuedu.serving.simulator import Replica, kv_occupancy, roofline_utilization, simulate
from gpuedu.serving.step_cost import ConstantStepCost, LinearStepCost, TableStepCost
from gpuedu.serving.workload import (
    AllAtOnce,
    ClosedLoop,
    Deterministic,
    Exponential,
    Fixed,
    Poisson,
    Request,
    Uniform,
    make_requests,
)
from gpuedu.transformer import MODELS

STEP = ConstantStepCost(0.01)
GROWING = LinearStepCost(0.01, token_s=2e-5, context_s=1e-6)


def replica(blocks=1000, cost=STEP, **limits):
    return Replica(LeapingVLLMScheduler(SchedulerConfig(**limits), BlockCounter(blocks)), cost)


# KV cache


def test_kv_occupancy_of_one_request_by_hand():
    """30 to 69 tokens over 40 iterations: 2 blocks for 3 of them, 3 for 16, 4 for 16, 5 for 5."""
    expected = (2 * 3 + 3 * 16 + 4 * 16 + 5 * 5) / 40 / 10
    request = Request(0, 0.0, 30, 40)
    express, stepping = (
        simulate([request], [replica(10, max_num_seqs=2)], leap=leap) for leap in (True, False)
    )
    assert kv_occupancy(express) == pytest.approx(expected)
    assert kv_occupancy(stepping) == pytest.approx(expected)
    leaping = simulate([request], [replica(10, GROWING)])
    assert kv_occupancy(leaping) == pytest.approx(expected, abs=0.06)  # half a block of 10


SCHEDULERS = {
    "vllm": lambda: LeapingVLLMScheduler(SchedulerConfig(max_num_seqs=32), BlockCounter(300)),
    "orca": lambda: OrcaScheduler(32, 16 * 300, 600),
    "static": lambda: StaticBatching(16, BlockCounter(300), respond_early=True),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rate", [2.0, 20.0])
def test_kv_occupancy_is_the_same_with_leaps(name, rate):
    requests = make_requests(200, Poisson(rate), Uniform(1, 200), Exponential(100, maximum=300))
    shares = [
        kv_occupancy(simulate(requests, [Replica(SCHEDULERS[name](), GROWING)], leap=leap))
        for leap in (True, False)
    ]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)


def test_orca_fills_its_cache_where_it_is_full():
    """Eight pieces of 600 slots in 4,800, and somebody always waits."""
    requests = make_requests(200, AllAtOnce(), Fixed(20), Fixed(400))
    log = simulate(requests, [Replica(OrcaScheduler(32, 4800, 600), STEP)])
    assert kv_occupancy(log) == pytest.approx(1)


# Answers


def test_answers_of_a_late_static_batch_come_whole():
    requests = [Request(0, 0.0, 1, 2), Request(1, 0.0, 1, 1000)]
    late = simulate(requests, [Replica(StaticBatching(2), STEP)]).requests
    for record in late:
        assert record.ttft_s == record.latency_s == pytest.approx(10.0)
        assert record.worst_gap_s == 0
    early = simulate(requests, [Replica(StaticBatching(2, respond_early=True), STEP)]).requests
    assert early[0].finish_s == pytest.approx(0.02)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_mean_gap_is_longer_than_the_longest(name):
    requests = make_requests(200, Poisson(10.0), Uniform(1, 200), Exponential(60, maximum=300))
    for record in simulate(requests, [Replica(SCHEDULERS[name](), GROWING)]).requests:
        assert record.output_tokens == 1 or record.tpot_s <= record.worst_gap_s + 1e-9


# Order


def test_a_closed_loop_does_not_look_at_times_of_arrival():
    def run(arrivals):
        requests = [Request(n, arrivals(n), 20, 30) for n in range(60)]
        return simulate(
            requests, [replica(policy="priority", max_num_seqs=4)], closed_loop=ClosedLoop(12, 1.0)
        ).requests

    assert run(lambda n: 0.0).finish_s == run(lambda n: 100.0 - n).finish_s


# Tables that fall


def test_a_table_that_falls_gives_the_same_log_with_leaps():
    table = TableStepCost(
        {(1, 0): 0.020, (1, 100): 0.021, (1, 1000): 0.018, (8, 0): 0.03, (8, 100): 0.031, (8, 1000): 0.027},
        {(1, 0): 0.01, (512, 0): 0.02},
    )
    requests = make_requests(30, Poisson(2.0), Uniform(1, 300), Uniform(1, 500))
    leaping, stepping = (simulate(requests, [replica(cost=table)], leap=leap) for leap in (True, False))
    assert leaping.requests == stepping.requests
    for leap in (True, False):
        with pytest.raises(ValueError, match="must take longer than a picosecond"):
            simulate([Request(0, 0.0, 1, 9000)], [replica(cost=table)], leap=leap)


# What cannot be


def test_replicas_share_nothing():
    scheduler = LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(100))
    with pytest.raises(ValueError, match="schedulers of their own"):
        simulate([Request(0, 0.0, 1, 1)], [Replica(scheduler, STEP), Replica(scheduler, STEP)])
    cache = BlockCounter(100)
    replicas = [Replica(LeapingVLLMScheduler(SchedulerConfig(), cache), STEP) for _ in range(2)]
    with pytest.raises(ValueError, match="KV caches of their own"):
        simulate([Request(0, 0.0, 1, 1)], replicas)


def test_times_since_1970_are_refused():
    with pytest.raises(ValueError, match=r"arrival_s=1700000000.0: must be at most 4e\+06 s"):
        simulate([Request(0, 1.7e9, 10, 5)], [replica()])


# Metrics


def test_an_exact_tie_keeps_the_objective():
    log = simulate(
        make_requests(50, Deterministic(1 / 7), Fixed(1), Fixed(9)), [replica(cost=ConstantStepCost(0.1))]
    )
    assert slo_attainment(log.requests, SLO(ttft_s=10, tpot_s=0.1)) == 1
    assert slo_attainment(log.requests, SLO(ttft_s=10, tpot_s=0.0999)) == 0


def test_a_short_log_of_long_answers_is_no_overload():
    """Places for all: nobody ever waits, and nobody is finished when the last one comes."""
    requests = make_requests(100, Poisson(10.0), Fixed(1), Fixed(2000))
    require_steady_state(simulate(requests, [replica(100_000)]).requests)


def test_all_at_once_has_no_steady_state():
    requests = make_requests(100, AllAtOnce(), Fixed(1), Fixed(100))
    with pytest.raises(ValueError, match="all 100 came at once"):
        require_steady_state(simulate(requests, [replica(max_num_seqs=4)]).requests)
    with pytest.raises(ValueError, match="all 1 came at once"):
        require_steady_state(RequestLog([RequestRecord(0, 0.0, 0.0, 1.0, 2.0, 1, 2)]))


def test_roofline_utilization_counts_useful_tokens_once():
    """A cache too small makes the server compute again; that is no better use of the GPU."""
    model, gpu = MODELS["llama-3-8b"], GPUS["H100-SXM"]
    requests = make_requests(60, AllAtOnce(), Fixed(200), Fixed(400))
    log = simulate(requests, [replica(300, GROWING)])
    assert log.usage[0].preemptions > 10
    flops = 2 * model.active_parameters() * 60 * (200 + 399)
    expected = flops / (log.end_s * gpu.peak("bf16"))
    assert roofline_utilization(log, model, gpu) == pytest.approx(expected)
