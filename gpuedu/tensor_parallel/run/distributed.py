"""Ranks that are processes, over torch.distributed."""

from __future__ import annotations

from hashlib import blake2b

import torch
import torch.distributed as dist

from gpuedu.distributed import talking_to

from .group import Call, Group, check_same

REDUCE_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
# Newer torch has these two under shorter names
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world(*, check: bool = True, meet: bool = False) -> Group:
    """The processes that torchrun or :func:`gpuedu.distributed.launch` started, as one group.

    Parameters
    ----------
    check : bool
        Compare shapes and dtypes between ranks in the forward pass, by 8 bytes from each rank per
        collective. Without it a rank whose shapes differ makes gloo fail and NCCL hang.
    meet : bool
        Let the ranks wait for each other before each collective, so that what it takes can be told from
        the waiting (:class:`Call`). Slower, by a barrier each.

    Returns
    -------
    Group
        Its ranks are the processes' ranks.

    Raises
    ------
    RuntimeError
        If there is no process group.

    Examples
    --------
    >>> from gpuedu.distributed import launch
    >>> launch(2, lambda: world().size)
    [2, 2]
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group: call this under gpuedu.distributed.launch or process_group")
    return DistributedGroup(dist.group.WORLD, check, [], meet)


class DistributedGroup(Group):
    """A process group of torch.distributed; :func:`world` makes it.

    Parameters
    ----------
    processes : torch.distributed.ProcessGroup
        With a backend for the device of the tensors, and one for the CPU if ``check``.
    check : bool
        Compare shapes and dtypes between ranks.
    calls : list of Call
        Where to write down what runs.
    meet : bool
        Wait for each other before each collective.
    """

    def __init__(self, processes: dist.ProcessGroup, check: bool, calls: list[Call], meet: bool = False):
        super().__init__(processes.rank(), processes.size(), calls)
        self.processes, self.check, self.meet = processes, check, meet
        self.groups: dict[int, Group] = {}  # of neighbors, by their number

    def _agree(self, what):
        if not self.check:
            return
        digest = int.from_bytes(blake2b(what.encode(), digest_size=7).digest(), "big")
        digests = torch.zeros(self.size, dtype=torch.int64)
        with talking_to():
            all_gather_single(digests, torch.tensor([digest]), group=self.processes)
        if (digests != digest).any():
            everything = [""] * self.size
            with talking_to():
                dist.all_gather_object(everything, what, group=self.processes)
            check_same(everything)

    def _neighbors(self, size):
        if size not in self.groups:
            for start in range(0, self.size, size):  # all ranks make all groups, in the same order
                ranks = [dist.get_global_rank(self.processes, start + i) for i in range(size)]
                processes = dist.new_group(ranks)
                if start <= self.rank < start + size:
                    self.groups[size] = DistributedGroup(processes, self.check, self.calls, self.meet)
        return self.groups[size]

    def _meet(self):
        if self.meet:
            with talking_to():
                dist.barrier(group=self.processes)

    def _all_reduce(self, x, op):
        result = x.clone(memory_format=torch.contiguous_format)
        with talking_to():
            dist.all_reduce(result, REDUCE_OPS[op], group=self.processes)
        return result

    def _all_gather(self, x, axis):
        gathered = x.new_empty(self.size * x.numel())
        with talking_to():
            all_gather_single(gathered, x.flatten(), group=self.processes)
        return torch.cat(gathered.view(self.size, *x.shape).unbind(), axis)

    def _reduce_scatter(self, pieces):
        stacked = torch.cat([piece.flatten() for piece in pieces])
        result = torch.empty_like(pieces[0], memory_format=torch.contiguous_format)
        with talking_to():
            reduce_scatter_single(result.view(-1), stacked, group=self.processes)
        return result
