"""Quantization carried out on tensors and on whole models.

A module for each method: ``rtn``, ``gptq``, ``awq``, ``smoothquant``, ``int8`` and ``llm_int8``;
``kv_cache`` for keys and values; ``pack`` and ``w4a16`` for checkpoints. They work on matrices, and
``walker`` takes them through a model.
"""

from .awq import AWQScale, awq, search_clip, search_scale
from .folding import fold
from .gptq import gptq, upper_root
from .grids import round_to_blocks, round_to_grid
from .int8 import W8A8Linear, int8_matmul, round_symmetric
from .integers import QuantizedMatrix, Scales, fit
from .kv_cache import QuantizedKVCache
from .llm_int8 import LLMInt8Linear, outlier_channels
from .pack import (
    PackedAWQ,
    PackedGPTQ,
    pack,
    pack_awq,
    pack_gptq,
    packed_bytes,
    unpack,
    unpack_awq,
    unpack_gptq,
)
from .qat import QATLinear, straight_through
from .quantizers import Quantizer, awq_quantizer, gptq_quantizer, rtn_quantizer
from .rtn import round_to_nearest
from .smoothquant import smooth, smoothing_scale
from .statistics import InputStatistics, input_statistics, output_error
from .structure import Reading, readings
from .transforms import fold_input_scales, replace_linears, smooth_model
from .w4a16 import PackedLinear, packed_matmul
from .walker import calibrate, quantize_model, show_progress

__all__ = [
    "AWQScale",
    "InputStatistics",
    "LLMInt8Linear",
    "PackedAWQ",
    "PackedGPTQ",
    "PackedLinear",
    "QATLinear",
    "QuantizedKVCache",
    "QuantizedMatrix",
    "Quantizer",
    "Reading",
    "Scales",
    "W8A8Linear",
    "awq",
    "awq_quantizer",
    "calibrate",
    "fit",
    "fold",
    "fold_input_scales",
    "gptq",
    "gptq_quantizer",
    "input_statistics",
    "int8_matmul",
    "outlier_channels",
    "output_error",
    "pack",
    "pack_awq",
    "pack_gptq",
    "packed_bytes",
    "packed_matmul",
    "quantize_model",
    "readings",
    "replace_linears",
    "round_symmetric",
    "round_to_blocks",
    "round_to_grid",
    "round_to_nearest",
    "rtn_quantizer",
    "search_clip",
    "search_scale",
    "show_progress",
    "smooth",
    "smooth_model",
    "smoothing_scale",
    "straight_through",
    "unpack",
    "unpack_awq",
    "unpack_gptq",
    "upper_root",
]
