"""A whole model changed around its linear layers: scales moved between layers, layers replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from .folding import fold
from .int8 import W8A8Linear
from .integers import QuantizedMatrix
from .smoothquant import smooth
from .statistics import InputStatistics
from .structure import Reading, each_alone


@torch.no_grad()
def smooth_model(
    model: nn.Module,
    statistics: Mapping[Reading, InputStatistics],
    alpha: float = 0.5,
    *,
    pairs: Mapping[str, str] | None = None,
) -> dict[str, torch.Tensor]:
    """Move outliers from activations to weights wherever a norm makes the input, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The function it computes stays the same, up to rounding: a norm whose output has readers that cannot
        take its scale (:class:`gpuedu.quantization.run.Reading`) is left alone.
    statistics : dict
        Of :func:`calibrate`.
    alpha : float
        Migration strength.
    pairs : dict or None
        End of a layer's name to that of the linear layer before it whose rows take the scale, as
        ``{"down_proj": "up_proj"}`` where an elementwise product lies between them. That nothing else reads
        the product is for the caller to know.

    Returns
    -------
    dict
        The scale that each norm, or layer of ``pairs``, took.

    Raises
    ------
    ValueError
        If there is no input to smooth, an end in ``pairs`` is that of none, or ``alpha`` is outside 0 to 1.

    Examples
    --------
    >>> from gpuedu.quantization.run import calibrate
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8))
    >>> list(smooth_model(model, calibrate(model, torch.randn(9, 4))))
    ['0']
    """
    pairs = pairs or {}
    sources = {group: _source(model, group, pairs) for group in statistics}
    alone = [group.linears[0] for group in sources if group.source is None and len(group.linears) == 1]
    for end in pairs:
        if not any(name.endswith(end) for name in alone):
            raise ValueError(f"pairs={pairs!r}: {end!r} must be the end of a layer behind no norm, alone")
    scales = {}
    for group, source in sources.items():
        if source is not None:
            linears = [model.get_submodule(name) for name in group.linears]
            scales[source] = smooth(model.get_submodule(source), linears, statistics[group].peak, alpha)
    if not scales:
        raise ValueError("statistics: must hold at least one input that a norm makes for these layers alone")
    return scales


@torch.no_grad()
def fold_input_scales(
    model: nn.Module,
    matrices: Mapping[str, QuantizedMatrix],
    groups: Iterable[Reading],
    pairs: Mapping[str, str] | None = None,
) -> dict[str, QuantizedMatrix]:
    """Move AWQ's input scales out of the matrices into what stands before them, in place.

    Parameters
    ----------
    model : torch.nn.Module
        As :func:`quantize_model` left it.
    matrices : dict
        What that returned.
    groups : iterable of Reading
        Of :func:`gpuedu.quantization.run.readings`.
    pairs : dict or None
        End of a layer's name to that of the linear layer before it whose rows may take its scale, as
        ``{"down_proj": "up_proj"}`` where an elementwise product lies between them.

    Returns
    -------
    dict
        Without input scales: what a checkpoint can hold. The model computes the same as before. A quantized
        layer whose rows took a scale has it in its own scales.

    Raises
    ------
    ValueError
        If a scale has nowhere to go.

    Examples
    --------
    >>> from gpuedu.quantization.run import awq_quantizer, quantize_model, readings
    >>> model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    >>> matrices = quantize_model(model, x, awq_quantizer(4))
    >>> before = model(x)
    >>> packable = fold_input_scales(model, matrices, readings(model, x))
    >>> packable["1"].input_scale, torch.allclose(model(x), before, atol=1e-5)
    (None, True)
    """
    folded, places = dict(matrices), {}
    for group in groups:
        if missing := set(group.linears) - set(folded):
            raise ValueError(f"groups: {sorted(missing)} must be among the matrices")
        if folded[group.linears[0]].input_scale is not None:
            places[group] = _source(model, group, pairs or {})
            if places[group] is None:
                raise ValueError(
                    f"{group.linears[0]}: its input scale must have a norm or a layer of pairs to go to"
                )
    for group, source in places.items():
        scale = folded[group.linears[0]].input_scale
        fold(model.get_submodule(source), [model.get_submodule(name) for name in group.linears], scale)
        for name in group.linears:
            folded[name] = replace(folded[name], input_scale=None)
        if source in folded:
            s = folded[source].scales
            folded[source] = replace(folded[source], scales=replace(s, scale=s.scale / scale[:, None]))
    return folded


def _source(model: nn.Module, group: Reading, pairs: Mapping[str, str]) -> str | None:
    """Who can take the scale of the input of ``group``: its norm, or the layer that ``pairs`` name for it."""
    if group.source is None and len(group.linears) == 1:
        for end, other in pairs.items():
            if group.linears[0].endswith(end):
                name = group.linears[0].removesuffix(end) + other
                if not isinstance(dict(model.named_modules()).get(name), nn.Linear):
                    raise ValueError(f"pairs={dict(pairs)!r}: {name} must be a linear layer")
                return name
    return group.source


def replace_linears(
    model: nn.Module,
    make: Callable[[nn.Linear], nn.Module] = W8A8Linear,
    *,
    skip: Iterable[str] = ("lm_head",),
) -> nn.Module:
    """Put ``make(linear)`` in the place of every linear layer, in place.

    Parameters
    ----------
    model : torch.nn.Module
        With linear layers below it.
    make : callable
        Such as :class:`gpuedu.quantization.run.W8A8Linear`.
    skip : iterable of str
        Names of linear layers that stay.

    Returns
    -------
    torch.nn.Module
        ``model``.

    Raises
    ------
    ValueError
        If there is none to replace.

    Examples
    --------
    >>> type(replace_linears(nn.Sequential(nn.Linear(4, 4)))[0]).__name__
    'W8A8Linear'
    """
    for group in each_alone(model, skip):
        (name,) = group.linears
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(model.get_submodule(name)))
    return model
