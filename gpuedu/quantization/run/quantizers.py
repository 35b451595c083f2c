"""The methods that quantize weights, in the form that the walker of models takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from .awq import awq
from .gptq import gptq
from .integers import QuantizedMatrix
from .rtn import round_to_nearest
from .statistics import InputStatistics

Method = Callable[[list[str], list[torch.Tensor], InputStatistics | None], list[QuantizedMatrix]]
"""Quantizes the matrices of layers that read one input; statistics are None where it needs no calibration."""


@dataclass(frozen=True)
class Quantizer:
    """How the weights of a model are quantized.

    Parameters
    ----------
    name : str
        For messages and results.
    method : callable
        A ``Method``.
    calibrated : bool
        Whether it looks at inputs.
    """

    name: str
    method: Method
    calibrated: bool


def rtn_quantizer(bits: int, **options) -> Quantizer:
    """Round to nearest.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8.
    **options
        Of :func:`gpuedu.quantization.run.round_to_nearest`.

    Returns
    -------
    Quantizer
        That needs no calibration.
    """
    return Quantizer(
        "RTN", lambda _, weights, __: [round_to_nearest(w, bits, **options) for w in weights], False
    )


def gptq_quantizer(bits: int, **options) -> Quantizer:
    """GPTQ; matrices that read one input are quantized on top of each other.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8.
    **options
        Of :func:`gpuedu.quantization.run.gptq`.

    Returns
    -------
    Quantizer
        Calibrated.
    """

    def method(_, weights, statistics):
        whole = gptq(torch.cat(weights), statistics.hessian, bits, **options)
        edges = accumulate(map(len, weights), initial=0)
        return [whole.rows(start, stop) for start, stop in pairwise(edges)]

    return Quantizer("GPTQ", method, True)


def awq_quantizer(
    bits: int,
    *,
    unscaled: Iterable[str] = ("o_proj",),
    unclipped: Iterable[str] = ("q_proj", "k_proj"),
    **options,
) -> Quantizer:
    """AWQ.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8.
    unscaled : iterable of str
        Ends of the names of layers whose input nobody can divide: behind grouped-query attention, whose
        values several heads share.
    unclipped : iterable of str
        Ends of the names of layers whose range is left as it is.
    **options
        Of :func:`gpuedu.quantization.run.awq`.

    Returns
    -------
    Quantizer
        Calibrated.
    """
    unscaled, unclipped = tuple(unscaled), tuple(unclipped)

    def method(names, weights, statistics):
        scale = not any(name.endswith(unscaled) for name in names)
        clips = [not name.endswith(unclipped) for name in names]
        return awq(weights, statistics, bits, scale=scale, clip=clips, **options)

    return Quantizer("AWQ", method, True)
