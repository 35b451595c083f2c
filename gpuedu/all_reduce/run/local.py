"""A plan carried out in one process, round by round, on the arrays of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..plan import Collective, Plan, validate
from .layout import SUMS, chunks_in, chunks_out, total_length

Array = np.ndarray | torch.Tensor


def run_local(plan: Plan, arrays: Sequence[Array]) -> list[Array | None]:
    """Carry out ``plan`` in this process.

    Parameters
    ----------
    plan : Plan
        Any valid plan of n ranks.
    arrays : sequence of ndarray or Tensor
        What each rank hands in, all of one kind, dtype and device:

        ==================  =========================================================================
        collective          rank r's array
        ==================  =========================================================================
        all-reduce, reduce  its contribution, of any shape, the same on all ranks
        reduce-scatter      the same
        broadcast           on the root what is sent, of any shape; of the others only the shape counts
        all-gather          part r of the whole: as many elements as ``plan.bounds(total)`` says
        all-to-all          n parts, one for each rank, of the sizes that ``plan.bounds(total)`` says
        ==================  =========================================================================

    Returns
    -------
    list
        What each rank ends with, in memory of its own: the whole array in the shape that was handed in
        (all-reduce, broadcast, reduce; None except on the root of a reduce), or flat: part r of the sum
        (reduce-scatter), all parts (all-gather), part r of every rank (all-to-all). ``arrays`` are not
        changed.

    Raises
    ------
    TypeError
        If the arrays are of different kinds or dtypes, or of bools that cannot be added.
    ValueError
        If the plan is not valid, or the number of arrays or their shapes do not fit it.

    Notes
    -----
    Each rank's memory is apart from every other's, and what a round sends is read before anything of
    that round is written. So a wrong plan gives wrong sums here, as it would on a cluster.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import reduce_scatter, ring
    >>> run_local(ring(3), [np.arange(5), np.ones(5, int), np.ones(5, int)])[0]
    array([2, 3, 4, 5, 6])
    >>> run_local(reduce_scatter(2), [torch.arange(5), torch.arange(5)])
    [tensor([0, 2]), tensor([4, 6, 8])]
    """
    validate(plan)
    total = _check(plan, arrays)
    at = plan.bounds(total)
    memories = [_memory(plan, rank, array, at) for rank, array in enumerate(arrays)]
    for transfers in plan.rounds:
        sent = [_copy(memories[t.src][at[t.start] : at[t.stop]]) for t in transfers]
        for t, arrived in zip(transfers, sent, strict=True):
            if t.reduce:
                memories[t.dst][at[t.start] : at[t.stop]] += arrived
            else:
                memories[t.dst][at[t.start] : at[t.stop]] = arrived
    return [_result(plan, rank, memories[rank], arrays[rank], at) for rank in range(plan.world_size)]


def check_dtype(plan: Plan, array: Array) -> None:
    """Raise unless ``array`` is one, and can be added where ``plan`` adds."""
    if not isinstance(array, Array):
        raise TypeError(f"{type(array).__name__}: must be a numpy array or a torch tensor")
    if isinstance(array, torch.Tensor) and array.layout is not torch.strided:
        raise TypeError(f"a tensor of layout {array.layout}: must be dense")
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
        raise TypeError(f"an array of {array.dtype}: must be of numbers")
    if plan.collective in SUMS and array.dtype in (torch.bool, np.dtype(bool)):
        raise TypeError(f"an array of {array.dtype}: {plan.name} adds numbers")


def _check(plan: Plan, arrays: Sequence[Array]) -> int:
    """The length of the whole array; raise if ``arrays`` do not fit ``plan``."""
    if len(arrays) != plan.world_size:
        raise ValueError(f"{len(arrays)} arrays: {plan.name} has {plan.world_size} ranks")
    for rank, array in enumerate(arrays):
        check_dtype(plan, array)
        for what, own, first in (
            ("kind", type(array).__name__, type(arrays[0]).__name__),
            ("dtype", array.dtype, arrays[0].dtype),
            ("device", str(array.device), str(arrays[0].device)),
        ):
            if own != first:
                raise TypeError(f"{what} {own} on rank {rank}: must be {first} as on rank 0")
        if not parted(plan) and array.shape != arrays[0].shape:
            shapes = tuple(array.shape), tuple(arrays[0].shape)
            raise ValueError(f"shape {shapes[0]} on rank {rank}: must be {shapes[1]} as on rank 0")
    return total_length(plan, [int(np.prod(array.shape)) for array in arrays])


def parted(plan: Plan) -> bool:
    """Whether each rank hands in another part, which may be of another size."""
    return plan.collective in (Collective.ALL_GATHER, Collective.ALL_TO_ALL)


def _memory(plan: Plan, rank: int, array: Array, at: tuple[int, ...]) -> Array:
    """The whole array as ``rank`` has it at the start; what it does not have is 0."""
    like = array.reshape(-1)[:0]
    empty = like.new_zeros(at[-1]) if isinstance(array, torch.Tensor) else np.zeros(at[-1], array.dtype)
    if plan.collective is not Collective.BROADCAST or rank == plan.root:
        chunks = chunks_in(plan, rank)
        own = array.detach() if isinstance(array, torch.Tensor) else array
        empty[at[chunks.start] : at[chunks.stop]] = own.reshape(-1)
    return empty


def _copy(array: Array) -> Array:
    return array.clone() if isinstance(array, torch.Tensor) else array.copy()


def _result(plan: Plan, rank: int, memory: Array, array: Array, at: tuple[int, ...]) -> Array | None:
    chunks = chunks_out(plan, rank)
    if plan.collective is Collective.REDUCE and rank != plan.root:
        return None
    if len(chunks) == plan.chunks and not parted(plan):
        return memory.reshape(array.shape)
    parts = [memory[at[chunk] : at[chunk + 1]] for chunk in chunks]
    return torch.cat(parts) if isinstance(memory, torch.Tensor) else np.concatenate(parts)
