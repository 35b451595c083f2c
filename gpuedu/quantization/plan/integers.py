"""Integers with a scale and a zero: how a run of numbers is fitted to a few bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from .checks import check_bits, check_choice, check_number, check_numbers
from .grids import Grid

KINDS = ("symmetric", "full_range", "asymmetric")
"""How the range of the integers is laid over that of the numbers; :func:`fit` says it exactly."""

CLIPS = ("minmax", "mse")


@dataclass(frozen=True)
class Affine:
    """Integer codes, a scale and a zero: ``value = scale * (code - zero)``.

    Parameters
    ----------
    bits : int
        Bits of a code: 2, 3, 4 or 8. Codes are unsigned, as checkpoints store them.
    scale : float
        Distance between neighboring values, above 0.
    zero : int
        The code of 0.
    low : int
        The smallest code in use: 1 where the range is kept symmetric, else 0. The largest is
        ``2**bits - 1``.

    Raises
    ------
    TypeError, ValueError
        For a field out of its range.

    Examples
    --------
    >>> four = Affine(bits=4, scale=0.5, zero=8)
    >>> four.code(0.8), four.value(10), four.code(99), four.grid.values[:3]
    (10, 1.0, 15, (-4.0, -3.5, -3.0))
    """

    bits: int
    scale: float
    zero: int
    low: int = 0

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_number("scale", self.scale)
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale}: must be above 0")
        if not 0 <= self.low <= self.zero <= self.high:
            raise ValueError(f"low={self.low}, zero={self.zero}: must be 0 <= low <= zero <= {self.high}")

    @property
    def high(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def code(self, number: float) -> int:
        """The code of the value nearest to ``number``; halfway, the even number of steps from zero."""
        return min(max(round(number / self.scale) + self.zero, self.low), self.high)

    def value(self, code: int) -> float:
        """The number that ``code`` stands for."""
        return self.scale * (code - self.zero)

    def nearest(self, number: float) -> float:
        """The value nearest to ``number``; beyond both ends, the end."""
        return self.value(self.code(number))

    @property
    def grid(self) -> Grid:
        """Its values."""
        codes = range(self.low, self.high + 1)
        return Grid(f"INT{self.bits}", self.bits, tuple(self.value(code) for code in codes))


def fit(numbers: Sequence[float], bits: int, kind: str = "asymmetric", clip: str = "minmax") -> Affine:
    """The scale and zero that lay the integers of ``bits`` bits over ``numbers``.

    Parameters
    ----------
    numbers : sequence of float
        One or more, finite: what shares a scale.
    bits : int
        2, 3, 4 or 8.
    kind : str
        ``"symmetric"``: codes -(2^(b-1) - 1) to 2^(b-1) - 1 around zero, so that the largest magnitude
        is hit exactly. ``"full_range"``: -2^(b-1) to 2^(b-1) - 1, one value more, and the scale
        2 max / (2^b - 1), at which the largest magnitude is hit by neither end. ``"asymmetric"``: 2^b
        values from the smallest number (or 0) to the largest (or 0), and a zero that is a whole code.
    clip : str
        ``"minmax"`` covers all numbers; ``"mse"`` is :func:`fit_mse` with its defaults.

    Returns
    -------
    Affine
        With zero in the range, whatever the numbers, so that 0 is always exact. Numbers that are all 0
        get the scale 1.

    Raises
    ------
    TypeError, ValueError
        For an unknown width or kind, or numbers that are none or not finite.

    References
    ----------
    The reference code of Frantar et al. 2023, "GPTQ", for ``asymmetric`` and ``full_range`` (its ``sym``);
    that of Xiao et al. 2023, "SmoothQuant", for ``symmetric``.

    Examples
    --------
    >>> fit([-1.0, 0.5, 2.0], bits=2)
    Affine(bits=2, scale=1.0, zero=1, low=0)
    >>> [fit([-7.0, 3.0], 4, kind).scale for kind in ("symmetric", "full_range", "asymmetric")]
    [1.0, 0.9333333333333333, 0.6666666666666666]
    """
    check_choice("clip", clip, CLIPS)
    if clip == "mse":
        return fit_mse(numbers, bits, kind)
    check_bits(bits)
    check_choice("kind", kind, KINDS)
    check_numbers("numbers", numbers)
    return _over(min(0.0, *numbers), max(0.0, *numbers), bits, kind)


def fit_mse(
    numbers: Sequence[float],
    bits: int,
    kind: str = "asymmetric",
    *,
    steps: int = 100,
    shrink: float = 0.8,
    power: float = 2.4,
) -> Affine:
    """The scale and zero of a narrower range, chosen so that the rounding error is least.

    Parameters
    ----------
    numbers, bits, kind
        As of :func:`fit`.
    steps : int
        The range shrinks by 1 / ``steps`` at a time.
    shrink : float
        The share of the range that may go, from 0 to below 1: ``shrink * steps`` ranges are tried.
    power : float
        The error is the sum of ``|rounded - number| ** power``.

    Returns
    -------
    Affine
        The first of those with the least error; the whole range is among them.

    Raises
    ------
    TypeError, ValueError
        As :func:`fit`, and for a search out of its range.

    References
    ----------
    The option ``mse`` of the reference code of Frantar et al. 2023, "GPTQ".

    Examples
    --------
    >>> numbers = 10 * [1.0, -1.0] + [4.0]
    >>> fit(numbers, 2, "symmetric").scale, round(fit_mse(numbers, 2, "symmetric").scale, 2)
    (4.0, 1.32)
    """
    check_bits(bits)
    check_choice("kind", kind, KINDS)
    check_numbers("numbers", numbers)
    check_number("shrink", shrink, 0, 0.999)
    check_number("power", power, 0.1, 10)
    check_number("steps", steps, 1, 10_000)
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    best, least = _over(low, high, bits, kind), inf
    for i in range(max(1, int(shrink * steps))):
        share = 1 - i / steps
        tried = _over(share * low, share * high, bits, kind)
        error = sum(abs(tried.nearest(number) - number) ** power for number in numbers)
        if error < least:
            best, least = tried, error
    return best


def _over(low: float, high: float, bits: int, kind: str) -> Affine:
    """The integers laid over the range from ``low`` <= 0 to ``high`` >= 0."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    magnitude = max(-low, high)
    if magnitude == 0:
        return Affine(bits, 1.0, 0 if kind == "asymmetric" else middle, low=int(kind == "symmetric"))
    steps = {"symmetric": middle - 1, "full_range": top / 2, "asymmetric": top}[kind]
    scale = (high - low if kind == "asymmetric" else magnitude) / steps
    if not 0 < scale < inf:
        raise ValueError(f"numbers from {low} to {high}: their scale {scale} must be above 0 and finite")
    if kind == "asymmetric":
        return Affine(bits, scale, min(round(-low / scale), top))
    return Affine(bits, scale, middle, low=int(kind == "symmetric"))
