"""The decisions are vLLM's: traces recorded from vLLM 0.33.0 are replayed, step by step."""

import json
from pathlib import Path

import pytest

from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    SchedulerConfig,
    Sequence,
    VLLMScheduler,
)
from gpuedu.paged_attention.plan import KVCacheManager
from gpuedu.paged_attention.plan.counting import BlockCounter

TRACES = Path(__file__).parents[2] / "measurements" / "vllm_traces.json"
SCENARIOS = json.loads(TRACES.read_text())["scheduler"]
OUTPUT_TOKENS = 100_000  # the j-th token of the i-th request has this id, plus 1,000 i, plus j
UNCACHED = [scenario for scenario in SCENARIOS if not scenario["config"]["enable_prefix_caching"]]


def tokens_of(runs):
    """The format's runs of consecutive ids, ``[[first, count], ...]``."""
    return [token for first, count in runs for token in range(first, first + count)]


def config_of(scenario):
    recorded = scenario["config"]
    names = ("max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold", "policy", "watermark")
    return SchedulerConfig(
        **{name: recorded[name] for name in (*names, "enable_chunked_prefill")},
        reserve_full_prompt=recorded["scheduler_reserve_full_isl"],
    )


def counting(scenario):
    recorded = scenario["config"]  # one of vLLM's blocks is the null block
    return BlockCounter(recorded["num_gpu_blocks"] - 1, recorded["block_size"])


def naming(scenario):
    recorded = scenario["config"]
    return KVCacheManager(
        recorded["num_gpu_blocks"],
        recorded["block_size"],
        enable_prefix_caching=recorded["enable_prefix_caching"],
        null_block=True,
    )


def replay(scenario, scheduler):
    """Our steps in the form of vLLM's."""
    requests = scenario["requests"]
    position = {request["id"]: place for place, request in enumerate(requests)}
    steps, gone = [], set()
    for number in range(len(scenario["steps"])):
        for place, request in enumerate(requests):
            if request["step"] == number:
                prompt = tokens_of(request["prompt"])
                scheduler.add(
                    Sequence(
                        request["id"],
                        len(prompt),
                        request["output_tokens"],
                        token_ids=prompt,
                        priority=request.get("priority", 0),
                        arrival=float(place),
                        cache_salt=request.get("salt"),
                    )
                )
        for request in requests:
            if request.get("abort") == number and request["id"] not in gone:  # vLLM ignores a late abort
                scheduler.abort(request["id"])
        decision = scheduler.schedule()
        free = scheduler.kv.num_free_blocks
        scheduled = decision.num_scheduled_tokens
        tokens = {
            sequence.request_id: OUTPUT_TOKENS
            + 1000 * position[sequence.request_id]
            + sequence.num_output_tokens
            for sequence in (*decision.decodes, *(sequence for sequence, _ in decision.chunks))
        }
        hits = {sequence.request_id: sequence.num_computed_tokens for sequence in decision.admitted}
        preempted = [sequence.request_id for sequence in decision.preempted]
        if isinstance(scheduler, LeapingVLLMScheduler):
            finished = [] if decision.is_empty else scheduler.update(decision)
        else:
            finished = [] if decision.is_empty else scheduler.update(decision, tokens=tokens)
        gone.update(sequence.request_id for sequence in finished)
        steps.append(
            (
                scheduled,
                [[request, hits[request]] for request in hits],
                preempted,
                {sequence.request_id for sequence in finished},
                free,
            )
        )
    return steps


def recorded_steps(scenario):
    return [
        (dict(scheduled), admitted, preempted, set(finished), free)
        for scheduled, admitted, preempted, finished, free in scenario["steps"]
    ]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_named_blocks_give_vllms_decisions(scenario):
    assert replay(scenario, VLLMScheduler(config_of(scenario), naming(scenario))) == recorded_steps(scenario)


@pytest.mark.parametrize("scenario", UNCACHED, ids=lambda scenario: scenario["name"])
@pytest.mark.parametrize("scheduler", [VLLMScheduler, LeapingVLLMScheduler])
def test_counted_blocks_give_vllms_decisions(scenario, scheduler):
    assert replay(scenario, scheduler(config_of(scenario), counting(scenario))) == recorded_steps(scenario)


def test_the_traces_exercise_the_rules():
    steps = [step for scenario in SCENARIOS for step in scenario["steps"]]
    assert sum(bool(preempted) for _, _, preempted, _, _ in steps) > 10
    assert any(hit for _, admitted, *_ in steps for _, hit in admitted)
    configs = [scenario["config"] for scenario in SCENARIOS]
    assert any(config["long_prefill_token_threshold"] for config in configs)
    assert any(config["policy"] == "priority" for config in configs)
