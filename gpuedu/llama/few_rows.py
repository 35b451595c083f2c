"""A linear layer that stays fast where it multiplies a handful of rows: what decoding does all day."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FEW_ROWS = 32
LARGE = 2**16  # elements: below, the weights lie in a cache and there is nothing to win


class Linear(nn.Linear):
    """``nn.Linear`` without a bias, computed the other way round where that is faster.

    Parameters
    ----------
    in_features, out_features : int
        Widths of rows and results.
    bias : bool
        Must be False.
    device, dtype
        Of the weights, as in ``nn.Linear``.

    Raises
    ------
    ValueError
        If a bias is asked for.

    Notes
    -----
    On a CPU torch's product of a few rows with a large weight matrix in float32 can take several times as
    long as ``(weight @ rows.T).T``: its kernel is chosen for many rows. A lone row goes to a matrix-vector
    kernel on one thread; beside a row of zeros it has them all. From 9 rows on, 16 at a time are as fast as
    fewer. ``benchmarks/engine.py`` measures what all this brings.

    Examples
    --------
    >>> layer, x = Linear(300, 400), torch.rand(1, 2, 300)
    >>> torch.allclose(layer(x), functional.linear(x, layer.weight), atol=1e-6)
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if bias:
            raise ValueError(f"bias={bias!r}: must be False, this layer has none")
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        rows = x.numel() // self.in_features
        slow = 0 < rows <= FEW_ROWS and self.weight.numel() > LARGE and x.dtype == torch.float32
        if not (slow and x.device.type == "cpu"):
            return functional.linear(x, self.weight)
        flat = functional.pad(x.reshape(rows, self.in_features), (0, 0, 0, _convenient(rows) - rows))
        out = self.weight @ flat.T
        return out[:, :rows].T.reshape(*x.shape[:-1], self.out_features)


def _convenient(rows: int) -> int:
    """Rows that take no longer than so many."""
    return max(2, rows) if rows <= 8 else -(-rows // 16) * 16
