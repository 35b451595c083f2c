"""Non-negative least squares for measured times, in the standard library."""

from __future__ import annotations

from collections.abc import Sequence

REWEIGHTINGS = 3  # another moves no time by a thousandth: tested
SWEEPS = 5000


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

    Notes
    -----
    Errors relative to the *measured* seconds would make slow outliers count less than fast ones, and the
    fit too fast, by about twice the squared coefficient of variation: on a machine whose times vary by 25 %,
    an eighth. So the weights come from the fit before, a few times over (iteratively reweighted least
    squares; the fixed point is that of a quasi-likelihood with a constant coefficient of variation).

    Examples
    --------
    >>> [round(c, 6) for c in fit_seconds([[1, 0], [1, 1], [1, 2], [1, 4]], [3.0, 5.0, 7.0, 11.0])]
    [3.0, 2.0]
    """
    weights = seconds
    for _ in range(REWEIGHTINGS):
        coefficients = _weighted(features, seconds, weights)
        weights = [
            sum(value * c for value, c in zip(row, coefficients, strict=True)) or measured
            for row, measured in zip(features, seconds, strict=True)
        ]
    return coefficients


def _weighted(
    features: Sequence[Sequence[float]], seconds: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Coefficients >= 0 that minimize the sum of (error / weight) squared.

    Coordinate descent: each coefficient in turn goes to its best value, or to 0 if that is negative. The
    problem is convex, so this converges to the optimum.
    """
    rows = [[value / weight for value in row] for row, weight in zip(features, weights, strict=True)]
    wanted = [value / weight for value, weight in zip(seconds, weights, strict=True)]
    places = range(len(rows[0]))
    scale = [max(row[j] for row in rows) or 1.0 for j in places]
    rows = [[value / size for value, size in zip(row, scale, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in rows) for j in places] for i in places]
    target = [sum(row[i] * want for row, want in zip(rows, wanted, strict=True)) for i in places]
    coefficients = [0.0 for _ in places]
    for _ in range(SWEEPS):
        largest = 0.0
        for i in places:
            own = gram[i][i]
            if own == 0:
                continue
            rest = target[i] - sum(map(float.__mul__, gram[i], coefficients)) + own * coefficients[i]
            best = max(0.0, rest / own)
            largest = max(largest, abs(best - coefficients[i]))
            coefficients[i] = best
        if largest < 1e-13:
            break
    return [value / size for value, size in zip(coefficients, scale, strict=True)]
