"""What a pipeline run reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

from ..cost import Timeline
from ..plan import Schedule
from ..plan.execution import share


@dataclass(frozen=True)
class Run:
    """One training step, carried out and measured.

    Parameters
    ----------
    loss : float
        Mean loss over the whole batch.
    timeline : Timeline
        When each action ran, in s from the start of the step.
    peak_activations : tuple
        Per rank, the most activations it held at any time, in the unit of
        :func:`gpuedu.pipeline_parallel.cost.peak_activations`: microbatches of a whole stage.
    """

    loss: float
    timeline: Timeline
    peak_activations: tuple[Real, ...]


class Record(NamedTuple):
    """What one rank measured, in s on its machine's clock."""

    machine: str
    start: float  # of the step: when the rank left the common barrier
    starts: tuple[float, ...]  # of its actions, in their order
    ends: tuple[float, ...]
    loss: float | None  # known where the last part is
    peak_held: int  # microbatches of one chunk


def run_of(schedule: Schedule, records: Sequence[Record]) -> Run:
    """The run that ``records[rank]`` of all ranks add up to.

    Ranks on one machine share its clock. Those of different machines are aligned at the barrier, which
    they leave within the time of a message.
    """
    zero: dict[str, float] = {}
    for record in records:
        zero[record.machine] = min(record.start, zero.get(record.machine, record.start))
    starts = tuple(tuple(t - zero[record.machine] for t in record.starts) for record in records)
    ends = tuple(tuple(t - zero[record.machine] for t in record.ends) for record in records)
    busy = tuple(sum(record.ends) - sum(record.starts) for record in records)
    loss = next(record.loss for record in records if record.loss is not None)
    peaks = tuple(share(record.peak_held, schedule.chunks) for record in records)
    return Run(loss, Timeline(schedule, starts, ends, busy), peaks)
