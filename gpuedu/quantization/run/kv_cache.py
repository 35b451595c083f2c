"""A quantized KV cache by KIVI's axes: keys by channel, values by token, the newest in full precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpuedu.checks import check_count

from ..plan.kv_window import KVQuantization
from .checks import check_floats


@dataclass
class _Quantized:
    """Codes with a scale and a minimum for each group along the last axis."""

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor

    def values(self) -> torch.Tensor:
        """In the dtype of the scales."""
        group = self.codes.shape[-1] // self.scale.shape[-1]
        codes = self.codes.to(self.scale.dtype).unflatten(-1, (-1, group))
        return (codes * self.scale[..., None] + self.minimum[..., None]).flatten(-2)


def quantize_groups(numbers: torch.Tensor, bits: int, group: int) -> _Quantized:
    """Round (..., n) to ``bits`` bits from the smallest to the largest of each ``group`` along its end."""
    parts = numbers.unflatten(-1, (-1, group))
    low, high = parts.amin(-1), parts.amax(-1)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    codes = ((parts - low[..., None]) / scale[..., None]).round_().clamp_(0, 2**bits - 1)
    return _Quantized(codes.to(torch.uint8).flatten(-2), scale, low)


class QuantizedKVCache:
    """Keys and values of past tokens, the older ones in a few bits.

    Parameters
    ----------
    layers : int
        Of the model.
    quantization : KVQuantization
        Bits, groups and the residual window. The group must divide the head's width.

    Raises
    ------
    TypeError, ValueError
        If ``layers`` is no int of at least 1 or ``quantization`` no KVQuantization.

    Notes
    -----
    Codes are held in a byte each; :attr:`memory_bytes` counts the bits that they need, which is what a kernel
    that packs them stores.

    References
    ----------
    Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", algorithm 1.

    Examples
    --------
    >>> cache = QuantizedKVCache(1, KVQuantization(bits=2, group=4, residual=4))
    >>> k = v = torch.randn(1, 2, 10, 8, generator=torch.Generator().manual_seed(0))
    >>> keys, values = cache.append(0, k, v)
    >>> cache.length, keys.shape, bool((keys[:, :, 8:] == k[:, :, 8:]).all())
    (10, torch.Size([1, 2, 10, 8]), True)
    """

    def __init__(self, layers: int, quantization: KVQuantization):
        check_count("layers", layers)
        if not isinstance(quantization, KVQuantization):
            raise TypeError(f"quantization={quantization!r}: must be a KVQuantization")
        self.quantization = quantization
        self._layers = [_Layer(quantization) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Tokens that all layers have."""
        return min(layer.tokens for layer in self._layers)

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new tokens' keys and values; return those of all tokens, as attention will see them.

        Parameters
        ----------
        layer : int
            From 0.
        k, v : Tensor
            (batch, kv_heads, tokens, head_dim).

        Returns
        -------
        tuple of Tensor
            (batch, kv_heads, tokens so far, head_dim) each. The new tokens are in them as they came; they are
            quantized when the next ones arrive, as KIVI's prefill attends in full precision.

        Raises
        ------
        TypeError, ValueError
            For tensors that do not fit, or hold something not finite.
        """
        if not 0 <= layer < len(self._layers):
            raise ValueError(f"layer={layer}: must be from 0 to {len(self._layers) - 1}")
        check_floats("k", k)
        check_floats("v", v)
        if k.shape != v.shape or k.ndim != 4:
            raise ValueError(f"k, v of shapes {tuple(k.shape)}, {tuple(v.shape)}: must be the same, 4 axes")
        if k.shape[-1] % self.quantization.group:
            raise ValueError(f"group={self.quantization.group}: must divide head_dim={k.shape[-1]}")
        held = self._layers[layer].new_keys
        if held is not None and _but_tokens(k) != _but_tokens(held):
            raise ValueError(
                f"k, v of shape {tuple(k.shape)}: must have batch, kv_heads, head_dim {_but_tokens(held)}, "
                "as the tokens before"
            )
        return self._layers[layer].append(k, v)

    @property
    def memory_bytes(self) -> int:
        """Bytes of codes, scales, minima and the numbers that are not quantized."""
        return sum(layer.memory_bytes for layer in self._layers)


def _but_tokens(k: torch.Tensor) -> tuple[int, int, int]:
    """Batch, heads, head_dim."""
    return k.shape[0], k.shape[1], k.shape[3]


class _Layer:
    """One layer's keys and values."""

    def __init__(self, quantization: KVQuantization):
        self.how = quantization
        self.tokens = 0
        self.keys: list[_Quantized] = []  # of (batch, heads, head_dim, tokens): groups lie along tokens
        self.values: list[_Quantized] = []  # of (batch, heads, tokens, head_dim)
        self.new_keys: torch.Tensor | None = None
        self.new_values: torch.Tensor | None = None

    def append(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.tokens += k.shape[2]
        self.new_keys = k if self.new_keys is None else torch.cat((self.new_keys, k), 2)
        self.new_values = v if self.new_values is None else torch.cat((self.new_values, v), 2)
        old_keys = [part.values().transpose(2, 3) for part in self.keys]
        old_values = [part.values() for part in self.values]
        seen = torch.cat((*old_keys, self.new_keys), 2), torch.cat((*old_values, self.new_values), 2)
        self._quantize_old()
        return seen

    def _quantize_old(self) -> None:
        """Whole windows of keys, and all values but the newest window."""
        bits, group = self.how.bits, self.how.group
        done = self.tokens - self.new_keys.shape[2]
        count = self.how.quantized_keys(self.tokens) - done
        if count:
            old, self.new_keys = self.new_keys[:, :, :count], self.new_keys[:, :, count:]
            self.keys.append(quantize_groups(old.transpose(2, 3).contiguous(), bits, group))
        done = self.tokens - self.new_values.shape[2]
        count = self.how.quantized_values(self.tokens) - done
        if count:
            old, self.new_values = self.new_values[:, :, :count], self.new_values[:, :, count:]
            self.values.append(quantize_groups(old, bits, group))

    @property
    def memory_bytes(self) -> int:
        how = self.how
        bits = 0
        for part in (*self.keys, *self.values):
            bits += part.codes.numel() * how.bits + part.scale.numel() * (how.scale_bits + how.zero_bits)
        full = [t for t in (self.new_keys, self.new_values) if t is not None]
        return bits // 8 + sum(t.numel() * t.element_size() for t in full)
