"""W8A8: weights and activations in 8 bits, multiplied as integers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..plan.checks import check_choice
from .checks import check_floats, wide

ACTIVATIONS = ("token", "tensor")
LARGEST = 127


def round_symmetric(numbers: torch.Tensor, per: str = "token") -> tuple[torch.Tensor, torch.Tensor]:
    """Round to 8-bit integers from -127 to 127, one scale for each row or for all.

    Parameters
    ----------
    numbers : Tensor
        (..., columns), floating point.
    per : str
        ``"token"``: a scale for each row of the last axis. ``"tensor"``: one for all.

    Returns
    -------
    tuple of Tensor
        int8 like ``numbers``, and scales (..., 1), in float32 at least (``"tensor"``: all the same).

    Raises
    ------
    TypeError, ValueError
        If ``numbers`` are no finite floating-point numbers, or ``per`` is neither.

    Examples
    --------
    >>> integers, scale = round_symmetric(torch.tensor([[127.0, -64.4], [1.0, 0.5]]))
    >>> integers.tolist(), [round(s, 4) for s in scale.flatten().tolist()]
    ([[127, -64], [127, 64]], [1.0, 0.0079])
    """
    check_choice("per", per, ACTIVATIONS)
    check_floats("numbers", numbers)
    numbers = wide(numbers)
    largest = numbers.abs().amax(-1, keepdim=True)
    if per == "tensor":
        largest = largest.amax().expand_as(largest)
    scale = torch.where(largest > 0, largest, 1.0) / LARGEST
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return (numbers / scale).round_().to(torch.int8), scale


def int8_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b^T`` of 8-bit integers, exactly, in 32 bits.

    Parameters
    ----------
    a : Tensor
        int8, (m, k).
    b : Tensor
        int8, (n, k).

    Returns
    -------
    Tensor
        int32, (m, n).

    Raises
    ------
    TypeError
        If one of them is not int8.

    Examples
    --------
    >>> a = torch.tensor([[127, -127]], dtype=torch.int8)
    >>> int8_matmul(a, a)
    tensor([[32258]], dtype=torch.int32)
    """
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dtype != torch.int8:
            raise TypeError(f"{name} is {tensor.dtype}: must be torch.int8")
    if a.shape[1] == 1:  # torch 2.13 returns whatever the memory held for a sum of one product on a CPU
        return a.int() * b.int().T
    if a.is_cuda:
        return torch._int_mm(*for_cuda(a, b))[: len(a), : len(b)]
    return torch._int_mm(a, b.T)


CUDA_ROWS, CUDA_MULTIPLE = 17, 8
"""The fewest rows, and what all other sizes must be multiples of, that torch takes on a GPU."""


def for_cuda(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``a`` (m, k) and ``b^T`` (k, n) with zeros around them, as large as torch asks for on a GPU."""
    columns, outputs = -a.shape[1] % CUDA_MULTIPLE, -len(b) % CUDA_MULTIPLE
    a = functional.pad(a, (0, columns, 0, max(0, CUDA_ROWS - len(a))))
    return a, functional.pad(b, (0, columns, 0, outputs)).T


class W8A8Linear(nn.Module):
    """A linear layer whose weights and inputs are rounded to 8 bits: a scale a row, a scale a token.

    Parameters
    ----------
    linear : torch.nn.Linear
        What it replaces.
    activations : str
        ``"token"`` or ``"tensor"``: who shares a scale; scales are taken anew from each input (dynamic).

    Notes
    -----
    ``y = (X_int W_int^T) * token scale * row scale``: scales over the summed axis could not be taken out of
    the sum, which is why weights have one a row and activations one a token.

    References
    ----------
    Xiao et al. 2023, "SmoothQuant", section 3 and table 2 (O1: per token, dynamic; O2: per tensor, dynamic).

    Examples
    --------
    >>> layer = nn.Linear(64, 8, bias=False)
    >>> x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    >>> bool((W8A8Linear(layer)(x) - layer(x)).abs().max() < 0.02)
    True
    """

    def __init__(self, linear: nn.Linear, activations: str = "token"):
        super().__init__()
        check_choice("activations", activations, ACTIVATIONS)
        self.activations = activations
        integers, scale = round_symmetric(linear.weight.detach())
        self.register_buffer("weight", integers)
        self.register_buffer("scale", scale.squeeze(-1))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        tokens = x.reshape(-1, x.shape[-1])
        integers, scale = round_symmetric(tokens, self.activations)
        y = int8_matmul(integers, self.weight).to(scale.dtype) * scale * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)
