"""What a schedule is: actions in the order in which each rank runs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What an action computes; the value is the letter it is drawn with.

    ``BACKWARD_INPUT`` (the gradient of the input, which the previous stage waits for) and
    ``BACKWARD_WEIGHT`` (the gradient of the weights, which nobody waits for) together are one
    ``FULL_BACKWARD``. The zero-bubble papers write B for the input gradient alone; here it is I.
    """

    FORWARD = "F"
    BACKWARD_INPUT = "I"
    BACKWARD_WEIGHT = "W"
    FULL_BACKWARD = "B"

    # Members are singletons: identity hashing is right, and far faster than Enum's own.
    __hash__ = object.__hash__


FORWARD = Kind.FORWARD
BACKWARD_INPUT = Kind.BACKWARD_INPUT
BACKWARD_WEIGHT = Kind.BACKWARD_WEIGHT
FULL_BACKWARD = Kind.FULL_BACKWARD


class Action(NamedTuple):
    """One pass of one microbatch through one model chunk."""

    stage: int  # the rank, 0 .. stages - 1
    kind: Kind
    microbatch: int  # 0 .. microbatches - 1
    chunk: int = 0  # which of the rank's model chunks, 0 .. chunks - 1


class Placement(Enum):
    """Which part of the model a rank's chunks are.

    With p stages the model is cut into ``p * chunks`` parts, numbered by depth. ``LOOP`` gives chunk
    c of rank r the part ``c * p + r``; ``V`` (two chunks) gives rank r the parts ``r`` and
    ``2p - 1 - r``, so that the first rank holds both ends of the model.
    """

    LOOP = "loop"
    V = "v"


@dataclass(frozen=True)
class Schedule:
    """A pipeline schedule: for every rank, its actions in the order it runs them.

    Parameters
    ----------
    name : str
        What the schedule is called.
    stages : int
        Number of ranks p, each holding one stage of the model.
    microbatches : int
        Number of microbatches m that one training step is cut into.
    chunks : int
        Number of model chunks v on each rank.
    placement : Placement
        Which part of the model each chunk is.
    actions : tuple
        ``actions[rank]`` is a tuple of :class:`Action` in the order of execution.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import gpipe
    >>> schedule = gpipe(stages=2, microbatches=2)
    >>> [a.kind.value + str(a.microbatch) for a in schedule.actions[0]]
    ['F0', 'F1', 'B0', 'B1']
    """

    name: str
    stages: int
    microbatches: int
    chunks: int
    placement: Placement
    actions: tuple[tuple[Action, ...], ...]

    @property
    def depth(self) -> int:
        """Number of parts the model is cut into: stages * chunks."""
        return self.stages * self.chunks

    def part(self, stage: int, chunk: int) -> int:
        """Depth (0 = first layers) of the part that ``chunk`` of rank ``stage`` holds."""
        if self.placement is Placement.LOOP or chunk == 0:
            return chunk * self.stages + stage
        return 2 * self.stages - 1 - stage

    def home(self, part: int) -> tuple[int, int]:
        """``(stage, chunk)`` that holds ``part``: the inverse of :meth:`part`."""
        chunk, stage = divmod(part, self.stages)
        if self.placement is Placement.V and chunk == 1:
            stage = self.stages - 1 - stage
        return stage, chunk


def numbered(rank: int, microbatches: int, rounds: Iterable[tuple[str, int]]) -> tuple[Action, ...]:
    """Actions of ``rank`` from a program such as ``[("F0", 3), ("F1 F0", 2), ("B1 B0", 5)]``.

    A word is a kind's letter and a chunk; each chunk's forwards, backwards (I and B count together)
    and weight gradients take the microbatches in order. A bare ``W`` is the oldest weight gradient
    still owed, of whichever chunk. Microbatches that the step does not have are left out.
    """
    count: dict[tuple[str, int], int] = {}
    owed: list[tuple[int, int]] = []  # (microbatch, chunk) with I done and W not
    actions = []
    for word in (word for words, times in rounds for _ in range(times) for word in words.split()):
        kind = Kind(word[0])
        if kind is BACKWARD_WEIGHT:
            chunk = int(word[1:]) if word[1:] else owed[0][1]
            microbatch = next(j for j, c in owed if c == chunk)
            owed.remove((microbatch, chunk))
        else:
            chunk = int(word[1:])
            counter = ("F" if kind is FORWARD else "B", chunk)
            microbatch = count[counter] = count.get(counter, -1) + 1
            if kind is BACKWARD_INPUT:
                owed.append((microbatch, chunk))
        if microbatch < microbatches:
            actions.append(Action(rank, kind, microbatch, chunk))
    return tuple(actions)
