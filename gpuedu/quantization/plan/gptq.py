"""GPTQ on a small matrix, as the log of its decisions: column by column, what was rounded and moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import NamedTuple

from gpuedu.checks import check_count

from .checks import check_bits, check_choice, check_group, check_number, check_numbers
from .integers import Affine, fit

Matrix = tuple[tuple[float, ...], ...]

GROUP_SCALES = ("fresh", "stale", "static")
"""From which weights a group's scale is taken; :func:`gptq` says it exactly."""


class RoundedColumn(NamedTuple):
    """One column rounded; each tuple has an entry for every row.

    ``before`` is the weight as all columns before it left it, ``after`` the grid value it became.
    ``error`` is the difference over the column's entry on the diagonal of U. ``updates[row][j]`` is what was
    added to column j to make up for it; 0 for columns that are rounded already.
    """

    column: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    codes: tuple[int, ...]
    scales: tuple[Affine, ...]
    error: tuple[float, ...]
    updates: Matrix


@dataclass(frozen=True)
class Log:
    """A matrix quantized column by column.

    Parameters
    ----------
    weights : tuple of tuple of float
        The matrix before, a row for each output.
    hessian : tuple of tuple of float
        ``2 / n * sum of x x^T`` over the n calibration inputs, as :func:`hessian` makes it.
    decisions : tuple of RoundedColumn
        In the order in which the columns were rounded.

    Examples
    --------
    >>> log = gptq([[0.4, 0.4, -1.0]], hessian([[1.0, 1.0, 0.0], [1.0, 0.9, 0.1]]), 2, kind="symmetric")
    >>> [[round(weight, 2) for weight in log.state(steps)[0]] for steps in range(4)]
    [[0.4, 0.4, -1.0], [0.0, 0.81, -0.86], [0.0, 1.0, -1.62], [0.0, 1.0, -1.0]]
    """

    weights: Matrix
    hessian: Matrix
    decisions: tuple[RoundedColumn, ...]

    def state(self, steps: int) -> Matrix:
        """The matrix after ``steps`` decisions: rounded columns, and the others as they stand by then."""
        check_count("steps", steps, 0)
        now = [list(row) for row in self.weights]
        for decision in self.decisions[:steps]:
            for row, line in enumerate(now):
                line[:] = [
                    weight + update for weight, update in zip(line, decision.updates[row], strict=True)
                ]
                line[decision.column] = decision.after[row]
        return tuple(map(tuple, now))

    @cached_property
    def values(self) -> Matrix:
        """The matrix after all of them: on the grid everywhere."""
        by_column = sorted(self.decisions)
        return tuple(tuple(d.after[row] for d in by_column) for row in range(len(self.weights)))

    def output_error(self, steps: int | None = None) -> float:
        """Mean squared difference of an output after ``steps`` decisions (None: all), over the calibration.

        Half of ``d H d^T`` for the difference d of a row: the mean of ``(d . x) ** 2``, averaged over rows.
        """
        now = self.values if steps is None else self.state(steps)
        total = 0.0
        for line, first in zip(now, self.weights, strict=True):
            moved = [a - b for a, b in zip(line, first, strict=True)]
            total += sum(m * _dot(row, moved) for m, row in zip(moved, self.hessian, strict=True)) / 2
        return total / len(self.weights)


def hessian(inputs: Sequence[Sequence[float]]) -> Matrix:
    """The Hessian of the squared output error of one row: ``2 / n * sum of x x^T``.

    Parameters
    ----------
    inputs : sequence of sequence of float
        n calibration inputs x, all of the matrix's columns long.

    Returns
    -------
    tuple of tuple of float
        Square, one row for each column of the matrix.

    Raises
    ------
    TypeError, ValueError
        If there are no inputs, they differ in length or hold something not finite.

    References
    ----------
    Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", section 3.

    Examples
    --------
    >>> hessian([[1.0, 2.0], [3.0, 0.0]])
    ((10.0, 2.0), (2.0, 4.0))
    """
    if not inputs:
        raise ValueError("inputs is empty: must hold at least one calibration input")
    for i, x in enumerate(inputs):
        check_numbers(f"inputs[{i}]", x)
    columns = list(zip(*inputs, strict=True))
    return tuple(tuple(2 * _dot(a, b) / len(inputs) for b in columns) for a in columns)


def gptq(
    weights: Sequence[Sequence[float]],
    hessian: Sequence[Sequence[float]],
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    group_scales: str = "fresh",
    block: int = 128,
    act_order: bool = False,
    damping: float = 0.01,
    clip: str = "minmax",
    compensate: bool = True,
) -> Log:
    """Round a matrix column by column, and let the columns not yet rounded make up for each error.

    Parameters
    ----------
    weights : sequence of sequence of float
        W, a row for each output.
    hessian : sequence of sequence of float
        As :func:`hessian` makes it.
    bits, kind, clip
        As of :func:`gpuedu.quantization.plan.fit`.
    group : int or None
        Columns that share a scale, in the order of rounding (``"static"``: in the order of the matrix);
        None: all of them, with a scale taken before the first is rounded.
    group_scales : str
        A group's scale is taken from its weights as they stand when its first column is rounded
        (``"fresh"``, as the paper describes it), as they stood when the block of ``block`` columns
        began (``"stale"``, as the published code does, in effect, where groups are smaller than its
        blocks), or before anything was rounded (``"static"``).
    block : int
        Columns of a block; matters for ``"stale"`` alone.
    act_order : bool
        Round the columns with the largest diagonal of the Hessian first.
    damping : float
        This times the mean of the Hessian's diagonal is added to it.
    compensate : bool
        False moves no error: round to nearest, in the same order and with the same scales.

    Returns
    -------
    Log
        Every decision.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, numbers that are not finite, or an argument out of its range.

    Notes
    -----
    With ``H^-1 = U^T U``, U upper triangular: column i is rounded, its error ``e = (w - q) / U_ii``, and
    ``e U_ij`` is subtracted from every column j behind it. Columns whose input is always 0 are set to 0.

    References
    ----------
    Frantar et al. 2023, "GPTQ", algorithm 1 and section 3.3.

    Examples
    --------
    >>> inputs = [[1.0, 1.0, 0.0], [1.0, 0.9, 0.2], [0.9, 1.0, 0.1]]
    >>> log = gptq([[0.4, 0.4, 1.0]], hessian(inputs), bits=2, kind="symmetric", damping=0.001)
    >>> log.values, [round(update, 2) for update in log.decisions[0].updates[0]]
    (((0.0, 1.0, 0.0),), [0.0, 0.38, 0.19])
    """
    now = [list(row) for row in weights]
    n = _check(now, hessian, bits, kind, group_scales, block, damping)
    group = check_group(group, n)
    dead = [j for j in range(n) if hessian[j][j] == 0]
    for row in now:
        for j in dead:
            row[j] = 0.0
    order = sorted(range(n), key=lambda j: (-hessian[j][j], j)) if act_order else list(range(n))
    upper = _inverse_root([[hessian[i][j] for j in order] for i in order], damping)
    whole = [fit(row, bits, kind, clip) for row in now]
    first = [list(row) for row in now]
    scales, snapshot, decisions = whole, first, []
    for at, column in enumerate(order):
        if at % block == 0:
            snapshot = [list(row) for row in now]
        if group < n and (at % group == 0 or group_scales == "static"):
            source = {"fresh": now, "stale": snapshot, "static": first}[group_scales]
            members = order[at : at + group]
            if group_scales == "static":
                start = column - column % group
                members = list(range(start, start + group))
            scales = [fit([row[j] for j in members], bits, kind, clip) for row in source]
        decisions.append(_round_column(now, column, order[at + 1 :], upper[at], at, scales, compensate))
    return Log(tuple(map(tuple, weights)), tuple(map(tuple, hessian)), tuple(decisions))


def _round_column(now, column, later, root, at, scales, compensate) -> RoundedColumn:
    """Round one column of ``now`` in place and move its error to the ``later`` ones."""
    before = tuple(row[column] for row in now)
    codes = tuple(scale.code(weight) for scale, weight in zip(scales, before, strict=True))
    after = tuple(scale.value(code) for scale, code in zip(scales, codes, strict=True))
    error = tuple((b - a) / root[at] for a, b in zip(after, before, strict=True))
    updates = []
    for row, e in zip(now, error, strict=True):
        moved = [0.0] * len(row)
        if compensate:
            for ahead, j in enumerate(later, start=at + 1):
                moved[j] = -e * root[ahead]
        row[:] = [weight + update for weight, update in zip(row, moved, strict=True)]
        updates.append(tuple(moved))
    for row, value in zip(now, after, strict=True):
        row[column] = value
    return RoundedColumn(column, before, after, codes, tuple(scales), error, tuple(updates))


def _inverse_root(hessian: list[list[float]], damping: float) -> list[list[float]]:
    """Upper triangular U with ``(H + damping)^-1 = U^T U``: the inverse of R in ``H = R R^T``."""
    n = len(hessian)
    dead = [row[i] == 0 for i, row in enumerate(hessian)]
    diagonal = [1.0 if dead[i] else row[i] for i, row in enumerate(hessian)]
    damp = damping * sum(diagonal) / n
    root = [[0.0] * n for _ in range(n)]
    for j in reversed(range(n)):
        left = diagonal[j] + damp - sum(r * r for r in root[j][j + 1 :])
        if left <= 1e-12 * diagonal[j]:
            raise ValueError(
                f"damping={damping}: must be larger, the Hessian is singular to working precision"
            )
        root[j][j] = sqrt(left)
        for i in range(j):
            root[i][j] = (hessian[i][j] - _dot(root[i][j + 1 :], root[j][j + 1 :])) / root[j][j]
    inverse = [[0.0] * n for _ in range(n)]
    for j in range(n):
        inverse[j][j] = 1 / root[j][j]
        for i in reversed(range(j)):
            inverse[i][j] = -sum(root[i][k] * inverse[k][j] for k in range(i + 1, j + 1)) / root[i][i]
    return inverse


def _check(weights, hessian, bits, kind, group_scales, block, damping) -> int:
    """Columns of the matrix, once everything fits together."""
    check_bits(bits)
    check_choice("kind", kind, ("symmetric", "full_range", "asymmetric"))
    check_choice("group_scales", group_scales, GROUP_SCALES)
    check_count("block", block)
    check_number("damping", damping, 0)
    if not weights:
        raise ValueError("weights is empty: must have at least one row")
    n = len(weights[0])
    for name, rows in (("weights", weights), ("hessian", hessian)):
        for i, row in enumerate(rows):
            check_numbers(f"{name}[{i}]", row)
            if len(row) != n:
                raise ValueError(f"{name}[{i}] has {len(row)} columns: must have {n}, as weights[0]")
    if len(hessian) != n:
        raise ValueError(f"hessian has {len(hessian)} rows: must have {n}, one for each column of weights")
    return n


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
