"""SmoothQuant on a model's layers: outliers of activations moved into the weights that read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..plan.checks import check_number
from ..plan.smoothing import SMALLEST
from .checks import check_matrix, wide
from .folding import fold


def smoothing_scale(peak: torch.Tensor, weights: Sequence[torch.Tensor], alpha: float = 0.5) -> torch.Tensor:
    """What each input channel is divided by, and each column of the weights multiplied with.

    Parameters
    ----------
    peak : Tensor
        (columns,): largest magnitude of each input channel over the calibration tokens.
    weights : sequence of Tensor
        (rows, columns) each: all that read the input.
    alpha : float
        Migration strength, 0 to 1.

    Returns
    -------
    Tensor
        (columns,): ``peak ** alpha / (largest weight) ** (1 - alpha)``; as
        :func:`gpuedu.quantization.plan.smoothing_scales`.

    Raises
    ------
    TypeError, ValueError
        If ``alpha`` is outside 0 to 1, there are no weights, or a peak or a weight is not finite.

    References
    ----------
    Xiao et al. 2023, "SmoothQuant", equation 4.

    Examples
    --------
    >>> smoothing_scale(torch.tensor([64.0, 1.0]), [torch.tensor([[1.0, -1.0]])])
    tensor([8., 1.])
    """
    check_number("alpha", alpha, 0, 1)
    if not weights:
        raise ValueError("weights is empty: must hold at least one matrix")
    if not torch.isfinite(peak).all() or (peak < 0).any():
        raise ValueError("peak: must be finite and not negative")
    for i, weight in enumerate(weights):
        check_matrix(f"weights[{i}]", weight)
    largest = torch.stack([wide(weight).abs().amax(0) for weight in weights]).amax(0).clamp(min=SMALLEST)
    return (peak.to(largest.dtype).pow(alpha) / largest.pow(1 - alpha)).clamp(min=SMALLEST)


def smooth(
    before: nn.Module, linears: Sequence[nn.Linear], peak: torch.Tensor, alpha: float = 0.5
) -> torch.Tensor:
    """Fold the smoothing scale into a norm and the linear layers that read it, in place.

    Parameters
    ----------
    before : torch.nn.Module
        The norm.
    linears : sequence of torch.nn.Linear
        All that read its output.
    peak, alpha
        As of :func:`smoothing_scale`.

    Returns
    -------
    Tensor
        (columns,): the scale.

    Raises
    ------
    TypeError, ValueError
        As :func:`smoothing_scale` and :func:`gpuedu.quantization.run.fold`.

    Examples
    --------
    >>> norm, linear = nn.LayerNorm(2), nn.Linear(2, 2)
    >>> smooth(norm, [linear], torch.tensor([64.0, 1.0]), alpha=1.0)
    tensor([64.,  1.])
    """
    scale = smoothing_scale(peak, [linear.weight.detach() for linear in linears], alpha)
    fold(before, linears, scale)
    return scale
