"""LLM.int8(): input channels with outliers are multiplied in full precision, all others in 8 bits."""

from __future__ import annotations

import torch
from torch import nn

from gpuedu.checks import check_amount

from .checks import check_floats, wide
from .int8 import int8_matmul, round_symmetric

THRESHOLD = 6.0
"""Magnitude from which on a channel counts as an outlier, as in the paper."""


def outlier_channels(x: torch.Tensor, threshold: float = THRESHOLD) -> torch.Tensor:
    """Input channels in which some token reaches ``threshold``.

    Parameters
    ----------
    x : Tensor
        (..., columns).
    threshold : float
        Magnitude, above 0.

    Returns
    -------
    Tensor
        bool, (columns,).

    Raises
    ------
    TypeError, ValueError
        If ``x`` holds no finite numbers, or the threshold is not above 0.

    Examples
    --------
    >>> outlier_channels(torch.tensor([[0.1, -6.0], [5.9, 0.2]]))
    tensor([False,  True])
    """
    check_amount("threshold", threshold, positive=True)
    check_floats("x", x)
    return x.reshape(-1, x.shape[-1]).abs().amax(0) >= threshold


class LLMInt8Linear(nn.Module):
    """A linear layer that splits its input by channel: outliers in full precision, the rest as W8A8.

    Parameters
    ----------
    linear : torch.nn.Linear
        What it replaces.
    threshold : float
        As of :func:`outlier_channels`; the channels are found anew in each input.

    Notes
    -----
    The weights are held in 8 bits, one scale a row, outlier channels too, and those are expanded when they
    are needed, as the library bitsandbytes does; the paper's equation has them in 16 bits. The scale of a
    token does not see its outliers, which is the point.

    References
    ----------
    Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", equation 8.

    Examples
    --------
    >>> from gpuedu.quantization.run import W8A8Linear
    >>> generator = torch.Generator().manual_seed(0)
    >>> layer, x = nn.Linear(64, 8, bias=False), torch.randn(4, 64, generator=generator)
    >>> _ = layer.weight.data.normal_(generator=generator)
    >>> x[:, 5] *= 100
    >>> split, plain = (kind(layer)(x) - layer(x) for kind in (LLMInt8Linear, W8A8Linear))
    >>> bool(split.abs().mean() < plain.abs().mean() / 2)
    True
    """

    def __init__(self, linear: nn.Linear, threshold: float = THRESHOLD):
        super().__init__()
        check_amount("threshold", threshold, positive=True)
        self.threshold = threshold
        integers, scale = round_symmetric(linear.weight.detach())
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale.squeeze(-1))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        tokens = x.reshape(-1, x.shape[-1])
        outlier = outlier_channels(tokens, self.threshold)
        integers, scale = round_symmetric(tokens.masked_fill(outlier, 0.0))
        y = int8_matmul(integers, self.weight).to(scale.dtype) * scale
        if outlier.any():
            y = y + wide(tokens[:, outlier]) @ self.weight[:, outlier].to(scale.dtype).T
        y = y * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)
