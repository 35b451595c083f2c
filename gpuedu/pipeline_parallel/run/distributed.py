"""A schedule carried out by one process a stage, over torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from gpuedu.checks import check_amount
from gpuedu.distributed import talking_to

from ..plan import Schedule, validate
from .channels import Channels
from .part import check_output
from .rank import Rank, microbatches
from .result import Run, run_of


def run_distributed(
    schedule: Schedule,
    parts: Sequence[Callable],
    inputs: torch.Tensor | None,
    targets: torch.Tensor | None,
    loss_fn: Callable,
    *,
    transfer_delay_s: float = 0.0,
    device: torch.device | str = "cpu",
) -> Run:
    """Carry out one training step of ``schedule``, this process being one of its ranks.

    All ranks call it. Each adds the gradients of the mean loss over the batch to the ``grad`` of its
    own parameters.

    Parameters
    ----------
    schedule : Schedule
        Any valid schedule, the same on all ranks, of as many stages as there are processes.
    parts : sequence of callables
        This rank's parts of the model, chunk by chunk: ``schedule.part(rank, chunk)`` says which.
        Each is called once more than the schedule says, without gradients, to learn the shapes.
    inputs, targets : Tensor or None
        The batch, of shapes (B, ...), B a multiple of ``schedule.microbatches``; ``inputs`` matter on
        the rank of the first part, ``targets`` on that of the last.
    loss_fn : callable
        ``loss_fn(output, target)``, one number: the *mean* over the samples of a microbatch.
    transfer_delay_s : float
        Slow the network down: each message arrives this much later, in s, and keeps no rank busy.
    device : str
        Where this rank computes: ``"cpu"`` or a CUDA device.

    Returns
    -------
    Run
        The same on all ranks: the mean loss; when each action ran, counted from a common barrier; the
        activations held. The first backward in a process also loads code of torch's, for up to a
        second: measure a later step.

    Raises
    ------
    ValueError
        If the schedule is not valid or does not fit the processes, the parts or the batch.
    PeerLost
        If another rank is gone.
    """
    validate(schedule)
    check_amount("transfer_delay_s", transfer_delay_s)
    rank, device = dist.get_rank(), torch.device(device)
    if dist.get_world_size() != schedule.stages:
        raise ValueError(f"{schedule.stages} stages on {dist.get_world_size()} processes: must be one each")
    if len(parts) != schedule.chunks:
        raise ValueError(f"{len(parts)} parts on rank {rank}: {schedule.name} has {schedule.chunks} chunks")
    shapes = _shapes(schedule, parts, inputs, device)
    with talking_to():
        dist.barrier()
    start = time.perf_counter()
    with Channels(schedule, rank, shapes, device, transfer_delay_s) as channels:
        worker = Rank(schedule, rank, parts, inputs, targets, loss_fn, channels, device)
        for action in schedule.actions[rank]:
            worker.run(action)
    records = [None] * schedule.stages
    with talking_to():
        dist.all_gather_object(records, worker.record(start))
    return run_of(schedule, records)


def _shapes(schedule, parts, inputs, device) -> dict[int, tuple[torch.Size, torch.dtype]]:
    """Part -> shape and dtype of a microbatch's activation as it enters, found by trying each part."""
    rank = dist.get_rank()
    shapes = {}
    x = None
    if schedule.home(0)[0] == rank:
        x = microbatches("inputs", inputs, schedule.microbatches)[0]
    for part in range(schedule.depth - 1):
        home, chunk = schedule.home(part)
        found = [None]
        if rank == home:
            if part > 0:
                shape, dtype = shapes[part]
                x = torch.zeros(shape, dtype=dtype, device=device)
            with torch.no_grad():
                output = parts[chunk](x)
            check_output(output)
            found = [(output.shape, output.dtype)]
        with talking_to():
            dist.broadcast_object_list(found, src=home)
        shapes[part + 1] = found[0]
    return shapes
