"""A whole model quantized, layer by layer, each with inputs that the quantized layers before it make.

One forward pass over the calibration tokens does it. When it reaches a group of linear layers that read the
same input, they are quantized with that input, their weights replaced, and the pass goes on with the new
ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import nn

from .integers import QuantizedMatrix
from .quantizers import Quantizer
from .statistics import InputStatistics, input_statistics
from .structure import Reading, each_alone, readings

Progress = Callable[[str, int, int], None]
"""Called with a group's first layer, how many layers are done and how many there are."""


def show_progress(name: str, done: int, total: int) -> None:
    """Say on one line of the error stream, over and over, which layer is next.

    Parameters
    ----------
    name : str
        Of the layer.
    done, total : int
        Layers.

    Examples
    --------
    >>> show_progress("layers.0.self_attn.q_proj", 0, 210)
    """
    end = "\n" if done == total else ""
    print(f"\r{done:4} of {total} layers  {name:40}", end=end, file=sys.stderr, flush=True)


class _Done(Exception):
    """The last layer is quantized: the rest of the pass would be for nothing."""


def quantize_model(
    model: nn.Module,
    inputs: torch.Tensor | None,
    quantizer: Quantizer,
    *,
    skip: Iterable[str] = ("lm_head",),
    progress: Progress | None = None,
) -> dict[str, QuantizedMatrix]:
    """Quantize the weights of every linear layer of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Its linear layers are ``nn.Linear``. Their weights are replaced by the quantized ones, in their own
        dtype, so that the model computes what a kernel on packed weights would.
    inputs : Tensor or None
        What the model is called with, (batch, ...): all calibration tokens. None where the method needs none.
    quantizer : Quantizer
        The method.
    skip : iterable of str
        Names of linear layers that stay as they are.
    progress : callable or None
        Told which layer is next.

    Returns
    -------
    dict
        By layer, in order of execution.

    Raises
    ------
    ValueError
        If calibration tokens are needed and there are none, the model has no linear layer to quantize, a
        layer's input holds something not finite, or the
        method cannot be applied to a layer (a group that does not divide its columns); the message names
        the layer.

    References
    ----------
    Frantar et al. 2023, "GPTQ", section 4 (setup): block by block, with the inputs of the partly quantized
    model; here each group of layers within a block too (``true_sequential``).

    Examples
    --------
    >>> from gpuedu.quantization.run import gptq_quantizer
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    >>> matrices = quantize_model(model, x, gptq_quantizer(4, group=32))
    >>> list(matrices), matrices["2"].codes.shape
    (['0', '2'], torch.Size([8, 64]))
    """
    if quantizer.calibrated and inputs is None:
        raise ValueError(f"inputs=None: must be calibration tokens for {quantizer.name}")
    groups = readings(model, inputs, skip=skip) if quantizer.calibrated else each_alone(model, skip)
    results: dict[str, QuantizedMatrix] = {}
    total = sum(len(group.linears) for group in groups)

    def quantize(group: Reading, x: torch.Tensor | None) -> None:
        names = list(group.linears)
        if progress is not None:
            progress(names[0], len(results), total)
        layers = [model.get_submodule(name) for name in names]
        try:
            statistics = None if x is None else input_statistics(x)
            matrices = quantizer.method(names, [layer.weight.detach() for layer in layers], statistics)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from error
        for name, layer, matrix in zip(names, layers, matrices, strict=True):
            layer.weight.copy_(matrix.dequantize())
            results[name] = matrix

    with torch.no_grad():
        if quantizer.calibrated:
            _at_inputs(model, groups, inputs, quantize)
        else:
            for group in groups:
                quantize(group, None)
    if progress is not None:
        progress("", total, total)
    return results


def _at_inputs(model, groups, inputs, act: Callable[[Reading, torch.Tensor], None]) -> None:
    """Run the model and call ``act`` with each group's input just before its first layer runs."""
    handles = []
    last = groups[-1]

    def hook(group: Reading):
        def before(_module, args):
            act(group, args[0])
            if group is last:
                raise _Done

        return before

    for group in groups:
        handles.append(model.get_submodule(group.linears[0]).register_forward_pre_hook(hook(group)))
    try:
        model(inputs)
    except _Done:
        return
    finally:
        for handle in handles:
            handle.remove()


def calibrate(
    model: nn.Module, inputs: torch.Tensor, *, skip: Iterable[str] = ("lm_head",)
) -> dict[Reading, InputStatistics]:
    """The statistics of every input that linear layers read, of the model as it is.

    Parameters
    ----------
    model, inputs, skip
        As of :func:`quantize_model`.

    Returns
    -------
    dict
        In order of execution.

    Raises
    ------
    ValueError
        If an input holds something not finite; the message names the layer.

    Examples
    --------
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8))
    >>> (reading, statistics), = calibrate(model, torch.randn(9, 4)).items()
    >>> reading.source, statistics.tokens
    ('0', 9)
    """
    groups = readings(model, inputs, skip=skip)
    found: dict[Reading, InputStatistics] = {}

    def note(group: Reading, x: torch.Tensor) -> None:
        try:
            found[group] = input_statistics(x)
        except ValueError as error:
            raise ValueError(f"{group.linears[0]}: {error}") from error

    with torch.no_grad():
        _at_inputs(model, groups, inputs, note)
    return found
