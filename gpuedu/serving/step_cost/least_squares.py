"""Non-negative least squares for measured times, in the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import mul

SETTLED = 1e-4
"""Weights have settled when another pass would move no fitted time by more than this share of it."""
PASSES = 300
INERTIA = 0.3
"""Share that the weights before keep, in logarithms: without any, times that scatter widely can swing."""
RIDGE, TOLERANCE = 1e-12, 1e-11  # of a column's square, of its product with what is fitted


def fit_seconds(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Coefficients >= 0 whose products with the features come closest to measured seconds.

    Parameters
    ----------
    features : sequence of sequence of float
        (measurements, coefficients), none below 0.
    seconds : sequence of float
        (measurements,), above 0.

    Returns
    -------
    list of float
        Each measurement's error counts in proportion to its fitted seconds. 0 for a feature that is 0
        everywhere.

    Raises
    ------
    ValueError
        If the weights do not settle.

    Notes
    -----
    Errors relative to the *measured* seconds would make slow outliers count less than fast ones, and the
    fit too fast, by about twice the squared coefficient of variation: on a machine whose times vary by 25 %,
    an eighth. So the weights come from the fit before, until they settle (iteratively reweighted least
    squares; the fixed point is that of a quasi-likelihood with a constant coefficient of variation).

    Examples
    --------
    >>> [round(c, 6) for c in fit_seconds([[1, 0], [1, 1], [1, 2], [1, 4]], [3.0, 5.0, 7.0, 11.0])]
    [3.0, 2.0]
    """
    rows = [[float(value) for value in row] for row in features]
    weights = wanted = [float(value) for value in seconds]
    for _ in range(PASSES):
        coefficients = _weighted(rows, wanted, weights)
        fitted = [_dot(row, coefficients) or measured for row, measured in zip(rows, wanted, strict=True)]
        moved = max(abs(now / before - 1) for now, before in zip(fitted, weights, strict=True))
        if moved < SETTLED:
            return coefficients
        weights = [
            before**INERTIA * now ** (1 - INERTIA) for now, before in zip(fitted, weights, strict=True)
        ]
    raise ValueError("seconds: scatter too widely for a fit, its weights do not settle")


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(map(mul, left, right))


def _weighted(
    rows: Sequence[Sequence[float]], wanted: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Coefficients >= 0 that minimize the sum of (error / weight) squared."""
    columns = [
        [value / weight for value, weight in zip(column, weights, strict=True)]
        for column in zip(*rows, strict=True)
    ]
    scale = [sqrt(_dot(column, column)) or 1.0 for column in columns]
    columns = [[value / size for value in column] for column, size in zip(columns, scale, strict=True)]
    target = [value / weight for value, weight in zip(wanted, weights, strict=True)]
    gram = [[_dot(left, right) for right in columns] for left in columns]
    solved = nonnegative(gram, [_dot(column, target) for column in columns])
    return [value / size for value, size in zip(solved, scale, strict=True)]


def nonnegative(gram: Sequence[Sequence[float]], target: Sequence[float]) -> list[float]:
    """The x >= 0 that minimizes ``x G x / 2 - x t``, by active sets.

    Parameters
    ----------
    gram : sequence of sequence of float
        (n, n), symmetric and positive semidefinite, 1 or 0 on the diagonal.
    target : sequence of float
        (n,).

    Returns
    -------
    list of float

    References
    ----------
    Lawson, Hanson. Solving least squares problems. 1974, chapter 23; on the normal equations, as Bro, de
    Jong. Journal of Chemometrics 11, 1997.
    """
    found = [0.0] * len(target)
    free: list[int] = []  # the others are 0
    least = TOLERANCE * max(map(abs, target))
    while True:
        slope = {i: target[i] - _dot(gram[i], found) for i in range(len(target)) if i not in free}
        entered = max(slope, key=slope.__getitem__, default=None)
        if entered is None or slope[entered] <= least:
            return found
        free.append(entered)
        solved = _solve(gram, target, free)
        if solved[-1] <= 0:  # rounding alone asked for it
            return found
        while min(solved) <= 0:
            now = dict(zip(free, solved, strict=True))
            shares = {i: found[i] / (found[i] - value) for i, value in now.items() if value <= 0}
            first = min(shares, key=shares.__getitem__)  # to reach 0 on the way
            for i, value in now.items():
                found[i] += shares[first] * (value - found[i])
            kept = [i for i in free if i != first and (now[i] > 0 or found[i] > least)]
            for i in set(free) - set(kept):
                found[i] = 0.0
            free = kept
            solved = _solve(gram, target, free)
        for i, value in zip(free, solved, strict=True):
            found[i] = value


def _solve(gram: Sequence[Sequence[float]], target: Sequence[float], places: Sequence[int]) -> list[float]:
    """The x without bounds, of some places, by Cholesky; a ridge shares what cannot be told apart."""
    lower: list[list[float]] = []
    solved: list[float] = []
    for n, i in enumerate(places):
        row: list[float] = []
        for m, j in enumerate(places[:n]):
            row.append((gram[i][j] - _dot(row, lower[m][:m])) / lower[m][m])
        row.append(sqrt(max(gram[i][i] * (1 + RIDGE) - _dot(row, row), RIDGE)))
        solved.append((target[i] - _dot(row[:n], solved)) / row[n])
        lower.append(row)
    for n in reversed(range(len(places))):
        solved[n] = (solved[n] - sum(lower[m][n] * solved[m] for m in range(n + 1, len(places)))) / lower[n][
            n
        ]
    return solved
