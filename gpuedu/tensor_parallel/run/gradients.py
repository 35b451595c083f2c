"""Gradients of what several ranks hold the same of, summed once a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..plan import Phase
from .checkpoint import layout
from .group import Group


def sum_gradients(module: nn.Module, group: Group, *, sequence_parallel: bool = False) -> None:
    """Complete the gradients of parameters that several ranks hold alike and see only a part of.

    To be called on all ranks after the backward of the last microbatch, before the optimizer's step.

    Parameters
    ----------
    module : Module
        Whose ``grad`` to complete; all of its whole parameters see only their rank's tokens if
        ``sequence_parallel``.
    group : Group
        The ranks.
    sequence_parallel : bool
        Whether norms, biases of row-parallel layers and learned positions worked on a part of the tokens.

    Raises
    ------
    ValueError
        If a parameter to be summed has no gradient, or the ranks' shapes differ.

    Notes
    -----
    Copies of a KV head serve different query heads; with sequence parallelism whole parameters see
    different tokens. Without it whole parameters see everything, and their gradients are equal already.
    Each of the two sums is one all-reduce of all such gradients in a row: Megatron-LM's
    ``finalize_model_grads``.
    """
    if sequence_parallel:
        _sum([_gradient(name, parameter) for name, parameter in _whole(module)], group)
    by_copies: dict[int, list[torch.Tensor]] = {}
    for copies, gradient in _copied(module, group.size):
        by_copies.setdefault(copies, []).append(gradient)
    for copies, gradients in sorted(by_copies.items()):
        _sum(gradients, group.neighbors(copies))


def _whole(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that every rank holds whole, with their names."""
    cut = layout(module)
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad and name not in cut)


def _copied(module: nn.Module, ranks: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The gradients, as views, of pieces that several neighbors hold, and how many they are."""
    parameters = dict(module.named_parameters())
    for name, cut in layout(module).items():
        parameter = parameters[name]
        if not parameter.requires_grad or all(part.copies(ranks) == 1 for part in cut.parts):
            continue
        local = cut.local_parts(_gradient(name, parameter), ranks)
        for part, gradient in zip(cut.parts, local, strict=True):
            if part.copies(ranks) > 1:
                yield part.copies(ranks), gradient


def _gradient(name: str, parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise ValueError(f"{name}: has no gradient: call backward first")
    return parameter.grad


def _sum(gradients: list[torch.Tensor], group: Group) -> None:
    if not gradients or group.size == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    group.agree("gradients", flat)
    total = group.all_reduce(flat, Phase.STEP)
    for gradient, piece in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))
