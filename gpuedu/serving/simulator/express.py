"""Requests that do not touch each other: a queue with several servers, request by request.

Where every iteration takes the same time and neither tokens nor blocks can run out, all that a request has
to wait for is a place. Then the event loop is not needed: a heap of the times at which places become free
gives the same log.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Items
from functools import lru_cache
from heapq import heapreplace

from gpuedu.continuous_batching.plan import LeapingVLLMScheduler
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.step_cost import ConstantStepCost
from gpuedu.serving.workload import Request

from .replica import TICKS, Replica, to_ticks


def is_express(requests: Items[Request], replicas: Items[Replica]) -> bool:
    """Whether one replica serves these requests independently of each other, but for its places."""
    replica = replicas[0]
    scheduler = replica.scheduler
    if len(replicas) > 1 or type(scheduler) is not LeapingVLLMScheduler:
        return False
    if type(replica.step_cost) is not ConstantStepCost or scheduler.config.policy != "fcfs":
        return False
    config, kv = scheduler.config, scheduler.kv
    prompt = max(request.prompt_tokens for request in requests)
    longest = max(request.prompt_tokens + request.output_tokens for request in requests)
    blocks = config.max_num_seqs * -(-longest // kv.block_size)
    return (
        config.enable_chunked_prefill
        and config.max_num_seqs * prompt <= config.max_num_batched_tokens
        and blocks <= (1 - config.watermark) * kv.num_free_blocks
        and not 0 < config.long_prefill_token_threshold < prompt
    )


def run_express(requests: Items[Request], replica: Replica) -> RequestLog:
    """The log of requests that :func:`is_express`; fills the replica's usage.

    Notes
    -----
    Iterations follow each other without a pause while anybody is there. A request starts with the first
    iteration that begins when it has come and has a place; if the replica is idle, at once.
    """
    step = to_ticks(replica.step_cost.iteration_s)
    ticks = [round(request.arrival_s * TICKS) for request in requests]
    order = sorted(range(len(requests)), key=ticks.__getitem__)
    places = [0] * replica.scheduler.config.max_num_seqs
    zeros = bytes(8 * len(requests))
    arrivals, starts, firsts, ends = (array("d", zeros) for _ in range(4))
    outputs = array("q", zeros)
    usage = replica.usage
    origin, idle_from, in_system, tokens = 0, 0, 0, 0
    for index in order:
        request = requests[index]
        output = request.output_tokens
        arrival = ticks[index]
        if arrival >= idle_from:
            start = origin = arrival
        else:
            start = arrival + (origin - arrival) % step
            free = places[0]
            if free > start:
                start = free
        end = start + output * step
        heapreplace(places, end)
        if end > idle_from:
            usage.busy_ticks += end - (start if arrival >= idle_from else idle_from)
            idle_from = end
        tokens += output
        in_system += end - arrival
        arrivals[index] = arrival / TICKS
        starts[index] = start / TICKS
        firsts[index] = (start + step) / TICKS
        ends[index] = end / TICKS
        outputs[index] = output
    usage.slot_ticks = tokens * step
    kv = replica.scheduler.kv
    blocks = sum(_blocks(r.prompt_tokens, r.output_tokens, kv.block_size) for r in requests)
    usage.kv_ticks = blocks * step / kv.num_blocks
    usage.in_system_ticks = in_system
    usage.iterations = usage.busy_ticks // step
    usage.decisions = len(requests)
    usage.prompt_tokens = sum(request.prompt_tokens for request in requests)
    usage.output_tokens = tokens
    return _log(requests, arrivals, starts, firsts, ends, outputs, step / TICKS)


@lru_cache(maxsize=2**16)
def _blocks(prompt_tokens: int, output_tokens: int, block_size: int) -> int:
    """Blocks that a request has, summed over its iterations: from its prompt to its last token but one."""
    before, last = prompt_tokens - 1, prompt_tokens + output_tokens - 1
    return _blocks_up_to(last, block_size) - _blocks_up_to(before, block_size)


def _blocks_up_to(tokens: int, block_size: int) -> int:
    """Sum of ceil(t / block_size) for t from 1 to ``tokens``."""
    full, rest = divmod(tokens, block_size)
    return block_size * full * (full + 1) // 2 + rest * (full + 1)


def _log(
    requests: Items[Request],
    arrivals: array,
    starts: array,
    firsts: array,
    ends: array,
    outputs: array,
    step_s: float,
) -> RequestLog:
    log = RequestLog()
    log.request_id = [request.request_id for request in requests]
    log.arrival_s, log.start_s, log.first_token_s, log.finish_s = arrivals, starts, firsts, ends
    log.worst_gap_s = array("d", (step_s if output > 1 else 0.0 for output in outputs))
    log.prompt_tokens = array("q", (request.prompt_tokens for request in requests))
    log.output_tokens = outputs
    zeros = bytes(8 * len(requests))
    log.preemptions, log.cached_tokens, log.replica = (array("q", zeros) for _ in range(3))
    return log
