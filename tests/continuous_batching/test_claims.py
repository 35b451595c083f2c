"""The source's claims on continuous batching, each decided by a run."""

import json
from heapq import heapreplace
from pathlib import Path
from statistics import median

import pytest

from gpuedu.continuous_batching.cost import frontier_point, harmonic, static_gain, static_occupancy, trial
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
from gpuedu.serving.workload import TRAFFIC, AllAtOnce, Exponential, Fixed, Uniform, make_requests
from gpuedu.transformer import MODELS

H100 = RooflineStepCost(MODELS["llama-3-8b"], GPUS["H100-SXM"], MEASURED["H100-SXM"], overhead_s=0.002)
MEASUREMENTS = Path(__file__).resolve().parents[2] / "measurements"
CHAT, CODE = TRAFFIC["azure_conversation"], TRAFFIC["azure_code"]


def served(rate, **options):
    return frontier_point(
        "vllm",
        rate,
        prompt=CHAT.prompt,
        output=CHAT.output,
        step_cost=H100,
        max_num_seqs=32,
        max_model_len=16_384,
        requests=400,
        **options,
    )


# C43: a static batch admits nobody until its last member ends; continuous batching admits meanwhile.


def admissions(scheduler):
    """Iterations in which somebody is admitted, and in which somebody is finished."""
    for number, output in enumerate([3, 10, 5]):
        scheduler.add(Sequence(number, 4, output))
    iteration, admitted, finished = 0, {}, {}
    while scheduler.has_work():
        decision = scheduler.schedule()
        admitted |= {sequence.request_id: iteration for sequence in decision.admitted}
        iteration += decision.steps
        finished |= {s.request_id: iteration for s in scheduler.update(decision, decision.steps)}
    return admitted, finished


def test_c43_static_batches_admit_at_the_end_and_continuous_ones_meanwhile():
    admitted, finished = admissions(StaticBatching(2, respond_early=True))
    assert admitted[2] == finished[1] == 10  # the place of request 0 has been empty for 7 iterations
    config = SchedulerConfig(max_num_seqs=2)
    admitted, finished = admissions(LeapingVLLMScheduler(config, BlockCounter(100)))
    assert admitted[2] == finished[0] == 3 < finished[1]


def test_c43_flips_without_free_blocks():
    """A place alone does not admit: the cache must hold the newcomer's prompt."""
    config = SchedulerConfig(max_num_seqs=2)
    scheduler = LeapingVLLMScheduler(config, BlockCounter(4, 4))
    scheduler.add(Sequence("runs", 8, 9))
    scheduler.add(Sequence("waits", 12, 2))
    decision = scheduler.schedule()
    assert [sequence.request_id for sequence in decision.admitted] == ["runs"]


# C44: that abolishes idling caused by unequal lengths.


def test_c44_with_a_backlog_no_slot_is_empty():
    assert trial(Exponential(200), 8, batches=200).continuous_occupancy > 0.97


def test_c44_flips_at_low_load():
    assert served(1.0).slot_occupancy < 0.2
    assert served(40.0).slot_occupancy > 0.8


def test_c44_newcomers_stall_the_others():
    whole, chunked = (served(6.0, max_num_batched_tokens=budget) for budget in (16_384, 512))
    assert whole.worst_gap_p90_s > 3 * chunked.worst_gap_p90_s


# C45: utilization from 30-40 % to over 80 %.


def test_c45_exponential_lengths_and_chat_lie_near_the_range():
    assert static_occupancy(Exponential(2000), 8) == pytest.approx(1 / harmonic(8), rel=0.005)
    assert 0.29 < static_occupancy(Exponential(2000), 16) < static_occupancy(Exponential(2000), 8) < 0.4
    assert 0.3 < static_occupancy(CHAT.output, 32) < 0.4


def test_c45_flips_with_the_distribution():
    assert static_occupancy(Fixed(200), 8) == 1
    assert static_occupancy(Uniform(1, 4000), 8) > 0.5
    assert static_occupancy(CODE.output, 8) < 0.3


# C46: the gain multiplies throughput by 2 to 4.


@pytest.mark.parametrize(("batch", "gain"), [(4, 2.08), (8, 2.72), (16, 3.38), (32, 4.06)])
def test_c46_exponential_lengths_gain_h(batch, gain):
    assert harmonic(batch) == pytest.approx(gain, abs=0.005)
    assert trial(Exponential(200), batch, batches=120).gain == pytest.approx(gain, rel=0.1)


def test_c46_flips_with_uniform_lengths_and_with_code():
    assert static_gain(Uniform(1, 4000), 64) < 2
    assert static_gain(CODE.output, 16) > 4


def test_c46_a_step_that_costs_by_what_it_holds_gains_less():
    level = trial(Exponential(200), 16, batches=40)
    prompts = trial(Exponential(200), 16, batches=40, prompt=Fixed(4000), step_cost=H100)
    assert prompts.gain < 0.9 * level.gain
    # the extreme: prompts are all the work, and those are the same in every way of batching
    prefill = LinearStepCost(1e-9, token_s=1e-3)
    assert trial(Exponential(200), 16, batches=40, prompt=Fixed(4000), step_cost=prefill).gain < 1.05


def iterations_static(tokens, slots):
    return sum(max(tokens[start : start + slots]) for start in range(0, len(tokens), slots))


def iterations_continuous(tokens, slots):
    """Each answer goes to the slot that is free first."""
    ends = [0] * slots
    for length in tokens:
        heapreplace(ends, ends[0] + length)
    return max(ends)


def test_c46_measured_on_a_real_model():
    report = json.loads((MEASUREMENTS / "batching_gain.json").read_text())
    lengths = {
        "all equal": Fixed(32),
        "uniform": Uniform(1, 63),
        "exponential": Exponential(32, maximum=160),
    }
    gains = {}
    for run in report["results"]:
        backlog = make_requests(report["requests"], AllAtOnce(), Fixed(16), lengths[run["lengths"]], seed=1)
        tokens = [request.output_tokens for request in backlog]
        assert run["counted_gain"] == iterations_static(tokens, 8) / iterations_continuous(tokens, 8)
        derived = static_gain(lengths[run["lengths"]], report["slots"])
        assert run["derived_gain"] == pytest.approx(derived, rel=1e-3)
        for rows in ("kept", "dropped"):
            rounds = zip(run["seconds"][rows], run["seconds"]["continuous"], strict=True)
            gain = run["measured_gain"][rows]
            assert gain == pytest.approx(median(static / continuous for static, continuous in rounds))
            assert gain == pytest.approx(run["predicted_gain"][rows], rel=0.2)
            gains[run["lengths"], rows] = gain
    assert gains["all equal", "kept"] == pytest.approx(1, abs=0.15)
    assert gains["exponential", "kept"] > gains["uniform", "kept"] > gains["all equal", "kept"]
    # a batch that shrinks is faster for it: its idle slots were worth less
    assert gains["exponential", "dropped"] < gains["exponential", "kept"]
