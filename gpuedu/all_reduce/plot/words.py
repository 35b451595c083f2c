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
    """
    size, unit = next((step for step in steps if abs(value) >= step[0] * 0.9995), steps[-1])
    return f"{value / size:.3g} {unit}"


BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
