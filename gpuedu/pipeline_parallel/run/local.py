"""A schedule carried out in one process: the actions of all ranks, one at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from ..plan import Action, Schedule, validate
from .rank import Rank, consumed, microbatches
from .result import Run, run_of


class _Box(dict):
    """Messages put and not yet taken."""

    put = dict.__setitem__
    take = dict.pop


def run_local(
    schedule: Schedule,
    parts: Sequence[Callable],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss_fn: Callable,
) -> Run:
    """Carry out one training step of ``schedule`` in this process, all ranks in turn.

    The gradients of the mean loss over the batch are added to the parameters' ``grad``, as a
    ``backward`` of the uncut model would.

    Parameters
    ----------
    schedule : Schedule
        Any valid schedule.
    parts : sequence of callables
        The model cut by depth into ``schedule.depth`` parts, the first layers first; each an
        ``nn.Module`` or any function with one tensor in and one out.
    inputs, targets : Tensor
        The batch, of shapes (B, ...), B a multiple of ``schedule.microbatches``. If ``inputs``
        is a leaf that requires a gradient, it receives one.
    loss_fn : callable
        ``loss_fn(output, target)``, one number: the *mean* over the samples of a microbatch.

    Returns
    -------
    Run
        The mean loss; when each action ran, which in one process is one at a time; the activations
        held. The first backward in a process also loads code of torch's, for up to a second.

    Raises
    ------
    ValueError
        If the schedule is not valid, there are not as many parts as it has, or B is not a multiple.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import one_f_one_b
    >>> parts = [torch.nn.Linear(4, 4) for _ in range(2)]
    >>> x, y = torch.ones(8, 4), torch.zeros(8, 4)
    >>> run = run_local(one_f_one_b(2, 4), parts, x, y, torch.nn.functional.mse_loss)
    >>> run.peak_activations
    (2, 1)
    >>> expected = torch.nn.functional.mse_loss(parts[1](parts[0](x)), y)
    >>> abs(run.loss - expected.item()) < 1e-6
    True
    """
    validate(schedule)
    if len(parts) != schedule.depth:
        raise ValueError(f"{len(parts)} parts: {schedule.name} needs stages * chunks = {schedule.depth}")
    microbatches("inputs", inputs, schedule.microbatches)
    box = _Box()
    ranks = []
    for rank in range(schedule.stages):
        own = [parts[schedule.part(rank, chunk)] for chunk in range(schedule.chunks)]
        ranks.append(Rank(schedule, rank, own, inputs, targets, loss_fn, box, inputs.device))
    start = time.perf_counter()
    for action in _one_at_a_time(schedule, box):
        ranks[action.stage].run(action)
    return run_of(schedule, [rank.record(start) for rank in ranks])


def _one_at_a_time(schedule: Schedule, box: _Box) -> Iterator[Action]:
    """The actions of all ranks, each when ``box`` holds what it needs: in turns, as in parallel."""
    waiting = [deque(actions) for actions in schedule.actions]
    while any(waiting):
        for actions in waiting:
            message = consumed(schedule, actions[0]) if actions else None
            if actions and (message is None or message in box):
                yield actions.popleft()
