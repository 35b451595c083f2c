"""What a step cost is asked: seconds of one iteration, and how they grow while everybody decodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Protocol

from gpuedu.checks import check_amount


class Line(NamedTuple):
    """Seconds of a decoding iteration: ``intercept_s + slope_s * context_tokens``, up to ``last_context``."""

    intercept_s: float
    slope_s: float
    last_context: float = inf


class StepCost(Protocol):
    """Seconds of one iteration of a batch.

    ``chunks`` are sequences that compute part of their prompt: new tokens, and tokens before them in the
    cache. ``decodes`` sequences compute one token each, with ``context_tokens`` in the cache of all of
    them together.
    """

    def seconds(self, decodes: int, context_tokens: int, chunks: Iterable[tuple[int, int]] = ()) -> float:
        """Seconds of one iteration."""

    def line(self, decodes: int, context_tokens: int) -> Line:
        """The straight piece on which an iteration without chunks lies at this context."""

    def swap_seconds(self, blocks: int) -> float:
        """Seconds to move blocks between host and GPU."""


@dataclass(frozen=True)
class ConstantStepCost:
    """Every iteration takes the same time: a queue with ``max_num_seqs`` servers."""

    iteration_s: float

    def __post_init__(self) -> None:
        check_amount("iteration_s", self.iteration_s, positive=True)

    def seconds(self, decodes: int, context_tokens: int, chunks: Iterable[tuple[int, int]] = ()) -> float:
        """The time."""
        return self.iteration_s

    def line(self, decodes: int, context_tokens: int) -> Line:
        """A level line."""
        return Line(self.iteration_s, 0.0)

    def swap_seconds(self, blocks: int) -> float:
        """Nothing."""
        return 0.0
