"""Which linear layers of a model read the same input, and what makes it: found by watching it run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Reading:
    """Linear layers that read one tensor.

    Parameters
    ----------
    linears : tuple of str
        Their names, in order of execution.
    source : str or None
        The module whose output the tensor is, where it scales its output by a weight of one axis (a norm);
        None where something else makes it.
    """

    linears: tuple[str, ...]
    source: str | None


def readings(model: nn.Module, inputs: torch.Tensor, *, skip: Iterable[str] = ("lm_head",)) -> list[Reading]:
    """Run a model once and see which linear layers read what.

    Parameters
    ----------
    model : torch.nn.Module
        Any model whose linear layers are ``nn.Linear``.
    inputs : Tensor
        What it is called with, (batch, ...). The first one is enough.
    skip : iterable of str
        Names of linear layers to leave out; the output head is by custom.

    Returns
    -------
    list of Reading
        In order of execution.

    Raises
    ------
    ValueError
        If ``inputs`` are empty, no linear layer runs, or one runs twice (shared between places).

    Examples
    --------
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> readings(model, torch.ones(1, 4))
    [Reading(linears=('1',), source='0'), Reading(linears=('3',), source=None)]
    """
    if len(inputs) == 0:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)}: must hold at least one")
    skip = frozenset(skip)
    found: list[tuple[torch.Tensor, list[str]]] = []  # the tensors are kept, so that no two have one identity
    made: list[tuple[torch.Tensor, str]] = []

    def before(name: str):
        def hook(_module, args):
            if found and found[-1][0] is args[0]:
                found[-1][1].append(name)
            else:
                found.append((args[0], [name]))

        return hook

    def after(name: str):
        return lambda _module, _args, output: made.append((output, name))

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in skip:
            handles.append(module.register_forward_pre_hook(before(name)))
        elif _scales_its_output(module):
            handles.append(module.register_forward_hook(after(name)))
    try:
        with torch.no_grad():
            model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    names = [name for _, group in found for name in group]
    if not names:
        raise ValueError("model: must run at least one nn.Linear that is not skipped")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"{sorted(twice)}: must run once each; layers shared between places are not supported"
        )
    return [
        Reading(tuple(group), next((name for output, name in made if output is tensor), None))
        for tensor, group in found
    ]


def _scales_its_output(module: nn.Module) -> bool:
    """Whether the last thing a module without children does is to multiply with a vector (a norm)."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1 and not list(module.children())


def each_alone(model: nn.Module, skip: Iterable[str]) -> list[Reading]:
    """Every linear layer that is not in ``skip``, each by itself; ValueError if there is none."""
    skip = frozenset(skip)
    linears = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n not in skip]
    if not linears:
        raise ValueError("model: must have at least one nn.Linear that is not skipped")
    return [Reading((name,), None) for name in linears]
