"""Round to nearest: every weight to the closest value of its group's grid."""

from __future__ import annotations

import torch

from .integers import QuantizedMatrix, fit, to_codes


def round_to_nearest(
    weight: torch.Tensor,
    bits: int,
    *,
    kind: str = "asymmetric",
    group: int | None = None,
    clip: str = "minmax",
    scale_dtype: torch.dtype | None = None,
) -> QuantizedMatrix:
    """Round to nearest (RTN): needs nothing but the weights.

    Parameters
    ----------
    weight : Tensor
        (rows, columns): a row for each output.
    bits, kind, group, clip, scale_dtype
        As of :func:`gpuedu.quantization.run.fit`. With ``clip="mse"`` each group's range is the one with the
        least rounding error.

    Returns
    -------
    QuantizedMatrix
        Codes and scales; what is in half precision is computed in float32.

    Raises
    ------
    TypeError, ValueError
        As :func:`gpuedu.quantization.run.fit`.

    Examples
    --------
    >>> round_to_nearest(torch.tensor([[-1.0, 0.4, 2.0]]), bits=2).dequantize()
    tensor([[-1.,  0.,  2.]])
    """
    scales = fit(weight, bits, kind=kind, group=group, clip=clip, scale_dtype=scale_dtype)
    rows, columns = weight.shape
    groups = scales.scale.shape[1]
    codes = to_codes(weight.view(rows, groups, -1), scales)
    index = torch.arange(columns, device=weight.device) // (columns // groups)
    return QuantizedMatrix(codes.view(rows, columns).to(torch.uint8), scales, index)
