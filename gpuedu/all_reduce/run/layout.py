"""What a rank hands in and gets back, as parts of the one array that a plan is about."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import Collective, Plan

SUMS = (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER, Collective.REDUCE)


def chunks_in(plan: Plan, rank: int) -> range:
    """The chunks that ``rank`` hands in; to a broadcast only the root does, the others say their shape."""
    match plan.collective:
        case Collective.ALL_GATHER:
            return range(rank, rank + 1)
        case Collective.ALL_TO_ALL:
            return range(rank * plan.world_size, (rank + 1) * plan.world_size)
        case _:
            return range(plan.chunks)


def chunks_out(plan: Plan, rank: int) -> range:
    """The chunks that ``rank`` gets back, in this order."""
    match plan.collective:
        case Collective.REDUCE_SCATTER:
            return range(rank, rank + 1)
        case Collective.ALL_TO_ALL:
            return range(rank, plan.chunks, plan.world_size)
        case Collective.REDUCE:
            return range(plan.chunks if rank == plan.root else 0)
        case _:
            return range(plan.chunks)


def total_length(plan: Plan, lengths: Sequence[int]) -> int:
    """Elements in the whole array, from what each rank hands in; ValueError if that is not as it is cut."""
    parted = plan.collective in (Collective.ALL_GATHER, Collective.ALL_TO_ALL)
    total = sum(lengths) if parted else lengths[0]
    at = plan.bounds(total)
    for rank, length in enumerate(lengths):
        chunks = chunks_in(plan, rank)
        if length != (needed := at[chunks.stop] - at[chunks.start]):
            of = f"part {rank} of {total}" if parted else "as on rank 0"
            raise ValueError(f"{length} elements on rank {rank}: {plan.name} needs {needed} there, {of}")
    return total
