"""Ranks simulated in one process: one thread each, which meet for every collective."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import reduce

import torch

from gpuedu.checks import check_count

from .group import Call, Group, check_same

TENSOR_OPS = {"sum": torch.add, "max": torch.maximum}


def simulate(ranks: int, fn: Callable, *args: object) -> list:
    """Run ``fn(group, *args)`` once for each of ``ranks`` simulated ranks, together.

    Parameters
    ----------
    ranks : int
        How many.
    fn : callable
        What every rank does, the first argument being its :class:`Group`. The same code runs on real
        processes with ``launch(ranks, lambda: fn(world(), *args))``.
    *args
        The same objects for all ranks. What one of them changes, the others see.

    Returns
    -------
    list
        What ``fn`` returned on each rank.

    Raises
    ------
    TypeError, ValueError
        If ``ranks`` is no int or below 1.
    Exception
        What the first rank to fail raised; the others are ended.

    Notes
    -----
    Threads share torch's global random state: give ``fn`` generators of its own.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.plan import Phase
    >>> simulate(3, lambda group: group.all_reduce(torch.tensor(10 + group.rank), Phase.FORWARD).item())
    [33, 33, 33]
    """
    check_count("ranks", ranks)
    meeting = _Meeting(ranks)
    results: list = [None] * ranks

    def run(rank: int) -> None:
        try:
            # On a GPU the backward of all ranks would else share one thread, and wait for itself
            with torch.autograd.set_multithreading_enabled(False):
                results[rank] = fn(SimulatedGroup(meeting, rank, range(ranks), []), *args)
            meeting.exchange(rank, "the end", None)
        except BaseException as error:
            meeting.fail(rank, error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if meeting.failure is not None:
        raise meeting.failure
    return results


def alone() -> Group:
    """A group of one rank: on it, the parallel layers are ordinary ones.

    Returns
    -------
    Group
        Of size 1.

    Examples
    --------
    >>> alone().size
    1
    """
    return SimulatedGroup(_Meeting(1), 0, range(1), [])


class _Meeting:
    """Where all ranks lay something down and see what the others have."""

    def __init__(self, ranks: int):
        self.table: list = [None] * ranks
        self.barrier = threading.Barrier(ranks)
        self.lock = threading.Lock()
        self.failure: BaseException | None = None

    def exchange(self, rank: int, what: str, thing: object, use: Callable = lambda things: None) -> object:
        """``use(things)`` of all ranks, which change nothing of theirs before all are done with it."""
        self.table[rank] = what, thing
        self.barrier.wait()
        names, things = zip(*self.table, strict=True)
        check_same(names)
        result = use(things)
        self.barrier.wait()
        return result

    def fail(self, rank: int, error: BaseException) -> None:
        """Remember the first failure, and let nobody wait for this rank."""
        with self.lock:
            if self.failure is None:
                error.add_note(f"on simulated rank {rank}")
                self.failure = error
        self.barrier.abort()


class SimulatedGroup(Group):
    """Simulated ranks; :func:`simulate` makes it."""

    def __init__(self, meeting: _Meeting, rank: int, members: range, calls: list[Call]):
        super().__init__(rank - members.start, len(members), calls)
        self.meeting, self.members = meeting, members

    def _meet(self):
        """They do so in every collective anyway."""

    def _agree(self, what):
        self._exchange(what, None, lambda things: None)

    def _neighbors(self, size):
        own = self.members.start + self.rank
        start = own - self.rank % size
        return SimulatedGroup(self.meeting, own, range(start, start + size), self.calls)

    def _all_reduce(self, x, op):
        return self._exchange(f"all_reduce, {op}", x, lambda things: reduce(TENSOR_OPS[op], things))

    def _all_gather(self, x, axis):
        return self._exchange("all_gather", x, lambda things: torch.cat(things, axis))

    def _reduce_scatter(self, pieces):
        def add(things):
            return reduce(torch.add, (theirs[self.rank] for theirs in things))

        return self._exchange("reduce_scatter", pieces, add)

    def _exchange(self, what, thing, use):
        """Every group of neighbors meets at once, each with its own members."""
        members = slice(self.members.start, self.members.stop)
        return self.meeting.exchange(
            self.members.start + self.rank, what, thing, lambda things: use(things[members])
        )
