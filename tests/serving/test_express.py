"""The express lane: the log and the usage of the event loop, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.continuous_batching.plan import LeapingVLLMScheduler, SchedulerConfig
from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.simulator import LeastOutstanding, RandomChoice, Replica, RoundRobin, simulate
from gpuedu.serving.simulator.express import serve_express
from gpuedu.serving.step_cost import ConstantStepCost, LinearStepCost
from gpuedu.serving.workload import Exponential, Fixed, Poisson, Request, Uniform, make_requests

ROUTERS = (RoundRobin, RandomChoice, LeastOutstanding)


def replica(places=4, step_s=0.01, blocks=10**6, **limits):
    config = SchedulerConfig(max_num_seqs=places, **limits)
    return Replica(LeapingVLLMScheduler(config, BlockCounter(blocks)), ConstantStepCost(step_s))


def usage(log):
    """What of a replica's usage does not tell how it was simulated."""
    names = ("busy_ticks", "slot_ticks", "in_system_ticks", "iterations", "prompt_tokens", "output_tokens")
    return [{name: getattr(each, name) for name in names} for each in log.usage]


def both_ways(requests, make_replicas, router):
    """One iteration at a time, and by the express lane, which must have been taken."""
    stepping = simulate(requests, make_replicas(), router=router(), leap=False)
    assert serve_express(requests, make_replicas(), router()) is not None
    return simulate(requests, make_replicas(), router=router()), stepping


REPLICAS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0.01, 0.007, 0.02])), min_size=1, max_size=4
)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=40
)


@given(REPLICAS, REQUESTS, st.sampled_from(ROUTERS))
def test_the_lane_has_the_log_of_the_loop(sizes, rows, router):
    """Arrivals lie on the grid of the iterations: every kind of tie comes up."""
    requests = [Request(n, 0.01 * tick, prompt, output) for n, (tick, prompt, output) in enumerate(rows)]
    express, stepping = both_ways(requests, lambda: [replica(*size) for size in sizes], router)
    assert express.requests == stepping.requests
    assert usage(express) == usage(stepping)
    assert [u.kv_ticks for u in express.usage] == pytest.approx([u.kv_ticks for u in stepping.usage])
    assert express.end_s == stepping.end_s


@pytest.mark.parametrize("router", ROUTERS)
def test_long_queues(router):
    """Three unlike replicas, often full; against the loop with its leaps."""
    requests = make_requests(2000, Poisson(35.0), Uniform(1, 100), Exponential(50), seed=3)

    def replicas():
        return [replica(places, step_s) for places, step_s in ((8, 0.01), (3, 0.005), (12, 0.02))]

    express = simulate(requests, replicas(), router=router())
    loop = simulate(requests, replicas(), router=router(), record_iterations=True)
    assert express.iterations is None and loop.iterations is not None
    assert express.requests == loop.requests and usage(express) == usage(loop)
    waited = [
        start - came for start, came in zip(loop.requests.start_s, loop.requests.arrival_s, strict=True)
    ]
    assert sorted(waited)[1500] > 0.05  # a quarter and more waited for a place


@pytest.mark.parametrize("leap", [True, False])
def test_what_is_outstanding_is_seen_as_it_is(monkeypatch, leap):
    """By the times of the log, whoever has ended by an arrival is gone."""
    requests = make_requests(300, Poisson(40.0), Fixed(1), Exponential(20), seed=4)
    seen, choose = [], LeastOutstanding.choose

    def watched(self, request, replicas):
        seen.append([each.outstanding for each in replicas])
        return choose(self, request, replicas)

    monkeypatch.setattr(LeastOutstanding, "choose", watched)
    replicas = [replica(2) for _ in range(3)]
    log = list(simulate(requests, replicas, router=LeastOutstanding(), leap=leap).requests)
    expected = [
        [sum(r.replica == n and r.finish_s > came.arrival_s for r in log[:index]) for n in range(3)]
        for index, came in enumerate(log)
    ]
    assert seen == expected and max(map(max, seen)) > 2
    assert not any(each.outstanding for each in replicas)


class Newest(LeapingVLLMScheduler):
    """Inherits the promise and may not keep it."""


class Longest:
    """A router of one's own may look at anything."""

    def choose(self, request, replicas):
        return max(range(len(replicas)), key=lambda n: len(replicas[n].scheduler.running))


REQUEST = [Request(0, 0.0, 10, 30)]


@pytest.mark.parametrize(
    ("replicas", "router"),
    [
        ([replica(policy="priority")], RoundRobin()),
        ([replica(blocks=11)], RoundRobin()),
        ([replica(blocks=12, watermark=0.1)], RoundRobin()),
        ([replica(max_num_batched_tokens=39)], RoundRobin()),
        ([replica(long_prefill_token_threshold=9)], RoundRobin()),
        ([replica(enable_chunked_prefill=False)], RoundRobin()),
        ([replica(), replica(policy="priority")], RoundRobin()),
        ([replica(), replica()], Longest()),
        ([Replica(Newest(SchedulerConfig(), BlockCounter(10**6)), ConstantStepCost(0.01))], RoundRobin()),
        (
            [Replica(LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(10**6)), LinearStepCost(0.01))],
            RoundRobin(),
        ),
    ],
)
def test_where_requests_could_touch_each_other_there_is_no_lane(replicas, router):
    """Four places, requests of 10 and 30 tokens: 40 tokens of prompts, 12 blocks."""
    assert serve_express(REQUEST, replicas, router) is None
    assert not any(each.usage.decisions or each.outstanding for each in replicas)


@pytest.mark.parametrize("leap", [True, False])
def test_times_that_do_not_fit_are_said(leap):
    with pytest.raises(ValueError, match=r"takes longer than 9.2e\+06 s"):
        simulate([Request(0, 0.0, 1, 30)], [replica(step_s=1e6)], leap=leap)
    with pytest.raises(ValueError, match="must take longer than a picosecond"):
        simulate([Request(0, 0.0, 1, 30)], [replica(step_s=1e-13)], leap=leap)


def test_a_leaping_scheduler_needs_to_count_blocks():
    with pytest.raises(TypeError, match="must be a BlockCounter or like one"):
        LeapingVLLMScheduler(SchedulerConfig(), KVCacheManager(100))


def test_a_server_for_everybody():
    """M/M/infinity: as many places as one likes cost nothing."""
    requests = [Request(0, 0.0, 1, 30), Request(1, 0.1, 1, 3)]
    log = simulate(requests, [replica(10**9, blocks=10**13, max_num_batched_tokens=10**12)])
    assert log.end_s == pytest.approx(0.3)


@pytest.mark.parametrize("taken", [49, 50, 51])
def test_a_cache_that_others_use_already(taken):
    """100 blocks, half of them spared while anybody runs; four requests want two blocks each at most."""

    def half_full():
        counter = BlockCounter(100)
        counter.num_free_blocks -= taken
        config = SchedulerConfig(max_num_seqs=4, watermark=0.5)
        return Replica(LeapingVLLMScheduler(config, counter), ConstantStepCost(0.01))

    requests = [Request(n, 0.0, 16, 3) for n in range(4)]
    express, loop = (simulate(requests, [half_full()], leap=leap) for leap in (True, False))
    assert express.requests == loop.requests


def test_just_enough_is_enough():
    assert serve_express(REQUEST, [replica(blocks=12, max_num_batched_tokens=40)], RoundRobin()) is not None


def test_ties_are_ties_of_ticks():
    """0.1 * 7 is a little more than 0.7, by less than a picosecond."""
    requests = [Request("a", 0.1 * 7, 1, 20), Request("b", 0.7, 1, 5)]
    assert requests[0].arrival_s > requests[1].arrival_s
    express, stepping = both_ways(requests, lambda: [replica(1)], RoundRobin)
    assert express.requests == stepping.requests
    assert express.requests.start_s[0] < express.requests.start_s[1]


def test_the_lane_refuses_what_the_loop_refuses():
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 64}
    for leap in (True, False):
        with pytest.raises(ValueError, match="109 tokens"):
            simulate([Request(0, 0.0, 10, 100)], [replica(2, **whole)], leap=leap)
