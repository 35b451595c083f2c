"""A plan carried out by one process a rank, over torch.distributed."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import count
from math import prod

import torch
import torch.distributed as dist

from gpuedu.checks import check_count
from gpuedu.distributed import talking_to

from ..plan import Collective, Plan, validate
from .engines import Look, Memory, by_dependency, in_order
from .faults import Fault, after, before, check_faults
from .layout import chunks_out, total_length
from .local import check_dtype, parted
from .program import program


def run_distributed(
    plan: Plan,
    tensor: torch.Tensor,
    *,
    pieces: int = 1,
    out: torch.Tensor | None = None,
    faults: tuple[Fault, ...] = (),
) -> torch.Tensor | None:
    """Carry out ``plan``, this process being one of its ranks. All ranks call it.

    It is out of place: ``tensor`` stays as it is.

    Parameters
    ----------
    plan : Plan
        Any valid plan, the same on all ranks, of as many ranks as there are processes.
    tensor : Tensor
        What this rank hands in, as for :func:`run_local`; on the CPU (over gloo) or on this rank's GPU
        (over NCCL), of one dtype on all ranks.
    pieces : int
        Pieces k of each chunk, at least 1: while one is added, the next is on its way.
    out : Tensor, optional
        Where the result is to go: contiguous, of its shape, and no part of ``tensor``. To give the same
        one again saves the time that a new one takes.
    faults : tuple
        What is to go wrong: :class:`Straggler`, :class:`Death`, :class:`BitFlip`; the same on all ranks.

    Returns
    -------
    Tensor or None
        What this rank ends with, as from :func:`run_local`.

    Raises
    ------
    TypeError, ValueError
        On all ranks, if on any of them something does not fit, or differs from the others.
    PeerLost
        If another rank is gone.

    Notes
    -----
    On the CPU each message leaves as soon as what it carries is there, whatever round it is of; those
    from one rank to one other are looked at in the plan's order. All receives are posted at the start,
    into memory of their own, so a rank holds what it receives: up to the array once more for a ring,
    log2 n times for recursive doubling, n times for a parameter server. It is kept for the next call. On
    a GPU all messages keep the order of the plan, as NCCL has no tags; nobody waits for the others'
    rounds to end.

    The ranks first exchange what they were given, so that a mistake is an error and not a wait without
    end; that costs a small message to all.

    With floats all ranks get the same bits, since each element is summed once and then copied, or
    summed in the same pairs; another plan may round otherwise.

    Examples
    --------
    >>> from gpuedu.all_reduce.plan import ring
    >>> from gpuedu.distributed import launch
    >>> launch(2, lambda: run_distributed(ring(2), torch.arange(3) + dist.get_rank()).tolist())
    [[1, 3, 5], [1, 3, 5]]
    """
    total = agree(plan, tensor, pieces, out, faults)
    return carry_out(plan, tensor, total, pieces, out, faults)


def carry_out(
    plan: Plan,
    tensor: torch.Tensor,
    total: int,
    pieces: int = 1,
    out: torch.Tensor | None = None,
    faults: tuple[Fault, ...] = (),
    look: Look = lambda version, arrived: None,
) -> torch.Tensor | None:
    """:func:`run_distributed` after the ranks have agreed, ``total`` being the whole array's length."""
    rank = dist.get_rank()
    flat = before(faults, rank, tensor.detach().reshape(-1))
    if out is None:
        out = tensor.new_empty(result_shape(plan, rank, tensor.shape, total))
    received = count(1)
    after(faults, rank, 0)

    def arrived(version: int, data: torch.Tensor) -> None:
        look(version, data)
        after(faults, rank, next(received))

    memory = Memory(program(plan, rank, total, pieces), flat, out.detach().view(-1))
    engine = by_dependency if flat.device.type == "cpu" else in_order
    engine(memory, arrived)
    memory.finish()
    return None if plan.collective is Collective.REDUCE and rank != plan.root else out


def result_shape(plan: Plan, rank: int, shape: tuple[int, ...], total: int) -> tuple[int, ...]:
    """The shape of what ``rank`` ends with, having handed in a tensor of ``shape``."""
    at = plan.bounds(total)
    if plan.collective is Collective.REDUCE and rank != plan.root:
        return (0,)
    if len(chunks_out(plan, rank)) == plan.chunks and not parted(plan):
        return tuple(shape)
    return (sum(at[chunk + 1] - at[chunk] for chunk in chunks_out(plan, rank)),)


def agree(
    plan: Plan,
    tensor: torch.Tensor,
    pieces: int = 1,
    out: torch.Tensor | None = None,
    faults: tuple[Fault, ...] = (),
) -> int:
    """Raise on all ranks unless what all were given fits together; the whole array's length."""
    try:
        given = _described(plan, tensor, pieces, out, faults)
    except (TypeError, ValueError) as error:
        given = error
    everybody: list[dict | Exception] = [{}] * dist.get_world_size()
    with talking_to():
        dist.all_gather_object(everybody, given)
    for rank, theirs in enumerate(everybody):
        if isinstance(theirs, Exception):
            raise type(theirs)(f"rank {rank}: {theirs}")
    first, own = everybody[0], {"out", "shape"} if parted(plan) else {"out"}
    for rank, theirs in enumerate(everybody):
        for what, value in theirs.items():
            if value != first[what] and what not in own:
                raise ValueError(f"{what} {value} on rank {rank}, {first[what]} on rank 0: must be the same")
    total = total_length(plan, [prod(theirs["shape"]) for theirs in everybody])
    for rank, theirs in enumerate(everybody):
        needed = result_shape(plan, rank, theirs["shape"], total)
        if theirs["out"] not in (None, needed):
            raise ValueError(f"out of shape {theirs['out']} on rank {rank}: must be {needed}")
    return total


def _described(plan, tensor, pieces, out, faults) -> dict[str, object]:
    """What must be the same on all ranks; raise if this rank's arguments are wrong by themselves."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan={plan!r}: must be a Plan")
    check_count("pieces", pieces)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor={type(tensor).__name__}: must be a torch tensor")
    check_dtype(plan, tensor)
    if plan.world_size != dist.get_world_size():
        raise ValueError(f"{plan.world_size} ranks on {dist.get_world_size()} processes: must be one each")
    check_faults(faults, plan.world_size, tensor)
    if out is not None:
        _check_out(tensor, out)
    return {
        "plan": f"{plan.name} ({_digest(plan)})",
        "pieces": pieces,
        "device": tensor.device.type,
        "dtype": str(tensor.dtype),
        "faults": faults,
        "shape": tuple(tensor.shape),
        "out": None if out is None else tuple(out.shape),
    }


def _check_out(tensor: torch.Tensor, out: torch.Tensor) -> None:
    """Raise unless a result for ``tensor`` can be written to ``out``, whatever its shape."""
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out={type(out).__name__}: must be a torch tensor")
    if (out.dtype, out.device) != (tensor.dtype, tensor.device):
        raise TypeError(f"out of {out.dtype} on {out.device}: must be {tensor.dtype} on {tensor.device}")
    if not out.is_contiguous():
        raise ValueError(f"out with strides {out.stride()}: must be contiguous")
    if out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() != 0:
        raise ValueError("out: must not share memory with tensor")


@lru_cache(maxsize=64)
def _digest(plan: Plan) -> str:
    """Short for everything that is in a valid plan."""
    validate(plan)
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:8]
