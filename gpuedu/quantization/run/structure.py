"""Which linear layers of a model read the same input, and what makes it: found by watching it run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Reading:
    """Linear layers that read one tensor.

    Parameters
    ----------
    linears : tuple of str
        Their names, in order of execution.
    source : str or None
        The module whose output the tensor is, where it scales its output by a weight of one axis (a norm)
        and nothing but ``linears`` reads that output; None otherwise.
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
    watch = _Watch()

    def before(name: str):
        def hook(_module, args):
            watch.linears += 1
            if found and found[-1][0] is args[0]:
                found[-1][1].append(name)
            else:
                found.append((args[0], [name]))

        return hook

    def after(_module, _args, _output):
        watch.linears -= 1

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in skip:
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after))
        elif _has_a_vector(module):
            handles.append(module.register_forward_hook(watch.made_by(name)))
    try:
        with torch.no_grad(), watch:
            output = model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    watch.note(output)
    names = [name for _, group in found for name in group]
    if not names:
        raise ValueError("model: must run at least one nn.Linear that is not skipped")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"{sorted(twice)}: must run once each; layers shared between places are not supported"
        )
    sources = _sources(model, found, watch)
    return [Reading(tuple(group), source) for (_, group), source in zip(found, sources, strict=True)]


def _sources(
    model: nn.Module, found: list[tuple[torch.Tensor, list[str]]], watch: _Watch
) -> list[str | None]:
    """For each tensor that layers read: the norm that makes it for them alone."""
    runs = Counter(name for name, _ in watch.made.values())
    groups = Counter(id(tensor) for tensor, _ in found)
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))  # two: a tied head

    def source(tensor: torch.Tensor, group: list[str]) -> str | None:
        name, _ = watch.made.get(id(tensor), (None, None))
        if name is None or runs[name] > 1 or groups[id(tensor)] > 1 or id(tensor) in watch.read:
            return None
        modules = [model.get_submodule(each) for each in (name, *group)]
        if any(names[id(p)] > 1 for module in modules for p in module.parameters()):
            return None
        return name if _scales_its_output(modules[0], tensor) else None

    return [source(tensor, group) for tensor, group in found]


class _Watch(TorchFunctionMode):
    """Which outputs of norms anything else than the linear layers at hand computes with."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[str, torch.Tensor]] = {}  # tensors are kept here too
        self.read: set[int] = set()
        self.linears = 0  # that are running

    def made_by(self, name: str):
        """A hook that takes note of what a module puts out."""

        def hook(_module, _args, output):
            if isinstance(output, torch.Tensor):
                self.made[id(output)] = name, output

        return hook

    def note(self, read: object) -> None:
        """What somebody computes with, or gets."""
        self.read.update(id(tensor) for tensor in _tensors(read) if id(tensor) in self.made)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.linears and any(True for _ in _tensors(result)):  # a shape tells nothing of the numbers
            self.note((args, kwargs))
        return result


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors in nested sequences and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _has_a_vector(module: nn.Module) -> bool:
    """Whether a module without children has a weight of one axis: it may be a norm."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1 and not list(module.children())


def _scales_its_output(module: nn.Module, like: torch.Tensor) -> bool:
    """Whether half of its parameters make half of its output (not where it multiplies with 1 + weight)."""
    probe = torch.linspace(-1, 2, like.numel(), dtype=like.dtype, device=like.device).view_as(like)
    halves = {name: parameter / 2 for name, parameter in module.named_parameters()}
    with torch.no_grad():
        return torch.allclose(functional_call(module, halves, probe), module(probe) / 2)


def each_alone(model: nn.Module, skip: Iterable[str]) -> list[Reading]:
    """Every linear layer that is not in ``skip``, each by itself; ValueError if there is none."""
    skip = frozenset(skip)
    linears = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n not in skip]
    if not linears:
        raise ValueError("model: must have at least one nn.Linear that is not skipped")
    return [Reading((name,), None) for name in linears]
