"""GPTQ on tensors: columns rounded one after the other, errors moved to those not yet rounded.

The algorithm is that of :func:`gpuedu.quantization.plan.gptq`; here it is arranged for speed. The matrix is
held transposed, so that a column is contiguous. An error reaches its own few neighbors at once, the rest of
its block once for some columns, and everything behind the block once a block: two levels of the paper's
lazy updates, which turn vector products into matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpuedu.checks import check_amount, check_count

from ..plan.checks import check_bits, check_choice, check_group
from ..plan.gptq import GROUP_SCALES
from ..plan.integers import CLIPS, KINDS
from .checks import check_matrix
from .integers import QuantizedMatrix, Scales, fit

BLOCK, NEIGHBORS = 256, 32
"""Columns after which an error reaches the rest of the matrix, and the rest of the block; at most so many."""


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    group_scales: str = "fresh",
    block: int = 128,
    act_order: bool = False,
    damping: float = 0.01,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> QuantizedMatrix:
    """Quantize a weight matrix so that its outputs on the calibration inputs change least.

    Parameters
    ----------
    weight : Tensor
        (rows, columns): a row for each output. Matrices with the same inputs can be put on top of each other:
        rows do not see one another.
    hessian : Tensor
        (columns, columns), of :func:`gpuedu.quantization.run.input_statistics`.
    bits, kind, group, clip, scale_dtype
        As of :func:`gpuedu.quantization.run.fit`. With ``act_order`` a group is that many columns in the
        order of rounding, unless its scales are static.
    group_scales : str
        When a group's scale is taken. ``"fresh"``: from its weights when its first column is rounded, as the
        paper describes it. ``"stale"``: from its weights when the block of ``block`` columns began, which is
        what the published code does, in effect, where a group is smaller than the block. ``"static"``:
        before anything is rounded, which keeps the groups of the matrix's own order.
    block : int
        Columns of a block for ``"stale"``. It changes nothing else, and is chosen for speed elsewhere.
    act_order : bool
        Round the columns with the largest mean squared input first.
    damping : float
        This times the mean of the Hessian's diagonal is added to it (``percdamp``).

    Returns
    -------
    QuantizedMatrix
        With columns in the order of ``weight``, and the group of each.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, a group that does not divide, numbers that are not finite, an argument out
        of its range, or a Hessian that is singular even with the damping.

    Notes
    -----
    Columns whose input was always 0 become 0. In float64 the result does not depend on how columns are
    blocked; in float32 sums in another order flip a few roundings in a million.

    References
    ----------
    Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    algorithm 1 and section 3.3; options as in its reference code.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 0.2], [0.9, 1.0, 0.1]])
    >>> weight, hessian = torch.tensor([[0.4, 0.4, 1.0]]), 2 / 3 * x.T @ x
    >>> gptq(weight, hessian, bits=2, kind="symmetric", damping=0.001).dequantize()
    tensor([[0., 1., 0.]])
    """
    _check(weight, hessian, bits, kind, group_scales, block, damping, clip)
    columns = weight.shape[1]
    group = check_group(group, columns)
    with torch.no_grad():
        diagonal = hessian.diagonal()
        if (diagonal == 0).any():
            weight = torch.where(diagonal == 0, 0.0, weight)
        order = diagonal.argsort(descending=True, stable=True) if act_order else None
        if order is not None:
            hessian = hessian[order][:, order]
        root = inverse_root(hessian, damping).to(weight.dtype)
        maker = _ScaleMaker(weight, order, group, group_scales, (bits, kind, clip, scale_dtype))
        transposed = weight.T.contiguous() if order is None else weight.T[order]
        levels = _levels(columns, group, group_scales, block)
        codes = _round_columns(transposed, root, maker, *levels)
        return _in_matrix_order(codes, maker, order)


def inverse_root(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with ``(H + damping * mean diagonal)^-1 = U^T U``.

    Parameters
    ----------
    hessian : Tensor
        (columns, columns), symmetric; zeros on its diagonal (inputs that are always 0) count as 1.
    damping : float
        Share of the mean of the diagonal that is added to it.

    Returns
    -------
    Tensor
        (columns, columns).

    Raises
    ------
    ValueError
        If the damped matrix is not positive definite.

    Notes
    -----
    ``H = R R^T`` with R upper triangular is a Cholesky factorization read from the other end; U is the
    inverse of R. That is one factorization and one triangular inverse, where the reference code factorizes,
    inverts and factorizes again, and the same U: it is unique.

    Examples
    --------
    >>> u = inverse_root(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), damping=0.0)
    >>> u.tolist()
    [[0.5, 0.0], [0.0, 1.0]]
    """
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed:
        raise ValueError(f"damping={damping}: must be larger, the Hessian is singular with it")
    return _triangular_inverse(lower).flip(0, 1)


def _triangular_inverse(lower: torch.Tensor) -> torch.Tensor:
    """Inverse of a lower triangular matrix by halves: most of it is two matrix products."""
    n = len(lower)
    if n <= 128:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    half = n // 2
    inverse = torch.zeros_like(lower)
    first, second = _triangular_inverse(lower[:half, :half]), _triangular_inverse(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[half:, :half] = -(second @ (lower[half:, :half] @ first))
    return inverse


class _ScaleMaker:
    """Scale and zero of every group, taken when the convention says so; each is contiguous over rows."""

    def __init__(self, weight, order, group, when, fit_arguments):
        bits, kind, clip, self.scale_dtype = fit_arguments
        self.bits, self.kind, self.clip = bits, kind, clip
        self.group, self.when = group, when
        rows, columns = weight.shape
        self.low = int(kind == "symmetric")
        self.scale = weight.new_empty(columns // group, rows)
        self.zero = torch.empty_like(self.scale)
        index = torch.arange(columns, device=weight.device) // group
        if group == columns or when == "static":
            self._take(weight, slice(0, columns // group))
            index = index if order is None else index[order]
        self.index = index  # of each column in the order of rounding
        self.at = index.tolist()

    def block_begins(self, transposed: torch.Tensor, start: int, stop: int) -> None:
        """Columns ``start`` to ``stop - 1`` come next, and all errors before have reached them."""
        if self.when == "stale":
            self._starting_in(transposed, start, stop)

    def neighbors_begin(self, transposed: torch.Tensor, start: int, stop: int) -> None:
        """The same, of the few columns that an error reaches at once."""
        if self.when == "fresh":
            self._starting_in(transposed, start, stop)

    def _starting_in(self, transposed, start, stop) -> None:
        if self.group == len(transposed):
            return
        for first in range(-(-start // self.group) * self.group, stop, self.group):
            here = slice(first // self.group, first // self.group + 1)
            self._take(transposed[first : first + self.group].T, here)

    def _take(self, weight: torch.Tensor, groups: slice) -> None:
        size = weight.shape[1] // (groups.stop - groups.start)
        made = fit(
            weight, self.bits, kind=self.kind, group=size, clip=self.clip, scale_dtype=self.scale_dtype
        )
        self.scale[groups], self.zero[groups] = made.scale.T, made.zero.T

    def scales(self) -> Scales:
        """All of them, (rows, groups)."""
        return Scales(self.bits, self.scale.T.contiguous(), self.zero.T.contiguous(), self.low)


def _levels(columns: int, group: int, when: str, block: int) -> tuple[int, int]:
    """Columns of a block and of neighbors, such that scales can be taken when the convention says so."""
    if when == "stale" and group < columns:
        return block, _largest_divisor(block, NEIGHBORS)
    if when == "static" or group == columns:
        return BLOCK, NEIGHBORS
    if group > BLOCK:
        block = _largest_divisor(group, BLOCK)
        return block, _largest_divisor(block, NEIGHBORS)
    return BLOCK // group * group, _largest_divisor(group, NEIGHBORS)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def _round_columns(transposed, root, maker: _ScaleMaker, block: int, neighbors: int) -> torch.Tensor:
    """Codes less their zeros, (columns, rows); uses ``transposed`` up."""
    columns, rows = transposed.shape
    rounded = torch.empty_like(transposed)
    errors = transposed.new_empty(block, rows)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        maker.block_begins(transposed, start, stop)
        with one_thread():
            for first in range(start, stop, neighbors):
                last = min(first + neighbors, stop)
                maker.neighbors_begin(transposed, first, last)
                _round_neighbors(transposed, root, maker, rounded, errors[first - start :], first, last)
                if last < stop:
                    error = errors[first - start : last - start]
                    transposed[last:stop].addmm_(root[first:last, last:stop].T, error, alpha=-1)
        if stop < columns:
            transposed[stop:].addmm_(root[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return rounded


def _round_neighbors(transposed, root, maker, rounded, errors, first: int, last: int) -> None:
    """Columns ``first`` to ``last - 1``, one by one; each error reaches those behind it at once."""
    value = torch.empty_like(transposed[0])
    low, high = maker.low - maker.zero, 2**maker.bits - 1 - maker.zero
    inverse = (1 / root.diagonal()[first:last]).tolist()
    for i in range(first, last):
        weight, steps, error = transposed[i], rounded[i], errors[i - first]
        g = maker.at[i]
        scale = maker.scale[g]
        torch.div(weight, scale, out=steps)
        torch.clamp(steps.round_(), low[g], high[g], out=steps)
        torch.mul(steps, scale, out=value)
        torch.sub(weight, value, out=error)
        error *= inverse[i - first]
        if i + 1 < last:
            transposed[i + 1 : last].addr_(root[i, i + 1 : last], error, alpha=-1)


def _in_matrix_order(rounded: torch.Tensor, maker: _ScaleMaker, order) -> QuantizedMatrix:
    """The result with its columns where they came from."""
    index = maker.index
    if (index.diff() < 0).any():
        codes = (rounded + maker.zero[index]).to(torch.uint8)
    else:
        groups = rounded.unflatten(0, (len(maker.zero), -1))
        codes = groups.add_(maker.zero[:, None]).to(torch.uint8).flatten(0, 1)
    if order is not None:
        back = order.argsort()
        codes, index = codes[back], index[back]
    return QuantizedMatrix(codes.T.contiguous(), maker.scales(), index)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for vector operations that are over before a second one has woken up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(weight, hessian, bits, kind, group_scales, block, damping, clip) -> None:
    check_bits(bits)
    check_choice("kind", kind, KINDS)
    check_choice("clip", clip, CLIPS)
    check_choice("group_scales", group_scales, GROUP_SCALES)
    check_count("block", block)
    check_amount("damping", damping)
    check_matrix("weight", weight)
    check_matrix("hessian", hessian)
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"hessian of shape {tuple(hessian.shape)}: must be ({columns}, {columns}), the columns of weight"
        )
