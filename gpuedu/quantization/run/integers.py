"""Integers with scales, a matrix at a time: :mod:`gpuedu.quantization.plan.integers` on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..plan.checks import check_bits, check_choice, check_group
from ..plan.integers import CLIPS, KINDS
from .checks import check_matrix, wide


@dataclass(frozen=True)
class Scales:
    """Scale and zero of each row's groups: ``value = scale * (code - zero)``.

    Parameters
    ----------
    bits : int
        Bits of a code.
    scale, zero : Tensor
        (rows, groups), both in the dtype of the numbers, float32 at least; a zero is a whole number.
    low : int
        The smallest code in use: 1 for ``symmetric``, else 0.
    """

    bits: int
    scale: torch.Tensor
    zero: torch.Tensor
    low: int = 0

    @property
    def high(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


@dataclass(frozen=True)
class QuantizedMatrix:
    """A weight matrix as integer codes with scales.

    Parameters
    ----------
    codes : Tensor
        uint8, (rows, columns).
    scales : Scales
        (rows, groups).
    group_index : Tensor
        int64, (columns,): which group each column belongs to.
    input_scale : Tensor or None
        (columns,): what the columns were multiplied with before they were rounded (AWQ). The inputs are to be
        divided by it; :meth:`dequantize` does so to the weights.

    Examples
    --------
    >>> from gpuedu.quantization.run import round_to_nearest
    >>> matrix = round_to_nearest(torch.tensor([[0.1, 0.9, -3.0, 6.0]]), bits=2, group=2)
    >>> matrix.codes.tolist(), [round(x, 2) for x in matrix.dequantize()[0].tolist()]
    ([[0, 3, 0, 3]], [0.0, 0.9, -3.0, 6.0])
    """

    codes: torch.Tensor
    scales: Scales
    group_index: torch.Tensor
    input_scale: torch.Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.scales.bits

    def dequantize(self) -> torch.Tensor:
        """The matrix, (rows, columns), in the dtype of the scales."""
        scale, zero = (t[:, self.group_index] for t in (self.scales.scale, self.scales.zero))
        values = scale * (self.codes.to(scale.dtype) - zero)
        return values if self.input_scale is None else values / self.input_scale

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Rows ``start`` to ``stop - 1``: one of several matrices quantized on top of each other."""
        s = self.scales
        part = Scales(s.bits, s.scale[start:stop], s.zero[start:stop], s.low)
        return QuantizedMatrix(self.codes[start:stop], part, self.group_index, self.input_scale)


def fit(
    numbers: torch.Tensor,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> Scales:
    """Lay the integers of ``bits`` bits over each group of each row.

    Parameters
    ----------
    numbers : Tensor
        (rows, columns), floating point, finite.
    bits, kind, clip
        As of :func:`gpuedu.quantization.plan.fit`.
    group : int or None
        Columns that share a scale; it must divide them. None: a row has one scale.
    scale_dtype : torch.dtype or None
        What a scale is stored in: scales are rounded to it before anything is rounded with them, so that the
        codes fit what a checkpoint will hold. None keeps them as they come.

    Returns
    -------
    Scales
        (rows, groups), in the dtype of ``numbers``, float32 at least.

    Raises
    ------
    TypeError, ValueError
        For an unknown width, kind or clip, a group that does not divide, numbers that are none or not
        finite, or a scale that ``scale_dtype`` cannot hold.

    Examples
    --------
    >>> fit(torch.tensor([[-1.0, 0.5, 2.0]]), bits=2).zero
    tensor([[1.]])
    """
    check_bits(bits)
    check_choice("kind", kind, KINDS)
    check_choice("clip", clip, CLIPS)
    check_matrix("numbers", numbers)
    parts = wide(numbers).unflatten(1, (-1, check_group(group, numbers.shape[1])))
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    check_scale("numbers", low, high, bits, kind, scale_dtype)
    if clip == "mse":
        return _least_error(parts, low, high, bits, kind, scale_dtype)
    return over(low, high, bits, kind, scale_dtype)


def over(
    low: torch.Tensor, high: torch.Tensor, bits: int, kind: str, scale_dtype: torch.dtype | None = None
) -> Scales:
    """The integers laid over ranges from ``low`` <= 0 to ``high`` >= 0, each (rows, groups)."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    scale = _step(low, high, bits, kind)
    if scale_dtype is not None:
        scale = scale.to(scale_dtype).to(low.dtype)
    scale = torch.where(scale > 0, scale, 1.0)
    if kind != "asymmetric":
        return Scales(bits, scale, torch.full_like(scale, middle), low=int(kind == "symmetric"))
    return Scales(bits, scale, (-low / scale).round().clamp(0, top))


def _step(low: torch.Tensor, high: torch.Tensor, bits: int, kind: str) -> torch.Tensor:
    """The distance between neighboring values that lays the integers over the ranges."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    width = torch.maximum(-low, high) if kind != "asymmetric" else high - low
    return width / {"symmetric": middle - 1, "full_range": top / 2, "asymmetric": top}[kind]


def check_scale(
    name: str,
    low: torch.Tensor,
    high: torch.Tensor,
    bits: int,
    kind: str,
    scale_dtype: torch.dtype | None = None,
) -> None:
    """Raise unless the scale of each range that is not empty is above 0 and finite where it is stored."""
    dtype = scale_dtype or low.dtype
    step = _step(low, high, bits, kind)
    stored = step.to(dtype)
    wrong = (low < high) & ~(torch.isfinite(stored) & (stored > 0))
    if wrong.any():
        worst = step[wrong][0].item()
        raise ValueError(
            f"{name}: {wrong.sum().item()} groups have a scale such as {worst:.3g}: "
            f"must be above 0 and finite in {str(dtype).removeprefix('torch.')}"
        )


def to_codes(parts: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Codes of (rows, groups, group) as whole numbers in the same dtype."""
    codes = (parts / scales.scale[..., None]).round_().add_(scales.zero[..., None])
    return codes.clamp_(scales.low, scales.high)


def to_values(codes: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Values of codes (rows, groups, group)."""
    return (codes - scales.zero[..., None]).mul_(scales.scale[..., None])


STEPS, SHRINK, POWER = 100, 0.8, 2.4
"""The search of the option ``mse``: hundredths of the range, down to a fifth, least sum of |error|^2.4."""


def _least_error(parts, low, high, bits, kind, scale_dtype) -> Scales:
    """Of ever narrower ranges, each group's with the least rounding error."""
    best = over(low, high, bits, kind, scale_dtype)
    scale, zero, least = best.scale, best.zero, torch.full_like(low, float("inf"))
    for i in range(int(SHRINK * STEPS)):
        share = 1 - i / STEPS
        tried = over(share * low, share * high, bits, kind, scale_dtype)
        error = to_values(to_codes(parts, tried), tried).sub_(parts).abs_().pow_(POWER).sum(2)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, tried.scale, scale), torch.where(better, tried.zero, zero)
    return Scales(bits, scale, zero, best.low)
