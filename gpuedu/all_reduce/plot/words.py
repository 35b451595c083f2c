"""Names and numbers as the figures write them."""

from __future__ import annotations

NAMES = {
    "ring": "Ring",
    "parameter_server": "Parameter server",
    "tree": "Binomial tree",
    "double_binary_tree": "Double binary tree",
    "recursive_doubling": "Recursive doubling",
    "recursive_halving_doubling": "Halving-doubling",
    "hierarchical": "Hierarchical",
}
"""Algorithms as a reader sees them."""


def in_units(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    """``value`` with three digits, in the largest unit that it reaches.

    >>> in_units(0, BYTES), in_units(1_500_000, BYTES), in_units(4.2e-5, SECONDS)
    ('0 B', '1.5 MB', '42 µs')
    >>> in_units(12_345, SECONDS)
    '12,345 s'
    """
    size, unit = next((step for step in steps if abs(value) >= step[0] * 0.9995), steps[-1])
    count = value / size
    return f"{count:,.0f} {unit}" if count >= 999.5 else f"{count:.3g} {unit}"


def arrays(count: float) -> str:
    """A number of arrays.

    >>> arrays(1), arrays(1.75)
    ('1 array', '1.75 arrays')
    """
    return f"{count:.3g} array{'' if count == 1 else 's'}"


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
