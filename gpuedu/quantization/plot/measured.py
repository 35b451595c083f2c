"""Perplexities of two small models after quantization, as they were measured.

Written by ``python -m measurements.quantization_table`` from ``measurements/quantization_perplexity.json``,
which says how; not to be changed by hand.
"""

from __future__ import annotations

from typing import NamedTuple


class Measured(NamedTuple):
    """One quantized model. ``group`` None is a scale a row; perplexities are on three texts."""

    model: str
    method: str
    bits: int | None
    group: int | None
    calibration: str | None
    seed: int | None
    alpha: float | None
    bits_per_weight: float
    speeches: float
    moby_dick: float
    docs: float


MEASURED = tuple(
    Measured(*row)
    for row in (
        ("smollm2", "fp32", None, None, None, None, None, 32.0, 26.58, 51.8, 10.55),
        ("smollm2", "rtn", 4, 64, None, None, None, 4.312, 34.58, 66.89, 13.94),
        ("smollm2", "rtn_mse", 4, 64, None, None, None, 4.312, 34.88, 67.59, 14.34),
        ("smollm2", "rtn", 4, None, None, None, None, 4.029, 49.52, 90.66, 19.06),
    )
)
