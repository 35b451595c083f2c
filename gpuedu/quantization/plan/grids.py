"""Number formats as grids: the values that a few bits can hold, before any scale."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from math import inf, nan
from statistics import NormalDist

from gpuedu.checks import check_count

from .checks import check_choice, check_number

SPECIALS = ("ieee", "nan", "none")


@dataclass(frozen=True)
class Grid:
    """The finite values of a number format.

    Parameters
    ----------
    name : str
        What people call it.
    bits : int
        Bits of one number.
    values : tuple of float
        The values, ascending, each once: the two zeros of a format with a sign bit are one.

    Raises
    ------
    ValueError
        If the values do not ascend, or are more than the bits can tell apart.

    Examples
    --------
    >>> FP4_E2M1.grid.values[7:]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    >>> FP4_E2M1.grid.nearest(2.5), FP4_E2M1.grid.nearest(-100)
    (2.0, -6.0)
    """

    name: str
    bits: int
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        check_count("bits", self.bits)
        if not 1 <= len(self.values) <= 2**self.bits:
            raise ValueError(f"{self.name}: {len(self.values)} values: must be from 1 to {2**self.bits}")
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"{self.name}: values must ascend, each once")

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(-self.values[0], self.values[-1])

    def nearest(self, number: float) -> float:
        """The value closest to ``number``; beyond both ends, the end.

        Halfway between two, it is the one an even number of steps away from the value closest to zero:
        for floats the one whose last bit is 0, for integers the even one, as IEEE 754 rounds.

        Raises
        ------
        TypeError, ValueError
            If ``number`` is no finite number.
        """
        check_number("number", number)
        above = bisect_left(self.values, number)
        if above == 0:
            return self.values[0]
        if above == len(self.values):
            return self.values[-1]
        low, high = self.values[above - 1], self.values[above]
        if number - low != high - number:
            return low if number - low < high - number else high
        return high if (above - self._origin) % 2 == 0 else low

    @property
    def _origin(self) -> int:
        return _closest_to_zero(self.values)


@lru_cache(maxsize=64)
def _closest_to_zero(values: tuple[float, ...]) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i]))


@dataclass(frozen=True)
class FloatFormat:
    """A small floating-point format: sign, exponent, mantissa, from the highest bit down.

    Parameters
    ----------
    name : str
        What people call it.
    exponent_bits, mantissa_bits : int
        Their widths; the exponent's bias is ``2 ** (exponent_bits - 1) - 1``.
    specials : str
        What the codes with all exponent bits set mean. ``"ieee"``: infinity with mantissa 0, else not
        a number. ``"nan"``: only the code with all bits set is not a number, the others are numbers, and
        there is no infinity. ``"none"``: all are numbers.

    Raises
    ------
    TypeError, ValueError
        For a width below 1 or specials that are none of these.

    Notes
    -----
    With exponent field e, mantissa field m of M bits and bias b the value is
    ``(1 + m / 2**M) * 2 ** (e - b)``, or ``(m / 2**M) * 2 ** (1 - b)`` where e is 0 (subnormal).

    References
    ----------
    Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1; Open Compute Project 2023,
    "OCP Microscaling Formats (MX) Specification" 1.0, section 5.3.

    Examples
    --------
    >>> FP8_E4M3.grid.largest, FP8_E4M3.smallest_normal, FP8_E4M3.smallest_subnormal
    (448.0, 0.015625, 0.001953125)
    >>> FP8_E5M2.decode(0b0_11110_11), FP8_E5M2.decode(0b0_11111_00), FP8_E4M3.decode(0b0_1111_111)
    (57344.0, inf, nan)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: str

    def __post_init__(self) -> None:
        check_count("exponent_bits", self.exponent_bits)
        check_count("mantissa_bits", self.mantissa_bits)
        check_choice("specials", self.specials, SPECIALS)

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with a leading 1."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number, and the step between all that are subnormal."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    def decode(self, code: int) -> float:
        """The value of the bits ``code``, which may be infinite or not a number.

        Raises
        ------
        TypeError, ValueError
            If ``code`` is not a whole number of that many bits.
        """
        check_count("code", code, 0)
        if code >= 2**self.bits:
            raise ValueError(
                f"code={code}: must be below {2**self.bits} for the {self.bits} bits of {self.name}"
            )
        mantissa = code % 2**self.mantissa_bits
        exponent = (code >> self.mantissa_bits) % 2**self.exponent_bits
        sign = -1.0 if code >> (self.bits - 1) else 1.0
        top = exponent == 2**self.exponent_bits - 1
        if top and self.specials == "ieee":
            return nan if mantissa else sign * inf
        if top and self.specials == "nan" and mantissa == 2**self.mantissa_bits - 1:
            return nan
        share = mantissa / 2**self.mantissa_bits
        if exponent == 0:
            return sign * share * self.smallest_normal
        return sign * (1 + share) * 2.0 ** (exponent - self.bias)

    @property
    def grid(self) -> Grid:
        """Its finite values."""
        return _grid_of(self)


@lru_cache(maxsize=64)
def _grid_of(format: FloatFormat) -> Grid:
    decoded = {format.decode(code) + 0.0 for code in range(2**format.bits)}
    return Grid(format.name, format.bits, tuple(sorted(value for value in decoded if abs(value) < inf)))


FP8_E4M3 = FloatFormat("FP8 E4M3", 4, 3, "nan")
"""The FP8 of weights and activations: 448 is its largest number, and it has no infinity."""

FP8_E5M2 = FloatFormat("FP8 E5M2", 5, 2, "ieee")
"""The FP8 of gradients: more range, one bit less of precision."""

FP4_E2M1 = FloatFormat("FP4 E2M1", 2, 1, "none")
"""The four bits of MXFP4 and NVFP4: sixteen codes, fifteen values up to 6."""


def _normal_float() -> tuple[float, ...]:
    """Quantiles of the standard normal distribution on either side of zero, divided by the largest."""
    outermost = 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(count: int) -> list[float]:
        """From the outermost inwards, without the last one, which is zero."""
        step = (outermost - 0.5) / count
        return [NormalDist().inv_cdf(outermost - i * step) for i in range(count)]

    positive, negative = quantiles(8), quantiles(7)
    top = positive[0]
    return (*(-q / top for q in negative), 0.0, *(q / top for q in reversed(positive)))


NF4 = Grid("NF4", 4, _normal_float())
"""Sixteen values that normally distributed weights hit about equally often, from -1 to 1.

Quantiles evenly spaced in probability, eight positive ones, seven negative ones and zero: the two sides
have different spacings, so that zero is exact and all sixteen codes are used (Dettmers et al. 2023,
"QLoRA", section 3 and appendix E).
"""
