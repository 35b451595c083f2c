"""Means and percentiles of a simulation, with intervals that admit how alike neighbors are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, isnan, sqrt
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from gpuedu.checks import check_amount, check_count


class Interval(NamedTuple):
    """An estimate, and the interval that covers the truth with the stated confidence."""

    estimate: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the values do not exceed, interpolated between neighbors.

    Raises
    ------
    ValueError
        For no values, one that is NaN, or a share outside 0 to 1.

    Examples
    --------
    >>> percentile([4.0, 1.0, 2.0, 3.0], 0.5)
    2.5
    """
    if not values:
        raise ValueError("values: must be at least one, are 0")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: must be from 0 to 1")
    if any(map(isnan, values)):
        raise ValueError("values: must be numbers, one is NaN, which has no place in an order")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    if place == below or ordered[below] == ordered[above]:
        return float(ordered[below])  # without a difference, which is NaN between infinite values
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def student_t(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t distribution.

    Parameters
    ----------
    confidence : float
        Share of the distribution between the quantile and its negative, above 0 and below 1.
    freedom : int
        Degrees of freedom, at least 1.

    Returns
    -------
    float
        The quantile.

    Raises
    ------
    TypeError, ValueError
        For a confidence or degrees of freedom out of range.

    Notes
    -----
    By the Cornish-Fisher expansion from the normal quantile, Abramowitz and Stegun 26.7.5; within 0.1 % at
    9 degrees of freedom and more. For a confidence of 0.95 it is 0.7 % low at 2 degrees, and 11 % at 1.

    Examples
    --------
    >>> round(student_t(0.95, 19), 3)
    2.093
    """
    check_amount("confidence", confidence, positive=True)
    if confidence >= 1:
        raise ValueError(f"confidence={confidence}: must be below 1, it is a share")
    check_count("freedom", freedom)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = freedom
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / n + g2 / n**2 + g3 / n**3 + g4 / n**4


def batch_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    *,
    batches: int = 20,
    confidence: float = 0.95,
) -> Interval:
    """A statistic of a time series, with a confidence interval by batch means.

    Parameters
    ----------
    values : sequence of float
        In order of time, warm-up removed; finite, at least two a batch.
    statistic : callable
        The mean by default; ``lambda values: percentile(values, 0.99)`` for the 99th percentile.
    batches : int
        Stretches into which the series is cut, at least 10.
    confidence : float
        Of the interval, above 0 and below 1.

    Returns
    -------
    Interval
        The statistic of the whole series; the interval from the spread between the stretches.

    Raises
    ------
    TypeError, ValueError
        For too few values, one that is not finite, or batches or a confidence out of range.

    Notes
    -----
    Waiting times of neighbors are alike, so a series of n is worth less than n independent values, and the
    usual interval is too narrow. Stretches much longer than that likeness lasts are all but independent.

    Examples
    --------
    >>> interval = batch_interval([float(n % 7) for n in range(7000)])
    >>> interval.estimate, interval.high - interval.low < 0.01
    (3.0, True)
    """
    check_count("batches", batches, 10)
    size = len(values) // batches
    if size < 2:
        raise ValueError(f"values: {len(values)}, must be at least {2 * batches} for {batches} batches")
    if not all(map(isfinite, values)):
        raise ValueError(
            f"values: must be finite, {next(x for x in values if not isfinite(x))} is among them"
        )
    parts = [statistic(values[i * size : (i + 1) * size]) for i in range(batches)]
    half = student_t(confidence, batches - 1) * stdev(parts) / sqrt(batches)
    estimate = statistic(values)
    return Interval(estimate, estimate - half, estimate + half)
