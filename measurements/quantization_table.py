"""The measured perplexities as a module of the package, so that they can travel to a page.

Run with ``python -m measurements.quantization_table`` after ``measurements.quantization_perplexity``: it
writes ``gpuedu/quantization/plot/measured.py`` from ``quantization_perplexity.json``. A test holds the two
together.
"""

from __future__ import annotations

import json
from pathlib import Path

SOURCE = Path(__file__).with_name("quantization_perplexity.json")
TARGET = Path(__file__).resolve().parents[1] / "gpuedu" / "quantization" / "plot" / "measured.py"
DOMAINS = ("speeches", "moby_dick", "docs")

HEAD = '''\
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
'''
TAIL = """\
    )
)
"""


def rows(report: dict) -> list[tuple]:
    """The results, rounded to what a reader can use."""
    fields = ("model", "method", "bits", "group", "calibration", "seed", "alpha")
    return [
        (
            *(result[field] for field in fields),
            round(result["bits_per_weight"], 3),
            *(float(f"{result['perplexity'][domain]:.4g}") for domain in DOMAINS),
        )
        for result in report["results"]
    ]


def module(report: dict) -> str:
    """The text of the module."""
    lines = "".join(f"        {row!r},\n".replace("'", '"') for row in rows(report))
    return HEAD + lines + TAIL


if __name__ == "__main__":
    TARGET.write_text(module(json.loads(SOURCE.read_text())))
