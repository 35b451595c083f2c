"""Quantization as data: number formats as grids, rows rounded to them, GPTQ as the log of its decisions.

Nothing here knows a tensor library: :mod:`gpuedu.quantization.run` does the same on tensors, and
:mod:`gpuedu.quantization.cost` prices what the formats save.
"""

from .checks import BITS
from .formats import FORMATS, Format, integer_format
from .gptq import GROUP_SCALES, Log, RoundedColumn, gptq, hessian
from .grids import FP4_E2M1, FP8_E4M3, FP8_E5M2, NF4, FloatFormat, Grid
from .integers import KINDS, Affine, fit, fit_mse
from .kv_window import KVQuantization
from .packing import AWQ_ORDER, Piece, layout
from .rows import BLOCK_FORMATS, Row, round_blocks, round_row
from .smoothing import peaks, rounded_product, smoothing_scales

__all__ = [
    "AWQ_ORDER",
    "BITS",
    "BLOCK_FORMATS",
    "FORMATS",
    "FP4_E2M1",
    "FP8_E4M3",
    "FP8_E5M2",
    "GROUP_SCALES",
    "KINDS",
    "NF4",
    "Affine",
    "FloatFormat",
    "Format",
    "Grid",
    "KVQuantization",
    "Log",
    "Piece",
    "RoundedColumn",
    "Row",
    "fit",
    "fit_mse",
    "gptq",
    "hessian",
    "integer_format",
    "layout",
    "peaks",
    "round_blocks",
    "round_row",
    "rounded_product",
    "smoothing_scales",
]
