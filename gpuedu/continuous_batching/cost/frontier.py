"""Latency against throughput: one point for each policy, load and limit of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from gpuedu.checks import check_count
from gpuedu.continuous_batching.plan import (
    LeapingVLLMScheduler,
    OrcaScheduler,
    Scheduler,
    SchedulerConfig,
    StaticBatching,
)
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.metrics import percentile
from gpuedu.serving.simulator import Replica, kv_occupancy, simulate, slot_occupancy
from gpuedu.serving.step_cost import StepCost
from gpuedu.serving.workload import Lengths, Poisson, make_requests

BATCHING = {
    "static": "Static batches",
    "orca": "Orca, slots reserved",
    "vllm": "vLLM, paged",
}
"""Ways to batch, by name; the value is for labels."""


@dataclass(frozen=True)
class Point:
    """One replica under one load.

    Parameters
    ----------
    rate : float
        Requests offered a second.
    output_tokens_per_s : float
        Throughput, from the first arrival to the last token.
    ttft_p90_s, tpot_mean_s, worst_gap_p90_s : float
        Time to first token, time per output token, worst inter-token latency, in seconds.
    normalized_s : float
        End-to-end latency over output tokens, mean over requests: the axis of Orca's and vLLM's figures.
    slot_occupancy, kv_occupancy : float
        Shares, 0 to 1; for static batches the KV cache is what they reserve.
    preemptions : int
        Of all requests.
    """

    rate: float
    output_tokens_per_s: float
    ttft_p90_s: float
    tpot_mean_s: float
    worst_gap_p90_s: float
    normalized_s: float
    slot_occupancy: float
    kv_occupancy: float
    preemptions: int


def make_scheduler(
    batching: str, *, max_num_seqs: int, max_num_batched_tokens: int, blocks: int, max_model_len: int
) -> Scheduler:
    """A scheduler by name, over a KV cache in blocks of 16 tokens.

    Parameters
    ----------
    batching : str
        A name of ``BATCHING``.
    max_num_seqs, max_num_batched_tokens : int
        Sequences that run at once, and tokens of one iteration.
    blocks : int
        Of the KV cache.
    max_model_len : int
        Tokens that Orca reserves for a sequence.

    Returns
    -------
    Scheduler
        New.

    Raises
    ------
    ValueError
        For another name than those of ``BATCHING``.

    Examples
    --------
    >>> limits = {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "blocks": 100, "max_model_len": 64}
    >>> type(make_scheduler("orca", **limits)).__name__
    'OrcaScheduler'
    """
    if batching == "static":
        return StaticBatching(max_num_seqs, BlockCounter(blocks), respond_early=True)
    if batching == "orca":
        return OrcaScheduler(max_num_seqs, 16 * blocks, max_model_len)
    if batching == "vllm":
        config = SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
        return LeapingVLLMScheduler(config, BlockCounter(blocks))
    raise ValueError(f"batching={batching!r}: must be one of {', '.join(BATCHING)}")


def frontier_point(
    batching: str,
    rate: float,
    *,
    prompt: Lengths,
    output: Lengths,
    step_cost: StepCost,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 2048,
    blocks: int = 8000,
    max_model_len: int = 4096,
    requests: int = 200,
    seed: int = 0,
) -> Point:
    """Serve Poisson traffic on one replica.

    Parameters
    ----------
    batching : str
        A name of ``BATCHING``.
    rate : float
        Requests a second.
    prompt, output : Lengths
        Of the requests.
    step_cost : StepCost
        What an iteration takes.
    max_num_seqs, max_num_batched_tokens : int
        Limits of the batch; the second matters to ``"vllm"`` alone.
    blocks : int
        Of 16 tokens of KV cache.
    max_model_len : int
        Tokens that Orca reserves for a request.
    requests : int
        How many are served.
    seed : int
        Of arrivals and lengths, the same for every rate.

    Returns
    -------
    Point

    Raises
    ------
    ValueError
        For an unknown name, or a request that cannot be served.

    Examples
    --------
    >>> from gpuedu.serving.step_cost import LinearStepCost
    >>> from gpuedu.serving.workload import Fixed
    >>> step_cost = LinearStepCost(0.01, token_s=2e-5, context_s=1e-7)
    >>> point = frontier_point("vllm", 2.0, prompt=Fixed(100), output=Fixed(50), step_cost=step_cost)
    >>> point.preemptions
    0
    """
    check_count("requests", requests, 2)
    workload = make_requests(requests, Poisson(rate), prompt, output, seed=seed)
    scheduler = make_scheduler(
        batching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        blocks=blocks,
        max_model_len=max_model_len,
    )
    log = simulate(workload, [Replica(scheduler, step_cost)])
    served = log.requests
    gaps = [gap for gap, tokens in zip(served.worst_gap_s, served.output_tokens, strict=True) if tokens > 1]
    latency_per_token = zip(served.latency_s(), served.output_tokens, strict=True)
    return Point(
        rate=rate,
        output_tokens_per_s=sum(served.output_tokens) / (log.end_s - min(served.arrival_s)),
        ttft_p90_s=percentile(served.ttft_s(), 0.9),
        tpot_mean_s=fmean(served.tpot_s()),
        worst_gap_p90_s=percentile(gaps, 0.9),
        normalized_s=fmean(latency / tokens for latency, tokens in latency_per_token),
        slot_occupancy=slot_occupancy(log, max_num_seqs),
        kv_occupancy=kv_occupancy(log),
        preemptions=sum(served.preemptions),
    )
