"""Attention as data: which tiles come to the chip, in which order, and what goes back.

A plan knows neither clock nor tensor. :mod:`gpuedu.flash_attention.cost` prices it,
:mod:`gpuedu.flash_attention.plot` draws it and :mod:`gpuedu.flash_attention.run` carries it out.
"""

from .attention import AttentionShape, sequence_lengths, varlen
from .backward import standard_backward, two_pass_backward, version_1_backward, version_2_backward
from .forward import key_parts, split_kv, standard, version_1, version_2
from .steps import KERNELS, Kernel, Op, Step, TilePlan
from .tiles import Tiles, blocks, on_chip_elements, overlapping, tiles_from_sram, visited_tiles
from .validation import validate

FORWARDS = {plan.__name__: plan for plan in (standard, version_1, version_2)}
"""The forwards that need an attention and tiles alone, by name; ``split_kv`` takes the number of parts."""

BACKWARDS = {
    plan.__name__: plan
    for plan in (standard_backward, version_1_backward, version_2_backward, two_pass_backward)
}
"""The backwards by name."""

__all__ = [
    "BACKWARDS",
    "FORWARDS",
    "KERNELS",
    "AttentionShape",
    "Kernel",
    "Op",
    "Step",
    "TilePlan",
    "Tiles",
    "blocks",
    "key_parts",
    "on_chip_elements",
    "overlapping",
    "sequence_lengths",
    "split_kv",
    "standard",
    "standard_backward",
    "tiles_from_sram",
    "two_pass_backward",
    "validate",
    "varlen",
    "version_1",
    "version_1_backward",
    "version_2",
    "version_2_backward",
    "visited_tiles",
]
