"""GPTQ on tensors: columns rounded one after the other, each making up for the errors of those before.

The decisions are those of :func:`gpuedu.quantization.plan.gptq`, which follows the paper; here they are
arranged for speed. With ``H = R R^T``, R upper triangular, the output error of a row is half of the square of
``d R``, where d is old weights less new ones. Entry k of ``d R`` holds ``d_i R_ik`` of all columns i up to k.
It is least where column k is rounded from ``w_k`` plus the sum of ``d_i R_ik / R_kk`` over the columns
before: that is the weight which the paper's updates leave for it. So one factorization is all that is
needed, and no inverse.
"""

from __future__ import annotations

import torch

from gpuedu.checks import check_amount, check_count

from ..plan.checks import check_bits, check_choice, check_group
from ..plan.gptq import GROUP_SCALES
from ..plan.integers import CLIPS, KINDS
from .checks import check_matrix, wide
from .gptq_columns import Fitting, round_columns
from .integers import QuantizedMatrix, Scales


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    group_scales: str = "fresh",
    block: int = 128,
    act_order: bool = False,
    damping: float = 0.01,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> QuantizedMatrix:
    """Quantize a weight matrix so that its outputs on the calibration inputs change least.

    Parameters
    ----------
    weight : Tensor
        (rows, columns): a row for each output. Matrices with the same inputs can be put on top of each other:
        rows do not see one another.
    hessian : Tensor
        (columns, columns), of :func:`gpuedu.quantization.run.input_statistics`.
    bits, kind, group, clip, scale_dtype
        As of :func:`gpuedu.quantization.run.fit`. With ``act_order`` a group is that many columns in the
        order of rounding, unless its scales are static.
    group_scales : str
        When a group's scale is taken. ``"fresh"``: from its weights when its first column is rounded, as the
        paper describes it. ``"stale"``: from its weights when the block of ``block`` columns began, which is
        what the published code does, in effect, where a group is smaller than the block. ``"static"``:
        before anything is rounded, which keeps the groups of the matrix's own order.
    block : int
        Columns of a block for ``"stale"``. It changes nothing else, and is chosen for speed elsewhere.
    act_order : bool
        Round the columns with the largest mean squared input first.
    damping : float
        This times the mean of the Hessian's diagonal is added to it (``percdamp``).

    Returns
    -------
    QuantizedMatrix
        With columns in the order of ``weight``, and the group of each; what is in half precision is computed
        in float32.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, a group that does not divide, numbers that are not finite, an argument out
        of its range, or a Hessian that is singular even with the damping.

    Notes
    -----
    Columns whose input was always 0 become 0. In float64 the result does not depend on how columns are
    blocked; in float32 sums in another order flip a few roundings in a million.

    References
    ----------
    Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    algorithm 1 and section 3.3; options as in its reference code.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 0.2], [0.9, 1.0, 0.1]])
    >>> weight, hessian = torch.tensor([[0.4, 0.4, 1.0]]), 2 / 3 * x.T @ x
    >>> gptq(weight, hessian, bits=2, kind="symmetric", damping=0.001).dequantize()
    tensor([[0., 1., 0.]])
    """
    _check(weight, hessian, bits, kind, group_scales, block, damping, clip)
    group = check_group(group, weight.shape[1])
    weight, hessian = wide(weight), wide(hessian)
    with torch.no_grad():
        diagonal = hessian.diagonal()
        if (diagonal == 0).any():
            weight = torch.where(diagonal == 0, 0.0, weight)
        order = diagonal.argsort(descending=True, stable=True) if act_order else None
        if order is not None:
            hessian = hessian[order][:, order]
        root = upper_root(hessian, damping).to(weight.dtype)
        fitting = Fitting(bits, kind, clip, scale_dtype, group, group_scales, block)
        steps, scale, zero, index = round_columns(weight, root, fitting, order)
        return _in_matrix_order(steps, scale, zero, index, order, fitting)


def upper_root(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular R with ``H + damping * mean diagonal = R R^T``.

    Parameters
    ----------
    hessian : Tensor
        (columns, columns), symmetric; zeros on its diagonal (inputs that are always 0) count as 1.
    damping : float
        Share of the mean of the diagonal that is added to it.

    Returns
    -------
    Tensor
        (columns, columns). Its inverse is the paper's U, ``H^-1 = U^T U``.

    Raises
    ------
    ValueError
        If the damped matrix is not positive definite.

    Examples
    --------
    >>> upper_root(torch.tensor([[5.0, 2.0], [2.0, 4.0]]), damping=0.0)
    tensor([[2., 1.],
            [0., 2.]])
    """
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))  # a factorization read from the other end
    if failed:
        raise ValueError(f"damping={damping}: must be larger, the Hessian is singular with it")
    return lower.flip(0, 1)


def _in_matrix_order(steps, scale, zero, index, order, fitting: Fitting) -> QuantizedMatrix:
    """Codes from steps around zero, with columns where they came from."""
    if (index.diff() < 0).any():
        codes = (steps + zero[index]).to(torch.uint8)
    else:
        codes = steps.unflatten(0, (len(zero), -1)).add_(zero[:, None]).to(torch.uint8).flatten(0, 1)
    if order is not None:
        back = order.argsort()
        codes, index = codes[back], index[back]
    scales = Scales(fitting.bits, scale.T.contiguous(), zero.T.contiguous(), fitting.low)
    return QuantizedMatrix(codes.T.contiguous(), scales, index)


def _check(weight, hessian, bits, kind, group_scales, block, damping, clip) -> None:
    check_bits(bits)
    check_choice("kind", kind, KINDS)
    check_choice("clip", clip, CLIPS)
    check_choice("group_scales", group_scales, GROUP_SCALES)
    check_count("block", block)
    check_amount("damping", damping)
    check_matrix("weight", weight)
    check_matrix("hessian", hessian)
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"hessian of shape {tuple(hessian.shape)}: must be ({columns}, {columns}), the columns of weight"
        )
