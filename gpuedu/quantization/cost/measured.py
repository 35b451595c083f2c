"""Published measurements of matrix products in few bits, as data: a summary of NVIDIA's tables."""

from __future__ import annotations

from typing import NamedTuple


class ProductGain(NamedTuple):
    """How much faster than in BF16 a GPU multiplied in a format, over many shapes.

    ``format`` is as TensorRT-LLM calls it: ``int4_wo`` and ``int8_wo`` round weights alone, ``sq`` is INT8
    with SmoothQuant's scales, ``fp8`` and ``nvfp4`` round both sides. ``tokens_to`` None has no end.
    ``faster_share`` of the ``shapes`` gain more than 5 %.
    """

    gpu: str
    format: str
    tokens_from: int
    tokens_to: int | None
    shapes: int
    faster_share: float
    median_gain: float


PRODUCT_GAINS = tuple(
    ProductGain(*row)
    for row in (
        ("A100", "int4_wo", 1, 32, 294, 0.969, 2.269),
        ("A100", "int4_wo", 33, 511, 441, 0.549, 1.09),
        ("A100", "int4_wo", 512, None, 294, 0.075, 0.951),
        ("A100", "int8_wo", 1, 32, 294, 0.959, 1.674),
        ("A100", "int8_wo", 33, 511, 441, 0.694, 1.152),
        ("A100", "int8_wo", 512, None, 294, 0.16, 0.983),
        ("A100", "sq", 1, 32, 294, 0.983, 1.831),
        ("A100", "sq", 33, 511, 441, 0.984, 1.56),
        ("A100", "sq", 512, None, 294, 0.997, 1.92),
        ("H100", "fp8", 1, 32, 1152, 0.91, 1.334),
        ("H100", "fp8", 33, 511, 1344, 0.909, 1.28),
        ("H100", "fp8", 512, None, 2240, 0.992, 1.476),
        ("H200", "fp8", 1, 32, 1152, 0.783, 1.191),
        ("H200", "fp8", 33, 511, 1344, 0.757, 1.176),
        ("H200", "fp8", 512, None, 2240, 0.997, 1.495),
        ("B200", "fp8", 1, 32, 1152, 0.384, 0.943),
        ("B200", "fp8", 33, 511, 1344, 0.307, 0.94),
        ("B200", "fp8", 512, None, 2240, 0.929, 1.443),
        ("B200", "nvfp4", 1, 32, 1152, 0.523, 1.092),
        ("B200", "nvfp4", 33, 511, 1344, 0.681, 1.229),
        ("B200", "nvfp4", 512, None, 2240, 0.997, 2.157),
    )
)
"""From the tables of aiconfigurator-core 0.12 (NVIDIA, Apache-2.0): TensorRT-LLM kernels, both widths from
4,096 to 16,384. ``measurements/gemm_formats.py`` makes them."""
