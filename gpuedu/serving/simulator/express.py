"""Requests that do not touch each other: queues with several servers, request by request.

Where every iteration takes the same time and a scheduler promises that neither its tokens nor its blocks run
out, all that a request waits for is a place. Then no event needs a decision: the router chooses, a heap of
the times at which places become free says the rest, and the log is that of the event loop.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator
from collections.abc import Sequence as Items
from heapq import heappop, heappush, heapreplace
from operator import add, attrgetter

from gpuedu.continuous_batching.plan import LeapingVLLMScheduler
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.step_cost import ConstantStepCost
from gpuedu.serving.workload import Request

from .replica import TICKS, Replica, to_ticks
from .routing import LeastOutstanding, RandomChoice, RoundRobin, Router


def serve_express(requests: Items[Request], replicas: Items[Replica], router: Router) -> RequestLog | None:
    """Serve requests that touch each other nowhere; fills the replicas' usage.

    Returns
    -------
    RequestLog or None
        None, and nothing has changed, if a replica could let one request wait for another's tokens or blocks,
        or the router may look at more of a replica than the number of its outstanding requests.
    """
    if type(router) not in (RoundRobin, RandomChoice, LeastOutstanding):
        return None
    if not all(_is_regular(replica) for replica in replicas):
        return None
    log = _log(requests)
    prompt, longest = max(log.prompt_tokens), max(map(add, log.prompt_tokens, log.output_tokens))
    if not all(replica.scheduler.only_places_run_out(prompt, longest) for replica in replicas):
        return None
    _serve(requests, replicas, router, log)
    return log


def _is_regular(replica: Replica) -> bool:
    """Whether its iterations take the same time, and its scheduler is one that knows what it can promise."""
    return (
        type(replica.step_cost) is ConstantStepCost
        and to_ticks(replica.step_cost.iteration_s) > 0
        and type(replica.scheduler) is LeapingVLLMScheduler  # one that inherits may decide otherwise
        and type(replica.scheduler.kv) is BlockCounter
    )


def _serve(requests: Items[Request], replicas: Items[Replica], router: Router, log: RequestLog) -> None:
    """Route each request as it arrives, and let its replica's lane write its times."""
    ticks = [round(request.arrival_s * TICKS) for request in requests]
    routed: list[list[int]] = [[] for _ in replicas]
    lanes = [_lane(*served, ticks, log) for served in zip(replicas, routed, strict=True)]
    choose, chosen = router.choose, log.replica
    looks = type(router) is LeastOutstanding
    departures: list[tuple[int, int]] = []  # tick, replica
    for index in sorted(range(len(requests)), key=ticks.__getitem__):
        while departures and departures[0][0] <= ticks[index]:
            replicas[heappop(departures)[1]].outstanding -= 1
        number = chosen[index] = choose(requests[index], replicas)
        routed[number].append(index)
        if looks:
            replicas[number].outstanding += 1
            heappush(departures, (next(lanes[number]), number))
    for replica, lane in zip(replicas, lanes, strict=True):
        deque(lane, maxlen=0)
        replica.outstanding = 0


def _lane(replica: Replica, indices: list[int], ticks: list[int], log: RequestLog) -> Iterator[int]:
    """Serve the requests of one replica in the order of their arrival, each when it is asked for.

    Parameters
    ----------
    indices : list of int
        Whose turn it is; may grow until the iterator is exhausted.
    ticks : list of int
        When each request arrives.
    log : RequestLog
        Times are written here.

    Yields
    ------
    int
        The tick at which the request ends.

    Notes
    -----
    Iterations follow each other without a pause while anybody is there. A request starts with the first
    iteration that begins when it has come and has a place; if the replica is idle, at once.
    """
    step = to_ticks(replica.step_cost.iteration_s)
    step_s = step / TICKS
    places = [0] * min(replica.scheduler.config.max_num_seqs, len(ticks))
    arrivals, starts, firsts, ends = log.arrival_s, log.start_s, log.first_token_s, log.finish_s
    outputs, gaps = log.output_tokens, log.worst_gap_s
    origin = idle_from = busy = in_system = 0
    for index in indices:
        arrival, output = ticks[index], outputs[index]
        if arrival >= idle_from:
            start = origin = idle_from = arrival
        else:
            start = arrival + (origin - arrival) % step
            if places[0] > start:
                start = places[0]
        end = start + output * step
        heapreplace(places, end)
        if end > idle_from:
            busy += end - idle_from
            idle_from = end
        in_system += end - arrival
        arrivals[index] = arrival / TICKS
        starts[index] = start / TICKS
        firsts[index] = (start + step) / TICKS
        ends[index] = end / TICKS
        if output > 1:
            gaps[index] = step_s
        yield end
    usage = replica.usage
    usage.busy_ticks, usage.in_system_ticks = busy, in_system
    usage.iterations, usage.decisions = busy // step, len(indices)
    _count_tokens(replica, indices, step, log)


def _count_tokens(replica: Replica, indices: list[int], step: int, log: RequestLog) -> None:
    """What the replica's requests computed, and the blocks that they held, summed over iterations."""
    usage, kv = replica.usage, replica.scheduler.kv
    prompts = list(map(log.prompt_tokens.__getitem__, indices))
    outputs = list(map(log.output_tokens.__getitem__, indices))
    usage.prompt_tokens, usage.output_tokens = sum(prompts), sum(outputs)
    usage.slot_ticks = usage.output_tokens * step
    # A sequence has as many tokens as its prompt in its first iteration, and all but one in its last
    last, before = Counter(map(add, prompts, outputs)), Counter(prompts)
    last.subtract(before)
    blocks = sum(count * _blocks_up_to(tokens - 1, kv.block_size) for tokens, count in last.items())
    usage.kv_ticks = blocks * step / kv.num_blocks


def _blocks_up_to(tokens: int, block_size: int) -> int:
    """Sum of ceil(t / block_size) for t from 1 to ``tokens``."""
    full, rest = divmod(tokens, block_size)
    return block_size * full * (full + 1) // 2 + rest * (full + 1)


def _log(requests: Items[Request]) -> RequestLog:
    """A row for each request, its times yet to be filled in."""
    log = RequestLog()
    for name in ("arrival_s", "start_s", "first_token_s", "finish_s", "worst_gap_s"):
        setattr(log, name, array("d", [0.0]) * len(requests))
    for name in ("preemptions", "cached_tokens", "replica"):
        setattr(log, name, array("q", [0]) * len(requests))
    log.request_id = list(map(attrgetter("request_id"), requests))
    log.prompt_tokens = array("q", map(attrgetter("prompt_tokens"), requests))
    log.output_tokens = array("q", map(attrgetter("output_tokens"), requests))
    return log
