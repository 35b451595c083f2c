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
    model: nn.Module, statistics: Mapping[Reading, InputStatistics], alpha: float = 0.5
) -> dict[str, torch.Tensor]:
    """Move outliers from activations to weights wherever a norm makes the input, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The function it computes stays the same, up to rounding.
    statistics : dict
        Of :func:`calibrate`.
    alpha : float
        Migration strength.

    Returns
    -------
    dict
        The scale that each norm took.

    Raises
    ------
    ValueError
        If no input of the model comes from a norm, or ``alpha`` is outside 0 to 1.

    Examples
    --------
    >>> from gpuedu.quantization.run import calibrate
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8))
    >>> list(smooth_model(model, calibrate(model, torch.randn(9, 4))))
    ['0']
    """
    scales = {}
    for reading, found in statistics.items():
        if reading.source is not None:
            linears = [model.get_submodule(name) for name in reading.linears]
            scales[reading.source] = smooth(model.get_submodule(reading.source), linears, found.peak, alpha)
    if not scales:
        raise ValueError("statistics: must hold at least one input that a norm makes")
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
    folded = dict(matrices)
    for group in groups:
        scale = folded[group.linears[0]].input_scale
        if scale is None:
            continue
        source = group.source or _partner(group.linears, pairs or {})
        before = model.get_submodule(source)
        fold(before, [model.get_submodule(name) for name in group.linears], scale)
        for name in group.linears:
            folded[name] = replace(folded[name], input_scale=None)
        if source in folded:
            s = folded[source].scales
            folded[source] = replace(folded[source], scales=replace(s, scale=s.scale / scale[:, None]))
    return folded


def _partner(linears: tuple[str, ...], pairs: Mapping[str, str]) -> str:
    """The layer whose rows take the scale of the only one of ``linears``."""
    if len(linears) == 1:
        for end, other in pairs.items():
            if linears[0].endswith(end):
                return linears[0].removesuffix(end) + other
    raise ValueError(f"{linears[0]}: its input scale must have a norm or a layer of pairs to go to")


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
