"""KIVI's cache: which keys and values are quantized, and along which axis."""

from __future__ import annotations

from dataclasses import dataclass

from gpuedu.checks import check_count

from .checks import check_bits


@dataclass(frozen=True)
class KVQuantization:
    """A quantized KV cache: keys by channel, values by token, the newest in full precision.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8, of keys and values.
    group : int
        Numbers that share a scale: tokens of one channel for keys, channels of one token for values.
    residual : int
        Tokens R in full precision: a multiple of ``group``. Values keep the newest R; keys keep
        up to R - 1, since a channel is quantized R tokens at a time.
    scale_bits, zero_bits : int
        Bits of a scale and of a minimum.

    Raises
    ------
    TypeError, ValueError
        For a width or count out of range, or a group that does not divide the residual.

    Notes
    -----
    A few channels of the keys are large in every token: a scale over tokens keeps them apart from the
    others. Values have no such channels, and a token of them can be written at once.

    References
    ----------
    Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", section 3.3 and
    algorithm 1.

    Examples
    --------
    >>> cache = KVQuantization(bits=2, group=32, residual=128)
    >>> cache.quantized_keys(1000), cache.quantized_values(1000), cache.bits_per_number
    (896, 872, 3.0)
    """

    bits: int
    group: int = 32
    residual: int = 128
    scale_bits: int = 16
    zero_bits: int = 16

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_count("group", self.group)
        check_count("residual", self.residual)
        check_count("scale_bits", self.scale_bits)
        check_count("zero_bits", self.zero_bits, 0)
        if self.residual % self.group:
            raise ValueError(f"group={self.group}: must divide residual={self.residual} without rest")

    @property
    def bits_per_number(self) -> float:
        """Bits of a quantized number with its share of scale and minimum."""
        return self.bits + (self.scale_bits + self.zero_bits) / self.group

    def quantized_keys(self, tokens: int) -> int:
        """How many of the oldest of ``tokens`` have quantized keys."""
        check_count("tokens", tokens, 0)
        return tokens - tokens % self.residual

    def quantized_values(self, tokens: int) -> int:
        """How many of the oldest of ``tokens`` have quantized values."""
        check_count("tokens", tokens, 0)
        return max(0, tokens - self.residual)
