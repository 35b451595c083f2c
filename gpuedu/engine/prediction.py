"""What the serving simulator says about this engine on this machine, beside what the engine did."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from uuid import uuid4

from gpuedu.checks import check_count
from gpuedu.continuous_batching.plan import SchedulerConfig, VLLMScheduler
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.simulator import Replica, simulate
from gpuedu.serving.step_cost import Iteration, PiecewiseStepCost, StepCost, fit_piecewise_step_cost
from gpuedu.serving.workload import Request

from .llm import LLM
from .sampling_params import SamplingParams
from .trace import Trace

NANOSECOND_S = 1e-9  # clocks are no finer: a request that is due in less has come


def measure_iterations(
    llm: LLM,
    *,
    batch_sizes: Sequence[int] = (1, 3, 6, 10, 15),
    prompt_tokens: Sequence[int] = (16, 128, 256),
    output_tokens: int = 6,
    seed: int = 0,
) -> list[Iteration]:
    """A short measurement of this machine: unlike iterations, and the seconds that each took.

    Parameters
    ----------
    llm : LLM
        Idle; its trace stays as it is.
    batch_sizes, prompt_tokens : sequence of int
        So many requests, with prompts so long on average, the longest up to three times the shortest: each
        combination is run. Half of the requests come at once, the others join them one an iteration, so
        that there are iterations of prompts, of decoding, and of both. Unlike lengths, because attention
        over equal ones is cheaper; and no powers of two, because kernels like those.
    output_tokens : int
        Of the last to join; as many as all are together.
    seed : int
        Of the prompts, which are random tokens.

    Returns
    -------
    list of Iteration
        For :func:`gpuedu.serving.step_cost.fit_piecewise_step_cost`. A machine that others use too is
        measured before and after what shall be predicted, and both lists are fitted together.

    Raises
    ------
    TypeError, ValueError
        For a size below 1 or none at all; if requests are under way, or one of these does not fit the KV
        cache or the context.

    Notes
    -----
    No prompt is found in the prefix cache. Whoever interrupts it finds the engine idle, but for a static
    batch that has begun.
    """
    for name, sizes in (("batch_sizes", batch_sizes), ("prompt_tokens", prompt_tokens)):
        if not sizes:
            raise ValueError(f"{name}: must be at least one")
        for size in sizes:
            check_count(name, size)
    check_count("output_tokens", output_tokens)
    if llm.has_unfinished():
        raise ValueError("measure_iterations: must have the engine to itself; requests are under way")
    choose, salt = random.Random(seed), uuid4().hex
    vocab_size = llm.model.config.shape.vocab_size

    def run(batch_size: int, mean: int) -> None:
        lengths = [round(mean * (0.5 + (n + 0.5) / batch_size)) for n in range(batch_size)]
        choose.shuffle(lengths)
        at_once = -(-batch_size // 2)
        for n, length in enumerate(lengths):
            joins = batch_size - max(n + 1, at_once)  # who comes later
            params = SamplingParams(max_tokens=output_tokens + joins, ignore_eos=True)
            prompt = [choose.randrange(vocab_size) for _ in range(length)]
            llm.add_request(prompt, params, cache_salt=salt)
            if n + 1 >= at_once:
                llm.step()
        while llm.has_unfinished():
            llm.step()

    kept, llm.trace = llm.trace, None
    try:
        run(batch_sizes[0], prompt_tokens[0])  # the first of all takes longer
        llm.trace = Trace()
        for batch_size in batch_sizes:
            for length in prompt_tokens:
                run(batch_size, length)
        return llm.trace.iterations
    except BaseException:
        llm.abort_all()
        raise
    finally:
        llm.trace = kept


def measure_step_cost(llm: LLM, **measurement) -> PiecewiseStepCost:
    """Seconds of an iteration on this machine, fitted to :func:`measure_iterations` with these options."""
    return fit_piecewise_step_cost(measure_iterations(llm, **measurement))


def drive(
    llm: LLM,
    workload: Sequence[Request],
    *,
    seed: int = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> RequestLog:
    """Serve requests that come when they come.

    Parameters
    ----------
    llm : LLM
        Idle, with ``record=True``.
    workload : sequence of Request
        Times of arrival count from now.
    seed : int
        Of the prompts, which are random tokens.
    sleep : callable
        Waits while there is nothing to do.

    Returns
    -------
    RequestLog
        The requests in order of their end, their times counted from the call's beginning.

    Raises
    ------
    ValueError
        If the engine keeps no trace, or has requests under way.

    Notes
    -----
    Who comes during an iteration joins the queue after it, and its waiting counts from when it came: a slow
    server does not slow its clients down (an open loop).

    If it is interrupted, requests under way are aborted, and the trace has what was finished.
    """
    if llm.trace is None:
        raise ValueError("llm: must keep a trace (record=True)")
    if llm.has_unfinished():
        raise ValueError("drive: must have the engine to itself; requests are under way")
    kept, llm.trace = llm.trace, Trace()
    begin = llm.now()
    try:
        _serve(llm, workload, begin, random.Random(seed), sleep)
    except BaseException:
        llm.abort_all()
        raise
    finally:
        log, kept.iterations = llm.trace.requests, kept.iterations + llm.trace.iterations
        llm.trace = kept
        for record in log:
            kept.requests.append(record)
    return shifted(log, -begin)


def _serve(
    llm: LLM,
    workload: Sequence[Request],
    begin: float,
    choose: random.Random,
    sleep: Callable[[float], None],
) -> None:
    """The loop of :func:`drive`, from ``begin`` on the engine's clock until the last request is finished."""
    vocab_size = llm.model.config.shape.vocab_size
    coming = sorted(workload, key=lambda request: request.arrival_s, reverse=True)
    while coming or llm.has_unfinished():
        now = llm.now() - begin
        while coming and coming[-1].arrival_s <= now + NANOSECOND_S:
            request = coming.pop()
            llm.add_request(
                [choose.randrange(vocab_size) for _ in range(request.prompt_tokens)],
                SamplingParams(max_tokens=request.output_tokens, ignore_eos=True),
                request_id=request.request_id,
                priority=request.priority,
                client=request.client,
                arrival_s=begin + request.arrival_s,
            )
        if llm.has_unfinished():
            llm.step()
        else:
            sleep(coming[-1].arrival_s - now)


def shifted(log: RequestLog, seconds: float) -> RequestLog:
    """The same requests with all times moved by ``seconds``."""
    moved = RequestLog(log)
    for name in ("arrival_s", "start_s", "first_token_s", "finish_s"):
        column = getattr(moved, name)
        for index, value in enumerate(column):
            column[index] = value + seconds
    return moved


def predict(
    workload: Sequence[Request],
    step_cost: StepCost,
    config: SchedulerConfig,
    *,
    num_blocks: int,
    block_size: int = 16,
) -> RequestLog:
    """The same requests through the simulator.

    Parameters
    ----------
    workload : sequence of Request
        What was, or shall be, asked.
    step_cost : StepCost
        Of the machine.
    config : SchedulerConfig
        The engine's limits (``LLM.config``).
    num_blocks, block_size : int
        The engine's KV cache.

    Returns
    -------
    RequestLog
        In the order of ``workload``. Prefix caching is not simulated here: switch it off in the engine.
    """
    scheduler = VLLMScheduler(config, BlockCounter(num_blocks, block_size))
    return simulate(workload, [Replica(scheduler, step_cost)]).requests


def residuals(measured: RequestLog, predicted: RequestLog) -> dict[str, list[float]]:
    """How far a prediction is off, relative to what was measured.

    Parameters
    ----------
    measured, predicted : RequestLog
        Of the same requests, in any order.

    Returns
    -------
    dict
        ``"ttft_s"``, ``"tpot_s"``, ``"latency_s"``: ``predicted / measured - 1`` for each request (those of
        one token have no TPOT); ``"throughput"``: a single figure for output tokens per second.
    """
    pairs = {record.request_id: [record] for record in measured}
    for record in predicted:
        pairs[record.request_id].append(record)
    found: dict[str, list[float]] = {
        name: [getattr(theirs, name) / getattr(ours, name) - 1 for ours, theirs in pairs.values()]
        for name in ("ttft_s", "latency_s")
    }
    found["tpot_s"] = [
        theirs.tpot_s / ours.tpot_s - 1 for ours, theirs in pairs.values() if ours.output_tokens > 1
    ]
    found["throughput"] = [throughput(predicted) / throughput(measured) - 1]
    return found


def median_residuals(found: dict[str, list[float]]) -> dict[str, float]:
    """Of each kind of residual, the median of its absolute values."""
    return {name: median(map(abs, values)) for name, values in found.items()}


def throughput(log: RequestLog) -> float:
    """Output tokens per second, from the first arrival to the last token."""
    return sum(log.output_tokens) / (max(log.finish_s) - min(log.arrival_s))
