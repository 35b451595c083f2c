"""Static and continuous batching on the same requests: occupancy, throughput, and what derives from what."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count
from gpuedu.continuous_batching.plan import LeapingVLLMScheduler, SchedulerConfig, StaticBatching
from gpuedu.paged_attention.plan.counting import BlockCounter
from gpuedu.serving.simulator import Replica, simulate, slot_occupancy
from gpuedu.serving.step_cost import ConstantStepCost, StepCost
from gpuedu.serving.workload import AllAtOnce, Fixed, Lengths, make_requests

from .occupancy import static_occupancy

ROOM = 2**40
"""Blocks of a cache that nobody fills."""


@dataclass(frozen=True)
class Trial:
    """Both ways of batching on one backlog.

    Parameters
    ----------
    derived_occupancy : float
        Of static slots, by :func:`static_occupancy`.
    static_occupancy, continuous_occupancy : float
        Of slots, simulated.
    derived_gain : float
        One over the derived occupancy.
    gain : float
        Times the throughput of static batching, simulated.
    """

    derived_occupancy: float
    static_occupancy: float
    continuous_occupancy: float
    derived_gain: float
    gain: float


def trial(
    output: Lengths,
    batch_size: int,
    *,
    prompt: Lengths | None = None,
    step_cost: StepCost | None = None,
    batches: int = 100,
    seed: int = 0,
) -> Trial:
    """Put the claim to the test: a backlog of requests, served statically and continuously.

    Parameters
    ----------
    output : Lengths
        Of the answers.
    batch_size : int
        Slots of both.
    prompt : Lengths, optional
        Of the prompts; a single token by default.
    step_cost : StepCost, optional
        What an iteration takes; by default the same time whatever it holds, as the derivation assumes.
    batches : int
        Static batches that the backlog makes.
    seed : int
        Of the lengths.

    Returns
    -------
    Trial

    Notes
    -----
    Memory is ample for both. At the end of the backlog the last slots of continuous batching empty too,
    which takes a few per cent of its occupancy.

    Examples
    --------
    >>> from gpuedu.serving.workload import Exponential
    >>> result = trial(Exponential(200), 8)
    >>> round(result.derived_gain, 2), round(result.gain, 1), round(result.continuous_occupancy, 2)
    (2.71, 2.7, 0.96)
    """
    check_count("batch_size", batch_size)
    check_count("batches", batches)
    prompt = Fixed(1) if prompt is None else prompt
    step_cost = ConstantStepCost(0.01) if step_cost is None else step_cost
    requests = make_requests(batches * batch_size, AllAtOnce(), prompt, output, seed=seed)
    config = SchedulerConfig(max_num_seqs=batch_size, max_num_batched_tokens=max(2048, batch_size))
    continuous = simulate(requests, [Replica(LeapingVLLMScheduler(config, BlockCounter(ROOM)), step_cost)])
    static = simulate(requests, [Replica(StaticBatching(batch_size, respond_early=True), step_cost)])
    derived = static_occupancy(output, batch_size)
    return Trial(
        derived_occupancy=derived,
        static_occupancy=slot_occupancy(static, batch_size),
        continuous_occupancy=slot_occupancy(continuous, batch_size),
        derived_gain=1 / derived,
        gain=static.end_s / continuous.end_s,
    )
