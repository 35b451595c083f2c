"""Attention plans on real tensors: forward and backward, tile by tile, every moved byte counted."""

from .attention import attention, attention_varlen
from .machine import Odometer
from .measure import PeakMemory, median_seconds, peak_extra_bytes
from .options import Options
from .philox import keep_mask, philox
from .tile_math import combine_parts

__all__ = [
    "Odometer",
    "Options",
    "PeakMemory",
    "attention",
    "attention_varlen",
    "combine_parts",
    "keep_mask",
    "median_seconds",
    "peak_extra_bytes",
    "philox",
]
