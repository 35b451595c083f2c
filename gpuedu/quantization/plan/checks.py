"""What the plans ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Real

from gpuedu.checks import check_count

BITS = (2, 3, 4, 8)
"""Widths of an integer that checkpoints use."""


def check_bits(bits: int) -> None:
    """Raise unless ``bits`` is one of :data:`BITS`."""
    check_count("bits", bits)
    if bits not in BITS:
        raise ValueError(f"bits={bits}: must be one of {', '.join(map(str, BITS))}")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def check_number(name: str, value: Real, low: float = -float("inf"), high: float = float("inf")) -> None:
    """Raise unless ``value`` is a finite number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: must be a number")
    if not isfinite(value):
        raise ValueError(f"{name}={value}: must be finite")
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: must be from {low} to {high}")


def check_numbers(name: str, numbers: Sequence[Real]) -> None:
    """Raise unless ``numbers`` are finite numbers, one or more."""
    if not len(numbers):
        raise ValueError(f"{name} is empty: must hold at least one number")
    for i, number in enumerate(numbers):
        check_number(f"{name}[{i}]", number)


def check_group(group: int | None, columns: int) -> int:
    """Columns that share a scale: ``group``, or all ``columns`` for None. Raise unless it divides them."""
    if group is None:
        return columns
    check_count("group", group)
    if columns % group:
        raise ValueError(f"group={group}: must divide the {columns} columns without rest")
    return group
