"""f, g and their conjugates: how activations enter and leave the region where every rank has its own part.

Outside all ranks hold the same activation, or with sequence parallelism each its own tokens; inside, each
computes its own columns or heads. Every function here is linear, with a collective in one direction at least,
and its backward is its transpose: the conjugate function. (Shoeybi et al. 2019, figure 3; Korthikanti et al.
2022, figure 5.)
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..plan import Phase
from .group import Group

TOKENS, WIDTH = -2, -1  # axes of an activation (..., tokens, width)


def copy_to(x: torch.Tensor, group: Group) -> torch.Tensor:
    """f: the same activation for all ranks' parts; the gradients of the parts are all-reduced.

    Megatron-LM's ``copy_to_tensor_model_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens, width), the same on all ranks.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        As ``x``.

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ.
    """
    return _Region.apply(x, group, _copy, _all_reduce, WIDTH)


def reduce_from(x: torch.Tensor, group: Group) -> torch.Tensor:
    """g: all-reduces the parts of a sum; the gradient goes to all parts as it is.

    Megatron-LM's ``reduce_from_tensor_model_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens, width), this rank's part of the sum.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        The sum, the same on all ranks.

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ.
    """
    return _Region.apply(x, group, _all_reduce, _copy, WIDTH)


def scatter_to(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Take this rank's piece of the width; the gradients of the pieces are gathered.

    Megatron-LM's ``scatter_to_tensor_model_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens, width), the same on all ranks.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        (..., tokens, width / t).

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ, or the axis does not divide.
    """
    return _Region.apply(x, group, _split, _all_gather, WIDTH)


def gather_from(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Gather the pieces of the width; of the gradient each rank takes its piece.

    Megatron-LM's ``gather_from_tensor_model_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens, width / t), this rank's piece.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        (..., tokens, width), the same on all ranks.

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ.
    """
    return _Region.apply(x, group, _all_gather, _split, WIDTH)


def gather_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """f with sequence parallelism: gathers the tokens; the gradients are reduce-scattered.

    Megatron-LM's ``gather_from_sequence_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens / t, width), this rank's tokens.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        (..., tokens, width), the same on all ranks.

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ.
    """
    return _Region.apply(x, group, _all_gather, _reduce_scatter, TOKENS)


def reduce_scatter_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """g with sequence parallelism: this rank's tokens of the sum; the gradients are gathered.

    Megatron-LM's ``reduce_scatter_to_sequence_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens, width), this rank's part of the sum.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        (..., tokens / t, width).

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ, or the axis does not divide.
    """
    return _Region.apply(x, group, _reduce_scatter, _all_gather, TOKENS)


def scatter_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Take this rank's tokens; the gradients are gathered.

    Megatron-LM's ``scatter_to_sequence_parallel_region``.

    Parameters
    ----------
    x : Tensor
        (..., tokens, width), the same on all ranks.
    group : Group
        The ranks.

    Returns
    -------
    Tensor
        (..., tokens / t, width).

    Raises
    ------
    ValueError
        If the ranks' shapes or dtypes differ, or the axis does not divide.
    """
    return _Region.apply(x, group, _split, _all_gather, TOKENS)


class _Region(torch.autograd.Function):
    """One function in the forward, its conjugate in the backward."""

    @staticmethod
    def forward(ctx, x, group, function, conjugate, axis):
        ctx.how = group, conjugate, axis
        group.agree(f"{function.__name__[1:]} (backward: {conjugate.__name__[1:]})", x)
        return function(group, x, axis, Phase.FORWARD)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        group, conjugate, axis = ctx.how
        return conjugate(group, gradient, axis, Phase.BACKWARD), None, None, None, None


def _copy(group: Group, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
    return x.view_as(x)


def _split(group: Group, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
    return group.pieces(x, axis)[group.rank].contiguous()


def _all_reduce(group: Group, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
    return group.all_reduce(x, phase)


def _all_gather(group: Group, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
    return group.all_gather(x, axis, phase)


def _reduce_scatter(group: Group, x: torch.Tensor, axis: int, phase: Phase) -> torch.Tensor:
    return group.reduce_scatter(x, axis, phase)
