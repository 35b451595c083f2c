"""Ranks that compute together: the three collectives that tensor parallelism needs, counted."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from gpuedu.all_reduce.plan import Collective

from ..plan import Phase

OPS = ("sum", "max")


class Call(NamedTuple):
    """One collective that has run.

    Parameters
    ----------
    phase : Phase
        In the forward or the backward pass, or once at the end of the step.
    collective : Collective
        Which.
    nbytes : int
        Bytes of the **whole** array, as nccl-tests counts: what an all-gather ends with and a
        reduce-scatter begins with.
    ranks : int
        How many took part.
    seconds : float
        From call to return, waiting for other ranks included; on a GPU, which works on, only the call.
    waited_s : float
        Before that, waiting until all ranks had come, in s: where the group meets before each collective.
    """

    phase: Phase
    collective: Collective
    nbytes: int
    ranks: int
    seconds: float = 0.0
    waited_s: float = 0.0


class Traffic(NamedTuple):
    """How often a collective ran, and the bytes of all whole arrays together."""

    count: int
    nbytes: int


def tally(calls: Iterable[Call]) -> dict[tuple[Phase, Collective], Traffic]:
    """Count calls by phase and collective.

    Parameters
    ----------
    calls : sequence of Call
        As a group remembers them.

    Returns
    -------
    dict
        ``(phase, collective)`` -> count and bytes, in the order in which they first ran.

    Examples
    --------
    >>> calls = [Call(Phase.FORWARD, Collective.ALL_REDUCE, 1024, 4)] * 2
    >>> tally(calls)[Phase.FORWARD, Collective.ALL_REDUCE]
    Traffic(count=2, nbytes=2048)
    """
    found: dict[tuple[Phase, Collective], Traffic] = {}
    for call in calls:
        count, nbytes = found.get((call.phase, call.collective), Traffic(0, 0))
        found[call.phase, call.collective] = Traffic(count + 1, nbytes + call.nbytes)
    return found


class Group(ABC):
    """The ranks that share every layer, as one of them sees them.

    All ranks call the same methods in the same order. On one rank nothing is sent and nothing counted.

    Parameters
    ----------
    rank, size : int
        Of this rank, and how many there are.
    calls : list of Call
        Where to write down what runs.

    Attributes
    ----------
    calls : list of Call
        Every collective that has run, in order. Clear it to begin anew.
    """

    def __init__(self, rank: int, size: int, calls: list[Call]):
        self.rank, self.size, self.calls = rank, size, calls

    def all_reduce(self, x: torch.Tensor, phase: Phase, op: str = "sum") -> torch.Tensor:
        """The sum (or with ``op="max"`` the largest) of all ranks' ``x``, on every rank; ``x`` stays."""
        if op not in OPS:
            raise ValueError(f"op={op!r}: must be one of {', '.join(OPS)}")
        if self.size == 1:
            return x
        with self._counted(phase, Collective.ALL_REDUCE, x.nbytes):
            return self._all_reduce(x, op)

    def all_gather(self, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
        """All ranks' ``x``, one after the other along ``axis``, on every rank."""
        if self.size == 1:
            return x
        with self._counted(phase, Collective.ALL_GATHER, x.nbytes * self.size):
            return self._all_gather(x, axis)

    def reduce_scatter(self, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
        """This rank's piece of the sum of all ranks' ``x``, cut evenly along ``axis``."""
        if self.size == 1:
            return x
        pieces = self.pieces(x, axis)
        with self._counted(phase, Collective.REDUCE_SCATTER, x.nbytes):
            return self._reduce_scatter(pieces)

    def pieces(self, x: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
        """``x`` in one piece a rank, cut evenly along ``axis``.

        Raises
        ------
        ValueError
            If the axis does not divide.
        """
        if x.shape[axis] % self.size:
            raise ValueError(
                f"axis {axis} of shape {tuple(x.shape)}: must be a multiple of the {self.size} ranks"
            )
        return x.chunk(self.size, axis)

    @contextmanager
    def _counted(self, phase: Phase, collective: Collective, nbytes: int) -> Iterator[None]:
        came = time.perf_counter()
        self._meet()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.calls.append(Call(phase, collective, nbytes, self.size, seconds, start - came))

    def agree(self, what: str, x: torch.Tensor) -> None:
        """Make sure that all ranks have come for the same, with tensors alike.

        Unequal shapes would make a collective hang or return nonsense: whoever calls one in a forward calls
        this before. The backward needs no such check, its shapes being those of the forward.

        Raises
        ------
        ValueError
            On every rank, if ``what`` or shape or dtype of ``x`` differ between ranks.
        """
        if self.size > 1:
            dtype = str(x.dtype).removeprefix("torch.")
            self._agree(f"{what} of shape {tuple(x.shape)}, {dtype}")

    def neighbors(self, size: int) -> Group:
        """The group of this rank and those beside it, ``size`` in all, counted together with this group.

        Raises
        ------
        ValueError
            If ``size`` does not divide the number of ranks.
        """
        if size < 1 or self.size % size:
            raise ValueError(f"size={size}: must divide the {self.size} ranks without rest")
        return self if size == self.size else self._neighbors(size)

    @abstractmethod
    def _meet(self) -> None:
        """Wait until all ranks have come, if that is wanted."""

    @abstractmethod
    def _agree(self, what: str) -> None: ...

    @abstractmethod
    def _neighbors(self, size: int) -> Group: ...

    @abstractmethod
    def _all_reduce(self, x: torch.Tensor, op: str) -> torch.Tensor: ...

    @abstractmethod
    def _all_gather(self, x: torch.Tensor, axis: int) -> torch.Tensor: ...

    @abstractmethod
    def _reduce_scatter(self, pieces: tuple[torch.Tensor, ...]) -> torch.Tensor: ...


def check_same(what: Iterable[str]) -> None:
    """Raise ValueError unless all ranks, in order, have come for the same."""
    what = list(what)
    if len(set(what)) > 1:
        ranks = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(what))
        raise ValueError(f"the ranks do not agree: {ranks}")
