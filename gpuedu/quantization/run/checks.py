"""What the methods ask of tensors."""

from __future__ import annotations

import torch


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float32, or wider where it is: what half-precision numbers are computed in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_matrix(name: str, tensor: torch.Tensor) -> None:
    """Raise unless ``tensor`` is a floating-point matrix with entries, all of them finite."""
    check_floats(name, tensor)
    if tensor.ndim != 2:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: must be a matrix")


def check_floats(name: str, tensor: torch.Tensor) -> None:
    """Raise unless ``tensor`` holds floating-point numbers, one or more, all of them finite."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise TypeError(f"{name}: must be a floating-point tensor")
    if tensor.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: must not be empty")
    if torch.isfinite(tensor.detach().sum()):  # whatever is not finite spreads to the sum
        return
    bad = (~torch.isfinite(tensor)).sum().item()
    if bad:  # else finite numbers whose sum is too large
        raise ValueError(f"{name} holds {bad} numbers that are NaN or infinite: must all be finite")
