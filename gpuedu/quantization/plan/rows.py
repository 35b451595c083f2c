"""A row of numbers rounded to a format: integers by groups, and the block formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import frexp

from .checks import check_choice, check_group, check_numbers
from .grids import FP4_E2M1, FP8_E4M3, NF4
from .integers import Affine, fit

MX_BLOCK, NV_BLOCK, NF_BLOCK = 32, 16, 64
"""Numbers that share a scale in MXFP4, NVFP4 and NF4."""

BLOCK_FORMATS = ("mxfp4", "nvfp4", "nf4")


@dataclass(frozen=True)
class Row:
    """A row of numbers after rounding.

    Parameters
    ----------
    values : tuple of float
        What each number became.
    codes : tuple of int
        The integer stored for each.
    scales : tuple of Affine
        The scale and zero of each group, from left to right.
    group : int
        Numbers in a group.
    """

    values: tuple[float, ...]
    codes: tuple[int, ...]
    scales: tuple[Affine, ...]
    group: int

    def error(self, numbers: Sequence[float]) -> float:
        """Mean squared difference to ``numbers``, as many as were rounded."""
        return sum((a - b) ** 2 for a, b in zip(self.values, numbers, strict=True)) / len(self.values)


def round_row(
    numbers: Sequence[float],
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    clip: str = "minmax",
) -> Row:
    """Round to nearest (RTN): each number to the closest value of its group's grid.

    Parameters
    ----------
    numbers : sequence of float
        The row: the weights of one output, or the activations of one token.
    bits : int
        2, 3, 4 or 8.
    kind, clip : str
        As of :func:`gpuedu.quantization.plan.fit`.
    group : int or None
        Neighbors that share a scale; None: the whole row does. It must divide the row.

    Returns
    -------
    Row
        Values, codes, scales.

    Raises
    ------
    TypeError, ValueError
        For an unknown width, kind or clip, a group that does not divide, or numbers that are none or not
        finite.

    Examples
    --------
    >>> row = round_row([0.1, 0.9, -3.0, 6.0], bits=2, group=2)
    >>> row.codes, [round(value, 2) for value in row.values]
    ((0, 3, 0, 3), [0.0, 0.9, -3.0, 6.0])
    >>> len(round_row([0.1, 0.9, -3.0, 6.0], bits=2).scales)
    1
    """
    check_numbers("numbers", numbers)
    group = check_group(group, len(numbers))
    scales = tuple(fit(numbers[i : i + group], bits, kind, clip) for i in range(0, len(numbers), group))
    codes = tuple(scales[i // group].code(number) for i, number in enumerate(numbers))
    values = tuple(scales[i // group].value(code) for i, code in enumerate(codes))
    return Row(values, codes, scales, group)


def round_blocks(numbers: Sequence[float], name: str) -> tuple[float, ...]:
    """Round to a block format: MXFP4, NVFP4 or NF4.

    Parameters
    ----------
    numbers : sequence of float
        One or more; the block must divide their count (32, 16, 64).
    name : str
        ``"mxfp4"``: FP4 E2M1 elements and, for 32 of them, a power of two (E8M0). ``"nvfp4"``: FP4 E2M1
        elements, an FP8 E4M3 scale for 16 of them, one FP32 scale for all ``numbers``. ``"nf4"``: the 16
        values of NF4 and the largest magnitude of 64.

    Returns
    -------
    tuple of float
        What each number became.

    Raises
    ------
    TypeError, ValueError
        For an unknown name, a block that does not divide, or numbers that are none or not finite.

    Notes
    -----
    MX takes the exponent of the largest magnitude, less 2 (the exponent of 6, the largest element), and
    so rounds what ends between 6 and 8 down to 6. NVFP4 divides by the block's largest magnitude over
    6, itself rounded to E4M3, once the tensor's scale has brought the largest of these to 448. A scale
    that rounds to 0 makes its block 0.

    References
    ----------
    Open Compute Project 2023, "OCP Microscaling Formats (MX) Specification" 1.0, section 6.3; NVIDIA
    2025, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference"; Dettmers et al. 2023,
    "QLoRA", equation 1.

    Examples
    --------
    >>> round_blocks([7.0] + 31 * [0.3], "mxfp4")[:2]
    (6.0, 0.5)
    >>> [round(value, 3) for value in round_blocks([7.0] + 15 * [0.3], "nvfp4")[:2]]
    [7.0, 0.583]
    """
    check_choice("name", name, BLOCK_FORMATS)
    check_numbers("numbers", numbers)
    block = {"mxfp4": MX_BLOCK, "nvfp4": NV_BLOCK, "nf4": NF_BLOCK}[name]
    check_group(block, len(numbers))
    scale_of = {"mxfp4": _mx_scale, "nvfp4": _nv_scale(max(map(abs, numbers))), "nf4": float}[name]
    grid = NF4 if name == "nf4" else FP4_E2M1.grid
    rounded: list[float] = []
    for i in range(0, len(numbers), block):
        part = numbers[i : i + block]
        scale = scale_of(max(map(abs, part)))
        rounded += [scale * grid.nearest(number / scale) if scale else 0.0 for number in part]
    return tuple(rounded)


def _mx_scale(largest: float) -> float:
    """The power of two that a block of MXFP4 is divided by, within the range of E8M0."""
    exponent = frexp(largest)[1] - frexp(FP4_E2M1.grid.largest)[1]
    return 2.0 ** min(max(exponent, -127), 127)


def _nv_scale(tensor_largest: float) -> Callable[[float], float]:
    """What a block of NVFP4 is divided by: an E4M3 number times the tensor's scale."""
    top = FP4_E2M1.grid.largest
    tensor = tensor_largest / (top * FP8_E4M3.grid.largest) or 1.0
    return lambda largest: tensor * FP8_E4M3.grid.nearest(largest / top / tensor)
