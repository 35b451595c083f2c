"""Tensors rounded to the values of a grid: FP8, FP4, NF4, and the block formats made of them."""

from __future__ import annotations

import torch

from ..plan.checks import check_choice, check_group
from ..plan.grids import FP4_E2M1, FP8_E4M3, NF4, Grid
from ..plan.rows import BLOCK_FORMATS, MX_BLOCK, NF_BLOCK, NV_BLOCK
from .checks import check_floats


def round_to_grid(numbers: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Each number to the closest value of ``grid``; beyond both ends, the end.

    Parameters
    ----------
    numbers : Tensor
        Floating point, finite, of any shape.
    grid : Grid
        Its values must be exact in the dtype of ``numbers`` for halves to be told apart from the rest.

    Returns
    -------
    Tensor
        Like ``numbers``. Halfway between two values it is the one that
        :meth:`gpuedu.quantization.plan.Grid.nearest` takes.

    Raises
    ------
    TypeError, ValueError
        If ``numbers`` are no floating-point numbers, none, or not finite.

    Examples
    --------
    >>> round_to_grid(torch.tensor([0.7, 0.75, 2.5, -100.0]), FP4_E2M1.grid)
    tensor([ 0.5000,  1.0000,  2.0000, -6.0000])
    """
    check_floats("numbers", numbers)
    values = torch.tensor(grid.values, dtype=numbers.dtype, device=numbers.device)
    steps = torch.arange(len(values), device=numbers.device) - values.abs().argmin()
    edges = (values[:-1] + values[1:]) / 2
    below = torch.nextafter(edges, torch.full_like(edges, -torch.inf))
    edges = torch.where(steps[:-1] % 2 == 0, edges, below)  # a number on the edge goes to the even step
    return values[torch.bucketize(numbers, edges)]


def round_to_blocks(numbers: torch.Tensor, name: str) -> torch.Tensor:
    """Round to MXFP4, NVFP4 or NF4, by blocks along the last axis.

    Parameters
    ----------
    numbers : Tensor
        Floating point, finite; the block (32, 16, 64) must divide the last axis.
    name : str
        ``"mxfp4"``, ``"nvfp4"`` or ``"nf4"``; as :func:`gpuedu.quantization.plan.round_blocks`. The tensor
        scale of NVFP4 is that of all ``numbers``.

    Returns
    -------
    Tensor
        Like ``numbers``.

    Raises
    ------
    TypeError, ValueError
        For an unknown name, a block that does not divide, or numbers that are none or not finite.

    Examples
    --------
    >>> round_to_blocks(torch.tensor([7.0] + 31 * [0.3]), "mxfp4")[:2]
    tensor([6.0000, 0.5000])
    """
    check_choice("name", name, BLOCK_FORMATS)
    check_floats("numbers", numbers)
    block = {"mxfp4": MX_BLOCK, "nvfp4": NV_BLOCK, "nf4": NF_BLOCK}[name]
    check_group(block, numbers.shape[-1])
    blocks = numbers.unflatten(-1, (-1, block))
    largest = blocks.abs().amax(-1, keepdim=True)
    if name == "mxfp4":
        exponent = torch.frexp(largest).exponent - torch.frexp(torch.tensor(FP4_E2M1.grid.largest)).exponent
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-127, 127))
    elif name == "nvfp4":
        top = FP4_E2M1.grid.largest
        tensor = largest.amax() / (top * FP8_E4M3.grid.largest)
        tensor = torch.where(tensor > 0, tensor, 1.0)
        scale = tensor * round_to_grid(largest / top / tensor, FP8_E4M3.grid)
    else:
        scale = largest
    grid = NF4 if name == "nf4" else FP4_E2M1.grid
    divisor = torch.where(scale > 0, scale, 1.0)
    rounded = torch.where(scale > 0, scale * round_to_grid(blocks / divisor, grid), 0.0)
    return rounded.flatten(-2)
