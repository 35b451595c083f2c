"""W4A16: 16- or 32-bit activations times packed weights, which are expanded a tile at a time."""

from __future__ import annotations

import torch
from torch import nn

from gpuedu.checks import check_count

from .pack import Packed, PackedAWQ, PackedGPTQ, unpack_awq, unpack_gptq

TILE = 256
"""Rows (outputs) that are expanded at a time."""


def packed_matmul(x: torch.Tensor, packed: Packed, tile: int = TILE) -> torch.Tensor:
    """``x W^T`` with W expanded tile by tile, so that it is never in memory whole.

    Parameters
    ----------
    x : Tensor
        (..., columns), floating point.
    packed : PackedGPTQ or PackedAWQ
        W, (rows, columns), packed.
    tile : int
        Rows of W that are expanded at a time; rounded up to whole words.

    Returns
    -------
    Tensor
        (..., rows), in the dtype of ``x``: products are those of 16- or 32-bit numbers, and only memory is
        saved.

    Raises
    ------
    TypeError, ValueError
        If ``x`` has another width than the matrix, or ``tile`` is below 1.

    Notes
    -----
    GPU kernels (Marlin, AWQ's GEMM) do the same in registers and shared memory: the weights cross the
    memory bus in 4 bits and are multiplied on tensor cores in 16.

    References
    ----------
    Frantar et al. 2024, "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language
    Models".

    Examples
    --------
    >>> from gpuedu.quantization.run import pack_gptq, round_to_nearest
    >>> matrix = round_to_nearest(torch.randn(64, 32), bits=4, scale_dtype=torch.float16)
    >>> x = torch.randn(5, 32)
    >>> torch.allclose(packed_matmul(x, pack_gptq(matrix)), x @ matrix.dequantize().T, atol=1e-5)
    True
    """
    check_count("tile", tile)
    rows, columns = packed.scales.shape[1], len(packed.g_idx)
    if x.shape[-1] != columns:
        raise ValueError(f"x has {x.shape[-1]} columns: must have {columns}, as the packed matrix")
    tile = -(-tile // 32) * 32
    out = x.new_empty(*x.shape[:-1], rows)
    for start in range(0, rows, tile):
        stop = min(start + tile, rows)
        out[..., start:stop] = x @ _expanded(packed, start, stop, x.dtype).T
    return out


def _expanded(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows ``start`` to ``stop - 1`` of the matrix."""
    if isinstance(packed, PackedAWQ):
        words = slice(start // 8, stop // 8)
        part = PackedAWQ(packed.qweight[:, words], packed.qzeros[:, words], packed.scales[:, start:stop])
        return unpack_awq(part, dtype).dequantize()
    words = slice(start * packed.bits // 32, stop * packed.bits // 32)
    part = PackedGPTQ(
        packed.bits,
        packed.version,
        packed.qweight[:, start:stop],
        packed.qzeros[:, words],
        packed.scales[:, start:stop],
        packed.g_idx,
    )
    return unpack_gptq(part, dtype).dequantize()


class PackedLinear(nn.Module):
    """A linear layer on packed weights.

    Parameters
    ----------
    packed : PackedGPTQ or PackedAWQ
        Its weights.
    bias : Tensor or None
        (rows,).

    Examples
    --------
    >>> from gpuedu.quantization.run import pack_awq, round_to_nearest
    >>> layer = PackedLinear(pack_awq(round_to_nearest(torch.randn(64, 128), bits=4, group=64)))
    >>> layer(torch.randn(2, 3, 128)).shape
    torch.Size([2, 3, 64])
    """

    def __init__(self, packed: Packed, bias: torch.Tensor | None = None):
        super().__init__()
        self.packed, self.bias = packed, bias
        self.in_features, self.out_features = len(packed.g_idx), packed.scales.shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        y = packed_matmul(x, self.packed)
        return y if self.bias is None else y + self.bias
