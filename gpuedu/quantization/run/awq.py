"""AWQ: scale the weights of important input channels up before rounding, clip each group's range after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gpuedu.checks import check_count

from ..plan.checks import check_bits, check_choice, check_group
from ..plan.integers import KINDS
from .checks import check_matrix, wide
from .integers import QuantizedMatrix, check_scale, over, to_codes, to_values
from .rtn import round_to_nearest
from .statistics import InputStatistics, output_error

SCALE_STEPS = 20
"""Exponents that the search for a scale tries: 0, 1/20, ..., 19/20."""

CLIP_STEPS, CLIP_SHRINK = 20, 0.5
"""The search for a range tries 1, 19/20, ..., 11/20 of it."""


@dataclass(frozen=True)
class AWQScale:
    """What the search for a scale found.

    Parameters
    ----------
    ratio : float
        The exponent of the mean input magnitudes.
    scale : Tensor
        (columns,): what each column of the weights is multiplied with, and each input divided by.
    errors : tuple of float
        Mean squared output error for each exponent tried.
    """

    ratio: float
    scale: torch.Tensor
    errors: tuple[float, ...]


def search_scale(
    weights: Sequence[torch.Tensor],
    statistics: InputStatistics,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    scale_dtype: torch.dtype | None = None,
) -> AWQScale:
    """Find the power of the input magnitudes by which scaling the columns hurts the outputs least.

    Parameters
    ----------
    weights : sequence of Tensor
        (rows, columns) each: all matrices that read the same inputs, since one scale serves them all.
    statistics : InputStatistics
        Of these inputs.
    bits, kind, group, scale_dtype
        As of :func:`gpuedu.quantization.run.fit`.

    Returns
    -------
    AWQScale
        ``mean|x| ** ratio``, at least 1e-4, divided by the root of its largest times its smallest.

    Raises
    ------
    TypeError, ValueError
        For matrices that do not fit the statistics, or as :func:`gpuedu.quantization.run.fit`.

    Notes
    -----
    The error is that of the matrices' own outputs, which the Hessian gives exactly, without a pass over the
    tokens; the published code runs the block (attention, feed-forward network) that the matrices begin.

    References
    ----------
    Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
    equation 5; ``auto_scale.py`` of its reference code.

    Examples
    --------
    >>> from gpuedu.quantization.run import input_statistics
    >>> x = torch.tensor([[9.0, 0.1], [-8.0, 0.2], [9.5, -0.1]])
    >>> found = search_scale([torch.tensor([[0.3, 1.0]])], input_statistics(x), bits=2)
    >>> found.ratio, found.errors[0] > min(found.errors)
    (0.55, True)
    """
    check_weights(weights, statistics)
    weights = [wide(weight) for weight in weights]
    best, least, errors = None, float("inf"), []
    for step in range(SCALE_STEPS):
        scale = statistics.mean_abs.pow(step / SCALE_STEPS).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for weight in weights:
            rounded = round_to_nearest(weight * scale, bits, kind=kind, group=group, scale_dtype=scale_dtype)
            error += output_error(rounded.dequantize() / scale - weight, statistics.hessian) * len(weight)
        errors.append(error / sum(map(len, weights)))
        if errors[-1] < least:
            best, least = AWQScale(step / SCALE_STEPS, scale, ()), errors[-1]
    return replace(best, errors=tuple(errors))


def search_clip(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    scale_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Clip each group to the magnitude at which its own part of the output changes least.

    Parameters
    ----------
    weight : Tensor
        (rows, columns).
    hessian : Tensor
        (columns, columns), of the inputs of these very weights (scaled, where they are).
    bits, kind, group, scale_dtype
        As of :func:`gpuedu.quantization.run.fit`.

    Returns
    -------
    Tensor
        (rows, columns): ``weight``, clipped.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, or as :func:`gpuedu.quantization.run.fit`.

    Notes
    -----
    The part of a group in an output is ``w_g . x_g``; its mean squared change needs the group's own block of
    the Hessian alone.

    References
    ----------
    ``auto_clip.py`` of the reference code of Lin et al. 2024, "AWQ".

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.9, -1.1, 2.0]])
    >>> search_clip(weight, torch.diag(torch.tensor([9.0, 9.0, 9.0, 0.1])), bits=2, kind="symmetric")
    tensor([[ 1.0000,  0.9000, -1.1000,  1.1000]])
    """
    check_bits(bits)
    check_choice("kind", kind, KINDS)
    check_matrix("weight", weight)
    check_matrix("hessian", hessian)
    size = check_group(group, weight.shape[1])
    weight, hessian = wide(weight), wide(hessian)
    parts = weight.unflatten(1, (-1, size))
    count = parts.shape[1]
    blocks = torch.stack([hessian[i : i + size, i : i + size] for i in range(0, count * size, size)])
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    check_scale("weight", low, high, bits, kind, scale_dtype)
    whole = torch.maximum(-low, high)
    limit, least = whole, torch.full_like(whole, float("inf"))
    for step in range(int(CLIP_SHRINK * CLIP_STEPS)):
        tried = whole * (1 - step / CLIP_STEPS)
        clipped = parts.clamp(-tried[..., None], tried[..., None])
        scales = over(torch.maximum(low, -tried), torch.minimum(high, tried), bits, kind, scale_dtype)
        difference = to_values(to_codes(clipped, scales), scales) - parts
        moved = torch.matmul(difference.transpose(0, 1), blocks).transpose(0, 1)
        error = (moved * difference).sum(2)
        better = error < least
        least, limit = torch.where(better, error, least), torch.where(better, tried, limit)
    return parts.clamp(-limit[..., None], limit[..., None]).flatten(1)


def awq(
    weights: Sequence[torch.Tensor],
    statistics: InputStatistics,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    scale: bool = True,
    clip: bool | Sequence[bool] = True,
    scale_dtype: torch.dtype | None = None,
) -> list[QuantizedMatrix]:
    """Quantize the matrices that read one input: search their common scale, clip their groups, round.

    Parameters
    ----------
    weights : sequence of Tensor
        (rows, columns) each.
    statistics : InputStatistics
        Of the input that all of them read.
    bits, kind, group, scale_dtype
        As of :func:`gpuedu.quantization.run.fit`.
    scale : bool
        Search a scale; False where no layer before can take its inverse.
    clip : bool or sequence of bool
        Search a range, for all or for each (the reference code leaves queries and keys as they are).

    Returns
    -------
    list of QuantizedMatrix
        One for each, with the scale as ``input_scale``.

    Raises
    ------
    TypeError, ValueError
        As :func:`search_scale`.

    References
    ----------
    Lin et al. 2024, "AWQ", section 3.

    Examples
    --------
    >>> from gpuedu.quantization.run import input_statistics
    >>> x = torch.tensor([[9.0, 0.1], [-8.0, 0.2], [9.5, -0.1]])
    >>> (matrix,) = awq([torch.tensor([[0.3, 1.0]])], input_statistics(x), bits=2)
    >>> [round(weight, 2) for weight in matrix.dequantize()[0].tolist()]
    [0.3, 1.0]
    """
    check_weights(weights, statistics)
    weights = [wide(weight) for weight in weights]
    check_count("len(weights)", len(weights))
    clips = [clip] * len(weights) if isinstance(clip, bool) else list(clip)
    if len(clips) != len(weights):
        raise ValueError(f"clip has {len(clips)} entries: must have {len(weights)}, one for each matrix")
    options = {"kind": kind, "group": group, "scale_dtype": scale_dtype}
    s = search_scale(weights, statistics, bits, **options).scale if scale else None
    hessian = statistics.hessian if s is None else statistics.scaled(s).hessian
    quantized = []
    for weight, clipped in zip(weights, clips, strict=True):
        scaled = weight if s is None else weight * s
        if clipped:
            scaled = search_clip(scaled, hessian, bits, **options)
        quantized.append(replace(round_to_nearest(scaled, bits, **options), input_scale=s))
    return quantized


def check_weights(weights: Sequence[torch.Tensor], statistics: InputStatistics) -> None:
    """Raise unless there are matrices, as wide as the inputs that the statistics are of."""
    if not weights:
        raise ValueError("weights is empty: must hold at least one matrix")
    columns = len(statistics.mean_abs)
    for i, weight in enumerate(weights):
        check_matrix(f"weights[{i}]", weight)
        if weight.shape[1] != columns:
            raise ValueError(
                f"weights[{i}] has {weight.shape[1]} columns: must have {columns}, as the inputs"
            )
