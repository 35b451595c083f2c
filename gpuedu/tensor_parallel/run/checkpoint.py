"""A checkpoint cut for t ranks, put together again, and cut anew for another number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gpuedu.checks import check_count

from .cut import Cut

State = Mapping[str, torch.Tensor]


def layout(module: nn.Module) -> dict[str, Cut]:
    """How the parameters of a module are cut; those that each rank holds whole are not in it.

    Parameters
    ----------
    module : Module
        Made of the parallel layers of this package and any others.

    Returns
    -------
    dict
        Name as in ``state_dict`` -> its cut, the same for any number of ranks.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import RowParallelLinear, simulate
    >>> simulate(2, lambda group: layout(RowParallelLinear(4, 3, group)))[0]
    {'weight': Cut(axis=1, parts=(Part(name='in_features', length=4, units=4, copied=False),))}
    """
    return {
        f"{path}.{name}" if path else name: cut
        for path, layer in module.named_modules()
        for name, cut in getattr(layer, "cuts", {}).items()
    }


def shard(state: State, layout: Mapping[str, Cut], ranks: int) -> list[dict[str, torch.Tensor]]:
    """Cut a whole model's parameters for ``ranks`` ranks.

    Parameters
    ----------
    state : dict
        Name -> tensor, as ``state_dict`` returns it.
    layout : dict
        Name -> cut, from :func:`layout`; what has none goes to every rank whole.
    ranks : int
        How many.

    Returns
    -------
    list of dict
        What each rank's ``load_state_dict`` takes, in memory of its own.

    Raises
    ------
    TypeError, ValueError
        If ``ranks`` is no int or below 1, a parameter is missing, or one cannot be cut evenly.

    Examples
    --------
    >>> from gpuedu.tensor_parallel.run import Part
    >>> cuts = {"head": Cut(0, (Part("vocab_size", 4, 4),))}
    >>> shards = shard({"head": torch.arange(4), "norm": torch.ones(1)}, cuts, 2)
    >>> shards[1]
    {'head': tensor([2, 3]), 'norm': tensor([1.])}
    >>> unshard(shards, cuts)
    {'head': tensor([0, 1, 2, 3]), 'norm': tensor([1.])}
    """
    check_count("ranks", ranks)
    _check_names(state, layout)
    return [
        {
            name: _named(name, layout[name].take, tensor, rank, ranks) if name in layout else tensor.clone()
            for name, tensor in state.items()
        }
        for rank in range(ranks)
    ]


def unshard(shards: Sequence[State], layout: Mapping[str, Cut]) -> dict[str, torch.Tensor]:
    """Put a whole model's parameters together from what the ranks hold: the reverse of :func:`shard`.

    Parameters
    ----------
    shards : sequence of dict
        Every rank's ``state_dict``, in the order of the ranks.
    layout : dict
        Name -> cut, from :func:`layout`.

    Returns
    -------
    dict
        Name -> tensor.

    Raises
    ------
    ValueError
        If the ranks' names or shapes do not fit together, or what should be copies differs: then gradients
        were not summed over the copies.
    """
    if not shards:
        raise ValueError("shards=[]: must be at least 1")
    first = shards[0]
    for rank, state in enumerate(shards):
        if state.keys() != first.keys():
            raise ValueError(f"rank {rank} holds {sorted(state)}: must be {sorted(first)}, as rank 0")
    _check_names(first, layout)
    whole = {}
    for name in first:
        tensors = [state[name] for state in shards]
        if name in layout:
            whole[name] = _named(name, layout[name].join, tensors)
            continue
        for rank, tensor in enumerate(tensors):
            if not torch.equal(tensor, tensors[0]):
                raise ValueError(f"{name}: ranks 0 and {rank} differ: must be the same on all ranks")
        whole[name] = tensors[0].clone()
    return whole


def reshard(shards: Sequence[State], layout: Mapping[str, Cut], ranks: int) -> list[dict[str, torch.Tensor]]:
    """Cut anew, for ``ranks`` ranks, what was cut for as many as there are ``shards``; exact.

    Parameters and what is raised are those of :func:`unshard` and :func:`shard`.
    """
    return shard(unshard(shards, layout), layout, ranks)


def _check_names(state: State, layout: Mapping[str, Cut]) -> None:
    missing = sorted(layout.keys() - state.keys())
    if missing:
        raise ValueError(f"state: lacks {', '.join(missing)}")


def _named(name: str, function, *args):
    """``function(*args)``, with the parameter's name in front of what is wrong."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
