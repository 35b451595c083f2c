"""The simulator: leaps change nothing, nothing is lost, queueing theory and a slow reference agree."""

from array import array
from itertools import pairwise
from math import factorial
from random import Random

import ciw
import pytest

from gpuedu.continuous_batching.plan import (
    POLICIES,
    PREEMPTIONS,
    LeapingVLLMScheduler,
    OrcaScheduler,
    SchedulerConfig,
    StaticBatching,
    VLLMScheduler,
)
from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.metrics import (
    after_warmup,
    backlog_growth,
    batch_interval,
    require_steady_state,
    summarize,
)
from gpuedu.serving.simulator import (
    LeastOutstanding,
    RandomChoice,
    Replica,
    RoundRobin,
    kv_occupancy,
    mean_in_system,
    simulate,
    slot_occupancy,
)
from gpuedu.serving.step_cost import ConstantStepCost, LinearStepCost, TableStepCost
from gpuedu.serving.workload import (
    AllAtOnce,
    ClosedLoop,
    Exponential,
    Fixed,
    Gamma,
    Poisson,
    Request,
    Uniform,
    make_requests,
)

from .reference import serve

LINEAR = LinearStepCost(0.01, token_s=2e-5, decode_s=1e-4, context_s=3e-7, pair_s=1e-9, block_s=1e-4)
TABLE = TableStepCost(
    {(n, c): 0.01 + 1e-4 * n + 1e-7 * n * c**1.1 for n in (1, 16, 64) for c in (0, 100, 400, 3000)},
    {(n, c): 0.01 + 2e-5 * n + 1e-9 * n * c for n in (1, 64, 512) for c in (0, 1000)},
)


def requests_for(seed, count=150):
    random = Random(seed)
    arrivals = random.choice([Poisson(5.0), Gamma(20.0, 4.0), AllAtOnce()])
    requests = make_requests(count, arrivals, Uniform(1, 300), Exponential(60, maximum=400), seed=seed)
    return [
        Request(
            r.request_id,
            r.arrival_s,
            r.prompt_tokens,
            r.output_tokens,
            priority=random.randrange(3),
            client=random.randrange(3),
        )
        for r in requests
    ]


def config_for(seed):
    random = Random(seed)
    return SchedulerConfig(
        max_num_seqs=random.choice([4, 32, 256]),
        max_num_batched_tokens=random.choice([32, 256, 2048]),
        long_prefill_token_threshold=random.choice([0, 0, 40]),
        policy=random.choice(POLICIES),
        preemption=random.choice(PREEMPTIONS),
    )


def counter_for(seed):
    return BlockCounter(Random(seed).choice([50, 120, 4000]), num_host_blocks=60)


# Leaps


@pytest.mark.parametrize("cost", [LINEAR, TABLE], ids=["linear", "table"])
@pytest.mark.parametrize("seed", range(12))
def test_leaping_gives_the_same_log(seed, cost):
    """To the last bit: with leaps, without them, and with the scheduler that knows none."""

    def run(kind, leap):
        replicas = [Replica(kind(config_for(seed), counter_for(seed)), cost) for _ in range(2)]
        return simulate(requests_for(seed), replicas, router=LeastOutstanding(), leap=leap)

    leaping = run(LeapingVLLMScheduler, True)
    assert leaping.requests == run(LeapingVLLMScheduler, False).requests
    assert leaping.requests == run(VLLMScheduler, True).requests
    assert sum(usage.decisions for usage in leaping.usage) < sum(u.iterations for u in leaping.usage)


@pytest.mark.parametrize("seed", range(4))
def test_leaping_static_batches_and_orca(seed):
    for make in (
        lambda: StaticBatching(8, BlockCounter(4000)),
        lambda: StaticBatching(8, respond_early=True),
        lambda: OrcaScheduler(16, 20_000, 1000, "pow2"),
    ):
        logs = [simulate(requests_for(seed), [Replica(make(), LINEAR)], leap=leap) for leap in (True, False)]
        assert logs[0].requests == logs[1].requests


def test_named_blocks_give_the_same_log():
    config = SchedulerConfig(max_num_seqs=32)
    logs = [
        simulate(requests_for(3), [Replica(VLLMScheduler(config, kv), LINEAR)])
        for kv in (KVCacheManager(120), BlockCounter(120))
    ]
    assert logs[0].requests == logs[1].requests and sum(logs[0].requests.preemptions) > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_slow_reference_finds_the_same_times(seed):
    requests = requests_for(seed, 80)
    replica = Replica(LeapingVLLMScheduler(config_for(seed), counter_for(seed)), LINEAR)
    log = simulate(requests, [replica]).requests
    tokens = serve(requests, VLLMScheduler(config_for(seed), counter_for(seed)), LINEAR)
    for record, request in zip(log, requests, strict=True):
        times = tokens[request.request_id]
        assert len(times) == request.output_tokens
        assert record.first_token_s == pytest.approx(times[0], abs=1e-7)
        assert record.finish_s == pytest.approx(times[-1], abs=1e-7)
        gaps = [after - before for before, after in pairwise(times)]
        assert record.worst_gap_s == pytest.approx(max(gaps, default=0.0), abs=1e-7)


def test_the_same_seed_the_same_log():
    def run():
        replicas = [Replica(LeapingVLLMScheduler(config_for(1), counter_for(1)), LINEAR) for _ in range(3)]
        return simulate(requests_for(1), replicas, router=RandomChoice(7)).requests

    assert run() == run()


# Conservation


@pytest.mark.parametrize("seed", range(6))
def test_requests_and_tokens_are_conserved(seed):
    requests = requests_for(seed)
    replicas = [Replica(LeapingVLLMScheduler(config_for(seed), counter_for(seed)), LINEAR) for _ in range(2)]
    log = simulate(requests, replicas, router=RoundRobin(), record_iterations=True)
    assert log.requests.request_id == [request.request_id for request in requests]
    produced = sum(usage.output_tokens for usage in log.usage)
    again = sum(log.requests.preemptions)
    assert sum(r.output_tokens for r in requests) == produced
    computed = sum(usage.prompt_tokens for usage in log.usage)
    prompts = sum(request.prompt_tokens for request in requests)
    assert computed == prompts if not again else computed >= prompts
    for record in log.requests:
        assert record.arrival_s <= record.start_s < record.first_token_s <= record.finish_s
        assert record.replica == record.request_id % 2
    assert all(replica.outstanding == 0 == replica.outstanding_tokens for replica in replicas)
    assert all(replica.scheduler.kv.usage == 0 for replica in replicas)
    rows = log.iterations
    for number in range(2):  # a replica does one thing after the other
        mine = [i for i in range(len(rows)) if rows.replica[i] == number]
        assert all(rows.end_s[a] <= rows.start_s[b] for a, b in pairwise(mine))
    assert sum(d * s for d, s in zip(rows.decodes, rows.steps, strict=True)) <= produced


@pytest.mark.parametrize("seed", range(6))
def test_littles_law(seed):
    """The number in the system, integrated as it changes, is arrivals times time spent in it."""
    replicas = [Replica(LeapingVLLMScheduler(config_for(seed), counter_for(seed)), LINEAR) for _ in range(2)]
    log = simulate(requests_for(seed), replicas)
    spent = sum(log.requests.latency_s())
    assert mean_in_system(log) * log.end_s == pytest.approx(spent, rel=1e-9)


# Queueing theory: iterations of constant length make a queue with max_num_seqs servers

STEP = 0.001


def queue(servers, lengths, rate, count, seed=0, **options):
    config = SchedulerConfig(max_num_seqs=servers, max_num_batched_tokens=8 * servers)
    replica = Replica(LeapingVLLMScheduler(config, BlockCounter(10**9)), ConstantStepCost(STEP))
    requests = make_requests(count, Poisson(rate), Fixed(1), lengths, seed=seed)
    return simulate(requests, [replica], **options)


def waits(log, warmup_s):
    kept = after_warmup(log.requests, warmup_s)
    return array("d", (start - came for start, came in zip(kept.start_s, kept.arrival_s, strict=True)))


def erlang_c(servers, load):
    """Probability that an arrival has to wait in M/M/c."""
    last = load**servers / factorial(servers) / (1 - load / servers)
    return last / (sum(load**k / factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(
    ("name", "servers", "lengths", "rate", "expected"),
    [
        ("M/M/1", 1, Exponential(1000), 0.7, 0.7 / 0.3),
        ("M/M/4", 4, Exponential(1000), 3.2, erlang_c(4, 3.2) / (4 - 3.2)),
        ("M/D/1", 1, Fixed(1000), 0.7, 0.7 / (2 * 0.3)),
    ],
)
def test_waiting_as_in_theory(name, servers, lengths, rate, expected):
    """Mean wait in seconds at a mean service of 1 s: inside the interval, and the interval is narrow."""
    log = queue(servers, lengths, rate, 150_000)
    interval = batch_interval(waits(log, 2000), batches=30, confidence=0.99)
    assert interval.low <= expected <= interval.high, (name, interval, expected)
    assert interval.high - interval.low < 0.25 * expected


def test_ciw_serves_the_same_customers_at_the_same_times():
    """Ciw, given our arrivals and services, lets every customer begin when we do (but for the grid)."""
    count, servers = 1500, 3
    log = queue(servers, Exponential(1000), 2.6, count, seed=5).requests
    gaps = [b - a for a, b in pairwise([0.0, *log.arrival_s])]
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([*gaps, 1e9])],
        service_distributions=[ciw.dists.Sequential([output * STEP for output in log.output_tokens])],
        number_of_servers=[servers],
    )
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(count, method="Finish")
    theirs = sorted(simulation.get_all_records(), key=lambda record: record.arrival_date)
    late = [ours - record.service_start_date for ours, record in zip(log.start_s, theirs, strict=False)]
    assert len(theirs) == count
    # one iteration later at most for each of those before it in the busy period
    assert sum(late) / count < 0.03 and max(late) < 0.2 and min(late) > -1e-9
    assert sum(log.start_s) - sum(log.arrival_s) > 0.5 * count


# Closed loop, occupancy, overload


def test_a_closed_loop_never_has_more_than_its_users():
    requests = make_requests(200, AllAtOnce(), Fixed(100), Exponential(40))
    replica = Replica(LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(4000)), LINEAR)
    log = simulate(requests, [replica], closed_loop=ClosedLoop(8, think_s=0.5), record_iterations=True)
    events = sorted(
        [(came, 1) for came in log.requests.arrival_s] + [(went, -1) for went in log.requests.finish_s]
    )
    inside = most = 0
    for _, change in sorted(events, key=lambda event: (event[0], event[1])):
        inside += change
        most = max(most, inside)
    assert most <= 8 and len(log.requests) == 200


def test_static_batches_leave_slots_empty_and_continuous_ones_do_not():
    requests = make_requests(400, AllAtOnce(), Fixed(1), Exponential(100))
    free_of_charge = ConstantStepCost(0.01)
    static = simulate(requests, [Replica(StaticBatching(8, respond_early=True), free_of_charge)])
    config = SchedulerConfig(max_num_seqs=8)
    continuous = simulate(
        requests, [Replica(LeapingVLLMScheduler(config, BlockCounter(4000)), free_of_charge)]
    )
    harmonic = sum(1 / k for k in range(1, 9))
    assert slot_occupancy(static, 8) == pytest.approx(1 / harmonic, rel=0.1)
    assert slot_occupancy(continuous, 8) > 0.95
    assert static.end_s / continuous.end_s == pytest.approx(harmonic, rel=0.12)


def test_overload_is_said():
    slow = LinearStepCost(0.05)
    config = SchedulerConfig(max_num_seqs=4)

    def run(rate):
        requests = make_requests(2000, Poisson(rate), Fixed(10), Fixed(20))  # 4 a second at most
        return simulate(requests, [Replica(LeapingVLLMScheduler(config, BlockCounter(1000)), slow)]).requests

    require_steady_state(run(2.0))
    assert backlog_growth(run(8.0)) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"offered 2\.\d times what was served"):
        require_steady_state(run(8.0))


def test_kv_occupancy_is_a_share():
    requests = make_requests(100, AllAtOnce(), Fixed(100), Fixed(100))
    replica = Replica(LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(200)), LINEAR)
    assert 0.8 < kv_occupancy(simulate(requests, [replica])) <= 1


def test_warmup_is_removed_by_arrival():
    log = queue(1, Exponential(10), 50.0, 1000).requests
    kept = after_warmup(log, 5.0)
    assert min(kept.arrival_s) >= 5.0 + min(log.arrival_s) and 0 < len(kept) < len(log)
    with pytest.raises(ValueError, match="seconds=1000"):
        after_warmup(log, 1000.0)


def test_prompts_share_blocks_whatever_their_lengths():
    """Trap: one hash stands for 512 tokens, also where the prompt's last block is a part of one."""
    requests = [
        Request(0, 0.0, 1300, 5, hash_ids=(7, 8, 9)),
        Request(1, 5.0, 1100, 5, hash_ids=(7, 8, 3)),
        Request(2, 10.0, 1300, 5, hash_ids=(7, 8)),  # without the part of a block at its end
        Request(3, 15.0, 1300, 5, hash_ids=(7, 8)),
    ]
    kv = KVCacheManager(1000, enable_prefix_caching=True)
    log = simulate(requests, [Replica(VLLMScheduler(SchedulerConfig(), kv), LINEAR)])
    assert list(log.requests.cached_tokens) == [0, 1024, 1024, 1024]


def test_prefix_caching_saves_prompt_tokens():
    config = SchedulerConfig()

    def run(caching):
        requests = [Request(n, 2.0 * n, 1024, 5, hash_ids=(1, 100 + n)) for n in range(20)]
        kv = KVCacheManager(1000, enable_prefix_caching=caching)
        return simulate(requests, [Replica(VLLMScheduler(config, kv), LINEAR)])

    cached, uncached = run(True), run(False)
    assert uncached.usage[0].prompt_tokens == 20 * 1024
    assert cached.usage[0].prompt_tokens == 20 * 1024 - 19 * 512
    assert list(cached.requests.cached_tokens) == [0] + 19 * [512]
    assert summarize(cached.requests).ttft.mean < summarize(uncached.requests).ttft.mean


# Bad input


def one_replica(blocks=100):
    return Replica(LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(blocks)), LINEAR)


def test_what_cannot_be_simulated_is_said():
    requests = [Request(0, 0.0, 10, 10)]
    with pytest.raises(ValueError, match="replicas: must be at least one"):
        simulate(requests, [])
    with pytest.raises(ValueError, match="requests: must be at least one"):
        simulate([], [one_replica()])
    with pytest.raises(ValueError, match="ids that differ"):
        simulate(requests * 2, [one_replica()])
    with pytest.raises(ValueError, match="objects of their own"):
        simulate(requests, [one_replica()] * 2)
    used = one_replica()
    simulate(requests, [used])
    with pytest.raises(ValueError, match="must be new"):
        simulate(requests, [used])
    with pytest.raises(ValueError, match=r"prompt_tokens=5000 .* at most the KV cache's 100"):
        simulate([Request(0, 0.0, 5000, 10)], [one_replica()])


def test_sequences_that_only_push_each_other_out_are_said():
    """Without room for whole prompts, chunks of many can fill the cache so that none gets on."""
    config = SchedulerConfig(
        max_num_batched_tokens=64,
        long_prefill_token_threshold=5,
        reserve_full_prompt=False,
        policy="priority",
        preemption="swap",
    )
    requests = [Request(n, 0.0, 31, 1) for n in range(40)]
    kv = BlockCounter(40, 1, num_host_blocks=14)
    with pytest.raises(RuntimeError, match="reserve_full_prompt"):
        simulate(requests, [Replica(LeapingVLLMScheduler(config, kv), LINEAR)])


def test_a_tie_is_a_tie():
    """Who comes at the very tick at which an iteration ends takes part in the next one."""
    cost = LinearStepCost(0.1)  # not a binary fraction: sums of floats would miss it
    for arrival, start in ((0.3, 0.3), (0.300000000001, 0.4), (0.299999999999, 0.3)):
        requests = [Request("first", 0.0, 10, 50), Request("second", arrival, 10, 5)]
        for leap in (True, False):
            replica = Replica(LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(100)), cost)
            assert simulate(requests, [replica], leap=leap).requests[1].start_s == start
