"""Channel scales folded into what stands before a linear layer: the function stays, the numbers change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def fold(before: nn.Module, linears: Sequence[nn.Linear], scale: torch.Tensor) -> None:
    """Divide what ``before`` puts out by ``scale`` and multiply the columns of ``linears`` with it, in place.

    Parameters
    ----------
    before : torch.nn.Module
        A norm (its ``weight`` scales its outputs) or a linear layer (whose rows make them); a bias goes
        along. Nobody but ``linears`` may read its output.
    linears : sequence of torch.nn.Linear
        All that read it.
    scale : Tensor
        (columns,), above 0.

    Raises
    ------
    TypeError, ValueError
        If ``before`` has no weight, there are no linears, or widths do not fit.

    Examples
    --------
    >>> norm, linear = nn.LayerNorm(4), nn.Linear(4, 3)
    >>> x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    >>> y = linear(norm(x))
    >>> fold(norm, [linear], torch.tensor([2.0, 1.0, 0.5, 8.0]))
    >>> torch.allclose(linear(norm(x)), y, atol=1e-6)
    True
    """
    if not isinstance(getattr(before, "weight", None), torch.Tensor):
        raise TypeError(f"before={type(before).__name__}: must have a weight that scales its outputs")
    if not linears:
        raise ValueError("linears is empty: must hold at least one linear layer")
    width = before.weight.shape[0]
    if scale.shape != (width,) or any(linear.in_features != width for linear in linears):
        raise ValueError(
            f"scale of shape {tuple(scale.shape)}: must be ({width},), as wide as all layers are"
        )
    if not (torch.isfinite(scale) & (scale > 0)).all():
        raise ValueError("scale: must be above 0 and finite")
    rows = scale.view(-1, *[1] * (before.weight.ndim - 1))
    before.weight /= rows
    if getattr(before, "bias", None) is not None:
        before.bias /= scale
    for linear in linears:
        linear.weight *= scale
