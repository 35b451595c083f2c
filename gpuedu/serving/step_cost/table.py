"""An iteration's time from tables of measured times, interpolated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from gpuedu.checks import check_amount

from .interface import Line

Table = Mapping[tuple[int, int], float]


@dataclass(frozen=True)
class _Grid:
    """A full grid of times over two variables; straight between knots and beyond the last."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    seconds: dict[tuple[int, int], float]

    @classmethod
    def of(cls, name: str, table: Table) -> _Grid:
        rows = tuple(sorted({row for row, _ in table}))
        columns = tuple(sorted({column for _, column in table}))
        if not rows or len(table) != len(rows) * len(columns):
            raise ValueError(f"{name}: must be a full grid, has {len(table)} of {len(rows) * len(columns)}")
        for key, seconds in table.items():
            check_amount(f"{name}[{key}]", seconds, positive=True)
        return cls(rows, columns, dict(table))

    @staticmethod
    def between(knots: tuple[int, ...], value: float) -> tuple[int, int, float]:
        """The knots around a value, and its place between them (0 below the first knot)."""
        if len(knots) == 1 or value <= knots[0]:
            return knots[0], knots[0], 0.0
        after = min(bisect_right(knots, value), len(knots) - 1)
        low, high = knots[after - 1], knots[after]
        return low, high, (value - low) / (high - low)

    def at(self, row: float, column: float) -> float:
        """Seconds, bilinear."""
        low, high, share = self.between(self.columns, column)
        return (1 - share) * self._along_rows(row, low) + share * self._along_rows(row, high)

    def _along_rows(self, row: float, column: int) -> float:
        low, high, share = self.between(self.rows, row)
        return (1 - share) * self.seconds[low, column] + share * self.seconds[high, column]


@dataclass(frozen=True)
class TableStepCost:
    """Measured times of pure decoding and of pure prefill, interpolated; a mixed batch adds them.

    Parameters
    ----------
    decode : mapping
        Seconds of an iteration by (sequences, tokens of context of each), a full grid.
    prefill : mapping
        Seconds of an iteration by (new tokens, tokens before them in the cache), a full grid.
    block_s : float
        Seconds to move one block between host and GPU.

    Notes
    -----
    Between knots the time is bilinear, beyond the last it goes on straight, below the first it stays. A
    mixed iteration takes ``decode + prefill - floor``, at least the larger of the two, where the floor is
    the smallest time in either table: weights are read once for both, and the launches are made once.

    Examples
    --------
    >>> cost = TableStepCost({(1, 0): 0.010, (1, 1000): 0.011, (9, 0): 0.018, (9, 1000): 0.027},
    ...                      {(16, 0): 0.010, (512, 0): 0.040})
    >>> round(cost.seconds(5, 5 * 500), 4), round(cost.seconds(5, 5 * 500, [(264, 0)]), 4)
    (0.0165, 0.0315)
    """

    decode: Table = field(hash=False)
    prefill: Table = field(hash=False)
    block_s: float = 0.0

    def __post_init__(self) -> None:
        check_amount("block_s", self.block_s)
        object.__setattr__(self, "_decode", _Grid.of("decode", self.decode))
        object.__setattr__(self, "_prefill", _Grid.of("prefill", self.prefill))
        floor = min(min(self.decode.values()), min(self.prefill.values()))
        object.__setattr__(self, "_floor", floor)

    def seconds(self, decodes: int, context_tokens: int, chunks: Iterable[tuple[int, int]] = ()) -> float:
        """Seconds of one iteration; see :class:`StepCost`."""
        chunks = list(chunks)
        decoding = self._decode.at(decodes, context_tokens / decodes) if decodes else 0.0
        if not chunks:
            return decoding
        tokens = sum(new for new, _ in chunks)
        context = sum(new * context for new, context in chunks) / tokens
        prefilling = self._prefill.at(tokens, context)
        if not decodes:
            return prefilling
        return max(decoding, prefilling, decoding + prefilling - self._floor)

    def line(self, decodes: int, context_tokens: int) -> Line:
        """Without chunks, seconds over the context, between the knots around it."""
        grid = self._decode
        each = context_tokens / decodes
        first, last = grid.columns[0], grid.columns[-1]
        if len(grid.columns) == 1:
            return Line(grid.at(decodes, first), 0.0)
        if each < first:
            return Line(grid.at(decodes, first), 0.0, decodes * first - 1)
        low, high, _ = grid.between(grid.columns, each if each > first else first + 0.5)
        at_low, at_high = grid.at(decodes, low), grid.at(decodes, high)
        slope = (at_high - at_low) / (high - low)
        end = inf if high == last else decodes * high - 1
        return Line(at_low - slope * low, slope / decodes, end)

    def swap_seconds(self, blocks: int) -> float:
        """Seconds to move blocks between host and GPU."""
        return self.block_s * blocks
