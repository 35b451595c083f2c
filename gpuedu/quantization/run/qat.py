"""Quantization-aware training: the contrast to everything else in this package, which trains nothing.

Rounding has no useful gradient, so it is passed through as if it had not been there (the straight-through
estimator): the loss moves the full-precision weights, and the forward pass sees them rounded.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..plan.checks import check_bits
from .rtn import round_to_nearest


def straight_through(
    weight: torch.Tensor, bits: int, *, kind: str = "symmetric", group: int | None = None
) -> torch.Tensor:
    """The rounded weights, with the gradient of the weights themselves.

    Parameters
    ----------
    weight : Tensor
        (rows, columns).
    bits, kind, group
        As of :func:`gpuedu.quantization.run.round_to_nearest`; scales are taken anew each time.

    Returns
    -------
    Tensor
        Like ``weight``, on the grid.

    Raises
    ------
    TypeError, ValueError
        As :func:`gpuedu.quantization.run.round_to_nearest`.

    References
    ----------
    Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation"; Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.

    Examples
    --------
    >>> weight = torch.tensor([[0.9, -0.2, 2.0]], requires_grad=True)
    >>> rounded = straight_through(weight, bits=2)
    >>> rounded.sum().backward()
    >>> rounded.tolist(), weight.grad.tolist()
    ([[0.0, 0.0, 2.0]], [[1.0, 1.0, 1.0]])
    """
    rounded = round_to_nearest(weight.detach(), bits, kind=kind, group=group).dequantize()
    rounded = rounded.to(weight.dtype)
    return weight + (rounded - weight.detach())


class QATLinear(nn.Module):
    """A linear layer to be trained: its weights are rounded in each forward pass.

    Parameters
    ----------
    linear : torch.nn.Linear
        What it replaces; its parameters go on being trained.
    bits : int
        2, 3, 4 or 8.
    group : int or None
        Columns that share a scale.

    Examples
    --------
    >>> layer = QATLinear(nn.Linear(4, 2), bits=4)
    >>> layer(torch.randn(3, 4)).sum().backward()
    >>> layer.linear.weight.grad.shape
    torch.Size([2, 4])
    """

    def __init__(self, linear: nn.Linear, bits: int, group: int | None = None):
        super().__init__()
        check_bits(bits)
        self.linear, self.bits, self.group = linear, bits, group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        weight = straight_through(self.linear.weight, self.bits, group=self.group)
        return functional.linear(x, weight, self.linear.bias)
