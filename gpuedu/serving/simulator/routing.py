"""Which replica gets a request."""

from __future__ import annotations

from collections.abc import Sequence as Items
from random import Random
from typing import Protocol

from gpuedu.serving.workload import Request

from .replica import Replica


class Router(Protocol):
    """Chooses a replica for each request as it arrives."""

    def choose(self, request: Request, replicas: Items[Replica]) -> int:
        """Index of the replica."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = -1

    def choose(self, request: Request, replicas: Items[Replica]) -> int:
        """The next one."""
        self._next = (self._next + 1) % len(replicas)
        return self._next


class RandomChoice:
    """Any, with equal chances."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(f"{seed} router")

    def choose(self, request: Request, replicas: Items[Replica]) -> int:
        """One at random."""
        return self._random.randrange(len(replicas))


class LeastOutstanding:
    """Whoever has the fewest requests waiting and running; the first of several."""

    def choose(self, request: Request, replicas: Items[Replica]) -> int:
        """The least loaded one."""
        loads = [replica.outstanding for replica in replicas]
        return loads.index(min(loads))
