"""What every function asks of a number it is given."""

from __future__ import annotations

from math import isfinite
from numbers import Real


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: must be an int")
    if value < minimum:
        raise ValueError(f"{name}={value}: must be at least {minimum}")


def check_amount(name: str, value: Real, *, positive: bool = False) -> None:
    """Raise unless ``value`` is a finite number of at least 0 (above it if ``positive``)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: must be a number")
    if not isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name}={value}: must be finite and {'above 0' if positive else 'not negative'}")
