"""What fewer bits save: memory of weights and cache, time of decoding and of prefill."""

from .kv import kv_bytes, largest_batch
from .measured import PRODUCT_GAINS, ProductGain
from .memory import linear_bytes, weight_bytes
from .shapes import Matrix, linear_shapes
from .time import Work, decode_step, multiply_dtype, prefill

__all__ = [
    "PRODUCT_GAINS",
    "Matrix",
    "ProductGain",
    "Work",
    "decode_step",
    "kv_bytes",
    "largest_batch",
    "linear_bytes",
    "linear_shapes",
    "multiply_dtype",
    "prefill",
    "weight_bytes",
]
