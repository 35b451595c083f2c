"""Mistakes that respected simulators have made."""

from statistics import fmean

import pytest

from gpuedu.continuous_batching.plan import LeapingVLLMScheduler, SchedulerConfig
from gpuedu.hardware import GPUS
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.prefill_decode.cost import MEASURED
from gpuedu.serving.metrics import percentile, summarize
from gpuedu.serving.simulator import Replica, simulate, slot_occupancy
from gpuedu.serving.step_cost import LinearStepCost, RooflineStepCost, kv_cache_blocks
from gpuedu.serving.workload import (
    TRAFFIC,
    AllAtOnce,
    ClosedLoop,
    Exponential,
    Fixed,
    Poisson,
    Request,
    make_requests,
)
from gpuedu.serving_sweep import grid, sweep
from gpuedu.transformer import MODELS

COST = RooflineStepCost(MODELS["llama-3-8b"], GPUS["H100-SXM"], MEASURED["H100-SXM"], overhead_s=0.002)


def replica(cost=COST, blocks=8000, **config):
    return Replica(LeapingVLLMScheduler(SchedulerConfig(**config), BlockCounter(blocks)), cost)


def test_12_the_label_is_not_the_memory():
    """80e9 bytes for an 80 GB H100 would cost one block in ten."""
    model, gpu = MODELS["llama-2-13b"], GPUS["H100-SXM"]
    blocks = kv_cache_blocks(model, gpu)
    assert gpu.memory_bytes == 81_559 * 2**20
    lost = 0.9 * (gpu.memory_bytes - 80e9) / (16 * model.kv_cache_bytes_per_token())
    assert 0.08 * blocks < lost < 0.15 * blocks


def test_an_infinite_cache_predicts_nonsense():
    """REALDATA: without the cache's limit TPOT was 153 % off: batches grow that no memory holds."""
    traffic = TRAFFIC["azure_conversation"]
    requests = make_requests(1500, Poisson(25.0), traffic.prompt, traffic.output)
    real = simulate(requests, [replica(blocks=2000)])
    endless = simulate(requests, [replica(blocks=10**7)])
    ratio = fmean(endless.requests.tpot_s()) / fmean(real.requests.tpot_s())
    assert ratio > 1.5 or ratio < 0.67


def test_20_busy_time_says_nothing():
    """One sequence in 64 slots: busy all the time, and a sixty-fourth of the slots used."""
    log = simulate([Request(0, 0.0, 10, 500)], [replica(max_num_seqs=64)])
    assert log.usage[0].busy_ticks == pytest.approx(log.end_s * 1e12)
    assert slot_occupancy(log, 64) == pytest.approx(1 / 64)


def test_23_a_replica_is_no_mm1():
    """Its service rate depends on its load: eight at once take far less than eight times one."""
    one = simulate([Request(0, 0.0, 10, 200)], [replica()]).end_s
    eight = simulate([Request(n, 0.0, 10, 200) for n in range(8)], [replica()]).end_s
    assert eight < 1.1 * one


def test_23_a_closed_loop_hides_the_tail():
    """Coordinated omission: users who wait for answers do not ask while the server is slow."""
    slow = LinearStepCost(0.05)
    requests = make_requests(2000, Poisson(3.6), Fixed(10), Exponential(20))
    open_loop = simulate(requests, [replica(slow, max_num_seqs=4)])
    closed = simulate(requests, [replica(slow, max_num_seqs=4)], closed_loop=ClosedLoop(4))
    assert closed.usage[0].busy_ticks / closed.end_s > 0.99 * open_loop.usage[0].busy_ticks / open_loop.end_s
    tails = [percentile(log.requests.ttft_s(), 0.99) for log in (open_loop, closed)]
    assert tails[0] > 10 * tails[1]


def test_25_the_mean_hides_the_stall():
    """A prompt of 8,000 tokens in one iteration stops everybody; TPOT hardly notices."""
    requests = [Request(n, 0.0, 50, 400) for n in range(16)] + [Request("long", 1.0, 8000, 10)]

    def worst(budget):
        summary = summarize(simulate(requests, [replica(max_num_batched_tokens=budget)]).requests)
        return summary.worst_gap.p50, summary.tpot.p50

    (whole_gap, whole_tpot), (chunked_gap, chunked_tpot) = worst(8192), worst(512)
    assert whole_gap > 5 * chunked_gap
    assert whole_tpot == pytest.approx(chunked_tpot, rel=0.1)


def test_ttft_begins_with_the_arrival():
    """Not when the request is scheduled: waiting is part of it."""
    requests = [Request(n, 0.0, 1000, 50) for n in range(6)]
    log = simulate(requests, [replica(max_num_seqs=1)]).requests
    assert list(log.ttft_s()) == sorted(log.ttft_s())
    assert log.ttft_s()[5] > 5 * log.ttft_s()[0]


def test_time_does_not_drift():
    """A million iterations of 0.1 s end at 100,000 s exactly: time is counted in whole picoseconds."""
    config = {"max_num_seqs": 1, "max_num_batched_tokens": 16}
    requests = make_requests(2, AllAtOnce(), Fixed(1), Fixed(500_000))
    log = simulate(requests, [replica(LinearStepCost(0.1), blocks=100_000, **config)])
    assert log.end_s == 100_000.0 and log.usage[0].iterations == 1_000_000
    assert log.usage[0].decisions < 10


# Sweeps


def throughput(rate, seqs):
    traffic = TRAFFIC["azure_conversation"]
    requests = make_requests(60, Poisson(rate), traffic.prompt, traffic.output)
    return round(summarize(simulate(requests, [replica(max_num_seqs=seqs)]).requests).output_tokens_per_s, 6)


def test_a_sweep_is_the_calls_one_by_one(capsys):
    axes = {"rate": [2.0, 20.0], "seqs": [4, 64]}
    swept = sweep(throughput, axes, n_jobs=1)
    assert swept == [(point, throughput(**point)) for point in grid(axes)]
    assert "4 of 4" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one combination"):
        sweep(throughput, {"rate": []})
