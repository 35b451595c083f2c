"""How long prompts and answers are: distributions over whole numbers of tokens."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil, exp, inf, isfinite, log, log1p, nextafter
from random import Random
from statistics import NormalDist
from typing import Protocol

from gpuedu.checks import check_amount, check_count

_LAST = nextafter(1.0, 0.0)


class Lengths(Protocol):
    """A distribution over 1, 2, 3, ... tokens, given by its quantiles."""

    def quantile(self, probability: float) -> int:
        """Smallest length that at least this share (0 up to, not including, 1) does not exceed."""


def draw(lengths: Lengths, random: Random) -> int:
    """One length at random."""
    return lengths.quantile(random.random())


@dataclass(frozen=True)
class Fixed:
    """All the same."""

    tokens: int

    def __post_init__(self) -> None:
        check_count("tokens", self.tokens)

    def quantile(self, probability: float) -> int:
        """The length."""
        return self.tokens


@dataclass(frozen=True)
class Uniform:
    """Every length from ``low`` to ``high`` equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        check_count("low", self.low)
        check_count("high", self.high, self.low)

    def quantile(self, probability: float) -> int:
        """Smallest length that at least this share does not exceed."""
        return self.low + int(probability * (self.high - self.low + 1))


@dataclass(frozen=True)
class Exponential:
    """Each token is the last with the same probability: the exponential distribution in whole numbers.

    Parameters
    ----------
    mean : float
        Mean length, at least 1; before the limits cut it off.
    minimum, maximum : int or None
        Lengths below and above are moved to the limit.
    """

    mean: float
    minimum: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        check_amount("mean", self.mean)
        if self.mean < 1:
            raise ValueError(f"mean={self.mean}: must be at least 1 token")
        check_count("minimum", self.minimum)
        if self.maximum is not None:
            check_count("maximum", self.maximum, self.minimum)

    def quantile(self, probability: float) -> int:
        """Smallest length that at least this share does not exceed."""
        goes_on = 1 - 1 / self.mean
        tokens = 1 if goes_on == 0 else max(1, ceil(log1p(-probability) / log(goes_on)))
        return min(max(tokens, self.minimum), inf if self.maximum is None else self.maximum)


@dataclass(frozen=True)
class LogNormal:
    """The logarithm is normally distributed; many short ones, a long tail.

    Parameters
    ----------
    median : float
        Median length in tokens, before it is rounded up.
    sigma : float
        Standard deviation of the logarithm.
    maximum : int or None
        Longer ones are moved to this limit.
    """

    median: float
    sigma: float
    maximum: int | None = None

    def __post_init__(self) -> None:
        check_amount("median", self.median, positive=True)
        check_amount("sigma", self.sigma, positive=True)
        if self.maximum is not None:
            check_count("maximum", self.maximum)

    def quantile(self, probability: float) -> int:
        """Smallest length that at least this share does not exceed."""
        if probability <= 0:
            return 1
        tokens = max(1, ceil(self.median * exp(self.sigma * NormalDist().inv_cdf(probability))))
        return tokens if self.maximum is None else min(tokens, self.maximum)


@dataclass(frozen=True)
class Quantiles:
    """A measured distribution, known by some of its quantiles.

    Parameters
    ----------
    points : tuple of (float, int)
        Probability and length, both increasing, from probability 0 to 1.

    Raises
    ------
    ValueError
        If there are fewer than two points, or they are out of order, or do not span 0 to 1.

    Notes
    -----
    Between two quantiles the logarithm of the length is interpolated. Straight lines would lift the mean of
    a distribution with a long tail: the last hundredth of Azure's conversations spans 601 to 1,000 tokens,
    and most of it is near the lower end.

    Examples
    --------
    >>> Quantiles(((0, 10), (0.5, 20), (1, 80))).quantile(0.75)
    40
    """

    points: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        probabilities = [probability for probability, _ in self.points]
        if len(self.points) < 2 or probabilities[0] != 0 or probabilities[-1] != 1:
            raise ValueError(f"points={self.points!r}: must be at least two, from probability 0 to 1")
        lengths = [tokens for _, tokens in self.points]
        if sorted(set(probabilities)) != probabilities or sorted(lengths) != lengths:
            raise ValueError(f"points={self.points!r}: must increase")
        if not all(isfinite(tokens) and tokens >= 1 for tokens in lengths):
            raise ValueError(f"points={self.points!r}: must have lengths of at least 1 token")

    def quantile(self, probability: float) -> int:
        """Length at this probability, rounded."""
        after = bisect_right(self.points, probability, key=lambda point: point[0])
        if after >= len(self.points):
            return self.points[-1][1]
        (p, low), (q, high) = self.points[after - 1], self.points[after]
        return round(low * (high / low) ** ((probability - p) / (q - p)))


def mean(lengths: Lengths, points: int = 20_000) -> float:
    """Mean length: the integral of its quantiles.

    Parameters
    ----------
    lengths : Lengths
        The distribution.
    points : int
        Quantiles to ask it for, at least 1.

    Returns
    -------
    float
        Tokens. With 20,000 points within 0.1 % for every distribution here, a :class:`LogNormal` without
        ``maximum`` up to ``sigma`` 4.

    Raises
    ------
    TypeError, ValueError
        If ``points`` is no int of at least 1.

    Notes
    -----
    By the midpoint rule over v, where a share of v^3 is longer than the quantile. Points at equal distances
    in probability would miss the tail: for ``LogNormal(100, 3)``, a twelfth of the mean. Beyond ``sigma`` 4
    the longest, of which most of the mean consists, are rarer than the 2^-53 that a float can tell from 0
    below 1, so that no draw has them either.

    Examples
    --------
    >>> round(mean(Uniform(1, 1000)), 1), round(mean(LogNormal(100, 1.0)), 1)  # 100 exp(1/2), rounded up
    (500.5, 165.4)
    """
    check_count("points", points)
    # In whole numbers, the share between v = i / points and (i + 1) / points is this over points^3.
    shares = (3 * i * (i + 1) + 1 for i in range(points))
    probabilities = (min(1 - ((i + 0.5) / points) ** 3, _LAST) for i in range(points))
    total = sum(lengths.quantile(at) * share for at, share in zip(probabilities, shares, strict=True))
    return total / points**3
