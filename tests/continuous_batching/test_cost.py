"""Occupancy: closed forms, sampling and simulation agree; the frontier behaves."""

from random import Random

import pytest

from gpuedu.continuous_batching.cost import (
    expected_longest,
    frontier_point,
    harmonic,
    make_scheduler,
    slot_chart,
    static_gain,
    static_occupancy,
    trial,
)
from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    SchedulerConfig,
    Sequence,
    StaticBatching,
)
from gpuedu.hardware import GPUS
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.prefill_decode.cost import MEASURED
from gpuedu.serving.step_cost import LinearStepCost, RooflineStepCost
from gpuedu.serving.workload import TRAFFIC, Exponential, Fixed, Uniform, draw
from gpuedu.transformer import MODELS


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
def test_exponential_lengths_leave_one_over_h(batch):
    assert static_occupancy(Exponential(2000), batch) == pytest.approx(1 / harmonic(batch), rel=0.005)


@pytest.mark.parametrize("batch", [2, 8, 32])
def test_uniform_lengths_never_leave_less_than_half(batch):
    assert static_occupancy(Uniform(1, 4000), batch) == pytest.approx((batch + 1) / (2 * batch), rel=0.002)
    assert static_gain(Uniform(1, 4000), batch) < 2


def test_equal_lengths_waste_nothing():
    assert static_occupancy(Fixed(100), 64) == 1


def test_the_longest_of_a_batch_by_sampling():
    random = Random(0)
    for lengths in (Uniform(1, 100), Exponential(50), TRAFFIC["azure_conversation"].output):
        longest = [max(draw(lengths, random) for _ in range(16)) for _ in range(4000)]
        assert expected_longest(lengths, 16) == pytest.approx(sum(longest) / 4000, rel=0.02)


@pytest.mark.parametrize(
    ("traffic", "measured"),
    [("azure_conversation", (46, 42, 38, 34)), ("azure_code", (26, 18, 12, 8))],
)
def test_azure_traces(traffic, measured):
    """From the whole traces, in per cent at B = 8, 16, 32, 64: our eleven quantiles come within 4 points."""
    ours = [100 * static_occupancy(TRAFFIC[traffic].output, batch) for batch in (8, 16, 32, 64)]
    assert ours == pytest.approx(measured, abs=4)


@pytest.mark.parametrize("lengths", [Exponential(200), Uniform(1, 400), Fixed(50)])
def test_simulation_finds_what_is_derived(lengths):
    result = trial(lengths, 8, batches=150)
    assert result.static_occupancy == pytest.approx(result.derived_occupancy, rel=0.05)
    assert result.gain == pytest.approx(result.derived_gain, rel=0.05)
    assert result.continuous_occupancy > 0.95


def test_the_gain_is_less_where_a_fuller_batch_takes_longer():
    """Trap: occupancy is throughput only if an iteration takes the same whatever it holds."""
    level = trial(Exponential(200), 16, batches=50)
    steep = trial(Exponential(200), 16, batches=50, step_cost=LinearStepCost(0.001, decode_s=0.01))
    assert level.gain == pytest.approx(harmonic(16), rel=0.1)
    # a static batch pays for its finished rows too, so with cost by the row the gain stays
    assert steep.gain == pytest.approx(level.gain, rel=0.1)
    prompts = trial(Exponential(200), 16, batches=50, prompt=Fixed(2000), step_cost=_H100)
    assert prompts.gain < 0.9 * level.gain


_H100 = RooflineStepCost(MODELS["llama-3-8b"], GPUS["H100-SXM"], MEASURED["H100-SXM"], overhead_s=0.002)


# Slots


def test_slots_by_hand():
    def backlog():
        return [Sequence(n, 1, tokens) for n, tokens in enumerate([3, 1, 2, 2])]

    static = slot_chart(StaticBatching(2, respond_early=True), backlog(), 2)
    assert [(s.slot, s.request_id, s.start, s.end) for s in static.spans] == [
        (0, 0, 0, 3),
        (1, 1, 0, 1),
        (0, 2, 3, 5),
        (1, 3, 3, 5),
    ]
    assert static.iterations == 5 and static.occupancy == 8 / 10
    assert static.occupancy_until(2) == 3 / 4
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=2)
    continuous = slot_chart(LeapingVLLMScheduler(config, BlockCounter(100)), backlog(), 2)
    assert [(s.slot, s.request_id, s.start, s.end) for s in continuous.spans] == [
        (0, 0, 0, 3),
        (1, 1, 0, 1),
        (1, 2, 1, 3),
        (0, 3, 3, 5),
    ]
    assert continuous.iterations == 5 and continuous.occupancy == 8 / 10


@pytest.mark.parametrize("seed", range(20))
def test_nobody_shares_a_slot_and_everybody_gets_all_iterations(seed):
    random = Random(seed)
    outputs = [random.randint(1, 40) for _ in range(30)]
    slots = random.randint(1, 9)
    config = SchedulerConfig(max_num_seqs=slots, max_num_batched_tokens=max(8, slots))
    for scheduler in (
        StaticBatching(slots, respond_early=True),
        LeapingVLLMScheduler(config, BlockCounter(10_000)),
    ):
        chart = slot_chart(scheduler, [Sequence(n, 1, tokens) for n, tokens in enumerate(outputs)], slots)
        taken = set()
        for span in chart.spans:
            assert span.end - span.start == outputs[span.request_id]
            cells = {(span.slot, iteration) for iteration in range(span.start, span.end)}
            assert not cells & taken and span.slot < slots
            taken |= cells
        assert chart.occupancy == len(taken) / (slots * chart.iterations) <= 1


# The frontier


def point(batching, rate, **options):
    traffic = TRAFFIC["azure_conversation"]
    return frontier_point(
        batching,
        rate,
        prompt=traffic.prompt,
        output=traffic.output,
        step_cost=_H100,
        max_model_len=16_384,
        **options,
    )


def test_continuous_batching_dominates():
    """More throughput at less latency, for every load that fills a server."""
    for rate in (4.0, 9.0, 18.0):
        static, orca, vllm = (point(batching, rate) for batching in ("static", "orca", "vllm"))
        assert vllm.output_tokens_per_s > orca.output_tokens_per_s > static.output_tokens_per_s
        assert vllm.normalized_s < orca.normalized_s < static.normalized_s


def test_latency_grows_with_load_and_throughput_saturates():
    points = [point("vllm", rate) for rate in (1.0, 4.0, 9.0, 18.0, 40.0)]
    latencies = [each.normalized_s for each in points]
    assert latencies == sorted(latencies)
    throughputs = [each.output_tokens_per_s for each in points]
    assert throughputs == sorted(throughputs)
    assert throughputs[-1] < 1.3 * throughputs[-2]


def test_small_chunks_shorten_the_stalls():
    """Sarathi-Serve's point: a prompt computed whole holds up everybody who decodes."""
    whole, chunked = (point("vllm", 6.0, max_num_batched_tokens=tokens) for tokens in (16_384, 512))
    assert chunked.worst_gap_p90_s < 0.5 * whole.worst_gap_p90_s
    assert whole.tpot_mean_s < 1.5 * chunked.tpot_mean_s  # the mean hardly shows it


def test_what_cannot_be():
    with pytest.raises(ValueError, match="batching='dynamic'"):
        make_scheduler("dynamic", max_num_seqs=1, max_num_batched_tokens=1, blocks=1, max_model_len=1)
    with pytest.raises(ValueError, match="n=0"):
        harmonic(0)
    with pytest.raises(ValueError, match="batch_size=0"):
        static_occupancy(Fixed(1), 0)
