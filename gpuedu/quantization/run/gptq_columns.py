"""The column loop of GPTQ, arranged for speed.

The matrix is held transposed, so that a column is contiguous. A column's change reaches its own few neighbors
at once, the rest of its block once for some columns, and everything behind the block once a block: two
levels of the paper's lazy updates, which turn vector products into matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .integers import fit

BLOCK, NEIGHBORS = 256, 32
"""Columns after which a change reaches the rest of the matrix, and the rest of the block; at most so many."""


@dataclass(frozen=True)
class Fitting:
    """How scales are fitted, and when: the arguments of :func:`gpuedu.quantization.run.gptq`."""

    bits: int
    kind: str
    clip: str
    scale_dtype: torch.dtype | None
    group: int
    group_scales: str
    block: int

    @property
    def low(self) -> int:
        """The smallest code in use."""
        return int(self.kind == "symmetric")

    def levels(self, columns: int) -> tuple[int, int]:
        """Columns of a block and of neighbors, such that scales can be taken when they are to be."""
        if self.group_scales == "static" or self.group == columns:
            return BLOCK, NEIGHBORS
        if self.group_scales == "stale":
            return self.block, _largest_divisor(self.block, NEIGHBORS)
        if self.group > BLOCK:
            block = _largest_divisor(self.group, BLOCK)
            return block, _largest_divisor(block, NEIGHBORS)
        return BLOCK // self.group * self.group, _largest_divisor(self.group, NEIGHBORS)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def round_columns(
    weight: torch.Tensor, root: torch.Tensor, fitting: Fitting, order: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round the columns of a matrix in ``order``.

    Parameters
    ----------
    weight : Tensor
        (rows, columns), in the matrix's own order.
    root : Tensor
        (columns, columns), R of the Hessian, in the order of rounding.
    fitting : Fitting
        How scales are fitted.
    order : Tensor or None
        (columns,): which column is rounded first, second, ...; None: from left to right.

    Returns
    -------
    tuple of Tensor
        Codes less their zeros, (columns, rows), in the order of rounding; scales and zeros, (groups, rows);
        the group of each column, (columns,), in the order of rounding.
    """
    columns = _Columns(weight, root, fitting, order)
    block, neighbors = fitting.levels(len(root))
    for start in range(0, len(root), block):
        stop = min(start + block, len(root))
        if fitting.group_scales == "stale":
            columns.take_scales(start, stop)
        with one_thread():
            for first in range(start, stop, neighbors):
                last = min(first + neighbors, stop)
                if fitting.group_scales == "fresh":
                    columns.take_scales(first, last)
                columns.round(first, last)
                columns.pass_on(first, last, stop)
        columns.pass_on(start, stop, len(root))
    return columns.steps, columns.scale, columns.zero, columns.index


class _Columns:
    """A matrix while it is rounded; every array has a row for each of its columns."""

    def __init__(self, weight: torch.Tensor, root: torch.Tensor, fitting: Fitting, order):
        self.first = weight.T.contiguous() if order is None else weight.T[order]
        self.target = self.first.clone()  # what a column is rounded from, once all before it are
        self.steps = torch.empty_like(self.first)
        self.change = torch.empty_like(self.first)
        self.root, self.share = root, root / root.diagonal()
        self.fitting, group = fitting, fitting.group
        columns, rows = self.first.shape
        self.scale = self.first.new_empty(columns // group, rows)
        self.zero = torch.empty_like(self.scale)
        index = torch.arange(columns, device=weight.device) // group
        self.untouched = group == columns or fitting.group_scales == "static"
        if self.untouched:
            self._fit(weight, slice(0, columns // group))
            index = index if order is None else index[order]
        self.index = index
        self.group_of = index.tolist()

    def take_scales(self, start: int, stop: int) -> None:
        """Fit the groups that begin with columns ``start`` to ``stop - 1``, as their weights stand."""
        group = self.fitting.group
        begins = range(-(-start // group) * group, stop, group)
        if self.untouched or not begins:
            return
        weights = self._standing(start, begins[-1] + group)
        for begin in begins:
            here = slice(begin // group, begin // group + 1)
            self._fit(weights[begin - start : begin - start + group].T, here)

    def _standing(self, start: int, stop: int) -> torch.Tensor:
        """Columns ``start`` to ``stop - 1`` as the paper's updates for those before ``start`` left them.

        They answer for the columns before together: ``w + S R^-1``, S being what these ask of each of them
        and R their own part of the root.
        """
        own = self.root[start:stop, start:stop]
        asked = (self.target[start:stop] - self.first[start:stop]) * own.diagonal()[:, None]
        return self.first[start:stop] + torch.linalg.solve_triangular(own.T, asked, upper=False)

    def _fit(self, weight: torch.Tensor, groups: slice) -> None:
        how, size = self.fitting, weight.shape[1] // (groups.stop - groups.start)
        made = fit(weight, how.bits, kind=how.kind, group=size, clip=how.clip, scale_dtype=how.scale_dtype)
        self.scale[groups], self.zero[groups] = made.scale.T, made.zero.T

    def round(self, start: int, stop: int) -> None:
        """Round columns ``start`` to ``stop - 1`` one by one; each asks those of them behind it at once."""
        value = torch.empty_like(self.first[0])
        group = None
        for i in range(start, stop):
            if self.group_of[i] != group:
                group = self.group_of[i]
                scale, zero = self.scale[group], self.zero[group]
                low, high = self.fitting.low - zero, 2**self.fitting.bits - 1 - zero
            steps, change = self.steps[i], self.change[i]
            torch.div(self.target[i], scale, out=steps)
            torch.clamp(steps.round_(), low, high, out=steps)
            torch.mul(steps, scale, out=value)
            torch.sub(self.first[i], value, out=change)
            if i + 1 < stop:
                self.target[i + 1 : stop].addr_(self.share[i, i + 1 : stop], change)

    def pass_on(self, start: int, stop: int, end: int) -> None:
        """What the changes of columns ``start`` to ``stop - 1`` ask of those from ``stop`` to ``end - 1``."""
        if stop < end:
            self.target[stop:end].addmm_(self.share[start:stop, stop:end].T, self.change[start:stop])


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for vector operations that are over before a second one has woken up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
