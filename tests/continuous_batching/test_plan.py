"""Schedulers: equal decisions by different ways, nothing lost, the rules of each policy."""

from dataclasses import replace
from random import Random

import pytest

from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    OrcaScheduler,
    SchedulerConfig,
    Sequence,
    SlotReservations,
    StaticBatching,
    VirtualTokenCounter,
    VLLMScheduler,
)
from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.paged_attention.plan.counting import BlockCounter

from .traffic import decisions, dense, random_case

# The same decisions


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_named_counted_and_leaping_decide_the_same(first):
    preempted = leaps = 0
    for seed in range(first, first + 50):
        config, blocks, size, host, arrivals = random_case(seed)
        named = VLLMScheduler(config, KVCacheManager(blocks, size, num_host_blocks=host))
        counted = VLLMScheduler(config, BlockCounter(blocks, size, num_host_blocks=host))
        stepping = LeapingVLLMScheduler(config, BlockCounter(blocks, size, num_host_blocks=host))
        leaping = LeapingVLLMScheduler(config, BlockCounter(blocks, size, num_host_blocks=host))
        log, made = decisions(named, arrivals, leap=False)
        assert decisions(counted, arrivals, leap=False)[0] == log, seed
        assert decisions(stepping, arrivals, leap=False)[0] == log, seed
        leaped, made_leaping = decisions(leaping, arrivals, leap=True)
        assert dense(leaped) == dense(log), seed
        preempted += sum(bool(before[1]) for _, _, before, _ in log)
        leaps += made - made_leaping
    assert preempted > 100 and leaps > 500


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_nothing_is_lost(first):
    """Every request computes its tokens, finishes once, and gives its blocks back."""
    for seed in range(first, first + 40):
        config, blocks, size, host, arrivals = random_case(seed)
        kv = BlockCounter(blocks, size, num_host_blocks=host)
        log, _ = decisions(LeapingVLLMScheduler(config, kv), arrivals, leap=False)
        requests = [request for group in arrivals.values() for request in group]
        finished = [request_id for *_, done in log for request_id in done]
        assert sorted(finished) == sorted(request["request_id"] for request in requests)
        assert kv.num_free_blocks == blocks
        for _, scheduled, _, _ in log:
            assert sum(scheduled.values()) <= config.max_num_batched_tokens
            assert len(scheduled) <= config.max_num_seqs
        for request in requests:
            computed = sum(scheduled.get(request["request_id"], 0) for _, scheduled, _, _ in log)
            needed = request["prompt_tokens"] + request["max_tokens"] - 1
            again = any(request["request_id"] in (before or ([], []))[1] for _, _, before, _ in log)
            assert computed >= needed if again else computed == needed


def test_a_decision_does_not_look_at_the_batch():
    """Deciding and leaping cost about the same for 16 and for 1,024 sequences in lockstep."""

    class Counting(Sequence):
        __slots__ = ()
        reads = 0

        def __getattribute__(self, name):
            Counting.reads += 1
            return object.__getattribute__(self, name)

    def reads(batch):
        config = SchedulerConfig(max_num_seqs=2048, max_num_batched_tokens=10**6)
        scheduler = LeapingVLLMScheduler(config, BlockCounter(10**6))
        for number in range(batch):
            scheduler.add(Counting(number, 10, 1000 + number))
        scheduler.update(scheduler.schedule())
        Counting.reads = 0
        for _ in range(3):
            decision = scheduler.schedule()
            scheduler.update(decision, min(decision.steps, 100))
        return Counting.reads

    assert reads(16) == reads(1024)


# Blocks counted


def test_the_counter_foresees_when_blocks_run_out():
    for seed in range(200):
        random = Random(seed)
        size, blocks = random.choice([1, 3, 16]), random.randint(30, 200)
        kv, members = BlockCounter(blocks, size), []
        for number in range(random.randint(1, 12)):
            sequence = Sequence(number, random.randint(1, 40), 1)
            if kv.allocate_slots(sequence, sequence.prompt_tokens) is None:
                continue
            sequence.num_computed_tokens = sequence.prompt_tokens
            kv.join(sequence)
            members.append(sequence)
        steps = 0
        free = kv.num_free_blocks
        while free >= 0:  # one by one, each sequence looked at
            free -= sum((sequence.num_computed_tokens + steps) % size == 0 for sequence in members)
            steps += 1
        assert kv.iterations_that_fit(10**6) == steps - 1
        kv.advance(steps - 1)
        for sequence in members:
            sequence.num_computed_tokens += steps - 1
            kv.leave(sequence)
            kv.free(sequence)
        assert kv.num_free_blocks == blocks


def test_the_counter_refuses_what_it_does_not_have():
    kv = BlockCounter(2, 4)
    a = Sequence("a", 8, 1)
    assert kv.allocate_slots(a, 9) is None and kv.num_free_blocks == 2
    with pytest.raises(KeyError, match="'a'"):
        kv.free(a)
    kv.allocate_slots(a, 8)
    assert kv.swap_out(a) is None and kv.num_free_blocks == 0
    with pytest.raises(ValueError, match="free"):
        a.num_computed_tokens = 8
        kv.join(a)
        kv.advance(1)


# Policies


def finish_order(config, requests, blocks=1000):
    scheduler = LeapingVLLMScheduler(config, BlockCounter(blocks))
    for request in requests:
        scheduler.add(request)
    order = []
    while scheduler.has_work():
        decision = scheduler.schedule()
        order += [sequence.request_id for sequence in scheduler.update(decision, decision.steps)]
    return order


def test_shortest_predicted_goes_first_but_the_long_one_does_not_starve():
    alone = SchedulerConfig(max_num_seqs=1, policy="shortest_predicted")
    requests = [Sequence("long", 10, 100)] + [Sequence(number, 10, 10) for number in range(20)]
    assert finish_order(alone, requests)[-1] == "long"
    requests = [Sequence("long", 10, 100)] + [Sequence(number, 10, 10) for number in range(20)]
    assert finish_order(replace(alone, starvation_limit=5), requests).index("long") == 5


def test_vtc_shares_between_a_greedy_and_a_modest_client():
    """Sheng et al., theorem 4.4: while both have work, service differs by a bound, whatever the backlog."""
    config = SchedulerConfig(max_num_seqs=2, policy="vtc")
    requests = [Sequence(("greedy", n), 10, 20, client="greedy") for n in range(50)]
    requests += [Sequence(("modest", n), 10, 20, client="modest") for n in range(5)]
    order = finish_order(config, requests)
    assert max(order.index(("modest", n)) for n in range(5)) <= 11
    again = [Sequence(r.request_id, r.prompt_tokens, r.max_tokens, client=r.client) for r in requests]
    fcfs = finish_order(replace(config, policy="fcfs"), again)
    assert min(fcfs.index(("modest", n)) for n in range(5)) == 50


def test_vtc_gives_no_credit_for_staying_away():
    queue = VirtualTokenCounter()
    for number in range(3):
        queue.push(Sequence(number, 100, 1, client="busy"))
    queue.pop(), queue.pop()
    queue.push(Sequence("late", 10, 1, client="late"))
    assert queue.counters["late"] == queue.counters["busy"] == 200


def test_swapping_resumes_where_recomputation_starts_again():
    """Two sequences that outgrow the cache together: the second goes and comes back."""

    def run(preemption):
        config = SchedulerConfig(preemption=preemption)
        scheduler = VLLMScheduler(config, BlockCounter(6, 4, num_host_blocks=10))
        for name in "ab":
            scheduler.add(Sequence(name, 8, 14))
        computed, swapped = 0, 0
        while scheduler.has_work():
            decision = scheduler.schedule()
            computed += sum(decision.num_scheduled_tokens.values())
            swapped += decision.swapped_in + decision.swapped_out
            scheduler.update(decision)
        return computed, swapped

    needed = 2 * (8 + 13)
    assert run("swap") == (needed, 6)
    computed, swapped = run("recompute")
    assert computed == needed + 12 and swapped == 0  # b had computed 12 tokens when it had to go


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_watermark_of_the_manager_makes_newcomers_wait(preemption):
    """Whoever has the blocks may refuse what the scheduler's own count of them allows."""
    kv = KVCacheManager(10, 4, watermark=0.5, num_host_blocks=10)
    scheduler = VLLMScheduler(SchedulerConfig(preemption=preemption), kv)
    lengths = {"a": (8, 16), "b": (10, 20), "c": (16, 6)}
    for name, (prompt, answer) in lengths.items():
        scheduler.add(Sequence(name, prompt, answer))
    finished, preempted, held_back = [], 0, 0
    while scheduler.has_work():
        running = list(scheduler.running)
        free = kv.num_free_blocks
        decision = scheduler.schedule()
        preempted += len(decision.preempted)
        for name in decision.num_scheduled_tokens:
            assert kv.block_table(name)
        if running and decision.admitted:
            assert kv.num_free_blocks >= 5
        held_back += free >= 5 and not decision.admitted and bool(scheduler.waiting)
        finished += [sequence.request_id for sequence in scheduler.update(decision)]
    assert sorted(finished) == ["a", "b", "c"] and held_back and kv.num_free_blocks == 10


def test_a_watermark_of_the_manager_keeps_the_swapped_out_waiting():
    kv = KVCacheManager(10, 4, watermark=0.5, num_host_blocks=10)
    scheduler = VLLMScheduler(SchedulerConfig(preemption="swap"), kv)
    for name, answer in (("a", 12), ("b", 24), ("c", 12)):
        scheduler.add(Sequence(name, 4, answer))
    finished, refused = [], 0
    while scheduler.has_work():
        decision = scheduler.schedule()
        waiting = scheduler.waiting.peek() if scheduler.waiting else None
        # b runs; c needs four blocks of seven, and five have to stay free
        refused += waiting is not None and kv.num_free_blocks > 4
        assert waiting is None or waiting.swapped
        finished += [sequence.request_id for sequence in scheduler.update(decision)]
    assert finished == ["a", "b", "c"] and refused and kv.num_free_blocks == 10


# Static batching and Orca


def test_static_batching_admits_nobody_before_the_last_is_finished():
    scheduler = StaticBatching(3)
    for number, output in enumerate([5, 9, 2, 4]):
        scheduler.add(Sequence(number, 10 + number, output))
    answers, rows = [], []
    while scheduler.has_work():
        decision = scheduler.schedule()
        rows += [(len(decision.decodes) or len(decision.chunks), decision.padding)] * decision.steps
        finished = scheduler.update(decision, decision.steps)
        answers += [(len(rows), sequence.request_id) for sequence in finished]
    assert rows[:9] == [(3, 3), (3, 0)] + 3 * [(2, 1)] + 4 * [(1, 2)]
    assert answers == [(9, 2), (9, 0), (9, 1), (13, 3)]
    assert sum(live for live, _ in rows[1:9]) == 4 + 8 + 1  # a row lives as long as its request


def test_static_batching_streams_if_asked():
    scheduler = StaticBatching(2, respond_early=True)
    for number, output in enumerate([1, 3]):
        scheduler.add(Sequence(number, 4, output))
    assert [s.request_id for s in scheduler.update(scheduler.schedule())] == [0]
    decision = scheduler.schedule()
    assert decision.padding == 1 and [s.request_id for s in scheduler.update(decision, 2)] == [1]


def test_static_batching_reserves_blocks_for_the_whole_batch():
    kv = BlockCounter(10, 4)
    scheduler = StaticBatching(8, kv)
    for number in range(3):
        scheduler.add(Sequence(number, 8, 9))  # 16 tokens computed: 4 blocks
    assert len(scheduler.schedule().admitted) == 2 and kv.num_free_blocks == 2
    with pytest.raises(ValueError, match="at most the KV cache's 10"):
        scheduler.add(Sequence("too long", 40, 2))


@pytest.mark.parametrize(
    ("reservation", "slots"), [("max", 2048), ("pow2", 100 + 256), ("oracle", 100 + 130)]
)
def test_orca_reserves(reservation, slots):
    kv = SlotReservations(10_000, 2048, reservation)
    assert kv.slots(Sequence("a", 100, 130)) == slots
    scheduler = OrcaScheduler(64, 10_000, 2048, reservation)
    for number in range(64):
        scheduler.add(Sequence(number, 100, 130))
    assert len(scheduler.schedule().admitted) == 10_000 // slots


def test_orca_admits_at_any_iteration_and_preempts_nobody():
    scheduler = OrcaScheduler(2, 1000, 100, "oracle")
    for number, output in enumerate([3, 10, 5]):
        scheduler.add(Sequence(number, 10, output))
    seen = []
    while scheduler.has_work():
        decision = scheduler.schedule()
        assert not decision.preempted
        seen.append(([s.request_id for s in decision.admitted], decision.steps))
        scheduler.update(decision, decision.steps)
    assert seen == [([0, 1], 1), ([], 2), ([2], 1), ([], 4), ([], 2)]
    assert scheduler.kv.num_free_blocks == 1000


# Bad input


def test_what_cannot_be_served_is_said_at_once():
    scheduler = VLLMScheduler(SchedulerConfig(), BlockCounter(10, 16))
    with pytest.raises(ValueError, match=r"prompt_tokens=200 .* need 13 blocks of 16 .* at most .* 10"):
        scheduler.add(Sequence("long", 200, 2))
    scheduler.add(Sequence("fits", 150, 11))
    with pytest.raises(ValueError, match="'fits': is here already"):
        scheduler.add(Sequence("fits", 1, 1))
    with pytest.raises(KeyError, match="nobody"):
        scheduler.abort("nobody")
    whole = VLLMScheduler(
        SchedulerConfig(enable_chunked_prefill=False, max_num_batched_tokens=64), BlockCounter(10, 16)
    )
    with pytest.raises(ValueError, match="max_num_batched_tokens=64 without chunked prefill"):
        whole.add(Sequence("long", 64, 2))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"watermark": 1.0},
        {"watermark": -0.1},
        {"policy": "lottery"},
        {"preemption": "forget"},
        {"long_prefill_token_threshold": -1},
        {"enable_chunked_prefill": False, "long_prefill_token_threshold": 5},
        {"starvation_limit": 0},
    ],
)
def test_a_configuration_that_cannot_be(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).replace("enable_chunked_prefill", "must be 0")):
        SchedulerConfig(**bad)


@pytest.mark.parametrize("bad", [{"prompt_tokens": 0}, {"max_tokens": 0}, {"prompt_tokens": -5}])
def test_lengths_that_cannot_be(bad):
    with pytest.raises(ValueError, match="at least 1"):
        Sequence(**{"request_id": 0, "prompt_tokens": 1, "max_tokens": 1, **bad})


def test_an_update_is_for_the_decided_steps():
    scheduler = LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(10))
    scheduler.add(Sequence("a", 4, 4))
    with pytest.raises(ValueError, match="steps=2"):
        scheduler.update(scheduler.schedule(), 2)


def test_aborting_gives_the_blocks_back():
    for kind in (VLLMScheduler, LeapingVLLMScheduler):
        scheduler = kind(SchedulerConfig(max_num_seqs=3), BlockCounter(100))
        for number in range(4):
            scheduler.add(Sequence(number, 20, 30 + number))
        scheduler.update(scheduler.schedule())
        decision = scheduler.schedule()
        scheduler.update(decision, min(5, decision.steps))
        for number in (0, 3):  # one runs, one waits
            scheduler.abort(number)
        done = []
        while scheduler.has_work():
            decision = scheduler.schedule()
            done += [s.request_id for s in scheduler.update(decision, decision.steps)]
        assert done == [1, 2] and scheduler.kv.num_free_blocks == 100


def test_static_batching_can_let_rows_go():
    scheduler = StaticBatching(2, keep_rows=False)
    for number, output in enumerate([1, 3]):
        scheduler.add(Sequence(number, 4 + number, output))
    decision = scheduler.schedule()
    assert decision.padding == 0
    scheduler.update(decision)
    decision = scheduler.schedule()
    assert (decision.padding, decision.padding_context, len(decision.decodes)) == (0, 0, 1)
