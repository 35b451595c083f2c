"""Measured against predicted: the same schedule on real processes and on the cost model's clock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import fmean

import torch
import torch.distributed as dist

from ..cost import Timeline, peak_activations, timeline
from ..plan import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD, Kind, Schedule
from .distributed import run_distributed
from .result import Run
from .workloads import Sleep, Transformer


def measure(
    schedules: Sequence[Schedule],
    workload: Transformer | Sleep,
    steps: int = 3,
    transfer_delay_s: float = 0.0,
    device: str = "cpu",
) -> list[Run]:
    """Run each schedule on the processes of the group, and keep its fastest step.

    All ranks call it, as with ``launch(stages, measure, schedules, workload)``. A step before the
    first warms up and is not counted; what disturbs a step makes it longer, hence the fastest.

    Parameters
    ----------
    schedules : sequence of Schedule
        Valid schedules of as many stages as there are processes.
    workload : Transformer or Sleep
        What the parts do.
    steps : int
        Number of measured steps of each schedule.
    transfer_delay_s : float
        Every message arrives this much later, in s.
    device : str
        ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    list of Run
        One for each schedule.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    fastest = []
    for schedule in schedules:
        numbers = [schedule.part(dist.get_rank(), chunk) for chunk in range(schedule.chunks)]
        parts = [workload.part(schedule, number, device) for number in numbers]
        inputs, targets = workload.batch(schedule, device)
        runs = []
        for _ in range(steps + 1):
            for tensor in (inputs, *(p for part in parts for p in part.parameters())):
                tensor.grad = None
            runs.append(
                run_distributed(
                    schedule,
                    parts,
                    inputs,
                    targets,
                    torch.nn.functional.mse_loss,
                    transfer_delay_s=transfer_delay_s,
                    device=device,
                )
            )
        fastest.append(min(runs[1:], key=lambda run: run.timeline.makespan))
    return fastest


def predict(run: Run, transfer_delay_s: float = 0.0) -> Timeline:
    """What the cost model says to ``run``, given how long its actions took on each rank.

    Parameters
    ----------
    run : Run
        A measured run.
    transfer_delay_s : float
        The delay that was added to every message, in s. What a message takes by itself is not known
        to the model: it is part of the difference.

    Returns
    -------
    Timeline
        In s: each rank's actions of one kind all take their mean, so that it is as busy as measured.
    """
    schedule = run.timeline.schedule
    forward, backward_input, backward_weight = zip(*stage_times(run.timeline), strict=True)
    return timeline(
        schedule,
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        transfer=transfer_delay_s,
    )


def stage_times(measured: Timeline) -> list[tuple[float, float, float]]:
    """Per rank, the time of F, I and W of one microbatch in the whole stage, which add up to its busy time.

    A rank that only ran full backwards has them as I, with W = 0. Where it ran both kinds, a full one
    is divided as the split ones are.
    """
    schedule = measured.schedule
    taken = [{kind: [] for kind in Kind} for _ in range(schedule.stages)]
    for span in measured.spans:
        taken[span.rank][span.action.kind].append(span.end - span.start)
    times = []
    for of in taken:
        backward = sum(map(sum, (of[BACKWARD_INPUT], of[BACKWARD_WEIGHT], of[FULL_BACKWARD])))
        i, w = (fmean(of[kind]) if of[kind] else 0.0 for kind in (BACKWARD_INPUT, BACKWARD_WEIGHT))
        share = i / (i + w) if i + w else 1.0
        whole = (sum(of[FORWARD]), backward * share, backward * (1 - share))
        times.append(tuple(time / schedule.microbatches for time in whole))
    return times


def table(run: Run, transfer_delay_s: float = 0.0) -> str:
    """Predicted and measured, as text: makespan and bubble, then rank by rank.

    A rank's bubble share is the part of the makespan in which it does not compute; that of the whole
    is its busiest rank's.
    """
    measured, predicted = run.timeline, predict(run, transfer_delay_s)
    schedule = measured.schedule
    lines = [
        f"{schedule.name}: p = {schedule.stages}, m = {schedule.microbatches}, v = {schedule.chunks}, "
        f"transfer delay {1e3 * transfer_delay_s:g} ms",
        "",
        f"{'':18}{'predicted':>11}{'measured':>11}",
        f"{'makespan (ms)':18}{1e3 * predicted.makespan:11.1f}{1e3 * measured.makespan:11.1f}",
        f"{'bubble_time (ms)':18}{1e3 * predicted.bubble_time:11.1f}{1e3 * measured.bubble_time:11.1f}",
        f"{'bubble_ratio':18}{predicted.bubble_ratio:11.1%}{measured.bubble_ratio:11.1%}",
        f"{'bubble_share':18}{predicted.bubble_share:11.1%}{measured.bubble_share:11.1%}",
        "",
        "      time of one microbatch (ms)     bubble_share            peak activations",
        "rank       F        I        W     predicted   measured     predicted   measured",
    ]
    peaks = peak_activations(schedule)
    for rank, times in enumerate(stage_times(measured)):
        shares = (1 - t.busy[rank] / t.makespan for t in (predicted, measured))
        lines.append(
            f"{rank:4}"
            + "".join(f"{1e3 * t:9.2f}" if t else f"{'':9}" for t in times)
            + "  "
            + "".join(f"{s:11.1%}" for s in shares)
            + "  "
            + "".join(f"{float(peak):12.4g}" for peak in (peaks[rank], run.peak_activations[rank]))
        )
    return "\n".join(lines)
