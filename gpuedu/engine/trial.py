"""A prediction on trial: the same requests served a few times, each run held against its prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpuedu.checks import check_count
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.step_cost import ConstantStepCost, PiecewiseStepCost, fit_piecewise_step_cost
from gpuedu.serving.workload import Request

from .llm import LLM
from .prediction import drive, measure_iterations, predict, residuals


@dataclass(frozen=True)
class Trial:
    """Runs of the same requests, and what was predicted for each.

    Parameters
    ----------
    measured, predicted, replayed : tuple of RequestLog
        One a run: what happened; what was predicted from measurements around it; and what the simulator
        makes of the same requests with a step cost fitted to the run's own iterations.
    step_costs : tuple of PiecewiseStepCost
        By which each was predicted.
    """

    measured: tuple[RequestLog, ...]
    predicted: tuple[RequestLog, ...]
    replayed: tuple[RequestLog, ...]
    step_costs: tuple[PiecewiseStepCost, ...]

    def residuals(self) -> dict[str, list[float]]:
        """Of the predictions, every request in every run: see :func:`~gpuedu.engine.residuals`."""
        return _pooled(map(residuals, self.measured, self.predicted))

    def replay_residuals(self) -> dict[str, list[float]]:
        """The same of the replays: what is left if the machine's pace during the run is known."""
        return _pooled(map(residuals, self.measured, self.replayed))

    def scatter(self) -> dict[str, list[float]]:
        """How far each run is off the run before it: what the machine does not repeat, of both."""
        return _pooled(residuals(later, before) for before, later in pairwise(self.measured))


def run_trial(
    llm: LLM,
    workload: Sequence[Request],
    *,
    runs: int = 3,
    sleep: Callable[[float], None] = time.sleep,
    **measurement,
) -> Trial:
    """Serve the same requests a few times, measure the machine before and after each, and predict each run.

    Parameters
    ----------
    llm : LLM
        Idle, with ``record=True`` and without prefix caching.
    workload : sequence of Request
        Times of arrival count from the beginning of each run.
    runs : int
        How often, at least 2.
    sleep : callable
        Waits while there is nothing to do.
    **measurement
        Of :func:`~gpuedu.engine.measure_iterations`.

    Returns
    -------
    Trial

    Raises
    ------
    TypeError, ValueError
        Before anything is measured: for fewer than 2 runs, an engine that keeps no trace, finds prefixes, or
        has another scheduler (:func:`~gpuedu.engine.predict` knows none of that), requests that cannot be
        simulated, or answers that are all too short for a fit to a run's own iterations.

    Notes
    -----
    On a machine that others use too, seconds drift: the step cost of a run comes from the measurements on
    both sides of it. A first token is one iteration or two, and whether a request comes just before one
    begins or just after is luck: single runs of a few dozen requests scatter, and so do the medians of
    their residuals. Over several runs they settle.
    """
    check_count("runs", runs, minimum=2)
    if llm.trace is None:
        raise ValueError("llm: must keep a trace (record=True)")
    if llm.config is None:
        raise ValueError("llm: must have the scheduler that its limits make, not one of its own")
    if llm.kv.enable_prefix_caching:
        raise ValueError("llm: must not find prefixes (enable_prefix_caching=False)")
    longest = max((request.output_tokens for request in workload), default=0)
    if longest < 5:
        raise ValueError(f"workload: the longest answer has {longest} tokens, one must have at least 5")
    blocks = {"num_blocks": llm.kv.num_blocks, "block_size": llm.kv.block_size}
    predict(workload, ConstantStepCost(1.0), llm.config, **blocks)
    measured, predicted, replayed, step_costs = [], [], [], []
    before = measure_iterations(llm, **measurement)
    for _ in range(runs):
        begun = len(llm.trace.iterations)
        measured.append(drive(llm, workload, sleep=sleep))
        own = fit_piecewise_step_cost(llm.trace.iterations[begun:])
        after = measure_iterations(llm, **measurement)
        step_costs.append(fit_piecewise_step_cost(before + after))
        predicted.append(predict(workload, step_costs[-1], llm.config, **blocks))
        replayed.append(predict(workload, own, llm.config, **blocks))
        before = after
    return Trial(*map(tuple, (measured, predicted, replayed, step_costs)))


def _pooled(runs: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """All runs' residuals by kind."""
    pooled: dict[str, list[float]] = {}
    for run in runs:
        for name, values in run.items():
            pooled.setdefault(name, []).extend(values)
    return pooled
